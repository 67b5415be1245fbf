"""The examples run, the documentation shows what the code prints, and its commands exist."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from resnetkit.cli import COMMANDS

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def import_examples(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")


def test_demo(tmp_path, capsys):
    import demo

    demo.demo(1, tmp_path / "run")
    out = capsys.readouterr().out
    assert {"model", "report.html", "network.svg", "images", "run.toml"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }
    assert "seconds this wrote to" in out
    assert len(re.findall(r"digit-\d+\.png", out)) == 10


def test_demo_is_a_program():
    process = subprocess.run(
        [sys.executable, ROOT / "examples" / "demo.py", "--help"], capture_output=True, text=True, check=True
    )
    assert "--epochs EPOCHS" in process.stdout


def test_five_commands_from_a_folder_to_a_report(tmp_path, capsys):
    import two_classes

    folder, run = two_classes.write_dataset(tmp_path / "sky", seed=4), tmp_path / "run"
    two_classes.run_five_commands(folder, run, ["--model", "resnet20", "--epochs", "3"])
    out = capsys.readouterr().out
    assert [line.split()[2] for line in out.splitlines() if line.startswith("$ ")] == [
        "check", "train", "evaluate", "predict", "report",
    ]  # fmt: skip
    assert "200 images in 2 classes; " in out
    assert "no problems found" in out
    assert re.search(r"test: \d+ of 40 correct, [\d.]+% \(95% interval ", out)
    assert "Least confident predictions" in (run / "report.html").read_text()


def get_reports(text):
    """Return the printed reports of edits, up to the last verification, without rounding errors."""
    reports = re.sub(r"differ by \S+", "differ by a little", text.partition("\n")[2] if text.startswith("$ ") else text)
    return re.match(r".*\(limit [\d.e-]+\)", reports, re.DOTALL)[0]


def test_classifier_becomes_a_segmentation_backbone(tmp_path, capsys):
    import segmentation

    model = segmentation.train_classifier(tmp_path, epochs=1, count=12)
    capsys.readouterr()
    results = segmentation.run_example(model, steps=6)
    out = capsys.readouterr().out
    assert len(results["reports"]) == len(segmentation.list_edits()) == 6
    for report in results["reports"]:
        assert report.verifications
        assert all(verification.is_within_limit for verification in report.verifications)
    assert sum(results["losses"][-3:]) < sum(results["losses"][:3])
    assert sum(results["after"]) > sum(results["before"])
    assert get_reports(out) == get_reports((ROOT / "docs" / "measured" / "segmentation.txt").read_text())


def test_feature_pyramid_takes_a_backbone():
    import torch
    from torchvision.ops import FeaturePyramidNetwork

    import resnetkit as rk

    body, _ = rk.surgery.features(rk.build("resnet18"), (2, 3, 4))
    neck = FeaturePyramidNetwork([feature.output[0] for feature in body.feature_info.values()], 16)
    outputs = neck(body(torch.zeros(1, 3, 64, 96)))
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {
        name: (1, 16, 64 // feature.stride, 96 // feature.stride) for name, feature in body.feature_info.items()
    }
    sum(output.sum() for output in outputs.values()).backward()
    assert all(parameter.grad is not None for parameter in body.parameters())


def test_documented_output_of_modify_is_what_it_prints(tmp_path, monkeypatch, cli):
    import resnetkit as rk

    text = (ROOT / "docs" / "measured" / "modify.txt").read_text()
    command, _, *arguments = shlex.split(text.partition("\n")[0].removeprefix("$ resnetkit "))
    monkeypatch.chdir(tmp_path)
    rk.save(rk.build("resnet56"), "model")
    code, out, _ = cli(command, "model", *arguments)
    assert code == 0
    assert get_reports(out) == get_reports(text)


def test_own_network(capsys):
    runpy.run_path(str(ROOT / "examples" / "own_network.py"))
    assert "stage3: (1, 96, 4, 4), as planned: (96, 4, 4)" in capsys.readouterr().out


def test_documentation_is_up_to_date(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import make

    stale = [path.name for path, text in make.files().items() if not path.exists() or path.read_text() != text]
    assert stale == []


def test_python_of_the_readme_runs(capsys):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("channels 256 -> 512 and stride 2: 80 -> 40\n")


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_benchmarks_compile_and_parse_arguments(path):
    compile(path.read_text(), path, "exec")
    assert "argparse.ArgumentParser(" in path.read_text()


DOCUMENTED_COMMANDS = sorted(
    {
        line.split("#")[0].strip().removeprefix("$ ")
        for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
        for line in page.read_text().splitlines()
        if line.startswith("$ resnetkit ")
    }
)


def test_documented_commands_and_options_exist(cli):
    pages = {command: cli(command, "--help")[1].split() for command in COMMANDS}
    unknown = []
    for line in DOCUMENTED_COMMANDS:
        command, *arguments = shlex.split(line.split(">")[0].removeprefix("resnetkit "))
        options = [argument.split("=")[0] for argument in arguments if argument.startswith("--")]
        unknown += [f"{line}: {option}" for option in options if option not in pages.get(command, ())]
        if command not in COMMANDS:
            unknown.append(line)
    assert unknown == []


def test_links_of_the_documentation_exist():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_files_name_no_paths_or_hosts_of_the_developers():
    process = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in process.stdout.splitlines():
        path = ROOT / name
        if path.exists() and path.suffix in (".py", ".md", ".toml", ".txt", ".json", "", ".svg"):
            assert not re.search(
                r"/(work|root|home|Users)/|https?://(?!www\.w3\.org|git-lfs|127\.0\.0\.1|example\.org)",
                path.read_text(),
            ), name
