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
from resnetkit.training import session as sessions
from resnetkit.training import trainer
from resnetkit.training.setup import prepare_run
from resnetkit.training.state import TrainState


class StepAlternator:
    """A callback that records the times of a step and lets the next step be of the other kind."""

    def __init__(self, session):
        self.session, self.times, self.exact = session, {True: [], False: []}, True
        self.kept = (
            trainer.seed_torch,
            sessions.format_step_line,
            session.metrics_log.add,
            session.checkpoints.is_due,
            session.check_stop,
        )
        self.absent = (self.do_nothing, lambda *args: "", self.do_nothing, lambda step: False, self.do_nothing)
        self.clock, self.processor = time.perf_counter(), time.process_time()

    def do_nothing(self, *args):
        """Stand in for a function that only resuming needs."""

    def replace_functions(self, functions):
        """Let the training loop call these functions."""
        session = self.session
        trainer.seed_torch, sessions.format_step_line, *methods = functions
        session.metrics_log.add, session.checkpoints.is_due, session.check_stop = methods

    def __call__(self, event):
        now = time.perf_counter(), time.process_time()
        if event.step > 2:
            self.times[self.exact].append((now[0] - self.clock, now[1] - self.processor))
        self.exact = not self.exact
        self.replace_functions(self.kept if self.exact else self.absent)
        self.clock, self.processor = time.perf_counter(), time.process_time()

    def compute_median(self, exact, index):
        """Return the median of one kind of step in ms; index 0 is wall time, index 1 processor time."""
        return 1000 * statistics.median(times[index] for times in self.times[exact])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        run = prepare_run(options.data, options.model, {}, out=Path(folder) / "run", device="auto", on_progress=None)
        loop = trainer.Trainer(run, lambda event: None, SignalHandler())
        session = loop.session
        alternator, save_seconds = StepAlternator(session), []
        loop.on_event, session.save_checkpoint = alternator, lambda: None
        for number in range(1, options.epochs + 1):
            session.state = TrainState(epoch=number, batch_size=run.recipe.batch_size)
            loop.train_epoch(number)
        alternator.replace_functions(alternator.kept)
        for number in range(1, 8):
            session.state = TrainState(global_step=number, step=1, batch_size=run.recipe.batch_size)
            started = time.perf_counter()
            sessions.TrainSession.save_checkpoint(session)
            save_seconds.append(time.perf_counter() - started)
    results = {
        "model": options.model,
        "batch": run.recipe.batch_size,
        "steps_of_each_kind": len(alternator.times[True]),
        "milliseconds_a_step": {
            "exact": alternator.compute_median(True, 0),
            "without": alternator.compute_median(False, 0),
        },
        "processor_milliseconds_a_step": {
            "exact": alternator.compute_median(True, 1),
            "without": alternator.compute_median(False, 1),
        },
        "milliseconds_a_checkpoint": 1000 * statistics.median(save_seconds),
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
