"""Signals, full disks, and settings that differ from those a run was started with."""

import json
import os
import re
import shutil
import signal
import sys
import threading

import numpy as np
import pytest
import torch

import resnetkit as rk
from resnetkit import files
from resnetkit.cli import main
from resnetkit.data import loader
from resnetkit.errors import MachineError, ResnetkitInterrupt, ResnetkitWarning
from resnetkit.runtime.signals import SignalHandler, handle_signals
from resnetkit.runtime.threads import map_ordered
from resnetkit.training import setup, validation
from resnetkit.training.session import TrainSession
from resnetkit.training.trainer import Trainer

from helpers.runs import SETTINGS, assert_same_run, fork, hash_model, read_metrics, read_newest_state

ARGS = ["--epochs", 3, "--batch-size", 8, "--precision", "fp32", "--checkpoint-steps", 4]


# ---------------------------------------------------------------------------------------------------------- signals


def raise_signal_at_call(monkeypatch, owner, name, count, number, times=1):
    """Raise a signal when ``owner.name`` is called for the ``count``-th time."""
    original, calls = getattr(owner, name), []

    def spy(*args, **kwargs):
        calls.append(1)
        if len(calls) == count:
            for _ in range(times):
                signal.raise_signal(number)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, spy)


PHASES = {  # where the signal is raised, where the run stops, the steps of its newest checkpoint
    "a step": (Trainer, "train_step", 5, "step 5 of epoch 1", 5),
    "the last step of an epoch": (Trainer, "train_step", 6, "step 6 of epoch 1", 6),
    "validation": (validation, "count_predictions", 2, "step 6 of epoch 2", 12),
    "a checkpoint": (TrainSession, "make_checkpoint", 1, "step 5 of epoch 1", 5),  # one step later
}


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        *((phase, signal.SIGTERM) for phase in PHASES),
        ("a step", signal.SIGINT),
        ("validation", signal.SIGINT),
        ("a step", signal.SIGHUP),
    ],
)
def test_a_signal_saves_the_run_and_names_the_next_command(
    flowers, stochastic_network, tmp_path, cli, monkeypatch, whole_run, phase, number
):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    owner, name, count, position, steps = PHASES[phase]
    with monkeypatch.context() as patch:
        raise_signal_at_call(patch, owner, name, count, number)
        code, out, err = cli("train", flowers, "--model", stochastic_network, "--out", tmp_path / "run", *ARGS)
    assert (code, out) == (128 + number, "")
    assert err.splitlines()[-2:] == [
        f"{'interrupted' if number == signal.SIGINT else 'terminated'}; the run is saved after {position}",
        f"next: resnetkit train --resume {tmp_path / 'run'}",
    ]
    assert read_newest_state(tmp_path / "run").global_step == steps
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers
    code, out, err = cli("train", "--resume", tmp_path / "run")
    assert code == 0, err
    assert "note   resuming after " in err
    assert_same_run(rk.train(resume=tmp_path / "run"), whole_run)


def test_a_signal_while_images_are_read_leaves_nothing(flowers, network, tmp_path, cli, monkeypatch):
    with monkeypatch.context() as patch:
        raise_signal_at_call(patch, loader, "map_ordered", 2, signal.SIGTERM)
        code, out, err = cli("train", flowers, "--model", network, "--out", tmp_path / "run", *ARGS)
    assert (code, out) == (143, "")
    assert err.splitlines()[-2:] == ["terminated; stopped at once", "nothing was written: no step was saved"]
    assert not (tmp_path / "run").exists()


def test_an_interrupt_cancels_queued_reads():
    gates, started = [threading.Event() for _ in range(1000)], []
    earlier_threads = set(threading.enumerate())  # of other tests, which may wait for ever

    def read(i):
        started.append(i)
        gates[i].wait()

    gates[0].set()  # the other worker waits in item 1, so that at most item 2 begins before the interrupt
    with pytest.raises(ResnetkitInterrupt):
        for _ in map_ordered(read, range(1000), 2):
            raise ResnetkitInterrupt
    for gate in gates:
        gate.set()
    for thread in set(threading.enumerate()) - earlier_threads:
        if thread.name.startswith("reader "):
            thread.join()
    assert len(started) <= 3


