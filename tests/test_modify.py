"""``resnetkit modify``: the edits, their report, and that nothing is written if an edit is not possible."""

import copy
import json
import re
from dataclasses import replace

import pytest
import torch

from resnetkit import load, save, surgery
from resnetkit.architecture import spec as s
from resnetkit.commands.modify import EDIT_BUILDERS
from resnetkit.network.build import build

from helpers.networks import randomize_norms
from helpers.tiny import BASE, TINY

DEEP = replace(BASE, stages=(*BASE.stages, s.Stage(2, 24, s.Basic(24), s.FirstBlock(2))), input=(3, 24, 26))


@pytest.fixture(scope="module")
def model():
    return randomize_norms(build(DEEP, classes=["cat", "dog", "owl"]))


@pytest.fixture(scope="module")
def model_folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    save(model, folder)
    return folder


@pytest.fixture
def modify(cli, tmp_path, model_folder):
    def run(*arguments, out="out"):
        return cli("modify", model_folder, tmp_path / out, *arguments)

    return run


def assert_same_model(network, expected):
    assert network.card.spec == expected.card.spec
    assert network.card.preparation == expected.card.preparation
    assert network.card.classes == expected.card.classes
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(network.state_dict()[key], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "edit"),
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
    ids=lambda value: "".join(value[:1]).strip("-") if isinstance(value, list) else "",
)  # fmt: skip
def test_each_option_calls_the_function_of_its_name(modify, model, tmp_path, arguments, edit):
    code, out, err = modify(*arguments)
    assert code == 0, err
    expected, report = edit(model)
    assert_same_model(load(tmp_path / "out"), expected)
    assert out.startswith(f"{arguments[0]}: {report.tensor_summary}\n")
    assert all(note in out for note in report.notes)
    assert all(verification.subject in out for verification in report.verifications)
    counts = f"{expected.plan.params:,} params, {expected.plan.macs:,} MACs"
    assert out.endswith(f"wrote {tmp_path / 'out'}: {counts}\n")
    assert err == f"next: resnetkit explain {tmp_path / 'out'}\n"


def test_group_norms_are_fitted_on_images(modify, model, tmp_path, pictures):
    code, out, err = modify("--group-norm", 4, "--images", pictures("data", ["a", "b"], count=3))
    assert code == 0, err
    assert load(tmp_path / "out").card.spec.norm == s.GroupNorm(4)
    assert "(fitted on 6 images)" in out
    assert re.search(r"^[0-6] of 6 images keep their predicted class$", out, re.MULTILINE)
    assert "the outputs for the 6 images" in out
    assert "not exact (group norm uses statistics of each image)" in out


def test_edits_are_applied_in_the_order_of_the_help(modify, model, tmp_path):
    arguments = ["--features", "1,2", "--dilate", "stage2", "--input-channels", "1", "--remove", "stage2.block2",
             "--fold-norms", "--insert", "stage2.block1=1"]  # fmt: skip
    code, out, err = modify(*arguments, "--json")
    assert code == 0, err
    names = [edit["edit"] for edit in json.loads(out)["edits"]]
    assert names == ["remove", "insert", "dilate", "input-channels", "features", "fold-norms"]
    expected = model
    for edit in (
        lambda m: surgery.remove(m, "stage2.block2"),
        lambda m: surgery.insert(m, "stage2.block1"),
        lambda m: surgery.dilate(m, stages=2),
        lambda m: surgery.input_channels(m, 1),
        lambda m: surgery.features(m, (1, 2)),
        surgery.fold_norms,
    ):
        expected, _ = edit(expected)
    assert_same_model(load(tmp_path / "out"), expected)


def test_help_lists_edits_in_the_order_in_which_they_are_applied(cli):
    code, out, _ = cli("modify", "--help")
    assert code == 0
    options = re.findall(r"^  --(\S+)", out, re.MULTILINE)
    edits = [name.replace("_", "-") for name in EDIT_BUILDERS]
    assert [option for option in options if option in edits] == edits


