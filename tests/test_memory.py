"""The memory estimate before the first step, and the advice after an out-of-memory error."""

import re

import pytest
import torch

import resnetkit as rk
from resnetkit.commands.progress import format_run_header
from resnetkit.errors import MachineError, ResnetkitWarning
from resnetkit.training import memory, validation
from resnetkit.training.memory import (
    MemoryEstimate,
    estimate_memory,
    find_largest_working_batch,
    get_available_memory,
    is_out_of_memory,
)
from resnetkit.training.recipe import EMA, AdamW, Recipe
from resnetkit.training.trainer import Trainer

from helpers.runs import SETTINGS, assert_same_run
from helpers.tiny import BASE

SHORT = SETTINGS | {"epochs": 2}


def test_the_estimate_grows_with_what_is_kept():
    plan, plain = rk.plan(rk.spec("resnet18")), Recipe("d", "resnet18")
    base = estimate_memory(plan, plain, "fp32")
    assert estimate_memory(plan, Recipe("d", "m", optimizer=AdamW()), "fp32").fixed > base.fixed
    assert estimate_memory(plan, Recipe("d", "m", ema=EMA()), "fp32").fixed > base.fixed
    assert estimate_memory(plan, plain, "bf16").per_image < 0.6 * base.per_image
    assert base.compute_peak(256) > base.compute_peak(128) > base.compute_peak(1) == base.fixed + base.evaluation
    assert estimate_memory(plan, plain, "fp32", 10).evaluation < 0.1 * base.evaluation
    assert MemoryEstimate(10, 2, 5).find_largest_batch(10 + 2 * 16) == 16
    assert MemoryEstimate(10, 2, 5).find_largest_batch(14) == 0


@pytest.mark.parametrize(("name", "size"), [("resnet18", 64), ("resnet20", 32), ("seresnet50", 64), ("vgg11_bn", 64)])
def test_the_estimate_is_near_what_autograd_saves(name, size):
    """Compare with the bytes that autograd's hooks see, each tensor once. Weights need no values."""
    model, saved = rk.build(name, device="meta").to_empty(device="cpu").train(), {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model(torch.rand(4, 3, size, size))
    estimate = estimate_memory(rk.plan(rk.spec(name), image=size), Recipe("d", name), "fp32").per_image * 4
    measured = sum(n_bytes for key, n_bytes in saved.items() if key not in weights)
    assert outputs.requires_grad  # the graph, and so every saved tensor, is alive until here
    assert 1.0 < estimate / measured < 1.25, (name, estimate / measured)


def test_the_available_memory_is_read_from_the_system(tmp_path):
    cpu, cgroup = torch.device("cpu"), tmp_path / "sys/fs/cgroup"
    assert 0 < get_available_memory(cpu) < 1e14
    assert get_available_memory(cpu, tmp_path) == float("inf")
    (tmp_path / "proc").mkdir()
    cgroup.mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:       2000 kB\n")
    (cgroup / "memory.max").write_text("1500000\n")
    (cgroup / "memory.current").write_text("500000\n")
    assert get_available_memory(cpu, tmp_path) == 1_000_000
    (cgroup / "memory.max").write_text("max\n")
    assert get_available_memory(cpu, tmp_path) == 2_048_000


def test_a_batch_that_does_not_fit_is_a_warning_before_the_first_step(flowers, network, tmp_path, monkeypatch):
    estimate = estimate_memory(rk.plan(BASE), Recipe("d", "m"), "fp32")
    available = estimate.fixed + max(4.5 * estimate.per_image, estimate.evaluation)
    monkeypatch.setattr(memory, "get_available_memory", lambda device: available)
    events, settings = [], SHORT | {"epochs": 1}
    with pytest.warns(ResnetkitWarning) as warned:
        rk.train(flowers, network, out=tmp_path / "a", settings=settings, batch_size=4096, on_event=events.append)
    assert re.fullmatch(
        r"batches of 4096 need about [\d.,]+ [MG]B of memory, but [\d.,]+ MB are free; --batch-size \d+ would fit",
        str(warned[0].message),
    )
    line = r"^memory about [\d.,]+ [MG]B for batches of 4096; \d+ MB are free$"
    assert re.search(line, format_run_header(events[0]), re.MULTILINE)
    monkeypatch.setattr(memory, "get_available_memory", lambda device: 1000)
    with pytest.warns(ResnetkitWarning) as warned:
        rk.train(flowers, network, out=tmp_path / "b", settings=settings)
    assert re.fullmatch(
        r"batches of 8 need about [\d.,]+ MB of memory, but 0 MB are free; use smaller images or a smaller network",
        str(warned[0].message),
    )


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    MemoryError(),
]


def advise_accumulate(count):
    return f"; or --accumulate {count}, which keeps the batch size but normalizes each micro-batch by itself"


def fail_above(monkeypatch, largest, error=MemoryError):
    """Let the step that is tried out fail for batches above a size."""

    def try_step(run, batch_size):
        if batch_size > largest:
            raise error

    monkeypatch.setattr(memory, "try_step", try_step)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_out_of_memory_error_suggests_a_batch_size_and_the_run_resumes(
    flowers, network, tmp_path, monkeypatch, short_run, error
):
    original, out = Trainer.train_step, tmp_path / "run"

    def train_step(self, *args):
        if self.session.state.global_step == 8:
            raise error
        original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step)
        fail_above(patch, 4, error)
        with pytest.raises(MachineError) as caught:
            rk.train(flowers, network, out=out, settings=SHORT)
    assert caught.value.exit_code == 5
    assert re.fullmatch(r"not enough memory for batches of 8; the peak was [\d.]+ [MG]B", caught.value.what)
    assert caught.value.where == ("mine on cpu",)
    command = f"resnetkit train --resume {out} --batch-size 4 --override"
    assert caught.value.fix == f"{command}, which works{advise_accumulate(2)}"
    assert_same_run(rk.train(resume=out), short_run)


def test_out_of_memory_at_the_first_step_leaves_nothing(flowers, network, tmp_path, monkeypatch, cli):
    def train_step(*args):
        raise MemoryError

    monkeypatch.setattr(Trainer, "train_step", train_step)
    fail_above(monkeypatch, 2)
    code, out, err = cli("train", flowers, "--model", network, "--out", tmp_path / "run", "--batch-size", 16)
    assert (code, out) == (5, "")
    assert err.splitlines()[-1] == f"fix: --batch-size 2, which works{advise_accumulate(8)}"
    assert not (tmp_path / "run").exists()


def test_out_of_memory_although_the_batch_fits(flowers, network, tmp_path, monkeypatch):
    """Another program had taken the memory, or validation did; the real step that is tried succeeds."""

    def count_predictions(*args):
        raise ERRORS[0]

    monkeypatch.setattr(validation, "count_predictions", count_predictions)
    with pytest.raises(MachineError) as caught:
        rk.train(flowers, network, out=tmp_path / "run", settings=SHORT)
    assert caught.value.what.startswith("memory ran out, although batches of 8 fit now; the peak was ")
    resume = f"resnetkit train --resume {tmp_path / 'run'}"
    assert caught.value.fix == f"free some memory, or use smaller images; then {resume}"


def test_other_errors_are_not_out_of_memory():
    assert all(map(is_out_of_memory, ERRORS))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(ZeroDivisionError):
        find_largest_working_batch(8, lambda size: 1 // 0)

    def fail(size):
        raise MemoryError

    assert find_largest_working_batch(64, fail) == 0
    assert find_largest_working_batch(64, lambda size: None) == 64
