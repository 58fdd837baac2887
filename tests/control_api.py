"""A control API for tests: the real servicers on an embedded PostgreSQL and the fake Slurm, behind a port of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc

from penstock.core.model import Deployment
from penstock.rpc.api import add_servicers
from penstock.rpc.deps import Deps
from penstock.store.database import Database
from penstock.testing.slurm import FakeSlurm


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
    routing_waits: list[float] = field(default_factory=list)

    async def stored(self, query: Any, *arguments: Any, **named: Any) -> Any:
        """Runs one of the store's queries in a transaction of its own."""
        async with self.database.transaction() as conn:
            return await query(conn, *arguments, **named)


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
    }
    background = add_servicers(server, Deps(**(deps | changes)))
    await server.start()
    running = asyncio.create_task(background.run())
    try:
        yield api
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await channel.close()
        await server.stop(0)
