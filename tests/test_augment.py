"""Augmentation, MixUp and CutMix, and the average of a model: functions of (seed, epoch, step or image)."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import resnetkit as rk
from resnetkit.architecture.card import Preparation
from resnetkit.commands.progress import format_run_header
from resnetkit.errors import Fault, SpecError, TextError
from resnetkit.images.transforms import TRANSFORMS, apply_transform, color_jitter, random_erasing, trivial_augment
from resnetkit.runtime.rng import make_rng
from resnetkit.serialization import from_toml, to_toml
from resnetkit.training.augment import apply_transforms
from resnetkit.training.ema import EvalModel
from resnetkit.training.mixup import count_correct, mix_batch
from resnetkit.training.presets import PRESETS
from resnetkit.training.recipe import (
    EMA,
    ColorJitter,
    CutMix,
    MixUp,
    MixUpOrCutMix,
    NoEMA,
    NoMix,
    RandomErasing,
    Recipe,
    TrivialAugment,
)
from resnetkit.training.recipe_limits import edit_recipe

from helpers.tiny import BASE

ALL = (TrivialAugment(), ColorJitter(), RandomErasing(0.5))
PREPARATION = Preparation(16, (16, 16), (0.5, 0.25, 0.75), (1.0, 1.0, 1.0))


def make_photo(seed=0, size=(24, 20), channels=3):
    """Make a smooth image, so that a shift by a fraction of a pixel is a small change."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image) if channels == 3 else np.asarray(image.convert("L"))[:, :, None]


# --------------------------------------------------------------------------------------------------- single images

NAMES = {
    "identity": "Identity", "shear x": "ShearX", "shear y": "ShearY", "translate x": "TranslateX",
    "translate y": "TranslateY", "rotate": "Rotate", "brightness": "Brightness", "color": "Color",
    "contrast": "Contrast", "sharpness": "Sharpness", "posterize": "Posterize", "solarize": "Solarize",
    "autocontrast": "AutoContrast", "equalize": "Equalize",
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_transform_equals_torchvisions(name, channels):
    v2 = pytest.importorskip("torchvision.transforms.v2")
    theirs = v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR)
    assert set(theirs._AUGMENTATION_SPACE) == set(NAMES.values())
    magnitudes, signed = theirs._AUGMENTATION_SPACE[NAMES[name]]
    strengths = magnitudes(31, 20, 24)
    assert signed == TRANSFORMS[name][2]
    pixels = make_photo(channels=channels)
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    for i in range(0, 31, 3):
        ours = TRANSFORMS[name][1] * i / 30
        strength = {"posterize": 8 - round(ours), "solarize": 1 - ours / 255}.get(name, ours)
        if strengths is not None:
            assert strength == pytest.approx(float(strengths[i]), abs=1e-5)  # theirs are rounded to 32 bits
        for sign in (1, -1) if signed else (1,):
            expected = theirs._apply_image_or_video_transform(
                image, NAMES[name], sign * strength, interpolation=theirs.interpolation, fill=theirs._fill
            )
            result = apply_transform(pixels, name, sign * ours)
            difference = np.abs(result.squeeze().astype(int) - np.asarray(expected))
            assert difference.max() <= name.startswith("shear"), (name, i, sign)  # theirs goes through an angle


@given(st.integers(0, 10_000), st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9))
def test_transforms_keep_shape_and_dtype(seed, channels, height, width):
    pixels = make_photo(seed, (width, height), channels)
    before = pixels.copy()
    rng = np.random.default_rng(seed)
    for result in (
        trivial_augment(pixels, rng),
        color_jitter(pixels, (("brightness", 1.0), ("contrast", 1.0), ("color", 1.0)), rng),
        random_erasing(pixels, 1.0, (1,) * channels, rng),
    ):
        assert (result.shape, result.dtype) == (pixels.shape, np.uint8)
    assert np.array_equal(pixels, before)


def test_every_transform_is_drawn_equally_often_in_both_directions(monkeypatch):
    pixels, draws, original = make_photo(), [], dict(TRANSFORMS)
    for name, (_, largest, signed) in original.items():
        record = (lambda image, strength, name=name: draws.append((name, strength)) or image, largest, signed)
        monkeypatch.setitem(TRANSFORMS, name, record)
    for i in range(2000):
        trivial_augment(pixels, np.random.default_rng(i))
    for name, (_, largest, signed) in original.items():
        strengths = [strength for drawn, strength in draws if drawn == name]
        assert 90 < len(strengths) < 200, name
        if largest:
            assert 0.9 * largest < max(strengths) <= largest
            assert 25 < len({round(abs(x), 6) for x in strengths}) <= 31
            assert (-largest <= min(strengths) < -0.9 * largest) == signed
            assert abs(np.mean(strengths) - (0 if signed else largest / 2)) < 0.15 * largest


