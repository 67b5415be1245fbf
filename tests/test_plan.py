"""The plan compared with published counts, closed forms, and torch itself."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given

from resnetkit.architecture import spec as s
from resnetkit.architecture.catalog import CATALOG, get_network_name, list_models, spec
from resnetkit.architecture.operations import NormOp
from resnetkit.architecture.plan import plan
from resnetkit.architecture.published import PUBLISHED
from resnetkit.architecture.summary import format_summary, list_summary_rows
from resnetkit.architecture.tensors import get_tensor_shapes
from resnetkit.errors import SpecError, UsageError
from resnetkit.network.build import build

from helpers import published
from helpers.tiny import TINY, make_atrous, networks

COUNTS = (
    published.IMAGENET
    | published.CIFAR
    | {name: (count, published.FAMILY_MACS.get(name)) for name, count in published.FAMILY_PARAMS.items()}
)
TIMM = {name for name in CATALOG if name.startswith(("resnetv2_", "seresne", "ecaresnet")) or name == "resnet200d"}


def test_every_row_has_a_published_count():
    assert set(CATALOG) == set(COUNTS) | set(published.KERAS_TOTALS) | TIMM  # timm's are compared in test_libraries.py


@pytest.mark.parametrize("name", published.KERAS_TOTALS)
def test_keras_counts_include_moving_statistics(name):
    network_plan = plan(CATALOG[name])
    channels = sum(node.op.channels for node in network_plan.nodes if isinstance(node.op, NormOp))
    assert network_plan.params + 2 * channels == published.KERAS_TOTALS[name]
    macs = published.FAMILY_MACS.get(name)
    assert macs is None or network_plan.macs == macs


@pytest.mark.parametrize("name", COUNTS)
def test_counts_equal_the_published_ones(name):
    network_plan = plan(CATALOG[name])
    params, macs = COUNTS[name]
    assert network_plan.params == params
    assert macs is None or network_plan.macs == macs
    assert sum(node.params for node in network_plan.nodes) == network_plan.params
    assert sum(node.macs for node in network_plan.nodes) == network_plan.macs


@pytest.mark.parametrize("name", CATALOG)
def test_depth_equals_the_number_in_the_name(name):
    digits = "".join(c if c.isdigit() else " " for c in name.removeprefix("wide_").replace("v2", "")).split()
    assert plan(CATALOG[name]).depth == int(digits[0])


@pytest.mark.parametrize("name", [name for name in CATALOG if "1202" not in name])
def test_meta_module_matches_the_plan(name):
    network_plan = plan(CATALOG[name])
    model = build(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == network_plan.params
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert list(shapes.items()) == list(get_tensor_shapes(network_plan).items())
    prefixes = tuple(
        f"{node.path}." for node in network_plan.nodes
    )  # an operation may be network_plan of several layers
    modules = {path: module for path, module in model.named_modules() if path and not path.startswith(prefixes)}
    node_paths = {node.path for node in network_plan.nodes}
    leaves = [path for path, module in modules.items() if path in node_paths or not list(module.children())]
    empty = [path for path, part in network_plan.parts.items() if part.role == "shortcut" and not part.nodes]
    assert set(leaves) - set(empty) == {node.path for node in network_plan.nodes if node.role != "add"}
    assert (
        set(network_plan.parts) - {""} - {n.path for n in network_plan.nodes if n.role == "add"}
        <= dict(model.named_modules()).keys()
    )


@pytest.mark.parametrize("name", published.RECEPTIVE_FIELDS)
def test_receptive_fields_after_the_stages(name):
    network_plan = plan(spec(name))
    assert tuple(network_plan[f"stage{i}"].receptive_field for i in range(1, 5)) == published.RECEPTIVE_FIELDS[name]
    assert network_plan.receptive_field == published.RECEPTIVE_FIELDS[name][-1]


@pytest.mark.parametrize(("name", "field"), published.LAST_RECEPTIVE_FIELD.items())
def test_receptive_field_of_deep_networks(name, field):
    assert plan(spec(name)).receptive_field == field


@pytest.mark.parametrize("name", published.BATCH_NORM_CHANNELS)
def test_norm_channels_and_state_entries(name):
    network_plan = plan(spec(name))
    assert (
        sum(n.op.channels for n in network_plan.nodes if isinstance(n.op, NormOp))
        == published.BATCH_NORM_CHANNELS[name]
    )
    assert len(get_tensor_shapes(network_plan)) == published.STATE_ENTRIES[name]


@pytest.mark.parametrize(("depth", "params"), published.CIFAR_100_A.items())
def test_cifar_100(depth, params):
    assert plan(replace(spec(f"resnet{depth}"), head=s.Linear(100))).params == params


@pytest.mark.parametrize("side", [193, 200, 224])
def test_last_map_has_stride_32(side):
    assert plan(spec("resnet18"), side)["stage4"].output == (512, 7, 7)
    assert plan(spec("resnet18"), 32)["stage4"].output == (512, 1, 1)


def record_shapes(model, image):
    shapes = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, path=path: shapes.__setitem__(path, tuple(out.shape[1:])))
        for path, module in model.named_modules()
        if path and ".attention." not in path
    ]
    with torch.no_grad():
        model.eval()(torch.empty(1, *image, device="meta"))
    for hook in hooks:
        hook.remove()
    return shapes


@pytest.mark.parametrize("name", TINY)
def test_shapes_equal_those_of_torch(name):
    network_plan = plan(TINY[name])
    shapes = record_shapes(build(TINY[name], device="meta"), network_plan.input)
    for path, shape in shapes.items():
        assert network_plan[path].output == shape, path


@given(networks)
def test_random_networks_have_the_shapes_and_counts_of_torch(network):
    try:
        network_plan = plan(network)
    except SpecError as error:
        assert str(error).startswith("error: the feature map becomes empty")
        return
    model = build(network, device="meta")
    assert sum(p.numel() for p in model.parameters()) == network_plan.params
    if (
        isinstance(network.norm, s.GroupNorm)
        and min(min(n.output[1:]) for n in network_plan.nodes if len(n.output) == 3) < 2
    ):
        return  # torch refuses statistics over one number
    shapes = record_shapes(model, network_plan.input)
    assert {path: network_plan[path].output for path in shapes} == shapes


def test_reasons_of_the_shortcuts_of_resnet50():
    network_plan = plan(spec("resnet50"))
    assert network_plan["stage1.block1.shortcut"].reason == "channels 64 -> 256"
    assert network_plan["stage2.block1.shortcut"].reason == "channels 256 -> 512 and stride 2: 56 -> 28"
    assert network_plan["stage2.block2.shortcut"].reason == "512 channels at 28x28 on both paths"
    assert network_plan["stage1.block1.shortcut.conv"].op.weights == 16_384
    assert network_plan["stage2.block2.shortcut"].nodes == ()


def test_stride_alone_is_a_cause():
    network = replace(TINY["basic-b"], stages=(s.Stage(1, 8, s.Basic(8), s.FirstBlock(2)),))
    assert plan(network)["stage1.block1.shortcut"].reason == "stride 2: 16 -> 8"


def test_atrous_stage_keeps_its_shortcut_and_its_map():
    network_plan = plan(make_atrous(TINY["bottleneck"], 2))
    assert network_plan["stage2"].output == (32, 16, 16)
    assert network_plan["stage2.block1.shortcut"].reason == "channels 16 -> 32 and stride 2, kept as dilation: 16 -> 16"
    dilations = [network_plan[f"stage2.block{b}.branch.conv2"].op.dilation for b in (1, 2)]
    assert dilations == [1, 2]  # the convolution that loses its stride keeps its dilation


def test_option_c_projects_in_every_block():
    network_plan = plan(spec("resnet34_c"))
    shortcuts = [part for part in network_plan.parts.values() if part.role == "shortcut"]
    assert len(shortcuts) == 16
    assert all(part.nodes for part in shortcuts)
    assert network_plan["stage1.block1.shortcut"].reason.startswith("nothing differs")


def test_unknown_path_suggests_the_nearest():
    with pytest.raises(UsageError) as caught:
        plan(spec("resnet50"))["stage2.block1.shortcat"]
    assert str(caught.value).splitlines()[:2] == [
        "error: this network has no such path",
        "where: stage2.block1.shortcat",
    ]
    assert "stage2.block1.shortcut" in caught.value.fix


def test_empty_map_is_an_error_with_its_path():
    network = replace(TINY["basic-b"], stem=s.Stem((s.Conv(8, 3),), (s.MaxPool(2, 2),)))
    assert plan(network, 2)["stem.pool"].output == (8, 1, 1)
    with pytest.raises(SpecError) as caught:
        plan(network, 1)
    assert str(caught.value) == (
        "error: the feature map becomes empty: 1 fault\n"
        "where: stem.pool: got a feature map of 1x1, too small for this operation; allowed: a larger image, or fewer strides\n"
        "fix: use a larger image"
    )


@pytest.mark.parametrize("image", [(1, 32, 32), (3, 32, 32, 1), (32,)])
def test_image_that_does_not_fit(image):
    with pytest.raises(SpecError, match="this image does not fit the network"):
        plan(spec("resnet18"), image)


def test_image_size_changes_macs_but_not_params():
    small, large = plan(spec("resnet50")), plan(spec("resnet50"), (3, 320, 256))
    assert (large.input, large["stem"].output) == ((3, 320, 256), (64, 80, 64))
    assert large.params == small.params
    assert large.macs > small.macs


def test_summary_table():
    table = format_summary(plan(spec("resnet50"))).splitlines()
    assert table[0].split() == ["path", "description", "output", "params", "MACs", "share", "field", "stride"]
    assert table[3].split() == [
        "stage2",
        "4",
        "bottleneck",
        "blocks,",
        "width",
        "128",
        "512x28x28",
        "1,219,584",
        "1,027,604,480",
        "25.1%",
        "91",
        "8",
    ]
    assert table[-1].startswith("25,557,032 params, 4,089,184,256 MACs and ")
    assert str(plan(spec("resnet50"))) == "\n".join(table)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_summary_rows_of_any_depth_add_up(name, depth):
    network_plan = plan(TINY[name])
    rows = list_summary_rows(network_plan, depth)
    assert sum(row.params for row in rows) == network_plan.params
    assert sum(row.macs for row in rows) == network_plan.macs
    assert sum(row.macs_share for row in rows) == pytest.approx(1)


def test_names_and_patterns():
    assert list_models("wide") == ["wide_resnet50_2", "wide_resnet101_2"]
    assert list_models("resnet?8") == ["resnet18"]
    assert get_network_name(spec("resnet34")) == "resnet34"
    assert get_network_name(TINY["chain"]) == "custom"
    assert set(PUBLISHED) <= set(CATALOG)
    with pytest.raises(UsageError, match="unknown network 'resnet5O'") as caught:
        spec("resnet5O")
    assert caught.value.fix == "did you mean resnet50?"


def test_equal_networks_have_equal_specs():
    assert len(set(CATALOG.values())) == len(CATALOG)
