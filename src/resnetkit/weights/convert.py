"""Convert a network to a file or a live model of another library."""

from __future__ import annotations

import copy
import importlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from resnetkit import files
from resnetkit.architecture.card import CARD_FILE, WEIGHTS_FILE
from resnetkit.errors import MachineError, UsageError, VerificationError, suggest_fix
from resnetkit.network.compare import measure_difference, select_output_limit
from resnetkit.network.layers import NetworkModule
from resnetkit.weights import hugging_face
from resnetkit.weights.constructor_args import LIBRARIES, ConstructorArgs, Library, build_constructor_args
from resnetkit.weights.dialects import ALIASES, select_table
from resnetkit.weights.load import load_network
from resnetkit.weights.read import read_tensors
from resnetkit.weights.recognize import OWN_DIALECT
from resnetkit.weights.save import check_new_path, collect_tensors, is_identical, save


def convert(model: str | os.PathLike[str] | NetworkModule, to: str, path: str | Path) -> Path:
    """Write a model in the dialect of another library and return the path.

    The written tensors are read again and compared bit by bit.

    Args:
        model: A network of resnetkit, or anything that `load_network` takes.
        to: ``torchvision``, ``timm``, ``kuangliu`` or ``akamaster`` for a ``.safetensors`` file; ``hf`` for a folder
            for ``from_pretrained``; ``resnetkit`` for a model folder.
        path: The new file or folder. Raises `UsageError` if it exists, or if the library cannot express the network.
    """
    network = load_network(model)
    path, to = Path(path), ALIASES.get(to, to)
    _check_target(path, to)
    if to == OWN_DIALECT:
        return save(network, path)
    kwargs, tensors = build_constructor_args(network.card.spec, _get_library(to)), translate_tensors(network, to)
    content = to_bytes(tensors, {"format": "pt"})
    if to == "hf":
        configs = {
            CARD_FILE: hugging_face.build_hugging_face_config(kwargs, network.card),
            hugging_face.PREPROCESSOR_FILE: hugging_face.build_preprocessor_config(network.card.preparation),
        }
        with files.atomic_write_folder(path) as partial_folder:
            (partial_folder / WEIGHTS_FILE).write_bytes(content)
            for name, config in configs.items():
                (partial_folder / name).write_text(json.dumps(config, indent=2) + "\n")
    else:
        files.write_bytes(path, content)
    _verify_written(path / WEIGHTS_FILE if to == "hf" else path, tensors)
    return path


def translate_tensors(network: NetworkModule, to: str) -> dict[str, Tensor]:
    """Return the tensors by the names and in the layout of another library.

    Args:
        network: The network.
        to: The dialect.
    """
    to = ALIASES.get(to, to)
    state = collect_tensors(network)[1]
    if to == OWN_DIALECT:
        return state
    table = select_table(to, network.card.spec)
    return {
        table.to_theirs(key): value[:, :, None, None] if key in table.conv_keys else value
        for key, value in state.items()
    }


def as_module(model: str | os.PathLike[str] | NetworkModule, library: str) -> nn.Module:
    """Return a live model of another library with the same weights and mode.

    Raises `MachineError` if the library is not installed.

    Args:
        model: A network of resnetkit, or anything that `load_network` takes.
        library: ``torchvision``, ``timm`` or ``transformers``.

    Raises:
        UsageError: the library is unknown, or cannot express the network.
        VerificationError: the outputs of the two differ.
    """
    library = "transformers" if library == "hf" else library
    if library not in _MODULE_BUILDERS:
        fix = suggest_fix(library, list(_MODULE_BUILDERS))
        raise UsageError(f"resnetkit cannot build models of {library!r}", where="library", fix=fix)
    network = load_network(model)
    dialect, build_module = _MODULE_BUILDERS[library]
    module: nn.Module = build_module(build_constructor_args(network.card.spec, _get_library(dialect)))
    module.load_state_dict(translate_tensors(network, dialect))
    difference, limit = measure_difference(module, copy.deepcopy(network)), select_output_limit(network)
    if difference > limit:
        message = (
            f"the outputs of the {library} model differ by {difference:.2g} (limit {limit:g}), so it is not returned"
        )
        raise VerificationError(message, where=network.card.name, fix="report this as a bug")
    return module.train(network.training)


