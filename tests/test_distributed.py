"""Several processes, one run: the same counts, the same weights, one voice, and one failure that ends all.

Processes are forked from this one, which has torch already; the last test starts them with torchrun.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
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

import resnetkit as rk
from resnetkit import files as file_utils
from resnetkit.architecture import spec as s
from resnetkit.cli import main
from resnetkit.data import loader as pixels
from resnetkit.errors import UsageError
from resnetkit.prediction import api as predict_api
from resnetkit.runtime import process_group as group
from resnetkit.runtime.distributed import SINGLE_PROCESS, LaunchInfo, count_cores, get_rank_slice, read_launch_info
from resnetkit.runtime.rendezvous import create_prefix_store
from resnetkit.serialization import to_toml
from resnetkit.training import memory
from resnetkit.training import trainer as training
from resnetkit.training.checkpoint import load_latest_checkpoint
from resnetkit.training.sync_batch_norm import SyncBatchNorm2d, convert_sync_batchnorm
from resnetkit.training.sync_batch_norm import disable_sync as norms_alone

from helpers.runs import STOCHASTIC_NETWORK as CHANCE
from helpers.runs import die
from helpers.runs import hash_model as sha
from helpers.runs import read_metrics as lines
from helpers.tiny import BASE

HOW = ["--batch-size", 8, "--precision", "fp32", "--checkpoint-steps", 4]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pictures (60 of 3 classes), and networks: with batch norms, without norms, and with chance."""
    root = tmp_path_factory.mktemp("several")
    for label, name in enumerate(["rose", "daisy", "tulip"]):
        (root / "flowers" / name).mkdir(parents=True)
        for i in range(20):
            draw = np.random.default_rng([label, i])
            pixels = draw.integers(0, 60, (16, 20, 3), dtype=np.uint8)
            pixels[..., label] += 120
            Image.fromarray(pixels).save(root / "flowers" / name / f"{i}.png")
    for name, spec in {"norms": BASE, "plain": replace(BASE, norm=s.NoNorm()), "chance": CHANCE}.items():
        (root / f"{name}.toml").write_text(to_toml(spec))
    return root


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return str(opened.getsockname()[1])