def test_a_signal_in_the_final_evaluation_keeps_the_model(
    flowers, stochastic_network, tmp_path, cli, monkeypatch, whole_run
):
    with monkeypatch.context() as patch:
        raise_signal_at_call(patch, validation, "count_predictions", 4, signal.SIGINT)
        code, _, _ = cli("train", flowers, "--model", stochastic_network, "--out", tmp_path / "run", *ARGS)
    assert code == 130
    assert hash_model(tmp_path / "run") == hash_model(whole_run)
    assert not (tmp_path / "run" / "results.json").exists()
    assert_same_run(rk.train(resume=tmp_path / "run"), whole_run)


def test_a_stopped_run_has_the_model_of_its_best_epoch(flowers, network, tmp_path, cli, monkeypatch):
    raise_signal_at_call(monkeypatch, Trainer, "train_step", 8, signal.SIGINT)
    assert cli("train", flowers, "--model", network, "--out", tmp_path / "run", *ARGS)[0] == 130
    assert rk.load(tmp_path / "run").card.classes == ("daisy", "rose", "tulip")
    code, _, err = cli("report", tmp_path / "run")
    assert (code, err.splitlines()) == (2, [
        "error: this run has not finished, so there is nothing to report", f"where: {tmp_path / 'run'}",
        f"fix: resnetkit train --resume {tmp_path / 'run'}",
    ])  # fmt: skip


def test_a_second_signal_stops_at_once(flowers, stochastic_network, tmp_path, cli, monkeypatch, whole_run):
    with monkeypatch.context() as patch:
        raise_signal_at_call(patch, Trainer, "train_step", 11, signal.SIGINT, times=2)
        code, _, err = cli("train", flowers, "--model", stochastic_network, "--out", tmp_path / "run", *ARGS)
    assert code == 130
    assert err.splitlines()[-2:] == [
        "interrupted; stopped at once", f"next: resnetkit train --resume {tmp_path / 'run'}",
    ]  # fmt: skip
    assert read_newest_state(tmp_path / "run").global_step == 8
    assert not (tmp_path / "run" / "model").exists()
    assert_same_run(rk.train(resume=tmp_path / "run"), whole_run)


def test_sigterm_from_another_process_saves_the_run(flowers, network, tmp_path):
    """As a scheduler does it, in the middle of a long run."""
    run, (reader, writer) = tmp_path / "run", os.pipe()
    args = ["train", flowers, "--model", network, "--out", run, "--epochs", 5000, "--batch-size", 8]

    def work():
        os.close(reader)
        sys.stderr = os.fdopen(writer, "w", buffering=1)
        os._exit(main([str(arg) for arg in args]))

    child, output = fork(work)
    os.close(writer)
    with output, os.fdopen(reader) as stderr:
        lines = [next(line for line in stderr if line.startswith("epoch 1/"))]
        os.kill(child, signal.SIGTERM)
        lines += stderr.readlines()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143, lines
    assert lines[-1] == f"next: resnetkit train --resume {run}\n"
    steps = [line for line in read_metrics(run) if line["kind"] == "step"]
    assert len(steps) == read_newest_state(run).global_step


def test_a_signal_waits_for_a_poll_if_there_is_any():
    handler = SignalHandler()
    with pytest.raises(ResnetkitInterrupt):  # nothing has polled so far
        handler.handle(signal.SIGTERM, None)
    assert handler.exit_code == 143
    handler = SignalHandler()
    assert not handler()
    handler.handle(signal.SIGINT, None)
    assert handler()
    assert handler.exit_code == 130
    with pytest.raises(ResnetkitInterrupt):
        handler.handle(signal.SIGINT, None)


def test_outside_the_main_thread_no_handler_is_installed():
    before, states = signal.getsignal(signal.SIGTERM), []

    def work():
        with handle_signals() as stop:
            states.extend([signal.getsignal(signal.SIGTERM), stop()])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert states == [before, False]


def test_the_stop_argument_stops_a_run(flowers, network, tmp_path):
    answers = iter([False] * 7 + [True] * 99)  # six steps, one batch of val
    with pytest.raises(ResnetkitInterrupt) as stopped:
        rk.train(flowers, network, out=tmp_path / "run", settings=SETTINGS, stop=lambda: next(answers))
    assert stopped.value.run == str(tmp_path / "run")
    assert isinstance(stopped.value, KeyboardInterrupt)
    assert read_newest_state(tmp_path / "run").global_step == 7


