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
from resnetkit.files import file_exists_error
from resnetkit.formatting import align_table, escape_control, fit_table
from resnetkit.html.page import is_resnetkit_page


def print_json(schema: str, **values: Any) -> None:
    """One JSON document, with its schema, and nothing else."""
    print(
        json.dumps(
            {"schema": f"resnetkit.{schema}/1", **values}, indent=2, ensure_ascii=is_ascii_stdout(), allow_nan=False
        )
    )


def print_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    n_text_columns: int = 1,
    drop: Sequence[str] = (),
    drop_last: Sequence[str] = (),
) -> None:
    """Aligned lines: of any length where the output is piped, made to fit where it is a terminal.

    The first ``left`` columns are words. ``drop`` names the columns that a narrow terminal does without, first to last,
    ``last`` those that go where cutting words is not enough.
    """
    cells: list[Sequence[str]] = [headings, *([escape_control(text) for text in row] for row in rows)]
    if sys.stdout.isatty():
        ellipsis = "…" if _is_unicode_stdout() else "~"
        cells = list(fit_table(cells, shutil.get_terminal_size().columns, drop, drop_last, ellipsis))
        n_text_columns -= sum(name not in cells[0] for name in headings[:n_text_columns])
    print(align_table(cells, n_text_columns))


def print_text(text: str) -> None:
    """Sentences: a line each where the output is piped, cut between words where it is a terminal."""
    if sys.stdout.isatty():
        wrapper = textwrap.TextWrapper(
            shutil.get_terminal_size().columns, break_on_hyphens=False, break_long_words=False
        )
        text = "\n".join(map(wrapper.fill, text.splitlines()))
    print(text)


def log(line: str = "") -> None:
    """A line for the person who watches; where nobody does any more, the work goes on."""
    with contextlib.suppress(OSError):
        print(escape_control(line, keep="\n"), file=sys.stderr)


def truncate(text: str) -> str:
    """What comes from a file, as a part of a line: no lines of its own, and some hundred letters."""
    escaped = escape_control(text)
    return escaped if len(escaped) <= _MAX_CHARACTERS else f"{escaped[:_MAX_CHARACTERS]}..."


_MAX_CHARACTERS = 600


def suggest_next(command: str, *args: str) -> None:
    """What one would do next: a command, and the words after it that a shell has to take as they are."""
    log(" ".join([f"next: {command}", *map(quote_argument, args)]))


def quote_argument(argument: str) -> str:
    """A word as a shell has to take it; what cannot be shown stands as its bytes, which bash, zsh and ksh read."""
    if argument.isprintable():
        return shlex.quote(argument)
    characters = (
        chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\x{byte:02x}" for byte in os.fsencode(argument)
    )
    return f"$'{''.join(characters)}'"


def check_output_file(name: str, *suffixes: str) -> Path:
    """A file to write, with one of its own endings; of what exists only a page that was made here is replaced."""
    path = Path(name)
    if path.suffix not in suffixes:
        fix = f"call it {shlex.quote(str(path.with_suffix(suffixes[0])) if path.name else 'out' + suffixes[0])}"
        raise UsageError(f"what is written here is {' or '.join(suffixes)}", where=name or "''", fix=fix)
    if path.is_dir() or not path.parent.is_dir():
        message = "this is a folder" if path.is_dir() else "there is no such folder to write into"
        raise UsageError(message, where=str(path if path.is_dir() else path.parent))
    if os.path.lexists(path) and not is_resnetkit_page(path):
        raise file_exists_error(path)
    return path


def can_rewrite_lines() -> bool:
    """Whether what is shown on stderr can move: a terminal, and not a dumb one."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in (None, "", "dumb", "unknown")


def is_ascii_stdout() -> bool:
    """Whether JSON has to do with ASCII."""
    return not _is_unicode_stdout()


def _is_unicode_stdout() -> bool:
    return "utf" in (sys.stdout.encoding or "utf").lower()


@contextlib.contextmanager
def progress_bar(description: str, *, is_shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A function (done, all) that shows a bar on a terminal, and nothing elsewhere or where it is not to be shown."""
    if not is_shown or not can_rewrite_lines():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    # rich would take stdout along, and with it the results of `resnetkit predict ... > labels.csv`
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
