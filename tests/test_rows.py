"""Images in Parquet and Arrow files: reading, errors, and the copies in the cache."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import ipc, parquet

import resnetkit as rk
from resnetkit.data.dataset import split_dataset
from resnetkit.data.identity import find_leaks, identify_dataset
from resnetkit.data.loader import ImageLoader
from resnetkit.data.open import open_dataset
from resnetkit.data.readers import parquet as parquet_reader
from resnetkit.errors import DataError, ImageError, MachineError
from resnetkit.images.decode import FORMATS

from helpers.processes import AUDIT

NAMES = ("rose", "daisy", "tulip")
SETTINGS = {"epochs": 2, "batch_size": 8, "precision": "fp32", "bad_files": {"kind": "skip", "max_fraction": 0.1}}
FEATURES = {"label": {"names": list(NAMES), "_type": "ClassLabel"}, "image": {"_type": "Image"}}
IMAGE_TYPE = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNETKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def png(seed, label=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (16, 20, 3), dtype=np.uint8)
    pixels[..., label % 3] += 120
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def table(count, first=0, features=FEATURES, **columns):
    """Build rows of images and labels; `columns` replaces or adds columns, and None removes one."""
    all_columns = {
        "image": pyarrow.array([{"bytes": png(first + i, i), "path": None} for i in range(count)], IMAGE_TYPE),
        "label": pyarrow.array([i % 3 for i in range(count)], pyarrow.int64()),
    } | columns
    rows = pyarrow.table({name: column for name, column in all_columns.items() if column is not None})
    return rows.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})} if features else {}
    )


def hub(root, **tables):
    """Write a folder in the layout of the Hugging Face hub: file name -> its table."""
    (root / "data").mkdir(parents=True)
    (root / "README.md").write_text("text")
    for name, rows in tables.items():
        parquet.write_table(rows, root / "data" / f"{name.replace('_', '-')}.parquet", row_group_size=7)
    return root


def saved(root, rows):
    """Write what `save_to_disk` writes, in batches of 4 rows."""
    root.mkdir(parents=True)
    with ipc.new_stream(root / "data-00000-of-00001.arrow", rows.schema) as stream:
        stream.write_table(rows, max_chunksize=4)
    (root / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    return root


def open_error(path):
    with pytest.raises(DataError) as caught:
        open_dataset(path)
    return caught.value


# --------------------------------------------------------------------------------------- files of Hugging Face datasets

WRITE = """
import sys
from pathlib import Path
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
root = Path(sys.argv[1])
def make(count, first):
    rows = {"image": [{"bytes": (root / "png" / str(first + i)).read_bytes(), "path": None} for i in range(count)],
            "label": [i % 3 for i in range(count)]}
    return Dataset.from_dict(rows, features=Features({"image": Image(), "label": ClassLabel(names=sys.argv[2:])}))
splits = DatasetDict({"train": make(24, 0), "validation": make(6, 100)})
splits.save_to_disk(root / "splits")
splits["train"].save_to_disk(root / "single", num_shards=2)
splits["train"].select([5, 3, 1]).save_to_disk(root / "selected")
(root / "hub").mkdir()
for i in range(2):
    splits["train"].shard(2, i).to_parquet(root / "hub" / f"train-{i:05}-of-00002.parquet")
splits["validation"].to_parquet(root / "hub" / "validation-00000-of-00001.parquet")
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Write folders with Hugging Face datasets itself."""
    pytest.importorskip("datasets")
    root = tmp_path_factory.mktemp("datasets")
    offline = {"HF_HOME": str(root / "home"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    (root / "png").mkdir()
    for first, count in ((0, 24), (100, 6)):
        for i in range(count):
            (root / "png" / str(first + i)).write_bytes(png(first + i, i))
    subprocess.run(
        [sys.executable, "-c", WRITE, str(root), *NAMES], env=os.environ | offline, check=True, capture_output=True
    )
    return root


@pytest.mark.parametrize("kind", ["splits", "single", "hub"])
def test_files_of_hugging_face_datasets_are_read(written, kind):
    data = open_dataset(written / kind)
    assert data.classes == NAMES
    assert {split: len(rows) for split, rows in data.splits.items()} == (
        {"all": 24} if kind == "single" else {"train": 24, "val": 6}
    )
    for split, first in (("train", 0), ("val", 100)) if kind != "single" else (("all", 0),):
        rows = data.splits[split]
        assert rows.labels.tolist() == [i % 3 for i in range(len(rows))]
        for i in range(len(rows)):
            assert rows.read_content(i) == png(first + i, i)
    assert np.asarray(data.train_split.load_image(7)).tolist() == np.asarray(Image.open(io.BytesIO(png(7, 7)))).tolist()
    assert sum(map(len, split_dataset(data, 0).splits.values())) == sum(map(len, data.splits.values()))


def test_selected_rows_are_read_in_their_order(written):
    assert [open_dataset(written / "selected").train_split.read_content(i) for i in range(3)] == [
        png(i, i) for i in (5, 3, 1)
    ]


def test_reading_uses_no_network_and_writes_only_to_the_cache(written, tmp_path):
    code = """