def _get_library(name: str) -> tuple[Library, ...]:
    if name not in LIBRARIES:
        fix = suggest_fix(name, [*LIBRARIES, OWN_DIALECT])
        raise UsageError(f"resnetkit cannot write the dialect {name!r}", where="--to", fix=fix)
    return LIBRARIES[name]


def _check_target(path: Path, to: str) -> None:
    if to != OWN_DIALECT:
        _get_library(to)
    if to not in (OWN_DIALECT, "hf") and path.suffix != ".safetensors":
        fix = f"name it {path.with_suffix('.safetensors')}"
        raise UsageError("the name of a weights file must end in .safetensors", where=str(path), fix=fix)
    check_new_path(path)


def _verify_written(path: Path, tensors: dict[str, Tensor]) -> None:
    """Read the written tensors and compare them; if they differ, remove them."""
    written = read_tensors(path).tensors
    wrong_keys = [
        key
        for key in tensors.keys() | written.keys()
        if key not in written or not is_identical(written[key], tensors[key])
    ]
    if wrong_keys:
        shutil.rmtree(path.parent) if path.name == WEIGHTS_FILE else path.unlink()
        raise VerificationError(f"{len(wrong_keys)} written tensors differ from the network's", where=wrong_keys[:3])


def describe_losses(network: NetworkModule, to: str) -> str:
    """Return in a sentence what a file of this library cannot hold of the card; empty if nothing.

    Args:
        network: The network.
        to: The dialect.
    """
    to = ALIASES.get(to, to)
    preparation, card = network.card.preparation, network.card
    if to == OWN_DIALECT:
        return ""
    if to != "hf":
        return "the file does not hold the class names and the preparation of images"
    height, width = preparation.crop
    keeps_preparation = height == width < hugging_face.MIN_SQUEEZED_SIDE and len(preparation.mean) == 3
    parts = {"this preparation of images": keeps_preparation, "class names": card.classes}
    losses = " and ".join(part for part, is_kept in parts.items() if not is_kept)
    return f"the folder does not hold {losses}" if losses else ""


# ------------------------------------------------------------------------------------------------------- live models


def _import_module(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MachineError(f"{package} is not installed", fix=f"pip install {package}") from None


def _build_torchvision(kwargs: ConstructorArgs) -> Any:
    module = _import_module(f"torchvision.models.{kwargs['family']}", "torchvision")
    if kwargs["family"] == "vgg":
        features = module.make_layers(kwargs["cfg"], kwargs["batch_norm"])
        return module.VGG(features, kwargs["num_classes"], dropout=kwargs["dropout"])
    return module.ResNet(**_drop_keys(kwargs, "block"), block=_select_block(module, kwargs))


def _build_timm(kwargs: ConstructorArgs) -> Any:
    module = _import_module(f"timm.models.{kwargs['family']}", "timm")
    layers = _import_module("timm.layers", "timm")
    if kwargs["family"] == "resnetv2":
        return module.ResNetV2(**_drop_keys(kwargs), norm_layer=layers.BatchNormAct2d, conv_layer=layers.create_conv2d)
    blur, attention = {0: None, 2: nn.AvgPool2d, 3: layers.BlurPool2d}[kwargs["blur"]], kwargs["attention"]
    model_args = _drop_keys(kwargs, "block", "attention", "blur")
    block_args = {"attn_layer": attention} if attention else None
    return module.ResNet(**model_args, block=_select_block(module, kwargs), aa_layer=blur, block_args=block_args)


def _select_block(module: Any, kwargs: ConstructorArgs) -> Any:
    return {"basic": module.BasicBlock, "bottleneck": module.Bottleneck}[kwargs["block"]]


def _drop_keys(kwargs: ConstructorArgs, *names: str) -> ConstructorArgs:
    return {key: value for key, value in kwargs.items() if key not in ("family", *names)}


def _build_transformers(kwargs: ConstructorArgs) -> Any:
    module = _import_module("transformers", "transformers")
    return module.ResNetForImageClassification(module.ResNetConfig(**_drop_keys(kwargs)))


_MODULE_BUILDERS: dict[str, tuple[str, Callable[[ConstructorArgs], Any]]] = {
    "torchvision": ("torchvision", _build_torchvision),
    "timm": ("timm", _build_timm),
    "transformers": ("hf", _build_transformers),
}
