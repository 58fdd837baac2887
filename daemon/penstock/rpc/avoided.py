"""Which nodes new replicas stay away from, for whoever looks at the cluster. Knows no protos."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.core.budget import WINDOW
from penstock.core.model import Failure
from penstock.core.suspects import suspects
from penstock.slurm.parse import known_nodes, parse_state
from penstock.store.database import Database, is_outage
from penstock.store.queries import attempts


async def recent_failures(conn: AsyncConnection, now: datetime) -> tuple[Failure, ...]:
    """The last hour's, as the planner reads them."""
    return tuple(
        Failure(
            one.deployment,
            one.revision,
            one.replica,
            one.ended_at,
            parse_state(one.state) if one.state else None,
            known_nodes(one.nodes),
        )
        for one in await attempts.failures(conn, now - WINDOW)
    )


async def avoided_nodes(db: Database, now: datetime) -> Mapping[str, str]:
    """Nodes under suspicion, each with its sentence; none are told of while the database does not answer."""
    try:
        async with db.snapshot() as conn:
            failures = await recent_failures(conn, now)
    except Exception as error:
        if not is_outage(error):
            raise
        return {}
    return {suspect.node: suspect.sentence(now) for suspect in suspects(failures, now)}
