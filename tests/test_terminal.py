"""Where the command line runs: pipes, narrow and dumb terminals, other encodings, strange homes and names."""

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
from test_structure import watched

# many commands in one process, since most of the time goes into starting it
DRIVER = """
import json, sys
from resnetkit.cli import main
for words in json.loads(sys.argv[1]):
    code = main(words)
    print(f"\\x1e{code}\\x1e", end="", flush=True)
"""
HELP = [[], *([verb, "--help"] for verb in COMMANDS)]
WRONG = [["explian"], ["explain"], ["explain", "resnet50", "--wyh"], ["explain", "resnet50", "--depth", "two"],
         ["explain", "resnet5O"], ["models", "zzz"], ["explain", "resnet50", "--size", "9" * 60 + "x"]]  # fmt: skip
COMMANDS = [
    *HELP,
    ["models"],
    ["explain", "resnet50"],
    ["explain", "resnet50", "--why", "stage2.block1.shortcut"],
    *WRONG,
]
WHOLE = ("error: ", "where: ", "fix: ", "next: ")  # lines to be copied, which a terminal breaks itself
QUIET = [{"NO_COLOR": "1", "TERM": "xterm-256color"}, {"TERM": "dumb"}]


def environment(home, **more):
    return {"PATH": os.environ["PATH"], "HOME": str(home), "LC_ALL": "C.UTF-8", "TERM": "xterm-256color", **more}


def parted(told):
    """What each command printed, with its exit code."""
    parts = told.split("\x1e")
    assert "Traceback" not in told, told
    return list(zip(map(int, parts[1::2]), parts[::2], strict=False))


def driven(commands):
    return [sys.executable, "-c", DRIVER, json.dumps(commands, ensure_ascii=False).encode()]


def in_terminal(commands, home, columns=40, **more):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    process = subprocess.Popen(
        driven(commands), stdin=theirs, stdout=theirs, stderr=theirs, env=environment(home, **more)
    )
    os.close(theirs)
    told = b""
    try:
        while part := os.read(ours, 65536):
            told += part
    except OSError:  # this is how Linux says that nobody writes any more
        pass
    os.close(ours)
    assert process.wait() == 0, told
    return parted(told.decode().replace("\r\n", "\n"))


def piped(commands, home, **more):
    done = subprocess.run(
        driven(commands), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True, env=environment(home, **more)
    )
    return parted(done.stdout.decode())


def letters(page):
    """What is said, however its lines are broken; a command that goes on in the next line says so with a backslash."""
    return Counter(re.sub(r"\x1b\[[0-9;]*m|\\(?=\s)|[\s╭╮╰╯│─]", "", page))


def test_a_narrow_terminal(tmp_path):
    narrow = in_terminal(COMMANDS, tmp_path)
    assert [code for code, _ in narrow] == [0] * (len(COMMANDS) - len(WRONG)) + [2] * len(WRONG)
    for words, (_, told) in zip(COMMANDS, narrow, strict=True):
        plain = re.sub(r"\x1b\[[0-9;]*m", "", told)
        wide = [line for line in plain.splitlines() if len(line) > 40 and not line.startswith(WHOLE)]
        assert [line for line in wide if len(line.split()) > 1] == [], words
    assert "\x1b[" in narrow[1][1]  # help is coloured
    assert all("\x1b" not in told for _, told in narrow[len(HELP) :])
    assert narrow[COMMANDS.index(["explain", "resnet50"])][1].splitlines()[-2:] == [
        "field 427", "next: resnetkit explain resnet50 --why stage1.block1.shortcut"
    ]  # fmt: skip
    assert ("9" * 60 + "x'\nwhere") in narrow[-1][1]
    broad = in_terminal(HELP, tmp_path, columns=300)
    for (_, told), (_, same) in zip(narrow, broad, strict=False):
        assert letters(told) == letters(same)


@pytest.mark.parametrize("more", QUIET)
def test_a_terminal_without_colours(more, tmp_path):
    for _, told in in_terminal(COMMANDS, tmp_path, columns=80, **more):
        assert "\x1b" not in told
        assert "\r" not in told


def test_a_pipe(tmp_path):
    told = piped(COMMANDS, tmp_path)
    assert "\x1b" not in "".join(page for _, page in told)
    assert "25,557,032" in told[COMMANDS.index(["models"])][1]


@pytest.mark.parametrize("run", [in_terminal, piped])
def test_neither_unicode_nor_a_home(run, tmp_path):
    mine = tmp_path / "käse.toml"
    mine.write_text(to_toml(spec("resnet20")))
    commands = [*COMMANDS, ["explain", str(mine)], ["explain", str(mine) + "x"]]
    told = run(commands, tmp_path / "none" / "such", LC_ALL="C", PYTHONUTF8="0")
    assert all(page.isascii() for _, page in told)
    assert [code for code, _ in told[-2:]] == [0, 2]
    assert "269,722 params" in told[-2][1]
    assert list(tmp_path.iterdir()) == [mine]


def test_a_name_that_the_encoding_has_not(cli, monkeypatch):
    error = UnicodeEncodeError("ascii", "käse", 1, 2, "ordinal not in range(128)")
    monkeypatch.setattr("resnetkit.commands.models.list_models", Mock(side_effect=error))
    told = "error: the encoding of this environment, ascii, has no letters for 'käse'\nfix: set PYTHONUTF8=1\n"
    assert cli("models") == (5, "", told)


def test_json_without_unicode(tmp_path):
    code = r"from resnetkit.commands.output import print_json; print_json('x', name='k\u00e4se \u732b \U0001f431')"
    more = {"LC_ALL": "C", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, env=environment(tmp_path, **more)
    )
    assert json.loads(done.stdout)["name"] == "käse 猫 \U0001f431"


