"""T15: trackers receive all metrics, and a failing tracker does not affect the run."""

import importlib.util
import json
import subprocess
import sys
import textwrap
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import resnetkit as rk
from resnetkit import files
from resnetkit.errors import MachineError, ResnetkitInterrupt, ResnetkitWarning, TextError, format_install_command
from resnetkit.runtime.deadline import Deadline
from resnetkit.serialization import to_toml
from resnetkit.training import trainer
from resnetkit.training.events import EpochMetrics, StepMetrics
from resnetkit.training.trackers import client
from resnetkit.training.trackers.client import build_environment, check_trackers_installed, track

from helpers.runs import hash_model, kill_at_step, read_metrics, train_and_kill
from helpers.tiny import BASE

SETTINGS = {"epochs": 2, "batch_size": 8, "precision": "fp32", "checkpoint_steps": 4}
FAKE_WANDB = """
import json, os, pathlib, sys, time
class Run:
    def __init__(self, dir, **options):
        self.file = pathlib.Path(dir) / "calls.jsonl"
        self.add({k: options[k] for k in ("id", "name", "mode", "config")})
    def add(self, value):
        with self.file.open("a") as file:
            file.write(json.dumps(value) + "\\n")
    def log(self, values, step):
        AT_LOG
        self.add([step, values])
    def finish(self):
        AT_END
        self.add("end")
def init(**options):
    AT_START
    return Run(**options)
"""


@pytest.fixture
def fake_wandb(tmp_path, monkeypatch):
    """A function that writes a wandb package with the given behavior."""

    def write(start="pass", log="pass", end="pass"):
        folder = tmp_path / "libraries"
        folder.mkdir()
        text = FAKE_WANDB.replace("AT_START", start).replace("AT_LOG", log).replace("AT_END", end)
        (folder / "wandb.py").write_text(textwrap.dedent(text))
        monkeypatch.syspath_prepend(str(folder))

    return write


def read_calls(out):
    """The calls that the wandb package has received."""
    path = out / "trackers" / "wandb" / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    """A dataset of 60 small images in three classes."""
    root = tmp_path_factory.mktemp("flowers")
    for label, name in enumerate(["rose", "daisy", "tulip"]):
        (root / name).mkdir()
        for i in range(20):
            pixels = np.random.default_rng([label, i]).integers(0, 60, (16, 20, 3), dtype=np.uint8)
            pixels[..., label] += 120
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("network") / "mine.toml"
    path.write_text(to_toml(BASE))
    return path


@pytest.fixture(scope="module")
def plain_run(flowers, network, tmp_path_factory):
    """A run without trackers."""
    return rk.train(flowers, network, out=tmp_path_factory.mktemp("plain") / "run", settings=SETTINGS)


def assert_same_run(run, expected):
    """Assert equal weights and metrics; the recipes differ in their trackers."""
    assert hash_model(run) == hash_model(expected)
    assert read_metrics(run) == read_metrics(expected)


@pytest.fixture
def tracked_run(plain_run, tmp_path):
    """What `track` needs of a run."""
    return SimpleNamespace(out=tmp_path / "run", recipe=plain_run.recipe, checkpoint=None)


STEPS = [StepMetrics(1, step, 6, 0.5, 0.25, 1000.0, 0.1) for step in range(1, 7)]
EPOCH = EpochMetrics(1, 0.1, 0.5, 0.25, 18, 9, 0.5, 0.75, 1000.0, 1.0)


def send_metrics(tracked_run, events=(*STEPS, EPOCH)):
    with track(tracked_run, ["wandb"]) as on_event:
        for event in events:
            on_event(event)


# --------------------------------------------------------------------------------------------- what a tracker receives


def test_a_tracker_receives_every_step_and_epoch(flowers, network, tmp_path, fake_wandb, plain_run):
    fake_wandb()
    run = rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS, track="wandb")
    assert_same_run(run, plain_run)
    header, *rows, end = read_calls(run.path)
    assert (header["name"], header["mode"], end) == ("run", "offline", "end")
    assert header["config"]["optimizer.lr"] == str(run.recipe.optimizer.lr)
    assert [step for step, values in rows if "train/loss" in values] == list(range(1, 13))
    epochs = [(step, values) for step, values in rows if "val/loss" in values]
    expected = {"epoch": 1, "val/loss": run.epochs[0].val_loss, "val/accuracy": run.epochs[0].val_accuracy}
    assert epochs[0] == (6, expected)
    rates = [row["lr"] for row in read_metrics(run) if row["kind"] == "step"]
    assert [values["train/lr"] for _, values in rows if "train/lr" in values] == rates


def test_a_resumed_run_continues_in_its_tracker(flowers, network, tmp_path, fake_wandb, plain_run):
    fake_wandb()
    out = tmp_path / "run"
    train_and_kill(kill_at_step(9), flowers, network, out=out, settings=SETTINGS | {"trackers": ["wandb"]})
    # The tracker outlives the killed run until it has written what it received.
    assert Deadline(120).wait_until(lambda: read_calls(out)[-1:] == ["end"])
    before = read_calls(out)
    assert before[-2][0] == 8
    run = rk.train(resume=out)
    assert_same_run(run, plain_run)
    after = read_calls(out)[len(before) :]
    assert after[0]["id"] == before[0]["id"]
    assert [step for step, values in after[1:-1] if "train/loss" in values] == [9, 10, 11, 12]


