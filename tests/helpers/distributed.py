"""Run the command line in several forked processes, as torchrun does.

The processes share a key-value store that this process holds, as torchrun's agent does.
"""

import contextlib
import json
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from resnetkit.cli import main
from resnetkit.runtime import failures, process_group
from resnetkit.training import trainer

from helpers.runs import settle_threads


class Exit(NamedTuple):
    """How a process ended, and what it printed."""

    code: int
    out: str
    err: str


@dataclass
class Launch:
    """Processes to start: ``hooks`` maps a rank to a function that its process calls first.

    A process that waits for a report of another rank waits ``report_timeout`` seconds. It is short where a process is
    killed, as no report will come, and long where all processes fail together, as each must see the reports.
    """

    folder: Path
    world_size: int
    hooks: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)
    report_timeout: float = 0.2

    def start(self, work):
        """Fork the processes; each calls its hook, then ``work``, whose result is its exit code."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.pids = [os.fork() or self._run_child(rank, work) for rank in range(self.world_size)]
        return self.pids

    def _run_child(self, rank, work):
        code = 70
        with contextlib.suppress(BaseException):  # this process must not go on with other tests
            sys.stdout, sys.stderr = ((self.folder / f"{name}{rank}").open("w") for name in ("out", "err"))
            os.environ.update(self._make_environment(rank))
            process_group.count_cores = lambda: 1
            settle_threads()
            failures.REPORT_TIMEOUT = failures.LOWER_RANK_TIMEOUT = self.report_timeout
            failures.LINGER_SECONDS = 0.0  # the store outlives rank 0
            self.hooks.get(rank, lambda: None)()
            code = work()
        sys.stdout.close()
        sys.stderr.close()
        os._exit(code)

    def _make_environment(self, rank):
        world_size = str(self.world_size)
        ranks = {"RANK": str(rank), "WORLD_SIZE": world_size, "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": world_size}
        store = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
        return ranks | store | self.environment

    def wait(self):
        """Return how each process ended."""
        return [self.wait_for(rank) for rank in range(self.world_size)]

    def wait_for(self, rank):
        """Return how the process with this rank ended."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pids[rank], 0)[1])
        return Exit(code, *((self.folder / f"{name}{rank}").read_text() for name in ("out", "err")))


def launch(folder, world_size, *words, **options):
    """Run a command line in several processes and return how each ended."""
    processes = Launch(folder, world_size, **options)
    processes.start(lambda: main([str(word) for word in words]))
    return processes.wait()


# -------------------------------------------------------------------------------------------- hooks of the processes


def before_step(count, action):
    """A hook: call ``action`` before the ``count``-th training step of the process."""

    def install():
        original, calls = trainer.Trainer.train_step, []

        def train_step(self, *args):
            calls.append(1)
            if len(calls) == count:
                action()
            return original(self, *args)

        trainer.Trainer.train_step = train_step

    return install


def record_images(folder):
    """A hook: write (epoch, index, name, label) of every image that the process trains on."""

    def install():
        original = trainer.Trainer.train_step

        def train_step(self, step, pixels, labels, indices):
            names = self.run.loaders["train"].images.names
            rows = [[self.session.state.epoch, int(i), names[i], int(y)] for i, y in zip(indices, labels, strict=True)]
            with (folder / f"images{os.environ['RANK']}").open("a") as file:
                file.write("".join(json.dumps(row) + "\n" for row in rows))
            return original(self, step, pixels, labels, indices)

        trainer.Trainer.train_step = train_step

    return install


def read_recorded_images(*folders):
    """Count the rows that `record_images` has written."""
    files = [file for folder in folders for file in folder.glob("images*")]
    return Counter(tuple(json.loads(line)) for file in files for line in file.read_text().splitlines())
