"""A server that plays what a test tells it, one scene for each request, and keeps what it was sent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from penstock.v1 import inference_pb2 as pb
from penstock.v1 import inference_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class Scene:
    """What one request sees: messages, then the end."""

    messages: Sequence[Message] = ()
    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: str = ""
    retry_after_s: float | None = None
    made: int | None = None
    fields: Sequence[str] = ()
    limit: str = ""
    lasts_s: float = 0


@dataclass
class Stage(inference_pb2_grpc.InferenceServiceServicer):
    """Plays `scenes` one after another; the last again and again."""

    scenes: list[Scene] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    address: str = ""

    async def _play(self, request: Any, context: Context) -> Scene:
        self.requests.append(request)
        return self.scenes.pop(0) if len(self.scenes) > 1 else self.scenes[0]

    async def _end(self, scene: Scene, context: Context) -> None:
        try:
            await asyncio.sleep(scene.lasts_s)
        except asyncio.CancelledError:
            self.left.set()
            raise
        if scene.code is not grpc.StatusCode.OK:
            await _abort(scene, context)

    async def _whole(self, request: Any, context: Context) -> Any:
        scene = await self._play(request, context)
        await self._end(scene, context)
        return scene.messages[0]

    async def _pieces(self, request: Any, context: Context) -> AsyncIterator[Any]:
        scene = await self._play(request, context)
        for message in scene.messages:
            yield message
        await self._end(scene, context)

    Chat = Generate = Embed = Score = Rerank = Tokenize = Detokenize = ListModels = _whole
    StreamChat = StreamGenerate = _pieces


async def _abort(scene: Scene, context: Context) -> NoReturn:
    status = status_pb2.Status(code=scene.code.value[0], message="as the test says")
    details: list[Message] = []
    if scene.reason:
        info = error_details_pb2.ErrorInfo(reason=scene.reason, domain="penstock")
        if scene.limit:
            info.metadata["limit"] = scene.limit
        details.append(info)
    if scene.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMicroseconds(int(scene.retry_after_s * 1e6))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if scene.made is not None:
        details.append(pb.Usage(prompt_tokens=3, completion_tokens=scene.made))
    if scene.fields:
        bad = error_details_pb2.BadRequest()
        for name in scene.fields:
            bad.field_violations.add(field=name, description="must be something else")
        details.append(bad)
    for detail in details:
        status.details.add().Pack(detail)
    trailers = (("grpc-status-details-bin", status.SerializeToString()),) if details else ()
    await context.abort(scene.code, "as the test says", trailers)
    raise AssertionError("abort raises")


@contextlib.asynccontextmanager
async def stage(*scenes: Scene) -> AsyncIterator[Stage]:
    """On a port of its own."""
    played = Stage(list(scenes))
    server = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(played, server)
    played.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield played
    finally:
        await server.stop(None)


def piece(text: str) -> pb.StreamChatResponse:
    return pb.StreamChatResponse(choices=[pb.ChatChoice(content=text)])


def whole(text: str) -> pb.ChatResponse:
    return pb.ChatResponse(choices=[pb.ChatChoice(content=text, finish_reason=pb.FINISH_REASON_STOP)])


def waiting(position: int) -> pb.StreamChatResponse:
    return pb.StreamChatResponse(waiting=pb.WaitProgress(position=position, message="0 of 1 ready"))
