"""Class names that mean the same, label columns, encodings of tables, and labels that are not classes."""

import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import resnetkit as rk
from resnetkit.data.class_names import find_spellings, normalize_class_name
from resnetkit.data.label_kinds import check_label_kind
from resnetkit.data.open import open_dataset
from resnetkit.data.options import DataOptions
from resnetkit.errors import DataError, UsageError

from helpers.tiny import BASE

# --------------------------------------------------------------------------------------------------------- class names

EQUAL_NAMES = {
    ("Cat", "cat"): "upper and lower case",
    ("STRASSE", "straße"): "upper and lower case",
    ("café", unicodedata.normalize("NFD", "café")): "the Unicode form of their accents",
    ("cat", " cat"): "spaces",
    ("tabby cat", "Tabby  cat"): "spaces",
    ("black_bear", "black bear"): "the characters between words",
    ("T-Shirt", "t_shirt"): "the characters between words",
    ("1", "1.0"): "the notation of a number",
    ("7", "007"): "the notation of a number",
    ("100", "1e2"): "the notation of a number",
    ("-0.5", "-.50"): "the notation of a number",
}
DIFFERENT_NAMES = [
    "cat",
    "cats",
    "cat 1",
    "cat 1.0",
    "cafe",
    "café",
    "1",
    "-1",
    "1.5",
    "1,5",
    "1_0",
    "1-0",
    "c_",
    "c-",
    "c",
    "tshirt",
    "t-shirt",
    "10",
    "nan",
    "inf",
    "1/2",
]


@pytest.mark.parametrize("names", EQUAL_NAMES)
def test_equal_class_names_are_found(names):
    from resnetkit.data.class_names import describe_spellings

    (group,) = find_spellings([*names, "dog"])
    assert sorted(group) == sorted(names)
    assert describe_spellings(group).endswith(f"differ only in {EQUAL_NAMES[names]}")


def test_different_class_names_stay_different():
    assert find_spellings(DIFFERENT_NAMES) == []
    assert len({normalize_class_name("9" * 40 + digit) for digit in "0123456789"}) == 10
    assert normalize_class_name("1" * 5000) == "1" * 5000


@given(st.text(max_size=8), st.sampled_from([str.upper, str.lower, lambda name: f" {name} "]))
def test_spelling_does_not_change_the_key(name, respell):
    key = normalize_class_name(name)
    assert normalize_class_name(unicodedata.normalize("NFD", name)) == key
    assert normalize_class_name(unicodedata.normalize("NFC", name)) == key
    assert normalize_class_name(respell(name)) == key or respell(name).casefold() != name.casefold()
    assert normalize_class_name(key) == key or "/" in key


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-1000, max_value=1000, places=3))
def test_numbers_are_equal_in_any_notation(number):
    assert normalize_class_name(f"{number:.3f}") == normalize_class_name(f"{number:.6e}")


@pytest.fixture
def cats(pictures):
    return pictures("d", ["Cat", "cat", "dog"], 6)


def test_equal_classes_are_a_finding_of_check_and_refused_by_train(cats, cli, network, tmp_path):
    code, out, _ = cli("check", cats, "--json")
    findings = {finding["kind"]: finding["examples"] for finding in json.loads(out)["findings"]}
    assert code == 3
    text = "'Cat' and 'cat' differ only in upper and lower case"
    assert findings["classes written in several ways"] == [text]
    for command in (("train", cats, "--model", network), ("evaluate", tmp_path / "model", cats)):
        if command[0] == "evaluate":
            rk.save(rk.build(BASE, classes=["cat", "dog"]), tmp_path / "model")
        code, out, err = cli(*command)
        assert (code, out) == (3, "")
        assert err == (
            f"error: 1 class is written in several ways\nwhere: {cats}\n       {text}\n"
            "fix: merge them (--merge-classes), or rename them\n"
        )


def test_merged_classes_in_train_check_and_evaluate(cats, cli, network, tmp_path):
    run = rk.train(cats, network, out=tmp_path / "run", epochs=1, batch_size=4, merge_classes=True)
    assert run.card.classes == ("Cat", "dog")
    assert "merged classes: 'Cat' = 'cat'" in run.results.notes
    assert "merge_classes = true" in (tmp_path / "run" / "run.toml").read_text()
    result = rk.check(cats, merge_classes=True)
    assert result.counts == {"all": [12, 6]}
    assert "classes written in several ways" not in [finding.kind for finding in result.findings]
    code, out, _ = cli("evaluate", tmp_path / "run", cats, "--merge-classes", "--split", "all", "--json")
    assert (code, json.loads(out)["n"]) == (0, 18)
    lower = rk.build(BASE, classes=["dog", "cat"])  # the spelling of a model may be another one
    assert [name for name, *_ in rk.evaluate(lower, cats, merge_classes=True).count_per_class()] == ["dog", "cat"]


