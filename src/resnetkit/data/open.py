"""Recognize what kind of dataset DATA is, and open it with the right reader.

This module imports no torch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from resnetkit.data.dataset import Dataset, ImageArrays, check_split_classes, merge_spellings
from resnetkit.data.options import DEFAULT_DATA_OPTIONS, DataOptions
from resnetkit.data.readers.arrow import is_saved_dataset, open_saved_dataset
from resnetkit.data.readers.cifar import is_cifar, open_cifar
from resnetkit.data.readers.csv_table import open_csv_table
from resnetkit.data.readers.image_folder import open_image_folder
from resnetkit.data.readers.parquet import SUFFIX, find_parquet_files, open_parquet
from resnetkit.errors import UsageError, missing_extra_error, suggest_fix
from resnetkit.runtime.progress import ProgressCallback

_TABLE_SUFFIXES, _ARCHIVE_SUFFIXES = (".csv", ".tsv"), (".tar.gz", ".tgz", ".tar")


def open_dataset(
    source: str | Path, on_progress: ProgressCallback | None = None, options: DataOptions = DEFAULT_DATA_OPTIONS
) -> Dataset:
    """Open a dataset; its splits are ``train``, ``val`` and ``test``, or only ``all``.

    Args:
        source: A folder of class folders or of splits, a CSV table, CIFAR's binary archive, or Parquet. Also a folder
            written by ``save_to_disk`` of Hugging Face datasets, or the word ``digits``.
        on_progress: Called with (rows done, all rows) while Parquet is copied for random access.
        options: The columns of a table, and whether equal classes are merged.

    Raises:
        UsageError: the source does not exist, or its type is unknown.
        DataError: the source holds no images in classes, or a split has a class that ``train`` lacks.
    """
    dataset = _open_source(Path(source), str(source), on_progress, options)
    dataset = merge_spellings(dataset) if options.merge_classes else dataset
    check_split_classes(dataset)
    return dataset


def _open_source(path: Path, name: str, on_progress: ProgressCallback | None, options: DataOptions) -> Dataset:
    if name == "digits":  # a folder with this name is ./digits
        return _open_digits()
    if path.is_dir():
        return _open_folder(path, name, on_progress, options)
    if path.is_file():
        return _open_file(path, name, on_progress, options)
    fix = suggest_fix(name, ["digits"], "pass a folder with one folder of images per class, or: digits")
    raise UsageError("the folder does not exist", where=name, fix=fix)


def _open_folder(path: Path, name: str, on_progress: ProgressCallback | None, options: DataOptions) -> Dataset:
    if is_cifar(path):
        return open_cifar(path, name)
    if is_saved_dataset(path):
        return open_saved_dataset(path, name, options)
    if find_parquet_files(path):
        return open_parquet(path, name, on_progress, options)
    return open_image_folder(path, name)


def _open_file(path: Path, name: str, on_progress: ProgressCallback | None, options: DataOptions) -> Dataset:
    file_name = path.name.lower()
    if file_name.endswith(SUFFIX):
        return open_parquet(path, name, on_progress, options)
    if file_name.endswith(_TABLE_SUFFIXES):
        return open_csv_table(path, name, options)
    if file_name.endswith(_ARCHIVE_SUFFIXES):
        return open_cifar(path, name)
    fix = "pass a folder of class folders, a table (.csv), a .parquet file, or CIFAR's binary archive (.tar.gz)"
    raise UsageError("the file is not a dataset of a supported type", where=name, fix=fix)


def _open_digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise missing_extra_error("scikit-learn, which contains the digits,", "demo") from None
    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype(np.uint8)
    names = tuple(f"digit {i}" for i in range(len(pixels)))
    return Dataset("digits", tuple("0123456789"), {"all": ImageArrays(pixels, names, digits.target.astype(np.int64))})
