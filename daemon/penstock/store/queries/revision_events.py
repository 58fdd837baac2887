"""What was done about revisions, and what became of them: who, when and why. They go with their revision.

Written by whoever makes the change, in the same transaction, so that neither is there without the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import DateTime, Text, bindparam, delete, select
from sqlalchemy import insert as insert_into
from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.core.model import RevisionEvent, RevisionEventType
from penstock.store.tables import AUTHOR_MAX, CAUSE_MAX, revision_events, revisions

EVENTS_KEPT = 50
"""A revision's newest: many times what people do about one, and a script that pauses and resumes fills no table."""

INSERT = insert_into(revision_events).from_select(
    ["deployment_uid", "revision", "type", "at", "author", "cause"],
    select(
        revisions.c.deployment_uid,
        revisions.c.number,
        bindparam("type", type_=Text),
        bindparam("now", type_=DateTime(timezone=True)),
        bindparam("author", type_=Text),
        bindparam("cause", type_=Text),
    ).where(revisions.c.deployment_uid == bindparam("uid"), revisions.c.number == bindparam("of")),
)
_mine = (
    revision_events.c.deployment_uid == bindparam("uid"),
    revision_events.c.revision == bindparam("of"),
)
PRUNE = delete(revision_events).where(
    *_mine,
    revision_events.c.id
    <= select(revision_events.c.id)
    .where(*_mine)
    .order_by(revision_events.c.id.desc())
    .offset(bindparam("keep"))
    .limit(1)
    .scalar_subquery(),
)
OF = (
    select(
        revision_events.c.revision,
        revision_events.c.type,
        revision_events.c.at,
        revision_events.c.author,
        revision_events.c.cause,
    )
    .where(
        revision_events.c.deployment_uid == bindparam("uid"),
        revision_events.c.revision.in_(bindparam("numbers", expanding=True)),
    )
    .order_by(revision_events.c.id)
)


async def insert(
    conn: AsyncConnection,
    deployment_uid: str,
    revision: int,
    kind: RevisionEventType,
    now: datetime,
    *,
    author: str,
    cause: str,
) -> None:
    """Adds a line to a revision's history, and lets the oldest go; nothing for one that is not there any more."""
    its = {"uid": deployment_uid, "of": revision}
    words = {"author": author[:AUTHOR_MAX], "cause": cause[:CAUSE_MAX]}
    await conn.execute(INSERT, {**its, **words, "type": kind.value, "now": now})
    await conn.execute(PRUNE, {**its, "keep": EVENTS_KEPT})


async def of(
    conn: AsyncConnection, deployment_uid: str, revisions: Sequence[int]
) -> Mapping[int, tuple[RevisionEvent, ...]]:
    """The events of these revisions, of each the oldest first; nothing for a revision without any."""
    found: dict[int, tuple[RevisionEvent, ...]] = {}
    for row in await conn.execute(OF, {"uid": deployment_uid, "numbers": list(revisions)}):
        event = RevisionEvent(RevisionEventType(row.type), row.at, row.author, row.cause)
        found[row.revision] = (*found.get(row.revision, ()), event)
    return found
