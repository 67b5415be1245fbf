"""Find the image and label columns of an Arrow or Parquet table, and map its labels to classes.

Hugging Face datasets stores class names in the file (``ClassLabel``). Without them, the classes are the values of the
label column. Nothing else is read from that description, and it never chooses code to run.

This module imports no torch.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from resnetkit.data.class_names import is_text
from resnetkit.data.dataset import COPY_AGAIN, SPLIT_ALIASES, Dataset
from resnetkit.data.label_kinds import check_label_kind
from resnetkit.data.options import DEFAULT_DATA_OPTIONS, DataOptions
from resnetkit.data.readers.row_index import ImageRows, Indices, Shard
from resnetkit.data.scan import describe_skipped, list_skipped_findings
from resnetkit.errors import DataError, TextError, UsageError, missing_extra_error
from resnetkit.formatting import join_names
from resnetkit.serialization import parse_json

_IMAGE_NAMES = ("image", "images", "img", "picture", "pictures", "photo", "pixel_values")
_LABEL_NAMES = ("label", "labels", "class", "classes", "fine_label", "target", "category", "species", "breed")
_PATH_NAMES = ("path", "file", "filename", "file_name", "filepath", "file_path", "image_path")
_MAX_EXAMPLES = 5
T = TypeVar("T", list[Any], dict[str, Any])


def check_pyarrow() -> None:
    """Raise `MachineError` if pyarrow is not installed."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise missing_extra_error("pyarrow, which reads Arrow and Parquet,", "data") from None


@dataclass(frozen=True)
class DatasetColumns:
    """The columns to read.

    Attributes:
        image: The name of the image column.
        is_struct: Whether an image is a pair of bytes and path, as Hugging Face datasets stores it, and not bytes.
        label: The name of the label column.
        classes: The class names, if the file has them.
    """

    image: str
    is_struct: bool
    label: str
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabeledShard:
    """A file of M rows, its distinct label values ``keys``, and the index ``codes`` (M,) into them, -1 for none."""

    shard: Shard
    keys: tuple[str | int, ...]
    codes: Indices


# ------------------------------------------------------------------------------------------------------------- columns


def detect_columns(schema: Any, path: Path, options: DataOptions = DEFAULT_DATA_OPTIONS) -> DatasetColumns:
    """Find the image and label columns by type and name.

    Args:
        schema: The Arrow schema.
        path: The file, for errors.
        options: The names of the columns, if the user names them.

    Raises:
        DataError: a column is missing or ambiguous; the error lists all columns.
        UsageError: a split column is named, which only CSV tables have.
    """
    if options.split_column:
        fix = "write one file per split: train-....parquet, validation-....parquet"
        raise UsageError("a split column is only read from CSV tables", where="--split-column", fix=fix)
    images = find_image_columns(schema)
    image = _select_only(images, [name for name in images if name.lower() in _IMAGE_NAMES], options.image_column)
    label, classes = detect_label(schema, path, options)
    image = image if image in images else ""
    if not image or not label:
        raise _build_columns_error(
            schema, path, [role for role, name in (("images", image), ("labels", label)) if not name]
        )
    return DatasetColumns(image, not _is_binary(schema.field(image).type), label, classes)


def find_image_columns(schema: Any) -> list[str]:
    """List the columns of bytes, or of pairs of bytes and path."""
    return [field.name for field in schema if _can_hold_images(field.type)]


def detect_label(schema: Any, path: Path, options: DataOptions) -> tuple[str, tuple[str, ...]]:
    """Return the label column, "" if it is not clear, and its class names if the file has them.

    Args:
        schema: The Arrow schema.
        path: The file, for errors.
        options: The name of the column, if the user names it.
    """
    labels = [field.name for field in schema if _can_hold_labels(field.type)]
    declared_classes = _read_declared_classes(schema, path)
    likely_labels = [name for name in labels if name.lower() in _LABEL_NAMES]
    label = _select_only([name for name in labels if name in declared_classes], likely_labels, options.label_column)
    return (label if label in labels else ""), declared_classes.get(label, ())


def detect_paths(schema: Any, options: DataOptions) -> str:
    """Return the string column that holds the paths of images, or "" if there is none.

    Args:
        schema: The Arrow schema.
        options: The name of the column, if the user names it.
    """
    from pyarrow import types

    names = [field.name for field in schema if types.is_string(field.type) or types.is_large_string(field.type)]
    likely = [name for name in names if name.lower() in (*_IMAGE_NAMES, *_PATH_NAMES)]
    name = _select_only([], likely, options.image_column)
    return name if name in names else ""


