"""Engines that misbehave, for the processes that `optimize` starts: Python imports this file by its name."""

import os
import time
from dataclasses import dataclass

from resnetkit.engines import base as engine

REAL = dict(engine.ENGINE_SPECS)


@dataclass
class Bent:
    """An engine whose answers are bent."""

    inner: engine.Engine
    bend: object

    @property
    def config(self):
        return self.inner.config

    def __call__(self, pixels):
        return self.bend(self.inner(pixels))


def bent(bend):
    class Backend:
        @staticmethod
        def export_artifact(network, artifact, precision, pixels):
            REAL["openvino"].import_backend().export_artifact(network, artifact, precision, pixels)

        @staticmethod
        def load_engine(folder, artifact, config):
            return Bent(REAL["openvino"].import_backend().load_engine(folder, artifact, config), bend)

    return Backend


def loud(logits):
    print("a library that prints", flush=True)
    os.write(1, b"and its native part\n")
    return logits


def raising(*_):
    raise ValueError("no such operation: Snake\nand much more")


def slow(logits):
    time.sleep(0.05)
    return logits


class Raises:
    export_artifact = staticmethod(raising)


class Sleeps(bent(None)):
    @staticmethod
    def load_engine(folder, artifact, config):
        if config.batch_size > 1:
            time.sleep(1000)
        return REAL["openvino"].import_backend().load_engine(folder, artifact, config)


class Hangs(Sleeps):
    @staticmethod
    def export_artifact(network, artifact, precision, pixels):
        time.sleep(1000)


BACKENDS = {
    "loud": bent(loud),
    "slow": bent(slow),
    "wrong": bent(lambda logits: logits * 1.5),
    "dies": bent(lambda logits: os.abort()),
    "raises": Raises,
    "sleeps": Sleeps,
    "hangs": Hangs,
}


class Kind(engine.EngineSpec):
    def import_backend(self):
        return BACKENDS[self.module]


CUTS = ((1, None), (4, 1))
FAKES = {
    "loud": Kind("loud", ("openvino",), ("int8", "int8-body", "fp32"), layouts=CUTS),
    **{name: Kind(name, ("openvino",), ("fp32",), layouts=CUTS) for name in BACKENDS if name != "loud"},
    "devices": Kind("loud", ("openvino",), ("fp32",), layouts=CUTS, devices=("cpu", "cuda")),
    "absent": Kind("loud", ("no_such_package",), ("fp32",), "openvino"),
}
engine.ENGINE_SPECS.clear()
engine.ENGINE_SPECS.update(FAKES)
