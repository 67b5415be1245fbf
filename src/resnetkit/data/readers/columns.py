"""Which columns of a table are pictures and labels, and what the labels are called.

The names of the classes come from what Hugging Face's datasets writes into a file (``ClassLabel``); without it the
classes are the values of the column. Of that description nothing else is read, and it chooses no code.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnetkit.data.dataset import PARTS, Data, is_text, listed
from resnetkit.data.readers.row_index import Indices, Shard, all_rows
from resnetkit.errors import DataError, TextError, extra_missing, nearest
from resnetkit.serialization import parse_json

_PICTURE = ("image", "images", "img", "picture", "pictures", "photo", "pixel_values")
_LABEL = ("label", "labels", "class", "classes", "fine_label", "target", "category", "species", "breed")
_SHOWN, _COPY = 5, "copy or download it again"


def require_pyarrow() -> None:
    """Raise `MachineError` where pyarrow is missing."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise extra_missing("pyarrow, which reads Arrow and Parquet,", "data") from None


@dataclass(frozen=True)
class Columns:
    """The columns that matter; ``classes`` where the file names them."""

    picture: str
    nested: bool
    label: str
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Labelled:
    """A file of rows with the values of its labels: ``keys`` are the distinct ones, ``codes`` say which, or -1."""

    shard: Shard
    keys: tuple[str | int, ...]
    codes: Indices


# ------------------------------------------------------------------------------------------------------- which columns


def columns_of(schema: Any, path: Path) -> Columns:
    """Of an Arrow schema; raises `DataError` with all the columns where it does not say which is which."""
    pictures = [field.name for field in schema if _holds_bytes(field.type)]
    labels = [field.name for field in schema if _holds_labels(field.type)]
    declared = _declared(schema, path)
    named = [name for name in labels if name.lower() in _LABEL]
    picture = _only(pictures, [name for name in pictures if name.lower() in _PICTURE])
    label = _only([name for name in labels if name in declared], named)
    if not picture or not label:
        raise _unclear(schema, path, "" if picture else "pictures", "" if label else "labels")
    return Columns(picture, not _is_binary(schema.field(picture).type), label, declared.get(label, ()))


def _only(possible: Sequence[str], named: Sequence[str]) -> str:
    """The one that has an expected name, or else the only one that is possible."""
    chosen = named or possible
    return chosen[0] if len(chosen) == 1 else ""


def _holds_bytes(kind: Any) -> bool:
    """Whether a column can hold pictures: bytes, or datasets' pair of bytes and path."""
    from pyarrow import types

    inner = types.is_struct(kind) and kind.get_field_index("bytes")
    return _is_binary(kind) or (inner is not False and inner >= 0 and _is_binary(kind.field(inner).type))


def _is_binary(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _holds_labels(kind: Any) -> bool:
    from pyarrow import types

    plain = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_integer(plain) or types.is_string(plain) or types.is_large_string(plain))


def _declared(schema: Any, path: Path) -> dict[str, tuple[str, ...]]:
    """Column -> names of its classes, as datasets writes them."""
    text = (schema.metadata or {}).get(b"huggingface", b"{}").decode("utf-8", "replace")
    try:
        told = parse_json(text, "its description of the columns")
    except TextError as error:
        raise DataError(error.what, where=[str(path), *error.where], fix=_COPY) from None
    features = _inside(_inside(told, "info"), "features")
    return {
        name: _sound(feature["names"], name, path)
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and "names" in feature
    }


def _inside(told: Any, key: str) -> dict[str, Any]:
    found = told.get(key) if isinstance(told, dict) else None
    return found if isinstance(found, dict) else {}


def _sound(names: Any, column: str, path: Path) -> tuple[str, ...]:
    """Names of classes that can stand in cards, tables and pages."""
    fine = isinstance(names, list) and all(isinstance(name, str) and name and is_text(name) for name in names)
    if not fine or not names or len(set(names)) < len(names):
        what = f"the names of the classes of {column} are not sound"
        raise DataError(what, where=str(path), fix="name each class once, in text that can be shown")
    return tuple(names)


def _unclear(schema: Any, path: Path, *lacking: str) -> DataError:
    kinds = [f"{field.name}: {str(field.type)[:60]}" for field in schema]
    what = " and ".join(filter(None, lacking))
    return DataError(
        f"which column holds the {what} is not clear",
        where=[str(path), f"columns: {listed(kinds, 12)}"],
        fix="keep one column of bytes called image, and one of whole numbers or texts called label",
    )


# --------------------------------------------------------------------------------------------------- labels to classes


