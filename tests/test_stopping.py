"""Signals, full disks, and settings that are not those a run was begun with."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

import resnetkit as rk
from resnetkit import files
from resnetkit.data import loader as pixels
from resnetkit.errors import MachineError, ResnetkitInterrupt, ResnetkitWarning, UsageError
from resnetkit.runtime import threads as workers
from resnetkit.runtime.signals import SignalHandler, handle_signals
from resnetkit.training import setup as start
from resnetkit.training import trainer as training
from resnetkit.training.checkpoint import load_latest_checkpoint
from test_resume import HOW, _swept, chance, flowers, lines, once, same, sha, standing_at, whole  # noqa: F401

from helpers.tiny import measure_cpu_budget

WORDS = ["--epochs", 3, "--batch-size", 8, "--precision", "fp32", "--checkpoint-steps", 4]


def newest(run):
    return load_latest_checkpoint(run / "state", lambda found: None).state


# ------------------------------------------------------------------------------------------------ T4, T5: signals


def signals_at(monkeypatch, place, name, count, number, times=1):
    """``place.name`` is called for the ``count``-th time, and signals come."""
    original, calls = getattr(place, name), []

    def spy(*words, **more):
        calls.append(1)
        if len(calls) == count:
            for _ in range(times):
                signal.raise_signal(number)
        return original(*words, **more)

    monkeypatch.setattr(place, name, spy)


PHASES = {
    "a step": (training.Trainer, "train_step", 5, "step 5 of epoch 1", 5),
    "the last step of an epoch": (training.Trainer, "train_step", 6, "step 6 of epoch 1", 6),
    "an evaluation": (training, "count_predictions", 2, "step 6 of epoch 2", 12),
    "a checkpoint": (training.Trainer, "make_checkpoint", 1, "step 4 of epoch 1", None),
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("phase", PHASES)
def test_t04_a_signal_saves_and_says_how_to_go_on(flowers, chance, tmp_path, cli, monkeypatch, whole, phase, number):  # noqa: F811
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    place, name, count, told, steps = PHASES[phase]
    with monkeypatch.context() as patch:
        signals_at(patch, place, name, count, number)
        code, out, err = cli("train", flowers, "--model", chance, "--out", tmp_path / "run", *WORDS)
    assert (code, out) == (128 + number, "")
    word = "terminated" if number == signal.SIGTERM else "interrupted"
    told = "step 5 of epoch 1" if steps is None else told  # what is heard while one is written is heeded a step later
    assert err.splitlines()[-2:] == [
        f"{word}; the run is saved after {told}",
        f"next: resnetkit train --resume {tmp_path / 'run'}",
    ]
    assert newest(tmp_path / "run").global_step == (steps or 5)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    code, out, err = cli("train", "--resume", tmp_path / "run")
    assert code == 0, err
    assert "note   resuming after " in err
    assert same(rk.train(resume=tmp_path / "run"), whole)


def test_t04_a_signal_while_pictures_are_read_leaves_nothing(flowers, network, tmp_path, cli, monkeypatch):  # noqa: F811
    with monkeypatch.context() as patch:
        signals_at(patch, pixels, "map_ordered", 2, signal.SIGTERM)
        code, out, err = cli("train", flowers, "--model", network, "--out", tmp_path / "run", *WORDS)
    assert (code, out) == (143, "")
    assert err.splitlines()[-2:] == ["terminated; stopped at once", "nothing was written: no step was saved"]
    assert not (tmp_path / "run").exists()


def test_t04_what_was_not_begun_is_not_waited_for():
    done = []
    with pytest.raises(ResnetkitInterrupt):
        for _ in workers.map_ordered(lambda i: (time.sleep(0.01), done.append(i)), range(1000), 2):
            raise ResnetkitInterrupt
    assert len(done) < 500


def test_t04_at_the_end_the_model_stands_and_the_rest_is_done_again(flowers, chance, tmp_path, cli, monkeypatch, whole):  # noqa: F811
    with monkeypatch.context() as patch:
        signals_at(patch, training, "count_predictions", 4, signal.SIGINT)
        code, _, _ = cli("train", flowers, "--model", chance, "--out", tmp_path / "run", *WORDS)
    assert code == 130
    assert sha(tmp_path / "run") == sha(whole)
    assert not (tmp_path / "run" / "results.json").exists()
    assert same(rk.train(resume=tmp_path / "run"), whole)


def test_t04_the_best_epoch_can_be_used_meanwhile(flowers, network, tmp_path, cli, monkeypatch):  # noqa: F811
    signals_at(monkeypatch, training.Trainer, "train_step", 8, signal.SIGINT)
    assert cli("train", flowers, "--model", network, "--out", tmp_path / "run", *WORDS)[0] == 130
    assert rk.load(tmp_path / "run").card.classes == ("daisy", "rose", "tulip")
    code, _, err = cli("report", tmp_path / "run")
    assert (code, err.splitlines()) == (2, [
        "error: this run has not finished, so there is nothing to report", f"where: {tmp_path / 'run'}",
        f"fix: resnetkit train --resume {tmp_path / 'run'}",
    ])  # fmt: skip


def test_t05_a_second_signal_leaves_at_once(flowers, chance, tmp_path, cli, monkeypatch, whole):  # noqa: F811
    with monkeypatch.context() as patch:
        signals_at(patch, training.Trainer, "train_step", 11, signal.SIGINT, times=2)
        code, _, err = cli("train", flowers, "--model", chance, "--out", tmp_path / "run", *WORDS)
    assert code == 130
    assert err.splitlines()[-2:] == [
        "interrupted; stopped at once", f"next: resnetkit train --resume {tmp_path / 'run'}",
    ]  # fmt: skip
    assert newest(tmp_path / "run").global_step == 8
    assert not (tmp_path / "run" / "model").exists()
    assert same(rk.train(resume=tmp_path / "run"), whole)


def test_t04_a_process_of_its_own(flowers, network, tmp_path):  # noqa: F811
    """As a scheduler does it: SIGTERM from outside, in the middle of a long run."""
    words = ["train", flowers, "--model", network, "--out", tmp_path / "run", "--epochs", "5000", "--batch-size", "8"]
    command = [sys.executable, "-m", "resnetkit", *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (tmp_path / "run" / "state" / "latest").exists():
            time.sleep(0.05)
        process.terminate()
        err = process.communicate()[1]
    assert process.returncode == 143, err
    assert err.endswith(f"next: resnetkit train --resume {tmp_path / 'run'}\n")
    state = newest(tmp_path / "run")
    assert len([line for line in lines(tmp_path / "run") if line["kind"] == "step"]) == state.global_step


def test_signals_are_heard_where_somebody_asks():
    asked = SignalHandler()
    with pytest.raises(ResnetkitInterrupt):
        asked.handle(signal.SIGTERM, None)
    assert asked.exit_code == 143
    asked = SignalHandler()
    assert not asked()
    asked.handle(signal.SIGINT, None)
    assert asked()
    assert asked.exit_code == 130
    with pytest.raises(ResnetkitInterrupt):
        asked.handle(signal.SIGINT, None)


def test_elsewhere_than_in_the_main_thread_nothing_is_installed():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with handle_signals() as stop:
            seen.extend([signal.getsignal(signal.SIGTERM), stop()])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, False]


def test_python_stops_a_run_too(flowers, network, tmp_path):  # noqa: F811
    asked = iter([False] * 7 + [True] * 99)
    with pytest.raises(ResnetkitInterrupt) as stopped:
        rk.train(flowers, network, out=tmp_path / "run", settings=HOW, stop=lambda: next(asked))
    assert stopped.value.run == str(tmp_path / "run")
    assert isinstance(stopped.value, KeyboardInterrupt)
    assert newest(tmp_path / "run").epoch == 2 or newest(tmp_path / "run").global_step == 6


# -------------------------------------------------------------------------------------------------- T3: a full disk


def test_t03_too_little_space_is_said_at_the_start(flowers, network, tmp_path, cli, monkeypatch):  # noqa: F811
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**12, 10**12, 1_500_000))
    before = sorted(tmp_path.rglob("*"))
    begun = time.process_time()
    code, out, err = cli("train", flowers, "--model", network, "--out", tmp_path / "deep" / "run", *WORDS)
    assert time.process_time() - begun < measure_cpu_budget()
    assert (code, out) == (5, "")
    assert err == (
        "error: there is too little space for 3 checkpoints: needs 3.5 MB, free 1.5 MB\n"
        f"where: {tmp_path / 'deep' / 'run'}\nfix: make room, or write to another disk: --out\n"
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_t03_too_little_space_to_go_on(halted, cli, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**12, 10**12, 1_000_000))
    code, _, err = cli("train", "--resume", halted)
    assert code == 5
    assert err.startswith("error: there is too little space for a checkpoint: needs 1.2 MB, free 1.0 MB\n")


def full_disk(monkeypatch, fails):
    """Writing a checkpoint's model fails for the calls (from 1) in ``fails``."""
    original, calls = files.write_at, []

    def put(path, data, offset=0):
        if path.name == "model.safetensors":
            calls.append(1)
            if len(calls) in fails:
                raise OSError(28, "No space left on device")
        return original(path, data, offset)

    monkeypatch.setattr(files, "write_at", put)


