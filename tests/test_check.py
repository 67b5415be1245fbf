"""`check`: what is found in a folder of pictures, and that nothing is changed."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

import resnetkit as rk
from resnetkit.errors import MachineError
from resnetkit.files import write_text


@pytest.fixture
def flowers(pictures):
    pictures("d/train", ["daisy", "rose"], 8)
    draw = np.random.default_rng(7)
    root = pictures("d/val", ["daisy", "rose"], 3).parent
    for path in root.glob("val/*/*.png"):  # so that no picture is there twice
        Image.fromarray(draw.integers(0, 255, (16, 20, 3), dtype=np.uint8)).save(path)
    return root


def contents(root):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}


def test_sound_data_give_no_finding(flowers, cli):
    before = contents(flowers)
    code, out, err = cli("check", flowers)
    assert code == 0
    assert out.splitlines()[-2:] == [
        "22 images in 2 classes; smallest 20x16, middle 20x16, largest 20x16",
        "no problems found",
    ]
    assert err == f"next: resnetkit train {flowers} --model resnet18\n"
    assert contents(flowers) == before


def test_everything_that_can_be_found(flowers, cli, tmp_path):
    train, val = flowers / "train", flowers / "val"
    (train / "rose" / "junk.jpg").write_bytes(b"no picture at all")
    (train / "rose" / "cut.png").write_bytes((train / "rose" / "0.png").read_bytes()[:200])
    shutil.copy(train / "rose" / "1.png", val / "rose" / "copy.png")  # a leak, byte for byte
    Image.open(train / "daisy" / "2.png").save(val / "daisy" / "saved again.bmp")  # a leak by its pixels
    shutil.copy(train / "daisy" / "3.png", train / "rose" / "also.png")  # two names for one picture
    shutil.copy(train / "daisy" / "4.png", train / "daisy" / "4b.png")  # a duplicate
    for i in range(103):
        Image.new("RGB", (30, 3 + i)).save(train / "daisy" / f"many{i}.png")
    before = contents(flowers)
    found = json.loads(cli("check", flowers, "--json")[1])
    assert found["schema"] == "resnetkit.check/1"
    assert {f["kind"]: f["count"] for f in found["findings"]} == {
        "unreadable": 2, "in several parts": 2, "in several classes": 1, "duplicates": 1, "uneven classes": 1,
    }  # fmt: skip
    assert {row["file"] for row in found["unreadable"]} == {
        str(train / "rose" / name) for name in ("junk.jpg", "cut.png")
    }
    leaks = {tuple(file["file"] for file in t["files"]): t["same_bytes"] for t in found["duplicates"] if t["leak"]}
    assert leaks == {
        (str(train / "rose" / "1.png"), str(val / "rose" / "copy.png")): True,
        (str(train / "daisy" / "2.png"), str(val / "daisy" / "saved again.bmp")): False,
    }
    (both,) = [t for t in found["duplicates"] if t["conflicting_labels"]]
    assert {file["class"] for file in both["files"]} == {"daisy", "rose"}
    assert found["counts"] == {"train": [112, 11], "val": [4, 4]}
    assert found["notes"][0].startswith("more than 4 times as long as wide, so that only the middle is seen: ")
    code, out, _err = cli("check", flowers, "--page", tmp_path / "c.html", "--write-list", tmp_path / "bad.txt")
    assert code == 3
    assert (tmp_path / "bad.txt").read_text().splitlines() == [str(train / "rose" / n) for n in ("cut.png", "junk.jpg")]
    page = (tmp_path / "c.html").read_text()
    assert "In several parts" in page
    assert "data:image/jpeg;base64," in page
    assert contents(flowers) == before
    assert "uneven classes" in out


def test_turned_twins_are_twins(tmp_path, pictures):
    root = pictures("d", ["a", "b"], 3)
    upright = Image.open(root / "a" / "0.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(root / "a" / "turned.png", exif=exif)
    (twins,) = rk.check(root).duplicates
    assert [look.location.rpartition("/")[2] for look in twins.images] == ["0.png", "turned.png"]
    assert not twins.same_bytes


def test_the_digits_and_progress():
    seen = []
    found = rk.check("digits", on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (1797, 1797)
    assert found.findings == ()
    assert found.summarize_sizes() == (("smallest", 8, 8), ("middle", 8, 8), ("largest", 8, 8))


WRONG = {
    "check nowhere": (2, "error: there is no such folder\nwhere: nowhere"),
    "check digits --page x.txt": (2, "error: the output file must end in .html\nwhere: x.txt\nfix: call it x.html"),
    "check": (2, "error: missing: DATA"),
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_words(words, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, told = WRONG[words]
    got, out, err = cli(*words.split())
    assert (got, out) == (code, "")
    assert err.startswith(told)
    assert list(tmp_path.iterdir()) == []


def test_d08_no_verb_writes_below_the_data(flowers, tmp_path, cli):
    """Every file that is opened for writing, made, renamed or removed while all verbs run over the data."""
    (flowers / "train" / "rose" / "bad.png").write_bytes(b"x")
    before, touched = contents(flowers), []
    on = [True]

    def hook(event, arguments):
        writing = event == "open" and isinstance(arguments[1], str) and set("wax+") & set(arguments[1])
        if on[0] and (writing or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.utime")):
            touched.append(str(arguments[0]))

    sys.addaudithook(hook)
    small = ["--model", "resnet20", "--epochs", 1, "--set", "input_size=[3,16,16]", "--max-bad", "20%"]
    cli("check", flowers, "--page", tmp_path / "c.html")
    assert cli("train", flowers, *small, "--out", tmp_path / "run")[0] == 0
    assert cli("evaluate", tmp_path / "run", flowers)[0] == 0
    assert cli("predict", flowers, "--model", tmp_path / "run")[0] == 3
    assert cli("embed", flowers, "--model", tmp_path / "run", "--out", tmp_path / "v.npz")[0] == 3
    assert cli("report", tmp_path / "run")[0] == 0
    on[0] = False
    assert any("run.toml" in path for path in touched)
    assert not [path for path in touched if path.startswith(str(flowers))]
    assert contents(flowers) == before


def test_no_output_replaces_what_is_not_ours(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    (tmp_path / "list.txt").write_text("mine")
    os.mkfifo(tmp_path / "pipe.txt")
    for words in (["--page", "mine.html"], ["--write-list", "list.txt"], ["--write-list", "pipe.txt"]):
        code, out, err = cli("check", "digits", *words)
        assert (code, out, err.splitlines()[0]) == (2, "", "error: this file exists already")
    assert (tmp_path / "mine.html").read_text() == "<p>mine</p>"
    for _ in range(2):  # a page of ours is made anew
        assert cli("check", "digits", "--page", "ours.html")[0] == 0
    for words in (["--page", "."], ["--page", "none/x.html"], ["--write-list", "picture.png"], ["--page", "d.html"]):
        (tmp_path / "d.html").mkdir(exist_ok=True)
        assert cli("check", "digits", *words)[0] == 2
    with pytest.raises(MachineError, match="this is no ordinary file"):
        write_text(tmp_path / "pipe.txt", "x")