def test_class_of_val_that_only_differs_in_case_suggests_to_merge(pictures, cli):
    pictures("d/train", ["cat", "dog"], 3)
    root = pictures("d/val", ["Cat", "dog"], 2).parent
    code, _, err = cli("check", root)
    assert code == 3
    assert err == (
        f"error: val has a class that train lacks: Cat\nwhere: {root}\n"
        "fix: 'cat' and 'Cat' differ only in upper and lower case: merge them (--merge-classes), or rename one\n"
    )
    data = open_dataset(root, options=DataOptions(merge_classes=True))
    assert data.classes == ("Cat", "dog")
    assert [np.bincount(images.labels).tolist() for images in data.splits.values()] == [[3, 3], [2, 2]]


# -------------------------------------------------------------------------------------------------------------- tables


@pytest.fixture
def table(pictures, tmp_path):
    """Write a table next to 32 images."""
    pictures("d", ["ant", "bee"], 16)

    def write(text, encoding="utf-8"):
        path = tmp_path / "d" / "labels.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        return path

    return write


def rows_of(n=4, **columns):
    """Build the text of a table: one row per image, with further columns."""
    paths = [f"{name}/{i}.png" for name in ("ant", "bee") for i in range(n)]
    values = {"path": paths, "label": [path[:3] for path in paths], **columns}
    values = {name: cells for name, cells in values.items() if cells}
    return "\n".join([",".join(values), *(",".join(cells) for cells in zip(*values.values(), strict=True))]) + "\n"


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("first_line", ["", "sep=;\r\n", '"sep=;"\n', "SEP=|\n"])
def test_encodings_and_sep_lines(table, encoding, first_line):
    delimiter = "|" if "|" in first_line else ";"
    data = open_dataset(
        table(first_line + rows_of().replace(",", delimiter), encoding) if first_line else table(rows_of(), encoding)
    )
    assert data.classes == ("ant", "bee")
    assert len(data.train_split) == 8
    assert data.notes == ()


def test_marks_before_utf_16_and_broken_utf_16(table):
    content = rows_of().encode("utf-16-le")
    assert len(open_dataset(table(b"\xff\xfe" + b"\xff\xfe" + content)).train_split) == 8
    with pytest.raises(DataError, match="the table is not valid UTF-16-LE"):
        open_dataset(table(b"\xff\xfe" + content + b"x"))


def test_columns_of_flags_are_named(table):
    flags = {"label": [], "ant": ["1"] * 4 + ["0"] * 4, "bee": ["0"] * 4 + ["1"] * 4}
    with pytest.raises(DataError) as caught:
        open_dataset(table(rows_of(**flags)))
    text = "line 1: ant, bee hold 0 and 1: write the name of the class into one column label"
    assert caught.value.where[1:3] == ("line 1: the column label is missing", text)


def test_lines_are_counted_from_the_sep_line_on(table):
    with pytest.raises(DataError) as caught:
        open_dataset(table("sep=,\n" + rows_of() + "none.png,ant\n"))
    assert caught.value.where[1:] == ("line 11: the file does not exist: none.png",)


HEADINGS = [
    ("filename", "species"),
    ("File Name", "Class"),
    ("image_path", "TARGET"),
    ("img", "class-name"),
    ("file", "breed"),
]


@pytest.mark.parametrize(("path", "label"), HEADINGS)
def test_usual_headings(table, path, label):
    data = open_dataset(table(rows_of().replace("path,label", f"{path},{label}")))
    assert (data.classes, data.notes) == (("ant", "bee"), ())


def test_index_column_of_pandas_and_further_columns_are_ignored_with_a_note(table):
    text = rows_of(author=["x"] * 8, width=["3"] * 8)
    indexed = "\n".join(f"{'' if i == 0 else i - 1},{line}" for i, line in enumerate(text.splitlines()))
    data = open_dataset(table(indexed))
    assert data.notes == ("ignored columns of the table: (unnamed), author, width",)


