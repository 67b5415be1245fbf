"""Faults in training and evaluation: unreadable images, losses that are NaN, interrupts, runs that start together."""

import json
import os
from collections import Counter

import numpy as np
import pytest
import torch

import resnetkit as rk
from resnetkit.data.bad_files import Skip, SkippedFiles, parse_bad_files_policy
from resnetkit.data.identity import find_leaks, identify_dataset
from resnetkit.data.loader import ImageLoader
from resnetkit.data.open import open_dataset
from resnetkit.errors import DataError, UsageError
from resnetkit.images.decode import find_images
from resnetkit.training import batches, finish, trainer
from resnetkit.training.recipe import Recipe
from resnetkit.training.run_folder import choose_run_folder, make_run_folder, read_run
from resnetkit.training.trainer import Trainer

from helpers.runs import fork
from helpers.tiny import BASE

SETTINGS = {"epochs": 2, "batch_size": 8, "precision": "fp32"}
JUNK = [b"", bytes(range(256)), b"a text, not an image\n"]


def spoil(folder, count):
    """Overwrite the first images of a class with junk; return their paths."""
    bad = sorted(folder.glob("*.png"))[:count]
    for path, content in zip(bad, JUNK * count, strict=False):
        path.write_bytes(content)
    return bad


@pytest.mark.parametrize("augment", ["pad-crop", "random-resized-crop"])
def test_unreadable_images_are_skipped_listed_and_counted(flowers, network, tmp_path, monkeypatch, augment):
    bad = spoil(flowers / "rose", 3)
    settings = SETTINGS | {"augment": augment, "bad_files": {"kind": "skip", "max_fraction": 0.1}}
    seen, original = Counter(), batches.load_augmented

    def spy(loader, *args, **kwargs):
        pixels, indices = original(loader, *args, **kwargs)
        seen.update((loader.images.format_location(i), int(loader.labels[i])) for i in indices.tolist())
        return pixels, indices

    monkeypatch.setattr(batches, "load_augmented", spy)
    run = rk.train(flowers, network, out=tmp_path / "run", settings=settings)
    assert {name for name, _ in run.evaluation.skipped} == set(map(str, bad))
    assert all(reason for _, reason in run.evaluation.skipped)
    train = open_dataset(flowers).train_split
    labels = {str(path): int(label) for path, label in zip(train.paths, train.labels, strict=True) if path not in bad}
    assert seen
    assert all(count == 2 and labels[name] == label for (name, label), count in seen.items())  # once in each epoch
    assert all(str(path) in (run.path / "report.html").read_text() for path in bad)


def test_unreadable_images_do_not_change_the_number_of_steps(flowers, network, tmp_path):
    spoil(flowers / "rose", 3)
    steps = []
    for name, max_fraction in (("a", 0.1), ("b", 0.5)):
        events = []
        rk.train(flowers, network, out=tmp_path / name, on_event=events.append,
                 settings=SETTINGS | {"bad_files": {"kind": "skip", "max_fraction": max_fraction}})  # fmt: skip
        steps.append([event.step for event in events if hasattr(event, "steps_per_epoch")])
    assert steps[0] == steps[1]


@pytest.mark.parametrize("augment", ["pad-crop", "random-resized-crop"])
def test_too_many_unreadable_images_stop_the_run(flowers, network, tmp_path, cli, augment):
    bad = spoil(flowers / "rose", 20) + spoil(flowers / "daisy", 5)
    args = ["train", flowers, "--model", network, "--out", tmp_path / "run", "--set", f"augment={augment}"]
    code, out, err = cli(*args, "--max-bad", "5%")
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


