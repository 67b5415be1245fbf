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
    ElsewhereError,
    MachineError,
    ResnetkitError,
    ResnetkitWarning,
    UsageError,
    nearest,
    suggestion,
)

VERBS = {
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

SEVERAL = ("train", "evaluate", "predict")  # what torchrun may start

_FIRST_STEPS = (
    "examples:",
    "  resnetkit explain resnet50 --why stage2.block1.shortcut",
    "  resnetkit train flowers/ --model resnet18",
    "  resnetkit predict cat.jpg --model runs/flowers-resnet18-1",
)
_MORE = "`resnetkit VERB --help` tells the options of a verb."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    sys.stdout = sys.stdout or _nowhere()  # closed by `>&-`
    sys.stderr = sys.stderr or _nowhere()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the name of a file need not be text
    try:
        with _warnings_in_a_line():
            return _guarded(words)
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # else Python tries once more while it ends, and complains itself
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _guarded(words: list[str]) -> int:
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as stop:
        _tell(f"interrupted; {stop}" if str(stop) else "interrupted")
        return 130
    except BrokenPipeError:  # the reader of a pipe has left: `resnetkit models | head`
        return 0
    except Exception as error:
        known = _known(error)
        if isinstance(known, ElsewhereError):
            if known.what:
                _tell(f"ended, as {known.what}")
            return known.exit_code
        if known is None:
            _tell(traceback.format_exc().rstrip())
            what = f"a bug of resnetkit: {type(error).__name__}: {error}"
            known = ResnetkitError(what, fix="please report it, with what `resnetkit doctor` prints")
        _tell("\n".join([str(known), *getattr(error, "__notes__", ())]))
        return known.exit_code


def _nowhere() -> io.TextIOWrapper:
    return Path(os.devnull).open("w")


def _tell(text: str) -> None:
    """Text for the person who watches, if anyone does. What a file is called cannot move the cursor."""
    with contextlib.suppress(OSError):
        print(_CONTROL.sub(lambda found: repr(found[0])[1:-1], text), file=sys.stderr)


@contextlib.contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Our warnings are sentences for whoever runs the command; others stay as Python has them, for programmers."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **kept: Any) -> None:
            if issubclass(category, ResnetkitWarning):
                _tell("warning: " + " ".join(str(message).splitlines()))
            else:
                others(message, category, *place, **kept)

        if not sys.warnoptions:
            warnings.simplefilter("default", ResnetkitWarning)
        warnings.showwarning = show
        yield


def _known(error: Exception) -> ResnetkitError | None:
    """The error as ours: a user's, or the machine's; None for a bug."""
    if isinstance(error, ResnetkitError):
        return error
    if isinstance(error, OSError):
        kind = UsageError if error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR) else MachineError
        where = str(error.filename) if error.filename else ()
        return kind(f"the system says: {error.strerror or error}", where=where)
    if isinstance(error, UnicodeEncodeError) and error.encoding != "utf-8":
        what = f"the encoding of this environment, {error.encoding}, has no letters for {error.object!r}"
        return MachineError(what, fix="set PYTHONUTF8=1")
    # torch's own lack of memory is told apart by its words, so that torch need not be imported
    words = str(error) if isinstance(error, RuntimeError) else ""
    if isinstance(error, MemoryError) or "can't allocate memory" in words or "out of memory" in words:
        return MachineError("there is not enough memory", fix="smaller batches or pictures")
    return None


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if words[0] == "--version":
        from resnetkit import __version__

        print(__version__)
        return 0
    verb, *rest = words
    if any("\0" in word for word in words):
        raise UsageError("a word holds a NUL character, which no name of a file can")
    if verb not in VERBS:
        raise UsageError(f"there is no verb called {verb!r}", fix=_verbs_like(verb))
    module = importlib.import_module(f"resnetkit.commands.{verb}")
    _require_alone(verb)
    options = parse(module.Options, f"resnetkit {verb}", rest)
    return int(module.run(options)) if options is not None else 0


def _require_alone(verb: str) -> None:
    """Raise `UsageError` where torchrun has started several processes of a verb that works in one."""
    if verb not in SEVERAL and "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE") != "1":
        what = f"{verb} works in one process; of several each would do the same"
        raise UsageError(what, where="torchrun", fix=f"resnetkit {verb} ..., without torchrun")


def _verbs_like(verb: str) -> str:
    begun = [name for name in VERBS if verb and name.startswith(verb)]
    return f"did you mean {' or '.join(begun)}?" if begun else suggestion(verb, list(VERBS))


def _help() -> str:
    about = ("usage: resnetkit VERB ...", "", "Residual networks, explained, trained and used.", "")
    verbs = [_wrapped(f"  {name:<10}{line}", " " * 12) for name, line in VERBS.items()]
    first_steps = [*(_wrapped(line, "    ") for line in _FIRST_STEPS), "", _wrapped(_MORE)]
    return "\n".join([*map(_wrapped, about), *verbs, "", *first_steps])


