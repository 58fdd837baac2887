"""What a body sent to the control API as REST may not have: fields that the contract lacks, a field twice, and another
value for what the path says.

Pure: which message a body is follows from the contract's http annotations. Values are not judged here: the transcoder
reads them, and the control API has rules for them. The rule guarded here: what is not understood is an error, never
ignored; so nothing may pass as JSON here that the transcoder reads otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast
from urllib.parse import unquote

from google.api import annotations_pb2
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.rpc import code_pb2

from penstock import details
from penstock.contract import MAX_BROKEN, Broken, in_one_sentence, quoted
from penstock.field_names import GIVEN_TWICE, Given
from penstock.gateway import json_text
from penstock.gateway.control_rest import SERVICES
from penstock.v1 import cluster_pb2, decision_pb2, deployment_pb2, replica_pb2

_FILES = (cluster_pb2, decision_pb2, deployment_pb2, replica_pb2)
_KEY_SHOWN_CHARACTERS = 80

# JSON's values as they are read here: an object is a tuple of its pairs, so that none is lost, a number its text.
_OPTIONS: dict[str, Any] = {"object_pairs_hook": tuple, "parse_int": str, "parse_float": str}


@dataclass(frozen=True, slots=True)
class _Binding:
    """A method of the contract, as its http annotation has it."""

    verb: str
    segments: tuple[str | None, ...]
    """Of its path; None is a variable."""
    custom_verb: str
    """What follows the path's last colon."""
    variables: tuple[str, ...]
    """Where in the body each variable's field would be."""
    message: Any
    """The descriptor of what the body is."""

    def values(self, verb: str, segments: list[str], custom_verb: str) -> Mapping[str, str] | None:
        """Those of its variables in a path; None: the path is another's."""
        if (verb, custom_verb, len(segments)) != (self.verb, self.custom_verb, len(self.segments)):
            return None
        found = []
        for mine, theirs in zip(self.segments, segments, strict=True):
            if mine is None and theirs:
                found.append(unquote(theirs))
            elif mine != theirs:
                return None
        return dict(zip(self.variables, found, strict=True))


def annotated(method: Any) -> tuple[str, str, str]:
    """(verb, path, body) of a method's http annotation, from its options. The contract uses one binding a method, and
    no wildcards; ValueError for another kind."""
    rule: Any = method.Extensions[cast(Any, annotations_pb2.http)]
    verb = rule.WhichOneof("pattern")
    if verb is None or verb == "custom" or rule.additional_bindings or "=" in getattr(rule, verb):
        raise ValueError("not a kind of http annotation that is known here")
    return verb, getattr(rule, verb), rule.body


def refusal(verb: str, path: str, body: bytes) -> dict[str, Any] | None:
    """google.rpc.Status in JSON form for a body that is not to be transcoded; None for any other. `path`: with its
    query, as it was sent."""
    if not body:
        return None
    for binding in _bindings():
        values = binding.values(verb, *_parts(path))
        if values is not None:
            break
    else:
        return None  # There is no such path, as the client will be told.
    try:
        sent = json_text.read(body, **_OPTIONS)
        look = _Look(values)
        if isinstance(sent, tuple):
            look.at_message(sent, binding.message, "")
    except json_text.NotJson as error:
        return _status(str(error), [])
    except RecursionError:
        return _status(json_text.TOO_DEEP, [])
    if not look.found:
        return None
    said = in_one_sentence([str(broken) for broken in look.found])
    return _status(said, look.found)


class _Look:
    """Goes through a body, and writes down what is wrong."""

    def __init__(self, in_path: Mapping[str, str]) -> None:
        self._in_path = in_path
        self.found: list[Broken] = []

    def at_message(self, pairs: tuple[tuple[str, Any], ...], descriptor: Any, path: str) -> None:
        given = Given(descriptor)
        for key, value in pairs:
            if len(self.found) >= MAX_BROKEN:
                return
            field = given.take(key)
            if isinstance(field, str):
                self._bad(_below(path, key[:_KEY_SHOWN_CHARACTERS]), field)
            else:
                self._at_field(field, value, _below(path, field.name))

    def _at_field(self, field: FieldDescriptor, value: Any, path: str) -> None:
        said = self._in_path.get(path)
        if said is not None and isinstance(value, str) and value != said:
            self._bad(path, f"must be {quoted(said)}, as in the request's path, not {quoted(value)}")
        kind = field.message_type
        if kind is None:
            return
        for place, pairs in _objects(value, path):
            if kind.GetOptions().map_entry:
                self._at_map(pairs, kind.fields_by_name["value"], place)
            else:
                self.at_message(pairs, kind, place)

    def _at_map(self, pairs: tuple[tuple[str, Any], ...], of: FieldDescriptor, path: str) -> None:
        seen = set()
        for key, value in pairs:
            if len(self.found) >= MAX_BROKEN:
                return
            here = f"{path}[{quoted(key)}]"
            if key in seen:
                self._bad(here, GIVEN_TWICE)
            seen.add(key)
            self._at_field(of, value, here)

    def _bad(self, path: str, sentence: str) -> None:
        self.found.append(Broken(path, sentence))


def _objects(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The objects that a value is, or lists: where one is wanted the transcoder may take a list, and the reverse."""
    if isinstance(value, tuple):
        yield path, value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _objects(item, f"{path}[{index}]")


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _status(message: str, found: list[Broken]) -> dict[str, Any]:
    bad = [details.bad_request(found)] if found else []
    status = details.status(code_pb2.INVALID_ARGUMENT, message, *bad)
    return json_format.MessageToDict(status, preserving_proto_field_name=True)


def _parts(path: str) -> tuple[list[str], str]:
    """The segments of a request's path, and its custom verb, as the transcoder finds them."""
    path = path.partition("?")[0]
    before, _, verb = path.rpartition(":")
    if verb and verb in {binding.custom_verb for binding in _bindings()}:
        return before.split("/"), verb
    return path.rstrip("/").split("/"), ""


@lru_cache(maxsize=1)
def _bindings() -> tuple[_Binding, ...]:
    """Of the methods that take a body."""
    found = []
    for service in (one for file in _FILES for one in file.DESCRIPTOR.services_by_name.values()):
        for method in service.methods if service.full_name in SERVICES else ():
            verb, template, body = annotated(method.GetOptions())
            if body:
                found.append(_binding(verb, template, body, method.input_type))
    return tuple(found)


def _binding(verb: str, template: str, body: str, request: Any) -> _Binding:
    path, _, custom_verb = template.partition(":")
    segments = path.split("/")
    variables = tuple(segment[1:-1] for segment in segments if segment.startswith("{"))
    message = request
    if body != "*":
        message = request.fields_by_name[body].message_type
        variables = tuple(variable.removeprefix(f"{body}.") for variable in variables)
    bare = tuple(None if segment.startswith("{") else segment for segment in segments)
    # The first is what precedes the path's first slash.
    return _Binding(verb.upper(), bare, custom_verb, variables, message)
