"""Deployments. Each change of the spec is a generation; each write of the row, the status included, a resource version.

The rule guarded here: a writer who read an older version and says so is refused, and nothing is half-written.
"""

from __future__ import annotations

import dataclasses
import secrets
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, column, delete, func, not_, or_, select, update
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import BigInteger, Text

from penstock.core.changes import change_of, with_count_and_policies_of
from penstock.core.model import Deployment, RevisionEventType, RolloutRecord
from penstock.core.plan import DeploymentStatus
from penstock.core.spec import Spec
from penstock.store.documents import encode
from penstock.store.errors import BeingDeleted, NameTaken, NotFound, ServedNameTaken, VersionConflict
from penstock.store.filters import Match, Term
from penstock.store.queries import notify, revision_events, revisions, rows
from penstock.store.tables import attempts, deployments, model_names, replicas

PENSTOCK = "penstock"
"""The author of what the controller does by itself."""

INSERT = (
    insert(deployments)
    .on_conflict_do_nothing(index_elements=[deployments.c.name])
    .returning(*rows.DEPLOYMENT)
)
GET = select(*rows.DEPLOYMENT).where(deployments.c.name == bindparam("name"))
GET_FOR_UPDATE = GET.with_for_update()
LIST = select(*rows.DEPLOYMENT).order_by(deployments.c.name)
_PAUSES = {
    (False, True): RevisionEventType.PAUSED,
    (False, False): RevisionEventType.RESUMED,
    (True, True): RevisionEventType.ROLLOUTS_PAUSED,
    (True, False): RevisionEventType.ROLLOUTS_RESUMED,
}
"""By whether only the rollouts, and whether they stand still."""

UPDATE = update(deployments).where(deployments.c.uid == bindparam("at")).returning(*rows.DEPLOYMENT)
_given = (
    func.unnest(
        bindparam("uids", type_=ARRAY(Text)),
        bindparam("generations", type_=ARRAY(BigInteger)),
        bindparam("facts", type_=ARRAY(JSONB, dimensions=1)),
    )
    .table_valued(column("uid", Text), column("generation", BigInteger), column("facts", JSONB))
    .render_derived(name="given")
)
WRITE_STATUS = (
    update(deployments)
    .where(
        deployments.c.uid == _given.c.uid,
        or_(
            deployments.c.observed_generation != _given.c.generation,
            deployments.c.conditions != _given.c.facts,
        ),
    )
    .values(
        # A deployment changed since the controller looked keeps the generation that was looked at, not a later one.
        observed_generation=func.least(_given.c.generation, deployments.c.generation),
        conditions=_given.c.facts,
    )
    .returning(deployments.c.name)
)
GET_BY_UID_FOR_UPDATE = (
    select(*rows.DEPLOYMENT).where(deployments.c.uid == bindparam("uid")).with_for_update()
)
REMOVE = (
    delete(deployments)
    .where(
        deployments.c.uid == bindparam("uid"),
        ~select(attempts.c.token)
        .join(replicas, replicas.c.uid == attempts.c.replica_uid)
        .where(replicas.c.deployment_uid == deployments.c.uid, attempts.c.ended_at.is_(None))
        .exists(),
    )
    .returning(deployments.c.name)
)

CLAIM_MODEL_NAME = insert(model_names).on_conflict_do_nothing()
MODEL_NAME_HOLDER = (
    select(deployments.c.name, deployments.c.uid)
    .join(model_names)
    .where(model_names.c.name == bindparam("name"))
)
FREE_MODEL_NAMES = delete(model_names).where(
    model_names.c.deployment_uid == bindparam("uid"),
    model_names.c.name.not_in(bindparam("wanted", expanding=True)),
)


async def create(
    conn: AsyncConnection,
    name: str,
    labels: Mapping[str, str],
    spec: Spec,
    now: datetime,
    *,
    author: str = "",
    cause: str = "",
) -> Deployment:
    """A new deployment and its revision 1. Raises NameTaken, ServedNameTaken."""
    document = encode(spec)
    uid = str(uuid.uuid4())
    row = (
        await conn.execute(
            INSERT,
            {
                "uid": uid,
                "name": name,
                "labels": dict(labels),
                "spec": document,
                "secret": secrets.token_urlsafe(32),
                "created_at": now,
            },
        )
    ).one_or_none()
    if row is None:
        raise NameTaken(name, name)
    created = rows.deployment(row)
    await _claim_model_names(conn, created)
    await revisions.insert(conn, uid, 1, document, now, author=author, cause=cause)
    await notify.changed(conn, name)
    return created


