"""The identity of datasets: contents decide, and names, places and caches do not."""

import csv
import hashlib
import io
import os
import re
import shutil
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import resnetkit as rk
from resnetkit.data import identity
from resnetkit.data.dataset import Dataset, ImageArrays, ImageFiles, split_dataset
from resnetkit.data.identity import decode_ids, diff_tables, digest_image, encode_ids, find_leaks, identify_dataset
from resnetkit.data.open import open_dataset
from resnetkit.errors import WeightsError

from helpers.runs import SETTINGS


def identify(root, **options):
    return identify_dataset(open_dataset(root), **options)


def make_files(folder, contents):
    for i, content in enumerate(contents):
        (folder / f"{i}.png").write_bytes(content)
    paths = tuple(folder / f"{i}.png" for i in range(len(contents)))
    return ImageFiles(paths, tuple(path.name for path in paths), np.zeros(len(paths), np.int64))


def make_dataset(folder, **splits):
    images = {split: make_files(folder, contents) for split, contents in splits.items()}
    return Dataset(str(folder), ("a",), images)


# ------------------------------------------------------------------------------------------------------------ contents


def test_the_table_lists_every_image_with_the_digest_of_its_bytes(pictures):
    root = pictures("d", ["ant", "bee"], 3)
    header, *rows = csv.reader(io.StringIO(identify(root).table))
    assert header == ["split", "class", "name", "digest"]
    assert len(rows) == 6
    for split, class_name, name, digest in rows:
        assert (split, class_name) == ("all", name.partition("/")[0])
        assert digest == hashlib.blake2b((root / name).read_bytes(), digest_size=16).hexdigest()


def test_a_copy_elsewhere_is_the_same_data(pictures, tmp_path):
    root = pictures("d", ["ant", "bee"], 4)
    copy = shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)
    assert identify(copy).table == identify(root).table
    assert identify(copy, workers=0).digest == identify(root, workers=3).digest


