"""Earlier specs of a deployment, for going back to one. Knows the store and core, not the protos."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.contract import quoted
from penstock.core.changes import needs_revision
from penstock.core.model import Deployment, Revision, RevisionEvent, RevisionEventType
from penstock.core.sentences import ranges
from penstock.rpc.refusals import Refused
from penstock.store.errors import NotFound
from penstock.store.queries import revision_events, revisions


async def previous(conn: AsyncConnection, deployment: Deployment) -> int:
    """The number of the newest revision that can be gone back to: one whose spec is another than the current one's, and
    whose rollout did not fail. Raises Refused when there is none."""
    earlier = await revisions.list_page(
        conn, deployment.uid, before_number=deployment.revision, limit=revisions.REVISIONS_KEPT
    )
    others = [one.number for one in earlier if needs_revision(deployment.spec, one.spec)]
    events = await revision_events.of(conn, deployment.uid, others)
    failed = {number for number in others if _failed(events.get(number, ()))}
    if found := next((number for number in others if number not in failed), 0):
        return found
    but = f", but those that failed: {ranges(failed)}" if failed else ""
    raise Refused(
        grpc.StatusCode.FAILED_PRECONDITION,
        f"deployment {quoted(deployment.name)} has no revision before its current one, {deployment.revision},"
        f" with another spec than that{but}",
    )


def _failed(events: Sequence[RevisionEvent]) -> bool:
    """Whether its rollout failed, and did not succeed since."""
    ends = [one.type for one in events if one.type in (RevisionEventType.COMPLETED, RevisionEventType.FAILED)]
    return ends[-1:] == [RevisionEventType.FAILED]


async def revision(conn: AsyncConnection, deployment: Deployment, number: int) -> Revision:
    """Raises Refused, and says which there are."""
    try:
        return await revisions.get(conn, deployment.uid, number)
    except NotFound:
        # The stable one, and those that replicas run, are kept beside the newest.
        kept = await revisions.list_page(conn, deployment.uid, limit=2 * revisions.REVISIONS_KEPT)
        raise Refused(
            grpc.StatusCode.NOT_FOUND,
            f"deployment {quoted(deployment.name)} has no revision {number};"
            f" it has {ranges(one.number for one in kept)}",
        ) from None