def test_is_valid_is_a_split_and_fold_is_not(table):
    flags = ["True", "false", "1", "0"] * 2
    data = open_dataset(table(rows_of(is_valid=flags)))
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 4, "val": 4}
    with pytest.raises(DataError, match="unknown split: 'perhaps'; allowed: true, false"):
        open_dataset(table(rows_of(is_valid=["perhaps"] * 8)))
    data = open_dataset(table(rows_of(fold=["0", "1", "2", "3"] * 2)))
    assert list(data.splits) == ["all"]
    note = "the column fold does not name train, val and test, so it is ignored and images are split at random"
    assert data.notes == (note,)
    splits = ["train", "train", "val", "test"] * 2
    assert list(open_dataset(table(rows_of(fold=splits))).splits) == ["train", "val", "test"]
    assert list(open_dataset(table(rows_of(fold=["0", "1"] * 4, split=splits))).splits) == ["train", "val", "test"]


def test_columns_are_chosen_by_options(table, cli, network, tmp_path):
    text = rows_of(16, species=["ant", "bee"] * 16, group=["train", "train", "train", "test"] * 8)
    path = table(text.replace("path,label", "photo,label"))
    code, out, err = cli("check", path)
    assert (code, out) == (3, "")
    assert "line 1: the column path is missing" in err
    assert "line 1: two columns can be the label: label, species; choose: --label-column" in err
    columns = ("--image-column", "photo", "--label-column", "species", "--split-column", "group")
    code, out, err = cli("check", path, *columns)
    assert out.splitlines()[0].split() == ["class", "train", "test"]
    assert f"next: resnetkit check {path} {' '.join(columns)} --page check.html" in err
    code, out, err = cli("train", path, "--model", network, "--epochs", 1, *columns, "--out", tmp_path / "run")
    assert code == 0
    assert err.endswith(f"next: resnetkit evaluate {tmp_path / 'run'} {path} {' '.join(columns)}\n")
    code, out, err = cli("evaluate", tmp_path / "run", path, *columns, "--json")
    assert (code, json.loads(out)["n"]) == (0, 8)
    code, out, err = cli("check", path, "--label-column", "specie", "--image-column", "photo")
    assert "line 1: the table has no column 'specie' (--label-column); did you mean species?" in err


# ----------------------------------------------------------------------------------------------------- other label kinds

REGRESSION = [
    {f"{i / 7:.3f}": 2 for i in range(15)},
    {str(i * 37): 1 for i in range(40)},
    {f"{i}.5": 100 for i in range(30)},
]
CLASS_NUMBERS = [
    {"0": 5, "1": 5},
    {str(i): 2 for i in range(1000)},
    {str(i): 9 for i in range(1, 11)},
    {"1": 3, "1.0": 3},
]
SEVERAL = [
    {"ant|other": 3, "ant": 5},
    {"a;b": 1, "b;c": 1, "d": 4},
    {"ant,bee": 2, "ant": 3, "bee": 3},
    {'["ant", "bee"]': 2, "[]": 1},
]
SINGLE = [
    {"maillot, tank suit": 13, "maillot": 12, "tench, Tinca tinca": 9},
    {"red apple": 3, "green apple": 3, "red pear": 2},
    {"cat/dog": 2, "cat": 5},
    {"black|white": 4, "gray": 3},
]


@pytest.mark.parametrize("counts", REGRESSION)
def test_numbers_to_predict_are_named(counts):
    with pytest.raises(
        DataError, match=r"the labels are \d+ different numbers .*: a quantity to predict \(regression\)"
    ):
        check_label_kind(counts, "t.csv")


@pytest.mark.parametrize("counts", CLASS_NUMBERS)
def test_numbers_of_classes_are_accepted(counts):
    assert check_label_kind(counts, "t.csv") == []


def test_doubtful_numbers_are_a_note():
    (note,) = check_label_kind({str(i * 3): 40 for i in range(30)}, "t.csv")
    assert (
        note
        == "the labels are 30 different numbers (0, 3, 6 and 27 more); each is a class of its own, without an order"
    )


@pytest.mark.parametrize("counts", SEVERAL)
def test_several_labels_in_a_cell_are_named(counts):
    with pytest.raises(DataError, match=r"cells hold several labels \(multi-label\)"):
        check_label_kind(counts, "t.csv")


@pytest.mark.parametrize("counts", SINGLE)
def test_separators_inside_of_names_are_accepted(counts):
    assert check_label_kind(counts, "t.csv") == []


