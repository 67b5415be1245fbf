"""Recipes: defaults by stated rules, edits, schedules."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnetkit.errors import TextError, UsageError
from resnetkit.serialization import from_toml, over, to_toml
from resnetkit.training.overrides import parse_settings, read_changes, with_options
from resnetkit.training.presets import RECIPES
from resnetkit.training.recipe import (
    SGD,
    AdamW,
    Cosine,
    PadCrop,
    RandomCrop,
    Recipe,
    Steps,
    Triangle,
    edit,
    plan_run,
    rate,
)


def test_defaults_follow_the_data():
    digits = plan_run(1797, "digits", "resnet20", {})
    assert (digits.augment, digits.image) == (PadCrop(1, flip=False), (1, 16, 16))
    assert plan_run(50_000, "c", "resnet20", {}).augment == PadCrop(4)
    assert plan_run(50_000, "c", "resnet20", {}).image == (3, 32, 32)
    assert plan_run(300, "c", "resnet18", {"image": [3, 64, 64]}).augment == PadCrop(8)
    flowers = plan_run(300, "flowers", "resnet18", {})
    assert isinstance(flowers.augment, RandomCrop)
    assert flowers.batch_size == 16


def test_edits_and_round_trip():
    recipe = edit(
        Recipe("d", "resnet20"), {"epochs": 3, "schedule": {"kind": "steps", "at": [1, 2]}, "optimiser": {"lr": 1}}
    )
    assert recipe.schedule == Steps((1.0, 2.0))
    assert recipe.optimiser == SGD(lr=1.0)
    assert edit(recipe, {"optimiser": {"kind": "adam-w"}}).optimiser == AdamW()
    assert from_toml(Recipe, to_toml(recipe)) == recipe


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"epoch": 3}, "epoch: came an unknown key; allowed: data, model, epochs"),
        ({"schedule": {"warmpu": 1}}, "schedule.warmpu: came an unknown key; allowed: warmup (did you mean warmup?)"),
        ({"schedule": {"kind": "cosin"}}, 'schedule.kind: came "cosin"; allowed: one of cosine, triangle, steps'),
        ({"epochs": 0, "batch_size": 1}, "epochs: came 0; allowed: 1 to 100,000"),
        ({"optimiser": {"lr": -1}}, "optimiser.lr: came -1.0; allowed: more than 0"),
        ({"optimiser": {"lr": 10**400}}, "optimiser.lr: came "),
        ({"optimiser": {"weight_decay": -1}}, "optimiser.weight_decay: came -1.0; allowed: 0 to 1000"),
        (
            {"optimiser": {"momentum": 0}},
            "optimiser.momentum: came 0.0; allowed: more than 0, as nesterov is on, to below 1",
        ),
        ({"optimiser": {"kind": "adam-w", "beta1": 1}}, "optimiser.beta1: came 1.0; allowed: 0 to below 1"),
        ({"schedule": {"warmup": -1}}, "schedule.warmup: came -1.0; allowed: 0 or more epochs"),
        ({"schedule": {"kind": "triangle", "peak": 2}}, "schedule.peak: came 2.0; allowed: 0 to 1, a share of the run"),
        (
            {"schedule": {"kind": "steps", "at": [1], "factor": 0}},
            "schedule.factor: came 0.0; allowed: more than 0, to 1",
        ),
        ({"augment": {"pad": -1}}, "augment.pad: came -1; allowed: 0 to 1000 pixels"),
        ({"augment": {"kind": "random-crop", "area": 0}}, "augment.area: came 0.0; allowed: more than 0, to 1"),
        (
            {"preparation": {"resize": 8, "crop": [8, 8], "mean": [0.5], "std": [0.0]}},
            "preparation.std: came [0.0]; allowed: 1 numbers above 0",
        ),
        ({"precision": "fp16"}, 'precision: came "fp16"; allowed: one of auto, fp32, bf16'),
        ({"batch_size": 0, "label_smoothing": 1}, "label_smoothing: came 1.0; allowed: 0 to below 1"),
    ],
)
def test_a_recipe_that_is_wrong(changes, told):
    with pytest.raises(TextError) as caught:
        edit(Recipe("d", "resnet20"), changes, "run.toml")
    assert told in str(caught.value)
    assert str(caught.value).startswith("error: run.toml does not describe a recipe: ")


def test_settings():
    assert parse_settings(["schedule.warmup=5", "schedule.kind=cosine", "precision=bf16", "image=[1, 8, 8]"]) == {
        "schedule": {"warmup": 5, "kind": "cosine"},
        "precision": "bf16",
        "image": [1, 8, 8],
    }
    with pytest.raises(UsageError) as caught:
        parse_settings(["epochs"])
    assert str(caught.value) == (
        "error: a setting is a path, = and a value\nwhere: epochs\nfix: --set schedule.warmup=5"
    )
    with pytest.raises(UsageError, match="inside a value that another one sets"):
        parse_settings(["a=1", "a.b=2"])


def test_a_config_file(tmp_path):
    (tmp_path / "a.toml").write_text("epochs = 3\n[optimiser]\nlr = 0.5\n")
    (tmp_path / "a.json").write_text('{"epochs": 4}')
    assert over(read_changes(tmp_path / "a.toml"), read_changes(tmp_path / "a.json")) == {
        "epochs": 4,
        "optimiser": {"lr": 0.5},
    }
    (tmp_path / "b.json").write_text("[1]")
    with pytest.raises(UsageError, match="this config is not a table of settings"):
        read_changes(tmp_path / "b.json")
    with pytest.raises(UsageError, match="this config cannot be read: No such file"):
        read_changes(tmp_path / "none.toml")


def test_schedules():
    assert rate(Cosine(2), 1, 10) == 0.5
    assert rate(Cosine(2), 6, 10) == pytest.approx(0.5)
    assert rate(Cosine(0), 0, 10) == 1
    assert rate(Triangle(0.25), 2.5, 10) == 1
    assert rate(Triangle(0.5), 7.5, 10) == pytest.approx(0.5)
    assert rate(Steps((4, 8), 0.1), 8, 10) == pytest.approx(0.01)
    assert rate(Steps((4,), 0.1, warmup=2), 1, 10) == 0.5


schedules = st.one_of(
    st.builds(Cosine, st.floats(0, 5)), st.builds(Triangle, st.floats(0, 1)), st.just(Steps((3.0,), 0.1, 1.0))
)


@given(schedules, st.floats(0, 1), st.integers(1, 200))
def test_a_rate_is_a_share(schedule, done, epochs):
    found = rate(schedule, done * epochs, epochs)
    assert math.isfinite(found)
    assert 0 <= found <= 1 + 1e-12


def test_published_recipes():
    paper = plan_run(45_000, "c", "resnet20", with_options({"seed": 3}, recipe="paper-cifar10", epochs=200))
    assert (paper.epochs, paper.seed, paper.batch_size) == (200, 3, 128)
    assert paper.optimiser == SGD(0.1, 0.9, 1e-4, nesterov=False)
    paper = plan_run(45_000, "c", "resnet20", with_options({}, recipe="paper-cifar10"))
    steps = -(-45_000 // 128)
    assert abs(paper.epochs * steps - 64_000) < steps
    told = [rate(paper.schedule, (step + 0.5) / steps, paper.epochs) for step in (0, 31_999, 32_100, 47_999, 48_100)]
    assert told == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    for name, row in RECIPES.items():
        recipe = plan_run(10**6, "c", "resnet50", with_options({}, recipe=name))
        assert from_toml(Recipe, to_toml(recipe)) == recipe
        assert row.differs
    assert with_options({"mix": "no-mix"}, recipe="imagenet-v2")["mix"] == "no-mix"
    with pytest.raises(UsageError) as caught:
        with_options({}, recipe="imagenet-v3")
    assert caught.value.what == "there is no recipe called 'imagenet-v3'"
    assert caught.value.fix == "did you mean imagenet-v2?"
