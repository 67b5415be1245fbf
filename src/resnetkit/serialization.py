"""Frozen dataclasses to and from TOML and JSON, exactly, against closed tables.

A text can only fill in fields of types that are already known here: a union of dataclasses is told apart by ``kind``,
which is the class name in kebab case (``ZeroPadded`` is ``zero-padded``), looked up among the members of that union;
a member whose fields all have defaults may be written as that word alone, and one that is called as its field
(``shortcuts``) needs no ``kind``. No text can name an import.

Every fault is reported at once, each under the path that the plan also uses: items of a plural field count from 1 in
the singular, so the second of ``stages`` is ``stage2``.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
import sys
import tomllib
import types
import typing
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from resnetkit.errors import Fault, TextError, UsageError, find_closest

T = TypeVar("T")
_MAX_DOTS = 1000  # a key of so many parts takes the TOML reader time and memory by their square
MAX_TEXT_LENGTH = 4 * 2**20  # characters; a network of 10,000 blocks needs far less
_MAX_FLOAT = sys.float_info.max
_MAX_INT = 2**63
_MAX_FAULTS = 100  # told at once; who has more has sent something else
_MISSING: Any = object()


def tag_of(cls: type) -> str:
    """The name of a dataclass in texts: ``FirstBlock`` is ``first-block``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__.lstrip("_")).lower()


# ---------------------------------------------------------------------------------------------------------- objects