def begin(folder, world, work, acts, environment):
    """Fork the processes; each does what it is told, then its work, and leaves what it says in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    around = {
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }
    children = []
    for rank in range(world):
        child = os.fork()
        if not child:
            os.environ.update(around, RANK=str(rank), LOCAL_RANK=str(rank), **(environment or {}))
            sys.stdout, sys.stderr = ((folder / f"{name}{rank}").open("w") for name in ("out", "err"))
            group.count_cores = lambda: 1
            code = 70
            with contextlib.suppress(BaseException):
                acts.get(rank, lambda: None)()
                code = work()
            sys.stdout.close()
            sys.stderr.close()
            os._exit(code)
        children.append(child)
    return children


def ended(children, folder):
    """[(exit code, stdout, stderr)] of each."""
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return [
        (code, *((folder / f"{name}{rank}").read_text() for name in ("out", "err"))) for rank, code in enumerate(codes)
    ]


def several(folder, world, *words, acts=None, environment=None):
    def work():
        return main([str(word) for word in words])

    return ended(begin(folder, world, work, acts or {}, environment), folder)


def trained(place, out, world, network, *words, **how):
    """A run in so many processes, all of which end well."""
    said = several(place / f"said-{out}", world, "train", place / "flowers", "--model", place / f"{network}.toml",
                   "--out", place / out, *HOW, *(words or ("--epochs", 2)), **how)  # fmt: skip
    assert [code for code, *_ in said] == [0] * world, said
    assert all(said[rank][1:] == ("", "") for rank in range(1, world))
    return place / out


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def distance(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    return max(float((a[key].double() - b[key].double()).abs().max()) for key in a)


# --------------------------------------------------------------------------------------------- shares, without others


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("alone", [True, False])
def test_shares_hold_every_position_once_and_never_one_alone(world, alone):
    for window in range(30):
        shares = [list(range(window))[get_rank_slice(window, rank, world, alone)] for rank in range(world)]
        assert sorted(place for share in shares for place in share) == list(range(window))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1 or alone
        if alone and window > 1:
            assert 1 not in map(len, shares)


def test_what_torchrun_says(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert read_launch_info() is None
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert read_launch_info() is None
    every = count_cores()
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UsageError) as caught:
        read_launch_info()
    assert str(caught.value) == (
        "error: RANK is no number\nwhere: RANK=\n"
        "fix: start it with torchrun, which sets them; unset WORLD_SIZE for one process alone"
    )
    monkeypatch.setenv("RANK", "3")
    assert read_launch_info() == LaunchInfo(3, 4, 0, 1)
    assert count_cores() == every
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(UsageError) as caught:
        read_launch_info()
    assert str(caught.value).splitlines()[:2] == [
        "error: these numbers of a process contradict each other",
        "where: RANK=3 of WORLD_SIZE=4; 3 of 3 on this machine",
    ]
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert count_cores() == max(1, every // 3)


# ------------------------------------------------------------------------------------------------ T12: the large batch


@pytest.fixture(scope="module")
def alone(place):
    return trained_alone(place, "alone", "plain", epochs=1)


def trained_alone(place, out, network, **settings):
    how = {"epochs": 2, "batch_size": 8, "precision": "fp32", "checkpoint_steps": 4, **settings}
    rk.train(place / "flowers", place / f"{network}.toml", out=place / out, settings=how)
    return place / out


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_t12_accumulation_equals_the_large_batch(place, alone, parts):
    """42 pictures in steps of 8: the last has 2, which go through the network at once."""
    run = trained_alone(place, f"in-{parts}", "plain", epochs=1, accumulate=parts)
    assert 0 <= distance(run, alone) < 1e-6


def test_t12_two_processes_with_parts_equal_one(place, alone):
    assert 0 <= distance(trained(place, "two-parts", 2, "plain", "--epochs", 1, "--accumulate", 2), alone) < 1e-6


def test_t12_three_processes_equal_one(place, alone):
    """Shares of 3, 3 and 2 pictures, and a last step in which only one process learns."""
    three = trained(place, "three", 3, "plain", "--epochs", 1)
    assert 0 <= distance(three, alone) < 1e-6
    one, other = ([line for line in lines(run) if line["kind"] == "step"] for run in (alone, three))
    assert [line["loss"] for line in other] == pytest.approx([line["loss"] for line in one], rel=1e-5)


def test_synchronised_norms_equal_one_process(place):
    one = trained_alone(place, "one-norms", "norms", epochs=1)
    assert distance(trained(place, "synced", 3, "norms", "--epochs", 1, "--set", "sync_batch_norm=true"), one) < 1e-5
    local = trained(place, "local", 3, "norms", "--epochs", 1)
    assert distance(local, one) > 1e-4
    assert weights(local).keys() == rk.build(place / "norms.toml", classes=3).state_dict().keys()


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_synchronised_norm_is_a_norm(kind):
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
        x = (torch.randn(4, 3, 5, 5) * 3 + 100).to(kind).requires_grad_()
        y = norm(x)
        (y * torch.randn(y.shape).to(kind)).sum().backward()
        tensors.append([y.detach(), x.grad, *(p.grad for p in norm.parameters()), *norm.state_dict().values()])
        norm.eval()
        tensors[-1].append(norm(x).detach())
    for a, b in zip(*tensors, strict=True):
        assert a.dtype == b.dtype
        assert torch.allclose(a.float(), b.float(), atol=1e-4 if kind == torch.float32 else 0.05)
    empty = ours.train()(torch.zeros(0, 3, 5, 5))
    assert empty.shape == (0, 3, 5, 5)


def test_numbers_that_do_not_fit_a_step(place, cli):
    code, _, err = cli(
        "train", place / "flowers", "--model", place / "plain.toml", "--batch-size", 8, "--accumulate", 5
    )
    assert code == 2
    assert "accumulate: came 5; allowed: 1 to half of batch_size" in err
    said = several(place / "small", 3, "train", place / "flowers", "--model", place / "plain.toml", "--out", place / "no",
                   "--batch-size", 8, "--accumulate", 2)  # fmt: skip
    assert said == [
        (2, "", "error: batch_size 8 is too small for 3 processes with 2 micro-batches each: at least two images each are needed\n"
                "where: batch_size\nfix: --batch-size 12 or more\n"
                f"on: process 0 of 0 to 2, on {socket.gethostname()}\n"),
        (2, "", ""), (2, "", ""),
    ]  # fmt: skip
    assert not (place / "no").exists()


def test_averaged_weights_and_mixed_pictures_in_two_processes(place):
    """A run with everything: killed and resumed, it ends with the very weights."""
    words = (
        "--epochs",
        2,
        "--set",
        "ema.kind=ema",
        "--set",
        "mix.kind=cut-mix",
        "--set",
        "sync_batch_norm=true",
        "--accumulate",
        2,
    )
    whole = trained(place, "all", 2, "chance", *words)
    words = ("train", place / "flowers", "--model", place / "chance.toml", "--out", place / "all-killed", *HOW, *words)
    several(place / "a", 2, *words, acts={1: at_step(9, die)})
    said = several(place / "ar", 2, "train", "--resume", place / "all-killed")
    assert [code for code, *_ in said] == [0, 0], said
    assert same(place / "all-killed", whole)


# --------------------------------------------------------------------------------------------- T11: the same counts


@pytest.mark.parametrize("batch", [7, 64])
def test_t11_one_two_and_three_processes_count_alike(place, alone, batch, monkeypatch):
    monkeypatch.setattr(pixels, "EVAL_BATCH_SIZE", batch)
    words = ("evaluate", alone, place / "flowers", "--split", "all", "--json")
    documents = []
    for world in (1, 2, 3):
        said = several(place / f"count-{batch}-{world}", world, *words)
        assert [code for code, *_ in said] == [0] * world, said
        assert all(rest == ("", "") for _, *rest in map(tuple, said[1:]) for rest in [tuple(rest)])
        documents.append(json.loads(said[0][1]))
    assert documents[0]["n"] == 60
    assert documents[0] == documents[1] == documents[2]
    exact = ("n", "correct", "confusion", "top5")
    known = rk.evaluate(alone, place / "flowers", split="all")
    assert [documents[0][key] for key in exact[:2]] == [known.n, known.correct]


def test_a_batch_of_any_size_gives_the_same_answers(place, alone, monkeypatch):
    """Libraries add in another order for each size of a batch: counts are the same, what is rounded nearly so."""
    found = []
    for batch in (7, 64, 128):
        monkeypatch.setattr(pixels, "EVAL_BATCH_SIZE", batch)
        found.append(rk.evaluate(alone, place / "flowers", split="all"))
    first, *others = found
    for other in others:
        assert (other.n, other.correct, other.top5_correct) == (first.n, first.correct, first.top5_correct)
        assert replace(other.predictions, confidence=()) == replace(first.predictions, confidence=())
        assert other.predictions.confidence == pytest.approx(first.predictions.confidence, abs=1.1e-5)
        assert other.loss == pytest.approx(first.loss, abs=1e-7)


def test_predict_has_one_table_in_the_order_of_the_files(place, alone, monkeypatch):
    monkeypatch.setattr(predict_api, "DEFAULT_BATCH_SIZE", 4)
    bad = place / "bad.png"
    bad.write_bytes(b"")
    files = [*sorted((place / "flowers" / "rose").iterdir())[:9], bad, place / "flowers" / "tulip"]
    words = ("predict", *files, "--model", alone)
    one = several(place / "predict-1", 1, *words, "--jsonl")
    three = several(place / "predict-3", 3, *words, "--jsonl")
    assert [code for code, *_ in three] == [3, 3, 3]
    assert three[0][1] == one[0][1]
    assert len(one[0][1].splitlines()) == 30
    assert three[0][2].splitlines()[0].startswith("error: 1 of 30 files got no answer")
    assert [said[1:] for said in three[1:]] == [("", "")] * 2
    csv, labels = several(place / "predict-csv", 1, *words, "--csv"), place / "labels.csv"
    assert several(place / "predict-out", 2, *words, "--out", labels)[0][:2] == (3, f"wrote 30 rows to {labels}\n")
    assert labels.read_text() == csv[0][1]
    part = place / "again.csv.part"
    killed = {0: lambda: setattr(file_utils, "publish", lambda *paths: os._exit(9))}
    assert several(place / "predict-kill", 1, *words, "--out", part.with_suffix(""), acts=killed)[0][0] == 9
    part.write_text("".join(part.read_text().splitlines(keepends=True)[:14]))
    said = several(place / "predict-again", 2, *words, "--out", part.with_suffix(""), "--resume")
    assert [code for code, *_ in said] == [3, 3]
    assert part.with_suffix("").read_text() == csv[0][1]
    two = several(place / "predict-2", 2, *words, "--parquet", place / "rows.parquet")
    assert two == [(3, f"wrote 30 rows to {place / 'rows.parquet'}\n", two[0][2]), (3, "", "")]


def test_an_evaluation_of_other_pictures_is_refused(place, alone):
    elsewhere = place / "elsewhere"
    shutil.copytree(place / "flowers", elsewhere / "flowers")
    (elsewhere / "flowers" / "rose" / "0.png").unlink()
    here = {0: lambda: os.chdir(place), 1: lambda: os.chdir(elsewhere)}
    said = several(place / "other", 2, "evaluate", alone, "flowers", acts=here)
    host = socket.gethostname()
    assert said == [
        (3, "", "error: not all processes have the same pictures\n"
                f"where: {host} differs from {host}\n"
                "fix: copy what one machine has to all of them, or put it on a disk that they share\n"
                f"on: process 0 of 0 to 1, on {host}\n"),
        (3, "", ""),
    ]  # fmt: skip


def test_other_verbs_work_in_one_process(cli, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert cli("embed", "x.png", "--model", "m") == (
        2, "", "error: embed works in one process; of several each would do the same\n"
               "where: torchrun\nfix: resnetkit embed ..., without torchrun\n",
    )  # fmt: skip


# ------------------------------------------------------------------------- exact resuming, signals, and what fails


@pytest.fixture(scope="module")
def whole(place):
    return trained(place, "whole", 2, "chance")


def same(run, whole):
    assert sha(run) == sha(whole)
    assert lines(run) == lines(whole)
    assert not (run / "state").exists()
    return True


def at_step(count, act):
    """Something to do in a process: before its ``count``-th step, ``act``."""

    def patch():
        original, calls = training.Trainer.train_step, []

        def spy(self, *words):
            calls.append(1)
            if len(calls) == count:
                act()
            return original(self, *words)

        training.Trainer.train_step = spy

    return patch


def words_of(place, out, *more):
    return (
        "train",
        place / "flowers",
        "--model",
        place / "chance.toml",
        "--out",
        place / out,
        *HOW,
        "--epochs",
        2,
        *more,
    )


def boom():
    raise ZeroDivisionError("boom")


def test_two_processes_are_exact(place, whole):
    assert same(trained(place, "again", 2, "chance"), whole)


def test_t10_a_killed_process_ends_all_and_the_run_goes_on(place, whole):
    begun = time.monotonic()
    said = several(place / "k", 2, *words_of(place, "killed"), acts={1: at_step(7, die)})
    assert time.monotonic() - begun < 20
    assert [code for code, *_ in said] == [5, -signal.SIGKILL]
    told = said[0][2][said[0][2].index("error: ") :].splitlines()
    assert told[0] == "error: another process is gone, or has not answered for 600 seconds"
    assert told[1] == f"where: process 1 of 0 to 1, on {socket.gethostname()}"
    assert told[2].startswith("       while waiting: ")
    assert told[3] == "fix: see what it said itself; for steps that take longer: --timeout SECONDS"
    assert told[4] == f"on: process 0 of 0 to 1, on {socket.gethostname()}"
    said = several(place / "r", 2, "train", "--resume", place / "killed")
    assert [code for code, *_ in said] == [0, 0], said
    assert "note   resuming after step 6 of epoch 1" in said[0][2]
    assert same(place / "killed", whole)


def test_t10_a_process_that_raises_tells_why_and_started_again_they_go_on(place, whole):
    said = several(place / "b", 2, *words_of(place, "raised"), acts={1: at_step(9, boom)})
    assert [code for code, *_ in said] == [1, 1]
    assert "error:" not in said[0][2]
    told = said[1][2].splitlines()
    assert told[0] == "Traceback (most recent call last):"
    assert told[-3:] == [
        "error: a bug of resnetkit: ZeroDivisionError: boom",
        "fix: please report it, with what `resnetkit doctor` prints",
        f"on: process 1 of 0 to 1, on {socket.gethostname()}",
    ]
    again = {"TORCHELASTIC_RESTART_COUNT": "1", "TORCHELASTIC_RUN_ID": "x"}
    said = several(place / "c", 2, *words_of(place, "raised"), environment=again)
    assert [code for code, *_ in said] == [0, 0], said
    assert "note   resuming after step 2 of epoch 2" in said[0][2]
    assert same(place / "raised", whole)
    said = several(place / "d", 2, *words_of(place, "raised"), environment=again)  # there is nothing left to do
    assert [code for code, *_ in said] == [0, 0], said
    words = ("train", place / "flowers", "--model", place / "chance.toml")
    said = several(place / "e", 2, *words, environment=again)
    assert said[0][2].splitlines()[:3] == [
        "error: processes that are started again do not know which run was theirs",
        "where: --out", "fix: name the folder of the run: --out RUN",
    ]  # fmt: skip


def test_t10_a_process_that_hangs_is_named(place):
    words = [str(word) for word in words_of(place, "hung", "--timeout", 2)]
    folder = place / "h"
    children = begin(folder, 2, lambda: main(words), {1: at_step(5, lambda: time.sleep(60))}, None)
    begun = time.monotonic()
    code = os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1])
    assert time.monotonic() - begun < 20
    os.kill(children[1], signal.SIGKILL)
    os.waitpid(children[1], 0)
    assert code == 5
    err = (folder / "err0").read_text()
    assert "error: another process is gone, or has not answered for 2 seconds" in err
    assert f"where: process 1 of 0 to 1, on {socket.gethostname()}" in err


def twice():
    for _ in range(2):  # from the scheduler, and once more from torchrun
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("heard_by", [(1,), (0, 1)])
def test_t04_a_signal_to_one_or_to_all_stops_all_at_the_same_step(place, whole, heard_by):
    out = f"stopped{len(heard_by)}"
    said = several(place / f"s{out}", 2, *words_of(place, out), acts=dict.fromkeys(heard_by, at_step(5, twice)))
    assert [code for code, *_ in said] == [143, 143], said
    assert said[0][2].splitlines()[-2:] == [
        "terminated; the run is saved after step 5 of epoch 1", f"next: resnetkit train --resume {place / out}",
    ]  # fmt: skip
    assert said[1][1:] == ("", "")
    assert load_latest_checkpoint(place / out / "state", lambda found: None).state.global_step == 5
    said = several(place / f"t{out}", 2, "train", "--resume", place / out)
    assert [code for code, *_ in said] == [0, 0], said
    assert same(place / out, whole)


# ---------------------------------------------------------------------------------- every picture once: T7 and D3


def counting(folder):
    """Something to do in a process: write down which pictures it learns from."""

    def patch():
        original = training.Trainer.train_step

        def spy(self, step, pixels, labels, which):
            with (folder / f"seen{os.environ['RANK']}").open("a") as file:
                named = [(self.session.state.epoch, int(i), self.run.loaders["train"].images.names[i], int(y))
                         for i, y in zip(which, labels, strict=True)]  # fmt: skip
                file.write("".join(json.dumps(row) + "\n" for row in named))
            return original(self, step, pixels, labels, which)

        training.Trainer.train_step = spy

    return patch


def both(*acts):
    return lambda: [act() for act in acts]


def seen(*folders):
    rows = [line for folder in folders for file in folder.glob("seen*") for line in file.read_text().splitlines()]
    return Counter(tuple(json.loads(row)) for row in rows)


def test_t07_one_then_two_then_three_processes_see_every_picture_once(place):
    folders, words = [place / f"w{world}" for world in (1, 2, 3)], words_of(place, "grown", "--checkpoint-steps", 1)
    for world, folder in enumerate(folders, 1):
        act = both(counting(folder), at_step(3, die)) if world < 3 else counting(folder)
        said = several(
            folder,
            world,
            *(words if world == 1 else ("train", "--resume", place / "grown", "--override")),
            acts=dict.fromkeys(range(world), act),
        )
    assert [code for code, *_ in said] == [0, 0, 0], said
    found = seen(*folders)
    first = Counter(number for epoch, number, *_ in found.elements() if epoch == 1)
    assert first == Counter(range(42))
    assert Counter(number for epoch, number, *_ in found.elements() if epoch == 2) == first
    notes = json.loads((place / "grown" / "results.json").read_text())["notes"]
    assert [note for note in notes if "processes" in note] == [
        "from step 3 on: processes: 1 -> 2", "from step 5 on: processes: 2 -> 3",
    ]  # fmt: skip


def test_t06_another_number_of_processes_has_to_be_meant(place):
    several(place / "f", 2, *words_of(place, "fewer"), acts={0: at_step(5, die)})
    said = several(place / "g", 1, "train", "--resume", place / "fewer")
    assert said[0][0] == 2
    assert said[0][2].splitlines()[:2] == [
        "error: settings differ from those the run was started with",
        "where: processes: 2 -> 1",
    ]


@pytest.mark.parametrize("norms", ["false", "true"])
def test_d03_bad_pictures_in_two_processes(place, norms):
    data = place / f"spoilt-{norms}"
    shutil.copytree(place / "flowers", data)
    bad = [data / "rose" / f"{i}.png" for i in (3, 8, 13)]
    for path in bad:
        path.write_bytes(path.read_bytes()[:40])
    folder = place / f"bad-{norms}"
    words = ("train", data, "--model", place / "norms.toml", "--out", place / f"run-{norms}", *HOW, "--epochs", 2,
             "--max-bad", "10%", "--set", "augment=random-resized-crop", "--set", f"sync_batch_norm={norms}")  # fmt: skip
    said = several(folder, 2, *words, acts={rank: counting(folder) for rank in range(2)})
    assert [code for code, *_ in said] == [0, 0], said
    results = json.loads((place / f"run-{norms}" / "results.json").read_text())
    assert {name for name, _ in results["evaluation"]["skipped"]} == set(map(str, bad))
    assert len([line for line in lines(place / f"run-{norms}") if line["kind"] == "step"]) == 12
    found = seen(folder)
    assert set(found.values()) == {1}
    named = {(name, label) for _, _, name, label in found}
    assert not {f"rose/{path.name}" for path in bad} & {name for name, _ in named}
    assert len(named) >= 42 - 3 - (norms == "false") * 2


def test_d04_too_many_bad_pictures_end_all(place):
    data = place / "spoilt-many"
    shutil.copytree(place / "flowers", data)
    for i in range(20):
        (data / "rose" / f"{i}.png").write_bytes(b"")
    words = ("train", data, "--model", place / "norms.toml", "--out", place / "run-many", *HOW, "--epochs", 2,
             "--max-bad", "10%", "--set", "augment=random-resized-crop")  # fmt: skip
    said = several(place / "many", 2, *words)
    assert [code for code, *_ in said] == [3, 3], said
    assert sum("may be skipped (0.1 of all)" in err for _, _, err in said) == 1
    assert not (place / "run-many").exists()


# ------------------------------------------------------------------------------------------------ torchrun itself


def test_an_attempt_does_not_hear_the_one_before_it():
    """torchrun has one store for all attempts; in the second one process is much earlier than the other."""
    store = torch.distributed.HashStore()
    for attempt in range(2):
        found = [None, None]

        def meet(rank, found=found, attempt=attempt):
            time.sleep(0.3 * (rank == attempt))
            found[rank] = create_prefix_store(store, LaunchInfo(rank, 2), 20)

        threads = [threading.Thread(target=meet, args=(rank,)) for rank in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not found[1].check(["address"])
        found[0].set("address", str(attempt))
        assert found[1].get("address") == str(attempt).encode()
    for rank, told in ((0, "process 1 does not come"), (1, "process 0 does not answer")):
        with pytest.raises(TimeoutError, match=told):
            create_prefix_store(torch.distributed.HashStore(), LaunchInfo(rank, 2), 0.05)


def test_processes_that_do_not_meet(place):
    environment = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    said = several(place / "meet", 1, *words_of(place, "unmet", "--timeout", 1), environment=environment)
    assert said[0][0] == 5
    told = said[0][2][said[0][2].index("error: ") :].splitlines()
    assert told[0].startswith("error: the 2 processes of this run do not find each other: ")
    assert told[1].startswith("where: process 0, at 127.0.0.1:")
    assert told[2] == "fix: start all of them with torchrun, with one address that every machine reaches"
    assert not (place / "unmet").exists()


DIES_ONCE = """
import os, signal, sys
from resnetkit.training import trainer as training
from resnetkit.cli import main
original, calls = training.Trainer.train_step, []
def step(self, *words):
    calls.append(1)
    if len(calls) == 9 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *words)
