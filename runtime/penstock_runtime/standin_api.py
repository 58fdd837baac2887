"""The stand-in's endpoints: vLLM's HTTP as Penstock uses it, in vLLM's own shapes, over the stand-in's engine.

Paths, fields, status codes and the order of a stream's events were taken from vLLM 0.32; tests/contract holds both to
them. What vLLM would do and this does not is refused with 400, never ignored: batches of prompts, grammars, log
probabilities of prompts. Which tool is called, and what a structured answer holds, follows from the request alone.
Beside vLLM's own there is `/standin/faults`: GET shows the behaviour, POST changes some of it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import operator
import struct
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from penstock_runtime import standin_text
from penstock_runtime.standin_answers import Asked, ChunkWriter, whole_answer
from penstock_runtime.standin_engine import (
    CORE_DIED,
    BehaviourError,
    ConnectionCut,
    Engine,
    EngineDied,
    Piece,
)
from penstock_runtime.standin_http import Exchange, Request
from penstock_runtime.standin_requests import (
    ApiError,
    bad_value,
    integer,
    logprobs_of,
    script_of,
    stops_of,
    tool_of,
)
from penstock_runtime.standin_shapes import ShapeError
from penstock_runtime.standin_text import Prompt, PromptError

DEFAULT_COMPLETION_TOKENS = 16
"""What a completion without max_tokens gets, in OpenAI's API and in vLLM."""
VERSION = "0.32.0+standin"
DRAINING = "cannot schedule new futures after shutdown"
"""What vLLM tells a request that comes after SIGTERM: its thread pool has been shut down."""
DONE = b"data: [DONE]\n\n"
MAX_CHOICES = 128
INVALID_INPUT = "InvalidUserInput"
REFUSED_FIELDS = ("guided_json", "echo", "suffix", "prompt_logprobs", "use_beam_search")


@dataclass(frozen=True, slots=True)
class Service:
    """What was asked for on the command line."""

    model: str
    names: tuple[str, ...]
    max_model_len: int
    pooling: bool
    embedding_size: int
    force_include_usage: bool
    auto_tools: bool
    takes_images: bool
    # Name -> path.
    adapters: dict[str, str]
    # Of those that are loaded later; None: none is.
    max_lora_rank: int | None


def _place(method: str, path: str) -> tuple[str, str]:
    return ("GET" if method == "HEAD" else method, path)


