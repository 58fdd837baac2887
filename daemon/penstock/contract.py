"""What the contract says of a message by itself: whether its bytes can be read, and which of its field rules it breaks.

Pure, and the same for everyone who takes messages: the control API and the agents in the jobs. What a message
means, and the rules that only words can state, is not known here.

The rule guarded here: whoever sends what cannot be is told the field, in the spelling of a manifest
(`sampling.max_tokens`, `messages[0].content[1].image`), the value, and what is accepted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import protovalidate
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor, FileDescriptor
from google.protobuf.message import DecodeError, Message

MessageT = TypeVar("MessageT", bound=Message)

_FIELD = descriptor_pb2.FieldDescriptorProto

MAX_PARTS = 32_768
"""Messages and listed texts in a message, at any depth. To judge one part takes microseconds and, where it is wrong, a
sentence: of the 8 million that 16 MiB can hold, most of a minute and all memory. A long conversation has thousands."""
MAX_BROKEN = 100
"""As many broken rules are told of one message; who breaks more has enough to mend."""
MAX_NAMED = 5
"""So many wrong fields does one sentence name."""
_SMALLEST_PART_BYTES = 2
"""Its field's number, and its length of 0."""


class Broken(NamedTuple):
    """One rule that a message breaks."""

    field: str
    """Empty: the message as a whole."""
    sentence: str

    def __str__(self) -> str:
        return f"{self.field}: {self.sentence}" if self.field else self.sentence


class Unreadable(Exception):
    """The bytes are not the message; `field` is the text that is not UTF-8, where it is that."""

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(str(Broken(field, sentence)))
        self.field = field
        self.sentence = sentence


def quoted(value: object) -> str:
    """A value as the client gave it, cut to what a sentence can hold.

    >>> quoted("8 GiBs"), quoted(-1), quoted(True)
    ('"8 GiBs"', '-1', 'true')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return str(value)
    text = "".join(mark if mark.isprintable() else f"\\x{ord(mark):02x}" for mark in value)
    return f'"{text}"' if len(text) <= 80 else f'"{text[:77]}..."'


def in_one_sentence(faults: Sequence[str]) -> str:
    """What is wrong with one or several fields, each a sentence that names its field."""
    if len(faults) == 1:
        return faults[0]
    more = f"; and {len(faults) - MAX_NAMED} more" if len(faults) > MAX_NAMED else ""
    return f"{len(faults)} fields cannot be as they are: {'; '.join(faults[:MAX_NAMED])}{more}"


def parse(data: bytes, kind: type[MessageT]) -> MessageT:
    """The message that `data` is. Raises Unreadable."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        name = kind.DESCRIPTOR.full_name
        try:
            shadow = _shadow(name).FromString(data)
        except DecodeError:
            raise Unreadable("", f"the message is not a {name}, or is cut off") from error
        for field in _not_utf8(shadow, ""):
            raise Unreadable(field, "must be UTF-8") from error
        raise Unreadable("", f"the message is not a {name}, or a text in it is not UTF-8") from error


def broken_rules(message: Message) -> Iterator[Broken]:
    """The field rules of the contract that `message` breaks, at most MAX_BROKEN; of too many parts only that."""
    if crowd := too_many_parts(message):
        yield crowd
        return
    for found in protovalidate.collect_violations(message)[:MAX_BROKEN]:
        elements = found.proto.field.elements if found.proto.field is not None else []
        if elements and not elements[-1].field_number:
            # A oneof: a name that only the contract has.
            yield Broken(_path(elements[:-1]), _one_of(message, elements))
        else:
            yield Broken(_path(elements), _accepted(found))


def too_many_parts(message: Message) -> Broken | None:
    """What is wrong with a message of more than MAX_PARTS parts, which nobody may look through part by part."""
    if message.ByteSize() <= _SMALLEST_PART_BYTES * MAX_PARTS:
        return None
    count, unseen = 0, [message]
    while unseen:
        for field, value in unseen.pop().ListFields():
            parts = _parts(field, value)
            count += len(parts)
            if count > MAX_PARTS:
                return Broken("", f"the message has more than {MAX_PARTS} parts")
            unseen.extend(part for part in parts if isinstance(part, Message))
    return None


