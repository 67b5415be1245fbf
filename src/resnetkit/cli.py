"""The command line: a table of verbs. Only the module of the chosen verb is imported, so that help is instant.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import itertools
import os
import re
import shutil
import sys
import textwrap
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from resnetkit.errors import (
    MachineError,
    PeerProcessError,
    ResnetkitError,
    ResnetkitWarning,
    UsageError,
    find_closest,
    suggest_fix,
)

COMMANDS = {
    "models": "what there is, with params, MACs and published accuracy",
    "explain": "a network as a table; why a part is there; a picture",
    "check": "a folder of pictures: what cannot be read, is there twice, or leaks",
    "train": "train a network on a folder of pictures, or fine-tune one",
    "evaluate": "count how often a model is right",
    "report": "a run as a page, or several runs laid over each other",
    "predict": "pictures to labels",
    "embed": "pictures to vectors",
    "convert": "weights as another library has them",
    "modify": "a trained network changed, with a proof of what holds",
    "optimize": "the fastest way to compute on this machine that still agrees",
    "doctor": "the environment, to paste into a report of a fault",
}

DISTRIBUTED_COMMANDS = ("train", "evaluate", "predict")  # what torchrun may start

_EXAMPLES = (
    "examples:",
    "  resnetkit explain resnet50 --why stage2.block1.shortcut",
    "  resnetkit train flowers/ --model resnet18",
    "  resnetkit predict cat.jpg --model runs/flowers-resnet18-1",
)
_MORE_HELP = "`resnetkit VERB --help` tells the options of a verb."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    sys.stdout = sys.stdout or _open_devnull()  # closed by `>&-`
    sys.stderr = sys.stderr or _open_devnull()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the name of a file need not be text
    try:
        with _shorten_warnings():
            return _run_reporting_errors(args)
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # else Python tries once more while it ends, and complains itself
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run_reporting_errors(args: list[str]) -> int:
    try:
        code = _run_command(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as interrupt:
        _print_stderr(f"interrupted; {interrupt}" if str(interrupt) else "interrupted")
        return 130
    except BrokenPipeError:  # the reader of a pipe has left: `resnetkit models | head`
        return 0
    except Exception as error:
        known_error = _convert_error(error)
        if isinstance(known_error, PeerProcessError):
            if known_error.what:
                _print_stderr(f"ended, as {known_error.what}")
            return known_error.exit_code
        if known_error is None:
            _print_stderr(traceback.format_exc().rstrip())
            message = f"a bug of resnetkit: {type(error).__name__}: {error}"
            known_error = ResnetkitError(message, fix="please report it, with what `resnetkit doctor` prints")
        _print_stderr("\n".join([str(known_error), *getattr(error, "__notes__", ())]))
        return known_error.exit_code


def _open_devnull() -> io.TextIOWrapper:
    return Path(os.devnull).open("w")


def _print_stderr(text: str) -> None:
    """Text for the person who watches, if anyone does. What a file is called cannot move the cursor."""
    with contextlib.suppress(OSError):
        print(_CONTROL_CHARACTERS.sub(lambda match: repr(match[0])[1:-1], text), file=sys.stderr)


@contextlib.contextmanager
def _shorten_warnings() -> Iterator[None]:
    """Our warnings are sentences for whoever runs the command; others stay as Python has them, for programmers."""
    with warnings.catch_warnings():
        default_showwarning = warnings.showwarning

        def show_warning(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
            if issubclass(category, ResnetkitWarning):
                _print_stderr("warning: " + " ".join(str(message).splitlines()))
            else:
                default_showwarning(message, category, *args, **kwargs)

        if not sys.warnoptions:
            warnings.simplefilter("default", ResnetkitWarning)
        warnings.showwarning = show_warning
        yield


def _convert_error(error: Exception) -> ResnetkitError | None:
    """The error as ours: a user's, or the machine's; None for a bug."""
    if isinstance(error, ResnetkitError):
        return error
    if isinstance(error, OSError):
        error_type = UsageError if error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR) else MachineError
        location = str(error.filename) if error.filename else ()
        return error_type(f"the system says: {error.strerror or error}", where=location)
    if isinstance(error, UnicodeEncodeError) and error.encoding != "utf-8":
        message = f"the encoding of this environment, {error.encoding}, has no letters for {error.object!r}"
        return MachineError(message, fix="set PYTHONUTF8=1")
    # torch's own lack of memory is told apart by its words, so that torch need not be imported
    text = str(error) if isinstance(error, RuntimeError) else ""
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "out of memory" in text:
        return MachineError("there is not enough memory", fix="smaller batches or pictures")
    return None


def _run_command(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(_format_help())
        return 0
    if args[0] == "--version":
        from resnetkit import __version__

        print(__version__)
        return 0
    command, *rest = args
    if any("\0" in arg for arg in args):
        raise UsageError("a word holds a NUL character, which no name of a file can")
    if command not in COMMANDS:
        raise UsageError(f"there is no verb called {command!r}", fix=_suggest_command(command))
    module = importlib.import_module(f"resnetkit.commands.{command}")
    _check_single_process(command)
    options = parse_options(module.Options, f"resnetkit {command}", rest)
    return int(module.run(options)) if options is not None else 0


def _check_single_process(command: str) -> None:
    """Raise `UsageError` where torchrun has started several processes of a verb that works in one."""
    if (
        command not in DISTRIBUTED_COMMANDS
        and "TORCHELASTIC_RUN_ID" in os.environ
        and os.environ.get("WORLD_SIZE") != "1"
    ):
        message = f"{command} works in one process; of several each would do the same"
        raise UsageError(message, where="torchrun", fix=f"resnetkit {command} ..., without torchrun")


def _suggest_command(command: str) -> str:
    matches = [name for name in COMMANDS if command and name.startswith(command)]
    return f"did you mean {' or '.join(matches)}?" if matches else suggest_fix(command, list(COMMANDS))


def _format_help() -> str:
    intro = ("usage: resnetkit VERB ...", "", "Residual networks, explained, trained and used.", "")
    command_lines = [_wrap(f"  {name:<10}{line}", " " * 12) for name, line in COMMANDS.items()]
    example_lines = [*(_wrap(line, "    ") for line in _EXAMPLES), "", _wrap(_MORE_HELP)]
    return "\n".join([*map(_wrap, intro), *command_lines, "", *example_lines])


def _wrap(line: str, indent: str = "") -> str:
    """A line as lines that fit the terminal, cut between words only."""
    width = shutil.get_terminal_size().columns
    return textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


T = TypeVar("T")


def parse_options(options_type: type[T], prog: str, args: Sequence[str]) -> T | None:
    """The options of a verb; None where help was asked for and printed. Raises `UsageError`."""
    import tyro

    from resnetkit.commands import help as cli_help

    help_output, error_output = _CapturedOutput(use_color=_can_use_color()), _CapturedOutput()
    known_names = {*_list_option_names(options_type), "--help"}
    unknown_options = [
        arg for arg in args if arg.startswith("--") and arg.split("=")[0].replace("_", "-") not in known_names
    ]
    if unknown_options and "--" not in args:  # before the parser complains of what is missing instead
        raise _build_option_error(options_type, prog, unknown_options)
    try:
        with contextlib.redirect_stdout(help_output), contextlib.redirect_stderr(error_output):
            config = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
            with cli_help.build_option_registry():
                parsed, unknown_args = tyro.cli(
                    options_type,
                    prog=prog,
                    description=cli_help.format_description(options_type),
                    args=args,
                    return_unknown_args=True,
                    config=config,
                )
    except SystemExit as system_exit:
        if not system_exit.code:
            print(_fit_help_page(help_output.getvalue()))
            return None
        raise UsageError(
            _summarize_parser_error(_ANSI_CODES.sub("", error_output.getvalue()), args),
            where=prog,
            fix=f"{prog} --help",
        ) from None
    if unknown_args:
        raise _build_option_error(options_type, prog, unknown_args)
    return parsed


def _build_option_error(options_type: type, prog: str, args: Sequence[str]) -> UsageError:
    arg = next((arg for arg in args if arg.startswith("-")), args[0])
    if not arg.startswith("-"):
        return UsageError(f"one word too many: {arg!r}", where=prog, fix=f"{prog} --help")
    matches = find_closest(arg.split("=")[0], _list_option_names(options_type))
    fix = f"did you mean {matches[0]}?" if matches else f"{prog} --help"
    return UsageError(f"there is no option {arg}", where=prog, fix=fix)


def _list_option_names(options: Any) -> list[str]:
    """Every option; those of a table of options stand beside the others."""
    defaults = [field.default for field in fields(options)]
    top_level = ["--" + field.name.replace("_", "-") for field in fields(options) if not is_dataclass(field.default)]
    return top_level + [name for group in defaults if is_dataclass(group) for name in _list_option_names(group)]


class _CapturedOutput(io.StringIO):
    """What the parser prints, caught. It asks its stream whether to colour, and whether to draw frames."""

    encoding = "utf-8"

    def __init__(self, use_color: bool = False) -> None:
        super().__init__()
        self._use_color = use_color

    def isatty(self) -> bool:
        return self._use_color


def _can_use_color() -> bool:
    """Whether help may be coloured (no-color.org); the parser itself knows of TERM=dumb."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _fit_help_page(page: str) -> str:
    """The parser's page of help: its frames fit the terminal already; the lines above them are made to."""
    lines = page.splitlines()
    first_frame = next((i for i, line in enumerate(lines) if "╭" in line), len(lines))
    intro = [_ANSI_CODES.sub("", line).rstrip() for line in lines[:first_frame]]
    frame_lines = [line for line in lines[first_frame:] if _ANSI_CODES.sub("", line).strip("│ ")]
    text = "\n".join([*map(_format_paragraph, intro), *frame_lines])
    return text if "utf" in (sys.stdout.encoding or "utf").lower() else text.translate(_ASCII_FRAMES)


