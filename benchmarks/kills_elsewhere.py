"""Compare resuming after a kill in Lightning, accelerate and resnetkit.

    pip install lightning==2.6.0 accelerate torchdata
    python benchmarks/kills_elsewhere.py [--kills 6] [--seed 0] [--only WORD] [--save docs/measured/kills.json]

The network of kills.py is trained on the digits for three epochs of 41 steps, in one thread. The order is shuffled,
each image is shifted by a pixel at random, and stochastic depth drops branches. In the other libraries torch's
generator draws all of it, with the settings that their documentation recommends for resuming. Each setting runs twice
undisturbed, which must give the same weights. It is then killed (kill -9) at random moments after the first epoch, and
at a checkpoint, each time resumed to the end. Every step records its images, so that skipped ones can be counted.

Libraries that are not installed are skipped. Rows that are not measured are kept.
"""

import argparse
import contextlib
import importlib.util
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import resnetkit as rk
from kills import NETWORK, digest

EPOCHS, STEPS, BATCH, EVERY, PICTURES = 3, 41, 32, 8, 1295
MID_EPOCH, EPOCH_END = 56, 41  # steps after which there is a checkpoint
LOG = "steps.jsonl"
PRELOADED = [
    "torch",
    "resnetkit.training.api",
    "lightning.pytorch",
    "accelerate",
    "torchdata.stateful_dataloader",
    "sklearn.datasets",
]


@dataclass(frozen=True)
class Setting:
    """How a library resumes; ``stops`` are the steps with a checkpoint at which it is stopped."""

    library: str
    method: str
    run: Callable[[Path, int], None]
    stops: dict[str, int]
    note: str = ""


@dataclass(frozen=True)
class End:
    """The result of a run. ``missed`` counts the images that an epoch did not see, None where it is not written."""

    equal: bool
    apart: float
    again: int
    missed: int | None
    torn: int


class Digits(Dataset[tuple[Tensor, int, int]]):
    """Moved by a pixel that torch's generator draws, or not at all."""

    def __init__(self, drawn: bool = True) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        self.drawn = drawn
        self.pixels = torch.from_numpy(digits.images[:PICTURES]).float()[:, None] / 16 - 0.3
        self.labels = digits.target[:PICTURES].tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        up, left = torch.randint(0, 3, (2,)).tolist() if self.drawn else (1, 1)
        moved = F.pad(self.pixels[index], (1, 1, 1, 1))[:, up : up + 8, left : left + 8]
        return moved.repeat_interleave(2, 1).repeat_interleave(2, 2), self.labels[index], index


class Steps:
    """Writes what a step sees, or kills its process before step ``at``."""

    def __init__(self, place: Path, at: int) -> None:
        self.file, self.at = place / LOG, at

    def __call__(self, step: int, epoch: int, indices: Iterable[int] = ()) -> None:
        if step == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, "epoch": epoch, "which": list(indices)}) + "\n")


def network(place: Path, drawn: bool = True) -> nn.Module:
    (place / "net.toml").write_text(NETWORK if drawn else NETWORK.replace("stochastic_depth = 0.3", ""))
    return rk.build(place / "net.toml")


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def finish(model: nn.Module, place: Path) -> None:
    (place / "model").mkdir()
    save_model(model, str(place / "model" / "model.safetensors"))


def ours(place: Path, at: int) -> None:
    """`rk.train`; a step is heard of after it was taken and before a checkpoint of it is written."""
    from resnetkit.training.run_folder import StepMetrics

    steps, run = Steps(place, at + 1), place / "run"

    def watch(what: Any) -> None:
        if isinstance(what, StepMetrics):
            steps((what.epoch - 1) * STEPS + what.step, what.epoch - 1)

    if (run / "run.toml").exists():
        rk.train(resume=run, on_event=watch)
    else:
        settings = {"epochs": EPOCHS, "batch_size": BATCH, "precision": "fp32", "checkpoint_steps": EVERY}
        network(place)
        rk.train("digits", place / "net.toml", out=run, on_event=watch, **settings)
    shutil.copytree(run / "model", place / "model")


