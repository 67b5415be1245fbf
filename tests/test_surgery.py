"""Edits of networks, checked by other means than those of their own reports."""

import copy
import itertools
import math
import random
import re
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from resnetkit import load, save, surgery
from resnetkit.architecture import spec as s
from resnetkit.architecture.catalog import CATALOG
from resnetkit.architecture.plan import plan
from resnetkit.architecture.rules import list_stage_input_channels
from resnetkit.errors import FaultsError, ResnetkitError, SpecError, UsageError, VerificationError
from resnetkit.network.build import build
from resnetkit.network.layers import Backbone, CheckpointedStage
from resnetkit.surgery import norms, strides, widths
from resnetkit.surgery.transfer import transfer
from resnetkit.surgery.verify import OUTPUT_CHANGED_NOTE

from helpers.networks import randomize_norms
from helpers.tiny import BASE, TINY, networks

DEEP = replace(BASE, stages=(*BASE.stages, s.Stage(2, 24, s.Basic(24), s.FirstBlock(2))), input=(3, 24, 26))


def make_network(spec=BASE, classes=None, seed=0, dtype=torch.float64):
    return randomize_norms(
        build(TINY.get(spec, spec) if isinstance(spec, str) else spec, classes, seed=seed, dtype=dtype), seed
    )


def make_images(model, count=2, size=None, seed=1):
    shape = count, model.plan.input[0], *(size or model.plan.input[1:])
    first = next(model.parameters())
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(first.dtype)


def relative_difference(actual, expected):
    assert actual.shape == expected.shape
    actual, expected = actual.detach(), expected.detach()
    scale = float(expected.abs().max())
    return float((actual - expected).abs().max()) / (scale or 1)


def compute_map(model, place, x):
    with torch.no_grad():
        return copy.deepcopy(model).eval().extract_features(x, [place])[place]


def compute_output(model, x):
    with torch.no_grad():
        return copy.deepcopy(model).eval()(x)


def get_usage_error(call, *words, **more):
    with pytest.raises(ResnetkitError) as caught:
        call(*words, **more)
    assert isinstance(caught.value, UsageError)
    return str(caught.value)


# -------------------------------------------------------------------------------------------- every tensor is info of


def check_report(old, new, report, edits=1):
    """Check that each new tensor is in one group with the right values, and each old one is used or dropped.

    The report of several edits lists a tensor that was renamed and then adapted by its new name only.
    """
    before, after = old.state_dict(), new.state_dict()
    assert sorted([*report.kept, *report.renamed, *report.adapted, *report.initialized]) == sorted(after)
    for key, origin in [*zip(report.kept, report.kept, strict=True), *report.renamed.items()]:
        assert torch.equal(after[key], before[origin]), key
    assert all(key != origin for key, origin in report.renamed.items())
    assert all(report.adapted.values())
    assert all(report.initialized.values())
    used = {*report.kept, *report.renamed.values()}
    assert used.isdisjoint(report.dropped)
    assert len(set(report.dropped)) == len(report.dropped)
    assert used | set(report.dropped) <= set(before)
    if edits == 1:
        assert sorted({*used, *report.adapted, *report.dropped}) == sorted(before)
        assert set(report.adapted).isdisjoint(report.dropped)


def snapshot(model):
    tensors = {key: value.clone() for key, value in model.state_dict().items()}
    modes = {path: (type(module), module.training) for path, module in model.named_modules()}
    learns = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    return tensors, (modes, learns, model.frozen_paths, model.card, model.plan, model.report)


def is_unchanged(before, model):
    tensors, rest = snapshot(model)
    return rest == before[1] and all(torch.equal(tensors[key], value) for key, value in before[0].items())


def choose_path(draw, model, *roles):
    return draw.choice([path for path, part in model.plan.parts.items() if part.role in roles] or ["stage1"])


def choose_stages(draw, model):
    count = len(model.card.spec.stages)
    return draw.sample(range(1, count + 1), draw.randint(1, count))


def make_three_images(model):
    return make_images(model, 3)


EDITS = {
    "dilate to": lambda m, d: surgery.dilate(m, d.choice([1, 2, 4, 6])),
    "dilate": lambda m, d: surgery.dilate(m, stages=choose_stages(d, m)),
    "restride": lambda m, d: surgery.restride(
        m, choose_path(d, m, "stage", "stem-conv", "stem-pool", "stem-blur"), d.randint(1, 3)
    ),
    "stem": lambda m, d: surgery.stem(m, d.choice(["imagenet", "cifar", "deep"])),
    "insert": lambda m, d: surgery.insert(m, choose_path(d, m, "block"), d.randint(1, 2)),
    "deepen": lambda m, d: surgery.deepen(m, [stage.blocks + d.randint(0, 1) for stage in m.card.spec.stages]),
    "remove": lambda m, d: surgery.remove(m, choose_path(d, m, "block", "stage"), choose_path(d, m, "block", "stage")),
    "shortcuts": lambda m, d: surgery.shortcuts(m, d.choice(["A", "B", "C", "D", "none"])),
    "channels": lambda m, d: surgery.input_channels(
        m, d.choice([1, 4, 5]), method=d.choice(["zero", "mean", "cyclic"])
    ),
    "classes": lambda m, d: surgery.classes(m, d.choice([3, ["a", "b"], ["b", "c", "a"]])),
    "head": lambda m, d: surgery.head(m, d.choice(["none", "pooled"])),
    "cut": lambda m, d: surgery.cut(m, choose_path(d, m, "block", "stage")),
    "features": lambda m, d: surgery.features(m, choose_stages(d, m)),
    "fold": lambda m, d: surgery.fold_norms(m),
    "group norm": lambda m, d: surgery.group_norm(m, make_three_images(m), d.choice([1, 2, 4])),
    "freeze": lambda m, d: surgery.freeze(
        m, choose_path(d, m, "stem", "stage", "block", "head"), norms=d.random() < 0.5
    ),
    "freeze norms": lambda m, d: surgery.freeze_norms(m),
    "checkpoint": lambda m, d: surgery.checkpoint(m, choose_stages(d, m)),
    "widen": lambda m, d: surgery.widen(m, choose_stages(d, m)[0], d.choice([16, 24, 32])),
    "prune": lambda m, d: surgery.prune(m, d.choice([0.1, 0.5, 0.9])),
}


