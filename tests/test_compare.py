"""Networks side by side: in words, as a table, and as a picture."""

import itertools
import json
import time
import xml.etree.ElementTree as ET
from dataclasses import replace

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
from helpers.tiny import BASE, TINY

VARIED = ["resnet18", "resnet34_c", "resnet50", "resnet50_v1", "resnext50_32x4d", "plain34", "resnet20", "resnet20_a_end",
          "resnet110_b", "resnet1202", "cifar_resnet18", "resnet152"]  # fmt: skip


def made(*names):
    return {name: plan((CATALOG | TINY)[name]) for name in names}


def said(*names):
    return describe_differences(compare_plans(made(*names)))


def vgg(stages=((2, 8), (1, 16))):
    """A network of one convolution a block, with a pool behind each stage, written by hand."""
    shape, written = (3, 32, 32), []

    def node(path, role, op):
        nonlocal shape
        before, shape = shape, op.compute_output_shape(shape)
        return Node(path, role, op, before, shape, 1, 1)

    def place(path, role, children):
        return Section(path, role, tuple(children), children[0].input, children[-1].output, 1, 1)

    for i, (count, channels) in enumerate(stages, 1):
        blocks = []
        for path in (f"stage{i}.block{b}" for b in range(1, count + 1)):
            conv = node(f"{path}.branch.conv1", "branch-conv", o.ConvOp(shape[0], channels, 3))
            branch = place(f"{path}.branch", "branch", [conv])
            blocks.append(place(path, "block", [branch, node(f"{path}.act", "block-act", o.ActivationOp("relu"))]))
        pool = node(f"stage{i}.pool", "stage-pool", o.MaxPoolOp(2, 2))
        written.append(place(f"stage{i}", "stage", [*blocks, pool]))
    head = [node("head.pool", "average", o.GlobalAvgPoolOp()), node("head.linear1", "hidden", o.LinearOp(16, 40)),
            node("head.linear", "classifier", o.LinearOp(40, 10))]  # fmt: skip
    spec = replace(BASE, stem=s.Stem((), ()), shortcuts=s.NoShortcuts())
    return Plan(spec, place("", "network", [*written, place("head", "head", head)]))


# ------------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize("pair", list(itertools.permutations(VARIED, 2)))
def test_any_two_networks_can_be_compared(pair):
    plans = made(*pair)
    started = time.perf_counter()
    comparison = compare_plans(plans)
    told, (headings, lines) = describe_differences(comparison), build_rows_table(comparison)
    assert time.perf_counter() - started < 2  # it takes some hundredths; a loaded machine may take longer
    assert told
    assert all(pair[0] in sentence or sentence.startswith("In all") for sentence in told)
    assert all(len(line) == len(headings) for line in lines)
    for i, whole in enumerate(plans.values()):
        there = [row.cells[i] for row in comparison.rows if row.cells[i]]
        assert sum(cell.macs for cell in there) == whole.macs
        assert sum(cell.params for cell in there) == whole.params
    json.dumps(serialize_comparison(comparison), allow_nan=False)


@pytest.mark.parametrize("name", [*TINY, "resnet50", "resnet1202", "plain34"])
def test_equal_networks_are_identical(name):
    comparison = compare_plans({"a": plan((CATALOG | TINY)[name]), "b": plan((CATALOG | TINY)[name])})
    assert describe_differences(comparison) == ["b and a are identical"]
    assert not any(row.is_different for row in comparison.rows)


@pytest.mark.parametrize("pair", list(itertools.combinations(TINY, 2)))
def test_different_networks_are_never_called_identical(pair):
    first, second = pair
    comparison = compare_plans(made(first, second))
    assert "identical" not in "".join(describe_differences(comparison))
    assert any(row.is_different for row in comparison.rows)


def test_v1_against_v15():
    fewer = IMAGENET["resnet50"][1] - IMAGENET["resnet50_v1"][1]
    assert fewer == 231_211_008
    assert said("resnet50", "resnet50_v1") == [
        "resnet50_v1 has the stride at the first 1x1 in stage2, stage3, stage4; resnet50 at the 3x3: "
        "231,211,008 MACs fewer, the same params",
        "In all resnet50_v1 has a receptive field of 483 pixels instead of 427",
    ]