def test_t03_a_failed_checkpoint_is_a_warning_and_training_goes_on(flowers, chance, tmp_path, monkeypatch, whole):  # noqa: F811
    full_disk(monkeypatch, {1, 3, 4})
    with pytest.warns(ResnetkitWarning) as warned:
        run = rk.train(flowers, chance, out=tmp_path / "run", settings=HOW)
    told = "a checkpoint could not be written (cannot write: No space left on device); {}, and training goes on"
    assert [str(w.message) for w in warned] == [
        told.format("there is none yet"), told.format("step-00000006 is kept"), told.format("step-00000006 is kept"),
    ]  # fmt: skip
    assert same(run, whole)


def test_t03_three_in_a_row_end_the_run(flowers, network, tmp_path, monkeypatch, cli):  # noqa: F811
    with monkeypatch.context() as patch:
        full_disk(patch, {3, 4, 5})
        code, out, err = cli("train", flowers, "--model", network, "--out", tmp_path / "run", *WORDS)
    assert (code, out) == (5, "")
    assert err.splitlines()[-3:] == [
        "error: 3 checkpoints in a row could not be written: cannot write: No space left on device",
        f"where: {tmp_path / 'run' / 'state' / 'step-00000016'}",
        f"fix: make room; then resnetkit train --resume {tmp_path / 'run'}",
    ]
    assert newest(tmp_path / "run").global_step == 6
    assert cli("train", "--resume", tmp_path / "run")[0] == 0