@settings(max_examples=25)
@given(
    st.one_of(networks, st.sampled_from(list(TINY.values()))),
    st.lists(st.sampled_from(list(EDITS)), min_size=1, max_size=4),
    st.integers(0, 2**32).map(random.Random),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_any_edits_in_any_order_report_every_tensor_and_keep_the_model(spec, chosen, draw, dtype):
    try:
        model = randomize_norms(build(spec, dtype=dtype)).train(draw.random() < 0.5)
    except SpecError:
        return
    first, whole = model, None
    for name in chosen:
        before, rng_state = snapshot(model), torch.random.get_rng_state()
        try:
            new_model, report = EDITS[name](model, draw)
        except UsageError as error:
            assert error.fix or error.where
            continue
        finally:
            assert is_unchanged(before, model)
            assert torch.equal(torch.random.get_rng_state(), rng_state)
        check_report(model, new_model, report)
        assert new_model.report is report
        assert {parameter.dtype for parameter in new_model.parameters()} == {dtype}
        assert new_model.training == model.training
        assert not {tensor.data_ptr() for tensor in new_model.state_dict().values()} & {
            tensor.data_ptr() for tensor in model.state_dict().values()
        }
        model, whole = new_model, report if whole is None else whole.combine(report)
    if whole is not None:
        check_report(first, model, whole, len(chosen))
        assert tuple(
            answer.shape if isinstance(answer := compute_output(model, make_images(model)), torch.Tensor) else ()
        ) in (
            (2, *model.plan.output),
            (),
        )


def test_the_reports_of_two_edits_combine():
    model = make_network(DEEP)
    between, first = surgery.remove(model, "stage1.block2", "stage3.block2")
    new_model, second = surgery.insert(between, "stage2.block1")
    both = first.combine(second)
    check_report(model, new_model, both)
    assert both.renamed["stage2.block3.branch.conv1.weight"] == "stage2.block2.branch.conv1.weight"
    assert both.initialized["stage2.block2.branch.norm2.weight"] == "zeros, so that the block starts as the identity"
    assert both.initialized["stage2.block2.branch.conv1.weight"] == "new"
    assert both.verifications == (*first.verifications, *second.verifications)
    assert both.notes == (*first.notes, *second.notes)
    assert len(both.dropped) == len(first.dropped)


def test_the_text_of_a_report():
    new_model, report = surgery.dilate(make_network(replace(BASE, head=s.NoHead()), dtype=torch.float32), stages=2)
    assert re.fullmatch(
        r"60 kept, 0 renamed, 0 adapted, 0 initialized, 0 dropped\n"
        r"MACs ([\d,]+) -> ([\d,]+) \([\d.]+ times\)\noutput stride 2 -> 1\n"
        r"verified: the maps of stage2 on their common grid of 2 pixels differ by [\d.e-]+ \(limit 1e-12\)",
        str(report),
    )
    assert new_model.card.origin == "not trained, atrous in stage2"


def test_an_edit_removes_metrics_from_the_card():
    from resnetkit.architecture.card import ReportedMetric

    model = make_network()
    model.card = replace(
        model.card, metrics=(ReportedMetric("top-1", 0.9, "us"),), classes=tuple("abcde"), license="MIT"
    )
    new_model, _ = surgery.dilate(model, stages=2)
    assert new_model.card.metrics == ()
    assert (new_model.card.classes, new_model.card.license) == (tuple("abcde"), "MIT")


def test_modes_of_parts_are_kept():
    model = make_network().train()
    model.stage1.eval()
    model.stage2.block1.requires_grad_(False)
    for edit in (
        lambda: surgery.dilate(model, stages=2),
        lambda: surgery.fold_norms(model),
        lambda: surgery.freeze(model, "stem"),
        lambda: surgery.checkpoint(model, 2),
    ):
        new_model, _ = edit()
        assert new_model.training
        assert not new_model.stage1.block1.training
        assert new_model.stage2.block2.branch.training
        assert not new_model.stage2.block1.branch.conv1.weight.requires_grad
        assert new_model.stage2.block2.branch.conv1.weight.requires_grad
    assert [m.training for m in surgery.remove(model, "stage1")[0].stage1.block1.modules()].count(False) == 0


# ----------------------------------------------------------------------------------------------------------- a trous


def shrink(row):
    """Return a catalog network with an eighth of its channels or fewer, and at most two blocks in a stage."""
    part = 8 if row.stages[0].channels == 16 else 16

    def less(channels):
        return max(channels // part, 2)

    def branch(kind, channels):
        match kind:
            case s.Basic(width):
                return s.Basic(less(width))
            case s.Bottleneck(width, groups, stride_at):
                return s.Bottleneck(less(width) * (2 if groups > 1 else 1), 2 if groups > 1 else 1, stride_at)
        return s.Chain(tuple(replace(step, channels=less(step.channels)) for step in kind.steps), kind.stride_at)

    stages = tuple(
        replace(stage, blocks=min(stage.blocks, 2), channels=less(stage.channels), branch=branch(stage.branch, 0))
        for stage in row.stages
    )
    convs = tuple(replace(conv, channels=less(conv.channels)) for conv in row.stem.convs)
    head = replace(row.head, classes=5)
    head = replace(head, hidden=(8,), pool=2) if isinstance(head, s.MLP) else head
    return replace(row, stages=stages, stem=replace(row.stem, convs=convs), head=head)


AVERAGED = {name for name, row in CATALOG.items() if s.Blur(s.AVERAGE_KERNEL) in row.stem.blur}
FREE = {}
for _name, _row in CATALOG.items():
    if not any(stage.attention for stage in _row.stages) and _name not in AVERAGED:
        FREE.setdefault(shrink(_row), []).append(_name)


def test_shrunk_networks_keep_their_structure():
    kinds = {type(stage.branch) for row in CATALOG.values() for stage in shrink(row).stages}
    assert kinds == {s.Basic, s.Bottleneck, s.Chain}
    for small, (name, *_) in FREE.items():
        row = CATALOG[name]
        assert [stage.reduce for stage in small.stages] == [stage.reduce for stage in row.stages], name
        assert (small.shortcuts, small.order, small.norm, small.bias) == (row.shortcuts, row.order, row.norm, row.bias)
        assert plan(small).root.stride == plan(row).root.stride
        received = [[b > a for a, b in itertools.pairwise(list_stage_input_channels(spec))] for spec in (small, row)]
        assert received[0] == received[1]
        assert len({part.role for part in plan(small).nodes} ^ {part.role for part in plan(row).nodes}) == 0


@pytest.mark.parametrize("spec", FREE, ids=lambda spec: FREE[spec][0])
def test_a_dilated_network_equals_the_old_one_on_its_grid(spec):
    model = make_network(spec)
    last, stride = f"stage{len(spec.stages)}", model.plan.root.stride
    loose = any(isinstance(stage.reduce, s.PoolAfter) for stage in spec.stages)
    sizes = [(72, 73), (40, 33)]
    images = [make_images(model, 1, size) for size in sizes]
    expected = [compute_map(model, last, x) for x in images]
    taken = math.prod(stage.reduce.stride for stage in spec.stages)
    for wanted in {8, 16, stride // 2, stride // taken} & {stride // n for n in (2, 4, 8, 16, 32) if taken % n == 0}:
        new_model, report = surgery.dilate(model, output_stride=wanted)
        step = stride // wanted
        assert new_model.plan.root.stride == wanted
        assert set(report.kept) == set(model.state_dict())
        for x, sparse in zip(images, expected, strict=True):
            dense = compute_map(new_model, last, x)
            grid = dense[..., ::step, ::step]
            if loose:
                grid = grid[..., : sparse.shape[-2], : sparse.shape[-1]]
            assert relative_difference(grid, sparse) <= 1e-12
            assert min(dense.shape[-2:]) > min(sparse.shape[-2:]) or loose


def test_all_networks_without_map_statistics_are_dilated():
    attentive = {name for name, row in CATALOG.items() if any(stage.attention for stage in row.stages)} - AVERAGED
    assert attentive == {"seresnet50", "seresnext50_32x4d", "ecaresnet50d"}
    assert sorted(itertools.chain.from_iterable(FREE.values())) == sorted(set(CATALOG) - attentive - AVERAGED)
    for spec in FREE:
        strides = plan(spec).root.stride
        assert strides in (4, 8, 32)


def test_networks_with_average_pools_are_not_dilated():
    with pytest.raises(SpecError, match=r"stage4\.reduce\.blur: got kernel 2 with stride 1; allowed: stride 2"):
        surgery.dilate(make_network(shrink(CATALOG["resnetaa50"])), output_stride=16)


@pytest.mark.parametrize("dilated", [(False, False, True), (False, True, True)])
def test_a_dilated_network_equals_that_of_torchvision(dilated):
    theirs = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 2, 1, 2])
    theirs = randomize_norms(theirs.double())
    replaced = torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck, [1, 2, 1, 2], replace_stride_with_dilation=list(dilated)
    )
    replaced = replaced.double().eval()
    replaced.load_state_dict(theirs.state_dict())
    stages = tuple(replace(stage, blocks=n) for n, stage in zip((1, 2, 1, 2), CATALOG["resnet50"].stages, strict=True))
    from resnetkit.weights.dialects import TORCHVISION

    ours = build(replace(CATALOG["resnet50"], stages=stages), device="meta", dtype=torch.float64)
    state = theirs.state_dict()
    table = TORCHVISION.map_tensors(ours.plan)
    ours.load_state_dict({key: state[foreign] for key, foreign in table.items()}, assign=True)
    new_model, _ = surgery.dilate(ours.eval(), stages=[i for i, on in enumerate(dilated, 2) if on])
    x = torch.randn(1, 3, 33, 40, dtype=torch.float64)
    with torch.inference_mode():
        assert relative_difference(new_model(x), replaced(x)) <= 1e-12


@pytest.mark.parametrize("name", ["attention", "channel-attention", "group-norm"])
def test_dilation_with_map_statistics_is_reported_as_inexact(name):
    model = make_network(name)
    new_model, report = surgery.dilate(model, stages=2)
    (proof,) = report.verifications
    assert proof.limit is None
    assert proof.is_within_limit
    assert "over the whole map" in proof.reason or "from the whole map" in proof.reason
    x = make_images(model, 1)
    measured = relative_difference(compute_map(new_model, "stage2", x)[..., ::2, ::2], compute_map(model, "stage2", x))
    assert measured > 1e-4
    assert proof.difference > 1e-4
    assert str(proof).startswith(f"not exact ({proof.reason}): the maps of stage2")


