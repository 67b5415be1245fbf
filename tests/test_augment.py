"""What is done with pictures, batches and the average of a model: functions of (seed, epoch, step or picture)."""

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
from resnetkit.errors import SpecError, TextError
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
    edit_recipe,
)

from helpers.tiny import BASE

ALL = (TrivialAugment(), ColorJitter(), RandomErasing(0.5))
LOOKS = Preparation(16, (16, 16), (0.5, 0.25, 0.75), (1.0, 1.0, 1.0))


def photo(seed=0, size=(24, 20), channels=3):
    """Smooth, so that a change by a fraction of a pixel is a small one."""
    rough = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    image = Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image) if channels == 3 else np.asarray(image.convert("L"))[:, :, None]


# --------------------------------------------------------------------------------------------------- single pictures

NAMES = {
    "identity": "Identity", "shear x": "ShearX", "shear y": "ShearY", "translate x": "TranslateX",
    "translate y": "TranslateY", "rotate": "Rotate", "brightness": "Brightness", "color": "Color",
    "contrast": "Contrast", "sharpness": "Sharpness", "posterize": "Posterize", "solarize": "Solarize",
    "autocontrast": "AutoContrast", "equalize": "Equalize",
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_change_is_torchvisions(name, channels):
    v2 = pytest.importorskip("torchvision.transforms.v2")
    theirs = v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR)
    assert set(theirs._AUGMENTATION_SPACE) == set(NAMES.values())
    magnitudes, signed = theirs._AUGMENTATION_SPACE[NAMES[name]]
    strengths = magnitudes(31, 20, 24)
    assert signed == TRANSFORMS[name][2]
    pixels = photo(channels=channels)
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    for i in range(0, 31, 3):
        mine = TRANSFORMS[name][1] * i / 30
        told = {"posterize": 8 - round(mine), "solarize": 1 - mine / 255}.get(name, mine)
        if strengths is not None:
            assert told == pytest.approx(float(strengths[i]), abs=1e-5)  # theirs are rounded to 32 bits
        for sign in (1, -1) if signed else (1,):
            wanted = theirs._apply_image_or_video_transform(
                image, NAMES[name], sign * told, interpolation=theirs.interpolation, fill=theirs._fill
            )
            found = apply_transform(pixels, name, sign * mine)
            apart = np.abs(found.squeeze().astype(int) - np.asarray(wanted))
            assert apart.max() <= name.startswith("shear"), (name, i, sign)  # theirs goes through an angle


@given(st.integers(0, 10_000), st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9))
def test_whatever_is_drawn_a_picture_stays_a_picture(seed, channels, height, width):
    pixels = photo(seed, (width, height), channels)
    before = pixels.copy()
    draw = np.random.default_rng(seed)
    for made in (
        trivial_augment(pixels, draw),
        color_jitter(pixels, (("brightness", 1.0), ("contrast", 1.0), ("color", 1.0)), draw),
        random_erasing(pixels, 1.0, (1,) * channels, draw),
    ):
        assert (made.shape, made.dtype) == (pixels.shape, np.uint8)
    assert np.array_equal(pixels, before)


def test_every_change_comes_up_as_often_in_both_directions():
    pixels, seen = photo(), []
    original = dict(TRANSFORMS)
    try:
        for name, (_, most, signed) in original.items():
            TRANSFORMS[name] = (lambda image, by, name=name: seen.append((name, by)) or image, most, signed)
        for i in range(2000):
            trivial_augment(pixels, np.random.default_rng(i))
    finally:
        TRANSFORMS.update(original)
    for name, (_, most, signed) in original.items():
        by = [strength for told, strength in seen if told == name]
        assert 90 < len(by) < 200, name
        if most:
            assert 0.9 * most < max(by) <= most
            assert 25 < len({round(abs(x), 6) for x in by}) <= 31
            assert (-most <= min(by) < -0.9 * most) == signed
            assert abs(np.mean(by) - (0 if signed else most / 2)) < 0.15 * most


def test_erasing_paints_a_box_with_the_mean():
    pixels = np.zeros((20, 30, 3), np.uint8)
    shares = []
    for i in range(300):
        made = random_erasing(pixels, 0.5, (9, 8, 7), np.random.default_rng(i))
        painted = made[..., 0] > 0
        shares.append(painted.mean())
        rows, columns = np.flatnonzero(painted.any(1)), np.flatnonzero(painted.any(0))
        assert painted.sum() == len(rows) * len(columns)
        assert not painted.any() or made[painted].tolist() == [[9, 8, 7]] * int(painted.sum())
    assert 0.4 < np.mean([share > 0 for share in shares]) < 0.6
    assert max(shares) <= 0.36
    assert random_erasing(pixels, 0.0, (1, 1, 1), np.random.default_rng(0)) is pixels


