"""The fastest way to compute on this machine that still agrees: everything is tried, checked, and measured again.

Each engine works in a process of its own. The best of the first round are measured once more, taking turns, so that
what else the machine does meets all of them; what is kept has been checked exactly as it will run.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from resnetkit import files
from resnetkit.architecture.card import CARD_FILE, model_folder
from resnetkit.data.loader import Tell
from resnetkit.engines.base import KINDS, Choice, Logits
from resnetkit.engines.calibration import Samples, made, taken
from resnetkit.engines.saved import (
    FILE,
    FOLDER,
    REPORT,
    Kept,
    Optimized,
    Purpose,
    Row,
    here,
    plain,
    weights_digest,
)
from resnetkit.errors import MachineError, UsageError, VerificationError, suggestion
from resnetkit.files import digest
from resnetkit.network.layers import Network
from resnetkit.optimization.accuracy_check import MAX_LOSS, Judge
from resnetkit.optimization.client import Trial, TrialError, trying
from resnetkit.optimization.report import name_of, optimized_page
from resnetkit.runtime.device import answering, classes_of
from resnetkit.serialization import to_json
from resnetkit.weights.load import load, nonfinite, save

_SHARE_OF_FINALS, _SHARE_OF_REFERENCE = 0.3, 0.1
_LEAST_SHARE = 0.25  # of what is left of the first round: few need all of theirs, and leave the rest to the others
_ROUNDS = 5
_PATIENCE = 30.0  # seconds that any request gets, however little is left
_LOOKED_AT, _HOPELESS = 3, 0.3  # ways of an engine before it is given up, and the share of the best that is too little
_SEEN = 2  # ways of an engine, one for a single picture and one for many, though its share is over
_NEAR, _MOST_NEAR = 0.75, 6  # of the fastest: what the machine did meanwhile may have cost that much; of how many
_AS_FAST = 0.9  # of the fastest, by which medians of a few seconds are uncertain
_TIMED = 32  # pictures that speed is measured with, and at once in the reference
_ENOUGH = 100  # pictures that fp32 is compared on: it is far from every limit, and the slowest
_SHARE_OF_BF16, _SHARE_OF_INT8 = 0.02, 0.1  # of the time, to be compared; of bf16 the logits are, as well
_SLOWER = 3  # times as slow as it was measured, and nobody waits for it

Watch = Callable[[Row], None]


def optimize(
    model: str | os.PathLike[str] | Network,
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    minutes: float = 5.0,
    max_loss: float = MAX_LOSS,
    engines: str | Sequence[str] = (),
    precisions: str | Sequence[str] = (),
    watch: Watch | None = None,
    tell: Tell | None = None,
) -> Optimized:
    """Try engines, precisions, batches and streams on this machine for about so many ``minutes``, and keep the best.

    They are kept in the model folder, or in the new one ``out`` for other weights; ``data`` (with classes, or a folder
    of pictures alone) is what answers are compared on, and int8 needs it. With classes an engine may lose ``max_loss``
    points of accuracy. ``engines`` and ``precisions`` name those to try. ``watch`` hears of each `Row`, ``tell`` of
    pictures read (done, all).

    Raises `UsageError` for a model that holds no weights or is no folder, and while another search works in it;
    `VerificationError` for weights that are not finite, and where nothing works and agrees: what was kept before stays.
    """
    _require(minutes, max_loss)
    choices = _wanted(_names(engines, "engine", tuple(KINDS)), _names(precisions, "precision", PRECISIONS), data)
    folder = _folder(model, out)
    with files.held(folder / CARD_FILE) as mine:
        if not mine:
            what = "another optimize is at work on this model"
            raise UsageError(what, where=str(folder), fix="wait for it, or stop it")
        _require_sound(folder)
        weights, name = weights_digest(folder), secrets.token_hex(4)
        with _own(folder / FOLDER), files.new_folder(folder / FOLDER / name) as work:
            clock, heard = Clock(60 * minutes), watch or _nobody
            search, checked = _begun(folder, work, clock, data=data, max_loss=max_loss, watch=heard, tell=tell)
            tried = [search.tried(choice, choices[i:]) for i, choice in enumerate(choices, 1)]
            rows = search.again([row for of_one in tried for row in of_one])
            kept = [_kept(work, name, purpose, row) for purpose, row in chosen(rows).items()]
            _require_kept(folder, kept, rows, weights)
            _tidy(work, {one.row.choice.name for one in kept})
        found = Optimized(weights, here(), checked, tuple(rows), tuple(kept))
        files.write_text(folder / FOLDER / FILE, to_json(found))
        files.write_text(folder / FOLDER / REPORT, optimized_page(name_of(folder), found))
        _remove_others(folder / FOLDER, name)
    return found


def _nobody(row: Row) -> None:
    """Where nobody watches."""


PRECISIONS = tuple(dict.fromkeys(precision for kind in KINDS.values() for precision in kind.precisions))


def _require(minutes: float, max_loss: float) -> None:
    if not 0 < minutes <= 24 * 60:
        raise UsageError(f"{minutes:g} minutes cannot be kept to", where="--minutes", fix="--minutes 5")
    if not 0 <= max_loss <= 100:
        raise UsageError(f"{max_loss:g} points cannot be lost", where="--max-loss", fix="--max-loss 0.2")


def _names(told: str | Sequence[str], what: str, known: Sequence[str]) -> tuple[str, ...]:
    """Each name once; raises `UsageError` for one that is not known."""
    names = tuple(dict.fromkeys((told,) if isinstance(told, str) else told))
    for name in names:
        if name not in known:
            fix = f"divide them by spaces: {name.replace(',', ' ')}" if "," in name else suggestion(name, known)
            raise UsageError(f"there is no {what} called {name!r}", where=f"--{what}s", fix=fix)
    return names


def _wanted(engines: Sequence[str], precisions: Sequence[str], data: str | Path | None) -> list[Choice]:
    """A choice for each engine, device and precision, in the order of the table.

    Raises `UsageError` or `MachineError` where, of what was named, nothing can be tried.
    """
    gpu, kinds = torch.cuda.is_available(), {name: KINDS[name] for name in KINDS if not engines or name in engines}
    choices = [
        Choice(name, precision, device=device)
        for name, kind in kinds.items()
        for device in (kind.devices if gpu else kind.devices[:1])
        for precision in kind.precisions
        if not precisions or precision in precisions
    ]
    if not choices:
        able = "; ".join(f"{name}: {', '.join(kind.precisions)}" for name, kind in kinds.items())
        what = f"no engine computes in {' or '.join(precisions)}"
        raise UsageError(what, where=["--precisions", able], fix="another precision, or other --engines")
    if data is None and all(choice.precision.startswith("int8") for choice in choices):
        raise UsageError(_NO_RANGES, where="--precisions", fix="--data DIR")
    for kind in kinds.values():
        with contextlib.suppress(MachineError):
            kind.require(making=True)
            return choices
    next(iter(kinds.values())).require(making=True)
    return choices


_NO_RANGES = "int8 needs pictures to measure ranges with"


@contextlib.contextmanager
def _own(engines: Path) -> Iterator[None]:
    """The folder in which engines are kept; one that is empty afterwards is removed.

    Raises `UsageError` for a link or a file: what stands behind it is not this model's, and would be removed.
    """
    if engines.is_symlink():
        what = "engines cannot be kept here, as a link stands there"
        raise UsageError(what, where=str(engines), fix="remove the link; a new folder takes its place")
    for path, right in ((engines, engines.is_dir()), (engines / FILE, (engines / FILE).is_file())):
        if os.path.lexists(path) and not right:
            raise UsageError(
                "engines cannot be kept here, as something else stands there", where=str(path), fix="remove it"
            )
    if engines.is_dir():
        files.sweep(engines)
    try:
        yield
    finally:
        files.remove_empty([engines])


def _folder(model: str | os.PathLike[str] | Network, out: str | Path | None) -> Path:
    """The model folder that is optimized."""
    if out is not None and Path(out).exists():
        fix = f"resnetkit optimize {out}, if that is the model; or another name"
        raise UsageError("this folder exists already", where=str(out), fix=fix)
    if out is not None:
        return save(model if isinstance(model, Network) else load(model), out)
    folder = None if isinstance(model, Network) else model_folder(model if isinstance(model, str) else Path(model))
    if folder is None:
        load(model)  # says what is wrong with it, if anything is
        where = type(model).__name__ if isinstance(model, Network) else str(model)
        raise UsageError(
            "engines are kept in a model folder, and this is none", where=where, fix="--out NAME makes one"
        )
    return folder


def _require_sound(folder: Path) -> None:
    """Raise for a network whose answers could not be compared."""
    network = load(folder)
    classes_of(network)
    strange = nonfinite({key: value for key, value in network.state_dict().items() if value.is_floating_point()})
    if strange:
        told = [f"{key} ({count:,})" for key, count in strange.items()][:5]
        what = "there are NaN or infinite numbers in the weights, so no answer could be compared"
        raise VerificationError(what, where=[str(folder), *told], fix="train again, or take an earlier checkpoint")


def _require_kept(folder: Path, kept: Sequence[Kept], rows: Sequence[Row], weights: str) -> None:
    """Raise where there is nothing to keep, or what was measured is not what stands there."""
    if not kept:
        reasons = {row.choice.name: f"{row.choice.name}: {row.why}" for row in rows if row.why}
        what = "no engine works here and agrees with fp32; what was kept before stays"
        raise VerificationError(what, where=list(reasons.values()), fix="more --minutes, other --data, or more engines")
    if weights_digest(folder) != weights:
        what = "the weights changed while engines were tried"
        raise UsageError(what, where=str(folder), fix="optimize again when they stay as they are")


# -------------------------------------------------------------------------------------------------------- what is given


@dataclass(frozen=True)
class Clock:
    """The time that a search may take, in seconds."""

    budget: float
    begun: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Of the first round."""
        return self.whole - _SHARE_OF_FINALS * self.budget

    @property
    def whole(self) -> float:
        """Of all, what is still left."""
        return self.begun + self.budget - time.monotonic()

    def share(self, others: int) -> float:
        """Of the first round, for one while so many others wait; what it leaves is theirs."""
        return self.left * max(_LEAST_SHARE, 1 / (1 + others))

    @property
    def patience(self) -> float:
        """For one request: none may take all that is left."""
        return max(_PATIENCE, self.left / 2)

    @property
    def slice(self) -> float:
        """Of one measurement."""
        return min(1.0, max(0.2, self.budget / 300))


