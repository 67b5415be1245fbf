"""Weights as people have them: objects beside tensors, several tables, shards, hub folders, other classifiers."""

import argparse
import collections
import datetime
import enum
import json
import pathlib
import random
import zipfile

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from timm.utils import CheckpointSaver
from torch import nn
from torch.optim.swa_utils import AveragedModel

import resnetkit as rk
from resnetkit.architecture.catalog import CATALOG, spec
from resnetkit.architecture.plan import plan
from resnetkit.architecture.tensors import get_tensor_shapes
from resnetkit.errors import UsageError, WeightsError
from resnetkit.weights.constructor_args import build_timm_architecture
from resnetkit.weights.read import read_tensors
from resnetkit.weights.readings import adopt_conventions, list_readings

SIZES = {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32], "num_classes": 3}
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def make_network(name="resnet18", seed=0, **options):
    """Return a small network of timm whose statistics are not 0 and 1."""
    torch.manual_seed(seed)
    model = timm.create_model(name, **{**SIZES, **options}).eval()
    for key, value in model.state_dict().items():
        if key.endswith("running_mean"):
            value.normal_(0, 0.3)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    return model


def check_equal(source, theirs, **options):
    """Check that a loaded network computes what the other library computes, and return it."""
    ours = rk.load(source, **options)
    with torch.inference_mode():
        torch.testing.assert_close(ours(IMAGES), theirs(IMAGES), rtol=1e-5, atol=1e-5)
    return ours


def refuse(source, **options):
    with pytest.raises(WeightsError) as caught:
        rk.load(source, **options)
    return caught.value


# ------------------------------------------------------------------------------------------------ objects and tables


class Color(enum.Enum):
    RED = 1


class Config(dict):
    """A table with attributes, as configuration libraries have."""


OBJECTS = {
    "argparse.Namespace": argparse.Namespace(lr=0.1, device=torch.device("cpu")),
    "numpy._core.multiarray.scalar": np.float64(91.2),
    "numpy.dtype": np.dtype("float32"),
    "pathlib.PosixPath": pathlib.Path("a"),
    "datetime.datetime": datetime.datetime(2026, 1, 1),
    "collections.Counter": collections.Counter("aab"),
    f"{__name__}.Color": Color.RED,
    f"{__name__}.Config": Config(a=1),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_beside_the_tensors_are_dropped_and_listed(tmp_path, name):
    theirs = make_network()
    content = {"state_dict": theirs.state_dict(), "beside": OBJECTS[name], "array": np.arange(3)}
    for protocol, is_archive in ((2, True), (4, True), (2, False), (4, False)):
        torch.save(content, tmp_path / "x.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=is_archive)
        note = next(note for note in check_equal(tmp_path / "x.pth", theirs).card.assumed if "objects" in note)
        assert note.startswith(f"objects beside the tensors are dropped: beside ({name}), array (numpy._core.")


def test_plain_data_beside_the_tensors_needs_no_note(tmp_path):
    content = {"state_dict": make_network().state_dict(), "log": collections.defaultdict(list, loss=[1.0])}
    content |= {"order": collections.OrderedDict(a=1), "epoch": 3, "none": None, "best": (1.0, "x")}
    torch.save(content, tmp_path / "x.pth")
    assert "objects" not in "".join(rk.load(tmp_path / "x.pth").card.assumed)


def test_a_checkpoint_of_timm_names_its_network(tmp_path):
    theirs = make_network("resnetblur18")
    options = {"args": argparse.Namespace(model="resnetblur18"), "checkpoint_dir": str(tmp_path), "recovery_dir": ""}
    CheckpointSaver(theirs, torch.optim.AdamW(theirs.parameters()), **options).save_checkpoint(0, 0.5)
    card = check_equal(tmp_path / "last.pth.tar", theirs).card
    assert card.origin.endswith("as its entry arch (resnetblur18) says, from the table state_dict")
    assert not any("also fit" in note for note in card.assumed)
    torch.save({"arch": "resnetblur18_x", "state_dict": theirs.state_dict()}, tmp_path / "x.pth")
    error = refuse(tmp_path / "x.pth")
    assert error.what == "the file says that its network is 'resnetblur18_x', which is not supported"
    assert error.fix == "name the network that reads it: --network"
    check_equal(tmp_path / "x.pth", theirs, network="resnetblur18")
    torch.save({"arch": "resnet50", "state_dict": theirs.state_dict()}, tmp_path / "x.pth")
    note = "the network resnet50 that the file names does not have these tensors"
    assert note in rk.load(tmp_path / "x.pth").card.assumed
    torch.save({"arch": "mine", "state_dict": theirs.state_dict()}, tmp_path / "x.pth")
    assert "the tensors also fit resnetblur18" in rk.load(tmp_path / "x.pth").card.origin


def test_a_reference_checkpoint_of_torchvision(tmp_path):
    theirs = torchvision.models.resnet18(num_classes=3).eval()
    optimizer = torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9)
    theirs(IMAGES).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3])
    content = {"model": theirs.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}
    content |= {"lr_scheduler": scheduler.state_dict(), "args": argparse.Namespace(lr=0.1)}
    content["model_ema"] = AveragedModel(theirs).state_dict()
    torch.save(content, tmp_path / "x.pth")
    ours = check_equal(tmp_path / "x.pth", theirs)
    assert "from the table model (not model_ema beside it)" in ours.card.origin
    averaged = check_equal(tmp_path / "x.pth", theirs, state_dict="model_ema")
    assert averaged.report.dropped == ("n_averaged",)


