"""Read Parquet files whose rows hold the paths of images and not their bytes.

The paths are relative to the folder of the Parquet file, as those of a CSV table are.

This module imports no torch.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnetkit.data.dataset import Dataset
from resnetkit.data.options import DataOptions
from resnetkit.data.readers.columns import detect_label, detect_paths, find_image_columns
from resnetkit.data.readers.csv_table import TableContent, TableRow, build_table_dataset
from resnetkit.errors import DataError


@dataclass(frozen=True)
class PathTable:
    """The path and the class name of each row of a Parquet file; "" if a row lacks one."""

    source: Path
    paths: list[str]
    labels: list[str]


def read_path_table(file: Any, source: Path, options: DataOptions) -> PathTable | None:
    """Read the paths and labels of a Parquet file; None if its rows hold the bytes of images.

    Args:
        file: The opened ``pyarrow.parquet.ParquetFile``.
        source: Its path.
        options: The names of the columns.
    """
    schema = file.schema_arrow
    images, path_column = find_image_columns(schema), detect_paths(schema, options)
    label, classes = detect_label(schema, source, options)
    if images:
        path_column = next((f"{name}.path" for name in images if _has_only_paths(file, schema, name)), "")
    if not path_column or not label:
        return None
    column = file.read([path_column], use_threads=False).column(0).combine_chunks()
    values = (column.field("path") if images else column).to_pylist()
    names = file.read([label], use_threads=False).column(0).to_pylist()
    return PathTable(source, [value or "" for value in values], [_name_class(value, classes) for value in names])


def _has_only_paths(file: Any, schema: Any, name: str) -> bool:
    """Return whether a column of pairs of bytes and path has no bytes, by the statistics in the file."""
    arrow_type = schema.field(name).type
    if arrow_type.num_fields < 2 or arrow_type.get_field_index("path") < 0:
        return False
    if arrow_type.field("bytes").type.equals("null"):
        return True
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    chunks = [group.column(j) for group in groups for j in range(group.num_columns)]
    statistics = [chunk.statistics for chunk in chunks if chunk.path_in_schema == f"{name}.bytes"]
    return bool(statistics) and all(
        item is not None and item.has_null_count and not item.num_values for item in statistics
    )


def _name_class(value: Any, classes: Sequence[str]) -> str:
    if value is None or (isinstance(value, int) and value < 0):
        return ""
    return classes[value] if isinstance(value, int) and value < len(classes) else str(value)


def build_path_dataset(
    root: Path, name: str, tables_of_split: Mapping[str, Sequence[PathTable]], options: DataOptions
) -> Dataset:
    """Build the dataset of files that hold paths.

    Args:
        root: The folder of the files.
        name: The source as the user wrote it.
        tables_of_split: Split -> its files.
        options: Whether equal classes are merged.

    Raises:
        DataError: images are missing, or rows are incomplete.
    """
    rows, faults, line = [], [], itertools.count()
    for split, tables in tables_of_split.items():
        for table in tables:
            for path, label in zip(table.paths, table.labels, strict=True):
                full_path = os.path.relpath(table.source.parent / path, root)
                rows.append(TableRow(next(line), full_path, label, split))
                if not path or not label:
                    faults.append((rows[-1].line, f"the row has no {'label' if path else 'path'}"))
    try:
        return build_table_dataset(root / Path(name).name, name, TableContent(rows, faults, []), options)
    except DataError as error:
        what = f"the rows hold paths of images, not their bytes; {error.what.replace('line', 'row')}"
        where = [name, *(text.replace("line ", "row ", 1) for text in error.where[1:])]
        raise DataError(
            what, where=where, fix="put the images beside the file, or store their bytes in the rows"
        ) from None
