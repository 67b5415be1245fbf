"""Damaged, foreign and hostile files of weights: the error for each, and that nothing runs or loads in part."""

import io
import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from resnetkit.architecture.catalog import CATALOG
from resnetkit.architecture.plan import plan
from resnetkit.architecture.tensors import get_tensor_shapes
from resnetkit.errors import ResnetkitWarning, WeightsError
from resnetkit.network.build import build
from resnetkit.surgery.load import load
from resnetkit.weights.dialects import TORCHVISION
from resnetkit.weights.load import count_nonfinite
from resnetkit.weights.model_source import load_card
from resnetkit.weights.read import read_tensors
from resnetkit.weights.recognize import guess_networks
from resnetkit.weights.save import save

from helpers.limits import cpu_limit
from helpers.tiny import BASE

AGAIN = "copy or download the file again"
ARRAYS = "save its arrays by torchvision's names with safetensors.numpy.save_file; kernels are O I H W"
GGUF = "convert the model it was made from: save its state_dict()"
RESAVE = "save the tensors as safetensors with the program that wrote the file"


@pytest.fixture(scope="module")
def model_and_folder(tmp_path_factory):
    model = build(BASE, classes=["a", "b"]).eval()
    return model, save(model, tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def saved(model_and_folder, tmp_path):
    """A network and a copy of its model folder that a test may damage."""
    model, folder = model_and_folder
    return model, shutil.copytree(folder, tmp_path / "model")


@pytest.fixture
def refused(tmp_path):
    """Return a function that loads a bad file, checks the form of the error and that no file changed."""

    def attempt(path, network="resnet18", dialect="resnetkit"):
        before = contents(tmp_path)
        with pytest.raises(WeightsError) as caught:
            load(path, *((None, None) if path.is_dir() else (network, dialect)))
        assert contents(tmp_path) == before
        lines = str(caught.value).splitlines()
        assert lines[0].startswith("error: ")
        assert lines[1].startswith(f"where: {path}")
        assert lines[-1].startswith("fix: ")
        assert len(lines) <= 6
        return caught.value

    return attempt


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.stat().st_size < 2**27}


# ------------------------------------------------------------------------------------------------ pickles with code


class Bomb:
    """Call a function with one argument when it is unpickled."""

    def __init__(self, function, argument):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


