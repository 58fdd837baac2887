"""Manifests: YAML or JSON text, one or more documents, into messages of the contract, and back into text.

Works on YAML's nodes rather than on Python values, so that every complaint has its line, a number is kept as it
was written (`0.90` where text is wanted stays `0.90`), and nothing is constructed. Words are read as YAML 1.2
reads them: `4:00:00` is text and not 14400, `no` is text and not false. Knows the shape of the contract, and
none of its rules: those are the server's. The rule guarded here: what is not understood is an error, never
ignored.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from penstock.field_names import GIVEN_TWICE, Given
from penstock.v1 import deployment_pb2, spec_pb2

API_VERSION = "penstock/v1"
KIND = "Deployment"

MAX_BYTES = 1 << 20
"""A manifest is written by people; more than this is the wrong file."""
MAX_NODES = 50_000
"""Aliases can make a small text mean an endless one; this is where reading stops."""

_INT = (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64)
_TIMESTAMP = Timestamp.DESCRIPTOR.full_name


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing in a manifest that is not understood."""

    source: str
    line: int
    """From 1; 0: it is about the whole file."""
    path: str
    message: str

    def __str__(self) -> str:
        place = f"{self.source}:{self.line}" if self.line else self.source
        return f"{place}: {self.path + ': ' if self.path else ''}{self.message}"