def flip_a_byte(root):
    content = bytearray((root / "ant" / "1.png").read_bytes())
    content[len(content) // 2] ^= 1
    (root / "ant" / "1.png").write_bytes(content)


CHANGES = {  # change, whether it changes the fingerprint, which ignores names
    "a byte": (flip_a_byte, True),
    "a name": (lambda root: (root / "ant" / "1.png").rename(root / "ant" / "9.png"), False),
    "a label": (lambda root: (root / "ant" / "1.png").rename(root / "bee" / "9.png"), True),
    "a class": (lambda root: (root / "bee").rename(root / "wasp"), True),
    "a new image": (lambda root: shutil.copy(root / "ant" / "1.png", root / "ant" / "9.png"), True),
    "a missing image": (lambda root: (root / "ant" / "1.png").unlink(), True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_gives_another_digest(pictures, change):
    root = pictures("d", ["ant", "bee"], 4)
    before = identify(root)
    apply, is_another = CHANGES[change]
    apply(root)
    after = identify(root)
    assert after.digest != before.digest
    assert (after.fingerprint != before.fingerprint) == is_another


def test_another_split_is_another_digest_with_the_same_fingerprint(pictures):
    data = open_dataset(pictures("d", ["ant", "bee"], 10))
    first, second = (identify_dataset(split_dataset(data, seed)) for seed in (0, 1))
    assert first.digest != second.digest
    assert first.fingerprint == second.fingerprint == identify_dataset(data).fingerprint


@pytest.mark.parametrize("position", [0, 65_535, 2_500_000, 4_999_999])
def test_large_files_are_sampled_at_both_ends_and_between(tmp_path, position):
    content = bytearray(5_000_000)
    images = make_files(tmp_path, [content])
    before = digest_image(images, 0)
    content[position : position + 100_000] = b"x" * len(content[position : position + 100_000])
    images.paths[0].write_bytes(content)
    assert digest_image(images, 0) != before
    images.paths[0].write_bytes(bytes(5_000_001))
    assert digest_image(images, 0) != before


def test_unreadable_images_have_no_content_and_are_no_leak(tmp_path):
    data = make_dataset(tmp_path, train=[b"a", b"b"], test=[b"a", b"b"])
    (tmp_path / "1.png").unlink()
    os.mkfifo(tmp_path / "1.png")  # reading it would never end
    content = identify_dataset(data)
    assert content.digests["train"][1].tolist() == [0] * 16
    assert find_leaks(data, content) == [(str(tmp_path / "0.png"), str(tmp_path / "0.png"))]
    assert decode_ids(encode_ids(content.get_ids("train"))).tolist() == content.get_ids("train")[:1].tolist()


def test_arrays_are_known_by_their_pixels():
    pixels = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)
    images = ImageArrays(pixels, ("x", "y"), np.zeros(2, np.int64))
    before = identify_dataset(Dataset("d", ("a",), {"all": images}))
    assert before.digests["all"][0].tobytes() == hashlib.blake2b(pixels[0].tobytes(), digest_size=16).digest()
    pixels[1, 2, 3] ^= 1
    after = identify_dataset(Dataset("d", ("a",), {"all": images}))
    assert [str(change) for change in diff_tables(before.table, after.table)] == ["all: y was replaced"]


def test_names_with_commas_quotes_line_ends_and_bytes_stay_one_line(tmp_path):
    images = make_files(tmp_path, [b"1", b"2"])
    images = ImageFiles(images.paths, ('a,"b"\nc\r', "\udcff"), images.labels)
    table = identify_dataset(Dataset("d", ("x",), {"all": images})).table
    assert len(table.encode().splitlines()) == 3
    assert [row[2] for row in csv.reader(io.StringIO(table))][1:] == ['a,"b"\\nc\\r', "\\udcff"]


@given(st.sets(st.integers(0, 2**48 - 1), max_size=30), st.sets(st.integers(0, 2**48 - 1), max_size=30))
def test_sets_of_images_are_written_and_read_exactly(first, second):
    text = encode_ids(*(np.array(sorted(ids), np.uint64) for ids in (first, second)))
    assert decode_ids(text).tolist() == sorted((first | second) - {0})
    assert len(text) == 8 * len((first | second) - {0})


@pytest.mark.parametrize("text", ["AAAA", "????????", "\u00e9", "AAAAAAA"])
def test_a_damaged_set_of_images_is_an_error(text):
    with pytest.raises(WeightsError) as caught:
        decode_ids(text)
    assert str(caught.value) == "error: the list of training images is damaged\nfix: copy the whole model folder again"


def test_differences_are_named():
    header = "split,class,name,digest\n"
    old = header + "train,a,1,00\ntrain,a,2,01\ntrain,a,3,02\nval,b,4,03\n"
    new = header + "train,a,1,ff\ntrain,b,2,01\nval,b,4,03\nval,b,5,04\n"
    assert [str(change) for change in diff_tables(old, new)] == [
        "train: 1 was replaced",
        "train: 2 has another class: a -> b",
        "train: 3 is missing",
        "val: 5 is new",
    ]
    assert [change.index for change in diff_tables(old, new)] == [0, 1, -1, 1]
    assert diff_tables(old, old) == []
    moved = header + "train,a,2,01\ntrain,a,1,00\ntrain,a,3,02\nval,b,4,03\n"
    assert [str(change) for change in diff_tables(old, moved)] == [
        "train: 1 has another position",
        "train: 2 has another position",
    ]


# --------------------------------------------------------------------------------------------------------------- cache


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder that keeps all digests; a list of the images that were hashed."""
    reads, original = [], identity.digest_image
    monkeypatch.setenv("RESNETKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(identity, "MIN_CACHED_BYTES", 0)
    monkeypatch.setattr(identity, "SETTLED_NS", -(10**12))
    monkeypatch.setattr(
        identity, "digest_image", lambda images, i: reads.append(images.names[i]) or original(images, i)
    )
    return tmp_path / "cache" / "identity", reads


def test_unchanged_files_are_hashed_once(pictures, cache):
    root, (folder, reads) = pictures("d", ["ant", "bee"], 4), cache
    first = identify(root)
    assert len(reads) == 8
    assert len(list(folder.iterdir())) == 1
    assert identify(root).table == first.table
    assert len(reads) == 8
    status = (root / "ant" / "1.png").stat()
    content = bytearray((root / "ant" / "1.png").read_bytes())
    content[-1] ^= 1
    (root / "ant" / "1.png").write_bytes(content)  # the same size and inode
    os.utime(root / "ant" / "1.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert [str(change) for change in diff_tables(first.table, identify(root).table)] == ["all: ant/1.png was replaced"]
    assert reads[8:] == ["ant/1.png"]


def test_little_data_and_new_files_are_not_cached(pictures, cache, monkeypatch):
    root, (folder, _) = pictures("d", ["ant", "bee"], 4), cache
    with monkeypatch.context() as patch:
        patch.setattr(identity, "SETTLED_NS", 10**12)
        identify(root)
    monkeypatch.setattr(identity, "MIN_CACHED_BYTES", 10**9)
    identify(root)
    assert not folder.exists()


DAMAGE = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[:-5],
    "a digest": lambda content: content[:10] + bytes([content[10] ^ 1]) + content[11:],
    "the checksum": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "something else": lambda content: b"x" * 1000,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_not_believed(pictures, cache, damage):
    root, (folder, reads) = pictures("d", ["ant", "bee"], 4), cache
    first = identify(root)
    (path,) = folder.iterdir()
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert identify(root).table == first.table
    assert len(reads) == 16
    identify(root)
    assert len(reads) == 16  # the cache is whole again


def test_a_cache_folder_that_cannot_be_written_is_no_error(pictures, cache):
    root, (folder, _) = pictures("d", ["ant", "bee"], 4), cache
    folder.parent.write_text("a file")
    assert len(identify(root).digests["all"]) == 8


def test_processes_share_the_cache(pictures, cache):
    root, (folder, _) = pictures("d", ["ant", "bee"], 8), cache
    tables, threads = [], [threading.Thread(target=lambda: tables.append(identify(root).table)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(tables)) == 1
    assert [path.suffix for path in folder.iterdir()] == [".bin"]


# ------------------------------------------------------------------------------------------- what a model learned from


@pytest.fixture
def trained(flowers, short_run):
    """A dataset and a run that was trained on the same images."""
    return flowers, short_run


def rename_all(root):
    for i, path in enumerate(sorted(root.rglob("*.png"))):
        path.rename(path.with_name(f"image-{7 * i % 61:03}.png"))


def test_a_renamed_copy_is_recognized(trained, tmp_path):
    data, run = trained
    copy = shutil.copytree(data, tmp_path / "others")
    rename_all(copy)
    evaluation = rk.evaluate(run, copy)
    assert (evaluation.split, evaluation.n, evaluation.correct) == ("test", run.evaluation.n, run.evaluation.correct)
    assert [rk.evaluate(run, copy, split=split).n for split in ("train", "val", "all")] == [42, 6, 60]
    assert rk.evaluate(run, copy, split="all").notes == ("the model was trained on these images",)


def test_equal_names_of_other_images_are_other_data(trained, tmp_path):
    data, run = trained
    copy = shutil.copytree(data, tmp_path / "flowers-2")
    for path in copy.rglob("*.png"):
        path.write_bytes(path.read_bytes() + b"\0")  # Pillow reads them as before
    evaluation = rk.evaluate(run, copy)
    assert (evaluation.split, evaluation.n, evaluation.notes) == ("all", 60, ())
    assert rk.evaluate(run, copy, split="all").notes == ()


def test_images_of_the_training_among_others_are_counted(trained, tmp_path):
    data, run = trained
    copy = shutil.copytree(data, tmp_path / "mixed")
    known = {
        row[2] for row in csv.reader((run.path / "images.csv").read_text().splitlines()) if row[0] in ("train", "val")
    }
    for i, path in enumerate(sorted(copy.rglob("*.png"))):
        if i % 3 == 0:
            known.discard(path.relative_to(copy).as_posix())
            path.write_bytes(path.read_bytes() + b"\0")
    (note,) = rk.evaluate(run, copy).notes
    assert note == f"the training of the model used {len(known)} of 60 images, so the accuracy is likely too high"


def test_splits_of_another_kind_are_counted_and_not_drawn_again(trained, tmp_path):
    data, run = trained
    for i, path in enumerate(sorted(data.rglob("*.png"))):
        target = tmp_path / "divided" / ("val" if i % 4 == 0 else "train") / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    evaluation = rk.evaluate(run, tmp_path / "divided", split="train")
    assert evaluation.n == 45
    (note,) = evaluation.notes
    assert re.fullmatch(r"the training of the model used \d\d of 45 images, so the accuracy is likely too high", note)
    assert rk.evaluate(run, tmp_path / "divided", split="all").notes == ("the model was trained on these images",)


def test_a_model_of_a_model_knows_the_images_of_both(trained, tmp_path, pictures, network):
    _, run = trained
    others = pictures("other", ["ant", "bee"], 12)
    for path in others.rglob("*.png"):
        path.write_bytes(path.read_bytes() + b"\0")
    second = rk.train(others, run.path, out=tmp_path / "second", settings=SETTINGS | {"epochs": 1})
    model = rk.build(second.card.spec, classes=run.card.classes)
    model.card = rk.load(second).card
    known = set(decode_ids(model.card.training.train_images).tolist())
    assert known > set(decode_ids(run.card.training.train_images).tolist())


def test_a_saved_model_keeps_what_it_learned_from(trained, tmp_path):
    data, run = trained
    rk.save(rk.load(run), tmp_path / "model")
    assert rk.evaluate(tmp_path / "model", data).n == run.evaluation.n
    assert rk.evaluate(rk.load(tmp_path / "model"), data, split="train").notes == (
        "the model was trained on these images",
    )
