"""Recognize class folders at another level than the reader expects: folds, wrapper folders, classes inside classes.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from resnetkit.data.dataset import ALIAS_TO_SPLIT
from resnetkit.data.scan import FolderScan
from resnetkit.errors import DataError
from resnetkit.formatting import join_names


def check_levels(folder: Path, classes: Mapping[str, FolderScan]) -> None:
    """Check that the folders of a split are classes, and not datasets, folds or a wrapper.

    Args:
        folder: The folder that holds them.
        classes: Name -> the files of each folder.

    Raises:
        DataError: they are something else; the error proposes the right path.
    """
    scans = {name: scan for name, scan in classes.items() if scan.images}
    split_folders = {name: scan.list_subfolders() for name, scan in scans.items() if _has_splits(scan)}
    if split_folders:
        _raise_split_folders(folder, scans, split_folders)
    if len(scans) == 1:
        _check_wrapper(folder, *scans.values())


def _has_splits(scan: FolderScan) -> bool:
    """Return whether all images of a folder are in folders called train, val or test."""
    splits = [ALIAS_TO_SPLIT.get(name.lower()) for name in scan.list_subfolders()]
    return not scan.has_own_images and "train" in splits and None not in splits


def _raise_split_folders(folder: Path, scans: Mapping[str, FolderScan], split_folders: Mapping[str, list[str]]) -> None:
    name, splits = next(iter(split_folders.items()))
    what = f"folders that should be classes have split folders inside: {join_names(list(split_folders))}"
    where = [str(folder), f"{folder / name} has {' and '.join(splits)}"]
    inner = sorted({parts[1] for parts in scans[name].list_parts() if len(parts) > 2})
    fix = f"move the images: {splits[0]}/{name}/image.jpg instead of {name}/{splits[0]}/image.jpg"
    if inner:
        where.append(f"{folder / name / splits[0]} has {join_names(inner)}")
        fix = f"pass {'the dataset' if len(split_folders) == 1 else 'one of the datasets'}: {folder / name}"
    raise DataError(what, where=where, fix=fix)


def _check_wrapper(folder: Path, scan: FolderScan) -> None:
    """Raise `DataError` if the only folder is not a class, but holds folders of images."""
    inner, all_parts, depth = scan.folder, scan.list_parts(), 0
    while not any(len(parts) == depth + 1 for parts in all_parts) and len({parts[depth] for parts in all_parts}) == 1:
        inner, depth = inner / all_parts[0][depth], depth + 1
    names = sorted({parts[depth] for parts in all_parts if len(parts) > depth + 1})
    if any(len(parts) == depth + 1 for parts in all_parts) or len(names) < 2:
        return
    what = f"the only folder, {scan.folder.name}, has no images of its own, but folders with images"
    fix = f"if these are the classes, pass {inner}"
    if folder.name.lower() in ALIAS_TO_SPLIT:
        fix = f"if these are the classes, move them up into {folder}"
    raise DataError(what, where=[str(folder), f"{inner} has {join_names(names)}"], fix=fix)


def describe_inner_folders(splits: Iterable[Mapping[str, FolderScan]]) -> list[str]:
    """Describe classes whose images all are in several folders below, as those may be the real classes.

    Args:
        splits: Name -> the files of each class folder, for each split.
    """
    lines = []
    for classes in splits:
        for name, scan in classes.items():
            inner = scan.list_subfolders()
            equal_names = sorted(set(inner) & (set(classes) - {name}))
            if len(inner) > 1 and not scan.has_own_images:
                line = f"{scan.folder} has no images of its own, but folders: {join_names(inner)}"
                lines.append(f"{line}; if these are the classes, pass {scan.folder}")
            elif equal_names:
                lines.append(f"{scan.folder} has folders with the names of other classes: {join_names(equal_names)}")
    return lines
