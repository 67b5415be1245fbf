"""The kinds of datasets: folders, tables of labels, CIFAR's archives."""

import gzip
import io
import os
import pickle
import re
import shutil
import tarfile
import time

import numpy as np
import pytest

import resnetkit as rk
from resnetkit.data.dataset import split_dataset
from resnetkit.data.identity import find_leaks, identify_dataset
from resnetkit.data.open import open_dataset
from resnetkit.errors import DataError, UsageError
from resnetkit.images.decode import SUFFIXES

from helpers.tiny import BASE

# ----------------------------------------------------------------------------------------------------------- folders


def test_classes_are_matched_by_name_and_missing_ones_are_reported(pictures, tmp_path, cli):
    pictures("d/train", ["ant", "bee", "cat"], 8)
    root = pictures("d/val", ["cat", "bee"], 3).parent
    data = open_dataset(root)
    assert data.classes == ("ant", "bee", "cat")
    assert sorted(set(data.splits["val"].labels.tolist())) == [1, 2]
    assert data.find_missing_classes() == {"val": ["ant"]}
    assert data.notes == ()
    model = rk.build(BASE, classes=["cat", "ant", "bee"])  # in a different order
    evaluation = rk.evaluate(model, root, split="val")
    assert [name for name, *_ in evaluation.count_per_class()] == ["cat", "bee"]
    assert [n for _, n, _ in evaluation.count_per_class()] == [3, 3]
    assert evaluation.confusion[1] == (0, 0, 0)
    code, out, err = cli("check", root)
    assert code == 3
    assert "missing classes: 1\n  val has no images of ant\n" in out
    rk.save(model, tmp_path / "model")
    code, out, err = cli("evaluate", tmp_path / "model", root, "--split", "val")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()[1:3]] == [["cat", "3"], ["bee", "3"]]
    assert re.search(r"^note: .*: ant$", err, re.MULTILINE)


def test_error_names_an_extra_class(pictures, cli):
    pictures("d/train", ["ant", "bee"], 3)
    root = pictures("d/val", ["ant", "wasp"], 3).parent
    code, out, err = cli("check", root)
    assert (code, out) == (3, "")
    assert err == (
        f"error: val has a class that train lacks: wasp\nwhere: {root}\nfix: add it to train, or remove it from val\n"
    )


def test_hidden_and_empty_folders_are_skipped(pictures):
    root = pictures("d", ["ant", "bee"], 3)
    for hidden in (".ipynb_checkpoints", "__MACOSX", ".git"):
        shutil.copytree(root / "ant", root / hidden)
    (root / ".DS_Store").write_bytes(b"x")
    (root / "ant" / "._1.jpg").write_bytes(b"x")
    (root / "wasp").mkdir()
    data = open_dataset(root)
    assert data.classes == ("ant", "bee")
    assert len(data.train_split) == 6
    assert data.notes == ("skipped 1 folder without images: wasp",)


@pytest.mark.parametrize(
    ("name", "split"), [("validation", "val"), ("Valid", "val"), ("TESTING", "test"), ("Test", "test")]
)
def test_aliases_of_splits(pictures, name, split):
    pictures("d/Training", ["a", "b"])
    root = pictures(f"d/{name}", ["a", "b"]).parent
    assert list(open_dataset(root).splits) == ["train", split]


def test_folder_next_to_splits_is_not_a_class(pictures):
    pictures("d/train", ["a", "b"])
    root = pictures("d/vall", ["a", "b"]).parent
    with pytest.raises(DataError) as caught:
        open_dataset(root)
    assert str(caught.value) == (
        f"error: a folder next to the splits is not a split: vall\nwhere: {root}\n"
        "fix: did you mean val? Otherwise remove or rename it; the splits are train, val and test"
    )
    pictures("d/val", ["a", "b"])
    pictures("d/valid", ["a", "b"])
    (root / "vall").rename(root / "extra")
    with pytest.raises(DataError, match="two folders for the val split: val and valid"):
        open_dataset(root)


def test_skipped_files_are_counted(pictures):
    root = pictures("d", ["ant", "bee"], 3)
    for name in ("1.heic", "2.HEIC", "notes.txt", "README"):
        (root / "ant" / name).write_bytes(b"x")
    shutil.copy(root / "ant" / "1.png", root / "bee" / "1.png.part")
    (root / "labels.txt").write_text("x")
    (root / "loose.png").write_bytes(b"x")
    (root / "ant" / "__1.png").write_bytes((root / "ant" / "1.png").read_bytes())
    data = open_dataset(root)
    assert data.notes == (
        f"skipped 5 files of other types: 2 .heic, 1 .part (PNG), 1 .txt, 1 README (supported: {' '.join(SUFFIXES)})",
        "skipped 1 image outside of class folders: loose.png",
        "skipped 1 file outside of class folders: 1 .txt",
    )
    assert {kind: len(paths) for kind, paths in data.findings.items()} == {
        "skipped files of other types": 5,
        "skipped images outside of class folders": 1,
    }
    assert len(data.train_split) == 7