def encoded(column: Any) -> tuple[tuple[str | int, ...], Indices]:
    """Distinct values of an Arrow column, and which of them each row has; -1 for none."""
    import pyarrow
    from pyarrow import types

    plain = column.cast(column.type.value_type) if types.is_dictionary(column.type) else column
    if not len(plain):
        return (), np.zeros(0, np.int64)
    found = pyarrow.chunked_array(plain.chunks, plain.type).combine_chunks().dictionary_encode()
    return tuple(found.dictionary.to_pylist()), np.where(numbers(found.is_null()), -1, numbers(found.indices))


def numbers(array: Any) -> Indices:
    """An Arrow array of numbers or bits, anything in its gaps; pyarrow's own way imports pandas where it is there."""
    values = array.cast("int64")
    if not len(values):
        return np.zeros(0, np.int64)
    return np.frombuffer(values.buffers()[1], np.int64)[values.offset : values.offset + len(values)].copy()


def assembled(name: str, columns: Columns, found: Mapping[str, Sequence[Labelled]], notes: Sequence[str]) -> Data:
    """The data of some files by their parts; raises `DataError` for rows without label and classes not learnt."""
    named = {part: [_with_names(file, columns.classes) for file in files] for part, files in found.items()}
    bare = [part for part, files in named.items() if all((file.codes < 0).all() for file in files)]
    parts = {part: named[part] for part in (*PARTS, "all") if part in named and part not in bare}
    lost = [told for files in parts.values() for file in files for told in _without_label(file)]
    if not parts or lost:
        raise DataError(
            f"{len(lost):,} rows have no label" if parts else "no row has a label",
            where=lost[:_SHOWN] or name,
            fix=f"take them out, or give each a label in the column {columns.label}",
        )
    classes = _classes(name, columns, parts)
    numbers = {key: number for number, key in enumerate(classes)}
    told = [f"{part} has no labels, so it is not used" for part in bare]
    made = {part: _rows(files, numbers) for part, files in parts.items()}
    return Data(name, tuple(map(str, classes)), dict(made), (*notes, *told))


def _with_names(file: Labelled, classes: Sequence[str]) -> Labelled:
    """The same file with names for numbers, where they are declared; a negative number, or no text, is no label."""
    keys = [_named(key, classes, file.shard) if classes else key for key in file.keys]
    empty = [i for i, key in enumerate(keys) if key == ""]
    odd = [key for key in keys if isinstance(key, str) and not is_text(key)]
    if odd:
        shown = odd[0].encode("unicode_escape").decode()[:60]
        raise DataError(f"the name of a class is not text: {shown}", where=str(file.shard.path), fix="rename it")
    return Labelled(file.shard, tuple(keys), np.where(np.isin(file.codes, empty), -1, file.codes))


def _named(key: str | int, classes: Sequence[str], shard: Shard) -> str:
    """What a label is called by its declaration; nothing for a negative number, by which datasets says: unknown."""
    if isinstance(key, str):
        raise DataError("the labels are texts, and declared to be numbers", where=str(shard.path), fix=_COPY)
    if key >= len(classes):
        raise DataError(f"a label is {key}, and there are {len(classes)} classes", where=str(shard.path), fix=_COPY)
    return classes[key] if key >= 0 else ""


def _without_label(file: Labelled) -> Iterator[str]:
    return (f"{file.shard.path} row {row}" for row in np.flatnonzero(file.codes < 0).tolist())


def _classes(name: str, columns: Columns, parts: Mapping[str, Sequence[Labelled]]) -> tuple[str | int, ...]:
    """Those that are declared, or the sorted values of the first part; another part may have no other."""
    present = {part: {file.keys[i] for file in files for i in np.unique(file.codes)} for part, files in parts.items()}
    first = next(iter(parts))
    if len({type(key) for keys in present.values() for key in keys}) > 1:
        raise DataError("labels are numbers in one file and texts in another", where=name, fix="make all of them texts")
    for part, keys in present.items():
        extra = sorted(map(str, keys - present[first]))
        if extra:
            near = nearest(extra[0], map(str, present[first]))
            fix = f"did you mean {near[0]}? Otherwise " if near else ""
            what = f"{part} has a class that {first} has not: {listed(extra)}"
            raise DataError(what, where=name, fix=f"{fix}add it to {first}, or remove it from {part}")
    return columns.classes or tuple(sorted(present[first]))


def _rows(files: Sequence[Labelled], numbers: Mapping[str | int, int]) -> Any:
    tables = [np.array([numbers.get(key, -1) for key in file.keys], np.int64) for file in files]
    labels = [table[file.codes] for table, file in zip(tables, files, strict=True) if len(file.codes)]
    return all_rows([file.shard for file in files], np.concatenate(labels))
