"""The plan against published counts, closed forms, and torch itself."""

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


def test_every_row_has_a_count_that_others_published():
    assert set(CATALOG) == set(COUNTS) | set(published.KERAS_TOTALS) | TIMM  # timm's are counted in test_libraries.py


@pytest.mark.parametrize("name", published.KERAS_TOTALS)
def test_keras_counts_moving_statistics_as_well(name):
    made = plan(CATALOG[name])
    channels = sum(node.op.channels for node in made.nodes if isinstance(node.op, NormOp))
    assert made.params + 2 * channels == published.KERAS_TOTALS[name]
    macs = published.FAMILY_MACS.get(name)
    assert macs is None or made.macs == macs


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_the_published_ones(name):
    made = plan(CATALOG[name])
    params, macs = COUNTS[name]
    assert made.params == params
    assert macs is None or made.macs == macs
    assert sum(node.params for node in made.nodes) == made.params
    assert sum(node.macs for node in made.nodes) == made.macs


@pytest.mark.parametrize("name", CATALOG)
def test_depth_is_the_number_in_the_name(name):
    digits = "".join(c if c.isdigit() else " " for c in name.removeprefix("wide_").replace("v2", "")).split()
    assert plan(CATALOG[name]).depth == int(digits[0])


@pytest.mark.parametrize("name", [name for name in CATALOG if "1202" not in name])
def test_the_module_on_the_meta_device_is_the_plan(name):
    made = plan(CATALOG[name])
    model = build(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == made.params
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert list(shapes.items()) == list(get_tensor_shapes(made).items())
    inside = tuple(f"{node.path}." for node in made.nodes)  # an operation may be made of several layers
    modules = {path: module for path, module in model.named_modules() if path and not path.startswith(inside)}
    whole = {node.path for node in made.nodes}
    leaves = [path for path, module in modules.items() if path in whole or not list(module.children())]
    empty = [path for path, part in made.parts.items() if part.role == "shortcut" and not part.nodes]
    assert set(leaves) - set(empty) == {node.path for node in made.nodes if node.role != "add"}
    assert (
        set(made.parts) - {""} - {n.path for n in made.nodes if n.role == "add"} <= dict(model.named_modules()).keys()
    )


@pytest.mark.parametrize("name", published.RECEPTIVE_FIELDS)
def test_receptive_fields_after_the_stages(name):
    made = plan(spec(name))
    assert tuple(made[f"stage{i}"].receptive_field for i in range(1, 5)) == published.RECEPTIVE_FIELDS[name]
    assert made.receptive_field == published.RECEPTIVE_FIELDS[name][-1]


@pytest.mark.parametrize(("name", "field"), published.LAST_RECEPTIVE_FIELD.items())
def test_receptive_field_of_deep_networks(name, field):
    assert plan(spec(name)).receptive_field == field


@pytest.mark.parametrize("name", published.BATCH_NORM_CHANNELS)
def test_norm_channels_and_state_entries(name):
    made = plan(spec(name))
    assert sum(n.op.channels for n in made.nodes if isinstance(n.op, NormOp)) == published.BATCH_NORM_CHANNELS[name]
    assert len(get_tensor_shapes(made)) == published.STATE_ENTRIES[name]


@pytest.mark.parametrize(("depth", "params"), published.CIFAR_100_A.items())
def test_cifar_100(depth, params):
    assert plan(replace(spec(f"resnet{depth}"), head=s.Linear(100))).params == params


@pytest.mark.parametrize("side", [193, 200, 224])
def test_the_last_map_is_a_thirty_second(side):
    assert plan(spec("resnet18"), side)["stage4"].output == (512, 7, 7)
    assert plan(spec("resnet18"), 32)["stage4"].output == (512, 1, 1)


def _shapes(model, image):
    seen = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, path=path: seen.__setitem__(path, tuple(out.shape[1:])))
        for path, module in model.named_modules()
        if path and ".attention." not in path
    ]
    with torch.no_grad():
        model.eval()(torch.empty(1, *image, device="meta"))
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("name", TINY)
def test_every_shape_is_what_torch_computes(name):
    made = plan(TINY[name])
    seen = _shapes(build(TINY[name], device="meta"), made.input)
    for path, shape in seen.items():
        assert made[path].output == shape, path


@given(networks)
def test_random_networks_have_the_shapes_and_counts_of_torch(network):
    try:
        made = plan(network)
    except SpecError as error:
        assert str(error).startswith("error: the map vanishes")
        return
    model = build(network, device="meta")
    assert sum(p.numel() for p in model.parameters()) == made.params
    if isinstance(network.norm, s.GroupNorm) and min(min(n.output[1:]) for n in made.nodes if len(n.output) == 3) < 2:
        return  # torch refuses statistics over one number
    seen = _shapes(model, made.input)
    assert {path: made[path].output for path in seen} == seen


