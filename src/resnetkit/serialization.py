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

from resnetkit.errors import Fault, TextError, UsageError, nearest

T = TypeVar("T")
_MOST_DOTS = 1000  # a key of so many parts takes the TOML reader time and memory by their square
LONGEST_TEXT = 4 * 2**20  # characters; a network of 10,000 blocks needs far less
_LARGEST = sys.float_info.max
_LARGEST_INT = 2**63
_MOST_FAULTS = 100  # told at once; who has more has sent something else
_MISSING: Any = object()


def kind_of(cls: type) -> str:
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
    hints = _hints(type(value))
    items = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {name: _field_to_data(item, hints[name], name) for name, item in items.items() if item is not None}


def _field_to_data(item: Any, hint: Any, field: str) -> Any:
    if isinstance(item, tuple) and typing.get_origin(hint) is tuple:
        return [_field_to_data(inner, typing.get_args(hint)[0], "") for inner in item]
    if dataclasses.is_dataclass(item) and _is_union(hint):
        return _tagged(item, field)
    return to_data(item)


def _tagged(item: Any, field: str) -> Any:
    """A member of a union under its kind: a word alone where it has no fields, none where it is called as its field."""
    kind = kind_of(type(item))
    if not dataclasses.fields(item):
        return kind
    return ({} if kind == field else {"kind": kind}) | to_data(item)


def from_data(cls: type[T], data: Any, what: str = "this text", fix: str = "") -> T:
    """``data`` as an object of ``cls``; raises `TextError` with every fault."""
    value, faults = _read_whole(cls, data)
    if faults:
        raise TextError(f"{what} does not describe a {kind_of(cls)}", faults, fix=fix)
    return typing.cast(T, value)


def over(under: Any, changes: Any) -> Any:
    """``changes`` over ``under``, field by field; another kind of variant replaces the whole."""
    if isinstance(under, str) and isinstance(changes, Mapping):  # a variant written as a word alone
        under = {"kind": under}
    if not isinstance(under, dict) or not isinstance(changes, Mapping):
        return changes
    if "kind" in changes and changes["kind"] != under.get("kind"):
        return dict(changes)
    return under | {key: over(under.get(key), value) for key, value in changes.items()}


def type_faults(cls: type, data: Any) -> list[Fault]:
    """What keeps ``data`` from being a ``cls``; empty when nothing does."""
    return _read_whole(cls, data)[1]


class _EnoughError(Exception):
    """There are as many faults as are told."""


def _read_whole(cls: type, data: Any) -> tuple[Any, list[Fault]]:
    value, faults = None, list[Fault]()
    with contextlib.suppress(_EnoughError):
        value = _read(cls, data, "", faults)
    return value, faults


_hints: Callable[[Any], dict[str, Any]] = functools.cache(typing.get_type_hints)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType) and len(_members(hint)) > 1


def _members(hint: Any) -> dict[str, type]:
    types_of = (arg for arg in typing.get_args(hint) if isinstance(arg, type))
    return {kind_of(arg): arg for arg in types_of if dataclasses.is_dataclass(arg)}


def _read(hint: Any, data: Any, path: str, faults: list[Fault]) -> Any:
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


_SCALARS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _read_scalar(hint: type, data: Any, path: str, faults: list[Fault]) -> Any:
    accepted = (int, float) if hint is float else hint
    right = isinstance(data, accepted) and (hint is bool or not isinstance(data, bool))
    if right and isinstance(data, int) and abs(data) >= _LARGEST_INT:
        return _fault(faults, path, "a number of too many digits", _SCALARS[hint], literal=True)
    if not right or (hint is float and not abs(data) < _LARGEST):
        return _fault(faults, path, data, _SCALARS[hint])
    return float(data) if hint is float else data


def _read_choice(choices: tuple[Any, ...], data: Any, path: str, faults: list[Fault]) -> Any:
    if any(data == choice and type(data) is type(choice) for choice in choices):
        return data
    near = nearest(data, [str(choice) for choice in choices]) if isinstance(data, str) else ()
    hint = f" (did you mean {near[0]}?)" if near else ""
    return _fault(faults, path, data, "one of " + ", ".join(map(str, choices)) + hint)


def _read_tuple(args: tuple[Any, ...], data: Any, path: str, faults: list[Fault]) -> Any:
    repeated = len(args) == 2 and args[1] is Ellipsis
    if not isinstance(data, list) or not (repeated or len(data) == len(args)):
        return _fault(faults, path, data, "a list" if repeated else f"a list of {len(args)}")
    kinds = [args[0]] * len(data) if repeated else args
    item = path.removesuffix("es" if path.endswith("sses") else "s") if path.endswith("s") else path + "."
    return tuple(
        _read(kind, value, f"{item}{i}", faults) for i, (kind, value) in enumerate(zip(kinds, data, strict=True), 1)
    )


def _read_union(hint: Any, data: Any, path: str, faults: list[Fault]) -> Any:
    members = _members(hint)
    if not members:  # "X | None"
        inner = next(arg for arg in typing.get_args(hint) if arg is not types.NoneType)
        return None if data is None else _read(inner, data, path, faults)
    if len(members) == 1:
        return None if data is None else _read(next(iter(members.values())), data, path, faults)
    field = path.rpartition(".")[2]
    kind = data.get("kind", field if field in members else _MISSING) if isinstance(data, dict) else data
    if not isinstance(kind, str) or kind not in members:
        near = nearest(kind, members) if isinstance(kind, str) else ()
        tip = f" (did you mean {near[0]}?)" if near else ""
        where = f"{path}.kind".lstrip(".") if isinstance(data, dict) else path
        return _fault(faults, where, kind, "one of " + ", ".join(members) + tip)
    rest = {key: value for key, value in data.items() if key != "kind"} if isinstance(data, dict) else {}
    if rest and field in members and not dataclasses.fields(members[kind]):
        kind = field  # who sets ema.decay does not mean no-ema
    return _read(members[kind], rest, path, faults)


