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
Read = Callable[[Any], Any]
"""Reads one JSON value."""


def encode(value: object) -> Any:
    """`value`, a core dataclass or anything inside one, as what `json` can write. Datetimes must be aware."""
    # A StrEnum is a str as well.
    if isinstance(value, enum.Enum):
        return value.value
    if value is None or isinstance(value, bool | int | float | str):
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
    return cast(T, _read_at(kind.__name__, _reader(cast(Hashable, kind)), document))


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
    def read(value: Any) -> Any:
        # A bool is an int to Python, and not to us.
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise DocumentError(f"{value!r} is not {words}")
        return value

    return read


def _read_datetime(value: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise DocumentError(f"{value!r} is not a time") from None
    if moment.tzinfo is None:
        raise DocumentError(f"{value!r} has no time zone")
    return moment


def _member(kind: type[enum.Enum]) -> Read:
    members = {member.value: member for member in kind}

    def read(value: Any) -> enum.Enum:
        try:
            return members[value]
        except (KeyError, TypeError):
            raise DocumentError(f"{value!r} is not one of {', '.join(map(str, members))}") from None

    return read


def _optional(kind: Any) -> Read:
    (inner,) = [argument for argument in typing.get_args(kind) if argument is not type(None)]
    read_inner = _reader(inner)
    return lambda value: None if value is None else read_inner(value)


def _sequence(read_item: Read) -> Read:
    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise DocumentError(f"{value!r} is not a list")
        return tuple(_read_at(str(index), read_item, item) for index, item in enumerate(value))

    return read


def _mapping(read_item: Read) -> Read:
    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise DocumentError(f"{value!r} is not a mapping")
        return {key: _read_at(key, read_item, item) for key, item in value.items()}

    return read


def _record(kind: type) -> Read:
    hints = typing.get_type_hints(kind)
    readers = {field.name: _reader(hints[field.name]) for field in dataclasses.fields(kind)}
    required = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise DocumentError(f"{value!r} is not a {kind.__name__}")
        fields = {}
        key = ""
        try:
            for key, item in value.items():
                fields[key] = readers.get(key, _read_unknown)(item)
        except DocumentError as error:
            raise error.below(key) from None
        for name in required:
            if name not in fields:
                raise DocumentError("is missing", name)
        return kind(**fields)

    return read


def _read_unknown(_: Any) -> Any:
    raise DocumentError("this release knows no such field")


def _read_at(place: str, read: Read, item: Any) -> Any:
    # The path is put together only when it is needed: loading ten thousand replicas spends its time here.
    try:
        return read(item)
    except DocumentError as error:
        raise error.below(place) from None
