"""Stored weights: exact round trips, and damaged, foreign and hostile files."""

import pickle
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file

from resnetkit.architecture.catalog import CATALOG, spec
from resnetkit.architecture.plan import plan
from resnetkit.architecture.spec import OPTION_D
from resnetkit.architecture.tensors import get_tensor_shapes
from resnetkit.errors import MachineError, ResnetkitError, UsageError, WeightsError
from resnetkit.network.build import build
from resnetkit.surgery.load import load
from resnetkit.weights.dialects import DIALECT_NAMES, TORCHVISION, select_table
from resnetkit.weights.model_source import load_card
from resnetkit.weights.read import read_tensors
from resnetkit.weights.save import save

from helpers.tiny import BASE, TINY


@pytest.fixture
def saved(tmp_path):
    model = build(BASE, classes=["a", "b"]).eval()
    return model, save(model, tmp_path / "model")


@pytest.mark.parametrize("name", TINY)
def test_round_trip(name, tmp_path):
    model = build(TINY[name], seed=5).eval()
    loaded = load(save(model, tmp_path / "model"))
    assert loaded.card == model.card
    assert not loaded.training
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_an_existing_folder_is_refused(saved):
    model, folder = saved
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UsageError, match="this path exists already"):
        save(model, folder)
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", [n for n in CATALOG if "1202" not in n])
def test_every_dialect_is_a_bijection(name):
    network_plan, dialects = plan(spec(name)), []
    for dialect in DIALECT_NAMES:
        try:
            chosen = select_table(dialect, network_plan.spec)
            table = chosen.map_tensors(network_plan)
        except UsageError as error:
            assert error.what.startswith((f"{dialect} has no name for this tensor", f"{dialect} has no names for a"))
            continue
        dialects.append(dialect)
        assert len(set(table.values())) == len(table) == len(get_tensor_shapes(network_plan))
        assert {chosen.to_ours(theirs): theirs for theirs in table.values()} == table
    assert "timm" in dialects or name.startswith("vgg")
    assert (
        "torchvision" in dialects
        or network_plan.spec.order == "norm-act-conv"
        or network_plan.spec.shortcuts == OPTION_D
        or (len(network_plan.spec.stem.convs) == 3)
    )
    assert "fastai" not in dialects  # none of our heads is one of its


def test_a_dialect_without_a_name():
    with pytest.raises(UsageError, match="torchvision has no name for this tensor"):
        TORCHVISION.to_theirs("stem.conv2.weight")
    with pytest.raises(UsageError, match="torchvision has no name for this tensor"):
        TORCHVISION.to_ours("layer1.0.conv1.weight.extra")
    assert TORCHVISION.to_ours("layer4.2.downsample.1.running_var") == "stage4.block3.shortcut.norm.running_var"


def make_deep_pickle():
    return b"\x80\x02})" + b"\x85" * 300_000 + b"K\x01s."


