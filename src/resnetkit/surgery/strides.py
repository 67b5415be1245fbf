"""Edit where a network reduces its maps: atrous stages, other strides, other stems."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from resnetkit.architecture.plan import parse_stage_number, plan
from resnetkit.architecture.spec import Conv, GroupNorm, MaxPool, PoolAfter, Stem
from resnetkit.architecture.spec import Network as Spec
from resnetkit.architecture.tensors import get_tensor_shapes
from resnetkit.errors import UsageError, suggest_fix
from resnetkit.network.compare import OutputFunction, make_output_function
from resnetkit.network.layers import NetworkModule
from resnetkit.network.report import Verification
from resnetkit.surgery.select import check_integer, find_paths, select_stages
from resnetkit.surgery.transfer import AdaptedTensors, EditResult, check_model_argument, edit, edit_card, transfer
from resnetkit.surgery.verify import EXACT, OUTPUT_CHANGED_NOTE, finish_edit, verify_equal


@check_model_argument
def dilate(
    model: NetworkModule, output_stride: int | None = None, *, stages: Iterable[int | str] | int | str | None = None
) -> EditResult:
    """Return the network with larger maps: stages lose their stride, later convolutions are dilated.

    Every tensor is kept. Every s-th pixel of the new map equals the old map, which is verified for odd and even sizes.
    Attention and group norm use statistics of the whole map; with them the difference is measured only.

    Args:
        model: The network; it does not change.
        output_stride: Input pixels for each pixel of the last map; stages lose their stride from the last one on.
        stages: The atrous stages by number, instead of ``output_stride``.

    Raises:
        UsageError: none or both are given, or the stride cannot be reached.
    """
    spec = model.card.spec
    if (output_stride is None) == (stages is None):
        raise UsageError("give either an output stride or stages", where="dilate", fix="output_stride=8")
    if output_stride is not None:
        check_integer(output_stride, "output_stride")
        new_spec = _find_spec_for_stride(spec, output_stride)
    else:
        new_spec = make_atrous(spec, set(select_stages(model.plan, stages or ())))
    atrous = [f"stage{i}" for i, stage in enumerate(new_spec.stages, 1) if stage.reduce.atrous]
    new_model = edit(model, new_spec, f"atrous in {', '.join(atrous) or 'no stage'}")
    note = "the head averages over another number of pixels, so the output changes; the map on the old grid does not"
    notes = [note] if "head" in new_model.plan.parts else []
    return finish_edit(model, new_model, _verify_on_grid(model, new_model), notes=notes)


def make_atrous(spec: Spec, numbers: set[int]) -> Spec:
    """Return a spec in which exactly these stages are atrous.

    Args:
        spec: The spec.
        numbers: Stages by number, from 1.
    """
    stages = [replace(s, reduce=replace(s.reduce, atrous=i in numbers)) for i, s in enumerate(spec.stages, 1)]
    return replace(spec, stages=tuple(stages))


def _find_spec_for_stride(spec: Spec, output_stride: int) -> Spec:
    """Return the spec with the fewest atrous stages, from the last on, that has this output stride."""
    n_stages = len(spec.stages)
    specs: dict[int, Spec] = {}
    for first in range(n_stages + 1, 0, -1):
        candidate = make_atrous(spec, {i for i in range(first, n_stages + 1) if spec.stages[i - 1].reduce.stride > 1})
        specs.setdefault(plan(candidate).root.stride, candidate)
    if output_stride not in specs:
        strides = ", ".join(str(stage.reduce.stride) for stage in spec.stages)
        message = f"an output stride of {output_stride} is not possible: the stages have strides {strides}"
        raise UsageError(message, where="output_stride", fix=f"one of {', '.join(map(str, sorted(specs)))}")
    return specs[output_stride]


def _verify_on_grid(model: NetworkModule, new_model: NetworkModule) -> Verification:
    """Verify the atrous identity ``dense(x)[..., ::s, ::s] == sparse(x)`` at all common pixels."""
    last_stage, reason = f"stage{len(model.card.spec.stages)}", _explain_grid_difference(model, new_model)
    old_stride, new_stride = model.plan[last_stage].stride, new_model.plan[last_stage].stride
    common_stride = math.lcm(old_stride, new_stride)
    verification = verify_equal(
        f"the maps of {last_stage} on their common grid of {common_stride} pixels",
        model,
        new_model,
        None if reason else EXACT,
        reason=reason,
        outputs=(
            _make_strided_output_function(common_stride // old_stride, last_stage),
            _make_strided_output_function(common_stride // new_stride, last_stage),
        ),
        trim=any(isinstance(stage.reduce, PoolAfter) for stage in model.card.spec.stages),
    )
    return verification if verification.is_within_limit else _relax_to_rounding(verification, model, last_stage)


def _relax_to_rounding(verification: Verification, model: NetworkModule, last_stage: str) -> Verification:
    """Drop the limit if rounding alone moves the maps as far, as in networks of hundreds of blocks."""
    outputs = make_output_function(last_stage), _make_reordered_output_function(last_stage)
    rounding = verify_equal(verification.subject, model, model, None, outputs=outputs)
    if not verification.difference <= rounding.difference < math.inf:
        return verification
    return replace(verification, limit=None, reason=f"rounding alone moves these maps by {rounding.difference:.2g}")


def _make_reordered_output_function(path: str) -> OutputFunction:
    """Return a function that computes the same map with sums in another order (another memory layout)."""

    def compute_maps(network: NetworkModule, x: Tensor) -> Tensor:
        reordered = copy.deepcopy(network).to(memory_format=torch.channels_last)
        return make_output_function(path)(reordered, x.contiguous(memory_format=torch.channels_last))

    return compute_maps


def _make_strided_output_function(step: int, path: str) -> OutputFunction:
    return lambda network, x: make_output_function(path)(network, x)[..., ::step, ::step]


def _explain_grid_difference(model: NetworkModule, new_model: NetworkModule) -> str:
    """Return why the atrous identity cannot hold; empty if it must hold."""
    spec, stages = model.card.spec, zip(model.card.spec.stages, new_model.card.spec.stages, strict=True)
    changed = [i for i, (old_stage, new_stage) in enumerate(stages) if old_stage != new_stage]
    later_stages = spec.stages[min(changed, default=len(spec.stages)) :]
    if later_stages and isinstance(spec.norm, GroupNorm):
        return "group norm uses statistics from the whole map"
    return "attention averages over the whole map" if any(stage.attention for stage in later_stages) else ""


# --------------------------------------------------------------------------------------------------- strides and stems


@check_model_argument
def restride(model: NetworkModule, path: str, stride: int) -> EditResult:
    """Return the network with another stride in one place; its outputs change and are not verified.

    Tensors of equal shape are kept. A shortcut gets or loses a projection as its cause does.

    Args:
        model: The network; it does not change.
        path: ``stageN``, or ``convN``, ``pool`` or ``blur`` of the stem.
        stride: The new stride. Raises `UsageError` if the place does not exist.
    """
    (resolved_path,) = find_paths(model.plan, [path], ("stage", "stem-conv", "stem-pool", "stem-blur"))
    check_integer(stride, "restride")
    set_stride = _set_stem_stride if resolved_path.startswith("stem") else _set_stage_stride
    new_spec = set_stride(model.card.spec, resolved_path, stride)
    new_model = edit(model, new_spec, f"{resolved_path} with stride {stride}")
    return finish_edit(model, new_model, notes=[OUTPUT_CHANGED_NOTE])


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
    """Return the network with another stem; its outputs change and are not verified.

    A kernel of another size is cropped to its center or padded with zeros; other tensors of another shape start again.

    Args:
        model: The network; it does not change.
        new: ``imagenet`` (7x7 and a pool), ``cifar`` (one 3x3), ``deep`` (three 3x3 and a pool), or a `Stem`.
            Raises `UsageError` for another name.
    """
    spec = model.card.spec
    new_stem = new if isinstance(new, Stem) else _build_named_stem(spec, str(new))
    card = edit_card(model.card, replace(spec, stem=new_stem), "with another stem")
    new_model = transfer(model, card, _resize_kernels(model, card.spec))
    return finish_edit(model, new_model, notes=[OUTPUT_CHANGED_NOTE])


def _build_named_stem(spec: Spec, name: str) -> Stem:
    channels = spec.stem.convs[-1].channels if spec.stem.convs else 64
    half = max(channels // 2, 1)
    stems = {
        "imagenet": Stem((Conv(channels, 7, 2),), (MaxPool(3, 2),)),
        "cifar": Stem((Conv(channels, 3),), ()),
        "deep": Stem((Conv(half, 3, 2), Conv(half, 3), Conv(channels, 3)), (MaxPool(3, 2),)),
    }
    if name not in stems:
        raise UsageError(f"unknown stem {name!r}", where="stem", fix=suggest_fix(name, list(stems)))
    return stems[name]


def _resize_kernels(model: NetworkModule, spec: Spec) -> AdaptedTensors:
    """Return the convolutions of the stem that differ only in the size of their kernel."""
    old_tensors, adapted = model.state_dict(), {}
    for key, shape in get_tensor_shapes(plan(spec)).items():
        old = old_tensors.get(key)
        is_kernel = key.startswith("stem.conv") and key.endswith("weight")
        if is_kernel and old is not None and old.shape[:2] == shape[:2] and old.shape != shape:
            a, b = old.shape[-1], shape[-1]
            note = f"the center {b}x{b} of {a}x{a}" if b < a else f"{a}x{a} padded with zeros"
            adapted[key] = F.pad(old, ((b - a) // 2,) * 4), note  # (O, I, H, W); both sizes are odd
    return adapted
