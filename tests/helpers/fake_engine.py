"""An engine of NumPy whose logits can be computed by hand, and that needs no torch.

Its logits differ a little with the batch size, so that a test sees how batches are cut. In a process, FAKE_ACTION
("kill:10", "hang:10", or a signal's number and a call) says what happens at that call.
"""

import hashlib
import os
import signal
import sys
import threading
from pathlib import Path

import numpy as np

from resnetkit.engines import base, records, saved
from resnetkit.serialization import to_json

CONFIG = base.EngineConfig("fake", "int8", 4, 2)
batch_sizes = []  # of all calls


def install_for_test(monkeypatch):
    """Install the engine until the end of a test, and forget the calls of earlier tests."""
    monkeypatch.setitem(base.ENGINE_SPECS, "fake", None)
    install()
    batch_sizes.clear()


class FakeEngine:
    def __init__(self, config, n_classes):
        self.config, self.n_classes = config, n_classes
        self._semaphore, self._lock = threading.Semaphore(config.streams), threading.Lock()

    def __call__(self, pixels):
        assert self._semaphore.acquire(blocking=False), "more parallel calls than streams"
        assert 0 < len(pixels) <= self.config.batch_size
        with self._lock:
            batch_sizes.append(len(pixels))
            n_calls = len(batch_sizes)
        act(n_calls)
        self._semaphore.release()
        return compute_logits(pixels, self.n_classes)


def act(n_calls):
    action, _, first_call = os.environ.get("FAKE_ACTION", "").partition(":")
    if not action or n_calls < int(first_call):
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "hang":
        if n_calls == int(first_call):
            with Path(os.environ["FAKE_FIFO"]).open("w") as fifo:
                fifo.write("hangs\n")
        threading.Event().wait()
    else:
        if n_calls == int(first_call):
            signal.pthread_kill(threading.main_thread().ident, int(action))
        threading.Event().wait(1)  # the main thread stops long before all calls are done


def compute_logits(pixels, n_classes):
    means = pixels.reshape(len(pixels), -1).mean(1) / 32
    return np.stack([np.sin(means + k) * 3 + 0.01 * k * len(pixels) for k in range(n_classes)], 1).astype(np.float32)


def load_engine(folder, contents, config):
    return FakeEngine(config, len(saved.read_card(folder).labels))


def install(engine_specs=base.ENGINE_SPECS):
    engine_specs["fake"] = base.EngineSpec("helpers.fake_engine", ("numpy",), ("int8", "fp32"), files=("model.bin",))


def _make_measurement(config, images_per_second):
    latency_ms = 1000 * config.batch_size * config.streams / images_per_second
    return saved.Measurement(config, images_per_second, latency_ms)


def write_engines(folder, *configs, content=b"ranges"):
    """Write what `resnetkit optimize` would; ``content`` is that of the exported file."""
    measurements = [_make_measurement(config, 1000.0 + i) for i, config in enumerate(configs or (CONFIG,))]
    files = (("model.bin", hashlib.sha256(content).hexdigest()),)
    specs = base.ENGINE_SPECS
    engines = tuple(
        saved.SavedEngine(
            "throughput", row, specs["fake"].get_versions(), "f1", files if specs[row.config.engine].files else ()
        )
        for row in measurements
    )
    digest = saved.compute_weights_digest(folder)
    result = saved.OptimizeResult(digest, saved.get_machine_id(), "noise", tuple(measurements), engines)
    for row in measurements:
        artifact = saved.get_artifact_folder(folder, "f1", row.config)
        artifact.mkdir(parents=True, exist_ok=True)
        (artifact / "model.bin").write_bytes(content)
    content = to_json(result).encode()
    (folder / "engines" / "engines.json").write_bytes(content)
    assert not records.write_record(content)


if __name__ == "__main__":  # the command line with this engine: python tests/helpers/fake_engine.py predict ...
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from resnetkit.cli import main

    from helpers import fake_engine  # noqa: PLW0406 - not __main__: backends import it by its name

    fake_engine.install()
    code = main(sys.argv[1:])
    assert "torch" not in sys.modules
    sys.exit(code)
