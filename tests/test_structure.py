"""The house: which way imports run, what the package names, what stays free of torch, and what nothing does."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import resnetkit

SOURCE = Path(resnetkit.__file__).parent
MODULES = {
    ".".join(("resnetkit", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}
# Each layer may import itself and the layers before it.
LAYERS = ["errors", "formatting", "file_types", "serialization", "files", "html", "runtime", "architecture", "images", "network", "data", "weights", "surgery",
          "engines", "prediction", "evaluation", "optimization", "explain", "training", "commands", "cli", "__main__"]  # fmt: skip
NARROW = {  # layers that import less than their place allows
    "file_types": set(),
    "runtime": {"errors"},
    "images": {"errors", "formatting", "file_types", "architecture"},
    "html": {"formatting"},
    "data": {"errors", "formatting", "serialization", "files", "html", "runtime", "architecture", "images"},
    "network": {"errors", "formatting", "runtime", "architecture", "images"},
    "weights": {"errors", "file_types", "serialization", "formatting", "files", "architecture", "network"},
    "surgery": {"errors", "formatting", "architecture", "network", "weights"},
    "prediction": set(LAYERS[: LAYERS.index("prediction")]),
    "evaluation": set(LAYERS[: LAYERS.index("prediction")]),
    "explain": {"errors", "formatting", "html", "architecture", "images", "network", "weights"},
    "cli": {"errors", "formatting", "commands"},
}
TORCH_FREE_MARKER = "This module imports no torch."
TORCH_FREE = [
    name
    for name, path in MODULES.items()
    if TORCH_FREE_MARKER in (ast.get_docstring(ast.parse(path.read_text())) or "")
]


def layer(module):
    return [*module.split("."), ""][1]


def imported(path):
    """Every module of ours that a file imports, at its top or in a function; annotations for type checkers aside."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and id(node) not in skipped
            and (node.module or "").startswith("resnetkit.")
        ):
            yield node.module
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("resnetkit."))


@pytest.mark.parametrize("module", [name for name in MODULES if name != "resnetkit"])
def test_imports_run_one_way(module):
    mine = layer(module)
    for other in map(layer, imported(MODULES[module])):
        assert other in MODULES or other in LAYERS
        assert LAYERS.index(other) <= LAYERS.index(mine), f"{module} imports {other}"
        assert other == mine or other in NARROW.get(mine, set(LAYERS)), f"{module} imports {other}"


def test_no_module_of_a_layer_is_part_of_a_circle():
    graph = {name: set(imported(path)) & set(MODULES) for name, path in MODULES.items() if name != "resnetkit"}
    graph["resnetkit.architecture.plan"].remove("resnetkit.architecture.summary")  # print(plan) draws its own table
    while graph:
        free = [name for name, needs in graph.items() if not needs & set(graph)]
        assert free, f"a circle among {sorted(graph)}"
        for name in free:
            del graph[name]


def test_the_public_surface():
    assert dir(resnetkit) == sorted([*resnetkit.__all__, "__version__"])
    assert resnetkit.__all__ == list(resnetkit._PLACES)
    everything = {}
    exec("from resnetkit import *", everything)
    assert set(everything) - {"__builtins__"} == set(resnetkit.__all__)
    for name in resnetkit.__all__:
        assert getattr(resnetkit, name).__doc__, name
    with pytest.raises(AttributeError, match="module 'resnetkit' has no attribute 'resnet50'"):
        _ = resnetkit.resnet50


WATCH = """
import os, sys
loud = []
def hook(event, arguments):
    written = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if written or event.startswith(("socket.", "subprocess.", "os.exec", "os.spawn", "os.fork", "os.posix_spawn", "os.system",
                                    "os.mkdir", "os.rename", "os.remove", "shutil.", "urllib.")):
        loud.append((event, arguments))
sys.dont_write_bytecode = True
sys.addaudithook(hook)
"""


def watched(code, *arguments, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WATCH + code, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={"PATH": "", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    return done.stdout


def test_the_declarative_half_is_marked():
    rooms = (
        "architecture",
        "html",
        "images",
        "data.readers",
        "explain.drawings",
        "explain.why",
        "commands.explain",
        "cli",
        "prediction.api",
    )
    assert all(
        any(name == f"resnetkit.{room}" or name.startswith(f"resnetkit.{room}.") for name in TORCH_FREE)
        for room in rooms
    )
    assert len(TORCH_FREE) >= 90


def test_the_declarative_half_has_no_torch_and_touches_nothing(tmp_path):
    code = f"""
import importlib
for name in {TORCH_FREE}:
    importlib.import_module(name)
    assert "torch" not in sys.modules, name
from resnetkit.architecture.plan import plan
from resnetkit.architecture.catalog import spec
str(plan(spec("resnet50")))
assert not loud, loud
"""
    watched(code, tmp_path=tmp_path)


@pytest.mark.parametrize(
    "words",
    [["--help"], ["explain", "resnet50"], ["explain", "resnet50", "--why", "stage2.block1.shortcut"], ["models"],
     ["train", "--help"], ["explain", "resnet18", "--json"]],
)  # fmt: skip
def test_commands_that_need_no_torch(tmp_path, words):
    code = """
from resnetkit.cli import main
assert main(sys.argv[1:]) == 0
assert "torch" not in sys.modules
assert not loud, loud
"""
    assert watched(code, *words, tmp_path=tmp_path)


def test_importing_the_package_imports_nothing():
    code = "import sys, resnetkit; print([n for n in sys.modules if n.startswith('resnetkit')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['resnetkit']"


def test_help_tells_every_verb_and_every_verb_has_a_module():
    from resnetkit.cli import COMMANDS, _format_help

    assert all(verb in _format_help() for verb in COMMANDS)
    verbs = {name.rpartition(".")[2] for name in MODULES if name.startswith("resnetkit.commands.")}
    assert verbs - {"output", "progress", "weights_options", "stdin", "distributed", "help"} == set(COMMANDS)


def test_a_pickle_is_read_in_one_place_and_never_freely():
    text = {name: path.read_text() for name, path in MODULES.items()}
    assert [name for name in text if "torch.load(" in text[name]] == ["resnetkit.weights.read"]
    assert "weights_only=False" not in "".join(text.values())
    assert not re.search(r"\b(pickle\.(load|dump)|eval\(|exec\()", "".join(text.values()).replace(".eval()", ""))


def test_functions_are_short():
    lengths = [
        node.end_lineno - node.body[0].lineno + 1
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    ]
    assert sum(lengths) / len(lengths) < 10
    assert max(lengths) <= 45
