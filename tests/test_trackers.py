"""T15: trackers are told everything, and nothing that happens to them hurts a run."""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
import time
import warnings

import pytest

import resnetkit as rk
from resnetkit import files
from resnetkit.errors import MachineError, ResnetkitInterrupt, ResnetkitWarning, TextError
from resnetkit.training import trainer as training
from resnetkit.training.trackers import client as trackers

from helpers.runs import SETTINGS as HOW
from helpers.runs import hash_model as sha
from helpers.runs import kill_at_call as dies_at
from helpers.runs import read_metrics as lines
from helpers.runs import train_and_kill as killed

FAKE = """
import json, os, pathlib, sys, time
class Run:
    def __init__(self, dir, **how):
        self.file = pathlib.Path(dir) / "told.jsonl"
        self.add({k: how[k] for k in ("id", "name", "mode", "config")})
    def add(self, what):
        with self.file.open("a") as file:
            file.write(json.dumps(what) + "\\n")
    def log(self, values, step):
        AT_LOG
        self.add([step, values])
    def finish(self):
        AT_END
        self.add("end")
def init(**how):
    AT_START
    return Run(**how)
"""


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """A function that makes a library that behaves as it is told."""

    def make(start="pass", log="pass", end="pass"):
        folder = tmp_path / "libraries"
        folder.mkdir()
        text = FAKE.replace("AT_START", start).replace("AT_LOG", log).replace("AT_END", end)
        (folder / "wandb.py").write_text(textwrap.dedent(text))
        monkeypatch.syspath_prepend(str(folder))

    return make


def told(run):
    path = run / "trackers" / "wandb" / "told.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def short(run):
    """What tells runs apart, apart from the trackers in the recipe."""
    return sha(run), lines(run)


@pytest.fixture
def plain(flowers, network, tmp_path):
    return rk.train(flowers, network, out=tmp_path / "plain", settings=HOW | {"epochs": 2})


def test_a_tracker_is_told_every_step_and_epoch(flowers, network, tmp_path, wandb, plain):
    wandb()
    run = rk.train(flowers, network, out=tmp_path / "run", settings=HOW | {"epochs": 2}, track="wandb")
    assert short(run) == short(plain)
    begun, *rest, end = told(run.path)
    assert (begun["name"], begun["mode"], end) == ("run", "offline", "end")
    assert begun["config"]["optimizer.lr"] == str(run.recipe.optimizer.lr)
    assert [step for step, values in rest if "train/loss" in values] == list(range(1, 13))
    losses = [(step, values) for step, values in rest if "val/loss" in values]
    wanted = {"epoch": 1, "val/loss": run.epochs[0].val_loss, "val/accuracy": run.epochs[0].val_accuracy}
    assert losses[0] == (6, wanted)
    rates = [line["lr"] for line in lines(run) if line["kind"] == "step"]
    assert [values["train/lr"] for _, values in rest if "train/lr" in values] == rates


