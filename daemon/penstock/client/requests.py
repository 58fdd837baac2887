"""The clients' arguments, written as the contract's requests. Pure.

Values pass as they are: what they may be is the contract's to say, and the server's to check.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, TypeVar

from penstock.client import messages
from penstock.client.errors import invalid
from penstock.client.messages import Conversation, Tool, ToolChoice
from penstock.v1 import inference_pb2 as pb

ChatRequestT = TypeVar("ChatRequestT", pb.ChatRequest, pb.StreamChatRequest)
GenerateRequestT = TypeVar("GenerateRequestT", pb.GenerateRequest, pb.StreamGenerateRequest)


class GenerateOptions(TypedDict, total=False):
    """How to draw tokens, and what the answer must look like. None, or left out: the engine's default.

    SamplingParameters and OutputFormat in the contract say what each may be. Of the last five one can be given.
    """

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    stop: str | Sequence[str] | None
    seed: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    n: int | None
    logprobs: int | None
    ignore_eos: bool | None
    engine_options: Mapping[str, Any] | None
    """What the contract has no field for, under the engine's own name."""
    json_schema: str | Mapping[str, Any] | None
    regex: str | None
    choice: Sequence[str] | None
    json_object: bool | None
    grammar: str | None


class ChatOptions(GenerateOptions, total=False):
    """With what a model may call, in OpenAI's shape or the contract's."""

    tools: Sequence[Tool] | None
    tool_choice: ToolChoice | None


_OUTPUTS = ("json_schema", "regex", "choice", "json_object", "grammar")
_OTHERS = frozenset({*_OUTPUTS, "engine_options", "tools", "tool_choice"})


def chat(
    kind: type[ChatRequestT], model: str, conversation: Conversation, options: ChatOptions
) -> ChatRequestT:
    """A request for a chat, whole or streamed."""
    return kind(
        model=model,
        messages=messages.conversation(conversation),
        sampling=_sampling(options),
        output=_output(options),
        tools=messages.tools(options.get("tools") or ()),
        tool_choice=messages.tool_choice(options.get("tool_choice")),
        engine_options=engine_options(options.get("engine_options")),
    )


def generate(
    kind: type[GenerateRequestT], model: str, prompt: str, options: GenerateOptions
) -> GenerateRequestT:
    """A request to go on from a text, whole or streamed."""
    return kind(
        model=model,
        prompt=prompt,
        sampling=_sampling(options),
        output=_output(options),
        engine_options=engine_options(options.get("engine_options")),
    )


def tokenize(
    model: str, text: str | Conversation, tools: Sequence[Tool], add_special_tokens: bool | None
) -> pb.TokenizeRequest:
    """A request for the tokens of a text, or of a conversation."""
    request = pb.TokenizeRequest(
        model=model, tools=messages.tools(tools), add_special_tokens=add_special_tokens
    )
    if isinstance(text, str):
        request.text = text
    else:
        request.messages.extend(messages.conversation(text))
    return request


def engine_options(given: Mapping[str, Any] | None) -> Any:
    """As a Struct; None: none."""
    return None if given is None else messages.struct(given, "engine_options")


def several(texts: str | Sequence[str]) -> list[str]:
    """One text is a list of one: taken as a sequence it would be its letters."""
    return [texts] if isinstance(texts, str) else list(texts)


def _sampling(options: GenerateOptions) -> pb.SamplingParameters | None:
    given: dict[str, Any] = {
        key: value for key, value in options.items() if key not in _OTHERS and value is not None
    }
    if "stop" in given:
        given["stop"] = several(given["stop"])
    unknown = sorted(given.keys() - pb.SamplingParameters.DESCRIPTOR.fields_by_name.keys())
    if unknown:
        raise invalid(unknown[0], "is no option; what only the engine knows goes into engine_options")
    return pb.SamplingParameters(**given) if given else None


def _output(options: GenerateOptions) -> pb.OutputFormat | None:
    given = [name for name in _OUTPUTS if options.get(name) not in (None, False)]
    if len(given) > 1:
        raise invalid("output", f"one of {', '.join(_OUTPUTS)} can be given, not {' and '.join(given)}")
    if not given:
        return None
    if (schema := options.get("json_schema")) is not None:
        # As text, because a Struct loses the order of the properties.
        return pb.OutputFormat(
            json_schema_text=schema if isinstance(schema, str) else messages.json_text(schema, "json_schema")
        )
    if (choices := options.get("choice")) is not None:
        return pb.OutputFormat(choice=pb.Choices(choices=several(choices)))
    return pb.OutputFormat(
        regex=options.get("regex"),
        grammar=options.get("grammar"),
        json_object=options.get("json_object") or None,
    )
