"""Find the tensors in the content of a file: tables inside tables, and prefixes of keys.

Training programs save a table of tables (``{"epoch": 90, "state_dict": {...}}``). They also put prefixes before every
key: ``module.`` comes from data-parallel training, ``_orig_mod.`` from compilation.

This module imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_MAIN_TABLES = (
    "state_dict", "model", "model_state_dict", "net", "module", "network", "weights", "params",
)  # fmt: skip
_AVERAGED_TABLES = ("state_dict_ema", "model_ema", "ema")
_TRAINING_PREFIXES = ("module.", "_orig_mod.", "model.")
PREFIXES = (*_TRAINING_PREFIXES, "backbone.", "encoder.", "resnet.", "net.", "base_encoder.", "encoder_q.")
_MAX_DEPTH, _MAX_PREFIXES, _MAX_NETWORKS, _MAX_ITEMS = 4, 6, 16, 2_000_000
_OPTIMIZER_PREFIX = "optim"  # its tables have one tensor for each of the network's


@dataclass(frozen=True)
class SelectedTable:
    """The table of tensors in a file: where it is, and which tables like it stand beside it."""

    path: str
    table: Mapping[Any, Any]
    unused: tuple[str, ...] = ()

    @property
    def containers(self) -> tuple[str, ...]:
        """The tables around the tensors from the outside; the last one names the tables beside it."""
        names = tuple(filter(None, self.path.split(".")))
        note = f" (not {', '.join(self.unused)} beside it)" if self.unused else ""
        return (*names[:-1], names[-1] + note) if names else ()


class SeveralTablesError(Exception):
    """The names of the tables of tensors in a file, if nothing decides between them."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__(", ".join(names))
        self.names = tuple(names)


def walk_tables(content: Any) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield (path, table) for the tables in a table, breadth first; a path is the keys joined with dots."""
    queue: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), content)] if isinstance(content, Mapping) else []
    n_items = 0
    for path, table in queue:  # the loop sees what it appends
        n_items += len(table)
        if n_items > _MAX_ITEMS:  # a file may name one table again and again
            return
        yield ".".join(path), table
        for key, value in table.items() if len(path) < _MAX_DEPTH else ():
            if isinstance(key, str) and isinstance(value, Mapping):
                queue.append(((*path, key), value))


def find_tensor_table(content: Any, is_tensor: Callable[[Any], bool], choice: str = "") -> SelectedTable | None:
    """Return the table that holds the tensors of a network; None if there are no tensors under that name.

    A table is plausible if it has the weight of a convolution. If there are several, the usual names decide
    (``state_dict`` before ``ema``).

    Args:
        content: The outermost table.
        is_tensor: Whether a value is a tensor.
        choice: The name or path that the caller chose.

    Raises:
        SeveralTablesError: nothing decides between several tables.
    """
    tables = {
        path: table
        for path, table in walk_tables(content)
        if not path.startswith(_OPTIMIZER_PREFIX) and any(map(is_tensor, table.values()))
    }
    tables = {path: table for path, table in tables.items() if _has_convolution(table, is_tensor)} or tables
    if choice:
        matches = [path for path in tables if choice in (path, path.rpartition(".")[2])]
        return SelectedTable(matches[0], tables[matches[0]]) if matches else None
    if not tables:
        return None
    path = next(iter(tables)) if len(tables) == 1 or "" in tables else _choose_usual(tables)
    unused = [name for name in tables if name != path and not name.startswith(f"{path}.")]
    return SelectedTable(path, tables[path], tuple(unused) if path else ())


def _has_convolution(table: Mapping[Any, Any], is_tensor: Callable[[Any], bool]) -> bool:
    items = table.items()
    return any(str(key).endswith("weight") and is_tensor(value) and len(value.shape) == 4 for key, value in items)


def _choose_usual(tables: Mapping[str, Mapping[Any, Any]]) -> str:
    """Return the table with the usual name; raises `SeveralTablesError` if there is none."""
    for names in (_MAIN_TABLES, (*_MAIN_TABLES, *_AVERAGED_TABLES)):
        usual = [path for path in tables if all(name in names for name in path.split("."))]
        if usual and (names is _MAIN_TABLES or len(usual) == len(tables)):
            return min(usual, key=lambda path: [names.index(name) for name in path.split(".")])
    if len({id(table) for table in tables.values()}) == 1:
        return next(iter(tables))
    raise SeveralTablesError(tables)


_CLASS_KEYS = ("classes", "CLASSES", "class_names", "label_names", "class_to_idx", "id2label", "idx_to_class")


def find_class_names(content: Any) -> tuple[str, ...]:
    """Return the first class names that stand beside the tensors of a file; empty if there are none."""
    values = (table[key] for _, table in walk_tables(content) for key in _CLASS_KEYS if key in table)
    return next(filter(None, map(parse_class_names, values)), ())


def parse_class_names(value: Any) -> tuple[str, ...]:
    """Return class names by index from a list, ``{name: index}`` or ``{index: name}``, if it is one."""
    if isinstance(value, Mapping):
        pairs = list(value.items())
        by_name = {index: name for name, index in pairs if isinstance(name, str) and type(index) is int}
        by_index = {int(index): name for index, name in pairs if str(index).isdecimal() and isinstance(name, str)}
        names_by_index = max(by_name, by_index, key=len)
        value = [names_by_index.get(i) for i in range(len(pairs))]
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) and name for name in value):
        return ()
    are_valid = len(set(value)) == len(value) and all(name.isprintable() for name in value)
    return tuple(value) if are_valid else ()


def strip_prefix(name: str) -> str:
    """Return a name without the prefixes that training programs put before it."""
    for _ in range(_MAX_PREFIXES):
        name = next((name.removeprefix(prefix) for prefix in _TRAINING_PREFIXES if name.startswith(prefix)), name)
    return name


def iterate_prefixes(names: Collection[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (removed prefix, {name: name without it}), with one more prefix removed each time.

    Args:
        names: The names in the file. A prefix is removed if all of them have it.
    """
    removed, short_names = "", {name: name for name in names}
    for _ in range(_MAX_PREFIXES if names else 0):
        yield removed, short_names
        candidates = (p for p in PREFIXES if all(name.startswith(p) for name in short_names.values()))
        prefix = next(candidates, None)
        if prefix is None:
            return
        removed += prefix
        short_names = {name: short.removeprefix(prefix) for name, short in short_names.items()}


_INSIDE_BODY = re.compile(r"(^|\.)((layer|stage|block)\d+|layers|stages|blocks|branch)\.(\d+\.)?$")


def find_prefixes(names: Collection[str], first_names: Collection[str]) -> list[str]:
    """Return the prefixes behind which a network may begin, the usual ones first.

    Args:
        names: The names in the file.
        first_names: The names that the first tensor of a network can have.
    """
    prefixes = {
        name.removesuffix(first): None
        for name in names
        for first in first_names
        if name == first or name.endswith(f".{first}")
    }
    outer_prefixes = [prefix for prefix in prefixes if not _INSIDE_BODY.search(prefix)]
    return sorted(outer_prefixes, key=lambda prefix: not is_usual_prefix(prefix))[:_MAX_NETWORKS]


def is_usual_prefix(prefix: str) -> bool:
    """Return whether a prefix consists of those in `PREFIXES`."""
    return not re.sub("|".join(map(re.escape, sorted(PREFIXES, key=len, reverse=True))), "", prefix)
