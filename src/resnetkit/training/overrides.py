"""Overrides of a recipe: options, ``--set`` and config files, as nested changes.

This module imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from resnetkit.data.bad_files import parse_bad_files_policy
from resnetkit.data.options import DataOptions
from resnetkit.errors import TextError, UsageError
from resnetkit.serialization import merge, parse_json, parse_toml, read_text, to_data
from resnetkit.training.presets import get_preset

_DATA_OPTIONS = tuple(field.name for field in fields(DataOptions))
WEIGHTS_OPTIONS = ("network", "dialect", "state_dict", "reset_head", "input_channels")
_PLAIN_OPTIONS = (
    "epochs", "batch_size", "seed", "split_seed", "patience", "checkpoint_steps", "accumulate", "precision",
)  # fmt: skip
TRAIN_OPTION_NAMES = (
    "recipe",
    *_PLAIN_OPTIONS,
    "lr",
    "track",
    *WEIGHTS_OPTIONS,
    "bad_files",
    "max_bad",
    *_DATA_OPTIONS,
)


def merge_options(settings: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Return nested settings with the options of the command line merged over them.

    Args:
        settings: Nested settings; they override the preset.
        **options: Values by their names in `TRAIN_OPTION_NAMES`; None if not given. ``recipe`` is the name of a
            published recipe. ``track`` names trackers, as a sequence or comma-separated. ``max_bad`` is the share of
            images that may be skipped: 0.1 or ``10%``.
    """
    given = _drop_unset(options)
    settings = merge(get_preset(given["recipe"]).changes, settings) if "recipe" in given else settings
    weights_options = {name: given[name] for name in WEIGHTS_OPTIONS if name in given}
    track, bad_files, max_bad = given.get("track"), given.get("bad_files"), given.get("max_bad")
    changes = {
        "data_options": {name: given[name] for name in _DATA_OPTIONS if name in given} or None,
        **{name: options.get(name) for name in _PLAIN_OPTIONS},
        "trackers": track.split(",") if isinstance(track, str) else list(track) if track else None,
        "optimizer": {"lr": given["lr"]} if "lr" in given else None,
        "start": {"kind": "fine-tune", **weights_options} if weights_options else None,
        "bad_files": bad_files if max_bad is None else to_data(parse_bad_files_policy(bad_files, max_bad)),
    }
    return dict(merge(dict(settings), _drop_unset(changes)))


def _drop_unset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the values that were not given."""
    return {name: value for name, value in values.items() if value is not None}


def read_config_file(path: Path) -> dict[str, Any]:
    """Read nested changes from a ``.toml`` or ``.json`` file.

    Raises:
        UsageError: the file cannot be read, or is not a table.
    """
    text = read_text(path, "the config file")
    changes = parse_json(text, str(path)) if path.suffix == ".json" else parse_toml(text, str(path))
    if not isinstance(changes, dict):
        raise UsageError("the config file is not a table of settings", where=str(path))
    return changes


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Parse settings such as ``schedule.warmup=5`` into nested changes; values are TOML or a bare word.

    Raises:
        UsageError: a setting is not KEY=VALUE, is given twice, or sets a key inside a value.
    """
    changes: dict[str, Any] = {}
    for setting in settings:
        path, separator, value = setting.partition("=")
        if not separator or not all(path.split(".")):
            raise UsageError("expected KEY=VALUE", where=setting, fix="for example: --set schedule.warmup=5")
        *parents, last = path.split(".")
        table = changes
        for key in parents:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise UsageError("this key lies inside a value that another setting sets", where=setting)
        if last in table:
            where = [f"--set {item}" for item in settings if _is_same_or_inside(item.partition("=")[0], path)]
            raise UsageError(f"the setting {path} is given twice", where=where, fix=f"give {path} once")
        table[last] = _parse_value(value)
    return changes


def _is_same_or_inside(first: str, second: str) -> bool:
    """Return whether one of two paths is the other, or lies inside it."""
    return f"{first}.".startswith(f"{second}.") or f"{second}.".startswith(f"{first}.")


def _parse_value(text: str) -> Any:
    try:
        return parse_toml(f"value = {text}")["value"]
    except TextError:
        return text


def flatten_settings(settings: Mapping[str, Any], path: str = "") -> dict[str, str]:
    """Return nested settings as one level, such as ``optimizer.lr``, with values as text.

    Args:
        settings: Nested settings.
        path: The path of the settings.
    """
    values: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            values |= flatten_settings(value, f"{path}{name}.")
        else:
            values[f"{path}{name}"] = value if isinstance(value, str) else json.dumps(value)
    return values
