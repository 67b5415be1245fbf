"""Decide what MODEL names: a catalog name, a file, a folder, or tensors and modules in memory.

Every command and every function that takes a model asks `resolve_model` once.

This module imports no torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnetkit.architecture.card import CARD_FILE, WEIGHTS_FILE, Card, make_card, read_card
from resnetkit.architecture.catalog import CATALOG
from resnetkit.architecture.catalog import spec as resolve_spec
from resnetkit.errors import UsageError, WeightsError
from resnetkit.serialization import parse_json, read_text
from resnetkit.weights.hugging_face import HF_WEIGHTS_FILES, find_weights_file, read_hugging_face_folder
from resnetkit.weights.other_formats import DISTRIBUTED
from resnetkit.weights.shards import INDEX_SUFFIX

_RUN_MODEL, _RUN_FILE = "model", "run.toml"
_SPEC_SUFFIXES = (".toml", ".json")


@dataclass(frozen=True, slots=True)
class CatalogName:
    """A name of the catalog: a network without weights."""

    name: str


@dataclass(frozen=True)
class _StoredSource:
    path: Path


class SpecFile(_StoredSource):
    """A ``.toml`` or ``.json`` file that describes a network; the file may be missing."""


class ModelFolder(_StoredSource):
    """A folder with a card of ours and weights."""


class RunFolder(_StoredSource):
    """A finished run of training, which holds a model folder."""


class WeightsFile(_StoredSource):
    """A file of tensors in any dialect, without a card."""


class HuggingFaceFolder(_StoredSource):
    """A folder that transformers or timm wrote: a config and weights."""


@dataclass(frozen=True, slots=True, eq=False)
class StateDict:
    """Tensors in memory, by key."""

    tensors: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class LiveModule:
    """A ``torch.nn.Module`` in memory, of resnetkit or of another library."""

    module: Any


ModelSource = (
    CatalogName | SpecFile | ModelFolder | RunFolder | WeightsFile | HuggingFaceFolder | StateDict | LiveModule
)


def resolve_model(source: object) -> ModelSource:
    """Return what a source is.

    Args:
        source: A name, a path, a state dict, a module, or what this function returned before.

    Raises:
        UsageError: the source is none of these; the fix names the nearest name or path.
        WeightsError: the folder holds weights, and their card is missing.
    """
    if isinstance(source, ModelSource):
        return source
    if isinstance(source, Mapping):
        return StateDict(source)
    torch = sys.modules.get("torch")  # a module can exist only if torch is imported
    if torch is not None and isinstance(source, torch.nn.Module):
        return LiveModule(source)
    if not isinstance(source, str | os.PathLike):
        raise UsageError(f"a {type(source).__name__} is not a model", where="model", fix="name a file or a folder")
    return _resolve_path(source if isinstance(source, str) else Path(source))


def _resolve_path(source: str | Path) -> ModelSource:
    if isinstance(source, str) and source in CATALOG:  # a folder of this name is ./resnet18
        return CatalogName(source)
    path = Path(source)
    folder = path.parent if path.name in HF_WEIGHTS_FILES and path.is_file() else path
    if is_model_folder(folder) and (folder is path or path.name == WEIGHTS_FILE):
        return ModelFolder(folder)
    if is_model_folder(path / _RUN_MODEL):
        return RunFolder(path)
    if {"model_type", "architecture"} & _read_card_keys(folder):
        return HuggingFaceFolder(folder)
    is_spec = path.suffix in _SPEC_SUFFIXES and not path.name.endswith(INDEX_SUFFIX)
    return SpecFile(path) if is_spec else _resolve_file(source, path)


def _resolve_file(source: str | Path, path: Path) -> ModelSource:
    if path.is_file():
        return WeightsFile(path)
    if path.is_dir():
        weights_path = find_weights_file(path)
        if weights_path is not None and weights_path.name.endswith(INDEX_SUFFIX):
            return WeightsFile(weights_path)
        raise _missing_model_error(path)
    resolve_spec(source)  # raises UsageError with the nearest name or path
    return CatalogName(str(source))


def is_model_folder(folder: Path) -> bool:
    """Return whether a folder holds a card of ours, or one that is too damaged to tell."""
    return bool({"spec", "format", ""} & _read_card_keys(folder))


def _read_card_keys(folder: Path) -> set[str]:
    """Return the keys of a ``config.json``: none if the file is missing, ``""`` if it cannot be read."""
    path = folder / CARD_FILE
    if not path.is_file():
        return set()
    try:
        data = parse_json(read_text(path, "this card"), str(path))
    except UsageError:
        return {""}
    return set(data) if isinstance(data, dict) and data else {""}


def find_model_folder(source: object) -> Path | None:
    """Return the model folder that a source names, itself or the one of a run; None for any other model.

    Raises `UsageError` and `WeightsError` as `resolve_model` does.
    """
    match resolve_model(source):
        case ModelFolder(path):
            return path
        case RunFolder(path):
            return path / _RUN_MODEL
    return None


def load_card(source: object) -> Card:
    """Return the card of a model without reading its weights.

    Args:
        source: Anything that `resolve_model` takes.

    Raises:
        UsageError: only the weights tell which network this is.
        TextError: the file does not describe a network.
        WeightsError: the card of a model folder is damaged.
    """
    match resolve_model(source):
        case CatalogName(name):
            return make_card(name, CATALOG[name])
        case SpecFile(path):
            return make_card(path.stem, resolve_spec(path))
        case HuggingFaceFolder(path):
            return read_hugging_face_folder(path)[0]
        case ModelFolder() | RunFolder() as stored:
            return read_card(find_model_folder(stored) or stored.path)
    raise UsageError("only its weights tell which network this is", where="model", fix="load it first")


def _missing_model_error(path: Path) -> UsageError | WeightsError:
    if (path / ".metadata").is_file():
        return WeightsError(f"this is {DISTRIBUTED.name}", where=str(path), fix=DISTRIBUTED.fix.format(path))
    if any((folder / WEIGHTS_FILE).is_file() for folder in (path, path / _RUN_MODEL)):
        message = f"{CARD_FILE} is missing next to the weights"
        return WeightsError(message, where=str(path), fix="copy the whole folder again")
    if (path / _RUN_FILE).is_file():
        return UsageError("this run has not finished, so it has no model", where=str(path), fix="train again")
    fix = f"name a model folder (with {CARD_FILE}) or a run folder"
    return UsageError("this folder has no model", where=str(path), fix=fix)
