"""Networks side by side: in words, as a table, and as a drawing."""

import itertools
import json
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from functools import cache

import pytest

from resnetkit.architecture import operations as o
from resnetkit.architecture import spec as s
from resnetkit.architecture.catalog import CATALOG
from resnetkit.architecture.plan import Node, Plan, Section, plan
from resnetkit.errors import UsageError
from resnetkit.explain.compare import (
    ROWS_TEXT_COLUMNS,
    build_rows_table,
    build_totals_table,
    compare_plans,
    describe_differences,
    serialize_comparison,
)
from resnetkit.explain.drawings.side_by_side import MAX_HEIGHT, draw_side_by_side
from resnetkit.formatting import align_table

from helpers.published import IMAGENET
from helpers.tiny import BASE, TINY, measure_cpu_budget

VARIED = ["resnet18", "resnet34_c", "resnet50", "resnet50_v1", "resnext50_32x4d", "plain34", "resnet20", "resnet20_a_end",
          "resnet110_b", "resnet1202", "cifar_resnet18", "resnet152"]  # fmt: skip


@cache
def plan_network(name):
    return plan((CATALOG | TINY)[name])


def plan_all(*names):
    return {name: plan_network(name) for name in names}


def describe(*names):
    return describe_differences(compare_plans(plan_all(*names)))


def build_vgg(stages=((2, 8), (1, 16))):
    """A network of one convolution a block, with a pool at the end of each stage, written by hand."""
    shape, children = (3, 32, 32), []

    def node(path, role, op):
        nonlocal shape
        before, shape = shape, op.compute_output_shape(shape)
        return Node(path, role, op, before, shape, 1, 1)

    def section(path, role, parts):
        return Section(path, role, tuple(parts), parts[0].input, parts[-1].output, 1, 1)

    for i, (count, channels) in enumerate(stages, 1):
        blocks = []
        for path in (f"stage{i}.block{b}" for b in range(1, count + 1)):
            conv = node(f"{path}.branch.conv1", "branch-conv", o.ConvOp(shape[0], channels, 3))
            branch = section(f"{path}.branch", "branch", [conv])
            blocks.append(section(path, "block", [branch, node(f"{path}.act", "block-act", o.ActivationOp("relu"))]))
        pool = node(f"stage{i}.pool", "stage-pool", o.MaxPoolOp(2, 2))
        children.append(section(f"stage{i}", "stage", [*blocks, pool]))
    head = [node("head.pool", "average", o.GlobalAvgPoolOp()), node("head.linear1", "hidden", o.LinearOp(16, 40)),
            node("head.linear", "classifier", o.LinearOp(40, 10))]  # fmt: skip
    spec = replace(BASE, stem=s.Stem((), ()), shortcuts=s.NoShortcuts())
    return Plan(spec, section("", "network", [*children, section("head", "head", head)]))


# ------------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize("pair", list(itertools.combinations(VARIED, 2)), ids="-".join)
def test_any_two_networks_can_be_compared_both_ways(pair):
    for names in (pair, pair[::-1]):
        plans = plan_all(*names)
        comparison = compare_plans(plans)
        sentences, (headings, lines) = describe_differences(comparison), build_rows_table(comparison)
        assert sentences
        assert all(names[0] in sentence or sentence.startswith("In total") for sentence in sentences)
        assert all(len(line) == len(headings) for line in lines)
        for i, network_plan in enumerate(plans.values()):
            cells = [row.cells[i] for row in comparison.rows if row.cells[i]]
            assert sum(cell.macs for cell in cells) == network_plan.macs
            assert sum(cell.params for cell in cells) == network_plan.params
        json.dumps(serialize_comparison(comparison), allow_nan=False)


def test_deep_networks_are_compared_in_little_processor_time():
    plans, budget = plan_all("resnet1202", "resnet152"), measure_cpu_budget()
    start = time.process_time()  # not the wall clock, so that other programs do not count
    comparison = compare_plans(plans)
    describe_differences(comparison), build_rows_table(comparison)
    assert time.process_time() - start < budget


@pytest.mark.parametrize("name", [*TINY, "resnet50", "resnet1202", "plain34"])
def test_equal_networks_are_identical(name):
    comparison = compare_plans({"a": plan((CATALOG | TINY)[name]), "b": plan_network(name)})
    assert describe_differences(comparison) == ["b and a are identical"]
    assert not any(row.is_different for row in comparison.rows)


@pytest.mark.parametrize("name", TINY)
def test_different_networks_are_never_called_identical(name):
    names = list(TINY)
    for second in names[names.index(name) + 1 :]:
        comparison = compare_plans(plan_all(name, second))
        assert "identical" not in "".join(describe_differences(comparison))
        assert any(row.is_different for row in comparison.rows)