def lightning_task(place: Path, at: int, drawn: bool) -> Any:
    import lightning.pytorch as pl

    steps = Steps(place, at)

    class Task(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network(place, drawn)

        def training_step(self, batch: Any, _: int) -> Tensor:
            steps(self.global_step, self.current_epoch, batch[2].tolist())
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer(self)

    return Task()


def random_state(late: bool) -> Any:
    """Return a callback that saves the random state, which Lightning's checkpoints lack; ``late``: after the loader."""
    import lightning.pytorch as pl

    class RandomState(pl.Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"torch": torch.get_rng_state()}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.state = state["torch"]
            torch.set_rng_state(self.state)

        def on_train_start(self, *_: Any) -> None:
            if late and hasattr(self, "state"):
                torch.set_rng_state(self.state)

    return RandomState()


def lightning(
    place: Path, at: int, *, loader: str = "torch", saved: str = "steps", more: str = "", drawn: bool = True
) -> None:
    import lightning.pytorch as pl

    pl.seed_everything(0, workers=True)
    often = {"every_n_train_steps": EVERY} if saved == "steps" else {"every_n_epochs": 1}
    keep = pl.callbacks.ModelCheckpoint(place / "checkpoints", save_last=True, save_on_train_epoch_end=True, **often)
    task, batches = lightning_task(place, at, drawn), loaders()[loader](Digits(drawn), batch_size=BATCH, shuffle=True)
    callbacks = [keep, *([random_state(more == "late")] if more else [])]
    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", devices=1, deterministic=True, logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=place, callbacks=callbacks,
    )  # fmt: skip
    trainer.fit(task, batches, ckpt_path="last" if any((place / "checkpoints").glob("last*")) else None)
    finish(task.net, place)


def loaders() -> dict[str, Any]:
    from torchdata.stateful_dataloader import StatefulDataLoader

    return {"torch": DataLoader, "stateful": StatefulDataLoader}


