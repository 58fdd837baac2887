"""Earlier specs of a deployment, for going back to one. Knows the store and core, not the protos."""

from __future__ import annotations

import grpc
from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.contract import quoted
from penstock.core.changes import needs_revision
from penstock.core.model import Deployment, Revision
from penstock.core.sentences import ranges
from penstock.rpc.refusals import Refused
from penstock.store.errors import NotFound
from penstock.store.queries import revisions


async def previous(conn: AsyncConnection, deployment: Deployment) -> int:
    """The number of the newest revision that can be gone back to: one whose spec is another than the current one's, and
    whose rollout is not the one that failed last. Raises Refused when there is none."""
    failed = deployment.rollout.failed_revision
    for earlier in await revisions.list_page(
        conn, deployment.uid, before_number=deployment.revision, limit=revisions.REVISIONS_KEPT
    ):
        if earlier.number != failed and needs_revision(deployment.spec, earlier.spec):
            return earlier.number
    but = f" and than revision {failed}, which failed" if 0 < failed < deployment.revision else ""
    raise Refused(
        grpc.StatusCode.FAILED_PRECONDITION,
        f"deployment {quoted(deployment.name)} has no revision before its current one, {deployment.revision},"
        f" with another spec than that{but}",
    )


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
