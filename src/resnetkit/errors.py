"""The errors and warnings that resnetkit raises on purpose.

    ResnetkitError               what is wrong, where, and the fix    exit 1
    ├── UsageError               an option, or a file the user wrote  exit 2
    │   └── FaultsError          several faults in one error
    │       ├── TextError        ... in a TOML or JSON text
    │       └── SpecError        ... in a network that cannot be built
    ├── DataError                images and labels                    exit 3
    │   └── ImageError           ... one unreadable image
    ├── WeightsError             a file that belongs to weights       exit 4
    ├── MachineError             the machine, or a missing extra      exit 5
    ├── VerificationError        a guarantee does not hold            exit 6
    └── PeerProcessError         another process of the run failed    the code of that process

A bare ``ResnetkitError`` is a bug in resnetkit: every mistake that a user can make has a class below it.

This module imports no torch.
"""

from __future__ import annotations

import copyreg
import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class ResnetkitError(Exception):
    """An error with its parts; ``str()`` gives the lines that the command line prints.

    Args:
        what: the problem; its subject is the user's object.
        where: the file, path or option, or several of them.
        fix: the next thing to do, if resnetkit knows it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | Sequence[str] = (), fix: str = "") -> None:
        self.what = what
        self.where = (where,) if isinstance(where, str) else tuple(where)
        self.fix = fix
        super().__init__(self.what)

    def __str__(self) -> str:
        lines = [f"error: {self.what}"]
        lines += [f"{'where:' if i == 0 else '      '} {location}" for i, location in enumerate(self.where)]
        if self.fix:
            lines.append(f"fix: {self.fix}")
        return "\n".join(line.replace("\n", "\\n") for line in lines)  # a file name may contain newlines

    def __reduce__(self) -> tuple[object, ...]:  # so that keyword arguments survive pickling between processes
        return copyreg.__newobj__, (type(self),), self.__dict__  # type: ignore[attr-defined]


class UsageError(ResnetkitError):
    """A mistake in an option, a name, or a file that the user wrote."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: its path, the value, and the allowed values.

    If ``value`` is empty, ``allowed`` is a whole sentence about the path.
    """

    path: str
    value: str
    allowed: str

    def __str__(self) -> str:
        description = f"got {self.value}; allowed: {self.allowed}" if self.value else self.allowed
        return f"{self.path}: {description}"


class FaultsError(UsageError):
    """All faults of one file or spec together, so that one correction is enough."""

    def __init__(self, what: str, faults: Sequence[Fault], *, fix: str = "") -> None:
        self.faults = tuple(faults)
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        super().__init__(f"{what}: {count}", where=[str(fault) for fault in self.faults], fix=fix)


class TextError(FaultsError):
    """A TOML or JSON text with wrong syntax, keys or values."""


class SpecError(FaultsError):
    """A spec from which no network can be built."""


class DataError(ResnetkitError):
    """A problem with images, labels or folders of images."""

    exit_code = 3


class ImageError(DataError):
    """One unreadable image; ``what`` is the reason in a few words."""


class WeightsError(ResnetkitError):
    """A problem with a file of weights, or with a file that belongs to it."""

    exit_code = 4


class MachineError(ResnetkitError):
    """A problem of the machine: a missing extra, memory, disk or device."""

    exit_code = 5


class VerificationError(ResnetkitError):
    """A guaranteed identity that does not hold."""

    exit_code = 6


class PeerProcessError(ResnetkitError):
    """A failure of another process of the same run; ``what`` is empty if there is nothing to print."""

    def __init__(self, what: str, *, exit_code: int) -> None:
        super().__init__(what)
        self.exit_code = exit_code


_DIGIT_LOOKALIKES = str.maketrans("oOlI", "0011")  # letters that people type for digits


def find_closest(
    query: str, candidates: Iterable[str], n: int = 1, *, cutoff: float = 0.6, same_numbers: bool = False
) -> tuple[str, ...]:
    """Return the candidates most like ``query``, best first; none if nothing is similar.

    Args:
        query: the word that the user wrote.
        candidates: the known words.
        n: return at most this many.
        cutoff: the smallest similarity, from 0 to 1.
        same_numbers: skip candidates with other numbers: ``resnet56`` is not like ``resnet50``.
    """
    if same_numbers:
        candidates = [name for name in candidates if _find_numbers(name) == _find_numbers(query)]
    word = query[:200].translate(_DIGIT_LOOKALIKES)
    normalized = {name.translate(_DIGIT_LOOKALIKES): name for name in candidates}
    return tuple(normalized[key] for key in difflib.get_close_matches(word, list(normalized), n=n, cutoff=cutoff))


def _find_numbers(word: str) -> list[str]:
    """Return the numbers in a word; letters beside a digit count as the digits that they look like."""
    return [number.translate(_DIGIT_LOOKALIKES) for number in re.findall("[oOlI]*[0-9][0-9oOlI]*", word)]


def suggest_fix(query: str, candidates: Sequence[str], default: str = "") -> str:
    """Return ``did you mean X?``, or ``default``, or the list of candidates.

    Args:
        query: the word that the user wrote.
        candidates: the known words.
        default: the fix if nothing is similar; if empty, the fix lists all candidates.
    """
    matches = find_closest(query, candidates)
    return f"did you mean {matches[0]}?" if matches else default or f"one of {', '.join(candidates)}"


def list_choices(query: object, choices: Sequence[str]) -> str:
    """Return ``a, b, c (did you mean b?)``: all choices, and the one most like ``query``.

    Args:
        query: the value that the user wrote; only text can be similar to a choice.
        choices: the allowed words.
    """
    matches = find_closest(query, choices) if isinstance(query, str) else ()
    return ", ".join(choices) + (f" (did you mean {matches[0]}?)" if matches else "")


def missing_extra_error(package: str, extra: str) -> MachineError:
    """Return the error for a feature whose extra is not installed.

    Args:
        package: the package that cannot be imported.
        extra: the extra of resnetkit that installs it.
    """
    return MachineError(f"{package} is not installed", fix=format_install_command(extra))


def read_extras() -> dict[str, list[str]]:
    """Return extra -> its requirements, such as ``scikit-learn>=1.7``; none without an installation."""
    from importlib import metadata  # slow to import, and rarely needed

    try:
        lines = metadata.requires("resnetkit") or []
    except metadata.PackageNotFoundError:
        lines = []
    extras: dict[str, list[str]] = {}
    for line in lines:
        requirement, _, marker = line.replace(" ", "").partition(";")
        if extra := re.search(r"""extra==['"]([\w.-]+)['"]""", marker):
            extras.setdefault(extra[1], []).append(requirement)
    return extras


def format_install_command(extra: str) -> str:
    """Return the pip command that installs the packages of an extra, which need no published resnetkit.

    Args:
        extra: the name of the extra; in a checkout that is not installed, the command names the extra itself.
    """
    packages = read_extras().get(extra, [])
    if not packages or any(package.startswith("resnetkit[") for package in packages):
        return f"pip install '.[{extra}]'"
    return "pip install " + " ".join(f"'{package}'" for package in packages)


class ResnetkitInterrupt(KeyboardInterrupt):
    """An interrupt after which all finished work is on the disk.

    Args:
        message: the line to print.
        run: the folder of the run, if the user can resume it.
        signal_number: the signal on which all processes of a run agreed; 0 if this process stopped by itself.
    """

    def __init__(self, message: str = "", run: str = "", signal_number: int = 0) -> None:
        self.run, self.signal_number = run, signal_number
        super().__init__(message)


class ResnetkitWarning(UserWarning):
    """A fact that the user should know, but that stops nothing; the command line prints it as one line."""