# ------------------------------------------------------------------------------------------------------- a full disk


def set_free_space(monkeypatch, n_bytes):
    usage = shutil.disk_usage("/")._replace(free=n_bytes)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def test_too_little_space_is_an_error_before_the_first_step(flowers, network, tmp_path, cli, monkeypatch):
    set_free_space(monkeypatch, 1_500_000)
    monkeypatch.setattr(Trainer, "train_step", None)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = cli("train", flowers, "--model", network, "--out", tmp_path / "deep" / "run", *ARGS)
    assert (code, out) == (5, "")
    assert err == (
        "error: not enough disk space for 3 checkpoints: needs 3.5 MB, 1.5 MB free\n"
        f"where: {tmp_path / 'deep' / 'run'}\nfix: free some disk space, or write to another disk: --out\n"
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_too_little_space_to_resume(halted, cli, monkeypatch):
    set_free_space(monkeypatch, 1_000_000)
    code, _, err = cli("train", "--resume", halted)
    assert code == 5
    assert err.startswith("error: not enough disk space for a checkpoint: needs 1.2 MB, 1.0 MB free\n")


def fail_writes(monkeypatch, numbers):
    """Let writing a checkpoint's model fail for the calls (from 1) in ``numbers``."""
    original, calls = files.write_at, []

    def write_at(path, data, offset=0):
        if path.name == "model.safetensors":
            calls.append(1)
            if len(calls) in numbers:
                raise OSError(28, "No space left on device")
        return original(path, data, offset)

    monkeypatch.setattr(files, "write_at", write_at)


def test_a_failed_checkpoint_is_a_warning_and_training_continues(
    flowers, stochastic_network, tmp_path, monkeypatch, whole_run
):
    fail_writes(monkeypatch, {1, 3, 4})
    with pytest.warns(ResnetkitWarning) as warned:
        run = rk.train(flowers, stochastic_network, out=tmp_path / "run", settings=SETTINGS)
    failure = "a checkpoint could not be written (cannot write: No space left on device)"
    last = f"{failure}; the last one is step-00000006; training continues"
    assert [str(w.message) for w in warned] == [f"{failure}; no other exists; training continues", last, last]
    assert_same_run(run, whole_run)


def test_three_failed_checkpoints_in_a_row_end_the_run(flowers, network, tmp_path, monkeypatch, cli):
    with monkeypatch.context() as patch:
        fail_writes(patch, {3, 4, 5})
        code, out, err = cli("train", flowers, "--model", network, "--out", tmp_path / "run", *ARGS)
    assert (code, out) == (5, "")
    assert err.splitlines()[-3:] == [
        "error: 3 checkpoints in a row could not be written: cannot write: No space left on device",
        f"where: {tmp_path / 'run' / 'state' / 'step-00000016'}",
        f"fix: free some space; then resnetkit train --resume {tmp_path / 'run'}",
    ]
    assert read_newest_state(tmp_path / "run").global_step == 6
    assert cli("train", "--resume", tmp_path / "run")[0] == 0


def test_log_lines_that_cannot_be_written_wait(tmp_path, monkeypatch):
    log = files.LogFile(tmp_path / "log")
    log.add("one")
    original = os.write

    def half(handle, data):
        original(handle, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        log.add("two")
        log.add("three")
        with pytest.raises(MachineError, match="cannot write: No space left on device"):
            log.sync()
    log.add("four")
    assert log.sync() == len("one\ntwo\nthree\nfour\n")
    assert (tmp_path / "log").read_text() == "one\ntwo\nthree\nfour\n"
    again = files.LogFile(tmp_path / "log", 8)  # what was written after a checkpoint is cut off
    again.add("other")
    assert (tmp_path / "log").read_text() == "one\ntwo\nother\n"


# ------------------------------------------------------------------------------------------------- changed settings


@pytest.fixture
def halted(flowers, network, tmp_path, run_cache):
    """A run that was killed after its checkpoint of step 4."""
    return run_cache.copy_killed(6, flowers, network, tmp_path, SETTINGS)


def read_error(err):
    return err[err.index("error: ") :].splitlines()


def test_safe_changes_are_accepted_and_reported(halted, cli):
    args = ["--patience", 7, "--max-bad", "10%", "--checkpoint-steps", 2]
    code, _, err = cli("train", "--resume", halted, *args)
    assert code == 0, err
    notes = [line.removeprefix("note   ") for line in err.splitlines() if line.startswith("note   ")]
    changes = ["bad_files.max_fraction: 0.01 -> 0.1", "checkpoint_steps: 4 -> 2", "patience: none -> 7"]
    assert notes[0] == "resuming after step 4 of epoch 1"
    assert sorted(notes[1:]) == changes
    assert "\nresume exact, bit for bit" in err
    run = rk.train(resume=halted)
    assert (run.recipe.patience, run.recipe.checkpoint_steps) == (7, 2)
    assert sorted(run.results.notes) == [f"from step 5 on: {line}" for line in changes]


UNSAFE = {
    ("--lr", "0.01"): "optimizer.lr: 0.025 -> 0.01",
    ("--batch-size", "4"): "batch_size: 8 -> 4",
    ("--epochs", "5"): "epochs: 3 -> 5",
    ("--seed", "9"): "seed: 0 -> 9",
    ("--set", "schedule=triangle"): "schedule.kind: cosine -> triangle",
}


@pytest.mark.parametrize("args", UNSAFE)
def test_unsafe_changes_need_override(halted, cli, args):
    before = {path: path.read_bytes() for path in halted.rglob("*") if path.is_file()}
    code, out, err = cli("train", "--resume", halted, *args)
    assert (code, out) == (2, "")
    error = read_error(err)
    assert error[0] == "error: settings differ from those the run was started with"
    assert UNSAFE[args] in "\n".join(error)
    assert re.search(r": .* -> .*", error[1])
    assert error[-1] == ("fix: use the original settings, or add --override to this command")
    assert {path: path.read_bytes() for path in halted.rglob("*") if path.is_file()} == before
    code, _, err = cli("train", "--resume", halted, *args, "--override")
    assert code == 0, err
    assert f"note   {error[1].removeprefix('where: ')}" in err
    assert "\nresume not exact: a changed setting or image makes the result differ from both configurations\n" in err
    run = rk.train(resume=halted)
    assert any(note.startswith("from step 5 on: ") for note in run.results.notes)


def test_a_smaller_batch_misses_no_image(halted, monkeypatch):
    images, original = [], Trainer.train_step

    def spy(self, step, pixels, labels, indices):
        if self.session.state.epoch == 1:
            images.extend(indices.tolist())
        return original(self, step, pixels, labels, indices)

    monkeypatch.setattr(Trainer, "train_step", spy)
    rk.train(resume=halted, batch_size=5, override=True)
    order = np.random.default_rng([0, 1]).permutation(42).tolist()
    assert images == order[30:]  # 32 were used, and a step of 5 begins at 30


def test_another_environment_needs_override(halted, cli, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 3)
    code, _, err = cli("train", "--resume", halted)
    assert code == 2
    assert read_error(err)[1] == f"where: threads: {threads} -> {threads + 3}"
    original = setup.collect_versions
    monkeypatch.setattr(setup, "collect_versions", lambda: original() | {"torch": "9.9"})
    code, _, err = cli("train", "--resume", halted)
    assert re.match(r"       torch: \S+ -> 9.9", read_error(err)[2])
    assert cli("train", "--resume", halted, "--override")[0] == 0


def test_changed_images_are_named_and_need_override(halted, flowers, cli):
    (flowers / "rose" / "new.png").write_bytes((flowers / "rose" / "1.png").read_bytes())
    bees = sorted(path.name for path in (flowers / "tulip").iterdir())[:7]
    for name in bees:
        (flowers / "tulip" / name).write_bytes((flowers / "rose" / name).read_bytes())
    code, out, err = cli("train", "--resume", halted)
    assert (code, out) == (3, "")
    error = read_error(err)
    assert error[0] == "error: the images differ from those the run was started with: 8 changes"
    assert error[1] == f"where: {flowers}"
    assert len(error) == 9
    assert all(
        re.fullmatch(r" {7}(train|val|test): (tulip/\d+.png was replaced|rose/new.png is new)", line)
        for line in error[2:7]
    )
    assert error[7] == "       ... and 3 more"
    assert error[8] == (
        f"fix: restore them, start a new run (--out), or resume all the same: resnetkit train --resume {halted} --override"
    )
    code, _, err = cli("train", "--resume", halted, "--override")
    assert code == 0, err
    (note,) = rk.train(resume=halted).results.notes[-1:]
    assert note.startswith("from step 5 on: 8 images changed: ")
    assert (halted / "images.csv").read_text().count("new.png") == 1


def test_moved_data_are_the_same_data(halted, flowers, tmp_path, cli):
    flowers.rename(tmp_path / "moved")
    code, _, err = cli("train", tmp_path / "moved", "--resume", halted)
    assert code == 0, err
    assert "resume exact, bit for bit" in err
    assert rk.train(resume=halted).recipe.data == str(tmp_path / "moved")


def test_data_of_other_classes_are_refused(halted, flowers, cli):
    (flowers / "rose").rename(flowers / "daffodil")
    code, _, err = cli("train", "--resume", halted)
    assert code == 3
    assert "daffodil/1.png is new" in err or "rose/" in err


def test_the_same_data_under_another_path_is_not_a_change(halted, flowers, network, monkeypatch):
    monkeypatch.chdir(flowers.parent)
    assert rk.train("flowers", "mine.toml", resume="run").recipe.data == str(flowers)


def test_a_run_resumes_without_the_file_of_its_network(halted, network):
    network.unlink()
    run = rk.train(resume=halted)
    assert run.card.name == "mine"


def test_a_finished_run_is_returned_unchanged(halted, cli):
    run = rk.train(resume=halted)
    before = {path: path.stat().st_mtime_ns for path in halted.rglob("*")}
    code, out, err = cli("train", "--resume", halted, "--json")
    assert code == 0
    assert json.loads(out)["correct"] == run.evaluation.correct
    assert err.splitlines()[0] == f"note: {halted} is finished; there is nothing to do"
    assert {path: path.stat().st_mtime_ns for path in halted.rglob("*")} == before
    code, _, err = cli("train", "--resume", halted, "--lr", "0.1")
    assert (code, read_error(err)) == (2, [
        "error: this run has finished, so its settings cannot be changed", f"where: {halted}",
        "fix: start a new run: --out with another folder",
    ])  # fmt: skip


def test_a_missing_report_is_written_and_checkpoints_are_removed(halted):
    rk.train(resume=halted)
    (halted / "report.html").unlink()
    (halted / "state").mkdir()
    rk.train(resume=halted)
    assert (halted / "report.html").is_file()
    assert not (halted / "state").exists()


WRONG = {
    (): (
        "error: no training data was given",
        "where: resnetkit train",
        "fix: name DATA, a folder of images, or resume a run: --resume RUN",
    ),
    ("--print-config",): ("error: no training data was given",),
    ("--resume", "nowhere"): (
        "error: not a run folder",
        "where: nowhere",
        "fix: name a folder that `resnetkit train` wrote",
    ),
    ("--resume", "x", "--out", "y"): (
        "error: --out cannot be used with --resume",
        "where: --out y",
        "fix: omit --out",
    ),
}


@pytest.mark.parametrize("args", WRONG)
def test_arguments_without_a_run(args, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("train", *args)
    assert (code, out) == (2, "")
    assert tuple(err.splitlines())[: len(WRONG[args])] == WRONG[args]
    assert list(tmp_path.iterdir()) == []


def test_out_that_is_an_unfinished_run(halted, flowers, cli):
    code, _, err = cli("train", flowers, "--out", halted)
    assert (code, err.splitlines()) == (2, [
        "error: --out holds an unfinished run", f"where: {halted}",
        f"fix: resnetkit train --resume {halted}",
    ])  # fmt: skip


def test_print_config_of_a_resumed_run(halted, cli):
    code, out, _ = cli("train", "--resume", halted, "--lr", "0.5", "--print-config")
    assert code == 0
    assert {"epochs = 3", "lr = 0.5"} <= set(out.splitlines())


def test_an_invalid_run_toml(halted, cli):
    (halted / "run.toml").write_text("epochs = 'many'\n")
    code, _, err = cli("train", "--resume", halted)
    assert code == 2
    assert "run.toml does not describe a recipe" in err