def test_stages_lose_their_stride_from_the_last_on_and_regain_it():
    model = make_network(DEEP)
    two, _ = surgery.dilate(model, output_stride=2)
    assert [stage.reduce.atrous for stage in two.card.spec.stages] == [False, False, True]
    dense, _ = surgery.dilate(two, output_stride=1)
    assert [stage.reduce.atrous for stage in dense.card.spec.stages] == [False, True, True]
    back, report = surgery.dilate(dense, output_stride=4)
    assert back.card.spec == model.card.spec
    assert report.verifications[0].limit == 1e-12
    x = make_images(model)
    assert torch.equal(compute_output(back, x), compute_output(model, x))
    only, _ = surgery.dilate(dense, stages=["stage2"])
    assert [stage.reduce.atrous for stage in only.card.spec.stages] == [False, True, False]
    assert relative_difference(compute_map(only, "stage3", x)[..., ::2, ::2], compute_map(model, "stage3", x)) <= 1e-12


def test_strides_that_do_not_divide_are_compared_on_a_common_grid():
    model = make_network(replace(DEEP, stages=(*DEEP.stages[:2], replace(DEEP.stages[2], reduce=s.FirstBlock(3)))))
    first, _ = surgery.dilate(model, stages=3)
    new_model, report = surgery.dilate(first, stages=2)
    assert (first.plan.root.stride, new_model.plan.root.stride) == (2, 3)
    assert "common grid of 6 pixels" in report.verifications[0].subject
    x = make_images(model, 1, (37, 31))
    assert (
        relative_difference(
            compute_map(new_model, "stage3", x)[..., ::2, ::2], compute_map(first, "stage3", x)[..., ::3, ::3]
        )
        <= 1e-12
    )


# ---------------------------------------------------------------------------------------------- channels of the image


@pytest.mark.parametrize("name", ["basic-b", "bottleneck", "deep-stem", "pre", "vgg", "biases"])
def test_one_channel_equals_the_rgb_network_on_a_repeated_image(name):
    model = make_network(name)
    new_model, report = surgery.input_channels(model, 1)
    first = f"{model.plan.nodes[0].path}.weight"
    assert report.adapted == {first: "the sum of 3 channels"}
    assert torch.equal(new_model.state_dict()[first], model.state_dict()[first].sum(1, keepdim=True))
    x = make_images(model)[:, :1]
    assert relative_difference(compute_output(new_model, x), compute_output(model, x.expand(-1, 3, -1, -1))) <= 1e-12
    card = new_model.card.preparation
    assert (card.mean, card.std) == (pytest.approx((0.449,)), pytest.approx((0.226,)))
    assert (card.resize, card.crop) == (model.card.preparation.resize, model.card.preparation.crop)


def test_methods_for_more_input_channels():
    model = make_network()
    x = make_images(model)
    grey = x[:, :1]
    zero, mean, cyclic = (surgery.input_channels(model, 5, method=method)[0] for method in ("zero", "mean", "cyclic"))
    expected = compute_output(model, x)
    anything = torch.cat([x, 100 * torch.rand_like(x[:, :2])], 1)
    assert relative_difference(compute_output(zero, anything), expected) <= 1e-12
    assert (
        relative_difference(
            compute_output(mean, grey.expand(-1, 5, -1, -1)), compute_output(model, grey.expand(-1, 3, -1, -1))
        )
        <= 1e-12
    )
    assert relative_difference(compute_output(cyclic, x[:, [0, 1, 2, 0, 1]]), expected) <= 1e-12
    weight = {m: m.state_dict()["stem.conv1.weight"] for m in (model, zero, mean, cyclic)}
    assert not weight[zero][:, 3:].any()
    assert torch.allclose(weight[mean][:, 3], weight[model].mean(1) * 3 / 5)
    assert torch.equal(weight[cyclic][:, 3], weight[model][:, 0] / 2)
    assert torch.equal(weight[cyclic][:, 2], weight[model][:, 2])
    for new_model in (zero, mean, cyclic):
        assert new_model.card.preparation.mean == (*model.card.preparation.mean, 0, 0)
        assert new_model.card.preparation.std == (*model.card.preparation.std, 1, 1)


def test_several_channels_from_one_divide_its_weights():
    model = make_network("silu-grey")
    new_model, report = surgery.input_channels(model, 3)
    assert report.adapted == {"stem.conv1.weight": "1/3 for each channel"}
    x = make_images(model)
    assert relative_difference(compute_output(new_model, x.expand(-1, 3, -1, -1)), compute_output(model, x)) <= 1e-12
    assert new_model.card.preparation.mean == (0.5, 0.5, 0.5)


def test_the_same_number_of_channels_changes_nothing():
    model = make_network()
    new_model, report = surgery.input_channels(model, 3)
    assert set(report.kept) == set(model.state_dict())
    assert (new_model.card, report.verifications) == (model.card, ())


# ------------------------------------------------------------------------------------------- classes, heads, features


def test_classes_of_the_same_name_keep_their_rows():
    model = make_network(classes=["cat", "dog", "owl"])
    new_model, report = surgery.classes(model, ["emu", "owl", "cat"], seed=4)
    old, new = model.head.linear, new_model.head.linear
    assert torch.equal(new.weight[[1, 2]], old.weight[[2, 0]])
    assert torch.equal(new.bias[[1, 2]], old.bias[[2, 0]])
    assert not any(torch.equal(new.weight[0], row) for row in old.weight)
    assert new_model.card.classes == ("emu", "owl", "cat")
    x = make_images(model)
    assert torch.equal(compute_output(new_model, x)[:, [1, 2]], compute_output(model, x)[:, [2, 0]])
    assert set(report.adapted) == {"head.linear.weight", "head.linear.bias"}
    assert report.adapted["head.linear.bias"] == "2 of 3 rows kept, by name"
    assert report.dropped == ()
    again, _ = surgery.classes(model, ["emu", "owl", "cat"], seed=4)
    other_seed, _ = surgery.classes(model, ["emu", "owl", "cat"], seed=5)
    assert torch.equal(again.head.linear.weight, new.weight)
    assert not torch.equal(other_seed.head.linear.weight[0], new.weight[0])


def test_classes_in_another_order_are_the_same_logits_in_that_order():
    names = ["a", "b", "c", "d"]
    model = make_network(classes=names)
    new_model, _ = surgery.classes(model, names[::-1])
    x = make_images(model)
    assert torch.equal(compute_output(new_model, x), compute_output(model, x).flip(1))


@pytest.mark.parametrize("wanted", [5, ["v", "w", "x", "y", "z"]])
def test_classes_without_a_common_name_start_again(wanted):
    model = make_network(classes=["a", "b", "c", "d", "e"], seed=3)
    new_model, report = surgery.classes(model, wanted)
    assert set(report.initialized) == {"head.linear.weight", "head.linear.bias"} == set(report.dropped)
    assert not torch.equal(new_model.head.linear.weight, model.head.linear.weight)
    assert report.verifications == ()
    assert new_model.card.classes == (() if wanted == 5 else tuple(wanted))


def test_another_classifier_keeps_hidden_layers():
    model = make_network("vgg", classes=["a", "b"])
    new_model, report = surgery.classes(model, ["b", "c", "d"])
    assert new_model.card.spec.head == replace(model.card.spec.head, classes=3)
    assert {"head.linear1.weight", "head.linear2.bias"} <= set(report.kept)
    x = make_images(model)
    assert relative_difference(compute_output(new_model, x)[:, 0], compute_output(model, x)[:, 1]) <= 1e-12


@pytest.mark.parametrize("name", ["headless", "pooled"])
def test_a_network_without_a_classifier_gets_one(name):
    model = make_network(name)
    new_model, report = surgery.classes(model, 4)
    assert new_model.card.spec.head == s.Linear(4)
    assert compute_output(new_model, make_images(model)).shape == (2, 4)
    assert set(report.initialized) == {"head.linear.weight", "head.linear.bias"}


@pytest.mark.parametrize("name", ["basic-b", "pre", "vgg", "last-block", "bottleneck"])
def test_networks_without_a_classifier(name):
    model = make_network(name)
    x = make_images(model)
    bare, _ = surgery.head(model, "none")
    last = compute_map(model, "stage2", x)
    assert torch.equal(compute_output(bare, x), last)
    pooled, _ = surgery.head(model, "pooled")
    seen = model.head.act(model.head.norm(last)) if name == "pre" else last
    assert relative_difference(compute_output(pooled, x), seen.mean((2, 3)).detach()) <= 1e-12
    assert bare.card.classes == pooled.card.classes == ()


