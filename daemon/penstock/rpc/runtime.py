"""RuntimeService: what the agents in the jobs say. The token names an attempt, its secret proves it; all else
is believed after that.

The rule guarded here: nothing about an attempt's state reaches a caller that has not shown its secret, and a
report that brings news is committed and told to the front door before it is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
from typing import Any

import grpc
from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.rpc.convert.replica import load_in, phase_in, standings_in
from penstock.rpc.convert.spec import adapters_out
from penstock.rpc.deps import Deps
from penstock.rpc.refusals import Refused
from penstock.store.errors import AttemptEnded
from penstock.store.queries import attempts, runtime
from penstock.store.records import Agent
from penstock.v1 import runtime_pb2 as pb
from penstock.v1 import runtime_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

SECRET_KEY = "x-penstock-attempt-secret"
DRAIN_WAIT_S = 5.0
"""How long an agent that leaves is kept waiting for the front doors: then it goes on anyway."""


class RuntimeServicer(runtime_pb2_grpc.RuntimeServiceServicer):
    """Each method as its comment in runtime.proto says."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self._db = deps.db

    async def Register(self, request: pb.RegisterRequest, context: Context) -> pb.RegisterResponse:
        async with self._db.transaction() as conn:
            agent = await _authenticate(conn, request.attempt, context)
            # The controller may not have written the job's id down yet: then the agent is the first to say it.
            await runtime.register(
                conn,
                request.attempt,
                job_id=request.job_id,
                restart_count=request.restart_count,
                host=request.host,
                port=request.port,
                engine_port=request.engine_port or None,
                now=self._deps.clock(),
            )
        # A requeued job's run is not ready, although the run before it was.
        self._deps.on_routing_change()
        return pb.RegisterResponse(
            deployment_secret=agent.deployment_secret,
            report_interval_s=self._deps.report_interval_s,
            engine_key=agent.engine_key,
        )

    async def Report(self, request: pb.ReportRequest, context: Context) -> pb.ReportResponse:
        async with self._db.transaction() as conn:
            await _authenticate_registered(conn, request.attempt, context)
            reported = await runtime.report(
                conn,
                request.attempt,
                restart_count=request.restart_count,
                phase=phase_in(request.phase),
                message=request.message,
                load=load_in(request.load),
                exit_code=request.exit_code if request.HasField("exit_code") else None,
                last_words=request.last_words,
                now=self._deps.clock(),
                adapters=standings_in(request.adapters),
            )
        if reported.news:
            self._deps.on_routing_change()
        wanted = pb.WantedAdapters(adapters=adapters_out(reported.wanted_adapters))
        return pb.ReportResponse(drain=reported.drain, adapters=wanted)

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainResponse:
        async with self._db.transaction() as conn:
            await _authenticate_registered(conn, request.attempt, context)
            loads = await attempts.loads(conn, [request.attempt])
            await runtime.report(
                conn,
                request.attempt,
                restart_count=request.restart_count,
                phase=phase_in(pb.AGENT_PHASE_DRAINING),
                message=request.message,
                load=loads[request.attempt],
                exit_code=None,
                last_words="",
                now=self._deps.clock(),
            )
        self._deps.on_routing_change()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_WAIT_S):
                await self._deps.routing_applied(DRAIN_WAIT_S)
        return pb.DrainResponse()


async def _authenticate(conn: AsyncConnection, token: str, context: Context) -> Agent:
    """Whom the call speaks for. Raises Refused for a wrong secret and AttemptEnded for the right one of an
    attempt that is over.
    """
    given = [value for key, value in context.invocation_metadata() or () if key == SECRET_KEY]
    secret = given[0] if len(given) == 1 else ""
    found = await runtime.authenticate(conn, token)
    digest = hashlib.sha256(secret.encode() if isinstance(secret, str) else secret).hexdigest()
    # Compared for an unknown token too, so that the time it takes tells nothing.
    if not hmac.compare_digest(digest, found.secret_hash if found else "0" * len(digest)) or found is None:
        raise Refused(
            grpc.StatusCode.UNAUTHENTICATED,
            f"the attempt's secret in the metadata key {SECRET_KEY} is missing or wrong",
        )
    if not found.attempt.live:
        raise AttemptEnded(token)
    return found


async def _authenticate_registered(conn: AsyncConnection, token: str, context: Context) -> None:
    """The same. Raises Refused for an attempt that has not registered, too."""
    agent = await _authenticate(conn, token, context)
    if agent.attempt.registered_at is None:
        raise Refused(grpc.StatusCode.FAILED_PRECONDITION, f"attempt {token} has not registered")
