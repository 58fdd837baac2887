"""Processes that beat: the gateways, every 5 s.

What they are for: an agent's silence is believed only for the time in which somebody could have heard it. Times are the
database's.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Boolean, ColumnElement, bindparam, case, delete, func, literal_column, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import Interval

from penstock.core.model import Heard
from penstock.store.records import Member
from penstock.store.tables import members

GATEWAY = "gateway"

BEAT_INTERVAL_S = 5
"""By so much later than an agent's silence is it noticed."""
GAP_S = 30
"""Six beats missed: it is away."""
FORGET_S = 3600
"""A member unseen for this long is forgotten, so that the table holds processes of today only."""

_now = func.clock_timestamp()


def _seconds(count: int) -> ColumnElement[timedelta]:
    return literal_column(f"interval '{count} seconds'", Interval)


def _present(at: ColumnElement[datetime]) -> ColumnElement[bool]:
    """Whether it has beaten lately. A beat that is yet to come is of a clock that went back since: it tells nothing."""
    return members.c.seen_at.between(at - _seconds(GAP_S), at)


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
            (or_(bindparam("came", type_=Boolean), ~_present(func.now())), func.now()),
            else_=members.c.open_since,
        ),
        "seen_at": func.now(),
    },
)
FORGET = delete(members).where(members.c.seen_at < _now - _seconds(FORGET_S))
LIST = select(members).where(members.c.role == bindparam("its_role"), _present(_now)).order_by(members.c.id)


async def beat(conn: AsyncConnection, role: str, id_: str, address: str, *, came: bool) -> None:
    """A sign of life. `came`: the member has just come, or could not do its work since its last beat; after a gap of
    more than GAP_S, and where the clock went back, it counts as newly come anyway."""
    await conn.execute(BEAT, {"its_role": role, "its_id": id_, "its_address": address, "came": came})
    await conn.execute(FORGET)


async def list_present(conn: AsyncConnection, role: str) -> tuple[Member, ...]:
    """The members of a role that were seen in the last GAP_S, by id."""
    found = await conn.execute(LIST, {"its_role": role})
    return tuple(Member(row.role, row.id, row.address, row.open_since, row.seen_at) for row in found)


async def heard(conn: AsyncConnection) -> Heard | None:
    """The last time without a break in which some gateway was there to hear the agents; None: none is there now.

    It ends at a beat: whoever is killed after it hears nothing more. Whoever comes within a beat's interval of
    another's last beat makes no break: the other may be there still.
    """
    may_live = timedelta(seconds=BEAT_INTERVAL_S)
    found: Heard | None = None
    for one in sorted(await list_present(conn, GATEWAY), key=lambda one: one.open_since):
        if found is None or one.open_since > found.until + may_live:
            found = Heard(one.open_since, one.seen_at)
        found = Heard(found.since, max(found.until, one.seen_at))
    return found
