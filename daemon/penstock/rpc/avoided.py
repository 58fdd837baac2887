"""Which nodes new replicas stay away from, for whoever looks at the cluster. Knows no protos."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from penstock.core.budget import WINDOW
from penstock.core.suspects import suspects
from penstock.store.database import Database, is_outage
from penstock.store.queries import attempts


async def avoided_nodes(db: Database, now: datetime) -> Mapping[str, str]:
    """Nodes under suspicion, each with its sentence; none are told of while the database does not answer."""
    try:
        async with db.snapshot() as conn:
            failures = await attempts.failures(conn, now - WINDOW)
    except Exception as error:
        if not is_outage(error):
            raise
        return {}
    return {suspect.node: suspect.sentence(now) for suspect in suspects(failures, now)}