def test_v1_differs_from_v15_in_the_position_of_the_stride():
    fewer = IMAGENET["resnet50"][1] - IMAGENET["resnet50_v1"][1]
    assert fewer == 231_211_008
    assert describe("resnet50", "resnet50_v1") == [
        "resnet50_v1 has the stride at the first 1x1 in stage2, stage3, stage4; resnet50 at the 3x3: "
        "231,211,008 fewer MACs, the same params",
        "In total, resnet50_v1 has a receptive field of 483 pixels instead of 427",
    ]


def test_options_of_the_paper():
    params, macs = (b - a for a, b in zip(IMAGENET["resnet34_a"], IMAGENET["resnet34"], strict=True))
    option_b = "13 identities and 3 projections, option B of the paper"
    fewer = f"{params:,} fewer params and {macs:,} fewer MACs"
    assert describe("resnet34", "resnet34_a", "plain34", "resnet34_c") == [
        "resnet34_a has 13 identities and 3 padded identities, option A of the paper; resnet34 "
        + f"{option_b}: {fewer}",
        f"plain34 has no shortcuts; resnet34 {option_b}: {fewer}",
        f"resnet34_c has 16 projections, option C of the paper; resnet34 {option_b}: "
        "919,168 more params and 166,985,728 more MACs",
    ]
    assert describe("resnet34_a", "plain34") == [
        "plain34 has no shortcuts; resnet34_a 13 identities and 3 padded identities, option A of the paper: "
        "the same params and MACs"
    ]
    assert describe("resnet20", "resnet20_a_end") == [
        "resnet20_a_end has 7 identities and 2 padded identities (zeros at the end); "
        "resnet20 7 identities and 2 padded identities: the same params and MACs"
    ]


def test_depth_34_against_50():
    sentences = describe("resnet34", "resnet50")
    assert sentences[:2] == [
        "resnet50 has branches of 1x1, 3x3, 1x1; resnet34 of 3x3, 3x3",
        "resnet50 has stages of 256, 512, 1024, 2048 channels; resnet34 of 64, 128, 256, 512",
    ]
    assert sentences[-1] == (
        "In total, resnet50 has 25,557,032 params (1.17 times), 4,089,184,256 MACs (1.12 times), "
        "depth 50 instead of 34, a receptive field of 427 pixels instead of 899"
    )


def test_blocks_groups_classes_and_images():
    assert describe("resnet20", "resnet1202")[0].startswith(
        "resnet1202 has stages of 200, 200, 200 blocks; resnet20 of 3, 3, 3: "
        "19,151,552 more params and 2,788,687,872 more MACs"
    )
    sentences = describe("resnet50", "resnext50_32x4d")
    assert "resnext50_32x4d has branches with 32 groups; resnet50 with no groups" in sentences
    assert "resnext50_32x4d has branches of width 128, 256, 512, 1024; resnet50 of 64, 128, 256, 512" in sentences
    ten_classes = plan(replace(CATALOG["resnet50"], head=s.Linear(10)))
    assert describe_differences(compare_plans({"a": plan_network("resnet50"), "b": ten_classes})) == [
        "b has 10 classes; a 1,000: 2,028,510 fewer params and 2,027,520 fewer MACs"
    ]
    larger = compare_plans({"a": plan_network("resnet18"), "b": plan(CATALOG["resnet18"], 256)})
    assert describe_differences(larger)[0].startswith("b takes images of 3x256x256; a of 3x224x224: ")


def test_smaller_differences():
    assert describe("basic-b", "group-norm") == [
        "group-norm has group norm, 4 groups; basic-b batch norm: the same params and MACs"
    ]
    eps = compare_plans({"a": plan_network("basic-b"), "b": plan(replace(BASE, norm=s.BatchNorm(1e-3)))})
    assert describe_differences(eps)[0].startswith("b has BatchNorm(eps=0.001, momentum=0.1); a BatchNorm(eps=1e-05")
    head = describe("basic-b", "headless")[0]
    assert head.startswith("headless has no head; basic-b average over the map, linear 5: ")
    assert describe("basic-b", "atrous")[:2] == [
        "atrous has stride 1 in stage2; basic-b stride 2",
        "atrous has dilation 2 in stage2; basic-b no dilation",
    ]
    assert describe("basic-b", "last-block")[0].startswith(
        "last-block has the stride in its last block in stage2; basic-b in its first block"
    )
    assert describe("subsampled", "subsampled-3")[0].startswith(
        "subsampled-3 has max pool 3x3/2 at stage2.block1.shortcut.pool; subsampled max pool 1x1/2 at"
    )
    extras = "pre has norm and activation before the branch in its blocks; basic-b nothing else"
    assert extras in "\n".join(describe("basic-b", "pre"))


