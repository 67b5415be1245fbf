"""The fastest way to compute on this machine that still agrees: everything is tried, checked, and measured again.

Each engine works in a process of its own. The best of the first round are measured once more, taking turns, so that
what else the machine does meets all of them; what is kept has been checked exactly as it will run.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from resnetkit import files
from resnetkit.architecture.card import model_folder
from resnetkit.deliver.agreement import MAX_LOSS, Judge
from resnetkit.deliver.engine import KINDS, Choice, Logits
from resnetkit.deliver.optimized import (
    FILE,
    FOLDER,
    REPORT,
    Kept,
    Optimized,
    Purpose,
    Row,
    digest,
    here,
    weights_digest,
)
from resnetkit.deliver.optimized_page import optimized_page
from resnetkit.deliver.samples import Samples, made, taken
from resnetkit.deliver.trials import Trial, TrialError, trying
from resnetkit.errors import MachineError, UsageError, VerificationError, suggestion
from resnetkit.learn.device import answering, classes_of
from resnetkit.learn.pixels import Tell
from resnetkit.network.layers import Network
from resnetkit.text import to_json
from resnetkit.weights.store import load, nonfinite, save

_SHARE_OF_FINALS = 0.25
_ROUNDS = 5
_PATIENCE = 30.0  # seconds that any request gets, however little is left
_LOOKED_AT, _HOPELESS = 3, 0.3  # ways of an engine before it is given up, and the share of the best that is too little
_TIMED = 32  # pictures that speed is measured with

Watch = Callable[[Row], None]


def optimize(
    model: str | os.PathLike[str],
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    minutes: float = 5.0,
    max_loss: float = MAX_LOSS,
    engines: Sequence[str] = (),
    precisions: Sequence[str] = (),
    watch: Watch | None = None,
    tell: Tell | None = None,
) -> Optimized:
    """Try engines, precisions, batches and streams on this machine for so many ``minutes``, and keep the best.

    They are kept in the model folder, or in the new one ``out`` for other weights; ``data`` (with classes, or a folder
    of pictures alone) is what answers are compared on, and int8 needs it. With classes an engine may lose ``max_loss``
    points of accuracy. ``engines`` and ``precisions`` name those to try. ``watch`` hears of each
    `Row`, ``tell`` of pictures read.

    Raises `UsageError` for a model that holds no weights or is no folder, `VerificationError` for one with numbers that
    are not finite.
    """
    _require(engines, precisions, minutes)
    folder = _folder(model, out)
    network = load(folder)
    classes_of(network)
    _require_finite(network, folder)
    trained = network.card.origin != "not trained"
    samples = taken(data, network.card, trained, tell) if data is not None else made(network.card.preparation)
    judge = Judge(_logits(network, samples), samples.names, samples.truth, trained, max_loss)
    files.sweep(folder / FOLDER)
    name = secrets.token_hex(4)
    with files.new_folder(folder / FOLDER / name) as work:
        search = Search(folder, work, samples, judge, time.monotonic() + 60 * minutes, 60 * minutes, watch or _nobody)
        rows = [row for wanted in _wanted(engines, precisions) for row in search.tried(*wanted)]
        rows = search.again(rows)
        kept = [_kept(work, purpose, row) for purpose, row in chosen(rows).items()]
        _tidy(work, {one.row.choice.name for one in kept})
    found = Optimized(weights_digest(folder), here(), name, samples.told, tuple(rows), tuple(kept))
    files.write_text(folder / FOLDER / FILE, to_json(found))
    files.write_text(folder / FOLDER / REPORT, optimized_page(network.card.name, found))
    _remove_others(folder / FOLDER, name)
    return found


def _nobody(row: Row) -> None:
    """Where nobody watches."""


PRECISIONS = tuple(dict.fromkeys(precision for kind in KINDS.values() for precision in kind.precisions))


def _require(engines: Sequence[str], precisions: Sequence[str], minutes: float) -> None:
    for what, names, known in (("engine", engines, tuple(KINDS)), ("precision", precisions, PRECISIONS)):
        for name in names:
            if name not in known:
                fix = suggestion(name, known)
                raise UsageError(f"there is no {what} called {name!r}", where=f"--{what}s", fix=fix)
    if not 0 < minutes <= 24 * 60:
        raise UsageError(f"{minutes:g} minutes cannot be kept to", where="--minutes", fix="--minutes 5")


def _folder(model: str | os.PathLike[str], out: str | Path | None) -> Path:
    """The model folder that is optimized."""
    if out is not None:
        return save(load(model), out)
    folder = model_folder(model if isinstance(model, str) else Path(model))
    if folder is None:
        load(model)  # says what is wrong with it, if anything is
        what = "engines are kept in a model folder, and this is a file"
        raise UsageError(what, where=str(model), fix="--out NAME makes one")
    return folder


def _require_finite(network: Network, folder: Path) -> None:
    strange = nonfinite({key: value for key, value in network.state_dict().items() if value.is_floating_point()})
    if strange:
        told = [f"{key} ({count:,})" for key, count in strange.items()][:5]
        what = "there are NaN or infinite numbers in the weights, so no answer could be compared"
        raise VerificationError(what, where=[str(folder), *told], fix="train again, or take an earlier checkpoint")


def _logits(network: Network, samples: Samples) -> Logits:
    """In fp32, by the network itself."""
    with answering(network, torch.device("cpu")) as logits:
        chunks = range(0, len(samples.checked), _TIMED)
        return np.concatenate([logits(torch.from_numpy(samples.checked[i : i + _TIMED])).numpy() for i in chunks])


def _wanted(engines: Sequence[str], precisions: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """(engine, precision, device), in the order of the table."""
    gpu = torch.cuda.is_available()
    for name in engines or KINDS:
        kind = KINDS[name]
        for device in kind.devices if gpu else kind.devices[:1]:
            for precision in kind.precisions:
                if not precisions or precision in precisions:
                    yield name, precision, device


@dataclass
class Search:
    """What all trials have in common. ``until`` is when the time (``budget``, in seconds) is over."""

    folder: Path
    work: Path
    samples: Samples
    judge: Judge
    until: float
    budget: float
    watch: Watch
    best: float = 0.0

    def __post_init__(self) -> None:
        self.checked, self.ranges, self.timed = (
            self.work / name for name in ("checked.npy", "ranges.npy", "timed.npy")
        )
        np.save(self.checked, self.samples.checked)
        np.save(self.timed, self.samples.checked[:_TIMED])
        if self.samples.ranges is not None:
            np.save(self.ranges, self.samples.ranges)
        self.agreed: set[str] = set()

    @property
    def left(self) -> float:
        """Seconds of the first round."""
        return self.until - time.monotonic() - _SHARE_OF_FINALS * self.budget

    @property
    def patience(self) -> float:
        """How long a request may take."""
        return max(_PATIENCE, self.left)

    @property
    def slice(self) -> float:
        """Seconds of one measurement."""
        return min(2.0, max(0.2, self.budget / 150))

    def tried(self, name: str, precision: str, device: str) -> list[Row]:
        """A row for each way that an engine can cut its work; one row that says why, where it cannot be used."""
        choice = Choice(name, precision, device=device)
        why = self._why_not(choice)
        rows = [Row(choice, why=why)] if why else self._tried(choice)
        for row in rows:
            self.watch(row)
        return rows

    def _why_not(self, choice: Choice) -> str:
        if choice.precision == "int8-body" and f"{choice.engine}-int8" in self.agreed:
            return "not needed, as int8 agrees"
        if choice.precision.startswith("int8") and self.samples.ranges is None:
            return "int8 needs pictures to measure ranges with: --data DIR"
        if self.left <= 0:
            return "not tried, as the time was over (--minutes)"
        try:
            KINDS[choice.engine].require(making=True)
        except MachineError as error:
            return f"{error.what}: {error.fix}"
        return ""

    def _tried(self, choice: Choice) -> list[Row]:
        with trying(self.folder, self.work) as trial:
            try:
                trial.make(choice.engine, choice.precision, self._ranges(choice), self.patience)
            except TrialError as error:
                return [Row(choice, why=str(error))]
            rows = list(self._timed(trial, KINDS[choice.engine].ways(choice)))
            able = [row for row in rows if not row.why]
            return rows if not able else self._judged(trial, rows, fastest(able).choice)

    def _ranges(self, choice: Choice) -> Path | None:
        return self.ranges if choice.precision.startswith("int8") else None

    def _timed(self, trial: Trial, ways: Iterable[Choice]) -> Iterator[Row]:
        """Until one fails, the time is over, or it is clear that none of them can win."""
        for number, choice in enumerate(ways, 1):
            try:
                trial.open(choice, self.timed, self.patience)
                speed, milliseconds = trial.time(self.timed, self.slice, self.patience)
            except TrialError as error:
                yield Row(choice, why=str(error))
                return
            self.best = max(self.best, speed)
            yield Row(choice, speed, milliseconds)
            if self.left <= 0 or (number >= _LOOKED_AT and speed < _HOPELESS * self.best):
                return

    def _judged(self, trial: Trial, rows: Sequence[Row], choice: Choice) -> list[Row]:
        """The rows with the verdict on the engine, as it answers in one of these ways."""
        judged = self._verdict(trial, Row(choice))
        if not judged.why:
            self.agreed.add(choice.name)
        error, same, lost = judged.error, judged.same, judged.lost
        return [replace(row, error=error, same=same, lost=lost, why=row.why or judged.why) for row in rows]

    def _verdict(self, trial: Trial, row: Row) -> Row:
        try:
            trial.open(row.choice, self.timed, self.patience)
            found = self.judge.judge(trial.answers(self.checked, self.patience), row.choice.precision)
        except TrialError as error:
            return replace(row, why=str(error))
        return replace(row, error=found.error, same=found.same, lost=found.lost, why=found.why)

    def again(self, rows: Sequence[Row]) -> list[Row]:
        """The rows, of which the best have been measured again, side by side, and checked as they are."""
        with contextlib.ExitStack() as stack:
            finals = {row.choice: (stack.enter_context(trying(self.folder, self.work)), row) for row in finalists(rows)}
            measured = self._side_by_side([self._opened(trial, row) for trial, row in finals.values()])
        known = {row.choice: row for row in measured}
        return [known.get(row.choice, row) for row in rows]

    def _opened(self, trial: Trial, row: Row) -> tuple[Trial, Row]:
        try:
            start = trial.open(row.choice, self.timed, self.patience)
        except TrialError as error:
            return trial, replace(row, why=str(error))
        return trial, self._verdict(trial, replace(row, seconds_to_start=start))

    def _side_by_side(self, opened: Sequence[tuple[Trial, Row]]) -> list[Row]:
        able = [(trial, row) for trial, row in opened if not row.why]
        seconds = max(0.2, min(2 * self.slice, _SHARE_OF_FINALS * self.budget / (_ROUNDS * max(1, len(able)))))
        found: dict[Choice, list[tuple[float, float]]] = {row.choice: [] for _, row in able}
        failed: dict[Choice, str] = {}
        for _ in range(_ROUNDS):
            for trial, row in able:
                try:
                    found[row.choice].append(trial.time(self.timed, seconds, self.patience))
                except TrialError as error:
                    failed[row.choice] = str(error)
        return [_median(replace(row, why=row.why or failed.get(row.choice, "")), found) for _, row in opened]


def _median(row: Row, found: dict[Choice, list[tuple[float, float]]]) -> Row:
    if row.why or not found.get(row.choice):
        return row
    speeds, times = zip(*found[row.choice], strict=True)
    return replace(row, images_per_second=statistics.median(speeds), milliseconds=statistics.median(times))


def fastest(rows: Sequence[Row]) -> Row:
    """With the most images per second."""
    return max(rows, key=lambda row: row.images_per_second or 0.0)


def quickest(rows: Sequence[Row]) -> list[Row]:
    """Those that answer one picture with all cores, the soonest first."""
    alone = [row for row in rows if row.choice.batch == row.choice.streams == 1]
    return sorted(alone, key=lambda row: row.milliseconds or np.inf)


def finalists(rows: Sequence[Row]) -> list[Row]:
    """The three fastest, the two quickest, and the fastest of each engine, as they start at different times."""
    able = [row for row in rows if not row.why]
    ranked = sorted(able, key=lambda row: -(row.images_per_second or 0.0))
    of_each = {row.choice.engine: row for row in reversed(ranked)}
    picked = [*ranked[:3], *quickest(able)[:2], *of_each.values()]
    return list({row.choice: row for row in picked}.values())


def chosen(rows: Sequence[Row]) -> dict[Purpose, Row]:
    """What for, and the row that is best for it, of those that were checked as they are."""
    able = [row for row in rows if not row.why and row.seconds_to_start is not None]
    if not able:
        return {}
    soonest = min(able, key=lambda row: (row.seconds_to_start or 0.0) + (row.milliseconds or 0.0) / 1000)
    best: dict[Purpose, Row] = {"throughput": fastest(able), "start": soonest}
    return {"latency": quickest(able)[0], **best} if quickest(able) else best


def _kept(work: Path, purpose: Purpose, row: Row) -> Kept:
    artefact = work / row.choice.name
    names = sorted(path.name for path in artefact.iterdir() if path.is_file()) if artefact.is_dir() else []
    digests = tuple((name, digest(artefact / name)) for name in names)
    return Kept(purpose, row, KINDS[row.choice.engine].versions(), digests)


def _tidy(work: Path, kept: set[str]) -> None:
    """Only what is kept stays."""
    for path in work.iterdir():
        if path.is_dir() and path.name not in kept:
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()


def _remove_others(engines: Path, name: str) -> None:
    """What an earlier search has kept."""
    for path in engines.iterdir():
        if path.is_dir() and path.name != name:
            shutil.rmtree(path, ignore_errors=True)
