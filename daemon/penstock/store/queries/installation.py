"""Which Penstock this is: the second word of the mark on its jobs."""

from __future__ import annotations

import secrets
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.store.tables import installation

INSERT = insert(installation).on_conflict_do_nothing()
GET = select(installation.c.id)


async def ensure(conn: AsyncConnection, now: datetime) -> str:
    """The installation's id, given to it at the first call and never changed."""
    found = (await conn.execute(GET)).scalar_one_or_none()
    if found is None:
        await conn.execute(INSERT, {"id": secrets.token_hex(6), "created_at": now})
        found = (await conn.execute(GET)).scalar_one()
    return str(found)