class BadManifest(Exception):
    """The text is not a manifest; nothing of it is to be used."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Document:
    """One deployment of a manifest, and where it came from."""

    source: str
    line: int
    deployment: deployment_pb2.Deployment


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema: what a plain word means."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - PyYAML's own attribute


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+0123456789.")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def read(path: str) -> list[Document]:
    """The documents of a file, or of standard input for `-`. Raises BadManifest with all that is wrong, OSError when
    the file cannot be read."""
    if path == "-":
        raw, source, folder = sys.stdin.buffer.read(MAX_BYTES + 1), "standard input", Path.cwd()
    else:
        with Path(path).open("rb") as file:
            raw, source, folder = file.read(MAX_BYTES + 1), path, Path(path).absolute().parent
    if len(raw) > MAX_BYTES:
        raise BadManifest([Problem(source, 1, "", f"is larger than a manifest may be, {MAX_BYTES} bytes")])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadManifest([Problem(source, 1, "", f"is not UTF-8 text (byte {error.start})")]) from error
    return parse(text, source, folder)


def parse(text: str, source: str, folder: Path) -> list[Document]:
    """The documents of a text. `folder`: where its relative paths begin. Raises BadManifest with all that is wrong."""
    if text.lstrip()[:1] in ("{", "["):
        # JSON is YAML, but for tabs, which JSON has between values only.
        text = text.replace("\t", " ")
    problems: list[Problem] = []
    documents: list[Document] = []
    try:
        for node in yaml.compose_all(text, Loader=_Loader):
            if _is_null(node):
                continue
            reader = _Reader(source, problems)
            documents.append(Document(source, _line(node), reader.deployment(node)))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        said = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        problems.append(Problem(source, mark.line + 1 if mark else 1, "", f"is not YAML: {said}"))
    except RecursionError:
        problems.append(Problem(source, 1, "", "is nested too deeply"))
    if not problems and not documents:
        problems.append(Problem(source, 1, "", "has no document in it"))
    if problems:
        raise BadManifest(problems)
    for document in documents:
        _anchor(document.deployment.spec, folder)
    return documents


def _anchor(spec: spec_pb2.DeploymentSpec, folder: Path) -> None:
    """Makes the spec's paths absolute: those that are not start at the manifest's folder, as in a Compose file."""
    for holder in (spec.model, spec.environment.venv):
        if holder.path and not os.path.isabs(holder.path):
            holder.path = os.path.normpath(folder / holder.path)
    module, apptainer = spec.environment.module, spec.environment.apptainer
    if module.venv and not os.path.isabs(module.venv):
        module.venv = os.path.normpath(folder / module.venv)
    # docker://… is no path; the server says so.
    if apptainer.image and not os.path.isabs(apptainer.image) and "://" not in apptainer.image:
        apptainer.image = os.path.normpath(folder / apptainer.image)


class _Reader:
    """Turns one document's nodes into a message; writes down what it does not understand and goes on."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        self.source = source
        self.problems = problems
        self.nodes = 0

    def deployment(self, node: yaml.Node) -> deployment_pb2.Deployment:
        deployment = deployment_pb2.Deployment()
        if not isinstance(node, yaml.MappingNode):
            self._bad(
                node, "", f"must be a mapping with apiVersion, kind, metadata and spec, not {_what(node)}"
            )
            return deployment
        rest, seen = [], {}
        for key, value in node.value:
            name = getattr(key, "value", None)
            if name in ("apiVersion", "api_version", "kind"):
                seen["kind" if name == "kind" else "apiVersion"] = value
            else:
                rest.append((key, value))
        for name, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
            found = seen.get(name)
            if found is None:
                self._bad(node, name, f"must be given: {wanted}")
            elif found.value != wanted:
                self._bad(found, name, f"must be {wanted}, not {_what(found)}")
        self._fields(deployment, [*rest], node, "")
        given = {getattr(key, "value", None) for key, _ in rest}
        for name in ("metadata", "spec"):
            if name not in given:
                self._bad(node, name, "must be given")
        return deployment

    def _fields(
        self, message: Message, pairs: list[tuple[yaml.Node, yaml.Node]], node: yaml.Node, path: str
    ) -> None:
        given = Given(message.DESCRIPTOR, () if path else ("apiVersion", "kind"))
        for key, value in pairs:
            written = key.value if isinstance(key, yaml.ScalarNode) else ""
            here = f"{path}.{written}" if path else str(written)
            if not self._count(key):
                return
            field = given.take(written)
            if isinstance(field, str):
                self._bad(key, here, field)
            elif (rival := given.rival(field)) is not None:
                self._bad(key, here, f"cannot be given beside {rival}: only one of them")
            else:
                self._field(message, field, value, f"{path}.{field.name}" if path else field.name)

    def _field(self, message: Message, field: FieldDescriptor, node: yaml.Node, path: str) -> None:
        if not self._count(node) or _is_null(node):
            return
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            self._map(getattr(message, field.name), node, path)
        elif field.is_repeated:
            self._list(getattr(message, field.name), field, node, path)
        elif kind is not None and kind.full_name == _TIMESTAMP:
            try:
                getattr(message, field.name).FromJsonString(getattr(node, "value", ""))
            except (ValueError, TypeError):
                self._bad(node, path, f"must be a time such as 2026-01-31T14:03:00Z, not {_what(node)}")
        elif kind is not None:
            child = getattr(message, field.name)
            child.SetInParent()
            self._mapping(child, node, path)
        elif (value := self._scalar(field, node, path)) is not None:
            setattr(message, field.name, value)

    def _mapping(self, message: Message, node: yaml.Node, path: str) -> None:
        if isinstance(node, yaml.MappingNode):
            self._fields(message, node.value, node, path)
        else:
            names = ", ".join(field.name for field in message.DESCRIPTOR.fields)
            self._bad(node, path, f"must be a mapping with any of {names}, not {_what(node)}")

    def _map(self, entries: Any, node: yaml.Node, path: str) -> None:
        if not isinstance(node, yaml.MappingNode):
            self._bad(node, path, f"must be a mapping of text to text, not {_what(node)}")
            return
        for key, value in node.value:
            if not self._count(key):
                return
            name = _text(key)
            if name is None:
                self._bad(key, path, f"must have text as its keys, not {_what(key)}")
            elif name in entries:
                self._bad(key, f'{path}["{name}"]', GIVEN_TWICE)
            elif (text := _text(value)) is None:
                self._bad(value, f'{path}["{name}"]', _not_text(value))
            else:
                entries[name] = text

    def _list(self, items: Any, field: FieldDescriptor, node: yaml.Node, path: str) -> None:
        if not isinstance(node, yaml.SequenceNode):
            self._bad(node, path, f"must be a list, not {_what(node)}")
            return
        for index, item in enumerate(node.value):
            if not self._count(item):
                return
            here = f"{path}[{index}]"
            if field.message_type is not None:
                self._mapping(items.add(), item, here)
            elif (value := self._scalar(field, item, here)) is not None:
                items.append(value)

    def _scalar(self, field: FieldDescriptor, node: yaml.Node, path: str) -> Any:
        """The value, or None after saying what is wrong with it."""
        tag = node.tag.rsplit(":", 1)[-1]
        if not isinstance(node, yaml.ScalarNode):
            self._bad(node, path, f"must be {_wanted(field)}, not {_what(node)}")
            return None
        if field.type == FieldDescriptor.TYPE_STRING:
            text = _text(node)
            if text is None:
                self._bad(node, path, _not_text(node))
            return text
        if field.type == FieldDescriptor.TYPE_BOOL and tag == "bool":
            return node.value.lower() == "true"
        # JSON writes 64-bit numbers as text.
        if field.type in _INT and (
            tag == "int" or (field.type == _INT[1] and re.fullmatch(r"-?[0-9]+", node.value))
        ):
            value = int(node.value, 0) if node.value.startswith(("0o", "0x")) else int(node.value)
            bits = 31 if field.type == FieldDescriptor.TYPE_INT32 else 63
            if -(1 << bits) <= value < 1 << bits:
                return value
            self._bad(node, path, f"must be at most {(1 << bits) - 1}, not {_what(node)}")
            return None
        if field.type == FieldDescriptor.TYPE_DOUBLE and tag in ("int", "float"):
            return float(node.value)
        if field.enum_type is not None and tag == "str":
            number = _enum(field).get(node.value.upper().replace("-", "_"))
            if number is not None:
                return number
        self._bad(node, path, f"must be {_wanted(field)}, not {_what(node)}")
        return None

    def _count(self, node: yaml.Node) -> bool:
        self.nodes += 1
        if self.nodes == MAX_NODES:
            self._bad(node, "", f"has more than {MAX_NODES} values; aliases may repeat too much")
        return self.nodes < MAX_NODES

    def _bad(self, node: yaml.Node, path: str, message: str) -> None:
        self.problems.append(Problem(self.source, _line(node), path, message))


