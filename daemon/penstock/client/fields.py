"""The contract's messages, made of what callers give. Pure.

The rule guarded here: a value that a field does not take is refused by the name of the argument that it came with.
What protobuf raises is of many kinds, and names no argument.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from penstock.client.errors import invalid

MessageT = TypeVar("MessageT", bound=Message)

_WRONG = (TypeError, ValueError, OverflowError)
"""What protobuf raises."""
_ACCEPTED = {
    FieldDescriptor.CPPTYPE_INT32: "a whole number of 32 bits",
    FieldDescriptor.CPPTYPE_INT64: "a whole number of 64 bits",
    FieldDescriptor.CPPTYPE_DOUBLE: "a number",
    FieldDescriptor.CPPTYPE_FLOAT: "a number",
    FieldDescriptor.CPPTYPE_BOOL: "True or False",
    FieldDescriptor.CPPTYPE_STRING: "text",
}
"""All the kinds that a request has, besides messages: those are made here too."""


def made(kind: type[MessageT], path: str = "", /, **values: Any) -> MessageT:
    """A message of these fields; None: unset. Raises InvalidRequest for the first value that its field does not take,
    under the field's name in `path`."""
    try:
        return kind(**values)
    except _WRONG:
        for name, value in values.items():
            _try(kind, name, value, f"{path}.{name}" if path else name)
        raise


def utf8(given: Any, path: str) -> str:
    """The same. Raises InvalidRequest for what is no text that UTF-8 has, such as half of a pair of surrogates."""
    if not isinstance(given, str):
        raise invalid(path, f"must be text, not {reprlib.repr(given)}")
    try:
        given.encode()
    except UnicodeEncodeError as error:
        sentence = f"must be text that UTF-8 has: {error.reason}, at character {error.start}"
        raise invalid(path, sentence) from error
    return given


def listed(given: Iterable[Any], path: str) -> list[Any]:
    """Raises InvalidRequest for what cannot be gone through."""
    try:
        return list(given)
    except TypeError as error:
        raise invalid(path, f"must be a list, not {reprlib.repr(given)}") from error


def mapping(given: Any, path: str) -> Mapping[str, Any]:
    """The same. Raises InvalidRequest for what is no dict."""
    if not isinstance(given, Mapping):
        raise invalid(path, f"must be a dict, not {reprlib.repr(given)}")
    return given


def _try(kind: type[Message], name: str, value: Any, path: str) -> None:
    """Raises InvalidRequest where this field, or one of its values, is the one that is at fault."""
    field = kind.DESCRIPTOR.fields_by_name[name]
    one_by_one = field.is_repeated and isinstance(value, list)
    for index, one in enumerate(value if one_by_one else (value,)):
        try:
            kind(**{name: [one] if one_by_one else one})
        except _WRONG as error:
            where = f"{path}[{index}]" if one_by_one else path
            if isinstance(one, str):
                utf8(one, where)
            raise invalid(where, f"must be {_ACCEPTED[field.cpp_type]}, not {reprlib.repr(one)}") from error
