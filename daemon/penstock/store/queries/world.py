"""The planner's half of the observation: everything, in a constant number of statements however much there is."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import bindparam, func, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import Text

from penstock.store.queries import deployments, replicas, rows
from penstock.store.records import World
from penstock.store.tables import attempts
from penstock.store.tables import replicas as replicas_table

LOAD_DEPLOYMENTS = deployments.LIST
LOAD_REPLICAS = replicas.LIST.where(replicas_table.c.removed_at.is_(None))
ENDED_TOKENS = select(attempts.c.token).where(
    attempts.c.token == func.any(bindparam("tokens", type_=ARRAY(Text))), attempts.c.ended_at.is_not(None)
)


async def load(conn: AsyncConnection) -> World:
    """All deployments by name, and all replicas that are not removed by deployment and number.

    Give it a connection of `Database.snapshot`, so that both are of one instant.
    """
    found_deployments = await conn.execute(LOAD_DEPLOYMENTS)
    found_replicas = await conn.execute(LOAD_REPLICAS)
    return World(
        tuple(rows.deployment(row) for row in found_deployments),
        tuple(rows.replica_with_attempt(row) for row in found_replicas),
    )


async def ended_tokens(conn: AsyncConnection, tokens: Iterable[str]) -> frozenset[str]:
    """Those of `tokens` that belong to attempts of ours that have ended."""
    return frozenset((await conn.execute(ENDED_TOKENS, {"tokens": list(tokens)})).scalars())
