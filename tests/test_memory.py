"""T9: what a run needs before its first step, and what to do where that was too little."""

import re
import warnings

import pytest
import torch

import resnetkit as rk
from resnetkit.commands.progress import announce
from resnetkit.errors import MachineError, ResnetkitWarning
from resnetkit.training import memory
from resnetkit.training import trainer as training
from resnetkit.training.memory import Need, available, is_lack, need, working
from resnetkit.training.recipe import EMA, AdamW, Recipe
from test_resume import HOW, flowers, once, same, whole_plain  # noqa: F401

from tiny import BASE

FEW = HOW | {"epochs": 2}


def test_a_need_grows_with_what_is_kept():
    plan, plain = rk.plan(rk.spec("resnet18")), Recipe("d", "resnet18")
    base = need(plan, plain, "fp32")
    assert need(plan, Recipe("d", "m", optimiser=AdamW()), "fp32").fixed > base.fixed
    assert need(plan, Recipe("d", "m", ema=EMA()), "fp32").fixed > base.fixed
    assert need(plan, plain, "bf16").picture < 0.6 * base.picture
    assert base.of(256) > base.of(128) > base.of(1) == base.fixed + base.evaluation
    assert need(plan, plain, "fp32", 10).evaluation < 0.1 * base.evaluation
    assert Need(10, 2, 5).fits(10 + 2 * 16) == 16
    assert Need(10, 2, 5).fits(14) == 0


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
        told = need(rk.plan(rk.spec(name), image=size), Recipe("d", name), "fp32").picture * 4
        found = sum(size for place, size in kept.items() if place not in own)
        del answer
        assert 1.0 < told / found < 1.25, (name, told / found)


def test_what_there_is(monkeypatch, tmp_path):
    there = available(torch.device("cpu"))
    assert 0 < there < 1e14
    texts = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:       2000 kB\n", "memory.max": "1500000\n", "memory.current": "500000\n"}  # fmt: skip
    monkeypatch.setattr(memory, "_text", lambda path: texts.get(str(path), texts.get(path.name, "")))
    assert available(torch.device("cpu")) == 1_000_000
    texts["memory.max"] = "max\n"
    assert available(torch.device("cpu")) == 2_048_000
    texts.clear()
    assert available(torch.device("cpu")) == float("inf")


def test_t09_a_batch_that_will_not_fit_is_told_before_the_first_step(
    flowers, network, tmp_path, monkeypatch  # noqa: F811
):  # fmt: skip
    one = need(rk.plan(BASE), Recipe("d", "m"), "fp32")
    monkeypatch.setattr(memory, "available", lambda device: one.fixed + max(4.5 * one.picture, one.evaluation))
    seen = []
    with pytest.warns(ResnetkitWarning) as warned:
        run = rk.train(flowers, network, out=tmp_path / "run", settings=FEW | {"batch_size": 4096, "epochs": 1}, watch=seen.append)  # fmt: skip
    told = str(warned[0].message)
    assert re.fullmatch(
        r"batches of 4096 need about [\d.,]+ [MG]B of memory, and [\d.,]+ MB are free; --batch-size \d+ would fit", told
    )
    assert re.search(
        r"^memory about [\d.,]+ [MG]B for batches of 4096; \d+ MB are free$", announce(seen[0]), re.MULTILINE
    )
    assert run.path.exists()
    monkeypatch.setattr(memory, "available", lambda device: 1000)
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
    step = training.Training.step

    def lacking(self, number, *words):
        if self.now.steps == 8:
            raise error
        step(self, number, *words)

    def attempt(prepared, model, batch):
        if batch > 4:
            raise error

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "step", lacking)
        patch.setattr(memory, "_attempt", attempt)
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

    monkeypatch.setattr(training.Training, "step", lambda *words: (_ for _ in ()).throw(MemoryError()))
    monkeypatch.setattr(memory, "_attempt", attempt)
    code, out, err = cli("train", flowers, "--model", network, "--out", tmp_path / "run", "--batch-size", 16)
    assert (code, out) == (5, "")
    assert err.splitlines()[-1] == "fix: --batch-size 2, which works" + in_parts(8)
    assert not (tmp_path / "run").exists()


def test_t09_where_the_batch_was_not_to_blame(flowers, network, tmp_path, monkeypatch):  # noqa: F811
    """Another program had taken the memory, or an evaluation did: the attempt, here a real one, succeeds."""

    def count(*words):
        raise LACKS[0]

    monkeypatch.setattr(training, "count", count)
    with pytest.raises(MachineError) as caught:
        rk.train(flowers, network, out=tmp_path / "run", settings=FEW)
    assert caught.value.what.startswith("there was not enough memory, though there is for batches of 8; the peak was ")
    assert caught.value.fix == f"free some, or smaller pictures; then resnetkit train --resume {tmp_path / 'run'}"


def test_other_errors_are_no_lack_of_memory():
    assert all(map(is_lack, LACKS))
    assert not is_lack(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(ZeroDivisionError):
        working(8, lambda size: 1 // 0)

    def never(size):
        raise MemoryError

    assert working(64, never) == 0
    assert working(64, lambda size: None) == 64
    warnings.simplefilter("error")
