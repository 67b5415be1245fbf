"""Output that the commands share: results go to stdout, everything else to stderr.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from resnetkit.errors import UsageError
from resnetkit.files import file_exists_error, write_text
from resnetkit.formatting import align_table, display_width, escape_control, fit_table
from resnetkit.html.page import is_resnetkit_page
from resnetkit.runtime.progress import ProgressCallback

_MAX_CHARACTERS = 600


def print_json(schema: str, **values: Any) -> None:
    """Print one JSON document.

    Args:
        schema: The name of its schema, without the package and the version.
        values: Its other keys.
    """
    document = {"schema": f"resnetkit.{schema}/1", **values}
    print(json.dumps(document, indent=2, ensure_ascii=not is_unicode_stdout(), allow_nan=False))


def print_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    n_text_columns: int = 1,
    drop: Sequence[str] = (),
    drop_last: Sequence[str] = (),
) -> None:
    """Print an aligned table; on a terminal, fit it to the width.

    Args:
        headings: The heading of each column.
        rows: The cells of each row.
        n_text_columns: The number of leading columns that hold words; the others hold numbers.
        drop: The headings of columns that a narrow terminal drops, first to last.
        drop_last: The headings of columns that are dropped only if shorter words are not enough.
    """
    cells: list[Sequence[str]] = [headings, *([escape_control(text) for text in row] for row in rows)]
    if sys.stdout.isatty():
        ellipsis = "…" if is_unicode_stdout() else "~"
        cells = list(fit_table(cells, shutil.get_terminal_size().columns, drop, drop_last, ellipsis))
        n_text_columns -= sum(name not in cells[0] for name in headings[:n_text_columns])
    print(align_table(cells, n_text_columns))


def fits_terminal(table: Sequence[Sequence[str]]) -> bool:
    """Return whether no line of a table would be longer than a line of the terminal; a file has no limit."""
    columns = shutil.get_terminal_size().columns
    return not sys.stdout.isatty() or max(map(display_width, align_table(table, 1).splitlines())) <= columns


def print_text(text: str) -> None:
    """Print sentences, one per line; on a terminal, wrap them between words."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        wrapper = textwrap.TextWrapper(width, break_on_hyphens=False, break_long_words=False)
        text = "\n".join(map(wrapper.fill, text.splitlines()))
    print(text)


def log(line: str = "") -> None:
    """Print a line to stderr; if nobody reads it any more, the work continues."""
    with contextlib.suppress(OSError):
        print(escape_control(line, keep="\n"), file=sys.stderr)


def open_devnull() -> io.TextIOWrapper:
    """Open the null device for writing."""
    return Path(os.devnull).open("w")


def sanitize_line(text: str) -> str:
    """Escape control characters and shorten a text from a file, so that it stays part of its line."""
    escaped = escape_control(text)
    return escaped if len(escaped) <= _MAX_CHARACTERS else f"{escaped[:_MAX_CHARACTERS]}..."


def suggest_next(command: str, *args: str) -> None:
    """Log the ``next:`` line.

    Args:
        command: The command that is a natural next step, already quoted.
        args: The words after it, which are quoted for a shell.
    """
    log(" ".join([f"next: {command}", *map(quote_argument, args)]))


def quote_argument(argument: str) -> str:
    """Quote a word for a shell; unprintable characters become bytes, which bash, zsh and ksh read."""
    if argument.isprintable():
        return shlex.quote(argument)
    characters = (
        chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\x{byte:02x}" for byte in os.fsencode(argument)
    )
    return f"$'{''.join(characters)}'"


def check_output_file(name: str, *suffixes: str) -> Path:
    """Check that an output file can be written, and return its path. Only a page of resnetkit is replaced.

    Args:
        name: The file as the user named it.
        suffixes: The allowed suffixes, the usual one first.

    Raises:
        UsageError: The suffix is another, the folder is missing, or the file exists.
    """
    path = Path(name)
    if path.suffix not in suffixes:
        fix = f"call it {shlex.quote(str(path.with_suffix(suffixes[0])) if path.name else 'out' + suffixes[0])}"
        raise UsageError(f"the output file must end in {' or '.join(suffixes)}", where=name or "''", fix=fix)
    if path.is_dir():
        raise UsageError("the output file is a folder", where=str(path), fix="name a file")
    if not path.parent.is_dir():
        raise UsageError("the folder of the output file does not exist", where=str(path.parent), fix="create it first")
    if os.path.lexists(path) and not is_resnetkit_page(path):
        raise file_exists_error(path)
    return path


def write_output(path: Path, text: str, note: str = "") -> None:
    """Write a text file and log its name.

    Args:
        path: The file.
        text: Its content.
        note: A text to add to the line.
    """
    write_text(path, text)
    log(f"wrote {path}{note}")


def can_rewrite_lines() -> bool:
    """Return whether stderr is a terminal on which a line can be rewritten."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in (None, "", "dumb", "unknown")


def is_unicode_stdout() -> bool:
    """Return whether stdout takes any character."""
    return "utf" in (sys.stdout.encoding or "utf").lower()


@contextlib.contextmanager
def progress_bar(description: str, *, is_shown: bool = True) -> Iterator[ProgressCallback]:
    """Show a progress bar on a terminal, and nothing elsewhere.

    Args:
        description: The text before the bar.
        is_shown: Whether to show it on a terminal.

    Yields:
        A function of the number done and the total.
    """
    if not is_shown or not can_rewrite_lines():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    # by default rich also redirects stdout, and with it the results of `resnetkit predict ... > labels.csv`
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
