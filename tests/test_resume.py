"""A run that is killed, stopped, damaged or changed, and goes on."""

import hashlib
import json
import os
import shutil
import signal
import tempfile
import traceback
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import resnetkit as rk
from resnetkit.architecture.spec import MLP
from resnetkit.errors import DataError, ResnetkitWarning, WeightsError
from resnetkit.serialization import to_toml
from resnetkit.training import checkpoint as keeping
from resnetkit.training import trainer as training
from resnetkit.training.checkpoint import Checkpoint, load_latest_checkpoint, write_checkpoint
from resnetkit.training.run_folder import EpochMetrics, RunSetup, StepMetrics
from resnetkit.training.state import EpochTotals, TrainState, read_state, serialize_state

from helpers.tiny import BASE

HOW = {"epochs": 3, "batch_size": 8, "precision": "fp32", "checkpoint_steps": 4}
CHANCE = replace(BASE, stochastic_depth=0.5, head=MLP(5, (8,), 1, 0.5))  # dropout, and branches that are dropped


@pytest.fixture
def flowers(pictures):
    return pictures("flowers", ["rose", "daisy", "tulip"], 20)


@pytest.fixture
def chance(tmp_path):
    path = tmp_path / "chance.toml"
    path.write_text(to_toml(CHANCE))
    return path


def sha(run):
    return hashlib.sha256((Path(run) / "model" / "model.safetensors").read_bytes()).hexdigest()


def lines(run):
    """metrics.jsonl without what a clock says."""
    found = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in found]


def same(run, whole):
    """Whether nothing tells a resumed run from one that went through."""
    assert sha(run) == sha(whole)
    assert lines(run) == lines(whole)
    assert run.evaluation.predictions == whole.evaluation.predictions
    assert (run.best_epoch, run.results.stop_reason) == (whole.best_epoch, whole.results.stop_reason)
    assert not (run.path / "state").exists()
    assert not list(run.path.rglob("*.part"))
    return True


def killed(act, *words, **how):
    """A run in a process of its own that kills itself, as ``kill -9`` does, when ``act`` says so."""
    with tempfile.TemporaryFile("w+") as told:
        child = os.fork()
        if not child:
            try:
                act()
                rk.train(*words, **how)
            except BaseException:  # noqa: BLE001  whatever it is, this process does not go on with other tests
                traceback.print_exc(file=told)
                told.flush()
            os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        told.seek(0)
        assert code == -signal.SIGKILL, told.read() or "it came to its end"


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def dies_at(place, name, count):
    """Something to do in the child: ``place.name`` is fatal when it is called for the ``count``-th time."""

    def act():
        original, calls = getattr(place, name), []

        def spy(*words, **more):
            calls.append(1)
            if len(calls) == count:
                die()
            return original(*words, **more)

        setattr(place, name, spy)

    return act


# ------------------------------------------------------------------------------------------------- T1: exact resuming