def test_t03_lines_that_cannot_be_written_wait(tmp_path, monkeypatch):
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


# --------------------------------------------------------------------------------------------- T6: other settings


@pytest.fixture
def halted(flowers, network, tmp_path):  # noqa: F811
    standing_at(6, flowers, network, tmp_path, HOW)
    return tmp_path / "run"


def document(err):
    return err[err.index("error: ") :].splitlines()


def test_t06_safe_changes_pass_and_are_told(halted, cli):
    words = ["--patience", 7, "--max-bad", "10%", "--checkpoint-steps", 2]
    code, _, err = cli("train", "--resume", halted, *words)
    assert code == 0, err
    told = [line.removeprefix("note   ") for line in err.splitlines() if line.startswith("note   ")]
    changes = ["bad_files.max_fraction: 0.01 -> 0.1", "checkpoint_steps: 4 -> 2", "patience: none -> 7"]
    assert told[0] == "resuming after step 4 of epoch 1"
    assert sorted(told[1:]) == changes
    run = rk.train(resume=halted)
    assert (run.recipe.patience, run.recipe.checkpoint_steps) == (7, 2)
    assert sorted(run.results.notes) == [f"from step 5 on: {line}" for line in changes]


UNSAFE = {
    ("--lr", "0.01"): "optimizer.lr: 0.0125 -> 0.01",
    ("--batch-size", "4"): "batch_size: 8 -> 4",
    ("--epochs", "5"): "epochs: 3 -> 5",
    ("--seed", "9"): "seed: 0 -> 9",
    ("--set", "schedule=triangle"): "schedule.kind: none -> triangle",
}


@pytest.mark.parametrize("words", UNSAFE)
def test_t06_unsafe_changes_need_to_be_meant(halted, cli, words):
    before = {path: path.read_bytes() for path in halted.rglob("*") if path.is_file()}
    code, out, err = cli("train", "--resume", halted, *words)
    assert (code, out) == (2, "")
    told = document(err)
    assert told[0] == "error: the run was begun otherwise, so that its result would be that of neither"
    assert re.search(r": .* -> .*", told[1])
    assert told[-1] == (
        f"fix: leave it as it was, or go on all the same: resnetkit train --resume {halted} ... --override"
    )
    assert {path: path.read_bytes() for path in halted.rglob("*") if path.is_file()} == before
    code, _, err = cli("train", "--resume", halted, *words, "--override")
    assert code == 0, err
    assert f"note   {told[1].removeprefix('where: ')}" in err
    run = rk.train(resume=halted)
    assert any(note.startswith("from step 5 on: ") for note in run.results.notes)


def test_t06_a_smaller_batch_misses_no_picture(halted, monkeypatch):
    seen, original = [], training.Trainer.train_step

    def spy(self, step, pixels, labels, which):
        if self.state.epoch == 1:
            seen.extend(which.tolist())
        return original(self, step, pixels, labels, which)

    monkeypatch.setattr(training.Trainer, "train_step", spy)
    rk.train(resume=halted, batch_size=5, override=True)
    order = __import__("numpy").random.default_rng([0, 1]).permutation(42).tolist()
    assert seen == order[30:]  # 32 were seen, and a step of 5 begins at 30


