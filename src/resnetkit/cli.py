"""The command line: a table of commands. Only the chosen command's module is imported, so that help is instant.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import itertools
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from resnetkit.commands.output import log, open_devnull
from resnetkit.errors import MachineError, PeerProcessError, ResnetkitError, ResnetkitWarning, UsageError, find_closest

COMMANDS = {
    "models": "list networks with params, MACs and published accuracy",
    "explain": "show a network as a table, drawing or page, and why each part is there",
    "check": "find unreadable, duplicate and leaking images in a dataset",
    "train": "train a network on a dataset, or fine-tune a trained one",
    "evaluate": "measure the accuracy of a model on a dataset",
    "report": "write the report of a run, or compare several runs",
    "predict": "classify images",
    "embed": "compute feature vectors of images",
    "convert": "convert weights to the format of another library",
    "modify": "edit a trained network and verify the result",
    "optimize": "find the fastest inference engine whose predictions match fp32",
    "doctor": "describe the environment, for a bug report",
}
DISTRIBUTED_COMMANDS = ("train", "evaluate", "predict")  # those that torchrun may start


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    sys.stdout = sys.stdout or open_devnull()  # closed by `>&-`
    sys.stderr = sys.stderr or open_devnull()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may hold bytes that are not text
    try:
        with _shorten_warnings():
            return _run_reporting_errors(args)
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # otherwise Python flushes again at exit and prints its own error
                with open_devnull() as devnull:
                    os.dup2(devnull.fileno(), stream.fileno())


def _run_reporting_errors(args: list[str]) -> int:
    try:
        code = _run_command(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as interrupt:
        log(f"interrupted; {interrupt}" if str(interrupt) else "interrupted")
        return 130
    except BrokenPipeError:  # the reader of a pipe has closed it: `resnetkit models | head`
        return 0
    except Exception as error:
        known_error = _convert_error(error)
        if isinstance(known_error, PeerProcessError):
            if known_error.what:
                log(f"stopped: {known_error.what}")
            return known_error.exit_code
        if known_error is None:
            log(traceback.format_exc().rstrip())
            message = f"a bug in resnetkit: {type(error).__name__}: {error}"
            known_error = ResnetkitError(message, fix="please report it, with the output of `resnetkit doctor`")
        log("\n".join([str(known_error), *getattr(error, "__notes__", ())]))
        return known_error.exit_code


@contextlib.contextmanager
def _shorten_warnings() -> Iterator[None]:
    """Print each warning of resnetkit as one line; other warnings keep Python's form, for programmers."""
    with warnings.catch_warnings():
        default_showwarning = warnings.showwarning

        def show_warning(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
            if issubclass(category, ResnetkitWarning):
                log("warning: " + " ".join(str(message).splitlines()))
            else:
                default_showwarning(message, category, *args, **kwargs)

        if not sys.warnoptions:
            warnings.simplefilter("default", ResnetkitWarning)
        warnings.showwarning = show_warning
        yield


def _convert_error(error: Exception) -> ResnetkitError | None:
    """Return the error as one of resnetkit's classes; None for a bug."""
    if isinstance(error, ResnetkitError):
        return error
    if isinstance(error, OSError):
        error_type = UsageError if error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR) else MachineError
        location = str(error.filename) if error.filename else ()
        return error_type(f"operating system error: {error.strerror or error}", where=location)
    if isinstance(error, UnicodeEncodeError) and error.encoding != "utf-8":
        message = f"the encoding of this environment, {error.encoding}, cannot represent {error.object!r}"
        return MachineError(message, fix="set PYTHONUTF8=1")
    # torch's out-of-memory error is recognized by its text, so that torch need not be imported
    text = str(error) if isinstance(error, RuntimeError) else ""
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "out of memory" in text:
        return MachineError("out of memory", fix="use smaller batches or images")
    return None


def _run_command(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        from resnetkit.commands.help import format_overview

        print(format_overview(COMMANDS))
        return 0
    if args[0] == "--version":
        from resnetkit import __version__

        print(__version__)
        return 0
    command, *rest = args
    if any("\0" in arg for arg in args):
        raise UsageError("an argument holds a NUL character", fix="remove it; no file name can hold one")
    if command.startswith("-"):
        raise UsageError(f"an option before the command: {command}", fix="begin with a command: resnetkit --help")
    if command not in COMMANDS:
        raise UsageError(f"unknown command: {command!r}", fix=_suggest_command(command))
    module, prog = importlib.import_module(f"resnetkit.commands.{command}"), f"resnetkit {command}"
    _check_single_process(command)
    if {"-h", "--help"} & set(itertools.takewhile(lambda arg: arg != "--", rest)):
        from resnetkit.commands.help import format_command_help

        print(format_command_help(module.Options, prog))
        return 0
    from resnetkit.commands.arguments import parse_options

    return int(module.run(parse_options(module.Options, prog, rest)))


def _check_single_process(command: str) -> None:
    """Check that torchrun has not started several processes of a command that runs in one."""
    is_launched = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE") != "1"
    if is_launched and command not in DISTRIBUTED_COMMANDS:
        message = f"{command} runs in one process; several would repeat the same work"
        raise UsageError(message, where="torchrun", fix=f"resnetkit {command} ..., without torchrun")


def _suggest_command(command: str) -> str:
    from resnetkit.commands.synonyms import find_command

    matches = [name for name in COMMANDS if command and name.startswith(command)]
    matches = matches or list(filter(None, [find_command(command)])) or [*find_closest(command, COMMANDS, cutoff=0.7)]
    return f"did you mean {' or '.join(matches)}?" if matches else f"one of {', '.join(COMMANDS)}"
