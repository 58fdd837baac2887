"""The agent's own gRPC server: a port that is ours, a door that asks for the deployment's secret, and health.

The port is chosen by binding it: what is bound is owned, so no other process on a shared node can slip in
between. Health is told to anyone who asks, because the front door asks it again and again and it gives nothing
away; every other call needs the secret, which the front door adds. What the calls do is inference.py's.

The rule guarded here: without the secret there is no call, not even an error that would tell what runs here.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from penstock_runtime.inference import SERVICE, Inference

SECRET_KEY = "x-penstock-deployment-secret"

# Images travel inside a request.
MAX_REQUEST_BYTES = 64 << 20

MAX_HEADER_BYTES = 72 << 10
"""Of one request: what the front door lets in (60 KiB), and what is added there."""

_OPTIONS = (
    # Otherwise another process of the same user could bind the same port and take half of the calls.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_metadata_size", MAX_HEADER_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_HEADER_BYTES),
    # The front door looks after idle connections; without these its pings would count as abuse.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
)

_HEALTH_METHODS = f"/{health_pb2.DESCRIPTOR.services_by_name['Health'].full_name}/"

_RequestT = TypeVar("_RequestT")
_ResponseT = TypeVar("_ResponseT")


class SecretDoor(grpc.aio.ServerInterceptor):
    """Lets a call in only with the deployment's secret. Until `secret` is set nobody has it."""

    def __init__(self) -> None:
        self.secret = ""

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[_RequestT, _ResponseT] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[_RequestT, _ResponseT] | None:
        """The call's own handler, or one that refuses."""
        given = [value for key, value in handler_call_details.invocation_metadata or () if key == SECRET_KEY]
        health = handler_call_details.method.startswith(_HEALTH_METHODS)
        # Ports of shared nodes are used again: whoever comes with another deployment's secret is looking for a replica
        # that is gone, and must not take this one's health for that one's.
        if self._is_right(given) or (health and not given):
            return await continuation(handler_call_details)
        return grpc.unary_unary_rpc_method_handler(_refuse)

    def _is_right(self, given: list[str | bytes]) -> bool:
        if not self.secret or len(given) != 1:
            return False
        presented = given[0].encode() if isinstance(given[0], str) else given[0]
        return hmac.compare_digest(presented, self.secret.encode())


async def _refuse(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
    await context.abort(
        grpc.StatusCode.UNAUTHENTICATED, f"this replica answers only callers that present {SECRET_KEY}"
    )


class AgentServer:
    """The server of one agent. Make it in the event loop that it is to run in."""

    def __init__(self) -> None:
        self._door = SecretDoor()
        self._health = health_aio.HealthServicer()
        self._server = grpc.aio.server(interceptors=(self._door,), options=_OPTIONS)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self.port = 0

    async def start(self, bind: str, inference: Inference) -> int:
        """Binds a free port of `bind`, starts, and returns the port.

        Raises RuntimeError when the address cannot be bound.
        """
        self._server.add_generic_rpc_handlers((inference.handlers(),))
        await self.serving(False)
        host = f"[{bind}]" if ":" in bind else bind
        self.port = self._server.add_insecure_port(f"{host}:0")
        await self._server.start()
        return self.port

    def expect(self, secret: str) -> None:
        """From now on callers with this secret are let in."""
        self._door.secret = secret

    async def serving(self, yes: bool) -> None:
        """What health says from now on."""
        status = health_pb2.HealthCheckResponse.SERVING if yes else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", SERVICE):
            await self._health.set(service, status)

    async def stop(self, grace_s: float) -> None:
        """Ends; calls that have their status already get `grace_s` to deliver it."""
        await self._server.stop(grace_s)
