"""Frozen dataclasses <-> JSON, with a schema number; strict when writing, lenient when reading.

A newer peer may send keys that this side does not know: they are ignored. A key that an older peer
does not send must have a default. So a run started by yesterday's version still loads.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import types
import typing
from typing import Any, TypeVar

from llmctl.errors import IntegrityError

SCHEMA = 1
"""Raised when a reader of the old form would misread the new one; every document carries it."""

T = TypeVar("T")

_UNION_TYPE = getattr(types, "UnionType", typing.Union)
"""What `X | None` is; Python 3.9 has no such thing."""


def encode(value: Any) -> Any:
    """A dataclass, enum, tuple, dict or primitive as plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {str(key): encode(item) for key, item in value.items()}
    return value


def dumps(value: Any) -> str:
    """One line of JSON for a dataclass, with the schema number in front."""
    return json.dumps({"schema": SCHEMA, **encode(value)}, separators=(",", ":"))


def loads(cls: type[T], text: str | bytes) -> T:
    """The dataclass in `text`.

    Raises:
        IntegrityError: not JSON, not an object, a newer schema, or a required key is missing.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise IntegrityError(f"not a {cls.__name__} document: {error}") from None
    if isinstance(document, dict) and document.get("schema", SCHEMA) > SCHEMA:
        raise IntegrityError(
            f"{cls.__name__} has schema {document['schema']}, this llmctl reads up to {SCHEMA}",
            hint="upgrade llmctl on this machine",
        )
    return decode(cls, document)


def decode(cls: type[T], value: Any) -> T:
    """Plain JSON values as the type `cls`, dataclasses nested at any depth.

    Raises:
        IntegrityError: a value of the wrong shape, or a required key is missing.
    """
    return typing.cast(T, _decode(cls, value, cls.__name__))


def _decode(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    if typing.get_origin(kind) is not None:
        return _decode_generic(typing.get_origin(kind), typing.get_args(kind), value, where)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        try:
            return kind(value)
        except ValueError:
            raise IntegrityError(f"{where}: {value!r} is not a {kind.__name__}") from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value if kind is Any else _expect(kind, value, where)


def _decode_generic(origin: Any, args: tuple[Any, ...], value: Any, where: str) -> Any:
    """`Optional[X]`, `tuple[X, ...]` and `dict[str, X]`: the only generics that wire types use."""
    if origin is typing.Union or origin is _UNION_TYPE:
        return None if value is None else _decode(_not_none(args), value, where)
    if origin is tuple:
        return tuple(_decode(args[0], item, where) for item in _expect(list, value, where))
    items = _expect(dict, value, where).items()
    return {key: _decode(args[1], item, f"{where}.{key}") for key, item in items}


def _decode_dataclass(kind: Any, value: Any, where: str) -> Any:
    document = _expect(dict, value, where)
    hints = _hints(kind)
    known = {}
    for field in dataclasses.fields(kind):
        if field.name in document:
            name = f"{where}.{field.name}"
            known[field.name] = _decode(hints[field.name], document[field.name], name)
    try:
        return kind(**known)
    except TypeError as error:
        raise IntegrityError(f"{where}: {error}") from None


_HINTS: dict[type, dict[str, Any]] = {}


def _hints(kind: type) -> dict[str, Any]:
    """`get_type_hints` evaluates source text each time; once per class is enough."""
    if kind not in _HINTS:
        _HINTS[kind] = typing.get_type_hints(kind)
    return _HINTS[kind]


def _not_none(args: tuple[Any, ...]) -> Any:
    (kind,) = [arg for arg in args if arg is not type(None)]
    return kind


def _expect(kind: Any, value: Any, where: str) -> Any:
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise IntegrityError(f"{where}: expected {kind.__name__}, found {type(value).__name__}")