async def update_spec(
    conn: AsyncConnection,
    name: str,
    spec: Spec,
    labels: Mapping[str, str] | None,
    now: datetime,
    *,
    new_revision: bool,
    expected_version: int | None,
    author: str = "",
    cause: str = "",
    proven: bool = False,
) -> Deployment:
    """The deployment with this spec and these labels (None: as they are).

    `new_revision`: `spec` becomes a revision of its own even when nothing in it differs, which is how a
    restart is written. Replicas that run just this spec already, of an earlier revision, then belong to the new one.
    `proven`: that revision needs no canary, because its spec had one, or ran everywhere, before.
    Without it a spec that differs is a new generation of the same revision, and one that has failed is tried again
    where its progress deadline or its restart policy differs. Nothing different: nothing is written.

    Raises NotFound, VersionConflict, BeingDeleted, ServedNameTaken.
    """
    old = await _get_to_change(conn, name, expected_version)
    document = encode(spec)
    values: dict[str, Any] = {}
    if labels is not None and dict(labels) != dict(old.labels):
        values["labels"] = dict(labels)
    if new_revision:
        values |= await _revise(conn, old, spec, now, author=author, cause=cause, proven=proven)
    if new_revision or document != encode(old.spec):
        values |= {"spec": document, "generation": old.generation + 1}
    if not new_revision and spec.model.adapters != old.spec.model.adapters:
        await revisions.set_adapters(conn, old.uid, old.revision, spec.model.adapters)
    if (
        not new_revision
        and (record := change_of(old, spec, {}, new_revision=False).after.rollout) != old.rollout
    ):
        values["rollout"] = encode(record)
    if not values:
        return old
    changed = await _update(conn, old, values)
    await _rename_model(conn, old, changed)
    return changed


async def scale(
    conn: AsyncConnection, name: str, count: int, now: datetime, *, expected_version: int | None = None
) -> Deployment:
    """The deployment with this number of replicas wanted; no new revision. Raises as `update_spec`."""
    old = await _get_to_change(conn, name, expected_version)
    spec = dataclasses.replace(old.spec, replicas=count)
    return await update_spec(conn, name, spec, None, now, new_revision=False, expected_version=None)


async def set_paused(
    conn: AsyncConnection,
    name: str,
    paused: bool,
    now: datetime,
    *,
    rollout_only: bool = False,
    author: str = "",
    cause: str = "",
) -> Deployment:
    """It stands still, or only its rollouts do, or it goes on. Raises NotFound, BeingDeleted."""
    old = await _get_to_change(conn, name, None)
    if paused == (old.rollout_paused if rollout_only else old.paused):
        return old
    kind = _PAUSES[rollout_only, paused]
    await revision_events.insert(conn, old.uid, old.revision, kind, now, author=author, cause=cause)
    return await _update(conn, old, {"rollout_paused" if rollout_only else "paused": paused})


async def promote(
    conn: AsyncConnection, name: str, revision: int, now: datetime, *, author: str = "", cause: str = ""
) -> Deployment:
    """The canary of this revision, and of those before, is promoted. Raises NotFound, BeingDeleted."""
    old = await _get_to_change(conn, name, None)
    if old.promoted_revision >= revision:
        return old
    kind = RevisionEventType.PROMOTED
    await revision_events.insert(conn, old.uid, revision, kind, now, author=author, cause=cause)
    await revisions.mark_proven(conn, old.uid, revision)
    return await _update(conn, old, {"promoted_revision": revision})