def test_class_that_a_random_split_lacks_is_reported(pictures):
    pictures("d", ["ant", "bee"], 12)
    data = split_dataset(open_dataset(pictures("d", ["cat"], 1)), 0)
    assert data.find_missing_classes() == {"val": ["cat"], "test": ["cat"]}


def test_images_outside_of_classes_and_nested_folders(pictures, tmp_path):
    root = pictures("d", ["ant"], 3)
    with pytest.raises(DataError) as caught:
        open_dataset(root / "ant")
    assert caught.value.what == "the images are not sorted into class folders"
    assert caught.value.fix == "put the images of each class into one folder: CLASS/image.jpg"
    pictures("d/bee/of 2026", ["deep"], 2)
    assert np.bincount(open_dataset(root).train_split.labels).tolist() == [3, 2]


# ------------------------------------------------------------------------------------------------------------ tables


@pytest.fixture
def table(pictures, tmp_path):
    """Write a table next to six images."""
    pictures("d", ["ant", "bee"], 3)

    def write(text, encoding="utf-8"):
        path = tmp_path / "d" / "labels.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


ROWS = ["ant/0.png,ant", "ant/1.png,ant", "bee/0.png,bee", "bee/1.png,bee"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_byte_order_marks_line_endings_and_delimiters(table, end, encoding, delimiter):
    path = table(end.join(["path,label", *ROWS]).replace(",", delimiter) + end, encoding)
    data = open_dataset(path)
    assert data.classes == ("ant", "bee")
    assert data.splits["all"].labels.tolist() == [0, 0, 1, 1]
    assert data.splits["all"].names == ("ant/0.png", "ant/1.png", "bee/0.png", "bee/1.png")
    assert data.train_split.load_image(0).size == (20, 16)


def test_splits_and_aliases_of_columns(table):
    rows = ["ant,ant/0.png,train", "bee,bee/0.png,Training", 'ant,"ant/1.png",validation', "bee,bee/1.png,val"]
    data = open_dataset(table("\n".join(["class,file,split", *rows]) + "\n"))
    assert {split: len(files) for split, files in data.splits.items()} == {"train": 2, "val": 2}


FAULTS = {
    "missing file": (["ant/9.png,ant"], "line 6: the file does not exist: ant/9.png"),
    "long name": (["x" * 300 + ".png,ant"], "line 6: the file does not exist: xxx"),
    "duplicate": (["ant/0.png,bee"], "line 6: duplicate of line 2: 'ant/0.png'"),
    "extra cell": (["ant/2.png,ant,7"], "line 6: 3 cells, but the header has 2"),
    "few cells": (["ant/2.png"], "line 6: 1 cell, but the header has 2"),
    "no label": (["ant/2.png,"], "line 6: the label is empty"),
    "no path": ([",ant"], "line 6: the path is empty"),
    "quote": (['"ant/2.png,ant'], "line 6: not valid CSV: unexpected end of data"),
    "odd label": (["ant/2.png,a\x07nt"], "line 6: the label is not text (UTF-8)"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_name_their_line(table, cli, name):
    rows, message = FAULTS[name]
    path = table("\n".join(["path,label", *ROWS, *rows]) + "\n")
    code, out, err = cli("check", path)
    assert (code, out) == (3, "")
    lines = err.splitlines()
    assert lines[:2] == ["error: the table has 1 unusable line", f"where: {path}"]
    assert lines[2].strip().startswith(message)
    assert lines[3] == "fix: correct these lines; no line is skipped"


def test_first_five_faults_are_shown(table):
    path = table("path,label\n" + "".join(f"none/{i}.png,ant\n" for i in range(9)))
    with pytest.raises(DataError) as caught:
        open_dataset(path)
    assert caught.value.what == "the table has 9 unusable lines"
    assert len(caught.value.where) == 1 + 5 + 1
    assert caught.value.where[-1] == "... and 4 more"


def test_extra_class_unknown_split_and_empty_split(table):
    rows = ["ant/0.png,ant,train", "bee/0.png,bee,train", "bee/1.png,wasp,val", "ant/1.png,ant,eval", "ant/2.png,ant,"]
    with pytest.raises(DataError) as caught:
        open_dataset(table("\n".join(["path,label,split", *rows])))
    assert caught.value.where[1:] == (
        "line 4: val has a class that train lacks: wasp",
        "line 5: unknown split: 'eval'; allowed: train, val, test",
        "line 6: the split is empty, but other lines have one",
    )


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("path,name", "the column label is missing"),
        ("a.png,ant", "the column path is missing"),
        ("path,label,class", "two columns can be the label: label, class; choose: --label-column"),
        ("", "the column path is missing"),
    ],
)
def test_wrong_headers(table, header, message):
    with pytest.raises(DataError) as caught:
        open_dataset(table(header + "\nant/0.png,ant,3\n"))
    assert f"line 1: {message}" in caught.value.where
    assert f"line 1: the columns are: {(header or 'ant/0.png,ant,3').replace(',', ', ')}" in caught.value.where
    assert caught.value.what == "the table has unusable columns"
    fix = "name the columns path and label, or choose them: --image-column, --label-column, --split-column"
    assert caught.value.fix == fix


def test_table_without_rows(table):
    with pytest.raises(DataError, match="the table has 1 unusable line"):
        open_dataset(table("path,label\n"))


def test_table_is_split_and_fingerprinted_like_a_folder(table, tmp_path):
    rows = [f"{name}/{i}.png,{name}" for name in ("ant", "bee") for i in range(3)]
    path = table("\n".join(["path,label", *rows]))
    data = split_dataset(open_dataset(path), 0)
    assert {split: len(files) for split, files in data.splits.items()} == {"train": 2, "val": 2, "test": 2}
    path.parent.rename(tmp_path / "moved")
    moved = open_dataset(tmp_path / "moved" / "labels.csv")
    copied = open_dataset(shutil.copytree(tmp_path / "moved", tmp_path / "copy") / "labels.csv")
    assert identify_dataset(moved).digest == identify_dataset(copied).digest


# ------------------------------------------------------------------------------------------------------------- CIFAR


def record(label, shade):
    """Build an image with red = shade, green = shade + 1, and blue = the number of the row."""
    red, green = np.full((32, 32), shade, np.uint8), np.full((32, 32), shade + 1, np.uint8)
    blue = np.repeat(np.arange(32, dtype=np.uint8)[:, None], 32, 1)
    return bytes(label) + red.tobytes() + green.tobytes() + blue.tobytes()


def cifar10():
    files = {f"data_batch_{i}.bin": b"".join(record([k % 3], 10 * i + k) for k in range(4)) for i in range(1, 6)}
    files["test_batch.bin"] = record([2], 99) + record([0], 98)
    files["batches.meta.txt"] = b"airplane\nautomobile\nbird\n\n"
    return {f"cifar-10-batches-bin/{name}": content for name, content in files.items()}


def cifar100():
    files = {"train.bin": b"".join(record([9, k], k) for k in range(3)), "test.bin": record([9, 1], 7)}
    files["fine_label_names.txt"] = b"apple\nbear\ncloud\n"
    files["coarse_label_names.txt"] = b"x\n"
    return {f"cifar-100-binary/{name}": content for name, content in files.items()}


def archive(path, files):
    with tarfile.open(path, "w:gz") as opened:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("unpacked", [False, True])
def test_cifar(tmp_path, unpacked):
    path10 = archive(tmp_path / "cifar-10-binary.tar.gz", cifar10())
    path100 = archive(tmp_path / "cifar-100-binary.tgz", cifar100())
    if unpacked:
        for path in (path10, path100):
            with tarfile.open(path) as opened:
                opened.extractall(tmp_path, filter="data")
        path10, path100 = tmp_path / "cifar-10-batches-bin", tmp_path / "cifar-100-binary"
    data = open_dataset(path10)
    assert data.classes == ("airplane", "automobile", "bird")
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 20, "test": 2}
    assert data.splits["test"].labels.tolist() == [2, 0]
    assert data.splits["train"].load_image(5).getpixel((3, 17)) == (21, 22, 17)
    assert data.splits["train"].names[5] == "data_batch_2.bin:1"
    data = open_dataset(path100)
    assert data.classes == ("apple", "bear", "cloud")
    assert data.splits["train"].labels.tolist() == [0, 1, 2]