def test_the_three_shortcuts_of_resnet50_say_why():
    made = plan(spec("resnet50"))
    assert made["stage1.block1.shortcut"].reason == "channels 64 -> 256"
    assert made["stage2.block1.shortcut"].reason == "channels 256 -> 512 and stride 2: 56 -> 28"
    assert made["stage2.block2.shortcut"].reason == "512 channels at 28x28 on both ways"
    assert made["stage1.block1.shortcut.conv"].op.weights == 16_384
    assert made["stage2.block2.shortcut"].nodes == ()


def test_a_stride_alone_is_a_cause():
    wide = replace(TINY["basic-b"], stages=(s.Stage(1, 8, s.Basic(8), s.FirstBlock(2)),))
    assert plan(wide)["stage1.block1.shortcut"].reason == "stride 2: 16 -> 8"


def test_an_a_trous_stage_keeps_its_shortcut_and_its_map():
    made = plan(make_atrous(TINY["bottleneck"], 2))
    assert made["stage2"].output == (32, 16, 16)
    assert made["stage2.block1.shortcut"].reason == "channels 16 -> 32 and stride 2, kept as dilation: 16 -> 16"
    dilations = [made[f"stage2.block{b}.branch.conv2"].op.dilation for b in (1, 2)]
    assert dilations == [1, 2]  # the convolution that loses its stride keeps what it had


def test_option_c_projects_in_every_block():
    made = plan(spec("resnet34_c"))
    shortcuts = [part for part in made.parts.values() if part.role == "shortcut"]
    assert len(shortcuts) == 16
    assert all(part.nodes for part in shortcuts)
    assert made["stage1.block1.shortcut"].reason.startswith("nothing differs")


def test_a_path_that_is_not_there_gets_the_nearest():
    with pytest.raises(UsageError) as caught:
        plan(spec("resnet50"))["stage2.block1.shortcat"]
    assert str(caught.value).splitlines()[:2] == [
        "error: this network has no such path",
        "where: stage2.block1.shortcat",
    ]
    assert "stage2.block1.shortcut" in caught.value.fix


def test_a_map_that_vanishes_is_named():
    network = replace(TINY["basic-b"], stem=s.Stem((s.Conv(8, 3),), (s.MaxPool(2, 2),)))
    assert plan(network, 2)["stem.pool"].output == (8, 1, 1)
    with pytest.raises(SpecError) as caught:
        plan(network, 1)
    assert str(caught.value) == (
        "error: the map vanishes: 1 fault\n"
        "where: stem.pool: got a map of 1x1, of which nothing is left; allowed: a larger image, or fewer strides before it\n"
        "fix: give a larger image"
    )


@pytest.mark.parametrize("image", [(1, 32, 32), (3, 32, 32, 1), (32,)])
def test_an_image_that_does_not_fit(image):
    with pytest.raises(SpecError, match="this image does not fit the network"):
        plan(spec("resnet18"), image)


def test_another_image_changes_the_plan_but_not_the_params():
    small, large = plan(spec("resnet50")), plan(spec("resnet50"), (3, 320, 256))
    assert (large.input, large["stem"].output) == ((3, 320, 256), (64, 80, 64))
    assert large.params == small.params
    assert large.macs > small.macs


def test_the_table():
    table = format_summary(plan(spec("resnet50"))).splitlines()
    assert table[0].split() == ["path", "what", "output", "params", "MACs", "share", "field", "stride"]
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
def test_a_table_of_any_depth_adds_up(name, depth):
    made = plan(TINY[name])
    listed = list_summary_rows(made, depth)
    assert sum(row.params for row in listed) == made.params
    assert sum(row.macs for row in listed) == made.macs
    assert sum(row.macs_share for row in listed) == pytest.approx(1)


def test_names_and_patterns():
    assert list_models("wide") == ["wide_resnet50_2", "wide_resnet101_2"]
    assert list_models("resnet?8") == ["resnet18"]
    assert get_network_name(spec("resnet34")) == "resnet34"
    assert get_network_name(TINY["chain"]) == "custom"
    assert set(PUBLISHED) <= set(CATALOG)
    with pytest.raises(UsageError, match="there is no network called 'resnet5O'") as caught:
        spec("resnet5O")
    assert caught.value.fix == "did you mean resnet50?"


def test_equal_networks_have_equal_specs():
    assert len(set(CATALOG.values())) == len(CATALOG)
