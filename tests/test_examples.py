"""The examples run, the documentation is what the code says, and README's words are commands."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from resnetkit.cli import COMMANDS

ROOT = Path(__file__).parents[1]


def test_the_demo(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "demo.py", "--epochs", "1", "--out", tmp_path / "run"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {"model", "report.html", "network.svg", "pictures", "run.toml"} <= {
        p.name for p in (tmp_path / "run").iterdir()
    }
    assert "seconds this wrote to" in done.stdout
    assert len(re.findall(r"digit-\d+\.png", done.stdout)) == 10


def test_five_commands_from_a_folder_to_a_page(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "examples")
    import two_classes

    folder, out = two_classes.make(tmp_path / "sky"), tmp_path / "run"
    two_classes.five_commands(folder, out, ["--model", "resnet20", "--epochs", "3"])
    told = capsys.readouterr().out
    assert [line.split()[2] for line in told.splitlines() if line.startswith("$ ")] == [
        "check", "train", "evaluate", "predict", "report",
    ]  # fmt: skip
    assert "200 pictures in 2 classes; " in told
    assert "nothing was found that is wrong" in told
    assert re.search(r"test: \d+ of 40 right, [\d.]+% \(95% interval ", told)
    assert "The least confident predictions" in (out / "report.html").read_text()


def reports_in(text):
    """What was printed of edits, up to the last proof, without the figures of rounding."""
    told = re.sub(r"differ by \S+", "differ by a little", text.partition("\n")[2] if text.startswith("$ ") else text)
    return told[: told.rindex("allowed)")]


def test_a_classifier_becomes_a_backbone_that_learns_to_segment(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "examples")
    import segmentation

    model = segmentation.classifier(tmp_path, epochs=1, count=12)
    capsys.readouterr()
    found = segmentation.example(model, steps=10)
    told = capsys.readouterr().out
    assert len(found["reports"]) == len(segmentation.lines()) == 6
    assert all(
        report.verifications and all(proof.is_within_limit for proof in report.verifications)
        for report in found["reports"]
    )
    assert sum(found["losses"][-3:]) < sum(found["losses"][:3])
    assert sum(found["after"]) > sum(found["before"])
    assert reports_in(told) == reports_in((ROOT / "docs" / "measured" / "segmentation.txt").read_text())


def test_a_pyramid_stands_on_a_backbone():
    import torch
    from torchvision.ops import FeaturePyramidNetwork

    import resnetkit as rk

    body, _ = rk.surgery.features(rk.build("resnet18"), (2, 3, 4))
    neck = FeaturePyramidNetwork([place.output[0] for place in body.feature_info.values()], 16)
    found = neck(body(torch.zeros(1, 3, 64, 96)))
    assert {name: tuple(map_.shape) for name, map_ in found.items()} == {
        name: (1, 16, 64 // place.stride, 96 // place.stride) for name, place in body.feature_info.items()
    }
    sum(map_.sum() for map_ in found.values()).backward()
    assert all(parameter.grad is not None for parameter in body.parameters())


def test_what_readme_shows_of_modify_is_what_it_prints(tmp_path, monkeypatch, cli):
    import resnetkit as rk

    text = (ROOT / "docs" / "measured" / "modify.txt").read_text()
    verb, _, *words = shlex.split(text.partition("\n")[0].removeprefix("$ resnetkit "))
    monkeypatch.chdir(tmp_path)
    rk.save(rk.build("resnet56"), "model")
    code, told, _ = cli(verb, "model", *words)
    assert code == 0
    assert reports_in(told) == reports_in(text)


def test_own_network(capsys):
    runpy.run_path(str(ROOT / "examples" / "own_network.py"))
    assert "stage3: (1, 96, 4, 4), as planned: (96, 4, 4)" in capsys.readouterr().out


def test_the_documentation_is_up_to_date():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "make.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_python_of_readme_runs(capsys):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("channels 256 -> 512 and stride 2: 80 -> 40\n")


DOCUMENTED_COMMANDS = sorted(
    {
        line.split("#")[0].strip().removeprefix("$ ")
        for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
        for line in page.read_text().splitlines()
        if line.startswith("$ resnetkit ")
    }
)


@pytest.mark.parametrize("command", DOCUMENTED_COMMANDS)
def test_commands_of_the_documentation_have_verbs_and_options_that_exist(command, cli):
    verb, *words = shlex.split(command.split(">")[0].removeprefix("resnetkit "))
    assert verb in COMMANDS
    told = cli(verb, "--help")[1]
    for word in words:
        assert not word.startswith("--") or word in told


def test_links_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_no_file_names_a_place_of_ours():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in filter(None, tracked):
        path = ROOT / name
        if path.exists() and path.suffix in (".py", ".md", ".toml", ".txt", ".json", "", ".svg"):
            assert not re.search(
                r"/(work|root|home|Users)/|https?://(?!www\.w3\.org|git-lfs|127\.0\.0\.1|example\.org)",
                path.read_text(),
            ), name