from resnetkit.data.open import open_dataset
from resnetkit.data.dataset import split_dataset
from resnetkit.data.identity import find_leaks, identify_dataset
for path in sys.argv[2:]:
    data = split_dataset(open_dataset(path), 0)
    find_leaks(data, identify_dataset(data)), [data.train_split.load_image(i) for i in range(len(data.train_split))]
imported = {"torch", "datasets", "pandas", "requests", "httpx", "huggingface_hub", "multiprocess", "dill"} & set(sys.modules)
assert not imported, imported
outside = [item for item in events if not all(str(word).startswith(sys.argv[1]) for word in item[1] if isinstance(word, str) and "/" in word)]
assert not outside, outside
assert not [event for event, _ in events if event.startswith(("socket.", "subprocess.", "urllib.", "os.fork", "os.exec"))]
"""
    before = {path: path.read_bytes() for path in sorted(written.rglob("*")) if path.is_file()}
    (tmp_path / "home").mkdir()
    process = subprocess.run(
        [sys.executable, "-c", AUDIT + code, str(tmp_path / "cache"), *(str(written / kind) for kind in ("splits", "single", "hub"))],
        capture_output=True, text=True, check=False, cwd=tmp_path / "home",
        env={"PATH": "", "HOME": str(tmp_path / "home"), "RESNETKIT_CACHE": str(tmp_path / "cache"),
             "PYTHONPATH": str(Path(rk.__file__).parents[1])},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert list((tmp_path / "home").iterdir()) == []
    assert {path: path.read_bytes() for path in sorted(written.rglob("*")) if path.is_file()} == before


# ----------------------------------------------------------------------------------------------------- commands


def test_train_evaluate_and_check_commands(tmp_path, network, cli):
    root = hub(tmp_path / "flowers", train_00000_of_00001=table(30), validation=table(9, 100), test=table(9, 200))
    code, out, err = cli(
        "train", root, "--model", network, "--out", tmp_path / "run", "--epochs", "1", "--batch-size", "8", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["n"] == 9
    code, out, err = cli("evaluate", tmp_path / "run", root, "--json")
    assert (code, json.loads(out)["n"], json.loads(out)["data"]) == (0, 9, str(root))
    code, out, err = cli("check", root, "--json", "--page", tmp_path / "check.html")
    assert (code, json.loads(out)["n"]) == (0, 48)
    assert "train-00000-of-00001.parquet row" in (tmp_path / "check.html").read_text()
    code, out, err = cli("evaluate", tmp_path / "run", root / "data" / "test.parquet", "--json")
    assert (code, json.loads(out)["n"]) == (0, 9)


def test_parquet_rows_have_the_same_pixels_as_files(tmp_path):
    parquet.write_table(
        table(24, features=None, label=pyarrow.array([str(i % 3) for i in range(24)])), tmp_path / "a.parquet"
    )
    for i in range(24):
        path = tmp_path / "files" / str(i % 3) / f"a.parquet row {i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i, i))
    rows, images = open_dataset(tmp_path / "a.parquet").train_split, open_dataset(tmp_path / "files").train_split
    assert open_dataset(tmp_path / "a.parquet").classes == open_dataset(tmp_path / "files").classes
    order = np.argsort(rows.labels, kind="stable")
    assert (rows.labels[order] == images.labels).all()
    for i, j in enumerate(order.tolist()):
        assert np.array_equal(np.asarray(rows.load_image(j, "L")), np.asarray(images.load_image(i, "L")))


@pytest.mark.parametrize("augment", ["pad-crop", "random-resized-crop"])
def test_unreadable_rows_are_skipped_listed_and_counted(tmp_path, network, monkeypatch, augment):
    images = [{"bytes": png(i, i), "path": None} for i in range(60)]
    bad = {3: b"", 20: b"text", 41: png(41)[:40]}
    for row, content in bad.items():
        images[row]["bytes"] = content
    parquet.write_table(table(60, image=pyarrow.array(images, IMAGE_TYPE)), tmp_path / "flowers.parquet")
    train = split_dataset(open_dataset(tmp_path / "flowers.parquet"), 0).splits["train"]
    seen = set()

    def record(load):
        def load_recorded(loader, *arguments):
            pixels, indices = load(loader, *arguments)
            if list(loader.images.names) == list(train.names):
                seen.update((loader.images.format_location(i), int(loader.labels[i])) for i in indices.tolist())
            return pixels, indices

        return load_recorded

    for name in ("load_eval_pixels", "load_random_crops"):
        monkeypatch.setattr(ImageLoader, name, record(getattr(ImageLoader, name)))
    run = rk.train(
        tmp_path / "flowers.parquet", network, out=tmp_path / "run", settings=SETTINGS | {"augment": augment}
    )
    unreadable = {f"{tmp_path / 'flowers.parquet'} row {row}" for row in bad}
    assert {location for location, _ in run.evaluation.skipped} == unreadable
    expected = {(train.format_location(i), int(train.labels[i])) for i in range(len(train))}
    expected = {(location, label) for location, label in expected if location not in unreadable}
    assert seen <= expected
    assert len(seen) >= len(expected) - 1  # a last batch of one image is skipped


def test_error_of_an_unreadable_row_names_the_reason(tmp_path):
    images = [
        None,
        {"bytes": None, "path": "/etc/passwd"},
        {"bytes": None, "path": None},
        {"bytes": b"GIF", "path": None},
    ]
    for name in ("rows.parquet", "saved"):
        rows = table(4, image=pyarrow.array(images, IMAGE_TYPE))
        if name == "saved":
            saved(tmp_path / name, rows)
        else:
            parquet.write_table(rows, tmp_path / name)
        rows, reasons = open_dataset(tmp_path / name).train_split, []
        for i in range(4):
            with pytest.raises(ImageError) as caught:
                rows.load_image(i)
            assert caught.value.where == (rows.format_location(i),)
            reasons.append(caught.value.what)
        assert reasons == [
            "the row has no image",
            "the row has no bytes, only a file name; resnetkit opens no file that another file names",
            "the row has no image",
            f"not a supported image; allowed: {', '.join(FORMATS)}",
        ]
        assert rows.format_location(1).endswith(".arrow row 1" if name == "saved" else "rows.parquet row 1")


def test_other_formats_are_rejected_in_rows(tmp_path):
    parquet.write_table(table(1, image=pyarrow.array([b"8BPS\0\1" + bytes(40)])), tmp_path / "a.parquet")
    with pytest.raises(ImageError, match="format PSD is not supported"):
        open_dataset(tmp_path / "a.parquet").train_split.load_image(0)


def test_file_that_is_deleted_or_changed_while_it_is_read(tmp_path, cache):
    root = saved(tmp_path / "saved", table(12))
    rows, file = open_dataset(root).train_split, root / "data-00000-of-00001.arrow"
    content = file.read_bytes()
    file.write_bytes(content[:-200])
    with pytest.raises(ImageError) as caught:
        rows.load_image(11)
    assert caught.value.what == "the file has changed since it was opened"
    file.unlink()
    with pytest.raises(ImageError) as caught:
        rows.load_image(2)
    assert (caught.value.what, caught.value.where) == ("the file does not exist", (f"{file} row 2",))
    parquet.write_table(table(12), tmp_path / "a.parquet")
    rows = open_dataset(tmp_path / "a.parquet").train_split
    (tmp_path / "a.parquet").unlink()
    assert rows.load_image(3).size == (20, 16)  # from the copy
    shutil.rmtree(cache)
    with pytest.raises(ImageError, match="the file does not exist"):
        rows.load_image(3)


def test_splits_are_joined_and_rows_selected(tmp_path):
    root = hub(tmp_path / "d", train_00000_of_00002=table(9), train_00001_of_00002=table(4, 9), test=table(3, 50))
    data = open_dataset(root)
    all_rows = data.get_split("all")
    assert [all_rows.read_content(i) for i in range(16)] == [png(i, i if i < 9 else i - 9) for i in range(13)] + [
        png(50 + i, i) for i in range(3)
    ]
    selected = all_rows.take(np.array([15, 9, 0]))
    assert list(selected.names) == [
        "data/test.parquet row 2", "data/train-00001-of-00002.parquet row 0", "data/train-00000-of-00002.parquet row 0"
    ]  # fmt: skip
    assert selected.labels.tolist() == [2, 0, 0]
    shutil.copytree(root, tmp_path / "moved")
    assert identify_dataset(open_dataset(tmp_path / "moved")).digest == identify_dataset(data).digest


def test_equal_rows_in_two_splits_are_leaks(tmp_path):
    root = hub(tmp_path / "d", train=table(9), test=table(3))
    data = open_dataset(root)
    assert find_leaks(data, identify_dataset(data)) == [
        (f"{root}/data/train.parquet row {i}", f"{root}/data/test.parquet row {i}") for i in range(3)
    ]


# ------------------------------------------------------------------------------------------------------------- columns

BYTES = pyarrow.array([png(i) for i in range(3)])
TEXTS = pyarrow.array(["b", "a", "b"])


@pytest.mark.parametrize(
    ("columns", "classes"),
    [
        ({"image": None, "img": BYTES}, NAMES),
        ({"image": None, "shot": BYTES.cast(pyarrow.large_binary())}, NAMES),
        ({"thumbnail": BYTES}, NAMES),
        ({"features": None, "label": None, "species": TEXTS}, ("a", "b")),
        ({"features": None, "label": TEXTS.dictionary_encode()}, ("a", "b")),
        ({"features": None, "label": pyarrow.array([10, -1, 9], pyarrow.int32())}, ("-1", "9", "10")),
        ({"features": None, "label": None, "fine_label": TEXTS, "coarse_label": TEXTS, "id": TEXTS}, ("a", "b")),
        ({"features": {"anything": FEATURES["label"]}, "label": None, "anything": pyarrow.array([0, 2, 1])}, NAMES),
        ({"features": {"x": {"_type": "Audio", "names": 3}, "label": {"_type": "os.system"}}}, ("0", "1", "2")),
    ],
)
def test_image_and_label_columns_are_detected(tmp_path, columns, classes):
    parquet.write_table(table(3, **columns), tmp_path / "a.parquet")
    saved(tmp_path / "saved", table(3, **columns))
    for name in ("a.parquet", "saved"):
        data = open_dataset(tmp_path / name)
        assert data.classes == classes
        assert [data.train_split.load_image(i).size for i in range(3)] == [(20, 16)] * 3


def test_ambiguous_and_missing_columns_are_errors(tmp_path):
    parquet.write_table(table(3, features=None, image=None, left=BYTES, right=BYTES), tmp_path / "a.parquet")
    assert str(open_error(tmp_path / "a.parquet")) == (
        f"error: no unique column for images\nwhere: {tmp_path / 'a.parquet'}\n"
        "       columns: label: int64, left: binary, right: binary\n"
        "fix: keep one column of bytes called image, and one of integers or strings called label; "
        "or choose: --image-column, --label-column"
    )
    parquet.write_table(table(3, features=None, category=TEXTS), tmp_path / "a.parquet")
    assert open_error(tmp_path / "a.parquet").what == "no unique column for labels"
    parquet.write_table(pyarrow.table({"x": [1.5]}), tmp_path / "a.parquet")
    assert open_error(tmp_path / "a.parquet").what == "no unique column for images and labels"


@pytest.mark.parametrize(
    ("columns", "what", "fix"),
    [
        ({"features": None, "label": pyarrow.array(["a", None, ""])}, "2 rows have no label", "remove them, or give each a label in the column label"),
        ({"label": pyarrow.array([-1, None, -1])}, "no row has a label", "remove them, or give each a label in the column label"),
        ({"label": pyarrow.array([0, 7, 1])}, "a label is 7, but there are 3 classes", "copy or download it again"),
        ({"label": pyarrow.array(["a", "b", "c"])}, "the labels are strings, but declared as integers", "copy or download it again"),
        ({"features": None, "label": pyarrow.array(["a", "b\n", "c"])}, "the class name is not text: b\\n", "rename it"),
        ({"features": {"label": {"_type": "ClassLabel", "names": ["a", "a"]}}}, "the class names of column label are empty, repeated or not text",
         "give each class a unique name of printable text"),
    ],
)  # fmt: skip
def test_wrong_labels_are_errors(tmp_path, columns, what, fix):
    parquet.write_table(table(3, **columns), tmp_path / "a.parquet")
    error = open_error(tmp_path / "a.parquet")
    assert (error.what, error.fix) == (what, fix)


def test_description_of_columns_that_is_not_json(tmp_path):
    parquet.write_table(table(3).replace_schema_metadata({"huggingface": "{" * 5000}), tmp_path / "a.parquet")
    assert open_error(tmp_path / "a.parquet").what == "the description of the columns cannot be read: 1 fault"
    parquet.write_table(table(3, label=TEXTS).replace_schema_metadata({"huggingface": "[1]"}), tmp_path / "b.parquet")
    assert open_dataset(tmp_path / "b.parquet").classes == ("a", "b")


def test_split_without_labels_is_reported_and_not_used(tmp_path):
    root = hub(tmp_path / "d", train=table(9), test=table(3, label=pyarrow.array([-1, -1, -1])))
    data = open_dataset(root)
    assert (list(data.splits), data.notes) == (
        ["train"],
        ("skipped 3 images of the unlabeled test split: row 0, row 1, row 2",),
    )


def test_class_that_only_val_has_is_an_error(tmp_path):
    columns = {"features": None, "label": pyarrow.array(["cat", "dog", "dog"])}
    root = hub(
        tmp_path / "d",
        train=table(3, **columns),
        val=table(3, **columns | {"label": pyarrow.array(["cat", "dgo", "cat"])}),
    )
    assert str(open_error(root)) == (
        f"error: val has a class that train lacks: dgo\nwhere: {root}\n"
        "fix: did you mean dog? Otherwise add it to train, or remove it from val"
    )


# ------------------------------------------------------------------------------------------------------------- layouts


def test_missing_shard_is_an_error(tmp_path):
    root = hub(tmp_path / "d", train_00000_of_00003=table(3), train_00002_of_00003=table(3))
    assert str(open_error(root)) == (
        f"error: a file is missing: 2 of 3 exist\nwhere: {root}/data/train-00001-of-00003\n"
        "fix: copy or download it again"
    )


def test_layouts_of_splits(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "a" / "default" / split).mkdir(parents=True)
        parquet.write_table(table(3), tmp_path / "a" / "default" / split / "0000.parquet")
    assert list(open_dataset(tmp_path / "a").splits) == ["train", "test"]
    assert list(open_dataset(tmp_path / "a" / "default").splits) == ["train", "test"]
    root = hub(tmp_path / "b", train=table(3), extra=table(3))
    assert open_dataset(root).notes == ("skipped 1 file of unknown splits: extra.parquet",)
    assert list(open_dataset(hub(tmp_path / "c", x=table(3), y=table(3))).splits) == ["all"]


def test_parquet_file_next_to_class_folders_is_ignored(pictures):
    root = pictures("flowers", ["a", "b"], 2)
    parquet.write_table(table(3), root / "vectors.parquet")
    assert open_dataset(root).classes == ("a", "b")


def test_files_with_different_columns_are_errors(tmp_path):
    root = hub(tmp_path / "d", train=table(3), test=table(3, label=None, labels=pyarrow.array([0, 1, 2])))
    error = open_error(root)
    assert error.what == "two files differ in their columns or classes"
    assert error.where == (str(root), "image, labels: ", "image, label: rose, daisy, tulip")


def test_damaged_folders_of_hugging_face_datasets(tmp_path):
    root = saved(tmp_path / "saved", table(3))
    for name in ("../saved/x.arrow", "/etc/passwd", "..", 3, None):
        (root / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
        assert open_error(root).what == "the folder does not list its data files"
    (root / "state.json").write_text(json.dumps({"_data_files": [{"filename": "gone.arrow"}]}))
    assert open_error(root).what == "cannot read the file: No such file or directory"
    (root / "state.json").write_text("{")
    assert open_error(root).what == "state.json cannot be read: 1 fault"
    (root / "dataset_dict.json").write_text('{"splits": ["../..", "extra"]}')
    assert open_error(root).what == "the data have only unknown splits: extra"


# ------------------------------------------------------------------------------------------------------- damaged files


def test_damaged_files_raise_data_error(tmp_path):
    root, rng = saved(tmp_path / "saved", table(12)), np.random.default_rng(0)
    parquet.write_table(table(12), tmp_path / "a.parquet", row_group_size=5)
    arrow_file = root / "data-00000-of-00001.arrow"
    for path, file in ((root, arrow_file), (tmp_path / "a.parquet", tmp_path / "a.parquet")):
        whole = file.read_bytes()
        cuts = [whole[:n] for n in (0, 1, 3, 8, *rng.integers(9, len(whole) - 1, 10).tolist(), len(whole) - 1)]
        for content in cuts:
            file.write_bytes(content)
            assert open_error(path).fix == "copy or download it again"
        for _ in range(40):  # a changed byte gives an error, or rows with sizes
            content = bytearray(whole)
            content[int(rng.integers(len(whole)))] ^= int(rng.integers(1, 256))
            file.write_bytes(content)
            try:
                rows = open_dataset(path).train_split
            except DataError:
                continue
            for i in range(len(rows)):
                rows.get_byte_size(i)


def test_compressed_arrow_file_is_rejected(tmp_path):
    root = saved(tmp_path / "saved", table(12))
    rows = table(200, image=pyarrow.array([bytes(5000)] * 200))
    with ipc.new_stream(
        root / "data-00000-of-00001.arrow", rows.schema, options=ipc.IpcWriteOptions(compression="lz4")
    ) as stream:
        stream.write_table(rows)
    assert open_error(root).what == "cannot read the file: it is compressed; save it again without compression"


# -------------------------------------------------------------------------------------------------------------- copies


def test_file_is_copied_once_and_again_if_it_changes(tmp_path, cache):
    path, progress = tmp_path / "a.parquet", []
    parquet.write_table(table(9), path)
    open_dataset(path, lambda done, total: progress.append((done, total)))
    assert progress == [(9, 9)]
    [copy] = (cache / "parquet").iterdir()
    first = copy.stat()
    open_dataset(path, lambda done, total: progress.append((done, total)))
    assert (len(progress), copy.stat()) == (1, first)
    copy.write_bytes(copy.read_bytes()[:-30])
    assert open_dataset(path).train_split.load_image(8).size == (20, 16)
    parquet.write_table(table(12, 50), path)
    assert open_dataset(path).train_split.read_content(11) == png(61, 11)
    assert len(list((cache / "parquet").iterdir())) == 1


def test_file_that_changes_or_breaks_while_it_is_copied(tmp_path, cache):
    root = hub(tmp_path / "d", a=table(3), b=table(3))
    with pytest.raises(DataError) as caught:  # the first progress comes after both files were opened
        open_dataset(root, lambda done, total: os.utime(root / "data" / "b.parquet", (1, 1)))
    assert caught.value.what == "cannot read the file: it changed while it was read"
    assert caught.value.where == (str(root / "data" / "b.parquet"),)
    shutil.rmtree(cache)
    path = tmp_path / "a.parquet"
    parquet.write_table(table(9), path)
    content = bytearray(path.read_bytes())
    content[4:40] = b"\xff" * 36  # the header of the first page of images
    path.write_bytes(content)
    assert open_error(path).what.startswith("cannot read the file: ")
    assert list((cache / "parquet").iterdir()) == []


def test_copy_needs_disk_space(tmp_path, monkeypatch):
    parquet.write_table(table(9), tmp_path / "a.parquet")
    usage = shutil.disk_usage(tmp_path)
    free = parquet_reader.MIN_FREE_BYTES + 100
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=free))
    with pytest.raises(MachineError) as caught:
        open_dataset(tmp_path / "a.parquet")
    assert caught.value.what == (
        "not enough disk space for the copy of the Parquet images: needs 210 MB, slightly less is free"
    )
    assert caught.value.fix == "set RESNETKIT_CACHE to a folder with more space"
    assert not list(tmp_path.glob("cache/parquet/*"))


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    parquet.write_table(table(9), tmp_path / "a.parquet")
    (tmp_path / "file").touch()
    monkeypatch.setenv("RESNETKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(MachineError, match="cannot write"):
        open_dataset(tmp_path / "a.parquet")


def test_large_row_groups_are_copied_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_reader, "BATCH_BYTES", 2000)
    parquet.write_table(table(40), tmp_path / "a.parquet")
    progress = []
    data = open_dataset(tmp_path / "a.parquet", lambda done, total: progress.append(done))
    assert len(progress) > 10
    assert progress[-1] == 40
    assert [data.train_split.read_content(i) for i in range(40)] == [png(i, i) for i in range(40)]


def test_error_without_pyarrow(tmp_path, monkeypatch):
    parquet.write_table(table(3), tmp_path / "a.parquet")
    saved(tmp_path / "saved", table(3))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name in ("a.parquet", "saved"):
        with pytest.raises(MachineError) as caught:
            open_dataset(tmp_path / name)
        assert caught.value.what == "pyarrow, which reads Arrow and Parquet, is not installed"
        assert caught.value.fix == "pip install 'pyarrow>=22'"
