"""``resnetkit modify``.

This module imports no torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from resnetkit.commands.arguments import Argument
from resnetkit.commands.output import print_json, print_text, suggest_next
from resnetkit.commands.weights_options import WeightsOptions, load_with_options
from resnetkit.errors import ImageError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from resnetkit.network.layers import NetworkModule
    from resnetkit.network.report import TensorReport
    from resnetkit.surgery.transfer import EditResult

_MAX_IMAGES = 64


@dataclass(frozen=True)
class Options:
    """Edit a trained network, report what happened to each tensor, and verify the result.

    The edits are applied in the order below. Examples: resnetkit modify runs/pets-resnet18-1 gray --input-channels 1;
    resnetkit modify weights.pth backbone --dilate 8 --features 2,4; resnetkit modify model/ wider --widen stage4=768
    --insert stage3.block2=1
    """

    model: Annotated[str, Argument("MODEL", is_positional=True)]
    """A run folder, a model folder, or a weights file of any library."""
    out: Annotated[str, Argument("OUT", is_positional=True)]
    """The model folder to write."""
    remove: Annotated[str, Argument("PATHS")] = ""
    """Remove blocks and stages: stage3.block5,stage4."""
    insert: Annotated[str, Argument("BLOCK=N")] = ""
    """Insert N blocks after this block; they start as the identity: stage3.block2=1."""
    deepen: Annotated[str, Argument("BLOCKS")] = ""
    """Set the number of blocks in each stage: 3,8,36,3; new blocks start as the identity."""
    widen: Annotated[str, Argument("STAGE=WIDTH")] = ""
    """Widen the branches of a stage without changing the outputs: stage4=768."""
    prune: Annotated[str, Argument("FRACTION")] = ""
    """Keep this fraction of the branch channels, the strongest ones: 0.5, or stage4=0.5."""
    shortcuts: Annotated[str, Argument("A|B|C|D|none")] = ""
    """Replace the shortcuts by an option of the ResNet paper, or D (pooled)."""
    stem: Annotated[str, Argument("imagenet|cifar|deep")] = ""
    """Replace the stem."""
    restride: Annotated[str, Argument("PATH=STRIDE")] = ""
    """Change a stride: stage4=1, stem.pool=1."""
    dilate: Annotated[str, Argument("STRIDE|STAGES")] = ""
    """Replace strides by dilation (a trous): down to this output stride (8 or 16), or in these stages
    (stage3,stage4)."""
    input_channels: int | None = None
    """Change the number of image channels: 1 for grayscale."""
    new_channels: Literal["zero", "mean", "cyclic"] = "zero"
    """How to initialize the weights of new input channels."""
    classes: Annotated[str, Argument("NAMES|NUMBER")] = ""
    """Replace the classes: cat,dog,owl or 10; classes with the same name keep their weights."""
    head: Annotated[str, Argument("pooled|none")] = ""
    """Remove the classifier: output the pooled features, or the last feature map."""
    cut: Annotated[str, Argument("PATH")] = ""
    """Cut the network after a stage or block: stage3."""
    features: Annotated[str, Argument("STAGES")] = ""
    """Make a backbone that outputs the feature maps of these stages: 2,3,4."""
    group_norm: Annotated[int | None, Argument("GROUPS")] = None
    """Replace batch norms by group norms, fitted on the images of --images."""
    images: Annotated[str, Argument("FILES")] = ""
    """An image, or a folder of images of which up to 64 are used."""
    fold_norms: bool = False
    """Fold batch norms into the convolutions before them."""
    network: Annotated[str, Argument("NAME")] = ""
    """The network of the weights, if the file does not identify it."""
    dialect: Annotated[str, Argument("NAME")] = ""
    """The library whose tensor names the weights use, if the file does not identify it."""
    state_dict: Annotated[str, Argument("NAME")] = ""
    """The table or the prefix of the tensors, if a file holds several networks."""
    json: bool = False
    """Print one JSON document instead of lines."""


Edit = Callable[["NetworkModule"], "EditResult"]


def run(options: Options) -> int:
    """Run the command and return its exit code.

    Raises:
        UsageError: No edit is given, an edit is not possible, or the output folder exists.
    """
    from resnetkit.weights.save import check_new_path, save

    edits = list(_build_edits(options))
    _check_unused_options(options)
    if not edits:
        raise UsageError("no edit is given", where="resnetkit modify", fix="--dilate 8, or another edit")
    check_new_path(Path(options.out))
    model = load_with_options(options.model, WeightsOptions(options.network, options.dialect, options.state_dict))
    new_model, reports = _apply_edits(model, edits)
    path, params, macs = save(new_model, options.out), new_model.plan.params, new_model.plan.macs
    if options.json:
        records = [{"edit": name, **_build_report_record(report)} for name, report in reports]
        print_json("modify", model=options.model, out=str(path), params=params, macs=macs, edits=records)
    else:
        for name, report in reports:
            print_text(f"--{name}: {report}")
        print_text(f"wrote {path}: {params:,} params, {macs:,} MACs")
    suggest_next("resnetkit explain", str(path))
    return 0


def _check_unused_options(options: Options) -> None:
    """Check that no option belongs to an edit that is not given."""
    has_new_channels = options.new_channels != "zero"
    dependent_options = [
        ("--images", options.images, "--group-norm", options.group_norm),
        ("--new-channels", has_new_channels, "--input-channels", options.input_channels),
    ]
    for name, value, edit_name, edit_value in dependent_options:
        if value and edit_value is None:
            message = f"{name} has no effect without {edit_name}"
            raise UsageError(message, where="resnetkit modify", fix=f"add {edit_name}, or remove {name}")


def _apply_edits(
    model: NetworkModule, edits: list[tuple[str, Edit]]
) -> tuple[NetworkModule, list[tuple[str, TensorReport]]]:
    """Apply all edits in turn, or none; the errors of all edits are reported together."""
    errors, reports = [], []
    for name, edit in edits:
        try:
            model, report = edit(model)
            reports.append((name, report))
        except UsageError as error:
            errors.append((name, error))
    if len(errors) == 1:
        raise errors[0][1]
    if errors:
        locations = [f"--{name}: {error.what}; {'; '.join(error.where)}".rstrip("; ") for name, error in errors]
        fixes = dict.fromkeys(f"--{name}: {error.fix}" for name, error in errors if error.fix)
        raise UsageError(f"{len(errors)} edits are not possible", where=locations, fix="; ".join(fixes))
    return model, reports


def _build_report_record(report: TensorReport) -> dict[str, Any]:
    tensors = {name: getattr(report, name) for name in ("kept", "renamed", "adapted", "initialized", "dropped")}
    verifications = [asdict(item) | {"reason": item.reason or None} for item in report.verifications]
    return {**tensors, "notes": report.notes, "verifications": verifications}


# -------------------------------------------------------------------------------------------------- options to edits


def _build_edits(options: Options) -> Iterator[tuple[str, Edit]]:
    """Yield the name and function of each edit that is given, in the order in which they are applied."""
    for name, build_edit in EDIT_BUILDERS.items():
        value = getattr(options, name)
        if value is not None and value is not False and value != "":
            yield name.replace("_", "-"), build_edit(value, options)


def _make_edit(name: str, *args: Any, **kwargs: Any) -> Edit:
    """Return a call of a function of `resnetkit.surgery`, which is imported only by the call."""

    def edit(model: NetworkModule) -> EditResult:
        from resnetkit import surgery

        edited: EditResult = getattr(surgery, name)(model, *args, **kwargs)
        return edited

    return edit


def _split_list(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _parse_pairs(option: str, text: str) -> list[tuple[str, str]]:
    """Parse ``stage4=1,stage3=2``."""
    pairs = [item.partition("=") for item in _split_list(text) or [text]]
    invalid = ["".join(pair) for pair in pairs if not all(pair)]
    if invalid:
        raise UsageError(f"invalid value for --{option}: {invalid[0]!r}", where=f"--{option}", fix="use PATH=NUMBER")
    return [(target, value) for target, _, value in pairs]


def _parse_number(option: str, text: str, number_type: type[int] | type[float] = int) -> Any:
    try:
        return number_type(text)
    except ValueError:
        fix = f"use {'a whole number' if number_type is int else 'a number'}"
        raise UsageError(f"invalid value for --{option}: {text[:40]!r}", where=f"--{option}", fix=fix) from None


def _chain_edits(edits: list[tuple[str, Edit]]) -> Edit:
    """Return the same kind of edit at several paths as one edit with one report."""

    def edit(model: NetworkModule) -> EditResult:
        model, reports = _apply_edits(model, edits)
        return model, functools.reduce(lambda first, second: first.combine(second), [report for _, report in reports])

    return edit


def _make_path_edits(name: str, text: str) -> Edit:
    pairs = [(path, _parse_number(name, value)) for path, value in _parse_pairs(name, text)]
    return _chain_edits([(f"{name} {path}={value}", _make_edit(name, path, value)) for path, value in pairs])


def _make_prune_edit(text: str) -> Edit:
    if "=" not in text:
        return _make_edit("prune", _parse_number("prune", text, float))
    pairs = [(stage, _parse_number("prune", value, float)) for stage, value in _parse_pairs("prune", text)]
    edits = [(f"prune {stage}={value:g}", _make_edit("prune", value, stages=stage)) for stage, value in pairs]
    return _chain_edits(edits)


def _make_dilate_edit(text: str) -> Edit:
    if text.isdecimal():
        return _make_edit("dilate", _parse_number("dilate", text))
    return _make_edit("dilate", stages=_split_list(text))


def _make_classes_edit(text: str) -> Edit:
    is_count = text.strip().lstrip("+-").isdecimal()
    return _make_edit("classes", _parse_number("classes", text) if is_count else _split_list(text))


def _make_group_norm_edit(groups: int, images: str) -> Edit:
    if not images:
        raise UsageError("--group-norm needs images to fit the norms on", where="--group-norm", fix="--images FOLDER")

    def edit(model: NetworkModule) -> EditResult:
        from resnetkit import surgery

        return surgery.group_norm(model, _load_images(model, images), groups)

    return edit


def _load_images(model: NetworkModule, images: str) -> Tensor:
    """Load images as network inputs (N, C, H, W), evenly spread over a folder."""
    import numpy as np
    import torch

    from resnetkit.network.inference import PixelNormalizer
    from resnetkit.prediction.inputs import expand_inputs
    from resnetkit.prediction.pipeline import run_pipeline
    from resnetkit.runtime.distributed import count_cores

    preparation, files = model.card.preparation, expand_inputs([images])
    selected = files[:: max(1, len(files) // _MAX_IMAGES)][:_MAX_IMAGES]
    batches = run_pipeline(selected, preparation, lambda pixels: pixels, 1, count_cores())
    pixels = []
    for _, result in [row for batch in batches for row in batch]:
        if isinstance(result, ImageError):
            raise result
        pixels.append(result)
    return PixelNormalizer(preparation, torch.device("cpu"))(torch.from_numpy(np.stack(pixels)))


EDIT_BUILDERS: dict[str, Callable[[Any, Options], Edit]] = {
    "remove": lambda text, _: _make_edit("remove", *_split_list(text)),
    "insert": lambda text, _: _make_path_edits("insert", text),
    "deepen": lambda text, _: _make_edit("deepen", [_parse_number("deepen", item) for item in _split_list(text)]),
    "widen": lambda text, _: _make_path_edits("widen", text),
    "prune": lambda text, _: _make_prune_edit(text),
    "shortcuts": lambda text, _: _make_edit("shortcuts", text),
    "stem": lambda text, _: _make_edit("stem", text),
    "restride": lambda text, _: _make_path_edits("restride", text),
    "dilate": lambda text, _: _make_dilate_edit(text),
    "input_channels": lambda count, options: _make_edit("input_channels", count, method=options.new_channels),
    "classes": lambda text, _: _make_classes_edit(text),
    "head": lambda text, _: _make_edit("head", text),
    "cut": lambda text, _: _make_edit("cut", text),
    "features": lambda text, _: _make_edit("features", _split_list(text)),
    "group_norm": lambda groups, options: _make_group_norm_edit(groups, options.images),
    "fold_norms": lambda _, __: _make_edit("fold_norms"),
}