def test_erasing_paints_a_box_with_the_mean():
    pixels = np.zeros((20, 30, 3), np.uint8)
    fractions = []
    for i in range(300):
        result = random_erasing(pixels, 0.5, (9, 8, 7), np.random.default_rng(i))
        painted = result[..., 0] > 0
        fractions.append(painted.mean())
        rows, columns = np.flatnonzero(painted.any(1)), np.flatnonzero(painted.any(0))
        assert painted.sum() == len(rows) * len(columns)
        assert not painted.any() or result[painted].tolist() == [[9, 8, 7]] * int(painted.sum())
    assert 0.4 < np.mean([fraction > 0 for fraction in fractions]) < 0.6
    assert max(fractions) <= 0.36
    assert random_erasing(pixels, 0.0, (1, 1, 1), np.random.default_rng(0)) is pixels


def test_augmentation_depends_on_neither_batch_nor_workers():
    pixels = torch.from_numpy(np.stack([make_photo(i, (16, 16)) for i in range(12)]))
    whole = apply_transforms(pixels, np.arange(12), ALL, PREPARATION, (3, 1), workers=2)
    assert not torch.equal(whole, pixels)
    indices = np.array([7, 2, 11])
    for workers in (0, 1, 7):
        assert torch.equal(
            apply_transforms(pixels[indices], indices, ALL, PREPARATION, (3, 1), workers=workers), whole[indices]
        )
    for seed in ((4, 1), (3, 2)):
        assert not torch.equal(apply_transforms(pixels, np.arange(12), ALL, PREPARATION, seed, workers=2), whole)
    no_indices = np.array([], dtype=np.int64)
    assert apply_transforms(pixels[:0], no_indices, ALL, PREPARATION, (3, 1), workers=2).shape == (0, 16, 16, 3)


def test_every_purpose_has_its_own_random_numbers():
    kinds = [make_rng(purpose, 1, 2, *more).random() for purpose in ("augment", "mix") for more in ((), (3,), (0, 3))]
    plain = [np.random.default_rng([1, 2]).random(), np.random.default_rng([1, 2, 3]).random()]
    assert len({*kinds, *plain}) == 8


# ----------------------------------------------------------------------------------------------------------- batches


def make_batch(count=8):
    rng = torch.Generator().manual_seed(0)
    inputs = torch.rand(count, 3, 16, 12, generator=rng).contiguous(memory_format=torch.channels_last)
    return inputs, torch.arange(count) % 5


@pytest.mark.parametrize("mix", [MixUp(1.0), CutMix(), MixUpOrCutMix(1.0, 1.0)])
def test_a_mixed_batch(mix):
    inputs, labels = make_batch()
    before = inputs.clone()
    for step in range(20):
        mixed, targets = mix_batch(inputs, labels, mix, 5, 1, 2, step, 0)
        repeated, repeated_targets = mix_batch(inputs, labels, mix, 5, 1, 2, step, 0)
        assert torch.equal(mixed, repeated)
        assert torch.equal(targets, repeated_targets)
        assert torch.equal(inputs, before)
        assert mixed.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(targets.sum(1), torch.ones(8))
        on_rank_1, _ = mix_batch(inputs, labels, mix, 5, 1, 2, step, 1)
        assert not torch.equal(mixed, on_rank_1)


def test_mixup_interpolates_two_images():
    inputs, labels = torch.eye(8)[:, None, :, None].repeat(1, 3, 1, 2), torch.arange(8)
    mixed, targets = mix_batch(inputs, labels, MixUp(1.0), 8, 0, 1, 2, 0)
    assert torch.allclose(mixed[:, 0, :, 0], targets)  # the images are their labels, before and after mixing
    assert (targets > 0).sum(1).tolist() == [2 if row.max() < 1 else 1 for row in targets]


