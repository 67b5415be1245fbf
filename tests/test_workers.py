"""Threads that read pictures: in order, with the same result for any number, and never a wait without end."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import resnetkit as rk
from resnetkit.architecture.card import make_default_preparation
from resnetkit.architecture.catalog import spec
from resnetkit.data.bad_files import Error, Skip, SkippedFiles
from resnetkit.data.dataset import ImageFiles
from resnetkit.data.loader import ImageLoader
from resnetkit.data.open import open_dataset
from resnetkit.errors import DataError, MachineError, ResnetkitError, UsageError
from resnetkit.runtime import threads as workers
from resnetkit.runtime.distributed import count_cores
from resnetkit.runtime.threads import map_ordered, prefetch

SETTINGS = {"epochs": 1, "batch_size": 8, "precision": "fp32", "augment": "random-resized-crop"}
COUNTS = [0, 1, 4]


@pytest.fixture
def flowers(pictures):
    return pictures("flowers", ["rose", "daisy"], 12)


def source(root, count, policy=None):
    data = open_dataset(root)
    how = make_default_preparation(spec("resnet20"))
    return ImageLoader(data.train_split, how, SkippedFiles(data, policy or Error()), cache=False, workers=count)


@pytest.mark.parametrize("count", COUNTS)
def test_results_come_in_order_and_errors_with_them(count):
    assert list(map_ordered(lambda i: i * i, range(50), count)) == [i * i for i in range(50)]
    assert list(map_ordered(lambda i: i, [], count)) == []
    assert list(prefetch([lambda i=i: i for i in range(5)], count)) == list(range(5))
    assert list(prefetch([], count)) == []
    with pytest.raises(ZeroDivisionError):
        list(map_ordered(lambda i: 1 // i, [1, 0, 1], count))
    with pytest.raises(ZeroDivisionError):
        list(prefetch([lambda: 1, lambda: 1 // 0], count))
    with pytest.raises(TimeoutError, match="of the disk"):
        list(map_ordered(_timed_out, [1], count))


def _timed_out(i):
    raise TimeoutError("of the disk")


def test_what_nobody_waits_for_is_not_begun():
    begun = []
    results = map_ordered(lambda i: (begun.append(i), time.sleep(0.01)), range(1000), 2)
    next(results)
    results.close()
    time.sleep(0.05)
    assert len(begun) < 20


def test_t13_the_number_of_workers_changes_nothing(flowers, network, tmp_path):
    made = [rk.train(flowers, network, out=tmp_path / f"run{n}", settings=SETTINGS, workers=n) for n in COUNTS]
    weights = [(run.path / "model" / "model.safetensors").read_bytes() for run in made]
    assert weights[0] == weights[1] == weights[2]


def shared():
    """What this process has of /dev/shm."""
    return {line for line in Path("/proc/self/maps").read_text().splitlines() if "/dev/shm" in line}


def test_d12_no_process_is_started_and_no_shared_memory_used(flowers, network, tmp_path):
    """So that a worker cannot be killed alone, and /dev/shm may have any size."""
    heard, done = [], []

    def hook(event, words):  # hooks cannot be taken away again
        if not done and (
            event.startswith(("subprocess.", "os.fork", "os.posix_spawn", "os.exec", "socket."))
            or "/dev/shm" in str(words[:1])
        ):
            heard.append((event, words[:1]))

    sys.addaudithook(hook)
    before = shared()
    rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS, workers=4)
    after = shared()
    done.append(True)
    assert heard == []
    assert after <= before  # other libraries of the tests may have taken some


@pytest.mark.parametrize("count", COUNTS)
def test_d12_a_worker_that_fails_names_its_picture(flowers, monkeypatch, count):
    read = source(flowers, count)
    bad = read.images.paths[5]
    original = ImageFiles.load_image

    def failing(self, i, color_mode="RGB", shorter_side=0):
        if self.paths[i] == bad:
            raise ZeroDivisionError("a bug")
        return original(self, i, color_mode, shorter_side)

    monkeypatch.setattr(ImageFiles, "load_image", failing)
    with pytest.raises(ResnetkitError) as caught:
        list(read.iter_batches(batch_size=8))
    assert str(caught.value) == (
        f"error: preparing an image failed: ZeroDivisionError: a bug\nwhere: {bad}\n"
        "fix: please report this, with the image"
    )


def test_d12_a_reading_that_does_not_end_is_an_error_that_names_the_picture(flowers, monkeypatch):
    read, never = source(flowers, 2), threading.Event()
    stuck = read.images.paths[5]
    original = ImageFiles.load_image

    def hanging(self, i, color_mode="RGB", shorter_side=0):
        if self.paths[i] == stuck:
            never.wait(60)
        return original(self, i, color_mode, shorter_side)

    monkeypatch.setattr(ImageFiles, "load_image", hanging)
    monkeypatch.setattr(workers, "READ_TIMEOUT", 0.2)
    begun = time.monotonic()
    with pytest.raises(MachineError) as caught:
        list(read.iter_batches(batch_size=8))
    assert time.monotonic() - begun < 10
    never.set()
    assert caught.value.where == (str(stuck),)
    assert caught.value.what == "reading took more than 0 seconds"
    assert caught.value.fix == (
        "look after the disk or the network that it is read from; resnetkit check reads every picture once"
    )


def test_a_thread_that_hangs_does_not_keep_the_program_alive():
    code = """
import threading
from resnetkit.runtime import threads as workers
workers.READ_TIMEOUT = 0.1
list(workers.map_ordered(lambda i: threading.Event().wait(60), [1], 1))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=20,
                          env=os.environ | {"PYTHONPATH": str(Path(rk.__file__).parents[1])})  # fmt: skip
    assert done.returncode == 1
    assert "MachineError: error: reading took more than 0 seconds\nwhere: 1\n" in done.stderr


def test_a_pipe_that_looks_like_a_picture_is_refused_and_not_waited_for(flowers):
    os.mkfifo(flowers / "rose" / "pipe.jpg")
    for count in COUNTS:
        read = source(flowers, count, Skip(0.1))
        assert sum(len(which) for _, which in read.iter_batches(batch_size=8)) == 24
        assert read.skipped.reasons == {str(flowers / "rose" / "pipe.jpg"): "not a regular file"}


def test_where_no_thread_can_be_started_the_loop_reads_itself(flowers, monkeypatch):
    expected = [pixels.numpy() for pixels, _ in source(flowers, 2).iter_batches(batch_size=8)]

    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    found = [pixels.numpy() for pixels, _ in source(flowers, 2).iter_batches(batch_size=8)]
    assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))


def test_numbers_of_workers(flowers, network, tmp_path, cli):
    assert source(flowers, None).workers == count_cores() >= 1
    for count in (-1, 5000):
        with pytest.raises(UsageError, match=f"the number of workers is out of range: {count:,}"):
            source(flowers, count)
    code, _, err = cli("train", flowers, "--model", network, "--workers", "-1", "--out", tmp_path / "run")
    assert code == 2
    assert "fix: use 0 (no threads) to 1,024, or omit it for" in err
    assert not (tmp_path / "run").exists()


def test_an_error_of_data_is_itself(flowers):
    (flowers / "rose" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match="1 unreadable image"):
        list(source(flowers, 2).iter_batches(batch_size=8))