BROKEN = {
    "fails at its start": ({"start": "raise ValueError('no server')"}, "as ValueError: no server"),
    "fails in a step": ({"log": "raise OSError('server down')"}, "as OSError: server down"),
    "fails at its end": ({"end": "raise OSError('server down')"}, "as OSError: server down"),
    "leaves": ({"log": "os._exit(3)"}, "as it ended"),
    "is killed": ({"log": "os.kill(os.getpid(), 9)"}, "as it ended"),
    "hangs at its start": ({"start": "time.sleep(600)"}, "as it does not come to its end"),
    "hangs in a step": ({"log": "time.sleep(600)"}, "as it does not come to its end"),
    "hangs at its end": ({"end": "time.sleep(600)"}, "as it does not come to its end"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_t15_a_broken_tracker_costs_one_warning(flowers, network, tmp_path, wandb, plain, how, monkeypatch):
    behaviour, why = BROKEN[how]
    wandb(**behaviour)
    monkeypatch.setattr(trackers, "_CLOSE_TIMEOUT", 0.7 if "hangs" in how else 20.0)
    with pytest.warns(ResnetkitWarning) as warned:
        run = rk.train(flowers, network, out=tmp_path / "run", settings=HOW | {"epochs": 2}, track="wandb")
    assert [str(warning.message) for warning in warned] == [
        f"the tracker wandb is left alone, {why}; metrics.jsonl has everything"
    ]
    assert short(run) == short(plain)


def test_t15_a_tracker_that_does_not_read_is_left_alone(flowers, network, tmp_path, wandb, plain, monkeypatch):
    wandb(start="time.sleep(600)")
    monkeypatch.setattr(trackers, "_MAX_PENDING_BYTES", 100)
    monkeypatch.setattr(trackers.os, "write", _full(os.write))
    begun = time.monotonic()
    with pytest.warns(ResnetkitWarning, match="as it does not read what it is told; metrics.jsonl has everything"):
        run = rk.train(flowers, network, out=tmp_path / "run", settings=HOW | {"epochs": 2}, track="wandb")
    assert time.monotonic() - begun < 15
    assert short(run) == short(plain)


def _full(write):
    def act(handle, data):
        if b'"values"' in bytes(data):
            raise BlockingIOError
        return write(handle, data)

    return act


def test_t15_a_tracker_that_cannot_be_started(flowers, network, tmp_path, wandb, plain, monkeypatch):
    wandb()
    monkeypatch.setattr(trackers.sys, "executable", str(tmp_path / "none"))
    with pytest.warns(ResnetkitWarning, match="as it cannot be started: .*No such file or directory") as warned:
        run = rk.train(flowers, network, out=tmp_path / "run", settings=HOW | {"epochs": 2}, track="wandb")
    assert len(warned) == 1
    assert short(run) == short(plain)


def test_a_resumed_run_goes_on_in_its_tracker(flowers, network, tmp_path, wandb, plain):
    wandb()
    settings = HOW | {"epochs": 2, "trackers": ["wandb"]}
    killed(dies_at(training.Trainer, "train_step", 9), flowers, network, out=tmp_path / "run", settings=settings)
    deadline = time.monotonic() + 20
    while told(tmp_path / "run")[-1:] != ["end"] and time.monotonic() < deadline:
        time.sleep(0.05)  # it outlives the run that was killed, for as long as it has something to write
    before = told(tmp_path / "run")
    assert before[-2][0] == 8
    run = rk.train(resume=tmp_path / "run")
    assert short(run) == short(plain)
    after = told(run.path)[len(before) :]
    assert after[0]["id"] == before[0]["id"]
    assert [step for step, values in after[1:-1] if "train/loss" in values] == [9, 10, 11, 12]


def test_trackers_may_be_changed_when_a_run_is_resumed(flowers, network, tmp_path, wandb, plain):
    wandb()
    killed(
        dies_at(training.Trainer, "train_step", 9), flowers, network, out=tmp_path / "run", settings=HOW | {"epochs": 2}
    )
    run = rk.train(resume=tmp_path / "run", track=["wandb"])
    assert told(run.path)[-1] == "end"
    assert short(run) == short(plain)


def test_a_tracker_hears_no_ctrl_c(flowers, network, tmp_path, wandb):
    wandb()
    stops = iter([False] * 3 + [True] * 9)
    with pytest.raises(ResnetkitInterrupt):
        rk.train(flowers, network, out=tmp_path / "run", settings=HOW, track="wandb", stop=lambda: next(stops))
    assert told(tmp_path / "run")[-1] == "end"


def test_a_run_that_leaves_nothing_leaves_no_tracker(flowers, network, tmp_path, wandb, monkeypatch):
    wandb()
    monkeypatch.setattr(training.Trainer, "train_step", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        rk.train(flowers, network, out=tmp_path / "run", settings=HOW, track="wandb")
    assert not (tmp_path / "run").exists()


def _interrupt(*_):
    raise KeyboardInterrupt


# ------------------------------------------------------------------------------------------- before a run has begun


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_extra_is_one_line(flowers, network, tmp_path, monkeypatch, name, cli):
    original = importlib.util.find_spec
    lost = trackers._PACKAGES[name][-1]
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if package == lost else original(package))
    monkeypatch.setattr(trackers, "_PACKAGES", {name: (lost,)})
    code, out, err = cli("train", flowers, "--model", network, "--out", tmp_path / "run", "--track", name)
    assert (code, out) == (5, "")
    assert err == f"error: {lost} is not installed\nfix: pip install 'resnetkit[{name}]'\n"
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_none(flowers, network, tmp_path, cli):
    with pytest.raises(TextError) as caught:
        rk.train(flowers, network, out=tmp_path / "run", track="wandb,tensorbord")
    assert 'tracker2: came "tensorbord"; allowed: one of tensorboard, mlflow, wandb (did you mean tensorboard?)' in str(
        caught.value
    )


def test_a_tracker_gets_a_home_of_its_own_and_no_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "https://example.org")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://example.org")
    found = trackers._build_environment(tmp_path)
    assert "WANDB_BASE_URL" not in found
    assert "MLFLOW_TRACKING_URI" not in found
    assert {found[name] for name in trackers._HOME_VARIABLES} == {str(tmp_path)}
    assert (found["WANDB_MODE"], found["MLFLOW_DISABLE_TELEMETRY"], found["DO_NOT_TRACK"]) == (
        "offline",
        "true",
        "true",
    )
    assert found["HTTPS_PROXY"] == "http://127.0.0.1:9"


# -------------------------------------------------------------------------------------- the libraries, where present


def real(name, flowers, network, tmp_path, monkeypatch):
    """A run that is killed and resumed under a tracker, and everything that was written outside of it."""
    if any(importlib.util.find_spec(package) is None for package in trackers._PACKAGES[name]):
        pytest.skip(f"{name} is not installed")
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(trackers, "_CLOSE_TIMEOUT", 120.0)
    monkeypatch.setattr(trackers, "_INTERRUPTED_CLOSE_TIMEOUT", 120.0)
    settings = HOW | {"epochs": 2, "trackers": [name]}
    stops = iter([False] * 8 + [True] * 9)
    with pytest.raises(ResnetkitInterrupt):
        rk.train(flowers, network, out=tmp_path / "run", settings=settings, stop=lambda: next(stops))
    rk.train(resume=tmp_path / "run")
    assert list((tmp_path / "home").iterdir()) == []
    return tmp_path / "run" / "trackers" / name


def test_tensorboard(flowers, network, tmp_path, monkeypatch):
    folder = real("tensorboard", flowers, network, tmp_path, monkeypatch)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in found.Scalars("train/loss")] == list(range(1, 13))
    assert [event.step for event in found.Scalars("val/accuracy")] == [6, 12]