MOMENTS = {
    "before the first checkpoint": [(training.Trainer, "train_step", 2)],
    "in a step, twice": [(training.Trainer, "train_step", 7), (training.Trainer, "train_step", 7)],
    "inside a checkpoint": [(os, "write", 40)],
    "before a checkpoint is renamed": [(os, "rename", 2)],
    "in evaluation": [(training, "count_predictions", 2)],
    "when the model has been written": [(training.Trainer, "finish", 1)],
    "in the evaluation at the end": [(training, "count_predictions", 4)],
    "before the results": [(training, "write_results", 1)],
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_t01_a_killed_run_ends_as_if_nothing_had_happened(flowers, chance, tmp_path, moment, request):
    whole = request.getfixturevalue("whole")
    killed(dies_at(*MOMENTS[moment][0]), flowers, chance, out=tmp_path / "run", settings=HOW)
    for again in MOMENTS[moment][1:]:
        killed(dies_at(*again), resume=tmp_path / "run")
    assert same(rk.train(resume=tmp_path / "run"), whole)


@pytest.fixture
def once(tmp_path_factory):
    """A run that is made once for all tests of a module: nothing in what it leaves depends on where it lies."""

    def make(name, *words, **how):
        if name not in MADE:
            MADE[name] = rk.train(*words, out=tmp_path_factory.mktemp("once") / name, **how)
        return MADE[name]

    return make


MADE = {}


@pytest.fixture
def whole(flowers, chance, once):
    return once("whole", flowers, chance, settings=HOW)


RECIPES = {
    "adam": {"optimizer": {"kind": "adam-w"}, "schedule": "triangle"},
    "plain sgd": {"optimizer": {"momentum": 0.0, "nesterov": False}},
    "pictures that are read anew": {"augment": {"kind": "random-resized-crop"}},
    "bf16": {"precision": "bf16"},
    "all that is drawn": {
        "augment": "pad-crop",
        "transforms": ["trivial-augment", "color-jitter", {"kind": "random-erasing", "p": 0.5}],
        "mix": "mix-up-or-cut-mix",
        "ema": {"decay": 0.9, "update_every": 2},
        "stochastic_depth": 0.5,
        "label_smoothing": 0.1,
    },
    "random windows, then more": {
        "augment": "random-resized-crop",
        "transforms": ["trivial-augment"],
        "mix": "cut-mix",
        "ema": "ema",
    },
    "patience": {"epochs": 30, "patience": 1, "optimizer": {"lr": 1e-12}},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_t01_whatever_the_recipe(flowers, network, tmp_path, recipe):
    settings = HOW | RECIPES[recipe]
    whole = rk.train(flowers, network, out=tmp_path / "whole", settings=settings)
    killed(dies_at(training.Trainer, "train_step", 10), flowers, network, out=tmp_path / "run", settings=settings)
    assert same(rk.train(resume=tmp_path / "run"), whole)


def test_t01_fine_tuning_in_both_of_its_parts(flowers, network, tmp_path, pictures):
    base = rk.train(pictures("d", ["a", "b"], 12), network, out=tmp_path / "base", settings=HOW)
    settings = HOW | {"start": {"head_epochs": 1, "norm_stats": "learnt"}}
    whole = rk.train(flowers, base.path, out=tmp_path / "whole", settings=settings)
    for step in (3, 9):
        out = tmp_path / f"run{step}"
        killed(dies_at(training.Trainer, "train_step", step), flowers, base.path, out=out, settings=settings)
        assert same(rk.train(resume=out), whole)


def test_only_the_steps_after_the_last_checkpoint_run_again(flowers, network, tmp_path):
    killed(dies_at(training.Trainer, "train_step", 6), flowers, network, out=tmp_path / "run", settings=HOW)
    events = []
    rk.train(resume=tmp_path / "run", on_event=events.append)
    assert isinstance(events[0], RunSetup)
    assert events[0].resume_notes == ("resuming after step 4 of epoch 1",)
    assert [(e.epoch, e.step) for e in events if isinstance(e, StepMetrics)][:3] == [(1, 5), (1, 6), (2, 1)]


def test_a_run_that_is_killed_in_evaluation_goes_on_in_evaluation(flowers, network, tmp_path):
    killed(dies_at(training, "count_predictions", 2), flowers, network, out=tmp_path / "run", settings=HOW)
    events = []
    rk.train(resume=tmp_path / "run", on_event=events.append)
    assert isinstance(events[1], EpochMetrics)
    assert events[1].epoch == 2


def test_t08_bad_steps_and_pictures_that_failed_are_remembered(flowers, network, tmp_path, monkeypatch):
    """Two bad steps before the kill and one after it are three in a row."""
    original = training.PixelNormalizer

    class Sick:
        steps = range(0)

        def __init__(self, *words):
            self.good, self.step = original(*words), 0

        def __call__(self, pixels):
            self.step += 1
            return self.good(pixels) * (float("nan") if self.step in Sick.steps else 1.0)

    monkeypatch.setattr(training, "PixelNormalizer", Sick)
    Sick.steps = range(7, 99)
    with pytest.raises(DataError) as whole:
        rk.train(flowers, network, out=tmp_path / "whole", settings=HOW | {"checkpoint_steps": 1})
    act = dies_at(training.Trainer, "train_step", 9)
    killed(act, flowers, network, out=tmp_path / "run", settings=HOW | {"checkpoint_steps": 1})
    state = load_latest_checkpoint(tmp_path / "run" / "state", lambda found: None).state
    assert (state.global_step, state.bad_steps) == (8, 2)
    Sick.steps = range(1, 99)
    with pytest.raises(DataError) as caught:
        rk.train(resume=tmp_path / "run")
    assert str(caught.value) == str(whole.value).replace("whole", "run")
    assert sha(tmp_path / "run") == sha(tmp_path / "whole")


def test_a_picture_that_failed_once_stays_out_after_resuming(flowers, network, tmp_path):
    settings = HOW | {"bad_files": {"max_fraction": 0.1}}
    bad = flowers / "rose" / "3.png"
    content = bad.read_bytes()
    bad.write_bytes(b"")
    whole = rk.train(flowers, network, out=tmp_path / "whole", settings=settings)
    killed(dies_at(training.Trainer, "train_step", 8), flowers, network, out=tmp_path / "run", settings=settings)
    bad.write_bytes(content)
    run = rk.train(resume=tmp_path / "run")
    assert same(run, whole)
    assert run.evaluation.skipped == whole.evaluation.skipped == ((str(bad), "the file is empty"),)


def test_t13_the_same_seed_twice_whatever_is_drawn_beside_it(flowers, chance, tmp_path, whole):
    torch.manual_seed(5)
    before = torch.get_rng_state()

    def draw(event):
        if isinstance(event, StepMetrics):
            torch.rand(7)

    again = rk.train(flowers, chance, out=tmp_path / "again", settings=HOW, on_event=draw)
    assert sha(again) == sha(whole)
    assert torch.equal(torch.get_rng_state(), before)  # and it leaves no trace


# --------------------------------------------------------------------------------- T2: every write, rename and fsync


class Abort(BaseException):
    """The process is gone."""


class Disk:
    """Counts what is done to the disk; dies before the ``fatal``-th act, and what was not synced is half lost."""

    ACTS = ("open", "write", "ftruncate", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "chmod")

    def __init__(self, monkeypatch, fatal=0, error=None):
        self.count, self.fatal, self.error, self.unsynced = 0, fatal, error, set()
        for name in self.ACTS:
            monkeypatch.setattr(os, name, self.watching(name, getattr(os, name)))

    def watching(self, name, original):
        def act(*words, **more):
            if name == "open" and not words[1] & (os.O_WRONLY | os.O_RDWR):
                return original(*words, **more)
            self.count += 1
            if self.fatal and self.count >= self.fatal:
                self.fail()
            if name in ("write", "fsync"):
                path = str(Path(f"/proc/self/fd/{words[0]}").readlink())
                (self.unsynced.add if name == "write" else self.unsynced.discard)(path)
            done = original(*words, **more)
            if name in ("rename", "replace"):  # what was not synced before is no safer under its new name
                old, new = map(str, words[:2])
                self.unsynced = {
                    new + path.removeprefix(old) if path.startswith(old) else path for path in self.unsynced
                }
            return done

        return act

    def fail(self):
        if self.error:
            raise self.error
        for path in filter(os.path.isfile, self.unsynced):
            Path(path).write_bytes(Path(path).read_bytes()[: Path(path).stat().st_size // 2])
        self.unsynced.clear()
        raise Abort


def tensors(number):
    return {"stem.weight": torch.full((4, 3), float(number))}


def state_after(steps):
    return TrainState(global_step=steps, step=steps, batch_size=8, totals=EpochTotals(3, 2, 0.1 + 0.2))


def point(steps):
    return Checkpoint(state_after(steps), tensors(steps), tensors(-steps), tensors(steps / 7))


def test_t02_whatever_is_cut_off_a_loadable_checkpoint_stands(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # what it would have saved is lost by the shim
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        write_checkpoint(tmp_path / "count", point(1))
    assert disk.count > 20
    for fatal in range(1, 200):
        folder = tmp_path / str(fatal)
        keeper = keeping.CheckpointManager(folder, None, None)
        for steps in (1, 2):
            keeper.save(lambda steps=steps: point(steps))
        with monkeypatch.context() as patch:
            disk = Disk(patch, fatal)
            try:
                keeper.save(lambda: point(3))
                died = False
            except Abort:
                died = True
        found = load_latest_checkpoint(folder, lambda found: None)
        assert found.state.global_step == (3 if not died else found.state.global_step)
        assert found.state.global_step in (2, 3)
        assert found.state == state_after(found.state.global_step)
        assert torch.equal(found.model["stem.weight"], tensors(found.state.global_step)["stem.weight"])
        after = keeping.CheckpointManager(folder, None, found)
        after.save(lambda: point(4))  # and it can go on
        assert load_latest_checkpoint(folder, lambda found: None).state.global_step == 4
        if not died:
            assert sorted(p.name for p in folder.iterdir()) == ["latest", "step-00000003", "step-00000004"]
            break
    assert fatal > 30


def test_t02_a_run_that_dies_at_any_act_of_its_disk_goes_on(flowers, network, tmp_path, whole_plain):
    """Some of them, through the whole run: the first act, the last, and three between."""
    count = total_acts(flowers, network, tmp_path)
    for fatal in np.linspace(12, count - 1, 5).astype(int).tolist():
        out = tmp_path / f"run{fatal}"
        killed(dying_disk(fatal), flowers, network, out=out, settings=HOW | {"epochs": 2})
        assert same(rk.train(resume=out), whole_plain), fatal


def dying_disk(fatal):
    def act():
        disk = Disk(pytest.MonkeyPatch(), fatal)
        disk.fail = die

    return act


def total_acts(flowers, network, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        rk.train(flowers, network, out=tmp_path / "count", settings=HOW | {"epochs": 2})
    return disk.count


@pytest.fixture
def whole_plain(flowers, network, once):
    return once("plain", flowers, network, settings=HOW | {"epochs": 2})


# ------------------------------------------------------------------------------------------ damaged, hostile, strange


@pytest.fixture
def halted(flowers, network, tmp_path):
    """A run with two checkpoints, after steps 4 and 6."""
    standing_at(8, flowers, network, tmp_path, HOW | {"epochs": 2})
    assert sorted(path.name for path in (tmp_path / "run" / "state").iterdir()) == [
        "latest", "step-00000004", "step-00000006",
    ]  # fmt: skip
    return tmp_path / "run"


def standing_at(step, flowers, network, folder, settings):
    """``folder/run``, killed in a step; made once, then copied to where other pictures of the same names lie."""
    kept = STANDING.get(step)
    if kept is None:
        killed(dies_at(training.Trainer, "train_step", step), flowers, network, out=folder / "run", settings=settings)
        kept = STANDING[step] = (tempfile.mkdtemp(), str(folder))
        shutil.copytree(folder / "run", kept[0], dirs_exist_ok=True)
    else:
        shutil.copytree(kept[0], folder / "run")
        recipe = (folder / "run" / "run.toml").read_text()
        (folder / "run" / "run.toml").write_text(recipe.replace(kept[1], str(folder)))


STANDING = {}


@pytest.fixture(scope="module", autouse=True)
def _swept():
    yield
    for kept, _ in STANDING.values():
        shutil.rmtree(kept)
    STANDING.clear()


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def signed(folder, change):
    """A checkpoint changed by somebody who also writes the sums anew."""
    change(folder)
    told = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    entries = {n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in told.items()}
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "files": entries}))


def in_state(**changes):
    return lambda folder: (folder / "state.json").write_text(
        json.dumps(json.loads((folder / "state.json").read_text()) | changes)
    )


def in_tensors(name, change):
    def act(folder):
        found = load_file(folder / name)
        change(found)
        save_file(found, folder / name)

    return act


def first(found, change):
    key = next(key for key in found if key.endswith("conv1.weight"))
    found[key] = change(found[key])


DAMAGE = {
    "cut": (lambda f: halve(f / "model.safetensors"), "model.safetensors is not as it was written"),
    "flipped": (lambda f: (f / "best.safetensors").write_bytes(b"x" * (f / "best.safetensors").stat().st_size),
                "best.safetensors is not as it was written"),
    "gone": (lambda f: (f / "training.safetensors").unlink(), "training.safetensors is missing"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json cannot be read"),
    "empty manifest": (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json names no files"),
    "later format": (lambda f: (f / "manifest.json").write_text('{"format": 2, "files": {}}'), "this checkpoint has format 2, and 1 is"),
    "other shapes": (lambda f: signed(f, in_tensors("model.safetensors", lambda t: first(t, lambda v: v[:1].clone()))),
                     "model.safetensors is of another network than the run"),
    "other numbers": (lambda f: signed(f, in_tensors("model.safetensors", lambda t: first(t, lambda v: v.half()))),
                      "model.safetensors is of another network than the run"),
    "nan": (lambda f: signed(f, in_tensors("model.safetensors", lambda t: first(t, lambda v: v * float("nan")))),
            "NaN or infinite values in "),
    "nan in a moment": (lambda f: signed(f, in_tensors("training.safetensors", lambda t: first(t, lambda v: v / 0))),
                        "NaN or infinite values in momentum_buffer/"),
    "foreign moments": (lambda f: signed(f, in_tensors("training.safetensors",
                                                       lambda t: t.update({"velocity/x": torch.zeros(1)}))),
                        "training.safetensors has 'velocity/x', which does not fit"),
    "half an average": (lambda f: signed(f, in_tensors("training.safetensors",
                                                       lambda t: t.update({"ema/head.linear.bias": torch.zeros(3)}))),
                        "training.safetensors has a part of an average only"),
    "a state that is none": (lambda f: signed(f, lambda f: (f / "state.json").write_text("{")), "state.json cannot be"),
    "a deep state": (lambda f: signed(f, lambda f: (f / "state.json").write_text("[" * 100_000)), "state.json cannot"),
    "a strange state": (lambda f: signed(f, in_state(epoch=7)), "state.json does not describe a state: 1 fault"),
    "a state with more": (lambda f: signed(f, in_state(code="import os")), "state.json does not describe a train-state"),
    "another step": (lambda f: signed(f, in_state(global_step=99)), "this is the state after 99 steps"),
    "more metrics": (lambda f: signed(f, in_state(metrics_bytes=10**9)), "metrics.jsonl is shorter than this checkpoint says"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_t02_a_damaged_newest_checkpoint_falls_back(halted, whole_plain, damage, cli):
    act, told = DAMAGE[damage]
    newest, before = halted / "state" / "step-00000006", halted / "state" / "step-00000004"
    act(newest)
    with pytest.warns(ResnetkitWarning) as warned:
        run = rk.train(resume=halted)
    (message,) = [str(warning.message) for warning in warned]
    assert message.startswith(f"{newest} is damaged ({told}"), message
    assert message.endswith(f"; {before} is taken instead")
    assert same(run, whole_plain)


@pytest.mark.parametrize("damage", DAMAGE)
def test_hostile_checkpoints_are_errors_of_ours(halted, damage, cli):
    act, told = DAMAGE[damage]
    for name in ("step-00000004", "step-00000006"):
        act(halted / "state" / name)
    before = {path: path.read_bytes() for path in halted.rglob("*") if path.is_file()}
    code, out, err = cli("train", "--resume", halted)
    assert (code, out) == (4, "")
    assert err.startswith(f"error: no checkpoint of this run can be read: {told}"), err
    assert len(err.splitlines()) <= 9
    assert "fix: copy the whole run folder again, or begin anew: --out with another folder" in err
    assert {path: path.read_bytes() for path in halted.rglob("*") if path.is_file()} == before


def test_a_pointer_elsewhere_is_not_followed(halted, whole_plain):
    (halted / "state" / "latest").write_text("../../whole\n")
    assert same(rk.train(resume=halted), whole_plain)


def test_a_damaged_checkpoint_is_not_in_the_way_of_the_next(halted, network):
    halve(halted / "state" / "step-00000006" / "model.safetensors")
    warnings.simplefilter("ignore", ResnetkitWarning)  # of the child
    killed(dies_at(training.Trainer, "train_step", 4), resume=halted)
    names = sorted(path.name for path in (halted / "state").glob("step-*"))
    assert names == ["step-00000004", "step-00000006"]
    assert [keeping.read_checkpoint(halted / "state" / name).state.global_step for name in names] == [4, 6]


def test_a_state_is_written_and_read_exactly(tmp_path):
    odd = replace(state_after(3), unreadable=(("\udcff.png", "the file is empty"),), seconds=0.1 + 0.2)
    (tmp_path / "state.json").write_text(serialize_state(odd))
    assert read_state(tmp_path / "state.json") == odd
    with pytest.raises(WeightsError) as caught:
        (tmp_path / "state.json").write_text(serialize_state(replace(odd, step=4, best_epoch=2)))
        read_state(tmp_path / "state.json")
    assert caught.value.where[1:] == (
        "best_epoch: came 2; allowed: 0 to 0",
        "step: came 4; allowed: 3 at most, all steps of the run",
    )
