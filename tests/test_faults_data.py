"""Pictures that fail while a network learns from them, is measured, or is asked."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import resnetkit as rk
from resnetkit.data.bad_files import Skip, SkippedFiles, parse_bad_files_policy
from resnetkit.data.dataset import find_leaks
from resnetkit.data.loader import ImageLoader
from resnetkit.data.open import open_dataset
from resnetkit.errors import DataError, UsageError
from resnetkit.images.decode import find_images
from resnetkit.training import trainer as training
from resnetkit.training.run_folder import read_run

from helpers.tiny import BASE

SETTINGS = {"epochs": 2, "batch_size": 8, "precision": "fp32"}
JUNK = {"empty": b"", "random": bytes(range(256)), "text": b"this is a text, not a picture\n"}


@pytest.fixture
def flowers(pictures):
    return pictures("flowers", ["rose", "daisy", "tulip"], 20)


def spoil(folder, count):
    """Overwrite the first pictures of a class with what is none: (their paths)."""
    bad = sorted(folder.glob("*.png"))[:count]
    for path, content in zip(bad, list(JUNK.values()) * count, strict=False):
        path.write_bytes(content)
    return bad


@pytest.mark.parametrize("augment", ["pad-crop", "random-resized-crop"])
def test_d01_d03_bad_files_are_skipped_named_and_counted(flowers, network, tmp_path, augment):
    bad = spoil(flowers / "rose", 3)
    settings = SETTINGS | {"augment": augment, "bad_files": {"kind": "skip", "max_fraction": 0.1}}
    seen, original = Counter(), training.load_augmented

    def spy(source, indices, *rest, **share):
        pixels, which = original(source, indices, *rest, **share)
        seen.update((source.images.format_location(i), int(source.labels[i])) for i in which.tolist())
        return pixels, which

    training.load_augmented = spy
    try:
        run = rk.train(flowers, network, out=tmp_path / "run", settings=settings)
    finally:
        training.load_augmented = original
    assert {name for name, _ in run.evaluation.skipped} == set(map(str, bad))
    assert all(reason for _, reason in run.evaluation.skipped)
    clean = open_dataset(flowers)
    good = Counter(
        {
            (str(p), int(n)): 2
            for p, n in zip(clean.train_split.paths, clean.train_split.labels, strict=True)
            if p not in bad
        }
    )
    assert all(seen[pair] == good[pair] for pair in seen)  # each twice, in two epochs, with its own label
    assert sum(seen.values()) == 2 * sum(str(p) in {w for w, _ in seen} for p in clean.train_split.paths)
    assert all(str(path) in (run.path / "report.html").read_text() for path in bad)


def test_d03_every_epoch_has_the_same_number_of_steps(flowers, network, tmp_path):
    spoil(flowers / "rose", 3)
    steps = []
    for name, at_most in (("a", 0.1), ("b", 0.5)):
        events = []
        rk.train(flowers, network, out=tmp_path / name, on_event=events.append,
                 settings=SETTINGS | {"bad_files": {"kind": "skip", "max_fraction": at_most}})  # fmt: skip
        steps.append([event.step for event in events if hasattr(event, "steps_per_epoch")])
    assert steps[0] == steps[1]


@pytest.mark.parametrize("augment", ["pad-crop", "random-resized-crop"])
def test_d04_too_many_bad_files_stop_the_run(flowers, network, tmp_path, cli, augment):
    bad = spoil(flowers / "rose", 20) + spoil(flowers / "daisy", 5)
    words = ["train", flowers, "--model", network, "--out", tmp_path / "run", "--set", f"augment={augment}"]
    code, out, err = cli(*words, "--max-bad", "5%")
    assert (code, out) == (3, "")
    lines = err[err.index("error: ") :].splitlines()
    count = int(lines[0].split()[1])
    assert lines[0].endswith("unreadable images of 60; at most 3 may be skipped (0.05 of all)")
    assert sum(any(str(path) in line for path in bad) for line in lines) == min(count, 20)
    assert lines[-1] == (
        f"fix: resnetkit check {flowers} --write-list bad.txt lists all of them; repair or remove them, or allow more: "
        "--max-bad 10%"
    )
    assert not (tmp_path / "run" / "model").exists()


def test_d01_evaluation_takes_bad_files_for_an_error_unless_told(flowers, network, tmp_path, cli):
    model = rk.build(BASE, classes=["daisy", "rose", "tulip"])
    (bad,) = spoil(flowers / "rose", 1)
    with pytest.raises(DataError, match="1 unreadable image"):
        rk.evaluate(model, flowers)
    found = rk.evaluate(model, flowers, max_bad="5%")
    assert found.skipped == ((str(bad), "the file is empty"),)
    assert (found.n, len(found.predictions)) == (59, 59)
    assert str(bad.relative_to(flowers)) not in found.predictions.names
    rk.save(model, tmp_path / "model")
    code, out, err = cli("evaluate", tmp_path / "model", flowers, "--bad-files", "skip", "--max-bad", "0.1", "--json")
    document = json.loads(out)
    assert (code, document["n"], document["skipped"]) == (0, 59, [{"file": str(bad), "error": "the file is empty"}])
    assert f"skipped: {bad}: the file is empty" in err
    for words in (["--max-bad", "many"], ["--max-bad", "nan"], ["--max-bad", "-5%"], ["--bad-files", "ignore"]):
        assert cli("evaluate", tmp_path / "model", flowers, *words)[0] == 2


@pytest.mark.parametrize("share", ["2", "101%", "-0.1", "inf", "nan", "a lot"])
def test_shares_that_are_none(share):
    with pytest.raises(UsageError, match="not a fraction of the images"):
        parse_bad_files_policy(None, share)


def test_d10_a_file_that_vanishes_is_a_bad_one(flowers, tmp_path):
    data = open_dataset(flowers)
    how = rk.build(BASE).card.preparation
    skipped = SkippedFiles(data, Skip(0.1))
    source = ImageLoader(data.train_split, how, skipped, cache=False)
    gone = data.train_split.paths[3]
    gone.unlink()
    pixels, which = source.load_eval_pixels(np.arange(8))
    assert which.tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert pixels.shape[0] == 7
    assert skipped.reasons == {str(gone): "the file does not exist"}


def test_d10_a_file_that_fails_once_stays_out_of_the_run(flowers, monkeypatch):
    """Else the counts of a part and the names of its pictures would be of different sets."""
    data = open_dataset(flowers)
    skipped = SkippedFiles(data, Skip(0.1))
    source = ImageLoader(data.train_split, rk.build(BASE).card.preparation, skipped, cache=False)
    gone = data.train_split.paths[3]
    content = gone.read_bytes()
    gone.unlink()
    source.load_eval_pixels(np.arange(8))
    gone.write_bytes(content)
    assert source.load_eval_pixels(np.arange(8))[1].tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert sum(len(which) for _, which in source.iter_batches()) == 59


def test_a_model_is_saved_before_anything_can_fail(flowers, network, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "build_evaluation", lambda *words, **more: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS)
    assert rk.load(tmp_path / "run").card.classes == ("daisy", "rose", "tulip")


def test_a_picture_of_the_page_that_is_gone_is_not_shown(flowers, network, tmp_path, monkeypatch):
    original = training.build_evaluation

    def remove_first(card, data, part, tally, source, **more):
        for path in source.images.paths[:5]:
            path.unlink()
        return original(card, data, part, tally, source, **more)

    monkeypatch.setattr(training, "build_evaluation", remove_first)
    run = rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS)
    assert len(run.results.thumbnails) == 7
    assert run.evaluation.n == 12


def test_nothing_readable_is_said(flowers, network, tmp_path):
    model = rk.build(BASE, classes=["daisy", "rose", "tulip"])
    for path in flowers.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="the all split has no readable image"):
        rk.evaluate(model, flowers, max_bad="100%")


def test_pictures_that_may_have_been_learnt_are_said(flowers, network, tmp_path, pictures):
    run = rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS)
    assert rk.evaluate(run, flowers).notes == ()
    assert rk.evaluate(run, flowers, split="train").notes == ("the model was trained on these images",)
    events = []
    rk.train(flowers, run, out=tmp_path / "other", settings=SETTINGS, split_seed=1, on_event=events.append)
    assert "mine has learnt from flowers before, with other pictures held out: " in events[0].notes[-1]
    (flowers / "rose" / "new.png").write_bytes((flowers / "rose" / "1.png").read_bytes())
    (note,) = rk.evaluate(run, flowers).notes
    assert note.startswith("the files of flowers are not those that the model was trained on")


def test_val_that_also_chose_the_epoch_is_said_to_be_kind(tmp_path, pictures, network):
    data = pictures("d/train", ["a", "b"], 20).parent
    run = rk.train(data, network, out=tmp_path / "run", settings=SETTINGS)
    assert run.evaluation.split == "val"
    assert run.card.metrics[0].source.endswith("; val also chose the epoch, so this is kind")
    assert "val also chose the epoch, so this is kind" in (run.path / "report.html").read_text()


def test_a_run_that_cannot_begin_leaves_nothing(flowers, network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spoil(flowers / "rose", 20)
    with pytest.raises(DataError):
        rk.train(flowers, network, settings=SETTINGS)
    with pytest.raises(DataError):
        rk.train(flowers, network, settings=SETTINGS, out="deep/er/run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flowers", "mine.toml"]


def test_an_interrupt_keeps_the_best_epoch(flowers, network, tmp_path, cli, monkeypatch):
    original = training.Trainer.train_epoch

    def interrupted(self, number):
        if number == 2:
            raise KeyboardInterrupt
        return original(self, number)

    monkeypatch.setattr(training.Trainer, "train_epoch", interrupted)
    code, _, err = cli("train", flowers, "--model", network, "--out", tmp_path / "run", "--epochs", 3)
    assert code == 130
    assert err.splitlines()[-1] == f"interrupted; the model of epoch 1 is kept in {tmp_path / 'run'}"
    assert rk.load(tmp_path / "run").card.classes == ("daisy", "rose", "tulip")


def test_d10_an_error_of_the_disk_is_a_reason(flowers, monkeypatch):
    data = open_dataset(flowers)

    def fail(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("PIL.Image.open", fail)
    skipped = SkippedFiles(data, Skip(1.0))
    ImageLoader(data.train_split, rk.build(BASE).card.preparation, skipped, cache=False).load_eval_pixels(np.arange(3))
    assert set(skipped.reasons.values()) == {"input/output error"}


def test_d10_loops_and_odd_names(tmp_path, pictures, cli):
    root = pictures("d", ["a", "b"], 12)
    (root / "a" / "round").symlink_to(root)
    (root / "a" / "self").symlink_to(root / "a" / "self")
    odd = ["with space.png", "line\nbreak.png", "\U0001f980.png", os.fsdecode(b"\xff\xfe.png")]
    for name in odd:
        (root / "b" / name).write_bytes((root / "b" / "0.png").read_bytes()[:-1] + b"x")
    assert len(list(find_images(root))) == 24 + len(odd)
    (root / "a" / "round").unlink()
    run = rk.train(root, "resnet20", out=tmp_path / "run", settings=SETTINGS | {"epochs": 1}, seed=3)
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "<title>" in page
    code, out, _err = cli("predict", root / "b", "--model", run.path, "--json")
    assert code == 0
    names = [row["file"] for row in json.loads(out)["predictions"]]
    assert [name for name in names if "break" in name] == [str(root / "b" / "line\nbreak.png")]


def test_d13_twins_across_parts_are_said_once(tmp_path, pictures, network):
    pictures("d/train", ["a", "b"], 10)
    root = pictures("d/val", ["a", "b"], 3).parent  # the same colours and noise as in train
    found = find_leaks(open_dataset(root))
    assert len(found) == 6
    assert (str(root / "train" / "a" / "0.png"), str(root / "val" / "a" / "0.png")) in found
    run = rk.train(root, network, out=tmp_path / "run", settings=SETTINGS | {"epochs": 1})
    (note,) = run.results.notes
    assert note.startswith("6 pictures of one part are in another one, too, which measures too kindly: ")
    assert "6 pictures of one part are in another one, too" in (run.path / "report.html").read_text()


# ---------------------------------------------------------------------------------------------- a loss that is none


class Sick:
    """Pixels to input, with numbers that are none for the pictures of some steps."""

    def __init__(self, good, steps):
        self.good, self.steps, self.step = good, steps, 0

    def __call__(self, pixels):
        self.step += 1
        found = self.good(pixels)
        return found * float("nan") if self.step in self.steps else found


def sick_from(monkeypatch, steps):
    original = training.PixelNormalizer
    monkeypatch.setattr(training, "PixelNormalizer", lambda *words: Sick(original(*words), steps))


def test_t08_a_single_bad_step_is_left_out(flowers, network, tmp_path, monkeypatch):
    sick_from(monkeypatch, {2, 3})
    run = rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS)
    assert len(run.epochs) == 2
    assert all(torch.isfinite(value).all() for value in rk.load(run.path).state_dict().values())


def test_t08_bad_steps_in_a_row_end_the_run_and_keep_the_last_good_model(flowers, network, tmp_path, monkeypatch, cli):
    sick_from(monkeypatch, set(range(8, 99)))  # six steps in an epoch
    code, out, err = cli("train", flowers, "--model", network, "--out", tmp_path / "run", "--epochs", 3,
                         "--batch-size", 8, "--precision", "fp32")  # fmt: skip
    assert (code, out) == (3, "")
    lines = err[err.index("error: ") :].splitlines()
    assert lines[0] == "error: the loss became nan"
    assert lines[1].startswith("where: epoch 2, step 4, learning rate ")
    assert lines[1].endswith("norm of the gradient nan")
    assert lines[2].count(".png") == 3
    assert lines[3].startswith("fix: a smaller rate: --set optimizer.lr=")
    assert lines[3].endswith(f"; the model of epoch 1 is kept in {tmp_path / 'run'}")
    run = rk.load(tmp_path / "run")
    assert all(torch.isfinite(value).all() for value in run.state_dict().values())
    assert read_run(tmp_path / "run").results.stop_reason == "the loss became nan in epoch 2"
    assert (tmp_path / "run" / "metrics.jsonl").is_file()
    assert "the loss became nan in epoch 2" in (tmp_path / "run" / "report.html").read_text()


def test_t08_a_rate_that_is_far_too_high(flowers, network, tmp_path, cli):
    code, _out, err = cli("train", flowers, "--model", network, "--out", tmp_path / "run", "--lr", 1e6)
    assert code in (0, 3)  # with batch norm such a network can survive as noise
    assert "Traceback" not in err
    code, _out, err = cli("train", flowers, "--model", network, "--out", tmp_path / "other", "--lr", 1e30,
                         "--set", "schedule.warmup=0")  # fmt: skip
    assert code == 3
    assert "error: the loss on val is no number\nwhere: epoch 1\nfix: a smaller rate: --set optimizer.lr=1e+29" in err
    assert not (tmp_path / "other" / "model").exists()


# ---------------------------------------------------------------------------------------------- two runs at a time


def test_t14_two_runs_that_start_together_get_two_folders(flowers, network, tmp_path):
    code = (
        "import sys, torch; torch.set_num_threads(1); import resnetkit as rk\n"
        f"print(rk.train('flowers', {str(network)!r}, settings={SETTINGS | {'epochs': 1}!r}).path)"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = sorted(process.communicate()[0].strip() for process in started)
    assert told == ["runs/flowers-mine-1", "runs/flowers-mine-2"]
    for path in told:
        assert (tmp_path / path / "model" / "model.safetensors").is_file()
        lines = [json.loads(line) for line in (tmp_path / path / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [1]
        assert [line["step"] for line in lines if line["kind"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert Path(tmp_path / told[0] / "run.toml").read_text() == Path(tmp_path / told[1] / "run.toml").read_text()
