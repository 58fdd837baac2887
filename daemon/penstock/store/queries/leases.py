"""Leases: who may mutate Slurm, by the database's clock, and by a waiter's own where that one went back.

The rule guarded here (7): a term is held by one process, terms only increase, and an effect is begun only
under the current one. A holder proves that by `fence` in the transaction that commits the effect's intent;
the row stays locked until that transaction ends, so that nobody can take the lease over in between.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import bindparam, func, literal_column, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import Interval

from penstock.store.errors import LeaseLost
from penstock.store.tables import leases

CONTROLLER = "controller"
"""The name of the lease to mutate Slurm."""

# The time of the statement, not of the transaction's beginning: a transaction may have waited for a lock.
_now = func.clock_timestamp()
_until = _now + bindparam("ttl_s") * literal_column("interval '1 second'", Interval)

_insert = insert(leases).values(name=bindparam("lease"), holder=bindparam("by"), term=1, expires_at=_until)
ACQUIRE = _insert.on_conflict_do_update(
    index_elements=[leases.c.name],
    set_={"holder": _insert.excluded.holder, "term": leases.c.term + 1, "expires_at": _until},
    where=or_(
        leases.c.expires_at <= _now,
        leases.c.holder == _insert.excluded.holder,
        leases.c.expires_at == bindparam("stale", type_=leases.c.expires_at.type),
    ),
).returning(leases.c.term)
_is_held = (
    leases.c.name == bindparam("lease"),
    leases.c.holder == bindparam("by"),
    leases.c.term == bindparam("held"),
    leases.c.expires_at > _now,
)
RENEW = update(leases).where(*_is_held).values(expires_at=_until)
RELEASE = update(leases).where(*_is_held).values(expires_at=_now)
# FOR SHARE: whoever takes the lease over must wait for this transaction.
FENCE = select(leases.c.term).where(*_is_held).with_for_update(read=True)
ENDS_AT = select(leases.c.expires_at).where(leases.c.name == bindparam("lease"))
HOLDER = select(leases.c.holder, leases.c.term).where(
    leases.c.name == bindparam("lease"), leases.c.expires_at > _now
)


async def acquire(
    conn: AsyncConnection, name: str, holder: str, ttl_s: float, *, stale: datetime | None = None
) -> int | None:
    """A new term, if nobody holds the lease, or this very holder or a stale one does; else None.

    `holder` is one process, never used again. `stale`: a lease that still ends then is nobody's, whatever the
    database's clock says.
    """
    taken = await conn.execute(ACQUIRE, {"lease": name, "by": holder, "ttl_s": ttl_s, "stale": stale})
    term: int | None = taken.scalar_one_or_none()
    return term


async def renew(conn: AsyncConnection, name: str, holder: str, term: int, ttl_s: float) -> bool:
    """Extends the term. False: it is over, even if nobody has taken the lease since."""
    given = {"lease": name, "by": holder, "held": term, "ttl_s": ttl_s}
    return (await conn.execute(RENEW, given)).rowcount == 1


async def release(conn: AsyncConnection, name: str, holder: str, term: int) -> None:
    """Ends the term now, so that the next holder need not wait. Nothing happens if it is over already."""
    await conn.execute(RELEASE, {"lease": name, "by": holder, "held": term})


async def fence(conn: AsyncConnection, name: str, holder: str, term: int) -> None:
    """Raises LeaseLost unless `term` is the current one, is `holder`'s and has not run out; holds it fast until
    the transaction ends. A database that was restored may give a term again, to another holder."""
    given = {"lease": name, "by": holder, "held": term}
    if (await conn.execute(FENCE, given)).one_or_none() is None:
        raise LeaseLost(name, term)


async def ends_at(conn: AsyncConnection, name: str) -> datetime | None:
    """When the lease ends unless it is renewed, or when it ended; None: there never was one."""
    end: datetime | None = (await conn.execute(ENDS_AT, {"lease": name})).scalar_one_or_none()
    return end


async def holder(conn: AsyncConnection, name: str) -> tuple[str, int] | None:
    """Who holds the lease now, and in which term; None: nobody."""
    row = (await conn.execute(HOLDER, {"lease": name})).one_or_none()
    return None if row is None else (row.holder, row.term)
