"""Training, evaluation and prediction on pictures a machine can learn in a second."""

import contextlib
import io
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import resnetkit as rk
from resnetkit.architecture.spec import NoHead, Pooled
from resnetkit.commands.progress import LiveProgress
from resnetkit.errors import DataError, MachineError, TextError, UsageError
from resnetkit.evaluation.metrics import count_predictions
from resnetkit.runtime.device import has_fast_bf16, select_device, select_precision
from resnetkit.serialization import to_toml
from resnetkit.training.optimizer import build_optimizer
from resnetkit.training.recipe import Recipe
from resnetkit.training.run_folder import EpochMetrics, RunSetup, StepMetrics
from resnetkit.training.setup import _make_run_folder

from helpers.tiny import BASE

SETTINGS = {"epochs": 3, "batch_size": 8, "optimizer": {"lr": 0.05}, "precision": "fp32"}


@pytest.fixture
def flowers(pictures):
    return pictures("flowers", ["rose", "daisy", "tulip"], 20)


def weights(run):
    return {path.name: path.read_bytes() for path in (run.path / "model").iterdir() if path.suffix == ".safetensors"}


def test_a_run_leaves_what_it_should(flowers, network, tmp_path):
    events = []
    run = rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS, on_event=events.append)
    assert sorted(path.name for path in run.path.iterdir()) == [
        "environment.json", "metrics.jsonl", "model", "network.toml", "report.html", "results.json", "run.toml",
    ]  # fmt: skip
    assert isinstance(events[0], RunSetup)
    assert sum(isinstance(event, StepMetrics) for event in events) == 3 * 6  # 42 pictures in batches of 8
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"step", "epoch"}
    steps = [line for line in lines if line.pop("kind") == "step"]
    lines = [line for line in lines if line not in steps]
    assert [(line["epoch"], line["step"]) for line in steps] == [(e, s) for e in (1, 2, 3) for s in range(1, 7)]
    assert all(set(line) == {"epoch", "step", "lr", "loss"} and line["loss"] > 0 for line in steps)
    assert (
        lines
        == [asdict(event) for event in events if isinstance(event, EpochMetrics)]
        == [asdict(e) for e in run.epochs]
    )
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert run.card.classes == ("daisy", "rose", "tulip")
    assert run.evaluation.split == "test"
    assert run.evaluation.n == 12
    assert run.evaluation.correct >= 11
    assert run.epochs[run.best_epoch - 1].val_correct == max(epoch.val_correct for epoch in run.epochs)
    page = (run.path / "report.html").read_text()
    assert f"{run.evaluation.correct} of {run.evaluation.n} pictures" in page
    assert "default-src 'none'" in page


@pytest.mark.parametrize("augment", [{"kind": "pad-crop"}, {"kind": "random-resized-crop"}, {"kind": "no-augment"}])
def test_the_same_seed_gives_the_same_weights(flowers, network, tmp_path, augment):
    settings = SETTINGS | {"augment": augment, "epochs": 2}
    first, second = (rk.train(flowers, network, out=tmp_path / name, settings=settings) for name in "ab")
    other = rk.train(flowers, network, out=tmp_path / "c", settings=settings | {"seed": 1})
    assert weights(first) == weights(second) != weights(other)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": {"kind": "adam-w"}},
        {"schedule": {"kind": "triangle"}},
        {"schedule": {"kind": "multi-step", "milestones": [1]}},
        {"label_smoothing": 0.1},
        {"start": {"kind": "scratch", "zero_last_norm": True}},
        {"split_seed": 1},
        {"precision": "bf16"},
    ],
)
def test_other_recipes_give_other_weights(flowers, network, tmp_path, settings):
    plain = SETTINGS | {"epochs": 2}
    usual = rk.train(flowers, network, out=tmp_path / "usual", settings=plain)
    run = rk.train(flowers, network, out=tmp_path / "run", settings=plain | settings)
    assert weights(run) != weights(usual)
    assert run.recipe != usual.recipe


def test_a_saved_model_evaluates_as_the_run_did(flowers, network, tmp_path):
    run = rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS)
    again = rk.evaluate(run.path, flowers)  # the held-out part, because this data is what it was trained on
    assert (again.split, again.n, again.correct) == ("test", run.evaluation.n, run.evaluation.correct)
    assert again.confusion == run.evaluation.confusion
    every = rk.evaluate(run.path / "model", flowers, split="all")
    assert every.n == 60
    train = rk.evaluate(run.path, flowers, split="train")
    assert train.n == 42
    with pytest.raises(UsageError, match="the data have no split 'holdout'"):
        rk.evaluate(run.path, flowers, split="holdout")


