"""What a request to the stand-in asks for, field by field, checked as vLLM checks it. Pure.

Each function reads some fields of a chat's or a completion's body, and raises ApiError with vLLM's status and type
where they cannot be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from penstock_runtime import standin_shapes
from penstock_runtime.standin_text import Prompt

MAX_LOGPROBS = 20
"""vLLM's --max-logprobs, by default. Each alternative of each token takes memory."""


class ApiError(Exception):
    """An answer in OpenAI's error shape."""

    def __init__(self, status: int, kind: str, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.parameter = parameter

    def body(self) -> bytes:
        error = {"message": str(self), "type": self.kind, "param": self.parameter, "code": self.status}
        return json.dumps({"error": error}).encode()


def bad_value(message: str, parameter: str | None) -> ApiError:
    """400 for one field of the body."""
    return ApiError(400, "BadRequestError", message, parameter)


def tool_of(body: Mapping[str, Any], prompt: Prompt, *, auto: bool) -> tuple[str, Prompt]:
    """The tool that the answer calls (empty: none), and the prompt with its arguments as script.

    A tool that must be called is the first, or the one that is named; left to itself the stand-in calls the first
    whose name is among the last message's words.
    """
    tools = {}
    for tool in body.get("tools") or ():
        try:
            tools[str(tool["function"]["name"])] = tool["function"].get("parameters") or {}
        except (KeyError, TypeError, AttributeError) as error:
            raise ApiError(
                400, "Bad Request", "each of tools must have a function with a name", "body.tools"
            ) from error
    choice = body.get("tool_choice") or ("auto" if tools else "none")
    if choice == "none":
        return "", prompt
    if not tools:
        raise bad_value("When using `tool_choice`, `tools` must be set.", "tool_choice")
    if choice == "auto" and not auto:
        raise bad_value(
            '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
            "tool_choice",
        )
    if isinstance(choice, dict):
        wanted = [str((choice.get("function") or {}).get("name"))]
    else:
        wanted = [name for name in tools if choice == "required" or name in prompt.words]
    if not wanted:
        return "", prompt
    if wanted[0] not in tools:
        raise bad_value(
            "The tool specified in `tool_choice` does not match any of the specified `tools`",
            "tool_choice",
        )
    schema = tools[wanted[0]] or {"type": "object"}
    return wanted[0], replace(prompt, script=standin_shapes.tokens(standin_shapes.instance(schema)))


def script_of(body: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The answer's tokens where its shape is asked for."""
    shape = body.get("structured_outputs") or _response_format(body.get("response_format"))
    if not shape:
        return None
    if not isinstance(shape, dict):
        raise bad_value("structured_outputs must be an object", "structured_outputs")
    kinds = [
        kind
        for kind in ("json", "regex", "choice", "json_object", "grammar", "structural_tag")
        if shape.get(kind) is not None
    ]
    if len(kinds) != 1:
        raise bad_value(
            "You must use exactly one kind of structured outputs constraint", "structured_outputs"
        )
    value = shape[kinds[0]]
    match kinds[0]:
        case "json":
            text = standin_shapes.instance(_schema(value))
        case "regex":
            text = standin_shapes.matching(str(value))
        case "choice":
            if not isinstance(value, list) or not value:
                raise bad_value(f"Choice '{value}' cannot be an empty list", None)
            text = str(value[0])
        case "json_object":
            text = "{}"
        case kind:
            raise bad_value(
                f"structured_outputs.{kind} is not known to the stand-in engine", "structured_outputs"
            )
    return standin_shapes.tokens(text)


def _schema(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise bad_value(f"structured_outputs.json is not JSON: {error}", "structured_outputs") from error


def _response_format(value: Any) -> dict[str, Any]:
    """OpenAI's spelling as vLLM's own."""
    if not isinstance(value, dict) or value.get("type") == "text":
        return {}
    if value.get("type") == "json_object":
        return {"json_object": True}
    schema = value.get("json_schema")
    if value.get("type") != "json_schema" or not isinstance(schema, dict):
        raise bad_value(
            "response_format must be text, json_object, or json_schema with a schema", "response_format"
        )
    return {"json": schema.get("schema", {})}


def logprobs_of(body: Mapping[str, Any], chat: bool) -> int | None:
    """How many alternatives beside each token itself; None: no log probabilities at all."""
    if (body.get("logprobs") is not True) if chat else (body.get("logprobs") is None):
        return None
    name = "top_logprobs" if chat else "logprobs"
    wanted = integer(body, name, 0)
    if wanted > MAX_LOGPROBS:
        raise bad_value(
            f"Requested sample logprobs of {wanted}, which is greater than max allowed: {MAX_LOGPROBS}", name
        )
    return wanted


def stops_of(value: Any) -> tuple[str, ...]:
    """The stop strings."""
    stops = (
        (value,) if isinstance(value, str) else tuple(value or ()) if isinstance(value, list | None) else None
    )
    if stops is None or not all(isinstance(stop, str) and stop for stop in stops):
        raise bad_value("stop must be a text or a list of texts, none of them empty", "stop")
    return stops


def integer(body: Mapping[str, Any], name: str, default: int, least: int | None = None) -> int:
    """A field that must be a whole number where it is there."""
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not int or (least is not None and value < least):
        raise bad_value(f"{name} is {value!r}; a whole number is accepted", name)
    return value
