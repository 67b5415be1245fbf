"""Folders of pictures.

    flowers/train/daisy/1.jpg  flowers/val/...  flowers/test/...     the parts that stand there
    flowers/daisy/1.jpg                                              no parts: they are drawn by a seed, class by class

Classes have the names of their folders, and are matched by name everywhere. Hidden files and folders are passed over,
and so is all that has no picture's ending.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from resnetkit.data.dataset import ALIAS_TO_SPLIT, SPLIT_ALIASES, Dataset, ImageFiles, is_text, join_names
from resnetkit.errors import DataError, find_closest
from resnetkit.images.decode import SUFFIXES, find_files, find_images, is_folder, list_entries, note_other_files

_ClassImages = dict[str, list[Path]]  # class -> pictures


def open_image_folder(root: Path, name: str) -> Dataset:
    """Raises `DataError` where there are no pictures in classes, or a part has a class that is not learnt."""
    folders = _find_split_folders(root) or {"all": root}
    images_of_split = {split: _scan_classes(folder) for split, folder in folders.items()}
    classes = _resolve_classes(root, images_of_split)
    splits = {split: _build_image_files(folders[split], images_of_split[split], classes) for split in folders}
    return Dataset(
        name,
        classes,
        dict(splits),
        (*_note_empty_folders(images_of_split), *_note_skipped_files(root, folders, images_of_split)),
    )


def _find_split_folders(root: Path) -> dict[str, Path]:
    """Part -> folder. One of these names alone among others is a class (of vehicles: train) if pictures lie in it."""
    folders = [entry for entry in list_entries(root) if is_folder(entry)]
    entries_of_split: dict[str, list[os.DirEntry[str]]] = {}
    for entry in folders:
        if entry.name.lower() in ALIAS_TO_SPLIT:
            entries_of_split.setdefault(ALIAS_TO_SPLIT[entry.name.lower()], []).append(entry)
    duplicates = [entries for entries in entries_of_split.values() if len(entries) > 1]
    other_names = [entry.name for entry in folders if entry.name.lower() not in ALIAS_TO_SPLIT]
    if len(entries_of_split) < 2 and other_names and (not entries_of_split or _has_images(entries_of_split)):
        return {}
    if duplicates:
        names = " and ".join(entry.name for entry in duplicates[0])
        raise DataError(f"two folders are for the same part: {names}", where=str(root), fix="keep one of them")
    if other_names and entries_of_split:
        raise _build_unknown_split_error(root, other_names)
    return {split: Path(entries_of_split[split][0].path) for split in SPLIT_ALIASES if split in entries_of_split}


def _has_images(entries_of_split: dict[str, list[os.DirEntry[str]]]) -> bool:
    """Whether pictures lie in one of these folders themselves, as they do in a class."""
    return any(
        child.name.lower().endswith(SUFFIXES)
        for entries in entries_of_split.values()
        for entry in entries
        for child in list_entries(Path(entry.path))
    )


def _build_unknown_split_error(root: Path, names: list[str]) -> DataError:
    matches = find_closest(names[0].lower(), ALIAS_TO_SPLIT)
    return DataError(
        f"beside the parts stands a folder that is none: {join_names(names)}",
        where=str(root),
        fix=(f"is it {matches[0]}? Then call it so; otherwise " if matches else "")
        + "take it out, or rename it: the parts are train, val and test",
    )


def _scan_classes(folder: Path) -> _ClassImages:
    """Class -> pictures, however deep they lie below the folder of the class; both sorted by name."""
    images_of_class = {
        _check_class_name(entry.name, folder): sorted(find_images(Path(entry.path)))
        for entry in list_entries(folder)
        if is_folder(entry)
    }
    if not any(images_of_class.values()):
        raise _build_no_images_error(folder)
    return images_of_class


def _note_empty_folders(images_of_split: dict[str, _ClassImages]) -> list[str]:
    names = sorted(
        {name for images_of_class in images_of_split.values() for name, paths in images_of_class.items() if not paths}
    )
    return [f"folders without a picture are no classes: {join_names(names)}"] * bool(names)


def _note_skipped_files(root: Path, folders: dict[str, Path], images_of_split: dict[str, _ClassImages]) -> list[str]:
    """Sentences about files that are no part of the data: of other kinds, or beside the folders of the classes."""
    all_files = (
        path
        for split, images_of_class in images_of_split.items()
        for name in images_of_class
        for path in find_files(folders[split] / name)
    )
    stray_names = [
        entry.name
        for folder in {root, *folders.values()}
        for entry in list_entries(folder)
        if entry.name.lower().endswith(SUFFIXES) and not is_folder(entry)
    ]
    note = f"pictures beside the folders of the classes were passed over: {join_names(stray_names, 3)}"
    return note_other_files(all_files) + [note] * bool(stray_names)


def _check_class_name(name: str, folder: Path) -> str:
    """The name of a class, which has to be text: it goes into cards, tables and pages."""
    if not is_text(name):
        escaped = name.encode("utf-8", "backslashreplace").decode()
        raise DataError("the name of a class is not text", where=f"{folder}/{escaped!r}", fix="rename the folder")
    return name


def _build_no_images_error(folder: Path) -> DataError:
    has_loose_images = any(entry.name.lower().endswith(SUFFIXES) for entry in list_entries(folder))
    what = "the pictures lie beside each other, not in classes" if has_loose_images else "there are no pictures here"
    return DataError(what, where=str(folder), fix="put the pictures of each class into a folder: CLASS/picture.jpg")


def _resolve_classes(root: Path, images_of_split: dict[str, _ClassImages]) -> tuple[str, ...]:
    """The classes of the part to learn from; another part may lack some, and may have no other."""
    first_split = next(iter(images_of_split))
    known_classes = [name for name, paths in images_of_split[first_split].items() if paths]
    for split, images_of_class in images_of_split.items():
        extra = [
            name for name, paths in images_of_class.items() if paths and not images_of_split[first_split].get(name)
        ]
        if extra:
            raise DataError(
                f"{split} has a class that {first_split} has not: {join_names(extra)}",
                where=str(root),
                fix=f"{_format_suggestion(extra[0], known_classes)}add it to {first_split}, or remove it from {split}",
            )
    return tuple(known_classes)


def _format_suggestion(name: str, known_names: Iterable[str]) -> str:
    matches = find_closest(name, known_names)
    return f"did you mean {matches[0]}? Otherwise " if matches else ""


def _build_image_files(root: Path, images_of_class: _ClassImages, classes: tuple[str, ...]) -> ImageFiles:
    index_of_class = {name: index for index, name in enumerate(classes)}
    pairs = [(path, index_of_class[name]) for name, paths in images_of_class.items() for path in paths]
    paths = tuple(path for path, _ in pairs)
    names = tuple(path.relative_to(root).as_posix() for path in paths)
    return ImageFiles(paths, names, np.array([label for _, label in pairs], dtype=np.int64))