def test_a_picture_is_augmented_alike_in_any_batch_on_any_number_of_workers():
    pixels = torch.from_numpy(np.stack([photo(i, (16, 16)) for i in range(12)]))
    whole = apply_transforms(pixels, np.arange(12), ALL, LOOKS, (3, 1), workers=2)
    assert not torch.equal(whole, pixels)
    some = np.array([7, 2, 11])
    for workers in (0, 1, 7):
        assert torch.equal(apply_transforms(pixels[some], some, ALL, LOOKS, (3, 1), workers=workers), whole[some])
    for other in ((4, 1), (3, 2)):
        assert not torch.equal(apply_transforms(pixels, np.arange(12), ALL, LOOKS, other, workers=2), whole)
    none = np.array([], dtype=np.int64)
    assert apply_transforms(pixels[:0], none, ALL, LOOKS, (3, 1), workers=2).shape == (0, 16, 16, 3)


def test_every_purpose_draws_for_itself():
    kinds = [make_rng(purpose, 1, 2, *more).random() for purpose in ("augment", "mix") for more in ((), (3,), (0, 3))]
    plain = [np.random.default_rng([1, 2]).random(), np.random.default_rng([1, 2, 3]).random()]
    assert len({*kinds, *plain}) == 8


# ----------------------------------------------------------------------------------------------------------- batches


def batch(count=8):
    draw = torch.Generator().manual_seed(0)
    inputs = torch.rand(count, 3, 16, 12, generator=draw).contiguous(memory_format=torch.channels_last)
    return inputs, torch.arange(count) % 5


@pytest.mark.parametrize("mix", [MixUp(1.0), CutMix(), MixUpOrCutMix(1.0, 1.0)])
def test_a_mixed_batch(mix):
    inputs, labels = batch()
    before = inputs.clone()
    for step in range(20):
        made, targets = mix_batch(inputs, labels, mix, 5, 1, 2, step, 0)
        again, same = mix_batch(inputs, labels, mix, 5, 1, 2, step, 0)
        assert torch.equal(made, again)
        assert torch.equal(targets, same)
        assert torch.equal(inputs, before)
        assert made.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(targets.sum(1), torch.ones(8))
        other, _ = mix_batch(inputs, labels, mix, 5, 1, 2, step, 1)
        assert not torch.equal(made, other)


def test_mix_up_is_a_straight_line_between_two_pictures():
    inputs, labels = torch.eye(8)[:, None, :, None].repeat(1, 3, 1, 2), torch.arange(8)
    made, targets = mix_batch(inputs, labels, MixUp(1.0), 8, 0, 1, 2, 0)
    assert torch.allclose(made[:, 0, :, 0], targets)  # the pictures are their labels, so what comes out is, too
    assert (targets > 0).sum(1).tolist() == [2 if row.max() < 1 else 1 for row in targets]


def test_cut_mix_counts_the_pixels_of_the_box():
    labels = torch.arange(4)
    inputs = labels[:, None, None, None].expand(4, 1, 16, 12).float()
    for step in range(30):
        made, targets = mix_batch(inputs, labels, CutMix(), 4, 0, 1, step, 0)
        for picture, target in zip(made, targets, strict=True):
            counted = torch.bincount(picture.flatten().long(), minlength=4) / (16 * 12)
            assert torch.allclose(counted, target, atol=1e-6)


def test_both_are_chosen_by_the_batch():
    inputs, labels = batch()
    cut = 0
    for step in range(100):
        made, _ = mix_batch(inputs, labels, MixUpOrCutMix(1.0, 1.0, 0.3), 5, 0, 1, step, 0)
        cut += all(bool((made[i] == inputs).all(1).flatten(1).any(1).any()) for i in range(8))
    assert 15 < cut < 45


def test_agreement():
    answers = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.5, 1.0]])
    assert count_correct(answers, torch.tensor([0, 1])) == 1.0
    assert count_correct(answers, torch.tensor([[0.75, 0.25, 0.0], [0.5, 0.0, 0.5]])) == 1.25


def test_no_mix_is_no_work():
    inputs, labels = batch()
    made, targets = mix_batch(inputs, labels, NoMix(), 5, 0, 1, 2, 0)
    assert made is inputs
    assert targets is labels


# ----------------------------------------------------------------------------------------------- the average (EMA)