training.Trainer.train_step = step
raise SystemExit(main())
"""


def test_t10_torchrun_starts_them_again_and_the_weights_are_the_same(place, whole):
    (place / "dies_once.py").write_text(DIES_ONCE)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1",
             place / "dies_once.py", *words_of(place, "restarted")]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall("error: another process is gone", done.stderr)) <= 1
    assert done.stdout.count("wrote ") == 1
    assert same(place / "restarted", whole)


def test_t10_processes_that_were_started_again_resume_the_run_that_they_resumed(place, monkeypatch):
    run = trained_alone(place, "resumed-again", "plain", epochs=1)
    monkeypatch.setattr("resnetkit.training.api.is_restarted", lambda: True)
    assert rk.train(resume=run, epochs=1).path == run  # it has finished meanwhile


def test_t09_what_is_tried_out_after_a_lack_of_memory_asks_no_other_process():
    def lost(tensors):
        raise AssertionError

    model = rk.build(BASE)
    convert_sync_batchnorm(model, lost)
    norms_alone(model)
    assert model.train()(torch.randn(2, *BASE.input)).isfinite().all()


def test_t09_the_memory_of_a_machine_is_shared_by_its_processes(monkeypatch):
    alone = memory.get_available_memory(torch.device("cpu"))
    monkeypatch.setattr(memory, "read_launch_info", lambda: LaunchInfo(0, 4, 0, 4))
    assert memory.get_available_memory(torch.device("cpu")) == pytest.approx(alone / 4, rel=0.3)
