"""``resnetkit convert``.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from resnetkit.commands.arguments import Argument
from resnetkit.commands.output import log, print_json, print_text, sanitize_line, suggest_next
from resnetkit.commands.weights_options import DEFAULT_WEIGHTS, WeightsOptions, load_with_options


@dataclass(frozen=True)
class Options:
    """Convert weights to the format of another library. The written file is read again and compared bit by bit.

    Examples: resnetkit convert runs/pets-resnet18-1 pets.safetensors --to torchvision; resnetkit convert weights.pth
    pets-hf --to hf
    """

    model: Annotated[str, Argument("MODEL", is_positional=True)]
    """A run folder, a model folder, or a weights file of any library."""
    out: Annotated[str, Argument("OUT", is_positional=True)]
    """The .safetensors file to write; for hf and resnetkit, a folder."""
    to: Annotated[str, Argument("LIBRARY")]
    """The library whose tensor names are used: torchvision, timm, hf (transformers), kuangliu, akamaster, or resnetkit
    for a model folder."""
    json: bool = False
    """Print one JSON document instead of lines."""
    weights: WeightsOptions = DEFAULT_WEIGHTS


def run(options: Options) -> int:
    """Run the command and return its exit code."""
    from resnetkit.weights.convert import convert, describe_losses, translate_tensors

    model = load_with_options(options.model, options.weights)
    path = convert(model, options.to, options.out)
    names = dict(zip(model.state_dict(), translate_tensors(model, options.to), strict=True))
    dropped_note = describe_losses(model, options.to)
    if options.json:
        print_json("convert", model=options.model, out=str(path), to=options.to, tensors=len(names), names=names)
    else:
        print_text(f"wrote {path}: {len(names)} tensors of {model.card.name}, with the names of {options.to}")
        print_text("verified: the file holds the same bits")
    if dropped_note:
        log(f"note: {sanitize_line(dropped_note)}")
    suggest_next("resnetkit evaluate", str(path), "DATA")
    return 0
