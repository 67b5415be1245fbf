"""``resnetkit doctor``."""

from __future__ import annotations

from dataclasses import dataclass

from resnetkit.commands.output import results
from resnetkit.doctor import environment


@dataclass(frozen=True)
class Options:
    """Versions, processor, devices and threads, in a form to paste into a report of a fault.

    Examples: resnetkit doctor; resnetkit doctor --json
    """

    json: bool = False
    """One JSON document instead of lines."""


def run(options: Options) -> int:
    found = environment()
    if options.json:
        results("doctor", **found)
        return 0
    packages = found.pop("packages")
    for name, value in (found | packages).items():
        print(f"{name:<14}{', '.join(value) or 'none' if isinstance(value, list) else value}")
    return 0
