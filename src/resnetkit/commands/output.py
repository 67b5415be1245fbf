"""What the verbs share: results go to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from resnetkit.text import aligned


def results(kind: str, **values: Any) -> None:
    """One JSON document, with its schema, and nothing else."""
    print(json.dumps({"schema": f"resnetkit.{kind}/1", **values}, indent=2, ensure_ascii=False))


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """A table that fits a terminal; aligned lines of any length where the output is piped."""
    if not sys.stdout.isatty():
        print(aligned([headings, *rows], left))
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for i, heading in enumerate(headings):
        shown.add_column(heading, justify="left" if i < left else "right", overflow="fold")
    for row in rows:
        shown.add_row(*(cell.replace("[", "\\[") for cell in row))
    Console().print(shown)


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
