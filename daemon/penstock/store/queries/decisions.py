"""The decision log. A row says what was decided and why; it outlives the deployment that it speaks of, until
retention ends it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType
from typing import Any

from sqlalchemy import Select, bindparam, column, delete, func, literal, or_, select, true, union_all, update
from sqlalchemy import insert as insert_into
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import BigInteger, Text

from penstock.core.decisions import EFFECTS, Decision
from penstock.store.documents import encode
from penstock.store.queries import notify, rows
from penstock.store.records import DecidedAction, DecisionRecord, decided
from penstock.store.tables import CHANNEL, decisions, deployments, replicas

DONE = "done"
"""The outcome of an action that nothing stood in the way of."""

KEPT_PER_SUBJECT = 20
"""As many as an explanation shows."""

PRUNE_BATCH = 1000
"""Rows a statement, so that none holds its locks for long."""

_made = (
    func.unnest(
        *(bindparam(name, type_=ARRAY(Text)) for name in ("deployments", "replicas", "reasons", "messages")),
        bindparam("actions", type_=ARRAY(JSONB, dimensions=1)),
    )
    .table_valued(
        *(column(name, Text) for name in ("deployment", "replica", "reason", "message")),
        column("actions", JSONB),
        with_ordinality="place",
    )
    .render_derived(name="made")
)
# Ids are given in the order of the selection. To put a thousand rows of values into words would cost more than to
# write them.
INSERT = (
    insert_into(decisions)
    .from_select(
        ["tick", "first_at", "last_at", "deployment", "replica", "reason", "message", "actions"],
        select(
            bindparam("tick", type_=Text),
            bindparam("now", type_=decisions.c.first_at.type),
            bindparam("now", type_=decisions.c.last_at.type),
            _made.c.deployment,
            _made.c.replica,
            _made.c.reason,
            _made.c.message,
            _made.c.actions,
        ).order_by(_made.c.place),
    )
    .returning(decisions.c.id)
)
BUMP = (
    update(decisions)
    .where(decisions.c.id == bindparam("at"))
    .values(
        count=decisions.c.count + bindparam("times", type_=decisions.c.count.type),
        last_at=func.greatest(bindparam("seen"), decisions.c.last_at),
        actions=func.coalesce(bindparam("anew", type_=JSONB(none_as_null=True)), decisions.c.actions),
    )
)
RECORD_OUTCOME = (
    update(decisions)
    .where(decisions.c.id == bindparam("at"))
    .values(
        actions=func.jsonb_set(
            decisions.c.actions,
            bindparam("path", type_=ARRAY(Text)),
            bindparam("outcome", type_=JSONB),
        )
    )
)
NOTIFY_DECIDED = select(func.pg_notify(CHANNEL, decisions.c.deployment)).where(
    decisions.c.id == func.any(bindparam("ids", type_=ARRAY(BigInteger)))
)
LIST = select(*rows.DECISION).order_by(decisions.c.id.desc())
AFTER = select(*rows.DECISION).where(decisions.c.id > bindparam("last")).order_by(decisions.c.id)
LAST_ID = select(func.coalesce(func.max(decisions.c.id), 0))

_subjects = union_all(
    select(literal("").label("deployment"), literal("").label("replica")),
    select(deployments.c.name, literal("")),
    select(deployments.c.name, replicas.c.name)
    .select_from(replicas.join(deployments))
    .where(replicas.c.removed_at.is_(None)),
).subquery("subjects")
_newest = (
    select(*rows.DECISION)
    .where(decisions.c.deployment == _subjects.c.deployment, decisions.c.replica == _subjects.c.replica)
    .order_by(decisions.c.id.desc())
    .limit(1)
    .lateral("newest")
)
# One index look-up a subject that exists; a DISTINCT ON would read the whole log.
NEWEST_PER_SUBJECT = select(*_newest.c).select_from(_subjects.join(_newest, true()))

_newer = decisions.alias("newer")
_kept = (
    select(literal(1))
    .where(
        _newer.c.deployment == decisions.c.deployment,
        _newer.c.replica == decisions.c.replica,
        _newer.c.id > decisions.c.id,
    )
    .limit(bindparam("keep"))
    .correlate(decisions)
    .subquery()
)
_subject_is_there = or_(
    decisions.c.deployment == "",
    (decisions.c.replica == "")
    & select(deployments.c.uid)
    .where(deployments.c.name == decisions.c.deployment)
    .correlate(decisions)
    .exists(),
    (decisions.c.replica != "")
    & select(replicas.c.uid).where(replicas.c.name == decisions.c.replica).correlate(decisions).exists(),
)
PRUNE = delete(decisions).where(
    decisions.c.id.in_(
        select(decisions.c.id)
        .where(
            decisions.c.last_at < bindparam("before"),
            or_(
                ~_subject_is_there,
                select(func.count()).select_from(_kept).scalar_subquery() >= bindparam("keep"),
            ),
        )
        .order_by(decisions.c.last_at)
        .limit(bindparam("batch"))
    )
)


async def insert(
    conn: AsyncConnection,
    tick: str,
    made: Sequence[Decision],
    now: datetime,
    names: Mapping[str, str] | None = None,
) -> tuple[DecisionRecord, ...]:
    """Writes the decisions of a tick, before their effects. Returns them as they stand in the log, in the
    same order. `names`: what replicas and deployments are called, by uid; the log outlives their rows."""
    if not made:
        return ()
    given = {
        "tick": tick,
        "now": now,
        "deployments": [decision.deployment for decision in made],
        "replicas": [decision.replica for decision in made],
        "reasons": [decision.reason.word for decision in made],
        "messages": [decision.message for decision in made],
        "actions": [encode(written(decision, names)) for decision in made],
    }
    ids = sorted((await conn.execute(INSERT, given)).scalars())
    await notify.changed(conn, *(decision.deployment for decision in made))
    return tuple(
        DecisionRecord(
            id=id_,
            tick=tick,
            deployment=decision.deployment,
            replica=decision.replica,
            reason=decision.reason.word,
            message=decision.message,
            actions=written(decision, names),
            count=1,
            first_at=now,
            last_at=now,
        )
        for id_, decision in zip(ids, made, strict=True)
    )


def written(decision: Decision, names: Mapping[str, str] | None) -> tuple[DecidedAction, ...]:
    """The decision's actions as the log shows them: those of the database alone are done with the row."""
    return tuple(
        shown if isinstance(action, EFFECTS) else replace(shown, outcome=DONE)
        for action in decision.actions
        for shown in (decided(action, names),)
    )