class Restored:
    """Touch a file when its state is restored."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __setstate__(self, state):
        os.system(f"touch {state['canary']}")


def opcodes(text, canary):
    return text.format(touch=f"touch {canary}").encode()


BOMBS = {  # the global that the pickle names (protocol 2 has the names of Python 2) -> its object
    "posix.system": lambda canary: Bomb(os.system, f"touch {canary}"),
    "__builtin__.exec": lambda canary: Bomb(exec, f"open({str(canary)!r}, 'w').close()"),
    "__builtin__.eval": lambda canary: Bomb(eval, f"open({str(canary)!r}, 'w').close()"),
    "commands.getoutput": lambda canary: Bomb(subprocess.getoutput, f"touch {canary}"),
    "torch.utils.collect_env.run": lambda canary: Bomb(torch.utils.collect_env.run, f"touch {canary}"),
}


@pytest.mark.parametrize("name", ["posix.system", "torch.utils.collect_env.run"])
def test_w01_a_function_that_is_only_named_is_dropped(tmp_path, name):
    function = {"posix.system": os.system, "torch.utils.collect_env.run": torch.utils.collect_env.run}[name]
    torch.save({"state_dict": build(BASE).state_dict(), "hook": function}, tmp_path / "x.pth")
    assert f"objects beside the tensors are dropped: hook ({name})" in load(tmp_path / "x.pth").card.assumed


@pytest.mark.parametrize("writer", ["zip", "legacy"])
def test_w01_an_object_with_own_code_is_dropped(tmp_path, writer):
    canary, model = tmp_path / "canary", build(BASE).eval()
    content = {"state_dict": model.state_dict(), "beside": [1, Restored(canary)], "x": Restored(canary)}
    WRITERS[writer](content, tmp_path / "x.pth")
    loaded = load(tmp_path / "x.pth")
    assert not canary.exists()
    assert loaded.state_dict().keys() == model.state_dict().keys()
    names = f"beside ({__name__}.Restored), x ({__name__}.Restored)"
    assert f"objects beside the tensors are dropped: {names}" in loaded.card.assumed
    assert pickle.loads(pickle.dumps(Restored(canary)))  # an unrestricted reader would run it
    assert canary.exists()


def python_pickle(content, path):
    path.write_bytes(pickle.dumps(content, 2))


def legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


WRITERS = {"zip": torch.save, "legacy": legacy, "pickle": python_pickle}
PLACES = {
    "alone": lambda bomb: bomb,
    "in the state dict": lambda bomb: {"state_dict": {"x": bomb, "conv1.weight": torch.zeros(1)}},
    "in hyper_parameters": lambda bomb: {"state_dict": {}, "hyper_parameters": {"lr": [1, {"x": bomb}]}},
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("place", PLACES)
def test_w01_code_in_a_pickle_does_not_run(tmp_path, refused, name, writer, place):
    canary, path = tmp_path / "canary", tmp_path / "weights.ckpt"
    WRITERS[writer](PLACES[place](BOMBS[name](canary)), path)
    error = refused(path)
    assert not canary.exists()
    assert error.what == f"this pickle asks to run code ({name}); nothing was run"
    assert error.fix == RESAVE


@pytest.mark.parametrize("name", BOMBS)
def test_w01_an_unrestricted_reader_would_run_the_code(tmp_path, name):
    pickle.loads(pickle.dumps(BOMBS[name](tmp_path / "canary"), 2))
    assert (tmp_path / "canary").exists()


RAW = {
    "the opcode INST": "(S'{touch}'\niposix\nsystem\n.",
    "the opcode OBJ": "(cposix\nsystem\nS'{touch}'\no.",
    "protocol 0": "cposix\nsystem\n(S'{touch}'\ntR.",
}


@pytest.mark.parametrize("protocol", [*RAW, 3, 4, 5])
def test_w01_every_protocol_is_refused_and_named(tmp_path, refused, protocol):
    canary, path = tmp_path / "canary", tmp_path / "weights.pth"
    bomb = Bomb(os.system, f"touch {canary}")
    path.write_bytes(opcodes(RAW[protocol], canary) if protocol in RAW else pickle.dumps({"a": bomb}, protocol))
    assert refused(path).what == "this pickle asks to run code (posix.system); nothing was run"
    assert not canary.exists()


def test_w01_an_archive_around_a_pickle_is_not_opened(tmp_path, refused):
    inner, outer = tmp_path / "pickle", tmp_path / "weights.tar"
    python_pickle(Bomb(os.system, f"touch {tmp_path / 'canary'}"), inner)
    with tarfile.open(outer, "w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            archive.add(inner, name)
    assert refused(outer).what == "this is a tar archive, not a weights file"
    with zipfile.ZipFile(outer, "w") as archive:
        archive.write(inner, "archive/data/inner.zip")
    assert refused(outer).what.startswith("this file cannot be read as weights: ")
    assert not (tmp_path / "canary").exists()


def test_w01_on_the_command_line(tmp_path, cli):
    path = tmp_path / "weights.pth"
    torch.save({"x": Bomb(os.system, f"touch {tmp_path / 'canary'}")}, path)
    code, out, err = cli("evaluate", path, "digits", "--network", "resnet18")
    assert (code, out) == (4, "")
    assert err == f"error: this pickle asks to run code (posix.system); nothing was run\nwhere: {path}\nfix: {RESAVE}\n"
    assert not (tmp_path / "canary").exists()


# ------------------------------------------------------------------------------------------- files without weights


CUTS = sorted(random.Random(0).sample(range(8, 100), 4)) + sorted(random.Random(1).sample(range(100, 100_000), 6))


@pytest.mark.parametrize("cut", CUTS)
def test_w02_truncated_weights(saved, refused, cut):
    _, folder = saved
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    size = cut * len(whole) // 100_000 if cut >= 100 else cut
    path.write_bytes(whole[:size])
    with pytest.raises(WeightsError) as caught:
        load(folder)
    needed = len(whole) if size > 8 + int.from_bytes(whole[:8], "little") else 8 + int.from_bytes(whole[:8], "little")
    assert str(caught.value) == (
        f"error: file is truncated: needs {needed:,} bytes, has {size:,}\nwhere: {path}\nfix: {AGAIN}"
    )


@pytest.mark.parametrize("size", range(8))
def test_w02_a_header_without_a_length(tmp_path, refused, size):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 5000)[:size])
    expected = "not a safetensors file: the length of its header is invalid" if size else "the file is empty"
    assert refused(path).what == expected


def test_w02_a_truncated_pickle(tmp_path, refused):
    path = tmp_path / "weights.pth"
    torch.save(build(BASE).state_dict(), path)
    whole = path.read_bytes()
    for share in (10, 50, 90, 99):
        path.write_bytes(whole[: len(whole) * share // 100])
        error = refused(path)
        assert error.what.startswith("this file cannot be read as weights: ")
        assert error.fix == AGAIN


FETCH = "fetch the file itself again"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 44815912\n" % (b"4d" * 32)
NO_WEIGHTS = {
    "this is a git-LFS pointer, not the file (real size 44,815,912 bytes)": (LFS, "git lfs pull"),
    "the file is empty": (b"", FETCH),
    "this is an HTML page, not {}": (b"\n<!doctype html><title>sign in</title>", FETCH),
    "this is an XML text, not {}": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', FETCH),
    "this is a JSON text, not {}": (b'{"data":{"error": "not found"}}', FETCH),
    "this is an HDF5 file, not {}": (b"\x89HDF\r\n\x1a\n" + bytes(100), ARRAYS),
    "this is a NumPy file, not {}": (b"\x93NUMPY\1\0" + bytes(100), ARRAYS),
    "this is a GGUF file, not {}": (b"GGUF\3\0\0\0" + bytes(100), GGUF),
    "this is a gzip archive, not {}": (b"\x1f\x8b\x08" + bytes(100), "unpack it"),
    "this is an image (PNG), not {}": (b"\x89PNG\r\n\x1a\n" + bytes(100), RESAVE),
}


@pytest.mark.parametrize("message", NO_WEIGHTS)
@pytest.mark.parametrize("ending", [".safetensors", ".pth", ""])
def test_w03_w04_the_error_names_the_type_of_a_file_without_weights(tmp_path, refused, message, ending):
    path = tmp_path / f"weights{ending}"
    content, fix = NO_WEIGHTS[message]
    path.write_bytes(content)
    error = refused(path)
    assert error.what == message.format("a safetensors file" if ending == ".safetensors" else "a weights file")
    assert error.fix == fix


def test_w04_the_name_of_a_pickle_does_not_make_it_safetensors(tmp_path, refused):
    path = tmp_path / "model.safetensors"
    for writer, kind in ((torch.save, "a zip archive"), (legacy, "a pickle")):
        writer({"x": torch.zeros(1)}, path)
        error = refused(path)
        assert (error.what, error.fix) == (f"this is {kind}, not a safetensors file", RESAVE)
    save_file({"stem.conv1.weight": torch.zeros(1)}, path)
    path.rename(tmp_path / "weights.pth")
    assert read_tensors(tmp_path / "weights.pth").tensors.keys() == {"stem.conv1.weight"}


# -------------------------------------------------------------------------------------------------- hostile headers


def header(entries, size=0):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + b"\0" * size


def entry(begin, end, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def many(item, length=2 * 2**20 - 1000):
    return b'{"__metadata__":{"x":[' + item * (length // len(item) - 1) + item.rstrip(b",") + b"]}}"


ONE = json.dumps(entry(0, 4)).encode()
LENGTH, GARBLED, UNSOUND = (
    "not a safetensors file: the length of its header is invalid",
    "damaged safetensors file: its header is garbled",
    "damaged safetensors file: ",
)
HOSTILE = {
    "a header of 2**63": (LENGTH, struct.pack("<Q", 2**63) + b"{"),
    "a header of 200 MB that is not there": (LENGTH, struct.pack("<Q", 200 * 2**20) + b"{}"),
    "no JSON": (GARBLED, header(b"{]", 8)),
    "a list": (GARBLED, header([1])),
    "no offsets": (GARBLED, header({"a": {"dtype": "F32", "shape": [1]}}, 4)),
    "offsets that are words": (GARBLED, header({"a": entry("x", "y")}, 4)),
    "deep nesting": (GARBLED, header(b'{"a":' + b"[" * 100_000)),
    "no UTF-8": (GARBLED, header(b'{"\xff":' + ONE + b"}", 4)),
    "UTF-16": (GARBLED, header(json.dumps({"a": entry(0, 4)}).encode("utf-16"), 4)),
    "a key twice": (GARBLED, header(b'{"a":' + ONE + b',"a":' + ONE + b"}", 4)),
    "a key twice inside": (GARBLED, header(b'{"a":{"dtype":"F64",' + ONE[1:] + b"}", 4)),
    "a number of too many digits": (GARBLED, header(b'{"a":' + b"9" * 10**6 + b"}", 4)),
    "a hole": (UNSOUND, header({"a": entry(4, 8)}, 8)),
    "overlaps": (UNSOUND, header({"a": entry(0, 4), "b": entry(0, 4)}, 4)),
    "an end before its beginning": (UNSOUND, header({"a": entry(8, 4)}, 8)),
    "bytes left over": (UNSOUND, header({"a": entry(0, 4)}, 9)),
    "an unknown type": (UNSOUND, header({"a": entry(0, 4, dtype="F31")}, 4)),
    "a shape that overflows": (UNSOUND, header({"a": entry(0, 4, (2**62, 4))}, 4)),
    "a shape that overflows to the right size": (UNSOUND, header({"a": entry(0, 4, (2**32, 2**32, 1))}, 4)),
    "a negative shape": (UNSOUND, header({"a": entry(0, 4, (-1,))}, 4)),
}
HEAVY = {
    "lists by the million": (UNSOUND, header(many(b"[],"))),
    "words by the hundred thousand": (UNSOUND, header(many(b'{"a":0},'))),
    "a key of 2 MB": (UNSOUND, header({"k" * 2_000_000: entry(4, 8)}, 8)),
    "a shape of half a million": (UNSOUND, header({"a": entry(0, 4, (2,) * 500_000)}, 4)),
    "empty tensors by the thousand": ("these weights do not fit resnet18: ",
                                      header({f"a{i}": entry(0, 0, (0,)) for i in range(30_000)})),
    "a tensor called as a novel": ("these weights do not fit resnet18: ", header({"k" * 2_000_000: entry(0, 4)}, 4)),
    "a tensor called as an escape": ("these weights do not fit resnet18: ", header({"\x1b[31m\n": entry(0, 4)}, 4)),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_w05_hostile_headers(tmp_path, refused, kind):
    message, content = HOSTILE[kind]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    error = refused(path)
    assert error.what.startswith(message)
    assert error.fix == AGAIN


MEASURE = """
import resource, sys
from pathlib import Path
from resnetkit.errors import WeightsError
from resnetkit.surgery.load import load