def _build_columns_error(schema: Any, path: Path, roles: Sequence[str]) -> DataError:
    columns = join_names([f"{field.name}: {str(field.type)[:60]}" for field in schema], 12)
    fix = "keep one column of bytes called image, and one of integers or strings called label"
    fix += "; or choose: --image-column, --label-column"
    what = f"no unique column for {' and '.join(roles)}"
    return DataError(what, where=[str(path), f"columns: {columns}"], fix=fix)


def _select_only(candidates: Sequence[str], preferred: Sequence[str], requested: str) -> str:
    """Return the requested name, else the only preferred one or the only candidate, else ""."""
    if requested:
        return requested
    choices = preferred or candidates
    return choices[0] if len(choices) == 1 else ""


def _can_hold_images(arrow_type: Any) -> bool:
    """Return whether a column holds bytes, or the pairs of bytes and path of Hugging Face datasets."""
    from pyarrow import types

    index = arrow_type.get_field_index("bytes") if types.is_struct(arrow_type) else -1
    content_type = arrow_type.field(index).type if index >= 0 else arrow_type
    return _is_binary(content_type) or (index >= 0 and types.is_null(content_type))


def _is_binary(arrow_type: Any) -> bool:
    return bool(arrow_type.equals("binary") or arrow_type.equals("large_binary"))


def _can_hold_labels(arrow_type: Any) -> bool:
    from pyarrow import types

    value_type = arrow_type.value_type if types.is_dictionary(arrow_type) else arrow_type
    return bool(types.is_integer(value_type) or types.is_string(value_type) or types.is_large_string(value_type))


def _read_declared_classes(schema: Any, path: Path) -> dict[str, tuple[str, ...]]:
    """Read column -> class names from the description that Hugging Face datasets stores in a file."""
    text = (schema.metadata or {}).get(b"huggingface", b"{}").decode("utf-8", "replace")
    try:
        description = parse_json(text, "the description of the columns")
    except TextError as error:
        raise DataError(error.what, where=[str(path), *error.where], fix=COPY_AGAIN) from None
    features = get_or_empty(get_or_empty(description, "info", dict), "features", dict)
    return {
        name: _check_class_names(feature["names"], name, path)
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and "names" in feature
    }


def get_or_empty(data: Any, key: str, kind: type[T]) -> T:
    """Return a value of parsed JSON, or an empty one if it is missing or of another type.

    Args:
        data: The parsed JSON.
        key: The key of the value.
        kind: ``list`` or ``dict``.
    """
    value = data.get(key) if isinstance(data, dict) else None
    return value if isinstance(value, kind) else kind()


def _check_class_names(names: Any, column: str, path: Path) -> tuple[str, ...]:
    is_valid = isinstance(names, list) and all(isinstance(name, str) and name and is_text(name) for name in names)
    if not is_valid or not names or len(set(names)) < len(names):
        what = f"the class names of column {column} are empty, repeated or not text"
        raise DataError(what, where=str(path), fix="give each class a unique name of printable text")
    return tuple(names)


# --------------------------------------------------------------------------------------------------- labels to classes


def encode_labels(column: Any) -> tuple[tuple[str | int, ...], Indices]:
    """Return the distinct values of an Arrow column, and the index of each row's value (M,), -1 for null."""
    from pyarrow import types

    values = column.cast(column.type.value_type) if types.is_dictionary(column.type) else column
    encoded = values.combine_chunks().dictionary_encode()
    codes = np.where(convert_to_int64(encoded.is_null()), -1, convert_to_int64(encoded.indices))
    return tuple(encoded.dictionary.to_pylist()), codes


def convert_to_int64(array: Any) -> Indices:
    """Convert an Arrow array; nulls become any value. (``to_numpy`` of pyarrow may import pandas.)"""
    values = array.cast("int64")
    if not len(values):
        return np.zeros(0, np.int64)
    return np.frombuffer(values.buffers()[1], np.int64)[values.offset : values.offset + len(values)].copy()