def _begun(
    folder: Path,
    work: Path,
    clock: Clock,
    *,
    data: str | Path | None,
    max_loss: float,
    watch: Watch,
    tell: Tell | None,
) -> tuple[Search, str]:
    """A search, and what its pictures are. Neither network nor pictures stay in this process."""
    network = load(folder)
    trained = network.card.trained
    samples = made(network.card.preparation) if data is None else taken(data, network.card, trained, tell)
    logits = _logits(network, samples, time.monotonic() + _SHARE_OF_REFERENCE * clock.budget)
    n = len(logits)
    np.save(work / _CHECKED, samples.checked[:n])
    np.save(work / _TIMED_FILE, samples.checked[:_TIMED])
    if samples.ranges is not None:
        np.save(work / _RANGES, samples.ranges)
    truth = None if samples.truth is None else samples.truth[:n]
    judge = Judge(logits, samples.names[:n], truth, trained and data is not None, max_loss)
    fewer = "; perhaps fewer of them in fp32 and bf16" * (n > _ENOUGH)
    return Search(folder, work, judge, clock, watch), f"{samples.told(n)}{fewer}"


_CHECKED, _TIMED_FILE, _RANGES = "checked.npy", "timed.npy", "ranges.npy"


def _logits(network: Network, samples: Samples, until: float) -> Logits:
    """In fp32, by the network itself, of as many pictures as there is time for."""
    found = []
    with answering(network, torch.device("cpu")) as logits:
        for start in range(0, len(samples.checked), _TIMED):
            found.append(logits(torch.from_numpy(samples.checked[start : start + _TIMED])).numpy())
            if time.monotonic() > until:
                break
    return np.concatenate(found)


