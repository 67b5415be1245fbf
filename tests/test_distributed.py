"""Several processes, one run: the same counts, the same weights, one output, and one failure that ends all of them.

The processes are forked from this one, which has imported torch already; the last test uses the agent of torchrun.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import resnetkit as rk
from resnetkit import files as file_utils
from resnetkit.architecture import spec as s
from resnetkit.cli import main
from resnetkit.data import loader
from resnetkit.errors import MachineError, PeerProcessError, ResnetkitInterrupt, UsageError
from resnetkit.prediction import api as predict_api
from resnetkit.runtime import free_memory
from resnetkit.runtime.deadline import Clock
from resnetkit.runtime.distributed import SINGLE_PROCESS, LaunchInfo, count_cores, get_rank_slice, read_launch_info
from resnetkit.runtime.failures import FailureReporter
from resnetkit.runtime.key_value_store import KeyValueStore
from resnetkit.runtime.rendezvous import create_prefix_store
from resnetkit.serialization import to_toml
from resnetkit.training import memory
from resnetkit.training.sync_batch_norm import SyncBatchNorm2d, convert_sync_batchnorm, disable_sync

from helpers.distributed import Launch, before_step, launch, read_recorded_images, record_images
from helpers.runs import STOCHASTIC_NETWORK, die, hash_model, read_metrics, read_newest_state
from helpers.tiny import BASE

OPTIONS = ["--batch-size", 8, "--precision", "fp32", "--checkpoint-steps"]  # and the number of steps
SETTINGS = {"batch_size": 8, "precision": "fp32", "checkpoint_steps": 4}
HOST = socket.gethostname()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with 60 images of 3 classes, and networks: with batch norms, without norms, and with dropout."""
    folder = tmp_path_factory.mktemp("distributed")
    for label, name in enumerate(["rose", "daisy", "tulip"]):
        (folder / "flowers" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.random.default_rng([label, i]).integers(0, 60, (16, 20, 3), dtype=np.uint8)
            pixels[..., label] += 120
            Image.fromarray(pixels).save(folder / "flowers" / name / f"{i}.png")
    networks = {"norms": BASE, "plain": replace(BASE, norm=s.NoNorm()), "stochastic": STOCHASTIC_NETWORK}
    for name, spec in networks.items():
        (folder / f"{name}.toml").write_text(to_toml(spec))
    return folder


def make_train_command(root, out, network, *words, checkpoint_steps=4):
    words = [*OPTIONS, checkpoint_steps, *words]
    return ["train", root / "flowers", "--model", root / f"{network}.toml", "--out", root / out, *words]


def assert_success(exits):
    assert [process.code for process in exits] == [0] * len(exits), exits
    assert all(process[1:] == ("", "") for process in exits[1:])


def train_distributed(root, out, world_size, network, *words):
    assert_success(launch(root / f"log-{out}", world_size, *make_train_command(root, out, network, *words)))
    return root / out


def train_alone(root, out, network, **settings):
    rk.train(root / "flowers", root / f"{network}.toml", out=root / out, settings=SETTINGS | {"epochs": 1} | settings)
    return root / out


def resume(root, out, world_size, *words, **options):
    exits = launch(root / f"resume-{out}-{world_size}", world_size, "train", "--resume", root / out, *words, **options)
    assert_success(exits)
    return exits[0].err


def load_weights(run):
    return load_file(run / "model" / "model.safetensors")


def max_difference(a, b):
    a, b = load_weights(a), load_weights(b)
    assert a.keys() == b.keys()
    return max(float((a[key].double() - b[key].double()).abs().max()) for key in a)


def assert_same_run(run, expected):
    assert hash_model(run) == hash_model(expected)
    assert read_metrics(run) == read_metrics(expected)
    assert not (run / "state").exists()


def get_error(process):
    """The lines of a process's stderr from the error on."""
    return process.err[process.err.index("error: ") :].splitlines()


# ---------------------------------------------------------------------------------------------- without other processes


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("local_norms", [True, False])
def test_rank_slices_cover_a_batch_once(world_size, local_norms):
    for n in range(30):
        slices = [list(range(n))[get_rank_slice(n, rank, world_size, local_norms)] for rank in range(world_size)]
        assert sorted(i for indices in slices for i in indices) == list(range(n))
        assert max(map(len, slices)) - min(map(len, slices)) <= 1 or local_norms
        if local_norms and n > 1:
            assert 1 not in map(len, slices)  # one image has no variance


def test_launch_info_is_read_and_checked(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    fix = "fix: start the processes with torchrun, which sets them; for a single process, unset WORLD_SIZE"
    assert read_launch_info() is None
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert read_launch_info() is None
    n_cores = count_cores()
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UsageError) as caught:
        read_launch_info()
    assert str(caught.value) == f"error: RANK is not a number\nwhere: RANK=\n{fix}"
    monkeypatch.setenv("RANK", "3")
    assert read_launch_info() == LaunchInfo(3, 4, 0, 1)
    assert count_cores() == n_cores
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(UsageError) as caught:
        read_launch_info()
    assert str(caught.value) == (
        "error: the variables of torchrun contradict each other\n"
        f"where: RANK=3 WORLD_SIZE=4 LOCAL_RANK=3 LOCAL_WORLD_SIZE=3\n{fix}"
    )
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert count_cores() == max(1, n_cores // 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_synchronized_norm_equals_batch_norm(dtype):
    torch.manual_seed(0)
    ours, theirs = nn.Sequential(nn.BatchNorm2d(3)), nn.Sequential(nn.BatchNorm2d(3))
    convert_sync_batchnorm(ours, SINGLE_PROCESS.all_reduce_sum)
    assert isinstance(ours[0], SyncBatchNorm2d)
    tensors = []
    for norm in (ours, theirs):
        torch.manual_seed(1)
        with torch.no_grad():
            norm[0].weight.copy_(torch.rand(3))
            norm[0].bias.copy_(torch.rand(3))
        x = (torch.randn(4, 3, 5, 5) * 3 + 100).to(dtype).requires_grad_()
        y = norm(x)
        (y * torch.randn(y.shape).to(dtype)).sum().backward()
        tensors.append([y.detach(), x.grad, *(p.grad for p in norm.parameters()), *norm.state_dict().values()])
        norm.eval()
        tensors[-1].append(norm(x).detach())
    for a, b in zip(*tensors, strict=True):
        assert a.dtype == b.dtype
        assert torch.allclose(a.float(), b.float(), atol=1e-4 if dtype == torch.float32 else 0.05)
    empty = ours.train()(torch.zeros(0, 3, 5, 5))
    assert empty.shape == (0, 3, 5, 5)


def test_t09_a_memory_estimate_calls_no_collective():
    def fail(tensors):
        raise AssertionError

    model = rk.build(BASE)
    convert_sync_batchnorm(model, fail)
    disable_sync(model)
    assert model.train()(torch.randn(2, *BASE.input)).isfinite().all()


def test_t09_the_processes_of_a_machine_share_its_memory(monkeypatch):
    available = memory.get_available_memory(torch.device("cpu"))
    monkeypatch.setattr(free_memory, "read_launch_info", lambda: LaunchInfo(0, 4, 0, 4))
    assert memory.get_available_memory(torch.device("cpu")) == pytest.approx(available / 4, rel=0.3)


def test_other_commands_refuse_several_processes(cli, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert cli("embed", "x.png", "--model", "m") == (
        2, "", "error: embed runs in one process; several would repeat the same work\n"
               "where: torchrun\nfix: resnetkit embed ..., without torchrun\n",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ T12: the large batch


@pytest.fixture(scope="module")
def plain_run(root):
    return train_alone(root, "plain-run", "plain")


@pytest.mark.parametrize("accumulate", [2, 3, 4])
def test_t12_accumulation_equals_the_large_batch(root, plain_run, accumulate):
    """42 images in steps of 8: the last step has 2 images, which are not divided."""
    run = train_alone(root, f"accumulate-{accumulate}", "plain", accumulate=accumulate)
    assert max_difference(run, plain_run) < 1e-6


def test_t12_two_processes_with_accumulation_equal_one(root, plain_run):
    run = train_distributed(root, "accumulate-distributed", 2, "plain", "--epochs", 1, "--accumulate", 2)
    assert max_difference(run, plain_run) < 1e-6


def test_t12_three_processes_equal_one(root, plain_run):
    """The ranks get 3, 3 and 2 images; in the last step only one rank gets any."""
    run = train_distributed(root, "three", 3, "plain", "--epochs", 1)
    assert max_difference(run, plain_run) < 1e-6
    actual, expected = (
        [row["loss"] for row in read_metrics(path) if row["kind"] == "step"] for path in (run, plain_run)
    )
    assert actual == pytest.approx(expected, rel=1e-5)


def test_synchronized_norms_equal_one_process(root):
    expected, sync = train_alone(root, "norms-run", "norms"), ["--set", "sync_batch_norm=true"]
    assert max_difference(train_distributed(root, "synced", 3, "norms", "--epochs", 1, *sync), expected) < 1e-5
    local = train_distributed(root, "local", 2, "norms", "--epochs", 1)
    assert max_difference(local, expected) > 1e-4
    assert load_weights(local).keys() == rk.build(root / "norms.toml", classes=3).state_dict().keys()


def test_a_batch_that_is_too_small_is_refused(root, cli):
    code, _, err = cli("train", root / "flowers", "--model", root / "plain.toml", "--batch-size", 8, "--accumulate", 5)
    assert code == 2
    assert "accumulate: got 5; allowed: 1 to half of batch_size" in err
    words = make_train_command(root, "refused", "plain", "--accumulate", 2)
    assert launch(root / "log-refused", 3, *words, report_timeout=120) == [
        (2, "", "error: batch_size 8 is too small for 3 processes with 2 micro-batches each: "
                "at least two images each are needed\n"
                f"where: batch_size\nfix: --batch-size 12 or more\nprocess: rank 0 of 3 on {HOST}\n"),
        (2, "", ""), (2, "", ""),
    ]  # fmt: skip
    assert not (root / "refused").exists()


# --------------------------------------------------------------------------------------------- T11: the same counts


@pytest.mark.parametrize(("batch_size", "world_sizes"), [(7, [2, 3]), (64, [3])])
def test_t11_any_number_of_processes_counts_the_same(root, plain_run, batch_size, world_sizes, monkeypatch, cli):
    monkeypatch.setattr(loader, "EVAL_BATCH_SIZE", batch_size)
    words = ["evaluate", plain_run, root / "flowers", "--split", "all", "--json"]
    code, out, _ = cli(*words)
    assert code == 0
    for world_size in world_sizes:
        exits = launch(root / f"log-count-{batch_size}-{world_size}", world_size, *words)
        assert_success(exits)
        assert json.loads(exits[0].out) == json.loads(out)
    expected = rk.evaluate(plain_run, root / "flowers", split="all")
    document = json.loads(out)
    assert [document[key] for key in ("n", "correct")] == [expected.n, expected.correct] == [60, expected.correct]


def test_any_batch_size_gives_the_same_predictions(root, plain_run, monkeypatch):
    """Libraries add in another order for each batch size: counts are equal, rounded values nearly so."""
    evaluations = []
    for batch_size in (7, 64, 128):
        monkeypatch.setattr(loader, "EVAL_BATCH_SIZE", batch_size)
        evaluations.append(rk.evaluate(plain_run, root / "flowers", split="all"))
    expected = evaluations[0]
    for actual in evaluations[1:]:
        assert (actual.n, actual.correct, actual.top5_correct) == (expected.n, expected.correct, expected.top5_correct)
        assert replace(actual.predictions, confidence=()) == replace(expected.predictions, confidence=())
        assert actual.predictions.confidence == pytest.approx(expected.predictions.confidence, abs=1.1e-5)
        assert actual.loss == pytest.approx(expected.loss, abs=1e-7)


def test_predict_writes_one_table_in_the_order_of_the_files(root, plain_run, monkeypatch, cli):
    monkeypatch.setattr(predict_api, "DEFAULT_BATCH_SIZE", 4)
    bad = root / "bad.png"
    bad.write_bytes(b"")
    inputs = [*sorted((root / "flowers" / "rose").iterdir())[:9], bad, root / "flowers" / "tulip"]
    words = ["predict", *inputs, "--model", plain_run]
    _, jsonl, _ = cli(*words, "--jsonl")
    _, csv, _ = cli(*words, "--csv")
    assert len(jsonl.splitlines()) == 30
    exits = launch(root / "log-predict-jsonl", 3, *words, "--jsonl")
    assert (exits[0].code, exits[0].out) == (3, jsonl)
    assert exits[0].err.splitlines()[0].startswith("error: 1 of 30 files have no prediction")
    assert exits[1:] == [(3, "", "")] * 2
    table = root / "labels.csv"
    exits = launch(root / "log-predict-out", 2, *words, "--out", table)
    assert exits[0][:2] == (3, f"wrote 30 rows to {table}\n")
    assert table.read_text() == csv
    rows = root / "rows.parquet"
    exits = launch(root / "log-predict-parquet", 2, *words, "--parquet", rows)
    assert exits == [(3, f"wrote 30 rows to {rows}\n", exits[0].err), (3, "", "")]


def test_predict_resumes_a_table_in_several_processes(root, plain_run, cli):
    words = ["predict", root / "flowers" / "tulip", "--model", plain_run]
    _, csv, _ = cli(*words, "--csv")
    table = root / "resumed.csv"
    part = table.with_name("resumed.csv.part")
    hooks = {0: lambda: setattr(file_utils, "publish", lambda *paths: os._exit(9))}
    assert launch(root / "log-predict-killed", 1, *words, "--out", table, hooks=hooks)[0].code == 9
    part.write_text("".join(part.read_text().splitlines(keepends=True)[:14]))
    exits = launch(root / "log-predict-resumed", 2, *words, "--out", table, "--resume")
    assert [process.code for process in exits] == [0, 0], exits
    assert table.read_text() == csv


def test_processes_with_different_images_are_refused(root, plain_run):
    second_machine = root / "other-machine"
    shutil.copytree(root / "flowers", second_machine / "flowers")
    (second_machine / "flowers" / "rose" / "0.png").unlink()
    hooks = {0: lambda: os.chdir(root), 1: lambda: os.chdir(second_machine)}
    exits = launch(root / "log-other", 2, "evaluate", plain_run, "flowers", hooks=hooks, report_timeout=120)
    assert exits == [
        (3, "", "error: the processes do not have the same images\n"
                f"where: {HOST} differs from {HOST}\n"
                "fix: copy the files of one machine to all others, or put them on a disk that all of them share\n"
                f"process: rank 0 of 2 on {HOST}\n"),
        (3, "", ""),
    ]  # fmt: skip


# --------------------------------------------------------------------------------- exact resuming, signals, failures


@pytest.fixture(scope="module")
def whole_run(root):
    return train_distributed(root, "whole", 2, "stochastic", "--epochs", 2)


def test_two_runs_are_equal(root, whole_run):
    assert_same_run(train_distributed(root, "again", 2, "stochastic", "--epochs", 2), whole_run)


def test_averaged_weights_and_mixed_images_survive_a_kill(root):
    options = ["--epochs", 1, "--set", "ema.kind=ema", "--set", "mix.kind=cut-mix", "--set", "sync_batch_norm=true",
               "--accumulate", 2]  # fmt: skip
    expected = train_distributed(root, "ema", 2, "stochastic", *options)
    words = make_train_command(root, "ema-killed", "stochastic", *options)
    launch(root / "log-ema-killed", 2, *words, hooks={1: before_step(6, die)})
    resume(root, "ema-killed", 2)
    assert_same_run(root / "ema-killed", expected)


def test_t10_a_killed_process_ends_the_others_and_the_run_resumes(root, whole_run, cli):
    words = make_train_command(root, "killed", "stochastic", "--epochs", 2)
    exits = launch(root / "log-killed", 2, *words, hooks={1: before_step(7, die)})
    assert [process.code for process in exits] == [5, -signal.SIGKILL]
    lines = get_error(exits[0])
    assert lines[:2] == [
        "error: another process ended, or did not respond within 600 seconds", f"where: rank 1 of 2 on {HOST}",
    ]  # fmt: skip
    assert lines[2].startswith("       collective: ")
    assert lines[3:] == [
        "fix: read the log of that process; if a step takes longer than that, pass a larger --timeout SECONDS",
        f"process: rank 0 of 2 on {HOST}",
    ]
    code, _, err = cli("train", "--resume", root / "killed")  # T6: another number of processes needs --override
    assert code == 2
    assert err.splitlines()[:2] == [
        "error: settings differ from those the run was started with",
        "where: processes: 2 -> 1",
    ]
    assert "note   resuming after step 6 of epoch 1" in resume(root, "killed", 2)
    assert_same_run(root / "killed", whole_run)


def test_t10_an_exception_is_reported_once_and_restarted_processes_resume(root, whole_run):
    words = make_train_command(root, "raised", "stochastic", "--epochs", 2)
    exits = launch(root / "log-raised", 2, *words, hooks={1: before_step(9, lambda: 1 // 0)})
    assert [process.code for process in exits] == [1, 1]
    assert "error:" not in exits[0].err
    assert exits[1].err.startswith("Traceback (most recent call last):")
    assert get_error(exits[1]) == [
        "error: a bug in resnetkit: ZeroDivisionError: integer division or modulo by zero",
        "fix: please report it, with the output of `resnetkit doctor`",
        f"process: rank 1 of 2 on {HOST}",
    ]
    environment = {"TORCHELASTIC_RESTART_COUNT": "1", "TORCHELASTIC_RUN_ID": "x"}
    exits = launch(root / "log-restarted", 2, *words, environment=environment)
    assert_success(exits)
    assert "note   resuming after step 2 of epoch 2" in exits[0].err
    assert_same_run(root / "raised", whole_run)
    assert_success(launch(root / "log-finished", 2, *words, environment=environment))  # nothing is left to do
    words = ["train", root / "flowers", "--model", root / "stochastic.toml"]
    exits = launch(root / "log-no-out", 2, *words, environment=environment)
    assert exits[0].err.splitlines()[:3] == [
        "error: restarted processes need --out to know which run to resume",
        "where: --out", "fix: name the run folder: --out RUN",
    ]  # fmt: skip


def test_t10_a_finished_run_that_is_resumed_by_restarted_processes_is_returned(root, monkeypatch):
    run = train_alone(root, "resumed-again", "plain")
    monkeypatch.setattr("resnetkit.training.api.is_restarted", lambda: True)
    assert rk.train(resume=run, epochs=1).path == run


def test_t10_a_hanging_process_is_named(root):
    words = make_train_command(root, "hung", "stochastic", "--epochs", 2, "--timeout", 2)
    hooks = {1: before_step(5, threading.Event().wait)}
    processes = Launch(root / "log-hung", 2, hooks)
    processes.start(lambda: main([str(word) for word in words]))
    process = processes.wait_for(0)
    os.kill(processes.pids[1], signal.SIGKILL)
    processes.wait_for(1)
    assert process.code == 5
    assert get_error(process)[:2] == [
        "error: another process ended, or did not respond within 2 seconds", f"where: rank 1 of 2 on {HOST}",
    ]  # fmt: skip


def send_sigterm_twice():
    for _ in range(2):  # from the scheduler, and again from torchrun
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("ranks", [(1,), (0, 1)])
def test_t04_a_signal_stops_all_processes_at_the_same_step(root, whole_run, ranks):
    out = f"stopped-{len(ranks)}"
    words = make_train_command(root, out, "stochastic", "--epochs", 2)
    exits = launch(root / f"log-{out}", 2, *words, hooks=dict.fromkeys(ranks, before_step(5, send_sigterm_twice)))
    assert [process.code for process in exits] == [143, 143], exits
    assert exits[0].err.splitlines()[-2:] == [
        "terminated; the run is saved after step 5 of epoch 1", f"next: resnetkit train --resume {root / out}",
    ]  # fmt: skip
    assert exits[1][1:] == ("", "")
    assert read_newest_state(root / out).global_step == 5
    resume(root, out, 2)
    assert_same_run(root / out, whole_run)


def test_processes_that_do_not_connect(root):
    words = make_train_command(root, "unconnected", "stochastic", "--timeout", 0.5)
    environment = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    (process,) = launch(root / "log-unconnected", 1, *words, environment=environment)
    assert process.code == 5
    lines = get_error(process)
    assert lines[0].startswith("error: the 2 processes of this run could not connect to each other: ")
    assert lines[1].startswith("where: rank 0, at 127.0.0.1:")
    assert lines[2] == "fix: start all of them with torchrun, with a --master-addr that every machine can reach"
    assert not (root / "unconnected").exists()


# ---------------------------------------------------------------------------------- every image once: T7, D3 and D4


def test_t07_a_run_on_one_then_two_then_three_processes_uses_every_image_once(root):
    words = make_train_command(root, "grown", "stochastic", "--epochs", 2, checkpoint_steps=1)
    folders = [root / f"images-{world_size}" for world_size in (1, 2, 3)]
    for world_size, folder in enumerate(folders, 1):

        def install_hooks(folder=folder, is_last=world_size == 3):
            record_images(folder)()
            if not is_last:
                before_step(3, die)()

        command = words if world_size == 1 else ["train", "--resume", root / "grown", "--override"]
        exits = launch(folder, world_size, *command, hooks=dict.fromkeys(range(world_size), install_hooks))
    assert_success(exits)
    rows = read_recorded_images(*folders)
    first, second = (Counter(i for epoch, i, *_ in rows.elements() if epoch == number) for number in (1, 2))
    assert first == second == Counter(range(42))
    notes = json.loads((root / "grown" / "results.json").read_text())["notes"]
    assert [note for note in notes if "processes" in note] == [
        "from step 3 on: processes: 1 -> 2", "from step 5 on: processes: 2 -> 3",
    ]  # fmt: skip


@pytest.mark.parametrize("sync", ["false", "true"])
def test_d03_unreadable_images_are_skipped_by_all_processes(root, sync):
    data, folder, out = root / f"damaged-{sync}", root / f"log-damaged-{sync}", root / f"damaged-run-{sync}"
    shutil.copytree(root / "flowers", data)
    bad = [data / "rose" / f"{i}.png" for i in (3, 8, 13)]
    for path in bad:
        path.write_bytes(path.read_bytes()[:40])
    words = ["train", data, "--model", root / "norms.toml", "--out", out, *OPTIONS, 4, "--epochs", 2,
             "--max-bad", "10%", "--set", "augment=random-resized-crop", "--set", f"sync_batch_norm={sync}"]  # fmt: skip
    assert_success(launch(folder, 2, *words, hooks=dict.fromkeys(range(2), record_images(folder))))
    results = json.loads((out / "results.json").read_text())
    assert {name for name, _ in results["evaluation"]["skipped"]} == set(map(str, bad))
    assert len([row for row in read_metrics(out) if row["kind"] == "step"]) == 12
    rows = read_recorded_images(folder)
    assert set(rows.values()) == {1}
    images = {(name, label) for _, _, name, label in rows}
    assert not {f"rose/{path.name}" for path in bad} & {name for name, _ in images}
    assert len(images) >= 42 - 3 - (2 if sync == "false" else 0)


def test_d04_too_many_unreadable_images_end_all_processes(root):
    data, out = root / "damaged-many", root / "damaged-many-run"
    shutil.copytree(root / "flowers", data)
    for i in range(20):
        (data / "rose" / f"{i}.png").write_bytes(b"")
    words = ["train", data, "--model", root / "norms.toml", "--out", out, *OPTIONS, 4, "--epochs", 2,
             "--max-bad", "10%", "--set", "augment=random-resized-crop"]  # fmt: skip
    exits = launch(root / "log-damaged-many", 2, *words, report_timeout=120)
    assert [process.code for process in exits] == [3, 3], exits
    assert sum("may be skipped (0.1 of all)" in process.err for process in exits) == 1
    assert not out.exists()


# ----------------------------------------------------------------------------------- the key-value store of torchrun


class FakeTime:
    """A clock that only `sleep` advances; ``on_sleep`` is called first."""

    def __init__(self, on_sleep=lambda: None):
        self.seconds, self.on_sleep = 0.0, on_sleep
        self.clock = Clock(lambda: self.seconds, self.sleep)

    def sleep(self, seconds):
        self.on_sleep()
        self.seconds += seconds


def test_an_attempt_ignores_the_answers_of_the_attempt_before():
    """torchrun has one store for all attempts; in each attempt, another process is the first to come."""
    store = torch.distributed.HashStore()
    for attempt in range(2):
        stores, is_waiting = [None, None], threading.Event()

        def sleep(seconds, is_waiting=is_waiting):
            is_waiting.set()
            time.sleep(seconds)

        def connect(rank, stores=stores, sleep=sleep):
            stores[rank] = create_prefix_store(store, LaunchInfo(rank, 2), 300, Clock(sleep=sleep))

        threads = [threading.Thread(target=connect, args=(rank,)) for rank in (attempt, 1 - attempt)]
        threads[0].start()
        assert is_waiting.wait(300)
        threads[1].start()
        for thread in threads:
            thread.join()
        assert not stores[1].check(["address"])
        stores[0].set("address", str(attempt))
        assert stores[1].get("address") == str(attempt).encode()


def test_a_rendezvous_ends_after_its_timeout():
    for rank, message in ((0, "rank 1 did not join"), (1, "rank 0 did not answer")):
        fake = FakeTime()
        with pytest.raises(TimeoutError, match=message):
            create_prefix_store(torch.distributed.HashStore(), LaunchInfo(rank, 2), 30, fake.clock)
        assert fake.seconds == pytest.approx(30, abs=0.1)


def make_reporters(world_size, store=None):
    """One `FailureReporter` for each rank, each on a machine of its own."""
    store = store or torch.distributed.HashStore()
    reporters = []
    for rank in range(world_size):
        reporter = FailureReporter(LaunchInfo(rank, world_size), store, 60, FakeTime().clock)
        reporter.hosts = [f"host{i}" for i in range(world_size)]
        reporters.append(reporter)
    return reporters


def test_a_failure_is_told_once_on_every_other_machine():
    first, second, third = make_reporters(3)
    error = MachineError("the disk is full")
    assert second.report(error) is error
    assert error.__notes__ == ["process: rank 1 of 3 on host1"]
    for reporter in (first, third):
        peer_error = reporter.explain_loss("connection closed")
        assert isinstance(peer_error, PeerProcessError)
        assert (peer_error.what, peer_error.exit_code) == ("rank 1 of 3 on host1 failed: the disk is full", 5)
        assert reporter.report(peer_error) is peer_error


def test_if_several_ranks_fail_the_lowest_tells_why():
    first, second = make_reporters(2)
    interrupt = KeyboardInterrupt()
    assert first.report(interrupt) is interrupt
    error = second.report(ValueError("a bug"))
    assert (str(error), error.exit_code) == ("error: ", 1)
    agreed_stop = ResnetkitInterrupt("stopped", signal_number=15)
    assert second.report(agreed_stop) is agreed_stop


def test_if_no_rank_reports_a_failure_the_silent_ranks_are_named():
    first, second, third = make_reporters(3)
    error = first.explain_loss("timed out\nin gloo")
    assert error.where == ("rank 1 of 3 on host1", "rank 2 of 3 on host2", "collective: timed out")
    assert second.explain_loss("timed out").what == ""  # rank 0, which waits too, tells it
    assert third.explain_loss("timed out").exit_code == 5


def test_a_lost_store_is_not_called_again():
    class LostStore:
        calls = 0

        def check(self, keys):
            self.calls += 1
            raise RuntimeError("connection reset")

        def set(self, key, value):
            raise RuntimeError("connection reset")

    store = LostStore()
    key_value_store = KeyValueStore(store)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the key-value store does not respond"):
            key_value_store.get("key")
    assert store.calls == 1
    (reporter,) = make_reporters(1, store)
    error = ValueError("a bug")
    assert reporter.report(error) is error
    assert make_reporters(2, store)[0].explain_loss("timed out").where[0] == "rank 1 of 2 on host1"


def test_a_store_that_hangs_is_given_up():
    class HangingStore:
        release = threading.Event()

        def set(self, key, value):
            self.release.wait()

    key_value_store = KeyValueStore(HangingStore(), timeout=0.05)
    with pytest.raises(RuntimeError, match="the key-value store does not respond"):
        key_value_store.set("key", 1)
    HangingStore.release.set()
    key_value_store.close()


# ------------------------------------------------------------------------------------------------------------ torchrun


def train_and_die_once(words):
    """The work of each process: rank 1 is killed in the first attempt."""
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        before_step(9, die)()
    code = main(words)
    if code:
        raise SystemExit(code)


def test_t10_torchrun_restarts_the_processes_and_the_weights_are_equal(root, whole_run):
    """``elastic_launch`` is what the torchrun command calls; forked workers need not import torch again."""
    words = [str(word) for word in make_train_command(root, "restarted", "stochastic", "--epochs", 2)]
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, max_restarts=1, monitor_interval=0.05, start_method="fork",
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id="test",
    )  # fmt: skip

    def work():
        with contextlib.suppress(KeyError):
            for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
                del os.environ[name]
        elastic_launch(config, train_and_die_once)(words)
        return 0

    processes = Launch(root / "log-restarted-by-torchrun", 1)
    processes.start(work)
    process = processes.wait_for(0)
    assert process.code == 0, process.err
    assert process.err.count("error: another process ended") <= 1
    assert process.out.count("wrote ") == 1
    assert_same_run(root / "restarted", whole_run)
