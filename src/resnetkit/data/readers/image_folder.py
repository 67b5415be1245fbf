"""Read images from class folders.

    flowers/train/daisy/1.jpg  flowers/val/...  flowers/test/...     with split folders
    flowers/daisy/1.jpg                                              without: the images are split at random, per class

A class has the name of its folder; splits are matched by class name. Hidden files, hidden folders and files without an
image suffix are skipped.

This module imports no torch.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from resnetkit.data.dataset import ALIAS_TO_SPLIT, SPLIT_ALIASES, Dataset, ImageFiles, check_classes, hint_name, is_text
from resnetkit.errors import DataError
from resnetkit.formatting import join_names
from resnetkit.images.decode import find_files, find_images, has_image_suffix, is_folder, list_entries, note_other_files

_ClassImages = dict[str, list[Path]]  # class -> images


def open_image_folder(root: Path, name: str) -> Dataset:
    """Open a folder of class folders, or of splits with class folders.

    Args:
        root: The folder.
        name: The folder as the user wrote it.

    Raises:
        DataError: there are no images in classes, or a split has a class that ``train`` lacks.
    """
    folders = _find_split_folders(root) or {"all": root}
    images_of_split = {split: _scan_classes(folder) for split, folder in folders.items()}
    classes_of_split = {split: [name for name in images if images[name]] for split, images in images_of_split.items()}
    check_classes(classes_of_split, str(root))
    classes = next(iter(classes_of_split.values()))
    splits = {split: _build_image_files(folders[split], images, classes) for split, images in images_of_split.items()}
    return Dataset(name, tuple(classes), dict(splits), tuple(_note_skipped(root, folders, images_of_split)))


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


def _scan_classes(folder: Path) -> _ClassImages:
    """Find the images of each class at any depth below its folder; both are sorted by name."""
    classes = [entry.name for entry in list_entries(folder) if is_folder(entry)]
    images_of_class = {_check_class_name(name, folder): sorted(find_images(folder / name)) for name in classes}
    if not any(images_of_class.values()):
        has_loose_images = any(has_image_suffix(entry.name) for entry in list_entries(folder))
        what = "the images are not sorted into class folders" if has_loose_images else "the folder has no images"
        raise DataError(what, where=str(folder), fix="put the images of each class into one folder: CLASS/image.jpg")
    return images_of_class


def _note_skipped(root: Path, folders: dict[str, Path], images_of_split: dict[str, _ClassImages]) -> Iterator[str]:
    """Describe empty folders, files of other types, and images outside of class folders."""
    empty_names = sorted({name for images in images_of_split.values() for name, paths in images.items() if not paths})
    if empty_names:
        yield f"skipped folders without images: {join_names(empty_names)}"
    class_folders = [folders[split] / name for split, images in images_of_split.items() for name in images]
    yield from note_other_files(path for folder in class_folders for path in find_files(folder))
    entries = [entry for folder in {root, *folders.values()} for entry in list_entries(folder) if not is_folder(entry)]
    stray_names = [entry.name for entry in entries if has_image_suffix(entry.name)]
    if stray_names:
        yield f"skipped images outside of class folders: {join_names(stray_names, 3)}"


def _check_class_name(name: str, folder: Path) -> str:
    """Return the name if it is printable text, as cards, tables and web pages need it."""
    if not is_text(name):
        escaped = name.encode("utf-8", "backslashreplace").decode()
        raise DataError("the class name is not text", where=f"{folder}/{escaped!r}", fix="rename the folder")
    return name


def _build_image_files(root: Path, images_of_class: _ClassImages, classes: list[str]) -> ImageFiles:
    paths = tuple(path for paths in images_of_class.values() for path in paths)
    label_of_class = {name: label for label, name in enumerate(classes)}
    labels = [label_of_class[name] for name, paths in images_of_class.items() for _ in paths]
    return ImageFiles(paths, tuple(path.relative_to(root).as_posix() for path in paths), np.array(labels, np.int64))