def test_the_average_by_its_formula():
    model = rk.build(BASE)
    shown = EvalModel(model, EMA(0.5, update_every=2))
    path, weight = "stage1.block1.branch.conv1.weight", model.stage1.block1.branch.conv1.weight
    norm = model.stage1.block1.branch.norm1
    wanted = weight.detach().clone()
    with torch.no_grad():
        for step in range(1, 9):
            weight.add_(1)
            norm.running_mean.add_(0.5)
            norm.num_batches_tracked += 1
            shown.update(step)
            if step % 2 == 0:
                decay = min(0.5, (1 + step // 2) / (10 + step // 2))
                wanted = decay * wanted + (1 - decay) * weight
    averaged = shown.model.state_dict()
    assert torch.allclose(averaged[path], wanted)
    assert 0 < float(averaged["stage1.block1.branch.norm1.running_mean"][0]) < 4
    assert int(averaged["stage1.block1.branch.norm1.num_batches_tracked"]) == 8
    stored = {key: value.clone() for key, value in shown.get_tensors().items()}
    other = EvalModel(rk.build(BASE, seed=5), EMA(0.5, update_every=2))
    other.restore(stored)
    assert all(torch.equal(value, averaged[key]) for key, value in other.model.state_dict().items())
    other.restore({})  # a run that had none begins one where it stands
    assert torch.equal(other.model.stem.conv1.weight, other.training_model.stem.conv1.weight)


def test_without_an_average_the_model_is_the_model():
    model = rk.build(BASE)
    shown = EvalModel(model, NoEMA())
    before = copy.deepcopy(model.state_dict())
    shown.update(1)
    shown.restore({})
    assert shown.model is model
    assert shown.get_tensors() == {}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_average_is_measured_and_kept(pictures, network, tmp_path):
    flowers = pictures("flowers", ["rose", "daisy", "tulip"], 20)
    how = {"epochs": 1, "batch_size": 8, "precision": "fp32", "ema": {"decay": 0.9999, "update_every": 1000}}
    run = rk.train(flowers, network, out=tmp_path / "run", settings=how)  # no update ever: it is what it began as
    begun = rk.build(BASE, classes=3, seed=0)
    kept = rk.load(run)
    assert all(torch.equal(value, kept.state_dict()[key]) for key, value in begun.state_dict().items())
    assert rk.evaluate(run.path, flowers).correct == run.evaluation.correct


# ------------------------------------------------------------------------------------------------------------ recipes


def test_recipes_say_it():
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


def test_ema_needs_no_kind_where_it_has_fields():
    assert edit_recipe(Recipe("d", "resnet20"), {"ema": {"decay": 0.9}}).ema == EMA(0.9)
    assert edit_recipe(Recipe("d", "resnet20"), {"ema": "ema"}).ema == EMA()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"ema": {"kind": "ema", "decay": 1}}, "ema.decay: came 1.0; allowed: 0 to below 1"),
        ({"ema": {"kind": "ema", "update_every": 0}}, "ema.update_every: came 0; allowed: 1 to 100,000 steps"),
        ({"mix": {"kind": "mix-up", "alpha": 0}}, "mix.alpha: came 0.0; allowed: more than 0, to 100"),
        ({"mix": {"kind": "mix-up-or-cut-mix", "cutmix_prob": 2}}, "mix.cutmix_prob: came 2.0; allowed: 0 to 1, a share of"),
        ({"mix": {"kind": "mix-up-or-cut-mix", "cutmix_alpha": 0}}, "mix.cutmix_alpha: came 0.0; allowed: more than 0, to 100"),
        ({"mix": "mixup"}, 'mix: came "mixup"; allowed: one of no-mix, mix-up, cut-mix, mix-up-or-cut-mix'),
        ({"transforms": [{"kind": "random-erasing", "p": 2}]}, "transform1.p: came 2.0; allowed: 0 to 1, a share of the"),
        ({"transforms": ["trivial-augment", {"kind": "color-jitter", "contrast": -1}]}, "transform2.contrast: came -1.0; allowed"),
        ({"stochastic_depth": 1}, "stochastic_depth: came 1.0; allowed: 0 to below 1"),
    ],
)  # fmt: skip
def test_a_recipe_that_is_wrong(changes, told):
    with pytest.raises(TextError) as caught:
        edit_recipe(Recipe("d", "resnet20"), changes)
    assert told in str(caught.value)


def test_stochastic_depth_of_a_run(pictures, network, tmp_path):
    flowers = pictures("flowers", ["rose", "daisy"], 12)
    how = {
        "epochs": 1,
        "batch_size": 8,
        "precision": "fp32",
        "stochastic_depth": 0.3,
        "transforms": ["trivial-augment"],
    }
    told = []
    run = rk.train(flowers, network, out=tmp_path / "run", settings=how, on_event=told.append)
    assert run.card.spec.stochastic_depth == 0.3
    rates = [m.rate for m in rk.load(run).modules() if type(m).__name__ == "StochasticDepth"]
    assert max(rates) == 0.3
    assert len(rates) == 3
    assert "; pad-crop, trivial-augment; seed 0" in format_run_header(told[0])
    assert math.isfinite(run.epochs[0].loss)
    with pytest.raises(SpecError) as caught:
        plain = rk.spec("plain34")
        rk.train(flowers, _file(tmp_path, plain), out=tmp_path / "other", settings=how)
    assert "stochastic_depth: came 0.3; allowed: 0: a block without a shortcut has nothing else" in str(caught.value)


def _file(folder, spec):
    path = folder / "plain.toml"
    path.write_text(to_toml(spec))
    return path


@pytest.mark.parametrize("name", PRESETS)
def test_published_recipes_train(pictures, network, tmp_path, name):
    flowers = pictures("flowers", ["rose", "daisy"], 12)
    how = {"epochs": 1, "batch_size": 8, "precision": "fp32"}
    run = rk.train(flowers, network, out=tmp_path / "run", settings=how, recipe=name)
    assert run.recipe.optimizer.lr == PRESETS[name].changes["optimizer"]["lr"]
    assert len(run.epochs) == 1