class Accelerated:
    """The loop of accelerate's own example of checkpoints, with a folder for each."""

    def __init__(self, place: Path, at: int, stateful: bool, saved: str, drawn: bool) -> None:
        from accelerate import Accelerator
        from accelerate.utils import DataLoaderConfiguration, set_seed

        set_seed(0)
        self.place, self.told, self.stateful, self.saved = place, Steps(place, at), stateful, saved
        loader_config = DataLoaderConfiguration(
            use_seedable_sampler=True, use_stateful_dataloader=stateful, data_seed=0
        )
        self.accelerator = Accelerator(cpu=True, dataloader_config=loader_config)
        self.model = network(place, drawn)
        self.model, self.optimizer, self.batches = self.accelerator.prepare(
            self.model, optimizer(self.model), DataLoader(Digits(drawn), batch_size=BATCH, shuffle=True)
        )

    def run(self) -> None:
        begin = self.load()
        for epoch in range(begin // STEPS, EPOCHS):
            self.batches.set_epoch(epoch)
            self.model.train()
            self.epoch(epoch, max(begin, epoch * STEPS))
        finish(self.accelerator.unwrap_model(self.model), self.place)

    def load(self) -> int:
        folders = checkpoints(self.place)
        if folders:
            self.accelerator.load_state(str(folders[-1]))
        return int(folders[-1].name) if folders else 0

    def epoch(self, epoch: int, begin: int) -> None:
        skip = begin % STEPS
        mine = self.accelerator.skip_first_batches(self.batches, skip) if skip and not self.stateful else self.batches
        for step, (pixels, labels, indices) in enumerate(mine, begin):
            self.told(step, epoch, indices.tolist())
            self.step(pixels, labels)
            if self.saved == "steps" and (step + 1) % EVERY == 0:
                self.save(step + 1)
        if self.saved == "epochs":
            self.save((epoch + 1) * STEPS)

    def step(self, pixels: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad()
        self.accelerator.backward(F.cross_entropy(self.model(pixels), labels))
        self.optimizer.step()

    def save(self, step: int) -> None:
        self.accelerator.save_state(str(self.place / "checkpoints" / str(step)))


def accelerate(place: Path, at: int, *, stateful: bool = False, saved: str = "steps", drawn: bool = True) -> None:
    Accelerated(place, at, stateful, saved, drawn).run()


def checkpoints(place: Path) -> list[Path]:
    """List the checkpoints, the oldest first."""
    return sorted((place / "checkpoints").glob("*"), key=lambda path: path.stat().st_mtime)


MID, END = {"mid-epoch": MID_EPOCH}, {"end of an epoch": EPOCH_END}
OWN_ORDER = "order drawn from torch's generator, whose state no checkpoint has"
AHEAD = (
    "the images and their order are right; a batch is read ahead and the resumed loader draws again, "
    "so moves and branches differ"
)
SETTINGS = (
    Setting("resnetkit", f"checkpoint_steps={EVERY}", ours, MID | END, "nothing depends on what was drawn before"),
    Setting(
        "lightning", f"ModelCheckpoint(every_n_train_steps={EVERY}), ckpt_path='last', DataLoader", lightning, MID,
        f"the loader begins anew in mid-epoch (it warns); {OWN_ORDER}",
    ),
    Setting(
        "lightning", "the same, torchdata's StatefulDataLoader", partial(lightning, loader="stateful"), MID,
        "the loader goes on where it was; torch's generator is not stored",
    ),
    Setting(
        "lightning", "ModelCheckpoint(every_n_epochs=1), DataLoader", partial(lightning, saved="epochs"), END, OWN_ORDER
    ),
    Setting(
        "lightning", "the same, and a callback of ours that stores torch's random state",
        partial(lightning, saved="epochs", more="at once"), END,
        "ours, not documented",
    ),
    Setting(
        "lightning", "StatefulDataLoader, every 8 steps, and that callback",
        partial(lightning, loader="stateful", more="at once"), MID,
        "the resumed loader draws a number that the one that went on did not",
    ),
    Setting(
        "lightning", "the same, but the state put back in on_train_start",
        partial(lightning, loader="stateful", more="late"), MID, "ours, not documented",
    ),
    Setting(
        "lightning", "StatefulDataLoader, every 8 steps, nothing random but the order",
        partial(lightning, loader="stateful", drawn=False), MID, "the loader stores its order",
    ),
    Setting(
        "accelerate", f"save_state every {EVERY} steps, use_seedable_sampler, skip_first_batches", accelerate, MID,
        AHEAD,
    ),
    Setting("accelerate", "the same, use_stateful_dataloader", partial(accelerate, stateful=True), MID, AHEAD),
    Setting(
        "accelerate", "save_state every 8 steps, skip_first_batches, nothing random but the order",
        partial(accelerate, drawn=False), MID, "the order is a function of (seed, epoch)",
    ),
    Setting(
        "accelerate", "save_state at the end of an epoch, use_seedable_sampler", partial(accelerate, saved="epochs"),
        END, "random states are stored",
    ),
)  # fmt: skip


def quietly(run: Callable[[Path, int], None], place: Path, at: int) -> None:
    """Run in a process of its own, with its output in a file."""
    torch.set_num_threads(1)
    with (place / "output.txt").open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        run(place, at)


class Bench:
    """Runs of one setting, each in a fresh folder."""

    def __init__(self, setting: Setting, folder: Path) -> None:
        self.setting, self.folder, self.count = setting, folder, 0
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(PRELOADED)

    def fresh(self) -> Path:
        self.count += 1
        place = self.folder / str(self.count)
        place.mkdir()
        return place

    def begun(self, place: Path, at: int = -1) -> Any:
        process = self.processes.Process(target=quietly, args=(self.setting.run, place, at))
        process.start()
        return process

    def whole(self) -> Path:
        place = self.fresh()
        self.ended(place)
        return place

    def ended(self, place: Path) -> int:
        """To its end; how many checkpoints could not be loaded and were taken away."""
        for torn in range(3):
            process = self.begun(place)
            process.join()
            if process.exitcode == 0:
                return torn
            if not checkpoints(place):
                break
            discard(checkpoints(place)[-1])
        raise SystemExit(f"{self.setting.method}: {(place / 'output.txt').read_text()[-2000:]}")

    def killed(self, steps: int, wait: float) -> tuple[Path, int]:
        """Killed when it has taken so many steps, and a moment later."""
        place = self.fresh()
        process = self.begun(place)
        while process.is_alive() and len(lines(place)) < steps:
            time.sleep(0.001)
        time.sleep(wait)
        process.kill()
        process.join()
        return place, self.ended(place)

    def stopped(self, at: int) -> tuple[Path, int]:
        place = self.fresh()
        self.begun(place, at).join()
        assert not (place / "model").exists()
        return place, self.ended(place)


def discard(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint) if checkpoint.is_dir() else checkpoint.unlink()


def lines(place: Path) -> list[dict[str, Any]]:
    lines = []
    for line in (place / LOG).read_text().splitlines() if (place / LOG).exists() else []:
        with contextlib.suppress(ValueError):  # cut by the kill
            lines.append(json.loads(line))
    return lines


def missed(place: Path) -> int | None:
    """Count the images that the steps of an epoch did not use; if a step was repeated, the last one counts."""
    last = {line["step"]: line for line in lines(place)}.values()
    seen: dict[int, Counter[int]] = {epoch: Counter() for epoch in range(EPOCHS)}
    for line in last:
        seen[line["epoch"]].update(line["which"])
    return sum(PICTURES - len(counted) for counted in seen.values()) if any(line["which"] for line in last) else None


def apart(first_folder: Path, second_folder: Path) -> float:
    first, second = (load_file(place / "model" / "model.safetensors") for place in (first_folder, second_folder))
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def end(outcome: tuple[Path, int], whole: Path) -> End:
    place, torn = outcome
    equal = digest(place) == digest(whole)
    return End(equal, apart(place, whole), len(lines(place)) - EPOCHS * STEPS, missed(place), torn)


def measured(setting: Setting, kills: int, seed: int) -> dict[str, Any]:
    draw = random.Random(seed)
    moments = [(draw.randrange(STEPS + 4, EPOCHS * STEPS - 4), draw.uniform(0, 0.03)) for _ in range(kills)]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(setting, Path(folder))
        whole, twice = bench.whole(), bench.whole()
        killed = [end(bench.killed(*moment), whole) for moment in moments]
        stopped = {word: asdict(end(bench.stopped(at), whole)) for word, at in setting.stops.items()}
        fair = digest(whole) == digest(twice)
    row = {"library": setting.library, "version": version(setting.library), "method": setting.method}
    return row | {"same_twice": fair, "killed": [asdict(end) for end in killed], "stopped": stopped}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="the settings whose library or description has this word")
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    rows = read(options.save)
    for setting in SETTINGS:
        if options.only in f"{setting.library} {setting.method}" and importlib.util.find_spec(setting.library):
            row = measured(setting, options.kills, options.seed)
            rows[setting.library, setting.method] = row
            print(json.dumps(row), flush=True)
            write(options.save, rows)


def read(path: Path | None) -> dict[tuple[str, str], Any]:
    rows = json.loads(path.read_text())["rows"] if path and path.exists() else []
    return {(row["library"], row["method"]): row for row in rows}


def write(path: Path | None, rows: dict[tuple[str, str], Any]) -> None:
    """Write the rows in the order of the settings."""
    notes = {(setting.library, setting.method): setting.note for setting in SETTINGS}
    versions = {name: version(name).split("+")[0] for name in ("torch", "torchdata") if importlib.util.find_spec(name)}
    if path:
        results = {"versions": versions, "rows": [rows[key] | {"note": notes[key]} for key in notes if key in rows]}
        path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
