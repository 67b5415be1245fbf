"""Residual networks as data: written down, explained, built, trained, used.

    spec = resnetkit.spec("resnet50")      a frozen description; no torch
    plan = resnetkit.plan(spec)            everything that follows from it
    model = resnetkit.build(spec)          an nn.Module

Importing this package imports nothing else; each name below is fetched when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnetkit import surgery
    from resnetkit.architecture.catalog import names as models
    from resnetkit.architecture.catalog import spec
    from resnetkit.architecture.plan import plan
    from resnetkit.data.check import check
    from resnetkit.deliver.embed import embed
    from resnetkit.deliver.evaluate import evaluate
    from resnetkit.deliver.optimize import optimize
    from resnetkit.deliver.predict import predict
    from resnetkit.errors import ResnetkitError
    from resnetkit.explain.why import why
    from resnetkit.learn.train import train
    from resnetkit.network.build import build
    from resnetkit.weights.convert import as_module, convert
    from resnetkit.weights.store import load, save

__version__ = "0.1.0"

_PLACES = {
    "ResnetkitError": "errors:ResnetkitError",
    "as_module": "weights.convert:as_module",
    "build": "network.build:build",
    "check": "data.check:check",
    "convert": "weights.convert:convert",
    "embed": "deliver.embed:embed",
    "evaluate": "deliver.evaluate:evaluate",
    "load": "weights.store:load",
    "models": "architecture.catalog:names",
    "optimize": "deliver.optimize:optimize",
    "plan": "architecture.plan:plan",
    "predict": "deliver.predict:predict",
    "save": "weights.store:save",
    "spec": "architecture.catalog:spec",
    "surgery": "surgery",
    "train": "learn.train:train",
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
