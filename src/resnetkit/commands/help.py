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

_TAKEN = {  # what stands behind an option whose value is text; else it is told by the sentence, or by the type
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
_WRITTEN = re.compile(r"^[^;:]*?\b(file|folder) to write\b")
_KINDS = {"file": "FILE", "folder": "DIR"}


def about(options: type) -> str:
    """What a verb does: each paragraph a line, the commands to copy on a line of their own."""
    paragraphs = inspect.cleandoc(options.__doc__ or "").split("\n\n")
    said = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    return re.sub(r"(?<=\S) Examples: ", "\n\nExamples: ", said)


def commands(examples: str) -> list[str]:
    """The line of examples as commands that a shell takes as they stand, where they need several lines, too."""
    return [command for one in examples.split("; ") for command in _command(one)]


def _command(words: str) -> list[str]:
    """An option stays with its value; a line that goes on ends as a shell wants it, and what follows is indented."""
    tied = re.sub(r"(?<= )(--?[a-z-]+|[>|]) (?=[^- ])", "\\1\N{NO-BREAK SPACE}", words)
    width = shutil.get_terminal_size().columns
    fitted = textwrap.wrap(
        tied, width - 2, initial_indent="  ", subsequent_indent=" " * 6, break_long_words=False, break_on_hyphens=False
    )
    lines = [line.replace("\N{NO-BREAK SPACE}", " ") for line in fitted]
    return [*(f"{line} \\" for line in lines[:-1]), lines[-1]]


def rules() -> ConstructorRegistry:
    """For the parser: how the fields of a verb's options become options."""
    registry = ConstructorRegistry()

    @registry.struct_rule
    def options(info: StructTypeInfo) -> StructConstructorSpec | None:
        if not is_dataclass(info.type):
            return None
        told, hints = _sentences(info.type), get_type_hints(info.type, include_extras=True)
        given = info.default if isinstance(info.default, info.type) else None
        asked = [_option(field, hints[field.name], told.get(field.name), given) for field in fields(info.type)]
        return StructConstructorSpec(instantiate=info.type, fields=tuple(asked))

    return registry


def _sentences(options: type) -> dict[str, str]:
    """Of each field what stands below it, whatever the lines it is written on."""
    body = ast.parse(textwrap.dedent(inspect.getsource(options))).body[0].body  # type: ignore[attr-defined]
    return {
        field.target.id: " ".join(str(below.value.value).split())
        for field, below in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }


def _option(field: Field[Any], hint: Any, told: str | None, given: Any) -> StructFieldSpec:
    default = field.default if given is None else getattr(given, field.name)
    kind, known = (get_args(hint)[0], hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())
    repeated = tyro.conf.UseAppendAction in known
    taken = _taken(field.name, kind, told or "", several=not repeated)
    ours = tyro.conf.arg(metavar=taken, help_behavior_hint=None if repeated else _unless)
    # those of the field itself come later, and are stronger
    typed: Any = kind if is_dataclass(kind) else Annotated[(kind, ours, *known)]
    return StructFieldSpec(field.name, typed, tyro.MISSING if default is MISSING else default, told)


def _taken(name: str, kind: Any, told: str, several: bool) -> str | None:
    """What stands for the value of an option; None where its type says it best."""
    for one in get_args(kind):
        if get_origin(one) is Literal:  # or None, which nobody can type
            return f"{{{','.join(get_args(one))}}}"
    inner = get_args(kind)[0] if get_origin(kind) is tuple else kind
    if inner not in (str, int, float):
        return None
    written = _WRITTEN.search(told)
    taken = _TAKEN.get(name) or (_KINDS[written[1]] if written else "TEXT" if inner is str else "NUMBER")
    return f"{taken} [{taken} ...]" if several and inner is not kind else taken


def _unless(default: str) -> str:
    """What an option is unless it is set; nothing where that is nothing."""
    nothing = default in ("", "''", "None", "False")
    return "" if nothing else f"(default: {default.removesuffix('.0')})"