@pytest.mark.parametrize("name", ["basic-b", "pre-last-block", "last-block", "vgg", "blurred", "three-stages", "pre"])
def test_a_cut_network_returns_the_map_of_the_whole_one(name):
    model = make_network(name)
    x = make_images(model)
    places = [path for path, part in model.plan.parts.items() if part.role in ("stage", "block")]
    for place in places:
        new_model, report = surgery.cut(model, place)
        assert torch.equal(compute_output(new_model, x), compute_map(model, place, x)), place
        assert new_model.plan.output == model.plan[place].output, place
        assert set(report.kept) == {key for key in model.state_dict() if key in new_model.state_dict()}
        assert not report.initialized
        assert report.dropped or place == places[-1]


@pytest.mark.parametrize("name", ["three-stages", "pre", "deep-stem", "vgg", "no-stem"])
def test_a_backbone_returns_the_maps_of_its_stages(name):
    model = make_network(name)
    chosen = (1, 2) if name == "three-stages" else (2,)
    new_model, report = surgery.features(model, chosen)
    assert isinstance(new_model, Backbone)
    x = make_images(model)
    actual, names = compute_output(new_model, x), [f"stage{i}" for i in chosen]
    assert list(actual) == list(new_model.feature_info) == names
    for stage in names:
        assert torch.equal(actual[stage], compute_map(model, stage, x))
        info, planned = new_model.feature_info[stage], model.plan[stage]
        assert info.output == planned.output == actual[stage].shape[1:]
        assert (info.stride, info.receptive_field) == (planned.stride, planned.receptive_field)
        c, field = planned.output[0], planned.receptive_field
        assert f"{stage}: {c} channels, stride {planned.stride}, receptive field {field}" in report.notes
    assert {f"stage{chosen[-1] + 1}", "head"}.isdisjoint(dict(new_model.named_children()))


@pytest.mark.parametrize("selection", [2, "stage2", "2", [2], ("stage2",), range(2, 3), {2}])
def test_ways_to_select_stages(selection):
    model = make_network()
    assert surgery.features(model, selection)[0].card.spec.head == s.Features((2,))
    assert surgery.dilate(model, stages=selection)[0].card.spec.stages[1].reduce.atrous
    assert not any(p.requires_grad for p in surgery.freeze(model, selection)[0].stage2.parameters())


def test_a_backbone_trains_with_a_feature_pyramid():
    new_model, _ = surgery.features(make_network(DEEP, dtype=torch.float32), (1, 3))
    pyramid = torchvision.ops.FeaturePyramidNetwork([place.output[0] for place in new_model.feature_info.values()], 6)
    maps = pyramid(OrderedDict(new_model.train()(make_images(new_model))))
    assert {name: tuple(m.shape[1:]) for name, m in maps.items()} == {
        name: (6, *place.output[1:]) for name, place in new_model.feature_info.items()
    }
    sum(m.square().mean() for m in maps.values()).backward()
    assert all(p.grad is not None for p in new_model.parameters())


def test_a_backbone_is_saved_and_read_again(tmp_path, cli, pictures):
    new_model, _ = surgery.features(make_network(DEEP, dtype=torch.float32), (1, 3))
    save(new_model, tmp_path / "backbone")
    read = load(tmp_path / "backbone")
    assert isinstance(read, Backbone)
    x = make_images(new_model)
    assert all(
        torch.equal(compute_output(read, x)[name], actual) for name, actual in compute_output(new_model, x).items()
    )
    data = pictures("data", ["a", "b"])
    for words in (["predict", data / "a" / "0.png", "--model"], ["evaluate"]):
        more = [data] if words == ["evaluate"] else []
        code, out, err = cli(*words, tmp_path / "backbone", *more)
        assert (code, out) == (2, ""), err
        assert "classifier" in err or "classes" in err, err


@pytest.mark.parametrize("chosen", [(), (1,), (2, 1), (1, 1, 2), (0, 2), (2, 3)])
def test_invalid_stages_of_a_backbone(chosen):
    with pytest.raises(SpecError) as caught:
        build(replace(BASE, head=s.Features(chosen)))
    (fault,) = caught.value.faults
    assert str(fault) == f"head.stages: got {list(chosen)}; allowed: stages of 1 to 2 in ascending order, with 2"


# ------------------------------------------------------------------------------------------------------------- norms


@pytest.mark.parametrize("name", [n for n in TINY if isinstance(TINY[n].norm, s.BatchNorm)])
def test_folded_norms_give_the_same_outputs(name):
    model = make_network(name, dtype=torch.float32)
    new_model, report = surgery.fold_norms(model)
    x = make_images(model)
    assert relative_difference(compute_output(new_model, x), compute_output(model, x)) <= 1e-5
    kept = [path for path, module in new_model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    pre = [node.path for node in model.plan.nodes if node.role in ("pre-norm", "head-norm")]
    assert kept == pre
    gone = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) - len(pre)
    before, after = len(model.plan.nodes), len(new_model.plan.nodes)
    assert before - after == gone
    assert report.notes[-1] == f"{before} operations -> {after}: {gone} norms fewer to run"


@pytest.mark.parametrize("name", ["basic-b", "biases", "bottleneck", "pre-bottleneck"])
def test_folded_weights_are_those_of_torch(name):
    model = make_network(name)
    new_model, _ = surgery.fold_norms(model)
    for node in model.plan.nodes:
        head, _, word = node.path.rpartition(".")
        if word.startswith("norm") and node.role not in ("pre-norm", "head-norm"):
            path = f"{head}.{word.replace('norm', 'conv')}"
            fused = fuse_conv_bn_eval(model.get_submodule(path), model.get_submodule(node.path))
            ours = new_model.get_submodule(path)
            assert relative_difference(ours.weight, fused.weight) <= 1e-12
            assert relative_difference(ours.bias, fused.bias) <= 1e-12


def test_a_folded_network_is_an_ordinary_one(tmp_path):
    new_model, _ = surgery.fold_norms(make_network(dtype=torch.float32))
    save(new_model, tmp_path / "folded")
    read = load(tmp_path / "folded")
    x = make_images(new_model)
    assert torch.equal(compute_output(read, x), compute_output(new_model, x))
    wider, _ = surgery.widen(surgery.insert(read, "stage2.block2")[0], 1, 12)
    assert relative_difference(compute_output(wider, x), compute_output(new_model, x)) <= 1e-5


def test_group_norm_is_refitted_by_least_squares():
    model = make_network(replace(BASE, norm=s.BatchNorm(1e-3)))
    images = make_images(model, 12)
    new_model, report = surgery.group_norm(model, images, 4)
    convolved = compute_map(model, "stem.conv1", images)
    wanted = model.stem.norm1(convolved)
    plain = nn.functional.group_norm(convolved, 4, eps=1e-3)
    for c in range(8):
        given = plain[:, c].flatten().numpy()
        table = np.stack([given, np.ones_like(given)], 1)
        (scale, shift), *_ = np.linalg.lstsq(table, wanted[:, c].detach().flatten().numpy())
        assert new_model.stem.norm1.weight[c].item() == pytest.approx(scale, rel=1e-9)
        assert new_model.stem.norm1.bias[c].item() == pytest.approx(shift, rel=1e-9, abs=1e-12)
    assert new_model.card.spec.norm == s.GroupNorm(4, 1e-3)
    raw = transfer(model, new_model.card)
    x = make_images(model, 8, seed=3)
    expected = compute_output(model, x)
    assert relative_difference(compute_output(new_model, x), expected) < 0.7 * relative_difference(
        compute_output(raw, x), expected
    )
    same = int((compute_output(new_model, images).argmax(1) == compute_output(model, images).argmax(1)).sum())
    assert f"{same} of 12 images keep their predicted class" in report.notes
    (proof,) = report.verifications
    assert proof.limit is None
    assert proof.difference == pytest.approx(
        relative_difference(compute_output(new_model, images), compute_output(model, images)), rel=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_group_norm_of_16_bits_is_fitted_in_fp64(dtype):
    fine = make_network(dtype=torch.float32)
    with torch.no_grad():
        fine.stem.conv1.weight[:2] = 0
    model = copy.deepcopy(fine).to(dtype)
    images = make_images(fine, 6)
    (new_model, _), (expected, _) = surgery.group_norm(model, images, 4), surgery.group_norm(fine, images, 4)
    for key, value in new_model.state_dict().items():
        assert torch.isfinite(value).all(), key
        if ".norm" in key:
            assert relative_difference(value.float(), expected.state_dict()[key]) < 0.1, key


# ------------------------------------------------------------------------------------------------------------ learning


def train(model, count=3, seed=5):
    """Train for a few steps with the same random numbers for every model."""
    torch.manual_seed(seed)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05)
    for i in range(count):
        optimiser.zero_grad()
        answer = model.train()(make_images(model, 4, seed=i))
        answer = torch.cat([a.flatten(1) for a in answer.values()], 1) if isinstance(answer, dict) else answer
        answer.square().mean().backward()
        optimiser.step()
    return model


