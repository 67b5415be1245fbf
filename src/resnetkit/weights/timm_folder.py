"""Read the ``config.json`` of a folder that timm wrote for a hub: the network, labels and preparation of images.

The config belongs to weights, so one that does not fit raises `WeightsError`. No value in it names anything to import.

This module imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from resnetkit.architecture.card import Card, Preparation, find_preparation_faults, make_card
from resnetkit.architecture.catalog import find_catalog_name
from resnetkit.architecture.rules import find_spec_faults
from resnetkit.architecture.spec import Network, count_classes
from resnetkit.errors import UsageError, WeightsError
from resnetkit.weights.constructor_args import build_timm_architecture
from resnetkit.weights.unwrap import parse_class_names

_COPY_FOLDER_FIX = "copy the whole folder again"
_UNSUPPORTED_FIX = "`resnetkit models` lists the networks that are supported"
_NO_EFFECT = {
    "interpolation": "bilinear",
    "crop_mode": "center",
}  # options of timm -> the only value that has an effect


def build_card_from_timm_config(config: dict[str, Any], location: str) -> Card:
    """Return the card for a config of timm.

    Args:
        config: The content of ``config.json``.
        location: The file, for errors.

    Raises:
        WeightsError: the config names a network that is not supported, or does not describe one.
    """
    spec, pretrained = _parse_spec(config, location), config.get("pretrained_cfg")
    pretrained = pretrained if isinstance(pretrained, dict) else {}
    names = parse_class_names(config.get("label_names") or pretrained.get("label_names"))
    card = make_card(find_catalog_name(spec), spec, names if len(names) == count_classes(spec.head) else ())
    preparation = _parse_preparation({**config, **pretrained}, spec)
    if preparation is None or find_preparation_faults(preparation, spec.input[0]):
        message = "pretrained_cfg does not describe a preparation of images"
        raise WeightsError(message, where=location, fix=_COPY_FOLDER_FIX)
    notes = [
        f"the option {name} = {str(pretrained[name])[:20]} of timm is ignored: it is {value}"
        for name, value in _NO_EFFECT.items()
        if pretrained.get(name, value) != value
    ]
    if names and not card.classes:
        notes.append(f"the {len(names)} label names of the config do not fit the classifier and are skipped")
    origin = f"a model of timm ({str(config['architecture'])[:60]})"
    return replace(card, preparation=preparation, origin=origin, assumed=("norms have epsilon 1e-05", *notes))


def _parse_spec(config: dict[str, Any], location: str) -> Network:
    name, model_args = config.get("architecture"), config.get("model_args") or {}
    if not isinstance(name, str) or not isinstance(model_args, dict):
        raise WeightsError("this config does not describe a network of timm", where=location, fix=_COPY_FOLDER_FIX)
    classes = config.get("num_classes")
    try:
        spec = build_timm_architecture(
            name, {**({"num_classes": classes} if classes is not None else {}), **model_args}
        )
    except UsageError as error:
        raise WeightsError(error.what, where=[location, *error.where], fix=_UNSUPPORTED_FIX) from None
    faults = find_spec_faults(spec)
    if faults:
        message = f"this config does not describe a network: {faults[0]}"
        raise WeightsError(message, where=location, fix=_COPY_FOLDER_FIX)
    return spec


def _parse_preparation(config: dict[str, Any], spec: Network) -> Preparation | None:
    """Return the preparation in a config with timm's defaults, or None if a value is not possible."""
    size, ratio = config.get("input_size") or list(spec.input), config.get("crop_pct") or 0.875
    mean, std = config.get("mean") or [0.485, 0.456, 0.406], config.get("std") or [0.229, 0.224, 0.225]
    numbers = [value for values in (size, mean, std) if isinstance(values, list) for value in values]
    are_numbers = all(type(n) in (int, float) and 0 <= n < 4096 for n in (*numbers, ratio))
    if not are_numbers or len(numbers) != len(size) + len(mean) + len(std) or len(size) != 3 or not 0.01 <= ratio <= 1:
        return None
    height, width = map(int, size[1:])
    resize = math.floor(max(height, width) / ratio)
    return Preparation(resize, (height, width), tuple(map(float, mean)), tuple(map(float, std)))
