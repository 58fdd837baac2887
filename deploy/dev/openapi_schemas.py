"""The contract's messages as JSON schemas: what protobuf's JSON form and the field rules say, in OpenAPI 3.1's words.

Pure: descriptors with their comments in, schemas out. A rule that JSON schema has no word for is said in the field's
description, by its own message.
"""

from __future__ import annotations

import itertools
import re
from typing import Any, cast

from google.api import field_behavior_pb2
from google.protobuf import descriptor_pb2

from penstock.v1 import buf_validate_pb2 as rules_pb2

Schema = dict[str, Any]
Field = descriptor_pb2.FieldDescriptorProto

PREFIX = ".penstock.v1."

_INTEGERS = {
    Field.TYPE_INT32: (-(2**31), 2**31 - 1),
    Field.TYPE_UINT32: (0, 2**32 - 1),
    Field.TYPE_INT64: (-(2**63), 2**63 - 1),
    Field.TYPE_UINT64: (0, 2**64 - 1),
}
_LONG = (Field.TYPE_INT64, Field.TYPE_UINT64)
_RULES = {
    Field.TYPE_STRING: "string",
    Field.TYPE_BYTES: "bytes",
    Field.TYPE_INT32: "int32",
    Field.TYPE_INT64: "int64",
    Field.TYPE_UINT32: "uint32",
    Field.TYPE_UINT64: "uint64",
    Field.TYPE_DOUBLE: "double",
    Field.TYPE_FLOAT: "float",
    Field.TYPE_ENUM: "enum",
}
_BOUNDS = {
    "min_len": "minLength",
    "max_len": "maxLength",
    "pattern": "pattern",
    "gte": "minimum",
    "lte": "maximum",
    "gt": "exclusiveMinimum",
    "lt": "exclusiveMaximum",
}
_WELL_KNOWN: dict[str, Schema] = {
    ".google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    ".google.protobuf.FieldMask": {"type": "string", "description": "Paths, joined by commas."},
    ".google.protobuf.Struct": {"type": "object"},
}
_OR_EMPTY = "this == '' || "
_MATCHES = re.compile(r"this\.matches\('(.*)'\)")
_STARTS = re.compile(r"this\.startsWith\('([^']*)'\)")
_SIZE = re.compile(r"this\.size\(\) <= (\d+)")
_ONE_OF = re.compile(r"this in \[(.*)\]")


class Contract:
    """The messages and enums of a FileDescriptorSet that has source information."""

    def __init__(self, files: descriptor_pb2.FileDescriptorSet) -> None:
        self.messages: dict[str, descriptor_pb2.DescriptorProto] = {}
        self.enums: dict[str, descriptor_pb2.EnumDescriptorProto] = {}
        self.services: dict[str, descriptor_pb2.ServiceDescriptorProto] = {}
        self._comments: dict[tuple[str, tuple[int, ...]], str] = {}
        self._places: dict[str, tuple[str, tuple[int, ...]]] = {}
        for file in files.file:
            for location in file.source_code_info.location:
                self._comments[file.name, tuple(location.path)] = _text(location.leading_comments)
            top = f".{file.package}."
            for index, message in enumerate(file.message_type):
                self._add(top, message, file.name, (4, index))
            for index, enum in enumerate(file.enum_type):
                self.enums[top + enum.name] = enum
                self._places[top + enum.name] = (file.name, (5, index))
            for index, service in enumerate(file.service):
                self.services[(top + service.name)[1:]] = service
                self._places[(top + service.name)[1:]] = (file.name, (6, index))

    def _add(
        self, scope: str, message: descriptor_pb2.DescriptorProto, file: str, path: tuple[int, ...]
    ) -> None:
        name = scope + message.name
        self.messages[name] = message
        self._places[name] = (file, path)
        for index, nested in enumerate(message.nested_type):
            self._add(name + ".", nested, file, (*path, 3, index))

    def comment(self, name: str, *path: int) -> str:
        """What stands above it; `path` as in SourceCodeInfo, from the named thing on."""
        file, place = self._places[name]
        return self._comments.get((file, (*place, *path)), "")


