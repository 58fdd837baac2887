"""The OpenAPI document of the OpenAI API as Penstock serves it: the paths of penstock.gateway.openai, the fields that
clients may count on, and every status with its error's shape.

It promises what Penstock promises, which is less than an engine does: bodies go to the engine as they are, with every
field it takes. So no schema of a request or an answer is closed, and no value is bounded that only an engine bounds.
"""

from __future__ import annotations

from typing import Any

from penstock.gateway import openai

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_NUMBER: Schema = {"type": "number"}
_COUNT: Schema = {"type": "integer"}
_OBJECT: Schema = {"type": "object"}
_TEXTS: Schema = {"type": "array", "items": _TEXT}
_TEXT_OR_TEXTS: Schema = {"anyOf": [_TEXT, _TEXTS]}
_OBJECTS: Schema = {"type": "array", "items": _OBJECT}
_TOKENS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_MESSAGES: Schema = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "object", "required": ["role"], "properties": {"role": _TEXT}},
}
_USAGE: Schema = {
    "type": ["object", "null"],
    "properties": {"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT},
}
_SAMPLING: Schema = {
    "max_tokens": {"type": ["integer", "null"], "minimum": 0},
    "temperature": {"type": ["number", "null"], "minimum": 0},
    "top_p": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1},
    "n": {"type": ["integer", "null"], "minimum": 1},
    "stop": {"anyOf": [_TEXT, _TEXTS, {"type": "null"}]},
    "seed": {"type": ["integer", "null"]},
    "presence_penalty": {"type": ["number", "null"], "minimum": -2, "maximum": 2},
    "frequency_penalty": {"type": ["number", "null"], "minimum": -2, "maximum": 2},
    "logit_bias": {"type": ["object", "null"], "additionalProperties": _NUMBER},
    "stream": {"type": ["boolean", "null"], "description": "Answer with server-sent events."},
    "stream_options": {
        "type": ["object", "null"],
        "properties": {"include_usage": _FLAG},
        "description": "With `stream` only.",
    },
}


def _asks(required: list[str], **fields: Schema) -> Schema:
    return {
        "type": "object",
        "required": ["model", *required],
        "properties": {"model": {"$ref": "#/components/schemas/ModelName"}, **fields},
    }


def _answers(required: list[str], **fields: Schema) -> Schema:
    return {"type": "object", "required": required, "properties": fields}


_CHAT = _asks(
    ["messages"],
    messages=_MESSAGES,
    **_SAMPLING,
    max_completion_tokens={"type": ["integer", "null"], "minimum": 0},
    logprobs={"type": ["boolean", "null"]},
    top_logprobs={"type": ["integer", "null"], "minimum": 0},
    tools={"type": ["array", "null"], "items": _OBJECT},
    tool_choice={"type": ["string", "object", "null"]},
    response_format={"type": ["object", "null"], "required": ["type"], "properties": {"type": _TEXT}},
)
_COMPLETION = _asks(
    ["prompt"],
    prompt={"anyOf": [_TEXT, _TEXTS, _TOKENS, {"type": "array", "items": _TOKENS}]},
    **_SAMPLING,
    logprobs={"type": ["integer", "null"], "minimum": 0},
)
_CHOICES = _answers(
    ["id", "object", "model", "choices"],
    id=_TEXT,
    object=_TEXT,
    created=_COUNT,
    model=_TEXT,
    choices={
        "type": "array",
        "items": {
            "type": "object",
            "required": ["index", "finish_reason"],
            "properties": {"index": _COUNT, "finish_reason": {"type": ["string", "null"]}},
        },
    },
    usage=_USAGE,
)
_RERANK = _asks(["query", "documents"], query=_TEXT, documents=_TEXTS, top_n=_COUNT)
_RERANKED = _answers(["results"], results=_OBJECTS, model=_TEXT)
_POOL = _asks(["input"], input={"anyOf": [_TEXT, _TEXTS, _TOKENS]})
_LIST = _answers(["data"], object=_TEXT, data=_OBJECTS, model=_TEXT, usage=_USAGE)
_MESSAGE = _asks(
    ["messages", "max_tokens"], messages=_MESSAGES, max_tokens={"type": "integer", "minimum": 1}, stream=_FLAG
)

_STREAMING = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"},
)
"""Paths whose answers are events when the request says `stream`."""

_OPERATIONS: dict[str, tuple[str, Schema, Schema]] = {
    "/v1/chat/completions": ("Answer a chat", _CHAT, _CHOICES),
    "/v1/chat/completions/batch": (
        "Answer several chats",
        _asks(["messages"], messages={"type": "array", "items": _MESSAGES}),
        _OBJECT,
    ),
    "/v1/completions": ("Go on with a text", _COMPLETION, _CHOICES),
    "/v1/embeddings": (
        "Embed texts",
        _asks(
            ["input"],
            input={"anyOf": [_TEXT, _TEXTS, _TOKENS, {"type": "array", "items": _TOKENS}]},
            encoding_format={"enum": ["float", "base64"]},
        ),
        _LIST,
    ),
    "/v1/responses": (
        "Answer, in the manner of the Responses API",
        _asks(["input"], input={"anyOf": [_TEXT, _OBJECTS]}, stream=_FLAG),
        _answers(["id", "output"], id=_TEXT, output=_OBJECTS),
    ),
    "/v1/messages": (
        "Answer, in the manner of Anthropic's Messages API",
        _MESSAGE,
        _answers(["id", "content"], id=_TEXT, content=_OBJECTS),
    ),
    "/v1/messages/count_tokens": (
        "Count the tokens of messages",
        _asks(["messages"], messages=_MESSAGES),
        _answers(["input_tokens"], input_tokens=_COUNT),
    ),
    "/v1/rerank": ("Order documents by how well they answer a query", _RERANK, _RERANKED),
    "/v2/rerank": ("Order documents by how well they answer a query", _RERANK, _RERANKED),
    "/v1/score": (
        "Score pairs of texts",
        _asks(["text_1", "text_2"], text_1=_TEXT_OR_TEXTS, text_2=_TEXT_OR_TEXTS),
        _LIST,
    ),
    "/v2/embed": ("Embed texts, in the manner of Cohere's API", _asks([], texts=_TEXTS), _OBJECT),
    "/tokenize": (
        "The tokens of a text or a chat",
        {
            **_asks([], prompt=_TEXT, messages=_MESSAGES, add_special_tokens=_FLAG),
            "oneOf": [{"required": ["prompt"]}, {"required": ["messages"]}],
        },
        _answers(["tokens", "count"], tokens=_TOKENS, count=_COUNT, max_model_len=_COUNT),
    ),
    "/detokenize": (
        "The text of tokens",
        _asks(["tokens"], tokens=_TOKENS),
        _answers(["prompt"], prompt=_TEXT),
    ),
    "/classify": ("Classify texts", _POOL, _LIST),
    "/pooling": ("The pooled states of texts", _POOL, _LIST),
}