def _format_paragraph(line: str) -> str:
    """A line above the frames; commands to copy stand on lines of their own."""
    if line.startswith("Examples: "):
        from resnetkit.commands.help import format_examples

        return "\n".join(["Examples:", *format_examples(line.removeprefix("Examples: "))])
    return _wrap(line, "  " * line.startswith("usage: "))


_ANSI_CODES = re.compile(r"\x1b\[[0-9;]*m")
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_ASCII_FRAMES = str.maketrans("╭╮╰╯│─", "++++|-")


def _summarize_parser_error(output: str, args: Sequence[str]) -> str:
    """What the parser says, on one line: it draws a frame with the fault, a rule, and the way to the help."""
    lines = [line.strip("│ ") for line in output.splitlines()]
    blocks = [list(group) for rule, group in itertools.groupby(lines, _is_rule) if not rule]
    text = re.sub(r"\s+", " ", " ".join(blocks[0])).strip() if blocks else "these options cannot be read"
    missing_value = re.search(r"Missing value for argument '(\S+)'", text)
    if missing_value:
        return f"{missing_value[1]} needs a value"
    invalid_value = re.search(r"parsing (\S+): .*?('[^']*')\W*$", text)
    if invalid_value:
        return f"{invalid_value[1]} does not take {_find_original_value(invalid_value[2], args)}"
    return re.sub(r"Missing from [\w ]+: ", "missing: ", text).replace(" (required)", "")


def _find_original_value(value: str, args: Sequence[str]) -> str:
    """A value without the breaks that a narrow frame puts into it."""
    compact = value.replace(" ", "")
    return next((repr(arg) for arg in args if repr(arg).replace(" ", "") == compact), value)


def _is_rule(line: str) -> bool:
    return not line or line.startswith("╭") or set(line) <= set("─-╰╯")
