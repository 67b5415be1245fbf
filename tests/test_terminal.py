"""Where the command line runs: pipes, narrow and dumb terminals, other encodings, unusual homes and names."""

import fcntl
import json
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
import warnings
from collections import Counter
from unittest.mock import Mock

import pytest

from resnetkit.architecture.catalog import spec
from resnetkit.cli import COMMANDS
from resnetkit.commands.output import can_rewrite_lines, progress_bar, suggest_next
from resnetkit.errors import ResnetkitWarning
from resnetkit.formatting import align_table, escape_control, fit_table
from resnetkit.serialization import to_toml

from helpers.processes import run_audited

# many commands in one process, because starting it takes most of the time
DRIVER = """
import json, sys
from resnetkit.cli import main
for arguments in json.loads(sys.argv[1]):
    code = main(arguments)
    print(f"\\x1e{code}\\x1e", end="", flush=True)
"""
HELP = [[], *([command, "--help"] for command in COMMANDS)]
INVALID = [["explian"], ["explain"], ["explain", "resnet50", "--wyh"], ["explain", "resnet50", "--depth", "two"],
           ["explain", "resnet5O"], ["models", "zzz"], ["explain", "resnet50", "--size", "9" * 60 + "x"]]  # fmt: skip
ARGUMENTS = [
    *HELP,
    ["models"],
    ["explain", "resnet50"],
    ["explain", "resnet50", "--why", "stage2.block1.shortcut"],
    *INVALID,
]
UNBROKEN = ("error: ", "where: ", "fix: ", "next: ")  # lines to copy, which the terminal itself breaks
FEWER_ARGUMENTS = [*HELP[:2], *ARGUMENTS[len(HELP) :]]
WITHOUT_COLOR = [{"NO_COLOR": "1", "TERM": "xterm-256color"}, {"TERM": "dumb"}]


def make_environment(home, **variables):
    return {
        "PATH": os.environ["PATH"], "HOME": str(home), "LC_ALL": "C.UTF-8", "TERM": "xterm-256color", **variables
    }  # fmt: skip


def split_outputs(text):
    """Return (exit code, output) of each command."""
    items = text.split("\x1e")
    assert "Traceback" not in text, text
    return list(zip(map(int, items[1::2]), items[::2], strict=False))


def make_driver(commands):
    return [sys.executable, "-c", DRIVER, json.dumps(commands, ensure_ascii=False).encode()]


def run_in_terminal(commands, home, columns=40, **variables):
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    environment = make_environment(home, **variables)
    process = subprocess.Popen(
        make_driver(commands), stdin=secondary, stdout=secondary, stderr=secondary, env=environment
    )
    os.close(secondary)
    output = b""
    try:
        while chunk := os.read(primary, 65536):
            output += chunk
    except OSError:  # Linux reports EIO when the last writer is gone
        pass
    os.close(primary)
    assert process.wait() == 0, output
    return split_outputs(output.decode().replace("\r\n", "\n"))


def run_in_pipe(commands, home, **variables):
    environment = make_environment(home, **variables)
    process = subprocess.run(
        make_driver(commands), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True, env=environment
    )
    return split_outputs(process.stdout.decode())


def count_characters(page):
    """Count the characters without colors, white space and the backslashes at the end of lines."""
    return Counter(re.sub(r"\x1b\[[0-9;]*m|\\(?=\s)|\s", "", page))


def test_narrow_terminal(tmp_path):
    narrow = run_in_terminal(ARGUMENTS, tmp_path)
    assert [code for code, _ in narrow] == [0] * (len(ARGUMENTS) - len(INVALID)) + [2] * len(INVALID)
    for arguments, (_, output) in zip(ARGUMENTS, narrow, strict=True):
        plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
        long_lines = [line for line in plain.splitlines() if len(line) > 40 and not line.startswith(UNBROKEN)]
        assert [line for line in long_lines if len(line.split()) > 1] == [], arguments
    assert "\x1b[" in narrow[1][1]  # help has colors
    assert all("\x1b" not in output for _, output in narrow[len(HELP) :])
    assert narrow[ARGUMENTS.index(["explain", "resnet50"])][1].splitlines()[-2:] == [
        "field 427", "next: resnetkit explain resnet50 --why stage1.block1.shortcut"
    ]  # fmt: skip
    assert ("9" * 60 + "x'\nwhere") in narrow[-1][1]
    wide = run_in_terminal(HELP, tmp_path, columns=300)
    for (_, narrow_page), (_, wide_page) in zip(narrow, wide, strict=False):
        assert count_characters(narrow_page) == count_characters(wide_page)