def find_changed_keys(model, before):
    return {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}


def select_within(keys, *places):
    return {key for key in keys if key.startswith(tuple(f"{place}." for place in places))}


@pytest.mark.parametrize("norms", [True, False])
def test_frozen_parts_do_not_change(norms):
    new_model, report = surgery.freeze(make_network(DEEP).train(), ["stem", 1, "stage2.block1"], norms=norms)
    before = {key: value.clone() for key, value in new_model.state_dict().items()}
    train(new_model)
    frozen = select_within(before, "stem", "stage1", "stage2.block1")
    buffers = {key for key, _ in new_model.named_buffers()}
    assert find_changed_keys(new_model, before) == set(before) - (frozen if norms else frozen - buffers)
    assert all((p.grad is None) == (key in frozen) for key, p in new_model.named_parameters())
    still = sum(p.numel() for key, p in new_model.named_parameters() if key in frozen)
    count = 8 if norms else 0
    what = f"{still:,} of {new_model.plan.params:,} params are frozen, {count} norms keep their statistics"
    assert report.notes == (what,)


def test_frozen_norms():
    new_model, _ = surgery.freeze_norms(make_network().train())
    before = {key: value.clone() for key, value in new_model.state_dict().items()}
    train(new_model)
    assert find_changed_keys(new_model, before) == {key for key in before if ".norm" not in key}


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: surgery.dilate(m, stages=3),
        lambda m: surgery.insert(m, "stage1.block1"),
        lambda m: surgery.remove(m, "stage1.block2"),
        lambda m: surgery.remove(m, "stage1"),
        lambda m: surgery.classes(m, 3),
        lambda m: surgery.freeze(m, 3),
        lambda m: surgery.checkpoint(m, 2),
        lambda m: surgery.widen(m, 2, 20),
        lambda m: (copy.deepcopy(m), None),
    ],
    ids=["dilate", "insert", "block", "stage", "classes", "freeze", "checkpoint", "widen", "copy"],
)
def test_frozen_parts_stay_frozen_after_edits(edit):
    model, _ = surgery.freeze(make_network(DEEP), 2)
    new_model, _ = edit(model)
    place = "stage1" if len(new_model.card.spec.stages) == 2 else "stage2"
    before = {key: value.clone() for key, value in new_model.state_dict().items()}
    train(new_model)
    changed = find_changed_keys(new_model, before)
    assert not select_within(changed, place)
    assert select_within(changed, "stem")
    assert select_within(changed, "head")


def test_a_completely_frozen_network_can_be_edited():
    model, _ = surgery.freeze(make_network(), ["stem", 1, 2, "head"])
    for new_model, _ in (surgery.checkpoint(model, 1), surgery.dilate(model, stages=2), surgery.freeze_norms(model)):
        assert not any(p.requires_grad for p in new_model.parameters())
    learns, _ = surgery.classes(model, 3)
    assert [key for key, p in learns.named_parameters() if p.requires_grad] == [
        "head.linear.weight",
        "head.linear.bias",
    ]


@pytest.mark.parametrize("name", ["basic-b", "stochastic", "biases", "group-norm", "pre-bottleneck"])
def test_recomputed_stages_train_equally(name):
    model = make_network(name)
    new_model, report = surgery.checkpoint(model, [1, 2])
    assert isinstance(new_model.stage1, CheckpointedStage)
    assert isinstance(new_model.stage2, CheckpointedStage)
    assert set(report.kept) == set(model.state_dict())
    plain, again = train(copy.deepcopy(model)), train(new_model)
    for key, value in plain.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    assert all(int(v) == 3 for key, v in again.state_dict().items() if key.endswith("num_batches_tracked"))
    for (key, a), b in zip(plain.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), key


def test_recomputing_repeats_dropout():
    model = make_network(replace(TINY["vgg"], head=s.MLP(5, (16,), 2, 0.5)))
    new_model, _ = surgery.checkpoint(model, 2)
    plain, again = train(copy.deepcopy(model)), train(new_model)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        (lambda m: surgery.dilate(m, stages=3), ["stage2"]),
        (lambda m: surgery.insert(m, "stage2.block1"), ["stage2"]),
        (lambda m: surgery.remove(m, "stage1"), ["stage1"]),
        (lambda m: surgery.remove(m, "stage2"), []),
        (lambda m: surgery.features(m, (2,)), ["stage2"]),
        (lambda m: surgery.freeze(m, 2), ["stage2"]),
        (lambda m: surgery.checkpoint(m, 1), ["stage1", "stage2"]),
        (lambda m: (copy.deepcopy(m), None), ["stage2"]),
    ],
    ids=["dilate", "insert", "before", "gone", "features", "freeze", "again", "copy"],
)
def test_recomputed_stages_stay_after_edits(edit, names):
    model, _ = surgery.checkpoint(make_network(DEEP), 2)
    new_model, _ = edit(model)
    assert [name for name, part in new_model.named_children() if isinstance(part, CheckpointedStage)] == names
    train(new_model, 1)


def test_verification_keeps_the_random_state():
    model = make_network("stochastic").train()
    rng_state = torch.random.get_rng_state()
    for edit in (surgery.freeze, surgery.checkpoint, surgery.features):
        edit(model, 2)
    surgery.group_norm(model, make_images(model), 4)
    assert torch.equal(torch.random.get_rng_state(), rng_state)


def test_recomputed_and_frozen():
    model, _ = surgery.freeze(make_network(), ["stem", 1])
    new_model, _ = surgery.checkpoint(model, [1, 2])
    before = {key: value.clone() for key, value in new_model.state_dict().items()}
    plain, again = train(copy.deepcopy(model)), train(new_model)
    assert find_changed_keys(again, before) == set(before) - select_within(before, "stem", "stage1")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in plain.state_dict().items())


def test_a_saved_network_is_neither_frozen_nor_recomputed(tmp_path):
    model, _ = surgery.freeze(surgery.checkpoint(make_network(dtype=torch.float32), 1)[0], 2)
    save(model, tmp_path / "m")
    read = load(tmp_path / "m")
    assert read.frozen_paths == frozenset()
    assert all(p.requires_grad for p in read.parameters())
    assert not isinstance(read.stage1, CheckpointedStage)
    x = make_images(model)
    assert torch.equal(compute_output(read, x), compute_output(model, x))


# ----------------------------------------------------------------------------------------- blocks, widths, shortcuts

GROWS = [n for n in TINY if TINY[n].order == "norm-act-conv" or TINY[n].activation == "relu"]
PLAIN_LIMITED = {"pre-plain", "last-block", "pre-last-block"}


@pytest.mark.parametrize("name", [n for n in GROWS if n not in PLAIN_LIMITED])
def test_new_blocks_start_as_the_identity(name):
    model = make_network(name)
    x = make_images(model)
    expected = compute_output(model, x)
    for after in ("stage1.block1", f"stage2.block{TINY[name].stages[1].blocks}"):
        new_model, report = surgery.insert(model, after, 2)
        assert relative_difference(compute_output(new_model, x), expected) <= 1e-9, after
        assert (
            sum(stage.blocks for stage in new_model.card.spec.stages)
            == len([part for part in model.plan.parts.values() if part.role == "block"]) + 2
        )
        head, number = after[:-1], int(after[-1])
        new = {f"{head}{number + 1}", f"{head}{number + 2}"}
        assert {".".join(key.split(".")[:2]) for key in report.initialized} == new
        assert not report.adapted
        assert not report.dropped
    trained = train(new_model, 1)
    assert all(any(p.grad.any() for p in trained.get_submodule(block).parameters()) for block in new)
    deeper, _ = surgery.deepen(model, [stage.blocks + i for i, stage in enumerate(model.card.spec.stages)])
    assert relative_difference(compute_output(deeper, x), expected) <= 1e-9


def test_new_blocks_renumber_later_ones():
    model = make_network(DEEP)
    new_model, report = surgery.insert(model, "stage2.block1", 2)
    old, new = model.state_dict(), new_model.state_dict()
    later = select_within(old, "stage2.block2")
    assert report.renamed == {key.replace("block2", "block4"): key for key in later}
    assert all(torch.equal(new[key.replace("block2", "block4")], old[key]) for key in later)


