"""Residual networks as data: written down, explained, built, trained, used.

    spec = resnetkit.spec("resnet50")      a frozen description; no torch
    plan = resnetkit.plan(spec)            everything that follows from it
    model = resnetkit.build(spec)          an nn.Module

Importing this package imports nothing else; each name below is fetched when it is first used.

This module imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnetkit import surgery
    from resnetkit.architecture.catalog import list_models as models
    from resnetkit.architecture.catalog import spec
    from resnetkit.architecture.plan import plan
    from resnetkit.data.check import check
    from resnetkit.errors import ResnetkitError
    from resnetkit.evaluation.api import evaluate
    from resnetkit.explain.why import why
    from resnetkit.network.build import build
    from resnetkit.optimization.api import optimize
    from resnetkit.prediction.api import predict
    from resnetkit.prediction.embed import embed
    from resnetkit.training.api import train
    from resnetkit.weights.convert import as_module, convert
    from resnetkit.weights.load import load, save

__version__ = "0.1.0"

_PLACES = {
    "ResnetkitError": "errors:ResnetkitError",
    "as_module": "weights.convert:as_module",
    "build": "network.build:build",
    "check": "data.check:check",
    "convert": "weights.convert:convert",
    "embed": "prediction.embed:embed",
    "evaluate": "evaluation.api:evaluate",
    "load": "weights.load:load",
    "models": "architecture.catalog:list_models",
    "optimize": "optimization.api:optimize",
    "plan": "architecture.plan:plan",
    "predict": "prediction.api:predict",
    "save": "weights.load:save",
    "spec": "architecture.catalog:spec",
    "surgery": "surgery",
    "train": "training.api:train",
    "why": "explain.why:why",
}

__all__ = [
    "ResnetkitError",
    "as_module",
    "build",
    "check",
    "convert",
    "embed",
    "evaluate",
    "load",
    "models",
    "optimize",
    "plan",
    "predict",
    "save",
    "spec",
    "surgery",
    "train",
    "why",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'resnetkit' has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    found = importlib.import_module(f"resnetkit.{module}")
    value = getattr(found, attribute) if attribute else found
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
