"""Recipes: defaults by stated rules, edits, schedules."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnetkit.errors import Fault, TextError, UsageError
from resnetkit.serialization import from_toml, merge, to_toml
from resnetkit.training import recipe as recipe_module
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
)
from resnetkit.training.recipe_limits import edit_recipe
from resnetkit.training.resolve import resolve_recipe
from resnetkit.training.schedule import compute_lr_factor


def test_defaults_follow_the_data():
    digits = resolve_recipe(1797, "digits", "resnet20", {})
    assert (digits.augment, digits.input_size) == (PadCrop(1, flip=False), (1, 16, 16))
    assert resolve_recipe(50_000, "c", "resnet20", {}).augment == PadCrop(4)
    assert resolve_recipe(50_000, "c", "resnet20", {}).input_size == (3, 32, 32)
    assert resolve_recipe(300, "c", "resnet18", {"input_size": [3, 64, 64]}).augment == PadCrop(8)
    flowers = resolve_recipe(300, "flowers", "resnet18", {})
    assert isinstance(flowers.augment, RandomResizedCrop)
    assert flowers.batch_size == 16


def test_edited_recipes_survive_toml():
    recipe = edit_recipe(
        Recipe("d", "resnet20"),
        {"epochs": 3, "schedule": {"kind": "multi-step", "milestones": [1, 2]}, "optimizer": {"lr": 1}},
    )
    assert recipe.schedule == MultiStep((1.0, 2.0))
    assert recipe.optimizer == SGD(lr=1.0)
    assert edit_recipe(recipe, {"optimizer": {"kind": "adam-w"}}).optimizer == AdamW()
    assert from_toml(Recipe, to_toml(recipe)) == recipe


@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        ({"schedule": {"warmpu": 1}}, [("schedule.warmpu", "an unknown key", "warmup (did you mean warmup?)")]),
        ({"schedule": {"kind": "cosin"}}, [("schedule.kind", '"cosin"', "one of cosine, triangle, multi-step (did you mean cosine?)")]),
        ({"epochs": 0, "batch_size": 1}, [("epochs", "0", "1 to 100,000"), ("batch_size", "1", "2 to 65,536"),
                                          ("accumulate", "1", "1 to half of batch_size")]),
        ({"batch_size": 0, "label_smoothing": 1}, [("batch_size", "0", "2 to 65,536"), ("label_smoothing", "1.0", "0 to below 1"),
                                                   ("accumulate", "1", "1 to half of batch_size")]),
        ({"optimizer": {"lr": -1}}, [("optimizer.lr", "-1.0", "more than 0")]),
        ({"optimizer": {"weight_decay": -1}}, [("optimizer.weight_decay", "-1.0", "0 to 1000")]),
        ({"optimizer": {"momentum": 0}}, [("optimizer.momentum", "0.0", "more than 0 if nesterov is on, to below 1")]),
        ({"optimizer": {"momentum": 1}}, [("optimizer.momentum", "1.0", "0 to below 1")]),
        ({"optimizer": {"kind": "adam-w", "beta1": 1}}, [("optimizer.beta1", "1.0", "0 to below 1")]),
        ({"schedule": {"warmup": -1}}, [("schedule.warmup", "-1.0", "0 or more epochs")]),
        ({"schedule": {"kind": "triangle", "pct_start": 2}}, [("schedule.pct_start", "2.0", "0 to 1, a fraction of the run")]),
        ({"schedule": {"kind": "multi-step", "milestones": [1, -2], "gamma": 0}},
         [("schedule.milestones", "[1.0, -2.0]", "epochs"), ("schedule.gamma", "0.0", "more than 0, to 1")]),
        ({"augment": {"padding": -1}}, [("augment.padding", "-1", "0 to 1000 pixels")]),
        ({"augment": {"kind": "random-resized-crop", "min_scale": 0}},
         [("augment.min_scale", "0.0", "more than 0, to 1: a fraction of the image's area")]),
        ({"bad_files": {"max_fraction": 2}}, [("bad_files.max_fraction", "2.0", "0 to 1, a fraction of all images")]),
        ({"precision": "fp16"}, [("precision", '"fp16"', "one of auto, fp32, bf16 (did you mean bf16?)")]),
    ],
)  # fmt: skip
def test_every_fault_of_a_recipe_is_reported(changes, faults):
    with pytest.raises(TextError) as caught:
        edit_recipe(Recipe("d", "resnet20"), changes, "run.toml")
    assert caught.value.faults == tuple(Fault(*fault) for fault in faults)
    assert caught.value.what.startswith("run.toml does not describe a recipe: ")


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"epoch": 3}, "epoch"),
        ({"optimizer": {"lr": 10**400}}, "optimizer.lr"),
        ({"preparation": {"resize": 8, "crop": [8, 8], "mean": [0.5], "std": [0.0]}}, "preparation.std"),
    ],
)
def test_faults_of_other_modules_have_their_path(changes, path):
    with pytest.raises(TextError) as caught:
        edit_recipe(Recipe("d", "resnet20"), changes)
    assert [fault.path for fault in caught.value.faults] == [path]
    assert caught.value.what == "this configuration does not describe a recipe: 1 fault"


def test_renamed_keys_name_fields_that_exist():
    classes = [cls for cls in vars(recipe_module).values() if hasattr(cls, "RENAMED_KEYS")]
    assert {cls.__name__ for cls in classes} >= {"Recipe", "EMA", "FineTune", "MultiStep", "PadCrop", "Skip"}
    for cls in classes:
        names = {field.name for field in dataclasses.fields(cls)}
        assert set(cls.RENAMED_KEYS.values()) <= names
        assert not set(cls.RENAMED_KEYS) & names


def test_settings_of_the_command_line():
    assert parse_settings(["schedule.warmup=5", "schedule.kind=cosine", "precision=bf16", "input_size=[1, 8, 8]"]) == {
        "schedule": {"warmup": 5, "kind": "cosine"},
        "precision": "bf16",
        "input_size": [1, 8, 8],
    }
    with pytest.raises(UsageError) as caught:
        parse_settings(["epochs"])
    assert str(caught.value) == ("error: expected KEY=VALUE\nwhere: epochs\nfix: for example: --set schedule.warmup=5")
    with pytest.raises(UsageError, match="this key lies inside a value that another setting sets"):
        parse_settings(["a=1", "a.b=2"])


def test_config_files(tmp_path):
    (tmp_path / "a.toml").write_text("epochs = 3\n[optimizer]\nlr = 0.5\n")
    (tmp_path / "a.json").write_text('{"epochs": 4}')
    assert merge(read_config_file(tmp_path / "a.toml"), read_config_file(tmp_path / "a.json")) == {
        "epochs": 4,
        "optimizer": {"lr": 0.5},
    }
    (tmp_path / "b.json").write_text("[1]")
    with pytest.raises(UsageError, match="the config file is not a table of settings"):
        read_config_file(tmp_path / "b.json")
    with pytest.raises(UsageError, match="the config file cannot be read: No such file"):
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
def test_a_learning_rate_factor_is_between_zero_and_one(schedule, progress, epochs):
    factor = compute_lr_factor(schedule, progress * epochs, epochs)
    assert math.isfinite(factor)
    assert 0 <= factor <= 1 + 1e-12


def test_published_recipes():
    paper = resolve_recipe(45_000, "c", "resnet20", merge_options({"seed": 3}, recipe="paper-cifar10", epochs=200))
    assert (paper.epochs, paper.seed, paper.batch_size) == (200, 3, 128)
    assert paper.optimizer == SGD(0.1, 0.9, 1e-4, nesterov=False)
    paper = resolve_recipe(45_000, "c", "resnet20", merge_options({}, recipe="paper-cifar10"))
    steps = -(-45_000 // 128)
    assert abs(paper.epochs * steps - 64_000) < steps
    factors = [
        compute_lr_factor(paper.schedule, (step + 0.5) / steps, paper.epochs)
        for step in (0, 31_999, 32_100, 47_999, 48_100)
    ]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    for name, preset in PRESETS.items():
        recipe = resolve_recipe(10**6, "c", "resnet50", merge_options({}, recipe=name))
        assert from_toml(Recipe, to_toml(recipe)) == recipe
        assert preset.differences
    assert merge_options({"mix": "no-mix"}, recipe="imagenet-v2")["mix"] == "no-mix"
    with pytest.raises(UsageError) as caught:
        merge_options({}, recipe="imagenet-v3")
    assert caught.value.what == "unknown recipe 'imagenet-v3'"
    assert caught.value.fix == "did you mean imagenet-v2?"
