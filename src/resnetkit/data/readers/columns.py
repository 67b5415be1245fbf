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

from resnetkit.data.dataset import SPLIT_ALIASES, Dataset, is_text, join_names
from resnetkit.data.readers.row_index import Indices, Shard, select_all_rows
from resnetkit.errors import DataError, TextError, find_closest, missing_extra_error
from resnetkit.serialization import parse_json

_IMAGE_NAMES = ("image", "images", "img", "picture", "pictures", "photo", "pixel_values")
_LABEL_NAMES = ("label", "labels", "class", "classes", "fine_label", "target", "category", "species", "breed")
_MAX_EXAMPLES, _COPY_AGAIN = 5, "copy or download it again"


def check_pyarrow() -> None:
    """Raise `MachineError` where pyarrow is missing."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise missing_extra_error("pyarrow, which reads Arrow and Parquet,", "data") from None


@dataclass(frozen=True)
class DatasetColumns:
    """The columns that matter; ``classes`` where the file names them."""

    image: str
    is_struct: bool
    label: str
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabeledShard:
    """A file of rows with the values of its labels: ``keys`` are the distinct ones, ``codes`` say which, or -1."""

    shard: Shard
    keys: tuple[str | int, ...]
    codes: Indices


# ------------------------------------------------------------------------------------------------------- which columns


def detect_columns(schema: Any, path: Path) -> DatasetColumns:
    """Of an Arrow schema; raises `DataError` with all the columns where it does not say which is which."""
    image_columns = [field.name for field in schema if _can_hold_images(field.type)]
    label_columns = [field.name for field in schema if _can_hold_labels(field.type)]
    declared_classes = _read_declared_classes(schema, path)
    likely_labels = [name for name in label_columns if name.lower() in _LABEL_NAMES]
    image = _select_only(image_columns, [name for name in image_columns if name.lower() in _IMAGE_NAMES])
    label = _select_only([name for name in label_columns if name in declared_classes], likely_labels)
    if not image or not label:
        raise _build_columns_error(schema, path, "" if image else "pictures", "" if label else "labels")
    return DatasetColumns(image, not _is_binary(schema.field(image).type), label, declared_classes.get(label, ()))


def _select_only(candidates: Sequence[str], preferred: Sequence[str]) -> str:
    """The one that has an expected name, or else the only one that is possible."""
    choices = preferred or candidates
    return choices[0] if len(choices) == 1 else ""


def _can_hold_images(arrow_type: Any) -> bool:
    """Whether a column can hold pictures: bytes, or datasets' pair of bytes and path."""
    from pyarrow import types

    index = types.is_struct(arrow_type) and arrow_type.get_field_index("bytes")
    return _is_binary(arrow_type) or (index is not False and index >= 0 and _is_binary(arrow_type.field(index).type))


def _is_binary(arrow_type: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(arrow_type) or types.is_large_binary(arrow_type))


def _can_hold_labels(arrow_type: Any) -> bool:
    from pyarrow import types

    value_type = arrow_type.value_type if types.is_dictionary(arrow_type) else arrow_type
    return bool(types.is_integer(value_type) or types.is_string(value_type) or types.is_large_string(value_type))


def _read_declared_classes(schema: Any, path: Path) -> dict[str, tuple[str, ...]]:
    """Column -> names of its classes, as datasets writes them."""
    text = (schema.metadata or {}).get(b"huggingface", b"{}").decode("utf-8", "replace")
    try:
        description = parse_json(text, "its description of the columns")
    except TextError as error:
        raise DataError(error.what, where=[str(path), *error.where], fix=_COPY_AGAIN) from None
    features = _get_dict(_get_dict(description, "info"), "features")
    return {
        name: _check_class_names(feature["names"], name, path)
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and "names" in feature
    }


def _get_dict(data: Any, key: str) -> dict[str, Any]:
    value = data.get(key) if isinstance(data, dict) else None
    return value if isinstance(value, dict) else {}


def _check_class_names(names: Any, column: str, path: Path) -> tuple[str, ...]:
    """Names of classes that can stand in cards, tables and pages."""
    is_valid = isinstance(names, list) and all(isinstance(name, str) and name and is_text(name) for name in names)
    if not is_valid or not names or len(set(names)) < len(names):
        what = f"the names of the classes of {column} are not sound"
        raise DataError(what, where=str(path), fix="name each class once, in text that can be shown")
    return tuple(names)


def _build_columns_error(schema: Any, path: Path, *missing: str) -> DataError:
    descriptions = [f"{field.name}: {str(field.type)[:60]}" for field in schema]
    roles = " and ".join(filter(None, missing))
    return DataError(
        f"which column holds the {roles} is not clear",
        where=[str(path), f"columns: {join_names(descriptions, 12)}"],
        fix="keep one column of bytes called image, and one of whole numbers or texts called label",
    )


# --------------------------------------------------------------------------------------------------- labels to classes


