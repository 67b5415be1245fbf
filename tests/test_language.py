"""The language of the code: names, docstrings and words that CONTRIBUTING.md asks for."""

import ast
import re

import pytest

from helpers.source import PACKAGE, ROOT, parse_file

VAGUE_NAMES = {
    "found", "told", "made", "said", "asked", "one", "some", "other", "here", "there", "how", "which"
}  # fmt: skip
FOLDERS = sorted(path for path in PACKAGE.iterdir() if path.is_dir() and any(path.rglob("*.py")))
MAX_FIRST_LINE, MAX_WORDS = 100, 24
VAGUE_STARTS = r"(What|Whoever|Where|Of|As)\b"
REPLACED_WORDS = {  # pattern -> the word to use
    r"(?<!-)\bpictures?\b": "image",
    r"\bis no \w+": "is not a",
    r"\bcame\b": "got",
    r"\bleft out\b": "skipped",
    r"\bpassed over\b": "skipped",
    r"\brightly\b": "correct",
    r"\btold\b": "options, notes or text",
    r"\bverbs?\b": "command",
    r"\bcolour": "color",
    r"\bnormalis": "normaliz",
    r"\binitialis": "initializ",
    r"\brecognis": "recogniz",
    r"\boptimis": "optimiz",
    r"\bbehaviour": "behavior",
    r"\bcentre": "center",
    r"\blicence": "license",
    r"\bartefact": "artifact",
    r"\bgrey\b": "gray",
    r"\bcatalogue\b": "catalog",
}


def list_files(folder):
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder]


def describe(path, node, text):
    return f"{path.relative_to(ROOT)}:{node.lineno}: {text}"


PACKAGE_PARTS = [*FOLDERS, *sorted(PACKAGE.glob("*.py"))]
ALL_PARTS = [*PACKAGE_PARTS, *(ROOT / name for name in ("tests", "docs", "benchmarks", "examples"))]


def name_part(path):
    return path.stem if path.is_relative_to(PACKAGE) else path.name


@pytest.mark.parametrize("part", ALL_PARTS, ids=name_part)
def test_names_say_what_they_hold(part):
    vague = []
    for path in list_files(part):
        for node in ast.walk(parse_file(path)):
            name = node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else None
            name = getattr(node, "arg", None) if isinstance(node, ast.arg) else name
            if name in VAGUE_NAMES:
                vague.append(describe(path, node, name))
    assert vague == []


def walk_functions(node, is_public=True):
    """Yield (function, whether it is public) for each function of a module, nested ones too."""
    for child in getattr(node, "body", ()):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            is_child_public = is_public and not child.name.startswith("_")
            if isinstance(child, ast.FunctionDef):
                yield child, is_child_public
            yield from walk_functions(child, is_child_public and isinstance(child, ast.ClassDef))


def walk_own_nodes(function):
    """Yield the nodes of a function without those of functions and classes inside it."""
    nodes = list(ast.iter_child_nodes(function))
    while nodes:
        node = nodes.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            nodes += ast.iter_child_nodes(node)


def get_section(doc, name):
    """Return the lines of a section of a Google-style docstring."""
    match = re.search(rf"^{name}:\n((?:[ \t]+.*\n?|\n)*)", doc, re.MULTILINE)
    return match[1] if match else ""


def list_parameter_names(function):
    arguments = function.args
    parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    names = [parameter.arg for parameter in parameters if parameter]
    return [name for name in names if name not in ("self", "cls") and not name.startswith("_")]


def list_raised(function):
    """List the exceptions that a function raises by their class."""
    raised = set()
    for node in walk_own_nodes(function):
        if isinstance(node, ast.Raise) and node.exc:
            raised.add(ast.unparse(node.exc.func if isinstance(node.exc, ast.Call) else node.exc))
    return sorted(name for name in raised if re.fullmatch(r"[A-Z]\w+", name))


def check_docstring(function, is_public):
    """Yield what the docstring of a function lacks."""
    decorators = [ast.unparse(decorator) for decorator in function.decorator_list]
    doc = ast.get_docstring(function) or ""
    if len(doc.split("\n")[0]) > MAX_FIRST_LINE:
        yield f"the first line is longer than {MAX_FIRST_LINE} characters"
    if not is_public or any("property" in name or name.endswith("overload") for name in decorators):
        return
    parameters, arguments = list_parameter_names(function), get_section(doc, "Args")
    if len(parameters) > 1:
        missing = [name for name in parameters if not re.search(rf"^\s+\*{{0,2}}{name}\b.*:", arguments, re.MULTILINE)]
        if missing:
            yield f"Args lacks {', '.join(missing)}"
    missing = [name for name in list_raised(function) if name not in get_section(doc, "Raises")]
    if missing:
        yield f"Raises lacks {', '.join(missing)}"


@pytest.mark.parametrize("part", PACKAGE_PARTS, ids=name_part)
def test_docstrings_name_arguments_and_errors(part):
    faults = [
        describe(path, function, f"{function.name}: {fault}")
        for path in list_files(part)
        for function, is_public in walk_functions(parse_file(path))
        for fault in check_docstring(function, is_public)
    ]
    assert faults == []


def list_input_names(tree):
    """List the strings that name input of others: keys of old files and columns of datasets."""
    names = {"RENAMED_KEYS", "_IMAGE_NAMES"}
    for node in ast.walk(tree):
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        if isinstance(node, ast.Assign | ast.AnnAssign) and names & {getattr(target, "id", "") for target in targets}:
            yield from node.value.keys if isinstance(node.value, ast.Dict) else node.value.elts


def list_texts(path):
    """List (node, text) of the strings of a file: docstrings, messages, help."""
    input_names = set(list_input_names(parse_file(path)))
    return [
        (node, node.value)
        for node in ast.walk(parse_file(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in input_names
    ]


def split_sentences(text):
    """Split a text into sentences, without code, tables and styles."""
    sentences = re.split(r"(?<=[.;:!?])\s+|\n\s*\n|\n\s+\w+: ", text)
    return [sentence for sentence in sentences if not re.search(r"[{}=\t|]|\n {4,}|var\(--", sentence)]


@pytest.mark.parametrize("part", PACKAGE_PARTS, ids=name_part)
def test_texts_use_the_words_of_the_glossary(part):
    faults = []
    for path in list_files(part):
        for node, text in list_texts(path):
            for pattern, replacement in REPLACED_WORDS.items():
                match = re.search(pattern, text) if text != "picture" else None  # the option --picture keeps its name
                if match:
                    faults.append(describe(path, node, f"{match[0]!r}: use {replacement!r}"))
    assert faults == []


@pytest.mark.parametrize("part", PACKAGE_PARTS, ids=name_part)
def test_sentences_are_short_and_begin_plainly(part):
    faults = []
    for path in list_files(part):
        for node, text in list_texts(path):
            for sentence in split_sentences(text):
                if len(sentence.split()) > MAX_WORDS:
                    faults.append(describe(path, node, f"{len(sentence.split())} words: {' '.join(sentence.split())}"))
                if len(sentence.split()) > 3 and re.match(VAGUE_STARTS, sentence):
                    faults.append(describe(path, node, f"begins vaguely: {' '.join(sentence.split())}"))
    assert faults == []