def test_trackers_may_change_when_a_run_is_resumed(flowers, network, tmp_path, fake_wandb, plain_run):
    fake_wandb()
    train_and_kill(kill_at_step(9), flowers, network, out=tmp_path / "run", settings=SETTINGS)
    run = rk.train(resume=tmp_path / "run", track=["wandb"])
    assert read_calls(run.path)[-1] == "end"
    assert_same_run(run, plain_run)


def test_an_interrupted_run_closes_its_tracker(flowers, network, tmp_path, fake_wandb):
    fake_wandb()
    stops = iter([False] * 3 + [True] * 9)
    with pytest.raises(ResnetkitInterrupt):
        rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS, track="wandb", stop=lambda: next(stops))
    assert read_calls(tmp_path / "run")[-1] == "end"


def test_a_run_that_is_removed_leaves_no_tracker(flowers, network, tmp_path, fake_wandb, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    fake_wandb()
    monkeypatch.setattr(trainer.Trainer, "train_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS, track="wandb")
    assert not (tmp_path / "run").exists()


# -------------------------------------------------------------------------------------------------- failing trackers

FAILURES = {
    "fails at its start": ({"start": "raise ValueError('no server')"}, "its process exited with code 1: ValueError: no server"),
    "fails in a step": ({"log": "raise OSError('server down')"}, "its process exited with code 1: OSError: server down"),
    "fails at its end": ({"end": "raise OSError('server down')"}, "its process exited with code 1: OSError: server down"),
    "exits": ({"log": "os._exit(3)"}, "its process exited with code 3"),
    "is killed": ({"log": "os.kill(os.getpid(), 9)"}, "its process was killed by SIGKILL"),
    "hangs at its start": ({"start": "time.sleep(600)"}, "its process did not end in time"),
    "hangs in a step": ({"log": "time.sleep(600)"}, "its process did not end in time"),
    "hangs at its end": ({"end": "time.sleep(600)"}, "its process did not end in time"),
}  # fmt: skip


def get_messages(caught):
    return [str(warning.message) for warning in caught]


def make_warning(reason):
    return f"the tracker wandb stopped: {reason}; the run continues, and metrics.jsonl is complete"


@pytest.mark.parametrize("failure", FAILURES)
def test_t15_a_failing_tracker_costs_one_warning(tracked_run, fake_wandb, failure, monkeypatch):
    behavior, reason = FAILURES[failure]
    fake_wandb(**behavior)
    if "hangs" in failure:
        monkeypatch.setattr(client, "CLOSE_TIMEOUT", 0.3)
    with pytest.warns(ResnetkitWarning) as caught:
        send_metrics(tracked_run)
    assert get_messages(caught) == [make_warning(reason)]


@pytest.mark.parametrize("failure", ["fails in a step", "hangs in a step"])
def test_t15_a_failing_tracker_does_not_change_a_run(
    flowers, network, tmp_path, fake_wandb, plain_run, failure, monkeypatch
):
    behavior, reason = FAILURES[failure]
    fake_wandb(**behavior)
    if "hangs" in failure:
        monkeypatch.setattr(client, "CLOSE_TIMEOUT", 0.3)
    with pytest.warns(ResnetkitWarning) as caught:
        run = rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS, track="wandb")
    assert get_messages(caught) == [make_warning(reason)]
    assert_same_run(run, plain_run)


def test_t15_an_interrupted_run_waits_less_for_its_tracker(tracked_run, fake_wandb, monkeypatch):
    fake_wandb(end="time.sleep(600)")
    monkeypatch.setattr(client, "INTERRUPTED_CLOSE_TIMEOUT", 0.3)
    with (
        pytest.warns(ResnetkitWarning) as caught,
        pytest.raises(KeyboardInterrupt),
        track(tracked_run, ["wandb"]),
    ):
        raise KeyboardInterrupt
    assert get_messages(caught) == [make_warning("its process did not end in time")]


def test_t15_a_tracker_that_does_not_read_is_stopped(tracked_run, fake_wandb, monkeypatch):
    fake_wandb(start="time.sleep(600)")
    monkeypatch.setattr(client, "MAX_PENDING_BYTES", 1000)
    with pytest.warns(ResnetkitWarning) as caught:
        send_metrics(tracked_run, STEPS * 500)  # more than the buffer of a pipe holds
    assert get_messages(caught) == [make_warning("its process does not read the metrics")]


def test_t15_a_tracker_that_cannot_be_started(tracked_run, fake_wandb, tmp_path, monkeypatch):
    fake_wandb()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.warns(ResnetkitWarning) as caught:
        send_metrics(tracked_run)
    reason = f"its process could not be started: [Errno 2] No such file or directory: '{tmp_path / 'none'}'"
    assert get_messages(caught) == [make_warning(reason)]


# --------------------------------------------------------------------------------------------- before a run has begun


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_extra_is_named(monkeypatch, name):
    *_, missing = client.PACKAGES[name]
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if package == missing else package)
    with pytest.raises(MachineError) as caught:
        check_trackers_installed((name,))
    assert str(caught.value) == f"error: {missing} is not installed\nfix: {format_install_command(name)}"


