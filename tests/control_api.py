"""A control API for tests: the real servicers on a real PostgreSQL and the fake Slurm, behind a port of its own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from penstock.core.model import Deployment, Replica
from penstock.rpc.api import add_servicers
from penstock.rpc.deps import Deps
from penstock.store.database import Database
from penstock.store.queries import deployments, replicas
from penstock.testing.slurm import FakeSlurm
from tests.stored import a_replica_of, an_attempt_of


def now() -> datetime:
    return datetime.now(UTC)


def script_of(deployment: Deployment) -> str:
    return f"#!/bin/bash\n# {deployment.name}\n"


@dataclass
class ControlApi:
    """What a test talks to, and what it may look at afterwards."""

    address: str
    channel: grpc.aio.Channel
    database: Database
    slurm: FakeSlurm
    attempts_folder: Path
    routing_changes: list[datetime] = field(default_factory=list)
    front_door_trouble: str = ""
    held: dict[str, int] = field(default_factory=dict)
    commits: list[datetime] = field(default_factory=list)
    """When a commit was heard of."""
    routing_waits: list[float] = field(default_factory=list)

    async def stored(self, query: Any, *arguments: Any, **named: Any) -> Any:
        """Runs one of the store's queries in a transaction of its own."""
        async with self.database.transaction() as conn:
            return await query(conn, *arguments, **named)


async def refused(call: Any) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    """The status of a call that must fail, its sentence, and its field violations."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    fields: dict[str, str] = {}
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        assert isinstance(value, bytes)
        for detail in status_pb2.Status.FromString(value).details:
            bad_request = error_details_pb2.BadRequest()
            assert detail.Unpack(bad_request)
            fields |= {violation.field: violation.description for violation in bad_request.field_violations}
    return error.code(), error.details() or "", fields


SECRET = "the attempt's secret"


async def make_attempt(api: ControlApi, deployment: str, token: str = "token1") -> Replica:
    """A replica of a deployment that is there, with a live attempt whose secret is SECRET."""
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    async with api.database.transaction() as conn:
        found = await deployments.get(conn, deployment)
        replica = await a_replica_of(conn, found.uid, found.revision, now())
        await an_attempt_of(conn, replica.uid, token, "#!/bin/bash\n", digest, now())
        return await replicas.get(conn, replica.name)


@contextlib.asynccontextmanager
async def control_api(database: Database, folder: Path, **changes: Any) -> AsyncIterator[ControlApi]:
    """Starts the server and the channel, and ends both. `changes`: fields of Deps that differ."""
    slurm = FakeSlurm(clock=now)
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    address = f"127.0.0.1:{port}"
    channel = grpc.aio.insecure_channel(address)
    api = ControlApi(address, channel, database, slurm, folder)

    async def routing_applied(timeout_s: float) -> bool:
        api.routing_waits.append(timeout_s)
        return True

    deps: dict[str, Any] = {
        "db": database,
        "slurm": slurm,
        "installation": "test",
        "attempts_folder": folder,
        "version": "0.0.test",
        "clock": now,
        "render_script": script_of,
        "on_routing_change": lambda: api.routing_changes.append(now()),
        "routing_applied": routing_applied,
        "front_door_trouble": lambda: api.front_door_trouble,
        "held_requests": lambda: api.held,
    }
    background = add_servicers(server, Deps(**(deps | changes)))
    await server.start()
    running = asyncio.create_task(background.run(lambda: api.commits.append(now())))
    try:
        yield api
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await channel.close()
        await server.stop(0)