def test_t06_other_circumstances(halted, cli, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 3)
    code, _, err = cli("train", "--resume", halted)
    assert code == 2
    assert document(err)[1] == f"where: threads: {threads} -> {threads + 3}"
    original = start.collect_versions
    monkeypatch.setattr(start, "collect_versions", lambda: original() | {"torch": "9.9"})
    code, _, err = cli("train", "--resume", halted)
    assert re.match(r"       torch: \S+ -> 9.9", document(err)[2])
    assert cli("train", "--resume", halted, "--override")[0] == 0


def test_t06_other_pictures_are_an_error_in_any_case(halted, flowers, cli):  # noqa: F811
    (flowers / "rose" / "new.png").write_bytes((flowers / "rose" / "1.png").read_bytes())
    for words in ([], ["--override"]):
        code, out, err = cli("train", "--resume", halted, *words)
        assert (code, out) == (3, "")
        assert document(err) == [
            "error: these are not, or no longer, the pictures that the run was begun with",
            f"where: {flowers}",
            "fix: name the same data, or begin another run: --out",
        ]


def test_t06_data_elsewhere_has_to_be_meant(halted, flowers, tmp_path):  # noqa: F811
    shutil.copytree(flowers, tmp_path / "moved")
    with pytest.raises(UsageError) as caught:
        rk.train(tmp_path / "moved", resume=halted)
    assert caught.value.where == (f"data: {flowers} -> {tmp_path / 'moved'}",)
    assert rk.train(tmp_path / "moved", resume=halted, override=True).recipe.data == str(tmp_path / "moved")


def test_the_same_data_by_another_name_is_no_change(halted, flowers, network, monkeypatch):  # noqa: F811
    monkeypatch.chdir(flowers.parent)
    assert rk.train("flowers", "mine.toml", resume="run").recipe.data == str(flowers)


def test_a_network_whose_file_has_gone(halted, network):
    network.unlink()
    run = rk.train(resume=halted)
    assert run.card.name == "mine"


def test_a_finished_run_is_handed_back(halted, cli):
    run = rk.train(resume=halted)
    before = {path: path.stat().st_mtime_ns for path in halted.rglob("*")}
    code, out, err = cli("train", "--resume", halted, "--json")
    assert code == 0
    assert json.loads(out)["correct"] == run.evaluation.correct
    assert err.splitlines()[0] == f"note: {halted} is finished; there is nothing to do"
    assert {path: path.stat().st_mtime_ns for path in halted.rglob("*")} == before
    code, _, err = cli("train", "--resume", halted, "--lr", "0.1")
    assert (code, document(err)) == (2, [
        "error: this run has finished, so nothing of it can be changed", f"where: {halted}",
        "fix: begin another one: --out with another folder",
    ])  # fmt: skip


def test_what_a_finished_run_may_lack_is_made(halted):
    rk.train(resume=halted)
    (halted / "report.html").unlink()
    (halted / "state").mkdir()
    rk.train(resume=halted)
    assert (halted / "report.html").is_file()
    assert not (halted / "state").exists()


WRONG = {
    (): (
        "error: there is nothing to train on",
        "where: resnetkit train",
        "fix: name DATA, a folder of pictures, or go on with a run: --resume RUN",
    ),
    ("--print-config",): ("error: there is nothing to train on",),
    ("--resume", "nowhere"): (
        "error: this is no run folder",
        "where: nowhere",
        "fix: name a folder that `resnetkit train` wrote",
    ),
    ("--resume", "x", "--out", "y"): (
        "error: a run goes on in its own folder",
        "where: --out y",
        "fix: leave --out out",
    ),
}


@pytest.mark.parametrize("words", WRONG)
def test_words_that_make_no_run(words, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("train", *words)
    assert (code, out) == (2, "")
    told = WRONG[words]
    assert tuple(err.splitlines())[: len(told)] == told
    assert list(tmp_path.iterdir()) == []


def test_out_that_is_an_unfinished_run(halted, flowers, cli):  # noqa: F811
    code, _, err = cli("train", flowers, "--out", halted)
    assert (code, err.splitlines()) == (2, [
        "error: there is an unfinished run in this folder", f"where: {halted}",
        f"fix: resnetkit train --resume {halted}",
    ])  # fmt: skip


def test_the_recipe_that_would_run(halted, cli):
    code, out, _ = cli("train", "--resume", halted, "--lr", "0.5", "--print-config")
    assert code == 0
    assert {"epochs = 3", "lr = 0.5"} <= set(out.splitlines())


def test_a_run_toml_that_is_none(halted, cli):
    (halted / "run.toml").write_text("epochs = 'many'\n")
    code, _, err = cli("train", "--resume", halted)
    assert code == 2
    assert "run.toml does not describe a recipe" in err
