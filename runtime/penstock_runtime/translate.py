"""Between the contract's messages and the JSON of the engine's OpenAI-compatible HTTP server. Pure.

One function a call and direction: `*_body` makes the JSON that is posted, `*_response` reads the JSON that
comes back. Streams are read in merge.py, with the same small readers. Who asks, whether they may, and how the
bytes travel is not known here.

What comes here keeps the contract's field rules (penstock.contract); what is refused here is what those rules
cannot say.

The rule guarded here: nothing that a caller set is dropped in silence. A field is passed on, or refused by
name.
"""

from __future__ import annotations

import base64
import math
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from google.protobuf.struct_pb2 import Struct, Value

from penstock.v1 import inference_pb2 as pb
from penstock_runtime import schema_text

Json: TypeAlias = dict[str, Any]

ChatAsk: TypeAlias = pb.ChatRequest | pb.StreamChatRequest
GenerateAsk: TypeAlias = pb.GenerateRequest | pb.StreamGenerateRequest

# Fields of the engine's requests that the contract has a place for, or that Penstock sets itself.
OWN_FIELDS = frozenset(
    {
        "model", "messages", "prompt", "input", "stream", "stream_options", "request_id", "max_tokens",
        "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "stop", "seed", "presence_penalty",
        "frequency_penalty", "repetition_penalty", "n", "logprobs", "top_logprobs", "ignore_eos",
        "structured_outputs", "response_format", "tools", "tool_choice", "dimensions", "encoding_format",
        "text_1", "text_2", "queries", "query", "documents", "top_n",
    }
)  # fmt: skip

# Beyond 2**53 a double no longer tells neighbouring whole numbers apart.
_EXACT = float(1 << 53)

_ROLES = {
    pb.ROLE_SYSTEM: "system",
    pb.ROLE_USER: "user",
    pb.ROLE_ASSISTANT: "assistant",
    pb.ROLE_TOOL: "tool",
}
_FINISH_REASONS = {
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "tool_calls": pb.FINISH_REASON_TOOL_CALLS,
    "function_call": pb.FINISH_REASON_TOOL_CALLS,
    "content_filter": pb.FINISH_REASON_CONTENT_FILTER,
    "abort": pb.FINISH_REASON_ABORT,
}
# Fields of SamplingParameters that have the same name and meaning in the engine's requests.
_PLAIN_SAMPLING = (
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "n", "ignore_eos",
)  # fmt: skip


# Where in the contract's requests the engine's field is, where the names differ.
_CONTRACT_FIELDS = {
    **{name: f"sampling.{name}" for name in (*_PLAIN_SAMPLING, "stop", "logprobs")},
    "max_completion_tokens": "sampling.max_tokens",
    "top_logprobs": "sampling.logprobs",
    "structured_outputs": "output",
    "response_format": "output",
    "input": "inputs",
    "text_1": "query",
    "text_2": "documents",
}
_SAME_FIELDS = frozenset(
    {"messages", "prompt", "tools", "tool_choice", "dimensions", "query", "documents", "top_n", "tokens"}
)


class BadRequest(Exception):
    """The caller's message cannot be passed on: `field`, and a sentence that says what is accepted."""

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(f"{field}: {sentence}")
        self.field = field
        self.sentence = sentence


class BadAnswer(Exception):
    """The engine's answer is not of the shape that its API promises."""


def field_of(parameter: str) -> str:
    """The contract's path of a field that the engine complains of; what it has no place for is an engine option."""
    name = parameter.removeprefix("body.")
    if name in _SAME_FIELDS:
        return name
    return _CONTRACT_FIELDS.get(name, f"engine_options.{name}")


# --- Requests.


def chat_body(request: ChatAsk, *, model: str, stream: bool) -> Json:
    """The body for /v1/chat/completions. `model` is the name that the engine knows."""
    body: Json = _options(request.engine_options)
    body["model"] = model
    body["messages"] = [_message(each) for each in request.messages]
    sampling = request.sampling
    _sampling(sampling, body)
    if sampling.HasField("logprobs"):
        body["logprobs"] = True
        body["top_logprobs"] = sampling.logprobs
    _output(request.output, body)
    if request.tools:
        body["tools"] = _tools(request.tools)
    choice = request.tool_choice.WhichOneof("choice")
    if choice == "mode":
        body["tool_choice"] = request.tool_choice.mode
    elif choice == "name":
        body["tool_choice"] = {"type": "function", "function": {"name": request.tool_choice.name}}
    if stream:
        _stream(body)
    return body


