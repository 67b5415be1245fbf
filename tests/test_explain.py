"""What the network says of itself."""

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
from resnetkit.explain.why import SENTENCES, why
from resnetkit.weights.layer_aliases import resolve_path, translate_path

from helpers.tiny import TINY, make_atrous


def test_the_shortcuts_of_resnet50():
    made = plan(spec("resnet50"))
    assert why(made, "stage1.block1.shortcut").splitlines()[0] == (
        "The branch hands on 256 channels and the block receives 64, same 56x56, so a 1x1 projection 64 -> 256 with "
        "stride 1 (16,384 weights and a norm; option B of the paper). Either cause is enough; no block of this network "
        "has a stride alone, which would ask for a projection."
    )
    assert why(made, "stage2.block1.shortcut").splitlines()[0] == (
        "Channels 256 -> 512 and stride 2, 56 -> 28, so a 1x1 projection 256 -> 512 with stride 2 (131,072 weights and "
        "a norm; option B of the paper). Either cause is enough; no block of this network has a stride alone, which "
        "would ask for a projection."
    )
    assert why(made, "stage2.block2.shortcut") == (
        "512 channels at 28x28 on both ways, so the identity, which costs nothing. Other channels or a stride would ask "
        "for a projection."
    )


def test_when_a_shortcut_needs_an_adapter():
    """The standard networks never have a stride alone; ResNet-18 with a stride in stage 1 has one."""
    alone = "no block of this network has a stride alone, which would ask for a projection."
    assert alone in why(plan(spec("resnet18")), "stage2.block1.shortcut")
    first, *others = spec("resnet18").stages
    strided = replace(spec("resnet18"), stages=(replace(first, reduce=FirstBlock(2)), *others))
    answer = why(plan(strided), "stage2.block1.shortcut")
    assert "a stride alone, without other channels, is answered at stage1.block1 by" not in answer
    assert "a stride alone, without other channels, is answered at stage1.block1.shortcut by a projection." in answer
    assert why(plan(strided), "stage1.block1.shortcut").startswith("Stride 2, 56 -> 28, so a 1x1 projection 64 -> 64")
    assert "options A and B have the identity" in why(plan(spec("resnet34_c")), "stage1.block2.shortcut")
    assert "a stride alone for a pooled identity" in why(plan(spec("keras_resnet50v2")), "stage1.block2.shortcut")


@pytest.mark.parametrize(
    ("name", "word", "path"),
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
        ("cifar_resnet18", "layer2.0.shortcut", "stage2.block1.shortcut"),
        ("resnet50", "maxpool", "stem.pool"),
        ("resnet50", "fc", "head.linear"),
    ],
)
def test_the_names_of_other_libraries_are_understood(name, word, path):
    made = plan(spec(name))
    assert resolve_path(made, word) == path
    assert why(made, word) == why(made, path)


def test_a_name_of_nobody_gets_the_nearest_of_all():
    with pytest.raises(UsageError) as caught:
        resolve_path(plan(spec("resnet50")), "layer1.0.downsamples")
    assert str(caught.value) == (
        "error: there is no such path in this network\nwhere: layer1.0.downsamples\n"
        "fix: try layer1.0.downsample or layer1.0.downsample.1 or layer1.0.downsample.0"
    )


