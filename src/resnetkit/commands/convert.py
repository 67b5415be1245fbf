"""``resnetkit convert``.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from resnetkit.commands.output import log, print_json, print_text, suggest_next, truncate
from resnetkit.commands.weights_options import DEFAULT_WEIGHTS, WeightsOptions, load_with_options


@dataclass(frozen=True)
class Options:
    """Weights as another library has them. What is written is read again and compared bit by bit.

    Examples: resnetkit convert runs/pets-resnet18-1 pets.safetensors --to torchvision; resnetkit convert weights.pth
    pets-hf --to hf
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, a model folder, or a weights file of any library."""
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The .safetensors file to write; for hf and resnetkit a folder."""
    to: Annotated[str, tyro.conf.arg(metavar="torchvision|timm|hf|kuangliu|akamaster|resnetkit")]
    """Whose names the tensors get; hf is transformers, resnetkit a model folder."""
    json: bool = False
    """One JSON document instead of lines."""
    weights: WeightsOptions = DEFAULT_WEIGHTS


def run(options: Options) -> int:
    from resnetkit.weights.convert import convert, describe_losses, translate_tensors

    model = load_with_options(options.model, options.weights)
    path = convert(model, options.to, options.out)
    names = dict(zip(model.state_dict(), translate_tensors(model, options.to), strict=True))
    dropped_note = describe_losses(model, options.to)
    if options.json:
        print_json("convert", model=options.model, out=str(path), to=options.to, tensors=len(names), names=names)
    else:
        print_text(f"wrote {path}: {len(names)} tensors of {model.card.name}, as {options.to} calls them")
        print_text("read again: bit-equal")
    if dropped_note:
        log(f"note: {truncate(dropped_note)}")
    suggest_next("resnetkit evaluate", str(path), "DATA")
    return 0
