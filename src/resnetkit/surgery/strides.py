"""Where a network gets smaller: a trous stages, other strides, other stems."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from resnetkit.architecture.plan import parse_stage_number, plan
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
from resnetkit.architecture.tensors import get_tensor_shapes
from resnetkit.errors import UsageError, suggest_fix
from resnetkit.network.layers import NetworkModule
from resnetkit.network.report import Verification
from resnetkit.surgery.select import check_integer, find_paths, select_stages
from resnetkit.surgery.transfer import AdaptedTensors, EditResult, add_notes, check_model_argument, edit_card, transfer
from resnetkit.surgery.verify import EXACT, OutputFunction, finish_edit, make_output_function, verify_equal


@check_model_argument
def dilate(
    model: NetworkModule, output_stride: int | None = None, *, stages: Iterable[int | str] | int | str | None = None
) -> EditResult:
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
        check_integer(output_stride, "output_stride")
        new_spec = _find_spec_for_stride(spec, output_stride)
    else:
        new_spec = _make_atrous(spec, set(select_stages(model.plan, stages or ())))
    atrous = [f"stage{i}" for i, stage in enumerate(new_spec.stages, 1) if stage.reduce.atrous]
    new_model = transfer(model, edit_card(model.card, new_spec, f"a trous in {', '.join(atrous) or 'no stage'}"))
    note = "the head averages over another number of pixels, so its answers change; the map on the old grid does not"
    add_notes(model, new_model, [note] * bool(new_model.plan.parts.get("head")))
    return finish_edit(new_model, _verify_on_grid(model, new_model))


def _make_atrous(spec: Spec, numbers: set[int]) -> Spec:
    stages = [replace(s, reduce=replace(s.reduce, atrous=i in numbers)) for i, s in enumerate(spec.stages, 1)]
    return replace(spec, stages=tuple(stages))


def _find_spec_for_stride(spec: Spec, output_stride: int) -> Spec:
    """With as few a trous stages, from the last on, as bring the last map to this stride."""
    n_stages = len(spec.stages)
    specs: dict[int, Spec] = {}
    for first in range(n_stages + 1, 0, -1):
        candidate = _make_atrous(spec, {i for i in range(first, n_stages + 1) if spec.stages[i - 1].reduce.stride > 1})
        specs.setdefault(plan(candidate).root.stride, candidate)
    if output_stride not in specs:
        strides = ", ".join(str(stage.reduce.stride) for stage in spec.stages)
        message = f"an output stride of {output_stride} cannot be: the stages stride by {strides}"
        raise UsageError(message, where="output_stride", fix=f"one of {', '.join(map(str, sorted(specs)))}")
    return specs[output_stride]


def _verify_on_grid(model: NetworkModule, new_model: NetworkModule) -> Verification:
    """The a trous identity, ``dense(x)[..., ::s, ::s] == sparse(x)``: they agree wherever both have a pixel."""
    last_stage, reason = f"stage{len(model.card.spec.stages)}", _explain_grid_difference(model, new_model)
    old_stride, new_stride = model.plan[last_stage].stride, new_model.plan[last_stage].stride
    common_stride = math.lcm(old_stride, new_stride)
    description = f"the maps of {last_stage} on their common grid of {common_stride} pixels"
    old_output, new_output = (
        _make_strided_output_function(common_stride // old_stride, last_stage),
        _make_strided_output_function(common_stride // new_stride, last_stage),
    )
    trim = any(isinstance(stage.reduce, PoolAfter) for stage in model.card.spec.stages)
    proof = verify_equal(
        description,
        model,
        new_model,
        None if reason else EXACT,
        reason=reason,
        old_output=old_output,
        new_output=new_output,
        trim=trim,
    )
    return proof if proof.is_within_limit else _relax_to_rounding(proof, model, last_stage)


def _relax_to_rounding(proof: Verification, model: NetworkModule, last_stage: str) -> Verification:
    """Some networks, of hundreds of blocks, grow any rounding: what they do to their own numbers in another order."""
    rounding = verify_equal(
        proof.subject,
        model,
        model,
        None,
        old_output=make_output_function(last_stage),
        new_output=_make_reordered_output_function(last_stage),
    )
    if not proof.difference <= rounding.difference < math.inf:
        return proof
    return replace(proof, limit=None, reason=f"rounding alone moves these maps by {rounding.difference:.2g}")


def _make_reordered_output_function(path: str) -> OutputFunction:
    """The same maps, from numbers that lie otherwise in memory, and so are added in another order."""

    def compute_maps(network: NetworkModule, x: Tensor) -> Tensor:
        reordered = copy.deepcopy(network).to(memory_format=torch.channels_last)
        return make_output_function(path)(reordered, x.contiguous(memory_format=torch.channels_last))

    return compute_maps


def _make_strided_output_function(step: int, path: str) -> OutputFunction:
    return lambda network, x: make_output_function(path)(network, x)[..., ::step, ::step]


def _explain_grid_difference(model: NetworkModule, new_model: NetworkModule) -> str:
    """Why the a trous identity cannot hold; empty where it must."""
    spec, stages = model.card.spec, zip(model.card.spec.stages, new_model.card.spec.stages, strict=True)
    changed = [i for i, (old_stage, new_stage) in enumerate(stages) if old_stage != new_stage]
    later_stages = spec.stages[min(changed, default=len(spec.stages)) :]
    if later_stages and isinstance(spec.norm, GroupNorm):
        return "group norm takes its statistics from the whole map"
    if any(stage.attention for stage in later_stages):
        return "attention averages over the whole map"
    return ""


# --------------------------------------------------------------------------------------------------- strides and stems


@check_model_argument
def restride(model: NetworkModule, path: str, stride: int) -> EditResult:
    """Another stride for ``stageN``, or for ``convN``, ``pool`` or ``blur`` of the stem.

    Tensors of equal shape are kept; a shortcut comes or goes where its cause does. The answers change: nothing is
    promised of them. Raises `UsageError`.
    """
    (resolved_path,) = find_paths(model.plan, [path], ("stage", "stem-conv", "stem-pool", "stem-blur"))
    check_integer(stride, "restride")
    spec = model.card.spec
    new_spec = (
        _set_stem_stride(spec, resolved_path, stride)
        if resolved_path.startswith("stem")
        else _set_stage_stride(spec, resolved_path, stride)
    )
    new_model = transfer(model, edit_card(model.card, new_spec, f"{resolved_path} with stride {stride}"))
    add_notes(model, new_model, [OUTPUT_CHANGED_NOTE])
    return finish_edit(new_model)


OUTPUT_CHANGED_NOTE = (
    "the network computes something else now: nothing is promised of its answers before it is trained again"
)


def _set_stage_stride(spec: Spec, path: str, stride: int) -> Spec:
    i = parse_stage_number(path) - 1
    stage = replace(spec.stages[i], reduce=replace(spec.stages[i].reduce, stride=stride))
    return replace(spec, stages=(*spec.stages[:i], stage, *spec.stages[i + 1 :]))


def _set_stem_stride(spec: Spec, path: str, stride: int) -> Spec:
    stem, layer = spec.stem, path.split(".")[1]
    if layer in ("pool", "blur"):
        ops = tuple(replace(op, stride=stride) for op in getattr(stem, layer))
        return replace(spec, stem=replace(stem, **{layer: ops}))
    i = int(layer.removeprefix("conv")) - 1
    convs = (*stem.convs[:i], replace(stem.convs[i], stride=stride), *stem.convs[i + 1 :])
    return replace(spec, stem=replace(stem, convs=convs))


@check_model_argument
def stem(model: NetworkModule, new: str | Stem) -> EditResult:
    """Another stem: ``imagenet`` (7x7 and a pool), ``cifar`` (one 3x3), ``deep`` (three 3x3 and a pool), or a `Stem`.

    A kernel of another size is cut to its middle, or gets zeros around it; other tensors of another shape start anew.
    Nothing is promised of the answers. Raises `UsageError`.
    """
    spec = model.card.spec
    new_stem = new if isinstance(new, Stem) else _build_named_stem(spec, str(new))
    card = edit_card(model.card, replace(spec, stem=new_stem), "with another stem")
    new_model = transfer(model, card, _resize_kernels(model, card.spec))
    add_notes(model, new_model, [OUTPUT_CHANGED_NOTE])
    return finish_edit(new_model)


def _build_named_stem(spec: Spec, name: str) -> Stem:
    channels = spec.stem.convs[-1].channels if spec.stem.convs else 64
    half = max(channels // 2, 1)
    stems = {
        "imagenet": Stem((Conv(channels, 7, 2),), (MaxPool(3, 2),)),
        "cifar": Stem((Conv(channels, 3),), ()),
        "deep": Stem((Conv(half, 3, 2), Conv(half, 3), Conv(channels, 3)), (MaxPool(3, 2),)),
    }
    if name not in stems:
        raise UsageError(f"there is no stem called {name!r}", where="stem", fix=suggest_fix(name, list(stems)))
    return stems[name]


def _resize_kernels(model: NetworkModule, spec: Spec) -> AdaptedTensors:
    """Convolutions of the stem that differ in the size of their kernel alone."""
    new_shapes, old_tensors = get_tensor_shapes(plan(spec)), model.state_dict()
    keys = [key for key in new_shapes if key.startswith("stem.conv") and key.endswith("weight") and key in old_tensors]
    resized_keys = [
        key
        for key in keys
        if old_tensors[key].shape[:2] == new_shapes[key][:2] and old_tensors[key].shape != new_shapes[key]
    ]
    sizes = {key: (old_tensors[key].shape[-1], new_shapes[key][-1]) for key in resized_keys}
    return {
        key: (
            _center_kernel(old_tensors[key], b),
            f"the middle {b}x{b} of {a}x{a}" if b < a else f"{a}x{a} with zeros around it",
        )
        for key, (a, b) in sizes.items()
    }


def _center_kernel(weight: Tensor, kernel: int) -> Tensor:
    """The middle of a kernel (O I H W), or zeros around it; both sizes are odd."""
    padding = (kernel - weight.shape[-1]) // 2
    return F.pad(weight, (padding,) * 4)
