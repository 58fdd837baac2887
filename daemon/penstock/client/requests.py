"""The clients' arguments, written as the contract's requests. Pure.

Values pass as they are: what they may be is the contract's to say, and the server's to check. Only what no field of a
request can hold is refused here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, TypeVar

from penstock.client import messages
from penstock.client.errors import invalid
from penstock.client.fields import listed, made, utf8
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
    return made(
        kind,
        model=model,
        messages=messages.conversation(conversation),
        sampling=_sampling(options),
        output=_output(options),
        tools=messages.tools(options.get("tools") or ()),
        tool_choice=messages.tool_choice(options.get("tool_choice")),
        engine_options=_engine_options(options.get("engine_options")),
    )


def generate(
    kind: type[GenerateRequestT], model: str, prompt: str, options: GenerateOptions
) -> GenerateRequestT:
    """A request to go on from a text, whole or streamed."""
    return made(
        kind,
        model=model,
        prompt=prompt,
        sampling=_sampling(options),
        output=_output(options),
        engine_options=_engine_options(options.get("engine_options")),
    )


def tokenize(
    model: str, text: str | Conversation, tools: Sequence[Tool], add_special_tokens: bool | None
) -> pb.TokenizeRequest:
    """A request for the tokens of a text, or of a conversation."""
    asked = {"text": text} if isinstance(text, str) else {"messages": messages.conversation(text)}
    return made(
        pb.TokenizeRequest,
        model=model,
        tools=messages.tools(tools),
        add_special_tokens=add_special_tokens,
        **asked,
    )


def detokenize(model: str, tokens: Sequence[int]) -> pb.DetokenizeRequest:
    """A request for the text of tokens."""
    return made(pb.DetokenizeRequest, model=model, tokens=listed(tokens, "tokens"))


def embed(
    model: str, inputs: str | Sequence[str], dimensions: int | None, options: Mapping[str, Any] | None
) -> pb.EmbedRequest:
    """A request for embeddings. `options`: the engine's own."""
    return made(
        pb.EmbedRequest,
        model=model,
        inputs=_several(inputs, "inputs"),
        dimensions=dimensions,
        engine_options=_engine_options(options),
    )


def score(
    model: str, query: str, documents: str | Sequence[str], options: Mapping[str, Any] | None
) -> pb.ScoreRequest:
    """A request for how well documents fit a query."""
    return made(
        pb.ScoreRequest,
        model=model,
        query=query,
        documents=_several(documents, "documents"),
        engine_options=_engine_options(options),
    )


def rerank(
    model: str,
    query: str,
    documents: str | Sequence[str],
    top_n: int | None,
    options: Mapping[str, Any] | None,
) -> pb.RerankRequest:
    """A request for the documents' order."""
    return made(
        pb.RerankRequest,
        model=model,
        query=query,
        documents=_several(documents, "documents"),
        top_n=top_n,
        engine_options=_engine_options(options),
    )


def _engine_options(given: Mapping[str, Any] | None) -> Any:
    """As a Struct; None: none."""
    return None if given is None else messages.struct(given, "engine_options")


def _several(texts: str | Sequence[str], path: str) -> list[str]:
    """One text is a list of one: taken as a sequence it would be its letters."""
    if isinstance(texts, str):
        return [utf8(texts, path)]
    return [utf8(each, f"{path}[{index}]") for index, each in enumerate(listed(texts, path))]


def _sampling(options: GenerateOptions) -> pb.SamplingParameters | None:
    given: dict[str, Any] = {
        key: value for key, value in options.items() if key not in _OTHERS and value is not None
    }
    if "stop" in given:
        given["stop"] = _several(given["stop"], "stop")
    unknown = sorted(given.keys() - pb.SamplingParameters.DESCRIPTOR.fields_by_name.keys())
    if unknown:
        raise invalid(unknown[0], "is no option; what only the engine knows goes into engine_options")
    return made(pb.SamplingParameters, **given) if given else None


def _output(options: GenerateOptions) -> pb.OutputFormat | None:
    given = [name for name in _OUTPUTS if options.get(name) not in (None, False)]
    if len(given) > 1:
        raise invalid("output", f"one of {', '.join(_OUTPUTS)} can be given, not {' and '.join(given)}")
    if not given:
        return None
    if (schema := options.get("json_schema")) is not None:
        # As text, because a Struct loses the order of the properties.
        text = schema if isinstance(schema, str) else messages.json_text(schema, "json_schema")
        return pb.OutputFormat(json_schema_text=utf8(text, "json_schema"))
    if (choices := options.get("choice")) is not None:
        return pb.OutputFormat(choice=pb.Choices(choices=_several(choices, "choice")))
    return made(
        pb.OutputFormat,
        regex=options.get("regex"),
        grammar=options.get("grammar"),
        json_object=options.get("json_object") or None,
    )
