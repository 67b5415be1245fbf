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
from kills import NETWORK, hash_weights

EPOCHS, STEPS, BATCH, CHECKPOINT_STEPS, N_IMAGES = 3, 41, 32, 8, 1295
MID_EPOCH, EPOCH_END = 56, 41  # steps after which there is a checkpoint
STEPS_FILE = "steps.jsonl"
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
class RunComparison:
    """The difference between a resumed run and an undisturbed one.

    ``apart`` is the largest difference of a weight, and ``again`` counts repeated steps. ``missed`` counts images that
    an epoch did not use (None if the library cannot record them), and ``torn`` checkpoints that could not be loaded.
    """

    equal: bool
    apart: float
    again: int
    missed: int | None
    torn: int


class Digits(Dataset[tuple[Tensor, int, int]]):
    """The digits, shifted by a pixel at random (by torch's generator) or not at all."""

    def __init__(self, is_random: bool = True) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        self.is_random = is_random
        self.pixels = torch.from_numpy(digits.images[:N_IMAGES]).float()[:, None] / 16 - 0.3
        self.labels = digits.target[:N_IMAGES].tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        up, left = torch.randint(0, 3, (2,)).tolist() if self.is_random else (1, 1)
        moved = F.pad(self.pixels[index], (1, 1, 1, 1))[:, up : up + 8, left : left + 8]
        return moved.repeat_interleave(2, 1).repeat_interleave(2, 2), self.labels[index], index


class StepRecorder:
    """Records the images of each step, and kills its process before step ``kill_step``."""

    def __init__(self, folder: Path, kill_step: int) -> None:
        self.file, self.kill_step = folder / STEPS_FILE, kill_step

    def __call__(self, step: int, epoch: int, indices: Iterable[int] = ()) -> None:
        if step == self.kill_step:
            os.kill(os.getpid(), signal.SIGKILL)
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, "epoch": epoch, "which": list(indices)}) + "\n")


def build_network(folder: Path, is_random: bool = True) -> nn.Module:
    (folder / "net.toml").write_text(NETWORK if is_random else NETWORK.replace("stochastic_depth = 0.3", ""))
    return rk.build(folder / "net.toml")


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def save_weights(model: nn.Module, folder: Path) -> None:
    (folder / "model").mkdir()
    save_model(model, str(folder / "model" / "model.safetensors"))


def train_resnetkit(folder: Path, kill_step: int) -> None:
    """Train with `rk.train`, which reports a step after its update and before its checkpoint."""
    from resnetkit.training.events import StepMetrics

    steps, run = StepRecorder(folder, kill_step + 1), folder / "run"

    def record_step(event: Any) -> None:
        if isinstance(event, StepMetrics):
            steps((event.epoch - 1) * STEPS + event.step, event.epoch - 1)

    if (run / "run.toml").exists():
        rk.train(resume=run, on_event=record_step)
    else:
        settings = {"epochs": EPOCHS, "batch_size": BATCH, "precision": "fp32", "checkpoint_steps": CHECKPOINT_STEPS}
        build_network(folder)
        rk.train("digits", folder / "net.toml", out=run, on_event=record_step, **settings)
    shutil.copytree(run / "model", folder / "model")


