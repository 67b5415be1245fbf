"""Illegal networks: every fault at once, each with its path, what came and what is allowed."""

from dataclasses import replace

import pytest
from hypothesis import given

from resnetkit.architecture import spec as s
from resnetkit.architecture.catalog import CATALOG
from resnetkit.architecture.plan import plan
from resnetkit.architecture.rules import MAX_BLOCKS, check_spec, find_spec_faults
from resnetkit.errors import SpecError

from helpers.tiny import BASE, TINY, networks


def stage(branch, channels=8, blocks=2, **reduce):
    return replace(BASE, stages=(s.Stage(blocks, channels, branch, s.FirstBlock(**reduce)),))


CAUSES = "an adapter: projection, pooled-projection, zero-padded"
CASES = {
    "groups that do not divide the width": (
        stage(s.Bottleneck(10, 4), 16),
        "stage1.branch.groups: got 4; allowed: a number that divides the 10 channels",
    ),
    "groups that do not divide what a step receives": (
        stage(s.Chain((s.Step(9, 3, 3),)), 9),
        "stage1.branch.step1.groups: got 3; allowed: a number that divides 8 channels in and 9 out",
    ),
    "groups of nothing": (
        stage(s.Bottleneck(8, 0), 16),
        "stage1.branch.groups: got 0; allowed: a number that divides the 8 channels",
    ),
    "option A where channels shrink": (
        replace(BASE, stages=(s.Stage(1, 4, s.Basic(4)),), shortcuts=s.OPTION_A),
        "stage1.block1.shortcut: got ZeroPadded for channels 8 -> 4; allowed: shortcuts.wider = projection or "
        "pooled-projection: zeros can add channels, not remove them",
    ),
    "a max-pooled identity where channels change": (
        replace(BASE, shortcuts=s.Shortcuts(wider=s.Subsampled())),
        "stage2.block1.shortcut: got Subsampled for channels 8 -> 16 and stride 2; allowed: shortcuts.wider = "
        "projection, pooled-projection or zero-padded: a max pool keeps the channels",
    ),
    "unequal shapes with no adapter": (
        replace(BASE, shortcuts=s.Shortcuts(wider=s.Identity())),
        f"stage2.block1.shortcut: got Identity for channels 8 -> 16 and stride 2; allowed: shortcuts.wider = {CAUSES}",
    ),
    "a stride with no adapter": (
        replace(stage(s.Basic(8), stride=2), shortcuts=s.Shortcuts(smaller=s.Identity())),
        "stage1.block1.shortcut: got Identity for stride 2; allowed: shortcuts.smaller = " + CAUSES + ", subsampled",
    ),
    "no stages": (replace(BASE, stages=()), "stages: got no stages; allowed: at least one"),
    "a stage of no blocks": (stage(s.Basic(8), blocks=0), "stage1.blocks: got 0; allowed: 1 or more"),
    "too many blocks": (
        stage(s.Basic(8), blocks=10**9),
        f"stages: got 1,000,000,000 blocks; allowed: at most {MAX_BLOCKS:,}",
    ),
    "too many convolutions": (
        stage(s.Chain((s.Step(8, 1),) * 100), blocks=200),
        "stages: got 20,001 convolutions; allowed: at most 10,000",
    ),
    "channels without end": (
        stage(s.Basic(10**9), channels=10**12),
        "stage1.channels: got 1,000,000,000,000; allowed: at most 1,048,576",
    ),
    "a number of too many digits": (
        stage(s.Basic(10**5000)),
        "stage1.branch.width: got a number of too many digits; allowed: a whole number",
    ),
    "a kernel as large as a house": (
        stage(s.Chain((s.Step(8, 10**6 + 1),))),
        "stage1.branch.step1.kernel: got 1,000,001; allowed: at most 255",
    ),
    "an image without end": (
        replace(BASE, input=(3, 10**6, 16)),
        "input.height: got 1,000,000; allowed: at most 65,536",
    ),
    "an even kernel": (
        stage(s.Chain((s.Step(8, 4),))),
        "stage1.branch.step1.kernel: got 4; allowed: an odd number, so that the padding is the same on both sides",
    ),
    "an even kernel in the stem": (
        replace(BASE, stem=s.Stem((s.Conv(8, 2),), ())),
        "stem.conv1.kernel: got 2; allowed: an odd number, so that the padding is the same on both sides",
    ),
    "an even pool in a shortcut": (
        replace(TINY["subsampled"], shortcuts=s.Shortcuts(smaller=s.Subsampled(2))),
        "shortcuts.smaller.kernel: got 2; allowed: an odd number, so that the padding is the same on both sides",
    ),
    "a negative stride": (stage(s.Basic(8), stride=-2), "stage1.reduce.stride: got -2; allowed: 1 or more"),
    "no channels": (
        replace(BASE, stem=s.Stem((s.Conv(0),), ())),
        "stem.conv1.channels: got 0; allowed: 1 or more",
    ),
    "a stage of no channels": (stage(s.Basic(8), channels=0), "stage1.channels: got 0; allowed: 1 or more"),
    "no width": (stage(s.Basic(0)), "stage1.branch.width: got 0; allowed: 1 or more"),
    "a branch that ends in other channels": (
        stage(s.Chain((s.Step(8), s.Step(12)))),
        "stage1.branch.step2.channels: got 12; allowed: 8, the stage's channels",
    ),
    "a branch of no steps": (stage(s.Chain(())), "stage1.branch.steps: got no steps; allowed: at least one"),
    "a stride at no step": (
        stage(s.Chain((s.Step(8),), 2)),
        "stage1.branch.stride_at: got 2; allowed: 1 to 1, one of the steps",
    ),
    "two pools": (
        replace(BASE, stem=s.Stem((s.Conv(8),), (s.MaxPool(), s.MaxPool()))),
        "stem.pool: got 2 pools; allowed: one pool or none",
    ),
    "groups of a norm that do not divide": (
        replace(BASE, norm=s.GroupNorm(3)),
        "norm.groups: got 3; allowed: a number that divides the 8 channels of stem.conv1",
    ),
    "no epsilon": (replace(BASE, norm=s.BatchNorm(0.0)), "norm.eps: got 0.0; allowed: more than 0"),
    "a momentum of two": (replace(BASE, norm=s.BatchNorm(1e-5, 2.0)), "norm.momentum: got 2.0; allowed: 0 to 1"),
    "no classes": (replace(BASE, head=s.Linear(0)), "head.classes: got 0; allowed: 1 or more"),
    "no image": (replace(BASE, input=(3, 0, 16)), "input.height: got 0; allowed: 1 or more"),
    "an unknown activation": (
        replace(BASE, activation="relv"),
        'activation: got "relv"; allowed: one of relu, leaky_relu, elu, silu, gelu, mish, hardswish (did you mean relu?)',
    ),
    "an unknown variant": (
        stage("bottelneck"),
        'stage1.branch: got "bottelneck"; allowed: one of basic, bottleneck, chain (did you mean bottleneck?)',
    ),
    "a variant of another place": (
        replace(BASE, norm=s.MaxPool()),
        'norm.kind: got "max-pool"; allowed: one of batch-norm, group-norm, no-norm, folded-norm',
    ),
    "a word for a number": (stage(s.Basic("8")), 'stage1.branch.width: got "8"; allowed: a whole number'),
}


