"""Pictures in Parquet and Arrow files: what is read, what is refused, and what is written where."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import ipc, parquet

import resnetkit as rk
from resnetkit.data.dataset import compute_fingerprint, find_leaks, split_dataset
from resnetkit.data.open import open_dataset
from resnetkit.data.readers import parquet as copying
from resnetkit.errors import DataError, ImageError, MachineError
from resnetkit.training import batches as training
from test_structure import WATCH

NAMES = ("rose", "daisy", "tulip")
SETTINGS = {"epochs": 2, "batch_size": 8, "precision": "fp32", "bad_files": {"kind": "skip", "max_fraction": 0.1}}
FEATURES = {"label": {"names": list(NAMES), "_type": "ClassLabel"}, "image": {"_type": "Image"}}
PAIR = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNETKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def png(seed, label=0):
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 60, (16, 20, 3), dtype=np.uint8)
    pixels[..., label % 3] += 120
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "PNG")
    return written.getvalue()


def table(count, first=0, features=FEATURES, **columns):
    """Rows of pictures and labels; `columns` replaces or adds some, None takes one away."""
    held = {
        "image": pyarrow.array([{"bytes": png(first + i, i), "path": None} for i in range(count)], PAIR),
        "label": pyarrow.array([i % 3 for i in range(count)], pyarrow.int64()),
    } | columns
    made = pyarrow.table({name: column for name, column in held.items() if column is not None})
    return made.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})} if features else {}
    )


def hub(root, **parts):
    """A folder as data sets on the hub have it: name of a file -> its table."""
    (root / "data").mkdir(parents=True)
    (root / "README.md").write_text("text")
    for name, rows in parts.items():
        parquet.write_table(rows, root / "data" / f"{name.replace('_', '-')}.parquet", row_group_size=7)
    return root


def saved(root, rows):
    """What `save_to_disk` writes, in batches of 4 rows."""
    root.mkdir(parents=True)
    with ipc.new_stream(root / "data-00000-of-00001.arrow", rows.schema) as stream:
        stream.write_table(rows, max_chunksize=4)
    (root / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    return root


def told(path):
    with pytest.raises(DataError) as caught:
        open_dataset(path)
    return caught.value


# ------------------------------------------------------------------------------------------------ what datasets writes

WRITE = """
import sys
from pathlib import Path
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
root = Path(sys.argv[1])
def made(count, first):
    rows = {"image": [{"bytes": (root / "png" / str(first + i)).read_bytes(), "path": None} for i in range(count)],
            "label": [i % 3 for i in range(count)]}
    return Dataset.from_dict(rows, features=Features({"image": Image(), "label": ClassLabel(names=sys.argv[2:])}))
parts = DatasetDict({"train": made(24, 0), "validation": made(6, 100)})
parts.save_to_disk(root / "parts")
parts["train"].save_to_disk(root / "one", num_shards=2)
parts["train"].select([5, 3, 1]).save_to_disk(root / "chosen")
(root / "hub").mkdir()
for i in range(2):
    parts["train"].shard(2, i).to_parquet(root / "hub" / f"train-{i:05}-of-00002.parquet")
