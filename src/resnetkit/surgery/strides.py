"""Where a network gets smaller: a trous stages, other strides, other stems."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from resnetkit.architecture.plan import plan, stage_number
from resnetkit.architecture.spec import (
    Conv,
    GroupNorm,
    MaxPool,
    PoolAfter,
    Stem,
)
from resnetkit.architecture.spec import (
    Network as Spec,
)
from resnetkit.architecture.tensors import tensors_of
from resnetkit.errors import UsageError, suggestion
from resnetkit.network.layers import Network
from resnetkit.network.report import Proof
from resnetkit.surgery.select import find, whole
from resnetkit.surgery.select import stages as chosen_stages
from resnetkit.surgery.transfer import Adapted, Edited, carry, edit, edited, told
from resnetkit.surgery.verify import EXACT, Maps, at, compared, finished


@edit
def dilate(
    model: Network, output_stride: int | None = None, *, stages: Iterable[int | str] | int | str | None = None
) -> Edited:
    """Keep maps large: stages lose their stride, and what comes behind is dilated by it (a trous).

    ``output_stride`` is what one pixel of the last map shall stand for, and decides every stage, from the last on;
    ``stages`` names some by number instead. Every tensor is kept. Of the new map, every s-th pixel is the old one,
    which is proved for images of odd and even sizes; where statistics of the whole map enter (attention, group norm)
    that cannot be, and the difference is measured. Raises `UsageError`.
    """
    spec = model.card.spec
    if (output_stride is None) == (stages is None):
        raise UsageError("either an output stride or some stages", where="dilate", fix="output_stride=8")
    if output_stride is not None:
        whole(output_stride, "output_stride")
        made = _for_stride(spec, output_stride)
    else:
        made = _atrous(spec, set(chosen_stages(model.plan, stages or ())))
    atrous = [f"stage{i}" for i, stage in enumerate(made.stages, 1) if stage.reduce.atrous]
    new = carry(model, edited(model.card, made, f"a trous in {', '.join(atrous) or 'no stage'}"))
    head = "the head averages over another number of pixels, so its answers change; the map on the old grid does not"
    told(model, new, [head] * bool(new.plan.parts.get("head")))
    return finished(new, _on_the_grid(model, new))


def _atrous(spec: Spec, numbers: set[int]) -> Spec:
    made = [replace(s, reduce=replace(s.reduce, atrous=i in numbers)) for i, s in enumerate(spec.stages, 1)]
    return replace(spec, stages=tuple(made))


def _for_stride(spec: Spec, wanted: int) -> Spec:
    """With as few a trous stages, from the last on, as bring the last map to this stride."""
    count = len(spec.stages)
    found: dict[int, Spec] = {}
    for first in range(count + 1, 0, -1):
        made = _atrous(spec, {i for i in range(first, count + 1) if spec.stages[i - 1].reduce.stride > 1})
        found.setdefault(plan(made).root.stride, made)
    if wanted not in found:
        strides = ", ".join(str(stage.reduce.stride) for stage in spec.stages)
        what = f"an output stride of {wanted} cannot be: the stages stride by {strides}"
        raise UsageError(what, where="output_stride", fix=f"one of {', '.join(map(str, sorted(found)))}")
    return found[wanted]


def _on_the_grid(model: Network, made: Network) -> Proof:
    """The a trous identity, ``dense(x)[..., ::s, ::s] == sparse(x)``: they agree wherever both have a pixel."""
    last, why = f"stage{len(model.card.spec.stages)}", _unlike(model, made)
    before, after = model.plan[last].stride, made.plan[last].stride
    both = math.lcm(before, after)
    shown = f"the maps of {last} on their common grid of {both} pixels"
    old, new = _every(both // before, last), _every(both // after, last)
    loose = any(isinstance(stage.reduce, PoolAfter) for stage in model.card.spec.stages)
    found = compared(shown, model, made, None if why else EXACT, why=why, before=old, after=new, trimmed=loose)
    return found if found.holds else _beside_rounding(found, model, last)


def _beside_rounding(proof: Proof, model: Network, last: str) -> Proof:
    """Some networks, of hundreds of blocks, grow any rounding: what they do to their own numbers in another order."""
    own = compared(proof.what, model, model, None, before=at(last), after=_another_order(last))
    if not proof.figure <= own.figure < math.inf:
        return proof
    return replace(proof, limit=None, why=f"rounding alone moves these maps by {own.figure:.2g}")


def _another_order(place: str) -> Maps:
    """The same maps, from numbers that lie otherwise in memory, and so are added in another order."""

    def maps(network: Network, x: Tensor) -> Tensor:
        moved = copy.deepcopy(network).to(memory_format=torch.channels_last)
        return at(place)(moved, x.contiguous(memory_format=torch.channels_last))

    return maps


def _every(step: int, place: str) -> Maps:
    return lambda network, x: at(place)(network, x)[..., ::step, ::step]


def _unlike(model: Network, made: Network) -> str:
    """Why the a trous identity cannot hold; empty where it must."""
    spec, stages = model.card.spec, zip(model.card.spec.stages, made.card.spec.stages, strict=True)
    changed = [i for i, (before, after) in enumerate(stages) if before != after]
    behind = spec.stages[min(changed, default=len(spec.stages)) :]
    if behind and isinstance(spec.norm, GroupNorm):
        return "group norm takes its statistics from the whole map"
    if any(stage.attention for stage in behind):
        return "attention averages over the whole map"
    return ""


# --------------------------------------------------------------------------------------------------- strides and stems


@edit
def restride(model: Network, path: str, stride: int) -> Edited:
    """Another stride for ``stageN``, or for ``convN``, ``pool`` or ``blur`` of the stem.

    Tensors of equal shape are kept; a shortcut comes or goes where its cause does. The answers change: nothing is
    promised of them. Raises `UsageError`.
    """
    (found,) = find(model.plan, [path], ("stage", "stem-conv", "stem-pool", "stem-blur"))
    whole(stride, "restride")
    spec = model.card.spec
    made = _restrided_stem(spec, found, stride) if found.startswith("stem") else _restrided(spec, found, stride)
    new = carry(model, edited(model.card, made, f"{found} with stride {stride}"))
    told(model, new, [NOTHING])
    return finished(new)


NOTHING = "the network computes something else now: nothing is promised of its answers before it is trained again"


def _restrided(spec: Spec, path: str, stride: int) -> Spec:
    i = stage_number(path) - 1
    stage = replace(spec.stages[i], reduce=replace(spec.stages[i].reduce, stride=stride))
    return replace(spec, stages=(*spec.stages[:i], stage, *spec.stages[i + 1 :]))


def _restrided_stem(spec: Spec, path: str, stride: int) -> Spec:
    stem, part = spec.stem, path.split(".")[1]
    if part in ("pool", "blur"):
        ops = tuple(replace(op, stride=stride) for op in getattr(stem, part))
        return replace(spec, stem=replace(stem, **{part: ops}))
    i = int(part.removeprefix("conv")) - 1
    convs = (*stem.convs[:i], replace(stem.convs[i], stride=stride), *stem.convs[i + 1 :])
    return replace(spec, stem=replace(stem, convs=convs))


@edit
def stem(model: Network, new: str | Stem) -> Edited:
    """Another stem: ``imagenet`` (7x7 and a pool), ``cifar`` (one 3x3), ``deep`` (three 3x3 and a pool), or a `Stem`.

    A kernel of another size is cut to its middle, or gets zeros around it; other tensors of another shape start anew.
    Nothing is promised of the answers. Raises `UsageError`.
    """
    spec = model.card.spec
    described = new if isinstance(new, Stem) else _named(spec, str(new))
    card = edited(model.card, replace(spec, stem=described), "with another stem")
    made = carry(model, card, _refitted(model, card.spec))
    told(model, made, [NOTHING])
    return finished(made)


def _named(spec: Spec, word: str) -> Stem:
    channels = spec.stem.convs[-1].channels if spec.stem.convs else 64
    half = max(channels // 2, 1)
    known = {
        "imagenet": Stem((Conv(channels, 7, 2),), (MaxPool(3, 2),)),
        "cifar": Stem((Conv(channels, 3),), ()),
        "deep": Stem((Conv(half, 3, 2), Conv(half, 3), Conv(channels, 3)), (MaxPool(3, 2),)),
    }
    if word not in known:
        raise UsageError(f"there is no stem called {word!r}", where="stem", fix=suggestion(word, list(known)))
    return known[word]


def _refitted(model: Network, spec: Spec) -> Adapted:
    """Convolutions of the stem that differ in the size of their kernel alone."""
    wanted, old = tensors_of(plan(spec)), model.state_dict()
    keys = [key for key in wanted if key.startswith("stem.conv") and key.endswith("weight") and key in old]
    fits = [key for key in keys if old[key].shape[:2] == wanted[key][:2] and old[key].shape != wanted[key]]
    sizes = {key: (old[key].shape[-1], wanted[key][-1]) for key in fits}
    return {
        key: (_centred(old[key], b), f"the middle {b}x{b} of {a}x{a}" if b < a else f"{a}x{a} with zeros around it")
        for key, (a, b) in sizes.items()
    }


def _centred(weight: Tensor, kernel: int) -> Tensor:
    """The middle of a kernel (O I H W), or zeros around it; both sizes are odd."""
    around = (kernel - weight.shape[-1]) // 2
    return F.pad(weight, (around,) * 4)
