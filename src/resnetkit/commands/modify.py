"""``resnetkit modify``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from resnetkit.commands.output import print_json, print_text, suggest_next
from resnetkit.commands.weights_options import WeightsOptions, load_with_options
from resnetkit.errors import ImageError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from resnetkit.network.layers import NetworkModule
    from resnetkit.network.report import TensorReport
    from resnetkit.surgery.transfer import EditResult


@dataclass(frozen=True)
class Options:
    """A trained network changed, with a report of every tensor and a proof of what holds. Edits are made in this order.

    Examples: resnetkit modify runs/pets-resnet18-1 grey --input-channels 1; resnetkit modify weights.pth backbone
    --dilate 8 --features 2,4; resnetkit modify model/ wider --widen stage4=768 --insert stage3.block2=1
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, a model folder, or a weights file of any library."""
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The model folder to write."""
    remove: Annotated[str, tyro.conf.arg(metavar="PLACES")] = ""
    """Leave out blocks and stages: stage3.block5,stage4."""
    insert: Annotated[str, tyro.conf.arg(metavar="BLOCK=N")] = ""
    """N blocks behind one, that start as the identity: stage3.block2=1."""
    deepen: Annotated[str, tyro.conf.arg(metavar="BLOCKS")] = ""
    """As many blocks in each stage: 3,8,36,3; the new ones start as the identity."""
    widen: Annotated[str, tyro.conf.arg(metavar="STAGE=WIDTH")] = ""
    """Wider branches that compute the same: stage4=768."""
    prune: Annotated[str, tyro.conf.arg(metavar="SHARE")] = ""
    """Keep the strongest channels of branches: 0.5, or stage4=0.5."""
    shortcuts: Annotated[str, tyro.conf.arg(metavar="A|B|C|D|none")] = ""
    """Other shortcuts, by the options of the paper; D is pooled."""
    stem: Annotated[str, tyro.conf.arg(metavar="imagenet|cifar|deep")] = ""
    """Another stem."""
    restride: Annotated[str, tyro.conf.arg(metavar="PATH=STRIDE")] = ""
    """Another stride: stage4=1, stem.pool=1."""
    dilate: Annotated[str, tyro.conf.arg(metavar="STRIDE|STAGES")] = ""
    """The output stride, 8 or 16, or stages by name (stage3,stage4): they are dilated instead (a trous)."""
    input_channels: Annotated[int | None, tyro.conf.arg(metavar="NUMBER")] = None
    """So many channels of the image: 1 for grey."""
    new_channels: Literal["zero", "mean", "cyclic"] = "zero"
    """What new channels start as."""
    classes: Annotated[str, tyro.conf.arg(metavar="NAMES|NUMBER")] = ""
    """Another classifier: cat,dog,owl or 10; classes of the same name keep their rows."""
    head: Annotated[str, tyro.conf.arg(metavar="pooled|none")] = ""
    """Without the classifier: the average of the last map, or the map itself."""
    cut: Annotated[str, tyro.conf.arg(metavar="PLACE")] = ""
    """The network up to a stage or block: stage3."""
    features: Annotated[str, tyro.conf.arg(metavar="STAGES")] = ""
    """A backbone that hands on the maps of these stages: 2,3,4."""
    group_norm: Annotated[int | None, tyro.conf.arg(metavar="GROUPS")] = None
    """Group norms in place of batch norms, refitted on the pictures of --images."""
    images: Annotated[str, tyro.conf.arg(metavar="FILES")] = ""
    """A picture or a folder of them, of which up to 64 are taken."""
    fold_norms: bool = False
    """Batch norms made part of the convolutions before them."""
    network: str = ""
    """Which network the weights are of."""
    dialect: str = ""
    """How its tensors are called."""
    json: bool = False
    """One JSON document instead of lines."""


Edit = Callable[["NetworkModule"], "EditResult"]