def build_dataset(
    name: str,
    columns: DatasetColumns,
    labeled_shards: Mapping[str, Sequence[LabeledShard]],
    skipped: Mapping[str, Sequence[str]],
) -> Dataset:
    """Build the dataset of some files.

    Args:
        name: The source as the user wrote it.
        columns: The columns of every file.
        labeled_shards: Split -> its files. Splits without any label are skipped.
        skipped: Kind -> what is skipped, as in `describe_skipped`.

    Raises:
        DataError: a row has no label, or a split has a class that ``train`` lacks.
    """
    splits = {}
    for split in filter(labeled_shards.__contains__, (*SPLIT_ALIASES, "all")):
        files = [_apply_class_names(file, columns.classes) for file in labeled_shards[split]]
        if any((file.codes >= 0).any() for file in files):
            splits[split] = files
    all_files = itertools.chain.from_iterable(splits.values())
    unlabeled_rows = [f"{file.shard.path} row {row}" for file in all_files for row in np.flatnonzero(file.codes < 0)]
    if not splits or unlabeled_rows:
        what = f"{len(unlabeled_rows):,} rows have no label" if splits else "no row has a label"
        fix = f"remove them, or give each a label in the column {columns.label}"
        raise DataError(what, where=unlabeled_rows[:_MAX_EXAMPLES] or name, fix=fix)
    classes = _resolve_classes(name, columns, splits)
    label_of_key = {key: label for label, key in enumerate(classes)}
    unlabeled = {
        f"images of the unlabeled {split} split": [f"row {row}" for file in files for row in range(len(file.codes))]
        for split, files in labeled_shards.items()
        if split not in splits
    }
    skipped = {kind: items for kind, items in {**skipped, **unlabeled}.items() if items}
    label_notes = [] if columns.classes else check_label_kind(_count_labels(splits), name)
    images = {split: _build_image_rows(files, label_of_key) for split, files in splits.items()}
    notes = (*describe_skipped(skipped), *label_notes)
    return Dataset(name, tuple(map(str, classes)), dict(images), notes, list_skipped_findings(skipped))


def _apply_class_names(file: LabeledShard, classes: Sequence[str]) -> LabeledShard:
    """Replace numbers by declared class names; negative numbers and empty strings become "no label"."""
    keys = [_get_class_name(key, classes, file.shard.path) if classes else key for key in file.keys]
    invalid = next((key for key in keys if isinstance(key, str) and not is_text(key)), None)
    if invalid is not None:
        escaped = invalid.encode("unicode_escape").decode()[:60]
        raise DataError(f"the class name is not text: {escaped}", where=str(file.shard.path), fix="rename it")
    is_empty = np.isin(file.codes, [i for i, key in enumerate(keys) if key == ""])
    return LabeledShard(file.shard, tuple(keys), np.where(is_empty, -1, file.codes))


def _get_class_name(key: str | int, classes: Sequence[str], path: Path) -> str:
    """Return the declared name of a label; "" if it is negative, which Hugging Face uses for unknown."""
    if isinstance(key, str):
        raise DataError("the labels are strings, but declared as integers", where=str(path), fix=COPY_AGAIN)
    if key >= len(classes):
        raise DataError(f"a label is {key}, but there are {len(classes)} classes", where=str(path), fix=COPY_AGAIN)
    return classes[key] if key >= 0 else ""


def _resolve_classes(
    name: str, columns: DatasetColumns, splits: Mapping[str, Sequence[LabeledShard]]
) -> tuple[str | int, ...]:
    """Return the declared classes, or the sorted label values of all splits."""
    keys = {split: {file.keys[i] for file in files for i in np.unique(file.codes)} for split, files in splits.items()}
    if len({type(key) for split_keys in keys.values() for key in split_keys}) > 1:
        raise DataError("labels are integers in one file and strings in another", where=name, fix="use strings in all")
    return columns.classes or tuple(sorted(set().union(*keys.values())))


def _count_labels(splits: Mapping[str, Sequence[LabeledShard]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for file in itertools.chain.from_iterable(splits.values()):
        values, n_rows = np.unique(file.codes, return_counts=True)
        counts.update({str(file.keys[i]): int(n) for i, n in zip(values.tolist(), n_rows, strict=True)})
    return counts


def _build_image_rows(files: Sequence[LabeledShard], label_of_key: Mapping[str | int, int]) -> ImageRows:
    tables = [np.array([label_of_key.get(key, -1) for key in file.keys], np.int64) for file in files]
    labels = np.concatenate([table[file.codes] for table, file in zip(tables, files, strict=True) if len(file.codes)])
    return ImageRows(tuple(file.shard for file in files), np.arange(len(labels)), labels)