def write_archive(path, content, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")


def test_hostile_pickles_are_refused(tmp_path):
    path = tmp_path / "x.pth"
    write_archive(path, make_deep_pickle())
    with pytest.raises(WeightsError, match="this file holds no table of tensors"):
        read_tensors(path)
    path.write_bytes(make_deep_pickle())
    with pytest.raises(WeightsError, match="this file holds no table of tensors"):
        read_tensors(path)
    write_archive(path, pickle.dumps({}, 2), zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="its archive is compressed, but torch never compresses"):
        read_tensors(path)
    write_archive(path, pickle.dumps(bytearray(8), 2))
    with pytest.raises(WeightsError, match=r"no table of tensors, but an object \(__builtin__.bytearray\)"):
        read_tensors(path)


def make_tensor_with_attribute():
    tensor = torch.zeros(3)
    tensor.float = 5
    return tensor


OTHER_VALUES = {  # value -> what is read, and what is listed as dropped
    "a tensor with attributes": (make_tensor_with_attribute(), True, ""),
    "a tensor of stride 0": (torch.zeros(1).expand(10**6), True, ""),
    "meta": (torch.zeros(3, device="meta"), False, "other (torch._utils._rebuild_meta_tensor_no_storage)"),
    "sparse": (torch.eye(3).to_sparse(), False, "other (torch._utils._rebuild_sparse_tensor)"),
    "a list": ([1], False, ""),
    "a table": ({"a": 1}, False, ""),
}


@pytest.mark.parametrize("kind", OTHER_VALUES)
def test_only_plain_tensors_are_read(tmp_path, kind):
    value, is_read, dropped = OTHER_VALUES[kind]
    torch.save({"stem.conv1.weight": torch.zeros(2), "other": value}, tmp_path / "x.pth")
    content = read_tensors(tmp_path / "x.pth")
    assert ("other" in content.tensors) is is_read
    assert content.objects == ((dropped,) if dropped else ())
    if is_read:
        assert type(content.tensors["other"]) is torch.Tensor
        assert torch.equal(content.tensors["other"], value)


def test_ordinary_files_of_torch_are_read(tmp_path):
    state = build(BASE).state_dict()
    for new in (True, False):
        torch.save({"state_dict": state, "epoch": 3}, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
        assert read_tensors(tmp_path / "x.pth").tensors.keys() == state.keys()


def test_half_precision_becomes_fp32_and_integers_are_refused(saved):
    model, folder = saved
    path = folder / "model.safetensors"
    save_file({key: value.half() for key, value in model.state_dict().items()}, path)
    loaded = load(folder).state_dict()
    assert {value.dtype for key, value in loaded.items() if not key.endswith("tracked")} == {torch.float32}
    save_file({key: value.long() for key, value in model.state_dict().items()}, path)
    with pytest.raises(WeightsError) as caught:
        load(folder)
    assert "stem.conv1.weight: got torch.int64; expected a floating-point type" in str(caught.value)


def test_a_full_disk_is_a_machine_error(tmp_path, monkeypatch):
    def fail(*_):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("resnetkit.weights.save.save_file", fail)
    with pytest.raises(MachineError, match="cannot write the weights: No space left on device"):
        save(build(BASE), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_torchvision_file(tmp_path):
    import torchvision

    theirs = torchvision.models.resnet18(weights=None, num_classes=7).eval()
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "tv.pth")
    ours = load(tmp_path / "tv.pth", "resnet18", "torchvision")
    x = torch.randn(1, 3, 40, 40)
    torch.testing.assert_close(ours(x), theirs(x))
    recognized = load(tmp_path / "tv.pth").state_dict()
    assert all(torch.equal(value, recognized[key]) for key, value in ours.state_dict().items())
    with pytest.raises(UsageError, match="unknown dialect 'torchvison'") as caught:
        load(tmp_path / "tv.pth", "resnet18", "torchvison")
    assert caught.value.fix == "did you mean torchvision?"
    with pytest.raises(WeightsError, match="do not fit resnet34"):
        load(tmp_path / "tv.pth", "resnet34")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("resnet50", "resnet50 is a network without weights"),
        ("resnet5O", "unknown network 'resnet5O'"),
        ("nowhere/model", "no such file or folder"),
    ],
)
def test_a_source_without_weights(source, message):
    with pytest.raises(UsageError) as caught:
        load(source)
    assert caught.value.what == message


def test_a_catalog_name_wins_over_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet18").mkdir()
    assert load_card("resnet18").spec == spec("resnet18")
    save(build(BASE), tmp_path / "resnet20")
    assert load_card("resnet20").spec == spec("resnet20")
    assert load_card("./resnet20").spec == load_card(tmp_path / "resnet20").spec == BASE
    with pytest.raises(UsageError) as caught:
        load("resnet20")
    assert (caught.value.what, caught.value.fix) == ("resnet20 is a network without weights", "./resnet20")


def test_weights_without_a_card(saved):
    _, folder = saved
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError) as caught:
        load(folder)
    assert str(caught.value) == (
        f"error: config.json is missing next to the weights\nwhere: {folder}\nfix: copy the whole folder again"
    )


def test_a_missing_path_suggests_the_nearest(saved):
    _, folder = saved
    with pytest.raises(UsageError) as caught:
        load(str(folder.parent / "modle"))
    assert str(caught.value) == (
        f"error: no such file or folder\nwhere: {folder.parent}/modle\nfix: did you mean {folder}?"
    )


def test_the_files_of_a_model_are_world_readable(saved):
    _, folder = saved
    assert {path.stat().st_mode & 0o444 for path in folder.iterdir()} == {0o444}


def test_folders_without_a_model(tmp_path):
    with pytest.raises(UsageError, match="this folder has no model"):
        load(tmp_path)
    (tmp_path / "run.toml").write_text("")
    with pytest.raises(UsageError, match="this run has not finished, so it has no model"):
        load(tmp_path)


@given(st.data())
def test_mutated_files_give_only_our_errors(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("mutated")
    save(build(TINY["no-stem"]), folder / "model")
    name = data.draw(st.sampled_from(["config.json", "model.safetensors"]))
    content = bytearray((folder / "model" / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content), 1500) - 1))] = data.draw(st.integers(0, 255))
    (folder / "model" / name).write_bytes(content)
    try:
        load(folder / "model")
    except ResnetkitError as error:
        assert error.exit_code in (2, 4)
