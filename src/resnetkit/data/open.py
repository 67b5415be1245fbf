"""What DATA can be, and who reads it.

This module imports no torch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from resnetkit.data.dataset import Dataset, ImageArrays
from resnetkit.data.readers.arrow import is_saved_dataset, open_saved_dataset
from resnetkit.data.readers.cifar import is_cifar, open_cifar
from resnetkit.data.readers.csv_table import open_csv_table
from resnetkit.data.readers.image_folder import open_image_folder
from resnetkit.data.readers.parquet import SUFFIX, is_parquet, open_parquet
from resnetkit.errors import UsageError, missing_extra_error, suggest_fix
from resnetkit.runtime.progress import ProgressCallback

_TABLE_SUFFIXES, _ARCHIVE_SUFFIXES = (".csv", ".tsv"), (".tar.gz", ".tgz", ".tar")


def open_dataset(source: str | Path, on_progress: ProgressCallback | None = None) -> Dataset:
    """A folder of classes or of parts, a table of labels (.csv), CIFAR's binary archive, Parquet, or: digits.

    Also a folder that ``save_to_disk`` of Hugging Face's datasets wrote. ``tell`` hears (done, all) while pictures of
    Parquet are copied to where any of them can be read.

    The parts are ``train``, ``val`` and ``test``, or ``all`` where there are none. Raises `UsageError` for what is not
    there, `DataError` for what holds no pictures in classes.
    """
    path, name = Path(source), str(source)
    if name == "digits":  # a folder of this name is ./digits
        return _open_digits()
    if path.is_dir():
        return _open_folder(path, name, on_progress)
    if path.is_file():
        return _open_file(path, name, on_progress)
    fix = suggest_fix(name, ["digits"], "name a folder with a folder of pictures for each class, or: digits")
    raise UsageError("there is no such folder", where=name, fix=fix)


def _open_folder(path: Path, name: str, on_progress: ProgressCallback | None) -> Dataset:
    if is_cifar(path):
        return open_cifar(path, name)
    if is_saved_dataset(path):
        return open_saved_dataset(path, name)
    return open_parquet(path, name, on_progress) if is_parquet(path) else open_image_folder(path, name)


def _open_file(path: Path, name: str, on_progress: ProgressCallback | None) -> Dataset:
    if path.name.lower().endswith(SUFFIX):
        return open_parquet(path, name, on_progress)
    if path.name.lower().endswith(_TABLE_SUFFIXES):
        return open_csv_table(path, name)
    if path.name.lower().endswith(_ARCHIVE_SUFFIXES):
        return open_cifar(path, name)
    raise UsageError(
        "this file is no data that is read here",
        where=name,
        fix="name a folder of class folders, a table (.csv), a .parquet file, or CIFAR's binary archive (.tar.gz)",
    )


def _open_digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise missing_extra_error("scikit-learn, which brings the digits,", "demo") from None
    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype(np.uint8)
    names = tuple(f"digit {i}" for i in range(len(pixels)))
    return Dataset("digits", tuple("0123456789"), {"all": ImageArrays(pixels, names, digits.target.astype(np.int64))})