@pytest.mark.parametrize("name", CASES)
def test_an_illegal_network(name):
    network, told = CASES[name]
    assert told in [str(fault) for fault in find_spec_faults(network)]
    with pytest.raises(SpecError) as caught:
        plan(network)
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith("error: this network cannot be built: ")
    assert told in str(caught.value)
    assert str(caught.value).endswith("fix: correct these places of the spec")


def test_all_faults_come_at_once():
    network = replace(BASE, stem=s.Stem((s.Conv(0, 4, 0),), ()), head=s.Linear(0), norm=s.GroupNorm(3, -1.0))
    paths = {fault.path for fault in find_spec_faults(network)}
    assert {"stem.conv1.channels", "stem.conv1.kernel", "stem.conv1.stride", "head.classes", "norm.eps"} <= paths
    with pytest.raises(SpecError, match=r"cannot be built: \d+ faults") as caught:
        check_spec(network)
    assert len(caught.value.where) == len(caught.value.faults) == len(find_spec_faults(network))


def test_a_fault_is_told_once():
    found = find_spec_faults(stage(s.Basic(0), channels=0))
    assert len(found) == len(set(found))


@pytest.mark.parametrize("name", [*CATALOG, *TINY])
def test_a_legal_network(name):
    assert find_spec_faults((CATALOG | TINY)[name]) == []


@given(networks)
def test_random_legal_networks_pass(network):
    assert find_spec_faults(network) == []
