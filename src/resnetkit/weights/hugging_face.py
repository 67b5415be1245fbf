"""Read the configs of a folder of transformers or timm, and write those of transformers.

``config.json`` describes the network, ``preprocessor_config.json`` the preparation of images. Both belong to weights,
so a config that does not fit raises `WeightsError`. No value in them names anything to import.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from resnetkit.architecture.card import CARD_FILE, Card, Preparation, find_preparation_faults, make_card
from resnetkit.architecture.catalog import find_catalog_name
from resnetkit.architecture.rules import find_spec_faults
from resnetkit.architecture.spec import Network
from resnetkit.errors import UsageError, WeightsError
from resnetkit.serialization import parse_json, read_text
from resnetkit.weights.constructor_args import ConstructorArgs, build_hugging_face_spec
from resnetkit.weights.timm_folder import build_card_from_timm_config

PREPROCESSOR_FILE = "preprocessor_config.json"
HF_WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
_INDEX_FILES = tuple(f"{name}.index.json" for name in HF_WEIGHTS_FILES)  # of weights in several files
_BILINEAR = 2
_INT_KEYS = ("num_channels", "embedding_size")
_LIST_KEYS = ("hidden_sizes", "depths")
_BOOL_KEYS = ("downsample_in_first_stage", "downsample_in_bottleneck")
_MAX_STAGES, _MAX_VALUE = 64, 4096
MIN_SQUEEZED_SIDE = 384  # pixels: from this side on transformers resizes without a crop
_COPY_FOLDER_FIX, _RESNETS_ONLY_FIX = "copy the whole folder again", "only ResNets with ReLU are supported"


def find_weights_file(folder: Path) -> Path | None:
    """Return the weights in a folder, or the index of weights in several files; None if there are none."""
    names = (name for name in (*HF_WEIGHTS_FILES, *_INDEX_FILES) if (folder / name).is_file())
    return next((folder / name for name in names), None)


def read_hugging_face_folder(folder: Path) -> tuple[Card, Path, str]:
    """Return the card that the configs describe, the path of the weights, and their dialect.

    Raises:
        WeightsError: the weights are missing, or a config does not fit.
    """
    weights_path = find_weights_file(folder)
    if weights_path is None:
        raise WeightsError("the weights are missing next to the config", where=str(folder), fix=_COPY_FOLDER_FIX)
    config, location = _read_config(folder / CARD_FILE), str(folder / CARD_FILE)
    if "model_type" not in config:
        card = build_card_from_timm_config(config, location)
        return replace(card, origin=f"{folder.name}, a folder of timm"), weights_path, "timm"
    card = build_card_from_config(config, location)
    preparation, notes = _read_preparation(folder, card)
    origin = f"{folder.name}, a folder of transformers"
    return replace(card, preparation=preparation, origin=origin, assumed=(*card.assumed, *notes)), weights_path, "hf"


def build_card_from_config(config: dict[str, Any], location: str) -> Card:
    """Return the card for a config of transformers.

    Args:
        config: The content of ``config.json``.
        location: The file or class, for errors.
    """
    spec, classes = _parse_spec(config, location), _parse_classes(config)
    card = make_card(find_catalog_name(spec), spec, classes if len(classes) == len(set(classes)) else ())
    return replace(card, origin=f"a model of transformers ({location})", assumed=("norms have epsilon 1e-05",))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = parse_json(read_text(path, "this config"), str(path))
    except UsageError as error:
        raise WeightsError(error.what, where=[str(path), *error.where]) from None
    if not isinstance(config, dict):
        raise WeightsError("this config is not a table", where=str(path))
    return config


def _parse_spec(config: dict[str, Any], location: str) -> Network:
    model_type = config.get("model_type")
    if model_type != "resnet":
        message = f"the model type is {str(model_type)[:40]!r}, not resnet"
        raise WeightsError(message, where=location, fix=_RESNETS_ONLY_FIX)
    kwargs: ConstructorArgs = {"layer_type": "bottleneck", "num_channels": 3, "embedding_size": 64, **config}
    id2label = config.get("id2label")
    kwargs["num_labels"] = len(id2label) if isinstance(id2label, dict) else config.get("num_labels", 2)
    is_valid = (
        all(type(kwargs[name]) is int for name in (*_INT_KEYS, "num_labels"))
        and all(isinstance(kwargs.get(name), list) and all(type(n) is int for n in kwargs[name]) for name in _LIST_KEYS)
        and 0 < len(kwargs["depths"]) == len(kwargs["hidden_sizes"]) <= _MAX_STAGES
        and kwargs["layer_type"] in ("basic", "bottleneck")
        and all(type(kwargs.get(name, False)) is bool for name in _BOOL_KEYS)
    )
    if kwargs.get("hidden_act", "relu") != "relu":
        message = f"this network uses {str(kwargs['hidden_act'])[:40]!r} in some places and ReLU in others"
        raise WeightsError(message, where=location, fix=_RESNETS_ONLY_FIX)
    spec = build_hugging_face_spec(kwargs) if is_valid else None
    faults = find_spec_faults(spec) if spec is not None else [*_LIST_KEYS, "layer_type", *_BOOL_KEYS, *_INT_KEYS]
    if spec is None or faults:
        details = ", ".join(map(str, faults if spec is None else faults[:1]))
        raise WeightsError(f"this config does not describe a network: {details}", where=location, fix=_COPY_FOLDER_FIX)
    return spec


def _parse_classes(config: dict[str, Any]) -> tuple[str, ...]:
    """Return the class names in ``id2label``; none if it only numbers the classes (``LABEL_0``)."""
    id2label = config.get("id2label")
    if not isinstance(id2label, dict):
        return ()
    names = [id2label.get(str(i)) for i in range(len(id2label))]
    are_valid = all(isinstance(name, str) and name and name.isprintable() for name in names)
    return () if not are_valid or all(name == f"LABEL_{i}" for i, name in enumerate(names)) else tuple(map(str, names))


def _read_preparation(folder: Path, card: Card) -> tuple[Preparation, tuple[str, ...]]:
    """Return the preparation that the config describes, and a note for each option that is ignored."""
    if not (folder / PREPROCESSOR_FILE).is_file():
        return card.preparation, ("images are prepared in the usual way for ImageNet",)
    config = _read_config(folder / PREPROCESSOR_FILE)
    size, crop_ratio = config.get("size"), config.get("crop_pct") or 0.875
    side = size.get("shortest_edge", size.get("height", 224)) if isinstance(size, dict) else size
    mean, std = _parse_floats(config.get("image_mean")), _parse_floats(config.get("image_std"))
    preparation = None
    if type(side) is int and 0 < side <= _MAX_VALUE and isinstance(crop_ratio, float | int) and 0.01 <= crop_ratio <= 1:
        preparation = Preparation(int(side / crop_ratio), (side, side), mean, std)
    if preparation is None or find_preparation_faults(preparation, card.spec.input[0]):
        message, location = "this config does not describe a preparation of images", str(folder / PREPROCESSOR_FILE)
        raise WeightsError(message, where=location, fix=_COPY_FOLDER_FIX)
    ignored = _find_ignored_options(config, preparation.crop[0])
    return preparation, tuple(f"the option {name} of the preprocessor config is ignored" for name in ignored)


def _find_ignored_options(config: dict[str, Any], side: int) -> list[str]:
    """Return the options of the config that have no effect on the preparation."""
    switches = ("do_resize", "do_rescale", "do_normalize", "do_center_crop")
    defaults = {"resample": _BILINEAR, **dict.fromkeys(switches, True)}
    ignored = [name for name, value in defaults.items() if config.get(name, value) != value]
    size = config.get("size")
    checks = {
        "rescale_factor": config.get("rescale_factor", 1 / 255) != 1 / 255,
        "size": side >= MIN_SQUEEZED_SIDE or (isinstance(size, dict) and "shortest_edge" not in size),
        "crop_size": "crop_size" in config,
    }
    return ignored + [name for name, is_ignored in checks.items() if is_ignored]


def _parse_floats(value: Any) -> tuple[float, ...]:
    is_valid = isinstance(value, list) and all(type(n) in (int, float) and abs(n) < _MAX_VALUE for n in value)
    return tuple(map(float, value)) if is_valid else ()


def build_hugging_face_config(kwargs: ConstructorArgs, card: Card) -> ConstructorArgs:
    """Return the content of ``config.json``.

    Args:
        kwargs: The arguments of the constructor of transformers.
        card: The card of the network.
    """
    classes = card.classes or tuple(f"LABEL_{i}" for i in range(kwargs["num_labels"]))
    config = {key: value for key, value in kwargs.items() if key not in ("family", "num_labels")}
    return config | {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "id2label": {str(i): name for i, name in enumerate(classes)},
        "label2id": {name: i for i, name in enumerate(classes)},
    }


def build_preprocessor_config(preparation: Preparation) -> ConstructorArgs:
    """Return ``preprocessor_config.json``: resize to ``shortest_edge / crop_pct``, crop the center."""
    return {
        "image_processor_type": "ConvNextImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": max(preparation.crop)},
        "crop_pct": max(preparation.crop) / (preparation.resize + 0.5),  # transformers truncates to an integer
        "resample": _BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preparation.mean),
        "image_std": list(preparation.std),
    }
