"""The command line as users meet it: results, wrong arguments, help, exit codes."""

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
from resnetkit.commands.arguments import list_parameters, parse_options
from resnetkit.errors import UsageError
from resnetkit.network.build import build
from resnetkit.runtime.environment import MatmulCheck, find_missing_packages, list_extras
from resnetkit.serialization import from_toml, to_toml
from resnetkit.weights.save import save

from helpers.tiny import BASE


@pytest.fixture
def trained(tmp_path, pictures, cli):
    """The data, the run folder, the JSON document and the stderr of a training run."""
    data = pictures("flowers", ["rose", "daisy"], 12)
    (tmp_path / "mine.toml").write_text(to_toml(BASE))
    code, out, err = cli("train", data, "--model", tmp_path / "mine.toml", "--epochs", 2, "--batch-size", 4,
                         "--precision", "fp32", "--out", tmp_path / "run", "--json")  # fmt: skip
    assert code == 0, err
    return data, tmp_path / "run", json.loads(out), err


def test_train_evaluate_predict_report(trained, cli, tmp_path):
    data, run, document, err = trained
    assert document["schema"] == "resnetkit.train/1"
    assert (document["split"], document["n"], document["skipped"]) == ("test", 4, [])
    assert err.splitlines()[0].endswith("2 classes; images: 18 train, 2 val, 4 test")
    assert "epoch 2/2  loss " in err
    assert err.splitlines()[-1] == f"next: resnetkit evaluate {run} {data}"
    code, out, _ = cli("evaluate", run, data, "--json")
    evaluation = json.loads(out)
    assert (code, evaluation["schema"], evaluation["n"]) == (0, "resnetkit.evaluate/1", 4)
    shared = ("split", "n", "correct", "top1", "interval")
    assert {key: evaluation[key] for key in shared} == {key: document[key] for key in shared}
    counts = [n for row in evaluation["confusion"].values() for n in row.values()]
    assert (sum(counts), min(counts) > 0) == (4, True)
    code, out, err = cli("evaluate", run, data)
    assert out.splitlines()[0].split() == ["class", "images", "correct", "accuracy"]
    assert out.splitlines()[-1].startswith(f"test: {document['correct']} of 4 correct, ")
    code, out, err = cli("predict", data / "rose" / "0.png", "--model", run, "--top", 2, "--json")
    prediction = json.loads(out)["predictions"][0]
    assert (code, len(prediction["top"]), prediction["error"]) == (0, 2, None)
    code, out, err = cli("predict", data / "rose", "--model", run)
    assert (code, len(out.splitlines())) == (0, 13)
    code, out, err = cli("report", run, "--out", tmp_path / "page.html")
    assert (code, err) == (0, f"wrote {tmp_path / 'page.html'}\nnext: open {tmp_path / 'page.html'}\n")
    assert out.startswith(f"{run}: test: {document['correct']} of 4 correct, ")


def test_unreadable_image_is_a_row_and_exit_code_3(trained, cli, tmp_path):
    data, run, _, _ = trained
    (tmp_path / "bad.jpg").write_bytes(b"x")
    code, out, err = cli("predict", tmp_path / "bad.jpg", data / "rose" / "0.png", "--model", run)
    assert code == 3
    assert "(not a supported image; allowed: JPEG, PNG, WEBP, BMP, GIF, TIFF, AVIF, ICO, PPM)" in out.splitlines()[1]
    assert len(out.splitlines()) == 3
    assert err == (
        "engine: torch fp32, batch 32 x 1\n"
        "error: 1 of 2 files have no prediction; the rows say why\n"
        f"next: resnetkit embed FILES --model {run}\n"
    )


def test_explain(cli, tmp_path):
    code, out, err = cli("explain", "resnet50")
    assert code == 0
    assert out.splitlines()[1].startswith("stem    conv 7x7/2, max pool 3x3/2")
    assert err == "next: resnetkit explain resnet50 --why stage1.block1.shortcut\n"
    assert cli("explain", "resnet50", "--why", "stage2.block2.shortcut")[1] == (
        "stage2.block2.shortcut\nBranch and shortcut both have 512 channels at 28x28, so the shortcut is the identity and costs "
        "nothing. Different channels or a stride would need a projection.\n"
    )
    document = json.loads(cli("explain", "resnet50", "--json", "--depth", 4, "--size", 320, 256)[1])
    assert document["schema"] == "resnetkit.explain/1"
    assert document["input"] == [3, 320, 256]
    assert sum(row["macs"] for row in document["rows"]) == document["macs"]
    assert cli("explain", "resnet18", "--picture", tmp_path / "net.svg")[0] == 0
    assert (tmp_path / "net.svg").read_text().startswith("<svg")


