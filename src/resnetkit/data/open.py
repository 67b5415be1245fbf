"""What DATA can be, and who reads it.

This module imports no torch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from resnetkit.data.dataset import Arrays, Data
from resnetkit.data.readers.arrow import is_saved, open_saved
from resnetkit.data.readers.cifar import is_cifar, open_cifar
from resnetkit.data.readers.csv_table import open_table
from resnetkit.data.readers.image_folder import open_folder
from resnetkit.data.readers.parquet import SUFFIX, Tell, is_parquet, open_parquet
from resnetkit.errors import UsageError, extra_missing, suggestion

_TABLES, _ARCHIVES = (".csv", ".tsv"), (".tar.gz", ".tgz", ".tar")


def open_data(source: str | Path, tell: Tell | None = None) -> Data:
    """A folder of classes or of parts, a table of labels (.csv), CIFAR's binary archive, Parquet, or: digits.

    Also a folder that ``save_to_disk`` of Hugging Face's datasets wrote. ``tell`` hears (done, all) while pictures of
    Parquet are copied to where any of them can be read.

    The parts are ``train``, ``val`` and ``test``, or ``all`` where there are none. Raises `UsageError` for what is not
    there, `DataError` for what holds no pictures in classes.
    """
    path, name = Path(source), str(source)
    if name == "digits":  # a folder of this name is ./digits
        return _digits()
    if path.is_dir():
        return _open_folder(path, name, tell)
    if path.is_file():
        return _open_file(path, name, tell)
    fix = suggestion(name, ["digits"], "name a folder with a folder of pictures for each class, or: digits")
    raise UsageError("there is no such folder", where=name, fix=fix)


def _open_folder(path: Path, name: str, tell: Tell | None) -> Data:
    if is_cifar(path):
        return open_cifar(path, name)
    if is_saved(path):
        return open_saved(path, name)
    return open_parquet(path, name, tell) if is_parquet(path) else open_folder(path, name)


def _open_file(path: Path, name: str, tell: Tell | None) -> Data:
    if path.name.lower().endswith(SUFFIX):
        return open_parquet(path, name, tell)
    if path.name.lower().endswith(_TABLES):
        return open_table(path, name)
    if path.name.lower().endswith(_ARCHIVES):
        return open_cifar(path, name)
    raise UsageError(
        "this file is no data that is read here",
        where=name,
        fix="name a folder of class folders, a table (.csv), a .parquet file, or CIFAR's binary archive (.tar.gz)",
    )


def _digits() -> Data:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise extra_missing("scikit-learn, which brings the digits,", "demo") from None
    found = load_digits()
    pixels = (found.images * (255 / 16)).round().astype(np.uint8)
    names = tuple(f"digit {i}" for i in range(len(pixels)))
    return Data("digits", tuple("0123456789"), {"all": Arrays(pixels, names, found.target.astype(np.int64))})
