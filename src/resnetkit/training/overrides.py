"""What a person sets of a recipe: options, ``--set`` and config files, as nested changes to it.

This module imports no torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resnetkit.errors import TextError, UsageError
from resnetkit.serialization import over, parse_json, parse_toml, read_text, to_data
from resnetkit.training.presets import row
from resnetkit.training.recipe import BadFiles, Error, Skip


def with_options(
    settings: Mapping[str, Any],
    *,
    recipe: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    split_seed: int | None = None,
    patience: int | None = None,
    checkpoint_steps: int | None = None,
    track: str | Sequence[str] | None = None,
    accumulate: int | None = None,
    precision: str | None = None,
    network: str | None = None,
    dialect: str | None = None,
    reset_head: int | None = None,
    input_channels: int | None = None,
    bad_files: str | None = None,
    max_bad: str | float | None = None,
) -> dict[str, Any]:
    """``settings`` with the most common ones laid over them, by the names that the command line also has.

    ``recipe`` names a row that lies under them.
    """
    settings = over(row(recipe).changes, settings) if recipe else settings
    weights = _given(network=network, dialect=dialect, reset_head=reset_head, input_channels=input_channels)
    given: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
        "split_seed": split_seed,
        "patience": patience,
        "checkpoint_steps": checkpoint_steps,
        "trackers": track.split(",") if isinstance(track, str) else list(track) if track else None,
        "accumulate": accumulate,
        "precision": precision,
        "optimiser": _given(lr=lr),
        "start": _given(kind="fine-tune" if weights else None, **weights),
        "bad_files": bad_files if max_bad is None else to_data(policy(bad_files, max_bad)),
    }
    return dict(over(dict(settings), _given(**given)))


def _given(**values: Any) -> dict[str, Any]:
    """Those that were given."""
    return {name: value for name, value in values.items() if value not in (None, {})}


def policy(bad_files: str | None, max_bad: str | float | None) -> BadFiles:
    """``error`` or ``skip``, and how many may be skipped: a share (0.1) or per cent (10%); raises `UsageError`."""
    if bad_files not in (None, "error", "skip") or (bad_files == "error" and max_bad is not None):
        raise UsageError("bad files are an error, or skipped up to a share", where=f"--bad-files {bad_files}")
    if bad_files == "error" or (bad_files is None and max_bad is None):
        return Error()
    return Skip() if max_bad is None else Skip(_share(max_bad))


def _share(told: str | float) -> float:
    words = str(told).strip()
    try:
        share = float(words.removesuffix("%")) / (100 if words.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UsageError(f"{words!r} is no share of the pictures", where="--max-bad", fix="--max-bad 10% or 0.1")
    return share


def read_changes(path: Path) -> dict[str, Any]:
    """The nested changes in a ``.toml`` or ``.json`` file."""
    text = read_text(path, "this config")
    found = parse_json(text, str(path)) if path.suffix == ".json" else parse_toml(text, str(path))
    if not isinstance(found, dict):
        raise UsageError("this config is not a table of settings", where=str(path))
    return found


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """``["schedule.warmup=5", ...]`` as nested changes; the values are TOML, a bare word is a text."""
    changes: dict[str, Any] = {}
    for setting in settings:
        path, equals, value = setting.partition("=")
        if not equals or not all(path.split(".")):
            raise UsageError("a setting is a path, = and a value", where=setting, fix="--set schedule.warmup=5")
        *outer, last = path.split(".")
        inner = changes
        for word in outer:
            inner = inner.setdefault(word, {})
            if not isinstance(inner, dict):
                raise UsageError("this setting is inside a value that another one sets", where=setting)
        inner[last] = _value(value)
    return changes


def _value(text: str) -> Any:
    try:
        return parse_toml(f"value = {text}")["value"]
    except TextError:
        return text


OPTIONS = tuple(inspect.signature(with_options).parameters)[1:]
