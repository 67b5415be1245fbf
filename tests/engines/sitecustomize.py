"""Engines that misbehave, for the processes that `optimize` starts: Python imports this file by its name."""

import os
import time
from dataclasses import dataclass

from resnetkit.engines import base as engine

REAL = dict(engine.KINDS)


@dataclass
class Bent:
    """An engine whose answers are bent."""

    inner: engine.Engine
    bend: object

    @property
    def choice(self):
        return self.inner.choice

    def __call__(self, pixels):
        return self.bend(self.inner(pixels))


def bent(bend):
    class Backend:
        @staticmethod
        def make(network, artefact, precision, pixels):
            REAL["openvino"].backend().make(network, artefact, precision, pixels)

        @staticmethod
        def open(folder, artefact, choice):
            return Bent(REAL["openvino"].backend().open(folder, artefact, choice), bend)

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
    make = staticmethod(raising)


class Sleeps(bent(None)):
    @staticmethod
    def open(folder, artefact, choice):
        if choice.batch > 1:
            time.sleep(1000)
        return REAL["openvino"].backend().open(folder, artefact, choice)


class Hangs(Sleeps):
    @staticmethod
    def make(network, artefact, precision, pixels):
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


class Kind(engine.Kind):
    def backend(self):
        return BACKENDS[self.module]


CUTS = ((1, None), (4, 1))
FAKES = {
    "loud": Kind("loud", ("openvino",), ("int8", "int8-body", "fp32"), cuts=CUTS),
    **{name: Kind(name, ("openvino",), ("fp32",), cuts=CUTS) for name in BACKENDS if name != "loud"},
    "devices": Kind("loud", ("openvino",), ("fp32",), cuts=CUTS, devices=("cpu", "cuda")),
    "absent": Kind("loud", ("no_such_package",), ("fp32",), "openvino"),
}
engine.KINDS.clear()
engine.KINDS.update(FAKES)