_ERRORS = {
    400: "The request cannot be read, or the engine refuses it in its own words.",
    404: "No such path or model (the models that exist are named), or none that this deployment's engine has.",
    405: "The path takes another method.",
    408: "The request took longer to arrive than the front door allows.",
    413: "The request's body is over the limit, which the message names.",
    415: "The body's media type is not application/json.",
    429: "A limit on requests in flight or waiting is reached; the message names it.",
    431: "The request's headers are too many or too long.",
    501: "The engine does not do this.",
    503: "No replica can answer, and waiting is of no use or took too long; the message says why.",
    504: "Nothing moved on the stream for longer than the front door allows.",
}
_REFERENCES: Schema = {str(status): {"$ref": f"#/components/responses/{status}"} for status in _ERRORS}
_AGAIN = frozenset({429, 503})
"""Statuses that come with Retry-After."""


def document() -> Schema:
    """The whole document. Raises StopIteration for a path that leads to engines and is not described here."""
    paths: Schema = {
        openai.MODELS_PATH: {"get": _models()},
        f"{openai.MODELS_PATH}/{{model}}": {"get": _model()},
    }
    for path, engine_path in openai.REWRITES.items():
        # Under /v1 and at the root they are the same.
        described = next(name for name in (path, engine_path, f"/v1{path}") if name in _OPERATIONS)
        paths[path] = {"post": _operation(path, described)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "The OpenAI API as Penstock serves it",
            "version": "v1",
            "description": "Requests go to the engine of a replica of the deployment that `model` names; what an"
            " engine does not offer it refuses itself. Bodies may have fields beyond those here, as the engine takes"
            " them, and so may answers.",
        },
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": {
                "ModelName": {
                    "type": "string",
                    "minLength": 1,
                    "description": "A name from /v1/models: a deployment's, or one that it serves.",
                },
                "Model": {
                    "type": "object",
                    "required": ["id", "object", "created", "owned_by"],
                    "properties": {
                        "id": _TEXT,
                        "object": {"const": "model"},
                        "created": _COUNT,
                        "owned_by": _TEXT,
                    },
                },
                "Error": _error(),
            },
            "responses": _failures(),
            "headers": {
                "RetryAfter": {
                    "description": "Seconds until it makes sense to ask again.",
                    "schema": {"type": "integer", "minimum": 1},
                }
            },
        },
    }


def _operation(path: str, described: str) -> Schema:
    summary, asks, answers = _OPERATIONS[described]
    content: Schema = {"application/json": {"schema": answers}}
    if described in _STREAMING:
        # OpenAPI 3.1 has no words for the schema of an event.
        content["text/event-stream"] = {
            "schema": {"description": "Events with JSON in `data`, the last `[DONE]`."}
        }
    return {
        "operationId": path.strip("/").replace("/", "_"),
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": asks}}},
        "responses": {"200": {"description": "The engine's answer.", "content": content}, **_REFERENCES},
    }


def _models() -> Schema:
    listed = {
        "type": "object",
        "required": ["object", "data"],
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}},
        },
    }
    return {
        "operationId": "list_models",
        "summary": "Every name that a request may put into `model`",
        "responses": {"200": _answer("By name.", listed), **_REFERENCES},
    }


def _model() -> Schema:
    return {
        "operationId": "get_model",
        "summary": "One of them",
        "parameters": [
            {
                "name": "model",
                "in": "path",
                "required": True,
                "description": "May have slashes.",
                "schema": _TEXT,
            }
        ],
        "responses": {"200": _answer("It.", {"$ref": "#/components/schemas/Model"}), **_REFERENCES},
    }


def _failures() -> Schema:
    found = {}
    for status, meaning in _ERRORS.items():
        found[str(status)] = _answer(meaning, {"$ref": "#/components/schemas/Error"})
        if status in _AGAIN:
            found[str(status)]["headers"] = {"Retry-After": {"$ref": "#/components/headers/RetryAfter"}}
    return found


def _error() -> Schema:
    return {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type"],
                "properties": {
                    "message": {**_TEXT, "description": "One sentence for a person."},
                    "type": _TEXT,
                    "param": {"type": ["string", "null"], "description": "The field to blame."},
                    "code": {
                        "type": ["string", "integer", "null"],
                        "description": "A word for programs from Penstock, the status from an engine.",
                    },
                },
            }
        },
    }


def _answer(meaning: str, schema: Schema) -> Schema:
    return {"description": meaning, "content": {"application/json": {"schema": schema}}}