def get_peak_megabytes():  # of this process alone: getrusage also counts the process that started it
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024

base = get_peak_megabytes()
resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        load(path, "resnet18")
    except WeightsError as error:
        text = str(error).replace(str(path), "PATH")
        print(path.stem, get_peak_megabytes() - base, error.exit_code, error.what, sep="|")
        assert len(text) < 700 and text.count("\\n") <= 5 and "\\x1b" not in text
"""


def test_w05_hostile_headers_take_little_time_and_memory(tmp_path):
    files = HOSTILE | HEAVY
    for name, (_, content) in files.items():
        (tmp_path / f"{name.replace('/', '-')}.safetensors").write_bytes(content)
    with (tmp_path / "200 MB.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 200 * 2**20) + b"{")
        file.truncate(201 * 2**20)
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {row[0]: row[1:] for row in (line.split("|") for line in done.stdout.splitlines())}
    assert rows.keys() == {*files, "200 MB"}
    assert all(float(megabytes) < 150 for megabytes, *_ in rows.values()), done.stdout
    for name, (message, _) in files.items():
        assert rows[name][1] == "4"
        assert rows[name][2].startswith(message)


# ---------------------------------------------------------------------------------------------- NaN and infinite values


def test_w07_nan_and_infinite_values_are_counted_in_a_warning(saved):
    model, folder = saved
    state = {key: value.clone() for key, value in model.state_dict().items()}
    state["stage1.block2.branch.conv1.weight"].view(-1)[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    state["head.linear.bias"][1] = torch.nan
    save_file(state, folder / "model.safetensors")
    with pytest.warns(ResnetkitWarning) as warned:
        loaded = load(folder)
    assert [str(warning.message) for warning in warned] == [
        "NaN or infinite values in stage1.block2.branch.conv1.weight (3), head.linear.bias (1): "
        f"{folder / 'model.safetensors'}"
    ]
    assert loaded.state_dict()["head.linear.bias"].isnan().tolist() == [False, True]


def test_w07_a_sum_that_overflows_is_not_reported():
    large = torch.full((100,), 3e38)
    assert not large.sum().isfinite()
    assert count_nonfinite({"a": large, "b": torch.tensor(5), "c": torch.zeros(0)}) == {}
    many = {f"t{i}": torch.tensor([1.0, torch.nan]) for i in range(7)}
    assert count_nonfinite(many) == dict.fromkeys(many, 1)


# --------------------------------------------------------------------------------------------------- other networks


def write_zeros(tmp_path, shapes):
    path = tmp_path / "weights.safetensors"
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, path)
    return path


def get_catalog_shapes(name):
    return dict(get_tensor_shapes(plan(CATALOG[name])))


RESET_HEAD = "--reset-head CLASSES loads the body and starts a new classifier"
NAME_IT = "name the network the file was saved from, or describe it in a .toml file: --network"


def test_w11_the_wrong_depth(tmp_path, refused):
    error = refused(write_zeros(tmp_path, get_catalog_shapes("resnet32")), "resnet20")
    assert error.what == "these weights do not fit resnet20: 72 of 188 tensors differ"
    details = "; ".join(error.where[1:])
    assert details.startswith("stage1.block4.branch.conv1.weight: got [16, 16, 3, 3]; expected nothing; ")
    assert details.count("got ") == 5
    assert error.fix == f"this file looks like resnet32 or resnet32_a_end or plain32; {NAME_IT}"
    assert "stage1.block3.branch.conv1.weight: got nothing; expected [16, 16, 3, 3]" in str(
        refused(write_zeros(tmp_path, {key: shape for key, shape in get_catalog_shapes("resnet20").items() if ".block3." not in key}),
                "resnet20")
    )  # fmt: skip


def test_w11_the_wrong_width(tmp_path, refused):
    error = refused(write_zeros(tmp_path, get_catalog_shapes("cifar_resnet18")), "resnet20")
    assert "stem.conv1.weight: got [64, 3, 3, 3]; expected [16, 3, 3, 3]" in error.where[1]
    assert error.fix == f"this file looks like cifar_resnet18; {NAME_IT}"
    error = refused(write_zeros(tmp_path, get_tensor_shapes(plan(BASE))), "resnet20")
    assert error.fix == NAME_IT


def test_w11_other_input_channels(tmp_path, refused):
    error = refused(
        write_zeros(tmp_path, get_catalog_shapes("resnet20") | {"stem.conv1.weight": (16, 1, 3, 3)}), "resnet20"
    )
    assert error.what == "these weights do not fit resnet20: 1 of 116 tensors differ"
    assert error.where[1:] == ("stem.conv1.weight: got [16, 1, 3, 3]; expected [16, 3, 3, 3]",)
    assert error.fix == "the file has 1 input channel: --input-channels 1"
    path = tmp_path / "weights.safetensors"
    assert load(path, "resnet20", input_channels=1).card.spec.input == (1, 32, 32)


def test_w11_a_transposed_tensor(tmp_path, refused):
    key = "stage2.block1.branch.conv1.weight"
    error = refused(write_zeros(tmp_path, get_catalog_shapes("resnet20") | {key: (3, 3, 16, 32)}), "resnet20")
    assert error.where[1:] == (f"{key}: got [3, 3, 16, 32]; expected [32, 16, 3, 3]",)
    assert error.fix == "save the tensors with the axes in torch's order: O I H W"


def test_w11_another_classifier(tmp_path, refused, saved):
    shapes = get_catalog_shapes("resnet20")
    assert build("resnet20").card.spec.head.classes == 10
    headless = {key: shape for key, shape in shapes.items() if not key.startswith("head.")}
    error = refused(write_zeros(tmp_path, headless), "resnet20")
    assert error.where[1:] == (
        "head.linear.weight: got nothing; expected [10, 64]",
        "head.linear.bias: got nothing; expected [10]",
    )
    assert error.fix == f"only the classifier does not fit; {RESET_HEAD}"
    assert load(tmp_path / "weights.safetensors", "resnet20", reset_head=3).card.spec.head.classes == 3
    seven = shapes | {"head.linear.weight": (7, 64), "head.linear.bias": (7,)}
    assert load(write_zeros(tmp_path, seven), "resnet20").card.spec.head.classes == 7  # a file of its own says how many
    none = shapes | {"head.linear.weight": (0, 64), "head.linear.bias": (0,)}
    assert refused(write_zeros(tmp_path, none), "resnet20").fix == f"only the classifier does not fit; {RESET_HEAD}"
    model, folder = saved
    state = {key: value.clone() for key, value in model.state_dict().items()}
    save_file(state | {"head.linear.weight": torch.zeros(7, 16)}, folder / "model.safetensors")
    with pytest.raises(WeightsError) as caught:
        load(folder)
    assert "head.linear.weight: got [7, 16]; expected [2, 16]" in str(caught.value)
    assert caught.value.fix == "only the classifier does not fit; copy the whole model folder again"


def test_w11_the_wrong_type(tmp_path, refused):
    path = tmp_path / "weights.safetensors"
    save_file(
        {key: torch.zeros(shape, dtype=torch.int8) for key, shape in get_catalog_shapes("resnet20").items()}, path
    )
    error = refused(path, "resnet20")
    assert "stem.conv1.weight: got torch.int8; expected a floating-point type" in error.where[1]
    assert error.fix == "save the tensors as fp32, fp16 or bf16"


def test_w11_the_wrong_dialect(tmp_path, refused):
    shapes = get_catalog_shapes("resnet18")
    theirs = {TORCHVISION.to_theirs(key): (1,) if "stage4" in key else shape for key, shape in shapes.items()}
    assert refused(write_zeros(tmp_path, theirs)).fix == NAME_IT
    ours = get_catalog_shapes("resnet20_b")
    path = write_zeros(tmp_path, {TORCHVISION.to_theirs(key): shape for key, shape in ours.items()})
    assert refused(path, "resnet20_b").fix == f"this file looks like resnet20_b in the dialect torchvision; {NAME_IT}"
    error = refused(write_zeros(tmp_path, ours), "resnet20_b", "torchvision")
    assert error.what == "the dialect torchvision does not have these names"
    assert error.fix == "this file looks like resnet20_b; name another --dialect, or none"


def test_w11_nothing_is_loaded_in_part(tmp_path, monkeypatch, refused):
    def never(*_, **__):
        pytest.fail("a tensor was assigned")

    monkeypatch.setattr("resnetkit.weights.load.assign_tensors", never)
    refused(write_zeros(tmp_path, get_catalog_shapes("resnet20") | {"head.linear.weight": (10, 63)}), "resnet20")


@pytest.mark.parametrize(
    "name", ["resnet50", "resnext50_32x4d", "resnet20_c", "cifar_resnet34", "resnet1202", "plain18"]
)
def test_w11_guess_networks_recognizes_the_catalog(name):
    shapes = get_catalog_shapes(name)
    assert name in guess_networks(shapes).split(" or ")
    stem = shapes["stem.conv1.weight"]
    assert guess_networks(shapes | {"stem.conv1.weight": (stem[0], 5, *stem[2:])}).endswith(" with 5 input channels")
    assert guess_networks(shapes | {"extra": (1,)}) == ""


@pytest.mark.parametrize(
    "shapes", [{}, {"stem.conv1.weight": ()}, {"stem.conv1.weight": (1,)}, {"stage9999.block9.x": ()}]
)
def test_w11_guess_networks_of_odd_tensors_is_empty(shapes):
    assert guess_networks(shapes) == ""


# ------------------------------------------------------------------------------------------------------------- cards


def change_card(folder, change):
    path = folder / "config.json"
    card = json.loads(path.read_text())
    change(card)
    path.write_text(json.dumps(card))
    return path


IMPORTS = {
    "_target_": "os.system",
    "class_path": "http.server.HTTPServer",
    "_instantiator": "wave.open",
    "auto_map": {"AutoModel": "modeling.Evil"},
    "architecture": "os.system",
}


@pytest.mark.parametrize("key", IMPORTS)
@pytest.mark.parametrize("place", ["card", "spec", "stage"])
def test_w12_no_card_chooses_an_import(saved, cli, key, place):
    _, folder = saved
    places = {
        "card": lambda card: card,
        "spec": lambda card: card["spec"],
        "stage": lambda card: card["spec"]["stages"][0],
    }
    change_card(folder, lambda card: places[place](card).update({key: IMPORTS[key]}))
    cli("evaluate", folder, "digits")
    before = set(sys.modules)
    code, out, err = cli("evaluate", folder, "digits")
    assert set(sys.modules) == before
    assert (code, out) == (4, "")
    at = {"card": key, "spec": f"spec.{key}", "stage": f"spec.stage1.{key}"}[place]
    assert f"{at}: got an unknown key; allowed: " in err
    assert {"card": "preparation, classes", "spec": "stages, stem", "stage": "blocks, channels"}[place] in err


def test_w12_no_card_names_a_type(saved, cli):
    _, folder = saved
    change_card(folder, lambda card: card["spec"]["stages"][0].update(branch={"kind": "os.system", "width": 8}))
    code, _, err = cli("evaluate", folder, "digits")
    assert code == 4
    assert 'spec.stage1.branch.kind: got "os.system"; allowed: one of basic, bottleneck, chain' in err


def test_w12_a_misspelt_network(saved, tmp_path, cli):
    _, folder = saved
    path = folder / "model.safetensors"
    code, _, err = cli("evaluate", path, "digits", "--network", "resnet5O")
    assert (code, err.splitlines()[-1]) == (2, "fix: did you mean resnet50?")
    change_card(folder, lambda card: card.update(spec="resnet5O"))
    with pytest.raises(WeightsError) as caught:
        load(folder)
    assert 'spec: got "resnet5O"; allowed: the fields of a network' in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card["spec"].update(stages=[]), "stages: got no stages; allowed: at least one"),
        (lambda card: card.update(classes=["a"]), "classes: got 1 names; allowed: 2, as spec.head has"),
        (lambda card: card.update(clases=["a"]), "clases: got an unknown key; allowed: name, spec"),
        (lambda card: card.update(clases=["a"]), "(did you mean classes?)"),
        (lambda card: card.update(classes="a"), 'classes: got "a"; allowed: a list'),
        (lambda card: card.update(format="1"), 'format: got "1"; allowed: one of 1'),
        (
            lambda card: card["preparation"].update(std=[0, 1, 1]),
            "preparation.std: got [0.0, 1.0, 1.0]; allowed: 3 numbers",
        ),
        (
            lambda card: card["preparation"].update(mean=[123.7, 116.3, 103.5]),
            "preparation.mean: got [123.7, 116.3, 103.5]; allowed: numbers from 0 to 1, as levels are divided by 255",
        ),
        (lambda card: card["preparation"].update(resize=8), "preparation.resize: got 8; allowed: 16 to 4,096"),
    ],
)
def test_w13_a_card_with_a_fault(saved, change, message):
    _, folder = saved
    path = change_card(folder, change)
    with pytest.raises(WeightsError) as caught:
        load_card(folder)
    assert message in str(caught.value)
    assert caught.value.where[0] == str(path)


def test_w13_a_card_of_a_newer_resnetkit(saved, cli):
    _, folder = saved
    path = change_card(folder, lambda card: card.update(format=2, tempo="andante"))
    code, out, err = cli("evaluate", folder, "digits")
    assert (code, out) == (4, "")
    assert err == (
        "error: this card was written by a newer resnetkit (format 2; this one reads 1)\n"
        f"where: {path}\nfix: pip install --upgrade resnetkit\n"
    )


TEXTS = {  # instead of a card or a network -> part of the error
    "nested lists": ("[" * 100_000, "too deeply nested"),
    "nested tables": ('{"a":' * 100_000, "too deeply nested"),
    "a key twice": ('{"name": "a", "name": "b"}', "the key 'name' occurs twice"),
    "no JSON": ('{"name": "a",\n "spec" 5}', "line 2, column 9: expecting ':' delimiter"),
    "NaN": ('{"name": NaN}', "NaN is not a JSON number"),
    "digits": ('{"format": ' + "9" * 100_000 + "}", "the whole text: "),
    "a list": ("[]", "the top level: got []; allowed: the fields of a "),
    "nothing": ("", "line 1, column 1: expecting value"),
    "4 MB": ("[" + "1," * 2_200_000 + "1]", "4,400,003 characters"),
}


LONG_CARD = "the top level: got [1, 1, 1"  # a card may have 64 MiB, because it lists the images of its training


@pytest.mark.parametrize("kind", TEXTS)
def test_w13_texts_without_a_card_or_a_network(saved, tmp_path, cli, kind):
    _, folder = saved
    text, message = TEXTS[kind]
    (folder / "config.json").write_text(text)
    (tmp_path / "net.json").write_text(text)
    for words, expected in ((("evaluate", folder, "digits"), 4), (("explain", tmp_path / "net.json"), 2)):
        with cpu_limit():
            code, out, err = cli(*words)
        assert (code, out) == (expected, "")
        assert (LONG_CARD if (kind, expected) == ("4 MB", 4) else message) in err
        assert "Traceback" not in err


TOML = {
    "nested lists": ("a = " + "[" * 100_000, "too deeply nested"),
    "nested tables": ("a = " + "{a=" * 100_000, "too deeply nested"),
    "a key of many parts": ("a." * 100_000 + "b = 1", "a line has more than 1,000 dots"),
    "many tables": ("".join(f"[{'a.' * i}a]\n" for i in range(900)), "a: got an unknown key"),
    "a key twice": ('activation = "relu"\nactivation = "gelu"\n', "line 2, column 20"),
    "no TOML": ("input = [3, 4\nstages = []", "line 2, column 1"),
    "an unknown key": ('activatoin = "relu"', "(did you mean activation?)"),
    "a wrong type": ("input = 5", "input: got 5; allowed: a list of 3"),
}


@pytest.mark.parametrize("kind", TOML)
def test_w13_toml_without_a_network(tmp_path, cli, kind):
    text, message = TOML[kind]
    (tmp_path / "net.toml").write_text(text)
    with cpu_limit():
        code, out, err = cli("explain", tmp_path / "net.toml")
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


# ---------------------------------------------------------------------------------------------- hostile pickles

DEEP = b"\x80\x02}q\0)" + b"\x85" * 200_000 + b"K\x01s."
HUGE = b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x3f\x85R."
VERSION = (("archive/version", b"3\n"), ("archive/byteorder", b"little"))
LEGACY = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))


def archive(*entries):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, content in (*entries, *VERSION):
            file.writestr(name, content)
    return stream.getvalue()


def doubled(times):
    return b"\x80\x02}(K\x01\x85q\x01" + b"h\x01h\x01\x86q\x01" * times + b"K\x01u."


def encoded(text, codec, times=1):
    words = b"X" + len(text.encode()).to_bytes(4, "little") + text.encode()
    call = b"X" + len(codec).to_bytes(4, "little") + codec.encode() + b"\x86R"
    return b"\x80\x02c_codecs\nencode\n" * times + words + call * times + b"."


HIDDEN = {
    "an entry in capitals": archive(("archive/DATA.PKL", DEEP)),
    "garbage before it": archive(("archive/a.pkl", b"\xff\xff"), ("archive/data.pkl", DEEP)),
    "a byte array behind garbage": archive(("archive/a.pkl", b"\xff\xff"), ("archive/data.pkl", HUGE)),
    "an archive behind an old file": LEGACY + DEEP + pickle.dumps([], 2) + archive(("archive/data.pkl", b"K\x01.")),
    "the end of an archive behind an old file": LEGACY + DEEP + pickle.dumps([], 2) + b"PK\5\6" + b"\0" * 18,
    "another codec": archive(("archive/data.pkl", encoded("ab" * 1000, "punycode"))),
    "codec upon codec": archive(("archive/data.pkl", encoded("ab" * 1000, "hex", 20))),
    "a key of two to the thirtieth": archive(("archive/data.pkl", doubled(30))),
    "three million steps": archive(("archive/data.pkl", b"\x80\x02](" + b"N" * 3_000_000 + b"e.")),
    "a tensor that is cast": archive(
        ("archive/data.pkl", b"\x80\x02ctorch._utils\n_rebuild_device_tensor_from_cpu_tensor\n.")
    ),
    "two entries of one name": archive(("archive/data.pkl", DEEP), ("archive/Data.pkl", b"}.")),
}


EXPLAIN_EACH = """
import resource, sys
from pathlib import Path
from resnetkit.cli import main
resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
for path in sorted(Path(sys.argv[1]).iterdir()):
    code = main(["explain", str(path)])
    print(f"\\n{path.stem}|{code}", flush=True)