def test_explain_a_spec_file(cli, tmp_path):
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
    models = json.loads(cli("models", "--json")[1])["models"]
    assert {"name": "resnet18", "params": 11689512}.items() <= next(
        m for m in models if m["name"] == "resnet18"
    ).items()
    assert sorted(m["name"] for m in models) == [m["name"] for m in json.loads(cli("models", "--sort", "name", "--json")[1])["models"]]  # fmt: skip


def test_doctor(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("RESNETKIT_CACHE", str(tmp_path / "my cache"))
    code, out, err = cli("doctor")
    assert (code, err) == (0, "next: resnetkit doctor --device auto\n")
    lines = [line for line in out.splitlines() if not line.startswith(("extra ", "image formats"))]
    values = dict(line.split(None, 1) for line in lines)
    assert torch.__version__.startswith(values["torch"])
    assert {"python", "system", "machine", "processor", "cores", "threads", "features", "gpu", "pyarrow"} <= set(values)
    assert values["cache"] == str(tmp_path / "my cache")
    spaced = re.sub(" +", " ", out)
    assert "image formats JPEG, PNG, WEBP, BMP, GIF, TIFF, AVIF, ICO, PPM\n" in spaced
    assert "extra demo installed" in spaced
    assert list(tmp_path.iterdir()) == []
    document = json.loads(cli("doctor", "--json")[1])
    assert torch.__version__.startswith(document["packages"]["torch"])
    assert document["extras"]["demo"] == {"missing": [], "install": "pip install 'scikit-learn>=1.7'"}


def test_doctor_checks_a_device(cli, monkeypatch):
    code, out, err = cli("doctor", "--device", "cpu")
    assert code == 0, err
    assert re.search(r"^cpu +256x256 matrix multiplication in fp32 is correct, [\d.]+ ms$", out, re.MULTILINE)
    matmuls = json.loads(cli("doctor", "--device", "cpu", "--json")[1])["device_check"]["matmuls"]
    assert [(matmul["precision"], matmul["correct"]) for matmul in matmuls] == [("fp32", True), ("bf16", True)]
    assert cli("doctor", "--device", "tpu")[::2] == (
        2, "error: unknown device 'tpu'\nfix: --device cpu, cuda or auto\n"
    )  # fmt: skip
    monkeypatch.setattr(
        "resnetkit.runtime.environment.run_matmul_checks", lambda device: [MatmulCheck("fp32", 1.0, False)]
    )
    code, out, err = cli("doctor", "--device", "cpu")
    assert (code, err) == (6, "error: cpu multiplies matrices wrongly in fp32\n")
    assert "in fp32 is WRONG, 1.00 ms" in out


def test_doctor_reports_a_device_that_fails(cli, monkeypatch):
    error = RuntimeError("no kernel image\nsecond line")
    monkeypatch.setattr("resnetkit.runtime.environment.run_matmul_checks", Mock(side_effect=error))
    assert cli("doctor", "--device", "cpu")[::2] == (
        5,
        "error: cpu exists but does not compute: no kernel image\nfix: check its driver, and other programs that use it\n",
    )


def test_doctor_reports_a_broken_torch_and_missing_extras(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("resnetkit.runtime.environment.list_extras", lambda: {"demo": ["scikit-learn"]})
    code, out, err = cli("doctor")
    assert code == 5
    assert err.startswith("error: torch cannot be imported: ")
    assert err.endswith("fix: reinstall torch\n")
    out = re.sub(" +", " ", out)
    assert "threads unknown" in out
    assert "extra demo lacks scikit-learn: pip install 'scikit-learn>=1.7'" in out


def test_extras_are_read_from_the_metadata(monkeypatch):
    requirements = {"demo": ["no-such-thing", "numpy"], "dev": ["resnetkit[demo]", "neither-this"]}
    assert find_missing_packages("dev", requirements) == ["no-such-thing", "neither-this"]
    assert find_missing_packages("demo", requirements) == ["no-such-thing"]
    assert set(list_extras()) >= {"demo", "dev"}
    monkeypatch.setattr("importlib.metadata.requires", Mock(side_effect=PackageNotFoundError))
    assert list_extras() == {}


INVALID_COMMANDS = {
    "": (0, "usage: resnetkit COMMAND"),
    "explian resnet50": (2, "error: unknown command: 'explian'\nfix: did you mean explain?"),
    "explain": (
        2,
        "error: missing: MODEL\nwhere: resnetkit explain\nfix: resnetkit explain --help\n",
    ),
    "explain resnet5O": (2, "error: unknown network 'resnet5O'\nwhere: model\nfix: did you mean resnet50?"),
    "explain resnet50 --wyh x": (
        2,
        "error: unknown option: --wyh\nwhere: resnetkit explain\nfix: did you mean --why?",
    ),
    "explain resnet50 extra": (
        2,
        "error: unexpected argument: 'extra'\nwhere: resnetkit explain\nfix: resnetkit explain --help\n",
    ),
    "explain resnet50 --depth two": (
        2,
        "error: invalid value for --depth: 'two'\nwhere: resnetkit explain\nfix: use a whole number\n",
    ),
    "explain resnet50 --depth": (
        2,
        "error: --depth needs a value\nwhere: resnetkit explain\nfix: resnetkit explain --help\n",
    ),
    "explain --compare --json resnet50": (2, "error: --compare needs a value\n"),
    "explain resnet50 --json=1": (2, "error: --json takes no value\nwhere: resnetkit explain\n"),
    "explain resnet50 --depth 1 --depth=2": (
        2,
        "error: --depth is given twice: 1 and 2\nwhere: resnetkit explain\nfix: give --depth once\n",
    ),
    "explain resnet50 --json --json": (2, "error: --json is given twice\nwhere: resnetkit explain\n"),
    "explain resnet50 --html=a.html --json --html=a.html": (2, "error: --html is given twice: 'a.html' and 'a.html'\n"),
    "--model A --model B": (
        2,
        "error: an option before the command: --model\nfix: begin with a command: resnetkit --help",
    ),
    "train digits --set seed=1 --set schedule.warmup=2 --set seed=1": (
        2,
        "error: the setting seed is given twice\nwhere: --set seed=1\n       --set seed=1\nfix: give seed once\n",
    ),
    "train digits --set schedule.warmup=2 --set schedule=cosine": (
        2,
        "error: the setting schedule is given twice\nwhere: --set schedule.warmup=2\n       --set schedule=cosine\n",
    ),
    "train digits --set optimizer={lr=1} --set seed=3 --set optimizer.lr=2": (
        2,
        "error: the setting optimizer.lr is given twice\nwhere: --set optimizer={lr=1}\n       --set optimizer.lr=2\n",
    ),
    "explain resnet50 -x": (2, "error: unknown option: -x\nwhere: resnetkit explain\nfix: resnetkit explain --help\n"),
    "explain resnet50 --dep 1": (
        2,
        "error: unknown option: --dep\nwhere: resnetkit explain\nfix: did you mean --depth?\n",
    ),
    "evaluate resnet50": (2, "error: missing: DATA\n"),
    "evaluate model digits --split tset": (
        2,
        "error: invalid value for --split: 'tset'\nwhere: resnetkit evaluate\nfix: use one of train, val, test, all\n",
    ),
    "train digits --lr high": (
        2,
        "error: invalid value for --lr: 'high'\nwhere: resnetkit train\nfix: use a number\n",
    ),
    "train digits --epochs two": (2, "error: invalid value for --epochs: 'two'"),
    "explain resnet50 --size abc": (2, "error: invalid value for --size: 'abc'"),
    "explain resnet50 --picture nowhere/x.svg": (
        2,
        "error: the folder of the output file does not exist\nwhere: nowhere\nfix: create it first\n",
    ),
    "explain runs/nothing": (2, "error: no such file or folder\nwhere: runs/nothing\nfix: use a name of the catalog"),
    "explain resnet50 --depth 9": (2, "error: depth 9 does not exist\nwhere: depth\nfix: 1 stages, 2 blocks"),
    "explain resnet50 --size 1 2 3": (
        2,
        "error: --size takes one side, or height and width; got 3 numbers\nwhere: --size\nfix: --size 224",
    ),
    "explain resnet50 --size 0": (2, "error: this network cannot be built: 2 faults\nwhere: input.height: got 0"),
    "explain resnet50 --why stage9": (
        2,
        "error: this network has no such path, and no such word is known\nwhere: stage9\nfix: the network has stem, stage1",
    ),
    "explain none.toml": (2, "error: this network cannot be read: No such file or directory\nwhere: none.toml"),
    "explain resnet50 --picture x.png": (
        2,
        "error: the output file must end in .svg\nwhere: x.png\nfix: call it x.svg",
    ),
    "models zzz": (2, "error: no network's name matches 'zzz'\nfix: `resnetkit models` lists every name"),
    "train nowhere": (
        2,
        "error: the folder does not exist\nwhere: nowhere\nfix: pass a folder with one folder of images per class",
    ),
    "train diggits": (2, "error: the folder does not exist\nwhere: diggits\nfix: did you mean digits?"),
    "train digits --model resnet2O": (2, "error: unknown network 'resnet2O'"),
    "train digits --set schedule.warmpu=1": (
        2,
        "error: this configuration does not describe a recipe: 1 fault\nwhere: schedule",
    ),
    "train digits --config none.toml": (
        2,
        "error: the config file cannot be read: No such file or directory\nwhere: none.toml\n",
    ),
    "train digits --device gpu": (2, "error: unknown device 'gpu'"),
    "train digits --precision fp8": (
        2,
        "error: invalid value for --precision: 'fp8'\nwhere: resnetkit train\nfix: use one of auto, fp32, bf16\n",
    ),
    "evaluate resnet50 digits": (
        2,
        "error: resnet50 is a network without weights\nwhere: model\nfix: resnetkit train DATA",
    ),
    "predict --model resnet50": (2, "error: no image is given\nwhere: resnetkit predict\nfix: name files or folders\n"),
    "explain " + "x" * 300: (2, "error: operating system error: File name too long\nwhere: xxx"),
    "train " + "x" * 300: (2, "error: operating system error: File name too long\nwhere: xxx"),
    "train digits --out " + "x" * 300: (2, "error: operating system error: File name too long\nwhere: xxx"),
    "explain a\0b": (2, "error: an argument holds a NUL character\nfix: remove it; no file name can hold one\n"),
    "explain resnet18 --size " + "9" * 400: (2, "error: this network cannot be built"),
    "predict x.jpg --model resnet50 --top 0": (
        2,
        "error: --top must be at least 1; got 0\nwhere: --top\nfix: --top 1 or more\n",
    ),
    "predict x.jpg": (2, "error: missing: --model\n"),
    "report": (2, "error: no run is given\nwhere: resnetkit report\nfix: name one or more run folders\n"),
}


@pytest.mark.parametrize("arguments", INVALID_COMMANDS)
def test_invalid_commands(arguments, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected_code, expected_text = INVALID_COMMANDS[arguments]
    code, out, err = cli(*shlex.split(arguments))
    assert code == expected_code
    assert (out if code == 0 else err).startswith(expected_text), err
    assert code == 0 or (out == "" and "Traceback" not in err and len(err.splitlines()) <= 6)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_given_twice_is_an_error(command):
    options_type = importlib.import_module(f"resnetkit.commands.{command}").Options
    options = [item for item in list_parameters(options_type) if not item.argument.is_positional and not item.is_list]
    assert len(options) >= 2
    for item in options:
        is_flag, texts = item.value_type is bool, (*item.choices, "1", "2")[:2]
        values = "" if is_flag else ": {!r} and {!r}".format(*(item.convert(command, text) for text in texts))
        words = [item.option if is_flag else f"{item.option}={text}" for text in texts]
        for spelled in (words, " ".join(words).replace("=", " ").split()):
            with pytest.raises(UsageError) as caught:
                parse_options(options_type, command, ["a", *spelled, "b"])
            assert caught.value.what == f"{item.option} is given twice{values}"
            assert (caught.value.exit_code, caught.value.fix) == (2, f"give {item.option} once")


def test_lists_can_be_given_in_parts():
    words = ["model/", "--engines", "openvino", "eager", "--json", "--engines=compiled", "--precisions", "fp32"]
    options = parse_options(importlib.import_module("resnetkit.commands.optimize").Options, "optimize", words)
    assert (options.engines, options.precisions) == (("openvino", "eager", "compiled"), ("fp32",))


@pytest.mark.parametrize(
    "arguments",
    [
        ["resnet18", "--size", "320", "256", "--why", "stem", "--why=head", "--json"],
        ["--json", "--why", "stem", "--size", "320", "--size", "256", "--why", "head", "resnet18"],
        ["--size", "320", "256", "--why", "stem", "--why", "head", "--json", "--", "resnet18"],
    ],
)
def test_options_are_accepted_in_any_order(arguments, cli):
    document = json.loads(cli("explain", *arguments)[1])
    assert (document["input"], list(document["why"])) == ([3, 320, 256], ["stem", "head"])


def test_argument_after_two_dashes_is_not_an_option(cli):
    code, _, err = cli("explain", "--", "--json")
    assert (code, err.splitlines()[0]) == (2, "error: unknown network '--json'")


def test_config_with_unknown_keys(cli, tmp_path):
    (tmp_path / "run.toml").write_text("epoch = 3\n[optimizer]\nlearning_rate = 1\n")
    code, _, err = cli("train", "digits", "--config", tmp_path / "run.toml", "--out", tmp_path / "run")
    assert code == 2
    assert "epoch: got an unknown key; allowed: data, model, epochs" in err
    assert "(did you mean epochs?)" in err
    assert "optimizer.learning_rate: got an unknown key; allowed: lr, momentum, weight_decay, nesterov" in err
    assert not (tmp_path / "run").exists()


def test_options_take_precedence_over_set_and_config(cli, tmp_path):
    (tmp_path / "run.toml").write_text("epochs = 3\nseed = 4\nbatch_size = 5\n")
    settings = ["--config", tmp_path / "run.toml", "--set", "epochs=6", "--set", "seed=7", "--epochs", 8, "--lr", 0.3]
    code, out, _ = cli("train", "digits", "--model", "resnet20", *settings, "--print-config")
    assert code == 0
    assert {"epochs = 8", "seed = 7", "batch_size = 5", "lr = 0.3"} <= set(out.splitlines())


def test_config_gives_the_model_unless_an_option_does(cli, tmp_path):
    (tmp_path / "run.toml").write_text('model = "resnet32"\ndata = "elsewhere"\noptimizer = "adam-w"\n')
    arguments = ["train", "digits", "--config", tmp_path / "run.toml", "--print-config"]
    assert {'model = "resnet32"', 'data = "digits"'} <= set(cli(*arguments)[1].splitlines())
    assert 'model = "resnet44"' in cli(*arguments, "--model", "resnet44")[1]
    assert 'kind = "adam-w"\nlr = 0.01\n' in cli(*arguments, "--lr", 0.01)[1]
    assert 'model = "resnet18"' in cli("train", "digits", "--print-config")[1]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError(), 5, "error: out of memory\nfix: use smaller batches or images\n"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 5, "error: out of memory"),
        (OSError(28, "No space left on device"), 5, "error: operating system error: No space left on device\n"),
        (
            OSError(36, "File name too long", "x" * 9),
            2,
            "error: operating system error: File name too long\nwhere: xxx",
        ),
    ],
)
def test_machine_errors(error, code, message, monkeypatch, capsys):
    monkeypatch.setattr("resnetkit.runtime.environment.collect_environment", Mock(side_effect=error))
    assert main(["doctor"]) == code
    assert capsys.readouterr().err.startswith(message)


