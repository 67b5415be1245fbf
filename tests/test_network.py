"""The module: equal to torchvision's, exact if algebra says so, and an ordinary `nn.Module`."""

import copy
import functools
import io
import itertools
from dataclasses import replace

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resnetkit.architecture import spec as s
from resnetkit.architecture.catalog import CATALOG
from resnetkit.architecture.plan import plan
from resnetkit.errors import SpecError, UsageError
from resnetkit.network.build import build
from resnetkit.network.layers import Block, PlainBlock, StochasticDepth
from resnetkit.weights.dialects import TORCHVISION

from helpers.networks import fill_weights, make_images, randomize_norms
from helpers.tiny import BASE, TINY, make_atrous

TORCHVISION_NAMES = [
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
    "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
]  # fmt: skip


@functools.cache
def build_once(name):
    return build(TINY[name]).eval()


def make_shallow(network):
    """Return the network with one block per stage: each layer once, in a fraction of the time."""
    return replace(network, stages=tuple(replace(stage, blocks=1) for stage in network.stages))


@pytest.mark.parametrize("name", TORCHVISION_NAMES)
def test_logits_equal_those_of_torchvision(name):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(weights=None)
    theirs = fill_weights(theirs.to_empty(device="cpu"))
    state = theirs.state_dict()
    ours = build(name, device="meta")
    theirs_by_name = {key: state[foreign] for key, foreign in TORCHVISION.map_tensors(ours.plan).items()}
    ours.load_state_dict(theirs_by_name, assign=True)
    x = torch.randn(1, 3, 96, 64)
    with torch.inference_mode():
        expected, logits = theirs(x), ours.eval()(x)
    assert torch.isfinite(expected).all()
    assert expected.std() > 0
    assert (expected - logits).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", TINY)
def test_forward_and_backward(name):
    model = build(TINY[name], seed=3)
    out = model.train()(make_images(model))
    assert tuple(out.shape[1:]) == model.plan.output
    out.square().mean().backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path
        assert torch.isfinite(parameter.grad).all(), path


@pytest.mark.parametrize("name", TINY)
def test_same_seed_gives_the_same_weights(name):
    first, same_seed, other_seed = (build(TINY[name], seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], same_seed[key]) for key in first)
    assert any(not torch.equal(first[key], other_seed[key]) for key in first)


def test_initialization_by_role():
    model = build("resnet18", seed=0)
    conv = model.get_submodule("stage3.block2.branch.conv1")
    assert conv.weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
    assert model.head.linear.weight.abs().max() <= 512**-0.5
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all((m.weight == 1).all() and (m.bias == 0).all() and (m.running_var == 1).all() for m in norms)


@pytest.mark.parametrize("name", ["basic-b", "bottleneck", "basic-a"])
def test_zero_last_norm_makes_a_block_its_shortcut(name):
    model = build(TINY[name], zero_last_norm=True).eval()
    zeroed = [node.path for node in model.plan.nodes if node.role == "branch-last-norm"]
    assert all((model.get_submodule(path).weight == 0).all() for path in zeroed)
    block = model.get_submodule("stage2.block2")
    x = torch.rand(1, *model.plan["stage2.block2"].input)
    assert torch.equal(block(x), x)


STATISTICS_FREE = ["basic-b", "basic-a", "basic-a-end", "basic-c", "basic-d", "plain", "bottleneck", "bottleneck-v1",
                   "chain", "subsampled", "subsampled-3", "last-block", "no-norm", "silu-grey", "three-stages", "pre",
                   "pre-bottleneck", "pre-a", "pre-plain", "pre-last-block", "biases", "vgg", "stochastic",
                   "ceil-pool", "blurred"]  # fmt: skip