def test_checkpoints_of_lightning_and_deepspeed(tmp_path):
    theirs = make_network()
    state = {f"model.{key}": value for key, value in theirs.state_dict().items()}
    state |= {"criterion.weight": torch.ones(3), "train_acc.correct": torch.tensor(3), "loss.vgg": torch.ones(2, 2)}
    content = {"state_dict": state, "hyper_parameters": argparse.Namespace(lr=1), "callbacks": {}, "epoch": 1}
    torch.save(content, tmp_path / "x.ckpt")
    ours = check_equal(tmp_path / "x.ckpt", theirs)
    assert set(ours.report.dropped) == {"criterion.weight", "train_acc.correct", "loss.vgg"}
    assert {"tensors of criterion are skipped", "tensors of loss are skipped"} < set(ours.card.assumed)
    torch.save({"module": theirs.state_dict(), "ds_version": "0.1", "ds_config": Config(a=1)}, tmp_path / "x.pt")
    check_equal(tmp_path / "x.pt", theirs)


@pytest.mark.parametrize("name", ["module", "params", "network", "weights", "anything"])
def test_a_table_of_any_name_is_read(tmp_path, name):
    theirs = make_network()
    content = {"epoch": 3, name: theirs.state_dict(), "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}}
    torch.save(content, tmp_path / "x.pth")
    assert f"from the table {name}" in check_equal(tmp_path / "x.pth", theirs).card.origin
    check_equal({name: theirs.state_dict()}, theirs)


def test_several_tables_are_named_and_one_is_chosen(tmp_path, cli):
    students = [make_network(), make_network(seed=1)]
    path = tmp_path / "x.pth"
    torch.save({"student": students[0].state_dict(), "teacher": students[1].state_dict()}, path)
    error = refuse(path)
    assert error.what == "this file holds 2 networks: student, teacher"
    assert error.fix == "choose one with --state-dict student or --state-dict teacher"
    for name, theirs in zip(("student", "teacher"), students, strict=True):
        check_equal(path, theirs, state_dict=name)
    code, _, err = cli("explain", path, "--state-dict", "teacher")
    assert (code, "from the table teacher" in err) == (0, True)
    error = refuse(path, state_dict="nobody")
    assert error.what == "this file holds 2 networks: student, teacher"


def test_several_prefixes_are_named_and_one_is_chosen(tmp_path):
    students = [make_network(), make_network(seed=1)]
    names = ("student.backbone", "teacher.backbone")
    state = {
        f"{name}.{key}": value
        for name, theirs in zip(names, students, strict=True)
        for key, value in theirs.state_dict().items()
    }
    save_file(state, tmp_path / "x.safetensors")
    assert refuse(tmp_path / "x.safetensors").what == f"this file holds 2 networks: {', '.join(names)}"
    check_equal(tmp_path / "x.safetensors", students[1], state_dict="teacher.backbone")
    error = refuse(tmp_path / "x.safetensors", state_dict="nobody")
    assert error.what == "no table or prefix is called 'nobody'"
    assert error.fix == "--state-dict student or teacher"


def test_tensors_that_share_storage_are_counted_once(tmp_path):
    theirs = make_network()
    state = theirs.state_dict()
    order = ["conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4"]
    parts = {key: key.split(".", 1) for key in state if not key.startswith("fc")}
    numbered = {f"features.{order.index(part)}.{rest}": state[key] for key, (part, rest) in parts.items()}
    for tables in (({"model.": state}, numbered), ({"model.": state, "net.": state}, {})):
        named = {prefix + key: value for prefix, table in tables[0].items() for key, value in table.items()}
        torch.save({"state_dict": {**tables[1], **named}}, tmp_path / "x.ckpt")
        ours = check_equal(tmp_path / "x.ckpt", theirs)
        pointers = [value.untyped_storage().data_ptr() for value in ours.state_dict().values()]
        assert len(set(pointers)) == len(pointers)
        assert rk.load(tmp_path / "x.ckpt", reset_head=4).card.spec.head.classes == 4


def test_the_state_of_an_averaged_model(tmp_path):
    theirs = make_network()
    torch.save(AveragedModel(theirs).state_dict(), tmp_path / "x.pth")
    ours = check_equal(tmp_path / "x.pth", theirs)
    assert ours.report.dropped == ("n_averaged",)
    assert "tensors of n_averaged are skipped" in ours.card.assumed


# ------------------------------------------------------------------------------------------------------- classifiers

CLASSIFIERS = {
    "head.fc": lambda body, weight, bias: {
        **{f"backbone.{key}": value for key, value in body.items()}, "head.fc.weight": weight, "head.fc.bias": bias,
    },
    "fc.1": lambda body, weight, bias: {**body, "fc.1.weight": weight, "fc.1.bias": bias},
    "classifier": lambda body, weight, bias: {**body, "classifier.weight": weight, "classifier.bias": bias},
    "last_linear": lambda body, weight, bias: {**body, "last_linear.weight": weight, "last_linear.bias": bias},
    "fc": lambda body, weight, bias: {**body, "fc.weight": weight[:, :, None, None], "fc.bias": bias},
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_classifier_of_another_name_is_kept(tmp_path, name, has_bias):
    theirs = make_network()
    if not has_bias:
        nn.init.zeros_(theirs.fc.bias)
    state = theirs.state_dict()
    body = {key: value for key, value in state.items() if not key.startswith("fc.")}
    named = CLASSIFIERS[name](body, state["fc.weight"].clone(), state["fc.bias"])
    torch.save({key: value for key, value in named.items() if has_bias or "bias" not in key or "bn" in key or "downsample" in key},
               tmp_path / "x.pth")  # fmt: skip
    ours = check_equal(tmp_path / "x.pth", theirs)
    assert (f"the classifier is {name}" in ours.card.assumed) is (name != "fc")
    assert ("head.linear.bias" in ours.report.initialized) is not has_bias
    check_equal(tmp_path / "x.pth", theirs, network="resnet18") if has_bias else None


HEADS = {  # names and shapes beside the body -> the tensor that may be in the head
    "two layers": ({"fc.0.weight": (16, 32), "fc.0.bias": (16,), "fc.3.weight": (3, 16)}, "fc.3.weight"),
    "a norm before it": ({"fc.0.weight": (32,), "fc.1.weight": (3, 32)}, "fc.0.weight"),
    "two classifiers": ({"head_a.weight": (3, 32), "head_b.weight": (3, 32)}, "head_a.weight"),
    "a projector": ({"fc.weight": (3, 32), "projector.weight": (8, 32)}, "projector.weight"),
    "another width": ({"classifier.weight": (3, 16)}, "classifier.weight"),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_that_is_not_one_linear_layer_is_refused(kind):
    body = {key: value for key, value in make_network().state_dict().items() if not key.startswith("fc.")}
    shapes, name = HEADS[kind]
    state = body | {key: torch.zeros(shape) for key, shape in shapes.items()}
    error = refuse(state)
    assert error.fix.endswith("--reset-head CLASSES loads the body and starts a new classifier")
    assert rk.load(state, reset_head=4).card.spec.head.classes == 4
    assert name in state


LABELS = {
    "classes": ["ant", "bee", "cat"],
    "CLASSES": ("ant", "bee", "cat"),
    "class_to_idx": {"bee": 1, "ant": 0, "cat": 2},
    "id2label": {0: "ant", 1: "bee", 2: "cat"},
    "idx_to_class": {"0": "ant", "1": "bee", "2": "cat"},
}


@pytest.mark.parametrize("key", LABELS)
@pytest.mark.parametrize("place", ["beside", "in meta"])
def test_class_names_beside_the_weights_become_labels(tmp_path, key, place):
    content = {key: LABELS[key]} if place == "beside" else {"meta": {key: LABELS[key]}}
    torch.save({"state_dict": make_network().state_dict(), **content}, tmp_path / "x.pth")
    assert rk.load(tmp_path / "x.pth").card.labels == ("ant", "bee", "cat")


def test_class_names_that_do_not_fit_are_said():
    card = rk.load({"state_dict": make_network().state_dict(), "classes": ["a", "b"]}).card
    assert card.labels == ("class 0", "class 1", "class 2")
    assert "the 2 class names of the file do not fit the classifier and are skipped" in card.assumed


# ------------------------------------------------------------------------------------------------------------ shards


@pytest.fixture
def sharded(tmp_path):
    """Return a model of transformers and its folder of three shards."""
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[32, 48], depths=[1, 2], layer_type="bottleneck", num_labels=3
    )
    theirs = transformers.ResNetForImageClassification(config).eval()
    theirs.save_pretrained(tmp_path / "hf", max_shard_size="20KB")
    return theirs, tmp_path / "hf"


def test_shards_are_read_as_one(sharded):
    theirs, folder = sharded
    for source in (folder, folder / "model.safetensors.index.json"):
        with torch.inference_mode():
            torch.testing.assert_close(rk.load(source)(IMAGES), theirs(IMAGES).logits, rtol=1e-5, atol=1e-5)
    (folder / "config.json").unlink()
    assert rk.load(folder).card.spec.head.classes == 3


def test_shards_of_pickles_are_read_as_one(sharded):
    theirs, folder = sharded
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for path in list(folder.glob("*.safetensors")):
        torch.save(load_file(path), path.with_suffix(".bin"))
        path.unlink()
    index["weight_map"] = {key: name.replace("safetensors", "bin") for key, name in index["weight_map"].items()}
    (folder / "model.safetensors.index.json").unlink()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with torch.inference_mode():
        torch.testing.assert_close(rk.load(folder)(IMAGES), theirs(IMAGES).logits, rtol=1e-5, atol=1e-5)


def test_a_single_shard_is_refused(sharded):
    _, folder = sharded
    error = refuse(folder / "model-00002-of-00003.safetensors")
    assert error.what == "this file is shard 2 of 3 and does not hold the whole network"
    assert error.fix == f"name the folder {folder}"


def change_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_a_missing_shard_is_named(sharded):
    _, folder = sharded
    (folder / "model-00002-of-00003.safetensors").unlink()
    error = refuse(folder)
    assert error.what == "1 shard of 3 is missing"
    assert error.where[1] == "model-00002-of-00003.safetensors"


NAMES = [
    "../x.safetensors",
    "/etc/x.safetensors",
    "a/b.safetensors",
    "..",
    "",
    "x.txt",
    ".x.bin",
    "a\\b.bin",
    "c:x.bin",
]


@pytest.mark.parametrize("name", NAMES)
def test_an_index_names_no_file_outside_its_folder(sharded, name):
    _, folder = sharded
    change_index(folder, lambda weight_map: weight_map.update({"classifier.1.bias": name}))
    error = refuse(folder)
    assert error.what == f"this index names {name!r}, which is not a weights file in its folder"
    assert error.fix == "write the plain names of the shards into weight_map"


def test_an_index_that_does_not_fit_its_shards(sharded):
    _, folder = sharded
    change_index(folder, lambda weight_map: weight_map.update({"more": "model-00001-of-00003.safetensors"}))
    assert refuse(folder).what == "this shard does not fit its index: it lacks more"
    change_index(folder, lambda weight_map: weight_map.pop("more"))
    change_index(folder, lambda weight_map: weight_map.pop("classifier.1.bias"))
    assert refuse(folder).what == "this shard does not fit its index: it also holds classifier.1.bias"
    (folder / "model.safetensors.index.json").write_text('{"weight_map": []}')
    assert refuse(folder).what == "this index has no weight_map"
    (folder / "model.safetensors.index.json").write_text("{")
    assert refuse(folder).where[0].endswith("index.json")


# ---------------------------------------------------------------------------------- folders of timm, other readings


@pytest.mark.parametrize("name", ["resnet18", "resnetblur18", "resnetaa34d", "seresnet18", "resnetv2_18"])
def test_a_folder_of_timm_is_read_as_its_config_says(tmp_path, name):
    options = {"layers": [1, 1, 1, 1]} if name.startswith("resnetv2") else SIZES
    theirs = make_network(name, **options)
    theirs.pretrained_cfg.update(mean=(0.4, 0.4, 0.4), input_size=(3, 96, 96), crop_pct=0.9)
    save_for_hf(theirs, tmp_path / "hub", model_args=options, model_config={"label_names": ["ant", "bee", "cat"]},
                safe_serialization=True)  # fmt: skip
    for source in (tmp_path / "hub", tmp_path / "hub" / "model.safetensors"):
        card = check_equal(source, theirs).card
        assert card.labels == ("ant", "bee", "cat")
        assert (card.preparation.mean, card.preparation.crop) == ((0.4, 0.4, 0.4), (96, 96))
        assert card.preparation.resize == 106
        assert not any("also fit" in note for note in card.assumed)
    assert "the option interpolation = bicubic of timm is ignored: it is bilinear" in card.assumed


CONFIGS = {
    "the network 'resnest50d' is not supported": {"architecture": "resnest50d"},
    "the network 'resnet50_gn' is not supported": {"architecture": "resnet50_gn"},
    "the option act_layer = silu of resnet18 is not supported": {"model_args": {**SIZES, "act_layer": "silu"}},
    "the option output_stride = 8 of resnet18 is not supported": {"model_args": {**SIZES, "output_stride": 8}},
    "the option global_pool = max of resnet18 is not supported": {"model_args": {**SIZES, "global_pool": "max"}},
    "these weights do not fit resnet34: 105 of 218 tensors differ": {"architecture": "resnet34", "model_args": {}},
    "this config does not describe a network of timm": {"architecture": 5},
    "the option channels = 5 of resnet18 is not supported": {"model_args": {**SIZES, "channels": 5}},
    "the option layers = [1, 1, 1.5] of resnet18 is not supported": {"model_args": {**SIZES, "layers": [1, 1, 1.5]}},
    "pretrained_cfg does not describe a preparation of images": {"pretrained_cfg": {"mean": [0.4]}},
}


@pytest.mark.parametrize("message", CONFIGS)
def test_a_config_of_timm_that_does_not_fit_is_refused(tmp_path, message):
    save_for_hf(make_network(), tmp_path / "hub", model_args=SIZES, safe_serialization=True)
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config | CONFIGS[message]))
    error = refuse(tmp_path / "hub")
    assert error.what.split(":")[0] == message.split(":")[0]


