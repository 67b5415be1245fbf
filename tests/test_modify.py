"""``resnetkit modify``: several edits, what is told of them, and that nothing is written where one cannot be made."""

import json
from dataclasses import replace

import pytest
import torch

from resnetkit import load, save, surgery
from resnetkit.architecture import spec as s
from resnetkit.commands.modify import _EDIT_BUILDERS
from resnetkit.network.build import build
from test_network import shaken

from helpers.tiny import BASE, TINY

DEEP = replace(BASE, stages=(*BASE.stages, s.Stage(2, 24, s.Basic(24), s.FirstBlock(2))), input=(3, 24, 26))


@pytest.fixture
def model(tmp_path):
    """A model folder, and the network in it."""
    made = shaken(build(DEEP, classes=["cat", "dog", "owl"]))
    save(made, tmp_path / "model")
    return made


@pytest.fixture
def modify(cli, tmp_path, model):
    def run(*words, out="out"):
        return cli("modify", tmp_path / "model", tmp_path / out, *words)

    return run


def same(found, expected):
    assert found.card.spec == expected.card.spec
    assert found.card.preparation == expected.card.preparation
    assert found.card.classes == expected.card.classes
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[key], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("words", "edit"),
    [
        (["--remove", "stage1.block2,stage3"], lambda m: surgery.remove(m, "stage1.block2", "stage3")),
        (["--insert", "stage1.block1=2"], lambda m: surgery.insert(m, "stage1.block1", 2)),
        (["--deepen", "3,2,4"], lambda m: surgery.deepen(m, [3, 2, 4])),
        (["--widen", "stage1=12"], lambda m: surgery.widen(m, 1, 12)),
        (["--prune", "0.5"], lambda m: surgery.prune(m, 0.5)),
        (["--prune", "stage1=0.5"], lambda m: surgery.prune(m, 0.5, stages=1)),
        (["--shortcuts", "A"], lambda m: surgery.shortcuts(m, "A")),
        (["--stem", "imagenet"], lambda m: surgery.stem(m, "imagenet")),
        (["--restride", "stage3=1"], lambda m: surgery.restride(m, "stage3", 1)),
        (["--dilate", "2"], lambda m: surgery.dilate(m, 2)),
        (["--dilate", "stage2,stage3"], lambda m: surgery.dilate(m, stages=[2, 3])),
        (["--input-channels", "1"], lambda m: surgery.input_channels(m, 1)),
        (["--input-channels", "4", "--new-channels", "mean"], lambda m: surgery.input_channels(m, 4, method="mean")),
        (["--classes", "owl, emu"], lambda m: surgery.classes(m, ["owl", "emu"])),
        (["--classes", "7"], lambda m: surgery.classes(m, 7)),
        (["--head", "pooled"], lambda m: surgery.head(m, "pooled")),
        (["--cut", "stage2.block1"], lambda m: surgery.cut(m, "stage2.block1")),
        (["--features", "1,3"], lambda m: surgery.features(m, (1, 3))),
        (["--features", "stage2"], lambda m: surgery.features(m, 2)),
        (["--fold-norms"], surgery.fold_norms),
    ],
    ids=lambda given: "".join(given[:1]).strip("-") if isinstance(given, list) else "",
)  # fmt: skip
def test_each_option_is_the_function_of_its_name(modify, model, tmp_path, words, edit):
    code, out, err = modify(*words)
    assert code == 0, err
    expected, report = edit(model)
    same(load(tmp_path / "out"), expected)
    assert out.startswith(f"{words[0]}: {report.tensor_summary}\n")
    assert all(note in out for note in report.notes)
    assert all(proof.subject in out for proof in report.verifications)
    counts = f"{expected.plan.params:,} params, {expected.plan.macs:,} MACs"
    assert out.endswith(f"wrote {tmp_path / 'out'}: {counts}\n")
    assert err == f"next: resnetkit explain {tmp_path / 'out'}\n"


def test_group_norms_are_refitted_on_pictures(modify, model, tmp_path, pictures):
    code, out, err = modify("--group-norm", 4, "--images", pictures("data", ["a", "b"], count=3))
    assert code == 0, err
    read = load(tmp_path / "out")
    assert read.card.spec.norm == s.GroupNorm(4)
    assert "fitted on 6 images" in out
    assert "of 6 images keep" in out
    assert "not exact by nature (group norm takes its statistics from each image)" in out


def test_edits_are_made_in_the_order_of_the_help(modify, model, tmp_path):
    words = ["--features", "1,2", "--dilate", "stage2", "--input-channels", "1", "--remove", "stage2.block2",
             "--fold-norms", "--insert", "stage2.block1=1"]  # fmt: skip
    code, out, err = modify(*words, "--json")
    assert code == 0, err
    told = json.loads(out)
    names = [edit["edit"] for edit in told["edits"]]
    assert names == ["remove", "insert", "dilate", "input-channels", "features", "fold-norms"]
    made = model
    for edit in (
        lambda m: surgery.remove(m, "stage2.block2"),
        lambda m: surgery.insert(m, "stage2.block1"),
        lambda m: surgery.dilate(m, stages=2),
        lambda m: surgery.input_channels(m, 1),
        lambda m: surgery.features(m, (1, 2)),
        surgery.fold_norms,
    ):
        made, _ = edit(made)
    same(load(tmp_path / "out"), made)