"""


def test_w06_hostile_pickles_are_refused(tmp_path):
    """Run in another process, because some of these pickles would end it."""
    for kind, content in HIDDEN.items():
        (tmp_path / f"{kind}.pth").write_bytes(content)
    done = subprocess.run([sys.executable, "-c", EXPLAIN_EACH, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    codes = dict(line.split("|") for line in done.stdout.splitlines() if "|" in line)
    assert codes == dict.fromkeys(HIDDEN, "4"), done.stderr
    assert done.stderr.count("error: this ") == len(HIDDEN)


def test_w06_tensors_that_share_storage_beyond_the_file_size(tmp_path, refused):
    same = torch.zeros(9 * 64 * 64).half()
    shapes = {TORCHVISION.to_theirs(key): shape for key, shape in get_catalog_shapes("resnet20_b").items()}
    torch.save(
        {key: same[: torch.Size(shape).numel()].view(shape) for key, shape in shapes.items()}, tmp_path / "x.pth"
    )
    error = refused(tmp_path / "x.pth", None, None)
    size = (tmp_path / "x.pth").stat().st_size
    assert error.what == f"these tensors share storage: they need 548,126 bytes, and the file has {size:,}"
    assert error.fix == "save a copy of each tensor: tensor.clone()"


def test_endless_prefixes_and_other_digits(tmp_path, refused):
    path = tmp_path / "x.safetensors"
    save_file({"module." * 20_000 + "conv1.weight": torch.zeros(1)}, path)
    assert refused(path, None, None).what.startswith("cannot recognize the network")
    for odd in ("00", "\u0660"):
        save_file({f"layer1.{odd}.conv1.weight": torch.zeros(1)}, path)
        assert "not those of a known dialect" in refused(path, None, None).what