class Schemas:
    """The schemas that were asked for, and those that they need; each message once, under its name."""

    def __init__(self, contract: Contract, given: frozenset[tuple[str, str]]) -> None:
        self._contract = contract
        self._given = given
        """(message, field) that the path gives: nobody has to say them again in a body."""
        self.made: dict[str, Schema] = {}

    def reference(self, name: str) -> Schema:
        """To the message or enum of this full name."""
        if name in _WELL_KNOWN:
            return dict(_WELL_KNOWN[name])
        short = name.removeprefix(PREFIX)
        if short not in self.made:
            self.made[short] = {}
            enum = self._contract.enums.get(name)
            self.made[short] = self._enum(name, enum) if enum is not None else self.message(name)
        return {"$ref": f"#/components/schemas/{short}"}

    def message(self, name: str, without: frozenset[str] = frozenset()) -> Schema:
        """A message, perhaps without some of its fields."""
        message = self._contract.messages[name]
        properties: dict[str, Schema] = {}
        required = []
        for index, field in enumerate(message.field):
            if field.name in without:
                continue
            properties[field.name] = self.field(name, index)
            if _is_required(field) and (name, field.name) not in self._given:
                required.append(field.name)
        made: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
        if required:
            made["required"] = required
        said = [self._contract.comment(name)]
        for index, choice in enumerate(message.oneof_decl):
            names = [
                field.name
                for field in message.field
                if field.HasField("oneof_index") and field.oneof_index == index and not field.proto3_optional
            ]
            if not names:
                continue
            if choice.options.Extensions[rules_pb2.oneof].required:
                made["oneOf"] = [{"required": [each]} for each in names]
            elif len(names) > 1:
                pairs = itertools.combinations(names, 2)
                made["not"] = {"anyOf": [{"required": list(pair)} for pair in pairs]}
        said += [_rule_text(rule) for rule in message.options.Extensions[rules_pb2.message].cel]
        return _described(made, *said)

    def field(self, message: str, index: int) -> Schema:
        """One field, with its rules and its comment."""
        field = self._contract.messages[message].field[index]
        rules = field.options.Extensions[rules_pb2.field]
        entry = self._contract.messages.get(field.type_name)
        if entry is not None and entry.options.map_entry:
            made = self._map(field.type_name, entry, rules.map)
        elif field.label == Field.LABEL_REPEATED:
            items = self._value(field, rules.repeated.items)
            made = {
                "type": "array",
                "items": items,
                **_sizes(rules.repeated, min_items="minItems", max_items="maxItems"),
            }
        else:
            made = self._value(field, rules)
        behaviour = field.options.Extensions[cast(Any, field_behavior_pb2.field_behavior)]
        if field_behavior_pb2.OUTPUT_ONLY in behaviour:
            made["readOnly"] = True
        return _described(made, self._contract.comment(message, 2, index))

    def _map(self, name: str, entry: descriptor_pb2.DescriptorProto, rules: Any) -> Schema:
        key, value = entry.field
        keys = self._value(key, rules.keys)
        made: Schema = {"type": "object", "additionalProperties": self._value(value, rules.values)}
        if set(keys) > {"type"}:
            made["propertyNames"] = keys
        return {**made, **_sizes(rules, min_pairs="minProperties", max_pairs="maxProperties")}

    def _value(self, field: descriptor_pb2.FieldDescriptorProto, rules: Any) -> Schema:
        """One value, be it the field itself, an item of it, or a map's key or value."""
        kind = field.type
        if kind == Field.TYPE_MESSAGE:
            return self.reference(field.type_name)
        own = getattr(rules, _RULES[kind]) if kind in _RULES else None
        if kind == Field.TYPE_ENUM:
            made = self.reference(field.type_name)
            unnamed = [
                value.name
                for value in self._contract.enums[field.type_name].value
                if own is not None and value.number in own.not_in
            ]
            return {**made, "not": {"enum": unnamed}} if unnamed else made
        bounds = _bounds(own) if own is not None else {}
        if kind in _INTEGERS:
            made = _integer(kind, bounds)
        elif kind == Field.TYPE_BOOL:
            made = {"type": "boolean"}
        elif kind == Field.TYPE_BYTES:
            made = {"type": "string", "contentEncoding": "base64"}
        elif kind in (Field.TYPE_DOUBLE, Field.TYPE_FLOAT):
            made = {"type": "number", **bounds}
        else:
            made = {"type": "string", **bounds}
        return _with_expressions(made, rules)

    def _enum(self, name: str, enum: descriptor_pb2.EnumDescriptorProto) -> Schema:
        said = [self._contract.comment(name)]
        for index, value in enumerate(enum.value):
            if meaning := self._contract.comment(name, 2, index):
                said.append(f"- `{value.name}`: {meaning}")
        return _described({"type": "string", "enum": [value.name for value in enum.value]}, *said)


