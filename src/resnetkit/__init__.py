"""Residual networks as data: described, explained, built, trained and used.

    spec = resnetkit.spec("resnet50")      the description of a network; no torch
    plan = resnetkit.plan(spec)            everything that follows from it
    model = resnetkit.build(spec)          an nn.Module

Importing this package imports nothing else; each name below is imported when it is first used.

This module imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnetkit import surgery as surgery
    from resnetkit.architecture.catalog import list_models as models  # noqa: F401
    from resnetkit.architecture.catalog import spec as spec
    from resnetkit.architecture.plan import plan as plan
    from resnetkit.data.check import check as check
    from resnetkit.errors import ResnetkitError as ResnetkitError
    from resnetkit.evaluation.api import evaluate as evaluate
    from resnetkit.explain.why import why as why
    from resnetkit.network.build import build as build
    from resnetkit.optimization.api import optimize as optimize
    from resnetkit.prediction.api import predict as predict
    from resnetkit.prediction.embed import embed as embed
    from resnetkit.surgery.load import load as load
    from resnetkit.training.api import train as train
    from resnetkit.weights.convert import as_module as as_module
    from resnetkit.weights.convert import convert as convert
    from resnetkit.weights.save import save as save

__version__ = "0.1.0"

_LOCATIONS = {
    "ResnetkitError": "errors:ResnetkitError",
    "as_module": "weights.convert:as_module",
    "build": "network.build:build",
    "check": "data.check:check",
    "convert": "weights.convert:convert",
    "embed": "prediction.embed:embed",
    "evaluate": "evaluation.api:evaluate",
    "load": "surgery.load:load",
    "models": "architecture.catalog:list_models",
    "optimize": "optimization.api:optimize",
    "plan": "architecture.plan:plan",
    "predict": "prediction.api:predict",
    "save": "weights.save:save",
    "spec": "architecture.catalog:spec",
    "surgery": "surgery",
    "train": "training.api:train",
    "why": "explain.why:why",
}

__all__ = list(_LOCATIONS)


def __getattr__(name: str) -> Any:
    if name not in _LOCATIONS:
        raise AttributeError(f"module 'resnetkit' has no attribute {name!r}")
    module_name, _, attribute = _LOCATIONS[name].partition(":")
    module = importlib.import_module(f"resnetkit.{module_name}")
    value = getattr(module, attribute) if attribute else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