def _enum(field: FieldDescriptor) -> dict[str, int]:
    """Full and short names of an enum's values: ROLLOUT_STRATEGY_RECREATE and RECREATE; without the unspecified
    one.
    """
    assert field.enum_type is not None
    prefix = enum_prefix(field)
    numbers = {value.name: value.number for value in field.enum_type.values if value.number}
    return numbers | {name.removeprefix(prefix): number for name, number in numbers.items()}


def enum_prefix(field: FieldDescriptor) -> str:
    """What an enum's values begin with: `ROLLOUT_STRATEGY_`."""
    assert field.enum_type is not None
    return field.enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")


def _short_names(field: FieldDescriptor) -> Iterator[str]:
    assert field.enum_type is not None
    for value in field.enum_type.values:
        if value.number:
            yield value.name.removeprefix(enum_prefix(field)).lower().replace("_", "-")


def _wanted(field: FieldDescriptor) -> str:
    if field.enum_type is not None:
        return "one of " + ", ".join(_short_names(field))
    if field.type == FieldDescriptor.TYPE_BOOL:
        return "true or false"
    if field.type in _INT:
        return "a whole number"
    return "a number" if field.type == FieldDescriptor.TYPE_DOUBLE else "text"


def _text(node: yaml.Node) -> str | None:
    """Text, or a number as it was written; None for anything else."""
    if isinstance(node, yaml.ScalarNode) and node.tag.rsplit(":", 1)[-1] in ("str", "int", "float"):
        # JSON writes characters beyond the first plane as two halves.
        return str(node.value.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    return None


def _not_text(node: yaml.Node) -> str:
    hint = f'; write "{node.value}" in quotes' if isinstance(node, yaml.ScalarNode) and node.value else ""
    return f"must be text, not {_what(node)}{hint}"


def _what(node: yaml.Node) -> str:
    """What stands there, in a word, and its value where it has one."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    value = str(node.value)
    shown = value if len(value) <= 60 else value[:57] + "..."
    tag = node.tag.rsplit(":", 1)[-1]
    if tag == "null":
        return "nothing"
    return f'"{shown}"' if tag not in ("int", "float", "bool") else shown


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def short_enums(document: dict[str, Any], message: Message) -> dict[str, Any]:
    """The document with the enums of its spec as people write them: `recreate` for ROLLOUT_STRATEGY_RECREATE."""
    return {
        **document,
        "spec": _short(document["spec"], message.DESCRIPTOR.fields_by_name["spec"].message_type),
    }


def _short(values: dict[str, Any], descriptor: Any) -> dict[str, Any]:
    made = {}
    for name, value in values.items():
        field = descriptor.fields_by_name[name]
        if field.enum_type is not None:
            value = value.removeprefix(enum_prefix(field)).lower().replace("_", "-")
        elif isinstance(value, dict) and field.message_type is not None and not field.is_repeated:
            value = _short(value, field.message_type)
        made[name] = value
    return made
