"""Find the paths that a user means by names and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from resnetkit.architecture.plan import Plan, parse_stage_number
from resnetkit.errors import Fault, FaultsError, UsageError, find_closest


def raise_faults(message: str, faults: Sequence[Fault], fix: str = "") -> None:
    """Raise one error with all faults, if there are any.

    Args:
        message: The problem as a whole.
        faults: The faults.
        fix: What to do.

    Raises:
        FaultsError: there is a fault.
    """
    if faults:
        raise FaultsError(message, faults, fix=fix)


def as_list(value: object) -> list[object]:
    """Return a list of the items of an iterable; a string or a number becomes a list of one item."""
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]


def check_integer(value: object, location: str) -> None:
    """Check that a value is an integer.

    Args:
        value: Any object.
        location: The argument, for the error.

    Raises:
        UsageError: it is not an integer.
    """
    if type(value) is not int:
        raise UsageError(f"{str(value)[:20]!r} is not an integer", where=location, fix="for example 2")


def find_paths(plan: Plan, names: Iterable[object], roles: Sequence[str]) -> list[str]:
    """Return the path for each name; raises `FaultsError` with every name that has none.

    Args:
        plan: The plan of the network.
        names: Full paths, the ends of paths if only one path ends so, or stage numbers.
        roles: The roles that a part may have.
    """
    known = [path for path, node in plan.parts.items() if node.role in roles]
    faults, paths = [], []
    for name in (f"stage{name}" if str(name).isdecimal() else str(name) for name in names):
        matches = [name] if name in known else [path for path in known if path.endswith(f".{name}")]
        if len(matches) == 1:
            paths += matches
        elif matches:
            faults.append(Fault(name, f"a name of {len(matches)} parts", "one of " + ", ".join(matches[:5])))
        else:
            faults.append(Fault(name, "a part that does not exist", _suggest_paths(name, known)))
    raise_faults("cannot find the parts to edit", faults)
    return paths


def _suggest_paths(name: str, known: Sequence[str]) -> str:
    return " or ".join(find_closest(name, known, 3) or known[:5]) or "none: the network has no such parts"


def select_stages(plan: Plan, selection: object) -> list[int]:
    """Return the numbers of the selected stages, from 1, in ascending order.

    Args:
        plan: The plan of the network.
        selection: A stage number or path, or several of them.

    Raises:
        UsageError: no stage is selected, or one does not exist.
    """
    numbers = sorted({parse_stage_number(path) for path in find_paths(plan, as_list(selection), ("stage",))})
    if not numbers:
        raise UsageError("no stage is selected", where="stages", fix=f"1 to {len(plan.spec.stages)}")
    return numbers