def test_evaluation_skips_unreadable_images_only_if_allowed(flowers, network, tmp_path, cli):
    model = rk.build(BASE, classes=["daisy", "rose", "tulip"])
    (bad,) = spoil(flowers / "rose", 1)
    with pytest.raises(DataError, match="1 unreadable image"):
        rk.evaluate(model, flowers)
    evaluation = rk.evaluate(model, flowers, max_bad="5%")
    assert evaluation.skipped == ((str(bad), "the file is empty"),)
    assert (evaluation.n, len(evaluation.predictions)) == (59, 59)
    assert str(bad.relative_to(flowers)) not in evaluation.predictions.names
    rk.save(model, tmp_path / "model")
    code, out, err = cli("evaluate", tmp_path / "model", flowers, "--bad-files", "skip", "--max-bad", "0.1", "--json")
    document = json.loads(out)
    assert (code, document["n"], document["skipped"]) == (0, 59, [{"file": str(bad), "error": "the file is empty"}])
    assert f"skipped: {bad}: the file is empty" in err
    for args in (["--max-bad", "many"], ["--max-bad", "nan"], ["--max-bad", "-5%"], ["--bad-files", "ignore"]):
        assert cli("evaluate", tmp_path / "model", flowers, *args)[0] == 2


@pytest.mark.parametrize("share", ["2", "101%", "-0.1", "inf", "nan", "a lot"])
def test_invalid_fractions_of_images(share):
    with pytest.raises(UsageError) as caught:
        parse_bad_files_policy(None, share)
    assert str(caught.value) == (
        f"error: not a fraction of the images: {share!r}\nwhere: --max-bad\nfix: --max-bad 10% or 0.1"
    )


def test_an_image_that_was_unreadable_once_stays_skipped(flowers):
    """Otherwise a split's counts and the names of its images would belong to different sets."""
    data = open_dataset(flowers)
    skipped = SkippedFiles(data, Skip(0.1))
    loader = ImageLoader(data.train_split, rk.build(BASE).card.preparation, skipped, cache=False)
    removed = data.train_split.paths[3]
    content = removed.read_bytes()
    removed.unlink()
    pixels, indices = loader.load_eval_pixels(np.arange(8))
    assert indices.tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert pixels.shape[0] == 7
    assert skipped.reasons == {str(removed): "the file does not exist"}
    removed.write_bytes(content)
    assert loader.load_eval_pixels(np.arange(8))[1].tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert sum(len(indices) for _, indices in loader.iter_batches()) == 59


def test_the_model_is_saved_before_the_final_evaluation(flowers, network, tmp_path, monkeypatch):
    monkeypatch.setattr(finish, "build_evaluation", lambda *args, **kwargs: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS)
    assert rk.load(tmp_path / "run").card.classes == ("daisy", "rose", "tulip")


def test_a_removed_image_is_not_in_the_report(flowers, network, tmp_path, monkeypatch):
    original = finish.build_evaluation

    def remove_first(card, data, split, counts, loader, **kwargs):
        for path in loader.images.paths[:5]:
            path.unlink()
        return original(card, data, split, counts, loader, **kwargs)

    monkeypatch.setattr(finish, "build_evaluation", remove_first)
    run = rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS)
    assert len(run.results.thumbnails) == 7
    assert run.evaluation.n == 12


def test_a_split_without_a_readable_image_is_an_error(flowers):
    model = rk.build(BASE, classes=["daisy", "rose", "tulip"])
    for path in flowers.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="the all split has no readable image"):
        rk.evaluate(model, flowers, max_bad="100%")


def test_notes_say_if_the_model_may_have_seen_the_images(flowers, network, tmp_path, pictures):
    run = rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS)
    assert rk.evaluate(run, flowers).notes == ()
    assert rk.evaluate(run, flowers, split="train").notes == ("the model was trained on these images",)
    events = []
    rk.train(flowers, run, out=tmp_path / "other", settings=SETTINGS, split_seed=1, on_event=events.append)
    note = "mine was trained on 11 of the 18 images that are held out now, so the accuracy is likely too high"
    assert events[0].notes[-1] == note
    (flowers / "rose" / "new.png").write_bytes((flowers / "rose" / "1.png").read_bytes())
    (note,) = rk.evaluate(run, flowers).notes
    assert note == "the training of the model used 48 of 61 images, so the accuracy is likely too high"


