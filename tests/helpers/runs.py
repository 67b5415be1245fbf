"""Training runs for tests: settings, processes that kill themselves, comparisons of runs."""

import hashlib
import json
import os
import shutil
import signal
import tempfile
import traceback
from dataclasses import replace
from pathlib import Path

import torch

import resnetkit as rk
from resnetkit.architecture.spec import MLP
from resnetkit.training.checkpoint import load_latest_checkpoint
from resnetkit.training.trainer import Trainer

from helpers.tiny import BASE

SETTINGS = {"epochs": 3, "batch_size": 8, "precision": "fp32", "checkpoint_steps": 4}
STOCHASTIC_NETWORK = replace(BASE, stochastic_depth=0.5, head=MLP(5, (8,), 1, 0.5))  # with dropout


def hash_model(run):
    """Return the digest of the weights that a run has kept."""
    return hashlib.sha256((Path(run) / "model" / "model.safetensors").read_bytes()).hexdigest()


def read_metrics(run):
    """Read ``metrics.jsonl`` without what a clock says."""
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]


def read_newest_state(run):
    """Read the state of the newest checkpoint of a run."""
    return load_latest_checkpoint(run / "state", lambda checkpoint: None).state


def assert_same_run(run, whole):
    """Assert that nothing tells a resumed run from one that was not interrupted."""
    assert hash_model(run) == hash_model(whole)
    assert read_metrics(run) == read_metrics(whole)
    assert run.evaluation.predictions == whole.evaluation.predictions
    assert (run.best_epoch, run.results.stop_reason) == (whole.best_epoch, whole.results.stop_reason)
    assert not (run.path / "state").exists()
    assert not list(run.path.rglob("*.part"))


def die(*_):
    """Kill this process as ``kill -9`` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_call(owner, name, count):
    """Return a patch for `train_and_kill`: the ``count``-th call of ``owner.name`` is fatal."""

    def patch():
        original, calls = getattr(owner, name), []

        def spy(*args, **kwargs):
            calls.append(1)
            if len(calls) == count:
                die()
            return original(*args, **kwargs)

        setattr(owner, name, spy)

    return patch


def kill_at_step(count):
    """Return a patch for `train_and_kill`: the process dies before its ``count``-th step."""
    return kill_at_call(Trainer, "train_step", count)


def settle_threads():
    """Let the first thread of a forked process replace torch's thread pool; two threads at once would race for it."""
    torch.set_num_threads(torch.get_num_threads())


def fork(work):
    """Fork a process: (its id, a file with its traceback). It exits with 1 if ``work`` returns."""
    output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - the caller reads it
    child = os.fork()
    if not child:
        settle_threads()
        try:
            work()
        except BaseException:  # noqa: BLE001 - this process must not go on with other tests
            traceback.print_exc(file=output)
            output.flush()
        os._exit(1)
    return child, output


def train_and_kill(patch, *args, **kwargs):
    """Train in a process of its own that a patch kills."""

    def work():
        patch()
        rk.train(*args, **kwargs)

    child, output = fork(work)
    with output:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        assert code == -signal.SIGKILL, output.read() or "the run finished"


class RunCache:
    """Runs that several tests share: each is made once, then copied next to other images of the same names."""

    def __init__(self, folder):
        self.folder, self.runs, self.origins = folder, {}, {}

    def train(self, name, *args, **kwargs):
        """Train a run once; nothing in it depends on its place."""
        if name not in self.runs:
            self.runs[name] = rk.train(*args, out=self.folder / name, **kwargs)
        return self.runs[name]

    def copy_killed(self, step, data, network, folder, settings):
        """Return ``folder/run``, a run that was killed in a step."""
        stored = self.folder / f"killed-{step}-{settings['epochs']}"
        if not stored.exists():
            train_and_kill(kill_at_step(step), data, network, out=stored, settings=settings)
            self.origins[stored] = str(folder)
        shutil.copytree(stored, folder / "run")
        recipe = folder / "run" / "run.toml"
        recipe.write_text(recipe.read_text().replace(self.origins[stored], str(folder)))
        return folder / "run"
