"""Reader threads: results in order, the same for any number of threads, and no endless wait."""

import io
import os
import subprocess
import sys
import threading
from concurrent.futures import CancelledError
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
from resnetkit.runtime import threads
from resnetkit.runtime.deadline import Clock, Deadline
from resnetkit.runtime.distributed import count_cores
from resnetkit.runtime.threads import WorkerPool, map_ordered, prefetch
from resnetkit.runtime.worker_process import read_json_lines, write_json_line

SETTINGS = {"epochs": 1, "batch_size": 8, "precision": "fp32", "augment": "random-resized-crop"}
WORKER_COUNTS = [0, 1, 4]


@pytest.fixture
def flowers(pictures):
    return pictures("flowers", ["rose", "daisy"], 12)


def make_loader(root, workers, policy=None):
    dataset = open_dataset(root)
    preparation = make_default_preparation(spec("resnet20"))
    skipped = SkippedFiles(dataset, policy or Error())
    return ImageLoader(dataset.train_split, preparation, skipped, cache=False, workers=workers)


def replace_load_image(monkeypatch, path, action):
    """Run ``action`` before the image at ``path`` is loaded."""
    original = ImageFiles.load_image

    def load_image(self, i, color_mode="RGB", shorter_side=0):
        if self.paths[i] == path:
            action()
        return original(self, i, color_mode, shorter_side)

    monkeypatch.setattr(ImageFiles, "load_image", load_image)


# -------------------------------------------------------------------------------------------------------- the threads


