"""Texts: exact round trips, and every way in which a text can be wrong."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnetkit.architecture.card import Card, make_card
from resnetkit.architecture.catalog import CATALOG, spec
from resnetkit.architecture.spec import GroupNorm, Identity, Network, Shortcuts
from resnetkit.errors import TextError, UsageError
from resnetkit.formatting import align_table, fit_table, shorten_count
from resnetkit.serialization import (
    find_type_faults,
    from_data,
    from_json,
    from_toml,
    parse_json,
    parse_toml,
    tag_of,
    to_data,
    to_json,
    to_toml,
)

from helpers.tiny import BASE, TINY, networks


@pytest.mark.parametrize("name", [*CATALOG, *TINY])
def test_round_trip_of_every_network(name):
    network = (CATALOG | TINY)[name]
    assert from_toml(Network, to_toml(network)) == network
    assert from_json(Network, to_json(network)) == network


@given(networks)
def test_round_trip_of_random_networks(network):
    assert from_toml(Network, to_toml(network)) == network
    assert from_json(Network, to_json(network)) == network


@pytest.mark.parametrize("name", TINY)
def test_round_trip_of_a_card(name):
    card = make_card(name, TINY[name], ("a", 'b"\n', "ü"))
    assert from_json(Card, to_json(card)) == card
    assert from_toml(Card, to_toml(card)) == card


def test_kinds():
    assert tag_of(GroupNorm) == "group-norm"
    assert to_data(Shortcuts())["same"] == "identity"
    assert from_data(Shortcuts, {"same": "identity"}).same == Identity()
    assert from_data(Shortcuts, {"same": {"kind": "identity"}}).same == Identity()


def faulty(change, **keys):
    """The faults of the base network's data after a change."""
    data = to_data(BASE) | keys
    change(data)
    with pytest.raises(TextError) as caught:
        from_data(Network, data, "mine.toml")
    assert str(caught.value).startswith("error: mine.toml does not describe a network: ")
    return caught.value.where


def test_a_misspelt_key_gets_the_nearest():
    where = faulty(lambda data: data.update(activatoin="relu"))
    assert where == (
        "activatoin: came an unknown key; allowed: stages, stem, head, input, shortcuts, norm, activation, "
        "order, bias, stochastic_depth (did you mean activation?)",
    )


def test_a_misspelt_key_deep_inside_has_its_path():
    where = faulty(lambda data: data["stages"][1]["branch"].update(widht=3))
    assert where == ("stage2.branch.widht: came an unknown key; allowed: width (did you mean width?)",)


def test_an_unknown_kind_and_a_wrong_type_come_together():
    def change(data):
        data["norm"] = "batchnorm"
        data["stages"][0]["blocks"] = 1.5
        data["input"] = [3, 32]

    assert set(faulty(change)) == {
        'norm: came "batchnorm"; allowed: one of batch-norm, group-norm, no-norm, folded-norm (did you mean batch-norm?)',
        "stage1.blocks: came 1.5; allowed: a whole number",
        "input: came [3, 32]; allowed: a list of 3",
    }


@pytest.mark.parametrize("key", ["_target_", "class_path", "_instantiator", "auto_map", "architecture"])
def test_nothing_in_a_text_chooses_an_import(key):
    before = set(sys.modules)
    where = faulty(lambda data: data.update({key: "os.system"}))
    assert where[0].startswith(f"{key}: came an unknown key; allowed: stages")
    faulty(lambda data: data.update(norm={"kind": "os.system"}))
    assert set(sys.modules) == before


def test_a_missing_field():
    where = faulty(lambda data: data["stages"][0].pop("branch"))
    assert where == ("stage1.branch: came nothing; allowed: one of basic, bottleneck, chain",)


@pytest.mark.parametrize(
    ("text", "came"),
    [
        ("{", "line 1, column 2: came expecting property name"),
        ('{"a": 1, "a": 2}', "came the key 'a' twice"),
        ('{"a": NaN}', "came NaN, which is no JSON number"),
        ("[" * 100_000, "came nesting too deep to read"),
    ],
)
def test_json_that_cannot_be_read(text, came):
    with pytest.raises(TextError) as caught:
        parse_json(text, "x.json")
    assert str(caught.value).startswith("error: x.json cannot be read: 1 fault\n")
    assert came in str(caught.value)


@pytest.mark.parametrize(
    ("text", "came"),
    [
        ("a = ", "came invalid value"),
        ("a = 1\na = 2\n", "line 2, column 6"),
        ("a = " + "[" * 100_000, "nesting too deep to read"),
        (".".join("a" * 20_000) + " = 1", "a line of more than 1,000 dots"),
    ],
)
def test_toml_that_cannot_be_read(text, came):
    with pytest.raises(TextError) as caught:
        from_toml(Network, text, "x.toml")
    assert came in str(caught.value)


def test_a_text_that_is_not_text(tmp_path):
    path = tmp_path / "net.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="this network is not UTF-8 text"):
        spec(path)
    with pytest.raises(UsageError, match="this network cannot be read: No such file"):
        spec(tmp_path / "none.toml")


def test_a_network_file_may_use_the_short_words(tmp_path):
    path = tmp_path / "short.toml"
    path.write_text(
        """
        norm = "batch-norm"
        [[stages]]
        blocks = 1
        channels = 64
        branch = { kind = "basic", width = 64 }
        """
    )
    assert spec(path).stages[0].channels == 64


TABLE = [["path", "what", "MACs", "field"], ["stage1", "three blocks of something", "1,027,604,480", "91"]]


def test_a_table_is_made_to_fit():
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


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*to_data(BASE), "kind", "x"]), inner),
    max_leaves=8,
)


@given(json_values, st.sampled_from(sorted(to_data(BASE))))
def test_random_data_gives_only_our_errors(value, key):
    try:
        from_data(Network, to_data(BASE) | {key: value})
    except TextError as error:
        assert error.faults


def test_the_text_layer_needs_no_torch():
    code = "import sys; import resnetkit.serialization; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("cls", "text"),
    [
        (Network, "[[stages]]\n" * 200),
        (Card, "[[metrics]]\n" * 200),
        (Network, "".join(f"key{i} = 1\n" for i in range(500))),
    ],
)
def test_more_faults_than_are_told(cls, text, monkeypatch):
    looked_up = []
    monkeypatch.setattr("resnetkit.serialization.find_closest", lambda word, known: looked_up.append(word) or ())
    with pytest.raises(TextError) as caught:
        from_toml(cls, text, "x.toml")
    assert len(looked_up) in (0, 100)  # words like it take a while for each
    assert len(caught.value.faults) == len(find_type_faults(cls, parse_toml(text))) == 100
    assert str(caught.value).startswith(f"error: x.toml does not describe a {tag_of(cls)}: 100 faults\nwhere: ")