@pytest.mark.parametrize("name", ["resnetaa50d", "resnetblur50d"])
def test_networks_with_the_same_tensors_are_named_and_one_is_chosen(tmp_path, name, cli):
    theirs = make_network(name)
    torch.save(theirs.state_dict(), tmp_path / "x.pth")
    card = rk.load(tmp_path / "x.pth").card
    note = "the tensors also fit resnetblur50d, resnetaa50d: --network chooses"
    assert card.assumed[0] == note
    assert card.origin.endswith(note)
    code, _, err = cli("explain", tmp_path / "x.pth")
    assert (code, note in err.splitlines()[0]) == (0, True)
    ours = check_equal(tmp_path / "x.pth", theirs, network=name)
    assert f"by the conventions of {name}" in ours.card.origin
    assert check_equal(theirs, theirs).card.spec == ours.card.spec


def test_a_named_network_of_another_depth_is_refused(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "x.pth")
    for name in ("resnet34", "resnet50"):
        assert refuse(tmp_path / "x.pth", network=name).what.startswith(f"these weights do not fit {name}: ")


@pytest.mark.parametrize("name", ["resnet50", "resnet18", "resnet26d", "resnet20", "vgg11", "resnetv2_50"])
def test_readings_have_the_same_tensors(name):
    network = spec(name)
    shapes = dict(get_tensor_shapes(plan(network)))
    for reading in list_readings(network):
        adopted = adopt_conventions(network, CATALOG[reading])
        assert adopted != network
        assert dict(get_tensor_shapes(plan(adopted))) == shapes
    expected = {"resnet50": {"resnet50_v1", "resnetaa50", "resnetblur50", "caffe_resnet50"}, "resnet18": {"resnetblur18"},
                "resnet20": {"resnet20_a_end", "plain20"}}  # fmt: skip
    assert set(list_readings(network)) == expected.get(name, set(list_readings(network)))