def test_cutmix_weighs_labels_by_the_area_of_the_box():
    labels = torch.arange(4)
    inputs = labels[:, None, None, None].expand(4, 1, 16, 12).float()
    for step in range(30):
        mixed, targets = mix_batch(inputs, labels, CutMix(), 4, 0, 1, step, 0)
        for image, target in zip(mixed, targets, strict=True):
            counted = torch.bincount(image.flatten().long(), minlength=4) / (16 * 12)
            assert torch.allclose(counted, target, atol=1e-6)


def test_cutmix_is_chosen_for_each_batch():
    inputs, labels = make_batch()
    n_cutmix = 0
    for step in range(100):
        mixed, _ = mix_batch(inputs, labels, MixUpOrCutMix(1.0, 1.0, 0.3), 5, 0, 1, step, 0)
        n_cutmix += all(bool((mixed[i] == inputs).all(1).flatten(1).any(1).any()) for i in range(8))
    assert 15 < n_cutmix < 45


def test_mixed_images_count_by_weight():
    outputs = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.5, 1.0]])
    assert count_correct(outputs, torch.tensor([0, 1])) == 1.0
    assert count_correct(outputs, torch.tensor([[0.75, 0.25, 0.0], [0.5, 0.0, 0.5]])) == 1.25


def test_no_mix_returns_its_arguments():
    inputs, labels = make_batch()
    mixed, targets = mix_batch(inputs, labels, NoMix(), 5, 0, 1, 2, 0)
    assert mixed is inputs
    assert targets is labels


# ----------------------------------------------------------------------------------------------- the average (EMA)


def test_the_average_follows_its_formula():
    model = rk.build(BASE)
    eval_model = EvalModel(model, EMA(0.5, update_every=2))
    path, weight = "stage1.block1.branch.conv1.weight", model.stage1.block1.branch.conv1.weight
    norm = model.stage1.block1.branch.norm1
    expected = weight.detach().clone()
    with torch.no_grad():
        for step in range(1, 9):
            weight.add_(1)
            norm.running_mean.add_(0.5)
            norm.num_batches_tracked += 1
            eval_model.update(step)
            if step % 2 == 0:
                decay = min(0.5, (1 + step // 2) / (10 + step // 2))
                expected = decay * expected + (1 - decay) * weight
    averaged = eval_model.model.state_dict()
    assert torch.allclose(averaged[path], expected)
    assert 0 < float(averaged["stage1.block1.branch.norm1.running_mean"][0]) < 4
    assert int(averaged["stage1.block1.branch.norm1.num_batches_tracked"]) == 8
    stored = {key: value.clone() for key, value in eval_model.get_tensors().items()}
    restored = EvalModel(rk.build(BASE, seed=5), EMA(0.5, update_every=2))
    restored.restore(stored)
    assert all(torch.equal(value, averaged[key]) for key, value in restored.model.state_dict().items())
    restored.restore({})  # a checkpoint without an average
    assert torch.equal(restored.model.stem.conv1.weight, restored.training_model.stem.conv1.weight)


def test_without_an_average_the_trained_model_is_validated():
    model = rk.build(BASE)
    eval_model = EvalModel(model, NoEMA())
    before = copy.deepcopy(model.state_dict())
    eval_model.update(1)
    eval_model.restore({})
    assert eval_model.model is model
    assert eval_model.get_tensors() == {}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_average_is_validated_and_saved(pictures, network, tmp_path):
    flowers = pictures("flowers", ["rose", "daisy", "tulip"], 20)
    settings = {"epochs": 1, "batch_size": 8, "precision": "fp32", "ema": {"decay": 0.9999, "update_every": 1000}}
    run = rk.train(
        flowers, network, out=tmp_path / "run", settings=settings
    )  # never updated, so it keeps the first weights
    initial = rk.build(BASE, classes=3, seed=0)
    saved = rk.load(run)
    assert all(torch.equal(value, saved.state_dict()[key]) for key, value in initial.state_dict().items())
    assert rk.evaluate(run.path, flowers).correct == run.evaluation.correct


# ------------------------------------------------------------------------------------------------------------ recipes


def test_recipes_hold_augmentation_and_average():
    changes = {
        "ema": {"decay": 0.99}, "mix": {"kind": "cut-mix", "alpha": 0.5}, "stochastic_depth": 0.2,
        "transforms": ["trivial-augment", {"kind": "random-erasing", "p": 0.2}],
    }  # fmt: skip
    with pytest.raises(TextError, match="ema"):
        edit_recipe(Recipe("d", "resnet20"), changes | {"ema": {"kind": "em"}})
    recipe = edit_recipe(Recipe("d", "resnet20"), changes | {"ema": {"kind": "ema", "decay": 0.99}})
    assert (recipe.ema, recipe.mix) == (EMA(0.99), CutMix(0.5))
    assert recipe.transforms == (TrivialAugment(), RandomErasing(0.2))
    assert from_toml(Recipe, to_toml(recipe)) == recipe
    assert edit_recipe(recipe, {"ema": "no-ema", "mix": "no-mix", "transforms": []}) == edit_recipe(
        Recipe("d", "resnet20"), {"stochastic_depth": 0.2}
    )


def test_ema_with_fields_needs_no_kind():
    assert edit_recipe(Recipe("d", "resnet20"), {"ema": {"decay": 0.9}}).ema == EMA(0.9)
    assert edit_recipe(Recipe("d", "resnet20"), {"ema": "ema"}).ema == EMA()


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"ema": {"kind": "ema", "decay": 1}}, ("ema.decay", "1.0", "0 to below 1")),
        ({"ema": {"kind": "ema", "update_every": 0}}, ("ema.update_every", "0", "1 to 100,000 steps")),
        ({"mix": {"kind": "mix-up", "alpha": 0}}, ("mix.alpha", "0.0", "more than 0, to 100")),
        ({"mix": {"kind": "mix-up-or-cut-mix", "cutmix_prob": 2}}, ("mix.cutmix_prob", "2.0", "0 to 1, a fraction of the batches")),
        ({"mix": {"kind": "mix-up-or-cut-mix", "cutmix_alpha": 0}}, ("mix.cutmix_alpha", "0.0", "more than 0, to 100")),
        ({"mix": "mixup"}, ("mix", '"mixup"', "one of no-mix, mix-up, cut-mix, mix-up-or-cut-mix (did you mean mix-up?)")),
        ({"transforms": [{"kind": "random-erasing", "p": 2}]}, ("transform1.p", "2.0", "0 to 1, a fraction of the images")),
        ({"transforms": ["trivial-augment", {"kind": "color-jitter", "contrast": -1}]}, ("transform2.contrast", "-1.0", "0 to 1")),
        ({"stochastic_depth": 1}, ("stochastic_depth", "1.0", "0 to below 1")),
    ],
)  # fmt: skip
def test_values_out_of_range_are_faults(changes, fault):
    with pytest.raises(TextError) as caught:
        edit_recipe(Recipe("d", "resnet20"), changes)
    assert caught.value.faults == (Fault(*fault),)