def test_accuracy_on_val_is_called_optimistic(tmp_path, pictures, network):
    data = pictures("d/train", ["a", "b"], 20).parent
    run = rk.train(data, network, out=tmp_path / "run", settings=SETTINGS)
    assert run.evaluation.split == "val"
    assert run.card.metrics[0].source.endswith("; val also chose the epoch, so this accuracy is likely too high")
    assert "val also chose the epoch, so this accuracy is likely too high" in (run.path / "report.html").read_text()


def test_a_run_that_cannot_start_leaves_nothing(flowers, network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spoil(flowers / "rose", 20)
    with pytest.raises(DataError):
        rk.train(flowers, network, settings=SETTINGS)
    with pytest.raises(DataError):
        rk.train(flowers, network, settings=SETTINGS, out="deep/er/run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flowers", "mine.toml"]


def test_an_interrupt_keeps_the_best_epoch(flowers, network, tmp_path, cli, monkeypatch):
    original = Trainer.train_epoch

    def train_epoch(self, epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        return original(self, epoch)

    monkeypatch.setattr(Trainer, "train_epoch", train_epoch)
    code, _, err = cli("train", flowers, "--model", network, "--out", tmp_path / "run", "--epochs", 3)
    assert code == 130
    assert err.splitlines()[-1] == f"interrupted; the model of epoch 1 is kept in {tmp_path / 'run'}"
    assert rk.load(tmp_path / "run").card.classes == ("daisy", "rose", "tulip")


def test_a_disk_error_is_the_reason_of_a_skipped_image(flowers, monkeypatch):
    data = open_dataset(flowers)

    def fail(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("PIL.Image.open", fail)
    skipped = SkippedFiles(data, Skip(1.0))
    ImageLoader(data.train_split, rk.build(BASE).card.preparation, skipped, cache=False).load_eval_pixels(np.arange(3))
    assert set(skipped.reasons.values()) == {"input/output error"}


def test_symlink_loops_and_unusual_file_names(tmp_path, pictures, network, cli):
    root = pictures("d", ["a", "b"], 12)
    (root / "a" / "loop").symlink_to(root)
    (root / "a" / "self").symlink_to(root / "a" / "self")
    names = ["with space.png", "line\nbreak.png", "\U0001f980.png", os.fsdecode(b"\xff\xfe.png")]
    for name in names:
        (root / "b" / name).write_bytes((root / "b" / "0.png").read_bytes() + b"x")
    assert len(list(find_images(root))) == 24 + len(names)
    (root / "a" / "loop").unlink()
    run = rk.train(root, network, out=tmp_path / "run", settings=SETTINGS | {"epochs": 1}, seed=3)
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "<title>" in page
    code, out, _err = cli("predict", root / "b", "--model", run.path, "--json")
    assert code == 0
    names = [row["file"] for row in json.loads(out)["predictions"]]
    assert [name for name in names if "break" in name] == [str(root / "b" / "line\nbreak.png")]


def test_duplicates_across_splits_are_one_note(tmp_path, pictures, network):
    pictures("d/train", ["a", "b"], 10)
    root = pictures("d/val", ["a", "b"], 3).parent  # the same colours and noise as in train
    data = open_dataset(root)
    pairs = find_leaks(data, identify_dataset(data))
    assert len(pairs) == 6
    assert (str(root / "train" / "a" / "0.png"), str(root / "val" / "a" / "0.png")) in pairs
    run = rk.train(root, network, out=tmp_path / "run", settings=SETTINGS | {"epochs": 1})
    (note,) = run.results.notes
    assert note.startswith("6 images of one split are also in another, so the accuracy is likely too high: ")
    assert "6 images of one split are also in another" in (run.path / "report.html").read_text()


# --------------------------------------------------------------------------------------------------- diverging losses


def make_inputs_nan(monkeypatch, calls):
    """Let the inputs be NaN in some calls of the normalizer."""
    original, counts = trainer.PixelNormalizer, Counter()

    def build(*args):
        normalize = original(*args)

        def normalize_or_nan(pixels):
            counts["calls"] += 1
            return normalize(pixels) * (float("nan") if counts["calls"] in calls else 1.0)

        return normalize_or_nan

    monkeypatch.setattr(trainer, "PixelNormalizer", build)


def test_single_bad_steps_are_skipped(flowers, network, tmp_path, monkeypatch):
    make_inputs_nan(monkeypatch, {2, 3})
    run = rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS)
    assert len(run.epochs) == 2
    assert all(torch.isfinite(value).all() for value in rk.load(run.path).state_dict().values())


def test_bad_steps_in_a_row_end_the_run_and_keep_the_best_model(flowers, network, tmp_path, monkeypatch, cli):
    make_inputs_nan(monkeypatch, set(range(8, 99)))  # six steps in an epoch
    code, out, err = cli("train", flowers, "--model", network, "--out", tmp_path / "run", "--epochs", 3,
                         "--batch-size", 8, "--precision", "fp32")  # fmt: skip
    assert (code, out) == (3, "")
    lines = err[err.index("error: ") :].splitlines()
    assert lines[0] == "error: the loss became nan"
    assert lines[1].startswith("where: epoch 2, step 4, learning rate ")
    assert lines[1].endswith("gradient norm nan")
    assert lines[2].count(".png") == 3
    assert lines[3].startswith("fix: use a smaller learning rate: --set optimizer.lr=")
    assert lines[3].endswith(f"; the model of epoch 1 is kept in {tmp_path / 'run'}")
    run = rk.load(tmp_path / "run")
    assert all(torch.isfinite(value).all() for value in run.state_dict().values())
    assert read_run(tmp_path / "run").results.stop_reason == "the loss became nan in epoch 2"
    assert (tmp_path / "run" / "metrics.jsonl").is_file()
    assert "the loss became nan in epoch 2" in (tmp_path / "run" / "report.html").read_text()


def test_a_learning_rate_that_is_far_too_high(flowers, network, tmp_path, cli):
    code, _out, err = cli("train", flowers, "--model", network, "--out", tmp_path / "run", "--lr", 1e6)
    assert code in (0, 3)  # with batch norm such a network can survive as noise
    assert "Traceback" not in err
    code, _out, err = cli("train", flowers, "--model", network, "--out", tmp_path / "other", "--lr", 1e30,
                         "--set", "schedule.warmup=0")  # fmt: skip
    assert code == 3
    assert (
        "error: the loss on val is NaN or infinite\nwhere: epoch 1\nfix: use a smaller learning rate: --set optimizer.lr=1e+29"
        in err
    )
    assert not (tmp_path / "other" / "model").exists()


# ------------------------------------------------------------------------------------------------ two runs at a time


def test_two_runs_that_start_together_get_two_folders(flowers, network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe, (reader, writer) = Recipe("flowers", "mine"), os.pipe()

    def work():
        os.close(writer)
        path = choose_run_folder(None, recipe, "mine")
        os.read(reader, 1)  # both have chosen when the pipe is closed
        make_run_folder(path, numbered=True)
        os._exit(0)

    children = [fork(work) for _ in range(2)]
    os.close(writer)
    for child, output in children:
        with output:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            output.seek(0)
            assert code == 0, output.read()
    os.close(reader)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["flowers-mine-1", "flowers-mine-2"]
    run = rk.train("flowers", network, settings=SETTINGS | {"epochs": 1})
    assert str(run.path) == "runs/flowers-mine-3"
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [1]
    assert [line["step"] for line in lines if line["kind"] == "step"] == [1, 2, 3, 4, 5, 6]