class Api:
    """Routes requests. `draining` is set while the process finishes its last streams."""

    def __init__(self, engine: Engine, service: Service) -> None:
        self._engine = engine
        self._service = service
        self._created = int(time.time())
        self.draining = False
        self._routes: dict[tuple[str, str], Callable[[Request, Exchange], Awaitable[None]]] = {
            ("GET", "/health"): self._health,
            ("GET", "/ping"): self._health,
            ("GET", "/version"): self._version,
            ("GET", "/v1/models"): self._models,
            ("GET", "/metrics"): self._metrics,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/detokenize"): self._detokenize,
            ("GET", "/standin/faults"): self._show_faults,
            ("POST", "/standin/faults"): self._set_faults,
        }
        if service.max_lora_rank is not None:
            self._routes["POST", "/v1/load_lora_adapter"] = self._load_adapter
            self._routes["POST", "/v1/unload_lora_adapter"] = self._unload_adapter
        # One runner each, as in vLLM: an engine that generates has no embeddings, and the other way round.
        if service.pooling:
            self._routes["POST", "/v1/embeddings"] = self._embeddings
            for version in ("", "/v1"):
                self._routes["POST", f"{version}/score"] = self._score
                self._routes["POST", f"{version}/rerank"] = self._rerank
            self._routes["POST", "/v2/rerank"] = self._rerank
        else:
            self._routes["POST", "/v1/chat/completions"] = self._generate
            self._routes["POST", "/v1/completions"] = self._generate

    def offers(self, method: str, path: str) -> bool:
        """Whether there is an answer at this path."""
        return _place(method, path) in self._routes

    async def handle(self, request: Request, exchange: Exchange) -> None:
        """Answer one request."""
        route = self._routes.get(_place(request.method, request.path))
        if route is None:
            known = any(path == request.path for _, path in self._routes)
            detail = b'{"detail":"Method Not Allowed"}' if known else b'{"detail":"Not Found"}'
            exchange.respond(405 if known else 404, detail)
            return
        try:
            await route(request, exchange)
        except ApiError as error:
            exchange.respond(error.status, error.body())
        except PromptError as error:
            exchange.respond(400, bad_value(str(error), error.parameter).body())
        except ShapeError as error:
            exchange.respond(400, bad_value(str(error), None).body())
        except EngineDied as error:
            exchange.respond(500, ApiError(500, "InternalServerError", str(error)).body())
        except ConnectionCut:
            exchange.cut()

    async def _health(self, request: Request, exchange: Exchange) -> None:
        exchange.respond(503 if self._engine.behaviour.unhealthy or self._engine.failure is not None else 200)

    async def _version(self, request: Request, exchange: Exchange) -> None:
        _respond(exchange, {"version": VERSION})

    async def _models(self, request: Request, exchange: Exchange) -> None:
        cards: list[dict[str, Any]] = [
            {
                "id": name,
                "object": "model",
                "created": self._created,
                "owned_by": "vllm",
                "root": self._service.model,
                "parent": None,
                "max_model_len": self._service.max_model_len,
                "permission": [],
            }
            for name in self._service.names
        ]
        for name, path in self._service.adapters.items():
            parent = {"root": path, "parent": self._service.names[0], "max_model_len": None}
            cards.append(cards[0] | {"id": name} | parent)
        _respond(exchange, {"object": "list", "data": cards})

    async def _metrics(self, request: Request, exchange: Exchange) -> None:
        engine = self._engine
        text = engine.metrics.text(engine.running, engine.waiting, engine.cache_usage)
        exchange.respond(200, text.encode(), "text/plain; version=1.0.0; charset=utf-8")

    async def _tokenize(self, request: Request, exchange: Exchange) -> None:
        body = self._body(request)
        text: Any = body.get("prompt")
        if "messages" in body:
            standin_text.from_messages(body["messages"])
            text = " ".join(str(message.get("content")) for message in body["messages"])
        if not isinstance(text, str):
            raise bad_value("prompt must be a text", "prompt")
        ids = standin_text.token_ids(text)
        shown = text.split() if body.get("return_token_strs") else None
        length = self._service.max_model_len
        _respond(exchange, {"count": len(ids), "max_model_len": length, "tokens": ids, "token_strs": shown})

    async def _detokenize(self, request: Request, exchange: Exchange) -> None:
        ids = self._body(request).get("tokens")
        if not isinstance(ids, list) or not all(type(each) is int and 0 <= each < 1 << 63 for each in ids):
            raise ApiError(
                400, "Bad Request", "tokens must be a list of token ids, none below 0", "body.tokens"
            )
        _respond(exchange, {"prompt": standin_text.text_of_ids(ids)})

    async def _show_faults(self, request: Request, exchange: Exchange) -> None:
        _respond(exchange, asdict(self._engine.behaviour))

    async def _set_faults(self, request: Request, exchange: Exchange) -> None:
        changes = _object(request)
        try:
            self._engine.change(changes)
        except BehaviourError as error:
            raise bad_value(str(error), "behaviour") from error
        _respond(exchange, asdict(self._engine.behaviour))

    async def _load_adapter(self, request: Request, exchange: Exchange) -> None:
        body = _object(request)
        name, path = body.get("lora_name"), body.get("lora_path")
        if not (isinstance(name, str) and name and isinstance(path, str) and path):
            raise ApiError(400, INVALID_INPUT, "Both 'lora_name' and 'lora_path' must be provided.")
        if name in self._service.names:
            raise ApiError(
                400, INVALID_INPUT, f"The lora adapter '{name}' conflicts with a served base model."
            )
        if name in self._service.adapters:
            message = f"The lora adapter '{name}' has already been loaded."
            raise ApiError(
                400,
                INVALID_INPUT,
                f"{message} If you want to load the adapter in place, set 'load_inplace' to True.",
            )
        try:
            rank = int(json.loads((Path(path) / "adapter_config.json").read_text())["r"])
        except (OSError, ValueError, LookupError, TypeError):
            raise ApiError(
                404, "NotFoundError", f"Loading lora {name} failed: No adapter found for <path>"
            ) from None
        if rank > (room := self._service.max_lora_rank or 0):
            raise ApiError(
                500, "InternalServerError", f"LoRA rank {rank} is greater than max_lora_rank {room}."
            )
        self._service.adapters[name] = path
        said = f"Success: LoRA adapter '{name}' added successfully."
        exchange.respond(200, said.encode(), "text/plain")

    async def _unload_adapter(self, request: Request, exchange: Exchange) -> None:
        name = _object(request).get("lora_name")
        if self._service.adapters.pop(str(name), None) is None:
            raise ApiError(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        said = f"Success: LoRA adapter '{name}' removed successfully."
        exchange.respond(200, said.encode(), "text/plain")

    async def _embeddings(self, request: Request, exchange: Exchange) -> None:
        self._refuse_if_told()
        body = self._body(request)
        given = body.get("input")
        if isinstance(given, list) and given and all(type(token) is int for token in given):
            given = [given]
        texts: list[Any] = given if isinstance(given, list) else [given]
        if not texts or not all(isinstance(text, str | list) for text in texts):
            raise bad_value("input must be a text, a list of texts, or token ids", "input")
        texts = [text if isinstance(text, str) else " ".join(f"t{token}" for token in text) for text in texts]
        if body.get("dimensions") is not None:
            raise bad_value(
                f'Model "{self._service.names[0]}" does not support matryoshka representation', "dimensions"
            )
        size = self._service.embedding_size
        encoding = body.get("encoding_format") or "float"
        if encoding not in ("float", "base64"):
            raise bad_value(
                f"encoding_format is {encoding!r}; float or base64 is accepted", "encoding_format"
            )
        vectors, tokens = await self._embed(texts, size)
        data: list[dict[str, Any]] = []
        for index, vector in enumerate(vectors):
            shown: Any = vector
            if encoding == "base64":
                shown = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode()
            data.append({"index": index, "object": "embedding", "embedding": shown})
        usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
        _respond(
            exchange,
            {
                "id": f"embd-{_request_id(request)}",
                "object": "list",
                "created": int(time.time()),
                "model": body.get("model") or self._service.names[0],
                "data": data,
                "usage": usage,
            },
        )

    async def _score(self, request: Request, exchange: Exchange) -> None:
        body, scores, tokens = await self._compare(request, ("text_1", "queries"), ("text_2", "documents"))
        data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)]
        _respond(
            exchange,
            {
                "id": f"score-{_request_id(request)}",
                "object": "list",
                "created": int(time.time()),
                "model": body.get("model") or self._service.names[0],
                "data": data,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
            },
        )

    async def _rerank(self, request: Request, exchange: Exchange) -> None:
        body, scores, tokens = await self._compare(request, ("query",), ("documents",))
        best = sorted(range(len(scores)), key=lambda index: -scores[index])
        best = best[: integer(body, "top_n", 0, least=0) or len(best)]
        texts = body["documents"]
        _respond(
            exchange,
            {
                "id": f"score-{_request_id(request)}",
                "model": body.get("model") or self._service.names[0],
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
                "results": [
                    {
                        "index": index,
                        "document": {"text": texts[index], "multi_modal": None},
                        "relevance_score": scores[index],
                    }
                    for index in best
                ],
            },
        )

    async def _compare(
        self, request: Request, left: Sequence[str], right: Sequence[str]
    ) -> tuple[dict[str, Any], list[float], int]:
        """The body, each text of `right` scored against the one of `left` (names of fields), and their tokens."""
        self._refuse_if_told()
        body = self._body(request)
        query = next((body[name] for name in left if name in body), None)
        documents = next((body[name] for name in right if name in body), None)
        if isinstance(documents, str):
            documents = [documents]
        if not isinstance(query, str):
            raise bad_value(f"{left[0]} must be a text", left[0])
        texts = documents if isinstance(documents, list) else []
        if not texts or not all(isinstance(each, str) for each in texts):
            raise bad_value(f"{right[0]} must be a list of texts", right[0])
        (first, *others), tokens = await self._embed([query, *texts], self._service.embedding_size)
        return body, [sum(map(operator.mul, first, other)) for other in others], tokens

    async def _embed(self, texts: Sequence[str], size: int) -> tuple[list[list[float]], int]:
        """A vector for each text, each in a slot of its own and in the time of a first token; and their tokens."""
        tokens = 0
        for text in texts:
            prompt = standin_text.from_prompt(text)
            if prompt.tokens > self._service.max_model_len:
                raise _too_long(self._service.max_model_len, prompt, "input")
            made = self._engine.generate(prompt, 1, ignore_eos=True, stops=())
            async with contextlib.aclosing(made):
                async for _ in made:
                    pass
            self._engine.metrics.generation_tokens -= 1  # the one that was made to take its slot and its time
            tokens += prompt.tokens
        return [standin_text.embedding(text, size) for text in texts], tokens

    async def _generate(self, request: Request, exchange: Exchange) -> None:
        self._refuse_if_told()
        asked = self._asked(request)
        pieces = self._pieces(asked)
        async with contextlib.aclosing(pieces):
            if asked.stream:
                await self._stream(asked, pieces, exchange)
            else:
                got: dict[int, list[Piece]] = {index: [] for index in range(len(asked.prompts))}
                async for index, due in pieces:
                    got[index] += due
                _respond(exchange, whole_answer(asked, got))

    def _made(self, asked: Asked, prompt: Prompt) -> AsyncGenerator[list[Piece], None]:
        return self._engine.generate(
            prompt,
            asked.max_tokens,
            ignore_eos=asked.ignore_eos,
            stops=asked.stops,
            keep_stop=asked.keep_stop,
        )

    async def _pieces(self, asked: Asked) -> AsyncGenerator[tuple[int, list[Piece]], None]:
        """The pieces that are due, of each choice by itself; the choices are made side by side."""
        if len(asked.prompts) == 1:
            async with contextlib.aclosing(self._made(asked, asked.prompts[0])) as made:
                async for due in made:
                    yield 0, due
            return
        # One waiting for each choice: none runs ahead of a client that reads slowly.
        queue: asyncio.Queue[tuple[int, list[Piece]] | Exception | None] = asyncio.Queue(len(asked.prompts))

        async def make(index: int, prompt: Prompt) -> None:
            try:
                async with contextlib.aclosing(self._made(asked, prompt)) as made:
                    async for due in made:
                        await queue.put((index, due))
                await queue.put(None)
            except (EngineDied, ConnectionCut) as error:
                await queue.put(error)

        tasks = [asyncio.create_task(make(index, prompt)) for index, prompt in enumerate(asked.prompts)]
        left = len(tasks)
        try:
            while left:
                match await queue.get():
                    case None:
                        left -= 1
                    case Exception() as error:
                        raise error
                    case index, due:
                        yield index, due
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _stream(
        self, asked: Asked, pieces: AsyncGenerator[tuple[int, list[Piece]], None], exchange: Exchange
    ) -> None:
        # vLLM says 200 before the first token is there, so what goes wrong later can only be said in the stream.
        if self._engine.failure is not None:
            raise EngineDied(self._engine.failure)
        exchange.start_stream("text/event-stream; charset=utf-8")
        writers = [ChunkWriter(asked, index) for index in range(len(asked.prompts))]
        opening = b"".join(writer.opening() for writer in writers)
        made = 0
        try:
            async for index, due in pieces:
                events = [opening] if opening else []
                opening = b""
                for piece in due:
                    made += piece.tokens
                    events.append(writers[index].chunk(piece))
                exchange.write(b"".join(events))
                await exchange.drain()
            if asked.usage:
                exchange.write(writers[0].usage(made))
        except EngineDied as error:
            exchange.write(b"data: %b\n\n" % ApiError(500, "InternalServerError", str(error)).body())
        exchange.write(DONE)
        exchange.end()

    def _refuse_if_told(self) -> None:
        """500 while draining, or as a fault."""
        if self.draining:
            raise ApiError(500, "InternalServerError", DRAINING)
        left = self._engine.behaviour.fail_requests
        if left > 0:
            self._engine.change({"fail_requests": left - 1})
        if left:
            raise ApiError(500, "InternalServerError", CORE_DIED)

    def _body(self, request: Request) -> dict[str, Any]:
        """The body, its model one that is served here."""
        body = _object(request)
        model = body.get("model")
        if model is not None and model not in (*self._service.names, *self._service.adapters):
            known = ", ".join(self._service.names)
            message = f"The model `{model}` does not exist. Valid aliases: {known}."
            raise ApiError(404, "NotFoundError", message, "model")
        return body

    def _asked(self, request: Request) -> Asked:
        """The request as a checked value; raises ApiError and PromptError with vLLM's statuses."""
        body = self._body(request)
        chat = request.path == "/v1/chat/completions"
        source = "messages" if chat else "prompt"
        if source not in body:
            raise ApiError(400, "Bad Request", f"body.{source}: Field required", f"body.{source}")
        prompt = standin_text.from_messages(body[source]) if chat else standin_text.from_prompt(body[source])
        if prompt.images and not self._service.takes_images:
            raise bad_value(f"{self._service.names[0]} is not a multimodal model", None)
        if body.get("model") in self._service.adapters:
            prompt = replace(prompt, words=tuple(word.upper() for word in prompt.words))
        for field in REFUSED_FIELDS:
            if body.get(field):
                raise bad_value(f"{field} is not known to the stand-in engine", field)
        temperature = body.get("temperature")
        if isinstance(temperature, int | float) and temperature < 0:
            raise bad_value(f"temperature must be non-negative, got {temperature}.", "temperature")
        choices = integer(body, "n", 1)
        if not 1 <= choices <= MAX_CHOICES:
            raise bad_value(f"n must be at least 1 and at most {MAX_CHOICES}, got {choices}.", "n")
        if choices > 1 and temperature == 0:
            raise bad_value(f"n must be 1 when using greedy sampling, got {choices}.", "n")
        tool, prompt = tool_of(body, prompt, auto=self._service.auto_tools) if chat else ("", prompt)
        if not tool:
            prompt = replace(prompt, script=script_of(body))
        stream = body.get("stream") is True
        options = body.get("stream_options") or {}
        if options and not stream:
            raise bad_value("Stream options can only be defined when `stream=True`.", "stream_options")
        forced = self._service.force_include_usage
        usage = forced or options.get("include_usage") is True
        return Asked(
            chat=chat,
            id=f"{'chatcmpl' if chat else 'cmpl'}-{_request_id(request)}",
            model=body.get("model") or self._service.names[0],
            created=int(time.time()),
            prompts=tuple(replace(prompt, choice=choice) for choice in range(choices)),
            max_tokens=self._limit(body, prompt, chat),
            ignore_eos=body.get("ignore_eos") is True,
            stops=stops_of(body.get("stop")),
            keep_stop=body.get("include_stop_str_in_output") is True,
            logprobs=logprobs_of(body, chat),
            tool=tool,
            tool_named=isinstance(body.get("tool_choice"), dict),
            stream=stream,
            usage=usage,
            usage_everywhere=forced or (usage and options.get("continuous_usage_stats") is True),
        )

    def _limit(self, body: Mapping[str, Any], prompt: Prompt, chat: bool) -> int:
        length = self._service.max_model_len
        room = length - prompt.tokens
        if room < 1:
            raise _too_long(length, prompt, "messages" if chat else "prompt")
        name = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
        default = room if chat else min(room, DEFAULT_COMPLETION_TOKENS)
        limit = integer(body, name, default)
        if limit < 1:
            raise bad_value(f"{name} must be at least 1, got {limit}.", name)
        if limit > length:
            message = (
                f"{name}={limit} cannot be greater than max_model_len={length}. Request fewer output tokens."
            )
            raise bad_value(message, name)
        if limit > room:
            message = f"{name}={limit} and a prompt of {prompt.tokens} tokens are longer than max_model_len={length}."
            raise bad_value(message, name)
        return limit


def _too_long(length: int, prompt: Prompt, parameter: str) -> ApiError:
    message = f"This model's maximum context length is {length} tokens; the prompt has {prompt.tokens}."
    return bad_value(message, parameter)


def _object(request: Request) -> dict[str, Any]:
    try:
        body = request.json()
    except ValueError as error:
        raise ApiError(400, "Bad Request", f"the body is not JSON: {error}", "body") from error
    if not isinstance(body, dict):
        raise ApiError(400, "Bad Request", "the body must be a JSON object", "body")
    return body


def _request_id(request: Request) -> str:
    return request.headers.get("x-request-id") or uuid.uuid4().hex[:16]


def _respond(exchange: Exchange, content: Mapping[str, Any]) -> None:
    exchange.respond(200, json.dumps(content, separators=(",", ":")).encode())