def test_the_options_of_the_paper():
    params, macs = (b - a for a, b in zip(IMAGENET["resnet34_a"], IMAGENET["resnet34"], strict=True))
    others = "13 identities and 3 projections, option B of the paper"
    fewer = f"{params:,} params and {macs:,} MACs fewer"
    assert said("resnet34", "resnet34_a", "plain34", "resnet34_c") == [
        "resnet34_a has 13 identities and 3 padded identities, option A of the paper; resnet34 " + f"{others}: {fewer}",
        f"plain34 has no shortcuts; resnet34 {others}: {fewer}",
        f"resnet34_c has 16 projections, option C of the paper; resnet34 {others}: "
        "919,168 params and 166,985,728 MACs more",
    ]
    assert said("resnet34_a", "plain34") == [
        "plain34 has no shortcuts; resnet34_a 13 identities and 3 padded identities, option A of the paper: "
        "the same params and MACs"
    ]
    assert said("resnet20", "resnet20_a_end") == [
        "resnet20_a_end has 7 identities and 2 padded identities (zeros at the end); "
        "resnet20 7 identities and 2 padded identities: the same params and MACs"
    ]


def test_depth_34_against_50():
    told = said("resnet34", "resnet50")
    assert told[:2] == [
        "resnet50 has branches of 1x1, 3x3, 1x1; resnet34 of 3x3, 3x3",
        "resnet50 has stages of 256, 512, 1024, 2048 channels; resnet34 of 64, 128, 256, 512",
    ]
    assert told[-1] == (
        "In all resnet50 has 25,557,032 params (1.17 times), 4,089,184,256 MACs (1.12 times), "
        "depth 50 instead of 34, a receptive field of 427 pixels instead of 899"
    )


def test_blocks_groups_classes_and_images():
    assert said("resnet20", "resnet1202")[0].startswith(
        "resnet1202 has stages of 200, 200, 200 blocks; resnet20 of 3, 3, 3: 19,151,552 params and 2,788,687,872 MACs"
    )
    told = said("resnet50", "resnext50_32x4d")
    assert "resnext50_32x4d has branches with 32 groups; resnet50 with no groups" in told
    assert "resnext50_32x4d has branches of width 128, 256, 512, 1024; resnet50 of 64, 128, 256, 512" in told
    ten = compare_plans({"a": plan(CATALOG["resnet50"]), "b": plan(replace(CATALOG["resnet50"], head=s.Linear(10)))})
    assert describe_differences(ten) == [
        "b answers with 10 classes; a with 1,000: 2,028,510 params and 2,027,520 MACs fewer"
    ]
    larger = compare_plans({"a": plan(CATALOG["resnet18"]), "b": plan(CATALOG["resnet18"], 256)})
    assert describe_differences(larger)[0].startswith("b takes images of 3x256x256; a of 3x224x224: ")


def test_the_smaller_differences():
    assert said("basic-b", "group-norm") == [
        "group-norm has group norm, 4 groups; basic-b batch norm: the same params and MACs"
    ]
    eps = compare_plans({"a": plan(BASE), "b": plan(replace(BASE, norm=s.BatchNorm(1e-3)))})
    assert describe_differences(eps)[0].startswith("b has BatchNorm(eps=0.001, momentum=0.1); a BatchNorm(eps=1e-05")
    assert said("basic-b", "headless")[0].startswith("headless has no head; basic-b average over the map, linear 5: ")
    assert said("basic-b", "atrous")[:2] == [
        "atrous has stride 1 in stage2; basic-b stride 2",
        "atrous has dilation 2 in stage2; basic-b no dilation",
    ]
    assert said("basic-b", "last-block")[0].startswith(
        "last-block has the stride in its last block in stage2; basic-b in its first block"
    )
    assert said("subsampled", "subsampled-3")[0].startswith(
        "subsampled-3 has max pool 3x3/2 at stage2.block1.shortcut.pool; subsampled max pool 1x1/2 at"
    )


def test_a_cost_is_told_only_where_one_thing_has_it():
    told = said("resnet20", "cifar_resnet18")
    assert told[0].endswith("resnet20 3x3 16: in the stem 1,392 params and 1,327,104 MACs more")
    assert all(" MACs more" not in sentence for sentence in told[1:])


