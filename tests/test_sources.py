"""What DATA can be: folders of any shape, tables of labels, CIFAR's archives."""

import gzip
import io
import os
import pickle
import shutil
import tarfile
import time

import numpy as np
import pytest

import resnetkit as rk
from resnetkit.data.dataset import compute_fingerprint, find_leaks, split_dataset
from resnetkit.data.open import open_dataset
from resnetkit.errors import DataError, UsageError

from helpers.tiny import BASE

# ----------------------------------------------------------------------------------------------------------- folders


def test_d09_classes_are_matched_by_name_and_what_lacks_is_said(pictures, tmp_path, cli):
    pictures("d/train", ["ant", "bee", "cat"], 8)
    root = pictures("d/val", ["cat", "bee"], 3).parent
    data = open_dataset(root)
    assert data.classes == ("ant", "bee", "cat")
    assert sorted(set(data.splits["val"].labels.tolist())) == [1, 2]
    assert data.find_missing_classes() == {"val": ["ant"]}
    assert data.notes == ()
    model = rk.build(BASE, classes=["cat", "ant", "bee"])  # another order
    found = rk.evaluate(model, root, split="val")
    assert [name for name, *_ in found.count_per_class()] == ["cat", "bee"]
    assert [n for _, n, _ in found.count_per_class()] == [3, 3]
    assert found.confusion[1] == (0, 0, 0)
    code, out, err = cli("check", root)
    assert code == 3
    assert "missing classes: 1\n  val has no ant\n" in out
    rk.save(model, tmp_path / "model")
    code, out, err = cli("evaluate", tmp_path / "model", root, "--split", "val")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()[:3]] == [["class", "pictures"], ["cat", "3"], ["bee", "3"]]
    assert "note: there is no picture of: ant" in err.splitlines()


def test_d09_an_extra_class_is_named(pictures, cli):
    pictures("d/train", ["ant", "bee"], 3)
    root = pictures("d/val", ["ant", "wasp"], 3).parent
    code, out, err = cli("check", root)
    assert (code, out) == (3, "")
    assert err == (
        f"error: val has a class that train has not: wasp\nwhere: {root}\nfix: add it to train, or remove it from val\n"
    )


def test_d09_what_is_hidden_or_empty(pictures):
    root = pictures("d", ["ant", "bee"], 3)
    for hidden in (".ipynb_checkpoints", "__MACOSX", ".git"):
        shutil.copytree(root / "ant", root / hidden)
    (root / ".DS_Store").write_bytes(b"x")
    (root / "ant" / "._1.jpg").write_bytes(b"x")
    (root / "wasp").mkdir()
    data = open_dataset(root)
    assert data.classes == ("ant", "bee")
    assert len(data.train_split) == 6
    assert data.notes == ("folders without a picture are no classes: wasp",)


@pytest.mark.parametrize(
    ("name", "part"), [("validation", "val"), ("Valid", "val"), ("TESTING", "test"), ("Test", "test")]
)
def test_d09_other_names_of_the_parts(pictures, name, part):
    pictures("d/Training", ["a", "b"])
    root = pictures(f"d/{name}", ["a", "b"]).parent
    assert list(open_dataset(root).splits) == ["train", part]


def test_d09_a_folder_beside_the_parts_is_no_class(pictures):
    pictures("d/train", ["a", "b"])
    root = pictures("d/vall", ["a", "b"]).parent
    with pytest.raises(DataError) as caught:
        open_dataset(root)
    assert str(caught.value) == (
        f"error: beside the parts stands a folder that is none: vall\nwhere: {root}\n"
        "fix: is it val? Then call it so; otherwise take it out, or rename it: the parts are train, val and test"
    )
    pictures("d/val", ["a", "b"])
    pictures("d/valid", ["a", "b"])
    (root / "vall").rename(root / "extra")
    with pytest.raises(DataError, match="two folders are for the same part: val and valid"):
        open_dataset(root)


def test_d09_what_is_passed_over_is_counted(pictures):
    root = pictures("d", ["ant", "bee"], 3)
    for name in ("1.tif", "2.TIF", "notes.txt", "README"):
        (root / "ant" / name).write_bytes(b"x")
    (root / "loose.png").write_bytes(b"x")
    (root / "ant" / "__1.png").write_bytes((root / "ant" / "1.png").read_bytes())
    data = open_dataset(root)
    assert data.notes == (
        "files of other kinds were passed over: 2 .tif, 1 README, 1 .txt (read are .jpg .jpeg .png .webp .bmp .gif)",
        "pictures beside the folders of the classes were passed over: loose.png",
    )
    assert len(data.train_split) == 7


