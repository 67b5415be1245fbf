"""Runs that are killed, stopped, damaged or changed, and resumed."""

import hashlib
import json
import os
import re
import socket
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import resnetkit as rk
from resnetkit import files
from resnetkit.data.identity import hash_table
from resnetkit.errors import DataError, Fault, ResnetkitWarning, UsageError, WeightsError
from resnetkit.training import finish, trainer, validation
from resnetkit.training.checkpoint import (
    FORMAT_VERSION,
    Checkpoint,
    load_latest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from resnetkit.training.checkpointing import CheckpointManager
from resnetkit.training.events import EpochMetrics, PreparedRun, StepMetrics
from resnetkit.training.state import EpochTotals, TrainState, read_state, serialize_state

from helpers.runs import (
    SETTINGS,
    assert_same_run,
    die,
    hash_model,
    kill_at_call,
    kill_at_step,
    read_newest_state,
    train_and_kill,
)

# --------------------------------------------------------------------------------------------------- exact resuming

KILLS = {
    "before the first checkpoint": [kill_at_step(2)],
    "in a step, twice": [kill_at_step(7), kill_at_step(7)],
    "inside a checkpoint": [kill_at_call(os, "write", 40)],
    "before a checkpoint is renamed": [kill_at_call(os, "rename", 2)],
    "in validation": [kill_at_call(validation, "count_predictions", 2)],
    "after the model is written": [kill_at_call(trainer, "finish_run", 1)],
    "in the evaluation at the end": [kill_at_call(validation, "count_predictions", 4)],
    "before the results": [kill_at_call(finish, "write_results", 1)],
}


@pytest.mark.parametrize("kill", KILLS)
def test_resume_after_sigkill_gives_the_uninterrupted_run(flowers, stochastic_network, tmp_path, kill, whole_run):
    first, *later = KILLS[kill]
    train_and_kill(first, flowers, stochastic_network, out=tmp_path / "run", settings=SETTINGS)
    for patch in later:
        train_and_kill(patch, resume=tmp_path / "run")
    assert_same_run(rk.train(resume=tmp_path / "run"), whole_run)


RECIPES = {
    "adam": {"optimizer": {"kind": "adam-w"}, "schedule": "triangle"},
    "plain sgd": {"optimizer": {"momentum": 0.0, "nesterov": False}},
    "random crops": {"augment": {"kind": "random-resized-crop"}},
    "bf16": {"precision": "bf16"},
    "everything random": {
        "augment": "pad-crop",
        "transforms": ["trivial-augment", "color-jitter", {"kind": "random-erasing", "p": 0.5}],
        "mix": "mix-up-or-cut-mix",
        "ema": {"decay": 0.9, "update_every": 2},
        "stochastic_depth": 0.5,
        "label_smoothing": 0.1,
    },
    "random crops, then transforms": {
        "augment": "random-resized-crop",
        "transforms": ["trivial-augment"],
        "mix": "cut-mix",
        "ema": "ema",
    },
    "patience": {"epochs": 30, "patience": 1, "optimizer": {"lr": 1e-12}},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_resume_is_exact_for_every_recipe(flowers, network, tmp_path, recipe):
    settings = SETTINGS | {"epochs": 2} | RECIPES[recipe]
    whole = rk.train(flowers, network, out=tmp_path / "whole", settings=settings)
    train_and_kill(kill_at_step(10), flowers, network, out=tmp_path / "run", settings=settings)
    assert_same_run(rk.train(resume=tmp_path / "run"), whole)


def test_resume_is_exact_in_both_phases_of_fine_tuning(flowers, tmp_path, short_run):
    settings = SETTINGS | {"epochs": 2, "start": {"head_epochs": 1, "norm_stats": "updated"}}
    whole = rk.train(flowers, short_run.path, out=tmp_path / "whole", settings=settings)
    for step in (3, 9):
        out = tmp_path / f"run{step}"
        train_and_kill(kill_at_step(step), flowers, short_run.path, out=out, settings=settings)
        assert_same_run(rk.train(resume=out), whole)


def test_only_the_steps_after_the_last_checkpoint_run_again(halted):
    events = []
    rk.train(resume=halted, on_event=events.append)
    assert isinstance(events[0], PreparedRun)
    assert events[0].resume_notes == ("resuming after step 6 of epoch 1",)
    assert events[0].is_exact
    assert isinstance(events[1], EpochMetrics)  # the checkpoint stands before validation
    assert [(e.epoch, e.step) for e in events if isinstance(e, StepMetrics)][:2] == [(2, 1), (2, 2)]


def test_a_run_killed_in_validation_resumes_in_validation(flowers, network, tmp_path):
    patch = kill_at_call(validation, "count_predictions", 2)
    train_and_kill(patch, flowers, network, out=tmp_path / "run", settings=SETTINGS)
    events = []
    rk.train(resume=tmp_path / "run", on_event=events.append)
    assert isinstance(events[1], EpochMetrics)
    assert events[1].epoch == 2


class NanNormalizer:
    """A pixel normalizer whose results are NaN in some calls."""

    original, bad_calls = trainer.PixelNormalizer, range(0)

    def __init__(self, *args):
        self.normalize, self.calls = NanNormalizer.original(*args), 0

    def __call__(self, pixels):
        self.calls += 1
        return self.normalize(pixels) * (float("nan") if self.calls in NanNormalizer.bad_calls else 1.0)


def test_bad_steps_in_a_row_are_counted_over_a_resume(flowers, network, tmp_path, monkeypatch):
    """Two bad steps before the kill and one after it are three in a row."""
    settings = SETTINGS | {"checkpoint_steps": 1}
    monkeypatch.setattr(trainer, "PixelNormalizer", NanNormalizer)
    monkeypatch.setattr(NanNormalizer, "bad_calls", range(7, 99))
    with pytest.raises(DataError) as whole:
        rk.train(flowers, network, out=tmp_path / "whole", settings=settings)
    train_and_kill(kill_at_step(9), flowers, network, out=tmp_path / "run", settings=settings)
    state = read_newest_state(tmp_path / "run")
    assert (state.global_step, state.bad_steps) == (8, 2)
    monkeypatch.setattr(NanNormalizer, "bad_calls", range(1, 99))
    with pytest.raises(DataError) as caught:
        rk.train(resume=tmp_path / "run")
    assert str(caught.value) == str(whole.value).replace("whole", "run")
    assert hash_model(tmp_path / "run") == hash_model(tmp_path / "whole")


def test_an_unreadable_image_stays_skipped_after_a_resume(flowers, network, tmp_path):
    settings = SETTINGS | {"epochs": 2, "bad_files": {"max_fraction": 0.1}}
    bad = flowers / "rose" / "3.png"
    content = bad.read_bytes()
    bad.write_bytes(b"")
    whole = rk.train(flowers, network, out=tmp_path / "whole", settings=settings)
    train_and_kill(kill_at_step(8), flowers, network, out=tmp_path / "run", settings=settings)
    bad.write_bytes(content)
    run = rk.train(resume=tmp_path / "run")
    assert_same_run(run, whole)
    assert run.evaluation.skipped == whole.evaluation.skipped == ((str(bad), "the file is empty"),)


def test_other_random_draws_do_not_change_a_run(flowers, stochastic_network, tmp_path, whole_run):
    torch.manual_seed(5)
    before = torch.get_rng_state()

    def draw(event):
        if isinstance(event, StepMetrics):
            torch.rand(7)

    run = rk.train(flowers, stochastic_network, out=tmp_path / "run", settings=SETTINGS, on_event=draw)
    assert hash_model(run) == hash_model(whole_run)
    assert torch.equal(torch.get_rng_state(), before)  # the run does not change the program's random state


# ---------------------------------------------------------------------------------- death at any write, rename, fsync


class Abort(BaseException):
    """The process is gone."""


class FailingDisk:
    """Count what is done to the disk; before the ``fatal``-th operation half of what was not synced is lost."""

    OPERATIONS = ("open", "write", "ftruncate", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "chmod")

    def __init__(self, monkeypatch, fatal=0):
        self.count, self.fatal, self.unsynced = 0, fatal, set()
        for name in self.OPERATIONS:
            monkeypatch.setattr(os, name, self.watch(name, getattr(os, name)))

    def watch(self, name, original):
        def operate(*args, **kwargs):
            if name == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR):
                return original(*args, **kwargs)
            self.count += 1
            if self.fatal and self.count >= self.fatal:
                self.fail()
            if name in ("write", "fsync"):
                path = str(Path(f"/proc/self/fd/{args[0]}").readlink())
                (self.unsynced.add if name == "write" else self.unsynced.discard)(path)
            result = original(*args, **kwargs)
            if name in ("rename", "replace"):  # what was not synced before is not safer under its new name
                old, new = map(str, args[:2])
                self.unsynced = {
                    new + path.removeprefix(old) if path.startswith(old) else path for path in self.unsynced
                }
            return result

        return operate

    def fail(self):
        for path in filter(os.path.isfile, self.unsynced):
            Path(path).write_bytes(Path(path).read_bytes()[: Path(path).stat().st_size // 2])
        self.unsynced.clear()
        raise Abort


def make_state(step):
    return TrainState(global_step=step, step=step, batch_size=8, totals=EpochTotals(3, 2, 0.1 + 0.2))


def make_tensors(value):
    return {"stem.weight": torch.full((4, 3), float(value))}


def make_checkpoint(step):
    return Checkpoint(make_state(step), make_tensors(step), make_tensors(-step), make_tensors(step / 7))


def load_latest(folder):
    return load_latest_checkpoint(folder, lambda checkpoint: None)


def test_a_loadable_checkpoint_is_left_wherever_saving_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # the failing disk decides what is lost
    with monkeypatch.context() as patch:
        disk = FailingDisk(patch)
        write_checkpoint(tmp_path / "count", make_checkpoint(1))
    assert disk.count > 20
    for fatal in range(1, 200):
        folder = tmp_path / str(fatal)
        manager = CheckpointManager(folder, None, None)
        for step in (1, 2):
            manager.save(lambda step=step: make_checkpoint(step))
        with monkeypatch.context() as patch:
            disk = FailingDisk(patch, fatal)
            try:
                manager.save(lambda: make_checkpoint(3))
                died = False
            except Abort:
                died = True
        checkpoint = load_latest(folder)
        step = checkpoint.state.global_step
        assert step in ((2, 3) if died else (3,))
        assert checkpoint.state == make_state(step)
        assert torch.equal(checkpoint.model["stem.weight"], make_tensors(step)["stem.weight"])
        CheckpointManager(folder, None, checkpoint).save(lambda: make_checkpoint(4))  # and the next one can be saved
        assert load_latest(folder).state.global_step == 4
        if not died:
            assert sorted(p.name for p in folder.iterdir()) == ["latest", "step-00000003", "step-00000004"]
            break
    assert fatal > 30


def test_checkpoints_are_due_by_steps_and_by_the_clock(tmp_path):
    now = 0.0
    manager = CheckpointManager(tmp_path, 4, None, clock=lambda: now)
    assert [step for step in range(1, 9) if manager.is_due(step)] == [4, 8]
    now = 301.0
    assert manager.is_due(5)
    manager.save(lambda: make_checkpoint(5))
    assert not manager.is_due(5)
    assert manager.has(5)


def test_a_run_that_dies_at_any_disk_operation_can_be_resumed(flowers, network, tmp_path, short_run):
    """Five of them, from the first operation of the run to the last."""
    settings = SETTINGS | {"epochs": 2}
    with pytest.MonkeyPatch.context() as patch:
        disk = FailingDisk(patch)
        rk.train(flowers, network, out=tmp_path / "count", settings=settings)
    for fatal in np.linspace(12, disk.count - 1, 5).astype(int).tolist():
        out = tmp_path / f"run{fatal}"
        train_and_kill(die_at_operation(fatal), flowers, network, out=out, settings=settings)
        assert_same_run(rk.train(resume=out), short_run)


def die_at_operation(fatal):
    def patch():
        FailingDisk(pytest.MonkeyPatch(), fatal).fail = die

    return patch


# ------------------------------------------------------------------------------- damaged and malicious checkpoints


@pytest.fixture
def halted(flowers, network, tmp_path, run_cache):
    """A run that was killed with two checkpoints, after steps 4 and 6."""
    run = run_cache.copy_killed(8, flowers, network, tmp_path, SETTINGS | {"epochs": 2})
    names = sorted(path.name for path in (run / "state").iterdir())
    assert names == ["latest", "step-00000004", "step-00000006"]
    return run


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def sign(folder, change):
    """Change a checkpoint as somebody who also writes the digests anew."""
    change(folder)
    contents = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    entries = {n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in contents.items()}
    (folder / "manifest.json").write_text(json.dumps({"format": FORMAT_VERSION, "files": entries}))


def change_state(**changes):
    def change(folder):
        path = folder / "state.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return lambda folder: sign(folder, change)


def write_state(text):
    return lambda folder: sign(folder, lambda inner: (inner / "state.json").write_text(text))


def change_tensors(name, change):
    def change_file(folder):
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name)

    return lambda folder: sign(folder, change_file)


def change_first(name, change):
    def change_tensor(tensors):
        key = next(key for key in tensors if key.endswith("conv1.weight"))
        tensors[key] = change(tensors[key])

    return change_tensors(name, change_tensor)


def add_tensor(key, value):
    return change_tensors("training.safetensors", lambda tensors: tensors.update({key: value}))


DAMAGE = {
    "truncated": (lambda f: halve(f / "model.safetensors"), "model.safetensors differs from the manifest"),
    "overwritten": (lambda f: (f / "best.safetensors").write_bytes(b"x" * (f / "best.safetensors").stat().st_size),
                    "best.safetensors differs from the manifest"),
    "removed": (lambda f: (f / "training.safetensors").unlink(), "training.safetensors is missing"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json cannot be read"),
    "empty manifest": (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json lists no files"),
    "later format": (lambda f: (f / "manifest.json").write_text('{"format": 9, "files": {}}'),
                     "the checkpoint has format 9; resnetkit reads format 2"),
    "wrong shape": (change_first("model.safetensors", lambda v: v[:1].clone()),
                    "model.safetensors belongs to another network"),
    "wrong dtype": (change_first("model.safetensors", lambda v: v.half()), "model.safetensors belongs to another network"),
    "nan in the model": (change_first("model.safetensors", lambda v: v * float("nan")), "NaN or infinite values in "),
    "nan in a moment": (change_first("training.safetensors", lambda v: v / 0),
                        "NaN or infinite values in momentum_buffer/"),
    "unknown moment": (add_tensor("velocity/x", torch.zeros(1)),
                       "training.safetensors has an unexpected tensor 'velocity/x'"),
    "half an average": (add_tensor("ema/head.linear.bias", torch.zeros(3)),
                        "training.safetensors holds an incomplete average"),
    "state is not json": (write_state("{"), "state.json cannot be"),
    "deeply nested state": (write_state("[" * 100_000), "state.json cannot"),
    "contradicting state": (change_state(epoch=7), "state.json does not describe a state: 1 fault"),
    "unknown key in the state": (change_state(code="import os"), "state.json does not describe a train-state"),
    "wrong step": (change_state(global_step=99), "state.json is the state after 99 steps"),
    "short metrics": (change_state(metrics_bytes=10**9), "metrics.jsonl is shorter than the checkpoint says"),
    "a random state": (add_tensor("random/cpu", torch.zeros(3, dtype=torch.uint8)),
                       "training.safetensors has an unexpected tensor 'random/cpu'"),
    "a bad recipe": (change_state(recipe={"data": "d"}), "state.json does not describe a train-state"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_checkpoint_falls_back(halted, short_run, damage):
    change, message = DAMAGE[damage]
    newest, previous = halted / "state" / "step-00000006", halted / "state" / "step-00000004"
    change(newest)
    with pytest.warns(ResnetkitWarning) as warned:
        run = rk.train(resume=halted)
    (warning,) = [str(warning.message) for warning in warned]
    assert warning.startswith(f"{newest} is damaged ({message}"), warning
    assert warning.endswith(f"; {previous} is used instead")
    assert_same_run(run, short_run)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_run_without_an_intact_checkpoint_is_an_error(halted, damage, cli):
    change, message = DAMAGE[damage]
    for name in ("step-00000004", "step-00000006"):
        change(halted / "state" / name)
    before = {path: path.read_bytes() for path in halted.rglob("*") if path.is_file()}
    code, out, err = cli("train", "--resume", halted)
    assert (code, out) == (4, "")
    assert err.startswith(f"error: all checkpoints are damaged: {message}"), err
    assert len(err.splitlines()) <= 9
    assert "fix: copy the whole run folder again, or start a new run: --out with another folder" in err
    assert {path: path.read_bytes() for path in halted.rglob("*") if path.is_file()} == before


def test_a_latest_file_that_points_elsewhere_is_not_followed(halted, short_run):
    (halted / "state" / "latest").write_text("../../whole\n")
    assert_same_run(rk.train(resume=halted), short_run)


def test_a_damaged_checkpoint_is_replaced_by_the_next(halted):
    halve(halted / "state" / "step-00000006" / "model.safetensors")
    warnings.simplefilter("ignore", ResnetkitWarning)  # in the process that is killed
    train_and_kill(kill_at_step(4), resume=halted)
    names = sorted(path.name for path in (halted / "state").glob("step-*"))
    assert names == ["step-00000004", "step-00000006"]
    assert [read_checkpoint(halted / "state" / name).state.global_step for name in names] == [4, 6]


def test_a_state_is_written_and_read_exactly(tmp_path):
    state = replace(make_state(3), unreadable=(("\udcff.png", "the file is empty"),), seconds=0.1 + 0.2)
    (tmp_path / "state.json").write_text(serialize_state(state))
    assert read_state(tmp_path / "state.json") == state
    with pytest.raises(WeightsError) as caught:
        (tmp_path / "state.json").write_text(serialize_state(replace(state, step=4, best_epoch=2)))
        read_state(tmp_path / "state.json")
    assert caught.value.where[1:] == (
        str(Fault("best_epoch", "2", "0 to 0")),
        str(Fault("step", "4", "at most 3, the steps of the run")),
    )


# ----------------------------------------------------------------------------------------- what else a run folder holds


EDITS = {  # pattern in run.toml -> its replacement, the change that is named
    r"(?m)^lr = .*": ("lr = 0.5", "optimizer.lr: 0.025 -> 0.5"),
    r"(?m)^seed = .*": ("seed = 7", "seed: 0 -> 7"),
    r"(?m)^split_seed = .*": ("split_seed = 3", "split_seed: 0 -> 3"),
    r"(?m)^epochs = .*": ("epochs = 9", "epochs: 2 -> 9"),
    r"(?m)^momentum = .*": ("momentum = 0.5", "optimizer.momentum: 0.9 -> 0.5"),
    r"(?m)^padding = .*": ("padding = 3", "augment.padding: 2 -> 3"),
}


@pytest.mark.parametrize("pattern", EDITS)
def test_an_edited_recipe_is_refused_and_named(halted, pattern, cli):
    path, (text, change) = halted / "run.toml", EDITS[pattern]
    edited, n_edits = re.subn(pattern, text, path.read_text())
    assert n_edits == 1
    path.write_text(edited)
    code, _, err = cli("train", "--resume", halted)
    assert code == 2
    assert change in err.splitlines()[1]
    assert "resume exact" not in err
    assert path.read_text() == edited


def test_an_edited_recipe_goes_on_with_override_and_is_noted(halted, cli):
    path = halted / "run.toml"
    path.write_text(re.sub(r"(?m)^lr = .*", "lr = 0.05", path.read_text()))
    code, _, err = cli("train", "--resume", halted, "--override")
    assert code == 0, err
    assert "resume exact" not in err
    assert rk.train(resume=halted).results.notes == ("from step 7 on: optimizer.lr: 0.025 -> 0.05",)


def test_a_safe_setting_may_be_edited(halted, cli):
    (halted / "run.toml").write_text("patience = 40\n" + (halted / "run.toml").read_text())
    code, _, err = cli("train", "--resume", halted)
    assert code == 0, err
    assert "note   patience: none -> 40" in err
    assert "resume exact" in err


@pytest.mark.parametrize(
    ("old", "new", "change", "what"),
    [
        ("blocks = 2", "blocks = 3", "stages.1.blocks: 2 -> 3", "the checkpoint belongs to another network"),
        ('activation = "relu"', 'activation = "silu"', "activation", "settings differ from those"),
    ],
)
def test_an_edited_network_is_refused_and_named(halted, network, cli, old, new, change, what):
    network.write_text(network.read_text().replace(old, new, 1))
    code, _, err = cli("train", "--resume", halted)
    assert code == 2
    assert err.startswith(f"error: {what}")
    assert f"network.{change}" in err


def test_a_checkpoint_holds_recipe_classes_and_the_digest_of_the_images(halted, flowers):
    state = read_newest_state(halted)
    assert state.recipe.optimizer.lr == 0.025
    assert state.classes == ("daisy", "rose", "tulip")
    assert dict(state.environment)["images"] == hash_table((halted / "images.csv").read_text())


def test_a_damaged_list_of_images_is_written_again(halted, flowers, cli):
    (halted / "images.csv").write_text("split,class\n")
    code, _, err = cli("train", "--resume", halted)  # the digest in the checkpoint is enough
    assert code == 0
    assert "images.csv is damaged; resnetkit writes it again, from what it finds now" in err
    assert (halted / "images.csv").read_text().count("\n") == 61


def test_replaced_images_are_refused_without_the_list_of_images(halted, flowers, cli):
    (halted / "images.csv").unlink()
    (flowers / "rose" / "1.png").write_bytes((flowers / "rose" / "2.png").read_bytes())
    code, _, err = cli("train", "--resume", halted)
    assert code == 3
    assert "images.csv does not belong to the checkpoint, so the images cannot be named" in err


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]"])
def test_a_damaged_environment_is_written_again(halted, short_run, content):
    (halted / "environment.json").write_bytes(content)
    with pytest.warns(ResnetkitWarning, match=r"environment.json is damaged; resnetkit writes it again"):
        run = rk.train(resume=halted)
    assert_same_run(run, short_run)
    assert run.environment["packages"]["torch"] == torch.__version__.partition("+")[0]


def test_damaged_metrics_are_an_error_before_training(halted, flowers, network, tmp_path, cli):
    settings = SETTINGS | {"epochs": 3}
    train_and_kill(kill_at_step(9), flowers, network, out=tmp_path / "later", settings=settings)
    path = tmp_path / "later" / "metrics.jsonl"
    content = path.read_bytes()
    path.write_bytes(b"x" + content[1:])
    code, _, err = cli("train", "--resume", tmp_path / "later")
    assert code == 4
    assert f"line 1 of {path}" in err
    path.write_bytes(content.replace(b'"val_correct": ', b'"val_correct":1', 1))  # after the checkpoint before
    with pytest.warns(ResnetkitWarning, match=r"the epochs in metrics.jsonl are not those of the checkpoint"):
        run = rk.train(resume=tmp_path / "later")
    assert_same_run(run, rk.train(flowers, network, out=tmp_path / "whole", settings=settings))


def test_hard_links_are_not_written_through(halted, short_run, tmp_path):
    """A backup made of hard links, as rsync and cp -al make them, keeps its content."""
    contents = {}
    for path in [path for path in halted.rglob("*") if path.is_file()]:
        backup = tmp_path / "backup" / path.relative_to(halted)
        backup.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, backup)
        contents[backup] = path.read_bytes()
    assert_same_run(rk.train(resume=halted), short_run)
    assert {path: path.read_bytes() for path in contents} == contents


# ---------------------------------------------------------------------------------------------------------------- lock


def test_one_process_at_a_time_resumes_a_run(halted, short_run, cli):
    errors = []

    def resume_again(event):
        if isinstance(event, StepMetrics) and not errors:
            errors.append(cli("train", "--resume", halted))

    run = rk.train(resume=halted, on_event=resume_again)
    ((code, out, err),) = errors
    assert (code, out) == (2, "")
    assert err == (
        f"error: process {os.getpid()} on {socket.gethostname()} is writing this run\nwhere: {halted}\n"
        "fix: wait until it ends, or stop it; then resume the run\n"
    )
    assert_same_run(run, short_run)
    assert [path.name for path in halted.parent.glob(".*")] == []


def test_a_new_run_is_locked_from_its_beginning(flowers, network, tmp_path):
    errors = []

    def resume_too_early(done, n_images):
        if (tmp_path / "run" / "run.toml").exists() and not errors:
            with pytest.raises(UsageError) as caught:
                rk.train(resume=tmp_path / "run")
            errors.append(caught.value)

    rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS | {"epochs": 1}, on_progress=resume_too_early)
    assert errors[0].what.endswith(" is writing this run")


def test_a_killed_process_leaves_no_lock(flowers, network, tmp_path, short_run):
    train_and_kill(kill_at_step(8), flowers, network, out=tmp_path / "run", settings=SETTINGS | {"epochs": 2})
    assert_same_run(rk.train(resume=tmp_path / "run"), short_run)


def test_a_lock_without_the_name_of_its_owner(halted, cli):
    for content in ("", "[]", '{"pid": "x", "host": 1}', '{"pid": 1}'):
        with files.lock_file(halted):
            (halted.parent / ".run.owner").write_text(content)
            code, _, err = cli("train", "--resume", halted)
        assert code == 2
        assert err.startswith("error: another process is writing this run\n")
