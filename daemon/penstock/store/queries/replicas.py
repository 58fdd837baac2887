"""Replicas: made, marked, described and removed. Their numbers are never used twice."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import bindparam, case, column, delete, func, or_, select, true, tuple_, update
from sqlalchemy import insert as insert_into
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.selectable import LateralFromClause
from sqlalchemy.types import BigInteger, Boolean, Text

from penstock.core.model import Phase, Replica, ReplicaState
from penstock.core.plan import ReplicaStatus
from penstock.store.errors import NotFound
from penstock.store.queries import notify, rows
from penstock.store.records import RevisionCount
from penstock.store.tables import attempts, deployments, replicas


def _newest_attempt() -> LateralFromClause:
    """The live attempt or the last one: no attempt is made while one is live, so the newest is either."""
    return (
        select(*rows.ATTEMPT)
        .where(attempts.c.replica_uid == replicas.c.uid)
        .order_by(attempts.c.number.desc())
        .limit(1)
        .lateral("newest")
    )


_newest = _newest_attempt()
SELECT = select(*rows.REPLICA, rows.REVISIONS_DRAIN, *_newest.c).select_from(
    replicas.join(deployments, deployments.c.uid == replicas.c.deployment_uid).outerjoin(_newest, true())
)
GET = SELECT.where(replicas.c.name == bindparam("name"))
LIST = SELECT.order_by(deployments.c.name, replicas.c.number)

_wanted = (
    func.unnest(bindparam("uids", type_=ARRAY(Text)), bindparam("counts", type_=ARRAY(BigInteger)))
    .table_valued(column("uid", Text), column("count", BigInteger))
    .render_derived(name="wanted")
)
TAKE_NUMBERS = (
    update(deployments)
    .where(deployments.c.uid == _wanted.c.uid)
    .values(next_replica_number=deployments.c.next_replica_number + _wanted.c.count)
    .returning(deployments.c.uid, deployments.c.name, deployments.c.next_replica_number)
)
INSERT = insert_into(replicas).returning(*rows.REPLICA, sort_by_parameter_order=True)
MARK_LEAVING = (
    update(replicas)
    .where(replicas.c.uid == bindparam("at"), ~replicas.c.leaving)
    .values(leaving=true())
    .returning(replicas.c.deployment_uid)
)
_given = (
    func.unnest(
        bindparam("uids", type_=ARRAY(Text)),
        bindparam("states", type_=ARRAY(Text)),
        bindparam("messages", type_=ARRAY(Text)),
        bindparam("anew", type_=ARRAY(Boolean)),
    )
    .table_valued(
        column("uid", Text), column("state", Text), column("message", Text), column("anew", Boolean)
    )
    .render_derived(name="given")
)
WRITE_STATUS = (
    update(replicas)
    .where(
        replicas.c.uid == _given.c.uid,
        replicas.c.removed_at.is_(None),
        or_(
            _given.c.anew,
            tuple_(replicas.c.state, replicas.c.message) != tuple_(_given.c.state, _given.c.message),
        ),
    )
    .values(
        state=_given.c.state,
        message=_given.c.message,
        since=case(
            (or_(_given.c.anew, replicas.c.state != _given.c.state), bindparam("now")),
            else_=replicas.c.since,
        ),
    )
    .returning(replicas.c.deployment_uid)
)
REMOVE = (
    update(replicas)
    .where(
        replicas.c.uid == bindparam("at"),
        replicas.c.removed_at.is_(None),
        ~select(attempts.c.token)
        .where(attempts.c.replica_uid == replicas.c.uid, attempts.c.ended_at.is_(None))
        .exists(),
    )
    .values(
        state=ReplicaState.REMOVED.value,
        message=bindparam("sentence"),
        since=bindparam("now"),
        removed_at=bindparam("now"),
        next_attempt_at=None,
    )
    .returning(replicas.c.deployment_uid)
)
COUNT = (
    select(
        replicas.c.deployment_uid,
        replicas.c.revision,
        func.count().label("replicas"),
        func.count(attempts.c.token).label("live"),
        func.count()
        .filter(attempts.c.phase == Phase.READY.value, attempts.c.drain_at.is_(None))
        .label("ready"),
    )
    .select_from(
        replicas.outerjoin(
            attempts, (attempts.c.replica_uid == replicas.c.uid) & attempts.c.ended_at.is_(None)
        )
    )
    .where(replicas.c.removed_at.is_(None), replicas.c.deployment_uid.in_(bindparam("uids", expanding=True)))
    .group_by(replicas.c.deployment_uid, replicas.c.revision)
    .order_by(replicas.c.deployment_uid, replicas.c.revision)
)
PRUNE = delete(replicas).where(
    replicas.c.uid.in_(
        select(replicas.c.uid)
        .where(replicas.c.removed_at < bindparam("before"))
        .order_by(replicas.c.removed_at)
        .limit(bindparam("batch"))
    )
)


async def create_many(
    conn: AsyncConnection, wanted: Mapping[tuple[str, int, bool], int], now: datetime
) -> tuple[Replica, ...]:
    """So many new replicas of each (deployment's uid, revision, burst or not), waiting, in as many statements as one
    takes.

    Raises NotFound.
    """
    if not wanted:
        return ()
    counts: Counter[str] = Counter()
    for (uid, _, _), count in wanted.items():
        counts[uid] += count
    given = {"uids": list(counts), "counts": list(counts.values())}
    taken = {row.uid: row for row in await conn.execute(TAKE_NUMBERS, given)}
    values = []
    for (uid, revision, burst), count in wanted.items():
        if uid not in taken:
            raise NotFound("deployment", uid)
        first = taken[uid].next_replica_number - counts[uid]
        counts[uid] -= count
        values += [
            {
                "uid": str(uuid.uuid4()),
                "deployment_uid": uid,
                "number": number,
                "name": f"{taken[uid].name}-{number}",
                "revision": revision,
                "burst": burst,
                "since": now,
                "created_at": now,
            }
            for number in range(first, first + count)
        ]
    made = await conn.execute(INSERT, values)
    await notify.changed(conn, *(row.name for row in taken.values()))
    return tuple(rows.replica(row, None) for row in made)


async def get(conn: AsyncConnection, name: str) -> Replica:
    """With its live attempt, or its last one. Raises NotFound."""
    row = (await conn.execute(GET, {"name": name})).one_or_none()
    if row is None:
        raise NotFound("replica", name)
    return rows.replica_with_attempt(row)


async def list_page(
    conn: AsyncConnection,
    *,
    deployment: str | None = None,
    after: tuple[str, int] | None = None,
    limit: int,
    include_removed: bool = False,
) -> tuple[Replica, ...]:
    """At most `limit` replicas by deployment and number, each with its live attempt or its last one.

    `deployment`: its name, None for all. `after`: the deployment's name and the number that the last page ended with.
    """
    statement = LIST.limit(limit)
    if deployment is not None:
        statement = statement.where(deployments.c.name == deployment)
    if after is not None:
        statement = statement.where(tuple_(deployments.c.name, replicas.c.number) > tuple_(*after))
    if not include_removed:
        statement = statement.where(replicas.c.removed_at.is_(None))
    return tuple(rows.replica_with_attempt(row) for row in await conn.execute(statement))


async def count(
    conn: AsyncConnection, deployment_uids: Sequence[str]
) -> Mapping[str, tuple[RevisionCount, ...]]:
    """For each deployment how many replicas run each revision; a deployment without replicas has none."""
    counts: dict[str, list[RevisionCount]] = {uid: [] for uid in deployment_uids}
    for row in await conn.execute(COUNT, {"uids": list(deployment_uids)}):
        counts[row.deployment_uid].append(RevisionCount(row.revision, row.replicas, row.live, row.ready))
    return {uid: tuple(items) for uid, items in counts.items()}


async def mark_leaving(conn: AsyncConnection, uid: str) -> bool:
    """Writes that the replica is to go and not to come back. Returns whether that is new."""
    deployment_uid = (await conn.execute(MARK_LEAVING, {"at": uid})).scalar_one_or_none()
    if deployment_uid is None:
        return False
    await notify.changed_uids(conn, {deployment_uid})
    return True


async def write_status(conn: AsyncConnection, statuses: Sequence[ReplicaStatus], now: datetime) -> int:
    """Writes where replicas stand, those that differ, in one statement. Returns how many did.

    `since` moves with the state, and where that begins anew: another sentence is no other state. Removed replicas are
    left as they are.
    """
    if not statuses:
        return 0
    written = await conn.execute(
        WRITE_STATUS,
        {
            "uids": [status.replica_uid for status in statuses],
            "states": [status.state.value for status in statuses],
            "messages": [status.message for status in statuses],
            "anew": [status.anew for status in statuses],
            "now": now,
        },
    )
    deployment_uids = written.scalars().all()
    await notify.changed_uids(conn, set(deployment_uids))
    return len(deployment_uids)


async def remove(conn: AsyncConnection, uid: str, now: datetime, *, message: str = "") -> bool:
    """Writes that the replica is gone. False, and nothing is written, while it has a live attempt, or when it
    is gone already."""
    deployment_uid = (
        await conn.execute(REMOVE, {"at": uid, "now": now, "sentence": message})
    ).scalar_one_or_none()
    if deployment_uid is None:
        return False
    await notify.changed_uids(conn, {deployment_uid})
    return True


async def prune(conn: AsyncConnection, before: datetime, *, batch: int) -> int:
    """Forgets at most `batch` replicas, and their attempts, that were removed before this time. Returns how many."""
    return (await conn.execute(PRUNE, {"before": before, "batch": batch})).rowcount