@pytest.mark.parametrize("workers", WORKER_COUNTS)
def test_results_and_errors_keep_the_order_of_the_items(workers):
    assert list(map_ordered(lambda i: i * i, range(50), workers)) == [i * i for i in range(50)]
    assert list(map_ordered(lambda i: i, [], workers)) == []
    assert list(prefetch([lambda i=i: i for i in range(5)], workers)) == list(range(5))
    assert list(prefetch([], workers)) == []
    with pytest.raises(ZeroDivisionError):
        list(map_ordered(lambda i: 1 // i, [1, 0, 1], workers))
    with pytest.raises(ZeroDivisionError):
        list(prefetch([lambda: 1, lambda: 1 // 0], workers))
    with pytest.raises(TimeoutError, match="from the disk"):
        list(map_ordered(_raise_timeout, [1], workers))


def _raise_timeout(i):
    raise TimeoutError("from the disk")


def test_a_closed_iterator_starts_no_more_reads():
    started, release, threads_before = [], threading.Event(), set(threading.enumerate())

    def read(i):
        started.append(i)
        return i == 0 or release.wait(60)

    results = map_ordered(read, range(1000), 2)
    assert next(results)
    readers = set(threading.enumerate()) - threads_before
    results.close()
    release.set()
    for reader in readers:
        reader.join(60)
    assert len(readers) == 2
    assert len(started) <= 3  # the first one, and one that each thread had begun


def test_prefetch_runs_the_next_task_while_a_result_is_in_use():
    is_second_started = threading.Event()
    results = prefetch([lambda: 1, is_second_started.set, lambda: 3], 1)
    assert next(results) == 1
    assert is_second_started.wait(60)
    assert list(results) == [None, 3]


def test_a_stopped_pool_cancels_queued_tasks():
    started, release = threading.Event(), threading.Event()

    def work():
        started.set()
        return release.wait(60)

    pool = WorkerPool(1)
    running, queued = pool.submit(work), pool.submit(lambda: 1)
    assert started.wait(60)
    pool.shutdown()
    release.set()
    pool.join()
    assert running.result(0)
    assert isinstance(queued.exception(0), CancelledError)
    assert isinstance(pool.submit(lambda: 1).exception(0), CancelledError)


def test_a_deadline_polls_until_the_condition_holds_or_the_time_is_over():
    time = [100.0]

    def sleep(seconds):
        time[0] += seconds

    deadline = Deadline(1.0, Clock(lambda: time[0], sleep))
    assert deadline.wait_until(lambda: time[0] >= 100.5)
    assert time[0] == pytest.approx(100.5, abs=0.03)
    assert deadline.remaining == pytest.approx(0.5, abs=0.03)
    deadline.shorten(0.2)
    assert not deadline.wait_until(lambda: False)
    assert deadline.is_expired
    assert time[0] == pytest.approx(100.7, abs=0.06)
    assert deadline.wait_until(lambda: "checked once even if expired")


def test_json_lines_end_with_a_line_that_is_cut_off():
    stream = io.StringIO()
    write_json_line(stream, {"step": 1})
    assert list(read_json_lines([stream.getvalue(), '{"step": 2}\n', '{"st'])) == [{"step": 1}, {"step": 2}]


def test_a_hanging_thread_does_not_keep_the_program_alive():
    code = """
import threading
from concurrent.futures import CancelledError
from resnetkit.runtime import threads
threads.READ_TIMEOUT = 0.1
list(threads.map_ordered(lambda i: threading.Event().wait(600), [1], 1))
"""
    environment = os.environ | {"PYTHONPATH": str(Path(rk.__file__).parents[1])}
    words = [sys.executable, "-c", code]
    process = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert process.returncode == 1
    assert "MachineError: error: the read did not finish within 0.1 seconds\nwhere: 1\n" in process.stderr


# ------------------------------------------------------------------------------------------- images read by the threads


def test_t13_the_number_of_workers_does_not_change_the_weights(flowers, network, tmp_path):
    runs = [rk.train(flowers, network, out=tmp_path / f"{n}", settings=SETTINGS, workers=n) for n in WORKER_COUNTS]
    weights = [(run.path / "model" / "model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1] == weights[2]


def list_shared_memory():
    """The mappings of this process in /dev/shm."""
    return {line for line in Path("/proc/self/maps").read_text().splitlines() if "/dev/shm" in line}


def test_d12_training_starts_no_process_and_uses_no_shared_memory(flowers, network, tmp_path):
    """A worker cannot be killed alone, and /dev/shm may have any size."""
    events, is_finished = [], threading.Event()

    def hook(event, args):  # an audit hook cannot be removed
        if (
            event != "socket.gethostname"
            and not is_finished.is_set()
            and (
                event.startswith(("subprocess.", "os.fork", "os.posix_spawn", "os.exec", "socket."))
                or "/dev/shm" in str(args[:1])
            )
        ):
            events.append((event, args[:1]))

    sys.addaudithook(hook)
    before = list_shared_memory()
    rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS, workers=4)
    after = list_shared_memory()
    is_finished.set()
    assert events == []
    assert after <= before  # other libraries of the tests may have released mappings


@pytest.mark.parametrize("workers", WORKER_COUNTS)
def test_d12_an_unexpected_error_names_the_image(flowers, monkeypatch, workers):
    loader = make_loader(flowers, workers)
    path = loader.images.paths[5]
    replace_load_image(monkeypatch, path, lambda: 1 // 0)
    with pytest.raises(ResnetkitError) as caught:
        list(loader.iter_batches(batch_size=8))
    assert str(caught.value) == (
        "error: preparing an image failed: ZeroDivisionError: integer division or modulo by zero\n"
        f"where: {path}\nfix: please report this, with the image"
    )


def test_d12_a_read_that_does_not_finish_names_the_image(flowers, monkeypatch):
    loader, release = make_loader(flowers, 2), threading.Event()
    path = loader.images.paths[0]  # no read before it can exceed the timeout on a busy machine
    replace_load_image(monkeypatch, path, lambda: release.wait(600))
    monkeypatch.setattr(threads, "READ_TIMEOUT", 0.2)
    with pytest.raises(MachineError) as caught:
        list(loader.iter_batches(batch_size=24))
    release.set()
    assert str(caught.value) == (
        f"error: the read did not finish within 0.2 seconds\nwhere: {path}\n"
        "fix: check the disk or network drive that holds it; resnetkit check reads every image once"
    )


def test_a_pipe_with_the_name_of_an_image_is_skipped_without_waiting(flowers):
    os.mkfifo(flowers / "rose" / "pipe.jpg")
    for workers in WORKER_COUNTS:
        loader = make_loader(flowers, workers, Skip(0.1))
        assert sum(len(indices) for _, indices in loader.iter_batches(batch_size=8)) == 24
        assert loader.skipped.reasons == {str(flowers / "rose" / "pipe.jpg"): "not a regular file"}


def test_without_threads_the_caller_reads_the_images(flowers, monkeypatch):
    expected = [pixels.numpy() for pixels, _ in make_loader(flowers, 2).iter_batches(batch_size=8)]

    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    actual = [pixels.numpy() for pixels, _ in make_loader(flowers, 2).iter_batches(batch_size=8)]
    assert all(np.array_equal(a, b) for a, b in zip(expected, actual, strict=True))


def test_the_number_of_workers_is_checked(flowers, network, tmp_path, cli):
    assert make_loader(flowers, None).workers == count_cores() >= 1
    for workers in (-1, 5000):
        with pytest.raises(UsageError, match=f"^error: the number of workers is out of range: {workers:,}\n"):
            make_loader(flowers, workers)
    code, _, err = cli("train", flowers, "--model", network, "--workers", "-1", "--out", tmp_path / "run")
    assert code == 2
    assert err == (
        "error: the number of workers is out of range: -1\nwhere: --workers\n"
        "fix: use 0 (no threads) to 1,024, or omit it for one thread per core\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_data_error_is_raised_unchanged(flowers):
    (flowers / "rose" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match="1 unreadable image"):
        list(make_loader(flowers, 2).iter_batches(batch_size=8))
