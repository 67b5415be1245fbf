"""Everything that resnetkit raises on purpose.

    ResnetkitError               what happened, where, what to do     exit 1
    ├── UsageError               an option, or a file a user writes   exit 2
    │   └── FaultsError          several faults, all in one error
    │       ├── TextError        ... in a TOML or JSON text
    │       └── SpecError        ... in a network that cannot be
    ├── DataError                pictures and labels                  exit 3
    │   └── PictureError         ... one file that is no picture
    ├── WeightsError             files that came with weights         exit 4
    ├── MachineError            the machine, or a missing extra      exit 5
    ├── VerificationError        a promised identity did not hold     exit 6
    └── ElsewhereError           another process of the run failed    its own

A bare ``ResnetkitError`` is a bug of ours: everything a user can cause has a class below it.

This module imports no torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class ResnetkitError(Exception):
    """What went wrong, where, and what to do about it; ``str()`` gives the lines that are printed."""

    exit_code = 1

    def __init__(self, what: str, *, where: str | Sequence[str] = (), fix: str = "") -> None:
        self.what = what
        self.where = (where,) if isinstance(where, str) else tuple(where)
        self.fix = fix
        super().__init__(self.what)

    def __str__(self) -> str:
        lines = [f"error: {self.what}"]
        lines += [f"{'where:' if i == 0 else '      '} {location}" for i, location in enumerate(self.where)]
        lines += [f"fix: {self.fix}"] * bool(self.fix)
        return "\n".join(line.replace("\n", "\\n") for line in lines)  # names of files may hold any line

    def __reduce__(self) -> tuple[object, ...]:  # keyword arguments survive pickling between processes
        return (_rebuild, (type(self), self.__dict__))


def _rebuild(error_class: type[ResnetkitError], state: dict[str, object]) -> ResnetkitError:
    error = error_class.__new__(error_class)
    error.__dict__.update(state)
    return error


class UsageError(ResnetkitError):
    """An option, a name, or a file that the user writes."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: its path, what came, and what is allowed."""

    path: str
    value: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.path}: came {self.value}; allowed: {self.allowed}"


class FaultsError(UsageError):
    """Every fault at once, so that one correction is enough."""

    def __init__(self, what: str, faults: Sequence[Fault], *, fix: str = "") -> None:
        self.faults = tuple(faults)
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        super().__init__(f"{what}: {count}", where=[str(fault) for fault in self.faults], fix=fix)


class TextError(FaultsError):
    """A TOML or JSON text that does not say what it should."""


class SpecError(FaultsError):
    """A network that cannot be."""


class DataError(ResnetkitError):
    """Pictures, labels, folders of pictures."""

    exit_code = 3


class ImageError(DataError):
    """One file that cannot be read as a picture; ``what`` is the reason, in a few words."""


class WeightsError(ResnetkitError):
    """A file that came with weights."""

    exit_code = 4


class MachineError(ResnetkitError):
    """The machine: a missing extra, memory, disk, a device."""

    exit_code = 5


class VerificationError(ResnetkitError):
    """An identity that was promised did not hold."""

    exit_code = 6


class PeerProcessError(ResnetkitError):
    """Another process of the same run failed and says why; ``what`` is empty where nothing need be told."""

    def __init__(self, what: str, *, exit_code: int) -> None:
        super().__init__(what)
        self.exit_code = exit_code


_DIGIT_LOOKALIKES = str.maketrans("oOlI", "0011")  # letters that are taken for digits


def find_closest(query: str, candidates: Iterable[str], n: int = 1) -> tuple[str, ...]:
    """The known words most like ``word``, best first; none if nothing is near."""
    normalized = {name.translate(_DIGIT_LOOKALIKES): name for name in candidates}
    matches = difflib.get_close_matches(query[:200].translate(_DIGIT_LOOKALIKES), list(normalized), n=n, cutoff=0.6)
    return tuple(normalized[name] for name in matches)


def suggest_fix(query: str, candidates: Sequence[str], default: str = "") -> str:
    """``did you mean X?``, or else ``otherwise``, or else all that is known."""
    matches = find_closest(query, candidates)
    return f"did you mean {matches[0]}?" if matches else default or f"one of {', '.join(candidates)}"


def missing_extra_error(package: str, extra: str) -> MachineError:
    """The one line for a feature whose extra is not installed."""
    return MachineError(f"{package} is not installed", fix=f"pip install 'resnetkit[{extra}]'")


class ResnetkitInterrupt(KeyboardInterrupt):
    """Work that was asked to stop did. ``run`` is the folder of a run that can be resumed, where there is one.

    ``number`` is that of the signal where all processes of a run have agreed on it, 0 where one stopped at once.
    """

    def __init__(self, message: str = "", run: str = "", signal_number: int = 0) -> None:
        self.run, self.signal_number = run, signal_number
        super().__init__(message)


class ResnetkitWarning(UserWarning):
    """Something to know that stops nothing; the command line shows it as one line."""