@pytest.mark.parametrize("name", [name for name in CATALOG if name in timm.list_models() and "vgg" not in name])
def test_the_names_of_timm_mean_the_networks_of_the_catalog(name):
    assert build_timm_architecture(name, {}) == CATALOG[name]
    assert build_timm_architecture(f"{name}.a1_in1k", {"num_classes": 5, "drop_rate": 0.2}).head.classes == 5


def test_unknown_options_of_timm_are_usage_errors():
    with pytest.raises(UsageError, match="the network 'wide_resnet50' is not supported"):
        build_timm_architecture("wide_resnet50", {})


# ------------------------------------------------------------------------------------------------------- live bodies


def test_a_dilated_body_is_not_taken_as_undilated():
    plain = torchvision.models.resnet50(width_per_group=8)
    assert rk.load(plain, reset_head=3).card.spec.head.classes == 3
    dilated = torchvision.models.resnet50(width_per_group=8, replace_stride_with_dilation=[False, True, True])
    error = refuse(dilated, reset_head=3)
    assert error.what == "this model has the tensors of custom, but none of its maps is the last one"
    assert all(not module._forward_hooks for module in dilated.modules())


# ------------------------------------------------------------------------------------------------------- other kinds


def write_zip(*names):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, "{}")

    return write


ARRAYS = "save its arrays by torchvision's names with safetensors.numpy.save_file; kernels are O I H W"
KINDS = {
    "a TorchScript archive": (
        write_zip("x/data.pkl", "x/constants.pkl", "x/code/__torch__.py"),
        "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')",
    ),
    "a torch.export archive": (
        write_zip("x/archive_format", "x/models/model.json"),
        "torch.save(torch.export.load(FILE).state_dict, 'weights.pth')",
    ),
    "a NumPy archive": (
        write_zip("weight.npy", "bias.npy"),
        "safetensors.numpy.save_file(dict(numpy.load(FILE)), 'weights.safetensors')",
    ),
    "a Keras model": (write_zip("metadata.json", "config.json", "model.weights.h5"), ARRAYS),
    "a torch.package archive": (
        write_zip("x/.data/extern_modules", "x/.data/version"),
        "import the model with torch.package and save its state_dict()",
    ),
    "an ONNX model": (
        lambda path: path.write_bytes(b"\x08\x0a\x12\x07pytorch"),
        "save the state_dict() of the PyTorch model that it was exported from",
    ),
    "a Caffe model": (lambda path: path.write_bytes(b"\x0a\x09ResNet-50\xa2\x06\x10"), ARRAYS),
    "an MXNet parameter file": (lambda path: path.write_bytes(b"\x12\1" + bytes(14)), ARRAYS),
    "a TensorFlow SavedModel": (lambda path: path.write_bytes(b"\x08\x01\x12\x05abcde"), ARRAYS),
    "a TensorFlow Lite model": (lambda path: path.write_bytes(b"\x1c\0\0\0TFL3" + bytes(9)), ARRAYS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_other_kinds_are_named_with_the_way_to_convert_them(tmp_path, kind):
    write, fix = KINDS[kind]
    write(tmp_path / "x.pt")
    error = refuse(tmp_path / "x.pt")
    assert (error.what, error.fix) == (f"this is {kind}, not a weights file", fix)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_distributed_checkpoints_are_named_with_their_tool(tmp_path):
    folder = tmp_path / "dcp"
    torch.distributed.checkpoint.save(make_network().state_dict(), checkpoint_id=str(folder))
    tool = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} weights.pth"
    for source in (folder, next(folder.glob("*.distcp"))):
        error = refuse(source)
        assert "a distributed checkpoint (torch.distributed.checkpoint)" in error.what
        assert error.fix == tool


def test_a_whole_pickled_module_is_named(tmp_path):
    torch.save(make_network(), tmp_path / "x.pth")
    error = refuse(tmp_path / "x.pth")
    assert error.what == "this file holds no table of tensors, but an object (timm.models.resnet.ResNet)"
    assert error.fix == "save the tensors alone with the program that wrote it: torch.save(model.state_dict(), FILE)"


# ------------------------------------------------------------------------------------------------------------- fuzz


def mutate(content, rng):
    """Return content with some bytes changed, cut out or doubled."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        i = rng.randrange(len(data))
        kind = rng.randrange(4)
        if kind == 0:
            data[i] = rng.randrange(256)
        elif kind == 1:
            del data[i : i + rng.randint(1, 9)]
        elif kind == 2:
            data[i:i] = data[i : i + rng.randint(1, 60)]
        else:
            data[i : i + 4] = rng.randbytes(4)
        if not data:
            return b""
    return bytes(data)


@pytest.mark.parametrize("is_archive", [True, False])
def test_mutated_pickles_with_objects_give_only_our_errors(tmp_path, is_archive):
    content = {"state_dict": {"conv1.weight": torch.zeros(2, 3, 3, 3)}, "args": argparse.Namespace(a=np.float64(1))}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=is_archive)
    whole, rng = (tmp_path / "x.pth").read_bytes(), random.Random(1)
    for _ in range(400):
        (tmp_path / "y.pth").write_bytes(mutate(whole, rng))
        try:
            read_tensors(tmp_path / "y.pth")
        except WeightsError as error:
            assert len(str(error)) < 1000
    assert {path.name for path in tmp_path.iterdir()} == {"x.pth", "y.pth"}
