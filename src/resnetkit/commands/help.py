"""What ``--help`` says of a verb: its sentences, its commands to copy, what an option takes and what it has unless set.

All of it is read from the dataclass of the verb's options, in one place, so that no verb has a manner of its own.

This module imports no torch.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import shutil
import textwrap
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

_METAVARS = {  # what stands behind an option whose value is text; else it is told by the sentence, or by the type
    "model": "MODEL",
    "data": "DIR",
    "config": "FILE",
    "device": "NAME",
    "network": "NAME",
    "dialect": "NAME",
    "engines": "NAME",
    "precisions": "NAME",
    "place": "PATH",
    "max_bad": "SHARE",
    "set": "KEY=VALUE",
    "minutes": "MINUTES",
}
_OUTPUT_PATTERN = re.compile(r"^[^;:]*?\b(file|folder) to write\b")
_OUTPUT_METAVARS = {"file": "FILE", "folder": "DIR"}


def format_description(options_type: type) -> str:
    """What a verb does: each paragraph a line, the commands to copy on a line of their own."""
    paragraphs = inspect.cleandoc(options_type.__doc__ or "").split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    return re.sub(r"(?<=\S) Examples: ", "\n\nExamples: ", text)


def format_examples(examples: str) -> list[str]:
    """The line of examples as commands that a shell takes as they stand, where they need several lines, too."""
    return [line for example in examples.split("; ") for line in _wrap_command(example)]


def _wrap_command(command: str) -> list[str]:
    """An option stays with its value; a line that goes on ends as a shell wants it, and what follows is indented."""
    unbreakable = re.sub(r"(?<= )(--?[a-z-]+|[>|]) (?=[^- ])", "\\1\N{NO-BREAK SPACE}", command)
    width = shutil.get_terminal_size().columns
    wrapped = textwrap.wrap(
        unbreakable,
        width - 2,
        initial_indent="  ",
        subsequent_indent=" " * 6,
        break_long_words=False,
        break_on_hyphens=False,
    )
    lines = [line.replace("\N{NO-BREAK SPACE}", " ") for line in wrapped]
    return [*(f"{line} \\" for line in lines[:-1]), lines[-1]]


def build_option_registry() -> ConstructorRegistry:
    """For the parser: how the fields of a verb's options become options."""
    registry = ConstructorRegistry()

    @registry.struct_rule
    def build_struct_spec(info: StructTypeInfo) -> StructConstructorSpec | None:
        if not is_dataclass(info.type):
            return None
        docs, hints = _parse_field_docs(info.type), get_type_hints(info.type, include_extras=True)
        defaults = info.default if isinstance(info.default, info.type) else None
        field_specs = [
            _build_field_spec(field, hints[field.name], docs.get(field.name), defaults) for field in fields(info.type)
        ]
        return StructConstructorSpec(instantiate=info.type, fields=tuple(field_specs))

    return registry


def _parse_field_docs(options_type: type) -> dict[str, str]:
    """Of each field what stands below it, whatever the lines it is written on."""
    body = ast.parse(textwrap.dedent(inspect.getsource(options_type))).body[0].body  # type: ignore[attr-defined]
    return {
        field.target.id: " ".join(str(doc.value.value).split())
        for field, doc in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant)
    }


def _build_field_spec(field: Field[Any], hint: Any, doc: str | None, defaults: Any) -> StructFieldSpec:
    default = field.default if defaults is None else getattr(defaults, field.name)
    value_type, metadata = (get_args(hint)[0], hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())
    is_repeated = tyro.conf.UseAppendAction in metadata
    metavar = _choose_metavar(field.name, value_type, doc or "", is_list=not is_repeated)
    arg_config = tyro.conf.arg(metavar=metavar, help_behavior_hint=None if is_repeated else _format_default)
    # those of the field itself come later, and are stronger
    annotated_type: Any = value_type if is_dataclass(value_type) else Annotated[(value_type, arg_config, *metadata)]
    return StructFieldSpec(field.name, annotated_type, tyro.MISSING if default is MISSING else default, doc)


def _choose_metavar(name: str, value_type: Any, doc: str, is_list: bool) -> str | None:
    """What stands for the value of an option; None where its type says it best."""
    for member in get_args(value_type):
        if get_origin(member) is Literal:  # or None, which nobody can type
            return f"{{{','.join(get_args(member))}}}"
    item_type = get_args(value_type)[0] if get_origin(value_type) is tuple else value_type
    if item_type not in (str, int, float):
        return None
    match = _OUTPUT_PATTERN.search(doc)
    metavar = _METAVARS.get(name) or (_OUTPUT_METAVARS[match[1]] if match else "TEXT" if item_type is str else "NUMBER")
    return f"{metavar} [{metavar} ...]" if is_list and item_type is not value_type else metavar


def _format_default(default: str) -> str:
    """What an option is unless it is set; nothing where that is nothing."""
    is_empty = default in ("", "''", "None", "False")
    return "" if is_empty else f"(default: {default.removesuffix('.0')})"