async def bump(
    conn: AsyncConnection,
    repeated: Sequence[tuple[int, int, datetime]],
    tried_again: Mapping[int, tuple[DecidedAction, ...]] = MappingProxyType({}),
) -> None:
    """Writes of decisions made again (id, how many more times, last time) how often and when. Wakes nobody.

    `tried_again`: the actions of those, by id, whose effects are about to be tried once more; what came of the last try
    is not what comes of this one.
    """
    if repeated:
        # In the order of their ids, as outcomes are.
        await conn.execute(
            BUMP,
            [
                {
                    "at": id_,
                    "times": count,
                    "seen": last_at,
                    "anew": encode(tried_again[id_]) if id_ in tried_again else None,
                }
                for id_, count, last_at in sorted(repeated)
            ],
        )


async def record_outcomes(conn: AsyncConnection, came: Sequence[tuple[int, int, str]]) -> None:
    """Writes what came of actions (decision's id, the action's place in it, `done` or the error in one sentence). A log
    row that is gone is no error."""
    if came:
        # In the order of their ids: of two who write to the same rows at once, one waits for the other.
        await conn.execute(
            RECORD_OUTCOME,
            [
                {"at": id_, "path": [str(index), "outcome"], "outcome": outcome}
                for id_, index, outcome in sorted(came)
            ],
        )
        await conn.execute(NOTIFY_DECIDED, {"ids": [id_ for id_, _, _ in came]})


async def list_page(
    conn: AsyncConnection,
    *,
    deployment: str = "",
    replica: str = "",
    before_id: int | None = None,
    limit: int,
) -> tuple[DecisionRecord, ...]:
    """At most `limit` decisions, newest first, with ids below `before_id`.

    An empty `deployment` means all, and an empty `replica` all of the deployment's.
    """
    statement = _about(LIST, deployment, replica).limit(limit)
    if before_id is not None:
        statement = statement.where(decisions.c.id < before_id)
    return tuple(rows.decision(row) for row in await conn.execute(statement))


async def after(
    conn: AsyncConnection, id_: int, *, deployment: str = "", replica: str = "", limit: int
) -> tuple[DecisionRecord, ...]:
    """At most `limit` decisions with greater ids, oldest first. Only the leader writes, one transaction after
    another, so no smaller id can appear later."""
    statement = _about(AFTER, deployment, replica).limit(limit)
    return tuple(rows.decision(row) for row in await conn.execute(statement, {"last": id_}))


async def last_id(conn: AsyncConnection) -> int:
    """The newest decision's id, 0 if there is none: where a watcher of new ones begins."""
    newest: int = (await conn.execute(LAST_ID)).scalar_one()
    return newest


async def newest_per_subject(conn: AsyncConnection) -> Mapping[tuple[str, str], DecisionRecord]:
    """The newest decision about each subject that is there, so that a restarted controller goes on counting."""
    found = [rows.decision(row) for row in await conn.execute(NEWEST_PER_SUBJECT)]
    return {record.subject: record for record in found}


async def prune(
    conn: AsyncConnection,
    before: datetime,
    *,
    keep_per_subject: int = KEPT_PER_SUBJECT,
    batch: int = PRUNE_BATCH,
) -> int:
    """Forgets at most `batch` decisions last made before this time, but the newest of each subject that is still there.

    Returns how many; fewer than `batch`: there are no more.
    """
    given = {"before": before, "keep": keep_per_subject, "batch": batch}
    return (await conn.execute(PRUNE, given)).rowcount


def _about(statement: Select[Any], deployment: str, replica: str) -> Select[Any]:
    if deployment:
        statement = statement.where(decisions.c.deployment == deployment)
    return statement.where(decisions.c.replica == replica) if replica else statement
