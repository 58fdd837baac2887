"""A tiny replica: the gRPC inference API behind the deployment's secret and REST behind the attempt's key, with faults
that the prompt asks for.

`stay:NAME` is a request that the replica of this name keeps for ever and any other one answers at once: whoever has
been answered was sent to another replica. A stream of `held:COUNT` begins, and goes on and ends once `let_go` is set.

Run as a program it prints its port, so that a test can kill it: `python -m
tests.integration.front_door_replica NAME SECRET`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from aiohttp import web
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from penstock.core.routing import engine_key
from penstock.v1 import inference_pb2, inference_pb2_grpc

ENGINE_KEY = "x-penstock-engine-key"
SECRET = "x-penstock-deployment-secret"
OPTIONS = [
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.so_reuseport", 0),
    ("grpc.max_metadata_size", 72 << 10),
    ("grpc.absolute_max_metadata_size", 72 << 10),
]


class StrangersHealth(grpc.aio.ServerInterceptor):
    """Refuses a health check that comes with the secret of another deployment."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    async def intercept_service(
        self, continuation: Any, handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        given = [value for key, value in handler_call_details.invocation_metadata or () if key == SECRET]
        if handler_call_details.method.startswith("/grpc.health.") and given not in ([], [self._secret]):
            return grpc.unary_unary_rpc_method_handler(self._refuse)
        return await continuation(handler_call_details)

    async def _refuse(self, request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "this is not the replica that you look for")


class Replica(inference_pb2_grpc.InferenceServiceServicer):
    """Says its name as the answer's id, and what it was sent as its text."""

    def __init__(self, name: str, secret: str) -> None:
        self.name = name
        self.secret = secret
        self.requests = 0
        self.cancelled_at: float | None = None
        self.streaming = asyncio.Event()
        self.let_go = asyncio.Event()
        self.health = health.aio.HealthServicer()
        self.server = grpc.aio.server(options=OPTIONS, interceptors=(StrangersHealth(secret),))
        self.port = 0
        self.engine = TinyEngine(self)

    @property
    def engine_port(self) -> int:
        return self.engine.port

    async def start(self) -> None:
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self, self.server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        await self.health.set("", health_pb2.HealthCheckResponse.SERVING)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        await self.engine.start()

    async def stop(self) -> None:
        await self.engine.stop()
        await self.server.stop(grace=None)

    async def say_not_serving(self) -> None:
        await self.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)

    async def _admit(self, context: grpc.aio.ServicerContext[Any, Any]) -> dict[str, str]:
        metadata = [(key, str(value)) for key, value in context.invocation_metadata() or ()]
        if [value for key, value in metadata if key == SECRET] != [self.secret]:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, f"wrong secret at {self.name}")
        self.requests += 1
        return dict(metadata)

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> inference_pb2.GenerateResponse:
        metadata = await self._admit(context)
        word, _, argument = request.prompt.partition(":")
        if word == "fail":
            await context.abort(grpc.StatusCode[argument], f"as asked, at {self.name}")
        if word == "wait":
            await asyncio.sleep(float(argument))
        if word == "stay" and argument == self.name:
            await asyncio.Event().wait()
        if word == "die":
            os._exit(1)
        remaining = context.time_remaining()
        seen = {"metadata": metadata, "bytes": len(request.prompt), "deadline_s": remaining}
        choice = inference_pb2.GenerateChoice(text=json.dumps(seen))
        return inference_pb2.GenerateResponse(id=self.name, model=request.model, choices=[choice])

    async def Chat(
        self, request: inference_pb2.ChatRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> inference_pb2.ChatResponse:
        await self._admit(context)
        return inference_pb2.ChatResponse(id=self.name, model=request.model)

    async def StreamGenerate(
        self, request: inference_pb2.StreamGenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[inference_pb2.StreamGenerateResponse]:
        await self._admit(context)
        word, argument = request.prompt.split(":")
        held = word == "held"
        try:
            for index in range(int(argument if held else word)):
                if index:
                    await (self.let_go.wait() if held else asyncio.sleep(float(argument)))
                choice = inference_pb2.GenerateChoice(text=str(index))
                yield inference_pb2.StreamGenerateResponse(id=self.name, choices=[choice])
                self.streaming.set()
        except asyncio.CancelledError:
            self.cancelled_at = time.monotonic()
            raise


class TinyEngine:
    """REST: says its replica's name as the answer's id, and what it was sent as the text."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._runner: web.AppRunner | None = None
        self.port = 0
        self.requests = 0
        self.running = 0
        self.fail_with = 0
        """Answer everything with this status; 0: do not."""

    async def start(self) -> None:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0, max_field_size=72 << 10
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get(ENGINE_KEY) != engine_key(self._replica.secret, f"a{self._replica.port}"):
            return web.json_response({"error": {"message": f"wrong key at {self._replica.name}"}}, status=401)
        self.requests += 1
        self.running += 1
        try:
            return await self._serve(request)
        finally:
            self.running -= 1

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        word, _, argument = str(body.get("prompt", "")).partition(":")
        status = int(argument) if word == "fail" else self.fail_with
        if status:
            error = {"message": f"as asked, at {self._replica.name}"}
            return web.json_response({"error": error}, status=status)
        if word == "halves":
            return await self._halves(request, int(argument))
        if word == "wait":
            await asyncio.sleep(float(argument))
        if word == "stay" and argument == self._replica.name:
            await asyncio.Event().wait()
        if word == "cut" and request.transport is not None:
            request.transport.abort()
        if body.get("stream"):
            return await self._stream(request, word, argument)
        seen = {"path": request.path_qs, "headers": dict(request.headers), "bytes": len(await request.read())}
        return web.json_response({"id": self._replica.name, "seen": seen})

    async def _halves(self, request: web.Request, status: int) -> web.StreamResponse:
        """An error whose body comes in two parts."""
        response = web.StreamResponse(status=status, headers={"content-type": "application/json"})
        await response.prepare(request)
        await response.write(b'{"error": {"message": ')
        await asyncio.sleep(0.2)
        await response.write(b'"as asked, in two parts"}}')
        return response

    async def _stream(self, request: web.Request, word: str, argument: str) -> web.StreamResponse:
        """`prompt` is COUNT:SECONDS; or `flood:BYTES`, as fast as they are taken; or `break:COUNT`, and then no end."""
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        if word == "flood":
            for _ in range(int(argument) // 65536):
                await response.write(b"data: " + b"x" * 65528 + b"\n\n")
            return response
        count = int(argument if word == "break" else word)
        for index in range(count):
            await response.write(f"data: {index}\n\n".encode())
            if word != "break":
                await asyncio.sleep(float(argument))
        if word == "break" and request.transport is not None:
            request.transport.abort()
        await response.write(b"data: [DONE]\n\n")
        return response


async def main(name: str, secret: str) -> None:
    replica = Replica(name, secret)
    await replica.start()
    print(replica.port, replica.engine_port, flush=True)
    await replica.server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