def run(options: Options) -> int:
    from resnetkit.weights.save import check_new_path, save

    edits = list(_build_edits(options))
    _check_unused_options(options)
    if not edits:
        raise UsageError("nothing is to be changed", where="resnetkit modify", fix="--dilate 8, or another edit")
    check_new_path(Path(options.out))
    model = load_with_options(options.model, WeightsOptions(options.network, options.dialect))
    new_model, reports = _apply_edits(model, edits)
    path = save(new_model, options.out)
    if options.json:
        edit_records = [{"edit": name, **_build_report_record(report)} for name, report in reports]
        print_json(
            "modify",
            model=options.model,
            out=str(path),
            params=new_model.plan.params,
            macs=new_model.plan.macs,
            edits=edit_records,
        )
    else:
        for name, report in reports:
            print_text(f"--{name}: {report}")
        print_text(f"wrote {path}: {new_model.plan.params:,} params, {new_model.plan.macs:,} MACs")
    suggest_next("resnetkit explain", str(path))
    return 0


def _check_unused_options(options: Options) -> None:
    """Raise `UsageError` for what is said of an edit that is not asked for."""
    has_new_channels = options.new_channels != "zero"
    dependent_options = [
        ("--images", options.images, options.group_norm, "--group-norm 32"),
        ("--new-channels", has_new_channels, options.input_channels, "--input-channels 4"),
    ]
    for name, value, edit_value, fix in dependent_options:
        if value and edit_value is None:
            raise UsageError(f"nothing is done with {name}", where="resnetkit modify", fix=f"{fix}, or leave it out")


def _apply_edits(
    model: NetworkModule, edits: list[tuple[str, Edit]]
) -> tuple[NetworkModule, list[tuple[str, TensorReport]]]:
    """One edit after the other; where some cannot be made, none is, and all faults are told at once."""
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
        raise UsageError(f"{len(errors)} of these edits cannot be made", where=locations, fix="; ".join(fixes))
    return model, reports


def _build_report_record(report: TensorReport) -> dict[str, Any]:
    proofs = [
        {"what": p.subject, "figure": p.difference, "limit": p.limit, "why": p.reason or None}
        for p in report.verifications
    ]
    tensors = {name: getattr(report, name) for name in ("kept", "renamed", "adapted", "initialized", "dropped")}
    return {**tensors, "notes": report.notes, "proved": proofs}


# ------------------------------------------------------------------------------------------------ from words to edits


def _build_edits(options: Options) -> Iterator[tuple[str, Edit]]:
    """The edits that are asked for, in the order in which they are made."""
    for name, build_edit in _EDIT_BUILDERS.items():
        value = getattr(options, name)
        if value is not None and value is not False and value != "":
            yield name.replace("_", "-"), build_edit(value, options)


def _make_edit(name: str, *args: Any, **kwargs: Any) -> Edit:
    """A function of `resnetkit.surgery`, fetched when it is used."""

    def edit(model: NetworkModule) -> EditResult:
        from resnetkit import surgery

        edited: EditResult = getattr(surgery, name)(model, *args, **kwargs)
        return edited

    return edit


def _parse_pairs(option: str, text: str) -> list[tuple[str, str]]:
    """``stage4=1,stage3=2`` in two parts each."""
    pairs = [item.partition("=") for item in _split_list(text) or [text]]
    invalid = ["".join(pair) for pair in pairs if not all(pair)]
    if invalid:
        raise UsageError(f"--{option} does not take {invalid[0]!r}", where=f"--{option}", fix="PLACE=NUMBER")
    return [(target, value) for target, _, value in pairs]


