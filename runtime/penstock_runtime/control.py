"""The agent's side of RuntimeService: which front door to ask, how long, and what an answer means.

Several front doors may be named; the one that answered last is asked first, and one that fails makes way for
the next. Each call here is one try with a bound. Trying again is the caller's business, because only the
caller knows for how long it still makes sense.

The rule guarded here: silence is not an order. Only the control plane's own word about this attempt
(FAILED_PRECONDITION, UNAUTHENTICATED) is an answer; a front door that is down, slow or confused is none.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import grpc

from penstock.v1 import runtime_pb2, runtime_pb2_grpc

SECRET_KEY = "x-penstock-attempt-secret"

CALL_TIMEOUT_S = 5.0
DRAIN_TIMEOUT_S = 5.0

BACKOFF_INITIAL_S = 0.25
# A control plane that returns is found within this time by every agent; a thousand agents then make 200 calls
# a second.
BACKOFF_MAX_S = 5.0

_FINAL = frozenset({grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNAUTHENTICATED})

_CHANNEL_OPTIONS = (
    # Clusters often set http_proxy for the way out; the control plane is never behind it.
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 3000),
    # A node that vanished without a word is noticed while a call waits.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)

_Answer = TypeVar("_Answer")


class Refused(Exception):
    """The control plane's own word: this attempt is not to go on, or its secret is wrong."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"the control plane refused: {details or 'no reason given'} ({code.name})")
        self.code = code


class Unreachable(Exception):
    """No answer, or one that says nothing about this attempt. Worth another try."""


def backoff() -> Iterator[float]:
    """Seconds to wait between tries: doubling up to BACKOFF_MAX_S, each spread by half, so that agents do not march in
    step."""
    wait = BACKOFF_INITIAL_S
    while True:
        yield wait * random.uniform(0.5, 1.0)
        wait = min(BACKOFF_MAX_S, wait * 2)


def address_towards(endpoint: str) -> str:
    """The address of this machine from which `endpoint` (host:port) is reached.

    Sends nothing. Raises OSError.
    """
    host, _, port = endpoint.rpartition(":")
    family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])


class Control:
    """The control plane, seen by one attempt."""

    def __init__(self, endpoints: tuple[str, ...], attempt: str, secret: str, restart_count: int = 0) -> None:
        self._endpoints = endpoints
        self._attempt = attempt
        self._restart_count = restart_count
        self._metadata = ((SECRET_KEY, secret),)
        self._at = 0
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def register(
        self, *, job_id: int, advertise: str, port: int, engine_port: int, version: str
    ) -> runtime_pb2.RegisterResponse:
        """One try to register.

        An empty `advertise` becomes the address that routes to the front door asked.
        """
        endpoint = self._endpoints[self._at]
        try:
            host = advertise or await asyncio.to_thread(address_towards, endpoint)
        except OSError as error:
            self._next()
            raise Unreachable(f"{endpoint}: {error}") from error
        request = runtime_pb2.RegisterRequest(
            attempt=self._attempt,
            job_id=job_id,
            restart_count=self._restart_count,
            host=host,
            port=port,
            engine_port=engine_port,
            agent_version=version,
        )
        return await self._call(
            lambda stub: stub.Register(request, timeout=CALL_TIMEOUT_S, metadata=self._metadata)
        )

    async def report(self, request: runtime_pb2.ReportRequest) -> runtime_pb2.ReportResponse:
        """One try to report."""
        request.attempt = self._attempt
        request.restart_count = self._restart_count
        return await self._call(
            lambda stub: stub.Report(request, timeout=CALL_TIMEOUT_S, metadata=self._metadata)
        )

    async def drain(self, message: str) -> None:
        """Asks to be taken out of routing, at each front door until one answers; DRAIN_TIMEOUT_S in all.

        Raises Refused or Unreachable.
        """
        request = runtime_pb2.DrainRequest(
            attempt=self._attempt, message=message, restart_count=self._restart_count
        )
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                for left in reversed(range(len(self._endpoints))):
                    try:
                        await self._call(
                            lambda stub: stub.Drain(request, timeout=DRAIN_TIMEOUT_S, metadata=self._metadata)
                        )
                        return
                    except Unreachable:
                        if not left:
                            raise
        except TimeoutError as error:
            raise Unreachable(f"no answer within {DRAIN_TIMEOUT_S:g} s") from error

    async def close(self) -> None:
        """Closes every connection."""
        for channel in self._channels.values():
            await channel.close()

    async def _call(
        self, call: Callable[[runtime_pb2_grpc.RuntimeServiceStub], Awaitable[_Answer]]
    ) -> _Answer:
        endpoint = self._endpoints[self._at]
        channel = self._channels.get(endpoint)
        if channel is None:
            channel = grpc.aio.insecure_channel(endpoint, options=_CHANNEL_OPTIONS)
            self._channels[endpoint] = channel
        try:
            return await call(runtime_pb2_grpc.RuntimeServiceStub(channel))
        except grpc.aio.AioRpcError as error:
            if error.code() in _FINAL:
                raise Refused(error.code(), error.details() or "") from error
            self._next()
            raise Unreachable(f"{endpoint}: {error.details()} ({error.code().name})") from error

    def _next(self) -> None:
        self._at = (self._at + 1) % len(self._endpoints)
