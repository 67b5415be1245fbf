"""Folders at the wrong level, files that are skipped, and folders without permission."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import resnetkit as rk
from resnetkit.data import scan
from resnetkit.data.dataset import split_dataset
from resnetkit.data.open import open_dataset
from resnetkit.data.readers import image_folder
from resnetkit.errors import DataError

# -------------------------------------------------------------------------------------------------------------- levels


def move_down(root, name):
    """Put all entries of a folder into a new folder inside it."""
    entries = list(root.iterdir())
    (root / name).mkdir()
    for entry in entries:
        entry.rename(root / name / entry.name)
    return root


def refused(cli, network, root):
    """Return the error of check, which train repeats."""
    errors = []
    for command in (("check", root), ("train", root, "--model", network)):
        code, out, err = cli(*command)
        assert (code, out) == (3, "")
        errors.append(err)
    assert errors[0] == errors[1]
    return errors[0]


def test_folds_with_splits_inside(pictures, cli, network):
    for fold in (1, 2):
        pictures(f"d/fold{fold}/train", ["cat", "dog"], 2)
        root = pictures(f"d/fold{fold}/val", ["cat", "dog"], 2).parent.parent
    assert refused(cli, network, root) == (
        f"error: folders that should be classes have split folders inside: fold1, fold2\nwhere: {root}\n"
        f"       {root}/fold1 has train and val\n       {root}/fold1/train has cat, dog\n"
        f"fix: pass one of the datasets: {root}/fold1\n"
    )


def test_wrapper_of_splits_and_of_classes(pictures, cli, network):
    pictures("d/train", ["cat", "dog"], 2)
    root = move_down(pictures("d/val", ["cat", "dog"], 2).parent, "flowers-v1")
    assert refused(cli, network, root).endswith(f"fix: pass the dataset: {root}/flowers-v1\n")
    root = move_down(move_down(pictures("e", ["cat", "dog"], 2), "inner"), "outer")
    assert refused(cli, network, root) == (
        f"error: the only folder, outer, has no images of its own, but folders with images\nwhere: {root}\n"
        f"       {root}/outer/inner has cat, dog\nfix: if these are the classes, pass {root}/outer/inner\n"
    )


def test_wrapper_inside_of_a_split(pictures, cli, network):
    train = move_down(pictures("d/train", ["cat", "dog"], 2), "train")
    pictures("d/val", ["cat", "dog"], 2)
    assert refused(cli, network, train.parent).endswith(f"fix: if these are the classes, move them up into {train}\n")


def test_splits_inside_of_classes(pictures, cli, network):
    for name in ("cat", "dog"):
        root = pictures(f"d/{name}", ["train", "test"], 2).parent
    assert refused(cli, network, root) == (
        f"error: folders that should be classes have split folders inside: cat, dog\nwhere: {root}\n"
        f"       {root}/cat has test and train\n"
        "fix: move the images: test/cat/image.jpg instead of cat/test/image.jpg\n"
    )


def test_one_level_too_low_proposes_the_folder_above(pictures, monkeypatch):
    root = pictures("d", ["cat", "dog"], 2)
    monkeypatch.chdir(root)
    with pytest.raises(DataError) as caught:
        open_dataset("cat")
    assert caught.value.fix == (
        "put the images of each class into one folder: CLASS/image.jpg; if cat is a class, pass the folder above: cat/.."
    )
    assert open_dataset("cat/..").classes == ("cat", "dog")


def test_classes_inside_of_classes_are_a_finding_and_a_note(pictures, cli):
    pictures("d/animals", ["cat", "dog"], 2)
    root = pictures("d/plants", ["daisy"], 2).parent
    text = (
        f"{root}/animals has no images of its own, but folders: cat, dog; if these are the classes, pass {root}/animals"
    )
    data = open_dataset(root)
    assert data.classes == ("animals", "plants")
    assert data.notes == (f"all images count as the outer class: {text}",)
    code, out, _ = cli("check", root)
    assert code == 3
    assert f"folders inside of classes: 1\n  {text}\n" in out
    shutil.copytree(root / "animals", root / "plants" / "animals")
    shutil.copy(root / "plants" / "daisy" / "0.png", root / "plants" / "0.png")
    assert open_dataset(root).findings["folders inside of classes"] == (
        text,
        f"{root}/plants has folders with the names of other classes: animals",
    )


def test_nested_images_of_a_class_are_no_finding(pictures):
    pictures("d", ["cat", "dog"], 2)
    root = pictures("d/cat", ["2024", "2025"], 2).parent
    assert open_dataset(root).findings == {}


def test_unlabeled_test_images_are_named_and_not_evaluated(pictures, cli, network, tmp_path):
    root = pictures("d/train", ["cat", "dog"], 10).parent
    (root / "test").mkdir()
    for i in range(5):
        shutil.copy(root / "train" / "cat" / "0.png", root / "test" / f"{i}.png")
    data = open_dataset(root)
    note = "skipped 5 images of the unlabeled test split: 0.png, 1.png, 2.png and 2 more"
    assert (list(data.splits), data.notes) == (["train"], (note,))
    assert list(split_dataset(data, 0).splits) == ["train", "val"]
    assert cli("check", root)[0] == 3
    run = rk.train(root, network, out=tmp_path / "run", epochs=1, batch_size=4)
    assert (run.evaluation.split, run.evaluation.n) == ("val", 2)
    assert note in run.results.notes
    assert rk.evaluate(run.path, root).n == 2
    move_down(root / "test", "unknown")  # one folder that is not a class
    assert (list(open_dataset(root).splits), open_dataset(root).notes) == (["train"], (note,))
    (root / "test" / "unknown").rename(root / "test" / "cta")  # rather a typing error
    with pytest.raises(DataError, match="test has a class that train lacks: cta"):
        open_dataset(root)


# ------------------------------------------------------------------------------------------------------------- skipped


def test_other_endings_are_read(pictures, cli):
    root = pictures("d", ["ant", "bee"], 2)
    expected = np.asarray(Image.open(root / "ant" / "0.png"))
    for suffix in (".tif", ".TIFF", ".ppm", ".pnm"):
        Image.fromarray(expected).save(root / "ant" / f"new{suffix}")
    for suffix in (".jfif", ".jpe", ".avif"):
        Image.fromarray(expected).save(
            root / "bee" / f"new{suffix}", "AVIF" if suffix == ".avif" else "JPEG", quality=98
        )
    Image.fromarray(expected).resize((32, 32)).save(root / "bee" / "new.ico")
    data = open_dataset(root)
    assert (len(data.train_split), data.notes) == (12, ())
    names = data.train_split.names
    for name in ("ant/new.tif", "ant/new.TIFF", "ant/new.ppm", "ant/new.pnm"):
        assert np.array_equal(np.asarray(data.train_split.load_image(names.index(name))), expected)
    for name in ("bee/new.jfif", "bee/new.jpe", "bee/new.avif"):
        decoded = np.asarray(data.train_split.load_image(names.index(name))).astype(int)
        assert np.abs(decoded - expected).mean() < 30  # the noise of the fixture is hard to compress


def test_skipped_files_are_in_the_notes_of_every_command(pictures, cli, network, tmp_path):
    root = pictures("d", ["ant", "bee"], 8)
    for kind in range(7):
        (root / "bee" / f"1.type{kind}").write_bytes(b"x")
    (root / "ant" / "1.dng").write_bytes(b"x")
    kinds = ", ".join(["1 .dng", *(f"1 .type{kind}" for kind in range(7))])
    text = f"files of other types: {kinds} (supported: "
    code, out, _ = cli("check", root, "--json")
    document = json.loads(out)
    assert code == 3
    assert document["notes"][0].startswith(f"skipped 8 {text}")
    assert {finding["kind"]: finding["count"] for finding in document["findings"]} == {
        "skipped files of other types": 8
    }
    _, _, err = cli("train", root, "--model", network, "--epochs", 1, "--out", tmp_path / "run")
    assert text in err
    _, _, err = cli("predict", root, "--model", tmp_path / "run")
    assert text in err
    assert rk.check(root).notes[0].startswith(f"skipped 8 {text}")


def test_pipes_are_skipped_without_opening_them(pictures):
    root = pictures("d", ["ant", "bee"], 2)
    os.mkfifo(root / "ant" / "pipe.txt")
    assert open_dataset(root).notes[0].startswith("skipped 1 file of other types: 1 .txt (")


# ---------------------------------------------------------------------------------------------------------- permission


def deny(monkeypatch, *folders):
    """Refuse to list folders, as the system does for a user without permission."""
    list_entries = scan.list_entries

    def list_allowed(folder):
        if folder in folders:
            raise DataError("cannot read the folder: Permission denied", where=str(folder))
        return list_entries(folder)

    monkeypatch.setattr(scan, "list_entries", list_allowed)


def test_folder_without_permission_is_a_finding_and_the_rest_is_read(pictures, monkeypatch, cli, network, tmp_path):
    pictures("d", ["ant", "bee", "cow"], 6)
    root = pictures("d/ant", ["locked", "open"], 2).parent
    deny(monkeypatch, root / "ant" / "locked", root / "cow")
    line = "cannot read the folder: Permission denied"
    code, out, _ = cli("check", root)
    assert code == 3
    assert out.splitlines()[:3] == ["class  all", "ant      8", "bee      6"]
    assert (f"skipped folders that cannot be read: 2\n  {root}/ant/locked: {line}\n  {root}/cow: {line}\n") in out
    assert "folders without images" not in out
    note = f"skipped 2 folders that cannot be read: {root}/ant/locked: {line}, {root}/cow: {line}"
    assert rk.check(root).notes == (note,)
    run = rk.train(root, network, out=tmp_path / "run", epochs=1, batch_size=4)
    assert note in run.results.notes


def test_split_without_permission_is_a_finding(pictures, monkeypatch):
    pictures("d/train", ["ant", "bee"], 3)
    root = pictures("d/val", ["ant", "bee"], 3).parent
    list_entries = image_folder.list_entries
    deny(monkeypatch, root / "val")
    monkeypatch.setattr(image_folder, "list_entries", scan.list_entries)
    data = open_dataset(root)
    line = f"{root}/val: cannot read the folder: Permission denied"
    assert (list(data.splits), data.findings) == (["train"], {"skipped folders that cannot be read": (line,)})
    monkeypatch.setattr(image_folder, "list_entries", list_entries)
    assert list(open_dataset(root).splits) == ["train", "val"]


def test_no_readable_class_names_the_reason(pictures, monkeypatch):
    root = pictures("d", ["ant", "bee"], 2)
    deny(monkeypatch, root / "ant", root / "bee")
    with pytest.raises(DataError) as caught:
        open_dataset(root)
    assert caught.value.what == "the folder has no images"
    assert caught.value.where[1] == f"{root}/ant: cannot read the folder: Permission denied"
