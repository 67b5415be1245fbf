"""``resnetkit modify``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from resnetkit.commands.output import prose, results, then
from resnetkit.commands.weights_options import Weights, loaded
from resnetkit.errors import PictureError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from resnetkit.network.layers import Network
    from resnetkit.network.report import Report
    from resnetkit.surgery.transfer import Edited


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


Edit = Callable[["Network"], "Edited"]


def run(options: Options) -> int:
    from resnetkit.weights.load import save

    edits = list(_edits(options))
    _require_use(options)
    if not edits:
        raise UsageError("nothing is to be changed", where="resnetkit modify", fix="--dilate 8, or another edit")
    if Path(options.out).exists():
        raise UsageError("this folder exists already", where=options.out, fix="name another, or remove it")
    model = loaded(options.model, Weights(options.network, options.dialect))
    made, reports = _apply(model, edits)
    path = save(made, options.out)
    if options.json:
        told = [{"edit": name, **_plain(report)} for name, report in reports]
        results("modify", model=options.model, out=str(path), params=made.plan.params, macs=made.plan.macs, edits=told)
    else:
        for name, report in reports:
            prose(f"--{name}: {report}")
        prose(f"wrote {path}: {made.plan.params:,} params, {made.plan.macs:,} MACs")
    then("resnetkit explain", str(path))
    return 0


def _require_use(options: Options) -> None:
    """Raise `UsageError` for what is said of an edit that is not asked for."""
    new = options.new_channels != "zero"
    alone = [
        ("--images", options.images, options.group_norm, "--group-norm 32"),
        ("--new-channels", new, options.input_channels, "--input-channels 4"),
    ]
    for name, given, edit, fix in alone:
        if given and edit is None:
            raise UsageError(f"nothing is done with {name}", where="resnetkit modify", fix=f"{fix}, or leave it out")


def _apply(model: Network, edits: list[tuple[str, Edit]]) -> tuple[Network, list[tuple[str, Report]]]:
    """One edit after the other; where some cannot be made, none is, and all faults are told at once."""
    faults, reports = [], []
    for name, edit in edits:
        try:
            model, report = edit(model)
            reports.append((name, report))
        except UsageError as error:
            faults.append((name, error))
    if len(faults) == 1:
        raise faults[0][1]
    if faults:
        where = [f"--{name}: {error.what}; {'; '.join(error.where)}".rstrip("; ") for name, error in faults]
        fixes = dict.fromkeys(f"--{name}: {error.fix}" for name, error in faults if error.fix)
        raise UsageError(f"{len(faults)} of these edits cannot be made", where=where, fix="; ".join(fixes))
    return model, reports


def _plain(report: Report) -> dict[str, Any]:
    proved = [{"what": p.what, "figure": p.figure, "limit": p.limit, "why": p.why or None} for p in report.proved]
    tensors = {name: getattr(report, name) for name in ("kept", "renamed", "adapted", "initialised", "dropped")}
    return {**tensors, "notes": report.notes, "proved": proved}


# ------------------------------------------------------------------------------------------------ from words to edits


def _edits(options: Options) -> Iterator[tuple[str, Edit]]:
    """The edits that are asked for, in the order in which they are made."""
    for name, read in _READ.items():
        value = getattr(options, name)
        if value is not None and value is not False and value != "":
            yield name.replace("_", "-"), read(value, options)


def _surgery(name: str, *words: Any, **named: Any) -> Edit:
    """A function of `resnetkit.surgery`, fetched when it is used."""

    def edit(model: Network) -> Edited:
        from resnetkit import surgery

        done: Edited = getattr(surgery, name)(model, *words, **named)
        return done

    return edit


def _pairs(option: str, text: str) -> list[tuple[str, str]]:
    """``stage4=1,stage3=2`` in two parts each."""
    pairs = [word.partition("=") for word in _words(text) or [text]]
    odd = ["".join(parts) for parts in pairs if not all(parts)]
    if odd:
        raise UsageError(f"--{option} does not take {odd[0]!r}", where=f"--{option}", fix="PLACE=NUMBER")
    return [(head, tail) for head, _, tail in pairs]


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _number(option: str, text: str, kind: type[int] | type[float] = int) -> Any:
    try:
        return kind(text)
    except ValueError:
        fix = "a whole number" if kind is int else "a number"
        raise UsageError(f"--{option} does not take {text[:40]!r}", where=f"--{option}", fix=fix) from None


def _each(name: str, option: str, text: str, kind: type[int] | type[float] = int) -> Edit:
    """The same edit for several places: their reports as one."""
    pairs = [(place, _number(option, value, kind)) for place, value in _pairs(option, text)]
    return _row([(f"{option} {place}={value}", _surgery(name, place, value)) for place, value in pairs])


def _row(edits: list[tuple[str, Edit]]) -> Edit:
    def edit(model: Network) -> Edited:
        model, reports = _apply(model, edits)
        return model, reduce(lambda report, later: report.then(later), [report for _, report in reports])

    return edit


def _prune(text: str) -> Edit:
    if "=" not in text:
        return _surgery("prune", _number("prune", text, float))
    pairs = [(place, _number("prune", share, float)) for place, share in _pairs("prune", text)]
    return _row([(f"prune {place}={share:g}", _surgery("prune", share, stages=place)) for place, share in pairs])


def _dilate(text: str) -> Edit:
    return _surgery("dilate", _number("dilate", text)) if text.isdecimal() else _surgery("dilate", stages=_words(text))


def _classes(text: str) -> Edit:
    """A number, or names."""
    count = text.strip().lstrip("+-").isdecimal()
    return _surgery("classes", _number("classes", text) if count else _words(text))


def _group_norm(groups: int, images: str) -> Edit:
    if not images:
        raise UsageError("--group-norm refits norms on pictures", where="--group-norm", fix="--images FOLDER")

    def edit(model: Network) -> Edited:
        from resnetkit import surgery

        return surgery.group_norm(model, _read(model, images), groups)

    return edit


_MOST_IMAGES = 64


def _read(model: Network, images: str) -> Tensor:
    """Pictures as the network sees them (N C H W), from all over a folder."""
    import numpy as np
    import torch

    from resnetkit.prediction.inputs import expand
    from resnetkit.prediction.pipeline import streamed
    from resnetkit.runtime.device import ToInput
    from resnetkit.runtime.distributed import cores

    how, named = model.card.preparation, expand([images])
    chosen = named[:: max(1, len(named) // _MOST_IMAGES)][:_MOST_IMAGES]
    read = [found for chunk in streamed(chosen, how, lambda pixels: pixels, 1, cores()) for _, found in chunk]
    bad = next((found for found in read if isinstance(found, PictureError)), None)
    if bad:
        raise bad
    pixels = np.stack([found for found in read if not isinstance(found, PictureError)])
    return ToInput(how, torch.device("cpu"))(torch.from_numpy(pixels))


_READ: dict[str, Callable[[Any, Options], Edit]] = {
    "remove": lambda text, _: _surgery("remove", *_words(text)),
    "insert": lambda text, _: _each("insert", "insert", text),
    "deepen": lambda text, _: _surgery("deepen", [_number("deepen", word) for word in _words(text)]),
    "widen": lambda text, _: _each("widen", "widen", text),
    "prune": lambda text, _: _prune(text),
    "shortcuts": lambda text, _: _surgery("shortcuts", text),
    "stem": lambda text, _: _surgery("stem", text),
    "restride": lambda text, _: _each("restride", "restride", text),
    "dilate": lambda text, _: _dilate(text),
    "input_channels": lambda count, options: _surgery("input_channels", count, how=options.new_channels),
    "classes": lambda text, _: _classes(text),
    "head": lambda text, _: _surgery("head", text),
    "cut": lambda text, _: _surgery("cut", text),
    "features": lambda text, _: _surgery("features", _words(text)),
    "group_norm": lambda groups, options: _group_norm(groups, options.images),
    "fold_norms": lambda _, __: _surgery("fold_norms"),
}