@pytest.mark.parametrize("name", ["nan", "N/A", "NULL"])
def test_classes_that_may_be_missing_labels_are_noted(name):
    assert check_label_kind({"ant": 9, name: 2}, "t.csv") == [f"the class {name!r} may stand for missing labels"]


def test_labels_that_identify_images_are_noted():
    note = "30 classes for 30 images: the labels may identify images"
    assert check_label_kind({f"img-{i}": 1 for i in range(30)}, "t.csv") == [note]
    assert check_label_kind({f"img-{i}": 2 for i in range(30)}, "t.csv") == []


def test_label_kinds_in_commands(table, cli, network):
    numbers = table(rows_of(16, label=[], target=[f"{i / 31:.3f}" for i in range(32)]))
    several = "ant|bee"
    for command in (("check", numbers), ("train", numbers, "--model", network)):
        code, out, err = cli(*command)
        assert (code, out) == (3, "")
        assert err.startswith(
            "error: the labels are 32 different numbers (0.000, 0.032, 0.065 and 29 more): a quantity"
        )
    code, _, err = cli("check", table(rows_of(label=["ant", "bee", several, "ant"] * 2)))
    assert code == 3
    assert err.startswith("error: cells hold several labels (multi-label), but an image has one class: ant|bee\n")


# ------------------------------------------------------------------------------------------------------------- parquet


def write_parquet(path, **columns):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table(columns), path)
    return path


def test_parquet_of_paths_is_read_beside_the_file(pictures):
    root = pictures("d", ["ant", "bee"], 3)
    paths = [f"{name}/{i}.png" for name in ("ant", "bee") for i in range(3)]
    structs = [{"bytes": None, "path": path} for path in paths]
    labels = [path[:3] for path in paths]
    expected = np.asarray(Image.open(root / "bee" / "1.png"))
    for columns in ({"image": structs}, {"image": paths}, {"file_name": paths}):
        data = open_dataset(write_parquet(root / "p.parquet", label=labels, **columns))
        assert data.splits["all"].names == tuple(paths)
        assert np.array_equal(np.asarray(data.train_split.load_image(4)), expected)
    with pytest.raises(DataError) as caught:
        open_dataset(write_parquet(root / "p.parquet", image=[*paths[:5], "none.png"], label=labels))
    assert caught.value.what == "the rows hold paths of images, not their bytes; the table has 1 unusable row"
    assert caught.value.where == (str(root / "p.parquet"), "row 5: the file does not exist: none.png")
    assert caught.value.fix == "put the images beside the file, or store their bytes in the rows"


def test_parquet_folder_of_paths_has_splits(pictures):
    root = pictures("d", ["ant", "bee"], 3)
    for split, i in (("train", 0), ("test", 1)):
        write_parquet(root / f"{split}.parquet", image=[f"ant/{i}.png", f"bee/{i}.png"], label=["ant", "bee"])
    for name in ("ant", "bee"):
        (root / name).rename(root.parent / name)
    for split in ("train", "test"):
        folder = root / split
        folder.mkdir()
        (root / f"{split}.parquet").rename(folder / "0000.parquet")
        for name in ("ant", "bee"):
            (folder / f".{name}").symlink_to(root.parent / name)
        paths = [f".ant/{len(split) % 3}.png", f".bee/{len(split) % 3}.png"]
        write_parquet(folder / "0000.parquet", image=paths, label=["ant", "bee"])
    data = open_dataset(root)
    assert {split: images.names for split, images in data.splits.items()} == {
        "train": ("train/.ant/2.png", "train/.bee/2.png"),
        "test": ("test/.ant/1.png", "test/.bee/1.png"),
    }


def test_parquet_columns_are_chosen_by_options(pictures):
    root = pictures("d", ["ant", "bee"], 2)
    images = [path.read_bytes() for path in sorted(root.rglob("*.png"))]
    path = write_parquet(root / "p.parquet", left=images, right=images[::-1], kind=list("abab"), genus=list("ccdd"))
    with pytest.raises(DataError, match="no unique column for images and labels"):
        open_dataset(path)
    data = open_dataset(path, options=DataOptions(image_column="right", label_column="kind"))
    assert data.classes == ("a", "b")
    assert data.train_split.read_content(0) == images[3]
    with pytest.raises(DataError, match="no unique column for labels"):
        open_dataset(path, options=DataOptions(image_column="right", label_column="left"))
    with pytest.raises(UsageError, match="a split column is only read from CSV tables"):
        open_dataset(path, options=DataOptions(split_column="kind"))
