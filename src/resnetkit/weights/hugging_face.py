"""A folder of transformers: ``config.json`` says which network, ``preprocessor_config.json`` how images are made.

Both are read and written here. They came with weights: what does not fit is a `WeightsError`, and nothing in them names
anything to import.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from resnetkit.architecture.card import CARD_FILE, Card, Preparation, card_for, preparation_faults
from resnetkit.architecture.catalog import row_of
from resnetkit.architecture.rules import faults
from resnetkit.architecture.spec import Network
from resnetkit.errors import UsageError, WeightsError
from resnetkit.serialization import parse_json, read_text
from resnetkit.weights.constructor_args import Words, hugging_face_spec

IMAGES_FILE = "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_BILINEAR = 2
_NUMBERS = ("num_channels", "embedding_size")
_LISTS = ("hidden_sizes", "depths")
_SWITCHES = ("downsample_in_first_stage", "downsample_in_bottleneck")
_MOST_STAGES, _LARGEST = 64, 4096
SQUEEZED = 384  # from this side on transformers squeezes a picture and cuts nothing
_WHOLE, _RESNETS = "copy the whole folder again", "only ResNets with ReLU are read"


def read_folder(folder: Path) -> tuple[Card, Path]:
    """The card that the two files come to, and the file with the weights."""
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise WeightsError("the weights are missing beside the config", where=str(folder), fix=_WHOLE)
    card = card_of_config(_table(folder / CARD_FILE), str(folder / CARD_FILE))
    prepared, said = _preparation(folder, card)
    origin = f"{folder.name}, a folder of transformers"
    return replace(card, preparation=prepared, origin=origin, assumed=(*card.assumed, *said)), weights


def card_of_config(config: dict[str, Any], where: str) -> Card:
    """The card of what transformers calls a config."""
    spec, classes = _spec(config, where), _classes(config)
    card = card_for(row_of(spec), spec, classes if len(classes) == len(set(classes)) else ())
    return replace(card, origin=f"a model of transformers ({where})", assumed=("norms have epsilon 1e-05",))


def _table(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(read_text(path, "this config"), str(path))
    except UsageError as error:
        raise WeightsError(error.what, where=[str(path), *error.where]) from None
    if not isinstance(found, dict):
        raise WeightsError("this config is no table", where=str(path))
    return found


def _spec(config: dict[str, Any], where: str) -> Network:
    kind = config.get("model_type")
    if kind != "resnet":
        raise WeightsError(f"this folder holds no ResNet, but {str(kind)[:40]!r}", where=where, fix=_RESNETS)
    words: Words = {"layer_type": "bottleneck", "num_channels": 3, "embedding_size": 64, **config}
    named = config.get("id2label")
    words["num_labels"] = len(named) if isinstance(named, dict) else config.get("num_labels", 2)
    sound = (
        all(type(words[name]) is int for name in (*_NUMBERS, "num_labels"))
        and all(isinstance(words.get(name), list) and all(type(n) is int for n in words[name]) for name in _LISTS)
        and 0 < len(words["depths"]) == len(words["hidden_sizes"]) <= _MOST_STAGES
        and words["layer_type"] in ("basic", "bottleneck")
        and all(type(words.get(name, False)) is bool for name in _SWITCHES)
    )
    if words.get("hidden_act", "relu") != "relu":
        what = f"this network activates by {str(words['hidden_act'])[:40]!r} in some places and by ReLU in others"
        raise WeightsError(what, where=where, fix=_RESNETS)
    spec = hugging_face_spec(words) if sound else None
    wrong = faults(spec) if spec is not None else []
    if spec is None or wrong:
        told = str(wrong[0]) if wrong else ", ".join((*_LISTS, "layer_type", *_SWITCHES, *_NUMBERS))
        raise WeightsError(f"this config describes no network: {told}", where=where, fix=_WHOLE)
    return spec


def _classes(config: dict[str, Any]) -> tuple[str, ...]:
    """The names in the order of their numbers; none where they are only numbered."""
    named = config.get("id2label")
    if not isinstance(named, dict):
        return ()
    names = [named.get(str(i)) for i in range(len(named))]
    plain = all(isinstance(name, str) and name and name.isprintable() for name in names)
    return () if not plain or all(name == f"LABEL_{i}" for i, name in enumerate(names)) else tuple(map(str, names))


def _preparation(folder: Path, card: Card) -> tuple[Preparation, tuple[str, ...]]:
    """As the images' config says, and what is not done so."""
    if not (folder / IMAGES_FILE).is_file():
        return card.preparation, ("images are prepared as ImageNet's usually are",)
    found = _table(folder / IMAGES_FILE)
    size, share = found.get("size"), found.get("crop_pct") or 0.875
    side = size.get("shortest_edge", size.get("height", 224)) if isinstance(size, dict) else size
    mean, std = _numbers(found.get("image_mean")), _numbers(found.get("image_std"))
    made = None
    if type(side) is int and 0 < side <= _LARGEST and isinstance(share, float | int) and 0.01 <= share <= 1:
        made = Preparation(int(side / share), (side, side), mean, std)
    if made is None or preparation_faults(made, card.spec.input[0]):
        where = str(folder / IMAGES_FILE)
        raise WeightsError("this config describes no preparation of images", where=where, fix=_WHOLE)
    odd = _unheeded(found, made.crop[0])
    return made, tuple(f"images are prepared without heed to the config's {name}" for name in odd)


def _unheeded(found: dict[str, Any], side: int) -> list[str]:
    """What the config asks for and is not done."""
    usual = {"resample": _BILINEAR, "do_resize": True, "do_rescale": True, "do_normalize": True, "do_center_crop": True}
    odd = [name for name, value in usual.items() if found.get(name, value) != value]
    odd += ["rescale_factor"] * (found.get("rescale_factor", 1 / 255) != 1 / 255)
    sizes = found.get("size")
    odd += ["size"] * (side >= SQUEEZED or (isinstance(sizes, dict) and "shortest_edge" not in sizes))
    return odd + ["crop_size"] * ("crop_size" in found)


def _numbers(found: Any) -> tuple[float, ...]:
    sound = isinstance(found, list) and all(type(n) in (int, float) and abs(n) < _LARGEST for n in found)
    return tuple(map(float, found)) if sound else ()


def config_of(words: Words, card: Card) -> Words:
    """``config.json``, from the words of the constructor."""
    classes = card.classes or tuple(f"LABEL_{i}" for i in range(words["num_labels"]))
    config = {key: value for key, value in words.items() if key not in ("family", "num_labels")}
    return config | {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "id2label": {str(i): name for i, name in enumerate(classes)},
        "label2id": {name: i for i, name in enumerate(classes)},
    }


def images_of(how: Preparation) -> Words:
    """``preprocessor_config.json``: transformers resizes to ``shortest_edge / crop_pct`` and takes the centre."""
    return {
        "image_processor_type": "ConvNextImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": max(how.crop)},
        "crop_pct": max(how.crop) / (how.resize + 0.5),  # transformers cuts off what is behind the point
        "resample": _BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(how.mean),
        "image_std": list(how.std),
    }
