"""Between the contract's messages and the JSON of the engine's OpenAI-compatible HTTP server. Pure.

One function a call and direction: `*_body` makes the JSON that is posted, `*_response` reads the JSON that
comes back. Streams are read in merge.py, with the same small readers. Who asks, whether they may, and how the
bytes travel is not known here.

The rule guarded here: nothing that a caller set is dropped in silence. A field is passed on, or refused by
name.
"""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from google.protobuf.struct_pb2 import ListValue, Struct, Value

from penstock.v1 import inference_pb2 as pb

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


class BadRequest(Exception):
    """The caller's message cannot be passed on; one sentence that names the field and what is accepted."""


class BadAnswer(Exception):
    """The engine's answer is not of the shape that its API promises."""


# --- Requests.


def chat_body(request: ChatAsk, *, model: str, stream: bool) -> Json:
    """The body for /v1/chat/completions. `model` is the name that the engine knows."""
    if not request.messages:
        raise BadRequest("messages is empty; at least one message is needed")
    body: Json = _options(request.engine_options)
    body["model"] = model
    body["messages"] = [_message(each, f"messages[{i}]") for i, each in enumerate(request.messages)]
    sampling = request.sampling
    _sampling(sampling, body)
    if sampling.HasField("logprobs"):
        body["logprobs"] = True
        body["top_logprobs"] = sampling.logprobs
    _output(request.output, body)
    if request.tools:
        body["tools"] = [_tool(each, f"tools[{i}]") for i, each in enumerate(request.tools)]
    choice = request.tool_choice.WhichOneof("choice")
    if choice == "mode":
        if request.tool_choice.mode not in ("auto", "none", "required"):
            raise BadRequest(
                f"tool_choice.mode is {request.tool_choice.mode!r}; accepted are auto, none and required"
            )
        body["tool_choice"] = request.tool_choice.mode
    elif choice == "name":
        body["tool_choice"] = {"type": "function", "function": {"name": request.tool_choice.name}}
    if stream:
        _stream(body)
    return body


def generate_body(request: GenerateAsk, *, model: str, stream: bool) -> Json:
    """The body for /v1/completions. `model` is the name that the engine knows."""
    if not request.prompt:
        raise BadRequest("prompt is empty; a text is needed")
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
    _non_empty(request.inputs, "inputs")
    body: Json = _options(request.engine_options)
    body |= {"model": model, "input": list(request.inputs), "encoding_format": "base64"}
    if request.HasField("dimensions"):
        body["dimensions"] = request.dimensions
    return body


def score_body(request: pb.ScoreRequest, *, model: str) -> Json:
    """The body for /score."""
    _non_empty(request.documents, "documents")
    return {"model": model, "text_1": request.query, "text_2": list(request.documents)}


def rerank_body(request: pb.RerankRequest, *, model: str) -> Json:
    """The body for /rerank."""
    _non_empty(request.documents, "documents")
    body: Json = {"model": model, "query": request.query, "documents": list(request.documents)}
    if request.HasField("top_n"):
        body["top_n"] = request.top_n
    return body


def tokenize_body(request: pb.TokenizeRequest, *, model: str) -> Json:
    """The body for /tokenize."""
    return {"model": model, "prompt": request.text}


def choices_asked(sampling: pb.SamplingParameters) -> int:
    """How many choices must finish before the answer is whole."""
    return sampling.n if sampling.HasField("n") else 1


def _stream(body: Json) -> None:
    body["stream"] = True
    body["stream_options"] = {"include_usage": True}


def _non_empty(values: Iterable[str], name: str) -> None:
    if not any(True for _ in values):
        raise BadRequest(f"{name} is empty; at least one is needed")


def _options(options: Struct) -> Json:
    for key in options.fields:
        if key in OWN_FIELDS:
            raise BadRequest(
                f"engine_options.{key} is not accepted; the request has a field for it, or Penstock sets it"
            )
    return {key: plain(value) for key, value in options.fields.items()}


def _sampling(sampling: pb.SamplingParameters, body: Json) -> None:
    for field, value in sampling.ListFields():
        if field.name in _PLAIN_SAMPLING:
            body[field.name] = value
    if sampling.HasField("n") and sampling.n < 1:
        raise BadRequest(f"sampling.n is {sampling.n}; it must be 1 or more")
    if sampling.stop:
        body["stop"] = list(sampling.stop)


def _output(output: pb.OutputFormat, body: Json) -> None:
    kind = output.WhichOneof("format")
    if kind is None:
        return
    wanted: Json
    if kind == "json_schema":
        wanted = {"json": plain_struct(output.json_schema)}
    elif kind == "regex":
        wanted = {"regex": output.regex}
    elif kind == "choice":
        _non_empty(output.choice.choices, "output.choice.choices")
        wanted = {"choice": list(output.choice.choices)}
    elif output.json_object:
        wanted = {"json_object": True}
    else:
        return
    body["structured_outputs"] = wanted


def _tool(tool: pb.Tool, where: str) -> Json:
    if not tool.name:
        raise BadRequest(f"{where}.name is empty; a tool needs a name")
    function: Json = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.HasField("parameters"):
        function["parameters"] = plain_struct(tool.parameters)
    return {"type": "function", "function": function}


def _message(message: pb.Message, where: str) -> Json:
    role = _ROLES.get(message.role)
    if role is None:
        raise BadRequest(f"{where}.role is not set; accepted are system, user, assistant and tool")
    made: Json = {"role": role}
    parts = message.content
    if len(parts) == 1 and parts[0].WhichOneof("part") == "text":
        # Many chat templates take only a plain string.
        made["content"] = parts[0].text
    elif parts:
        made["content"] = [_part(each, f"{where}.content[{i}]") for i, each in enumerate(parts)]
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


def _part(part: pb.ContentPart, where: str) -> Json:
    kind = part.WhichOneof("part")
    if kind == "text":
        return {"type": "text", "text": part.text}
    if kind == "image_url":
        # Another scheme, such as file:, would have the engine read what the caller may not.
        if not part.image_url.startswith(("http://", "https://", "data:")):
            raise BadRequest(f"{where}.image_url must be an http, https or data URL")
        return {"type": "image_url", "image_url": {"url": part.image_url}}
    if kind == "image":
        data = base64.b64encode(part.image.data).decode("ascii")
        mime_type = part.image.mime_type or "image/png"
        return {"type": "image_url", "image_url": {"url": f"data:{mime_type};base64,{data}"}}
    raise BadRequest(f"{where} is empty; accepted are text, image_url and image")


def plain_struct(value: Struct) -> Json:
    """A Struct as a dict."""
    return {key: plain(each) for key, each in value.fields.items()}


def plain(value: Value) -> Any:
    """A protobuf Value as Python's own;

    a whole number comes back as an int, as JSON schemas and the engine expect.
    """
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() and abs(number) <= _EXACT else number
    if kind == "struct_value":
        return plain_struct(value.struct_value)
    if kind == "list_value":
        return _plain_list(value.list_value)
    if kind == "string_value":
        return value.string_value
    if kind == "bool_value":
        return value.bool_value
    return None


def _plain_list(values: ListValue) -> list[Any]:
    return [plain(each) for each in values.values]


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
