"""``resnetkit convert``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from resnetkit.commands.output import loaded, prose, results, then


@dataclass(frozen=True)
class Options:
    """Weights as another library has them. What is written is read again and compared bit by bit.

    Examples: resnetkit convert runs/pets-resnet18-1 pets.safetensors --to torchvision; resnetkit convert weights.pth
    pets-hf --to hf
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, a model folder, or a weights file of any library."""
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The .safetensors file to write; for hf a folder."""
    to: Annotated[str, tyro.conf.arg(metavar="torchvision|timm|hf|kuangliu|akamaster")]
    """Whose names the tensors get; hf is transformers."""
    network: str = ""
    """For a weights file: which network it is of, where that should not be told from the file."""
    dialect: str = ""
    """For a weights file: how its tensors are called, where that should not be told from the file."""
    json: bool = False
    """One JSON document instead of lines."""


def run(options: Options) -> int:
    from resnetkit.weights.convert import convert, translated

    model = loaded(options.model, options.network, options.dialect)
    path = convert(model, options.to, options.out)
    names = dict(zip(model.state_dict(), translated(model, options.to), strict=True))
    renamed = sum(ours != theirs for ours, theirs in names.items())
    if options.json:
        results("convert", model=options.model, out=str(path), to=options.to, tensors=len(names), names=names)
    else:
        prose(f"wrote {path}: {len(names)} tensors of {model.card.name}, {renamed} renamed, none changed")
        prose("read again: bit-equal")
    then("resnetkit evaluate", str(path), "DATA")
    return 0
