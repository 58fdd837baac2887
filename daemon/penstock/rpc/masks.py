"""Field masks and field-by-field differences of messages. Knows protobuf's reflection, and no message of ours."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf import message_factory
from google.protobuf.message import Message

from penstock.contract import quoted
from penstock.rpc.refusals import Violation, refuse

MAX_CHANGES = 1000
"""A spec has fewer fields than this, unless its maps and lists are very long."""


def check_mask(paths: Iterable[str], descriptor: Any, writable: tuple[str, ...]) -> None:
    """Raises Refused for a path that is no field, or that a client may not write."""
    violations = []
    for path in paths:
        if not any(path == root or path.startswith(root + ".") for root in writable):
            violations.append(
                Violation(
                    "update_mask",
                    f"{quoted(path)} cannot be written; begin with one of {', '.join(writable)}",
                )
            )
        elif not _exists(path, descriptor):
            violations.append(Violation("update_mask", f"there is no field {quoted(path)}"))
    refuse(violations)


def merge(into: Message, source: Message, paths: Iterable[str]) -> None:
    """Makes each path in `into` as it is in `source`: set, replaced whole, or cleared."""
    for path in paths:
        _merge(into, source, path.split("."))


def differences(before: Message, after: Message, prefix: str) -> list[tuple[str, str, str]]:
    """(path, before, after) for each field that differs, values as in a manifest, an unset one empty."""
    return list(itertools.islice(_differences(before, after, prefix), MAX_CHANGES))


def _exists(path: str, descriptor: Any) -> bool:
    current = descriptor
    for name in path.split("."):
        if current is None or name not in current.fields_by_name:
            return False
        field = current.fields_by_name[name]
        # A mask reaches into messages, not into lists or maps.
        current = None if field.is_repeated else field.message_type
    return True


def _merge(into: Message, source: Message, path: list[str]) -> None:
    field = into.DESCRIPTOR.fields_by_name[path[0]]
    if len(path) > 1:
        _merge(getattr(into, path[0]), getattr(source, path[0]), path[1:])
        return
    into.ClearField(path[0])
    if field.is_repeated:
        getattr(into, path[0]).MergeFrom(getattr(source, path[0]))
    elif not field.has_presence:
        setattr(into, path[0], getattr(source, path[0]))
    elif source.HasField(path[0]):
        if field.message_type is not None:
            getattr(into, path[0]).CopyFrom(getattr(source, path[0]))
        else:
            setattr(into, path[0], getattr(source, path[0]))


def _differences(before: Message, after: Message, prefix: str) -> Iterator[tuple[str, str, str]]:
    for field in before.DESCRIPTOR.fields:
        path = f"{prefix}.{field.name}"
        old, new = getattr(before, field.name), getattr(after, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key in sorted({*old, *new}):
                yield from _changed(f"{path}[{quoted(key)}]", old.get(key, ""), new.get(key, ""))
        elif field.message_type is not None and field.is_repeated:
            descriptor: Any = field.message_type
            kind = message_factory.GetMessageClass(descriptor)
            for index in range(max(len(old), len(new))):
                one = old[index] if index < len(old) else kind()
                other = new[index] if index < len(new) else kind()
                yield from _differences(one, other, f"{path}[{index}]")
        elif field.message_type is not None:
            yield from _differences(old, new, path)
        else:
            yield from _changed(path, _shown(before, field), _shown(after, field))


def _changed(path: str, old: str, new: str) -> Iterator[tuple[str, str, str]]:
    if old != new:
        yield path, old, new


def _shown(message: Message, field: Any) -> str:
    value: Any = getattr(message, field.name)
    if field.is_repeated:
        return json.dumps(list(value)) if value else ""
    if not message.HasField(field.name) if field.has_presence else value == field.default_value:
        return ""
    if field.enum_type is not None:
        return str(field.enum_type.values_by_number[value].name)
    return str(value).lower() if isinstance(value, bool) else str(value)