def test_mlflow(flowers, network, tmp_path, monkeypatch):
    folder = real("mlflow", flowers, network, tmp_path, monkeypatch)
    code = """
import sys
from mlflow.tracking import MlflowClient
client = MlflowClient(sys.argv[1])
(run,) = client.search_runs([client.get_experiment_by_name("resnetkit").experiment_id])
print(run.info.status, run.info.run_name, run.data.params["epochs"])
print([m.step for m in client.get_metric_history(run.info.run_id, "train/loss")])
"""
    words = [sys.executable, "-c", code, f"sqlite:///{folder}/mlflow.db"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["FINISHED run 2", str(list(range(1, 13)))]


def test_wandb(flowers, network, tmp_path, monkeypatch):
    folder = real("wandb", flowers, network, tmp_path, monkeypatch)
    written = [path.name for path in folder.rglob("*.wandb")]
    assert len(written) == 2
    assert len(set(written)) == 1  # one run, in two parts


# ----------------------------------------------------------------------------------------------- metrics.jsonl itself


def test_t15_metrics_that_cannot_be_written_for_a_while_lose_nothing(flowers, network, tmp_path, plain, monkeypatch):
    original, asked = files.write_at, []

    def put(path, data, offset=0):
        if path.name == "metrics.jsonl":
            asked.append(1)
            if 2 <= len(asked) <= 5:
                raise OSError(28, "No space left on device")
        original(path, data, offset)

    monkeypatch.setattr(files, "write_at", put)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        run = rk.train(flowers, network, out=tmp_path / "run", settings=HOW | {"epochs": 2})
    assert [str(warning.message) for warning in warned] == [
        "a checkpoint could not be written (cannot write: No space left on device); no other exists; training continues"
    ]
    assert short(run) == short(plain)


def test_t15_metrics_that_can_never_be_written_end_the_run(flowers, network, tmp_path, monkeypatch):
    original = files.write_at

    def put(path, data, offset=0):
        if path.name == "metrics.jsonl":
            raise OSError(30, "Read-only file system")
        original(path, data, offset)

    monkeypatch.setattr(files, "write_at", put)
    warnings.simplefilter("ignore", ResnetkitWarning)
    with pytest.raises(MachineError, match="3 checkpoints in a row could not be written: cannot write: Read-only"):
        rk.train(flowers, network, out=tmp_path / "run", settings=HOW | {"epochs": 2})