def test_training_on_cifar(tmp_path, network):
    path = archive(tmp_path / "c.tar.gz", cifar10())
    run = rk.train(path, network, out=tmp_path / "run", epochs=1, batch_size=4, precision="fp32")
    assert run.evaluation.n == 2
    assert rk.evaluate(run.path, path).correct == run.evaluation.correct


@pytest.mark.parametrize("unpacked", [False, True])
@pytest.mark.parametrize("names", [["cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/batches.meta"],
                                   ["cifar-100-python/train", "cifar-100-python/meta"]])  # fmt: skip
def test_python_archives_are_pickles_and_rejected(tmp_path, cli, unpacked, names):
    class Canary:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "canary"),)

    path = archive(tmp_path / "cifar-python.tar.gz", dict.fromkeys(names, pickle.dumps(Canary())))
    if unpacked:
        with tarfile.open(path) as opened:
            opened.extractall(tmp_path, filter="data")
        path = tmp_path / names[0].split("/")[0]
    code, out, err = cli("check", path)
    assert (code, out) == (3, "")
    assert err == (
        "error: this is the Python version of CIFAR; its files are pickles, which can run code\n"
        f"where: {path}\nfix: use the binary version: cifar-10-binary.tar.gz or cifar-100-binary.tar.gz\n"
    )
    assert not (tmp_path / "canary").exists()


