"""`predict` and `embed`: every kind of input, every form of output, and bad files as rows."""

import csv
import io
import json
import os
import pty
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import resnetkit as rk
from resnetkit.architecture.spec import NoHead
from resnetkit.errors import DataError, UsageError
from resnetkit.prediction.inputs import ImageInput
from resnetkit.weights.save import save

from helpers.tiny import BASE

NAMES = ("daisy", "rose", "tulip")


@pytest.fixture
def model(tmp_path):
    made = rk.build(BASE, classes=NAMES)
    save(made, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def inbox(tmp_path):
    """Pictures of every sort whose names are not made for computers, and one that is none."""
    folder = tmp_path / "in box"
    folder.mkdir()
    draw = np.random.default_rng(0)
    names = ["a b.png", "line\nbreak.png", "\U0001f33c.jpg", os.fsdecode(b"caf\xe9.png"), 'quote",.gif', "<b>.webp"]
    for i, name in enumerate(names):
        pixels = draw.integers(0, 255, (17 + i, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert("L" if i == 2 else "RGB").save(folder / name)
    (folder / "bad.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture
def stdin(monkeypatch):
    def give(content):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return give


def test_every_form_says_the_same(inbox, model, cli, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    words = ["predict", inbox, "--model", model, "--top", 2]
    code, out, err = cli(*words, "--json")
    assert code == 3
    assert "error: 1 of 7 files have no prediction; their rows say why" in err
    document = json.loads(out)
    assert document["schema"] == "resnetkit.predict/1"
    rows = document["predictions"]
    assert [row["file"] for row in rows] == sorted(str(path) for path in inbox.iterdir())
    (bad,) = [row for row in rows if row["error"]]
    assert bad == {
        "file": str(inbox / "bad.jpg"), "label": None, "probability": None, "top": [],
        "error": "not a supported image; allowed: JPEG, PNG, WEBP, BMP, GIF",
    }  # fmt: skip
    lines = cli(*words, "--jsonl")[1].splitlines()
    assert [json.loads(line) for line in lines] == rows
    table = list(csv.reader(io.StringIO(cli(*words, "--csv")[1])))
    assert table[0] == ["file", "label", "probability", "label_2", "probability_2", "error"]
    assert [row[1] for row in table[1:]] == [row["label"] or "" for row in rows]
    assert [row[5] for row in table[1:]] == [row["error"] or "" for row in rows]
    assert any(row[0].endswith("line\nbreak.png") for row in table)
    code, out, err = cli(*words, "--parquet", tmp_path / "labels.parquet")
    assert out == f"wrote 7 rows to {tmp_path / 'labels.parquet'}\n"
    stored = parquet.read_table(tmp_path / "labels.parquet").to_pylist()
    assert [row["label"] for row in stored] == [row["label"] for row in rows]
    assert stored[0]["labels"] == [top["label"] for top in rows[0]["top"]]
    assert all(
        len(row["top"]) == 2 and abs(row["top"][0]["probability"] - row["probability"]) < 1e-9
        for row in rows
        if row["top"]
    )
    plain = cli(*words)[1]
    assert plain.splitlines()[0].split() == ["file", "label", "probability"]
    assert len(plain.splitlines()) == 8  # a line break in a name makes no other row


def test_files_folders_patterns_and_standard_input(inbox, model, cli, stdin, tmp_path):
    def labels(*words):
        return [
            (row["file"], row["label"])
            for row in json.loads(cli("predict", *words, "--model", model, "--json")[1])["predictions"]
        ]

    everything = labels(inbox)
    assert labels(*sorted(inbox.iterdir())) == everything
    assert labels(inbox / "*") == everything
    assert labels(tmp_path / "**" / "*") == everything
    assert [file for file, _ in labels(inbox / "*.webp")] == [str(inbox / "<b>.webp")]
    names = [os.fsencode(path) for path in sorted(inbox.iterdir())]
    stdin(b"\0".join(names) + b"\0")
    assert labels("-") == everything
    stdin(b"\n".join(name for name in names if b"\n" not in name) + b"\r\n")
    assert labels("-") == [pair for pair in everything if "\n" not in pair[0]]
    stdin((inbox / "a b.png").read_bytes())
    assert labels("-") == [("-", dict(everything)[str(inbox / "a b.png")])]
    assert labels(inbox / "a b.png", inbox / "nowhere.png")[1] == (str(inbox / "nowhere.png"), None)


@pytest.mark.parametrize("form", [[], ["--csv"], ["--jsonl"], ["--json"]])
def test_results_go_to_stdout_also_where_a_person_watches(inbox, model, tmp_path, form):
    """stderr is a terminal with a bar on it, stdout a file: `resnetkit predict ... > labels.csv`."""
    ours, theirs = pty.openpty()
    code = f"import sys; from resnetkit.cli import main; sys.exit(main({['predict', str(inbox), '--model', str(model), *form]!r}))"
    with (tmp_path / "out").open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=out, stderr=theirs, check=False, env=os.environ | {"TERM": "xterm"}
        )
    os.close(theirs)
    shown = os.read(ours, 65536)
    os.close(ours)
    assert done.returncode == 3
    assert len((tmp_path / "out").read_text().splitlines()) >= 7
    assert b"daisy" not in shown


def test_standard_input_that_is_closed(model, cli, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    code, out, err = cli("predict", "-", "--model", model)
    assert (code, out, err.splitlines()[0]) == (2, "", "error: standard input is closed")


def test_a_name_from_a_list_is_no_pattern(inbox, model, cli, stdin):
    stdin(f"{inbox}/gone[1].png\n{inbox}/a b.png\n".encode())
    code, out, _ = cli("predict", "-", "--model", model, "--json")
    rows = json.loads(out)["predictions"]
    assert code == 3
    assert [row["error"] for row in rows] == ["the file does not exist", None]


def test_more_classes_than_there_are(inbox, model, cli):
    code, out, _ = cli("predict", inbox / "a b.png", "--model", model, "--csv", "--top", 10**12)
    assert code == 0
    assert out.splitlines()[0] == "file,label,probability,label_2,probability_2,label_3,probability_3,error"


def test_a_list_as_powershell_writes_it(inbox, model, cli, stdin):
    stdin(f"{inbox}/a b.png\r\n".encode("utf-16"))
    code, out, _ = cli("predict", "-", "--model", model, "--csv")
    assert (code, len(out.splitlines())) == (0, 2)


def test_files_of_other_kinds_are_said_to_be_passed_over(inbox, model, cli, tmp_path):
    (inbox / "phone.heic").write_bytes(b"x")
    assert "note: skipped files of other types: 1 .heic (supported: " in cli("predict", inbox, "--model", model)[2]
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "1.heic").write_bytes(b"x")
    code, _, err = cli("predict", tmp_path / "phone", "--model", model)
    assert code == 3
    assert "fix: skipped files of other types: 1 .heic" in err


WRONG = {
    "predict  --modle x": (
        2,
        "error: unknown option: --modle\nwhere: resnetkit predict\nfix: did you mean --model?",
    ),
    "predict no*.png": (3, "error: no picture matches this pattern\nwhere: no*.png"),
    "predict empty": (3, "error: there are no pictures here\nwhere: empty"),
    "predict x.png --csv --jsonl": (2, "error: more than one output format is given\nwhere: --csv --jsonl"),
    "predict x.png --parquet x.csv": (
        2,
        "error: the output file must end in .parquet\nwhere: x.csv\nfix: call it x.parquet",
    ),
    "predict x.png --precision fp8": (2, "error: there is no precision called 'fp8'\nwhere: --precision"),
    "embed x.png --out x.csv": (
        2,
        "error: the output file must end in .npz or .parquet\nwhere: x.csv\nfix: call it x.npz",
    ),
    "embed x.png --layer stage9": (2, "error: this network has no place called 'stage9'\nfix: did you mean stage"),
    "embed": (2, "error: no image is given\nwhere: resnetkit embed"),
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_words(words, model, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    code, told = WRONG[words]
    got, out, err = cli(*words.split(), "--model", model)
    assert (got, out) == (code, "")
    assert err.startswith(told)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "model"]


def test_a_picture_from_memory(model, inbox):
    content = (inbox / "a b.png").read_bytes()
    assert rk.predict(ImageInput("upload", content), model)[0].top == rk.predict(inbox / "a b.png", model)[0].top


def test_vectors_are_what_the_classifier_sees(inbox, model, cli, tmp_path):
    code, out, _err = cli("embed", inbox, "--model", model, "--out", tmp_path / "v.npz")
    assert code == 3
    assert out.splitlines()[0] == f"wrote 7 vectors of 16 numbers (head.pool) to {tmp_path / 'v.npz'}"
    assert out.splitlines()[1].endswith("bad.jpg: (not a supported image; allowed: JPEG, PNG, WEBP, BMP, GIF)")
    with np.load(tmp_path / "v.npz", allow_pickle=False) as stored:
        files, vectors, errors = stored["files"].tolist(), stored["vectors"], stored["errors"].tolist()
        assert str(stored["place"]) == "head.pool"
    assert files == sorted(str(path) for path in inbox.iterdir())
    assert [bool(error) for error in errors] == [bool(row) for row in np.isnan(vectors).all(1)]
    network = rk.load(model)
    shares = network.head.linear(torch.from_numpy(vectors)).softmax(1).detach()
    for i, answer in enumerate(rk.predict(files, model, top=3)):
        if not answer.error:
            assert {name: float(shares[i, NAMES.index(name)]) for name, _ in answer.top} == pytest.approx(
                dict(answer.top)
            )


def test_vectors_of_any_place_and_as_parquet(inbox, model, tmp_path, cli):
    parquet = pytest.importorskip("pyarrow.parquet")
    network = rk.load(model)
    assert rk.embed(inbox, network, place="stage1").vectors.shape == (7, 8)
    assert rk.embed(inbox, network, place="stage2.block1").vectors.shape == (7, 16)
    np.testing.assert_allclose(
        rk.embed(inbox, network, place="stage2").vectors, rk.embed(inbox, network).vectors, rtol=1e-5
    )
    assert cli("embed", inbox, "--model", model, "--out", tmp_path / "v.parquet", "--json")[0] == 3
    rows = parquet.read_table(tmp_path / "v.parquet").to_pylist()
    assert [bool(row["error"]) for row in rows] == [bool(np.isnan(row["vector"]).all()) for row in rows]
    assert {len(row["vector"]) for row in rows} == {16}


def test_a_network_without_a_head_has_vectors(inbox, tmp_path):
    model = rk.build(BASE.__class__(**{**{f: getattr(BASE, f) for f in BASE.__dataclass_fields__}, "head": NoHead()}))
    found = rk.embed(inbox, model)
    assert (found.place, found.vectors.shape) == ("stage2", (7, 16))
    with pytest.raises(UsageError, match=r"vectors are written as \.npz or \.parquet"):
        found.write(tmp_path / "v.csv")


def test_only_bad_files(tmp_path, model, cli):
    (tmp_path / "bad.png").write_bytes(b"x")
    assert rk.embed(tmp_path / "bad.png", model).vectors.shape == (1, 0)
    assert [answer.label for answer in rk.predict(tmp_path / "bad.png", model)] == [""]
    with pytest.raises(DataError):
        rk.predict(tmp_path / "no*.png", model)
    assert rk.predict([], model) == []
    with pytest.raises(UsageError, match="an empty word names no picture"):
        rk.predict("", model)
    assert rk.predict("x" * 5000, model)[0].error == "file name too long"


def test_a_missing_extra_is_one_line(inbox, model, cli, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, out, err = cli("predict", inbox / "a b.png", "--model", model, "--parquet", tmp_path / "x.parquet")
    assert (code, out) == (5, "")
    assert err == "error: pyarrow, which writes Parquet, is not installed\nfix: pip install 'resnetkit[data]'\n"
    assert not (tmp_path / "x.parquet").exists()
