"""Resolve a recipe: which model is trained, from which weights, with which settings.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from resnetkit.architecture.spec import Network
from resnetkit.data.options import DataOptions
from resnetkit.serialization import from_data
from resnetkit.training.recipe import Recipe, adapt_for_fine_tuning, build_default_recipe
from resnetkit.training.recipe_limits import edit_recipe
from resnetkit.weights.model_source import find_model_folder, load_card


def resolve_recipe(
    n_images: int, data: str, model: str | None, settings: Mapping[str, Any], weights_spec: Network | None = None
) -> Recipe:
    """Return the default recipe for a model and its data, edited by the settings; raises `TextError`.

    A model with weights is fine-tuned; any other model starts from random weights.

    Args:
        n_images: The number of training images.
        data: The data; overrides the settings.
        model: The model, which overrides the settings; resnet18 if neither names one.
        settings: Nested settings.
        weights_spec: The spec of the network in a weights file, if the model is one.
    """
    model_name = resolve_model_name(model, settings)
    size_settings = {key: settings[key] for key in ("input_size",) if key in settings}
    native_size = (weights_spec or load_card(model_name).spec).input
    input_size = from_data(_ModelSettings, size_settings, "this configuration").input_size or native_size
    recipe = build_default_recipe(data, model_name, max(input_size[1:]), n_images)
    if (weights_spec or find_model_folder(model_name)) and get_start_settings(settings).get("kind") != "scratch":
        recipe = adapt_for_fine_tuning(recipe, native_size)
    recipe = recipe if recipe.input_size else replace(recipe, input_size=input_size)
    return edit_recipe(recipe, {**settings, "data": data, "model": model_name})


@dataclass(frozen=True, slots=True)
class _ModelSettings:
    """The settings that are needed before the other defaults can be chosen."""

    model: str = "resnet18"
    input_size: tuple[int, int, int] | None = None


def resolve_model_name(model: str | None, settings: Mapping[str, Any]) -> str:
    """Return the name of the model to train.

    Args:
        model: The model that the user named; overrides the settings.
        settings: Nested settings, which may name a model.
    """
    values = {"model": settings["model"]} if "model" in settings else {}
    return from_data(_ModelSettings, values | ({"model": model} if model else {}), "this configuration").model


def get_data_options(settings: Mapping[str, Any]) -> DataOptions:
    """Return how the data is read; raises `TextError` if the settings are not valid."""
    return from_data(DataOptions, settings.get("data_options", {}), "data_options")


def get_start_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of ``start`` as a table, also if they are only its kind."""
    start = settings.get("start", {})
    if isinstance(start, str):
        return {"kind": start}
    return dict(start) if isinstance(start, Mapping) else {}
