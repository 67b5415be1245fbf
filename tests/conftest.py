import os
import shutil

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test workers on two cores must not fight for them

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from resnetkit.cli import main
from resnetkit.serialization import to_toml

from helpers.tiny import BASE

pytest_plugins = ["helpers.run_fixtures"]

torch.set_num_threads(1)
# The first backward pass decides for which devices autograd starts threads. After torch.export, on a CUDA build without a
# GPU, that would be one, and forked processes could not compute gradients.
torch.ones((), requires_grad=True).backward()
settings.register_profile("quick", max_examples=40, deadline=None, derandomize=True)
settings.load_profile("quick")


@pytest.fixture(autouse=True, scope="session")
def cache_folder(tmp_path_factory):
    """The cache of the user is not touched; tests that look into it set a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESNETKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def cli(capsys):
    """Run a command in this process: (exit code, stdout, stderr)."""

    def run(*args):
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def pictures(tmp_path):
    """A function that writes a folder of small pictures: one colour per class, with noise."""

    def write(root, classes, count=8, size=(20, 16)):
        for label, name in enumerate(classes):
            folder = tmp_path / root / name
            folder.mkdir(parents=True)
            for i in range(count):
                rng = np.random.default_rng([label, i])
                pixels = rng.integers(0, 60, (size[1], size[0], 3), dtype=np.uint8)
                pixels[..., label % 3] += 120
                Image.fromarray(pixels).save(folder / f"{i}.png")
        return tmp_path / root

    return write


@pytest.fixture
def network(tmp_path):
    """A file with a small network."""
    path = tmp_path / "mine.toml"
    path.write_text(to_toml(BASE))
    return path


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium here; pages are not opened")
    playwright = pytest.importorskip("playwright.sync_api")
    flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync",
             "--disable-component-update", "--disable-quic"]  # fmt: skip
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=flags)
        yield chromium
        chromium.close()
