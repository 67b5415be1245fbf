"""Out again: to a file of another library, or to its live model."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from resnetkit import files
from resnetkit.architecture.card import CARD_FILE, WEIGHTS_FILE
from resnetkit.errors import MachineError, UsageError, VerificationError, suggestion
from resnetkit.network.layers import Network
from resnetkit.weights.constructor_args import LIBRARIES, Library, Words, expressed
from resnetkit.weights.dialects import ALIASES, table_for
from resnetkit.weights.hugging_face import IMAGES_FILE, SQUEEZED, config_of, images_of
from resnetkit.weights.load import load, save
from resnetkit.weights.read import read_tensors
from resnetkit.weights.recognize import OWN


def convert(model: str | os.PathLike[str] | Network, to: str, path: str | Path) -> Path:
    """Write a model as ``torchvision``, ``timm``, ``kuangliu`` or ``akamaster`` would have it: a ``.safetensors`` file.

    For ``hf`` it is a folder that ``from_pretrained`` takes: weights, config and the preparation of images; for
    ``resnetkit`` a model folder. What is written is read again and compared bit by bit. Raises `UsageError` where the
    library cannot express the network.
    """
    network = model if isinstance(model, Network) else load(model)
    path, to = Path(path), ALIASES.get(to, to)
    _require_free(path, to)
    if to == OWN:
        save(network, path)
        _prove(path / WEIGHTS_FILE, translated(network, to))
        return path
    words, tensors = expressed(network.card.spec, _library(to)), translated(network, to)
    content = to_bytes(tensors, {"format": "pt"})
    if to == "hf":
        with files.new_folder(path) as part:
            (part / WEIGHTS_FILE).write_bytes(content)
            (part / CARD_FILE).write_text(json.dumps(config_of(words, network.card), indent=2) + "\n")
            (part / IMAGES_FILE).write_text(json.dumps(images_of(network.card.preparation), indent=2) + "\n")
    else:
        files.write_bytes(path, content)
    _prove(path / WEIGHTS_FILE if to == "hf" else path, tensors)
    return path


def translated(network: Network, to: str) -> dict[str, Tensor]:
    """The tensors by the names of another library."""
    to = ALIASES.get(to, to)
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    if to == OWN:
        return state
    table = table_for(to, network.card.spec)
    return {table.theirs(key): _as_there(value, key in table.as_conv) for key, value in state.items()}


def _as_there(value: Tensor, as_conv: bool) -> Tensor:
    return value[:, :, None, None] if as_conv else value


def as_module(model: str | os.PathLike[str] | Network, library: str) -> nn.Module:
    """A live model of ``torchvision``, ``timm`` or ``transformers`` with these weights, in the mode of ours.

    The library is imported now; raises `MachineError` where it is not installed, `UsageError` where it cannot express
    the network.
    """
    library = "transformers" if library == "hf" else library
    if library not in _MAKERS:
        raise UsageError(f"no live model of {library!r} is made here", fix=suggestion(library, list(_MAKERS)))
    network = model if isinstance(model, Network) else load(model)
    dialect, make = _MAKERS[library]
    made: nn.Module = make(expressed(network.card.spec, _library(dialect)))
    made.load_state_dict(translated(network, dialect))
    return made.train(network.training)


def _library(name: str) -> tuple[Library, ...]:
    if name not in LIBRARIES:
        what = f"there is no dialect called {name!r} to write"
        raise UsageError(what, where="--to", fix=suggestion(name, [*LIBRARIES, OWN]))
    return LIBRARIES[name]


def _require_free(path: Path, to: str) -> None:
    if to != OWN:
        _library(to)
    if to not in (OWN, "hf") and path.suffix != ".safetensors":
        raise UsageError(
            "weights are written as .safetensors", where=str(path), fix=f"call it {path.with_suffix('.safetensors')}"
        )
    if path.exists():
        raise UsageError("this exists already", where=str(path), fix="name another, or remove it")


def _prove(path: Path, tensors: dict[str, Tensor]) -> None:
    """Read what was written."""
    again, _ = read_tensors(path)
    wrong = [key for key in tensors.keys() | again.keys() if key not in again or not _same(again[key], tensors[key])]
    if wrong:
        shutil.rmtree(path.parent) if path.name == WEIGHTS_FILE else path.unlink()
        raise VerificationError(f"{len(wrong)} tensors were not written as they are", where=wrong[:3])


def _same(a: Tensor, b: Tensor) -> bool:
    """Bit by bit."""
    bits = [value.reshape(-1).view(torch.uint8) for value in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)


def left_behind(network: Network, to: str) -> str:
    """What of the card does not travel in a file of this library, in a sentence; empty where all of it does."""
    to = ALIASES.get(to, to)
    how, card = network.card.preparation, network.card
    if to == OWN:
        return ""
    if to != "hf":
        return "the file holds no names of classes, and does not say how images are prepared"
    kept = how.crop[0] == how.crop[1] < SQUEEZED and len(how.mean) == 3
    lost = ["how images are prepared here"] * (not kept) + ["the names of classes"] * (not card.classes)
    return f"the folder says nothing of {' and '.join(lost)}" if lost else ""


# ------------------------------------------------------------------------------------------------------- live models


def _imported(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MachineError(f"{package} is not installed", fix=f"pip install {package}") from None


def _torchvision(words: Words) -> Any:
    if words["family"] == "vgg":
        vgg = _imported("torchvision.models.vgg", "torchvision")
        features = vgg.make_layers(words["cfg"], words["batch_norm"])
        return vgg.VGG(features, words["num_classes"], dropout=words["dropout"])
    theirs = _imported("torchvision.models.resnet", "torchvision")
    return theirs.ResNet(**_without(words, "block"), block=_block(theirs, words))


def _timm(words: Words) -> Any:
    if words["family"] == "resnetv2":
        theirs, layers = _imported("timm.models.resnetv2", "timm"), _imported("timm.layers", "timm")
        return theirs.ResNetV2(**_without(words), norm_layer=layers.BatchNormAct2d, conv_layer=layers.create_conv2d)
    theirs, attention = _imported("timm.models.resnet", "timm"), words["attention"]
    blur = _imported("timm.layers", "timm").BlurPool2d if words["blur"] else None
    rest = _without(words, "block", "attention", "blur")
    args = {"attn_layer": attention} if attention else None
    return theirs.ResNet(**rest, block=_block(theirs, words), aa_layer=blur, block_args=args)


def _block(theirs: Any, words: Words) -> Any:
    return {"basic": theirs.BasicBlock, "bottleneck": theirs.Bottleneck}[words["block"]]


def _without(words: Words, *names: str) -> Words:
    return {key: value for key, value in words.items() if key not in ("family", *names)}


def _transformers(words: Words) -> Any:
    theirs = _imported("transformers", "transformers")
    return theirs.ResNetForImageClassification(theirs.ResNetConfig(**_without(words)))


_MAKERS: dict[str, tuple[str, Callable[[Words], Any]]] = {
    "torchvision": ("torchvision", _torchvision),
    "timm": ("timm", _timm),
    "transformers": ("hf", _transformers),
}