def to_data(value: Any) -> Any:
    """A dataclass as plain dicts, lists and scalars; fields that are ``None`` are left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields_to_data(value)
    if isinstance(value, tuple | list):
        return [to_data(item) for item in value]
    return value


def _fields_to_data(value: Any) -> dict[str, Any]:
    hints = _get_hints(type(value))
    items = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {name: _field_to_data(item, hints[name], name) for name, item in items.items() if item is not None}


def _field_to_data(item: Any, hint: Any, field: str) -> Any:
    if isinstance(item, tuple) and typing.get_origin(hint) is tuple:
        return [_field_to_data(inner, typing.get_args(hint)[0], "") for inner in item]
    if dataclasses.is_dataclass(item) and _is_union(hint):
        return _tag_item(item, field)
    return to_data(item)


def _tag_item(item: Any, field: str) -> Any:
    """A member of a union under its kind: a word alone where it has no fields, none where it is called as its field."""
    tag = tag_of(type(item))
    if not dataclasses.fields(item):
        return tag
    return ({} if tag == field else {"kind": tag}) | to_data(item)


def from_data(cls: type[T], data: Any, description: str = "this text", fix: str = "") -> T:
    """``data`` as an object of ``cls``; raises `TextError` with every fault."""
    value, faults = _read_with_faults(cls, data)
    if faults:
        raise TextError(f"{description} does not describe a {tag_of(cls)}", faults, fix=fix)
    return typing.cast(T, value)


def merge(base: Any, changes: Any) -> Any:
    """``changes`` over ``under``, field by field; another kind of variant replaces the whole."""
    if isinstance(base, str) and isinstance(changes, Mapping):  # a variant written as a word alone
        base = {"kind": base}
    if not isinstance(base, dict) or not isinstance(changes, Mapping):
        return changes
    if "kind" in changes and changes["kind"] != base.get("kind"):
        return dict(changes)
    return base | {key: merge(base.get(key), value) for key, value in changes.items()}


def find_type_faults(cls: type, data: Any) -> list[Fault]:
    """What keeps ``data`` from being a ``cls``; empty when nothing does."""
    return _read_with_faults(cls, data)[1]


class _TooManyFaultsError(Exception):
    """There are as many faults as are told."""


def _read_with_faults(cls: type, data: Any) -> tuple[Any, list[Fault]]:
    value, faults = None, list[Fault]()
    with contextlib.suppress(_TooManyFaultsError):
        value = _read_value(cls, data, "", faults)
    return value, faults


_get_hints: Callable[[Any], dict[str, Any]] = functools.cache(typing.get_type_hints)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType) and len(_get_union_members(hint)) > 1


def _get_union_members(hint: Any) -> dict[str, type]:
    classes = (cls for cls in typing.get_args(hint) if isinstance(cls, type))
    return {tag_of(cls): cls for cls in classes if dataclasses.is_dataclass(cls)}


def _read_value(hint: Any, data: Any, path: str, faults: list[Fault]) -> Any:
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return _read_choice(typing.get_args(hint), data, path, faults)
    if origin is tuple:
        return _read_tuple(typing.get_args(hint), data, path, faults)
    if origin in (typing.Union, types.UnionType):
        return _read_union(hint, data, path, faults)
    if dataclasses.is_dataclass(hint):
        return _read_fields(typing.cast(type, hint), data, path, faults)
    return _read_scalar(hint, data, path, faults)


_SCALAR_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _read_scalar(hint: type, data: Any, path: str, faults: list[Fault]) -> Any:
    accepted = (int, float) if hint is float else hint
    is_valid = isinstance(data, accepted) and (hint is bool or not isinstance(data, bool))
    if is_valid and isinstance(data, int) and abs(data) >= _MAX_INT:
        return _add_fault(faults, path, "a number of too many digits", _SCALAR_NAMES[hint], is_literal=True)
    if not is_valid or (hint is float and not abs(data) < _MAX_FLOAT):
        return _add_fault(faults, path, data, _SCALAR_NAMES[hint])
    return float(data) if hint is float else data


def _read_choice(choices: tuple[Any, ...], data: Any, path: str, faults: list[Fault]) -> Any:
    if any(data == choice and type(data) is type(choice) for choice in choices):
        return data
    matches = find_closest(data, [str(choice) for choice in choices]) if isinstance(data, str) else ()
    suggestion = f" (did you mean {matches[0]}?)" if matches else ""
    return _add_fault(faults, path, data, "one of " + ", ".join(map(str, choices)) + suggestion)


def _read_tuple(args: tuple[Any, ...], data: Any, path: str, faults: list[Fault]) -> Any:
    is_variadic = len(args) == 2 and args[1] is Ellipsis
    if not isinstance(data, list) or not (is_variadic or len(data) == len(args)):
        return _add_fault(faults, path, data, "a list" if is_variadic else f"a list of {len(args)}")
    item_hints = [args[0]] * len(data) if is_variadic else args
    prefix = path.removesuffix("es" if path.endswith("sses") else "s") if path.endswith("s") else path + "."
    return tuple(
        _read_value(item_hint, value, f"{prefix}{i}", faults)
        for i, (item_hint, value) in enumerate(zip(item_hints, data, strict=True), 1)
    )


def _read_union(hint: Any, data: Any, path: str, faults: list[Fault]) -> Any:
    members = _get_union_members(hint)
    if not members:  # "X | None"
        inner_hint = next(arg for arg in typing.get_args(hint) if arg is not types.NoneType)
        return None if data is None else _read_value(inner_hint, data, path, faults)
    if len(members) == 1:
        return None if data is None else _read_value(next(iter(members.values())), data, path, faults)
    field = path.rpartition(".")[2]
    tag = data.get("kind", field if field in members else _MISSING) if isinstance(data, dict) else data
    if not isinstance(tag, str) or tag not in members:
        matches = find_closest(tag, members) if isinstance(tag, str) else ()
        suggestion = f" (did you mean {matches[0]}?)" if matches else ""
        location = f"{path}.kind".lstrip(".") if isinstance(data, dict) else path
        return _add_fault(faults, location, tag, "one of " + ", ".join(members) + suggestion)
    fields_data = {key: value for key, value in data.items() if key != "kind"} if isinstance(data, dict) else {}
    if fields_data and field in members and not dataclasses.fields(members[tag]):
        tag = field  # who sets ema.decay does not mean no-ema
    return _read_value(members[tag], fields_data, path, faults)


def _read_fields(cls: type, data: Any, path: str, faults: list[Fault]) -> Any:
    if not isinstance(data, dict):
        return _add_fault(faults, path, data, f"the fields of a {tag_of(cls)}")
    n_faults = len(faults)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in [key for key in data if key not in fields]:
        matches = find_closest(key, fields)
        suggestion = f" (did you mean {matches[0]}?)" if matches else ""
        allowed = ", ".join(fields) + suggestion or f"none, as {tag_of(cls)} has no fields: set kind as well"
        _add_fault(faults, f"{path}.{key}".lstrip("."), "an unknown key", allowed, is_literal=True)
    values = {}
    for name, field in fields.items():
        location = f"{path}.{name}".lstrip(".")
        if name in data:
            values[name] = _read_value(_get_hints(cls)[name], data[name], location, faults)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            _add_fault(faults, location, "nothing", _describe_expected(_get_hints(cls)[name]), is_literal=True)
    return cls(**values) if len(faults) == n_faults else None


def _describe_expected(hint: Any) -> str:
    if hint in _SCALAR_NAMES:
        return _SCALAR_NAMES[hint]
    return (
        "one of " + ", ".join(_get_union_members(hint)) if _get_union_members(hint) else "a value (it has no default)"
    )


def _add_fault(faults: list[Fault], path: str, value: Any, allowed: str, *, is_literal: bool = False) -> None:
    text = value if is_literal else "nothing" if value is _MISSING else _shorten(value)
    faults.append(Fault(path or "the top", text, allowed))
    if len(faults) == _MAX_FAULTS:
        raise _TooManyFaultsError


def _shorten(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):  # ValueError: Python writes no integer of over 4,300 digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


# ------------------------------------------------------------------------------------------------------------ texts


def to_json(value: Any) -> str:
    """A dataclass as JSON, indented, with a newline at the end."""
    return json.dumps(to_data(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_toml(value: Any) -> str:
    """A dataclass as TOML."""
    import tomli_w  # kept out of start-up: most commands write no TOML

    return tomli_w.dumps(to_data(value))


def from_json(cls: type[T], text: str, description: str = "this JSON") -> T:
    """An object of ``cls`` from JSON; raises `TextError`."""
    return from_data(cls, parse_json(text, description), description)


def from_toml(cls: type[T], text: str, description: str = "this TOML") -> T:
    """An object of ``cls`` from TOML; raises `TextError`."""
    return from_data(cls, parse_toml(text, description), description)


def parse_json(text: str, description: str = "this JSON", max_length: int = MAX_TEXT_LENGTH) -> Any:
    """JSON without its three surprises: doubled keys, NaN, and nesting without end."""
    _check_length(text, description, max_length)
    try:
        return json.loads(text, object_pairs_hook=_refuse_duplicate_keys, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise _syntax_error(
            description, f"line {error.lineno}, column {error.colno}", _lowercase_first(error.msg)
        ) from None
    except (ValueError, RecursionError) as error:
        raise _syntax_error(description, "the whole text", _format_reason(error)) from None


def parse_toml(text: str, description: str = "this TOML") -> dict[str, Any]:
    """TOML; `TextError` names line and column."""
    _check_length(text, description, MAX_TEXT_LENGTH)
    if any(line.count(".") > _MAX_DOTS for line in text.splitlines()):
        raise _syntax_error(description, "the whole text", f"a line of more than {_MAX_DOTS:,} dots")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message, _, location = str(error).partition(" (at ")
        raise _syntax_error(description, location.rstrip(")") or "the whole text", _lowercase_first(message)) from None
    except (ValueError, RecursionError) as error:
        raise _syntax_error(description, "the whole text", _format_reason(error)) from None


def read_text(path: Path, description: str, max_length: int = MAX_TEXT_LENGTH) -> str:
    """A text file that the user named; raises `UsageError` if it cannot be read as UTF-8."""
    try:
        with path.open("rb") as file:  # a pipe is fine, one without end is not
            content = file.read(4 * max_length + 1)
        if len(content) > 4 * max_length:
            raise UsageError(f"{description} is too long for a text", where=str(path))
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise UsageError(f"{description} cannot be read: {error.strerror}", where=str(path)) from None
    except UnicodeDecodeError:
        raise UsageError(
            f"{description} is not UTF-8 text", where=str(path), fix="name a .toml or .json file"
        ) from None


def _check_length(text: str, description: str, max_length: int) -> None:
    if len(text) > max_length:
        raise _syntax_error(description, "the whole text", f"{len(text):,} characters")


def _refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = Counter(key for key, _ in pairs)
    duplicate = next((key for key, count in counts.items() if count > 1), None)
    if duplicate is not None:
        raise ValueError(f"the key {duplicate[:40]!r} twice")
    return dict(pairs)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name}, which is no JSON number")


def _format_reason(error: Exception) -> str:
    return "nesting too deep to read" if isinstance(error, RecursionError) else str(error)


def _lowercase_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _syntax_error(description: str, location: str, problem: str) -> TextError:
    return TextError(f"{description} cannot be read", [Fault(location, problem, "well-formed text")])
