"""Relays one held gRPC request: back to the front door, by a listener of its own, and its answer to the client.

Envoy chooses the replica, adds the deployment's secret, and sends it again before the first byte where that is safe, as
it does with every other request. What cannot be served after all is led to this gateway once more; it bears the key of
its ticket then, is known by that and goes back to its place in the line, so there is no loop.

Messages pass as bytes, not parsed. The rule guarded here: once a message of the answer has come, the request is never
sent again, and the status that ends it is the one that the client gets, whatever it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from penstock.core.routing import Route
from penstock.gateway.hold import Held, Progress
from penstock.gateway.relay_listener import RELAYED_HEADER, relay_address
from penstock.gateway.routes import ADAPTER_HEADER, DEPLOYMENT_HEADER, INFERENCE
from penstock.gateway.settings import FrontDoorSettings
from penstock.v1 import inference_pb2

PROBE_TIMEOUT_S = 1.0
_HEALTH = "/grpc.health.v1.Health/Check"
_STREAMS = {
    f"{INFERENCE}StreamChat": inference_pb2.StreamChatResponse,
    f"{INFERENCE}StreamGenerate": inference_pb2.StreamGenerateResponse,
}
"""Methods whose clients hear how they stand while they wait."""
_NOT_PASSED_ON = ("grpc-", "x-envoy-", "x-penstock-deployment")
_NOT_PASSED_ON_NAMES = frozenset(
    {"user-agent", "te", "content-type", "host", "x-forwarded-proto", RELAYED_HEADER}
)

Context = grpc.aio.ServicerContext[Any, Any]
Metadata = tuple[tuple[str, str | bytes], ...]


class GrpcRelay:
    """The way back to the front door. Use: `start`, `stop`."""

    def __init__(self, settings: FrontDoorSettings) -> None:
        self._settings = settings
        self._channel: grpc.aio.Channel | None = None

    def start(self) -> None:
        """Connects when it is first used."""
        self._channel = grpc.aio.insecure_channel(
            relay_address(self._settings),
            options=(
                # Whatever a replica may send to a client directly.
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.use_local_subchannel_pool", 1),
                # An Envoy that was started anew is back within a second.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1000),
            ),
        )

    async def stop(self) -> None:
        """Ends what is being relayed."""
        if self._channel is not None:
            await self._channel.close()

    async def answers(self, route: Route) -> bool:
        """Whether the front door reaches a replica, of those that the route leads to, that says that it serves."""
        call = self._call(
            _HEALTH, health_pb2.HealthCheckRequest().SerializeToString(), line_headers(route), PROBE_TIMEOUT_S
        )
        try:
            answer = await _next(call)
        finally:
            call.cancel()
        if answer is None:
            return False
        return (
            health_pb2.HealthCheckResponse.FromString(answer).status == health_pb2.HealthCheckResponse.SERVING
        )

    async def serve(self, held: Held, method: str, request: bytes, route: Route, context: Context) -> None:
        """Waits, relays, and ends the call as the replica does. Raises Refused, with nothing but progress sent."""
        own = (*line_headers(route), (RELAYED_HEADER, held.key))
        metadata = (*_passed_on(context.invocation_metadata() or ()), *own)
        while True:
            await self._wait(held, method, context)
            call = self._call(method, request, metadata, context.time_remaining())
            try:
                if await self._relayed(call, held, context):
                    return
            finally:
                # Nothing for one that has ended; for a client that has left, the replica stops.
                call.cancel()

    async def _wait(self, held: Held, method: str, context: Context) -> None:
        response = _STREAMS.get(method)
        async for progress in held.wait():
            if response is not None:
                await context.write(response(waiting=waiting(progress)).SerializeToString())

    async def _relayed(
        self, call: grpc.aio.UnaryStreamCall[bytes, bytes], held: Held, context: Context
    ) -> bool:
        """Whether this was the answer; if not, the request is back in its line. Raises Refused."""
        message = await _next(call)
        if message is None:
            code = await call.code()
            if held.returned_at_attempt or code is grpc.StatusCode.UNAVAILABLE:
                held.lost()
                return False
            if code is grpc.StatusCode.RESOURCE_EXHAUSTED and held.turned_away():
                return False
        held.answered()
        while message is not None:
            await context.write(message)
            message = await _next(call)
        context.set_trailing_metadata(await call.trailing_metadata() or ())
        context.set_code(await call.code())
        context.set_details(await call.details() or "")
        return True

    def _call(
        self, method: str, request: bytes, metadata: Metadata, timeout_s: float | None
    ) -> grpc.aio.UnaryStreamCall[bytes, bytes]:
        if self._channel is None:
            raise RuntimeError("the relay was not started")
        # A unary answer looks like a stream of one message.
        start: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(method)
        return start(request, metadata=metadata, timeout=timeout_s)


def line_headers(route: Route) -> tuple[tuple[str, str], ...]:
    """What tells the front door's listener for relays where a request goes."""
    adapter = ((ADAPTER_HEADER, route.adapter),) if route.adapter else ()
    return ((DEPLOYMENT_HEADER, route.deployment), *adapter)


async def _next(call: grpc.aio.UnaryStreamCall[bytes, bytes]) -> bytes | None:
    """The next message; None: there are no more, and the status says why."""
    try:
        message = await call.read()
    except grpc.aio.AioRpcError:
        return None
    return message if isinstance(message, bytes) else None


def waiting(progress: Progress) -> inference_pb2.WaitProgress:
    """The progress in the contract's words."""
    job = progress.prospect.job
    said = ", ".join((progress.prospect.sentence, *progress.expectation))
    message = inference_pb2.WaitProgress(position=progress.position, message=said)
    if job is not None:
        message.job_id = job.job_id
        message.job_state = job.state_text or job.state.value
        if job.waiting:
            message.pending_reason = job.reason
            if job.started_at is not None:
                message.estimated_start.FromDatetime(job.started_at)
    return message


def patience_s(context: Context) -> float:
    """What the client's deadline leaves; without one: for ever."""
    remaining: float | None = context.time_remaining()
    return math.inf if remaining is None else remaining


def _passed_on(metadata: Iterable[tuple[str, str | bytes]]) -> Metadata:
    """What the client sent, less what is of this connection or was put there by the front door."""
    return tuple(
        (key, value)
        for key, value in metadata
        if key not in _NOT_PASSED_ON_NAMES and not key.startswith(_NOT_PASSED_ON)
    )
