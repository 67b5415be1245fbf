"""What a person sets of a recipe: options, ``--set`` and config files, as nested changes to it.

This module imports no torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resnetkit.data.bad_files import parse_bad_files_policy
from resnetkit.errors import TextError, UsageError
from resnetkit.serialization import merge, parse_json, parse_toml, read_text, to_data
from resnetkit.training.presets import get_preset


def merge_options(
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
    settings = merge(get_preset(recipe).changes, settings) if recipe else settings
    weights_options = _drop_unset(
        network=network, dialect=dialect, reset_head=reset_head, input_channels=input_channels
    )
    values: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
        "split_seed": split_seed,
        "patience": patience,
        "checkpoint_steps": checkpoint_steps,
        "trackers": track.split(",") if isinstance(track, str) else list(track) if track else None,
        "accumulate": accumulate,
        "precision": precision,
        "optimizer": _drop_unset(lr=lr),
        "start": _drop_unset(kind="fine-tune" if weights_options else None, **weights_options),
        "bad_files": bad_files if max_bad is None else to_data(parse_bad_files_policy(bad_files, max_bad)),
    }
    return dict(merge(dict(settings), _drop_unset(**values)))


def _drop_unset(**values: Any) -> dict[str, Any]:
    """Those that were given."""
    return {name: value for name, value in values.items() if value not in (None, {})}


def read_config_file(path: Path) -> dict[str, Any]:
    """The nested changes in a ``.toml`` or ``.json`` file."""
    text = read_text(path, "this config")
    changes = parse_json(text, str(path)) if path.suffix == ".json" else parse_toml(text, str(path))
    if not isinstance(changes, dict):
        raise UsageError("this config is not a table of settings", where=str(path))
    return changes


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """``["schedule.warmup=5", ...]`` as nested changes; the values are TOML, a bare word is a text."""
    changes: dict[str, Any] = {}
    for setting in settings:
        path, separator, value = setting.partition("=")
        if not separator or not all(path.split(".")):
            raise UsageError("a setting is a path, = and a value", where=setting, fix="--set schedule.warmup=5")
        *parents, last = path.split(".")
        table = changes
        for key in parents:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise UsageError("this setting is inside a value that another one sets", where=setting)
        table[last] = _parse_value(value)
    return changes


def _parse_value(text: str) -> Any:
    try:
        return parse_toml(f"value = {text}")["value"]
    except TextError:
        return text


TRAIN_OPTION_NAMES = tuple(inspect.signature(merge_options).parameters)[1:]