parts["validation"].to_parquet(root / "hub" / "validation-00000-of-00001.parquet")
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folders that Hugging Face's datasets itself wrote."""
    pytest.importorskip("datasets")
    root = tmp_path_factory.mktemp("datasets")
    quiet = {"HF_HOME": str(root / "home"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    (root / "png").mkdir()
    for first, count in ((0, 24), (100, 6)):
        for i in range(count):
            (root / "png" / str(first + i)).write_bytes(png(first + i, i))
    subprocess.run(
        [sys.executable, "-c", WRITE, str(root), *NAMES], env=os.environ | quiet, check=True, capture_output=True
    )
    return root


@pytest.mark.parametrize("kind", ["parts", "one", "hub"])
def test_what_datasets_writes_is_read(written, kind):
    data = open_dataset(written / kind)
    assert data.classes == NAMES
    assert {part: len(rows) for part, rows in data.splits.items()} == (
        {"all": 24} if kind == "one" else {"train": 24, "val": 6}
    )
    for part, first in (("train", 0), ("val", 100)) if kind != "one" else (("all", 0),):
        rows = data.splits[part]
        assert rows.labels.tolist() == [i % 3 for i in range(len(rows))]
        for i in range(len(rows)):
            assert rows.read_content(i) == png(first + i, i)
    assert np.asarray(data.train_split.load_image(7)).tolist() == np.asarray(Image.open(io.BytesIO(png(7, 7)))).tolist()
    assert sum(map(len, split_dataset(data, 0).splits.values())) == sum(map(len, data.splits.values()))


def test_rows_that_were_chosen_are_read_in_their_order(written):
    assert [open_dataset(written / "chosen").train_split.read_content(i) for i in range(3)] == [
        png(i, i) for i in (5, 3, 1)
    ]


def test_nothing_is_asked_of_a_network_or_written_elsewhere(written, tmp_path):
    code = """
from resnetkit.data.open import open_dataset
from resnetkit.data.dataset import compute_fingerprint, find_leaks, split_dataset
for place in sys.argv[2:]:
    data = split_dataset(open_dataset(place), 0)
    compute_fingerprint(data), find_leaks(data), [data.train_split.load_image(i) for i in range(len(data.train_split))]
found = {"torch", "datasets", "pandas", "requests", "httpx", "huggingface_hub", "multiprocess", "dill"} & set(sys.modules)
assert not found, found
elsewhere = [it for it in loud if not all(str(word).startswith(sys.argv[1]) for word in it[1] if isinstance(word, str) and "/" in word)]
assert not elsewhere, elsewhere
assert not [event for event, _ in loud if event.startswith(("socket.", "subprocess.", "urllib.", "os.fork", "os.exec"))]
"""
    before = {path: path.read_bytes() for path in sorted(written.rglob("*")) if path.is_file()}
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", WATCH + code, str(tmp_path / "cache"), *(str(written / kind) for kind in ("parts", "one", "hub"))],
        capture_output=True, text=True, check=False, cwd=tmp_path / "home",
        env={"PATH": "", "HOME": str(tmp_path / "home"), "RESNETKIT_CACHE": str(tmp_path / "cache"),
             "PYTHONPATH": str(Path(rk.__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "home").iterdir()) == []
    assert {path: path.read_bytes() for path in sorted(written.rglob("*")) if path.is_file()} == before


# --------------------------------------------------------------------------------------------------- in the verbs


def test_train_evaluate_and_check(tmp_path, network, cli):
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


def test_a_copy_of_parquet_is_the_same_data_as_files(tmp_path, network):
    """Streamed from rows and from files: the same pixels give the same weights."""
    parquet.write_table(
        table(24, features=None, label=pyarrow.array([str(i % 3) for i in range(24)])), tmp_path / "a.parquet"
    )
    for i in range(24):
        place = tmp_path / "files" / str(i % 3) / f"a.parquet row {i:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(png(i, i))
    rows, pictures = open_dataset(tmp_path / "a.parquet").train_split, open_dataset(tmp_path / "files").train_split
    assert open_dataset(tmp_path / "a.parquet").classes == open_dataset(tmp_path / "files").classes
    order = np.argsort(rows.labels, kind="stable")
    assert (rows.labels[order] == pictures.labels).all()
    for i, j in enumerate(order.tolist()):
        assert np.array_equal(np.asarray(rows.load_image(j, "L")), np.asarray(pictures.load_image(i, "L")))


@pytest.mark.parametrize("augment", ["pad-crop", "random-resized-crop"])
def test_d03_bad_rows_are_skipped_named_and_counted(tmp_path, network, monkeypatch, augment):
    images = [{"bytes": png(i, i), "path": None} for i in range(60)]
    bad = {3: b"", 20: b"text", 41: png(41)[:40]}
    for row, content in bad.items():
        images[row]["bytes"] = content
    parquet.write_table(table(60, image=pyarrow.array(images, PAIR)), tmp_path / "flowers.parquet")
    seen, original = Counter(), training.load_augmented

    def spy(*words, **more):
        pixels, which = original(*words, **more)
        source = words[0]
        seen.update((source.images.format_location(i), int(source.labels[i])) for i in which.tolist())
        return pixels, which

    monkeypatch.setattr(training, "load_augmented", spy)
    data = split_dataset(open_dataset(tmp_path / "flowers.parquet"), 0)
    run = rk.train(
        tmp_path / "flowers.parquet", network, out=tmp_path / "run", settings=SETTINGS | {"augment": augment}
    )
    named = {f"{tmp_path / 'flowers.parquet'} row {row}" for row in bad}
    assert {name for name, _ in run.evaluation.skipped} == named
    train = data.splits["train"]
    clean = {(train.format_location(i), int(train.labels[i])) for i in range(len(train))} - {
        (name, i % 3) for name in named for i in range(3)
    }
    assert set(seen) <= clean
    assert len(seen) >= len(clean) - 1  # a last batch of one is left out


def test_a_row_that_cannot_be_read_says_why(tmp_path):
    images = [
        None,
        {"bytes": None, "path": "/etc/passwd"},
        {"bytes": None, "path": None},
        {"bytes": b"GIF", "path": None},
    ]
    for name in ("rows.parquet", "saved"):
        rows = table(4, image=pyarrow.array(images, PAIR))
        if name == "saved":
            saved(tmp_path / name, rows)
        else:
            parquet.write_table(rows, tmp_path / name)
        pictures, reasons = open_dataset(tmp_path / name).train_split, []
        for i in range(4):
            with pytest.raises(ImageError) as caught:
                pictures.load_image(i)
            assert caught.value.where == (pictures.format_location(i),)
            reasons.append(caught.value.what)
        assert reasons == [
            "there is no picture in this row",
            "there are no bytes in this row, only the name of a file, and none is opened by a name in another file",
            "there is no picture in this row",
            "not a picture that is read here (JPEG, PNG, WEBP, BMP, GIF)",
        ]
        assert pictures.format_location(1).endswith(".arrow row 1" if name == "saved" else "rows.parquet row 1")


def test_other_formats_are_refused_in_rows_too(tmp_path):
    parquet.write_table(table(1, image=pyarrow.array([b"8BPS\0\1" + bytes(40)])), tmp_path / "a.parquet")
    with pytest.raises(ImageError, match="format PSD is not accepted"):
        open_dataset(tmp_path / "a.parquet").train_split.load_image(0)


def test_d10_a_file_that_goes_or_changes_while_it_is_read(tmp_path, cache):
    root = saved(tmp_path / "saved", table(12))
    pictures, file = open_dataset(root).train_split, root / "data-00000-of-00001.arrow"
    content = file.read_bytes()
    file.write_bytes(content[:-200])
    with pytest.raises(ImageError) as caught:
        pictures.load_image(11)
    assert caught.value.what == "its file has changed since it was opened"
    file.unlink()
    with pytest.raises(ImageError) as caught:
        pictures.load_image(2)
    assert (caught.value.what, caught.value.where) == ("there is no such file", (f"{file} row 2",))
    parquet.write_table(table(12), tmp_path / "a.parquet")
    pictures = open_dataset(tmp_path / "a.parquet").train_split
    (tmp_path / "a.parquet").unlink()
    assert pictures.load_image(3).size == (20, 16)  # the copy is what is read
    shutil.rmtree(cache)
    with pytest.raises(ImageError, match="there is no such file"):
        pictures.load_image(3)


def test_parts_taken_and_joined(tmp_path):
    root = hub(tmp_path / "d", train_00000_of_00002=table(9), train_00001_of_00002=table(4, 9), test=table(3, 50))
    data = open_dataset(root)
    everything = data.get_split("all")
    assert [everything.read_content(i) for i in range(16)] == [png(i, i if i < 9 else i - 9) for i in range(13)] + [
        png(50 + i, i) for i in range(3)
    ]
    some = everything.take(np.array([15, 9, 0]))
    assert list(some.names) == [
        "data/test.parquet row 2", "data/train-00001-of-00002.parquet row 0", "data/train-00000-of-00002.parquet row 0"
    ]  # fmt: skip
    assert some.labels.tolist() == [2, 0, 0]
    shutil.copytree(root, tmp_path / "moved")
    assert compute_fingerprint(open_dataset(tmp_path / "moved")) == compute_fingerprint(data)


def test_d13_rows_in_two_parts_are_leaks(tmp_path):
    root = hub(tmp_path / "d", train=table(9), test=table(3))
    assert find_leaks(open_dataset(root)) == [
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
def test_which_columns_are_meant(tmp_path, columns, classes):
    parquet.write_table(table(3, **columns), tmp_path / "a.parquet")
    saved(tmp_path / "saved", table(3, **columns))
    for place in ("a.parquet", "saved"):
        data = open_dataset(tmp_path / place)
        assert data.classes == classes
        assert [data.train_split.load_image(i).size for i in range(3)] == [(20, 16)] * 3


def test_columns_that_are_not_clear(tmp_path):
    parquet.write_table(table(3, features=None, image=None, left=BYTES, right=BYTES), tmp_path / "a.parquet")
    assert str(told(tmp_path / "a.parquet")) == (
        f"error: which column holds the pictures is not clear\nwhere: {tmp_path / 'a.parquet'}\n"
        "       columns: label: int64, left: binary, right: binary\n"
        "fix: keep one column of bytes called image, and one of whole numbers or texts called label"
    )
    parquet.write_table(table(3, features=None, category=TEXTS), tmp_path / "a.parquet")
    assert told(tmp_path / "a.parquet").what == "which column holds the labels is not clear"
    parquet.write_table(pyarrow.table({"x": [1.5]}), tmp_path / "a.parquet")
    assert told(tmp_path / "a.parquet").what == "which column holds the pictures and labels is not clear"


@pytest.mark.parametrize(
    ("columns", "what", "fix"),
    [
        ({"features": None, "label": pyarrow.array(["a", None, ""])}, "2 rows have no label", "take them out, or give each a label in the column label"),
        ({"label": pyarrow.array([-1, None, -1])}, "no row has a label", "take them out, or give each a label in the column label"),
        ({"label": pyarrow.array([0, 7, 1])}, "a label is 7, and there are 3 classes", "copy or download it again"),
        ({"label": pyarrow.array(["a", "b", "c"])}, "the labels are texts, and declared to be numbers", "copy or download it again"),
        ({"features": None, "label": pyarrow.array(["a", "b\n", "c"])}, "the name of a class is not text: b\\n", "rename it"),
        ({"features": {"label": {"_type": "ClassLabel", "names": ["a", "a"]}}}, "the names of the classes of label are not sound",
         "name each class once, in text that can be shown"),
    ],
)  # fmt: skip
def test_labels_that_are_not_sound(tmp_path, columns, what, fix):
    parquet.write_table(table(3, **columns), tmp_path / "a.parquet")
    error = told(tmp_path / "a.parquet")
    assert (error.what, error.fix) == (what, fix)


def test_a_description_of_columns_that_is_no_json(tmp_path):
    parquet.write_table(table(3).replace_schema_metadata({"huggingface": "{" * 5000}), tmp_path / "a.parquet")
    assert told(tmp_path / "a.parquet").what.startswith("its description of the columns cannot be read")
    parquet.write_table(table(3, label=TEXTS).replace_schema_metadata({"huggingface": "[1]"}), tmp_path / "b.parquet")
    assert open_dataset(tmp_path / "b.parquet").classes == ("a", "b")


def test_a_part_without_labels_is_said_and_not_used(tmp_path):
    root = hub(tmp_path / "d", train=table(9), test=table(3, label=pyarrow.array([-1, -1, -1])))
    data = open_dataset(root)
    assert (list(data.splits), data.notes) == (["train"], ("test has no labels, so it is not used",))


def test_d09_a_class_that_only_val_has(tmp_path):
    texts = {"features": None, "label": pyarrow.array(["cat", "dog", "dog"])}
    root = hub(
        tmp_path / "d", train=table(3, **texts), val=table(3, **texts | {"label": pyarrow.array(["cat", "dgo", "cat"])})
    )
    assert str(told(root)) == (
        f"error: val has a class that train has not: dgo\nwhere: {root}\n"
        "fix: did you mean dog? Otherwise add it to train, or remove it from val"
    )


# ------------------------------------------------------------------------------------------------------------- layouts


def test_a_file_that_is_missing(tmp_path):
    root = hub(tmp_path / "d", train_00000_of_00003=table(3), train_00002_of_00003=table(3))
    assert str(told(root)) == (
        f"error: a file of this data is missing: 2 of 3 are here\nwhere: {root}/data/train-00001-of-00003\n"
        "fix: copy or download it again"
    )


def test_where_parts_stand(tmp_path):
    for part in ("train", "test"):
        (tmp_path / "a" / "default" / part).mkdir(parents=True)
        parquet.write_table(table(3), tmp_path / "a" / "default" / part / "0000.parquet")
    assert list(open_dataset(tmp_path / "a").splits) == ["train", "test"]
    assert list(open_dataset(tmp_path / "a" / "default").splits) == ["train", "test"]
    root = hub(tmp_path / "b", train=table(3), extra=table(3))
    assert open_dataset(root).notes == ("files of other parts were passed over: extra.parquet",)
    assert list(open_dataset(hub(tmp_path / "c", x=table(3), y=table(3))).splits) == ["all"]


def test_a_table_beside_folders_of_classes_is_no_data(pictures):
    root = pictures("flowers", ["a", "b"], 2)
    parquet.write_table(table(3), root / "vectors.parquet")
    assert open_dataset(root).classes == ("a", "b")


def test_files_that_differ(tmp_path):
    root = hub(tmp_path / "d", train=table(3), test=table(3, label=None, labels=pyarrow.array([0, 1, 2])))
    error = told(root)
    assert error.what == "two files differ in their columns or classes"
    assert error.where == (str(root), "image, labels: ", "image, label: rose, daisy, tulip")


def test_folders_of_datasets_that_are_not_sound(tmp_path):
    root = saved(tmp_path / "saved", table(3))
    for name in ("../saved/x.arrow", "/etc/passwd", "..", 3, None):
        (root / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
        assert told(root).what == "this folder does not say which files hold its rows"
    (root / "state.json").write_text(json.dumps({"_data_files": [{"filename": "gone.arrow"}]}))
    assert told(root).what == "this file cannot be read: No such file or directory"
    (root / "state.json").write_text("{")
    assert told(root).what.startswith("state.json cannot be read")
    (root / "dataset_dict.json").write_text('{"splits": ["../..", "extra"]}')
    assert told(root).what == "no part of this data is one that is known: extra"


# ---------------------------------------------------------------------------------------------------- files that break


def test_broken_files_are_errors_of_data(tmp_path):
    root, draw = saved(tmp_path / "saved", table(12)), np.random.default_rng(0)
    parquet.write_table(table(12), tmp_path / "a.parquet", row_group_size=5)
    arrow_file = root / "data-00000-of-00001.arrow"
    for place, file in ((root, arrow_file), (tmp_path / "a.parquet", tmp_path / "a.parquet")):
        whole = file.read_bytes()
        cuts = [whole[:n] for n in (0, 1, 3, 8, *draw.integers(9, len(whole) - 1, 10).tolist(), len(whole) - 1)]
        for content in cuts:
            file.write_bytes(content)
            assert told(place).fix == "copy or download it again"
        for _ in range(40):  # a byte that is another: an error, or rows that can be looked at
            content = bytearray(whole)
            content[int(draw.integers(len(whole)))] ^= int(draw.integers(1, 256))
            file.write_bytes(content)
            try:
                found = open_dataset(place).train_split
            except DataError:
                continue
            for i in range(len(found)):
                found.get_byte_size(i)


def test_a_compressed_arrow_file_would_be_unpacked_into_memory(tmp_path):
    root = saved(tmp_path / "saved", table(12))
    rows = table(200, image=pyarrow.array([bytes(5000)] * 200))
    with ipc.new_stream(
        root / "data-00000-of-00001.arrow", rows.schema, options=ipc.IpcWriteOptions(compression="lz4")
    ) as stream:
        stream.write_table(rows)
    assert told(root).what == "this file cannot be read: it is compressed; save it anew without"


# -------------------------------------------------------------------------------------------------------------- copies


def test_a_file_is_copied_once_and_again_when_it_changes(tmp_path, cache, monkeypatch):
    path, heard = tmp_path / "a.parquet", []
    parquet.write_table(table(9), path)
    open_dataset(path, lambda done, total: heard.append((done, total)))
    assert heard == [(9, 9)]
    [copy] = (cache / "parquet").iterdir()
    first = copy.stat()
    open_dataset(path, lambda done, total: heard.append((done, total)))
    assert (len(heard), copy.stat()) == (1, first)
    copy.write_bytes(copy.read_bytes()[:-30])
    assert open_dataset(path).train_split.load_image(8).size == (20, 16)
    parquet.write_table(table(12, 50), path)
    assert open_dataset(path).train_split.read_content(11) == png(61, 11)
    assert len(list((cache / "parquet").iterdir())) == 1


def test_a_file_that_breaks_or_changes_while_it_is_copied(tmp_path, cache, monkeypatch):
    path, original = tmp_path / "a.parquet", copying._check_free_space
    parquet.write_table(table(9), path)

    def meanwhile(folder, size):
        os.utime(path, (1, 1))

    monkeypatch.setattr(copying, "_check_free_space", meanwhile)
    assert told(path).what == "this file cannot be read: it changed while it was read"
    monkeypatch.setattr(copying, "_check_free_space", original)
    parquet.write_table(table(9), path)
    content = bytearray(path.read_bytes())
    content[4:40] = b"\xff" * 36  # the header of the first page of pictures
    path.write_bytes(content)
    assert told(path).what.startswith("this file cannot be read: ")
    assert list((cache / "parquet").iterdir()) == []


def test_a_copy_needs_space(tmp_path, monkeypatch):
    parquet.write_table(table(9), tmp_path / "a.parquet")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(copying.shutil, "disk_usage", lambda place: usage._replace(free=copying._MIN_FREE_BYTES + 100))
    with pytest.raises(MachineError) as caught:
        open_dataset(tmp_path / "a.parquet")
    assert caught.value.what.startswith("a copy of Parquet's pictures needs ")
    assert caught.value.what.endswith(" bytes, and 100 are free")
    assert caught.value.fix == "set RESNETKIT_CACHE to a folder with more space"
    assert not list(tmp_path.glob("cache/parquet/*"))


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    parquet.write_table(table(9), tmp_path / "a.parquet")
    (tmp_path / "file").touch()
    monkeypatch.setenv("RESNETKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(MachineError, match="cannot write"):
        open_dataset(tmp_path / "a.parquet")


def test_large_groups_are_copied_by_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(copying, "_BATCH_BYTES", 2000)
    parquet.write_table(table(40), tmp_path / "a.parquet")
    heard = []
    data = open_dataset(tmp_path / "a.parquet", lambda done, total: heard.append(done))
    assert len(heard) > 10
    assert heard[-1] == 40
    assert [data.train_split.read_content(i) for i in range(40)] == [png(i, i) for i in range(40)]


def test_without_pyarrow(tmp_path, monkeypatch):
    parquet.write_table(table(3), tmp_path / "a.parquet")
    saved(tmp_path / "saved", table(3))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for place in ("a.parquet", "saved"):
        with pytest.raises(MachineError) as caught:
            open_dataset(tmp_path / place)
        assert caught.value.what == "pyarrow, which reads Arrow and Parquet, is not installed"
        assert caught.value.fix == "pip install 'resnetkit[data]'"