# ----------------------------------------------------------------------------------------------------------- the search


@dataclass
class Search:
    """What all trials have in common; pictures lie in ``work``.

    ``best`` is the most images per second so far, ``agreed`` has the names of choices that agree with fp32.
    """

    folder: Path
    work: Path
    judge: Judge
    clock: Clock
    watch: Watch
    best: float = 0.0
    agreed: set[str] = field(default_factory=set)

    def tried(self, choice: Choice, others: Sequence[Choice] = ()) -> list[Row]:
        """A row for each way that an engine can cut its work; one row that says why, where it cannot be used.

        The ``others`` are those that wait for their turn.
        """
        why = self._why_not(choice)
        until = time.monotonic() + self.clock.share(sum(not self._why_not(other) for other in others))
        try:
            rows = [Row(choice, why=why)] if why else self._tried(choice, until)
        except TrialError as error:
            rows = [Row(choice, why=str(error))]
        if rows[0].why:  # those that were measured and agree have been heard of
            self.watch(rows[0])
        return rows

    def _why_not(self, choice: Choice) -> str:
        if choice.precision == "int8-body" and replace(choice, precision="int8").name in self.agreed:
            return "not needed, as int8 agrees"
        if choice.precision.startswith("int8") and not self._ranges.exists():
            return f"{_NO_RANGES}: --data DIR"
        try:
            KINDS[choice.engine].require(making=True)
        except MachineError as error:
            return f"{error.what}: {error.fix}"
        return "not tried, as the time was over (--minutes)" * (self.clock.left <= 0)

    @property
    def _ranges(self) -> Path:
        return self.work / _RANGES

    @property
    def _timed_pixels(self) -> Path:
        return self.work / _TIMED_FILE

    def _tried(self, choice: Choice, until: float) -> list[Row]:
        with trying(self.folder, self.work) as trial:
            trial.make(choice, self._ranges if choice.precision.startswith("int8") else None, self.clock.patience)
            return list(self._looked_at(trial, KINDS[choice.engine].ways(choice), until))

    def _looked_at(self, trial: Trial, ways: Iterable[Choice], until: float) -> Iterator[Row]:
        """As long as its time lasts, until one fails or it is clear that none of them can win.

        The first is compared with fp32 at once: no time goes into ways of an engine that does not agree.
        """
        judged: Row | None = None
        for number, choice in enumerate(ways, 1):
            row = self._timed(trial, choice)
            if not row.why:
                judged = judged or self._verdict(trial, row)
                error, same, lost, why = judged.error, judged.same, judged.lost, judged.why
                row = replace(row, error=error, same=same, lost=lost, why=why)
            yield row
            if row.why:
                return
            self.agreed.add(choice.name)
            self.best = max(self.best, row.images_per_second or 0.0)
            self.watch(row)
            hopeless = number >= _LOOKED_AT and (row.images_per_second or 0.0) < _HOPELESS * self.best
            if hopeless or self.clock.left <= 0 or (number >= _SEEN and time.monotonic() > until):
                return

    def _timed(self, trial: Trial, choice: Choice) -> Row:
        try:
            trial.open(choice, self._timed_pixels, self.clock.patience)
            return Row(choice, *trial.time(self._timed_pixels, self.clock.slice, self.clock.patience))
        except TrialError as error:
            return Row(choice, why=str(error))

    def _verdict(self, trial: Trial, row: Row) -> Row:
        """Of an engine that is open and was measured."""
        pace = row.images_per_second or 1.0
        count = self._compared(row.choice.precision, pace)
        judge = self.judge.first(count)
        try:
            answers = trial.answers(self.work / _CHECKED, count, max(self.clock.patience, _SLOWER * count / pace))
        except TrialError as error:
            return replace(row, why=str(error))
        found = judge.judge(answers, row.choice.precision)
        return replace(row, error=found.error, same=found.same, lost=found.lost, why=found.why)

    def _compared(self, precision: str, pace: float) -> int:
        """How many pictures."""
        share = {"fp32": 0.0, "bf16": _SHARE_OF_BF16}.get(precision, _SHARE_OF_INT8)
        return min(len(self.judge.names), max(_ENOUGH, int(share * self.clock.budget * pace)))

    def again(self, rows: Sequence[Row]) -> list[Row]:
        """The rows, of which the best have been opened anew, checked as they are, and measured side by side."""
        with contextlib.ExitStack() as stack:
            opened = [self._opened(stack, row) for row in finalists(rows)]
            measured = self._side_by_side([(trial, row) for trial, row in opened if trial and not row.why])
        known = {row.choice: row for row in [*(row for _, row in opened), *measured]}
        return [known.get(row.choice, row) for row in rows]

    def _opened(self, stack: contextlib.ExitStack, row: Row) -> tuple[Trial | None, Row]:
        """One at a time, so that each starts alone."""
        try:
            trial = stack.enter_context(trying(self.folder, self.work))
            start = trial.open(row.choice, self._timed_pixels, self.clock.patience)
        except TrialError as error:
            return None, replace(row, why=str(error))
        judged = self._verdict(trial, replace(row, seconds_to_start=start))
        self.watch(judged)
        return trial, judged

    def _side_by_side(self, opened: Sequence[tuple[Trial, Row]]) -> list[Row]:
        seconds = max(0.2, min(2 * self.clock.slice, self.clock.whole / (_ROUNDS * max(1, len(opened)))))
        found: dict[Choice, list[tuple[float, float]]] = {row.choice: [] for _, row in opened}
        failed: dict[Choice, str] = {}
        for number in range(_ROUNDS):
            for i in range(len(opened)):
                trial, row = opened[(i + number) % len(opened)]
                try:
                    if row.choice not in failed:
                        found[row.choice].append(trial.time(self._timed_pixels, seconds, self.clock.patience))
                except TrialError as error:
                    failed[row.choice] = str(error)
        return [_median(replace(row, why=failed.get(row.choice, "")), found[row.choice]) for _, row in opened]


