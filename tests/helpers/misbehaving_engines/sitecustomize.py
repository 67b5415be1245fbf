"""Engines that misbehave, for the processes that `optimize` starts: Python imports this file by its name."""

import os
import threading
from dataclasses import dataclass, replace
from pathlib import Path

from resnetkit.engines import base

REAL_SPECS = dict(base.ENGINE_SPECS)


def export_nothing(network, artifact, precision, pixels):
    (artifact / "model.bin").write_text(precision)


def load_eager(folder, contents, config):
    return REAL_SPECS["eager"].import_backend().load_engine(folder, contents, replace(config, precision="fp32"))


@dataclass
class WrappedEngine:
    """The eager engine, which calls a function before each batch."""

    inner: base.Engine
    before: object

    @property
    def config(self):
        return self.inner.config

    def __call__(self, pixels):
        self.before()
        return self.inner(pixels)


def wrap_eager(before):
    class Backend:
        export_artifact = staticmethod(export_nothing)

        @staticmethod
        def load_engine(folder, contents, config):
            return WrappedEngine(load_eager(folder, contents, config), before)

    return Backend


def write_to_stdout():
    print("a library that prints", flush=True)
    os.write(1, b"and its native part\n")


class Raises:
    @staticmethod
    def export_artifact(network, artifact, precision, pixels):
        raise ValueError("no such operation: Snake\nand much more")


class Hangs:
    @staticmethod
    def export_artifact(network, artifact, precision, pixels):
        with Path(os.environ["HANG_FIFO"]).open("w") as fifo:  # the test sees it closed when this process is gone
            fifo.write("exporting\n")
            fifo.flush()
            threading.Event().wait()


BACKENDS = {"loud": wrap_eager(write_to_stdout), "dies": wrap_eager(os.abort), "raises": Raises, "hangs": Hangs}


class Spec(base.EngineSpec):
    def import_backend(self):
        return BACKENDS[self.module]


SINGLE_IMAGES = ((1, None),)
SPECS = {
    "loud": Spec("loud", ("torch",), ("int8", "int8-body", "fp32"), layouts=SINGLE_IMAGES),
    **{name: Spec(name, ("torch",), ("fp32",), layouts=SINGLE_IMAGES) for name in ("dies", "raises", "hangs")},
    "absent": Spec("loud", ("no_such_package",), ("fp32",), "openvino"),
}
base.ENGINE_SPECS.clear()
base.ENGINE_SPECS.update(SPECS)
