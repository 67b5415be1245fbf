"""The budget of memory that all reading threads share."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resnetkit.errors import ImageError, UsageError
from resnetkit.images import decode as decoding
from resnetkit.images import memory
from resnetkit.images.memory import MAX_DEFAULT_BYTES, MemoryBudget, set_max_memory


@given(st.lists(st.integers(0, 150), min_size=1, max_size=30), st.booleans())
def test_threads_never_use_more_than_the_budget(sizes, is_held):
    budget, peaks = MemoryBudget(100), []

    def decode(size):
        with budget.hold() if is_held else threading.Lock():
            with budget.reserve(size, size // 3):
                peaks.append(budget.used_bytes)
            peaks.append(budget.used_bytes)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(decode, sizes))
    assert max(peaks) <= max(100, max(sizes) + (100 if is_held else 0) * (max(sizes) <= 100))
    assert budget.used_bytes == 0


def test_a_large_image_waits_for_the_small_ones_before_it_and_delays_those_after_it():
    budget, order, first_ends = MemoryBudget(100), [], threading.Event()

    def decode(name, size):
        with budget.reserve(size, 0):
            order.append(name)
            if name == "first":
                first_ends.wait(60)

    threads = []
    for name, size in (("first", 50), ("large", 500), ("small", 10)):
        threads.append(threading.Thread(target=decode, args=(name, size)))
        threads[-1].start()
        while len(order) + len(budget._queue) < len(threads):
            pass
    assert order == ["first"]
    first_ends.set()
    for thread in threads:
        thread.join(60)
    assert order == ["first", "large", "small"]


def test_a_thread_that_holds_an_image_does_not_wait_for_itself():
    budget = MemoryBudget(100)
    with budget.hold():
        for _ in range(3):
            with budget.reserve(80, 60):
                pass
        assert budget.used_bytes == 180
    assert budget.used_bytes == 0


def test_an_error_releases_the_memory():
    budget = MemoryBudget(100)
    with budget.hold():
        with pytest.raises(ZeroDivisionError), budget.reserve(80, 60):
            raise ZeroDivisionError
        assert budget.used_bytes == 0


@pytest.fixture
def peaks(monkeypatch):
    """Return a list that collects (reserved, kept) bytes of each decoded image; the budget is 1 MB."""
    budget, collected = MemoryBudget(10**6), []
    reserve = budget.reserve
    monkeypatch.setattr(budget, "reserve", lambda *sizes: (collected.append(sizes), reserve(*sizes))[1])
    monkeypatch.setattr(decoding, "DECODING_BUDGET", budget)
    return collected


def test_reserved_bytes_follow_from_the_header(peaks, tmp_path):
    image, path = Image.fromarray(np.zeros((1536, 1600, 3), np.uint8)), tmp_path / "image"
    cases = [
        ({"format": "PNG"}, "RGB", 0, 8, 4, 0),
        ({"format": "PNG"}, "RGBA", 0, 12, 4, 0),
        ({"format": "JPEG"}, "RGB", 0, 8, 4, 0),
        ({"format": "JPEG"}, "RGB", 60, 8 / 16, 4 / 16, 0),
        ({"format": "JPEG", "progressive": True, "subsampling": 0}, "RGB", 60, 8 / 16, 4 / 16, 6),
        ({"format": "JPEG", "progressive": True, "subsampling": 2}, "RGB", 0, 8, 4, 3),
        ({"format": "JPEG", "progressive": True, "subsampling": 0}, "CMYK", 0, 8, 4, 8),
    ]
    for options, mode, shorter_side, per_pixel, kept, coefficients in cases:
        image.convert(mode).save(path, **options)
        decoding.decode(path, shorter_side=shorter_side)
        n_pixels = image.width * image.height
        assert peaks.pop() == (n_pixels * (per_pixel + coefficients), n_pixels * kept)
    assert peaks == []


def test_an_image_stays_reserved_until_it_is_prepared(peaks, tmp_path):
    Image.new("RGB", (50, 40)).save(tmp_path / "a.png")
    used = []

    def read(path):
        decoding.decode(path)
        used.append(decoding.DECODING_BUDGET.used_bytes)

    decoding.try_read_named(read, str, tmp_path / "a.png")
    assert used == [4 * 50 * 40]
    assert decoding.DECODING_BUDGET.used_bytes == 0
    assert isinstance(decoding.try_read_named(partial(decoding.decode), str, tmp_path / "none.png"), ImageError)


def test_sizes_are_parsed(monkeypatch):
    monkeypatch.setattr(memory, "DECODING_BUDGET", MemoryBudget())
    for text, size in {"500MB": 5 * 10**8, "2G": 2 * 10**9, " 1.5 gb ": 15 * 10**8, "100": 100, "64kB": 64_000}.items():
        set_max_memory(text)
        assert memory.DECODING_BUDGET.max_bytes == size
    for text in ("much", "-1GB", "0", "1.5.2M", "5 XB", "1e9"):
        with pytest.raises(UsageError) as caught:
            set_max_memory(text)
        assert str(caught.value) == (
            f"error: {text!r} is not a size\nwhere: --max-memory\nfix: use a size such as 500MB or 2GB"
        )


@pytest.mark.parametrize(
    ("free", "expected"), [(10**9, 10**9 // 4), (10**11, MAX_DEFAULT_BYTES), (float("inf"), 10**9)]
)
def test_default_is_a_quarter_of_the_free_memory(monkeypatch, free, expected):
    monkeypatch.setattr(memory, "get_free_memory", lambda: free)
    monkeypatch.setattr(memory, "DECODING_BUDGET", MemoryBudget(5))
    set_max_memory("")
    with memory.DECODING_BUDGET.reserve(1, 0):
        assert memory.DECODING_BUDGET.max_bytes == expected


@pytest.mark.parametrize("command", ["predict", "embed", "evaluate", "check", "train"])
def test_commands_set_the_budget(command, cli):
    code, out, err = cli(command, "a", *(["b"] if command == "evaluate" else []), "--max-memory", "much",
                         *(["--model", "b"] if command in ("predict", "embed") else []))  # fmt: skip
    assert (code, out) == (2, "")
    assert err.startswith("error: 'much' is not a size\nwhere: --max-memory\n")
