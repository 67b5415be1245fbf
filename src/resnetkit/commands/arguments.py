"""The parser of a command: the fields of its ``Options`` dataclass are its arguments.

The annotation of a field gives the type of its value. `Argument`, as metadata of the annotation, gives the rest. The
docstring below a field is its help. argparse splits the words; each error is a `UsageError`.

This module imports no torch.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from resnetkit.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Argument:
    """The properties of an argument that its type does not give, as metadata of the annotation."""

    metavar: str = ""
    is_positional: bool = False
    is_repeatable: bool = False
    default_text: str = ""


@dataclass(frozen=True)
class Parameter:
    """One argument or option of a command."""

    name: str
    value_type: type
    is_list: bool
    choices: tuple[str, ...]
    default: Any
    argument: Argument

    @property
    def option(self) -> str:
        """The option as it is typed."""
        return "--" + self.name.replace("_", "-")

    @property
    def label(self) -> str:
        """The name that help and errors use."""
        return self.metavar.strip("[]") if self.argument.is_positional else self.option

    @property
    def metavar(self) -> str:
        """The placeholder of the value; empty for a flag."""
        if self.value_type is bool:
            return ""
        if self.choices:
            return f"{{{','.join(self.choices)}}}"
        return self.argument.metavar or ("TEXT" if self.value_type is str else "NUMBER")

    def convert(self, prog: str, text: str) -> Any:
        """Convert a word of the command line to the type of the value.

        Args:
            prog: The command, for the error.
            text: The word as it was typed.

        Raises:
            UsageError: The word is not a value of this type.
        """
        allowed = f"use {'a whole number' if self.value_type is int else 'a number'}"
        try:
            if not self.choices or text in self.choices:
                return self.value_type(text)
            allowed = f"use one of {', '.join(self.choices)}"
        except ValueError:
            pass
        raise UsageError(f"invalid value for {self.label}: {text!r}", where=prog, fix=allowed)


def list_parameters(options_type: type) -> list[Parameter]:
    """Return the parameters of a command; those of a nested dataclass stand beside the others."""
    hints = get_type_hints(options_type, include_extras=True)
    parameters = []
    for field in fields(options_type):
        if is_dataclass(field.default):
            parameters += list_parameters(type(field.default))
        else:
            parameters.append(_make_parameter(field, hints[field.name]))
    return parameters


def _make_parameter(field: Field[Any], hint: Any) -> Parameter:
    value_type, *metadata = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    if NoneType in get_args(value_type):
        value_type = next(member for member in get_args(value_type) if member is not NoneType)
    is_list = get_origin(value_type) is tuple
    value_type = get_args(value_type)[0] if is_list else value_type
    choices = get_args(value_type) if get_origin(value_type) is Literal else ()
    argument = metadata[0] if metadata else Argument()
    return Parameter(field.name, str if choices else value_type, is_list, choices, field.default, argument)


def parse_options(options_type: type[T], prog: str, args: Sequence[str]) -> T:
    """Parse the words of a command into its options.

    Args:
        options_type: The dataclass of the command's options.
        prog: The command as it is typed, such as ``resnetkit train``.
        args: The words after it, options and arguments in any order.

    Raises:
        UsageError: An option is unknown, given twice or without its value, or an argument is missing or too many.
    """
    parameters = list_parameters(options_type)
    parser = argparse.ArgumentParser(
        prog, add_help=False, allow_abbrev=False, exit_on_error=False, argument_default=argparse.SUPPRESS
    )
    for parameter in parameters:
        if not parameter.argument.is_positional:
            _add_option(parser, parameter)
    end = args.index("--") if "--" in args else len(args)
    try:
        namespace, words = parser.parse_known_args(args[:end])
    except argparse.ArgumentError as error:
        flags = [parameter.option for parameter in parameters if parameter.value_type is bool]
        message = f"{error.argument_name} {'takes no value' if error.argument_name in flags else 'needs a value'}"
        raise UsageError(message, where=prog, fix=f"{prog} --help") from None
    _check_unknown(parameters, prog, words)
    values = vars(namespace) | _assign_words(parameters, prog, [*words, *args[end + 1 :]])
    missing = [p.label for p in parameters if p.default is MISSING and p.name not in values]
    if missing:
        raise UsageError(f"missing: {', '.join(missing)}", where=prog, fix=f"{prog} --help")
    return _build_options(options_type, values)


def _add_option(parser: argparse.ArgumentParser, parameter: Parameter) -> None:
    options: dict[str, Any] = {"action": _StoreOnce, "nargs": 0}
    if parameter.value_type is not bool:
        options = {"action": _StoreOnce, "type": functools.partial(parameter.convert, parser.prog)}
    if parameter.is_list:
        options |= {"action": "append"} if parameter.argument.is_repeatable else {"action": "extend", "nargs": "+"}
    parser.add_argument(parameter.option, dest=parameter.name, **options)


def _check_unknown(parameters: Sequence[Parameter], prog: str, words: Sequence[str]) -> None:
    """Check that no word is an option; argparse has taken those that it knows."""
    for word in words:
        if word.startswith("-") and word != "-":
            from resnetkit.commands.synonyms import suggest_option

            options = [parameter.option[2:] for parameter in parameters if not parameter.argument.is_positional]
            arguments = [parameter.label for parameter in parameters if parameter.argument.is_positional]
            fix = suggest_option(prog.rpartition(" ")[2], word, options, arguments)
            raise UsageError(f"unknown option: {word}", where=prog, fix=fix)


def _assign_words(parameters: Sequence[Parameter], prog: str, words: list[str]) -> dict[str, Any]:
    """Assign the words that belong to no option to the positional arguments; these are all text."""
    values: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.argument.is_positional and words:
            values[parameter.name] = words if parameter.is_list else words[0]
            words = [] if parameter.is_list else words[1:]
    if words:
        raise UsageError(f"unexpected argument: {words[0]!r}", where=prog, fix=f"{prog} --help")
    return values


class _StoreOnce(argparse.Action):
    """Store the value of an option, or True for a flag; a second one is an error."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if hasattr(namespace, self.dest):
            both = f": {getattr(namespace, self.dest)!r} and {values!r}" if self.nargs != 0 else ""
            raise UsageError(f"{option} is given twice{both}", where=parser.prog, fix=f"give {option} once")
        setattr(namespace, self.dest, True if self.nargs == 0 else values)


def _build_options(options_type: type[T], values: dict[str, Any]) -> T:
    arguments: dict[str, Any] = {}
    for field in fields(options_type):  # type: ignore[arg-type]
        if is_dataclass(field.default):
            arguments[field.name] = _build_options(type(field.default), values)
        elif field.name in values:
            value = values[field.name]
            arguments[field.name] = tuple(value) if isinstance(value, list) else value
    return options_type(**arguments)


def format_options(options: Any) -> list[str]:
    """Return the words that give an options object its values; defaults are left to themselves."""
    args = []
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value):
            args += format_options(value)
        elif value != field.default:
            args += ["--" + field.name.replace("_", "-"), *([] if value is True else [str(value)])]
    return args
