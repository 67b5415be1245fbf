"""From what a person calls a part of a network to its path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from resnetkit.architecture.plan import Plan, parse_stage_number
from resnetkit.errors import Fault, FaultsError, UsageError, find_closest


def raise_faults(message: str, faults: Sequence[Fault], fix: str = "") -> None:
    """Raise one `FaultsError` with all faults, if there are any."""
    if faults:
        raise FaultsError(message, faults, fix=fix)


def as_list(value: object) -> list[object]:
    """One word or number, or more of them, as a list."""
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]


def check_integer(value: object, location: str) -> None:
    """Raise `UsageError` for what is no whole number."""
    if type(value) is not int:
        raise UsageError(f"{str(value)[:20]!r} is no whole number", where=location, fix="a number as 2")


def find_paths(plan: Plan, names: Iterable[object], roles: Sequence[str]) -> list[str]:
    """The paths that are meant: whole ones, ends of one path alone, or numbers of stages.

    Raises `FaultsError` with all that are not.
    """
    known = [path for path, node in plan.parts.items() if node.role in roles]
    faults, paths = [], []
    for name in map(_normalize_path, names):
        matches = [name] if name in known else [path for path in known if path.endswith(f".{name}")]
        if len(matches) == 1:
            paths += matches
        elif matches:
            faults.append(Fault(name, f"{len(matches)} parts of that name", "one of " + ", ".join(matches[:5])))
        else:
            faults.append(Fault(name, "no such part of this network", _suggest_paths(name, known)))
    raise_faults("what is to be changed cannot be found", faults)
    return paths


def _normalize_path(value: object) -> str:
    return f"stage{value}" if str(value).isdecimal() else str(value)


def _suggest_paths(name: str, known: Sequence[str]) -> str:
    suggestions = find_closest(name, known, 3) or known[:5]
    return " or ".join(suggestions) or "none, as there are none"


def select_stages(plan: Plan, selection: object) -> list[int]:
    """Numbers of stages, from 1, upwards; raises `FaultsError`."""
    numbers = sorted({parse_stage_number(path) for path in find_paths(plan, as_list(selection), ("stage",))})
    if not numbers:
        raise UsageError("no stage is named", where="stages", fix=f"1 to {len(plan.spec.stages)}")
    return numbers
