"""Folders of images, their division into splits, and the image loader."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from resnetkit.architecture.card import Preparation
from resnetkit.data.bad_files import Error, SkippedFiles
from resnetkit.data.check import check
from resnetkit.data.dataset import split_dataset
from resnetkit.data.identity import identify_dataset
from resnetkit.data.loader import ImageLoader
from resnetkit.data.open import open_dataset
from resnetkit.errors import DataError, UsageError
from resnetkit.images.decode import FORMATS
from resnetkit.images.prepare import load_pixels
from resnetkit.prediction.inputs import ImageInput
from resnetkit.prediction.pipeline import run_pipeline
from resnetkit.training.augment import pad_crop_flip


def counts(data):
    return {name: len(images) for name, images in data.splits.items()}


def test_folder_without_splits_is_split_by_the_seed(pictures):
    root = pictures("flowers", ["rose", "daisy"], 20)
    opened = open_dataset(root)
    assert opened.classes == ("daisy", "rose")
    assert counts(opened) == {"all": 40}
    first, same, different = split_dataset(opened, 0), split_dataset(opened, 0), split_dataset(opened, 1)
    assert counts(first) == {"train": 28, "val": 4, "test": 8}
    assert all(first.splits[p].names == same.splits[p].names for p in first.splits)
    assert set(first.splits["test"].names) != set(different.splits["test"].names)
    all_names = [name for images in first.splits.values() for name in images.names]
    assert sorted(all_names) == sorted(opened.splits["all"].names)
    for images in first.splits.values():
        assert len(set(np.bincount(images.labels))) == 1
        assert all(
            name.startswith(opened.classes[label]) for name, label in zip(images.names, images.labels, strict=True)
        )


def test_existing_splits_are_kept(pictures):
    pictures("d/train", ["a", "b"], 10)
    root = pictures("d/val", ["a", "b"], 3).parent
    assert counts(split_dataset(open_dataset(root), 0)) == {"train": 20, "val": 6}
    pictures("e/train", ["a", "b"], 10)
    root = pictures("e/test", ["b"], 3).parent
    data = split_dataset(open_dataset(root), 0)
    assert counts(data) == {"train": 18, "val": 2, "test": 3}
    assert set(data.splits["test"].labels) == {1}


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_aliases_of_val(pictures, name):
    pictures("d/train", ["a", "b"])
    root = pictures(f"d/{name}", ["a", "b"]).parent
    assert "val" in open_dataset(root).splits


def test_hidden_files_empty_folders_and_links_are_skipped(pictures):
    root = pictures("d", ["a", "b"], 3)
    clean = identify_dataset(open_dataset(root)).digest
    for hidden in (".ipynb_checkpoints", "__MACOSX"):
        shutil.copytree(root / "a", root / hidden)
    (root / "a" / "notes.txt").write_text("x")
    (root / "a" / ".DS_Store").write_text("x")
    (root / "empty").mkdir()
    (root / "a" / "loop").symlink_to(root / "a")
    (root / "a" / "cycle").symlink_to(root / "a" / "cycle")
    data = open_dataset(root)
    assert data.classes == ("a", "b")
    assert identify_dataset(open_dataset(root)).digest == clean


def test_nested_images_belong_to_their_class(pictures):
    root = pictures("d", ["a", "b"], 2)
    shutil.copytree(root / "a", root / "b" / "deeper" / "still")
    assert np.bincount(open_dataset(root).splits["all"].labels).tolist() == [2, 4]


def test_class_that_only_val_has_is_an_error(pictures):
    pictures("d/train", ["cat", "dog"])
    root = pictures("d/val", ["cat", "dgo"]).parent
    with pytest.raises(DataError) as caught:
        open_dataset(root)
    assert str(caught.value) == (
        f"error: val has a class that train lacks: dgo\nwhere: {root}\n"
        "fix: did you mean dog? Otherwise add it to train, or remove it from val"
    )
    shutil.move(root / "val" / "dgo", root / "val" / "zebra")
    with pytest.raises(DataError) as caught:
        open_dataset(root)
    assert caught.value.fix == "add it to train, or remove it from val"


def test_class_called_train(pictures):
    root = pictures("vehicles", ["bus", "car", "train"], 3)
    assert open_dataset(root).classes == ("bus", "car", "train")


def test_class_name_that_is_not_text_is_an_error(tmp_path):
    folder = tmp_path / "d" / os.fsdecode(b"caf\xe9")
    folder.mkdir(parents=True)
    (folder / "1.png").touch()
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path / "d")
    assert caught.value.what == "the class name is not text"
    assert "\\udce9" in caught.value.where[0]


def test_folders_without_images_are_errors(tmp_path, pictures):
    with pytest.raises(UsageError, match="the folder does not exist"):
        open_dataset(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="the folder has no images"):
        open_dataset(tmp_path / "empty")
    root = pictures("d", ["a"])
    with pytest.raises(DataError, match="the images are not sorted into class folders"):
        open_dataset(root / "a")
    pictures("t/test", ["a", "b"])
    with pytest.raises(DataError, match="the data have no train split"):
        split_dataset(open_dataset(tmp_path / "t"), 0)


def test_digits():
    progress = []
    result = check("digits", on_progress=lambda done, total: progress.append((done, total)))
    assert progress[-1] == (1797, 1797)
    assert result.findings == ()
    assert result.summarize_sizes() == (("smallest", 8, 8), ("median", 8, 8), ("largest", 8, 8))
    data = result.dataset
    assert data.classes == tuple("0123456789")
    assert counts(split_dataset(data, 0)) == {"train": 1295, "val": 143, "test": 359}
    assert data.train_split.load_image(0).size == (8, 8)


def test_error_lists_every_unreadable_image(pictures):
    from resnetkit.architecture.card import make_default_preparation
    from resnetkit.architecture.catalog import spec

    root = pictures("d", ["a", "b"], 8)
    for i in range(7):
        (root / "a" / f"{i}.png").write_bytes(b"just text")
    data = open_dataset(root)
    with pytest.raises(DataError) as caught:
        ImageLoader(data.train_split, make_default_preparation(spec("resnet20")), SkippedFiles(data, Error()))
    assert caught.value.what == "7 unreadable images"
    assert len(caught.value.where) == 7
    assert caught.value.where[0] == f"{root}/a/0.png: not a supported image; allowed: {', '.join(FORMATS)}"
    assert caught.value.fix == (
        "repair or remove them, or skip them (--bad-files skip); "
        f"resnetkit check {root} --write-list bad.txt lists all of them"
    )


def test_cached_and_streamed_pixels_are_equal(pictures):
    from resnetkit.architecture.card import make_default_preparation
    from resnetkit.architecture.catalog import spec

    data = open_dataset(pictures("d", ["a", "b"], 5))
    preparation = make_default_preparation(spec("resnet20"))
    skipped = SkippedFiles(data, Error())
    cached, streamed = (
        ImageLoader(data.train_split, preparation, skipped),
        ImageLoader(data.train_split, preparation, skipped, cache=False),
    )
    assert cached.is_cached
    assert not streamed.is_cached
    batches = zip(cached.iter_batches(batch_size=3), streamed.iter_batches(batch_size=3), strict=True)
    for (cached_pixels, cached_indices), (pixels, indices) in batches:
        assert torch.equal(cached_pixels, pixels)
        assert np.array_equal(cached_indices, indices)


def test_evaluation_prediction_and_rows_use_the_same_pixels(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    for i, size in enumerate([(2048, 1536), (1536, 2064), (90, 64), (130, 127)]):
        path = tmp_path / "files" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize(size).save(path)
    preparation = Preparation(36, (32, 32), (0.5,) * 3, (0.5,) * 3)
    data = open_dataset(tmp_path / "files")
    paths = data.train_split.paths
    table = {"image": [path.read_bytes() for path in paths], "label": data.train_split.labels.tolist()}
    parquet.write_table(pyarrow.table(table), tmp_path / "rows.parquet")
    rows = open_dataset(tmp_path / "rows.parquet")
    batches = run_pipeline([ImageInput(str(path)) for path in paths], preparation, lambda pixels: pixels, 3, 2)
    predicted = [pixels for batch in batches for _, pixels in batch]
    for dataset in (data, rows):
        for cache in (True, False):
            loader = ImageLoader(dataset.train_split, preparation, SkippedFiles(dataset, Error()), cache=cache)
            assert np.array_equal(loader.load_eval_pixels(np.arange(4))[0].numpy(), np.stack(predicted))
    assert all(
        np.array_equal(load_pixels(path, preparation), pixels) for path, pixels in zip(paths, predicted, strict=True)
    )
    images = data.train_split
    sizes = [sorted(images.load_image(i, shorter_side=side).size for i in range(4)) for side in (0, 36)]
    assert sizes == [[(90, 64), (130, 127), (1536, 2064), (2048, 1536)], [(90, 64), (130, 127), (384, 516), (512, 384)]]


def test_pad_crop_flip_returns_windows_of_the_padded_images():
    pixels = torch.arange(1, 1 + 4 * 5 * 6 * 3).reshape(4, 5, 6, 3).to(torch.uint8)
    rng = np.random.default_rng(0)
    result = pad_crop_flip(pixels, 2, True, np.random.default_rng(0))
    down, right = rng.integers(5, size=(2, 4))
    flipped = rng.random(4) < 0.5
    padded = torch.nn.functional.pad(pixels, (0, 0, 2, 2, 2, 2))
    for i in range(4):
        window = padded[i, down[i] : down[i] + 5, right[i] : right[i] + 6]
        assert torch.equal(result[i], window.flip(1) if flipped[i] else window)
    assert torch.equal(pad_crop_flip(pixels, 0, False, rng), pixels)
