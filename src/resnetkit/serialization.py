"""Read and write frozen dataclasses as TOML and JSON, exactly, and only into types that are known in advance.

The member of a union of dataclasses is named by ``kind``: the class name in kebab case, ``zero-padded`` for
``ZeroPadded``. The reader looks it up among the members of that union, so no text can name an import.

- If all fields of a member have defaults, its name alone is enough: ``norm = "batch-norm"``.
- If a member has the name of its field (``shortcuts``), it needs no ``kind``.
- If a class has a table ``RENAMED_KEYS`` (old key -> new key), the reader refuses an old key and names the new one.

The reader reports all faults together, each under the path that the plan also uses. Items of a plural field count from
1 in the singular: the second of ``stages`` is ``stage2``.

This module imports no torch.
"""

from __future__ import annotations

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

from resnetkit.errors import Fault, TextError, UsageError, list_choices
from resnetkit.formatting import truncate

T = TypeVar("T")
MAX_TEXT_LENGTH = 4 * 2**20  # characters; a network of 10,000 blocks needs far less
MAX_FAULTS = 100  # report at most this many; a file with more is something else
RENAME_FIX = "rename these keys in the file"
_MAX_DOTS = 1000  # time and memory of the TOML reader grow with the square of the parts of a key
_MAX_FLOAT = sys.float_info.max
_MAX_INT = 2**63
_MAX_VALUE_WIDTH = 60  # columns of a value in an error
_WHOLE_TEXT = "the whole text"
_MISSING: Any = object()


