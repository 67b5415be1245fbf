"""`predict` and `embed`: every kind of input, every format of output, and unreadable images as rows."""

import contextlib
import csv
import io
import json
import os
import pty
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import resnetkit as rk
from resnetkit.architecture.spec import NoHead
from resnetkit.cli import main
from resnetkit.errors import DataError, UsageError
from resnetkit.prediction.inputs import ImageInput
from resnetkit.weights.save import save

from helpers.tiny import BASE

CLASSES = ("daisy", "rose", "tulip")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(rk.build(BASE, classes=CLASSES), tmp_path_factory.mktemp("predict") / "model")


@pytest.fixture
def inbox(tmp_path):
    """Return a folder of images of every format with difficult names, and a file that is not an image."""
    folder = tmp_path / "in box"
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = ["a b.png", "line\nbreak.png", "\U0001f33c.jpg", os.fsdecode(b"caf\xe9.png"), 'quote",.gif', "<b>.webp"]
    for i, name in enumerate(names):
        pixels = rng.integers(0, 255, (17 + i, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert("L" if i == 2 else "RGB").save(folder / name)
    (folder / "bad.jpg").write_bytes(b"not an image")
    return folder


@pytest.fixture
def stdin(monkeypatch):
    def write(content):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return write


def test_all_formats_have_the_same_rows(inbox, model, cli, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    args = ["predict", inbox, "--model", model, "--top", 2]
    code, out, err = cli(*args, "--json")
    assert code == 3
    assert "error: 1 of 7 files have no prediction; the rows say why" in err
    document = json.loads(out)
    assert document["schema"] == "resnetkit.predict/1"
    rows = document["predictions"]
    assert [row["file"] for row in rows] == sorted(str(path) for path in inbox.iterdir())
    (bad,) = [row for row in rows if row["error"]]
    assert bad == {
        "file": str(inbox / "bad.jpg"), "label": None, "probability": None, "top": [],
        "error": rk.predict(inbox / "bad.jpg", model)[0].error,
    }  # fmt: skip
    assert "JPEG, PNG" in bad["error"]
    lines = cli(*args, "--jsonl")[1].splitlines()
    assert [json.loads(line) for line in lines] == rows
    table = list(csv.reader(io.StringIO(cli(*args, "--csv")[1])))
    assert table[0] == ["file", "label", "probability", "label_2", "probability_2", "error"]
    assert [row[1] for row in table[1:]] == [row["label"] or "" for row in rows]
    assert [row[5] for row in table[1:]] == [row["error"] or "" for row in rows]
    assert any(row[0].endswith("line\nbreak.png") for row in table)
    code, out, err = cli(*args, "--parquet", tmp_path / "labels.parquet")
    assert out == f"wrote 7 rows to {tmp_path / 'labels.parquet'}\n"
    stored = parquet.read_table(tmp_path / "labels.parquet").to_pylist()
    assert list(stored[0]) == ["file", "label", "probability", "labels", "probabilities", "error"]
    assert [row["label"] for row in stored] == [row["label"] for row in rows]
    assert stored[0]["labels"] == [top["label"] for top in rows[0]["top"]]
    for row in rows:
        assert not row["top"] or (len(row["top"]) == 2 and row["top"][0]["probability"] == row["probability"])
    printed = cli(*args)[1]
    assert printed.splitlines()[0].split() == ["file", "label", "probability"]
    assert len(printed.splitlines()) == 8  # a line break in a name does not start a row


def test_files_folders_patterns_and_standard_input(inbox, model, cli, stdin, tmp_path):
    def predict_labels(*args):
        rows = json.loads(cli("predict", *args, "--model", model, "--json")[1])["predictions"]
        return [(row["file"], row["label"]) for row in rows]

    everything = predict_labels(inbox)
    assert predict_labels(*sorted(inbox.iterdir())) == everything
    assert predict_labels(inbox / "*") == everything
    assert predict_labels(tmp_path / "**" / "*") == everything
    assert [file for file, _ in predict_labels(inbox / "*.webp")] == [str(inbox / "<b>.webp")]
    names = [os.fsencode(path) for path in sorted(inbox.iterdir())]
    stdin(b"\0".join(names) + b"\0")
    assert predict_labels("-") == everything
    stdin(b"\n".join(name for name in names if b"\n" not in name) + b"\r\n")
    assert predict_labels("-") == [pair for pair in everything if "\n" not in pair[0]]
    stdin((inbox / "a b.png").read_bytes())
    assert predict_labels("-") == [("-", dict(everything)[str(inbox / "a b.png")])]
    assert predict_labels(inbox / "a b.png", inbox / "nowhere.png")[1] == (str(inbox / "nowhere.png"), None)


def read_until_closed(terminal):
    """Read everything that is written to a pseudo-terminal until its other end is closed."""
    chunks = []
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while chunk := os.read(terminal, 65536):
            chunks.append(chunk)
    return b"".join(chunks)


@pytest.mark.parametrize("options", [[], ["--csv"], ["--jsonl"], ["--json"]])
def test_the_progress_bar_is_on_stderr_alone(inbox, model, tmp_path, monkeypatch, options):
    """stderr is a terminal and stdout is a file: `resnetkit predict ... > labels.csv`."""
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with ThreadPoolExecutor(1) as pool:
        output = pool.submit(read_until_closed, ours)
        with (tmp_path / "out").open("w") as out, os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", terminal)
            assert main(["predict", str(inbox), "--model", str(model), *options]) == 3
        shown = output.result()
    os.close(ours)
    assert b"7/7" in shown
    assert len((tmp_path / "out").read_text().splitlines()) >= 7
    assert b"daisy" not in shown


def test_closed_standard_input(model, cli, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    code, out, err = cli("predict", "-", "--model", model)
    assert (code, out, err.splitlines()[0]) == (2, "", "error: standard input is closed")


def test_a_name_from_standard_input_is_not_a_pattern(inbox, model, cli, stdin):
    stdin(f"{inbox}/gone[1].png\n{inbox}/a b.png\n".encode())
    code, out, _ = cli("predict", "-", "--model", model, "--json")
    missing, readable = json.loads(out)["predictions"]
    assert code == 3
    assert (missing["file"], bool(missing["error"]), readable["error"]) == (f"{inbox}/gone[1].png", True, None)


def test_top_is_limited_to_the_number_of_classes(inbox, model, cli):
    code, out, _ = cli("predict", inbox / "a b.png", "--model", model, "--csv", "--top", 10**12)
    assert code == 0
    assert out.splitlines()[0] == "file,label,probability,label_2,probability_2,label_3,probability_3,error"


def test_a_list_of_names_in_utf_16(inbox, model, cli, stdin):
    """PowerShell writes such lists."""
    stdin(f"{inbox}/a b.png\r\n".encode("utf-16"))
    code, out, _ = cli("predict", "-", "--model", model, "--csv")
    assert (code, len(out.splitlines())) == (0, 2)


def test_files_of_other_types_are_noted_and_images_among_them_are_rows(inbox, model, cli, tmp_path):
    (inbox / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    (inbox / "list.doc").write_bytes(b"x")
    code, out, err = cli("predict", inbox, "--model", model, "--csv")
    assert code == 3
    (row,) = [line for line in out.splitlines() if "phone.heic" in line]
    assert "format HEIC is not supported" in row
    (note,) = [line for line in err.splitlines() if line.startswith("note: ")]
    assert "1 .doc" in note and "heic" not in note.partition("(")[0]
    (tmp_path / "office").mkdir()
    (tmp_path / "office" / "1.doc").write_bytes(b"x")
    code, _, err = cli("predict", tmp_path / "office", "--model", model)
    assert code == 3
    (fix,) = [line for line in err.splitlines() if line.startswith("fix: ")]
    assert "1 .doc" in fix and fix.endswith("; name files, or another folder")


WRONG_ARGS = {
    "predict  --modle x": (
        2,
        "error: unknown option: --modle\nwhere: resnetkit predict\nfix: did you mean --model?",
    ),
    "predict no*.png": (3, "error: no image matches this pattern\nwhere: no*.png\nfix: name files, or a folder"),
    "predict empty": (3, "error: no images in this folder\nwhere: empty\nfix: name files, or another folder"),
    "predict x.png --csv --jsonl": (2, "error: more than one output format is given\nwhere: --csv --jsonl"),
    "predict x.png --parquet x.csv": (
        2,
        "error: the output file must end in .parquet\nwhere: x.csv\nfix: call it x.parquet",
    ),
    "predict x.png --precision fp8": (
        2,
        "error: unknown precision 'fp8'\nwhere: --precision\nfix: one of auto, fp32, bf16\n",
    ),
    "embed x.png --out x.csv": (
        2,
        "error: the output file must end in .npz or .parquet\nwhere: x.csv\nfix: call it x.npz",
    ),
    "embed x.png --layer stage9": (2, "error: this network has no section 'stage9'\nfix: did you mean stage"),
    "embed": (2, "error: no image is given\nwhere: resnetkit embed"),
}


@pytest.mark.parametrize("args", WRONG_ARGS)
def test_wrong_arguments(args, model, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    expected_code, message = WRONG_ARGS[args]
    code, out, err = cli(*args.split(), "--model", model)
    assert (code, out) == (expected_code, "")
    assert err.startswith(message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


def test_an_image_from_memory(model, inbox):
    content = (inbox / "a b.png").read_bytes()
    assert rk.predict(ImageInput("upload", content), model)[0].top == rk.predict(inbox / "a b.png", model)[0].top


def test_embeddings_are_the_input_of_the_classifier(inbox, model, cli, tmp_path):
    code, out, _err = cli("embed", inbox, "--model", model, "--out", tmp_path / "v.npz")
    assert code == 3
    assert out.splitlines()[0] == f"wrote 7 vectors of 16 numbers (head.pool) to {tmp_path / 'v.npz'}"
    assert f"bad.jpg: ({rk.predict(inbox / 'bad.jpg', model)[0].error})" in out.splitlines()[1]
    with np.load(tmp_path / "v.npz", allow_pickle=False) as stored:
        files, vectors, errors = stored["files"].tolist(), stored["vectors"], stored["errors"].tolist()
        assert str(stored["layer"]) == "head.pool" and sorted(stored) == ["errors", "files", "layer", "vectors"]
    assert files == sorted(str(path) for path in inbox.iterdir())
    assert [bool(error) for error in errors] == [bool(row) for row in np.isnan(vectors).all(1)]
    probabilities = rk.load(model).head.linear(torch.from_numpy(vectors)).softmax(1).detach()
    for row, prediction in zip(probabilities, rk.predict(files, model, top=3), strict=True):
        if not prediction.error:
            assert dict(zip(CLASSES, row.tolist(), strict=True)) == pytest.approx(dict(prediction.top))


def test_embeddings_of_any_layer_and_as_parquet(inbox, model, tmp_path, cli):
    parquet = pytest.importorskip("pyarrow.parquet")
    network = rk.load(model)
    assert rk.embed(inbox, network, layer="stage1").vectors.shape == (7, 8)
    assert rk.embed(inbox, network, layer="stage2.block1").vectors.shape == (7, 16)
    vectors = rk.embed(inbox, network, layer="stage2").vectors
    np.testing.assert_allclose(vectors, rk.embed(inbox, network).vectors, rtol=1e-5)
    code, out, _ = cli("embed", inbox, "--model", model, "--out", tmp_path / "v.parquet", "--json")
    assert (code, json.loads(out)["layer"]) == (3, "head.pool")
    rows = parquet.read_table(tmp_path / "v.parquet").to_pylist()
    assert [bool(row["error"]) for row in rows] == [bool(np.isnan(row["vector"]).all()) for row in rows]
    assert {len(row["vector"]) for row in rows} == {16}


def test_embeddings_of_a_network_without_a_head(inbox, tmp_path):
    embeddings = rk.embed(inbox, rk.build(replace(BASE, head=NoHead())))
    assert (embeddings.layer, embeddings.vectors.shape) == ("stage2", (7, 16))
    with pytest.raises(UsageError, match=r"got \.csv; allowed: \.npz or \.parquet"):
        embeddings.write(tmp_path / "v.csv")


def test_only_unreadable_images(tmp_path, model):
    (tmp_path / "bad.png").write_bytes(b"x")
    assert rk.embed(tmp_path / "bad.png", model).vectors.shape == (1, 0)
    assert [prediction.label for prediction in rk.predict(tmp_path / "bad.png", model)] == [""]
    with pytest.raises(DataError):
        rk.predict(tmp_path / "no*.png", model)
    assert rk.predict([], model) == []
    with pytest.raises(UsageError, match="empty file name"):
        rk.predict("", model)
    assert rk.predict("x" * 5000, model)[0].error == "file name too long"


def test_a_missing_extra_is_an_error_before_any_work(inbox, model, cli, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, out, err = cli("predict", inbox / "a b.png", "--model", model, "--parquet", tmp_path / "x.parquet")
    assert (code, out) == (5, "")
    assert err == "error: pyarrow, which writes Parquet, is not installed\nfix: pip install 'pyarrow>=22'\n"
    assert not (tmp_path / "x.parquet").exists()
