"""Remove what stands around the tensors of a file: nested tables and prefixes of keys.

Training programs save a table of tables (``{"epoch": 90, "state_dict": {...}}``). They also put prefixes before every
key: ``module.`` comes from data-parallel training, ``_orig_mod.`` from compilation.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

CONTAINERS = ("state_dict", "model", "model_state_dict", "net", "state_dict_ema", "model_ema", "ema")
_TRAINING_PREFIXES = ("module.", "_orig_mod.", "model.")
PREFIXES = (*_TRAINING_PREFIXES, "backbone.", "encoder.", "resnet.", "net.", "base_encoder.", "encoder_q.")
_MAX_DEPTH, _MAX_PREFIXES = 4, 6


def unwrap_containers(table: dict[Any, Any], is_table: Callable[[Any], bool]) -> tuple[dict[Any, Any], tuple[str, ...]]:
    """Return the innermost table of a file and a description of each table around it.

    If several tables stand side by side, the first in `CONTAINERS` is used and its description names the others
    (averaged weights, for example).

    Args:
        table: The outermost table.
        is_table: Whether a value of a table is a table too.
    """
    containers: tuple[str, ...] = ()
    while len(containers) < _MAX_DEPTH:
        tables = [name for name in CONTAINERS if is_table(table.get(name))]
        if not tables:
            break
        first, *unused = tables
        label = f"{first} (not {', '.join(unused)} beside it)" if unused else first
        table, containers = dict(dict.items(table[first])), (*containers, label)
    return table, containers


def strip_prefix(name: str) -> str:
    """Return a name without the prefixes that training programs put before it."""
    for _ in range(_MAX_PREFIXES):
        name = next((name.removeprefix(prefix) for prefix in _TRAINING_PREFIXES if name.startswith(prefix)), name)
    return name


def iterate_prefixes(names: Collection[str], *, allow_partial: bool = False) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (removed prefix, {name: name without it}), with one more prefix removed each time.

    Args:
        names: The names in the file.
        allow_partial: Whether a prefix is removed if only some names have it, which skips the other names.
            Otherwise every name must have it.
    """
    removed, short_names = "", {name: name for name in names}
    matches = any if allow_partial else all
    for _ in range(_MAX_PREFIXES if names else 0):
        yield removed, short_names
        candidates = (p for p in PREFIXES if matches(name.startswith(p) for name in short_names.values()))
        prefix = next(candidates, None)
        if prefix is None:
            return
        removed += prefix
        kept = {name: short for name, short in short_names.items() if short.startswith(prefix)}
        short_names = {name: short.removeprefix(prefix) for name, short in kept.items()}
