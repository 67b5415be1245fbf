"""The structure of the package: the direction of imports, public names, modules without torch, side effects."""

import ast
import re
import subprocess
import sys

import pytest

import resnetkit

from helpers.processes import run_audited
from helpers.source import MODULES, parse_file

# Each layer may import itself and the layers before it.
LAYERS = ["errors", "formatting", "file_types", "serialization", "files", "html", "runtime", "architecture", "images", "network", "data", "weights", "surgery",
          "engines", "prediction", "evaluation", "optimization", "explain", "training", "commands", "cli", "__main__"]  # fmt: skip
NARROW = {  # layers that import less than their place allows
    "file_types": set(),
    "runtime": {"errors"},
    "images": {"errors", "formatting", "file_types", "runtime", "architecture"},
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
    name for name, path in MODULES.items() if TORCH_FREE_MARKER in (ast.get_docstring(parse_file(path)) or "")
]


def get_layer(module):
    return [*module.split("."), ""][1]


def list_imports(path):
    """List the modules of the package that a file imports, in functions too, but not for type checkers only."""
    tree = parse_file(path)
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
    layer = get_layer(module)
    for imported in map(get_layer, list_imports(MODULES[module])):
        assert imported in MODULES or imported in LAYERS
        assert LAYERS.index(imported) <= LAYERS.index(layer), f"{module} imports {imported}"
        assert imported == layer or imported in NARROW.get(layer, set(LAYERS)), f"{module} imports {imported}"


def test_modules_do_not_import_each_other_in_circles():
    graph = {name: set(list_imports(path)) & set(MODULES) for name, path in MODULES.items() if name != "resnetkit"}
    graph["resnetkit.architecture.plan"].remove("resnetkit.architecture.summary")  # print(plan) prints its table
    while graph:
        free = [name for name, needs in graph.items() if not needs & set(graph)]
        assert free, f"a circle among {sorted(graph)}"
        for name in free:
            del graph[name]


def test_public_names_of_the_package():
    assert dir(resnetkit) == sorted([*resnetkit.__all__, "__version__"])
    namespace = {}
    exec("from resnetkit import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(resnetkit.__all__)
    for name in resnetkit.__all__:
        assert getattr(resnetkit, name).__doc__, name
    with pytest.raises(AttributeError, match="module 'resnetkit' has no attribute 'resnet50'"):
        _ = resnetkit.resnet50


def test_declarative_modules_are_marked_torch_free():
    declarative = (
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
        any(name == f"resnetkit.{module}" or name.startswith(f"resnetkit.{module}.") for name in TORCH_FREE)
        for module in declarative
    )
    assert len(TORCH_FREE) >= 90


def test_torch_free_modules_import_no_torch_and_have_no_side_effects(tmp_path):
    code = f"""
import importlib
for name in {TORCH_FREE}:
    importlib.import_module(name)
    assert "torch" not in sys.modules, name
from resnetkit.architecture.plan import plan
from resnetkit.architecture.catalog import spec
str(plan(spec("resnet50")))
assert not events, events
"""
    run_audited(code, folder=tmp_path)


def test_commands_that_need_no_torch(tmp_path):
    commands = [["--help"], ["explain", "resnet50"], ["explain", "resnet50", "--why", "stage2.block1.shortcut"],
                ["models"], ["train", "--help"], ["explain", "resnet18", "--json"]]  # fmt: skip
    code = f"""
from resnetkit.cli import main
for arguments in {commands}:
    assert main(arguments) == 0
    assert "torch" not in sys.modules
    assert not events, events
"""
    assert run_audited(code, folder=tmp_path)


def test_importing_the_package_imports_nothing():
    code = "import sys, resnetkit; print([n for n in sys.modules if n.startswith('resnetkit')])"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "['resnetkit']"


def test_each_command_has_a_module_and_imports_only_its_own():
    from resnetkit.cli import COMMANDS

    modules = {name for name in MODULES if name.startswith("resnetkit.commands.")}
    commands = {name for name in modules if "class Options:" in MODULES[name].read_text()}
    assert commands == {f"resnetkit.commands.{command}" for command in COMMANDS}
    code = f"""
import sys
from resnetkit.cli import main
main(["train", "--help"])
print([name for name in {sorted(commands)} if name in sys.modules])
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[-1] == "['resnetkit.commands.train']"


def test_pickles_are_read_in_one_place_and_only_as_data():
    texts = {name: path.read_text() for name, path in MODULES.items()}
    assert [name for name, text in texts.items() if "pickletools" in text] == ["resnetkit.weights.pickles"]
    assert not re.search(r"torch\.load\(|weights_only|Unpickler|find_class\b", "".join(texts.values()))
    assert not re.search(r"\b(pickle\.(load|dump)|eval\(|exec\()", "".join(texts.values()).replace(".eval()", ""))


def test_functions_are_short():
    lengths = [
        node.end_lineno - node.body[0].lineno + 1
        for path in MODULES.values()
        for node in ast.walk(parse_file(path))
        if isinstance(node, ast.FunctionDef)
    ]
    assert sum(lengths) / len(lengths) < 10
    assert max(lengths) <= 45


SHARED_NAMES = {  # one per program, command and engine
    "main": "resnetkit.",
    "Options": "resnetkit.commands.",
    "run": "resnetkit.commands.",
    "export_artifact": "resnetkit.engines.",
    "load_engine": "resnetkit.engines.",
}


def test_public_functions_and_classes_have_different_names():
    modules = {}
    for module, path in MODULES.items():
        for node in parse_file(path).body:
            is_definition = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if is_definition and not module.startswith(SHARED_NAMES.get(node.name, "-")):
                modules.setdefault(node.name, []).append(module)
    assert {name: where for name, where in modules.items() if len(where) > 1} == {}
