"""What the verbs share: results go to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from resnetkit.tables import aligned, fitted


def results(kind: str, **values: Any) -> None:
    """One JSON document, with its schema, and nothing else."""
    print(json.dumps({"schema": f"resnetkit.{kind}/1", **values}, indent=2, ensure_ascii=False))


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, drop: Sequence[str] = ()) -> None:
    """Aligned lines: of any length where the output is piped, made to fit where it is a terminal.

    The first ``left`` columns are words. ``drop`` names the columns that a narrow terminal does without, first to last.
    """
    whole = [headings, *rows]
    if sys.stdout.isatty():
        whole = list(fitted(whole, shutil.get_terminal_size().columns, drop))
        left -= sum(name not in whole[0] for name in headings[:left])
    print(aligned(whole, left))


def say(line: str = "") -> None:
    """A line for the person who watches."""
    print(line, file=sys.stderr)


def then(command: str) -> None:
    """What one would do next."""
    say(f"next: {command}")


@contextlib.contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function (done, all) that shows a bar on a terminal, and nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