async def record_rollout(conn: AsyncConnection, uid: str, record: RolloutRecord, now: datetime) -> None:
    """Writes what the controller remembers of the deployment's rollouts, and what became of a revision by it."""
    row = (await conn.execute(GET_BY_UID_FOR_UPDATE, {"uid": uid})).one_or_none()
    if row is not None:
        old = rows.deployment(row)
        await _remember(conn, old, record, now)
        await _update(conn, old, {"rollout": encode(record)})


async def go_back(
    conn: AsyncConnection,
    uid: str,
    revision: int,
    to: int,
    *,
    rollout: RolloutRecord,
    cause: str,
    now: datetime,
) -> bool:
    """Makes the spec of revision `to` a new revision, with this record. False if `revision` is not the current one any
    more (somebody wants something else by now), or if that cannot be: the name that clients put into `model` changed
    between the two and is another deployment's now. Then the record says so, for nobody else would, and it is not tried
    again."""
    row = (await conn.execute(GET_BY_UID_FOR_UPDATE, {"uid": uid})).one_or_none()
    if row is None or row.revision != revision or row.deleted_at is not None:
        return False
    old = rows.deployment(row)
    try:
        async with conn.begin_nested():
            spec = with_count_and_policies_of(old.spec, (await revisions.get(conn, uid, to)).spec)
            values = await _revise(conn, old, spec, now, author=PENSTOCK, cause=cause, proven=True)
            values |= {"spec": encode(spec), "generation": old.generation + 1, "rollout": encode(rollout)}
            await _rename_model(conn, old, await _update(conn, old, values))
            # That the new revision is the stable one from its first day is no news of it.
            await _remember(conn, old, dataclasses.replace(rollout, stable_revision=to), now)
            undone, why = RevisionEventType.UNDONE, f"rolled back by itself to revision {to}"
            await revision_events.insert(conn, uid, revision, undone, now, author=PENSTOCK, cause=why)
    except (ServedNameTaken, NotFound) as error:
        message = f"{rollout.failed_message}; it cannot go back to revision {to}: {error}"
        stays = dataclasses.replace(
            rollout, stable_revision=to, failed_message=message, cannot_go_back=revision
        )
        await record_rollout(conn, uid, stays, now)
        return False
    return True


async def mark_deleted(
    conn: AsyncConnection, name: str, force: bool, now: datetime, *, expected_version: int | None = None
) -> Deployment:
    """The deployment marked for deletion. Again: the time stays; `force` may still be added, not taken back.

    Raises NotFound, VersionConflict.
    """
    old = await _lock(conn, name, expected_version)
    values: dict[str, Any] = {}
    if old.deleted_at is None:
        values |= {"deleted_at": now, "generation": old.generation + 1}
    if force and not old.force_delete:
        values["force_delete"] = True
    return await _update(conn, old, values) if values else old


async def get(conn: AsyncConnection, name: str) -> Deployment:
    """Raises NotFound."""
    row = (await conn.execute(GET, {"name": name})).one_or_none()
    if row is None:
        raise NotFound("deployment", name)
    return rows.deployment(row)


async def list_page(
    conn: AsyncConnection, *, after_name: str = "", limit: int, terms: Sequence[Term] = ()
) -> tuple[Deployment, ...]:
    """At most `limit` deployments by name, beginning behind `after_name`, for which all terms hold."""
    statement = LIST.where(deployments.c.name > after_name).limit(limit)
    for term in terms:
        match term.match:
            case Match.EQUAL:
                statement = statement.where(deployments.c.labels.contains({term.label: term.value}))
            case Match.NOT_EQUAL:
                statement = statement.where(not_(deployments.c.labels.contains({term.label: term.value})))
            case Match.SET:
                statement = statement.where(deployments.c.labels.has_key(term.label))
    return tuple(rows.deployment(row) for row in await conn.execute(statement))


async def write_status(conn: AsyncConnection, statuses: Sequence[DeploymentStatus]) -> int:
    """Writes what the controller says of deployments, those that differ, in one statement. Returns how many did."""
    if not statuses:
        return 0
    written = await conn.execute(
        WRITE_STATUS,
        {
            "uids": [status.deployment_uid for status in statuses],
            "generations": [status.observed_generation for status in statuses],
            "facts": [encode(status.conditions) for status in statuses],
        },
    )
    names = written.scalars().all()
    await notify.changed(conn, *names)
    return len(names)


