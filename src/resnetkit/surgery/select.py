"""From what a person calls a part of a network to its path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from resnetkit.architecture.plan import Plan, stage_number
from resnetkit.errors import Fault, FaultsError, UsageError, nearest


def refuse(what: str, faults: Sequence[Fault], fix: str = "") -> None:
    """Raise one `FaultsError` with all faults, if there are any."""
    if faults:
        raise FaultsError(what, faults, fix=fix)


def several(given: object) -> list[object]:
    """One word or number, or more of them, as a list."""
    return list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]


def whole(value: object, where: str) -> None:
    """Raise `UsageError` for what is no whole number."""
    if type(value) is not int:
        raise UsageError(f"{str(value)[:20]!r} is no whole number", where=where, fix="a number as 2")


def find(plan: Plan, given: Iterable[object], roles: Sequence[str]) -> list[str]:
    """The paths that are meant: whole ones, ends of one path alone, or numbers of stages.

    Raises `FaultsError` with all that are not.
    """
    known = [path for path, part in plan.parts.items() if part.role in roles]
    faults, found = [], []
    for word in map(_path, given):
        meant = [word] if word in known else [path for path in known if path.endswith(f".{word}")]
        if len(meant) == 1:
            found += meant
        elif meant:
            faults.append(Fault(word, f"{len(meant)} parts of that name", "one of " + ", ".join(meant[:5])))
        else:
            faults.append(Fault(word, "no such part of this network", _near(word, known)))
    refuse("what is to be changed cannot be found", faults)
    return found


def _path(given: object) -> str:
    return f"stage{given}" if str(given).isdecimal() else str(given)


def _near(word: str, known: Sequence[str]) -> str:
    near = nearest(word, known, 3) or known[:5]
    return " or ".join(near) or "none, as there are none"


def stages(plan: Plan, given: object) -> list[int]:
    """Numbers of stages, from 1, upwards; raises `FaultsError`."""
    numbers = sorted({stage_number(path) for path in find(plan, several(given), ("stage",))})
    if not numbers:
        raise UsageError("no stage is named", where="stages", fix=f"1 to {len(plan.spec.stages)}")
    return numbers
