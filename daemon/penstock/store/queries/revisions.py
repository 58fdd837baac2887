"""Revisions: what a deployment's spec was. Written once, never changed, bounded in number."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, select
from sqlalchemy import insert as insert_into
from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.core.model import Revision
from penstock.store.errors import NotFound
from penstock.store.queries import rows
from penstock.store.tables import replicas, revisions

REVISIONS_KEPT = 100
"""A deployment's newest; an older one goes once no replica bears it. Enough to go back by hand to any that is
remembered."""

INSERT = insert_into(revisions)
PRUNE = delete(revisions).where(
    revisions.c.deployment_uid == bindparam("uid"),
    revisions.c.number <= bindparam("last"),
    ~select(replicas.c.uid)
    .where(replicas.c.deployment_uid == revisions.c.deployment_uid, replicas.c.revision == revisions.c.number)
    .exists(),
)
GET = select(*rows.REVISION).where(
    revisions.c.deployment_uid == bindparam("uid"), revisions.c.number == bindparam("number")
)
LIST = (
    select(*rows.REVISION)
    .where(revisions.c.deployment_uid == bindparam("uid"))
    .order_by(revisions.c.number.desc())
    .limit(bindparam("count"))
)


async def insert(
    conn: AsyncConnection, deployment_uid: str, number: int, document: Any, now: datetime
) -> None:
    """Adds a revision, whose spec is given as its document, and lets the oldest go."""
    await conn.execute(
        INSERT, {"deployment_uid": deployment_uid, "number": number, "spec": document, "created_at": now}
    )
    if number > REVISIONS_KEPT:
        await conn.execute(PRUNE, {"uid": deployment_uid, "last": number - REVISIONS_KEPT})


async def get(conn: AsyncConnection, deployment_uid: str, number: int) -> Revision:
    """Raises NotFound."""
    row = (await conn.execute(GET, {"uid": deployment_uid, "number": number})).one_or_none()
    if row is None:
        raise NotFound("revision", str(number))
    return rows.revision(row)


async def list_page(
    conn: AsyncConnection, deployment_uid: str, *, before_number: int | None = None, limit: int
) -> tuple[Revision, ...]:
    """At most `limit` revisions, newest first, beginning below `before_number` (None: at the newest)."""
    statement = LIST if before_number is None else LIST.where(revisions.c.number < before_number)
    found = await conn.execute(statement, {"uid": deployment_uid, "count": limit})
    return tuple(rows.revision(row) for row in found)