@pytest.mark.parametrize("name", STATISTICS_FREE)
@pytest.mark.parametrize("size", [(15, 17), (7, 10)])
def test_atrous_network_equals_the_original_on_the_subsampled_grid(name, size):
    original = replace(TINY[name], head=s.NoHead(), input=(TINY[name].input[0], *size))
    for stages in {(2,), tuple(range(2, len(original.stages) + 1))}:
        dense = build(make_atrous(original, *stages), dtype=torch.float64)
        sparse = randomize_norms(build(original, dtype=torch.float64))
        dense.load_state_dict(sparse.state_dict())
        step = plan(original)[f"stage{len(original.stages)}"].stride // dense.plan.root.stride
        x = make_images(sparse, dtype=torch.float64)
        with torch.inference_mode():
            expected, actual = sparse(x), dense.eval()(x)[..., ::step, ::step]
        assert actual.shape == expected.shape
        assert (actual - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("name", ["basic-b", "basic-d", "pre-d", "bottleneck", "basic-a"])
def test_any_stages_may_be_atrous(name):
    """A stage with a stride after an atrous stage works on a dilated map."""
    base = replace(TINY[name], norm=s.BatchNorm(), head=s.NoHead(), input=(3, 37, 40))
    last = base.stages[1]
    wider = replace(last, channels=2 * last.channels, branch=replace(last.branch, width=16))
    original = base if name == "basic-a" else replace(base, stages=(*base.stages, wider, wider))
    sparse = randomize_norms(build(original, dtype=torch.float64))
    x = make_images(sparse, dtype=torch.float64)
    numbers = range(2, len(original.stages) + 1)
    for stages in itertools.chain.from_iterable(itertools.combinations(numbers, n) for n in range(1, len(numbers) + 1)):
        dense = build(make_atrous(original, *stages), dtype=torch.float64)
        dense.load_state_dict(sparse.state_dict())
        step = sparse.plan.root.stride // dense.plan.root.stride
        with torch.inference_mode():
            expected, actual = sparse(x), dense.eval()(x)[..., ::step, ::step]
        assert actual.shape == expected.shape, stages
        assert (actual - expected).abs().max() <= 1e-12 * expected.abs().max(), stages


def test_blocks_read_like_the_formula():
    model = randomize_norms(build(TINY["bottleneck"]))
    block = model.stage2.block1
    assert isinstance(block, Block)
    x = torch.rand(2, *model.plan["stage2.block1"].input)
    assert torch.equal(block(x), torch.relu(block.branch(x) + block.shortcut(x)))
    plain = build(TINY["plain"]).stage1.block1
    assert isinstance(plain, PlainBlock)
    assert [name for name, _ in plain.named_children()] == ["branch", "act"]


def test_option_a_adds_zeros_on_both_sides_or_at_the_end():
    x = torch.rand(1, 8, 5, 5)
    both = build(TINY["basic-a"]).stage2.block1.shortcut(x)
    end = build(TINY["basic-a-end"]).stage2.block1.shortcut(x)
    assert torch.equal(both[:, 4:12], x[..., ::2, ::2])
    assert torch.equal(end[:, :8], x[..., ::2, ::2])
    assert not both[:, :4].any()
    assert not both[:, 12:].any()
    assert not end[:, 8:].any()


def test_features():
    model = randomize_norms(build(BASE))
    x = make_images(model)
    features = model.extract_features(x, ["stem", "stage2"])
    assert list(features) == ["stem", "stage2"]
    assert torch.equal(model.head(features["stage2"]), model(x))
    with pytest.raises(UsageError) as caught:
        model.extract_features(x, ["stage3"])
    assert str(caught.value) == "error: this network has no section 'stage3'\nfix: did you mean stage2?"


# one network for each kind of layer
LAYER_KINDS = ["basic-a", "basic-d", "plain", "subsampled", "group-norm", "pre-last-block", "attention",
               "channel-attention", "blurred", "vgg", "ceil-pool", "stochastic", "chain"]  # fmt: skip


@pytest.mark.parametrize("name", LAYER_KINDS)
def test_behaves_like_an_ordinary_module(name):
    spec = make_shallow(TINY[name])
    model = randomize_norms(build(spec))
    x = make_images(model)
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    reloaded = build(spec, seed=9)
    reloaded.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(reloaded.eval()(x), expected)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), expected)
    torch.testing.assert_close(model.to(memory_format=torch.channels_last)(x), expected)


