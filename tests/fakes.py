"""An engine of numpy, for tests: what it answers can be reckoned by hand. No torch.

It answers a little otherwise for each size of a batch, so that who cuts batches otherwise is found out.
"""

import hashlib
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np

from resnetkit.engines import base as engine
from resnetkit.engines import saved as optimized
from resnetkit.serialization import to_json

CHOICE = engine.Choice("fake", "int8", 4, 2)
asked = []  # sizes of batches


class Fake:
    def __init__(self, choice, classes):
        self.choice, self.classes = choice, classes
        self.slow = float(os.environ.get("FAKE_SECONDS", "0"))
        self._turn = threading.Semaphore(choice.streams)

    def __call__(self, pixels):
        assert self._turn.acquire(blocking=False), "more ask at once than there are streams"
        assert 0 < len(pixels) <= self.choice.batch
        time.sleep(self.slow)
        asked.append(len(pixels))
        self._turn.release()
        return logits(pixels, self.classes)


def logits(pixels, classes):
    means = pixels.reshape(len(pixels), -1).mean(1) / 32
    return np.stack([np.sin(means + k) * 3 + 0.01 * k * len(pixels) for k in range(classes)], 1).astype(np.float32)


def open(folder, artefact, choice):
    return Fake(choice, len(optimized.read_card(folder).labels))


def installed(kinds=engine.KINDS):
    kinds["fake"] = engine.Kind("fakes", ("numpy",), ("int8", "fp32"))


def _row(choice, speed):
    return optimized.Row(choice, speed, 1000 * choice.batch * choice.streams / speed)


def optimize(folder, *choices, content=b"ranges"):
    """Write what `resnetkit optimize` would have; ``content`` is what an artefact holds."""
    rows = [_row(choice, 1000.0 + i) for i, choice in enumerate(choices or (CHOICE,))]
    versions = engine.KINDS["fake"].versions()
    files = (("model.bin", hashlib.sha256(content).hexdigest()),)
    kept = tuple(optimized.Kept("throughput", row, versions, "f1", files) for row in rows)
    digest = optimized.weights_digest(folder)
    made = optimized.Optimized(digest, optimized.here(), "noise", tuple(rows), kept)
    for row in rows:
        artefact = optimized.place(folder, "f1", row.choice)
        artefact.mkdir(parents=True, exist_ok=True)
        (artefact / "model.bin").write_bytes(content)
    (folder / "engines" / "engines.json").write_text(to_json(made))


if __name__ == "__main__":  # the command line with the engine: python tests/fakes.py predict ...
    sys.path.insert(0, str(Path(__file__).parent))
    from resnetkit.cli import main

    import fakes

    fakes.installed()
    code = main(sys.argv[1:])
    assert "torch" not in sys.modules or "FAKE_TORCH" in os.environ
    sys.exit(code)