def test_one_network_is_refused():
    with pytest.raises(UsageError, match="one network cannot be compared") as caught:
        compare_plans(made("resnet18"))
    assert "name two networks or more" in str(caught.value)
    with pytest.raises(UsageError, match="there is no network to draw"):
        draw_side_by_side({})


# ------------------------------------------------------------------------------------------------------------ tables


def test_the_table_folds_equal_neighbours_and_shows_what_is_lacking():
    headings, lines = build_rows_table(compare_plans(made("resnet18", "resnet34")))
    drawn = align_table([headings, *lines], ROWS_TEXT_COLUMNS).splitlines()
    assert [line.split()[:2] for line in drawn[2:5]] == [["stage1.block1", "to"], ["stage1.block3", "resnet18"],
                                                         ["resnet34", "3x3"]]  # fmt: skip
    assert "stage1.block1 to block2  both" in drawn[2]
    assert drawn[3].rstrip().endswith("resnet18  -")
    assert "projection/2" in "\n".join(drawn)
    wide = compare_plans(made("resnet1202", "resnet20"))
    assert [row.path for row in wide.rows if not all(row.cells)] == [f"stage{i}.block4 to block200" for i in (1, 2, 3)]


def test_equal_networks_share_a_line():
    _, lines = build_rows_table(compare_plans(made("resnet34", "resnet34_a", "plain34")))
    assert [line[1] for line in lines if line[0] == "stage1.block1 to block3"] == ["resnet34, resnet34_a"]
    assert [line[1] for line in lines if line[0] == "stem"] == ["all"]


def test_totals_have_their_ratios():
    headings, lines = build_totals_table(compare_plans(made("resnet34", "resnet50", "plain34")))
    assert headings == ("total", "resnet34", "resnet50", "plain34")
    assert ("depth", "34", "50 (1.47x)", "34 (same)") in lines
    assert ("params", "21,797,672", "25,557,032 (1.17x)", "21,623,848 (0.992x)") in lines


# ----------------------------------------------------------------------------------------------------------- picture


def parts(drawn, kind):
    return [element for element in ET.fromstring(drawn).iter() if element.attrib.get("data-part") == kind]


@pytest.mark.parametrize("name", [*TINY, "plain34", "resnet34", "resnet50", "resnet20", "cifar_resnet18", "resnet34_c"])
def test_a_box_for_each_convolution_and_an_arc_for_each_shortcut(name):
    whole = plan((CATALOG | TINY)[name])
    drawn = draw_side_by_side({name: whole})
    convolutions = [node for node in whole.nodes if node.role in ("stem-conv", "branch-conv")]
    notes = [part[0].text.split(":")[0] for part in parts(drawn, "conv")]
    assert notes == [node.path for node in convolutions]
    shortcuts = [path for path, part in whole.parts.items() if part.role == "shortcut"]
    assert [part[0].text.split(":")[0] for part in parts(drawn, "arc")] == shortcuts
    assert len(parts(drawn, "linear")) == sum(node.role in ("hidden", "classifier") for node in whole.nodes)


@pytest.mark.parametrize("name", CATALOG)
def test_deep_networks_are_folded_and_nothing_is_lost(name):
    drawn = draw_side_by_side({name: plan(CATALOG[name])})
    root = ET.fromstring(drawn)
    assert float(root.attrib["height"]) <= MAX_HEIGHT
    told = [element.text for element in root.iter() if element.tag.endswith("text")]
    blocks = sum(stage.blocks for stage in CATALOG[name].stages)
    folded = [int(text[2:]) for text in told if text.startswith("x ")][: -1 if "drawn once" in drawn else None]
    each = len(s.list_steps(CATALOG[name].stages[0].branch, 1))
    stem = len(CATALOG[name].stem.convs)
    assert (len(parts(drawn, "conv")) - stem) / each + sum(folded) - len(folded) == blocks


