"""A benchmark client without a process: speeds and errors come from a table, and time passes only on its clock."""

import contextlib
from dataclasses import dataclass, field

import numpy as np
import torch

import resnetkit as rk
from resnetkit.engines.base import EngineSpec
from resnetkit.network.inference import inference
from resnetkit.optimization.budget import SearchSettings
from resnetkit.optimization.client import BenchmarkError

LAYOUTS = ((1, None), (4, 1), (8, 1), (16, 1), (32, 1))


@dataclass
class Behavior:
    """Speed and errors of an engine; ``errors`` maps (request, batch size) to a message."""

    images_per_second: float = 100.0
    startup_seconds: float = 1.0
    measure_seconds: float = 0.0
    scale: float = 1.0
    errors: dict = field(default_factory=dict)


@dataclass
class FakeMachine:
    """A clock and the engines of a machine; ``log`` holds the requests."""

    behaviors: dict = field(default_factory=dict)
    now: float = 0.0
    log: list = field(default_factory=list)

    @property
    def settings(self):
        return SearchSettings(final_rounds=2, clock=lambda: self.now, open_client=self.open_client)

    @contextlib.contextmanager
    def open_client(self, folder, work_dir):
        self.log.append(("open", None))
        yield FakeClient(self, folder, work_dir)

    def list_loaded(self):
        """Return the configurations in the order in which they were loaded."""
        return [config for request, config in self.log if request == "load"]


class FakeClient:
    def __init__(self, machine, folder, work_dir):
        self.machine, self.folder, self.work_dir = machine, folder, work_dir

    def _request(self, name, config):
        self.machine.log.append((name, config))
        behavior = self.machine.behaviors.setdefault(config.engine, Behavior())
        if message := behavior.errors.get((name, config.batch_size)):
            raise BenchmarkError(message)
        return behavior

    def export(self, config, pixels, timeout):
        self._request("export", config)
        (self.work_dir / config.name).mkdir()
        (self.work_dir / config.name / "model.bin").write_text(config.name)

    def load(self, config, pixels, timeout):
        self.config = config
        seconds = self._request("load", config).startup_seconds
        self.machine.now += seconds
        return seconds

    def infer(self, pixels, n_images, timeout):
        behavior = self._request("infer", self.config)
        with inference(rk.load(self.folder), torch.device("cpu")) as infer:
            return behavior.scale * infer(torch.from_numpy(np.load(pixels)[:n_images])).numpy()

    def measure(self, pixels, seconds, timeout):
        behavior = self._request("measure", self.config)
        self.machine.now += behavior.measure_seconds or seconds
        speed = behavior.images_per_second
        return speed, 1000 * self.config.batch_size * self.config.streams / speed


def make_specs(*names, precisions=("fp32",), layouts=LAYOUTS, **options):
    """Return entries of the table of engines that need nothing but numpy."""
    return {
        name: EngineSpec("json", ("numpy",), precisions, layouts=layouts, files=("model.bin",), **options)
        for name in names
    }