def encode_labels(column: Any) -> tuple[tuple[str | int, ...], Indices]:
    """Distinct values of an Arrow column, and which of them each row has; -1 for none."""
    import pyarrow
    from pyarrow import types

    values = column.cast(column.type.value_type) if types.is_dictionary(column.type) else column
    if not len(values):
        return (), np.zeros(0, np.int64)
    encoded = pyarrow.chunked_array(values.chunks, values.type).combine_chunks().dictionary_encode()
    return tuple(encoded.dictionary.to_pylist()), np.where(
        convert_to_int64(encoded.is_null()), -1, convert_to_int64(encoded.indices)
    )


def convert_to_int64(array: Any) -> Indices:
    """An Arrow array of numbers or bits, anything in its gaps; pyarrow's own way imports pandas where it is there."""
    values = array.cast("int64")
    if not len(values):
        return np.zeros(0, np.int64)
    return np.frombuffer(values.buffers()[1], np.int64)[values.offset : values.offset + len(values)].copy()


def build_dataset(
    name: str, columns: DatasetColumns, labeled_shards: Mapping[str, Sequence[LabeledShard]], notes: Sequence[str]
) -> Dataset:
    """The data of some files by their parts; raises `DataError` for rows without label and classes not learnt."""
    named_shards = {
        split: [_apply_class_names(file, columns.classes) for file in files] for split, files in labeled_shards.items()
    }
    unlabeled = [split for split, files in named_shards.items() if all((file.codes < 0).all() for file in files)]
    splits = {
        split: named_shards[split]
        for split in (*SPLIT_ALIASES, "all")
        if split in named_shards and split not in unlabeled
    }
    missing_rows = [detail for files in splits.values() for file in files for detail in _iter_unlabeled_rows(file)]
    if not splits or missing_rows:
        raise DataError(
            f"{len(missing_rows):,} rows have no label" if splits else "no row has a label",
            where=missing_rows[:_MAX_EXAMPLES] or name,
            fix=f"take them out, or give each a label in the column {columns.label}",
        )
    classes = _resolve_classes(name, columns, splits)
    label_of_key = {key: label for label, key in enumerate(classes)}
    detail = [f"{split} has no labels, so it is not used" for split in unlabeled]
    images = {split: _build_image_rows(files, label_of_key) for split, files in splits.items()}
    return Dataset(name, tuple(map(str, classes)), dict(images), (*notes, *detail))


def _apply_class_names(file: LabeledShard, classes: Sequence[str]) -> LabeledShard:
    """The same file with names for numbers, where they are declared; a negative number, or no text, is no label."""
    keys = [_get_class_name(key, classes, file.shard) if classes else key for key in file.keys]
    empty = [i for i, key in enumerate(keys) if key == ""]
    invalid = [key for key in keys if isinstance(key, str) and not is_text(key)]
    if invalid:
        escaped = invalid[0].encode("unicode_escape").decode()[:60]
        raise DataError(f"the name of a class is not text: {escaped}", where=str(file.shard.path), fix="rename it")
    return LabeledShard(file.shard, tuple(keys), np.where(np.isin(file.codes, empty), -1, file.codes))


def _get_class_name(key: str | int, classes: Sequence[str], shard: Shard) -> str:
    """What a label is called by its declaration; nothing for a negative number, by which datasets says: unknown."""
    if isinstance(key, str):
        raise DataError("the labels are texts, and declared to be numbers", where=str(shard.path), fix=_COPY_AGAIN)
    if key >= len(classes):
        raise DataError(
            f"a label is {key}, and there are {len(classes)} classes", where=str(shard.path), fix=_COPY_AGAIN
        )
    return classes[key] if key >= 0 else ""


def _iter_unlabeled_rows(file: LabeledShard) -> Iterator[str]:
    return (f"{file.shard.path} row {row}" for row in np.flatnonzero(file.codes < 0).tolist())


def _resolve_classes(
    name: str, columns: DatasetColumns, splits: Mapping[str, Sequence[LabeledShard]]
) -> tuple[str | int, ...]:
    """Those that are declared, or the sorted values of the first part; another part may have no other."""
    keys_of_split = {
        split: {file.keys[i] for file in files for i in np.unique(file.codes)} for split, files in splits.items()
    }
    first_split = next(iter(splits))
    if len({type(key) for keys in keys_of_split.values() for key in keys}) > 1:
        raise DataError("labels are numbers in one file and texts in another", where=name, fix="make all of them texts")
    for split, keys in keys_of_split.items():
        extra = sorted(map(str, keys - keys_of_split[first_split]))
        if extra:
            matches = find_closest(extra[0], map(str, keys_of_split[first_split]))
            fix = f"did you mean {matches[0]}? Otherwise " if matches else ""
            what = f"{split} has a class that {first_split} has not: {join_names(extra)}"
            raise DataError(what, where=name, fix=f"{fix}add it to {first_split}, or remove it from {split}")
    return columns.classes or tuple(sorted(keys_of_split[first_split]))


def _build_image_rows(files: Sequence[LabeledShard], label_of_key: Mapping[str | int, int]) -> Any:
    tables = [np.array([label_of_key.get(key, -1) for key in file.keys], np.int64) for file in files]
    labels = [table[file.codes] for table, file in zip(tables, files, strict=True) if len(file.codes)]
    return select_all_rows([file.shard for file in files], np.concatenate(labels))
