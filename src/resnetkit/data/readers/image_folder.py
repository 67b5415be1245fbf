"""Read images from class folders.

    flowers/train/daisy/1.jpg  flowers/val/...  flowers/test/...     with split folders
    flowers/daisy/1.jpg                                              without: the images are split at random, per class

A class has the name of its folder; splits are matched by class name. Hidden files and folders are skipped. Everything
else that is skipped is counted by kind.

This module imports no torch.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnetkit.data.class_names import hint_name, is_text
from resnetkit.data.dataset import ALIAS_TO_SPLIT, SPLIT_ALIASES, Dataset, ImageFiles
from resnetkit.data.readers.folder_levels import check_levels, describe_inner_folders
from resnetkit.data.scan import (
    DOCUMENTS,
    OTHER_FILES,
    UNREADABLE_FOLDERS,
    FolderScan,
    describe_skipped,
    list_skipped_findings,
    scan_folder,
)
from resnetkit.errors import DataError, find_closest
from resnetkit.formatting import join_names
from resnetkit.images.decode import has_image_suffix, is_folder, list_entries


@dataclass(frozen=True)
class _SplitScan:
    """A split folder: the files of each class, and the files next to the class folders."""

    folder: Path
    classes: dict[str, FolderScan]
    loose_files: list[Path]
    unreadable: list[str]

    @property
    def loose_images(self) -> list[Path]:
        return [file for file in self.loose_files if has_image_suffix(file.name)]

    @property
    def images_of_class(self) -> dict[str, list[Path]]:
        return {name: scan.images for name, scan in self.classes.items() if scan.images}


def open_image_folder(root: Path, name: str) -> Dataset:
    """Open a folder of class folders, or of splits with class folders.

    Args:
        root: The folder.
        name: The folder as the user wrote it.

    Raises:
        DataError: there are no images in classes, or the class folders are at another level.
    """
    folders = _find_split_folders(root)
    scans = {split: _scan_split(folder) for split, folder in (folders or {"all": root}).items()}
    unlabeled = {split: images for split, scan in scans.items() if (images := _find_unlabeled(split, scans))}
    train = next(iter(scans.values()))
    readable = {split: scan for split, scan in scans.items() if scan is train or not scan.unreadable}
    labeled = {split: scan for split, scan in readable.items() if split not in unlabeled}
    for scan in labeled.values():
        _check_has_classes(scan)
        check_levels(scan.folder, scan.classes)
    classes = sorted({class_name for scan in labeled.values() for class_name in scan.images_of_class})
    splits = {split: _build_image_files(scan, classes) for split, scan in labeled.items()}
    root_files = [] if not folders else [Path(entry.path) for entry in list_entries(root) if not is_folder(entry)]
    skipped = _collect_skipped(scans, root_files, unlabeled)
    inner_folders = describe_inner_folders(scan.classes for scan in labeled.values())
    notes = [*describe_skipped(skipped), *(f"all images count as the outer class: {line}" for line in inner_folders)]
    findings = {
        **list_skipped_findings(skipped),
        **({"folders inside of classes": tuple(inner_folders)} if inner_folders else {}),
    }
    return Dataset(name, tuple(classes), dict(splits), tuple(notes), findings)


def _find_split_folders(root: Path) -> dict[str, Path]:
    """Find the folder of each split.

    A single split name among other folders is a class if images are directly in it: vehicles may have a class train.
    """
    folders_of_split: dict[str, list[os.DirEntry[str]]] = defaultdict(list)
    for entry in filter(is_folder, list_entries(root)):
        folders_of_split[ALIAS_TO_SPLIT.get(entry.name.lower(), "")].append(entry)
    other_names = [entry.name for entry in folders_of_split.pop("", [])]
    if other_names and len(folders_of_split) < 2 and (not folders_of_split or _has_images(*folders_of_split.values())):
        return {}
    for split, entries in folders_of_split.items():
        if len(entries) > 1:
            what = f"two folders for the {split} split: {' and '.join(entry.name for entry in entries)}"
            raise DataError(what, where=str(root), fix="keep one of them")
    if other_names and folders_of_split:
        raise _build_unknown_split_error(root, other_names)
    return {split: Path(folders_of_split[split][0].path) for split in SPLIT_ALIASES if split in folders_of_split}


def _has_images(entries: list[os.DirEntry[str]]) -> bool:
    """Return whether one of these folders directly contains images, as a class folder does."""
    return any(has_image_suffix(child.name) for entry in entries for child in list_entries(Path(entry.path)))


def _build_unknown_split_error(root: Path, names: list[str]) -> DataError:
    fix = f"{hint_name(names[0].lower(), ALIAS_TO_SPLIT)}remove or rename it; the splits are train, val and test"
    return DataError(f"a folder next to the splits is not a split: {join_names(names)}", where=str(root), fix=fix)


# ------------------------------------------------------------------------------------------------------------- classes


def _scan_split(folder: Path) -> _SplitScan:
    try:
        entries = list_entries(folder)
    except DataError as error:
        return _SplitScan(folder, {}, [], [f"{folder}: {error.what}"])
    names = [entry.name for entry in entries if is_folder(entry)]
    classes = {_check_class_name(name, folder): scan_folder(folder / name) for name in names}
    return _SplitScan(folder, classes, [Path(entry.path) for entry in entries if not is_folder(entry)], [])


def _check_class_name(name: str, folder: Path) -> str:
    """Return the name if it is printable text, as cards, tables and web pages need it."""
    if not is_text(name):
        escaped = name.encode("utf-8", "backslashreplace").decode()
        raise DataError("the class name is not text", where=f"{folder}/{escaped!r}", fix="rename the folder")
    return name


def _find_unlabeled(split: str, scans: Mapping[str, _SplitScan]) -> list[Path]:
    """Return the images of a split without class folders, or with one that ``train`` lacks."""
    scan, train = scans[split], next(iter(scans.values()))
    names = list(scan.images_of_class)
    if scan is train or (not names and not scan.loose_images):
        return []
    if not names:
        return scan.loose_images
    is_container = split == "test" and len(names) == 1 and len(train.images_of_class) > 1
    if is_container and names[0] not in train.classes and not find_closest(names[0], train.classes):
        return [*scan.loose_images, *scan.images_of_class[names[0]]]
    return []


def _check_has_classes(scan: _SplitScan) -> None:
    """Raise `DataError` if a split has no image in a class."""
    if scan.images_of_class:
        return
    fix, unreadable = "put the images of each class into one folder: CLASS/image.jpg", _list_unreadable([scan])
    if scan.loose_images:
        siblings = [entry.name for entry in _list_readable(scan.folder.absolute().parent) if is_folder(entry)]
        if len(siblings) > 1:
            fix += f"; if {scan.folder.absolute().name} is a class, pass the folder above: {scan.folder / '..'}"
        raise DataError("the images are not sorted into class folders", where=str(scan.folder), fix=fix)
    raise DataError("the folder has no images", where=[str(scan.folder), *unreadable[:5]], fix=fix)


def _list_readable(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return list_entries(folder)
    except DataError:
        return []


def _build_image_files(scan: _SplitScan, classes: list[str]) -> ImageFiles:
    paths = tuple(path for images in scan.images_of_class.values() for path in images)
    label_of_class = {name: label for label, name in enumerate(classes)}
    labels = [label_of_class[name] for name, images in scan.images_of_class.items() for _ in images]
    names = tuple(path.relative_to(scan.folder).as_posix() for path in paths)
    return ImageFiles(paths, names, np.array(labels, np.int64))


# ------------------------------------------------------------------------------------------------------------- skipped


def _list_unreadable(scans: Iterable[_SplitScan]) -> list[str]:
    scans = list(scans)
    class_lines = [line for scan in scans for class_scan in scan.classes.values() for line in class_scan.unreadable]
    return [*(line for scan in scans for line in scan.unreadable), *class_lines]


def _collect_skipped(
    scans_of_split: Mapping[str, _SplitScan], root_files: list[Path], unlabeled: Mapping[str, list[Path]]
) -> dict[str, tuple[str, ...]]:
    """Return kind -> what is skipped of that kind; kinds without anything are omitted."""
    scans = [scan for split, scan in scans_of_split.items() if split not in unlabeled]
    class_scans = [class_scan for scan in scans for class_scan in scan.classes.values()]
    loose_files = [*root_files, *(file for scan in scans for file in scan.loose_files)]
    skipped: dict[str, Sequence[object]] = {
        UNREADABLE_FOLDERS: _list_unreadable(scans),
        "folders without images": [
            class_scan.folder for class_scan in class_scans if not class_scan.images and not class_scan.unreadable
        ],
        OTHER_FILES: [file for class_scan in class_scans for file in class_scan.other_files],
        "images outside of class folders": [file for file in loose_files if has_image_suffix(file.name)],
        DOCUMENTS: [file for file in loose_files if not has_image_suffix(file.name)],
        **{f"images of the unlabeled {split} split": images for split, images in unlabeled.items()},
    }
    return {kind: tuple(map(str, items)) for kind, items in skipped.items() if items}