def test_stochastic_depth_of_a_run(pictures, network, tmp_path):
    flowers = pictures("flowers", ["rose", "daisy"], 12)
    settings = {
        "epochs": 1,
        "batch_size": 8,
        "precision": "fp32",
        "stochastic_depth": 0.3,
        "transforms": ["trivial-augment"],
    }
    events = []
    run = rk.train(flowers, network, out=tmp_path / "run", settings=settings, on_event=events.append)
    assert run.card.spec.stochastic_depth == 0.3
    rates = [m.rate for m in rk.load(run).modules() if type(m).__name__ == "StochasticDepth"]
    assert max(rates) == 0.3
    assert len(rates) == 3
    assert "; pad-crop, trivial-augment; seed 0" in format_run_header(events[0])
    assert math.isfinite(run.epochs[0].loss)
    with pytest.raises(SpecError) as caught:
        plain = rk.spec("plain34")
        rk.train(flowers, write_spec(tmp_path, plain), out=tmp_path / "plain", settings=settings)
    assert "stochastic_depth: got 0.3; allowed: 0, because a block without a shortcut has only its branch" in str(
        caught.value
    )


def write_spec(folder, spec):
    path = folder / "plain.toml"
    path.write_text(to_toml(spec))
    return path


@pytest.mark.parametrize("name", PRESETS)
def test_published_recipes_train(pictures, network, tmp_path, name):
    flowers = pictures("flowers", ["rose", "daisy"], 12)
    settings = {"epochs": 1, "batch_size": 8, "precision": "fp32"}
    run = rk.train(flowers, network, out=tmp_path / "run", settings=settings, recipe=name)
    assert run.recipe.optimizer.lr == PRESETS[name].changes["optimizer"]["lr"]
    assert len(run.epochs) == 1
