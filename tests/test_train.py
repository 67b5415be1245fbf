"""Training, evaluation and prediction on images that a small network learns in a second."""

import contextlib
import io
import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import resnetkit as rk
from resnetkit.architecture.spec import NoHead, Pooled
from resnetkit.commands.progress import LiveProgress
from resnetkit.errors import DataError, Fault, MachineError, TextError, UsageError
from resnetkit.evaluation.metrics import count_predictions
from resnetkit.runtime.device import has_fast_bf16, select_device, select_precision
from resnetkit.serialization import to_toml
from resnetkit.training.events import EpochMetrics, PreparedRun, StepMetrics
from resnetkit.training.optimizer import build_optimizer
from resnetkit.training.recipe import Recipe
from resnetkit.training.run_folder import make_run_folder

from helpers.tiny import BASE

SETTINGS = {"epochs": 3, "batch_size": 8, "optimizer": {"lr": 0.05}, "precision": "fp32"}


@pytest.fixture
def trained(pictures, network, run_cache):
    """(a dataset, a run that was trained on it); shared, so that no test may change them."""
    if "trained" not in run_cache.runs:
        data = shutil.copytree(pictures("shared", ["rose", "daisy", "tulip"], 20), run_cache.folder / "flowers")
        run_cache.train("trained", data, network, settings=SETTINGS)
    return run_cache.folder / "flowers", run_cache.runs["trained"]


def read_weights(run):
    return {path.name: path.read_bytes() for path in (run.path / "model").iterdir() if path.suffix == ".safetensors"}


def test_a_run_folder_is_complete(flowers, network, tmp_path):
    events = []
    run = rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS, on_event=events.append)
    assert sorted(path.name for path in run.path.iterdir()) == [
        "environment.json", "images.csv", "metrics.jsonl", "model", "network.toml", "report.html", "results.json",
        "run.toml",
    ]  # fmt: skip
    assert isinstance(events[0], PreparedRun)
    assert sum(isinstance(event, StepMetrics) for event in events) == 3 * 6  # 42 images in batches of 8
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
    assert f"{run.evaluation.correct} of {run.evaluation.n} images of test are classified correctly" in page
    assert "default-src 'none'" in page


@pytest.mark.parametrize("augment", [{"kind": "pad-crop"}, {"kind": "random-resized-crop"}, {"kind": "no-augment"}])
def test_the_same_seed_gives_the_same_weights(flowers, network, tmp_path, augment):
    settings = SETTINGS | {"augment": augment, "epochs": 2}
    first, second = (rk.train(flowers, network, out=tmp_path / name, settings=settings) for name in "ab")
    third = rk.train(flowers, network, out=tmp_path / "c", settings=settings | {"seed": 1})
    assert read_weights(first) == read_weights(second) != read_weights(third)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": {"kind": "adam-w"}},
        {"schedule": {"kind": "triangle"}},
        {"schedule": {"kind": "multi-step", "milestones": [0.5]}},
        {"label_smoothing": 0.1},
        {"start": {"kind": "scratch", "zero_last_norm": True}},
        {"split_seed": 1},
        {"precision": "bf16"},
    ],
)
def test_other_recipes_give_other_weights(flowers, network, tmp_path, run_cache, settings):
    default = SETTINGS | {"epochs": 1}
    usual = run_cache.train("one-epoch", flowers, network, settings=default)
    run = rk.train(flowers, network, out=tmp_path / "run", settings=default | settings)
    assert read_weights(run) != read_weights(usual)
    assert run.recipe != usual.recipe


def test_a_saved_model_evaluates_as_the_run_did(trained):
    data, run = trained
    evaluation = rk.evaluate(run.path, data)  # the held-out split, as the model was trained on this data
    assert (evaluation.split, evaluation.n, evaluation.correct) == ("test", run.evaluation.n, run.evaluation.correct)
    assert evaluation.confusion == run.evaluation.confusion
    assert rk.evaluate(run.path / "model", data, split="all").n == 60
    assert rk.evaluate(run.path, data, split="train").n == 42
    with pytest.raises(UsageError, match="the data has no split 'holdout'"):
        rk.evaluate(run.path, data, split="holdout")


