"""What exact resuming costs: the loop of `resnetkit train` beside itself without it, in one run, taking turns.

    python benchmarks/resuming.py DATA [--model resnet20] [--rounds 7] [--steps 60] [--save FILE.json]

Without it no generator is seeded in a step, no step is written to metrics.jsonl, and nobody asks for signals or for the
time. A checkpoint is written beside, and told in milliseconds. `benchmarks/kills.py` shows that it is exact.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from resnetkit.doctor import environment
from resnetkit.learn import train as training
from resnetkit.learn.signals import Signals
from resnetkit.learn.start import start
from resnetkit.learn.state import State

ABSENT = {"reseed": lambda *numbers: None, "step_line": lambda *words: ""}


class CutError(Exception):
    """Enough steps."""


def seconds(run, epoch, steps):
    """For so many steps of an epoch, after two that are not counted."""
    started = []

    def watch(event):
        if event.step == 2:
            started.append(time.perf_counter())
        if event.step == steps + 2:
            raise CutError

    run.watch, run.now = watch, State(epoch=epoch, batch_size=run.recipe.batch_size)
    try:
        run.epoch(epoch)
    except CutError:
        return time.perf_counter() - started[0]
    raise SystemExit("an epoch has fewer steps than --steps + 2")


def bare(run, epoch, steps):
    """The same without all that resuming needs."""
    kept = {name: getattr(training, name) for name in ABSENT}
    add, due, heed = run.log.add, run.keeper.due, run.heed
    try:
        for name, absent in ABSENT.items():
            setattr(training, name, absent)
        run.log.add, run.keeper.due, run.heed = (lambda line: None), (lambda steps: False), (lambda: None)
        return seconds(run, epoch, steps)
    finally:
        for name, value in kept.items():
            setattr(training, name, value)
        run.log.add, run.keeper.due, run.heed = add, due, heed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        begun = start(options.data, options.model, {}, out=Path(folder) / "run", device="auto", tell=None)
        run = training._Training(begun, lambda event: None, Signals())
        exact, without, saves = [], [], []
        for number in range(1, options.rounds + 2):  # the first one warms up
            turns = [(exact, seconds), (without, bare)]
            for found, measure in turns if number % 2 else turns[::-1]:
                found.append(measure(run, number, options.steps))
            run.now = State(steps=number, epoch=1, step=1, batch_size=run.recipe.batch_size)
            begun_at = time.perf_counter()
            run.save()
            saves.append(time.perf_counter() - begun_at)
    ratios = [a / b for a, b in zip(exact[1:], without[1:], strict=True)]
    found = {
        "model": options.model,
        "batch": run.recipe.batch_size,
        "milliseconds_a_step": 1000 * statistics.median(without[1:]) / options.steps,
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "milliseconds_a_checkpoint": 1000 * statistics.median(saves[1:]),
        "rounds": options.rounds,
        "steps": options.steps,
        "environment": {key: environment()[key] for key in ("cores", "threads", "features", "gpus")},
    }
    print(f"a step without it {found['milliseconds_a_step']:8.2f} ms")
    print(f"ratio             {found['ratio']:8.4f}   ({min(ratios):.4f} to {max(ratios):.4f}, {options.rounds} pairs)")
    print(f"a checkpoint      {found['milliseconds_a_checkpoint']:8.1f} ms")
    if options.save:
        options.save.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