def _parts(field: FieldDescriptor, value: Any) -> Collection[object]:
    """What a field's value has of them; numbers are none."""
    if not field.is_repeated:
        return (value,) if field.message_type is not None else ()
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entries: Collection[object] = value.values()
        return entries
    return (
        value if field.cpp_type in (FieldDescriptor.CPPTYPE_MESSAGE, FieldDescriptor.CPPTYPE_STRING) else ()
    )


def _one_of(message: Message, elements: Sequence[Any]) -> str:
    kind: Any = message.DESCRIPTOR
    for element in elements[:-1]:
        kind = kind.fields_by_name[element.field_name].message_type
    *others, last = (field.name for field in kind.oneofs_by_name[elements[-1].field_name].fields)
    return f"one of {', '.join(others)} and {last} must be given"


def _path(elements: Sequence[Any]) -> str:
    """A protovalidate field path in the manifest's spelling: `spec.engine.env["A"]`, `spec.placements[0].qos`."""
    text = ""
    for element in elements:
        text += ("." if text else "") + element.field_name
        if element.subscript is not None:
            value = element.subscript.value
            text += f"[{quoted(value)}]" if isinstance(value, str) else f"[{value}]"
    return text


def _accepted(found: protovalidate.Violation) -> str:
    """The value and what would be accepted, in words."""
    rule, value = found.proto.rule_id, found.field_value
    if rule == "required":
        return "must be given"
    message = found.proto.message
    if rule == "string.min_len" and value == "":
        return "must not be empty"
    if rule.endswith(("gte_lte", ".gte", ".lte", ".gt")):
        message = message.replace("greater than or equal to", "at least").replace(
            "less than or equal to", "at most"
        )
    if rule == "enum.defined_only":
        message = "must be one of the enum's values"
    if rule == "string.pattern":
        message = f"must match {found.rule_value}"
    if rule == "string.prefix":
        message = f"must begin with {found.rule_value}"
    if isinstance(value, (str, int, float)):
        return f"{message}, not {quoted(value)}"
    return message


@lru_cache(maxsize=64)
def _shadow(name: str) -> type[Message]:
    """The message `name` with bytes in place of every text, which reads what the message itself cannot."""
    pool = descriptor_pool.DescriptorPool()
    _add_shadow(descriptor_pool.Default().FindMessageTypeByName(name).file, pool, set())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def _add_shadow(file: FileDescriptor, pool: descriptor_pool.DescriptorPool, done: set[str]) -> None:
    if file.name in done:
        return
    done.add(file.name)
    for needed in file.dependencies:
        _add_shadow(needed, pool, done)
    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    if file.package.startswith("penstock."):
        for message in proto.message_type:
            _texts_to_bytes(message)
    pool.Add(proto)


def _texts_to_bytes(message: descriptor_pb2.DescriptorProto) -> None:
    for field in message.field:
        if field.type == _FIELD.TYPE_STRING:
            field.type = _FIELD.TYPE_BYTES
    for nested in message.nested_type:
        if not nested.options.map_entry:  # a map's key cannot be bytes
            _texts_to_bytes(nested)


def _not_utf8(shadow: Message, prefix: str) -> Iterator[str]:
    """The paths of the texts that are none. Fields that are bytes by contract are passed over."""
    real = descriptor_pool.Default().FindMessageTypeByName(shadow.DESCRIPTOR.full_name)
    for field, value in shadow.ListFields():
        path = f"{prefix}{field.name}"
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        if is_map or not (field.message_type or _is_text(real.fields_by_name[field.name])):
            continue
        for index, item in enumerate(value) if field.is_repeated else ((-1, value),):
            place = path if index < 0 else f"{path}[{index}]"
            if isinstance(item, Message):
                yield from _not_utf8(item, f"{place}.")
            elif isinstance(item, bytes) and not _decodes(item):
                yield place


def _is_text(field: FieldDescriptor) -> bool:
    return field.type == FieldDescriptor.TYPE_STRING


def _decodes(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