def test_compiled_module_computes_the_same():
    model = randomize_norms(build(make_shallow(TINY["basic-a"])))
    x = make_images(model)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager")(x), model(x))


def test_one_module_per_operation():
    model = build("resnet50", device="meta")
    acts = [module for module in model.modules() if isinstance(module, nn.ReLU)]
    assert len(acts) == len({id(act) for act in acts}) == 1 + 16 * 3
    assert not any(act.inplace for act in acts)


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = build(BASE)
        wrapped = nn.parallel.DistributedDataParallel(model)
        wrapped(make_images(model)).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
    finally:
        torch.distributed.destroy_process_group()


def test_classes_and_card():
    model = build("resnet18", classes=["cat", "dog"], device="meta")
    assert (model.card.name, model.card.classes, model.plan.output) == ("resnet18", ("cat", "dog"), (2,))
    assert build("resnet20", classes=7, device="meta").plan.output == (7,)
    with pytest.raises(UsageError, match="this network has no classifier, so it cannot have classes"):
        build(TINY["pooled"], classes=3)
    with pytest.raises(SpecError, match="cannot be built"):
        build(replace(BASE, stages=()))


@given(st.sampled_from(sorted(TINY)), st.integers(8, 20), st.integers(8, 20))
def test_any_image_size_fits(name, height, width):
    model = build_once(name)
    shape = plan(TINY[name], (height, width)).output
    with torch.inference_mode():
        assert tuple(model(torch.zeros(1, model.plan.input[0], height, width)).shape[1:]) == shape


def test_stochastic_depth_drops_branches_in_training_only():
    model = build(replace(BASE, stochastic_depth=0.5)).eval()
    rates = [module.rate for module in model.modules() if isinstance(module, StochasticDepth)]
    assert rates == pytest.approx([0.5 / 3, 1 / 3, 0.5])
    drop = model.stage2.block2.branch.drop
    x = torch.ones(4000, 2, 1, 1)
    assert torch.equal(drop(x), x)
    torch.manual_seed(0)
    outputs = drop.train()(x)
    assert set(outputs.unique().tolist()) == {0.0, 2.0}
    assert float(outputs.mean()) == pytest.approx(1, abs=0.05)
    assert torch.equal(outputs[:, 0], outputs[:, 1])


def test_blur_smooths_and_keeps_constant_maps():
    blur = build(TINY["blurred"]).stem.blur
    assert torch.allclose(blur(torch.full((1, 8, 9, 9), 3.0)), torch.tensor(3.0))
    point = torch.zeros(1, 8, 9, 9)
    point[:, :, 4, 4] = 16
    assert blur(point)[0, 0, 1:4, 1:4].tolist() == [[0, 0, 0], [0, 4, 0], [0, 0, 0]]


def test_pools_with_other_edges_differ_only_there():
    """Zeros are larger than negative pixels, padding never is, and the grid of Caffe is shifted by one pixel."""
    x = -torch.rand(1, 8, 12, 12, generator=torch.Generator().manual_seed(0)) - 1
    pools = {edge: build(replace(BASE, stem=s.Stem((s.Conv(8),), (s.MaxPool(3, 2, edge),)))).stem.pool
             for edge in ("padded", "zeros", "ceil")}  # fmt: skip
    padded, zeros, ceil = (pools[edge](x) for edge in ("padded", "zeros", "ceil"))
    assert padded.shape == zeros.shape == ceil.shape
    assert torch.equal(zeros[..., 1:, 1:], padded[..., 1:, 1:])
    assert (zeros[..., 0, :] == 0).all()
    assert not torch.equal(ceil, padded)
    assert torch.equal(pools["zeros"](x.abs()), pools["padded"](x.abs()))


@pytest.mark.parametrize("name", [*TINY, "resnetblur50", "keras_resnet50v2", "resnext50_32x4d"])
def test_macs_are_those_that_torch_counts(name):
    """Torch counts two operations for each multiply-add, of fixed blurs and attention, too."""
    network_plan = plan((CATALOG | TINY)[name], 64)
    model = build(network_plan.spec).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *network_plan.input))
    assert counter.get_total_flops() == 2 * network_plan.macs