def test_report_as_json(modify, model, model_folder, tmp_path):
    code, out, _ = modify("--dilate", "1", "--classes", "dog,emu", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["schema"] == "resnetkit.modify/1"
    assert (document["model"], document["out"]) == (str(model_folder), str(tmp_path / "out"))
    assert document["params"] == load(tmp_path / "out").plan.params
    dilated, classes = document["edits"]
    assert set(dilated["kept"]) == set(model.state_dict())
    verification = dilated["verifications"][0]
    assert verification["difference"] <= verification["limit"] == 1e-12
    assert verification["reason"] is None
    assert classes["adapted"] == dict.fromkeys(("head.linear.weight", "head.linear.bias"), "1 of 2 rows kept, by name")
    assert {*dilated} == {"edit", "kept", "renamed", "adapted", "initialized", "dropped", "notes", "verifications"}


def test_edits_at_several_paths_have_one_report(modify, model, tmp_path):
    code, out, _ = modify("--insert", "stage1.block1=1,stage2.block2=1", "--restride", "stage2=1,stage3=1", "--json")
    assert code == 0
    inserted, restrided = json.loads(out)["edits"]
    assert {".".join(key.split(".")[:2]) for key in inserted["initialized"]} == {"stage1.block2", "stage2.block3"}
    assert len(inserted["verifications"]) == 2
    assert not inserted["dropped"]
    assert [stage.reduce.stride for stage in load(tmp_path / "out").card.spec.stages] == [1, 1, 1]
    assert len(restrided["notes"]) >= 2


ERRORS = [
    ([], "no edit is given\nwhere: resnetkit modify\nfix: --dilate 8, or another edit"),
    (["--cut", ""], "no edit is given\nwhere: resnetkit modify\nfix: --dilate 8, or another edit"),
    (["--images", "x"], "--images has no effect without --group-norm\nwhere: resnetkit modify\nfix: add --group-norm, or remove --images"),
    (["--dilate", "2", "--new-channels", "mean"],
     "--new-channels has no effect without --input-channels\nwhere: resnetkit modify\n"
     "fix: add --input-channels, or remove --new-channels"),
    (["--group-norm", "0"], "--group-norm needs images to fit the norms on\nwhere: --group-norm\nfix: --images FOLDER"),
    (["--input-channels", "0"],
     "a network for 3 channels cannot be adapted to 0\nwhere: input_channels\nfix: 1, or more than 3"),
    (["--input-channels", "0", "--dilate", "2"],
     "a network for 3 channels cannot be adapted to 0\nwhere: input_channels\nfix: 1, or more than 3"),
    (["--widen", ","], "invalid value for --widen: ','\nwhere: --widen\nfix: use PATH=NUMBER"),
    (["--insert", "stage1.block1"], "invalid value for --insert: 'stage1.block1'\nwhere: --insert\nfix: use PATH=NUMBER"),
    (["--widen", "stage1=12.5"], "invalid value for --widen: '12.5'\nwhere: --widen\nfix: use a whole number"),
    (["--prune", "50%"], "invalid value for --prune: '50%'\nwhere: --prune\nfix: use a number"),
    (["--prune", "nan"], "nan is not a fraction of channels\nwhere: prune\nfix: a number above 0 and below 1"),
    (["--remove", ","], "nothing is named to remove\nwhere: remove\nfix: a stage, or a block"),
    (["--features", ","], "no stage is selected\nwhere: stages\nfix: 1 to 3"),
    (["--deepen", ","],
     "a network of 2-2-2 blocks cannot grow to no blocks\nwhere: deepen\nfix: 3 numbers, none smaller than now"),
    (["--dilate", "3"],
     "an output stride of 3 is not possible: the stages have strides 1, 2, 2\nwhere: output_stride\nfix: one of 1, 2, 4"),
    (["--dilate", "9" * 5000], f"invalid value for --dilate: '{'9' * 40}'\nwhere: --dilate\nfix: use a whole number"),
    (["--classes", "-3"],
     "a classifier needs a number of classes, or a list of different names\nwhere: classes\nfix: 1 or more"),
    (["--classes", "a,a"],
     "a classifier needs a number of classes, or a list of different names\nwhere: classes\nfix: 1 or more"),
    (["--stem", "cifra"], "unknown stem 'cifra'\nwhere: stem\nfix: did you mean cifar?"),
    (["--shortcuts", "E"], "unknown option 'E'\nwhere: shortcuts\nfix: one of A, B, C, D, none"),
    (["--head", "polled"], "unknown head 'polled'\nwhere: head\nfix: did you mean pooled?"),
    (["--insert", "block1=1"], "cannot find the parts to edit: 1 fault\nwhere: block1: got a name of 3 parts; "
     "allowed: one of stage1.block1, stage2.block1, stage3.block1"),
    (["--restride", "stage9=1,stage3=0", "--cut", "stage33", "--dilate", "3"],
     "3 edits are not possible\nwhere: --restride: 2 edits are not possible; --restride stage9=1: cannot find the "
     "parts to edit: 1 fault; stage9: got a part that does not exist; allowed: stage3 or stage2 or stage1; "
     "--restride stage3=0: this network cannot be built: 1 fault; stage3.reduce.stride: got 0; allowed: 1 or more\n"
     "       --dilate: an output stride of 3 is not possible: the stages have strides 1, 2, 2; output_stride\n"
     "       --cut: cannot find the parts to edit: 1 fault; stage33: got a part that does not exist; "
     "allowed: stage3 or stage2 or stage1\nfix: --restride: --restride stage3=0: correct these fields of the spec; "
     "--dilate: one of 1, 2, 4"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"), ERRORS, ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else ""
)
def test_errors_name_every_fault_and_nothing_is_written(modify, tmp_path, arguments, message):
    code, out, err = modify(*arguments)
    assert (code, out, err) == (2, "", f"error: {message}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--insert", "stage1.block1=1000000000"], ["--widen", "stage1=1000000000"],
                                   ["--deepen", "2,2,1000000000"], ["--input-channels", "1000000000"],
                                   ["--classes", "1000000000"], ["--restride", "stage2=99999999999"]])  # fmt: skip
