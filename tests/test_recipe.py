"""Recipes: defaults by stated rules, edits, schedules."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnetkit.errors import TextError, UsageError
from resnetkit.serialization import from_toml, merge, to_toml
from resnetkit.training.overrides import merge_options, parse_settings, read_config_file
from resnetkit.training.presets import PRESETS
from resnetkit.training.recipe import (
    SGD,
    AdamW,
    Cosine,
    MultiStep,
    PadCrop,
    RandomResizedCrop,
    Recipe,
    Triangle,
    compute_lr_factor,
    edit_recipe,
    resolve_recipe,
)


def test_defaults_follow_the_data():
    digits = resolve_recipe(1797, "digits", "resnet20", {})
    assert (digits.augment, digits.input_size) == (PadCrop(1, flip=False), (1, 16, 16))
    assert resolve_recipe(50_000, "c", "resnet20", {}).augment == PadCrop(4)
    assert resolve_recipe(50_000, "c", "resnet20", {}).input_size == (3, 32, 32)
    assert resolve_recipe(300, "c", "resnet18", {"input_size": [3, 64, 64]}).augment == PadCrop(8)
    flowers = resolve_recipe(300, "flowers", "resnet18", {})
    assert isinstance(flowers.augment, RandomResizedCrop)
    assert flowers.batch_size == 16


def test_edits_and_round_trip():
    recipe = edit_recipe(
        Recipe("d", "resnet20"),
        {"epochs": 3, "schedule": {"kind": "multi-step", "milestones": [1, 2]}, "optimizer": {"lr": 1}},
    )
    assert recipe.schedule == MultiStep((1.0, 2.0))
    assert recipe.optimizer == SGD(lr=1.0)
    assert edit_recipe(recipe, {"optimizer": {"kind": "adam-w"}}).optimizer == AdamW()
    assert from_toml(Recipe, to_toml(recipe)) == recipe


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"epoch": 3}, "epoch: came an unknown key; allowed: data, model, epochs"),
        ({"schedule": {"warmpu": 1}}, "schedule.warmpu: came an unknown key; allowed: warmup (did you mean warmup?)"),
        ({"schedule": {"kind": "cosin"}}, 'schedule.kind: came "cosin"; allowed: one of cosine, triangle, multi-step'),
        ({"epochs": 0, "batch_size": 1}, "epochs: came 0; allowed: 1 to 100,000"),
        ({"optimizer": {"lr": -1}}, "optimizer.lr: came -1.0; allowed: more than 0"),
        ({"optimizer": {"lr": 10**400}}, "optimizer.lr: came "),
        ({"optimizer": {"weight_decay": -1}}, "optimizer.weight_decay: came -1.0; allowed: 0 to 1000"),
        (
            {"optimizer": {"momentum": 0}},
            "optimizer.momentum: came 0.0; allowed: more than 0, as nesterov is on, to below 1",
        ),
        ({"optimizer": {"kind": "adam-w", "beta1": 1}}, "optimizer.beta1: came 1.0; allowed: 0 to below 1"),
        ({"schedule": {"warmup": -1}}, "schedule.warmup: came -1.0; allowed: 0 or more epochs"),
        (
            {"schedule": {"kind": "triangle", "pct_start": 2}},
            "schedule.pct_start: came 2.0; allowed: 0 to 1, a share of the run",
        ),
        (
            {"schedule": {"kind": "multi-step", "milestones": [1], "gamma": 0}},
            "schedule.gamma: came 0.0; allowed: more than 0, to 1",
        ),
        ({"augment": {"padding": -1}}, "augment.padding: came -1; allowed: 0 to 1000 pixels"),
        (
            {"augment": {"kind": "random-resized-crop", "min_scale": 0}},
            "augment.min_scale: came 0.0; allowed: more than 0, to 1",
        ),
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
        edit_recipe(Recipe("d", "resnet20"), changes, "run.toml")
    assert told in str(caught.value)
    assert str(caught.value).startswith("error: run.toml does not describe a recipe: ")


def test_settings():
    assert parse_settings(["schedule.warmup=5", "schedule.kind=cosine", "precision=bf16", "input_size=[1, 8, 8]"]) == {
        "schedule": {"warmup": 5, "kind": "cosine"},
        "precision": "bf16",
        "input_size": [1, 8, 8],
    }
    with pytest.raises(UsageError) as caught:
        parse_settings(["epochs"])
    assert str(caught.value) == (
        "error: a setting is a path, = and a value\nwhere: epochs\nfix: --set schedule.warmup=5"
    )
    with pytest.raises(UsageError, match="inside a value that another one sets"):
        parse_settings(["a=1", "a.b=2"])


def test_a_config_file(tmp_path):
    (tmp_path / "a.toml").write_text("epochs = 3\n[optimizer]\nlr = 0.5\n")
    (tmp_path / "a.json").write_text('{"epochs": 4}')
    assert merge(read_config_file(tmp_path / "a.toml"), read_config_file(tmp_path / "a.json")) == {
        "epochs": 4,
        "optimizer": {"lr": 0.5},
    }
    (tmp_path / "b.json").write_text("[1]")
    with pytest.raises(UsageError, match="this config is not a table of settings"):
        read_config_file(tmp_path / "b.json")
    with pytest.raises(UsageError, match="this config cannot be read: No such file"):
        read_config_file(tmp_path / "none.toml")


def test_schedules():
    assert compute_lr_factor(Cosine(2), 1, 10) == 0.5
    assert compute_lr_factor(Cosine(2), 6, 10) == pytest.approx(0.5)
    assert compute_lr_factor(Cosine(0), 0, 10) == 1
    assert compute_lr_factor(Triangle(0.25), 2.5, 10) == 1
    assert compute_lr_factor(Triangle(0.5), 7.5, 10) == pytest.approx(0.5)
    assert compute_lr_factor(MultiStep((4, 8), 0.1), 8, 10) == pytest.approx(0.01)
    assert compute_lr_factor(MultiStep((4,), 0.1, warmup=2), 1, 10) == 0.5


schedules = st.one_of(
    st.builds(Cosine, st.floats(0, 5)), st.builds(Triangle, st.floats(0, 1)), st.just(MultiStep((3.0,), 0.1, 1.0))
)


@given(schedules, st.floats(0, 1), st.integers(1, 200))
def test_a_rate_is_a_share(schedule, done, epochs):
    found = compute_lr_factor(schedule, done * epochs, epochs)
    assert math.isfinite(found)
    assert 0 <= found <= 1 + 1e-12


def test_published_recipes():
    paper = resolve_recipe(45_000, "c", "resnet20", merge_options({"seed": 3}, recipe="paper-cifar10", epochs=200))
    assert (paper.epochs, paper.seed, paper.batch_size) == (200, 3, 128)
    assert paper.optimizer == SGD(0.1, 0.9, 1e-4, nesterov=False)
    paper = resolve_recipe(45_000, "c", "resnet20", merge_options({}, recipe="paper-cifar10"))
    steps = -(-45_000 // 128)
    assert abs(paper.epochs * steps - 64_000) < steps
    told = [
        compute_lr_factor(paper.schedule, (step + 0.5) / steps, paper.epochs)
        for step in (0, 31_999, 32_100, 47_999, 48_100)
    ]
    assert told == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    for name, row in PRESETS.items():
        recipe = resolve_recipe(10**6, "c", "resnet50", merge_options({}, recipe=name))
        assert from_toml(Recipe, to_toml(recipe)) == recipe
        assert row.differences
    assert merge_options({"mix": "no-mix"}, recipe="imagenet-v2")["mix"] == "no-mix"
    with pytest.raises(UsageError) as caught:
        merge_options({}, recipe="imagenet-v3")
    assert caught.value.what == "there is no recipe called 'imagenet-v3'"
    assert caught.value.fix == "did you mean imagenet-v2?"
