"""What stands around the tensors of a file: containers and prefixes, taken off and told.

Training programs save a table of tables (``{"epoch": 90, "state_dict": {...}}``) and put words before every name
(``module.`` by data parallel training, ``_orig_mod.`` by compilation).

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

CONTAINERS = ("state_dict", "model", "model_state_dict", "net", "state_dict_ema", "model_ema", "ema")
PREFIXES = (
    "module.",
    "_orig_mod.",
    "model.",
    "backbone.",
    "encoder.",
    "resnet.",
    "net.",
    "base_encoder.",
    "encoder_q.",
)
_MAX_DEPTH = 4
_MAX_PREFIXES = 6


def unwrap_containers(table: dict[Any, Any], is_table: Callable[[Any], bool]) -> tuple[dict[Any, Any], tuple[str, ...]]:
    """The innermost table of a file, and what is told of those around it; ``is_table`` tells tables apart.

    Of several tables the first of `CONTAINERS` is taken, and it is said that others stand beside it (averaged weights).
    """
    containers: tuple[str, ...] = ()
    while len(containers) < _MAX_DEPTH:
        tables = [name for name in CONTAINERS if is_table(table.get(name))]
        if not tables:
            break
        first, *others = tables
        label = f"{first} (not {', '.join(others)} beside it)" if others else first
        table, containers = dict(dict.items(table[first])), (*containers, label)
    return table, containers


def strip_prefix(name: str) -> str:
    """A name without the words that training programs put before it."""
    for _ in range(_MAX_PREFIXES):
        name = next(
            (name.removeprefix(prefix) for prefix in ("module.", "_orig_mod.", "model.") if name.startswith(prefix)),
            name,
        )
    return name


def iterate_prefixes(names: Collection[str], *, allow_partial: bool = False) -> Iterator[tuple[str, dict[str, str]]]:
    """(what was taken off, name as it was -> name without), with nothing taken off first, then prefix by prefix.

    A prefix goes where every name has it; with ``some`` it is enough that one has it, and the others are left out.
    """
    removed, short_names = "", {name: name for name in names}
    matches = any if allow_partial else all
    for _ in range(_MAX_PREFIXES if names else 0):
        yield removed, short_names
        prefix = next(
            (
                candidate
                for candidate in PREFIXES
                if matches(name.startswith(candidate) for name in short_names.values())
            ),
            None,
        )
        if prefix is None:
            return
        matching = ((name, short_name) for name, short_name in short_names.items() if short_name.startswith(prefix))
        removed, short_names = (
            removed + prefix,
            {name: short_name.removeprefix(prefix) for name, short_name in matching},
        )