def test_networks_too_large_for_any_machine_are_refused(modify, arguments):
    code, out, err = modify(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: this network cannot be built: ")
    assert "; allowed: at most " in err


def test_existing_folder_is_not_overwritten(modify, model_folder, tmp_path):
    (tmp_path / "out").mkdir()
    code, out, err = modify("--dilate", "2")
    assert (code, out) == (2, "")
    assert err == f"error: this path exists already\nwhere: {tmp_path / 'out'}\nfix: name another path, or remove it\n"
    assert list((tmp_path / "out").iterdir()) == []
    code, _, _ = modify("--dilate", "2", out=model_folder)
    assert code == 2


def test_failed_verification_has_exit_code_6_and_nothing_is_written(cli, tmp_path, model):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.stage1.block1.branch.conv1.weight[0, 0, 0, 0] = float("nan")
    save(broken, tmp_path / "broken")
    for arguments in (["--dilate", "2"], ["--fold-norms", "--json"], ["--cut", "stage1", "--dilate", "4"]):
        code, out, err = cli("modify", tmp_path / "broken", tmp_path / "out", *arguments)
        assert (code, out) == (6, ""), err
        assert "error: the edited network failed verification and was discarded\nwhere: the " in err
        assert "differ by inf" in err
        assert not (tmp_path / "out").exists()


def test_infinite_outputs_fail_the_verification(cli, tmp_path):
    network = randomize_norms(build(TINY["attention"]))
    with torch.no_grad():
        network.stem.conv1.weight[:] = float("inf")
    save(network, tmp_path / "broken")
    code, out, err = cli("modify", tmp_path / "broken", tmp_path / "out", "--dilate", "1", "--json")
    assert (code, out) == (6, ""), err


def test_unreadable_images_are_reported_and_nothing_is_written(modify, tmp_path, pictures):
    (pictures("data", ["a"]) / "a" / "bad.png").write_bytes(b"not an image")
    code, out, err = modify("--group-norm", "4", "--images", tmp_path / "data")
    assert (code, out) == (3, ""), err
    code, out, err = modify("--group-norm", "4", "--images", tmp_path / "nowhere")
    assert (code, out) == (3, ""), err
    code, out, err = modify("--group-norm", "3", "--images", tmp_path / "data" / "a" / "0.png")
    assert (code, out) == (2, ""), err
    assert "norm.groups: got 3; allowed: a number that divides the 8 channels of stem.conv1" in err
    assert not (tmp_path / "out").exists()


def test_catalog_name_has_no_weights(cli, tmp_path):
    code, out, err = cli("modify", "resnet18", tmp_path / "out", "--dilate", "8")
    assert (code, out) == (2, ""), err
    assert "weights" in err
