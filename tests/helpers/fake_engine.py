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

CONFIG = engine.EngineConfig("fake", "int8", 4, 2)
batch_sizes = []  # sizes of batches


class FakeEngine:
    def __init__(self, config, n_classes):
        self.config, self.n_classes = config, n_classes
        self.delay = float(os.environ.get("FAKE_SECONDS", "0"))
        self._semaphore = threading.Semaphore(config.streams)

    def __call__(self, pixels):
        assert self._semaphore.acquire(blocking=False), "more ask at once than there are streams"
        assert 0 < len(pixels) <= self.config.batch_size
        time.sleep(self.delay)
        batch_sizes.append(len(pixels))
        self._semaphore.release()
        return compute_logits(pixels, self.n_classes)


def compute_logits(pixels, n_classes):
    means = pixels.reshape(len(pixels), -1).mean(1) / 32
    return np.stack([np.sin(means + k) * 3 + 0.01 * k * len(pixels) for k in range(n_classes)], 1).astype(np.float32)


def load_engine(folder, artifact, config):
    return FakeEngine(config, len(optimized.read_card(folder).labels))


def install(engine_specs=engine.ENGINE_SPECS):
    engine_specs["fake"] = engine.EngineSpec("helpers.fake_engine", ("numpy",), ("int8", "fp32"))


def _make_measurement(config, images_per_second):
    return optimized.Measurement(
        config, images_per_second, 1000 * config.batch_size * config.streams / images_per_second
    )


def write_engines(folder, *configs, content=b"ranges"):
    """Write what `resnetkit optimize` would have; ``content`` is what an artefact holds."""
    measurements = [_make_measurement(config, 1000.0 + i) for i, config in enumerate(configs or (CONFIG,))]
    versions = engine.ENGINE_SPECS["fake"].get_versions()
    files = (("model.bin", hashlib.sha256(content).hexdigest()),)
    engines = tuple(
        optimized.SavedEngine("throughput", measurement, versions, "f1", files) for measurement in measurements
    )
    digest = optimized.compute_weights_digest(folder)
    result = optimized.OptimizeResult(digest, optimized.get_machine_id(), "noise", tuple(measurements), engines)
    for measurement in measurements:
        artifact = optimized.get_artifact_folder(folder, "f1", measurement.config)
        artifact.mkdir(parents=True, exist_ok=True)
        (artifact / "model.bin").write_bytes(content)
    (folder / "engines" / "engines.json").write_text(to_json(result))


if __name__ == "__main__":  # the command line with the engine: python tests/fake_engine.py predict ...
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from resnetkit.cli import main

    from helpers import fake_engine  # noqa: PLW0406 - not __main__, which backends import by its name

    fake_engine.install()
    code = main(sys.argv[1:])
    assert "torch" not in sys.modules or "FAKE_TORCH" in os.environ
    sys.exit(code)