def test_a_class_that_a_drawn_part_lacks_is_said(pictures):
    pictures("d", ["ant", "bee"], 12)
    data = split_dataset(open_dataset(pictures("d", ["cat"], 1)), 0)
    assert data.find_missing_classes() == {"val": ["cat"], "test": ["cat"]}


def test_d09_pictures_in_the_root_and_nested_classes(pictures, tmp_path):
    root = pictures("d", ["ant"], 3)
    with pytest.raises(DataError) as caught:
        open_dataset(root / "ant")
    assert caught.value.what == "the pictures lie beside each other, not in classes"
    assert caught.value.fix == "put the pictures of each class into a folder: CLASS/picture.jpg"
    pictures("d/bee/of 2026", ["deep"], 2)
    assert np.bincount(open_dataset(root).train_split.labels).tolist() == [3, 2]


# ------------------------------------------------------------------------------------------------------------ tables


@pytest.fixture
def table(pictures, tmp_path):
    """A function that writes a table beside six pictures."""
    pictures("d", ["ant", "bee"], 3)

    def write(text, encoding="utf-8"):
        path = tmp_path / "d" / "labels.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


ROWS = ["ant/0.png,ant", "ant/1.png,ant", "bee/0.png,bee", "bee/1.png,bee"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_d11_byte_order_marks_line_ends_and_separators(table, end, encoding, mark):
    path = table(end.join(["path,label", *ROWS]).replace(",", mark) + end, encoding)
    data = open_dataset(path)
    assert data.classes == ("ant", "bee")
    assert data.splits["all"].labels.tolist() == [0, 0, 1, 1]
    assert data.splits["all"].names == ("ant/0.png", "ant/1.png", "bee/0.png", "bee/1.png")
    assert data.train_split.load_image(0).size == (20, 16)


def test_d11_parts_and_other_words(table):
    rows = ["ant,ant/0.png,train", "bee,bee/0.png,Training", 'ant,"ant/1.png",validation', "bee,bee/1.png,val"]
    data = open_dataset(table("\n".join(["class,file,split", *rows]) + "\n"))
    assert {part: len(files) for part, files in data.splits.items()} == {"train": 2, "val": 2}


FAULTS = {
    "missing file": (["ant/9.png,ant"], "line 6: there is no such file: ant/9.png"),
    "long name": (["x" * 300 + ".png,ant"], "line 6: there is no such file: xxx"),
    "duplicate": (["ant/0.png,bee"], "line 6: 'ant/0.png' stands in line 2 already"),
    "extra cell": (["ant/2.png,ant,7"], "line 6: 3 cells, where the header has 2"),
    "few cells": (["ant/2.png"], "line 6: 1 cells, where the header has 2"),
    "no label": (["ant/2.png,"], "line 6: there is no label"),
    "no path": ([",ant"], "line 6: there is no path"),
    "quote": (['"ant/2.png,ant'], "line 6: cannot be read as CSV: unexpected end of data"),
    "odd label": (["ant/2.png,a\x07nt"], "line 6: the label is not text (UTF-8)"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_d11_faults_have_their_line(table, cli, name):
    rows, told = FAULTS[name]
    path = table("\n".join(["path,label", *ROWS, *rows]) + "\n")
    code, out, err = cli("check", path)
    assert (code, out) == (3, "")
    lines = err.splitlines()
    assert lines[:2] == ["error: a line of this table cannot be used", f"where: {path}"]
    assert lines[2].strip().startswith(told)
    assert lines[3] == "fix: mend these lines; nothing was passed over"


def test_d11_the_first_five_are_shown(table):
    path = table("path,label\n" + "".join(f"none/{i}.png,ant\n" for i in range(9)))
    with pytest.raises(DataError) as caught:
        open_dataset(path)
    assert caught.value.what == "9 lines of this table cannot be used"
    assert len(caught.value.where) == 1 + 5 + 1
    assert caught.value.where[-1] == "... and 4 more"


def test_d11_a_class_that_is_not_learnt_and_a_missing_part(table):
    rows = ["ant/0.png,ant,train", "bee/0.png,bee,train", "bee/1.png,wasp,val", "ant/1.png,ant,eval", "ant/2.png,ant,"]
    with pytest.raises(DataError) as caught:
        open_dataset(table("\n".join(["path,label,part", *rows])))
    assert caught.value.where[1:] == (
        "line 4: val has a class that train has not: wasp",
        "line 5: there is no part called 'eval'; the parts are train, val and test",
        "line 6: there is no part, and other lines have one",
    )


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("path,label,width", "a column that means nothing here: 'width'"),
        ("path,name", "there is no column called label"),
        ("a.png,ant", "there is no column called path"),
        ("path,label,class", "two columns mean the same"),
        ("", "there is no column called path"),
    ],
)
def test_d11_headers(table, header, told):
    with pytest.raises(DataError) as caught:
        open_dataset(table(header + "\nant/0.png,ant,3\n"))
    assert f"line 1: {told}" in caught.value.where
    assert caught.value.fix == "name the columns path, label and perhaps part; remove others"


def test_d11_tables_without_pictures(table):
    with pytest.raises(DataError, match="a line of this table cannot be used"):
        open_dataset(table("path,label\n"))


def test_a_table_is_data_like_any_other(table, tmp_path):
    rows = [f"{name}/{i}.png,{name}" for name in ("ant", "bee") for i in range(3)]
    path = table("\n".join(["path,label", *rows]))
    data = split_dataset(open_dataset(path), 0)
    assert {part: len(files) for part, files in data.splits.items()} == {"train": 2, "val": 2, "test": 2}
    path.parent.rename(tmp_path / "moved")
    assert compute_fingerprint(open_dataset(tmp_path / "moved" / "labels.csv")) == compute_fingerprint(
        open_dataset(shutil.copytree(tmp_path / "moved", tmp_path / "again") / "labels.csv")
    )


# ------------------------------------------------------------------------------------------------------------- CIFAR


def record(label, shade):
    """A picture whose red is ``shade``, green ``shade`` + 1 and whose blue counts the rows."""
    red, green = np.full((32, 32), shade, np.uint8), np.full((32, 32), shade + 1, np.uint8)
    blue = np.repeat(np.arange(32, dtype=np.uint8)[:, None], 32, 1)
    return bytes(label) + red.tobytes() + green.tobytes() + blue.tobytes()


def ten():
    files = {f"data_batch_{i}.bin": b"".join(record([k % 3], 10 * i + k) for k in range(4)) for i in range(1, 6)}
    files["test_batch.bin"] = record([2], 99) + record([0], 98)
    files["batches.meta.txt"] = b"airplane\nautomobile\nbird\n\n"
    return {f"cifar-10-batches-bin/{name}": content for name, content in files.items()}


def hundred():
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
    ten_at = archive(tmp_path / "cifar-10-binary.tar.gz", ten())
    hundred_at = archive(tmp_path / "cifar-100-binary.tgz", hundred())
    if unpacked:
        for path in (ten_at, hundred_at):
            with tarfile.open(path) as opened:
                opened.extractall(tmp_path, filter="data")
        ten_at, hundred_at = tmp_path / "cifar-10-batches-bin", tmp_path / "cifar-100-binary"
    data = open_dataset(ten_at)
    assert data.classes == ("airplane", "automobile", "bird")
    assert {part: len(pictures) for part, pictures in data.splits.items()} == {"train": 20, "test": 2}
    assert data.splits["test"].labels.tolist() == [2, 0]
    assert data.splits["train"].load_image(5).getpixel((3, 17)) == (21, 22, 17)
    assert data.splits["train"].names[5] == "data_batch_2.bin:1"
    data = open_dataset(hundred_at)
    assert data.classes == ("apple", "bear", "cloud")
    assert data.splits["train"].labels.tolist() == [0, 1, 2]


def test_cifar_can_be_trained_on(tmp_path):
    path = archive(tmp_path / "c.tar.gz", ten())
    run = rk.train(path, "resnet20", out=tmp_path / "run", epochs=1, batch_size=4, precision="fp32")
    assert run.evaluation.n == 2
    assert rk.evaluate(run.path, path).correct == run.evaluation.correct


@pytest.mark.parametrize("unpacked", [False, True])
@pytest.mark.parametrize("names", [["cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/batches.meta"],
                                   ["cifar-100-python/train", "cifar-100-python/meta"]])  # fmt: skip
def test_the_python_archives_are_pickles_and_refused(tmp_path, cli, unpacked, names):
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
        "error: this is the Python version of CIFAR: its files are pickles, which can run code, so none is read\n"
        f"where: {path}\nfix: take the binary version: cifar-10-binary.tar.gz or cifar-100-binary.tar.gz\n"
    )
    assert not (tmp_path / "canary").exists()


