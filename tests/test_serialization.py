"""TOML and JSON: exact round trips, and every mistake that a text can contain."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnetkit import errors
from resnetkit.architecture.card import Card, make_card, read_card
from resnetkit.architecture.catalog import CATALOG, spec
from resnetkit.architecture.spec import GroupNorm, Identity, Network, Shortcuts
from resnetkit.errors import TextError, UsageError, WeightsError
from resnetkit.serialization import (
    MAX_FAULTS,
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


def list_faults(edit, **keys):
    """Return the faults of the base network's data after an edit."""
    data = to_data(BASE) | keys
    edit(data)
    with pytest.raises(TextError) as caught:
        from_data(Network, data, "mine.toml")
    assert str(caught.value).startswith("error: mine.toml does not describe a network: ")
    return caught.value.where


def test_misspelled_key_suggests_the_nearest():
    assert list_faults(lambda data: data.update(activatoin="relu")) == (
        "activatoin: got an unknown key; allowed: stages, stem, head, input, shortcuts, norm, activation, "
        "order, bias, stochastic_depth (did you mean activation?)",
    )


def test_misspelled_nested_key_is_reported_with_its_path():
    assert list_faults(lambda data: data["stages"][1]["branch"].update(widht=3)) == (
        "stage2.branch.widht: got an unknown key; allowed: width (did you mean width?)",
    )


def test_key_of_a_variant_without_fields():
    assert list_faults(lambda data: data.update(norm={"kind": "no-norm", "eps": 1})) == (
        "norm.eps: got an unknown key; allowed: none, because no-norm has no fields: set kind as well",
    )


def test_unknown_kind_and_wrong_types_are_reported_together():
    def edit(data):
        data["norm"] = "batchnorm"
        data["stages"][0]["blocks"] = 1.5
        data["input"] = [3, 32]

    assert set(list_faults(edit)) == {
        'norm: got "batchnorm"; allowed: one of batch-norm, group-norm, no-norm, folded-norm (did you mean batch-norm?)',
        "stage1.blocks: got 1.5; allowed: a whole number",
        "input: got [3, 32]; allowed: a list of 3",
    }


@pytest.mark.parametrize("key", ["_target_", "class_path", "_instantiator", "auto_map", "architecture"])
def test_no_text_chooses_an_import(key):
    modules = set(sys.modules)
    where = list_faults(lambda data: data.update({key: "os.system"}))
    assert where[0].startswith(f"{key}: got an unknown key; allowed: stages")
    list_faults(lambda data: data.update(norm={"kind": "os.system"}))
    assert set(sys.modules) == modules


def test_missing_field():
    assert list_faults(lambda data: data["stages"][0].pop("branch")) == (
        "stage1.branch: got nothing; allowed: one of basic, bottleneck, chain",
    )


@dataclass(frozen=True)
class Optimizer:
    """A dataclass whose keys were renamed."""

    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {"learning": "lr", "steps": "epochs"}

    lr: float
    epochs: int = 1


@dataclass(frozen=True)
class Config:
    """A dataclass that contains one with renamed keys."""

    optimizer: Optimizer


@pytest.mark.parametrize(
    ("data", "where", "fix"),
    [
        (
            {"learning": 0.1, "steps": 2},
            ("optimizer.learning: this key is called lr now", "optimizer.steps: this key is called epochs now"),
            "rename these keys in the file",
        ),
        (
            {"steps": 2, "lr": "high"},
            ("optimizer.steps: this key is called epochs now", 'optimizer.lr: got "high"; allowed: a number'),
            "",
        ),
        (
            {"lrr": 0.1},
            (
                "optimizer.lrr: got an unknown key; allowed: lr, epochs (did you mean lr?)",
                "optimizer.lr: got nothing; allowed: a number",
            ),
            "",
        ),
    ],
)
def test_old_key_is_refused_and_the_new_one_named(data, where, fix):
    with pytest.raises(TextError) as caught:
        from_data(Config, {"optimizer": data})
    assert (caught.value.where, caught.value.fix) == (where, fix)


def test_old_keys_of_a_card(tmp_path):
    data = to_data(make_card("tiny", BASE))
    data |= {"licence": "MIT", "figures": [], "metrics": [{"what": "top1", "value": 1.0, "source": "me"}]}
    (tmp_path / "config.json").write_text(to_json(data))
    with pytest.raises(WeightsError) as caught:
        read_card(tmp_path)
    assert set(caught.value.where[1:]) == {
        "licence: this key is called license now",
        "figures: this key is called metrics now",
        "metric1.what: this key is called name now",
    }
    assert caught.value.fix == "rename these keys in the file"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "line 1, column 2: expecting property name"),
        ('{"a": 1, "a": 2}', "the whole text: the key 'a' occurs twice"),
        ('{"a": NaN}', "the whole text: NaN is not a JSON number"),
        ("[" * 100_000, "the whole text: too deeply nested"),
        ("[" + "1," * 2_200_000 + "1]", "the whole text: 4,400,003 characters are too many (at most 4,194,304)"),
    ],
)
def test_invalid_json(text, fault):
    with pytest.raises(TextError) as caught:
        parse_json(text, "x.json")
    assert str(caught.value).startswith(f"error: x.json cannot be read: 1 fault\nwhere: {fault}")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a = ", ": invalid value"),
        ("a = 1\na = 2\n", "line 2, column 6: cannot overwrite a value"),
        ("a = " + "[" * 100_000, "the whole text: too deeply nested"),
        (".".join("a" * 20_000) + " = 1", "the whole text: a line has more than 1,000 dots"),
    ],
)
def test_invalid_toml(text, fault):
    with pytest.raises(TextError) as caught:
        from_toml(Network, text, "x.toml")
    assert str(caught.value).startswith("error: x.toml cannot be read: 1 fault\nwhere: ")
    assert fault in str(caught.value)


def test_file_that_is_not_text(tmp_path):
    path = tmp_path / "net.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="this network is not UTF-8 text"):
        spec(path)
    with pytest.raises(UsageError, match="this network cannot be read: No such file"):
        spec(tmp_path / "none.toml")


def test_network_file_may_use_short_names(tmp_path):
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


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*to_data(BASE), "kind", "x"]), inner),
    max_leaves=8,
)


@given(json_values, st.sampled_from(sorted(to_data(BASE))))
def test_random_data_raises_only_our_errors(value, key):
    try:
        from_data(Network, to_data(BASE) | {key: value})
    except TextError as error:
        assert error.faults


def test_serialization_imports_no_torch():
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
def test_number_of_faults_is_limited(cls, text, monkeypatch):
    queries = []
    monkeypatch.setattr(errors, "find_closest", lambda query, _: queries.append(query) or ())
    with pytest.raises(TextError) as caught:
        from_toml(cls, text, "x.toml")
    assert len(queries) in (0, MAX_FAULTS)  # each search for similar words takes a while
    assert len(caught.value.faults) == len(find_type_faults(cls, parse_toml(text))) == MAX_FAULTS == 100
    assert str(caught.value).startswith(f"error: x.toml does not describe a {tag_of(cls)}: 100 faults\nwhere: ")
