"""InferenceService, served from the engine beside it.

Each call: read and held against the contract, past the gate, translated, posted to the engine, and its answer
translated back. A stream goes through a Pipe. What the JSON means is translate.py's and merge.py's knowledge; how the
engine is reached is engine.py's; which status a failure becomes is endings.py's. Which front door asks, and for whom,
is not known: a caller who presents the deployment's secret is one.

The rules guarded here: a call ends in exactly one status, and OK only after the whole answer; and a caller
who leaves takes the engine's work with him, because the engine's request lives inside the call's task.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from typing import Any, NoReturn, TypeAlias, TypeVar, cast

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from penstock import contract
from penstock.v1 import inference_pb2 as pb
from penstock.v1 import inference_pb2_grpc
from penstock_runtime import translate
from penstock_runtime.endings import BrokenRules, NoSuchModel, NotSupported, counts, ending
from penstock_runtime.engine import Engine
from penstock_runtime.gate import Gate
from penstock_runtime.merge import ChatMerge, ChunkT, GenerateMerge, Merge
from penstock_runtime.pipe import Pipe
from penstock_runtime.translate import BadAnswer, Json

_SERVICE = pb.DESCRIPTOR.services_by_name["InferenceService"]
SERVICE = _SERVICE.full_name

REQUEST_ID_KEY = "x-request-id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

DYING_S = 0.25

# From so many calls on, the engine is asked for two tokens an event (the first and the last come at once all the same):
# an event costs the engine's server and the agent the same whatever it carries, and costs most when there are many.
CROWD = 32
CROWDED_INTERVAL = 2

_GENERATE = "generate"
_EMBED = "embed"

_log = logging.getLogger(__name__)

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

_ResponseT = TypeVar("_ResponseT")


class Inference(inference_pb2_grpc.InferenceServiceServicer):
    """The servicer.

    `model_names`: what callers may ask for; the first is the engine's own name. `adapters`: says what they may ask for
    now besides, each by the name that the engine knows it by. `task`: generate or embed.
    """

    def __init__(
        self,
        engine: Engine,
        gate: Gate,
        *,
        model_names: tuple[str, ...],
        adapters: Callable[[], Collection[str]],
        task: str,
    ) -> None:
        self._engine = engine
        self._gate = gate
        # What callers say -> what the engine says.
        self._models = dict.fromkeys(model_names, model_names[0])
        self._adapters = adapters
        self._task = task

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service, to be added to a server.

        gRPC's own reading of a message answers a bad one with INTERNAL, so the bytes come here as they are.
        """
        methods = {method.name: self._handler(method) for method in _SERVICE.methods}
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _handler(self, method: MethodDescriptor) -> grpc.RpcMethodHandler[Any, Any]:
        request_class = message_factory.GetMessageClass(method.input_type)
        serve = cast(Callable[[Message, Context], Awaitable[Any]], getattr(self, method.name))

        async def answer(data: bytes, context: Context) -> Any:
            try:
                request = contract.parse(data, request_class)
                if broken := tuple(contract.broken_rules(request)):
                    raise BrokenRules(broken)
            except Exception as error:  # every failure becomes the call's one status
                await self._fail(context, error)
            return await serve(request, context)

        kind = (
            grpc.unary_stream_rpc_method_handler
            if method.server_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        response_class = message_factory.GetMessageClass(method.output_type)
        return kind(cast(Any, answer), None, response_class.SerializeToString)

    async def Chat(self, request: pb.ChatRequest, context: Context) -> pb.ChatResponse:
        """A whole answer."""
        return await self._ask(
            context, request.model, _GENERATE, "/v1/chat/completions",
            lambda model: translate.chat_body(request, model=model, stream=False), translate.chat_response,
        )  # fmt: skip

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        """A whole continuation."""
        return await self._ask(
            context, request.model, _GENERATE, "/v1/completions",
            lambda model: translate.generate_body(request, model=model, stream=False),
            translate.generate_response,
        )  # fmt: skip

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        """Embeddings."""
        return await self._ask(
            context, request.model, _EMBED, "/v1/embeddings",
            lambda model: translate.embed_body(request, model=model), translate.embed_response,
        )  # fmt: skip

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        """Scores of documents against a query."""
        return await self._ask(
            context, request.model, _EMBED, "/score",
            lambda model: translate.score_body(request, model=model), translate.score_response,
        )  # fmt: skip

    async def Rerank(self, request: pb.RerankRequest, context: Context) -> pb.RerankResponse:
        """Documents, best first."""
        return await self._ask(
            context, request.model, _EMBED, "/rerank",
            lambda model: translate.rerank_body(request, model=model), translate.rerank_response,
        )  # fmt: skip

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        """A text's tokens."""
        return await self._ask(
            context, request.model, self._task, "/tokenize",
            lambda model: translate.tokenize_body(request, model=model), translate.tokenize_response,
        )  # fmt: skip

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Context) -> pb.DetokenizeResponse:
        """A text from its tokens."""
        return await self._ask(
            context, request.model, self._task, "/detokenize",
            lambda model: translate.detokenize_body(request, model=model), translate.detokenize_response,
        )  # fmt: skip

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """Not a replica's to answer."""
        await context.abort(
            grpc.StatusCode.UNIMPLEMENTED, "ListModels is answered by the control plane, not by a replica"
        )

    # Coroutines that write, where the generated types have generators: when the caller leaves while a chunk is being
    # sent, a coroutine is cancelled there and then, a generator only once it is collected.

    async def StreamChat(  # type: ignore[override]
        self, request: pb.StreamChatRequest, context: Context
    ) -> None:
        """An answer in chunks."""
        await self._stream(
            context, request.model, "/v1/chat/completions",
            lambda model: translate.chat_body(request, model=model, stream=True),
            ChatMerge(translate.choices_asked(request.sampling)),
        )  # fmt: skip

    async def StreamGenerate(  # type: ignore[override]
        self, request: pb.StreamGenerateRequest, context: Context
    ) -> None:
        """A continuation in chunks."""
        await self._stream(
            context, request.model, "/v1/completions",
            lambda model: translate.generate_body(request, model=model, stream=True),
            GenerateMerge(translate.choices_asked(request.sampling)),
        )  # fmt: skip

    async def _ask(
        self,
        context: Context,
        model: str,
        task: str,
        path: str,
        body: Callable[[str], Json],
        read: Callable[[Json], _ResponseT],
    ) -> _ResponseT:
        try:
            with self._gate.enter():
                asked = body(self._engine_name(model, task))
                response = _read(read, await self._engine.post(path, asked, request_id(context)))
        except Exception as error:  # every failure becomes the call's one status
            await self._fail(context, error)
        context.set_trailing_metadata(counts(getattr(response, "usage", None)))
        return response

    async def _stream(
        self, context: Context, model: str, path: str, body: Callable[[str], Json], merge: Merge[ChunkT]
    ) -> None:
        pipe = Pipe(merge)
        try:
            with self._gate.enter():
                asked = body(self._engine_name(model, _GENERATE))
                # Not where tools may be called: the engine's parsers of their calls go token by token.
                if self._gate.inside >= CROWD and "tools" not in asked:
                    asked.setdefault("stream_interval", CROWDED_INTERVAL)
                events = self._engine.stream(path, asked, request_id(context))
                reader = asyncio.create_task(pipe.fill(events))
                try:
                    async for chunk in pipe.chunks():
                        await context.write(chunk)
                finally:
                    # Ends the engine's request too, where it still runs.
                    reader.cancel()
        except Exception as error:  # every failure becomes the stream's one status
            await self._fail(context, error, merge.counted)
        context.set_trailing_metadata(counts(merge.counted))

    def _engine_name(self, model: str, task: str) -> str:
        """What the engine calls `model`. Raises NoSuchModel, and NotSupported where it has no such task."""
        models = self._models | {name: name for name in self._adapters()}
        if model not in models:
            raise NoSuchModel(
                f"model {model!r} is not served here; this replica serves {', '.join(sorted(models))}"
            )
        if task != self._task:
            does = "embeds, scores and reranks" if self._task == _EMBED else "generates text"
            raise NotSupported(f"not supported by this model: the engine of {model!r} only {does}")
        return models[model]

    async def _fail(self, context: Context, error: Exception, made: pb.Usage | None = None) -> NoReturn:
        end = ending(error)
        if end.code is grpc.StatusCode.INTERNAL:
            if await self._is_dying():
                # Whatever the engine said with its last breath, another replica can do better.
                end = replace(end, code=grpc.StatusCode.UNAVAILABLE, reason="ENGINE_GONE")
            else:
                unforeseen = error if end.reason == "AGENT_FAILED" else None
                _log.error("a call failed: %s", end.message, exc_info=unforeseen)
        if made is not None:
            end = end.after(made)
        await context.abort(end.code, end.message, end.trailers())

    async def _is_dying(self) -> bool:
        """An engine whose core is gone answers its requests before its health does (0.1 s in vLLM 0.32)."""
        if not await self._engine.alive():
            return True
        await asyncio.sleep(DYING_S)
        return not await self._engine.alive()


def request_id(context: Context) -> str:
    """The front door's id of this request where it gave one that can be a header again, else a new one."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex


def _read(read: Callable[[Json], _ResponseT], answer: Json) -> _ResponseT:
    try:
        return read(answer)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadAnswer(f"the engine's answer is not of its API: {error!r}") from error
