"""Several processes, one run: the same counts, the same weights, one voice, and one failure that ends all.

Processes are forked from this one, which has torch already; the last test starts them with torchrun.
"""

import contextlib
import os
import socket
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import resnetkit as rk
from resnetkit.architecture import spec as s
from resnetkit.cli import main
from resnetkit.errors import UsageError
from resnetkit.learn import board, group
from resnetkit.learn.norms import SyncedNorm, synchronise
from resnetkit.learn.ranks import ALONE, Launch, cores, launched, share_of
from resnetkit.text import to_toml
from test_resume import CHANCE, lines

from tiny import BASE

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
            group.cores = lambda: 1
            board._PATIENCE = 1.0
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
        shares = [list(range(window))[share_of(window, rank, world, alone)] for rank in range(world)]
        assert sorted(place for share in shares for place in share) == list(range(window))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1 or alone
        if alone and window > 1:
            assert 1 not in map(len, shares)


def test_what_torchrun_says(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert launched() is None
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert launched() is None
    every = cores()
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UsageError) as caught:
        launched()
    assert str(caught.value) == (
        "error: RANK is no number\nwhere: RANK=\n"
        "fix: start it with torchrun, which sets them; unset WORLD_SIZE for one process alone"
    )
    monkeypatch.setenv("RANK", "3")
    assert launched() == Launch(3, 4, 0, 1)
    assert cores() == every
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(UsageError) as caught:
        launched()
    assert str(caught.value).splitlines()[:2] == [
        "error: these numbers of a process contradict each other",
        "where: RANK=3 of WORLD_SIZE=4; 3 of 3 on this machine",
    ]
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert cores() == max(1, every // 3)


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
    one = trained_alone(place, "one-norms", "norms")
    assert distance(trained(place, "synced", 3, "norms", "--epochs", 2, "--set", "sync_norms=true"), one) < 1e-5
    local = trained(place, "local", 3, "norms")
    assert distance(local, one) > 1e-4
    assert weights(local).keys() == rk.build(place / "norms.toml", classes=3).state_dict().keys()


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_synchronised_norm_is_a_norm(kind):
    torch.manual_seed(0)
    ours, theirs = nn.Sequential(nn.BatchNorm2d(3)), nn.Sequential(nn.BatchNorm2d(3))
    synchronise(ours, ALONE.add)
    assert isinstance(ours[0], SyncedNorm)
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
        (2, "", "error: a step of 8 pictures is too small for 3 processes and 2 parts in each: two pictures each, at least\n"
                "where: batch_size\nfix: --batch-size 12 or more\n"
                f"on: process 0 of 0 to 2, on {socket.gethostname()}\n"),
        (2, "", ""), (2, "", ""),
    ]  # fmt: skip
    assert not (place / "no").exists()