def tag_of(cls: type) -> str:
    """Return the name of a dataclass in texts: ``first-block`` for ``FirstBlock``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__.lstrip("_")).lower()


# ---------------------------------------------------------------------------------------------------------- objects


def to_data(value: Any) -> Any:
    """Return a dataclass as plain dicts, lists and scalars, without the fields that are ``None``."""
    if isinstance(value, tuple | list):
        return [to_data(item) for item in value]
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    hints = _get_hints(type(value))
    items = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {name: _field_to_data(item, hints[name], name) for name, item in items.items() if item is not None}


def _field_to_data(item: Any, hint: Any, field: str) -> Any:
    """Return a field as data; a member of a union gets its ``kind``, or is its name alone."""
    if isinstance(item, tuple) and typing.get_origin(hint) is tuple:
        return [_field_to_data(inner, typing.get_args(hint)[0], "") for inner in item]
    if not (dataclasses.is_dataclass(item) and _is_union(hint)):
        return to_data(item)
    tag = tag_of(type(item))
    if not dataclasses.fields(item):
        return tag
    return ({} if tag == field else {"kind": tag}) | to_data(item)


def from_data(cls: type[T], data: Any, description: str = "this text", fix: str = "") -> T:
    """Return ``data`` as an object of ``cls``.

    Args:
        cls: the dataclass to build.
        data: dicts, lists and scalars, as a TOML or JSON reader gives them.
        description: the subject of the error, for example the file name.
        fix: the fix of the error.

    Raises:
        TextError: with all faults of the data.
    """
    reader = _DataReader(cls, data)
    if reader.faults:
        if not any(fault.value for fault in reader.faults):  # they are all renamed keys
            fix = RENAME_FIX
        raise TextError(f"{description} does not describe a {tag_of(cls)}", reader.faults, fix=fix)
    return typing.cast(T, reader.value)


def find_type_faults(cls: type, data: Any) -> list[Fault]:
    """Return the faults that keep ``data`` from being a ``cls``.

    Args:
        cls: the dataclass to build.
        data: dicts, lists and scalars.
    """
    return _DataReader(cls, data).faults


def merge(base: Any, changes: Any) -> Any:
    """Return ``base`` with ``changes`` applied; another ``kind`` replaces the whole variant.

    Args:
        base: dicts, lists and scalars.
        changes: the same, with only the fields that change.
    """
    if isinstance(base, str) and isinstance(changes, Mapping):  # a variant that is written as its name alone
        base = {"kind": base}
    if not isinstance(base, dict) or not isinstance(changes, Mapping):
        return changes
    if "kind" in changes and changes["kind"] != base.get("kind"):
        return dict(changes)
    return base | {key: merge(base.get(key), value) for key, value in changes.items()}


class _TooManyFaultsError(Exception):
    """The reader has found ``MAX_FAULTS`` faults."""


_get_hints: Callable[[Any], dict[str, Any]] = functools.cache(typing.get_type_hints)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType) and len(_get_union_members(hint)) > 1


def _get_union_members(hint: Any) -> dict[str, type]:
    classes = (cls for cls in typing.get_args(hint) if isinstance(cls, type))
    return {tag_of(cls): cls for cls in classes if dataclasses.is_dataclass(cls)}


_SCALAR_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


class _DataReader:
    """Reads data into an object of ``cls``: ``value``, or else ``faults``."""

    def __init__(self, cls: type, data: Any) -> None:
        self.faults: list[Fault] = []
        try:
            self.value = self._read_value(cls, data, "")
        except _TooManyFaultsError:
            self.value = None

    def _read_value(self, hint: Any, data: Any, path: str) -> Any:
        origin = typing.get_origin(hint)
        if origin is typing.Literal:
            return self._read_choice(typing.get_args(hint), data, path)
        if origin is tuple:
            return self._read_tuple(typing.get_args(hint), data, path)
        if origin in (typing.Union, types.UnionType):
            return self._read_union(hint, data, path)
        if dataclasses.is_dataclass(hint):
            return self._read_fields(typing.cast(type, hint), data, path)
        return self._read_scalar(hint, data, path)

    def _read_scalar(self, hint: type, data: Any, path: str) -> Any:
        accepted = (int, float) if hint is float else hint
        is_valid = isinstance(data, accepted) and (hint is bool or not isinstance(data, bool))
        if is_valid and isinstance(data, int) and abs(data) >= _MAX_INT:
            return self._add_fault(path, "a number of too many digits", _SCALAR_NAMES[hint])
        if not is_valid or (hint is float and not abs(data) < _MAX_FLOAT):
            return self._add_fault(path, _format_value(data), _SCALAR_NAMES[hint])
        return float(data) if hint is float else data

    def _read_choice(self, choices: tuple[Any, ...], data: Any, path: str) -> Any:
        if any(data == choice and type(data) is type(choice) for choice in choices):
            return data
        return self._add_fault(path, _format_value(data), f"one of {list_choices(data, [*map(str, choices)])}")

    def _read_tuple(self, args: tuple[Any, ...], data: Any, path: str) -> Any:
        is_variadic = len(args) == 2 and args[1] is Ellipsis
        if not isinstance(data, list) or not (is_variadic or len(data) == len(args)):
            return self._add_fault(path, _format_value(data), "a list" if is_variadic else f"a list of {len(args)}")
        hints = args[:1] * len(data) if is_variadic else args
        prefix = path.removesuffix("es" if path.endswith("sses") else "s") if path.endswith("s") else path + "."
        items = enumerate(zip(hints, data, strict=True), 1)
        return tuple(self._read_value(hint, item, f"{prefix}{i}") for i, (hint, item) in items)

    def _read_union(self, hint: Any, data: Any, path: str) -> Any:
        members = _get_union_members(hint)
        if len(members) < 2:  # "X | None"
            inner_hint = next(arg for arg in typing.get_args(hint) if arg is not types.NoneType)
            return None if data is None else self._read_value(inner_hint, data, path)
        field = path.rpartition(".")[2]
        tag = data.get("kind", field if field in members else _MISSING) if isinstance(data, dict) else data
        if not isinstance(tag, str) or tag not in members:
            location = _join_path(path, "kind") if isinstance(data, dict) else path
            return self._add_fault(location, _format_value(tag), f"one of {list_choices(tag, list(members))}")
        fields_data = {key: value for key, value in data.items() if key != "kind"} if isinstance(data, dict) else {}
        if fields_data and field in members and not dataclasses.fields(members[tag]):
            tag = field  # a setting such as ema.decay contradicts the default no-ema
        return self._read_value(members[tag], fields_data, path)

    def _read_fields(self, cls: type, data: Any, path: str) -> Any:
        if not isinstance(data, dict):
            return self._add_fault(path, _format_value(data), f"the fields of a {tag_of(cls)}")
        n_faults = len(self.faults)
        fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
        new_keys = self._check_keys(cls, [key for key in data if key not in fields], list(fields), path)
        values, hints = {}, _get_hints(cls)
        for name, field in fields.items():
            has_default = (field.default, field.default_factory) != (dataclasses.MISSING, dataclasses.MISSING)
            if name in data:
                values[name] = self._read_value(hints[name], data[name], _join_path(path, name))
            elif not has_default and name not in new_keys:
                self._add_fault(_join_path(path, name), "nothing", _describe_expected(hints[name]))
        return cls(**values) if len(self.faults) == n_faults else None

    def _check_keys(self, cls: type, unknown_keys: list[str], fields: list[str], path: str) -> set[str]:
        """Add a fault for each unknown key; return the new names of the old keys among them."""
        renamed: Mapping[str, str] = getattr(cls, "RENAMED_KEYS", {})
        for key in unknown_keys:
            location = _join_path(path, key)
            if key in renamed:
                self._add_fault(location, "", f"this key is called {renamed[key]} now")
            else:
                no_fields = f"none, because {tag_of(cls)} has no fields: set kind as well"
                self._add_fault(location, "an unknown key", list_choices(key, fields) if fields else no_fields)
        return {renamed[key] for key in unknown_keys if key in renamed}

    def _add_fault(self, path: str, value: str, allowed: str) -> None:
        self.faults.append(Fault(path or "the top level", value, allowed))
        if len(self.faults) == MAX_FAULTS:
            raise _TooManyFaultsError


def _join_path(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _describe_expected(hint: Any) -> str:
    if hint in _SCALAR_NAMES:
        return _SCALAR_NAMES[hint]
    members = _get_union_members(hint)
    return f"one of {', '.join(members)}" if members else "a value (it has no default)"


def _format_value(value: Any) -> str:
    if value is _MISSING:
        return "nothing"
    try:
        return truncate(json.dumps(value, ensure_ascii=False), _MAX_VALUE_WIDTH)
    except (TypeError, ValueError, RecursionError):  # ValueError: Python writes no integer of over 4,300 digits
        return f"a {type(value).__name__}"


# ------------------------------------------------------------------------------------------------------------ texts


def to_json(value: Any) -> str:
    """Return a dataclass as JSON, indented, with a newline at the end."""
    return json.dumps(to_data(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_toml(value: Any) -> str:
    """Return a dataclass as TOML."""
    import tomli_w  # kept out of start-up: most commands write no TOML

    return tomli_w.dumps(to_data(value))


def from_json(cls: type[T], text: str, description: str = "this JSON") -> T:
    """Return the object of ``cls`` that a JSON text describes.

    Args:
        cls: the dataclass to build.
        text: the JSON text.
        description: the subject of the error, for example the file name.

    Raises:
        TextError: with all faults of the text.
    """
    return from_data(cls, parse_json(text, description), description)


def from_toml(cls: type[T], text: str, description: str = "this TOML") -> T:
    """Return the object of ``cls`` that a TOML text describes.

    Args:
        cls: the dataclass to build.
        text: the TOML text.
        description: the subject of the error, for example the file name.

    Raises:
        TextError: with all faults of the text.
    """
    return from_data(cls, parse_toml(text, description), description)


def parse_json(text: str, description: str = "this JSON", max_length: int = MAX_TEXT_LENGTH) -> Any:
    """Parse JSON, but refuse duplicate keys, NaN and endless nesting.

    Args:
        text: the JSON text.
        description: the subject of the error, for example the file name.
        max_length: refuse a text of more characters.

    Raises:
        TextError: with the line and column of the mistake.
    """
    _check_length(text, description, max_length)
    try:
        return json.loads(text, object_pairs_hook=_refuse_duplicate_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _make_syntax_error(description, *_locate_problem(error)) from None


def parse_toml(text: str, description: str = "this TOML") -> dict[str, Any]:
    """Parse TOML.

    Args:
        text: the TOML text.
        description: the subject of the error, for example the file name.

    Raises:
        TextError: with the line and column of the mistake.
    """
    _check_length(text, description, MAX_TEXT_LENGTH)
    if any(line.count(".") > _MAX_DOTS for line in text.splitlines()):
        raise _make_syntax_error(description, _WHOLE_TEXT, f"a line has more than {_MAX_DOTS:,} dots")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise _make_syntax_error(description, *_locate_problem(error)) from None


def read_text(path: Path, description: str, max_length: int = MAX_TEXT_LENGTH) -> str:
    """Read a text file that the user named.

    Args:
        path: the file; a pipe is fine.
        description: the subject of the error.
        max_length: refuse a file of more characters.

    Raises:
        UsageError: the file is unreadable, too long, or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(4 * max_length + 1)  # a pipe may never end
        if len(content) > 4 * max_length:
            raise UsageError(f"{description} is too long: over {4 * max_length:,} bytes", where=str(path))
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise UsageError(f"{description} cannot be read: {error.strerror}", where=str(path)) from None
    except UnicodeDecodeError:
        what, fix = f"{description} is not UTF-8 text", "name a .toml or .json file"
        raise UsageError(what, where=str(path), fix=fix) from None


def _check_length(text: str, description: str, max_length: int) -> None:
    if len(text) > max_length:
        problem = f"{len(text):,} characters are too many (at most {max_length:,})"
        raise _make_syntax_error(description, _WHOLE_TEXT, problem)


def _refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = Counter(key for key, _ in pairs)
    duplicate = next((key for key, count in counts.items() if count > 1), None)
    if duplicate is not None:
        raise ValueError(f"the key {duplicate[:40]!r} occurs twice")
    return dict(pairs)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _locate_problem(error: Exception) -> tuple[str, str]:
    """Return the location and the reason of an error of a JSON or TOML reader."""
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}, column {error.colno}", _lowercase_first(error.msg)
    if isinstance(error, tomllib.TOMLDecodeError):
        message, _, location = str(error).partition(" (at ")
        return location.rstrip(")") or _WHOLE_TEXT, _lowercase_first(message)
    return _WHOLE_TEXT, "too deeply nested" if isinstance(error, RecursionError) else str(error)


def _lowercase_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _make_syntax_error(description: str, location: str, problem: str) -> TextError:
    return TextError(f"{description} cannot be read", [Fault(location, "", problem)])