def generate_body(request: GenerateAsk, *, model: str, stream: bool) -> Json:
    """The body for /v1/completions. `model` is the name that the engine knows."""
    body: Json = _options(request.engine_options)
    body["model"] = model
    body["prompt"] = request.prompt
    _sampling(request.sampling, body)
    if request.sampling.HasField("logprobs"):
        body["logprobs"] = request.sampling.logprobs
    _output(request.output, body)
    if stream:
        _stream(body)
    return body


def embed_body(request: pb.EmbedRequest, *, model: str) -> Json:
    """The body for /v1/embeddings.

    base64 because 32-bit floats are four times smaller that way than as text.
    """
    body: Json = _options(request.engine_options)
    body |= {"model": model, "input": list(request.inputs), "encoding_format": "base64"}
    if request.HasField("dimensions"):
        body["dimensions"] = request.dimensions
    return body


def score_body(request: pb.ScoreRequest, *, model: str) -> Json:
    """The body for /score."""
    body: Json = _options(request.engine_options)
    body |= {"model": model, "text_1": request.query, "text_2": list(request.documents)}
    return body


def rerank_body(request: pb.RerankRequest, *, model: str) -> Json:
    """The body for /rerank."""
    body: Json = _options(request.engine_options)
    body |= {"model": model, "query": request.query, "documents": list(request.documents)}
    if request.HasField("top_n"):
        body["top_n"] = request.top_n
    return body


def tokenize_body(request: pb.TokenizeRequest, *, model: str) -> Json:
    """The body for /tokenize."""
    body: Json = {"model": model}
    if request.messages:
        body["messages"] = [_message(each) for each in request.messages]
        if request.tools:
            body["tools"] = _tools(request.tools)
    else:
        body["prompt"] = request.text
    if request.HasField("add_special_tokens"):
        body["add_special_tokens"] = request.add_special_tokens
    return body


def detokenize_body(request: pb.DetokenizeRequest, *, model: str) -> Json:
    """The body for /detokenize."""
    tokens = list(request.tokens)
    if tokens and (least := min(tokens)) < 0:
        raise BadRequest(f"tokens[{tokens.index(least)}]", f"must be at least 0, not {least}")
    return {"model": model, "tokens": tokens}


def choices_asked(sampling: pb.SamplingParameters) -> int:
    """How many choices must finish before the answer is whole."""
    return sampling.n if sampling.HasField("n") else 1


def _stream(body: Json) -> None:
    body["stream"] = True
    # In every event, so that an answer which breaks off is counted too: an event may carry several tokens.
    body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}


def _options(options: Struct) -> Json:
    for key in options.fields:
        if key in OWN_FIELDS:
            raise BadRequest(
                f"engine_options.{key}",
                "is not accepted; the request has a field for it, or Penstock sets it",
            )
    return {key: plain(value, f"engine_options.{key}") for key, value in options.fields.items()}


def _sampling(sampling: pb.SamplingParameters, body: Json) -> None:
    for field, value in sampling.ListFields():
        if field.name in _PLAIN_SAMPLING:
            body[field.name] = value
    if sampling.stop:
        body["stop"] = list(sampling.stop)


def _output(output: pb.OutputFormat, body: Json) -> None:
    kind = output.WhichOneof("format")
    if kind is None:
        return
    wanted: Json
    if kind == "json_schema":
        wanted = {"json": plain_struct(output.json_schema, "output.json_schema")}
    elif kind == "json_schema_text":
        wanted = {"json": _schema(output.json_schema_text, "output.json_schema_text")}
    elif kind == "regex":
        wanted = {"regex": output.regex}
    elif kind == "grammar":
        wanted = {"grammar": output.grammar}
    elif kind == "choice":
        wanted = {"choice": list(output.choice.choices)}
    elif output.json_object:
        wanted = {"json_object": True}
    else:
        return
    body["structured_outputs"] = wanted