def test_classes_are_matched_by_name(flowers, network, tmp_path, pictures):
    run = rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS)
    full = rk.evaluate(run.path, flowers, split="all")
    some = tmp_path / "some"
    for name in ("tulip", "rose"):
        (some / name).mkdir(parents=True)
        for path in (flowers / name).iterdir():
            (some / name / path.name).write_bytes(path.read_bytes())
    part = rk.evaluate(run.path, some)
    assert part.split == "all"
    right = {name: correct for name, _, correct in full.count_per_class()}
    assert {name: correct for name, _, correct in part.count_per_class()} == {
        name: right[name] for name in ("rose", "tulip")
    }
    with pytest.raises(DataError) as caught:
        rk.evaluate(run.path, pictures("other", ["rose", "tulpe"]))
    assert str(caught.value) == (
        "error: the model does not have 1 of 2 classes of the dataset: tulpe\n"
        "where: the model's classes: daisy, rose, tulip\nfix: did you mean tulip?"
    )


def test_predictions_come_in_order_and_bad_files_are_rows(flowers, network, tmp_path):
    run = rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    Image.new("L", (50, 9)).save(tmp_path / "grey.png")
    files = [flowers / "rose" / "3.png", bad, tmp_path / "none.png", tmp_path / "grey.png", flowers / "tulip"]
    answers = rk.predict(files, run.path, top=2, batch_size=4)
    assert [answer.file for answer in answers[:4]] == [str(path) for path in files[:4]]
    assert len(answers) == 4 + 20
    assert (answers[0].label, answers[0].error, len(answers[0].top)) == ("rose", "", 2)
    assert answers[1].error == "not a supported image; allowed: JPEG, PNG, WEBP, BMP, GIF"
    assert answers[2].error == "the file does not exist"
    assert answers[3].label in run.card.classes
    assert sum(answer.label == "tulip" for answer in answers[4:]) >= 18
    for answer in answers:
        assert answer.error or answer.top[0][1] >= answer.top[1][1] > 0
    alone = rk.predict(files[0], rk.load(run.path))[0]
    assert dict(alone.top[:2]) == pytest.approx(dict(answers[0].top))


def test_counts_do_not_depend_on_the_batch():
    answers = torch.randn(103, 7)
    labels = torch.arange(103) % 7
    results = []
    for size in (1, 7, 64, 103):
        chunks = [np.arange(i, min(i + size, 103)) for i in range(0, 103, size)]
        batches = [(answers[which], labels[which], which) for which in chunks]
        tally = count_predictions(lambda pixels: pixels, batches, 7)
        results.append(tally)
        assert tally.indices == tuple(range(103))
        assert tally.correct == int((answers.argmax(1) == labels).sum())
        assert tally.loss == pytest.approx(float(torch.nn.functional.cross_entropy(answers, labels)), rel=1e-6)
        assert tally.confidence == tuple(answers.softmax(1).max(1).values.tolist())
    assert all(result == results[0] for result in results)
    assert results[0].predicted == tuple(answers.argmax(1).tolist())
    assert results[0].top5_correct == sum(
        int(label in row.topk(5).indices) for row, label in zip(answers, labels, strict=True)
    )


def test_one_class_is_nothing_to_tell_apart(pictures, network, tmp_path):
    with pytest.raises(DataError) as caught:
        rk.train(pictures("d", ["cat"]), network, out=tmp_path / "run")
    assert caught.value.what == "there is one class only (cat), so there is nothing to tell apart"
    assert not (tmp_path / "run").exists()


def test_a_bad_picture_stops_before_anything_is_written(flowers, network, tmp_path):
    (flowers / "rose" / "3.png").write_bytes(b"no picture")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match="1 unreadable image"):
        rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_out_that_is_taken(flowers, network, tmp_path):
    run = rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS | {"epochs": 1})
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="there is a finished run in this folder"):
        rk.train(flowers, network, out=run.path)
    (run.path / "model").rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError) as caught:
        rk.train(flowers, network, out=run.path)
    told = "error: there is an unfinished run in this folder\nwhere: {0}\nfix: resnetkit train --resume {0}"
    assert str(caught.value) == told.format(run.path)
    with pytest.raises(UsageError, match="--out exists already"):
        rk.train(flowers, network, out=flowers)
    assert all(path.read_bytes() == content for path, content in before.items() if path.exists())


def test_weight_decay_is_for_what_multiplies():
    model = rk.build(BASE)
    optimiser = build_optimizer(model, Recipe("d", "mine"))
    kept = {id(p) for group in optimiser.param_groups if not group["weight_decay"] for p in group["params"]}
    for path, parameter in model.named_parameters():
        assert (id(parameter) in kept) == (not path.endswith("weight") or "norm" in path), path
    assert sum(len(group["params"]) for group in optimiser.param_groups) == len(list(model.parameters()))


def test_answering_leaves_a_model_as_it_was(flowers):
    model = rk.build(BASE, classes=["daisy", "rose", "tulip"]).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    rk.evaluate(model, flowers)
    rk.predict(flowers / "rose", model)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("head", [Pooled(), NoHead()])
