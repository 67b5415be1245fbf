"""What the verbs share: results go to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from resnetkit.errors import UsageError
from resnetkit.files import exists_already
from resnetkit.formatting import aligned, fitted, printable
from resnetkit.html.page import is_ours


def results(kind: str, **values: Any) -> None:
    """One JSON document, with its schema, and nothing else."""
    print(json.dumps({"schema": f"resnetkit.{kind}/1", **values}, indent=2, ensure_ascii=plain_json(), allow_nan=False))


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: int = 1,
    drop: Sequence[str] = (),
    last: Sequence[str] = (),
) -> None:
    """Aligned lines: of any length where the output is piped, made to fit where it is a terminal.

    The first ``left`` columns are words. ``drop`` names the columns that a narrow terminal does without, first to last,
    ``last`` those that go where cutting words is not enough.
    """
    whole: list[Sequence[str]] = [headings, *([printable(cell) for cell in row] for row in rows)]
    if sys.stdout.isatty():
        more = "…" if _speaks_unicode() else "~"
        whole = list(fitted(whole, shutil.get_terminal_size().columns, drop, last, more))
        left -= sum(name not in whole[0] for name in headings[:left])
    print(aligned(whole, left))


def prose(text: str) -> None:
    """Sentences: a line each where the output is piped, cut between words where it is a terminal."""
    if sys.stdout.isatty():
        fit = textwrap.TextWrapper(shutil.get_terminal_size().columns, break_on_hyphens=False, break_long_words=False)
        text = "\n".join(map(fit.fill, text.splitlines()))
    print(text)


def say(line: str = "") -> None:
    """A line for the person who watches; where nobody does any more, the work goes on."""
    with contextlib.suppress(OSError):
        print(printable(line, keep="\n"), file=sys.stderr)


def one_line(text: str) -> str:
    """What comes from a file, as a part of a line: no lines of its own, and some hundred letters."""
    shown = printable(text)
    return shown if len(shown) <= _MOST_LETTERS else f"{shown[:_MOST_LETTERS]}..."


_MOST_LETTERS = 600


def then(command: str, *words: str) -> None:
    """What one would do next: a command, and the words after it that a shell has to take as they are."""
    say(" ".join([f"next: {command}", *map(quoted, words)]))


def quoted(word: str) -> str:
    """A word as a shell has to take it; what cannot be shown stands as its bytes, which bash, zsh and ksh read."""
    if word.isprintable():
        return shlex.quote(word)
    shown = (chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\x{byte:02x}" for byte in os.fsencode(word))
    return f"$'{''.join(shown)}'"


def output_file(name: str, *endings: str) -> Path:
    """A file to write, with one of its own endings; of what exists only a page that was made here is replaced."""
    path = Path(name)
    if path.suffix not in endings:
        fix = f"call it {shlex.quote(str(path.with_suffix(endings[0])) if path.name else 'out' + endings[0])}"
        raise UsageError(f"what is written here is {' or '.join(endings)}", where=name or "''", fix=fix)
    if path.is_dir() or not path.parent.is_dir():
        what = "this is a folder" if path.is_dir() else "there is no such folder to write into"
        raise UsageError(what, where=str(path if path.is_dir() else path.parent))
    if os.path.lexists(path) and not is_ours(path):
        raise exists_already(path)
    return path


def rewrites_lines() -> bool:
    """Whether what is shown on stderr can move: a terminal, and not a dumb one."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in (None, "", "dumb", "unknown")


def plain_json() -> bool:
    """Whether JSON has to do with ASCII."""
    return not _speaks_unicode()


def _speaks_unicode() -> bool:
    return "utf" in (sys.stdout.encoding or "utf").lower()


@contextlib.contextmanager
def counting(what: str, *, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A function (done, all) that shows a bar on a terminal, and nothing elsewhere or where it is not to be shown."""
    if not shown or not rewrites_lines():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    # rich would take stdout along, and with it the results of `resnetkit predict ... > labels.csv`
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