def test_classes_are_matched_by_name(trained, tmp_path, pictures):
    data, run = trained
    whole = rk.evaluate(run.path, data, split="all")
    for name in ("tulip", "rose"):
        shutil.copytree(data / name, tmp_path / "two" / name)
    evaluation = rk.evaluate(run.path, tmp_path / "two")
    assert evaluation.split == "all"
    correct = {name: n_correct for name, _, n_correct in whole.count_per_class()}
    assert {name: n_correct for name, _, n_correct in evaluation.count_per_class()} == {
        name: correct[name] for name in ("rose", "tulip")
    }
    with pytest.raises(DataError) as caught:
        rk.evaluate(run.path, pictures("misspelled", ["rose", "tulpe"]))
    assert str(caught.value) == (
        "error: the model does not have 1 of 2 classes of the dataset: tulpe\n"
        "where: the model's classes: daisy, rose, tulip\nfix: did you mean tulip?"
    )


def test_predictions_come_in_order_and_bad_files_are_rows(trained, tmp_path):
    data, run = trained
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not an image")
    Image.new("L", (50, 9)).save(tmp_path / "grey.png")
    files = [data / "rose" / "3.png", bad, tmp_path / "none.png", tmp_path / "grey.png", data / "tulip"]
    answers = rk.predict(files, run.path, top=2, batch_size=4)
    assert [answer.file for answer in answers[:4]] == [str(path) for path in files[:4]]
    assert len(answers) == 4 + 20
    assert (answers[0].label, answers[0].error, len(answers[0].top)) == ("rose", "", 2)
    assert answers[1].error == "not a supported image; allowed: JPEG, PNG, WEBP, BMP, GIF, TIFF, AVIF, ICO, PPM"
    assert answers[2].error == "the file does not exist"
    assert answers[3].label in run.card.classes
    assert sum(answer.label == "tulip" for answer in answers[4:]) >= 18
    for answer in answers:
        assert answer.error or answer.top[0][1] >= answer.top[1][1] > 0
    single = rk.predict(files[0], rk.load(run.path))[0]
    assert dict(single.top[:2]) == pytest.approx(dict(answers[0].top))


def test_counts_do_not_depend_on_the_batch():
    outputs = torch.randn(103, 7)
    labels = torch.arange(103) % 7
    results = []
    for size in (1, 7, 64, 103):
        chunks = [np.arange(i, min(i + size, 103)) for i in range(0, 103, size)]
        batches = [(outputs[indices], labels[indices], indices) for indices in chunks]
        counts = count_predictions(lambda pixels: pixels, batches, 7)
        results.append(counts)
        assert counts.indices == tuple(range(103))
        assert counts.correct == int((outputs.argmax(1) == labels).sum())
        assert counts.loss == pytest.approx(float(torch.nn.functional.cross_entropy(outputs, labels)), rel=1e-6)
        assert counts.confidence == tuple(outputs.softmax(1).max(1).values.tolist())
    assert all(result == results[0] for result in results)
    assert results[0].predicted == tuple(outputs.argmax(1).tolist())
    assert results[0].top5_correct == sum(
        int(label in row.topk(5).indices) for row, label in zip(outputs, labels, strict=True)
    )


def test_one_class_is_an_error(pictures, network, tmp_path):
    with pytest.raises(DataError) as caught:
        rk.train(pictures("d", ["cat"]), network, out=tmp_path / "run")
    assert caught.value.what == "at least two classes are needed; the data has one (cat)"
    assert not (tmp_path / "run").exists()


