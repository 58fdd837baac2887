"""A new revision made of what is there: a restart is the same spec again, a rollback an earlier one.

Somebody else may write between the look and the write; then it is looked at again, for who asked named no version.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.core.model import Deployment
from penstock.core.spec import Spec
from penstock.rpc import history
from penstock.rpc.changes import with_count_and_policies_of
from penstock.store.database import Database
from penstock.store.errors import VersionConflict
from penstock.store.queries import deployments

LOST_RACES = 5
"""How often a change that asks for no version looks again because somebody wrote in between."""


async def restart(db: Database, name: str, now: datetime) -> Deployment:
    """A revision that differs in nothing but its number: the rollout does the rest. Raises what `get` raises."""

    async def same(_: AsyncConnection, found: Deployment) -> Spec:
        return found.spec

    return await _revise(db, name, now, same)


async def roll_back(db: Database, name: str, number: int, now: datetime) -> Deployment:
    """The spec of an earlier revision, 0 for the one before; what is so already stays as it is. Raises NotFound."""

    async def earlier(conn: AsyncConnection, found: Deployment) -> Spec | None:
        wanted = number or await history.previous(conn, found)
        if wanted == found.revision:
            return None  # The same call may have been made before.
        return with_count_and_policies_of(found.spec, await history.spec_of(conn, found, wanted))

    return await _revise(db, name, now, earlier)


async def _revise(
    db: Database,
    name: str,
    now: datetime,
    choose: Callable[[AsyncConnection, Deployment], Awaitable[Spec | None]],
) -> Deployment:
    """A revision of what `choose` makes of the deployment as it is; None: none is needed."""
    for tried in range(LOST_RACES):
        try:
            async with db.transaction() as conn:
                found = await deployments.get(conn, name)
                spec = await choose(conn, found)
                if spec is None:
                    return found
                version = found.resource_version
                return await deployments.update_spec(
                    conn, name, spec, None, now, new_revision=True, expected_version=version
                )
        except VersionConflict:
            if tried == LOST_RACES - 1:
                raise
    raise AssertionError("the last try returns or raises")