def test_a_last_block_with_the_stride_stays_the_last():
    model = make_network("last-block")
    x = make_images(model)
    new_model, report = surgery.deepen(model, [3, 4])
    assert relative_difference(compute_output(new_model, x), compute_output(model, x)) <= 1e-12
    assert report.renamed["stage2.block4.branch.conv1.weight"] == "stage2.block2.branch.conv1.weight"
    inside, _ = surgery.insert(model, "stage2.block1")
    assert relative_difference(compute_output(inside, x), compute_output(model, x)) <= 1e-12


@pytest.mark.parametrize("name", ["basic-b", "bottleneck", "bottleneck-v1", "plain", "pre", "pre-bottleneck", "biases", "no-norm",
                                  "attention", "blurred", "stochastic", "basic-a"])  # fmt: skip
def test_wider_branches_give_the_same_outputs(name):
    model = make_network(name)
    x = make_images(model)
    for stage in (1, 2):
        before = model.card.spec.stages[stage - 1].branch.width
        width = before + 4 if stage == 1 else 3 * before
        new_model, report = surgery.widen(model, stage, width, seed=2)
        assert new_model.card.spec.stages[stage - 1].branch.width == width
        assert relative_difference(compute_output(new_model, x), compute_output(model, x)) <= 1e-12
        assert report.adapted
        assert set(report.adapted) == select_within(report.adapted, f"stage{stage}")
        if name != "stochastic":
            learning, learned = copy.deepcopy(new_model).train()(x), copy.deepcopy(model).train()(x)
            torch.testing.assert_close(learning, learned, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_whole_groups_are_copied_and_removed(groups):
    stages = (s.Stage(2, 16, s.Bottleneck(8, groups)), s.Stage(1, 16, s.Bottleneck(16, groups)))
    model = make_network(replace(BASE, stages=stages))
    x = make_images(model)
    unit = 8 // groups
    new_model, _ = surgery.widen(model, 1, 8 + 3 * unit)
    assert new_model.card.spec.stages[0].branch == s.Bottleneck(8 + 3 * unit, groups + 3)
    assert relative_difference(compute_output(new_model, x), compute_output(model, x)) <= 1e-12
    small, _ = surgery.prune(model, 0.5, stages=1)
    assert small.card.spec.stages[0].branch == s.Bottleneck(4, groups // 2)
    path = "stage1.block1.branch"
    old, new = model.get_submodule(path), small.get_submodule(path)
    strength = compute_filter_norms(old, 1).reshape(groups, unit).sum(1)
    kept = sorted(strength.argsort(descending=True)[: groups // 2].tolist())
    rows = [g * unit + i for g in kept for i in range(unit)]
    assert torch.equal(new.conv1.weight, old.conv1.weight[rows])
    assert torch.equal(new.conv2.weight, old.conv2.weight[rows])
    assert torch.equal(new.conv3.weight, old.conv3.weight[:, rows])
    if unit > 1:
        assert f"a multiple of {unit}, the channels of a group" in get_usage_error(
            surgery.widen, model, 1, 8 + unit + 1
        )


def compute_filter_norms(branch, i):
    """Compute the norm of each filter with the batch norm behind it."""
    conv, norm = getattr(branch, f"conv{i}"), getattr(branch, f"norm{i}")
    size = torch.stack([filter.square().sum().sqrt() for filter in conv.weight])
    return (size * norm.weight.abs() / norm.running_var.sqrt()).detach()


def test_pruning_removes_the_weakest_channels():
    model = make_network("bottleneck")
    new_model, report = surgery.prune(model, 0.5)
    for stage, b in itertools.product((1, 2), (1, 2)):
        path = f"stage{stage}.block{b}.branch"
        old, new = model.get_submodule(path), new_model.get_submodule(path)
        if stage == 1:
            first, second = (sorted(compute_filter_norms(old, i).argsort(descending=True)[:4].tolist()) for i in (1, 2))
            assert torch.equal(new.conv1.weight, old.conv1.weight[first])
            assert torch.equal(new.norm1.running_mean, old.norm1.running_mean[first])
            assert torch.equal(new.conv2.weight, old.conv2.weight[second][:, first])
            assert torch.equal(new.norm2.bias, old.norm2.bias[second])
            assert torch.equal(new.conv3.weight, old.conv3.weight[:, second])
            assert torch.equal(new.norm3.weight, old.norm3.weight)
    assert [stage.branch.width for stage in new_model.card.spec.stages] == [4, 8]
    before, after = plan(model.card.spec), plan(new_model.card.spec)
    assert f"params {before.params:,} -> {after.params:,} ({after.params / before.params:.3g} times)" in report.notes
    assert f"MACs {before.macs:,} -> {after.macs:,} ({after.macs / before.macs:.3g} times)" in report.notes
    assert sum(p.numel() for p in new_model.parameters()) == after.params


def test_branches_wider_than_their_stage_are_pruned_too():
    model = make_network(replace(BASE, stages=(s.Stage(2, 4, s.Basic(12)), s.Stage(1, 8, s.Basic(16)))))
    new_model, _ = surgery.prune(model, 0.75)
    assert [stage.branch.width for stage in new_model.card.spec.stages] == [9, 12]
    old, new = model.stage1.block2.branch, new_model.stage1.block2.branch
    rows = sorted(compute_filter_norms(old, 1).argsort(descending=True)[:9].tolist())
    assert torch.equal(new.conv1.weight, old.conv1.weight[rows])
    assert torch.equal(new.conv2.weight, old.conv2.weight[:, rows])


def test_pruning_dead_channels_keeps_the_outputs():
    model = make_network()
    with torch.no_grad():
        for b, dead in (("block1", [0, 3, 4, 7]), ("block2", [1, 2, 5, 6])):
            model.get_submodule(f"stage1.{b}.branch.norm1").weight[dead] = 0
            model.get_submodule(f"stage1.{b}.branch.norm1").bias[dead] = 0
    new_model, _ = surgery.prune(model, 0.5, stages="stage1")
    x = make_images(model)
    assert relative_difference(compute_output(new_model, x), compute_output(model, x)) <= 1e-12


@pytest.mark.parametrize(
    ("gone", "stages"),
    [
        (["stage1.block2"], [[1], [1, 2], [1, 2]]),
        (["stage1.block1"], [[2], [1, 2], [1, 2]]),
        (["stage2.block2", "stage3.block2"], [[1, 2], [1], [1]]),
        (["stage3"], [[1, 2], [1, 2]]),
        (["stage2.block1", "stage2.block2"], [[1, 2], [], [1, 2]]),
    ],
)
def test_remaining_blocks_are_renumbered(gone, stages):
    model = make_network(DEEP)
    new_model, report = surgery.remove(model, *gone)
    left = [(i, blocks) for i, blocks in enumerate(stages, 1) if blocks]
    assert [stage.blocks for stage in new_model.card.spec.stages] == [len(blocks) for _, blocks in left]
    for now, (i, blocks) in enumerate(left, 1):
        for b, old in enumerate(blocks, 1):
            old_state, new_state = (m.get_submodule(p).state_dict() for m, p in
                          ((model, f"stage{i}.block{old}"), (new_model, f"stage{now}.block{b}")))  # fmt: skip
            fresh = select_within(report.initialized, f"stage{now}.block{b}")
            assert bool(fresh) == (i == 3 and not stages[1] and old == 1)
            for key, value in new_state.items():
                if f"stage{now}.block{b}.{key}" not in fresh:
                    assert torch.equal(value, old_state[key])
    check_report(model, new_model, report)


def test_a_backbone_renumbers_its_maps_after_a_removal():
    model, _ = surgery.features(make_network(DEEP), (1, 3))
    new_model, _ = surgery.remove(model, "stage2")
    assert list(compute_output(new_model, make_images(new_model))) == ["stage1", "stage2"]
    less, _ = surgery.remove(model, "stage1")
    assert list(compute_output(less, make_images(less))) == ["stage2"]
    with pytest.raises(FaultsError, match="these parts cannot be removed"):
        surgery.remove(model, "stage1", "stage2", "stage3")


def test_other_strides():
    model = make_network("imagenet-stem")
    for path, stride, expected in (("stage2", 1, 4), ("stem.pool", 1, 4), ("stem.conv1", 1, 4), ("pool", 3, 12)):
        new_model, report = surgery.restride(model, path, stride)
        assert new_model.plan.root.stride == expected
        changes = {key.split(".conv")[0].split(".norm")[0] for key in report.dropped}
        assert changes <= {"stage2.block1.shortcut"}
        assert report.verifications == ()
        assert report.notes[-1] == OUTPUT_CHANGED_NOTE
    same = replace(BASE, stages=(BASE.stages[0], replace(BASE.stages[0])))
    new_model, report = surgery.restride(make_network(same), "stage2", 2)
    assert set(report.initialized) == select_within(new_model.state_dict(), "stage2.block1.shortcut")
    back, report = surgery.restride(new_model, "stage2", 1)
    assert set(report.dropped) == select_within(new_model.state_dict(), "stage2.block1.shortcut")
    assert back.card.spec == same


def test_other_stems_keep_the_center_of_a_kernel():
    model = make_network("imagenet-stem")
    small, report = surgery.stem(model, "cifar")
    assert torch.equal(small.stem.conv1.weight, model.stem.conv1.weight[..., 2:5, 2:5])
    assert report.adapted == {"stem.conv1.weight": "the center 3x3 of 7x7"}
    assert {"stem.norm1.weight", "stem.norm1.running_var"} <= set(report.kept)
    assert small.plan.root.stride == 2
    large, report = surgery.stem(small, "imagenet")
    assert report.adapted == {"stem.conv1.weight": "3x3 padded with zeros"}
    assert torch.equal(large.stem.conv1.weight[..., 2:5, 2:5], small.stem.conv1.weight)
    with torch.no_grad():
        large.stem.conv1.weight[..., 2:5, 2:5] = 0
    assert not large.stem.conv1.weight.any()
    deep, report = surgery.stem(model, "deep")
    assert select_within(report.initialized, "stem") == select_within(deep.state_dict(), "stem")
    own, _ = surgery.stem(model, s.Stem((s.Conv(8, 5, 2),), ()))
    assert torch.equal(own.stem.conv1.weight, model.stem.conv1.weight[..., 1:6, 1:6])


@pytest.mark.parametrize(
    ("start", "option", "exact"),
    [("basic-a", "B", True), ("basic-a-end", "B", True), ("basic-a", "C", True), ("basic-b", "C", True),
     ("basic-b", "A", False), ("basic-c", "B", False), ("basic-b", "D", False), ("basic-b", "none", False),
     ("plain", "B", False), ("pre-a", "B", False), ("basic-b", "B", True)],
)  # fmt: skip
def test_other_shortcuts(start, option, exact):
    model = make_network(start)
    new_model, report = surgery.shortcuts(model, option)
    x = make_images(model)
    assert bool(report.verifications) == exact
    assert (relative_difference(compute_output(new_model, x), compute_output(model, x)) <= 1e-12) == exact
    if start == "basic-b" and option == "C":
        assert {"stage2.block1.shortcut.conv.weight", "stage2.block1.shortcut.norm.weight"} <= set(report.kept)
    if exact and new_model.card.spec != model.card.spec:
        trained = train(new_model, 1)
        assert all(
            p.grad.abs().max() > 0 for key, p in trained.named_parameters() if key.endswith("shortcut.conv.weight")
        )


# ------------------------------------------------------------------------------------------------- types and failures

SAFE = {
    "dilate": lambda m: surgery.dilate(m, stages=2),
    "grey": lambda m: surgery.input_channels(m, 1),
    "classes": lambda m: surgery.classes(m, ["b", "a"]),
    "head": lambda m: surgery.head(m, "pooled"),
    "cut": lambda m: surgery.cut(m, "stage1"),
    "features": lambda m: surgery.features(m, 2),
    "fold": surgery.fold_norms,
    "freeze": lambda m: surgery.freeze(m, 1),
    "checkpoint": lambda m: surgery.checkpoint(m, 1),
    "insert": lambda m: surgery.insert(m, "stage1.block1"),
    "widen": lambda m: surgery.widen(m, 1, 12),
    "shortcuts": lambda m: surgery.shortcuts(m, "C"),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", SAFE)
def test_edits_keep_every_type(name, dtype):
    model = make_network(classes=["a", "b"], dtype=dtype)
    new_model, report = SAFE[name](model)
    assert {p.dtype for p in new_model.parameters()} == {dtype}
    assert {b.dtype for k, b in new_model.named_buffers() if "tracked" not in k} <= {dtype}
    rounds = name in ("grey", "fold", "insert", "widen", "shortcuts") and dtype != torch.float64
    assert all((proof.limit is None) == rounds for proof in report.verifications)
    assert all("16-bit" in str(proof) for proof in report.verifications if rounds)
    assert all(proof.difference < 0.2 for proof in report.verifications)


@pytest.mark.parametrize("name", sorted(set(SAFE) - {"freeze"}))
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_nan_and_infinite_weights_fail_verification(name, number):
    model = make_network(classes=["a", "b"], dtype=torch.float32)
    with torch.no_grad():
        model.stem.conv1.weight[:] = number
    with pytest.raises(VerificationError) as caught:
        SAFE[name](model)
    assert caught.value.exit_code == 6
    assert "differ by inf" in caught.value.where[0]
    assert str(caught.value).startswith("error: the edited network failed verification and was discarded\nwhere: ")


def test_verification_detects_a_broken_edit(monkeypatch):
    model = make_network(classes=["a", "b"])
    monkeypatch.setattr(
        strides, "make_atrous", lambda spec, numbers: surgery.restride(make_network(), 2, 1)[0].card.spec
    )
    with pytest.raises(VerificationError, match="failed verification"):
        surgery.dilate(model, stages=2)
    monkeypatch.undo()
    monkeypatch.setattr(norms, "fold_conv", lambda m, eps, conv, norm: [(f"{conv}.weight", m[f"{conv}.weight"])])
    with pytest.raises(VerificationError, match="failed verification"):
        surgery.fold_norms(model)
    monkeypatch.undo()
    monkeypatch.setattr(widths, "repeat_channels", lambda weight, channels: weight[:, channels])
    with pytest.raises(VerificationError, match="failed verification"):
        surgery.widen(model, 1, 12)


# ------------------------------------------------------------------------------------------------------ what cannot be

ODD = [0, -1, 10**9, 2**70, True, 1.5, math.nan, math.inf, "", "x" * 400, None, [], [0], [1.5, None], (True,), b"1"]
TAKES = {
    "output stride": surgery.dilate,
    "dilated stages": lambda m, v: surgery.dilate(m, stages=v if v is not None else [None]),
    "restrided place": lambda m, v: surgery.restride(m, v, 2),
    "stride": lambda m, v: surgery.restride(m, "stage2", v),
    "stride of the stem": lambda m, v: surgery.restride(m, "stem.conv1", v),
    "stem": surgery.stem,
    "shortcuts": surgery.shortcuts,
    "block": surgery.insert,
    "blocks": lambda m, v: surgery.insert(m, "stage1.block1", v),
    "deepen one": lambda m, v: surgery.deepen(m, [v, 2]),
    "deepen": surgery.deepen,
    "remove": surgery.remove,
    "channels": surgery.input_channels,
    "method": lambda m, v: surgery.input_channels(m, 4, method=v),
    "classes": surgery.classes,
    "head": surgery.head,
    "cut": surgery.cut,
    "features": surgery.features,
    "groups": lambda m, v: surgery.group_norm(m, make_images(m), v),
    "images": lambda m, v: surgery.group_norm(m, v, 2),
    "freeze": surgery.freeze,
    "checkpoint": surgery.checkpoint,
    "widen": lambda m, v: surgery.widen(m, 1, v),
    "widened stage": lambda m, v: surgery.widen(m, v, 24),
    "prune": surgery.prune,
    "pruned stages": lambda m, v: surgery.prune(m, 0.5, stages=v if v is not None else [None]),
}


@pytest.mark.parametrize("what", TAKES)
def test_odd_values_raise_short_errors(what):
    model = make_network()
    for value in ODD:
        text = get_usage_error(TAKES[what], model, value)
        assert text.startswith("error: "), value
        assert len(text) < 900, value
        assert "\n" in text, f"{value!r} is not info what to do: {text}"


REFUSED = [
    ("basic-b", surgery.dilate,
     "give either an output stride or stages\nwhere: dilate\nfix: output_stride=8"),
    ("basic-b", lambda m: surgery.dilate(m, 1, stages=2),
     "give either an output stride or stages\nwhere: dilate\nfix: output_stride=8"),
    ("three-stages", lambda m: surgery.dilate(m, 4),
     "an output stride of 4 is not possible: the stages have strides 1, 2, 3\nwhere: output_stride\nfix: one of 1, 2, 6"),
    ("basic-b", lambda m: surgery.remove(m, "stage1.blok2", "stage3"),
     "cannot find the parts to edit: 2 faults\n"
     "where: stage1.blok2: got a part that does not exist; allowed: stage1.block2 or stage2.block2 or stage1.block1\n"
     "       stage3: got a part that does not exist; allowed: stage2 or stage1"),
    ("basic-b", lambda m: surgery.insert(m, "block2"),
     "cannot find the parts to edit: 1 fault\n"
     "where: block2: got a name of 2 parts; allowed: one of stage1.block2, stage2.block2"),
    ("three-stages", lambda m: surgery.remove(m, "stage2.block1", "stage3.block1", "stage1"),
     "these parts cannot be removed: 1 fault\nwhere: stage2.block1: got a block with channels 8 -> 16 and stride 2; "
     "allowed: another block, or the whole stage"),
    ("last-block", lambda m: surgery.remove(m, "stage2.block2"),
     "these parts cannot be removed: 1 fault\nwhere: stage2.block2: got a block with stride 2; "
     "allowed: another block, or the whole stage"),
    ("no-stem", lambda m: surgery.input_channels(m, 1),
     "this network has no single convolution that reads the image\nwhere: input_channels\n"
     "fix: use a network with a stem"),
    ("basic-b", lambda m: surgery.input_channels(m, 4, method="cycle"),
     "unknown method 'cycle'\nwhere: input_channels\nfix: did you mean cyclic?"),
    ("silu-grey", lambda m: surgery.insert(m, "stage1.block1"),
     "a new block cannot start as the identity in this place: 1 fault\n"
     "where: stage1: got activation silu; allowed: relu, which keeps its own output; or pre-activation"),
    ("last-block", lambda m: surgery.insert(m, "stage2.block2"),
     "a new block cannot start as the identity in this place: 1 fault\nwhere: stage2.block2: got the end of a stage whose "
     "last block has the stride 2; allowed: behind a block before it"),
    ("pre-plain", lambda m: surgery.insert(m, "stage2.block2"),
     "a new block cannot start as the identity in this place: 1 fault\nwhere: stage2: got a plain network of pre-activation; "
     "allowed: norms behind convolutions"),
    ("basic-b", lambda m: surgery.deepen(m, [1, 2]),
     "a network of 2-2 blocks cannot grow to 1-2 blocks\nwhere: deepen\nfix: 2 numbers, none smaller than now"),
    ("chain", lambda m: surgery.widen(m, 1, 64),
     "this stage cannot be widened: 1 fault\nwhere: stage1.branch: got a chain, whose steps have their own "
     "widths; allowed: basic or bottleneck"),
    ("chain", lambda m: surgery.prune(m, 0.5),
     "these stages cannot be pruned: 2 faults\nwhere: stage1.branch: got a chain, whose steps have their own "
     "widths; allowed: basic or bottleneck\n       stage2.branch: got a chain, whose steps have their own widths; "
     "allowed: basic or bottleneck"),
    ("group-norm", lambda m: surgery.widen(m, 1, 4),
     "this stage cannot be widened: 2 faults\nwhere: stage1.branch.width: got 4, now 8; allowed: more than 8\n"
     "       norm: got group norm; allowed: batch norm, or none"),
    ("basic-b", lambda m: surgery.widen(m, [1, 2], 64),
     "widen takes one stage at a time\nwhere: widen\nfix: stage1, then the next"),
    ("group-norm", surgery.fold_norms,
     "this network has no batch norms to fold\nwhere: norm\n"
     "fix: group norm uses statistics of each image, which no weight can hold"),
    ("no-norm", surgery.fold_norms,
     "this network has no batch norms to fold\nwhere: norm\nfix: there are none"),
    ("pre", lambda m: surgery.fold_norms(surgery.fold_norms(m)[0]),
     "this network has no batch norms to fold\nwhere: norm\nfix: they are folded already"),
    ("no-norm", lambda m: surgery.group_norm(m, make_images(m)),
     "this network has no batch norms to replace\nwhere: norm\nfix: use one with batch norms"),
    ("no-norm", surgery.freeze_norms, "this network has no batch norms\nwhere: norm\nfix: freeze with stages"),
    ("basic-b", lambda m: surgery.freeze(m, []),
     "nothing is selected to freeze\nwhere: stages\nfix: stem, or numbers of stages"),
    ("headless", lambda m: surgery.freeze(m, ["head", 9]),
     "cannot find the parts to edit: 2 faults\n"
     "where: head: got a part that does not exist; allowed: stem or stage1 or stage1.block1 or stage1.block2 or stage2\n"
     "       stage9: got a part that does not exist; allowed: stage2 or stage1 or stem"),
    ("basic-b", lambda m: surgery.features(m, []), "no stage is selected\nwhere: stages\nfix: 1 to 2"),
    ("basic-b", lambda m: surgery.head(m, "linear"),
     "unknown head 'linear'\nwhere: head\nfix: none or pooled; classes adds a classifier"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "edit", "message"), REFUSED)
def test_errors_say_what_is_possible(name, edit, message):
    assert get_usage_error(edit, make_network(name)) == f"error: {message}"


@pytest.mark.parametrize(
    ("images", "actual"),
    [(torch.zeros(3, 16, 16), "float32 of 3x16x16"), (torch.zeros(0, 3, 16, 16), "float32 of 0x3x16x16"),
     (torch.zeros(2, 1, 16, 16), "float32 of 2x1x16x16"), (torch.zeros(2, 3, 9, 9).byte(), "uint8 of 2x3x9x9")],
)  # fmt: skip
def test_norms_cannot_be_fitted_on_wrong_images(images, actual):
    assert get_usage_error(surgery.group_norm, make_network(), images, 4) == (
        f"error: norms cannot be fitted on {actual}\nwhere: images\nfix: normalized images of N x 3 x H x W"
    )


def test_images_that_norms_cannot_be_fitted_on():
    assert "NaN or infinite values" in get_usage_error(
        surgery.group_norm, make_network(), torch.full((2, 3, 16, 16), math.nan), 4
    )
    assert "the feature map becomes empty" in get_usage_error(
        surgery.group_norm, make_network("blurred"), torch.zeros(2, 3, 1, 1), 4
    )


def test_a_first_convolution_in_groups_is_not_adapted():
    grouped = replace(TINY["vgg"].stages[0], channels=9, branch=s.Chain((s.Step(9, 3, 3),)))
    model = make_network(replace(TINY["vgg"], stages=(grouped, TINY["vgg"].stages[1])))
    assert "no single convolution that reads the image" in get_usage_error(surgery.input_channels, model, 6)


def test_a_network_on_the_meta_device_is_not_edited():
    assert get_usage_error(surgery.restride, build(BASE, device="meta"), 2, 1) == (
        "error: a network on the meta device has no weights to keep\nwhere: meta\nfix: device='cpu'"
    )


def test_maps_of_one_pixel_and_groups_of_one_channel():
    stages = tuple(replace(stage, channels=4, branch=s.Basic(4)) for stage in BASE.stages)
    stem = s.Stem((s.Conv(4),), ())
    model = make_network(replace(BASE, stages=stages, stem=stem, input=(3, 1, 1), norm=s.GroupNorm(4)))
    x = make_images(model)
    assert torch.equal(compute_output(surgery.cut(model, "stage1")[0], x), compute_map(model, "stage1", x))
    assert surgery.checkpoint(surgery.insert(model, "stage2.block1")[0], 2)[0].plan.output == (5,)


def test_a_model_of_another_library_is_refused():
    with pytest.raises(UsageError, match="a Linear is not a network of resnetkit") as caught:
        surgery.dilate(nn.Linear(2, 2), 8)
    assert caught.value.fix == "convert it with resnetkit.load(model)"


@pytest.mark.parametrize(("own", "holds"), [(1e-3, True), (1e-7, False), (math.inf, False)])
def test_rounding_alone_does_not_fail_a_dilation(monkeypatch, own, holds):
    """A network of hundreds of blocks changes its own outputs by more than 1e-12 if sums have another order."""
    figures = iter([1e-6, own])

    def measured(*words, **more):
        return replace(strides_compared(*words, **more), difference=next(figures))

    strides_compared = strides.verify_equal
    monkeypatch.setattr(strides, "verify_equal", measured)
    if not holds:
        with pytest.raises(VerificationError):
            surgery.dilate(build(BASE), stages=2)
        return
    _, report = surgery.dilate(build(BASE), stages=2)
    assert report.verifications[0].limit is None
    assert "not exact (rounding alone moves these maps by 0.001)" in str(report)


def test_a_small_change_has_no_ratio():
    _, report = surgery.head(build("resnet18"), "pooled")
    assert "MACs 1,814,073,344 -> 1,813,561,344" in report.notes
    assert "params 11,689,512 -> 11,176,512 (0.956 times)" in report.notes