def _wrapped(line: str, indent: str = "") -> str:
    """A line as lines that fit the terminal, cut between words only."""
    width = shutil.get_terminal_size().columns
    return textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


T = TypeVar("T")


def parse(options: type[T], prog: str, words: Sequence[str]) -> T | None:
    """The options of a verb; None where help was asked for and printed. Raises `UsageError`."""
    import tyro

    from resnetkit.commands import help as cli_help

    page, told = _Page(coloured=_takes_colours()), _Page()
    known = {*_names(options), "--help"}
    strange = [word for word in words if word.startswith("--") and word.split("=")[0].replace("_", "-") not in known]
    if strange and "--" not in words:  # before the parser complains of what is missing instead
        raise _unknown(options, prog, strange)
    try:
        with contextlib.redirect_stdout(page), contextlib.redirect_stderr(told):
            config = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
            with cli_help.rules():
                parsed, unknown = tyro.cli(
                    options,
                    prog=prog,
                    description=cli_help.about(options),
                    args=words,
                    return_unknown_args=True,
                    config=config,
                )
    except SystemExit as stop:
        if not stop.code:
            print(_laid_out(page.getvalue()))
            return None
        raise UsageError(
            _first_words(_CODES.sub("", told.getvalue()), words), where=prog, fix=f"{prog} --help"
        ) from None
    if unknown:
        raise _unknown(options, prog, unknown)
    return parsed


def _unknown(options: type, prog: str, words: Sequence[str]) -> UsageError:
    word = next((word for word in words if word.startswith("-")), words[0])
    if not word.startswith("-"):
        return UsageError(f"one word too many: {word!r}", where=prog, fix=f"{prog} --help")
    near = nearest(word.split("=")[0], _names(options))
    fix = f"did you mean {near[0]}?" if near else f"{prog} --help"
    return UsageError(f"there is no option {word}", where=prog, fix=fix)


def _names(options: Any) -> list[str]:
    """Every option; those of a table of options stand beside the others."""
    inner = [field.default for field in fields(options)]
    own = ["--" + field.name.replace("_", "-") for field in fields(options) if not is_dataclass(field.default)]
    return own + [name for table in inner if is_dataclass(table) for name in _names(table)]


class _Page(io.StringIO):
    """What the parser prints, caught. It asks its stream whether to colour, and whether to draw frames."""

    encoding = "utf-8"

    def __init__(self, coloured: bool = False) -> None:
        super().__init__()
        self._coloured = coloured

    def isatty(self) -> bool:
        return self._coloured


def _takes_colours() -> bool:
    """Whether help may be coloured (no-color.org); the parser itself knows of TERM=dumb."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _laid_out(page: str) -> str:
    """The parser's page of help: its frames fit the terminal already; the lines above them are made to."""
    lines = page.splitlines()
    frames = next((i for i, line in enumerate(lines) if "╭" in line), len(lines))
    above = [_CODES.sub("", line).rstrip() for line in lines[:frames]]
    framed = [line for line in lines[frames:] if _CODES.sub("", line).strip("│ ")]
    text = "\n".join([*map(_paragraph, above), *framed])
    return text if "utf" in (sys.stdout.encoding or "utf").lower() else text.translate(_PLAIN_FRAMES)


def _paragraph(line: str) -> str:
    """A line above the frames; commands to copy stand on lines of their own."""
    if line.startswith("Examples: "):
        from resnetkit.commands.help import commands

        return "\n".join(["Examples:", *commands(line.removeprefix("Examples: "))])
    return _wrapped(line, "  " * line.startswith("usage: "))


_CODES = re.compile(r"\x1b\[[0-9;]*m")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_PLAIN_FRAMES = str.maketrans("╭╮╰╯│─", "++++|-")


def _first_words(told: str, words: Sequence[str]) -> str:
    """What the parser says, on one line: it draws a frame with the fault, a rule, and the way to the help."""
    lines = [line.strip("│ ") for line in told.splitlines()]
    parts = [list(group) for rule, group in itertools.groupby(lines, _is_rule) if not rule]
    said = re.sub(r"\s+", " ", " ".join(parts[0])).strip() if parts else "these options cannot be read"
    alone = re.search(r"Missing value for argument '(\S+)'", said)
    if alone:
        return f"{alone[1]} needs a value"
    value = re.search(r"parsing (\S+): .*?('[^']*')\W*$", said)
    if value:
        return f"{value[1]} does not take {_as_typed(value[2], words)}"
    return re.sub(r"Missing from [\w ]+: ", "missing: ", said).replace(" (required)", "")


def _as_typed(value: str, words: Sequence[str]) -> str:
    """A value without the breaks that a narrow frame puts into it."""
    whole = value.replace(" ", "")
    return next((repr(word) for word in words if repr(word).replace(" ", "") == whole), value)


def _is_rule(line: str) -> bool:
    return not line or line.startswith("╭") or set(line) <= set("─-╰╯")
