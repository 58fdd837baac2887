"""How a deployment is, in one sentence: what `why` begins with, and what a client hears whom nobody can serve now."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.core.conditions import summary
from penstock.core.model import Deployment, Replica
from penstock.core.prospect import Prospect, adapter_prospect, prospect
from penstock.store.database import Database
from penstock.store.queries import attempts, deployments, replicas

MAX_REPLICAS = 10_000
"""As many as a deployment may have."""


async def prospect_of(db: Database, name: str, adapter: str, now: datetime) -> Prospect:
    """How a deployment is, or (not empty) an adapter of it, and whether waiting makes sense. Raises NotFound."""
    async with db.snapshot() as conn:
        deployment, found = await whole(conn, name)
        starts = (await attempts.starts(conn, deployment.uid)).get(deployment.uid, ())
    if adapter:
        return adapter_prospect(deployment, found, adapter, now, starts)
    return prospect(deployment, found, now, starts)


async def whole(conn: AsyncConnection, name: str) -> tuple[Deployment, tuple[Replica, ...]]:
    """The deployment with its replicas. Raises NotFound."""
    deployment = await deployments.get(conn, name)
    return deployment, await replicas.list_page(conn, deployment=name, limit=MAX_REPLICAS)


def sentence(deployment: Deployment, found: Sequence[Replica]) -> str:
    """The sentence, from what `whole` gives."""
    return summary(deployment, [(replica.state, replica.message) for replica in found])
