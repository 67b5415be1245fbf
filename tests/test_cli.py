"""The command line as a person meets it: results, wrong words, exit codes."""

import importlib
import json
import re
import shlex
import sys
from importlib.metadata import PackageNotFoundError
from unittest.mock import Mock

import pytest
import torch

from resnetkit.architecture.spec import Network
from resnetkit.cli import COMMANDS, main
from resnetkit.network.build import build
from resnetkit.runtime.environment import MatmulCheck, find_missing_packages, list_extras
from resnetkit.serialization import from_toml, to_toml
from resnetkit.weights.load import save

from helpers.tiny import BASE


@pytest.fixture
def trained(tmp_path, pictures, cli):
    data = pictures("flowers", ["rose", "daisy"], 12)
    (tmp_path / "mine.toml").write_text(to_toml(BASE))
    code, out, err = cli("train", data, "--model", tmp_path / "mine.toml", "--epochs", 2, "--batch-size", 4,
                         "--precision", "fp32", "--out", tmp_path / "run", "--json")  # fmt: skip
    assert code == 0, err
    return data, tmp_path / "run", json.loads(out), err


def test_train_evaluate_predict(trained, cli):
    data, run, found, err = trained
    assert found["schema"] == "resnetkit.train/1"
    assert (found["part"], found["n"]) == ("test", 4)
    assert err.splitlines()[0].endswith("2 classes; pictures: 18 train, 2 val, 4 test")
    assert "epoch 2/2  loss " in err
    assert err.splitlines()[-1] == f"next: resnetkit evaluate {run} {data}"
    code, out, _ = cli("evaluate", run, data, "--json")
    again = json.loads(out)
    assert (code, again["schema"], again["n"], again["correct"]) == (0, "resnetkit.evaluate/1", 4, found["correct"])
    assert again["top1"] == found["top1"]
    code, out, err = cli("evaluate", run, data)
    assert out.splitlines()[0].split() == ["class", "pictures", "right", "share"]
    assert out.splitlines()[-1].startswith(f"test: {found['correct']} of 4 right")
    code, out, err = cli("predict", data / "rose" / "0.png", "--model", run, "--top", 2, "--json")
    answer = json.loads(out)["answers"][0]
    assert (code, len(answer["top"]), answer["error"]) == (0, 2, None)
    code, out, err = cli("predict", data / "rose", "--model", run)
    assert (code, len(out.splitlines())) == (0, 13)


def test_a_bad_file_is_a_row_and_exit_code_3(trained, cli, tmp_path):
    data, run, _, _ = trained
    (tmp_path / "bad.jpg").write_bytes(b"x")
    code, out, err = cli("predict", tmp_path / "bad.jpg", data / "rose" / "0.png", "--model", run)
    assert code == 3
    assert "(not a picture that is read here (JPEG, PNG, WEBP, BMP, GIF))" in out.splitlines()[1]
    assert len(out.splitlines()) == 3
    assert err == (
        "engine: torch fp32, batch 32 x 1\n"
        f"error: 1 of 2 files got no answer; their rows say why\nnext: resnetkit embed FILES --model {run}\n"
    )


def test_explain(cli, tmp_path):
    code, out, err = cli("explain", "resnet50")
    assert code == 0
    assert out.splitlines()[1].startswith("stem    conv 7x7/2, max pool 3x3/2")
    assert err == "next: resnetkit explain resnet50 --why stage1.block1.shortcut\n"
    assert cli("explain", "resnet50", "--why", "stage2.block2.shortcut")[1] == (
        "stage2.block2.shortcut\n512 channels at 28x28 on both ways, so the identity, which costs nothing. Other channels or a "
        "stride would ask for a projection.\n"
    )
    found = json.loads(cli("explain", "resnet50", "--json", "--depth", 4, "--size", 320, 256)[1])
    assert found["schema"] == "resnetkit.explain/1"
    assert found["input"] == [3, 320, 256]
    assert sum(row["macs"] for row in found["rows"]) == found["macs"]
    assert cli("explain", "resnet18", "--picture", tmp_path / "net.svg")[0] == 0
    assert (tmp_path / "net.svg").read_text().startswith("<svg")


def test_a_network_of_ones_own(cli, tmp_path):
    _, out, _ = cli("explain", "resnet20", "--toml")
    assert from_toml(Network, out).stages[2].channels == 64
    (tmp_path / "mine.toml").write_text(out.replace("blocks = 3", "blocks = 1"))
    code, out, _ = cli("explain", tmp_path / "mine.toml")
    assert code == 0
    assert "depth 8" in out


