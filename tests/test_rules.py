"""Invalid specs: all faults together, each with its path, the value and the allowed values."""

from dataclasses import replace

import pytest
from hypothesis import given

from resnetkit.architecture import spec as s
from resnetkit.architecture.catalog import CATALOG
from resnetkit.architecture.plan import plan
from resnetkit.architecture.rules import MAX_BLOCKS, check_spec, find_spec_faults
from resnetkit.errors import SpecError

from helpers.tiny import BASE, TINY, networks


def make_network(branch, channels=8, blocks=2, **reduce):
    """Return the base network with one stage of this branch."""
    return replace(BASE, stages=(s.Stage(blocks, channels, branch, s.FirstBlock(**reduce)),))


CAUSES = "an adapter: projection, pooled-projection, zero-padded"
CASES = {
    "groups that do not divide the width": (
        make_network(s.Bottleneck(10, 4), 16),
        "stage1.branch.groups: got 4; allowed: a number that divides the 10 channels",
    ),
    "groups that do not divide the input of a step": (
        make_network(s.Chain((s.Step(9, 3, 3),)), 9),
        "stage1.branch.step1.groups: got 3; allowed: a number that divides 8 channels in and 9 out",
    ),
    "an average pool that is dilated": (
        replace(BASE, stages=(s.Stage(1, 8, s.Basic(8), s.BlurredFirstBlock(2, atrous=True, blur=2)),)),
        "stage1.reduce.blur: got kernel 2 with stride 1; allowed: stride 2, or an odd kernel",
    ),
    "an average pool of another stride": (
        replace(BASE, stem=replace(BASE.stem, blur=(s.Blur(2, 1),))),
        "stem.blur.kernel: got kernel 2 with stride 1; allowed: stride 2, or an odd kernel",
    ),
    "zero groups": (
        make_network(s.Bottleneck(8, 0), 16),
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
    "unequal shapes without an adapter": (
        replace(BASE, shortcuts=s.Shortcuts(wider=s.Identity())),
        f"stage2.block1.shortcut: got Identity for channels 8 -> 16 and stride 2; allowed: shortcuts.wider = {CAUSES}",
    ),
    "a stride without an adapter": (
        replace(make_network(s.Basic(8), stride=2), shortcuts=s.Shortcuts(smaller=s.Identity())),
        "stage1.block1.shortcut: got Identity for stride 2; allowed: shortcuts.smaller = " + CAUSES + ", subsampled",
    ),
    "no stages": (replace(BASE, stages=()), "stages: got no stages; allowed: at least one"),
    "a stage of no blocks": (make_network(s.Basic(8), blocks=0), "stage1.blocks: got 0; allowed: 1 or more"),
    "too many blocks": (
        make_network(s.Basic(8), blocks=10**9),
        f"stages: got 1,000,000,000 blocks; allowed: at most {MAX_BLOCKS:,}",
    ),
    "too many convolutions": (
        make_network(s.Chain((s.Step(8, 1),) * 100), blocks=200),
        "stages: got 20,001 convolutions; allowed: at most 10,000",
    ),
    "too many channels": (
        make_network(s.Basic(10**9), channels=10**12),
        "stage1.channels: got 1,000,000,000,000; allowed: at most 1,048,576",
    ),
    "a number of too many digits": (
        make_network(s.Basic(10**5000)),
        "stage1.branch.width: got a number of too many digits; allowed: a whole number",
    ),
    "a kernel of a million": (
        make_network(s.Chain((s.Step(8, 10**6 + 1),))),
        "stage1.branch.step1.kernel: got 1,000,001; allowed: at most 255",
    ),
    "too large an image": (
        replace(BASE, input=(3, 10**6, 16)),
        "input.height: got 1,000,000; allowed: at most 65,536",
    ),
    "an even kernel": (
        make_network(s.Chain((s.Step(8, 4),))),
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
    "a negative stride": (make_network(s.Basic(8), stride=-2), "stage1.reduce.stride: got -2; allowed: 1 or more"),
    "no channels": (
        replace(BASE, stem=s.Stem((s.Conv(0),), ())),
        "stem.conv1.channels: got 0; allowed: 1 or more",
    ),
    "a stage of no channels": (make_network(s.Basic(8), channels=0), "stage1.channels: got 0; allowed: 1 or more"),
    "no width": (make_network(s.Basic(0)), "stage1.branch.width: got 0; allowed: 1 or more"),
    "a branch that ends in other channels": (
        make_network(s.Chain((s.Step(8), s.Step(12)))),
        "stage1.branch.step2.channels: got 12; allowed: 8, the stage's channels",
    ),
    "a branch of no steps": (make_network(s.Chain(())), "stage1.branch.steps: got no steps; allowed: at least one"),
    "a stride at a missing step": (
        make_network(s.Chain((s.Step(8),), 2)),
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
    "an epsilon of zero": (replace(BASE, norm=s.BatchNorm(0.0)), "norm.eps: got 0.0; allowed: more than 0"),
    "a momentum of two": (replace(BASE, norm=s.BatchNorm(1e-5, 2.0)), "norm.momentum: got 2.0; allowed: 0 to 1"),
    "no classes": (replace(BASE, head=s.Linear(0)), "head.classes: got 0; allowed: 1 or more"),
    "no image": (replace(BASE, input=(3, 0, 16)), "input.height: got 0; allowed: 1 or more"),
    "an unknown activation": (
        replace(BASE, activation="relv"),
        'activation: got "relv"; allowed: one of relu, leaky_relu, elu, silu, gelu, mish, hardswish (did you mean relu?)',
    ),
    "an unknown variant": (
        make_network("bottelneck"),
        'stage1.branch: got "bottelneck"; allowed: one of basic, bottleneck, chain (did you mean bottleneck?)',
    ),
    "a variant of another field": (
        replace(BASE, norm=s.MaxPool()),
        'norm.kind: got "max-pool"; allowed: one of batch-norm, group-norm, no-norm, folded-norm',
    ),
    "a text instead of a number": (make_network(s.Basic("8")), 'stage1.branch.width: got "8"; allowed: a whole number'),
}


@pytest.mark.parametrize("name", CASES)
def test_invalid_network(name):
    network, fault = CASES[name]
    assert fault in [str(item) for item in find_spec_faults(network)]
    with pytest.raises(SpecError) as caught:
        plan(network)
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith("error: this network cannot be built: ")
    assert fault in str(caught.value)
    assert str(caught.value).endswith("fix: correct these fields of the spec")


def test_all_faults_are_reported_together():
    network = replace(BASE, stem=s.Stem((s.Conv(0, 4, 0),), ()), head=s.Linear(0), norm=s.GroupNorm(3, -1.0))
    paths = {fault.path for fault in find_spec_faults(network)}
    assert {"stem.conv1.channels", "stem.conv1.kernel", "stem.conv1.stride", "head.classes", "norm.eps"} <= paths
    with pytest.raises(SpecError, match=r"cannot be built: \d+ faults") as caught:
        check_spec(network)
    assert len(caught.value.where) == len(caught.value.faults) == len(find_spec_faults(network))


def test_each_fault_is_reported_once():
    faults = find_spec_faults(make_network(s.Basic(0), channels=0))
    assert len(faults) == len(set(faults))


@pytest.mark.parametrize("name", [*CATALOG, *TINY])
def test_valid_network(name):
    assert find_spec_faults((CATALOG | TINY)[name]) == []


@given(networks)
def test_random_valid_networks_pass(network):
    assert find_spec_faults(network) == []
