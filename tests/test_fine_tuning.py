"""Starting from weights: what learns when, at which rate, what stays, and when it ends."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import resnetkit as rk
from resnetkit.architecture.spec import MLP
from resnetkit.errors import TextError, UsageError
from resnetkit.evaluation.result import Evaluation, Predictions, compute_wilson_interval, format_accuracy
from resnetkit.serialization import to_toml
from resnetkit.training.optimizer import build_optimizer, set_trainable
from resnetkit.training.recipe import FineTune, Recipe, Scratch

from helpers.tiny import BASE, TINY

SETTINGS = {"batch_size": 8, "precision": "fp32"}


@pytest.fixture
def base(tmp_path, pictures):
    """A small network that has learnt three classes."""
    (tmp_path / "mine.toml").write_text(to_toml(BASE))
    data = pictures("before", ["red", "green", "blue"], 12)
    return rk.train(data, tmp_path / "mine.toml", out=tmp_path / "base", settings=SETTINGS | {"epochs": 2})


@pytest.fixture
def flowers(pictures):
    return pictures("flowers", ["rose", "daisy"], 20)


def state(run):
    return rk.load(run.path).state_dict()


def same(a, b, keep):
    """Whether the tensors whose path fits are equal in both."""
    return [torch.equal(value, b[key]) for key, value in a.items() if keep(key)]


def body(key):
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
        "fine-tuning mine: the head is new and learns alone for 2 epochs, then the body with it at 0.1 of its rate; norm "
        "statistics are frozen",
    )
    assert run.evaluation.top1 > 0.8
    assert rk.evaluate(run.path, flowers).correct == run.evaluation.correct


def test_the_head_learns_alone_first(base, flowers, tmp_path):
    run = rk.train(flowers, base.path, out=tmp_path / "run", settings=SETTINGS | {"epochs": 2})
    assert all(same(state(base), state(run), body))
    assert state(run)["head.linear.weight"].shape == (2, 16)


@pytest.mark.parametrize(("norms", "kept"), [("frozen", True), ("learnt", False)])
def test_then_the_body_with_norms_as_said(base, flowers, tmp_path, norms, kept):
    settings = SETTINGS | {"epochs": 3, "start": {"head_epochs": 0, "norm_stats": norms}}
    run = rk.train(flowers, base.path, out=tmp_path / "run", settings=settings)
    before, after = state(base), state(run)
    assert not any(same(before, after, lambda key: body(key) and key.endswith("conv1.weight")))
    assert all(same(before, after, lambda key: "running" in key)) == kept
    assert not any(same(before, after, lambda key: body(key) and "norm" in key and key.endswith(".bias")))


def test_a_body_rate_of_nothing_leaves_the_body(base, flowers, tmp_path):
    settings = SETTINGS | {"epochs": 4, "start": {"backbone_lr_scale": 0.0}}
    run = rk.train(flowers, base.path, out=tmp_path / "run", settings=settings)
    assert all(same(state(base), state(run), body))


def test_the_same_classes_keep_the_head(base, tmp_path, pictures):
    data = pictures("more", ["red", "green", "blue"], 12)
    settings = SETTINGS | {"epochs": 1, "optimizer": {"lr": 1e-12}}
    events = []
    run = rk.train(data, base.path, out=tmp_path / "run", settings=settings, on_event=events.append)
    assert all(same(state(base), state(run), lambda key: True))
    assert "the head is kept, as the classes are the same" in events[0].notes[-1]


def test_from_scratch_where_that_is_asked(base, flowers, tmp_path):
    run = rk.train(flowers, base.path, out=tmp_path / "run", settings=SETTINGS | {"epochs": 1, "start": "scratch"})
    assert run.recipe.start == Scratch()
    assert not any(same(state(base), state(run), lambda key: key.endswith("conv1.weight")))


def test_no_better_on_val_ends_the_run(base, flowers, tmp_path):
    settings = SETTINGS | {"epochs": 9, "patience": 2, "optimizer": {"lr": 1e-12}, "start": {"norm_stats": "frozen"}}
    run = rk.train(flowers, base.path, out=tmp_path / "run", settings=settings)
    assert (run.best_epoch, len(run.epochs)) == (1, 4)  # the two of the head alone do not count
    assert run.results.stop_reason == "val got no better for 2 epochs"
    assert "The run ended early: val got no better for 2 epochs." in (run.path / "report.html").read_text()


def test_the_best_epoch_has_most_right_then_the_lowest_loss(flowers, tmp_path):
    (tmp_path / "mine.toml").write_text(to_toml(BASE))
    run = rk.train(flowers, tmp_path / "mine.toml", out=tmp_path / "run", settings=SETTINGS | {"epochs": 6})
    ranks = [(epoch.val_correct, -epoch.val_loss) for epoch in run.epochs]
    assert run.best_epoch == ranks.index(max(ranks)) + 1


def test_what_learns_in_an_epoch():
    model, recipe = rk.build(BASE), Recipe("d", "m", start=FineTune(head_epochs=1))
    set_trainable(model, recipe, 1)
    assert {path.split(".")[0] for path, p in model.named_parameters() if p.requires_grad} == {"head"}
    assert not model.stage1.training
    set_trainable(model, recipe, 2)
    assert all(p.requires_grad for p in model.parameters())
    assert model.stage1.training
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    set_trainable(model, Recipe("d", "m", start=FineTune(0, norm_stats="learnt")), 1)
    assert all(m.training for m in model.modules())


def test_rates_of_head_and_body():
    model = rk.build(BASE)
    optimiser = build_optimizer(model, Recipe("d", "m", start=FineTune(backbone_lr_scale=0.25)))
    shares = {id(p): group["share"] for group in optimiser.param_groups for p in group["params"]}
    for path, parameter in model.named_parameters():
        assert shares[id(parameter)] == (1.0 if path.startswith("head.") else 0.25)


def test_a_weights_file_of_another_library(flowers, tmp_path, cli):
    import torchvision

    theirs = torchvision.models.resnet18(weights=None, num_classes=7)
    torch.save(theirs.state_dict(), tmp_path / "tv.pth")
    words = ["train", flowers, "--model", tmp_path / "tv.pth", "--set", "input_size=[3,32,32]", "--batch-size", 16]
    code, _, err = cli(*words, "--epochs", 1, "--out", tmp_path / "run")
    assert code == 0, err
    assert "note   read: tv.pth, read as resnet18 in the dialect torchvision; assumed: the 7x7 of the stem has " in err
    assert "fine-tuning resnet18: the head is new" in err
    assert torch.equal(rk.load(tmp_path / "run").stem.conv1.weight, theirs.conv1.weight)
    code, _, err = cli(*words, "--epochs", 1, "--out", tmp_path / "scratch", "--set", "start=scratch", "--lr", 1e-9)
    assert code == 0, err
    assert "fine-tuning" not in err
    fresh = rk.load(tmp_path / "scratch").state_dict()
    assert not torch.allclose(fresh["stem.conv1.weight"], theirs.conv1.weight, atol=1e-4)
    code, out, _ = cli(*words, "--print-config")
    assert code == 0
    assert 'kind = "fine-tune"' in out


WRONG = {
    "start.norm_stats=melted": 'start.norm_stats: came "melted"; allowed: one of frozen, learnt',
    "start.backbone_lr_scale=2.0": "start.backbone_lr_scale: came 2.0; allowed: 0 to 1, a share of the head's rate",
    "start.head_epochs=-1": "start.head_epochs: came -1; allowed: 0 or more",
    "patience=0": "patience: came 0; allowed: 1 or more epochs",
    "start=thawed": 'start: came "thawed"; allowed: one of scratch, fine-tune',
}


@pytest.mark.parametrize("setting", WRONG)
def test_wrong_settings(base, flowers, tmp_path, cli, setting):
    code, out, err = cli("train", flowers, "--model", base.path, "--out", tmp_path / "run", "--set", setting)
    assert (code, out) == (2, "")
    assert WRONG[setting] in err
    assert not (tmp_path / "run").exists()


def test_weights_of_other_images(base, flowers, tmp_path):
    with pytest.raises((UsageError, TextError), match="these weights see 3 channels, and the run's images have 1"):
        rk.train(flowers, base.path, out=tmp_path / "run", settings=SETTINGS | {"input_size": [1, 16, 16]})


# -------------------------------------------------------------------------------------------------- how sure one is


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962), (0, 0, 0.0, 1.0)],
)
def test_the_interval(correct, n, low, high):
    assert compute_wilson_interval(correct, n) == pytest.approx((low, high), abs=1e-4)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    draw = torch.Generator().manual_seed(0)
    share, n = 0.9, 40
    counts = torch.binomial(torch.full((4000,), float(n)), torch.full((4000,), share), generator=draw)
    bounds = [compute_wilson_interval(int(count), n) for count in counts]
    assert 0.93 < sum(low <= share <= high for low, high in bounds) / len(bounds) < 0.98


def test_calibration_by_hand():
    answers = Predictions(tuple("abcd"), (0, 0, 1, 1), (0, 1, 1, 1), (0.95, 0.92, 0.55, 1.0))
    found = Evaluation("m", "d", "test", ("x", "y"), answers, 4, 0.1)
    low, high = found.compute_calibration()
    assert (low.n, low.confidence, low.accuracy) == (1, 0.55, 1.0)
    assert (high.n, high.accuracy) == (3, pytest.approx(2 / 3))
    assert high.confidence == pytest.approx((0.95 + 0.92 + 1.0) / 3)
    assert found.compute_calibration_error() == pytest.approx((1 * 0.45 + 3 * abs(high.confidence - 2 / 3)) / 4)
    assert (found.correct, found.confusion) == (3, ((1, 1), (0, 2)))
    assert found.find_mistakes(9) == [1]
    assert found.find_least_confident(2) == [2, 1]
    assert format_accuracy(3, 4) == "75.00% (95% interval 30.1% to 95.4%)"


def test_hidden_layers_of_a_head_are_kept(tmp_path, pictures):
    """Of a head with hidden layers only the classifier is new, and the network stays what it is."""
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
    before, after = state(first), state(second)
    torch.testing.assert_close(before["head.linear1.weight"], after["head.linear1.weight"])
    assert after["head.linear.weight"].shape == (2, 12)
    assert rk.build("vgg11", classes=7, device="meta").card.spec.head == MLP(7)