@pytest.mark.parametrize(
    ("words", "redirected", "code", "printed"),
    [
        (["models"], "| head -n 1", 0, "name  "),
        (["models"], "2>/dev/null | true", 0, ""),
        (["--help"], "| true", 0, ""),
        (["explain", "--help"], "| true", 0, ""),
        (["explian"], "2>&1 | true", 2, ""),
        (["explain", "resnet18"], "2>/dev/full", 0, "path  "),
        (["models"], ">/dev/full", 5, "error: the system says: No space left on device\n"),
        (["models"], ">&-", 0, "next: resnetkit explain resnet18\n"),
        (["models"], "2>&-", 0, "name  "),
    ],
)
def test_a_reader_that_leaves(words, redirected, code, printed, tmp_path):
    line = f"set -o pipefail; {shlex.join([sys.executable, '-m', 'resnetkit', *words])} {redirected}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, env=environment(tmp_path))
    told = done.stdout + done.stderr
    assert done.returncode == code
    assert printed in told if printed else told == ""
    assert "Traceback" not in told
    assert "Exception ignored" not in told


def test_a_path_with_spaces(cli, tmp_path):
    path = tmp_path / "my nets" / "mine.toml"
    path.parent.mkdir()
    path.write_text(cli("explain", "resnet20", "--toml")[1])
    code, _, err = cli("explain", path)
    assert code == 0
    assert f"next: resnetkit explain '{path}' --why stage2.block1.shortcut\n" == err
    assert cli(*shlex.split(err)[2:])[0] == 0
    assert "fix: call it 'x y.svg'\n" in cli("explain", path, "--picture", "x y.png")[2]


@pytest.mark.parametrize(("term", "moves"), [("xterm", True), ("dumb", False), ("", False)])
def test_only_where_lines_can_be_rewritten_something_moves(term, moves, monkeypatch, capsys):
    monkeypatch.setenv("TERM", term)
    assert not can_rewrite_lines()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert can_rewrite_lines() == moves
    with progress_bar("reading") as tell:
        tell(1, 2)
    assert bool(capsys.readouterr().err) == moves


def test_what_is_next_can_be_copied(capsys):
    suggest_next("resnetkit evaluate", "my runs/a", "it's")
    assert shlex.split(capsys.readouterr().err)[2:] == ["evaluate", "my runs/a", "it's"]


@pytest.mark.parametrize(
    ("word", "fix"),
    [
        ("eval", "did you mean evaluate?"),
        ("pred", "did you mean predict?"),
        ("evalute", "did you mean evaluate?"),
        ("mdoels", "did you mean models?"),
        ("e", "did you mean explain or evaluate"),
        ("", "one of models, explain"),
    ],
)
def test_verbs_that_are_not_quite_right(word, fix, cli):
    code, _, err = cli(word)
    assert code == 2
    assert err.splitlines()[1].startswith(f"fix: {fix}")


def test_names_cannot_steer_a_terminal(cli):
    code, _, err = cli("explain", "\x1b[31m\u202egnp.toml")
    assert code == 2
    assert r"\x1b[31m\u202egnp.toml" in err
    assert "\x1b" not in err
    assert escape_control("a\tb\nc", keep="\n") == "a\\tb\nc"


def test_wide_letters_are_counted_as_wide():
    table = [["name", "n"], ["猫", "1"], ["dog", "2"], ["é", "3"]]
    assert align_table(table, 1).splitlines() == ["name  n", "猫    1", "dog   2", "é     3"]
    cut = fit_table([["name", "n"], ["猫" * 10, "1"]], 13, [])
    assert cut[1] == ["猫" * 4 + "…", "1"]


def test_our_warnings_are_a_line_and_others_are_left_alone(cli, monkeypatch):
    from resnetkit.commands import models

    def names(pattern):
        for _ in range(3):
            warnings.warn("the labels\nare old", ResnetkitWarning, stacklevel=1)
        warnings.warn("theirs", UserWarning, stacklevel=1)
        return ("resnet18",)

    monkeypatch.setattr(models, "list_models", names)
    with pytest.warns(UserWarning, match="theirs") as others:
        code, out, err = cli("models")
    assert (code, len(out.splitlines())) == (0, 2)
    assert err == "warning: the labels are old\nnext: resnetkit explain resnet18\n"
    assert [str(other.message) for other in others] == ["theirs"]


def test_a_missing_extra_is_a_sentence_and_nothing_is_started_or_written(tmp_path):
    code = """
from resnetkit.cli import main
sys.modules["sklearn"] = None
sys.modules["dill"] = None  # comes with an oracle of the tests; torch imports it, and it tries the folder of temporary files
sys.stderr = sys.stdout
codes = main(["train", "digits", "--model", "resnet20"]), main(["doctor", "--device", "cpu"])
# torch with CUDA asks ldconfig, while it is imported, where a library is
loud = [told for told in loud if "ldconfig" not in str(told) and told[1][0] != os.devnull]
assert (codes, loud) == ((5, 0), []), (codes, loud)
"""
    error, fix, *lines = watched(code, tmp_path=tmp_path).splitlines()
    assert re.fullmatch("error: scikit-learn.* is not installed", error)
    assert fix == "fix: pip install 'resnetkit[demo]'"
    assert f"cache {tmp_path}/.cache/resnetkit" in [" ".join(line.split()) for line in lines]
    assert lines[-1] == "next: resnetkit train digits --model resnet20 --device cpu"
