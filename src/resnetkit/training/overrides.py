"""Overrides of a recipe: options, ``--set`` and config files, as nested changes.

This module imports no torch.
"""

from __future__ import annotations

import inspect
import json
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
    state_dict: str | None = None,
    reset_head: int | None = None,
    input_channels: int | None = None,
    bad_files: str | None = None,
    max_bad: str | float | None = None,
) -> dict[str, Any]:
    """Return nested settings with the options of the command line merged over them.

    Args:
        settings: Nested settings; they override the preset.
        recipe: The name of a published recipe.
        epochs: The number of epochs.
        batch_size: The images in a step.
        lr: The highest learning rate.
        seed: Decides weights, order and augmentation.
        split_seed: Decides which images are held out.
        patience: Stop after so many epochs without a better one on ``val``.
        checkpoint_steps: Write a checkpoint every so many steps.
        track: Names of trackers, as a sequence or comma-separated.
        accumulate: The micro-batches of a step.
        precision: ``auto``, ``fp32`` or ``bf16``.
        network: The network in a weights file.
        dialect: The dialect of a weights file.
        state_dict: The table or the prefix of the tensors in a weights file.
        reset_head: The classes of a new head for a weights file.
        input_channels: The input channels for a weights file.
        bad_files: ``skip`` or ``error``.
        max_bad: The share of images that may be skipped: 0.1 or ``10%``.
    """
    settings = merge(get_preset(recipe).changes, settings) if recipe else settings
    weights_options = _drop_unset(
        network=network, dialect=dialect, state_dict=state_dict, reset_head=reset_head, input_channels=input_channels
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
    """Drop the values that were not given."""
    return {name: value for name, value in values.items() if value not in (None, {})}


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
        UsageError: a setting is not KEY=VALUE, or sets a key inside a value.
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
        table[last] = _parse_value(value)
    return changes


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


TRAIN_OPTION_NAMES = tuple(inspect.signature(merge_options).parameters)[1:]
