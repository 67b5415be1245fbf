"""A folder of transformers: ``config.json`` says which network, ``preprocessor_config.json`` how images are made.

Both came with weights: what does not fit is a `WeightsError`, and nothing in them names anything to import.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resnetkit.architecture.card import CARD_FILE, Card, Preparation, card_for, preparation_faults
from resnetkit.architecture.rules import faults
from resnetkit.architecture.spec import Network
from resnetkit.errors import UsageError, WeightsError
from resnetkit.text import parse_json, read_text
from resnetkit.weights.libraries import Words, hugging_face_spec
from resnetkit.weights.recognise import row_of

IMAGES_FILE = "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_BILINEAR = 2
_NUMBERS = ("num_channels", "embedding_size")
_LISTS = ("hidden_sizes", "depths")


def read_folder(folder: Path) -> tuple[Card, Path]:
    """The card that the two files come to, and the file with the weights."""
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise WeightsError("the weights are missing beside the config", where=str(folder), fix="copy the whole folder")
    config = _table(folder / CARD_FILE)
    spec = _spec(config, folder / CARD_FILE)
    classes = _classes(config)
    card = card_for(row_of(spec), spec, classes if len(classes) == len(set(classes)) else ())
    prepared, said = _preparation(folder, card)
    origin = f"{folder.name}, a folder of transformers"
    return Card(
        card.name, card.spec, prepared, card.classes, origin, assumed=("norms have epsilon 1e-05", *said)
    ), weights


def _table(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(read_text(path, "this config"), str(path))
    except UsageError as error:
        raise WeightsError(error.what, where=[str(path), *error.where]) from None
    if not isinstance(found, dict):
        raise WeightsError("this config is no table", where=str(path))
    return found


def _spec(config: dict[str, Any], path: Path) -> Network:
    kind = config.get("model_type")
    if kind != "resnet":
        raise WeightsError(f"this folder holds no ResNet, but {str(kind)[:40]!r}", where=str(path))
    words: Words = {"layer_type": "bottleneck", "num_channels": 3, "embedding_size": 64, **config}
    words["num_labels"] = len(config["id2label"]) if isinstance(config.get("id2label"), dict) else 2
    sound = (
        all(type(words[name]) is int for name in _NUMBERS)
        and all(isinstance(words.get(name), list) and all(type(n) is int for n in words[name]) for name in _LISTS)
        and len(words["depths"]) == len(words["hidden_sizes"]) > 0
        and words["layer_type"] in ("basic", "bottleneck")
    )
    spec = hugging_face_spec(words) if sound else None
    wrong = faults(spec) if spec is not None else []
    if spec is None or wrong:
        told = str(wrong[0]) if wrong else "depths, hidden_sizes, layer_type, num_channels or embedding_size"
        raise WeightsError(f"this config describes no network: {told}", where=str(path))
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
    side = size.get("shortest_edge", 224) if isinstance(size, dict) else size
    mean, std = found.get("image_mean"), found.get("image_std")
    if not (isinstance(side, int) and isinstance(share, float | int) and 0 < share <= 1 and 0 < side <= 4096):
        raise WeightsError("this config describes no preparation of images", where=str(folder / IMAGES_FILE))
    made = Preparation(int(side / share), (side, side), _numbers(mean), _numbers(std))
    if preparation_faults(made, card.spec.input[0]):
        raise WeightsError("this config describes no preparation of images", where=str(folder / IMAGES_FILE))
    filtered = found.get("resample", 3) != _BILINEAR
    return made, ("images are resized by a bilinear filter, and the config names another",) * filtered


def _numbers(found: Any) -> tuple[float, ...]:
    sound = isinstance(found, list) and all(isinstance(n, float | int) and not isinstance(n, bool) for n in found)
    return tuple(map(float, found)) if sound else ()