def test_the_same_size_of_map_stands_at_the_same_height():
    drawn = draw_side_by_side(made("resnet34", "resnet50_v1", "plain34"))
    tops = {}
    for box in parts(drawn, "conv"):
        path, _, rest = box[0].text.partition(": ")
        if path == "stage3.block1.branch.conv1":
            tops[rest] = float(box.attrib["y"])
    assert len(tops) == 2
    assert len(set(tops.values())) == 1
    boxes = sorted((float(box.attrib["y"]), box[0].text.split(", ")[2]) for box in parts(drawn, "conv"))
    sizes = [shape.split("x")[1] for _, shape in boxes if "x" in shape]
    assert [size for size, _ in itertools.groupby(sizes)] == ["112", "56", "28", "14", "7"]


@pytest.mark.parametrize(
    "names", [["plain34"], ["resnet34", "resnext101_64x4d"], VARIED[:6], VARIED[6:], list(TINY)[:6]]
)
def test_texts_fit_their_boxes_and_columns(names):
    root = ET.fromstring(draw_side_by_side(made(*names)))
    width = float(root.attrib["width"])
    for group in root.iter("{http://www.w3.org/2000/svg}g"):
        frame, text = group[0], group[-1]
        if frame.tag.endswith("rect"):
            wide = len(text.text) * float(text.attrib["font-size"]) * 0.6
            assert wide <= float(frame.attrib["width"]), text.text
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        room = len(text.text) * float(text.attrib["font-size"]) * 0.6
        side = {"middle": 0.5, "end": 1.0}.get(text.attrib.get("text-anchor"), 0.0)
        assert float(text.attrib["x"]) - side * room >= 0, text.text
        assert float(text.attrib["x"]) + (1 - side) * room <= width, text.text


def test_columns_do_not_touch():
    root = ET.fromstring(draw_side_by_side(made(*VARIED[:6])))
    arcs = [part.attrib["d"].split() for part in root.iter() if part.attrib.get("data-part") == "arc"]
    boxes = [part for part in root.iter() if part.attrib.get("data-part") == "conv"]
    spans = {(float(box.attrib["x"]), float(box.attrib["x"]) + float(box.attrib["width"])) for box in boxes}
    assert len(spans) == 6
    for arc in arcs:
        start, far = float(arc[1]), float(arc[6])
        assert not any(left < far for left, _ in spans if left > start)


def test_names_are_text_and_never_markup():
    nasty = {'<b>"&\x00\u202e': plan(BASE), "]]></text><script>": plan(TINY["bottleneck"]), "n" * 300: plan(BASE)}
    drawn = draw_side_by_side(nasty)
    headings = [element.text for element in ET.fromstring(drawn).iter() if element.tag.endswith("text")]
    assert '<b>"&??' in headings
    assert "<script>" not in drawn
    assert max(map(len, headings)) < 80


def test_shortcuts_are_told_apart():
    drawn = draw_side_by_side(made("resnet18", "resnet18_a"))
    styles = {part[0].text.split(": ")[1].split(",")[0]: dict(part.attrib) for part in parts(drawn, "arc")}
    assert set(styles) == {"identity", "projection", "padded identity"}
    assert "stroke-dasharray" not in styles["identity"]
    assert len({style["stroke"] for style in styles.values()}) == 3
    assert "1x1, 128, /2" in drawn
    assert "64 zeros, /2" in drawn
    for words in ("the input itself", "a 1x1 convolution", "zeros for the channels"):
        assert words in drawn


def test_pools_and_hidden_layers_of_other_families():
    plans = {"vgg": vgg(), **made("basic-b", "plain")}
    drawn = draw_side_by_side(plans)
    notes = [part[0].text.split(":")[0] for part in parts(drawn, "thin") + parts(drawn, "linear")]
    assert {"stage1.pool", "stage2.pool", "head.pool", "head.linear1", "head.linear"} <= set(notes)
    assert len(parts(draw_side_by_side({"vgg": vgg()}), "conv")) == 3
    comparison = compare_plans(plans)
    assert [row.path for row in comparison.rows if row.path.endswith("pool")] == ["stage1.pool", "stage2.pool"]
    told = " | ".join(describe_differences(comparison))
    assert "basic-b has branches of 3x3, 3x3; vgg of 3x3" in told
    assert "basic-b has the stride in its first block in stage2; vgg in its pool" in told
    assert "plain has the head average over the map, linear 5; vgg average over the map, linear 40, linear 10" in told
