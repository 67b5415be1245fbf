"""Find what the user of another tool means: the option, argument or command that does the same, or that there is none.

The rows are in ``synonyms.toml``, which is read only after an error. A hint is right or absent.

This module imports no torch.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from functools import cache
from importlib.resources import files
from typing import Any

from resnetkit.errors import find_closest

_MIN_SIMILARITY, _MIN_SIMILARITY_SHORT = 0.75, 0.65  # of a mistyped word, and of one with few letters
_SHORT = 4  # letters


@cache
def read_synonyms() -> dict[str, list[dict[str, Any]]]:
    """Read the rows for options and for commands."""
    return tomllib.loads(files("resnetkit.commands").joinpath("synonyms.toml").read_text(encoding="utf-8"))


def suggest_option(command: str, word: str, options: Collection[str], arguments: Collection[str]) -> str:
    """Return the fix for an unknown option.

    Args:
        command: the name of the command, such as ``train``.
        word: the option as the user typed it.
        options: the options of the command, without dashes.
        arguments: its positional arguments, such as ``MODEL``.
    """
    name = word.partition("=")[0].lstrip("-").replace("_", "-").lower()
    if name in options:
        return f"did you mean --{name}?"
    for target in _list_targets(command, name):
        if target.split()[0].removeprefix("--") in options and target.startswith("--"):
            return f"use {target}"
        if target in arguments:
            return f"give it as the argument {target}, without an option"
        if not target.startswith("--") and not target.isupper():
            return target
    cutoff = _MIN_SIMILARITY if len(name) > _SHORT else _MIN_SIMILARITY_SHORT
    closest = find_closest(name, options, cutoff=cutoff) or _find_prefixed(name, options)
    return f"did you mean --{closest[0]}?" if closest else f"resnetkit {command} --help"


def _list_targets(command: str, name: str) -> list[str]:
    """Return the targets of a foreign option in the order of the rows."""
    rows = [row for row in read_synonyms()["options"] if name in row["names"]]
    return [target for row in rows if command in row.get("commands", [command]) for target in row["targets"]]


def _find_prefixed(name: str, options: Collection[str]) -> tuple[str, ...]:
    """Return the one option whose first words are a name; nothing if there are several."""
    matches = tuple(option for option in options if option.startswith(f"{name}-"))
    return matches if len(matches) == 1 else ()


def find_command(word: str) -> str | None:
    """Return the command that another tool calls by this word, or None."""
    name = word.replace("_", "-").lower()
    return next((row["target"] for row in read_synonyms()["commands"] if name in row["names"]), None)