def make_lightning_module(folder: Path, kill_step: int, is_random: bool) -> Any:
    import lightning.pytorch as pl

    steps = StepRecorder(folder, kill_step)

    class Task(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = build_network(folder, is_random)

        def training_step(self, batch: Any, _: int) -> Tensor:
            steps(self.global_step, self.current_epoch, batch[2].tolist())
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return build_optimizer(self)

    return Task()


def make_rng_callback(after_loader: bool) -> Any:
    """Return a callback that saves the random state, which Lightning's checkpoints lack.

    Args:
        after_loader: Restore the state after the loader was built.
    """
    import lightning.pytorch as pl

    class RandomState(pl.Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"torch": torch.get_rng_state()}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.state = state["torch"]
            torch.set_rng_state(self.state)

        def on_train_start(self, *_: Any) -> None:
            if after_loader and hasattr(self, "state"):
                torch.set_rng_state(self.state)

    return RandomState()


def train_lightning(
    folder: Path,
    kill_step: int,
    *,
    loader: str = "torch",
    saved: str = "steps",
    rng_callback: str = "",
    is_random: bool = True,
) -> None:
    import lightning.pytorch as pl

    pl.seed_everything(0, workers=True)
    often = {"every_n_train_steps": CHECKPOINT_STEPS} if saved == "steps" else {"every_n_epochs": 1}
    keep = pl.callbacks.ModelCheckpoint(folder / "checkpoints", save_last=True, save_on_train_epoch_end=True, **often)
    task = make_lightning_module(folder, kill_step, is_random)
    batches = get_loader_classes()[loader](Digits(is_random), batch_size=BATCH, shuffle=True)
    callbacks = [keep, *([make_rng_callback(rng_callback == "late")] if rng_callback else [])]
    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", devices=1, deterministic=True, logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=callbacks,
    )  # fmt: skip
    trainer.fit(task, batches, ckpt_path="last" if any((folder / "checkpoints").glob("last*")) else None)
    save_weights(task.net, folder)


def get_loader_classes() -> dict[str, Any]:
    from torchdata.stateful_dataloader import StatefulDataLoader

    return {"torch": DataLoader, "stateful": StatefulDataLoader}


