"""Revisions: what a deployment's spec was. Written once, bounded in number, and never changed but for the adapters of
the current one, which running replicas follow."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, func, literal_column, or_, select, update
from sqlalchemy import insert as insert_into
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.core.model import Deployment, Revision
from penstock.core.spec import Adapter, Spec
from penstock.store.documents import decode, encode
from penstock.store.errors import NotFound
from penstock.store.queries import rows
from penstock.store.tables import AUTHOR_MAX, CAUSE_MAX, deployments, replicas, revisions

REVISIONS_KEPT = 100
"""A deployment's newest; an older one goes unless a replica that is still there bears it, or it is the stable one.
Enough to go back by hand to any that is remembered."""
INSERT = insert_into(revisions)
_stable = (
    select(func.coalesce(deployments.c.rollout["stable_revision"].as_integer(), 0))
    .where(deployments.c.uid == bindparam("uid"))
    .scalar_subquery()
)
# A spec that is edited each second leaves a removed replica with each revision, and each would keep its revision.
PRUNE_REPLICAS = delete(replicas).where(
    replicas.c.deployment_uid == bindparam("uid"),
    replicas.c.revision <= bindparam("last"),
    replicas.c.revision != _stable,
    replicas.c.removed_at.is_not(None),
)
PRUNE = delete(revisions).where(
    revisions.c.deployment_uid == bindparam("uid"),
    revisions.c.number <= bindparam("last"),
    revisions.c.number != _stable,
    ~select(replicas.c.uid)
    .where(replicas.c.deployment_uid == revisions.c.deployment_uid, replicas.c.revision == revisions.c.number)
    .exists(),
)
GET = select(*rows.REVISION).where(
    revisions.c.deployment_uid == bindparam("uid"), revisions.c.number == bindparam("number")
)
_stays = (replicas.c.removed_at.is_(None), ~replicas.c.leaving)
IN_USE = select(revisions.c.number, revisions.c.spec).where(
    revisions.c.deployment_uid == bindparam("uid"),
    or_(
        revisions.c.number.in_(bindparam("known", expanding=True)),
        revisions.c.number.in_(
            select(replicas.c.revision).where(replicas.c.deployment_uid == bindparam("uid"), *_stays)
        ),
    ),
)
ADOPT = (
    update(replicas)
    .where(
        replicas.c.deployment_uid == bindparam("of"),
        replicas.c.revision.in_(bindparam("numbers", expanding=True)),
        *_stays,
    )
    .values(revision=bindparam("to"))
)
PROVE = (
    update(revisions)
    .where(
        revisions.c.deployment_uid == bindparam("of"),
        revisions.c.number == bindparam("at"),
        revisions.c.proven != bindparam("is"),
    )
    .values(proven=bindparam("is"))
)
SET_ADAPTERS = (
    update(revisions)
    .where(revisions.c.deployment_uid == bindparam("of"), revisions.c.number == bindparam("at"))
    .values(
        spec=func.jsonb_set(
            revisions.c.spec, literal_column("'{model,adapters}'"), bindparam("wanted", type_=JSONB)
        )
    )
)
LIST = (
    select(*rows.REVISION)
    .where(revisions.c.deployment_uid == bindparam("uid"))
    .order_by(revisions.c.number.desc())
    .limit(bindparam("count"))
)


async def insert(
    conn: AsyncConnection,
    deployment_uid: str,
    number: int,
    document: Any,
    now: datetime,
    *,
    author: str = "",
    cause: str = "",
    proven: bool = False,
) -> None:
    """Adds a revision, whose spec is given as its document, and lets the oldest go with their removed replicas."""
    values = {"deployment_uid": deployment_uid, "number": number, "spec": document, "created_at": now}
    values |= {"author": author[:AUTHOR_MAX], "cause": cause[:CAUSE_MAX], "proven": proven}
    await conn.execute(INSERT, values)
    if number > REVISIONS_KEPT:
        oldest = {"uid": deployment_uid, "last": number - REVISIONS_KEPT}
        await conn.execute(PRUNE_REPLICAS, oldest)
        await conn.execute(PRUNE, oldest)


async def in_use(conn: AsyncConnection, deployment: Deployment) -> Mapping[int, Spec]:
    """The specs of its stable revision, of its trusted ones, and of those that replicas run which stay, by number."""
    record = deployment.rollout
    known = [record.stable_revision, *record.trusted_revisions]
    found = await conn.execute(IN_USE, {"uid": deployment.uid, "known": known})
    return {row.number: decode(Spec, row.spec) for row in found}


async def adopt(conn: AsyncConnection, deployment_uid: str, number: int, adopted: Collection[int]) -> None:
    """Gives the replicas of the revisions in `adopted` that stay to revision `number`."""
    if adopted:
        await conn.execute(ADOPT, {"of": deployment_uid, "to": number, "numbers": sorted(adopted)})


async def mark_proven(conn: AsyncConnection, deployment_uid: str, number: int, proven: bool = True) -> None:
    """Remembers whether going back to this revision needs a canary; nothing for one that is not there any more."""
    await conn.execute(PROVE, {"of": deployment_uid, "at": number, "is": proven})


async def set_adapters(
    conn: AsyncConnection, deployment_uid: str, number: int, adapters: Sequence[Adapter]
) -> None:
    """Writes which adapters the revision has by now: they change without another one being made."""
    await conn.execute(SET_ADAPTERS, {"of": deployment_uid, "at": number, "wanted": encode(tuple(adapters))})


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