@pytest.mark.parametrize("variables", WITHOUT_COLOR)
def test_terminal_without_colors(variables, tmp_path):
    for _, output in run_in_terminal(FEWER_ARGUMENTS, tmp_path, columns=80, **variables):
        assert "\x1b" not in output
        assert "\r" not in output


def test_pipe(tmp_path):
    outputs = run_in_pipe(FEWER_ARGUMENTS, tmp_path)
    assert "\x1b" not in "".join(page for _, page in outputs)
    assert "25,557,032" in outputs[FEWER_ARGUMENTS.index(["models"])][1]


@pytest.mark.parametrize("run", [run_in_terminal, run_in_pipe])
def test_neither_unicode_nor_a_home(run, tmp_path):
    spec_file = tmp_path / "käse.toml"
    spec_file.write_text(to_toml(spec("resnet20")))
    commands = [*FEWER_ARGUMENTS, ["explain", str(spec_file)], ["explain", str(spec_file) + "x"]]
    outputs = run(commands, tmp_path / "none" / "such", LC_ALL="C", PYTHONUTF8="0")
    assert all(page.isascii() for _, page in outputs)
    assert [code for code, _ in outputs[-2:]] == [0, 2]
    assert "269,722 params" in outputs[-2][1]
    assert list(tmp_path.iterdir()) == [spec_file]


def test_file_name_that_the_encoding_cannot_represent(cli, monkeypatch):
    error = UnicodeEncodeError("ascii", "käse", 1, 2, "ordinal not in range(128)")
    monkeypatch.setattr("resnetkit.commands.models.list_models", Mock(side_effect=error))
    message = "error: the encoding of this environment, ascii, cannot represent 'käse'\nfix: set PYTHONUTF8=1\n"
    assert cli("models") == (5, "", message)


def test_json_without_unicode(tmp_path):
    code = r"from resnetkit.commands.output import print_json; print_json('x', name='k\u00e4se \u732b \U0001f431')"
    environment = make_environment(tmp_path, LC_ALL="C", PYTHONUTF8="0")
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
    assert json.loads(process.stdout)["name"] == "käse 猫 \U0001f431"


@pytest.mark.parametrize(
    ("arguments", "redirection", "code", "output"),
    [
        (["explain", "resnet18"], "| head -n 1", 0, "path  "),
        (["explain", "resnet18"], "2>/dev/null | true", 0, ""),
        (["explain", "--help"], "| true", 0, ""),
        (["explian"], "2>&1 | true", 2, ""),
        (["explain", "resnet18"], "2>/dev/full", 0, "path  "),
        (["--help"], ">/dev/full", 5, "error: operating system error: No space left on device\n"),
        (["explain", "resnet18"], ">&-", 0, "next: resnetkit explain resnet18 --why stage2.block1.shortcut\n"),
        (["--help"], "2>&-", 0, "usage: "),
    ],
)
def test_closed_and_full_outputs(arguments, redirection, code, output, tmp_path):
    line = f"set -o pipefail; {shlex.join([sys.executable, '-m', 'resnetkit', *arguments])} {redirection}"
    process = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=False, env=make_environment(tmp_path)
    )
    text = process.stdout + process.stderr
    assert process.returncode == code
    assert output in text if output else text == ""
    assert "Traceback" not in text
    assert "Exception ignored" not in text


