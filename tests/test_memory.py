"""T9: what a run needs before its first step, and what to do where that was too little."""

import re
import warnings

import pytest
import torch

import resnetkit as rk
from resnetkit.commands.progress import format_run_header
from resnetkit.errors import MachineError, ResnetkitWarning
from resnetkit.training import memory
from resnetkit.training import trainer as training
from resnetkit.training.memory import (
    MemoryEstimate,
    estimate_memory,
    find_largest_working_batch,
    get_available_memory,
    is_out_of_memory,
)
from resnetkit.training.recipe import EMA, AdamW, Recipe
from test_resume import HOW, flowers, once, same, whole_plain  # noqa: F401

from helpers.tiny import BASE

FEW = HOW | {"epochs": 2}


def test_a_need_grows_with_what_is_kept():
    plan, plain = rk.plan(rk.spec("resnet18")), Recipe("d", "resnet18")
    base = estimate_memory(plan, plain, "fp32")
    assert estimate_memory(plan, Recipe("d", "m", optimizer=AdamW()), "fp32").fixed > base.fixed
    assert estimate_memory(plan, Recipe("d", "m", ema=EMA()), "fp32").fixed > base.fixed
    assert estimate_memory(plan, plain, "bf16").per_image < 0.6 * base.per_image
    assert base.compute_peak(256) > base.compute_peak(128) > base.compute_peak(1) == base.fixed + base.evaluation
    assert estimate_memory(plan, plain, "fp32", 10).evaluation < 0.1 * base.evaluation
    assert MemoryEstimate(10, 2, 5).find_largest_batch(10 + 2 * 16) == 16
    assert MemoryEstimate(10, 2, 5).find_largest_batch(14) == 0


def test_the_estimate_is_near_what_is_kept_for_backward():
    """Counted by the hooks with which autograd keeps tensors, each once."""
    for name, size in (("resnet18", 64), ("resnet20", 32), ("seresnet50", 64), ("vgg11_bn", 64)):
        model, kept = rk.build(name).train(), {}

        def pack(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            answer = model(torch.rand(4, 3, size, size))
        told = estimate_memory(rk.plan(rk.spec(name), image=size), Recipe("d", name), "fp32").per_image * 4
        found = sum(size for place, size in kept.items() if place not in own)
        del answer
        assert 1.0 < told / found < 1.25, (name, told / found)


def test_what_there_is(monkeypatch, tmp_path):
    there = get_available_memory(torch.device("cpu"))
    assert 0 < there < 1e14
    texts = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:       2000 kB\n", "memory.max": "1500000\n", "memory.current": "500000\n"}  # fmt: skip
    monkeypatch.setattr(memory, "_read_or_empty", lambda path: texts.get(str(path), texts.get(path.name, "")))
    assert get_available_memory(torch.device("cpu")) == 1_000_000
    texts["memory.max"] = "max\n"
    assert get_available_memory(torch.device("cpu")) == 2_048_000
    texts.clear()
    assert get_available_memory(torch.device("cpu")) == float("inf")


def test_t09_a_batch_that_will_not_fit_is_told_before_the_first_step(
    flowers, network, tmp_path, monkeypatch  # noqa: F811
):  # fmt: skip
    one = estimate_memory(rk.plan(BASE), Recipe("d", "m"), "fp32")
    monkeypatch.setattr(
        memory, "get_available_memory", lambda device: one.fixed + max(4.5 * one.per_image, one.evaluation)
    )
    seen = []
    with pytest.warns(ResnetkitWarning) as warned:
        run = rk.train(flowers, network, out=tmp_path / "run", settings=FEW | {"batch_size": 4096, "epochs": 1}, on_event=seen.append)  # fmt: skip
    told = str(warned[0].message)
    assert re.fullmatch(
        r"batches of 4096 need about [\d.,]+ [MG]B of memory, and [\d.,]+ MB are free; --batch-size \d+ would fit", told
    )
    assert re.search(
        r"^memory about [\d.,]+ [MG]B for batches of 4096; \d+ MB are free$", format_run_header(seen[0]), re.MULTILINE
    )
    assert run.path.exists()
    monkeypatch.setattr(memory, "get_available_memory", lambda device: 1000)
    with pytest.warns(ResnetkitWarning, match="no batch would fit: smaller pictures, or a smaller network"):
        rk.train(flowers, network, out=tmp_path / "other", settings=FEW | {"epochs": 1})


LACKS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    MemoryError(),
]


def in_parts(count):
    return f"; --accumulate {count} instead keeps the size of a step, and norms see its parts one by one"


@pytest.mark.parametrize("error", LACKS, ids=lambda error: type(error).__name__)
def test_t09_too_little_memory_names_a_batch_that_works_and_the_run_goes_on(
    flowers, network, tmp_path, monkeypatch, whole_plain, error, cli  # noqa: F811
):  # fmt: skip
    step = training.Trainer.train_step

    def lacking(self, number, *words):
        if self.state.global_step == 8:
            raise error
        step(self, number, *words)

    def attempt(prepared, model, batch):
        if batch > 4:
            raise error

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "train_step", lacking)
        patch.setattr(memory, "_try_step", attempt)
        with pytest.raises(MachineError) as caught:
            rk.train(flowers, network, out=out, settings=FEW)
    assert caught.value.exit_code == 5
    assert re.fullmatch(r"there is not enough memory for batches of 8; the peak was [\d.]+ [MG]B", caught.value.what)
    assert caught.value.where == ("mine on cpu",)
    assert caught.value.fix == f"resnetkit train --resume {out} --batch-size 4 --override, which works" + in_parts(2)
    assert same(rk.train(resume=out), whole_plain)


def test_t09_at_the_first_step_nothing_is_left(flowers, network, tmp_path, monkeypatch, cli):  # noqa: F811
    def attempt(prepared, model, batch):
        if batch > 2:
            raise MemoryError

    monkeypatch.setattr(training.Trainer, "train_step", lambda *words: (_ for _ in ()).throw(MemoryError()))
    monkeypatch.setattr(memory, "_try_step", attempt)
    code, out, err = cli("train", flowers, "--model", network, "--out", tmp_path / "run", "--batch-size", 16)
    assert (code, out) == (5, "")
    assert err.splitlines()[-1] == "fix: --batch-size 2, which works" + in_parts(8)
    assert not (tmp_path / "run").exists()


def test_t09_where_the_batch_was_not_to_blame(flowers, network, tmp_path, monkeypatch):  # noqa: F811
    """Another program had taken the memory, or an evaluation did: the attempt, here a real one, succeeds."""

    def count(*words):
        raise LACKS[0]

    monkeypatch.setattr(training, "count_predictions", count)
    with pytest.raises(MachineError) as caught:
        rk.train(flowers, network, out=tmp_path / "run", settings=FEW)
    assert caught.value.what.startswith("there was not enough memory, though there is for batches of 8; the peak was ")
    assert caught.value.fix == f"free some, or smaller pictures; then resnetkit train --resume {tmp_path / 'run'}"


def test_other_errors_are_no_lack_of_memory():
    assert all(map(is_out_of_memory, LACKS))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(ZeroDivisionError):
        find_largest_working_batch(8, lambda size: 1 // 0)

    def never(size):
        raise MemoryError

    assert find_largest_working_batch(64, never) == 0
    assert find_largest_working_batch(64, lambda size: None) == 64
    warnings.simplefilter("error")
