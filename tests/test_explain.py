"""What the network says of itself."""

import xml.etree.ElementTree as ET

import pytest

from resnetkit.architecture.catalog import ROWS, spec
from resnetkit.architecture.plan import Role, plan
from resnetkit.explain.picture import picture
from resnetkit.explain.why import SENTENCES, why

from tiny import TINY, atrous


def test_the_shortcuts_of_resnet50():
    made = plan(spec("resnet50"))
    assert why(made, "stage1.block1.shortcut").splitlines()[0] == (
        "The branch hands on 256 channels and the block receives 64, same 56x56, so a 1x1 projection 64 -> 256 with "
        "stride 1 (16,384 weights and a norm; option B of the paper)."
    )
    assert why(made, "stage2.block1.shortcut").splitlines()[0] == (
        "Channels 256 -> 512 and stride 2, 56 -> 28, so a 1x1 projection 256 -> 512 with stride 2 (131,072 weights and "
        "a norm; option B of the paper)."
    )
    assert why(made, "stage2.block2.shortcut") == (
        "512 channels at 28x28 on both ways, so the identity, which costs nothing."
    )


def test_the_size_formula_has_its_numbers():
    assert "size: floor((224 + 2*3 - 1*(7-1) - 1) / 2) + 1 = 112" in why(plan(spec("resnet50")), "stem.conv1")
    oblong = why(plan(spec("resnet50"), (200, 300)), "stem.conv1")
    assert oblong.splitlines()[1].endswith("= 100 (height; width 300 -> 150)")


def test_every_role_has_a_sentence():
    assert set(SENTENCES) == set(Role.__args__)


@pytest.mark.parametrize("name", [*TINY, *(row for row in ROWS if "1202" not in row)])
def test_every_path_has_an_answer(name):
    made = plan((ROWS | TINY)[name])
    for path in made.parts:
        answer = why(made, path)
        assert answer[0].isupper() or answer[0].isdigit()
        assert "None" not in answer
        assert "{" not in answer


def test_other_shortcuts_say_what_they_are():
    said = {name: why(plan(TINY[name]), "stage2.block1.shortcut") for name in TINY if "plain" not in name}
    assert "every 2nd pixel of the input with 4 channels of zeros before and 4 after" in said["basic-a"]
    assert "0 channels of zeros before and 8 after" in said["basic-a-end"]
    assert "an average pool and a 1x1 projection 8 -> 16 with stride 1" in said["basic-d"]
    assert "Stride 2, 16 -> 8, so a max pool 1x1/2 picks from the input" in said["subsampled"]
    assert "asks for it in every block" in why(plan(TINY["basic-c"]), "stage1.block2.shortcut")
    assert "kept as dilation" in why(plan(atrous(TINY["basic-b"], 2)), "stage2.block1.shortcut")
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
    made = plan((ROWS | TINY)[name])
    drawn = picture(made, '<b>"name"&')
    root = ET.fromstring(drawn)
    assert root.tag.endswith("svg")
    assert "<b>" not in drawn
    assert all(float(box.attrib["width"]) > 0 for box in root.iter() if box.tag.endswith("rect"))
    titles = [element.text for element in root.iter() if element.tag.endswith("title")]
    for part in made.parts.values():
        if part.role in ("block", "shortcut"):
            assert any(title.startswith(part.path + ":") for title in titles), part.path