def without(files, name):
    return {path: content for path, content in files.items() if not path.endswith(name)}


BROKEN = {
    "no names": (without(cifar10(), "batches.meta.txt"), "the archive does not contain CIFAR in its binary version"),
    "a batch is missing": (without(cifar10(), "data_batch_3.bin"), "a file is missing: data_batch_3.bin"),
    "cut": (
        cifar10() | {"x/test_batch.bin": record([0], 1)[:-1]},
        "test_batch.bin has 3,072 bytes, not a multiple of the record size 3,073",
    ),
    "a label": (cifar10() | {"x/test_batch.bin": record([7], 1)}, "a label is 7, but there are 3 classes"),
    "many files": ({f"{i}.txt": b"" for i in range(150)}, "the archive is not CIFAR: it has too many files"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_archives_are_errors(tmp_path, name):
    files, message = BROKEN[name]
    with pytest.raises(DataError) as caught:
        open_dataset(archive(tmp_path / "c.tar.gz", files))
    assert caught.value.what.startswith(message)


@pytest.mark.parametrize("content", [b"", b"x" * 600, b"\x1f\x8b\x08\x00" + b"x" * 50])
def test_files_that_are_not_archives_are_errors(tmp_path, content):
    path = tmp_path / "c.tar.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot read the archive: "):
        open_dataset(path)
    whole = archive(tmp_path / "whole.tar.gz", cifar10()).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError):
        open_dataset(path)


def test_files_of_other_types_are_errors(tmp_path):
    (tmp_path / "cat.jpg").write_bytes(b"x")
    with pytest.raises(UsageError) as caught:
        open_dataset(tmp_path / "cat.jpg")
    assert caught.value.what == "the file is not a dataset of a supported type"


def test_archive_bombs_are_rejected(tmp_path):
    path = tmp_path / "bomb.tar.gz"
    member = tarfile.TarInfo("x/test_batch.bin")
    member.size = 400_000_000
    path.write_bytes(gzip.compress(member.tobuf()) + gzip.compress(bytes(10_000_000)) * 40)
    start = time.process_time()
    with pytest.raises(DataError, match="it unpacks to far more bytes than CIFAR has"):
        open_dataset(path)
    assert time.process_time() - start < 20
    with tarfile.open(path, "w:gz") as opened:  # long names of long names
        for _ in range(3000):
            opened.fileobj.write(tarfile.TarInfo("x").tobuf().replace(b"0" + b"\0" * 100, b"x" + b"\0" * 100))
    with pytest.raises(DataError):
        open_dataset(path)


@pytest.mark.parametrize("names", [b"a\nb\na\n", b"a\n\nb\nc\n", b"a\n\x1b[2J\nc\n", b"\n\n", b""])
def test_wrong_class_names_in_an_archive(tmp_path, names):
    files = cifar10() | {"cifar-10-batches-bin/batches.meta.txt": names}
    with pytest.raises(DataError, match="class names are empty, repeated or not text"):
        open_dataset(archive(tmp_path / "c.tar.gz", files))


def test_pipes_in_two_splits_do_not_block(pictures):
    pictures("d/train", ["a", "b"])
    root = pictures("d/val", ["a", "b"], 3).parent
    for split in ("train", "val"):
        os.mkfifo(root / split / "a" / "pipe.png")
    data = open_dataset(root)
    assert len(find_leaks(data, identify_dataset(data))) == 6


def test_run_is_not_written_into_the_data(pictures, tmp_path, cli, monkeypatch):
    root = pictures("d", ["a", "b"], 12)
    monkeypatch.chdir(root)
    code, out, err = cli("train", ".", "--model", "resnet20", "--epochs", 1)
    assert (code, out) == (2, "")
    assert err.startswith(
        "error: the run folder is inside the data\nwhere: runs/data-resnet20-1\nfix: name a folder elsewhere: --out\n"
    )
    assert sorted(path.name for path in root.iterdir()) == ["a", "b"]


def test_split_all_joins_every_split(pictures):
    pictures("d/train", ["a", "b"], 5)
    root = pictures("d/val", ["a", "b"], 3).parent
    data = open_dataset(root)
    assert len(data.get_split("all")) == 16
    assert data.get_split("all").labels.tolist() == [0] * 5 + [1] * 5 + [0] * 3 + [1] * 3
    assert rk.evaluate(rk.build(BASE, classes=["a", "b"]), root, split="all").n == 16