def _median(row: Row, found: Sequence[tuple[float, float]]) -> Row:
    if row.why or not found:
        return row
    speeds, times = zip(*found, strict=True)
    return replace(row, images_per_second=statistics.median(speeds), milliseconds=statistics.median(times))


# ------------------------------------------------------------------------------------------------------- what is chosen


def fastest(rows: Sequence[Row]) -> Row:
    """With the most images per second. Of those that are about as fast, one with more streams: a call on all cores
    waits for each that decodes pictures meanwhile.
    """
    most = max(row.images_per_second or 0.0 for row in rows)
    near = [row for row in rows if (row.images_per_second or 0.0) >= _AS_FAST * most]
    return max(near, key=lambda row: (row.choice.streams, row.images_per_second or 0.0))


def quickest(rows: Sequence[Row]) -> list[Row]:
    """Those that answer one picture with all cores, the soonest first."""
    alone = [row for row in rows if row.choice.batch == row.choice.streams == 1]
    return sorted(alone, key=lambda row: row.milliseconds or np.inf)


def finalists(rows: Sequence[Row]) -> list[Row]:
    """Those nearly as fast as the fastest, the two quickest, the fastest of each engine, as they start at different
    times, and what all of them are compared with.
    """
    able = [row for row in rows if not row.why]
    ranked = sorted(able, key=lambda row: -(row.images_per_second or 0.0))
    near = [row for row in ranked if (row.images_per_second or 0.0) >= _NEAR * (ranked[0].images_per_second or 0.0)]
    of_each = {row.choice.engine: row for row in reversed(ranked)}
    compared = plain(able)
    picked = [*near[:_MOST_NEAR], *quickest(able)[:2], *of_each.values(), *([compared] if compared else [])]
    return list({row.choice: row for row in picked}.values())


