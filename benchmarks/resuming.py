"""Measure the cost of exact resuming: the loop of `resnetkit train` with and without it, in alternating steps.

    python benchmarks/resuming.py DATA [--model resnet20] [--epochs 4] [--save FILE.json]

Every other step runs without what resuming needs: it seeds no generator, writes nothing to metrics.jsonl, and checks
neither signals nor the time. The results are medians over steps, of wall time and of processor time, which other work
on the machine disturbs less. A checkpoint is given in milliseconds. `benchmarks/kills.py` checks that resuming is
exact.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from resnetkit.runtime.environment import collect_environment
from resnetkit.runtime.signals import SignalHandler
from resnetkit.training import trainer as training
from resnetkit.training.setup import prepare_run
from resnetkit.training.state import TrainState


class Turns:
    """Called after each step: takes its times, and lets the next step be of the other kind."""

    def __init__(self, run):
        self.run, self.times, self.exact = run, {True: [], False: []}, True
        self.kept = (
            training.seed_torch,
            training.format_step_line,
            run.metrics_log.add,
            run.checkpoints.is_due,
            run.check_stop,
        )
        self.absent = (self.nothing, lambda *words: "", self.nothing, lambda steps: False, self.nothing)
        self.clock, self.processor = time.perf_counter(), time.process_time()

    def nothing(self, *words):
        """Train without what resuming needs."""

    def use(self, functions):
        run = self.run
        training.seed_torch, training.format_step_line, *rest = functions
        run.metrics_log.add, run.checkpoints.is_due, run.check_stop = rest

    def __call__(self, event):
        now = time.perf_counter(), time.process_time()
        if event.step > 2:
            self.times[self.exact].append((now[0] - self.clock, now[1] - self.processor))
        self.exact = not self.exact
        self.use(self.kept if self.exact else self.absent)
        self.clock, self.processor = time.perf_counter(), time.process_time()

    def median(self, exact, index):
        """Milliseconds: ``index`` is 0 for the clock, 1 for the processor."""
        return 1000 * statistics.median(times[index] for times in self.times[exact])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        begun = prepare_run(options.data, options.model, {}, out=Path(folder) / "run", device="auto", on_progress=None)
        run = training.Trainer(begun, lambda event: None, SignalHandler())
        turns, saves = Turns(run), []
        run.on_event, run.save_checkpoint = turns, lambda: None
        for number in range(1, options.epochs + 1):
            run.state = TrainState(epoch=number, batch_size=run.recipe.batch_size)
            run.train_epoch(number)
        turns.use(turns.kept)
        for number in range(1, 8):
            run.state = TrainState(global_step=number, step=1, batch_size=run.recipe.batch_size)
            started = time.perf_counter()
            training.Trainer.save_checkpoint(run)
            saves.append(time.perf_counter() - started)
    results = {
        "model": options.model,
        "batch": run.recipe.batch_size,
        "steps_of_each_kind": len(turns.times[True]),
        "milliseconds_a_step": {"exact": turns.median(True, 0), "without": turns.median(False, 0)},
        "processor_milliseconds_a_step": {"exact": turns.median(True, 1), "without": turns.median(False, 1)},
        "milliseconds_a_checkpoint": 1000 * statistics.median(saves),
        "environment": {key: collect_environment()[key] for key in ("cores", "threads", "features", "gpus")},
    }
    for name in ("milliseconds_a_step", "processor_milliseconds_a_step"):
        exact, without = results[name]["exact"], results[name]["without"]
        print(f"{name:<30}{exact:8.2f} exact {without:8.2f} without   ratio {exact / without:.4f}")
    print(f"{'milliseconds_a_checkpoint':<30}{results['milliseconds_a_checkpoint']:8.1f}")
    if options.save:
        options.save.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