def test_an_unreadable_image_stops_before_anything_is_written(flowers, network, tmp_path):
    (flowers / "rose" / "3.png").write_bytes(b"not an image")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match="1 unreadable image"):
        rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_existing_out_is_not_overwritten(trained, network, tmp_path):
    data, run = trained
    finished, unfinished = (shutil.copytree(run.path, tmp_path / name) for name in ("finished", "unfinished"))
    shutil.rmtree(unfinished / "model")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="--out holds a finished run"):
        rk.train(data, network, out=finished)
    with pytest.raises(UsageError) as caught:
        rk.train(data, network, out=unfinished)
    message = "error: --out holds an unfinished run\nwhere: {0}\nfix: resnetkit train --resume {0}"
    assert str(caught.value) == message.format(unfinished)
    with pytest.raises(UsageError, match="--out exists already"):
        rk.train(data, network, out=data)
    with pytest.raises(UsageError, match="the run folder is inside the data"):
        rk.train(data, network, out=data / "run")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_norms_and_biases_have_no_weight_decay():
    model = rk.build(BASE)
    optimizer = build_optimizer(model, Recipe("d", "mine"))
    without_decay = {id(p) for group in optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    for path, parameter in model.named_parameters():
        assert (id(parameter) in without_decay) == (not path.endswith("weight") or "norm" in path), path
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_inference_does_not_change_a_model(flowers):
    model = rk.build(BASE, classes=["daisy", "rose", "tulip"]).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    rk.evaluate(model, flowers)
    rk.predict(flowers / "rose", model)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("head", [Pooled(), NoHead()])
def test_a_model_without_a_classifier_cannot_predict(flowers, head):
    model = rk.build(replace(BASE, head=head))
    for call in (lambda: rk.predict(flowers, model), lambda: rk.evaluate(model, flowers)):
        with pytest.raises(UsageError, match="this network has no classifier, so it has no classes"):
            call()


def test_data_without_a_test_split_is_evaluated_on_val(pictures, network, tmp_path):
    data = pictures("d/train", ["a", "b"], 20).parent
    run = rk.train(data, network, out=tmp_path / "run", settings=SETTINGS)
    evaluation = rk.evaluate(run.path, data)
    assert (evaluation.split, evaluation.n, evaluation.correct) == ("val", 4, run.evaluation.correct)
    assert rk.evaluate(run.path, data, split="train").n == 36


def test_too_few_images(pictures, network, tmp_path):
    with pytest.raises(DataError) as caught:
        rk.train(pictures("d", ["a", "b"], 2), network, out=tmp_path / "run")
    assert caught.value.what == "too few images to split: 4"
    assert caught.value.fix == "add images"


def test_two_runs_that_choose_the_same_number(tmp_path):
    (tmp_path / "d-m-1").mkdir()
    assert make_run_folder(tmp_path / "d-m-1", numbered=True) == (tmp_path / "d-m-2",)
    with pytest.raises(MachineError, match="File exists"):
        make_run_folder(tmp_path / "d-m-1", numbered=False)


def test_a_network_with_two_input_channels_is_refused(flowers, tmp_path):
    path = tmp_path / "two.toml"
    path.write_text(to_toml(replace(BASE, input=(2, 16, 16))))
    with pytest.raises(TextError) as caught:
        rk.train(flowers, path, out=tmp_path / "run")
    assert caught.value.faults == (Fault("input", "2 channels", "1 (grayscale) or 3 (RGB), as images have"),)


def test_the_live_line(flowers, network, tmp_path):
    screen = io.StringIO()
    live = LiveProgress(Console(file=screen, force_terminal=True, width=200, highlight=False))
    with contextlib.closing(live):
        rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS, on_event=live, on_progress=live.on_progress)
    output = screen.getvalue()
    assert "epoch 3/3  loss " in output
    assert "3 classes; images: 42 train, 6 val, 12 test" in output
    assert live.format_step(StepMetrics(2, 3, 6, 0.5, 0.25, 40.0)) == (
        "epoch 2/3  step 3/6  loss 0.500  accuracy 25.0%  40 images/s  0:02 left"
    )


def test_options_of_the_command_line_are_arguments(flowers, network, tmp_path):
    run = rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS, epochs=1, lr=0.2, seed=3)
    assert (run.recipe.epochs, run.recipe.optimizer.lr, run.recipe.seed, run.recipe.batch_size) == (1, 0.2, 3, 8)
    with pytest.raises(TypeError, match="epoch"):
        rk.train(flowers, network, out=tmp_path / "misspelled", epoch=1)


def test_without_out_each_run_gets_the_next_number(flowers, network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [rk.train("flowers", network, settings=SETTINGS | {"epochs": 1}).path for _ in range(2)]
    assert [str(path) for path in runs] == ["runs/flowers-mine-1", "runs/flowers-mine-2"]


def test_a_loss_that_stays_nan_stops_the_run(flowers, network, tmp_path):
    settings = SETTINGS | {"optimizer": {"lr": 1e30}, "schedule": {"kind": "cosine", "warmup": 0}}
    with pytest.raises(DataError) as caught:
        rk.train(flowers, network, out=tmp_path / "run", settings=settings)
    assert caught.value.what.startswith("the loss became ")
    assert caught.value.where[0].startswith("epoch 1, step ")
    assert caught.value.fix == "use a smaller learning rate: --set optimizer.lr=1e+29"
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


def test_digits(tmp_path, network):
    settings = {"epochs": 2, "precision": "fp32", "input_size": [1, 8, 8]}
    run = rk.train("digits", network, out=tmp_path / "run", settings=settings)
    assert run.card.spec.input == (1, 8, 8)
    assert run.evaluation.n == 359
    assert run.evaluation.top1 > 0.5
    assert rk.evaluate(run.path, "digits").correct == run.evaluation.correct