def chosen(rows: Sequence[Row]) -> dict[Purpose, Row]:
    """What for, and the row that is best for it, of those that were checked as they are."""
    able = [row for row in rows if not row.why and row.seconds_to_start is not None]
    if not able:
        return {}
    soonest = min(able, key=lambda row: row.seconds_to_start or 0.0)
    best: dict[Purpose, Row] = {"throughput": fastest(able), "start": soonest}
    return {"latency": quickest(able)[0], **best} if quickest(able) else best


def _kept(work: Path, name: str, purpose: Purpose, row: Row) -> Kept:
    artefact = work / row.choice.name
    made = sorted(path for path in artefact.iterdir() if path.is_file()) if artefact.is_dir() else []
    digests = tuple((path.name, digest(path)) for path in made)
    return Kept(purpose, row, KINDS[row.choice.engine].versions(), name, digests)


def _tidy(work: Path, kept: set[str]) -> None:
    """Only what is kept stays."""
    for path in work.iterdir():
        if path.is_dir() and path.name not in kept:
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()


_MADE = re.compile("[0-9a-f]{8}")


def _remove_others(engines: Path, name: str) -> None:
    """What earlier searches have kept."""
    for path in engines.iterdir():
        if _MADE.fullmatch(path.name) and path.name != name and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
