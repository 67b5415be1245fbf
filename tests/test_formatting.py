"""Plain text for people: tables that fit, short numbers, lists and names."""

import pytest

from resnetkit.errors import ResnetkitError, list_choices, suggest_fix
from resnetkit.formatting import (
    align_table,
    display_width,
    escape_control,
    fit_table,
    format_bytes,
    join_names,
    pluralize,
    shorten_count,
    truncate,
)

TABLE = [["path", "what", "MACs", "field"], ["stage1", "three blocks of something", "1,027,604,480", "91"]]


def test_table_is_made_to_fit():
    assert fit_table(TABLE, 80, ["field"]) == TABLE
    assert fit_table(TABLE, 53, ["field"])[1] == ["stage1", "three blocks of something", "1.03G", "91"]
    assert fit_table(TABLE, 42, ["field"])[1] == ["stage1", "three blocks of something", "1.03G"]
    assert fit_table(TABLE, 30, ["field"])[1] == ["stage1", "three blocks o…", "1.03G"]
    for width in (24, 30, 42, 53, 80):
        assert max(map(len, align_table(fit_table(TABLE, width, ["field"]), 2).splitlines())) <= width


def test_counts_are_shortened_to_three_digits():
    counts = {"4,089,184,256": "4.09G", "25,557,032": "25.6M", "999,999": "1M", "10,000": "10k", "9,999": "9,999"}
    for cell, short in (counts | {"12 x": "12 x", "": "", "9" * 40: "9" * 40}).items():
        assert shorten_count(cell) == short


@pytest.mark.parametrize(
    ("text", "width", "ellipsis", "expected"),
    [
        ("short", 5, "...", "short"),
        ("much too long", 8, "...", "much ..."),
        ("much too long", 8, "…", "much to…"),
        ("画像画像", 8, "…", "画像画像"),
        ("画像画像", 7, "…", "画像画…"),
        ("画像画像", 6, "…", "画像…"),
    ],
)
def test_truncate_counts_terminal_columns(text, width, ellipsis, expected):
    assert truncate(text, width, ellipsis) == expected
    assert display_width(expected) <= width


def test_control_characters_are_escaped():
    assert escape_control("a\x1b[31m\tb\nc") == r"a\x1b[31m\tb\nc"
    assert escape_control("a\tb\nc", keep="\n") == "a\\tb\nc"
    assert escape_control("gpj.\u202eexe \u2028 \ud800 \x9b") == r"gpj.\u202eexe \u2028 \ud800 \x9b"
    assert escape_control("Größe 画像 é") == "Größe 画像 é"


def test_sizes_in_bytes():
    sizes = {123_456: "0.1 MB", 3_540_000: "3.5 MB", 12_345_678: "12 MB", 1_234_567_890: "1.2 GB", 2e12: "2,000.0 GB"}
    assert {n: format_bytes(n) for n in sizes} == sizes


def test_lists_are_limited():
    assert join_names(["a", "b", "c"], 3) == "a, b, c"
    assert join_names([str(i) for i in range(1_005)]) == "0, 1, 2, 3, 4 and 1,000 more"
    assert [pluralize(1, "image"), pluralize(2_000, "image"), pluralize(3, "class")] == [
        "1 image",
        "2,000 images",
        "3 classes",
    ]
    assert [pluralize(1, "identity"), pluralize(3, "identity"), pluralize(2, "day")] == [
        "1 identity",
        "3 identities",
        "2 days",
    ]


def test_suggestions():
    names = ["resnet18", "resnet50"]
    assert suggest_fix("resnet5O", names) == "did you mean resnet50?"
    assert suggest_fix("vgg", names) == "one of resnet18, resnet50"
    assert suggest_fix("vgg", names, "see the list") == "see the list"
    assert list_choices("resnet5O", names) == "resnet18, resnet50 (did you mean resnet50?)"
    assert list_choices(3, names) == "resnet18, resnet50"


def test_error_text_has_one_line_per_part():
    error = ResnetkitError("it is wrong", where=["a\nb", "c"], fix="repair it")
    assert str(error) == "error: it is wrong\nwhere: a\\nb\n       c\nfix: repair it"
    assert str(ResnetkitError("it is wrong")) == "error: it is wrong"
