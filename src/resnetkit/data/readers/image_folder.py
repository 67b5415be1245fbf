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

from resnetkit.data.dataset import PARTS, PLACES, Data, Files, is_text, listed
from resnetkit.errors import DataError, nearest
from resnetkit.images.decode import SUFFIXES, files_below, is_folder, other_kinds, pictures_below, visible

_Found = dict[str, list[Path]]  # class -> pictures


def open_folder(root: Path, name: str) -> Data:
    """Raises `DataError` where there are no pictures in classes, or a part has a class that is not learnt."""
    folders = _part_folders(root) or {"all": root}
    found = {part: _scan(folder) for part, folder in folders.items()}
    classes = _classes(root, found)
    parts = {part: _files(folders[part], found[part], classes) for part in folders}
    return Data(name, classes, dict(parts), (*_empty(found), *_passed_over(root, folders, found)))


def _part_folders(root: Path) -> dict[str, Path]:
    """Part -> folder. One of these names alone among others is a class (of vehicles: train) if pictures lie in it."""
    folders = [entry for entry in visible(root) if is_folder(entry)]
    found: dict[str, list[os.DirEntry[str]]] = {}
    for entry in folders:
        if entry.name.lower() in PLACES:
            found.setdefault(PLACES[entry.name.lower()], []).append(entry)
    twice = [entries for entries in found.values() if len(entries) > 1]
    others = [entry.name for entry in folders if entry.name.lower() not in PLACES]
    if len(found) < 2 and others and (not found or _holds_pictures(found)):
        return {}
    if twice:
        names = " and ".join(entry.name for entry in twice[0])
        raise DataError(f"two folders are for the same part: {names}", where=str(root), fix="keep one of them")
    if others and found:
        raise _no_part(root, others)
    return {part: Path(found[part][0].path) for part in PARTS if part in found}


def _holds_pictures(found: dict[str, list[os.DirEntry[str]]]) -> bool:
    """Whether pictures lie in one of these folders themselves, as they do in a class."""
    return any(
        inner.name.lower().endswith(SUFFIXES)
        for entries in found.values()
        for entry in entries
        for inner in visible(Path(entry.path))
    )


def _no_part(root: Path, names: list[str]) -> DataError:
    near = nearest(names[0].lower(), PLACES)
    return DataError(
        f"beside the parts stands a folder that is none: {listed(names)}",
        where=str(root),
        fix=(f"is it {near[0]}? Then call it so; otherwise " if near else "")
        + "take it out, or rename it: the parts are train, val and test",
    )


def _scan(folder: Path) -> _Found:
    """Class -> pictures, however deep they lie below the folder of the class; both sorted by name."""
    found = {
        _readable(entry.name, folder): sorted(pictures_below(Path(entry.path)))
        for entry in visible(folder)
        if is_folder(entry)
    }
    if not any(found.values()):
        raise _nothing(folder)
    return found


def _empty(found: dict[str, _Found]) -> list[str]:
    names = sorted({name for classes in found.values() for name, pictures in classes.items() if not pictures})
    return [f"folders without a picture are no classes: {listed(names)}"] * bool(names)


def _passed_over(root: Path, folders: dict[str, Path], found: dict[str, _Found]) -> list[str]:
    """Sentences about files that are no part of the data: of other kinds, or beside the folders of the classes."""
    everything = (
        path for part, classes in found.items() for name in classes for path in files_below(folders[part] / name)
    )
    loose = [
        entry.name
        for folder in {root, *folders.values()}
        for entry in visible(folder)
        if entry.name.lower().endswith(SUFFIXES) and not is_folder(entry)
    ]
    beside = f"pictures beside the folders of the classes were passed over: {listed(loose, 3)}"
    return other_kinds(everything) + [beside] * bool(loose)


def _readable(name: str, folder: Path) -> str:
    """The name of a class, which has to be text: it goes into cards, tables and pages."""
    if not is_text(name):
        shown = name.encode("utf-8", "backslashreplace").decode()
        raise DataError("the name of a class is not text", where=f"{folder}/{shown!r}", fix="rename the folder")
    return name


def _nothing(folder: Path) -> DataError:
    loose = any(entry.name.lower().endswith(SUFFIXES) for entry in visible(folder))
    what = "the pictures lie beside each other, not in classes" if loose else "there are no pictures here"
    return DataError(what, where=str(folder), fix="put the pictures of each class into a folder: CLASS/picture.jpg")


def _classes(root: Path, found: dict[str, _Found]) -> tuple[str, ...]:
    """The classes of the part to learn from; another part may lack some, and may have no other."""
    first = next(iter(found))
    known = [name for name, pictures in found[first].items() if pictures]
    for part, classes in found.items():
        extra = [name for name, pictures in classes.items() if pictures and not found[first].get(name)]
        if extra:
            raise DataError(
                f"{part} has a class that {first} has not: {listed(extra)}",
                where=str(root),
                fix=f"{_near(extra[0], known)}add it to {first}, or remove it from {part}",
            )
    return tuple(known)


def _near(name: str, known: Iterable[str]) -> str:
    near = nearest(name, known)
    return f"did you mean {near[0]}? Otherwise " if near else ""


def _files(root: Path, found: _Found, classes: tuple[str, ...]) -> Files:
    numbers = {name: number for number, name in enumerate(classes)}
    pairs = [(path, numbers[name]) for name, paths in found.items() for path in paths]
    paths = tuple(path for path, _ in pairs)
    names = tuple(path.relative_to(root).as_posix() for path in paths)
    return Files(paths, names, np.array([label for _, label in pairs], dtype=np.int64))