def _schema(text: str, field: str) -> Json:
    try:
        return schema_text.read(text)
    except ValueError as error:
        raise BadRequest(field, str(error)) from error


def _tools(tools: Sequence[pb.Tool]) -> list[Json]:
    if (length := sum(len(each.parameters_text) for each in tools)) > schema_text.MAX_CHARACTERS:
        raise BadRequest(
            "tools.parameters_text",
            f"must be at most {schema_text.MAX_CHARACTERS} characters over all tools, not {length}",
        )
    return [_tool(each) for each in tools]


def _tool(tool: pb.Tool) -> Json:
    function: Json = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.HasField("parameters"):
        function["parameters"] = plain_struct(tool.parameters, "tools.parameters")
    elif tool.parameters_text:
        function["parameters"] = _schema(tool.parameters_text, "tools.parameters_text")
    if tool.HasField("strict"):
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _message(message: pb.Message) -> Json:
    made: Json = {"role": _ROLES[message.role]}
    parts = message.content
    if len(parts) == 1 and parts[0].WhichOneof("part") == "text":
        # Many chat templates take only a plain string.
        made["content"] = parts[0].text
    elif parts:
        made["content"] = [_part(each) for each in parts]
    else:
        made["content"] = None if message.tool_calls else ""
    if message.tool_calls:
        made["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        made["tool_call_id"] = message.tool_call_id
    return made


def _part(part: pb.ContentPart) -> Json:
    if part.HasField("text"):
        return {"type": "text", "text": part.text}
    url = part.image_url
    if part.HasField("image"):
        data = base64.b64encode(part.image.data).decode("ascii")
        url = f"data:{part.image.mime_type or 'image/png'};base64,{data}"
    return {"type": "image_url", "image_url": {"url": url}}


def plain_struct(value: Struct, field: str) -> Json:
    """A Struct as a dict. Raises BadRequest for `field` where it holds what JSON does not."""
    return {key: plain(each, field) for key, each in value.fields.items()}


def plain(value: Value, field: str) -> Any:
    """A protobuf Value as Python's own.

    A whole number comes back as an int, as JSON schemas and the engine expect. Raises BadRequest for `field`.
    """
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        number = value.number_value
        if not math.isfinite(number):
            raise BadRequest(field, f"must have finite numbers, not {number}")
        return int(number) if number.is_integer() and abs(number) <= _EXACT else number
    if kind == "struct_value":
        return plain_struct(value.struct_value, field)
    if kind == "list_value":
        return [plain(each, field) for each in value.list_value.values]
    if kind == "string_value":
        return value.string_value
    if kind == "bool_value":
        return value.bool_value
    return None


# --- Answers.


def finish_reason(word: str | None) -> pb.FinishReason.ValueType:
    """The engine's finish reason; unspecified for None.

    A word that this release does not know ends a choice all the same.
    """
    if word is None:
        return pb.FINISH_REASON_UNSPECIFIED
    if word == "error":
        raise BadAnswer("the engine ended a choice with an error")
    return _FINISH_REASONS.get(word, pb.FINISH_REASON_STOP)


def stop_reason(choice: Mapping[str, Any]) -> str:
    """The stop string or the id of the stop token that ended a choice; empty where none did."""
    reason = choice.get("stop_reason")
    return "" if reason is None else str(reason)


def usage(value: Mapping[str, Any] | None) -> pb.Usage | None:
    """The engine's token counts, or None where it gave none."""
    if not value:
        return None
    details = value.get("prompt_tokens_details") or {}
    return pb.Usage(
        prompt_tokens=value.get("prompt_tokens") or 0,
        completion_tokens=value.get("completion_tokens") or 0,
        cached_prompt_tokens=details.get("cached_tokens") or 0,
    )


def chat_logprobs(value: Mapping[str, Any] | None) -> list[pb.TokenLogprob]:
    """The log probabilities beside a chat choice."""
    return [_chat_logprob(each) for each in (value or {}).get("content") or ()]


def _chat_logprob(value: Mapping[str, Any]) -> pb.TokenLogprob:
    return pb.TokenLogprob(
        token=value["token"],
        logprob=value["logprob"],
        utf8=bytes(value.get("bytes") or ()),
        top=[_chat_logprob(each) for each in value.get("top_logprobs") or ()],
    )


def generate_logprobs(value: Mapping[str, Any] | None) -> list[pb.TokenLogprob]:
    """The log probabilities beside a completion choice: parallel lists there, one message a token here."""
    if not value:
        return []
    tokens = value.get("tokens") or []
    chosen = value.get("token_logprobs") or [None] * len(tokens)
    top = value.get("top_logprobs") or [None] * len(tokens)
    return [
        pb.TokenLogprob(
            token=token,
            logprob=logprob or 0.0,
            top=[pb.TokenLogprob(token=text, logprob=each) for text, each in (likeliest or {}).items()],
        )
        for token, logprob, likeliest in zip(tokens, chosen, top, strict=True)
    ]


def chat_response(answer: Json) -> pb.ChatResponse:
    """The answer of /v1/chat/completions."""
    response = pb.ChatResponse(id=answer.get("id") or "", model=answer.get("model") or "")
    response.usage.CopyFrom(usage(answer.get("usage")) or pb.Usage())
    for choice in answer["choices"]:
        message = choice["message"]
        made = response.choices.add(
            index=choice["index"],
            content=message.get("content") or "",
            reasoning_content=message.get("reasoning") or message.get("reasoning_content") or "",
            finish_reason=finish_reason(_finished(choice)),
            stop_reason=stop_reason(choice),
            logprobs=chat_logprobs(choice.get("logprobs")),
        )
        for index, call in enumerate(message.get("tool_calls") or ()):
            function = call["function"]
            made.tool_calls.add(
                index=index,
                id=call.get("id") or "",
                name=function.get("name") or "",
                arguments=function.get("arguments") or "",
            )
    return response


def generate_response(answer: Json) -> pb.GenerateResponse:
    """The answer of /v1/completions."""
    response = pb.GenerateResponse(id=answer.get("id") or "", model=answer.get("model") or "")
    response.usage.CopyFrom(usage(answer.get("usage")) or pb.Usage())
    for choice in answer["choices"]:
        response.choices.add(
            index=choice["index"],
            text=choice.get("text") or "",
            finish_reason=finish_reason(_finished(choice)),
            stop_reason=stop_reason(choice),
            logprobs=generate_logprobs(choice.get("logprobs")),
        )
    return response


def _finished(choice: Mapping[str, Any]) -> str:
    word = choice.get("finish_reason")
    if not word:
        raise BadAnswer(f"choice {choice.get('index')} came without a finish reason")
    return str(word)


def embed_response(answer: Json) -> pb.EmbedResponse:
    """The answer of /v1/embeddings."""
    response = pb.EmbedResponse(model=answer.get("model") or "")
    response.usage.CopyFrom(usage(answer.get("usage")) or pb.Usage())
    for each in sorted(answer["data"], key=lambda one: int(one["index"])):
        response.embeddings.add().values.extend(_floats(each["embedding"]))
    return response


def _floats(value: str | list[float]) -> Iterable[float]:
    """An engine that does not know base64 answers with numbers."""
    if not isinstance(value, str):
        return value
    floats = array("f")
    floats.frombytes(base64.b64decode(value))
    if sys.byteorder == "big":
        floats.byteswap()
    return floats


def score_response(answer: Json) -> pb.ScoreResponse:
    """The answer of /score."""
    ordered = sorted(answer["data"], key=lambda one: int(one["index"]))
    return pb.ScoreResponse(
        model=answer.get("model") or "",
        scores=[each["score"] for each in ordered],
        usage=usage(answer.get("usage")),
    )


def rerank_response(answer: Json) -> pb.RerankResponse:
    """The answer of /rerank."""
    return pb.RerankResponse(
        model=answer.get("model") or "",
        documents=[
            pb.RankedDocument(index=each["index"], score=each["relevance_score"])
            for each in answer["results"]
        ],
        usage=usage(answer.get("usage")),
    )


def tokenize_response(answer: Json) -> pb.TokenizeResponse:
    """The answer of /tokenize."""
    return pb.TokenizeResponse(tokens=answer["tokens"], max_model_len=answer.get("max_model_len") or 0)


def detokenize_response(answer: Json) -> pb.DetokenizeResponse:
    """The answer of /detokenize."""
    return pb.DetokenizeResponse(text=answer["prompt"])