def test_explain_several_paths(cli):
    out = cli("explain", "resnet20", "--why", "stem", "--why", "head")[1]
    assert out.startswith("stem\nThe stem turns")
    assert "\n\nhead\nThe head averages" in out


def test_evaluate_a_weights_file_of_torchvision(cli, tmp_path, pictures):
    import torchvision

    model = torchvision.models.resnet18(weights=None, num_classes=2)
    torch.save(model.state_dict(), tmp_path / "tv.pth")
    options = ["--network", "resnet18", "--dialect", "torchvision"]
    code, out, err = cli("evaluate", tmp_path / "tv.pth", pictures("d", ["cat", "dog"], 2), *options)
    assert code == 0
    assert "all: " in out
    assert err.startswith("read: tv.pth, read as resnet18 in the dialect torchvision\ntensors: 0 kept, 122 renamed, ")
    assert "\nnote: this model has no class names; the data's classes are used, in alphabetical order\n" in err
    code, _, err = cli("evaluate", tmp_path / "tv.pth", pictures("e", ["a", "b", "c"], 2), *options)
    assert code == 3
    assert "\nerror: the model has 2 unnamed classes, but the dataset has 3 classes\n" in err


def test_weights_options_without_a_weights_file(cli):
    assert cli("explain", "resnet18", "--network", "resnet50", "--reset-head", 3)[::2] == (
        2,
        "error: these options are about a weights file, and the model is not one\nwhere: resnet18\n"
        "       --network resnet50 --reset-head 3\nfix: remove them, or name a weights file\n",
    )