def test_a_missing_extra_starts_no_run(flowers, network, tmp_path, monkeypatch, cli):
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else original(name))
    code, out, err = cli("train", flowers, "--model", network, "--out", tmp_path / "run", "--track", "wandb")
    assert (code, out) == (5, "")
    assert err == "error: wandb is not installed\nfix: pip install 'wandb>=0.20'\n"
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused(flowers, network, tmp_path):
    with pytest.raises(TextError) as caught:
        rk.train(flowers, network, out=tmp_path / "run", track="wandb,tensorbord")
    assert 'tracker2: got "tensorbord"; allowed: one of tensorboard, mlflow, wandb (did you mean tensorboard?)' in str(
        caught.value
    )


def test_a_tracker_has_its_own_home_and_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "https://example.org")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://example.org")
    environment = build_environment(tmp_path)
    assert "WANDB_BASE_URL" not in environment
    assert "MLFLOW_TRACKING_URI" not in environment
    assert {environment[name] for name in client.HOME_VARIABLES} == {str(tmp_path)}
    expected = {"WANDB_MODE": "offline", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    assert environment.items() >= expected.items()
    assert environment["HTTPS_PROXY"] == "http://127.0.0.1:9"


# ------------------------------------------------------------------------------------ the libraries, if installed


def train_with_library(name, flowers, network, tmp_path, monkeypatch):
    """Interrupt and resume a run with a real tracker; nothing may be written to the home folder."""
    if any(importlib.util.find_spec(package) is None for package in client.PACKAGES[name]):
        pytest.skip(f"{name} is not installed")
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(client, "CLOSE_TIMEOUT", 120.0)
    monkeypatch.setattr(client, "INTERRUPTED_CLOSE_TIMEOUT", 120.0)
    settings = SETTINGS | {"trackers": [name]}
    stops = iter([False] * 8 + [True] * 9)
    with pytest.raises(ResnetkitInterrupt):
        rk.train(flowers, network, out=tmp_path / "run", settings=settings, stop=lambda: next(stops))
    rk.train(resume=tmp_path / "run")
    assert list((tmp_path / "home").iterdir()) == []
    return tmp_path / "run" / "trackers" / name


def test_tensorboard(flowers, network, tmp_path, monkeypatch):
    folder = train_with_library("tensorboard", flowers, network, tmp_path, monkeypatch)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 13))
    assert [event.step for event in events.Scalars("val/accuracy")] == [6, 12]


def test_mlflow(flowers, network, tmp_path, monkeypatch):
    folder = train_with_library("mlflow", flowers, network, tmp_path, monkeypatch)
    code = """
import sys
from mlflow.tracking import MlflowClient
client = MlflowClient(sys.argv[1])
(run,) = client.search_runs([client.get_experiment_by_name("resnetkit").experiment_id])
print(run.info.status, run.info.run_name, run.data.params["epochs"])
print([m.step for m in client.get_metric_history(run.info.run_id, "train/loss")])
"""
    words = [sys.executable, "-c", code, f"sqlite:///{folder}/mlflow.db"]
    process = subprocess.run(words, capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[-2:] == ["FINISHED run 2", str(list(range(1, 13)))]


def test_wandb(flowers, network, tmp_path, monkeypatch):
    folder = train_with_library("wandb", flowers, network, tmp_path, monkeypatch)
    names = [path.name for path in folder.rglob("*.wandb")]
    assert len(names) == 2
    assert len(set(names)) == 1  # one run, in two parts


# ----------------------------------------------------------------------------------------------- metrics.jsonl itself


def test_t15_metrics_are_complete_after_temporary_write_errors(flowers, network, tmp_path, plain_run, monkeypatch):
    original, n_writes = files.write_at, [0]

    def write_at(path, data, offset=0):
        if path.name == "metrics.jsonl":
            n_writes[0] += 1
            if 2 <= n_writes[0] <= 5:
                raise OSError(28, "No space left on device")
        original(path, data, offset)

    monkeypatch.setattr(files, "write_at", write_at)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS)
    assert get_messages(caught) == [
        "a checkpoint could not be written (cannot write: No space left on device); no other exists; training continues"
    ]
    assert_same_run(run, plain_run)


def test_t15_metrics_that_can_never_be_written_end_the_run(flowers, network, tmp_path, monkeypatch):
    original = files.write_at

    def write_at(path, data, offset=0):
        if path.name == "metrics.jsonl":
            raise OSError(30, "Read-only file system")
        original(path, data, offset)

    monkeypatch.setattr(files, "write_at", write_at)
    warnings.simplefilter("ignore", ResnetkitWarning)
    with pytest.raises(MachineError, match="3 checkpoints in a row could not be written: cannot write: Read-only"):
        rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS)