def _read_fields(cls: type, data: Any, path: str, faults: list[Fault]) -> Any:
    if not isinstance(data, dict):
        return _fault(faults, path, data, f"the fields of a {kind_of(cls)}")
    before = len(faults)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in [key for key in data if key not in fields]:
        near = nearest(key, fields)
        tip = f" (did you mean {near[0]}?)" if near else ""
        allowed = ", ".join(fields) + tip or f"none, as {kind_of(cls)} has no fields: set kind as well"
        _fault(faults, f"{path}.{key}".lstrip("."), "an unknown key", allowed, literal=True)
    values = {}
    for name, field in fields.items():
        where = f"{path}.{name}".lstrip(".")
        if name in data:
            values[name] = _read(_hints(cls)[name], data[name], where, faults)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            _fault(faults, where, "nothing", _expected(_hints(cls)[name]), literal=True)
    return cls(**values) if len(faults) == before else None


def _expected(hint: Any) -> str:
    if hint in _SCALARS:
        return _SCALARS[hint]
    return "one of " + ", ".join(_members(hint)) if _members(hint) else "a value (it has no default)"


def _fault(faults: list[Fault], path: str, came: Any, allowed: str, *, literal: bool = False) -> None:
    shown = came if literal else "nothing" if came is _MISSING else _shorten(came)
    faults.append(Fault(path or "the top", shown, allowed))
    if len(faults) == _MOST_FAULTS:
        raise _EnoughError


def _shorten(value: Any) -> str:
    try:
        shown = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):  # ValueError: Python writes no integer of over 4,300 digits
        shown = f"a {type(value).__name__}"
    return shown if len(shown) <= 60 else shown[:57] + "..."


# ------------------------------------------------------------------------------------------------------------ texts


def to_json(value: Any) -> str:
    """A dataclass as JSON, indented, with a newline at the end."""
    return json.dumps(to_data(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_toml(value: Any) -> str:
    """A dataclass as TOML."""
    import tomli_w  # kept out of start-up: most commands write no TOML

    return tomli_w.dumps(to_data(value))


def from_json(cls: type[T], text: str, what: str = "this JSON") -> T:
    """An object of ``cls`` from JSON; raises `TextError`."""
    return from_data(cls, parse_json(text, what), what)


def from_toml(cls: type[T], text: str, what: str = "this TOML") -> T:
    """An object of ``cls`` from TOML; raises `TextError`."""
    return from_data(cls, parse_toml(text, what), what)


def parse_json(text: str, what: str = "this JSON", longest: int = LONGEST_TEXT) -> Any:
    """JSON without its three surprises: doubled keys, NaN, and nesting without end."""
    _refuse_long(text, what, longest)
    try:
        return json.loads(text, object_pairs_hook=_no_doubles, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise _syntax(what, f"line {error.lineno}, column {error.colno}", _small(error.msg)) from None
    except (ValueError, RecursionError) as error:
        raise _syntax(what, "the whole text", _reason(error)) from None


def parse_toml(text: str, what: str = "this TOML") -> dict[str, Any]:
    """TOML; `TextError` names line and column."""
    _refuse_long(text, what, LONGEST_TEXT)
    if any(line.count(".") > _MOST_DOTS for line in text.splitlines()):
        raise _syntax(what, "the whole text", f"a line of more than {_MOST_DOTS:,} dots")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message, _, place = str(error).partition(" (at ")
        raise _syntax(what, place.rstrip(")") or "the whole text", _small(message)) from None
    except (ValueError, RecursionError) as error:
        raise _syntax(what, "the whole text", _reason(error)) from None


def read_text(path: Path, what: str, longest: int = LONGEST_TEXT) -> str:
    """A text file that the user named; raises `UsageError` if it cannot be read as UTF-8."""
    try:
        with path.open("rb") as file:  # a pipe is fine, one without end is not
            content = file.read(4 * longest + 1)
        if len(content) > 4 * longest:
            raise UsageError(f"{what} is too long for a text", where=str(path))
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise UsageError(f"{what} cannot be read: {error.strerror}", where=str(path)) from None
    except UnicodeDecodeError:
        raise UsageError(f"{what} is not UTF-8 text", where=str(path), fix="name a .toml or .json file") from None


def _refuse_long(text: str, what: str, longest: int) -> None:
    if len(text) > longest:
        raise _syntax(what, "the whole text", f"{len(text):,} characters")


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counted = Counter(key for key, _ in pairs)
    doubled = next((key for key, count in counted.items() if count > 1), None)
    if doubled is not None:
        raise ValueError(f"the key {doubled[:40]!r} twice")
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name}, which is no JSON number")


def _reason(error: Exception) -> str:
    return "nesting too deep to read" if isinstance(error, RecursionError) else str(error)


def _small(message: str) -> str:
    return message[:1].lower() + message[1:]


def _syntax(what: str, place: str, came: str) -> TextError:
    return TextError(f"{what} cannot be read", [Fault(place, came, "well-formed text")])