def test_a_model_without_a_classifier_names_nothing(flowers, head):
    model = rk.build(replace(BASE, head=head))
    for ask in (lambda: rk.predict(flowers, model), lambda: rk.evaluate(model, flowers)):
        with pytest.raises(UsageError, match="this network has no classifier, so it names no class"):
            ask()


def test_train_and_val_alone_are_measured_on_val(pictures, network, tmp_path):
    data = pictures("d/train", ["a", "b"], 20).parent
    run = rk.train(data, network, out=tmp_path / "run", settings=SETTINGS)
    again = rk.evaluate(run.path, data)
    assert (again.split, again.n, again.correct) == ("val", 4, run.evaluation.correct)
    assert rk.evaluate(run.path, data, split="train").n == 36


def test_too_few_pictures(pictures, network, tmp_path):
    with pytest.raises(DataError) as caught:
        rk.train(pictures("d", ["a", "b"], 2), network, out=tmp_path / "run")
    assert caught.value.what == "too few images to split: 4"
    assert caught.value.fix == "add images"


def test_two_runs_that_choose_the_same_number(tmp_path):
    (tmp_path / "d-m-1").mkdir()
    assert _make_run_folder(tmp_path / "d-m-1", numbered=True) == (tmp_path / "d-m-2",)
    with pytest.raises(MachineError, match="File exists"):
        _make_run_folder(tmp_path / "d-m-1", numbered=False)


def test_a_network_that_pictures_cannot_feed(flowers, tmp_path):
    path = tmp_path / "two.toml"
    path.write_text(to_toml(replace(BASE, input=(2, 16, 16))))
    with pytest.raises(TextError) as caught:
        rk.train(flowers, path, out=tmp_path / "run")
    assert "input: came 2 channels; allowed: 1 (grey) or 3 (RGB), as pictures have" in str(caught.value)


def test_the_live_line(flowers, network, tmp_path):
    screen = io.StringIO()
    live = LiveProgress(Console(file=screen, force_terminal=True, width=200, highlight=False))
    with contextlib.closing(live):
        rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS, on_event=live, on_progress=live.on_progress)
    said = screen.getvalue()
    assert "epoch 3/3  loss " in said
    assert "3 classes; images: 42 train, 6 val, 12 test" in said
    assert live.format_step(StepMetrics(2, 3, 6, 0.5, 0.25, 40.0)) == (
        "epoch 2/3  step 3/6  loss 0.500  accuracy 25.0%  40 images/s  0:02 left"
    )


def test_the_words_of_the_command_line(flowers, network, tmp_path):
    run = rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS, epochs=1, lr=0.2, seed=3)
    assert (run.recipe.epochs, run.recipe.optimizer.lr, run.recipe.seed, run.recipe.batch_size) == (1, 0.2, 3, 8)
    with pytest.raises(TypeError, match="epoch"):
        rk.train(flowers, network, out=tmp_path / "other", epoch=1)


def test_without_out_each_run_gets_the_next_number(flowers, network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [rk.train("flowers", network, settings=SETTINGS | {"epochs": 1}).path for _ in range(2)]
    assert [str(path) for path in runs] == ["runs/flowers-mine-1", "runs/flowers-mine-2"]


def test_a_loss_that_is_no_number_stops_the_run(flowers, network, tmp_path):
    settings = SETTINGS | {"optimizer": {"lr": 1e30}, "schedule": {"kind": "cosine", "warmup": 0}}
    with pytest.raises(DataError) as caught:
        rk.train(flowers, network, out=tmp_path / "run", settings=settings)
    assert caught.value.what.startswith("the loss became ")
    assert caught.value.where[0].startswith("epoch 1, step ")
    assert caught.value.fix == "a smaller rate: --set optimizer.lr=1e+29"
    assert not (tmp_path / "run" / "model").exists()


def test_devices_and_precision():
    assert select_device("cpu").type == "cpu"
    assert select_precision("fp32", select_device("cpu")) == "fp32"
    assert select_precision("auto", select_device("cpu")) == ("bf16" if has_fast_bf16(select_device("cpu")) else "fp32")
    with pytest.raises(UsageError, match="unknown device 'gpu'"):
        select_device("gpu")
    with pytest.raises(UsageError, match="resnetkit does not support the device 'mps'"):
        select_device("mps")
    if not torch.cuda.is_available():
        with pytest.raises(MachineError, match="this machine does not have cuda"):
            select_device("cuda")


def test_the_digits(tmp_path, network):
    settings = {"epochs": 3, "precision": "fp32", "input_size": [1, 8, 8]}
    run = rk.train("digits", network, out=tmp_path / "run", settings=settings)
    assert run.card.spec.input == (1, 8, 8)
    assert run.evaluation.n == 359
    assert run.evaluation.top1 > 0.5
    assert rk.evaluate(run.path, "digits").correct == run.evaluation.correct
