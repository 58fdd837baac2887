"""A tiny replica: the gRPC inference API behind the deployment's secret, with faults that the prompt asks for.

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
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from penstock.v1 import inference_pb2, inference_pb2_grpc

SECRET = "x-penstock-deployment-secret"
OPTIONS = [("grpc.max_receive_message_length", 64 * 1024 * 1024), ("grpc.so_reuseport", 0)]


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
        self.health = health.aio.HealthServicer()
        self.server = grpc.aio.server(options=OPTIONS, interceptors=(StrangersHealth(secret),))
        self.port = 0

    async def start(self) -> None:
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self, self.server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        await self.health.set("", health_pb2.HealthCheckResponse.SERVING)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()

    async def stop(self) -> None:
        await self.server.stop(grace=None)

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
        if word == "die":
            os._exit(1)
        remaining = context.time_remaining()
        seen = {"metadata": metadata, "bytes": len(request.prompt), "deadline_s": remaining}
        choice = inference_pb2.GenerateChoice(text=json.dumps(seen))
        return inference_pb2.GenerateResponse(id=self.name, model=request.model, choices=[choice])

    async def StreamGenerate(
        self, request: inference_pb2.StreamGenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[inference_pb2.StreamGenerateResponse]:
        await self._admit(context)
        count, interval_s = request.prompt.split(":")
        try:
            for index in range(int(count)):
                if index:
                    await asyncio.sleep(float(interval_s))
                choice = inference_pb2.GenerateChoice(text=str(index))
                yield inference_pb2.StreamGenerateResponse(id=self.name, choices=[choice])
                self.streaming.set()
        except asyncio.CancelledError:
            self.cancelled_at = time.monotonic()
            raise


async def main(name: str, secret: str) -> None:
    replica = Replica(name, secret)
    await replica.start()
    print(replica.port, flush=True)
    await replica.server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
