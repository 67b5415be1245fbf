"""The command `check` and `rk.check`: problems that are found in a dataset, and that nothing is changed."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import resnetkit as rk
from resnetkit.errors import MachineError
from resnetkit.files import file_exists_error, write_text


@pytest.fixture
def flowers(pictures):
    pictures("d/train", ["daisy", "rose"], 8)
    rng = np.random.default_rng(7)
    root = pictures("d/val", ["daisy", "rose"], 3).parent
    for path in root.glob("val/*/*.png"):  # so that there are no duplicates
        Image.fromarray(rng.integers(0, 255, (16, 20, 3), dtype=np.uint8)).save(path)
    return root


def contents(root):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}


def test_sound_data_have_no_findings(flowers, cli):
    before = contents(flowers)
    code, out, err = cli("check", flowers)
    assert code == 0
    assert out.splitlines()[-2:] == [
        "22 images in 2 classes; smallest 20x16, median 20x16, largest 20x16",
        "no problems found",
    ]
    assert err == f"next: resnetkit train {flowers} --model resnet18\n"
    assert contents(flowers) == before


def test_every_kind_of_problem_is_found(flowers, cli, tmp_path):
    train, val = flowers / "train", flowers / "val"
    (train / "rose" / "junk.jpg").write_bytes(b"not an image")
    (train / "rose" / "cut.png").write_bytes((train / "rose" / "0.png").read_bytes()[:200])
    shutil.copy(train / "rose" / "1.png", val / "rose" / "copy.png")  # a leak with the same bytes
    Image.open(train / "daisy" / "2.png").save(val / "daisy" / "saved again.bmp")  # a leak with the same pixels
    shutil.copy(train / "daisy" / "3.png", train / "rose" / "relabeled.png")  # conflicting labels
    shutil.copy(train / "daisy" / "4.png", train / "daisy" / "4b.png")  # a duplicate
    for i in range(103):
        Image.new("RGB", (30, 3 + i)).save(train / "daisy" / f"many{i}.png")
    before = contents(flowers)
    document = json.loads(cli("check", flowers, "--json")[1])
    assert document["schema"] == "resnetkit.check/1"
    assert {finding["kind"]: finding["count"] for finding in document["findings"]} == {
        "unreadable images": 2, "leaks between splits": 2, "conflicting labels": 1, "duplicates": 1, "class imbalance": 1,
    }  # fmt: skip
    assert {row["file"] for row in document["unreadable"]} == {
        str(train / "rose" / name) for name in ("junk.jpg", "cut.png")
    }
    groups = document["duplicates"]
    leaks = {tuple(file["file"] for file in group["files"]): group["same_bytes"] for group in groups if group["leak"]}
    assert leaks == {
        (str(train / "rose" / "1.png"), str(val / "rose" / "copy.png")): True,
        (str(train / "daisy" / "2.png"), str(val / "daisy" / "saved again.bmp")): False,
    }
    (conflict,) = [group for group in groups if group["conflicting_labels"]]
    assert {file["class"] for file in conflict["files"]} == {"daisy", "rose"}
    assert {file["split"] for file in conflict["files"]} == {"train"}
    assert document["counts"] == {"train": [112, 11], "val": [4, 4]}
    assert document["notes"][0].startswith("aspect ratio above 4, so only the center is used: ")
    code, out, _err = cli("check", flowers, "--page", tmp_path / "c.html", "--write-list", tmp_path / "bad.txt")
    assert code == 3
    assert (tmp_path / "bad.txt").read_text().splitlines() == [str(train / "rose" / n) for n in ("cut.png", "junk.jpg")]
    page = (tmp_path / "c.html").read_text()
    assert "Leaks between splits" in page
    assert "data:image/jpeg;base64," in page
    assert contents(flowers) == before
    assert "class imbalance: 1\n  train: daisy has 112 images, rose has 11\n" in out


def test_rotated_duplicates_are_found_and_progress_is_reported(tmp_path, pictures):
    root = pictures("d", ["a", "b"], 3)
    upright = Image.open(root / "a" / "0.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(root / "a" / "turned.png", exif=exif)
    progress = []
    result = rk.check(root, on_progress=lambda done, total: progress.append((done, total)))
    (group,) = result.duplicates
    assert [image.location.rpartition("/")[2] for image in group.images] == ["0.png", "turned.png"]
    assert not group.same_bytes
    assert progress[-1] == (7, 7)


def test_one_class_is_a_finding(pictures, cli):
    code, out, err = cli("check", pictures("d", ["ant"], 2))
    assert code == 3
    assert "too few classes: 1\n  only ant; training needs at least two\n" in out
    assert "resnetkit train" not in err


USAGE_ERRORS = {
    "check nowhere": "error: the folder does not exist\nwhere: nowhere\n",
    "check . --page x.txt": r"error: .*\.html\nwhere: x\.txt\nfix: call it x\.html\n",
    "check": "error: missing: DATA",
}


@pytest.mark.parametrize("command", USAGE_ERRORS)
def test_usage_errors_write_nothing(command, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli(*command.split())
    assert (code, out) == (2, "")
    assert re.match(USAGE_ERRORS[command], err)
    assert list(tmp_path.iterdir()) == []


def test_no_command_writes_below_the_data(flowers, tmp_path, cli, network):
    """Record every file that is opened for writing, created, renamed or removed while the commands run."""
    (flowers / "train" / "rose" / "bad.png").write_bytes(b"x")
    before, changed_paths = contents(flowers), []
    is_recording = [True]

    def hook(event, arguments):
        writes = event == "open" and isinstance(arguments[1], str) and set("wax+") & set(arguments[1])
        changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.utime")
        if is_recording[0] and (writes or changes):
            changed_paths.append(str(arguments[0]))

    sys.addaudithook(hook)
    cli("check", flowers, "--page", tmp_path / "c.html")
    options = ("--model", network, "--epochs", 1, "--max-bad", "20%")
    assert cli("train", flowers, *options, "--out", tmp_path / "run")[0] == 0
    assert cli("evaluate", tmp_path / "run", flowers)[0] == 0
    assert cli("predict", flowers, "--model", tmp_path / "run")[0] == 3
    assert cli("embed", flowers, "--model", tmp_path / "run", "--out", tmp_path / "v.npz")[0] == 3
    assert cli("report", tmp_path / "run")[0] == 0
    is_recording[0] = False
    assert any("run.toml" in path for path in changed_paths)
    assert not [path for path in changed_paths if path.startswith(str(flowers))]
    assert contents(flowers) == before


def test_no_output_replaces_a_file_of_the_user(flowers, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    (tmp_path / "list.txt").write_text("mine")
    os.mkfifo(tmp_path / "pipe.txt")
    for option, name in (("--page", "mine.html"), ("--write-list", "list.txt"), ("--write-list", "pipe.txt")):
        code, out, err = cli("check", flowers, option, name)
        assert (code, out, err) == (2, "", f"{file_exists_error(Path(name))}\n")
    assert (tmp_path / "mine.html").read_text() == "<p>mine</p>"
    for _ in range(2):  # a page of resnetkit is replaced
        assert cli("check", flowers, "--page", "ours.html")[0] == 0
    (tmp_path / "d.html").mkdir()
    for option, name in (("--page", "."), ("--page", "none/x.html"), ("--write-list", "x.png"), ("--page", "d.html")):
        assert cli("check", flowers, option, name)[0] == 2
    with pytest.raises(MachineError, match="not a regular file"):
        write_text(tmp_path / "pipe.txt", "x")


def test_sixteen_bit_images_are_compared_by_their_values(tmp_path, cli):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for i in range(4):
            values = rng.integers(0, 256, (12, 14)).astype(np.uint16)
            Image.fromarray(values).save(tmp_path / "d" / name / f"{i}.png")
    assert rk.check(tmp_path / "d").findings == ()
    (note,) = rk.check(tmp_path / "d").notes
    assert note.startswith("8 16-bit images that use fewer than 32 of 256 levels, so that they are nearly uniform: ")
    assert "note: 8 16-bit images" in "".join(cli("check", tmp_path / "d")[1:])
    Image.fromarray(values).save(tmp_path / "d" / "a" / "copy.png")
    wide = rng.integers(0, 256, (12, 14), dtype=np.uint8)
    Image.fromarray(wide).save(tmp_path / "d" / "a" / "8-bits.png")
    Image.fromarray(wide.astype(np.uint16) * 257).save(tmp_path / "d" / "a" / "16-bits.png")
    conflicts, duplicates = rk.check(tmp_path / "d").findings[-2:]
    assert (conflicts.kind, duplicates.kind) == ("conflicting labels", "duplicates")
    assert "copy.png" in conflicts.examples[0] and "8-bits.png" in duplicates.examples[0]
