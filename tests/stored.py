"""Single rows for tests of what reads them: a replica, and an attempt of it. Ticks write many at a time."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.core.model import Attempt, Replica
from penstock.store.queries import attempts, replicas


async def a_replica_of(conn: AsyncConnection, deployment_uid: str, revision: int, now: datetime) -> Replica:
    """A new one, waiting."""
    (made,) = await replicas.create_many(conn, {(deployment_uid, revision, False): 1}, now)
    return made


async def an_attempt_of(
    conn: AsyncConnection, replica_uid: str, token: str, script: str, secret_hash: str, now: datetime
) -> Attempt:
    """The intent of one, as written before its submission."""
    await attempts.insert_many(conn, [attempts.NewAttempt(replica_uid, token, script, secret_hash)], now)
    (made,) = await attempts.list_for(conn, replica_uid, 1)
    return made