def test_cost_is_given_only_if_one_difference_causes_it():
    sentences = describe("resnet20", "cifar_resnet18")
    assert sentences[0].endswith("resnet20 3x3 16: in the stem 1,392 more params and 1,327,104 more MACs")
    assert all(" more MACs" not in sentence for sentence in sentences[1:])


def test_too_few_networks_are_refused():
    with pytest.raises(UsageError, match="a comparison needs at least two networks") as caught:
        compare_plans(plan_all("resnet18"))
    assert (caught.value.where, caught.value.fix) == (("compare",), "name another network")
    with pytest.raises(UsageError, match="no network to draw") as caught:
        draw_side_by_side({})
    assert caught.value.fix == "pass at least one network"


# ------------------------------------------------------------------------------------------------------------ tables


def test_table_folds_equal_blocks_and_shows_missing_ones():
    headings, lines = build_rows_table(compare_plans(plan_all("resnet18", "resnet34")))
    rows = align_table([headings, *lines], ROWS_TEXT_COLUMNS).splitlines()
    assert [row.split()[:2] for row in rows[2:5]] == [["stage1.block1", "to"], ["stage1.block3", "resnet18"],
                                                      ["resnet34", "3x3"]]  # fmt: skip
    assert "stage1.block1 to block2  both" in rows[2]
    assert rows[3].rstrip().endswith("resnet18  -")
    assert "projection/2" in "\n".join(rows)
    deep = compare_plans(plan_all("resnet1202", "resnet20"))
    assert [row.path for row in deep.rows if not all(row.cells)] == [f"stage{i}.block4 to block200" for i in (1, 2, 3)]


def test_equal_networks_share_a_line():
    headings, lines = build_rows_table(compare_plans(plan_all("resnet34", "resnet34_a", "plain34")))
    assert headings == ("path", "network", "branch", "shortcut", "output", "params", "MACs")
    assert [line[1] for line in lines if line[0] == "stage1.block1 to block3"] == ["resnet34, resnet34_a"]
    assert [line[1] for line in lines if line[0] == "stem"] == ["all"]


def test_totals_have_their_ratios():
    headings, lines = build_totals_table(compare_plans(plan_all("resnet34", "resnet50", "plain34")))
    assert headings == ("total", "resnet34", "resnet50", "plain34")
    assert ("depth", "34", "50 (1.47x)", "34 (same)") in lines
    assert ("params", "21,797,672", "25,557,032 (1.17x)", "21,623,848 (0.992x)") in lines
    assert ("receptive field", "899", "427 (0.475x)", "899 (same)") in lines


# ----------------------------------------------------------------------------------------------------------- drawing


def find_parts(drawing, kind):
    return [element for element in ET.fromstring(drawing).iter() if element.attrib.get("data-part") == kind]


@pytest.mark.parametrize("name", [*TINY, "plain34", "resnet34", "resnet50", "resnet20", "cifar_resnet18", "resnet34_c"])
def test_drawing_has_a_box_for_each_convolution_and_an_arc_for_each_shortcut(name):
    network_plan = plan_network(name)
    drawing = draw_side_by_side({name: network_plan})
    convolutions = [node for node in network_plan.nodes if node.role in ("stem-conv", "branch-conv")]
    notes = [part[0].text.split(":")[0] for part in find_parts(drawing, "conv")]
    assert notes == [node.path for node in convolutions]
    shortcuts = [path for path, part in network_plan.parts.items() if part.role == "shortcut"]
    assert [part[0].text.split(":")[0] for part in find_parts(drawing, "arc")] == shortcuts
    n_linear = sum(node.role in ("hidden", "classifier") for node in network_plan.nodes)
    assert len(find_parts(drawing, "linear")) == n_linear


@pytest.mark.parametrize("name", CATALOG)
def test_deep_networks_are_folded_without_losing_blocks(name):
    drawing = draw_side_by_side({name: plan_network(name)})
    root = ET.fromstring(drawing)
    assert float(root.attrib["height"]) <= MAX_HEIGHT
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    blocks = sum(stage.blocks for stage in CATALOG[name].stages)
    folded = [int(text[2:]) for text in texts if text.startswith("x ")][: -1 if "drawn once" in drawing else None]
    convolutions_per_block = len(s.list_steps(CATALOG[name].stages[0].branch, 1))
    n_drawn = (len(find_parts(drawing, "conv")) - len(CATALOG[name].stem.convs)) / convolutions_per_block
    assert n_drawn + sum(folded) - len(folded) == blocks