def test_path_with_spaces(cli, tmp_path):
    path = tmp_path / "my nets" / "mine.toml"
    path.parent.mkdir()
    path.write_text(cli("explain", "resnet20", "--toml")[1])
    code, _, err = cli("explain", path)
    assert code == 0
    assert f"next: resnetkit explain '{path}' --why stage2.block1.shortcut\n" == err
    assert cli(*shlex.split(err)[2:])[0] == 0
    assert "fix: call it 'x y.svg'\n" in cli("explain", path, "--picture", "x y.png")[2]


@pytest.mark.parametrize(("term", "is_shown"), [("xterm", True), ("dumb", False), ("", False)])
def test_progress_bar_needs_a_terminal_that_rewrites_lines(term, is_shown, monkeypatch, capsys):
    monkeypatch.setenv("TERM", term)
    assert not can_rewrite_lines()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert can_rewrite_lines() == is_shown
    with progress_bar("reading") as on_progress:
        on_progress(1, 2)
    assert bool(capsys.readouterr().err) == is_shown


def test_next_line_can_be_copied(capsys):
    suggest_next("resnetkit evaluate", "my runs/a", "it's")
    assert shlex.split(capsys.readouterr().err)[2:] == ["evaluate", "my runs/a", "it's"]


@pytest.mark.parametrize(
    ("command", "fix"),
    [
        ("eval", "did you mean evaluate?"),
        ("pred", "did you mean predict?"),
        ("evalute", "did you mean evaluate?"),
        ("mdoels", "did you mean models?"),
        ("e", "did you mean explain or evaluate"),
        ("", "one of models, explain"),
    ],
)
def test_similar_commands_are_suggested(command, fix, cli):
    code, _, err = cli(command)
    assert code == 2
    assert err.splitlines()[1].startswith(f"fix: {fix}")


def test_file_names_cannot_control_a_terminal(cli):
    code, _, err = cli("explain", "\x1b[31m\u202egnp.toml")
    assert code == 2
    assert r"\x1b[31m\u202egnp.toml" in err
    assert "\x1b" not in err
    assert escape_control("a\tb\nc", keep="\n") == "a\\tb\nc"


def test_width_of_wide_and_combining_characters():
    table = [["name", "n"], ["猫", "1"], ["dog", "2"], ["é", "3"]]
    assert align_table(table, 1).splitlines() == ["name  n", "猫    1", "dog   2", "é     3"]
    fitted = fit_table([["name", "n"], ["猫" * 10, "1"]], 13, [])
    assert fitted[1] == ["猫" * 4 + "…", "1"]


def test_warnings_of_resnetkit_are_one_line(cli, monkeypatch):
    from resnetkit.commands import models

    def list_models(pattern):
        for _ in range(3):
            warnings.warn("the labels\nare old", ResnetkitWarning, stacklevel=1)
        warnings.warn("theirs", UserWarning, stacklevel=1)
        return ("resnet18",)

    monkeypatch.setattr(models, "list_models", list_models)
    with pytest.warns(UserWarning, match="theirs") as records:
        code, out, err = cli("models")
    assert (code, len(out.splitlines())) == (0, 2)
    assert err == "warning: the labels are old\nnext: resnetkit explain resnet18\n"
    assert [str(record.message) for record in records] == ["theirs"]


def test_missing_extra_is_reported_without_side_effects(tmp_path):
    code = """
from resnetkit.cli import main
sys.modules["sklearn"] = None
sys.modules["dill"] = None  # installed for other tests; torch imports it, and it writes to the temporary folder
sys.stderr = sys.stdout
codes = main(["train", "digits", "--model", "resnet20"]), main(["doctor", "--device", "cpu"])
# while it is imported, torch with CUDA asks ldconfig for a library
events = [event for event in events if "ldconfig" not in str(event) and event[1][0] != os.devnull]
assert (codes, events) == ((5, 0), []), (codes, events)
"""
    error, fix, *lines = run_audited(code, folder=tmp_path).splitlines()
    assert error == "error: scikit-learn, which contains the digits, is not installed"
    assert fix == "fix: pip install 'scikit-learn>=1.7'"
    assert f"cache {tmp_path}/.cache/resnetkit" in [" ".join(line.split()) for line in lines]
    assert lines[-1] == "next: resnetkit train digits --model resnet20 --device cpu"
