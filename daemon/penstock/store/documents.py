"""Core values as JSON documents and back, exactly.

Pure, and driven by the dataclasses' own annotations, so that a new field of the spec needs no line here. A
missing key takes the field's default, because rows outlive releases; an unknown key or a value of the wrong
type raises, because a document that is read wrongly would be acted upon.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Callable, Hashable, Mapping
from datetime import datetime
from typing import Any, TypeVar, cast

from penstock.store.errors import DocumentError

T = TypeVar("T")
Read = Callable[[Any, str], Any]
"""Reads one JSON value; the second argument is where it stands, for the error."""


def encode(value: object) -> Any:
    """`value`, a core dataclass or anything inside one, as what `json` can write. Datetimes must be aware."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, str):
        return value
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError(f"a naive datetime: {value}")
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: encode(getattr(value, name)) for name in _field_names(type(value))}
    raise TypeError(f"no JSON form for {type(value).__name__}")


def decode(kind: type[T], document: object) -> T:
    """The inverse of `encode` for the dataclass `kind`. Raises DocumentError."""
    return cast(T, _reader(cast(Hashable, kind))(document, kind.__name__))


@functools.cache
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


@functools.cache
def _reader(kind: Hashable) -> Read:
    """The reader of one annotation, made once."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _optional(kind)
    if origin is tuple:
        return _sequence(_reader(typing.get_args(kind)[0]))
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(_reader(typing.get_args(kind)[1]))
    if kind is datetime:
        return _read_datetime
    if kind is float:
        return _scalar((int, float), "a number")
    if kind in (str, int, bool):
        return _scalar(kind, kind.__name__)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _member(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _record(kind)
    raise TypeError(f"no reader for {kind}")


def _scalar(kind: Any, words: str) -> Read:
    def read(value: Any, path: str) -> Any:
        # A bool is an int to Python, and not to us.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise DocumentError(path, f"{value!r} is not {words}")
        return value

    return read


def _read_datetime(value: Any, path: str) -> datetime:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise DocumentError(path, f"{value!r} is not a time") from None
    if moment.tzinfo is None:
        raise DocumentError(path, f"{value!r} has no time zone")
    return moment


def _member(kind: type[enum.Enum]) -> Read:
    members = {member.value: member for member in kind}

    def read(value: Any, path: str) -> enum.Enum:
        try:
            return members[value]
        except (KeyError, TypeError):
            raise DocumentError(path, f"{value!r} is not one of {', '.join(map(str, members))}") from None

    return read


def _optional(kind: Any) -> Read:
    (inner,) = [argument for argument in typing.get_args(kind) if argument is not type(None)]
    read_inner = _reader(inner)
    return lambda value, path: None if value is None else read_inner(value, path)


def _sequence(read_item: Read) -> Read:
    def read(value: Any, path: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise DocumentError(path, f"{value!r} is not a list")
        return tuple(read_item(item, f"{path}[{index}]") for index, item in enumerate(value))

    return read


def _mapping(read_item: Read) -> Read:
    def read(value: Any, path: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise DocumentError(path, f"{value!r} is not a mapping")
        return {key: read_item(item, f"{path}.{key}") for key, item in value.items()}

    return read


def _record(kind: type) -> Read:
    hints = typing.get_type_hints(kind)
    readers = {field.name: _reader(hints[field.name]) for field in dataclasses.fields(kind)}
    required = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]

    def read(value: Any, path: str) -> Any:
        if not isinstance(value, dict):
            raise DocumentError(path, f"{value!r} is not a {kind.__name__}")
        fields = {}
        for key, item in value.items():
            reader = readers.get(key)
            if reader is None:
                raise DocumentError(f"{path}.{key}", "this release knows no such field")
            fields[key] = reader(item, f"{path}.{key}")
        for name in required:
            if name not in fields:
                raise DocumentError(f"{path}.{name}", "is missing")
        return kind(**fields)

    return read
