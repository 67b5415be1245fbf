"""Write rows into ``FILE.part``, which becomes FILE when it is complete; after a kill, a command can resume it.

``FILE.part.json`` records what the rows depend on. It is written before the first row and removed after the last.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from resnetkit import files
from resnetkit.errors import UsageError
from resnetkit.formatting import truncate
from resnetkit.prediction.formats import Prediction, RowFormat, escape_surrogates
from resnetkit.prediction.inputs import ImageInput
from resnetkit.serialization import from_data, parse_json, read_text, to_json

_SYNC_SECONDS = 5.0  # between two syncs of the rows to disk
_MAX_SHOWN = 40  # characters of a value in an error


@dataclass(frozen=True, slots=True)
class Provenance:
    """The settings that rows depend on besides their images."""

    model: str
    engine: str
    device: str
    top: int
    columns: tuple[str, ...]
    artifact: str = ""
    csv_formulas: bool = False
    format: Literal[1] = 1


@dataclass
class ExistingRows:
    """The complete rows of a partial file: their file names in order, how many have an error, and all bytes."""

    names: list[str] = field(default_factory=list)
    n_unreadable: int = 0
    n_bytes: int = 0


class ResumableWriter:
    """An output file in progress.

    Args:
        path: the file to write.
        resume: whether to continue partial output.

    Raises:
        UsageError: the file exists, or partial output exists and ``resume`` is False.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self.path, self.part_path = path, path.with_name(f"{path.name}.part")
        self.provenance_path = path.with_name(f"{path.name}.part.json")
        self._remove_hint = f"remove {self.part_path.name} and {self.provenance_path.name}"
        self._resume, self._is_complete = resume, False
        self._check_free()
        self.existing = ExistingRows()

    def _check_free(self) -> None:
        if os.path.lexists(self.path):
            raise files.file_exists_error(self.path)
        if self._has_rows() and not self._resume:
            raise self._build_error("an earlier command left partial output", "use --resume to continue it")

    def _build_error(self, what: str, fix: str = "") -> UsageError:
        fix = f"{fix}, or {self._remove_hint}" if fix else self._remove_hint
        return UsageError(what, where=str(self.part_path), fix=fix)

    def _has_rows(self) -> bool:
        """Return whether partial output exists; a command that was killed early leaves an empty file."""
        try:
            status = self.part_path.lstat()
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:  # rows would be written elsewhere as well
            what = "the partial output is a link, or not a regular file"
            raise UsageError(what, where=str(self.part_path), fix=f"remove {self.part_path.name}")
        return status.st_size > 0

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other commands from writing the file, for as long as the body runs.

        Raises:
            UsageError: another command is writing it, or has written it since this one started.
        """
        with files.lock_file(self.part_path) as is_locked:
            if not is_locked:
                what, fix = "another command is writing this file", "wait for it, or stop it"
                raise UsageError(what, where=str(self.part_path), fix=fix)
            try:
                self._check_free()
                yield
            except BaseException:
                self._remove_empty()
                raise

    def _remove_empty(self) -> None:
        """Remove partial output without rows; a complete file's name may belong to another command already."""
        with contextlib.suppress(OSError):
            if not (self._is_complete or (self.part_path.exists() and self.part_path.lstat().st_size)):
                for path in (self.provenance_path, self.part_path):
                    path.unlink(missing_ok=True)

    def read_provenance(self) -> Provenance | None:
        """Read what the existing rows depend on; None if there are no rows.

        Raises:
            UsageError: the record is missing or damaged.
        """
        if not self._has_rows():
            return None
        if not self.provenance_path.is_file():
            what = "the record of the partial output is missing"
            raise UsageError(what, where=str(self.provenance_path), fix=self._remove_hint)
        what = "the record of the partial output"
        try:
            return from_data(Provenance, parse_json(read_text(self.provenance_path, what), what), what)
        except UsageError as error:
            where = dict.fromkeys([str(self.provenance_path), *error.where])
            raise UsageError(error.what, where=list(where), fix=self._remove_hint) from None

    def check_existing(self, provenance: Provenance, row_format: RowFormat) -> None:
        """Read the existing rows, after a check that this command would write the same; record the provenance.

        Args:
            provenance: what this command's rows depend on.
            row_format: the format of the file.

        Raises:
            UsageError: the existing rows depend on something else, or are not from this command.
        """
        files.remove_temporary(self.provenance_path.parent, self.provenance_path.name)
        previous = self.read_provenance()
        if previous is None:
            files.write_text(self.provenance_path, to_json(provenance))
            return
        differences = _find_differences(previous, provenance)
        if differences:
            where = [f"{name}: {_shorten(old)} -> {_shorten(new)}" for name, (old, new) in differences.items()]
            hints = _list_option_hints(previous)
            fix = " ".join(hints[name] for name in differences if name in hints) or "use the options of that command"
            what = f"the rows in {self.part_path} were made with other settings"
            raise UsageError(what, where=where, fix=f"{fix}, or {self._remove_hint}")
        self.existing = self._read_existing(row_format)

    def _read_existing(self, row_format: RowFormat) -> ExistingRows:
        existing, prefix = ExistingRows(), row_format.prefix.encode()
        with self.part_path.open("rb") as file:
            first_bytes = file.read(len(prefix))
            is_foreign = not prefix.startswith(first_bytes)
            if first_bytes == prefix:
                existing.n_bytes = file.seek(len(prefix) if row_format.header else 0)
                for size, name, is_unreadable in row_format.read_rows(file):
                    existing.names.append(name)
                    existing.n_bytes += size
                    existing.n_unreadable += is_unreadable
                file.seek(0)
                is_foreign = not existing.n_bytes and file.readline().endswith(b"\n")
        if is_foreign:
            raise self._build_error("the partial output is not from this command")
        return existing

    def select_remaining(self, inputs: Sequence[ImageInput], batch_size: int) -> tuple[list[int], int]:
        """Return the indices of the inputs to compute, and how many of the first of them have a row already.

        If the inputs are the same as before, batches start at the same inputs, so that each image is computed with the
        same others. Otherwise each existing row removes one input of its name.

        Args:
            inputs: all inputs of the command.
            batch_size: the number of inputs of a batch.
        """
        names, input_names = self.existing.names, [escape_surrogates(item.name) for item in inputs]
        if input_names[: len(names)] == names:
            n_repeated = len(names) % batch_size if len(names) < len(input_names) else 0
            return list(range(len(names) - n_repeated, len(input_names))), n_repeated
        counts, remaining = Counter(names), []
        for i, name in enumerate(input_names):
            counts[name] -= 1
            if counts[name] < 0:
                remaining.append(i)
        return remaining, 0

    def write_all(self, predictions: Iterable[Prediction], row_format: RowFormat) -> None:
        """Write the rows after the existing ones, then rename the file.

        Args:
            predictions: the new rows.
            row_format: the format of the file.

        Raises:
            UsageError: another program created the file meanwhile.
            MachineError: the disk is full or fails.
        """
        log, last_sync = files.LogFile(self.part_path, self.existing.n_bytes), time.monotonic()
        if row_format.header and not log.size:
            log.add(row_format.header)
        for prediction in predictions:
            log.add(escape_surrogates(row_format.format_line(prediction)))
            if time.monotonic() - last_sync > _SYNC_SECONDS:
                log.sync()
                last_sync = time.monotonic()
        log.sync()
        self._is_complete = True
        if not files.publish(self.part_path, self.path, self.provenance_path):
            what, where = files.file_exists_error(self.path).what, [str(self.path), f"all rows are in {self.part_path}"]
            raise UsageError(what, where=where, fix="move it away, then repeat the command with --resume")


def _list_option_hints(provenance: Provenance) -> dict[str, str]:
    """Return the options that give each value of a provenance."""
    name, _, precision = provenance.engine.partition("-")
    device = f"--device {provenance.device}"
    return {
        "model": "use the model that made them",
        "engine": f"--engine torch --precision {precision.partition('-')[0]} {device}"
        if name == "torch"
        else f"--engine {provenance.engine}",
        "device": device,
        "top": f"--top {provenance.top}",
    }


def _find_differences(previous: Provenance, current: Provenance) -> dict[str, tuple[Any, Any]]:
    """Return (previous, current) of each difference, without those that another difference implies."""
    old_values, new_values = asdict(previous), asdict(current)
    differences = {name: (old, new_values[name]) for name, old in old_values.items() if old != new_values[name]}
    for changed, implied in (("model", set(differences)), ("top", {"columns"}), ("engine", {"artifact", "device"})):
        if changed in differences:
            differences = {name: pair for name, pair in differences.items() if name == changed or name not in implied}
    return differences


def _shorten(value: Any) -> str:
    return truncate(", ".join(value) if isinstance(value, tuple) else str(value), _MAX_SHOWN)
