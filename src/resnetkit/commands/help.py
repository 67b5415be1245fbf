"""The help of resnetkit and of each command, from the docstrings of its ``Options`` dataclass.

This module imports no torch.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass

from resnetkit.commands.arguments import Parameter, list_parameters

_COLUMN = 26  # at which the text of an option begins
_NARROW = 6  # the same on a terminal of less than 70 columns
_EXAMPLES = (
    "resnetkit explain resnet50 --why stage2.block1.shortcut",
    "resnetkit train flowers/ --model resnet18",
    "resnetkit predict cat.jpg --model runs/flowers-resnet18-1",
)


def format_overview(commands: Mapping[str, str]) -> str:
    """Format the help of resnetkit itself: each command and its purpose."""
    return "\n\n".join(
        [
            "usage: resnetkit COMMAND ...",
            _wrap("Residual networks, explained, trained and used."),
            _format_section("commands", [_format_row(name, text, 12) for name, text in commands.items()]),
            _format_section("examples", [line for command in _EXAMPLES for line in _wrap_command(command)]),
            _wrap("`resnetkit COMMAND --help` lists the options of a command."),
        ]
    )


def format_command_help(options_type: type, prog: str) -> str:
    """Format the help of a command.

    Args:
        options_type: The dataclass of the command's options.
        prog: The command as it is typed, such as ``resnetkit train``.
    """
    text, _, examples = (inspect.getdoc(options_type) or "").partition("Examples: ")
    paragraphs = [_wrap(" ".join(paragraph.split())) for paragraph in text.strip().split("\n\n")]
    parameters, docs = list_parameters(options_type), _read_field_docs(options_type)
    positional = [parameter for parameter in parameters if parameter.argument.is_positional]
    options = [parameter for parameter in parameters if not parameter.argument.is_positional]
    commands = " ".join(examples.split()).split("; ")
    usage = " ".join(["usage:", prog, *(parameter.metavar for parameter in positional), "[OPTIONS]"])
    argument_rows = [_format_parameter(parameter, docs) for parameter in positional]
    return "\n\n".join(
        [
            _wrap(usage, "  "),
            *paragraphs,
            _format_section("examples", [line for command in commands for line in _wrap_command(command)]),
            *([_format_section("arguments", argument_rows)] if argument_rows else []),
            _format_section("options", [_format_parameter(parameter, docs) for parameter in options]),
        ]
    )


def _read_field_docs(options_type: type) -> dict[str, str]:
    """Return the docstring below each field; Python itself does not keep them."""
    body = ast.parse(textwrap.dedent(inspect.getsource(options_type))).body[0].body  # type: ignore[attr-defined]
    docs = {
        field.target.id: " ".join(str(doc.value.value).split())
        for field, doc in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant)
    }
    for field in fields(options_type):
        if is_dataclass(field.default):
            docs |= _read_field_docs(type(field.default))
    return docs


def _format_parameter(parameter: Parameter, docs: Mapping[str, str]) -> str:
    metavar, argument = parameter.metavar, parameter.argument
    if argument.is_positional:
        return _format_row(metavar, docs[parameter.name], _COLUMN)
    if parameter.is_list and not argument.is_repeatable:
        metavar = f"{metavar} [{metavar} ...]"
    text = f"{docs[parameter.name]} {_format_default(parameter)}".strip()
    return _format_row(f"{parameter.option} {metavar}".strip(), text, _COLUMN)


def _format_default(parameter: Parameter) -> str:
    """Format what holds if an option is not given; nothing for a default that is empty."""
    if parameter.argument.is_repeatable:
        return "(repeatable)"
    if parameter.default is MISSING:
        return "(required)"
    if parameter.argument.default_text:
        return f"(default: {parameter.argument.default_text})"
    is_empty = parameter.default is None or parameter.default in ("", (), False)
    return "" if is_empty else f"(default: {str(parameter.default).removesuffix('.0')})"


def _format_section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([_highlight(f"{title}:"), *lines])


def _format_row(head: str, text: str, column: int) -> str:
    """Format a name and its text beside it, or below it if there is little room."""
    column = column if _get_width() >= 70 else _NARROW
    is_beside = len(head) + 4 <= column
    lines = _wrap(f"{'':{column}}{text}", " " * column)
    if is_beside:
        return f"  {_highlight(head)}{lines[len(head) + 2 :]}"
    return f"  {_highlight(head)}\n{lines}"


def _wrap_command(command: str) -> list[str]:
    r"""Wrap a command so that it can be copied; options stay with their values, continued lines end in \."""
    unbreakable = re.sub(r"(?<= )(--?[a-z-]+|[>|]) (?=[^- ])", "\\1\N{NO-BREAK SPACE}", command)
    lines = _wrap(f"  {unbreakable}", " " * 6, margin=2).replace("\N{NO-BREAK SPACE}", " ").splitlines()
    return [*(f"{line} \\" for line in lines[:-1]), lines[-1]]


def _wrap(line: str, indent: str = "", margin: int = 0) -> str:
    """Wrap a line to the terminal, between words only."""
    return textwrap.fill(
        line, _get_width() - margin, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _get_width() -> int:
    return shutil.get_terminal_size().columns


def _highlight(text: str) -> str:
    """Make a text bold on a terminal that shows it, unless NO_COLOR is set (no-color.org)."""
    is_plain = not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") in (None, "", "dumb")
    return text if is_plain else f"\x1b[1m{text}\x1b[0m"