@pytest.mark.parametrize(
    ("name", "path", "library", "word"),
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
def test_what_others_call_it(name, path, library, word):
    assert translate_path(plan(spec(name)), path, library) == word


def test_names_of_a_library_that_is_not_known():
    with pytest.raises(UsageError, match="the names of 'kera' are not known"):
        translate_path(plan(spec("resnet18")), "stem", "kera")


def test_variants_say_why_they_are_there():
    def said(name, path):
        return why(plan(spec(name)), path)

    assert "1,000,000" not in said("vgg16", "head.linear1")
    assert "74% of all params" in said("vgg16", "head.linear1")
    assert "It has a bias because no norm follows it." in said("keras_resnet50v2", "stem.conv1")
    assert "as every convolution of this network, though a norm" in said("keras_resnet50", "stem.conv1")
    assert "as no convolution of this network" in said("resnetv2_50", "stem.conv1")
    assert "zeros, as Keras pads it" in said("keras_resnet50v2", "stem.pool")
    assert "ceil((112 + 2*0 - 1*(3-1) - 1) / 2) + 1 = 56" in said("caffe_resnet50", "stem.pool")
    assert "(16,384 weights; option B of the paper)" in said("resnetv2_50", "stage1.block1.shortcut")
    assert "go through 16 numbers and back" in said("seresnet50", "stage1.block1.branch.attention")
    assert "those of 4 channels beside it" in said("ecaresnet50d", "stage1.block1.branch.attention")
    assert "A fixed 3x3 filter smooths the map" in said("resnetblur50", "stage2.block1.branch.blur")
    assert "size: ceil(56 / 2) = 28" in said("resnet50d", "stage2.block1.shortcut.pool")


def test_the_size_formula_has_its_numbers():
    assert "size: floor((224 + 2*3 - 1*(7-1) - 1) / 2) + 1 = 112" in why(plan(spec("resnet50")), "stem.conv1")
    oblong = why(plan(spec("resnet50"), (200, 300)), "stem.conv1")
    assert oblong.splitlines()[1].endswith("= 100 (height; width 300 -> 150)")


def test_every_role_has_a_sentence():
    assert set(SENTENCES) == set(Role.__args__)


@pytest.mark.parametrize("name", [*TINY, *(row for row in CATALOG if "1202" not in row)])
def test_every_path_has_an_answer(name):
    made = plan((CATALOG | TINY)[name])
    for path in made.parts:
        answer = why(made, path)
        assert answer[0].isupper() or answer[0].isdigit()
        assert "None" not in answer
        assert "{" not in answer


def test_other_shortcuts_say_what_they_are():
    said = {
        name: why(plan(TINY[name]), "stage2.block1.shortcut") for name in TINY if "plain" not in name and name != "vgg"
    }
    assert "every 2nd pixel of the input with 4 channels of zeros before and 4 after" in said["basic-a"]
    assert "0 channels of zeros before and 8 after" in said["basic-a-end"]
    assert "an average pool and a 1x1 projection 8 -> 16 with stride 1" in said["basic-d"]
    assert "Stride 2, 16 -> 8, so a max pool 1x1/2 picks from the input" in said["subsampled"]
    assert "asks for it in every block" in why(plan(TINY["basic-c"]), "stage1.block2.shortcut")
    assert "kept as dilation" in why(plan(make_atrous(TINY["basic-b"], 2)), "stage2.block1.shortcut")
    assert "and a bias" in said["no-norm"]


def test_nothing_is_said_that_this_network_has_not():
    plain, deep = plan(spec("plain18")), plan(spec("resnet20"))
    assert why(plain, "stage1.block1.branch").startswith("The branch is the only way through a block")
    assert "addition" not in why(plain, "stage1.block1.branch.norm2")
    assert "addition" in why(plan(spec("resnet18")), "stage1.block1.branch.norm2")
    assert why(deep, "stem").startswith("The stem turns the image into 16 channels and keeps its size, 32x32")
    assert "shrinks it 4 times, from 224x224 to 56x56" in why(plan(spec("resnet50")), "stem")
    assert why(plan(spec("resnet50")), "head").startswith(
        "The head averages each of the 2048 maps to one number, and a linear layer makes 1000 answers of them."
    )
    assert "a linear layer" not in why(plan(TINY["pooled"]), "head")
    assert "subtracts any constant" not in why(plan(TINY["group-norm"]), "stage1.block1.branch.conv1")
    assert "picks every 2nd pixel" in why(plan(TINY["subsampled"]), "stage2.block1.shortcut.pool")
    assert "the largest of each 3x3 window" in why(plan(TINY["subsampled-3"]), "stage2.block1.shortcut.pool")
    assert "mixes the 64 channels and keeps their number" in why(
        plan(spec("resnet34_c")), "stage1.block1.shortcut.conv"
    )


def test_convolutions_say_why_they_have_no_bias():
    assert "It has no bias: the norm that follows" in why(plan(TINY["basic-b"]), "stage1.block1.branch.conv1")
    assert "It has a bias because no norm follows it." in why(plan(TINY["no-norm"]), "stage1.block1.branch.conv1")


@pytest.mark.parametrize("name", [*TINY, "resnet50", "resnet152", "plain34", "resnet20", "resnet1202"])
def test_a_picture_is_sound_and_shows_every_block(name):
    made = plan((CATALOG | TINY)[name])
    drawn = draw_overview(made, '<b>"name"&')
    root = ET.fromstring(drawn)
    assert root.tag.endswith("svg")
    assert "<b>" not in drawn
    assert all(float(box.attrib["width"]) > 0 for box in root.iter() if box.tag.endswith("rect"))
    titles = [element.text for element in root.iter() if element.tag.endswith("title")]
    for part in made.parts.values():
        if part.role in ("block", "shortcut"):
            assert any(title.startswith(part.path + ":") for title in titles), part.path


# ------------------------------------------------------------------------------------------------- the command itself


def test_the_command_understands_the_names_of_others(cli):
    code, out, _ = cli("explain", "resnet50", "--why", "layer1.0.downsample")
    assert code == 0
    assert out.splitlines()[0] == "layer1.0.downsample: stage1.block1.shortcut"
    found = json.loads(cli("explain", "resnet50", "--why", "conv2_block1_0_conv", "--json")[1])
    assert found["why"]["conv2_block1_0_conv"]["path"] == "stage1.block1.shortcut.conv"
    assert cli("explain", "resnet50", "--why", "layer9")[0] == 2


def test_the_table_with_the_names_of_others(cli):
    code, out, _ = cli("explain", "resnet50", "--depth", 2, "--names", "keras")
    assert code == 0
    assert out.splitlines()[0].split()[:3] == ["path", "keras", "what"]
    assert "stage1.block1  conv2_block1 (conv_block)" in out
    found = json.loads(cli("explain", "resnet50", "--depth", 2, "--names", "keras", "--json")[1])
    assert found["rows"][4]["keras"] == "conv2_block1 (conv_block)"
    code, _, err = cli("explain", "resnet50", "--names", "kera")
    assert (code, err.splitlines()[-1]) == (2, "fix: did you mean keras?")


def test_comparing(cli, tmp_path):
    code, out, _ = cli("explain", "resnet50", "--compare", "resnet50_v1")
    assert code == 0
    assert "resnet50_v1 has the stride at the first 1x1 in stage2, stage3, stage4; resnet50 at the 3x3" in out
    assert "identical" in cli("explain", "resnet50", "--compare", "resnet50")[1]
    found = json.loads(cli("explain", "vgg19", "--compare", "plain34", "resnet34", "--json")[1])
    assert found["schema"] == "resnetkit.compare/1"
    code, out, _ = cli("explain", "vgg19", "--compare", "plain34", "resnet34", "--picture", tmp_path / "3.svg")
    assert (code, out) == (0, "")
    assert ET.parse(tmp_path / "3.svg").getroot().tag.endswith("svg")
    assert cli("explain", "vgg19", "--compare", "resnet5O")[0] == 2


def test_a_cost_is_that_of_what_is_told(cli):
    """Biases cost params, too, so what the norm costs is not said of the two together."""
    out = cli("explain", "resnet50_v1", "--compare", "keras_resnet50")[1]
    assert "keras_resnet50 has biases in 53 convolutions; resnet50_v1 in 0" in out
    assert "26,560 params more" not in out


def test_a_page_of_a_network(cli, tmp_path):
    path = tmp_path / "net.html"
    assert cli("explain", "resnet18", "--html", path)[0] == 0
    first = path.read_text()
    assert "script-src 'sha256-" in first
    assert "unsafe" not in first.split("</head>")[0]
    assert cli("explain", "resnet18", "--html", path)[0] == 0  # a page of ours is replaced
    path.write_text("mine")
    code, _, err = cli("explain", "resnet18", "--html", path)
    assert (code, path.read_text()) == (2, "mine")
    assert err.startswith("error: this file exists already")


def test_what_a_network_sees(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rk.save(rk.build(TINY["basic-b"], classes=["ant", "bee", "cat", "dog", "eel"]), "model")
    Image.new("RGB", (20, 20), "red").save("a.png")
    code, out, err = cli("explain", "model", "--image", "a.png")
    assert code == 0
    assert len(out.splitlines()) == 4
    assert "wrote a-seen.html" in err
    assert "Grad-CAM" in Path("a-seen.html").read_text()
    assert json.loads(cli("explain", "model", "--image", "a.png", "--html", "b.html", "--json")[1])["page"] == "b.html"
    code, _, err = cli("explain", "model", "--image", "320")
    assert (code, err) == (2, "error: --image takes an image file\nwhere: 320\nfix: --size 320\n")
    assert cli("explain", "resnet18", "--image", "a.png")[0] == 2  # a name has no weights
    Path("bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert cli("explain", "model", "--image", "bad.png")[0] == 3
    assert cli("explain", "model", "--image", "nowhere.png")[0] in (2, 3)


@pytest.mark.parametrize("words", ["--compare resnet34 --html x.html", "--toml --size 320", "--image a.png --why stem",
                                   "--compare resnet34 --why stem", "--json --toml"])  # fmt: skip
def test_options_that_do_not_go_together(cli, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("explain", "resnet18", *words.split())
    assert (code, out) == (2, "")
    assert "cannot be combined" in err
    assert not list(tmp_path.iterdir())


def test_a_tensor_of_another_library_is_where_it_stands():
    made = plan("resnet50")
    assert resolve_path(made, "module.layer2.0.conv1.weight") == "stage2.block1.branch.conv1"
    assert resolve_path(made, "layer4.2.bn3.running_mean") == "stage4.block3.branch.norm3"
    assert resolve_path(made, "conv4_x") == "stage3"
    with pytest.raises(UsageError, match="torchvision has no names for a network like this"):
        translate_path(plan("resnetv2_50"), "stem", "torchvision")


def test_sentences_are_of_the_network_at_hand():
    assert "addition" not in why(plan("plain34"), "stage2.block1.act")
    assert "begin from that" in why(plan("resnetv2_50"), "stage1.block1")
    assert "reaches the end unchanged" in why(plan("resnetv2_50"), "stage1.block2")
    assert "unchanged" not in why(plan("keras_resnet50v2"), "stage1.block3")
    assert "Each of its 32 groups sees 8 of the channels" in why(plan("resnext50_32x4d"), "stage2.block1.branch.conv2")
    assert "pooled only where there is a stride" in why(plan("resnet50d"), "stage1.block1.shortcut")
    assert "the stem counts" not in why(plan("vgg16"), "")
    assert "a bias and a norm" in why(plan("keras_resnet50"), "stage1.block1.shortcut")
    assert "4 blocks with 512 channels: 256 channels at 56x56 come in" in why(plan("resnet50"), "stage2")
    assert "75% fewer MACs in them" in why(plan("resnet50"), "stem.pool")
    assert "fewer" not in why(plan("resnet50", 1), "stem.pool")


def test_a_missing_file_is_no_name(cli):
    code, _, err = cli("explain", "nothere.pth")
    assert (code, err.splitlines()[0]) == (2, "error: there is no such file or folder")


def test_words_about_weights_where_there_are_none(cli):
    code, _, err = cli("explain", "resnet18", "--network", "resnet34")
    assert (code, err.splitlines()[0]) == (2, "error: these options are about a weights file, and the model is not one")


def test_a_plan_in_a_notebook():
    shown = plan(spec("resnet18"))._repr_html_()
    assert shown.count("<tr>") == 1 + 4 + 8 + 2
    assert "11,689,512 params" in shown


@pytest.mark.parametrize("name", ["resnet1202", "resnet200d", "vgg19_bn", "keras_resnet152v2"])
def test_no_answer_takes_torch(name):
    code = "import sys\nfrom resnetkit.cli import main\n"
    code += "assert main(['explain', sys.argv[1], '--why', 'head']) == 0\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