def test_maps_of_the_same_size_stand_at_the_same_height():
    drawing = draw_side_by_side(plan_all("resnet34", "resnet50_v1", "plain34"))
    convolutions = find_parts(drawing, "conv")
    tops = {}
    for box in convolutions:
        path, _, rest = box[0].text.partition(": ")
        if path == "stage3.block1.branch.conv1":
            tops[rest] = float(box.attrib["y"])
    assert len(tops) == 2
    assert len(set(tops.values())) == 1
    boxes = sorted((float(box.attrib["y"]), box[0].text.split(", ")[2]) for box in convolutions)
    sizes = [shape.split("x")[1] for _, shape in boxes if "x" in shape]
    assert [size for size, _ in itertools.groupby(sizes)] == ["112", "56", "28", "14", "7"]


@pytest.mark.parametrize(
    "names", [["plain34"], ["resnet34", "resnext101_64x4d"], VARIED[:6], VARIED[6:], list(TINY)[:6]]
)
def test_texts_fit_their_boxes_and_columns(names):
    root = ET.fromstring(draw_side_by_side(plan_all(*names)))
    width = float(root.attrib["width"])
    for group in root.iter("{http://www.w3.org/2000/svg}g"):
        frame, text = group[0], group[-1]
        if frame.tag.endswith("rect"):
            assert len(text.text) * float(text.attrib["font-size"]) * 0.6 <= float(frame.attrib["width"]), text.text
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        text_width = len(text.text) * float(text.attrib["font-size"]) * 0.6
        anchor = {"middle": 0.5, "end": 1.0}.get(text.attrib.get("text-anchor"), 0.0)
        assert float(text.attrib["x"]) - anchor * text_width >= 0, text.text
        assert float(text.attrib["x"]) + (1 - anchor) * text_width <= width, text.text


def test_columns_do_not_touch():
    drawing = draw_side_by_side(plan_all(*VARIED[:6]))
    arcs = [part.attrib["d"].split() for part in find_parts(drawing, "arc")]
    boxes = find_parts(drawing, "conv")
    spans = {(float(box.attrib["x"]), float(box.attrib["x"]) + float(box.attrib["width"])) for box in boxes}
    assert len(spans) == 6
    for arc in arcs:
        start, end = float(arc[1]), float(arc[6])
        assert not any(left < end for left, _ in spans if left > start)


def test_names_are_text_and_never_markup():
    base = plan_network("basic-b")
    plans = {'<b>"&\x00\u202e': base, "]]></text><script>": plan_network("bottleneck"), "n" * 300: base}
    drawing = draw_side_by_side(plans)
    headings = [element.text for element in ET.fromstring(drawing).iter() if element.tag.endswith("text")]
    assert '<b>"&??' in headings
    assert "<script>" not in drawing
    assert max(map(len, headings)) < 80


def test_kinds_of_shortcuts_differ_in_style_and_are_in_the_legend():
    drawing = draw_side_by_side(plan_all("resnet18", "resnet18_a"))
    arcs = find_parts(drawing, "arc")
    styles = {part[0].text.split(": ")[1].split(",")[0]: dict(part.attrib) for part in arcs}
    assert set(styles) == {"identity", "projection", "padded identity"}
    assert "stroke-dasharray" not in styles["identity"]
    assert len({style["stroke"] for style in styles.values()}) == 3
    for text in (
        "1x1, 128, /2",
        "64 zeros, /2",
        "the input itself",
        "a 1x1 convolution",
        "zeros for the added channels",
    ):
        assert text in drawing


def test_pools_and_hidden_layers_of_other_families():
    vgg = build_vgg()
    plans = {"vgg": vgg, **plan_all("basic-b", "plain")}
    drawing = draw_side_by_side(plans)
    notes = [part[0].text.split(":")[0] for part in find_parts(drawing, "thin") + find_parts(drawing, "linear")]
    assert {"stage1.pool", "stage2.pool", "head.pool", "head.linear1", "head.linear"} <= set(notes)
    assert len(find_parts(draw_side_by_side({"vgg": vgg}), "conv")) == 3
    comparison = compare_plans(plans)
    assert [row.path for row in comparison.rows if row.path.endswith("pool")] == ["stage1.pool", "stage2.pool"]
    sentences = " | ".join(describe_differences(comparison))
    assert "basic-b has branches of 3x3, 3x3; vgg of 3x3" in sentences
    assert "basic-b has the stride in its first block in stage2; vgg in its pool" in sentences
    assert (
        "plain has the head average over the map, linear 5; vgg average over the map, linear 40, linear 10" in sentences
    )