def _split_list(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _parse_number(option: str, text: str, number_type: type[int] | type[float] = int) -> Any:
    try:
        return number_type(text)
    except ValueError:
        fix = "a whole number" if number_type is int else "a number"
        raise UsageError(f"--{option} does not take {text[:40]!r}", where=f"--{option}", fix=fix) from None


def _make_target_edits(name: str, option: str, text: str, number_type: type[int] | type[float] = int) -> Edit:
    """The same edit for several places: their reports as one."""
    pairs = [(target, _parse_number(option, value, number_type)) for target, value in _parse_pairs(option, text)]
    return _chain_edits([(f"{option} {target}={value}", _make_edit(name, target, value)) for target, value in pairs])


def _chain_edits(edits: list[tuple[str, Edit]]) -> Edit:
    def edit(model: NetworkModule) -> EditResult:
        model, reports = _apply_edits(model, edits)
        return model, reduce(lambda report, next_report: report.combine(next_report), [report for _, report in reports])

    return edit


def _make_prune_edit(text: str) -> Edit:
    if "=" not in text:
        return _make_edit("prune", _parse_number("prune", text, float))
    pairs = [(target, _parse_number("prune", fraction, float)) for target, fraction in _parse_pairs("prune", text)]
    return _chain_edits(
        [(f"prune {target}={fraction:g}", _make_edit("prune", fraction, stages=target)) for target, fraction in pairs]
    )


def _make_dilate_edit(text: str) -> Edit:
    return (
        _make_edit("dilate", _parse_number("dilate", text))
        if text.isdecimal()
        else _make_edit("dilate", stages=_split_list(text))
    )


def _make_classes_edit(text: str) -> Edit:
    """A number, or names."""
    is_count = text.strip().lstrip("+-").isdecimal()
    return _make_edit("classes", _parse_number("classes", text) if is_count else _split_list(text))


def _make_group_norm_edit(groups: int, images: str) -> Edit:
    if not images:
        raise UsageError("--group-norm refits norms on pictures", where="--group-norm", fix="--images FOLDER")

    def edit(model: NetworkModule) -> EditResult:
        from resnetkit import surgery

        return surgery.group_norm(model, _load_images(model, images), groups)

    return edit


_MAX_IMAGES = 64


def _load_images(model: NetworkModule, images: str) -> Tensor:
    """Pictures as the network sees them (N C H W), from all over a folder."""
    import numpy as np
    import torch

    from resnetkit.network.inference import PixelNormalizer
    from resnetkit.prediction.inputs import expand_inputs
    from resnetkit.prediction.pipeline import run_pipeline
    from resnetkit.runtime.distributed import count_cores

    preparation, files = model.card.preparation, expand_inputs([images])
    selected = files[:: max(1, len(files) // _MAX_IMAGES)][:_MAX_IMAGES]
    decoded = [
        result
        for batch in run_pipeline(selected, preparation, lambda pixels: pixels, 1, count_cores())
        for _, result in batch
    ]
    error = next((result for result in decoded if isinstance(result, ImageError)), None)
    if error:
        raise error
    pixels = np.stack([result for result in decoded if not isinstance(result, ImageError)])
    return PixelNormalizer(preparation, torch.device("cpu"))(torch.from_numpy(pixels))


_EDIT_BUILDERS: dict[str, Callable[[Any, Options], Edit]] = {
    "remove": lambda text, _: _make_edit("remove", *_split_list(text)),
    "insert": lambda text, _: _make_target_edits("insert", "insert", text),
    "deepen": lambda text, _: _make_edit("deepen", [_parse_number("deepen", item) for item in _split_list(text)]),
    "widen": lambda text, _: _make_target_edits("widen", "widen", text),
    "prune": lambda text, _: _make_prune_edit(text),
    "shortcuts": lambda text, _: _make_edit("shortcuts", text),
    "stem": lambda text, _: _make_edit("stem", text),
    "restride": lambda text, _: _make_target_edits("restride", "restride", text),
    "dilate": lambda text, _: _make_dilate_edit(text),
    "input_channels": lambda count, options: _make_edit("input_channels", count, method=options.new_channels),
    "classes": lambda text, _: _make_classes_edit(text),
    "head": lambda text, _: _make_edit("head", text),
    "cut": lambda text, _: _make_edit("cut", text),
    "features": lambda text, _: _make_edit("features", _split_list(text)),
    "group_norm": lambda groups, options: _make_group_norm_edit(groups, options.images),
    "fold_norms": lambda _, __: _make_edit("fold_norms"),
}
