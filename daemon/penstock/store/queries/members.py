"""Processes that beat: the gateways, every 10 s.

What they are for: an agent's silence is believed only for the time in which somebody could have heard it. Times are the
database's.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, bindparam, case, delete, func, literal_column, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import Interval

from penstock.store.records import Member
from penstock.store.tables import members

GATEWAY = "gateway"

BEAT_INTERVAL_S = 10
GAP_S = 30
"""Three beats missed: it was away, and is back from its next beat on."""
FORGET_S = 3600
"""A member unseen for this long is forgotten, so that the table holds processes of today only."""

_now = func.clock_timestamp()


def _seconds(count: int) -> ColumnElement[timedelta]:
    return literal_column(f"interval '{count} seconds'", Interval)


_insert = insert(members).values(
    role=bindparam("its_role"),
    id=bindparam("its_id"),
    address=bindparam("its_address"),
    open_since=func.now(),
    seen_at=func.now(),
)
BEAT = _insert.on_conflict_do_update(
    index_elements=[members.c.role, members.c.id],
    set_={
        "address": _insert.excluded.address,
        "open_since": case(
            (members.c.seen_at < func.now() - _seconds(GAP_S), func.now()), else_=members.c.open_since
        ),
        "seen_at": func.greatest(func.now(), members.c.seen_at),
    },
)
FORGET = delete(members).where(members.c.seen_at < _now - _seconds(FORGET_S))
LIST = (
    select(members)
    .where(members.c.role == bindparam("its_role"), members.c.seen_at > _now - _seconds(GAP_S))
    .order_by(members.c.id)
)
REPORTS_OPEN_SINCE = select(func.min(members.c.open_since)).where(
    members.c.role == GATEWAY, members.c.seen_at > _now - _seconds(GAP_S)
)


async def beat(conn: AsyncConnection, role: str, id_: str, address: str) -> None:
    """A sign of life. After a gap of more than GAP_S the member counts as newly come."""
    await conn.execute(BEAT, {"its_role": role, "its_id": id_, "its_address": address})
    await conn.execute(FORGET)


async def list_present(conn: AsyncConnection, role: str) -> tuple[Member, ...]:
    """The members of a role that were seen in the last GAP_S, by id."""
    found = await conn.execute(LIST, {"its_role": role})
    return tuple(Member(row.role, row.id, row.address, row.open_since, row.seen_at) for row in found)


async def reports_open_since(conn: AsyncConnection) -> datetime | None:
    """Since when some gateway has been there to hear the agents without a gap; None: none is there now."""
    since: datetime | None = (await conn.execute(REPORTS_OPEN_SINCE)).scalar_one()
    return since
