"""Why each part of a network exists, the overview drawing, and the command `explain`."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import resnetkit as rk
from resnetkit.architecture.catalog import CATALOG, spec
from resnetkit.architecture.plan import Role, plan
from resnetkit.architecture.spec import FirstBlock
from resnetkit.errors import UsageError
from resnetkit.explain.drawings.overview import draw_overview
from resnetkit.explain.sentences import SENTENCES
from resnetkit.explain.why import answer_query, why
from resnetkit.weights.layer_aliases import find_path, translate_path

from helpers.tiny import TINY, make_atrous


def explain(name, path):
    return why(plan((CATALOG | TINY)[name]), path)


def test_shortcuts_of_resnet50():
    condition = (
        "Different channels alone are enough, and so is a stride. No block of this network has a stride alone; it would "
        "need a projection."
    )
    assert explain("resnet50", "stage1.block1.shortcut").splitlines()[0] == (
        "The branch outputs 256 channels and the block receives 64, both at 56x56. The shortcut is therefore a 1x1 "
        f"projection 64 -> 256 with stride 1. It has 16,384 weights plus a norm (option B of the paper). {condition}"
    )
    assert explain("resnet50", "stage2.block1.shortcut").splitlines()[0] == (
        "Branch and input differ: channels 256 -> 512 and stride 2, 56 -> 28. The shortcut is therefore a 1x1 projection "
        f"256 -> 512 with stride 2. It has 131,072 weights plus a norm (option B of the paper). {condition}"
    )
    assert explain("resnet50", "stage2.block2.shortcut") == (
        "Branch and shortcut both have 512 channels at 28x28, so the shortcut is the identity and costs nothing. "
        "Different channels or a stride would need a projection."
    )


def test_when_a_shortcut_needs_an_adapter():
    """The standard networks never have a stride alone; ResNet-18 with a stride in stage 1 has one."""
    no_stride_alone = "No block of this network has a stride alone; it would need a projection."
    assert no_stride_alone in explain("resnet18", "stage2.block1.shortcut")
    first, *rest = spec("resnet18").stages
    strided = plan(replace(spec("resnet18"), stages=(replace(first, reduce=FirstBlock(2)), *rest)))
    answer = why(strided, "stage2.block1.shortcut")
    assert "At stage1.block1.shortcut a stride alone needs a projection." in answer
    answer = why(strided, "stage1.block1.shortcut")
    assert answer.startswith(
        "Branch and input differ: stride 2, 56 -> 28. The shortcut is therefore a 1x1 projection 64 -> 64"
    )
    assert "Options A and B use the identity" in explain("resnet34_c", "stage1.block2.shortcut")
    assert "a stride alone a pooled identity" in explain("keras_resnet50v2", "stage1.block2.shortcut")


@pytest.mark.parametrize(
    ("name", "alias", "path"),
    [
        ("resnet50", "layer1.0.downsample", "stage1.block1.shortcut"),
        ("resnet50", "layer1.0.downsample.0", "stage1.block1.shortcut.conv"),
        ("resnet50", "conv2_block1_0_conv", "stage1.block1.shortcut.conv"),
        ("resnet50", "res2a_branch1", "stage1.block1.shortcut.conv"),
        ("resnet50", "res4f_branch2c", "stage3.block6.branch.conv3"),
        ("resnet101", "res4b22_branch2a", "stage3.block23.branch.conv1"),
        ("resnet101", "bn3b3_branch2b", "stage2.block4.branch.norm2"),
        ("resnet50", "resnet.encoder.stages.0.layers.0.shortcut", "stage1.block1.shortcut"),
        ("resnet50d", "layer2.0.downsample.0", "stage2.block1.shortcut.pool"),
        ("resnet50d", "layer2.0.downsample.1", "stage2.block1.shortcut.conv"),
        ("resnet50d", "conv1.3", "stem.conv2"),
        ("seresnet50", "layer3.1.se", "stage3.block2.branch.attention"),
        ("resnetv2_50", "stages.0.blocks.0.downsample", "stage1.block1.shortcut"),
        ("resnetv2_50", "stages.0.blocks.0.norm1", "stage1.block1.pre.norm"),
        ("keras_resnet50v2", "conv3_block1_preact_bn", "stage2.block1.pre.norm"),
        ("vgg16", "features.2", "stage1.block2.branch.conv1"),
        ("vgg16", "conv3_3", "stage3.block3.branch.conv1"),
        ("resnet50", "encoder.stages.0.layers.0.shortcut", "stage1.block1.shortcut"),
        ("resnet50", "conv2_block1_out", "stage1.block1.act"),
        ("keras_resnet50v2", "conv2_block1_out", "stage1.block1.add"),
        ("cifar_resnet18", "layer2.0.shortcut", "stage2.block1.shortcut"),
        ("resnet50", "maxpool", "stem.pool"),
        ("resnet50", "fc", "head.linear"),
    ],
)
def test_names_of_other_libraries_are_resolved(name, alias, path):
    network_plan = plan(spec(name))
    assert find_path(network_plan, alias) == path
    answer = answer_query(network_plan, alias)
    about_topic = (
        f"{answer.topic.answer(network_plan)}\nsource: {answer.topic.source}\n{path}:\n" if answer.topic else ""
    )
    assert answer.text == about_topic + why(network_plan, path)


@pytest.mark.parametrize(
    ("name", "path", "library", "alias"),
    [
        ("resnet50", "stage1.block1", "keras", "conv2_block1 (conv_block)"),
        ("resnet50", "stage1.block2", "keras", "conv2_block2 (identity_block)"),
        ("resnet50", "stage3.block6.branch.norm3", "caffe", "bn4f_branch2c"),
        ("resnet101", "stage3.block23.branch.conv1", "caffe", "res4b22_branch2a"),
        ("resnet101", "stage1.block3.branch.conv1", "caffe", "res2c_branch2a"),
        ("resnet50", "stage2.block1.shortcut", "torchvision", "layer2.0.downsample"),
        ("resnet50", "stage2.block1.branch.conv3", "hf", "resnet.encoder.stages.1.layers.0.layer.2.convolution"),
        ("resnet50", "stem", "caffe", ""),
    ],
)
def test_path_is_translated_to_the_name_in_a_library(name, path, library, alias):
    assert translate_path(plan(spec(name)), path, library) == alias


def test_unknown_library_is_refused():
    with pytest.raises(UsageError, match="unknown library 'kera'"):
        translate_path(plan(spec("resnet18")), "stem", "kera")


@pytest.mark.parametrize(
    ("name", "path", "text"),
    [
        ("vgg16", "head.linear1", "It has 74% of all params of this network."),
        ("keras_resnet50v2", "stem.conv1", "It has a bias because no norm follows it."),
        ("keras_resnet50", "stem.conv1", "like every convolution of this network. A norm that follows subtracts it again."),
        ("resnetv2_50", "stem.conv1", "It has no bias, like every convolution of this network."),
        ("keras_resnet50v2", "stem.pool", "It pads with zeros, as Keras does."),
        ("caffe_resnet50", "stem.pool", "ceil((112 + 2*0 - 1*(3-1) - 1) / 2) + 1 = 56"),
        ("resnetv2_50", "stage1.block1.shortcut", "It has 16,384 weights (option B of the paper)."),
        ("seresnet50", "stage1.block1.branch.attention", "go through 16 numbers and back"),
        ("ecaresnet50d", "stage1.block1.branch.attention", "those of 4 neighbors, with 5 weights"),
        ("resnetblur50", "stage2.block1.branch.blur", "A fixed 3x3 filter smooths the map"),
        ("resnet50d", "stage2.block1.shortcut.pool", "size: ceil(56 / 2) = 28"),
        ("basic-b", "stage1.block1.branch.conv1", "It has no bias: the norm that follows subtracts any constant"),
        ("no-norm", "stage1.block1.branch.conv1", "It has a bias because no norm follows it."),
        ("resnetv2_50", "stage1.block1", "Branch and projection both start from the result."),
        ("resnetv2_50", "stage1.block2", "reaches the end unchanged"),
        ("resnext50_32x4d", "stage2.block1.branch.conv2", "Each of its 32 groups sees 8 of the channels."),
        ("resnet50d", "stage1.block1.shortcut", "pooled only if there is a stride"),
        ("keras_resnet50", "stage1.block1.shortcut", "plus a bias and a norm"),
        ("resnet50", "stage2", "The stage has 4 blocks with 512 channels. Its input is 256 channels at 56x56"),
        ("resnet50", "stage2", "One output pixel sees 91x91 pixels of the image."),
        ("resnet50", "stage4", "sees the whole image: of its field of 427x427 pixels, at most 224x224 lie inside."),
        ("resnet50", "stem.pool", "75% fewer MACs"),
        ("resnet50", "stem", "reduces it by a factor of 4, from 224x224 to 56x56"),
        ("resnet20", "stem", "The stem turns the image into 16 channels and keeps its size, 32x32."),
        ("plain18", "stage1.block1.branch", "The branch is the only path through a block"),
        ("resnet18", "stage1.block1.branch.norm2", "addition"),
        ("resnet50", "head", "averages each of the 2048 maps to one number. A linear layer turns them into 1000 logits."),
        ("resnet34_c", "stage1.block1.shortcut.conv", "mixes the 64 channels and keeps their number"),
        ("subsampled", "stage2.block1.shortcut.pool", "picks every 2nd pixel"),
        ("subsampled-3", "stage2.block1.shortcut.pool", "the maximum of each 3x3 window"),
        ("basic-a", "stage2.block1.shortcut", "takes every 2nd pixel of its input and adds 4 channels of zeros before and 4 after"),
        ("basic-a-end", "stage2.block1.shortcut", "0 channels of zeros before and 8 after"),
        ("basic-d", "stage2.block1.shortcut", "an average pool and a 1x1 projection 8 -> 16 with stride 1"),
        ("subsampled", "stage2.block1.shortcut", "stride 2, 16 -> 8. The shortcut is therefore a max pool 1x1/2 of its input."),
        ("basic-c", "stage1.block2.shortcut", "every block of this network has an adapter"),
        ("no-norm", "stage2.block1.shortcut", "plus a bias"),
    ],
)  # fmt: skip
def test_sentence_says_why_this_network_has_the_part(name, path, text):
    assert text in explain(name, path)


@pytest.mark.parametrize(
    ("name", "path", "text"),
    [
        ("vgg16", "head.linear1", "1,000,000"),
        ("plain18", "stage1.block1.branch.norm2", "addition"),
        ("plain34", "stage2.block1.act", "addition"),
        ("pooled", "head", "linear layer"),
        ("group-norm", "stage1.block1.branch.conv1", "subtracts any constant"),
        ("keras_resnet50v2", "stage1.block3", "unchanged"),
        ("vgg16", "", "the stem"),
    ],
)
def test_sentence_says_nothing_that_this_network_lacks(name, path, text):
    assert text not in explain(name, path)


def test_pool_of_an_image_of_one_pixel_saves_nothing():
    assert "fewer" not in why(plan("resnet50", 1), "stem.pool")


def test_dilated_stride_is_named():
    assert "kept as dilation" in why(plan(make_atrous(TINY["basic-b"], 2)), "stage2.block1.shortcut")


def test_receptive_field_larger_than_one_side_of_the_image():
    answer = why(plan(spec("resnet50"), (200, 800)), "stage4")
    assert (
        "One output pixel sees a part of the image: of its field of 427x427 pixels, at most 200x427 lie inside."
        in answer
    )


def test_size_formula_has_its_numbers():
    assert "size: floor((224 + 2*3 - 1*(7-1) - 1) / 2) + 1 = 112" in explain("resnet50", "stem.conv1")
    oblong = why(plan(spec("resnet50"), (200, 300)), "stem.conv1")
    assert oblong.splitlines()[1].endswith("= 100 (height; width 300 -> 150)")


def test_every_role_has_a_sentence():
    assert set(SENTENCES) == set(Role.__args__)


@pytest.mark.parametrize("name", [*TINY, *(row for row in CATALOG if "1202" not in row)])
def test_every_path_has_an_answer_in_short_sentences(name):
    network_plan = plan((CATALOG | TINY)[name])
    for path in network_plan.parts:
        answer = why(network_plan, path)
        assert answer[0].isupper()
        assert "None" not in answer
        assert "{" not in answer
        for sentence in answer.splitlines()[0].split(". "):
            assert len(sentence.split()) <= 20, sentence


@pytest.mark.parametrize("name", [*TINY, "resnet50", "resnet152", "plain34", "resnet20", "resnet1202"])
def test_overview_is_valid_and_shows_every_block(name):
    network_plan = plan((CATALOG | TINY)[name])
    drawing = draw_overview(network_plan, '<b>"name"&')
    root = ET.fromstring(drawing)
    assert root.tag.endswith("svg")
    assert "<b>" not in drawing
    assert all(float(box.attrib["width"]) > 0 for box in root.iter() if box.tag.endswith("rect"))
    titles = {element.text.partition(":")[0] for element in root.iter() if element.tag.endswith("title")}
    paths = {part.path for part in network_plan.parts.values() if part.role in ("block", "shortcut")}
    assert paths <= titles


# ------------------------------------------------------------------------------------------------------- the command


def test_why_accepts_names_of_other_libraries(cli):
    code, out, _ = cli("explain", "resnet50", "--why", "layer1.0.downsample")
    assert code == 0
    assert out.splitlines()[0] == "layer1.0.downsample: stage1.block1.shortcut"
    document = json.loads(cli("explain", "resnet50", "--why", "conv2_block1_0_conv", "--json")[1])
    assert document["why"]["conv2_block1_0_conv"]["path"] == "stage1.block1.shortcut.conv"
    assert cli("explain", "resnet50", "--why", "layer9")[0] == 2


def test_table_has_a_column_of_names_in_a_library(cli):
    code, out, _ = cli("explain", "resnet50", "--depth", 2, "--names", "keras")
    assert code == 0
    assert out.splitlines()[0].split()[:3] == ["path", "keras", "description"]
    assert "stage1.block1  conv2_block1 (conv_block)" in out
    document = json.loads(cli("explain", "resnet50", "--depth", 2, "--names", "keras", "--json")[1])
    assert document["rows"][4]["keras"] == "conv2_block1 (conv_block)"
    code, _, err = cli("explain", "resnet50", "--names", "kera")
    assert (code, err.splitlines()[-1]) == (2, "fix: did you mean keras?")


@pytest.mark.parametrize(
    ("name", "stages", "counts"),
    [
        (
            "resnet50",
            {
                "stage1": "block1 projection 64 -> 256, the others identity",
                "stage4": "block1 projection/2 1024 -> 2048, the others identity",
            },
            "16 shortcuts: 12 identities and 4 projections",
        ),
        ("resnet34_c", {"stage1": "all projection 64 -> 64"}, "16 shortcuts: 16 projections"),
        (
            "resnet18",
            {"stage1": "all identity", "stage2": "block1 projection/2 64 -> 128, block2 identity"},
            "8 shortcuts: 5 identities and 3 projections",
        ),
        (
            "keras_resnet50v2",
            {"stage2": "block1 projection 256 -> 512, block2 to block3 identity, block4 pooled identity/2 512 -> 512"},
            "16 shortcuts: 9 identities, 4 projections and 3 pooled identities",
        ),
        (
            "resnet20",
            {"stage2": "block1 padded identity/2 16 -> 32, the others identity"},
            "9 shortcuts: 7 identities and 2 padded identities",
        ),
        (
            "resnet50d",
            {"stage2": "block1 pooled projection/2 256 -> 512, the others identity"},
            "16 shortcuts: 12 identities, 3 pooled projections and 1 projection",
        ),
    ],
)
def test_table_shows_which_block_has_which_shortcut(cli, name, stages, counts):
    lines = cli("explain", name)[1].splitlines()
    assert lines[0].split()[:4] == ["path", "description", "shortcuts", "output"]
    for path, text in stages.items():
        assert text in next(line for line in lines if line.startswith(path))
    assert lines[-2] == counts
    document = json.loads(cli("explain", name, "--json")[1])
    assert sum(document["shortcuts"].values()) == int(counts.split()[0])
    assert {row["path"]: row["shortcuts"] for row in document["rows"]}.items() >= stages.items()


def test_table_without_shortcuts(cli):
    lines = cli("explain", "plain18")[1].splitlines()
    assert lines[0].split()[:3] == ["path", "description", "output"]
    assert lines[-2] == "no shortcuts"


def test_shortcuts_stand_below_the_table_on_a_narrow_terminal(cli, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    lines = cli("explain", "resnet50")[1].splitlines()
    assert "shortcuts" not in lines[0]
    assert max(map(len, lines)) <= 80
    assert "stage1: block1 projection 64 -> 256, the others identity" in lines


def test_compare_prints_tables_json_or_a_drawing(cli, tmp_path):
    code, out, _ = cli("explain", "resnet50", "--compare", "resnet50_v1")
    assert code == 0
    assert "resnet50_v1 has the stride at the first 1x1 in stage2, stage3, stage4; resnet50 at the 3x3" in out
    assert "identical" in cli("explain", "resnet50", "--compare", "resnet50")[1]
    document = json.loads(cli("explain", "vgg19", "--compare", "plain34", "resnet34", "--json")[1])
    assert document["schema"] == "resnetkit.compare/1"
    code, out, _ = cli("explain", "vgg19", "--compare", "plain34", "resnet34", "--picture", tmp_path / "3.svg")
    assert (code, out) == (0, "")
    assert ET.parse(tmp_path / "3.svg").getroot().tag.endswith("svg")
    assert cli("explain", "vgg19", "--compare", "resnet5O")[0] == 2


def test_cost_of_a_difference_excludes_others(cli):
    """Biases cost params, too, so what the norm costs is not said of the two together."""
    out = cli("explain", "resnet50_v1", "--compare", "keras_resnet50")[1]
    assert "keras_resnet50 has biases in 53 convolutions; resnet50_v1 in 0" in out
    assert "26,560 more params" not in out


def test_page_replaces_only_pages_of_resnetkit(cli, tmp_path):
    path = tmp_path / "net.html"
    assert cli("explain", "resnet18", "--html", path)[0] == 0
    document = path.read_text()
    assert "script-src 'sha256-" in document
    assert "unsafe" not in document.split("</head>")[0]
    assert cli("explain", "resnet18", "--html", path)[0] == 0
    path.write_text("mine")
    code, _, err = cli("explain", "resnet18", "--html", path)
    assert (code, path.read_text()) == (2, "mine")
    assert err.startswith("error: this file already exists")


def test_image_writes_a_grad_cam_page(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rk.save(rk.build(TINY["basic-b"], classes=["ant", "bee", "cat", "dog", "eel"]), "model")
    Image.new("RGB", (20, 20), "red").save("a.png")
    code, out, err = cli("explain", "model", "--image", "a.png")
    assert code == 0
    assert out.startswith("top prediction  probability\n")
    assert len(out.splitlines()) == 4
    assert "wrote a-grad-cam.html" in err
    assert "Grad-CAM" in Path("a-grad-cam.html").read_text()
    document = json.loads(cli("explain", "model", "--image", "a.png", "--html", "b.html", "--json")[1])
    assert (document["schema"], document["page"]) == ("resnetkit.grad-cam/1", "b.html")
    assert [set(prediction) for prediction in document["predictions"]] == [{"label", "probability"}] * 3
    code, _, err = cli("explain", "model", "--image", "320")
    assert (code, err) == (2, "error: --image takes an image file\nwhere: 320\nfix: --size 320\n")
    assert cli("explain", "resnet18", "--image", "a.png")[0] == 2  # a name has no weights
    Path("bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert cli("explain", "model", "--image", "bad.png")[0] == 3
    assert cli("explain", "model", "--image", "nowhere.png")[0] in (2, 3)


@pytest.mark.parametrize("words", ["--compare resnet34 --html x.html", "--toml --size 320", "--image a.png --why stem",
                                   "--compare resnet34 --why stem", "--json --toml"])  # fmt: skip
def test_conflicting_options_are_refused(cli, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("explain", "resnet18", *words.split())
    assert (code, out) == (2, "")
    assert "cannot be combined" in err
    assert not list(tmp_path.iterdir())


def test_tensor_names_of_other_libraries_are_resolved():
    network_plan = plan("resnet50")
    assert find_path(network_plan, "module.layer2.0.conv1.weight") == "stage2.block1.branch.conv1"
    assert find_path(network_plan, "layer4.2.bn3.running_mean") == "stage4.block3.branch.norm3"
    assert find_path(network_plan, "conv4_x") == "stage3"
    with pytest.raises(UsageError, match="torchvision has no names for a network like this"):
        translate_path(plan("resnetv2_50"), "stem", "torchvision")


def test_missing_file_is_not_taken_for_a_name(cli):
    code, _, err = cli("explain", "nothere.pth")
    assert (code, err.splitlines()[0]) == (2, "error: no such file or folder")


def test_weights_options_without_a_weights_file_are_refused(cli):
    code, _, err = cli("explain", "resnet18", "--network", "resnet34")
    assert (code, err.splitlines()[0]) == (2, "error: these options are about a weights file, and the model is not one")


def test_plan_in_a_notebook():
    markup = plan(spec("resnet18"))._repr_html_()
    assert markup.count("<tr>") == 1 + 4 + 8 + 2
    assert "11,689,512 params" in markup


def test_why_imports_no_torch():
    """One process serves all networks, because its start takes most of the time."""
    names = ["resnet1202", "resnet200d", "vgg19_bn", "keras_resnet152v2"]
    code = "import sys\nfrom resnetkit.cli import main\nfor name in sys.argv[1:]:\n"
    code += "    assert main(['explain', name, '--why', 'head', '--why', 'why no bias']) == 0\nassert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
