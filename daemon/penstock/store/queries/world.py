"""The planner's half of the observation: everything, in a constant number of statements however much there is.

Ten thousand rows take a second to fetch and decode, and from one tick to the next few of them change. So a
`Reader` asks for the rows' versions first and reads again only those that changed. A version is the row's xmin, the
transaction that wrote it; what is remembered is dropped when the server was started anew, because a server that was
restored from a backup gives the same transactions to other contents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Generic, TypeVar

from sqlalchemy import Select, bindparam, func, literal_column, select, true
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import DateTime, Text

from penstock.core.model import Deployment, Replica
from penstock.store.queries import replicas, rows
from penstock.store.records import World
from penstock.store.tables import attempts, deployments
from penstock.store.tables import replicas as replicas_table

T = TypeVar("T")

_uids = func.any(bindparam("uids", type_=ARRAY(Text)))
_newest = (
    select(literal_column("attempts.number || ' ' || attempts.xmin", Text).label("version"))
    .select_from(attempts)
    .where(attempts.c.replica_uid == replicas_table.c.uid)
    .order_by(attempts.c.number.desc())
    .limit(1)
    .lateral("newest_version")
)
SERVER_STARTED = select(func.pg_postmaster_start_time(type_=DateTime(timezone=True)))
DEPLOYMENT_VERSIONS = select(
    deployments.c.uid, literal_column("deployments.xmin::text", Text).label("version")
).order_by(deployments.c.name)
REPLICA_VERSIONS = (
    select(
        replicas_table.c.uid,
        (literal_column("replicas.xmin || ' '", Text) + func.coalesce(_newest.c.version, "")).label(
            "version"
        ),
    )
    .select_from(replicas_table.join(deployments).outerjoin(_newest, true()))
    .where(replicas_table.c.removed_at.is_(None))
    .order_by(deployments.c.name, replicas_table.c.number)
)
DEPLOYMENTS = select(*rows.DEPLOYMENT).where(deployments.c.uid == _uids)
REPLICAS = replicas.SELECT.where(replicas_table.c.uid == _uids)
ENDED_TOKENS = select(attempts.c.token).where(
    attempts.c.token == func.any(bindparam("tokens", type_=ARRAY(Text))), attempts.c.ended_at.is_not(None)
)


class _Remembered(Generic[T]):
    """The objects of one kind as they were last read, and their versions."""

    def __init__(
        self, versions: Select[Any], whole: Select[Any], read: Callable[[Any], T], uid: Callable[[T], str]
    ) -> None:
        self._versions, self._whole, self._read, self._uid = versions, whole, read, uid
        self._objects: dict[str, tuple[str, T]] = {}

    def forget(self) -> None:
        self._objects = {}

    async def load(self, conn: AsyncConnection) -> tuple[T, ...]:
        current = [(uid, version) for uid, version in await conn.execute(self._versions)]
        known = self._objects
        changed = {uid: version for uid, version in current if uid not in known or known[uid][0] != version}
        fresh: dict[str, tuple[str, T]] = {}
        if changed:
            for row in await conn.execute(self._whole, {"uids": list(changed)}):
                value = self._read(row)
                fresh[self._uid(value)] = changed[self._uid(value)], value
        # What is gone is forgotten with this.
        self._objects = {uid: fresh[uid] if uid in fresh else known[uid] for uid, _ in current}
        return tuple(value for _, value in self._objects.values())


class Reader:
    """Reads the world again and again. One instance is one caller's: calls must not overlap."""

    def __init__(self) -> None:
        self._server_started: datetime | None = None
        self._deployments = _Remembered[Deployment](
            DEPLOYMENT_VERSIONS, DEPLOYMENTS, rows.deployment, lambda deployment: deployment.uid
        )
        self._replicas = _Remembered[Replica](
            REPLICA_VERSIONS, REPLICAS, rows.replica_with_attempt, lambda replica: replica.uid
        )

    async def load(self, conn: AsyncConnection) -> World:
        """All deployments by name, and all replicas that are not removed by deployment and number.

        Give it a connection of `Database.snapshot`, so that both, and their versions, are of one instant.
        """
        started = (await conn.execute(SERVER_STARTED)).scalar_one()
        if started != self._server_started:
            self._deployments.forget()
            self._replicas.forget()
            self._server_started = started
        return World(await self._deployments.load(conn), await self._replicas.load(conn))


async def load(conn: AsyncConnection) -> World:
    """The world as a new Reader reads it."""
    return await Reader().load(conn)


async def ended_tokens(conn: AsyncConnection, tokens: Iterable[str]) -> frozenset[str]:
    """Those of `tokens` that belong to attempts of ours that have ended."""
    return frozenset((await conn.execute(ENDED_TOKENS, {"tokens": list(tokens)})).scalars())
