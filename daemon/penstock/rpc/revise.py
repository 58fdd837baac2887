"""A new revision made of what is there: a restart is the same spec again, a rollback an earlier one.

Somebody else may write between the look and the write; then it is looked at again, for who asked named no version.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

import grpc
from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.contract import quoted
from penstock.core.canary import is_canary, is_past_canary
from penstock.core.changes import needs_revision, with_count_and_policies_of
from penstock.core.model import Deployment, RevisionEventType
from penstock.core.spec import Spec
from penstock.rpc import history
from penstock.rpc.refusals import Refused
from penstock.store.database import Database
from penstock.store.errors import VersionConflict
from penstock.store.queries import deployments, revision_events


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be the next revision, and why."""

    spec: Spec
    cause: str
    proven: bool = False
    """It needs no canary."""
    undoes: bool = False
    """It takes the current one back."""


LOST_RACES = 5
"""How often a change that asks for no version looks again because somebody wrote in between."""


async def restart(db: Database, name: str, now: datetime, *, author: str = "", cause: str = "") -> None:
    """A revision that differs in nothing but its number: the rollout does the rest. Raises what `get` raises."""

    async def same(_: AsyncConnection, found: Deployment) -> Wish:
        return Wish(found.spec, cause or "restart", proven=is_past_canary(found))

    await _revise(db, name, now, author, same)


async def roll_back(
    db: Database, name: str, number: int, now: datetime, *, author: str = "", cause: str = ""
) -> Deployment | None:
    """The spec of an earlier revision, 0 for the one before. None: it is the current one's. Raises NotFound, Refused.

    Whoever goes back to what was good once wants it at once: it is no canary, whatever the strategy.
    """

    async def earlier(conn: AsyncConnection, found: Deployment) -> Wish | None:
        wanted = await history.revision(conn, found, number or await history.previous(conn, found))
        spec = with_count_and_policies_of(found.spec, wanted.spec)
        if not needs_revision(found.spec, spec):
            return None  # The same call may have been made before.
        why = f"rollback to revision {wanted.number}" + (f": {cause}" if cause else "")
        return Wish(spec, why, proven=wanted.proven, undoes=True)

    return await _revise(db, name, now, author, earlier)


async def promote(
    db: Database, name: str, number: int, now: datetime, *, author: str = "", cause: str = ""
) -> Deployment:
    """The canary of revision `number`, 0 for the current one, is promoted. Raises NotFound, and Refused where that
    revision has no canary."""
    async with db.transaction() as conn:
        found = await deployments.get(conn, name)
        wanted = number or found.revision
        if wanted == found.revision <= found.promoted_revision and await _was_promoted(conn, found, wanted):
            return found
        if wanted != found.revision:
            why = f"revision {wanted} is not its current one, {found.revision}"
        elif found.rollout.failed_revision == wanted:
            why = f"revision {wanted} has failed: {found.rollout.failed_message}"
        elif found.rollout.stable_revision in (0, wanted):
            why = f"nothing is rolled out; revision {wanted} is all there is"
        elif not is_canary(found):
            why = f"revision {wanted} is rolled out to all replicas already"
        else:
            return await deployments.promote(conn, name, wanted, now, author=author, cause=cause)
        message = f"deployment {quoted(name)} has no canary to promote: {why}"
        raise Refused(grpc.StatusCode.FAILED_PRECONDITION, message)


async def _was_promoted(conn: AsyncConnection, found: Deployment, number: int) -> bool:
    """Whether somebody promoted it; what ran everywhere before counts as promoted, too, and nobody did that."""
    events = (await revision_events.of(conn, found.uid, [number])).get(number, ())
    return any(event.type is RevisionEventType.PROMOTED for event in events)


async def _revise(
    db: Database,
    name: str,
    now: datetime,
    author: str,
    choose: Callable[[AsyncConnection, Deployment], Awaitable[Wish | None]],
) -> Deployment | None:
    """The deployment with a revision of what `choose` makes of it as it is; None where none is needed."""
    for tried in range(LOST_RACES):
        try:
            async with db.transaction() as conn:
                found = await deployments.get(conn, name)
                wish = await choose(conn, found)
                if wish is None:
                    return None
                made = await deployments.update_spec(
                    conn,
                    name,
                    wish.spec,
                    None,
                    now,
                    new_revision=True,
                    expected_version=found.resource_version,
                    author=author,
                    cause=wish.cause,
                    proven=wish.proven,
                )
                if wish.undoes:
                    undone, why = RevisionEventType.UNDONE, wish.cause
                    await revision_events.insert(
                        conn, found.uid, found.revision, undone, now, author=author, cause=why
                    )
                return made
        except VersionConflict:
            if tried == LOST_RACES - 1:
                raise
    raise AssertionError("the last try returns or raises")
