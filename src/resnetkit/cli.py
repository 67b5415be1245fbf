"""The command line: a table of verbs. Only the module of the chosen verb is imported, so that help is instant."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import itertools
import os
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import fields
from typing import TypeVar

from resnetkit.errors import MachineError, ResnetkitError, UsageError, nearest, suggestion

VERBS = {
    "models": "what there is, with params, MACs and published accuracy",
    "explain": "a network as a table; why a part is there; a picture",
    "train": "train a network on a folder of pictures, or on digits",
    "evaluate": "count how often a model is right",
    "predict": "pictures to labels",
    "doctor": "the environment, to paste into a report of a fault",
}

_FIRST_STEPS = """\
examples:
  resnetkit explain resnet50 --why stage2.block1.shortcut
  resnetkit train flowers/ --model resnet18
  resnetkit predict cat.jpg --model runs/flowers-resnet18-1

`resnetkit VERB --help` tells the options of a verb."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the name of a file need not be text
    try:
        return _run(words)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe has left: `resnetkit models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        known = _known(error)
        if known is None:
            traceback.print_exc()
            what = f"a bug of resnetkit: {type(error).__name__}: {error}"
            known = ResnetkitError(what, fix="please report it, with what `resnetkit doctor` prints")
        print(known, file=sys.stderr)
        return known.exit_code


def _known(error: Exception) -> ResnetkitError | None:
    """The error as ours: a user's, or the machine's; None for a bug."""
    if isinstance(error, ResnetkitError):
        return error
    if isinstance(error, OSError):
        kind = UsageError if error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR) else MachineError
        return kind(f"the system says: {error.strerror or error}", where=str(error.filename or ""))
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
        raise UsageError(f"there is no verb called {verb!r}", fix=suggestion(verb, list(VERBS)))
    module = importlib.import_module(f"resnetkit.commands.{verb}")
    options = parse(module.Options, f"resnetkit {verb}", rest)
    code = module.run(options) if options is not None else 0
    sys.stdout.flush()
    return int(code)


def _help() -> str:
    verbs = "\n".join(f"  {name:<10}{line}" for name, line in VERBS.items())
    return f"usage: resnetkit VERB ...\n\nResidual networks, explained, trained and used.\n\n{verbs}\n\n{_FIRST_STEPS}"


T = TypeVar("T")


def parse(options: type[T], prog: str, words: Sequence[str]) -> T | None:
    """The options of a verb; None where help was asked for and printed. Raises `UsageError`."""
    import tyro

    told = io.StringIO()
    hidden = [word for word in words if word.startswith("--tyro-")]
    if hidden:  # the parser's own, not part of this command
        raise _unknown(options, prog, hidden)
    try:
        with contextlib.redirect_stderr(told):
            config = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
            parsed, unknown = tyro.cli(options, prog=prog, args=words, return_unknown_args=True, config=config)
    except SystemExit as stop:
        if not stop.code:
            return None
        raise UsageError(_first_words(told.getvalue()), where=prog, fix=f"{prog} --help") from None
    if unknown:
        raise _unknown(options, prog, unknown)
    return parsed


def _unknown(options: type, prog: str, words: Sequence[str]) -> UsageError:
    word = next((word for word in words if word.startswith("-")), words[0])
    if not word.startswith("-"):
        return UsageError(f"one word too many: {word!r}", where=prog, fix=f"{prog} --help")
    known = ["--" + field.name.replace("_", "-") for field in fields(options)]
    near = nearest(word.split("=")[0], known)
    fix = f"did you mean {near[0]}?" if near else f"{prog} --help"
    return UsageError(f"there is no option {word}", where=prog, fix=fix)


def _first_words(told: str) -> str:
    """What the parser says, on one line: a title, a rule, the fault, a rule, the way to the help."""
    lines = [line.strip("│ ") for line in told.splitlines()]
    parts = [list(group) for rule, group in itertools.groupby(lines, _is_rule) if not rule]
    body = parts[0 if "│" in told else 1 : 2]  # in a box the title is part of the first rule
    said = re.sub(r"\s+", " ", " ".join(body[0])).strip() if body else "these options cannot be read"
    value = re.search(r"parsing (\S+): .*?('[^']*')\W*$", said)
    if value:
        return f"{value[1]} does not take {value[2]}"
    return re.sub(r"Missing from [\w ]+: ", "missing: ", said).replace(" (required)", "")


def _is_rule(line: str) -> bool:
    return not line or line.startswith("╭") or set(line) <= set("─-╰╯")
