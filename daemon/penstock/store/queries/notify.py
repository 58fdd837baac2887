"""Telling the other processes that something changed."""

from __future__ import annotations

from sqlalchemy import bindparam, func, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import Text

from penstock.store.tables import CHANNEL, attempts, deployments, replicas

NOTIFY = select(func.pg_notify(CHANNEL, bindparam("deployment", type_=Text)))

NOTIFY_UIDS = select(func.pg_notify(CHANNEL, deployments.c.name)).where(
    deployments.c.uid.in_(bindparam("uids", expanding=True))
)

NOTIFY_TOKEN = (
    select(func.pg_notify(CHANNEL, deployments.c.name))
    .select_from(attempts.join(replicas, replicas.c.uid == attempts.c.replica_uid).join(deployments))
    .where(attempts.c.token == bindparam("token"))
)


async def changed(conn: AsyncConnection, deployment: str) -> None:
    """Something of the deployment of this name changed; empty: something of no deployment."""
    await conn.execute(NOTIFY, {"deployment": deployment})


async def changed_uids(conn: AsyncConnection, uids: set[str]) -> None:
    """The same for deployments by uid."""
    if uids:
        await conn.execute(NOTIFY_UIDS, {"uids": sorted(uids)})


async def changed_attempt(conn: AsyncConnection, token: str) -> None:
    """The same for the deployment that an attempt belongs to."""
    await conn.execute(NOTIFY_TOKEN, {"token": token})