def _is_required(field: descriptor_pb2.FieldDescriptorProto) -> bool:
    """Whether leaving it out is refused: it is marked so, or its zero value breaks its rules."""
    rules = field.options.Extensions[rules_pb2.field]
    if rules.required:
        return True
    if field.label == Field.LABEL_REPEATED:
        return bool(rules.repeated.min_items)
    if field.HasField("oneof_index") or field.type not in _RULES:
        return False
    own = getattr(rules, _RULES[field.type])
    if field.type == Field.TYPE_ENUM:
        return 0 in own.not_in
    bounds = _bounds(own)
    for rule in rules.cel:
        bounds.update(_keywords(rule.expression))
    return bool(
        bounds.get("minLength", 0) > 0
        or bounds.get("minimum", 0) > 0
        or bounds.get("exclusiveMinimum", -1) >= 0
        or re.search(bounds.get("pattern", ""), "") is None
    )


def _bounds(rules: Any) -> Schema:
    """What JSON schema has a word for, of the rules of one scalar type."""
    found: Schema = {}
    for descriptor, value in rules.ListFields():
        if (word := _BOUNDS.get(descriptor.name)) is not None:
            found[word] = value
        elif descriptor.name == "in":
            found["enum"] = list(value)
        elif descriptor.name == "prefix":
            found["pattern"] = "^" + re.escape(value)
    return found


def _integer(kind: int, bounds: Schema) -> Schema:
    least, most = _INTEGERS[kind]  # type: ignore[index]
    least = max(least, bounds.get("minimum", least), bounds.get("exclusiveMinimum", least - 1) + 1)
    most = min(most, bounds.get("maximum", most), bounds.get("exclusiveMaximum", most + 1) - 1)
    number = {"type": "integer", "minimum": least, "maximum": most}
    if kind not in _LONG:
        return number
    # JSON's numbers are doubles to many: protobuf writes 64 bits as a string, and reads both.
    text = {"type": "string", "pattern": "^-?[0-9]{1,19}$" if least < 0 else "^[0-9]{1,19}$"}
    return {"anyOf": [text, number]}


def _sizes(rules: Any, **words: str) -> Schema:
    return {word: getattr(rules, name) for name, word in words.items() if getattr(rules, name)}


def _with_expressions(made: Schema, rules: Any) -> Schema:
    """CEL rules: of the common kinds as keywords, and all of them in their own words."""
    for rule in rules.cel:
        made.update(_keywords(rule.expression))
    return _described(made, *(_rule_text(rule) for rule in rules.cel))


def _keywords(expression: str) -> Schema:
    """What a rule about a string says, as JSON schema; nothing for a rule of another kind."""
    optional = expression.startswith(_OR_EMPTY)
    found: Schema = {}
    for part in expression.removeprefix(_OR_EMPTY).removeprefix("(").split(" && "):
        if match := _MATCHES.match(part):
            # ECMAScript reads `[]` as a class of nothing.
            found["pattern"] = match[1].replace("[][", r"[\]\[")
        elif match := _STARTS.fullmatch(part):
            found["pattern"] = "^" + match[1]
        elif match := _SIZE.match(part):
            found["maxLength"] = int(match[1])
        elif match := _ONE_OF.fullmatch(part):
            found["enum"] = [word.strip().strip("'") for word in match[1].split(",")]
        else:
            return {}
    if optional and "pattern" in found:
        found["pattern"] = "^$|" + found["pattern"]
    return found


def _rule_text(rule: Any) -> str:
    text: str = rule.message
    return text[:1].upper() + text[1:].rstrip(".") + "." if text else ""


def _described(made: Schema, *parts: str) -> Schema:
    """The schema with what is said of it; what it says already comes last."""
    said = "\n\n".join(part for part in (*parts, made.get("description", "")) if part)
    return {**made, "description": said} if said else made


def _text(comment: str) -> str:
    """A comment's lines as paragraphs."""
    paragraphs = re.split(r"\n\s*\n", comment.strip("\n"))
    return "\n\n".join(" ".join(line.strip() for line in each.splitlines()) for each in paragraphs).strip()