async def remove(conn: AsyncConnection, uid: str) -> bool:
    """Removes the deployment and what hangs on it; its decisions stay. False, and nothing is removed, while
    an attempt is live."""
    name = (await conn.execute(REMOVE, {"uid": uid})).scalar_one_or_none()
    if name is None:
        return False
    await notify.changed(conn, name)
    return True


async def _lock(conn: AsyncConnection, name: str, expected_version: int | None) -> Deployment:
    """The deployment, locked until the transaction ends, so that nobody writes between this look and our write."""
    row = (await conn.execute(GET_FOR_UPDATE, {"name": name})).one_or_none()
    if row is None:
        raise NotFound("deployment", name)
    if expected_version is not None and row.resource_version != expected_version:
        raise VersionConflict(name, expected_version, row.resource_version)
    return rows.deployment(row)


async def _get_to_change(conn: AsyncConnection, name: str, expected_version: int | None) -> Deployment:
    found = await _lock(conn, name, expected_version)
    if found.deleted_at is not None:
        raise BeingDeleted(name)
    return found


async def _update(conn: AsyncConnection, old: Deployment, values: dict[str, Any]) -> Deployment:
    row = (await conn.execute(UPDATE.values(values), {"at": old.uid})).one()
    await notify.changed(conn, old.name)
    return rows.deployment(row)


async def _revise(
    conn: AsyncConnection,
    old: Deployment,
    spec: Spec,
    now: datetime,
    *,
    author: str,
    cause: str,
    proven: bool,
) -> dict[str, Any]:
    """Writes the next revision; returns what of the deployment changes with it."""
    change = change_of(old, spec, await revisions.in_use(conn, old), new_revision=True, proven=proven)
    number, promoted = change.after.revision, change.after.promoted_revision
    await revisions.insert(
        conn, old.uid, number, encode(spec), now, author=author, cause=cause, proven=promoted == number
    )
    await revisions.adopt(conn, old.uid, number, change.adopted)
    return {"revision": number, "promoted_revision": promoted}


async def _remember(conn: AsyncConnection, old: Deployment, record: RolloutRecord, now: datetime) -> None:
    """What the controller found out about a revision goes into its history."""
    baked, completed, failed = (
        RevisionEventType.PROMOTED,
        RevisionEventType.COMPLETED,
        RevisionEventType.FAILED,
    )
    was = old.rollout
    for kind, number, before, cause in (
        (baked, record.baked_revision, was.baked_revision, "its canary stood its bake time"),
        (completed, record.stable_revision, was.stable_revision, "all wanted replicas were ready"),
        (failed, record.failed_revision, was.failed_revision, record.failed_message),
    ):
        if number not in (0, before):
            await revision_events.insert(conn, old.uid, number, kind, now, author=PENSTOCK, cause=cause)
            await revisions.mark_proven(conn, old.uid, number, kind is not failed)


async def _rename_model(conn: AsyncConnection, old: Deployment, changed: Deployment) -> None:
    if set(changed.model_names) != set(old.model_names):
        await conn.execute(FREE_MODEL_NAMES, {"uid": old.uid, "wanted": sorted(changed.model_names)})
        await _claim_model_names(conn, changed)


async def _claim_model_names(conn: AsyncConnection, deployment: Deployment) -> None:
    # Sorted: two that claim the same names in different orders would wait for each other.
    for name in sorted(deployment.model_names):
        await conn.execute(CLAIM_MODEL_NAME, {"name": name, "deployment_uid": deployment.uid})
        holder = (await conn.execute(MODEL_NAME_HOLDER, {"name": name})).one()
        if holder.uid != deployment.uid:
            raise _taken(deployment, name, holder.name)


def _taken(deployment: Deployment, name: str, holder: str) -> NameTaken | ServedNameTaken:
    if name == deployment.name:
        return NameTaken(name, holder)
    adapters = [adapter.name for adapter in deployment.spec.model.adapters]
    if name in adapters:
        return ServedNameTaken(name, holder, f"spec.model.adapters[{adapters.index(name)}].name")
    return ServedNameTaken(name, holder)