def test_the_help_lists_edits_in_the_order_in_which_they_are_made(cli):
    code, out, _ = cli("modify", "--help")
    assert code == 0
    places = [out.index(f"--{name.replace('_', '-')}") for name in _EDIT_BUILDERS if name != "group_norm"]
    listed = out[out.index("--remove PLACES") :]
    assert [listed.index(f"--{name.replace('_', '-')}") for name in _EDIT_BUILDERS] == sorted(
        listed.index(f"--{name.replace('_', '-')}") for name in _EDIT_BUILDERS
    )
    assert places


def test_the_report_as_a_document(modify, model, tmp_path):
    code, out, _ = modify("--dilate", "1", "--classes", "dog,emu", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["schema"] == "resnetkit.modify/1"
    assert (told["model"], told["out"]) == (str(tmp_path / "model"), str(tmp_path / "out"))
    assert told["params"] == load(tmp_path / "out").plan.params
    dilated, classes = told["edits"]
    assert set(dilated["kept"]) == set(model.state_dict())
    assert dilated["proved"][0]["figure"] <= dilated["proved"][0]["limit"] == 1e-12
    assert dilated["proved"][0]["why"] is None
    assert classes["adapted"] == dict.fromkeys(("head.linear.weight", "head.linear.bias"), "1 of 2 rows kept, by name")
    assert {*dilated} == {"edit", "kept", "renamed", "adapted", "initialized", "dropped", "notes", "proved"}


def test_several_places_are_told_of_as_one(modify, model, tmp_path):
    code, out, _ = modify("--insert", "stage1.block1=1,stage2.block2=1", "--restride", "stage2=1,stage3=1", "--json")
    assert code == 0
    inserted, restrided = json.loads(out)["edits"]
    assert {".".join(key.split(".")[:2]) for key in inserted["initialized"]} == {"stage1.block2", "stage2.block3"}
    assert len(inserted["proved"]) == 2
    assert not inserted["dropped"]
    assert [stage.reduce.stride for stage in load(tmp_path / "out").card.spec.stages] == [1, 1, 1]
    assert len(restrided["notes"]) >= 2


FAULTS = [
    ([], "nothing is to be changed\nwhere: resnetkit modify\nfix: --dilate 8, or another edit"),
    (["--cut", ""], "nothing is to be changed\nwhere: resnetkit modify\nfix: --dilate 8, or another edit"),
    (["--images", "x"], "nothing is done with --images\nwhere: resnetkit modify\nfix: --group-norm 32, or leave it out"),
    (["--dilate", "2", "--new-channels", "mean"],
     "nothing is done with --new-channels\nwhere: resnetkit modify\nfix: --input-channels 4, or leave it out"),
    (["--group-norm", "0"], "--group-norm refits norms on pictures\nwhere: --group-norm\nfix: --images FOLDER"),
    (["--input-channels", "0"],
     "a network for 3 channels cannot be adapted to 0\nwhere: input_channels\nfix: 1, or more than 3"),
    (["--input-channels", "0", "--dilate", "2"],
     "a network for 3 channels cannot be adapted to 0\nwhere: input_channels\nfix: 1, or more than 3"),
    (["--widen", ","], "--widen does not take ','\nwhere: --widen\nfix: PLACE=NUMBER"),
    (["--insert", "stage1.block1"], "--insert does not take 'stage1.block1'\nwhere: --insert\nfix: PLACE=NUMBER"),
    (["--widen", "stage1=12.5"], "--widen does not take '12.5'\nwhere: --widen\nfix: a whole number"),
    (["--prune", "50%"], "--prune does not take '50%'\nwhere: --prune\nfix: a number"),
    (["--prune", "nan"], "nan is not a fraction of channels\nwhere: prune\nfix: a number above 0 and below 1"),
    (["--remove", ","], "nothing is named to remove\nwhere: remove\nfix: a stage, or a block"),
    (["--features", ","], "no stage is selected\nwhere: stages\nfix: 1 to 3"),
    (["--deepen", ","],
     "a network of 2-2-2 blocks cannot grow to no blocks\nwhere: deepen\nfix: 3 numbers, none smaller than now"),
    (["--dilate", "3"],
     "an output stride of 3 is not possible: the stages have strides 1, 2, 2\nwhere: output_stride\nfix: one of 1, 2, 4"),
    (["--dilate", "9" * 5000], f"--dilate does not take '{'9' * 40}'\nwhere: --dilate\nfix: a whole number"),
    (["--classes", "-3"],
     "a classifier needs a number of classes, or a list of names, each once\nwhere: classes\nfix: 1 or more"),
    (["--classes", "a,a"],
     "a classifier needs a number of classes, or a list of names, each once\nwhere: classes\nfix: 1 or more"),
    (["--stem", "cifra"], "unknown stem 'cifra'\nwhere: stem\nfix: did you mean cifar?"),
    (["--shortcuts", "E"], "unknown option 'E'\nwhere: shortcuts\nfix: one of A, B, C, D, none"),
    (["--head", "polled"], "unknown head 'polled'\nwhere: head\nfix: did you mean pooled?"),
    (["--insert", "block1=1"], "cannot find the parts to edit: 1 fault\nwhere: block1: got a name of 3 parts; "
     "allowed: one of stage1.block1, stage2.block1, stage3.block1"),
    (["--restride", "stage9=1,stage3=0", "--cut", "stage33", "--dilate", "3"],
     "3 of these edits cannot be made\nwhere: --restride: 2 of these edits cannot be made; --restride stage9=1: cannot find "
     "the parts to edit: 1 fault; stage9: got a part that does not exist; allowed: stage3 or stage2 or stage1; "
     "--restride stage3=0: this network cannot be built: 1 fault; stage3.reduce.stride: got 0; allowed: 1 or more\n"
     "       --dilate: an output stride of 3 is not possible: the stages have strides 1, 2, 2; output_stride\n"
     "       --cut: cannot find the parts to edit: 1 fault; stage33: got a part that does not exist; "
     "allowed: stage3 or stage2 or stage1\nfix: --restride: --restride stage3=0: correct these places of the spec; "
     "--dilate: one of 1, 2, 4"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"), FAULTS, ids=lambda given: " ".join(given)[:30] if isinstance(given, list) else ""
)
def test_what_cannot_be_is_told_and_nothing_is_written(modify, tmp_path, words, message):
    code, out, err = modify(*words)
    assert (code, out, err) == (2, "", f"error: {message}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize("words", [["--insert", "stage1.block1=1000000000"], ["--widen", "stage1=1000000000"],
                                   ["--deepen", "2,2,1000000000"], ["--input-channels", "1000000000"],
                                   ["--classes", "1000000000"], ["--restride", "stage2=99999999999"]])  # fmt: skip
def test_what_no_machine_holds_is_refused_at_once(modify, words):
    code, out, err = modify(*words)
    assert (code, out) == (2, "")
    assert err.startswith("error: this network cannot be built: ")
    assert "; allowed: at most " in err


def test_a_folder_that_exists_is_left_alone(modify, tmp_path):
    (tmp_path / "out").mkdir()
    code, out, err = modify("--dilate", "2")
    assert (code, out) == (2, "")
    assert err == f"error: this path exists already\nwhere: {tmp_path / 'out'}\nfix: name another path, or remove it\n"
    assert list((tmp_path / "out").iterdir()) == []
    code, _, _ = modify("--dilate", "2", out="model")
    assert code == 2


def test_a_promise_that_is_not_kept_is_exit_6_and_nothing_is_written(cli, tmp_path, model):
    with torch.no_grad():
        model.stage1.block1.branch.conv1.weight[0, 0, 0, 0] = float("nan")
    save(model, tmp_path / "broken")
    for words in (["--dilate", "2"], ["--fold-norms", "--json"], ["--cut", "stage1", "--dilate", "4"]):
        code, out, err = cli("modify", tmp_path / "broken", tmp_path / "out", *words)
        assert (code, out) == (6, ""), err
        assert "error: the edit does not hold its promise, so it was not made\nwhere: the " in err
        assert "differ by inf" in err
        assert not (tmp_path / "out").exists()


def test_a_figure_that_is_none_is_no_figure(cli, tmp_path):
    made = shaken(build(TINY["attention"]))
    with torch.no_grad():
        made.stem.conv1.weight[:] = float("inf")
    save(made, tmp_path / "broken")
    code, out, err = cli("modify", tmp_path / "broken", tmp_path / "out", "--dilate", "1", "--json")
    assert (code, out) == (6, ""), err


def test_bad_pictures_are_told_and_nothing_is_written(modify, tmp_path, pictures):
    (pictures("data", ["a"]) / "a" / "bad.png").write_bytes(b"no picture")
    code, out, err = modify("--group-norm", "4", "--images", tmp_path / "data")
    assert (code, out) == (3, ""), err
    code, out, err = modify("--group-norm", "4", "--images", tmp_path / "nowhere")
    assert (code, out) == (3, ""), err
    code, out, err = modify("--group-norm", "3", "--images", tmp_path / "data" / "a" / "0.png")
    assert (code, out) == (2, ""), err
    assert "norm.groups: got 3; allowed: a number that divides the 8 channels of stem.conv1" in err
    assert not (tmp_path / "out").exists()


def test_a_name_is_no_trained_network(cli, tmp_path):
    code, out, err = cli("modify", "resnet18", tmp_path / "out", "--dilate", "8")
    assert (code, out) == (2, ""), err
    assert "weights" in err
