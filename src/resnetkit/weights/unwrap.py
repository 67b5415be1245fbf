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
_DEEPEST = 4
_MOST_PREFIXES = 6


def unpacked(found: dict[Any, Any], is_table: Callable[[Any], bool]) -> tuple[dict[Any, Any], tuple[str, ...]]:
    """The innermost table of a file, and what is told of those around it; ``is_table`` tells tables apart.

    Of several tables the first of `CONTAINERS` is taken, and it is said that others stand beside it (averaged weights).
    """
    path: tuple[str, ...] = ()
    while len(path) < _DEEPEST:
        tables = [name for name in CONTAINERS if is_table(found.get(name))]
        if not tables:
            break
        first, *others = tables
        told = f"{first} (not {', '.join(others)} beside it)" if others else first
        found, path = dict(dict.items(found[first])), (*path, told)
    return found, path


def without_prefix(name: str) -> str:
    """A name without the words that training programs put before it."""
    for _ in range(_MOST_PREFIXES):
        name = next(
            (name.removeprefix(word) for word in ("module.", "_orig_mod.", "model.") if name.startswith(word)), name
        )
    return name


def without_prefixes(names: Collection[str], *, some: bool = False) -> Iterator[tuple[str, dict[str, str]]]:
    """(what was taken off, name as it was -> name without), with nothing taken off first, then prefix by prefix.

    A prefix goes where every name has it; with ``some`` it is enough that one has it, and the others are left out.
    """
    taken, shown = "", {name: name for name in names}
    has = any if some else all
    for _ in range(_MOST_PREFIXES if names else 0):
        yield taken, shown
        prefix = next((word for word in PREFIXES if has(name.startswith(word) for name in shown.values())), None)
        if prefix is None:
            return
        kept = ((name, short) for name, short in shown.items() if short.startswith(prefix))
        taken, shown = taken + prefix, {name: short.removeprefix(prefix) for name, short in kept}
