"""Telling the other processes that something changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, Update, bindparam, func, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import Text

from penstock.store.tables import CHANNEL, attempts, deployments, replicas

NOTIFY = select(func.pg_notify(CHANNEL, func.unnest(bindparam("deployments", type_=ARRAY(Text)))))

NOTIFY_UIDS = select(func.pg_notify(CHANNEL, deployments.c.name)).where(
    deployments.c.uid.in_(bindparam("uids", expanding=True))
)

_of_tokens = (
    select(deployments.c.name)
    .select_from(attempts.join(replicas, replicas.c.uid == attempts.c.replica_uid).join(deployments))
    .where(attempts.c.token == func.any(bindparam("tokens", type_=ARRAY(Text))))
    .distinct()
    .subquery()
)
NOTIFY_TOKENS = select(func.pg_notify(CHANNEL, _of_tokens.c.name))


def telling(statement: Update) -> Select[Any]:
    """An update of attempts that tells of the deployments it concerns, with a row for each attempt written."""
    written = statement.returning(attempts.c.replica_uid, attempts.c.token).cte("written")
    return select(func.pg_notify(CHANNEL, deployments.c.name), written.c.token).select_from(
        written.join(replicas, replicas.c.uid == written.c.replica_uid).join(deployments)
    )


async def changed(conn: AsyncConnection, *names: str) -> None:
    """Something of the deployments of these names changed; an empty name: something of no deployment."""
    if names:
        await conn.execute(NOTIFY, {"deployments": sorted(set(names))})


async def changed_uids(conn: AsyncConnection, uids: set[str]) -> None:
    """The same for deployments by uid."""
    if uids:
        await conn.execute(NOTIFY_UIDS, {"uids": sorted(uids)})


async def changed_attempt(conn: AsyncConnection, token: str) -> None:
    """The same for the deployment that an attempt belongs to."""
    await changed_attempts(conn, [token])


async def changed_attempts(conn: AsyncConnection, tokens: Sequence[str]) -> None:
    """The same for the deployments that attempts belong to, each once."""
    await conn.execute(NOTIFY_TOKENS, {"tokens": list(tokens)})