def test_bug_of_resnetkit(cli, monkeypatch):
    monkeypatch.setattr("resnetkit.runtime.environment.collect_environment", lambda: 1 // 0)
    code, _, err = cli("doctor")
    assert code == 1
    assert "error: a bug in resnetkit: ZeroDivisionError" in err
    assert err.endswith("fix: please report it, with the output of `resnetkit doctor`\n")


def test_interrupt(monkeypatch, capsys):
    monkeypatch.setattr("resnetkit.runtime.environment.collect_environment", Mock(side_effect=KeyboardInterrupt))
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_version_and_overview(cli):
    from resnetkit import __version__

    assert cli("--version") == (0, __version__ + "\n", "")
    for arguments in ([], ["-h"], ["--help"], ["help"]):
        code, out, err = cli(*arguments)
        assert (code, err) == (0, "")
        assert all(f"\n  {command} " in out for command in COMMANDS)
    assert "optimize  find the fastest inference engine whose predictions match fp32\n" in out


@pytest.mark.parametrize("columns", ["80", "50"])
def test_examples_of_the_help_can_be_copied(cli, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    for command in COMMANDS:
        code, out, _ = cli(command, "--help")
        assert code == 0
        printed = out.split("examples:\n")[1].split("\n\n")[0]
        assert all(re.match(r"  \S|      \S", line) for line in printed.splitlines()), printed
        doc = importlib.import_module(f"resnetkit.commands.{command}").Options.__doc__
        examples = " ".join(doc.split("Examples: ")[1].split()).split("; ")
        assert [shlex.split(line) for line in printed.replace("\\\n", "").splitlines()] == list(
            map(shlex.split, examples)
        )
        breaks = re.findall(r"(--\S+) \\\n +(\S)", printed)
        assert not [option for option, start in breaks if start not in "->"], printed  # an option keeps its value


def test_help_shows_values_and_defaults(cli):
    pages = {command: " ".join(cli(command, "--help")[1].split()) for command in COMMANDS}
    for page in pages.values():
        assert not re.search(r"\(default:\s*(''|None|False|\(\))?\s*\)|\b(STR|INT|FLOAT)\b", page), page
    assert "--data DIR Images" in pages["optimize"]
    assert "--out DIR A new model" in pages["optimize"]
    assert "--engines NAME [NAME ...]" in pages["optimize"]
    assert "(default: 5)" in pages["optimize"]
    assert "--out FILE A .csv" in pages["predict"]
    assert "--top NUMBER" in pages["predict"]
    assert (
        "--model MODEL A run folder, a model folder, or a weights file of any library. (required)" in pages["predict"]
    )
    assert "--set KEY=VALUE" in pages["train"]
    assert "(repeatable)" in pages["train"]
    assert "--out DIR" in pages["train"]
    assert "--epochs NUMBER The number of epochs. (default: from --config, or chosen for the data)" in pages["train"]
    assert "(default: vectors.npz)" in pages["embed"]
    assert "--split {train,val,test,all} " in pages["evaluate"]
    assert "--network NAME" in pages["evaluate"]


def test_classes_that_differ(cli, tmp_path, pictures):
    save(build(BASE, classes=["cat", "dog"]), tmp_path / "model")
    code, out, err = cli("evaluate", tmp_path / "model", pictures("d", ["cat", "doq"]))
    assert (code, out) == (3, "")
    assert err.startswith("error: the model does not have 1 of 2 classes of the dataset: doq\n")
    assert err.endswith("fix: did you mean dog?\n")