def without(files, name):
    return {path: content for path, content in files.items() if not path.endswith(name)}


BROKEN = {
    "no names": (without(ten(), "batches.meta.txt"), "this archive holds no CIFAR in its binary version"),
    "a batch is missing": (without(ten(), "data_batch_3.bin"), "a file is missing: data_batch_3.bin"),
    "cut": (
        ten() | {"x/test_batch.bin": record([0], 1)[:-1]},
        "test_batch.bin has 3,072 bytes, which is no whole number",
    ),
    "a label": (ten() | {"x/test_batch.bin": record([7], 1)}, "a label is 7, and there are 3 classes"),
    "others": ({f"{i}.txt": b"" for i in range(150)}, "this archive is not CIFAR: it has too many files"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_archives(tmp_path, name):
    files, told = BROKEN[name]
    with pytest.raises(DataError) as caught:
        open_dataset(archive(tmp_path / "c.tar.gz", files))
    assert caught.value.what.startswith(told)


@pytest.mark.parametrize("content", [b"", b"x" * 600, b"\x1f\x8b\x08\x00" + b"x" * 50])
def test_what_is_no_archive(tmp_path, content):
    path = tmp_path / "c.tar.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="this archive cannot be read: "):
        open_dataset(path)
    whole = archive(tmp_path / "whole.tar.gz", ten()).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError):
        open_dataset(path)


def test_other_files_are_no_data(tmp_path):
    (tmp_path / "cat.jpg").write_bytes(b"x")
    with pytest.raises(UsageError) as caught:
        open_dataset(tmp_path / "cat.jpg")
    assert caught.value.what == "this file is no data that is read here"


def test_archives_that_unpack_without_end(tmp_path):
    path = tmp_path / "bomb.tar.gz"
    member = tarfile.TarInfo("x/test_batch.bin")
    member.size = 400_000_000
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(member.tobuf())
        for _ in range(400):
            file.write(bytes(1_000_000))
    started = time.perf_counter()
    with pytest.raises(DataError, match="it unpacks to far more than CIFAR"):
        open_dataset(path)
    assert time.perf_counter() - started < 20
    with tarfile.open(path, "w:gz") as opened:  # names of names of names
        for _ in range(3000):
            opened.fileobj.write(tarfile.TarInfo("x").tobuf().replace(b"0" + b"\0" * 100, b"x" + b"\0" * 100))
    with pytest.raises(DataError):
        open_dataset(path)


@pytest.mark.parametrize("names", [b"a\nb\na\n", b"a\n\nb\nc\n", b"a\n\x1b[2J\nc\n", b"\n\n", b""])
def test_names_of_classes_in_an_archive(tmp_path, names):
    files = ten() | {"cifar-10-batches-bin/batches.meta.txt": names}
    with pytest.raises(DataError, match="the names of the classes are not sound"):
        open_dataset(archive(tmp_path / "c.tar.gz", files))


def test_a_pipe_in_two_parts_is_not_waited_for(pictures):
    pictures("d/train", ["a", "b"])
    root = pictures("d/val", ["a", "b"], 3).parent
    for part in ("train", "val"):
        os.mkfifo(root / part / "a" / "pipe.png")
    assert len(find_leaks(open_dataset(root))) == 6


def test_a_run_is_not_written_into_the_data(pictures, tmp_path, cli, monkeypatch):
    root = pictures("d", ["a", "b"], 12)
    monkeypatch.chdir(root)
    code, out, err = cli("train", ".", "--model", "resnet20", "--epochs", 1)
    assert (code, out) == (2, "")
    assert err.startswith(
        "error: the run folder is inside the data\nwhere: runs/data-resnet20-1\nfix: name a folder elsewhere: --out\n"
    )
    assert sorted(path.name for path in root.iterdir()) == ["a", "b"]


def test_all_the_parts_as_one(pictures):
    pictures("d/train", ["a", "b"], 5)
    root = pictures("d/val", ["a", "b"], 3).parent
    data = open_dataset(root)
    assert len(data.get_split("all")) == 16
    assert data.get_split("all").labels.tolist() == [0] * 5 + [1] * 5 + [0] * 3 + [1] * 3
    assert rk.evaluate(rk.build(BASE, classes=["a", "b"]), root, split="all").n == 16