class Accelerated:
    """The loop of accelerate's example of checkpointing, with a folder for each checkpoint."""

    def __init__(self, folder: Path, kill_step: int, stateful: bool, saved: str, is_random: bool) -> None:
        from accelerate import Accelerator
        from accelerate.utils import DataLoaderConfiguration, set_seed

        set_seed(0)
        self.folder, self.stateful, self.saved = folder, stateful, saved
        self.record_step = StepRecorder(folder, kill_step)
        loader_config = DataLoaderConfiguration(
            use_seedable_sampler=True, use_stateful_dataloader=stateful, data_seed=0
        )
        self.accelerator = Accelerator(cpu=True, dataloader_config=loader_config)
        self.model = build_network(folder, is_random)
        self.model, self.optimizer, self.batches = self.accelerator.prepare(
            self.model, build_optimizer(self.model), DataLoader(Digits(is_random), batch_size=BATCH, shuffle=True)
        )

    def run(self) -> None:
        first_step = self.load()
        for epoch in range(first_step // STEPS, EPOCHS):
            self.batches.set_epoch(epoch)
            self.model.train()
            self.run_epoch(epoch, max(first_step, epoch * STEPS))
        save_weights(self.accelerator.unwrap_model(self.model), self.folder)

    def load(self) -> int:
        folders = list_checkpoints(self.folder)
        if folders:
            self.accelerator.load_state(str(folders[-1]))
        return int(folders[-1].name) if folders else 0

    def run_epoch(self, epoch: int, first_step: int) -> None:
        batches, n_skipped = self.batches, first_step % STEPS
        if n_skipped and not self.stateful:
            batches = self.accelerator.skip_first_batches(batches, n_skipped)
        for step, (pixels, labels, indices) in enumerate(batches, first_step):
            self.record_step(step, epoch, indices.tolist())
            self.run_step(pixels, labels)
            if self.saved == "steps" and (step + 1) % CHECKPOINT_STEPS == 0:
                self.save(step + 1)
        if self.saved == "epochs":
            self.save((epoch + 1) * STEPS)

    def run_step(self, pixels: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad()
        self.accelerator.backward(F.cross_entropy(self.model(pixels), labels))
        self.optimizer.step()

    def save(self, step: int) -> None:
        self.accelerator.save_state(str(self.folder / "checkpoints" / str(step)))


def train_accelerate(
    folder: Path, kill_step: int, *, stateful: bool = False, saved: str = "steps", is_random: bool = True
) -> None:
    Accelerated(folder, kill_step, stateful, saved, is_random).run()


def list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints, the oldest first."""
    return sorted((folder / "checkpoints").glob("*"), key=lambda path: path.stat().st_mtime)


MID, END = {"mid-epoch": MID_EPOCH}, {"end of an epoch": EPOCH_END}
TORCH_ORDER_NOTE = "order drawn from torch's generator, whose state no checkpoint has"
READ_AHEAD_NOTE = (
    "the images and their order are right; a batch is read ahead and the resumed loader draws again, "
    "so shifts and dropped branches differ"
)
SETTINGS = (
    Setting(
        "resnetkit",
        f"checkpoint_steps={CHECKPOINT_STEPS}",
        train_resnetkit,
        MID | END,
        "no random number depends on earlier ones",
    ),
    Setting(
        "lightning",
        f"ModelCheckpoint(every_n_train_steps={CHECKPOINT_STEPS}), ckpt_path='last', DataLoader",
        train_lightning,
        MID,
        f"the resumed loader starts the epoch again (it warns); {TORCH_ORDER_NOTE}",
    ),
    Setting(
        "lightning",
        "the same, torchdata's StatefulDataLoader",
        partial(train_lightning, loader="stateful"),
        MID,
        "the loader continues where it was; the state of torch's generator is not stored",
    ),
    Setting(
        "lightning",
        "ModelCheckpoint(every_n_epochs=1), DataLoader",
        partial(train_lightning, saved="epochs"),
        END,
        TORCH_ORDER_NOTE,
    ),
    Setting(
        "lightning",
        "the same, and a callback of ours that stores torch's random state",
        partial(train_lightning, saved="epochs", rng_callback="at once"),
        END,
        "our workaround, not documented",
    ),
    Setting(
        "lightning",
        "StatefulDataLoader, every 8 steps, and that callback",
        partial(train_lightning, loader="stateful", rng_callback="at once"),
        MID,
        "the resumed loader draws one random number more than the undisturbed one",
    ),
    Setting(
        "lightning",
        "the same, but the state put back in on_train_start",
        partial(train_lightning, loader="stateful", rng_callback="late"),
        MID,
        "our workaround, not documented",
    ),
    Setting(
        "lightning",
        "StatefulDataLoader, every 8 steps, nothing random but the order",
        partial(train_lightning, loader="stateful", is_random=False),
        MID,
        "the loader stores its order",
    ),
    Setting(
        "accelerate",
        f"save_state every {CHECKPOINT_STEPS} steps, use_seedable_sampler, skip_first_batches",
        train_accelerate,
        MID,
        READ_AHEAD_NOTE,
    ),
    Setting(
        "accelerate",
        "the same, use_stateful_dataloader",
        partial(train_accelerate, stateful=True),
        MID,
        READ_AHEAD_NOTE,
    ),
    Setting(
        "accelerate",
        "save_state every 8 steps, skip_first_batches, nothing random but the order",
        partial(train_accelerate, is_random=False),
        MID,
        "the order is a function of (seed, epoch)",
    ),
    Setting(
        "accelerate",
        "save_state at the end of an epoch, use_seedable_sampler",
        partial(train_accelerate, saved="epochs"),
        END,
        "random states are stored",
    ),
)


def run_logged(run: Callable[[Path, int], None], folder: Path, kill_step: int) -> None:
    """Run a training with its output in a file; this is the main function of a process."""
    torch.set_num_threads(1)
    with (folder / "output.txt").open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        run(folder, kill_step)


class SettingRunner:
    """Runs one setting several times, each in a new folder."""

    def __init__(self, setting: Setting, folder: Path) -> None:
        self.setting, self.folder, self.count = setting, folder, 0
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(PRELOADED)

    def make_folder(self) -> Path:
        self.count += 1
        folder = self.folder / str(self.count)
        folder.mkdir()
        return folder

    def start(self, folder: Path, kill_step: int = -1) -> Any:
        process = self.processes.Process(target=run_logged, args=(self.setting.run, folder, kill_step))
        process.start()
        return process

    def run_undisturbed(self) -> Path:
        folder = self.make_folder()
        self.run_to_end(folder)
        return folder

    def run_to_end(self, folder: Path) -> int:
        """Run to the end; remove checkpoints that cannot be loaded and return their number."""
        for n_unreadable in range(3):
            process = self.start(folder)
            process.join()
            if process.exitcode == 0:
                return n_unreadable
            if not list_checkpoints(folder):
                break
            remove_checkpoint(list_checkpoints(folder)[-1])
        raise SystemExit(f"{self.setting.method}: {(folder / 'output.txt').read_text()[-2000:]}")

    def run_killed(self, steps: int, delay: float) -> tuple[Path, int]:
        """Kill a run shortly after some steps and resume it to the end."""
        folder = self.make_folder()
        process = self.start(folder)
        while process.is_alive() and len(read_steps(folder)) < steps:
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
        process.join()
        return folder, self.run_to_end(folder)

    def run_stopped(self, kill_step: int) -> tuple[Path, int]:
        """Kill a run exactly at a step and resume it to the end."""
        folder = self.make_folder()
        self.start(folder, kill_step).join()
        assert not (folder / "model").exists()
        return folder, self.run_to_end(folder)


def remove_checkpoint(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint) if checkpoint.is_dir() else checkpoint.unlink()


def read_steps(folder: Path) -> list[dict[str, Any]]:
    lines = []
    for line in (folder / STEPS_FILE).read_text().splitlines() if (folder / STEPS_FILE).exists() else []:
        with contextlib.suppress(ValueError):  # the kill has truncated this line
            lines.append(json.loads(line))
    return lines


def count_missed_images(folder: Path) -> int | None:
    """Count the images that the steps of an epoch did not use; if a step was repeated, the last one counts."""
    last = {line["step"]: line for line in read_steps(folder)}.values()
    seen: dict[int, Counter[int]] = {epoch: Counter() for epoch in range(EPOCHS)}
    for line in last:
        seen[line["epoch"]].update(line["which"])
    return sum(N_IMAGES - len(counted) for counted in seen.values()) if any(line["which"] for line in last) else None


def compute_difference(first_folder: Path, second_folder: Path) -> float:
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (first_folder, second_folder))
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def compare_outcome(outcome: tuple[Path, int], reference: Path) -> RunComparison:
    folder, n_unreadable = outcome
    equal = hash_weights(folder) == hash_weights(reference)
    n_repeated = len(read_steps(folder)) - EPOCHS * STEPS
    difference = compute_difference(folder, reference)
    return RunComparison(equal, difference, n_repeated, count_missed_images(folder), n_unreadable)


def measure_setting(setting: Setting, kills: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    moments = [(rng.randrange(STEPS + 4, EPOCHS * STEPS - 4), rng.uniform(0, 0.03)) for _ in range(kills)]
    with tempfile.TemporaryDirectory() as folder:
        runner = SettingRunner(setting, Path(folder))
        reference, twice = runner.run_undisturbed(), runner.run_undisturbed()
        killed = [compare_outcome(runner.run_killed(*moment), reference) for moment in moments]
        stopped = {
            name: asdict(compare_outcome(runner.run_stopped(kill_step), reference))
            for name, kill_step in setting.stops.items()
        }
        fair = hash_weights(reference) == hash_weights(twice)
    row = {"library": setting.library, "version": version(setting.library), "method": setting.method}
    return row | {"same_twice": fair, "killed": [asdict(end) for end in killed], "stopped": stopped}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="the settings whose library or description has this word")
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    rows = read_rows(options.save)
    for setting in SETTINGS:
        if options.only in f"{setting.library} {setting.method}" and importlib.util.find_spec(setting.library):
            row = measure_setting(setting, options.kills, options.seed)
            rows[setting.library, setting.method] = row
            print(json.dumps(row), flush=True)
            write_rows(options.save, rows)


def read_rows(path: Path | None) -> dict[tuple[str, str], Any]:
    rows = json.loads(path.read_text())["rows"] if path and path.exists() else []
    return {(row["library"], row["method"]): row for row in rows}


def write_rows(path: Path | None, rows: dict[tuple[str, str], Any]) -> None:
    """Write the rows in the order of the settings."""
    notes = {(setting.library, setting.method): setting.note for setting in SETTINGS}
    versions = {name: version(name).split("+")[0] for name in ("torch", "torchdata") if importlib.util.find_spec(name)}
    if path:
        results = {"versions": versions, "rows": [rows[key] | {"note": notes[key]} for key in notes if key in rows]}
        path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
