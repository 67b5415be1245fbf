"""Fine-tuning: which layers train when, at which learning rate, what is kept, and when training ends."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import resnetkit as rk
from resnetkit.architecture.spec import MLP
from resnetkit.errors import Fault, UsageError
from resnetkit.evaluation.result import Evaluation, Predictions, compute_wilson_interval, format_accuracy
from resnetkit.serialization import to_toml
from resnetkit.training.optimizer import build_optimizer, set_trainable
from resnetkit.training.recipe import FineTune, Recipe, Scratch

from helpers.tiny import BASE, TINY

SETTINGS = {"batch_size": 8, "precision": "fp32"}


@pytest.fixture
def base(tmp_path, pictures, run_cache):
    """A small network that was trained on three classes; shared by all tests."""
    (tmp_path / "mine.toml").write_text(to_toml(BASE))
    data = pictures("before", ["red", "green", "blue"], 12)
    return run_cache.train("base", data, tmp_path / "mine.toml", settings=SETTINGS | {"epochs": 2})


@pytest.fixture
def flowers(pictures):
    return pictures("flowers", ["rose", "daisy"], 20)


def load_state(run):
    return rk.load(run.path).state_dict()


def compare_tensors(a, b, keep):
    """Return for each tensor whose path is kept whether it is equal in both."""
    return [torch.equal(value, b[key]) for key, value in a.items() if keep(key)]


def is_backbone(key):
    return not key.startswith("head.")


def test_a_model_with_weights_is_fine_tuned(base, flowers, tmp_path):
    events = []
    run = rk.train(flowers, base.path, out=tmp_path / "run", settings=SETTINGS | {"epochs": 3}, on_event=events.append)
    assert run.recipe.start == FineTune()
    assert run.recipe.patience == 5
    assert run.card.classes == ("daisy", "rose")
    assert run.card.origin == "fine-tuned with resnetkit from mine (trained with resnetkit)"
    assert run.card.spec == replace(base.card.spec, head=replace(base.card.spec.head, classes=2))
    assert run.card.preparation == base.card.preparation
    assert events[0].notes == (
        "fine-tuning mine: the head is new and trains alone for 2 epochs, then the backbone too, at 0.1 of its learning "
        "rate; norm statistics are frozen",
        "mine was trained on 6 of the 12 images that are held out now, so the accuracy is likely too high",
    )
    assert run.evaluation.top1 > 0.8
    assert rk.evaluate(run.path, flowers).correct == run.evaluation.correct


def test_the_head_trains_alone_first(base, flowers, tmp_path):
    run = rk.train(flowers, base.path, out=tmp_path / "run", settings=SETTINGS | {"epochs": 2})
    assert all(compare_tensors(load_state(base), load_state(run), is_backbone))
    assert load_state(run)["head.linear.weight"].shape == (2, 16)


@pytest.mark.parametrize(("norms", "kept"), [("frozen", True), ("updated", False)])
def test_then_the_backbone_trains_with_or_without_norm_statistics(base, flowers, tmp_path, norms, kept):
    settings = SETTINGS | {"epochs": 3, "start": {"head_epochs": 0, "norm_stats": norms}}
    run = rk.train(flowers, base.path, out=tmp_path / "run", settings=settings)
    before, after = load_state(base), load_state(run)
    assert not any(compare_tensors(before, after, lambda key: is_backbone(key) and key.endswith("conv1.weight")))
    assert all(compare_tensors(before, after, lambda key: "running" in key)) == kept
    assert not any(
        compare_tensors(before, after, lambda key: is_backbone(key) and "norm" in key and key.endswith(".bias"))
    )


def test_a_backbone_lr_scale_of_zero_keeps_the_backbone(base, flowers, tmp_path):
    settings = SETTINGS | {"epochs": 4, "start": {"backbone_lr_scale": 0.0}}
    run = rk.train(flowers, base.path, out=tmp_path / "run", settings=settings)
    assert all(compare_tensors(load_state(base), load_state(run), is_backbone))


def test_the_same_classes_keep_the_head(base, tmp_path, pictures):
    data = pictures("more", ["red", "green", "blue"], 12)
    settings = SETTINGS | {"epochs": 1, "optimizer": {"lr": 1e-12}}
    events = []
    run = rk.train(data, base.path, out=tmp_path / "run", settings=settings, on_event=events.append)
    assert all(compare_tensors(load_state(base), load_state(run), lambda key: True))
    assert "the head is kept, as the classes are the same" in events[0].notes[-1]


def test_start_from_scratch(base, flowers, tmp_path):
    run = rk.train(flowers, base.path, out=tmp_path / "run", settings=SETTINGS | {"epochs": 1, "start": "scratch"})
    assert run.recipe.start == Scratch()
    assert not any(compare_tensors(load_state(base), load_state(run), lambda key: key.endswith("conv1.weight")))


def test_patience_ends_training(base, flowers, tmp_path):
    settings = SETTINGS | {"epochs": 9, "patience": 2, "optimizer": {"lr": 1e-12}, "start": {"norm_stats": "frozen"}}
    run = rk.train(flowers, base.path, out=tmp_path / "run", settings=settings)
    assert (run.best_epoch, len(run.epochs)) == (1, 4)  # the two of the head alone do not count
    assert run.results.stop_reason == "val did not improve for 2 epochs"
    assert "Training ended early: val did not improve for 2 epochs." in (run.path / "report.html").read_text()


def test_the_best_epoch_has_the_highest_accuracy_then_the_lowest_loss(flowers, tmp_path):
    (tmp_path / "mine.toml").write_text(to_toml(BASE))
    run = rk.train(flowers, tmp_path / "mine.toml", out=tmp_path / "run", settings=SETTINGS | {"epochs": 6})
    scores = [(epoch.val_correct, -epoch.val_loss) for epoch in run.epochs]
    assert run.best_epoch == scores.index(max(scores)) + 1


def test_which_layers_train_in_an_epoch():
    model, recipe = rk.build(BASE), Recipe("d", "m", start=FineTune(head_epochs=1))
    set_trainable(model, recipe, 1)
    assert {path.split(".")[0] for path, p in model.named_parameters() if p.requires_grad} == {"head"}
    assert not model.stage1.training
    set_trainable(model, recipe, 2)
    assert all(p.requires_grad for p in model.parameters())
    assert model.stage1.training
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    set_trainable(model, Recipe("d", "m", start=FineTune(0, norm_stats="updated")), 1)
    assert all(m.training for m in model.modules())


def test_learning_rates_of_head_and_backbone():
    model = rk.build(BASE)
    optimizer = build_optimizer(model, Recipe("d", "m", start=FineTune(backbone_lr_scale=0.25)))
    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    for path, parameter in model.named_parameters():
        assert scales[id(parameter)] == (1.0 if path.startswith("head.") else 0.25)


def test_a_weights_file_of_another_library(flowers, tmp_path, cli):
    import torchvision

    theirs = torchvision.models.resnet18(weights=None, num_classes=7)
    torch.save(theirs.state_dict(), tmp_path / "tv.pth")
    args = ["train", flowers, "--model", tmp_path / "tv.pth", "--set", "input_size=[3,32,32]", "--batch-size", 16]
    code, _, err = cli(*args, "--epochs", 1, "--out", tmp_path / "run")
    assert code == 0, err
    assert (
        "note   read: tv.pth, read as resnet18 in the dialect torchvision, the tensors also fit resnetblur18: " in err
    )
    assert "the 7x7 of the stem has stride 2" in err
    assert "fine-tuning resnet18: the head is new" in err
    assert torch.equal(rk.load(tmp_path / "run").stem.conv1.weight, theirs.conv1.weight)
    code, _, err = cli(*args, "--epochs", 1, "--out", tmp_path / "scratch", "--set", "start=scratch", "--lr", 1e-9)
    assert code == 0, err
    assert "fine-tuning" not in err
    fresh = rk.load(tmp_path / "scratch").state_dict()
    assert not torch.allclose(fresh["stem.conv1.weight"], theirs.conv1.weight, atol=1e-4)
    code, out, _ = cli(*args, "--print-config")
    assert code == 0
    assert 'kind = "fine-tune"' in out


WRONG = {
    "start.norm_stats=melted": Fault("start.norm_stats", '"melted"', "one of frozen, updated"),
    "start.backbone_lr_scale=2.0": Fault(
        "start.backbone_lr_scale", "2.0", "0 to 1, a fraction of the head's learning rate"
    ),
    "start.head_epochs=-1": Fault("start.head_epochs", "-1", "0 or more"),
    "patience=0": Fault("patience", "0", "1 or more epochs"),
    "start=thawed": Fault("start", '"thawed"', "one of scratch, fine-tune"),
}


@pytest.mark.parametrize("setting", WRONG)
def test_wrong_settings(base, flowers, tmp_path, cli, setting):
    code, out, err = cli("train", flowers, "--model", base.path, "--out", tmp_path / "run", "--set", setting)
    assert (code, out) == (2, "")
    assert str(WRONG[setting]) in err
    assert not (tmp_path / "run").exists()


def test_weights_for_other_channels(base, flowers, tmp_path):
    with pytest.raises(UsageError, match="the weights expect 3 input channels, but input_size has 1"):
        rk.train(flowers, base.path, out=tmp_path / "run", settings=SETTINGS | {"input_size": [1, 16, 16]})


# --------------------------------------------------------------------------------- confidence intervals, calibration


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962), (0, 0, 0.0, 1.0)],
)
def test_the_wilson_interval(correct, n, low, high):
    assert compute_wilson_interval(correct, n) == pytest.approx((low, high), abs=1e-4)


def test_the_interval_covers_the_truth_in_95_of_100_cases():
    rng = torch.Generator().manual_seed(0)
    accuracy, n = 0.9, 40
    counts = torch.binomial(torch.full((4000,), float(n)), torch.full((4000,), accuracy), generator=rng)
    bounds = [compute_wilson_interval(int(count), n) for count in counts]
    assert 0.93 < sum(low <= accuracy <= high for low, high in bounds) / len(bounds) < 0.98


def test_calibration_by_hand():
    predictions = Predictions(tuple("abcd"), (0, 0, 1, 1), (0, 1, 1, 1), (0.95, 0.92, 0.55, 1.0))
    evaluation = Evaluation("m", "d", "test", ("x", "y"), predictions, 4, 0.1)
    low, high = evaluation.compute_calibration()
    assert (low.n, low.confidence, low.accuracy) == (1, 0.55, 1.0)
    assert (high.n, high.accuracy) == (3, pytest.approx(2 / 3))
    assert high.confidence == pytest.approx((0.95 + 0.92 + 1.0) / 3)
    assert evaluation.compute_calibration_error() == pytest.approx((1 * 0.45 + 3 * abs(high.confidence - 2 / 3)) / 4)
    assert (evaluation.correct, evaluation.confusion) == (3, ((1, 1), (0, 2)))
    assert evaluation.find_mistakes(9) == [1]
    assert evaluation.find_least_confident(2) == [2, 1]
    assert format_accuracy(3, 4) == "75.00% (95% interval 30.1% to 95.4%)"


def test_hidden_layers_of_a_head_are_kept(tmp_path, pictures):
    """Only the classifier of a head with hidden layers is new; the architecture is kept."""
    (tmp_path / "vgg.toml").write_text(to_toml(TINY["vgg"]))
    first = rk.train(
        pictures("a", ["x", "y", "z"], 8),
        tmp_path / "vgg.toml",
        out=tmp_path / "one",
        settings=SETTINGS | {"epochs": 1},
    )
    assert first.card.spec == replace(TINY["vgg"], head=replace(TINY["vgg"].head, classes=3))
    frozen = SETTINGS | {
        "epochs": 1,
        "start": {"kind": "fine-tune", "backbone_lr_scale": 0.0},
        "optimizer": {"lr": 1e-9},
    }
    second = rk.train(pictures("b", ["p", "q"], 8), first.path, out=tmp_path / "two", settings=frozen)
    before, after = load_state(first), load_state(second)
    torch.testing.assert_close(before["head.linear1.weight"], after["head.linear1.weight"])
    assert after["head.linear.weight"].shape == (2, 12)
    assert rk.build("vgg11", classes=7, device="meta").card.spec.head == MLP(7)
