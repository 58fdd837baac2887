"""Conversations and tools in OpenAI's shape, written as the contract's messages. Pure.

The rule guarded here: what a caller gave is passed on or refused by name, never dropped. A key whose value is None
counts as absent, as in dumps of OpenAI's own types.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from google.protobuf.struct_pb2 import Struct

from penstock.client.errors import invalid
from penstock.client.fields import listed, made, mapping, utf8
from penstock.v1 import inference_pb2 as pb

Conversation: TypeAlias = "str | Sequence[pb.Message | Mapping[str, Any]]"
"""A text is one message of the user. A dict: role, content (a text, or parts), tool_calls, tool_call_id."""
Tool: TypeAlias = "pb.Tool | Mapping[str, Any]"
ToolChoice: TypeAlias = "str | pb.ToolChoice | Mapping[str, Any]"

_LARGEST_INT = 2**53
"""A Struct's numbers are doubles: up to here each whole number is itself."""

_ROLES = {
    "system": pb.ROLE_SYSTEM,
    "developer": pb.ROLE_SYSTEM,
    "user": pb.ROLE_USER,
    "assistant": pb.ROLE_ASSISTANT,
    "tool": pb.ROLE_TOOL,
}


def conversation(messages: Conversation) -> list[pb.Message]:
    """Raises InvalidRequest for what has no place in the contract."""
    if isinstance(messages, str):
        return [pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text=utf8(messages, "messages"))])]
    return [
        each if isinstance(each, pb.Message) else _message(each, f"messages[{index}]")
        for index, each in enumerate(listed(messages, "messages"))
    ]


def tools(given: Iterable[Tool]) -> list[pb.Tool]:
    """Each {"type": "function", "function": {name, description, parameters, strict}}, or its inner part alone."""
    return [
        each if isinstance(each, pb.Tool) else _tool(each, f"tools[{index}]")
        for index, each in enumerate(listed(given, "tools"))
    ]


def tool_choice(given: ToolChoice | None) -> pb.ToolChoice | None:
    """auto, none, required, or {"type": "function", "function": {"name": ...}}."""
    if given is None or isinstance(given, pb.ToolChoice):
        return given
    if isinstance(given, str):
        return pb.ToolChoice(mode=utf8(given, "tool_choice"))
    function = _function(given, "tool_choice")
    _only(function, {"name"}, "tool_choice.function")
    return pb.ToolChoice(name=_text(function, "name", "tool_choice.function"))


def struct(given: Mapping[str, Any], path: str) -> Struct:
    """JSON as protobuf has it. Raises InvalidRequest for what it would change: whole numbers beyond 2**53."""
    written = Struct()
    try:
        _exact(given, path)
        written.update(dict(given))
    except (TypeError, ValueError, RecursionError) as error:
        raise invalid(path, f"must be JSON: {error}") from error
    return written


def json_text(given: Mapping[str, Any], path: str) -> str:
    """JSON as it is, its order and its numbers. Raises InvalidRequest for what JSON has not."""
    try:
        return json.dumps(dict(mapping(given, path)), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise invalid(path, f"must be JSON: {error}") from error


def _exact(given: Any, path: str) -> None:
    if isinstance(given, int) and abs(given) > _LARGEST_INT:
        raise invalid(path, f"must be at most 2**53 and at least -2**53, not {given:#x}")
    if isinstance(given, Mapping):
        for key, value in given.items():
            _exact(value, f"{path}.{key}")
    elif isinstance(given, (list, tuple)):
        for index, value in enumerate(given):
            _exact(value, f"{path}[{index}]")


def _message(given: Any, path: str) -> pb.Message:
    _only(mapping(given, path), {"role", "content", "tool_calls", "tool_call_id"}, path)
    role = given.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise invalid(f"{path}.role", f"must be one of {', '.join(_ROLES)}, not {reprlib.repr(role)}")
    content, calls = given.get("content"), given.get("tool_calls") or ()
    return made(
        pb.Message,
        path,
        role=_ROLES[role],
        content=_content(content, f"{path}.content"),
        tool_calls=[
            each if isinstance(each, pb.ToolCall) else _call(each, index, f"{path}.tool_calls[{index}]")
            for index, each in enumerate(listed(calls, f"{path}.tool_calls"))
        ],
        tool_call_id=given.get("tool_call_id") or "",
    )


def _content(content: Any, path: str) -> list[pb.ContentPart]:
    if content is None:
        return []
    if isinstance(content, str):
        return [pb.ContentPart(text=utf8(content, path))]
    if not isinstance(content, (list, tuple)):
        raise invalid(path, f"must be a text or a list of parts, not {reprlib.repr(content)}")
    return [
        each if isinstance(each, pb.ContentPart) else _part(each, f"{path}[{index}]")
        for index, each in enumerate(content)
    ]


def _part(given: Any, path: str) -> pb.ContentPart:
    match mapping(given, path).get("type"):
        case "text":
            _only(given, {"type", "text"}, path)
            return pb.ContentPart(text=_text(given, "text", path))
        case "image_url":
            _only(given, {"type", "image_url"}, path)
            image = given.get("image_url")
            if not isinstance(image, Mapping):
                return pb.ContentPart(image_url=_text(given, "image_url", path))
            _only(image, {"url"}, f"{path}.image_url")
            return pb.ContentPart(image_url=_text(image, "url", f"{path}.image_url"))
        case other:
            raise invalid(f"{path}.type", f"must be text or image_url, not {reprlib.repr(other)}")


def _call(given: Any, index: int, path: str) -> pb.ToolCall:
    _only(mapping(given, path), {"id", "type", "index", "function"}, path)
    function = _function(given, path)
    _only(function, {"name", "arguments"}, f"{path}.function")
    return made(
        pb.ToolCall,
        path,
        index=index,
        id=given.get("id") or "",
        name=_text(function, "name", f"{path}.function"),
        arguments=_text(function, "arguments", f"{path}.function"),
    )


def _tool(given: Any, path: str) -> pb.Tool:
    if "function" in mapping(given, path) or "type" in given:
        _only(given, {"type", "function"}, path)
        given, path = _function(given, path), f"{path}.function"
    _only(given, {"name", "description", "parameters", "strict"}, path)
    parameters = given.get("parameters")
    return made(
        pb.Tool,
        path,
        name=_text(given, "name", path),
        description=given.get("description") or "",
        # As text, for a Struct keeps no order, and models read it in order.
        parameters_text="" if parameters is None else json_text(parameters, f"{path}.parameters"),
        strict=given.get("strict"),
    )


def _function(given: Any, path: str) -> Mapping[str, Any]:
    if mapping(given, path).get("type", "function") != "function":
        raise invalid(f"{path}.type", f"must be function, not {reprlib.repr(given['type'])}")
    return mapping(given.get("function"), f"{path}.function")


def _text(given: Mapping[str, Any], key: str, path: str) -> str:
    return utf8(given.get(key), f"{path}.{key}")


def _only(given: Mapping[str, Any], accepted: set[str], path: str) -> None:
    unknown = sorted(str(key) for key, value in given.items() if key not in accepted and value is not None)
    if unknown:
        raise invalid(f"{path}.{unknown[0]}", f"is not accepted; there are {', '.join(sorted(accepted))}")