def test_models(cli):
    code, out, _ = cli("models", "resnet50*", "--sort", "macs")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["name", "resnet50_v1", "resnet50", "resnet50t", "resnet50c", "resnet50d", "resnet50s"]  # fmt: skip
    found = json.loads(cli("models", "--json")[1])["models"]
    assert {"name": "resnet18", "params": 11689512}.items() <= next(m for m in found if m["name"] == "resnet18").items()


def test_doctor(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("RESNETKIT_CACHE", str(tmp_path / "my cache"))
    code, out, err = cli("doctor")
    assert (code, err) == (0, "next: resnetkit doctor --device auto\n")
    told = dict(line.split(None, 1) for line in out.splitlines() if not line.startswith("extra "))
    assert torch.__version__.startswith(told["torch"])
    assert {"python", "system", "machine", "processor", "cores", "threads", "features", "gpu", "pyarrow"} <= set(told)
    assert (told["pictures"], told["cache"]) == ("JPEG, PNG, WEBP, BMP, GIF", str(tmp_path / "my cache"))
    assert "extra demo present" in re.sub(" +", " ", out)
    assert list(tmp_path.iterdir()) == []
    found = json.loads(cli("doctor", "--json")[1])
    assert torch.__version__.startswith(found["packages"]["torch"])
    assert found["extras"]["demo"] == {"missing": [], "install": "pip install 'resnetkit[demo]'"}


def test_doctor_tries_a_device_out(cli, monkeypatch):
    code, out, err = cli("doctor", "--device", "cpu")
    assert code == 0, err
    assert re.search(r"^cpu +a product of 256x256 matrices in fp32 is right, [\d.]+ ms$", out, re.MULTILINE)
    products = json.loads(cli("doctor", "--device", "cpu", "--json")[1])["trial"]["products"]
    assert [(product["precision"], product["correct"]) for product in products] == [("fp32", True), ("bf16", True)]
    assert cli("doctor", "--device", "tpu")[::2] == (
        2, "error: there is no kind of device called 'tpu'\nfix: --device cpu, cuda or auto\n"
    )  # fmt: skip
    monkeypatch.setattr("resnetkit.commands.doctor.run_matmul_checks", lambda device: [MatmulCheck("fp32", 1.0, False)])
    code, out, err = cli("doctor", "--device", "cpu")
    assert (code, err) == (6, "error: cpu multiplies wrongly in fp32\n")
    assert "in fp32 is WRONG, 1.00 ms" in out


def test_doctor_says_what_is_broken_or_missing(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("resnetkit.commands.doctor.list_extras", lambda: {"demo": ["scikit-learn"]})
    code, out, err = cli("doctor")
    assert code == 5
    assert err.startswith("error: torch cannot be imported: ")
    out = re.sub(" +", " ", out)
    assert "threads unknown" in out
    assert "extra demo lacks scikit-learn: pip install 'resnetkit[demo]'" in out


def test_extras_are_read_from_the_metadata(monkeypatch):
    needs = {"demo": ["no-such-thing", "numpy"], "dev": ["resnetkit[demo]", "neither-this"]}
    assert find_missing_packages("dev", needs) == ["no-such-thing", "neither-this"]
    assert find_missing_packages("demo", needs) == ["no-such-thing"]
    assert set(list_extras()) >= {"demo", "dev"}
    monkeypatch.setattr("resnetkit.runtime.environment.metadata.metadata", Mock(side_effect=PackageNotFoundError))
    assert list_extras() == {}


WRONG = {
    "": (0, "usage: resnetkit VERB"),
    "explian resnet50": (2, "error: there is no verb called 'explian'\nfix: did you mean explain?"),
    "explain": (
        2,
        "error: missing: MODEL A name, a .toml or .json file, a model folder, a run folder, or a weights file of any",
    ),
    "explain resnet5O": (2, "error: there is no network called 'resnet5O'\nwhere: model\nfix: did you mean resnet50?"),
    "explain resnet50 --wyh x": (
        2,
        "error: there is no option --wyh\nwhere: resnetkit explain\nfix: did you mean --why?",
    ),
    "explain resnet50 extra": (2, "error: one word too many: 'extra'\nwhere: resnetkit explain"),
    "explain resnet50 --depth two": (
        2,
        "error: --depth does not take 'two'\nwhere: resnetkit explain\nfix: resnetkit explain",
    ),
    "train digits --epochs two": (2, "error: --epochs does not take 'two'"),
    "explain resnet50 --size abc": (2, "error: --size does not take 'abc'"),
    "explain resnet50 --picture nowhere/x.svg": (2, "error: there is no such folder to write into\nwhere: nowhere"),
    "explain runs/nothing": (2, "error: there is no such file or folder\nwhere: runs/nothing\nfix: name a catalogue"),
    "explain resnet50 --depth 9": (2, "error: there is no depth 9\nwhere: depth\nfix: 1 stages, 2 blocks"),
    "explain resnet50 --size 1 2 3": (2, "error: an image has a side, or height and width, not 3 numbers"),
    "explain resnet50 --size 0": (2, "error: this network cannot be built: 2 faults\nwhere: input.height: came 0"),
    "explain resnet50 --why stage9": (2, "error: there is no such path in this network\nwhere: stage9\nfix: try stage"),
    "explain none.toml": (2, "error: this network cannot be read: No such file or directory\nwhere: none.toml"),
    "explain resnet50 --picture x.png": (2, "error: what is written here is .svg\nwhere: x.png\nfix: call it x.svg"),
    "models zzz": (2, "error: no network's name matches 'zzz'\nfix: `resnetkit models` lists every name"),
    "train nowhere": (
        2,
        "error: there is no such folder\nwhere: nowhere\nfix: name a folder with a folder of pictures",
    ),
    "train diggits": (2, "error: there is no such folder\nwhere: diggits\nfix: did you mean digits?"),
    "train digits --model resnet2O": (2, "error: there is no network called 'resnet2O'"),
    "train digits --set schedule.warmpu=1": (
        2,
        "error: this configuration does not describe a recipe: 1 fault\nwhere: schedule",
    ),
    "train digits --config none.toml": (2, "error: the config file cannot be read: No such file or directory"),
    "train digits --device gpu": (2, "error: there is no kind of device called 'gpu'"),
    "train digits --precision fp8": (2, "error: "),
    "evaluate resnet50 digits": (
        2,
        "error: resnet50 is a name without weights\nwhere: model\nfix: resnetkit train DATA",
    ),
    "predict --model resnet50": (2, "error: there is no picture to look at\nwhere: resnetkit predict\nfix: name files"),
    "explain " + "x" * 300: (2, "error: "),
    "train " + "x" * 300: (2, "error: "),
    "train digits --out " + "x" * 300: (2, "error: "),
    "explain resnet18 --tyro-print-completion bash": (2, "error: there is no option --tyro-print-completion"),
    "explain a\0b": (2, "error: a word holds a NUL character"),
    "explain resnet18 --size " + "9" * 400: (2, "error: this network cannot be built"),
    "predict x.jpg --model resnet50 --top 0": (2, "error: --top 0 names no class"),
    "predict x.jpg": (2, "error: missing: --model"),
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_words(words, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, told = WRONG[words]
    got, out, err = cli(*shlex.split(words))
    assert got == code
    assert (out if code == 0 else err).startswith(told), err
    assert code == 0 or (out == "" and "Traceback" not in err and len(err.splitlines()) <= 6)
    assert list(tmp_path.iterdir()) == []


def test_a_config_with_unknown_keys(cli, tmp_path):
    (tmp_path / "run.toml").write_text("epoch = 3\n[optimizer]\nlearning_rate = 1\n")
    code, _, err = cli("train", "digits", "--config", tmp_path / "run.toml", "--out", tmp_path / "run")
    assert code == 2
    assert "epoch: came an unknown key; allowed: data, model, epochs" in err
    assert "(did you mean epochs?)" in err
    assert "optimizer.learning_rate: came an unknown key; allowed: lr, momentum, weight_decay, nesterov" in err
    assert not (tmp_path / "run").exists()


def test_print_config_takes_the_nearest_to_the_hand(cli, tmp_path):
    (tmp_path / "run.toml").write_text("epochs = 3\nseed = 4\nbatch_size = 5\n")
    words = ["--config", tmp_path / "run.toml", "--set", "epochs=6", "--set", "seed=7", "--epochs", 8, "--lr", 0.3]
    code, out, _ = cli("train", "digits", "--model", "resnet20", *words, "--print-config")
    assert code == 0
    assert {"epochs = 8", "seed = 7", "batch_size = 5", "lr = 0.3"} <= set(out.splitlines())


def test_a_config_gives_the_model_unless_one_is_named(cli, tmp_path):
    (tmp_path / "run.toml").write_text('model = "resnet32"\ndata = "elsewhere"\noptimizer = "adam-w"\n')
    words = ["train", "digits", "--config", tmp_path / "run.toml", "--print-config"]
    assert {'model = "resnet32"', 'data = "digits"'} <= set(cli(*words)[1].splitlines())
    assert 'model = "resnet44"' in cli(*words, "--model", "resnet44")[1]
    assert 'kind = "adam-w"\nlr = 0.01\n' in cli(*words, "--lr", 0.01)[1]
    assert 'model = "resnet18"' in cli("train", "digits", "--print-config")[1]


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (MemoryError(), 5, "error: there is not enough memory\nfix: smaller batches or pictures\n"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 5, "error: there is not enough memory"),
        (OSError(28, "No space left on device"), 5, "error: the system says: No space left on device"),
    ],
)
def test_what_the_machine_lacks(error, code, told, monkeypatch, capsys):
    def fail():
        raise error

    monkeypatch.setattr("resnetkit.commands.doctor.collect_environment", fail)
    assert main(["doctor"]) == code
    assert capsys.readouterr().err.startswith(told)


def test_several_answers(cli):
    out = cli("explain", "resnet20", "--why", "stem", "--why", "head")[1]
    assert out.startswith("stem\nThe stem turns")
    assert "\n\nhead\nThe head averages" in out


def test_a_weights_file_of_another_library(cli, tmp_path, pictures):
    import torchvision

    theirs = torchvision.models.resnet18(weights=None, num_classes=2)
    torch.save(theirs.state_dict(), tmp_path / "tv.pth")
    data = pictures("d", ["cat", "dog"], 2)
    words = ["evaluate", tmp_path / "tv.pth", data, "--network", "resnet18", "--dialect", "torchvision"]
    code, out, err = cli(*words)
    assert code == 0
    assert "all: " in out
    assert err.startswith("read: tv.pth, read as resnet18 in the dialect torchvision\ntensors: 0 kept, 122 renamed, ")
    assert "\nnote: the classes of this model have no names; they are taken to be the data's" in err
    code, _, err = cli(*words[:2], pictures("e", ["a", "b", "c"], 2), *words[3:])
    assert code == 3
    assert "\nerror: the model has 2 classes without names, the data has 3\n" in err


def test_ones_own_bug_is_said_to_be_one(cli, monkeypatch):
    monkeypatch.setattr("resnetkit.commands.doctor.collect_environment", lambda: 1 // 0)
    code, _, err = cli("doctor")
    assert code == 1
    assert "error: a bug of resnetkit: ZeroDivisionError" in err


def test_an_interrupt(monkeypatch, capsys):
    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr("resnetkit.commands.doctor.collect_environment", stop)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_version_and_help_of_every_verb(cli):
    from resnetkit import __version__

    assert cli("--version") == (0, __version__ + "\n", "")
    for verb in COMMANDS:
        code, out, _ = cli(verb, "--help")
        assert code == 0
        assert "Examples: resnetkit " + verb in " ".join(out.split())


@pytest.mark.parametrize("columns", ["80", "50"])
def test_the_commands_of_help_can_be_copied(cli, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    for verb in COMMANDS:
        out = cli(verb, "--help")[1]
        shown = out.split("Examples:\n")[1].split("\n\n")[0]
        assert all(re.match(r"  \S|      \S", line) for line in shown.splitlines()), shown
        doc = importlib.import_module(f"resnetkit.commands.{verb}").Options.__doc__
        meant = " ".join(doc.split("Examples: ")[1].split()).split("; ")
        assert [shlex.split(line) for line in shown.replace("\\\n", "").splitlines()] == list(map(shlex.split, meant))
        cut = re.findall(r"(--\S+) \\\n +(\S)", shown)
        assert not [option for option, begins in cut if begins not in "->"], shown  # an option keeps its value


def test_help_says_what_an_option_takes_and_no_empty_default(cli):
    for verb in COMMANDS:
        out = cli(verb, "--help")[1]
        assert not re.search(r"\(default:\s*(''|None|False)?\s*\)|\b(STR|INT|FLOAT)\b|│ +│", out), out
    told = {verb: " ".join(cli(verb, "--help")[1].split()) for verb in ("optimize", "predict", "train", "embed")}
    assert "--data DIR Pictures" in told["optimize"] and "--out DIR A new model" in told["optimize"]
    assert "--engines NAME [NAME ...]" in told["optimize"] and "(default: 5)" in told["optimize"]
    assert "--out FILE A .csv" in told["predict"] and "--top NUMBER" in told["predict"]
    assert "--set KEY=VALUE" in told["train"] and "(repeatable)" in told["train"] and "--out DIR" in told["train"]
    assert "(default: vectors.npz)" in told["embed"]
    assert "--split {train,val,test,all} " in " ".join(cli("evaluate", "--help")[1].split())


def test_classes_that_differ(cli, tmp_path, pictures):
    save(build(BASE, classes=["cat", "dog"]), tmp_path / "model")
    code, out, err = cli("evaluate", tmp_path / "model", pictures("d", ["cat", "doq"]))
    assert (code, out) == (3, "")
    assert err.startswith("error: the data has 1 of 2 classes that the model has not: doq\n")
    assert err.endswith("fix: did you mean dog?\n")
