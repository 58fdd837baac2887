"""The way to PostgreSQL: a bounded pool, transactions, and a listener that outlives restarts of the server.

What it does not know: any table. The rule guarded here: that the database does not answer is told apart from
bugs (`is_outage`), is waited for with a bound, and heals by itself; no caller keeps a connection across an
await that is not a query.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any

import psycopg
import sqlalchemy.exc
from sqlalchemy import URL, event, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

log = logging.getLogger(__name__)

POOL_SIZE = 8
"""Connections a process. A transaction takes about a millisecond, so these carry thousands a second; several
processes, and several hosts, must fit below PostgreSQL's default of 100."""
POOL_WAIT_S = 5.0
CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_MS = 15_000
"""The largest statement, loading 10,000 replicas, takes a small part of it."""
LOCK_TIMEOUT_MS = 5_000
IDLE_TRANSACTION_TIMEOUT_MS = 30_000
"""A process that hangs inside a transaction loses its locks to the others."""
LISTEN_BACKOFF_S = (0.1, 5.0)
"""First and longest wait of the listener before it connects again."""

_KEEPALIVE: dict[str, Any] = {
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""A listener only reads, so that only keep-alives find out that the other host is gone: in 30 s. They are silent while
a statement is on its way; without the last of these the kernel would repeat it for 15 minutes."""

_OUTAGE_CLASSES = ("08", "53", "57")
"""SQLSTATE classes: connection exception, insufficient resources, operator intervention (shutting down,
starting up, cancelled)."""
_OUTAGE_STATES = ("25006", "40001", "40P01", "55P03")
"""A standby that takes no writes, a lost serialization or deadlock, a lock not granted in time: the same call
later may do."""


def driver_url(url: str) -> URL:
    """A PostgreSQL URL as people write it, for SQLAlchemy with psycopg 3. Raises ValueError."""
    try:
        parsed = make_url(url)
    except sqlalchemy.exc.ArgumentError:
        parsed = None
    if parsed is None or parsed.drivername not in ("postgres", "postgresql", "postgresql+psycopg"):
        raise ValueError(
            "the database URL cannot be read; accepted: postgresql://[user[:password]@]host[:port]/database"
        )
    return parsed.set(drivername="postgresql+psycopg")


def conninfo(url: str) -> str:
    """The same for libpq."""
    return driver_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def is_outage(error: BaseException) -> bool:
    """Whether the database did not answer, or not in time, and the same call may well succeed later; else it
    is a bug or a refusal."""
    if isinstance(error, sqlalchemy.exc.DBAPIError):
        if error.connection_invalidated:
            return True
        return error.orig is not None and is_outage(error.orig)
    if isinstance(error, psycopg.Error):
        if error.sqlstate is not None:
            return error.sqlstate[:2] in _OUTAGE_CLASSES or error.sqlstate in _OUTAGE_STATES
        # Without a state the words are libpq's own: it could not connect, or the connection broke.
        return isinstance(error, psycopg.OperationalError)
    # No OSError: one that met the driver was made psycopg's (`_connect`), any other has nothing to do with PostgreSQL.
    return isinstance(error, sqlalchemy.exc.TimeoutError)


class Database:
    """One process's access to PostgreSQL. Making one connects to nothing yet."""

    def __init__(self, url: str, *, application_name: str = "penstock") -> None:
        self._conninfo = conninfo(url)
        self._application_name = application_name
        self._engine = create_async_engine(
            driver_url(url),
            pool_size=POOL_SIZE,
            max_overflow=0,
            pool_timeout=POOL_WAIT_S,
            connect_args={
                "connect_timeout": CONNECT_TIMEOUT_S,
                "application_name": application_name,
                "options": (
                    f"-c timezone=UTC -c statement_timeout={STATEMENT_TIMEOUT_MS} -c lock_timeout={LOCK_TIMEOUT_MS}"
                    f" -c idle_in_transaction_session_timeout={IDLE_TRANSACTION_TIMEOUT_MS}"
                ),
                **_KEEPALIVE,
            },
        )
        event.listen(self._engine.sync_engine, "do_connect", _connect)
        event.listen(self._engine.sync_engine, "checkout", _refuse_closed)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed at the end of the block, rolled back if the block raises."""
        async with self._engine.begin() as conn:
            yield conn

    @contextlib.asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that only reads, and in which every statement sees the same instant."""
        async with self._engine.connect() as conn:
            await conn.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            async with conn.begin():
                yield conn

    async def listen(self, channel: str) -> AsyncGenerator[str, None]:
        """The payloads of the channel's notifications, for ever, on a connection of its own that is made
        again when it breaks.

        Each time the connection has been made, the first time too, an empty string comes first: something may
        have been missed, and nothing will be from here on. Close the iterator (`contextlib.aclosing`) to let
        the connection go.
        """
        wait, failing = LISTEN_BACKOFF_S[0], False
        loop = asyncio.get_running_loop()
        while True:
            made_at = float("inf")
            try:
                async with await psycopg.AsyncConnection.connect(
                    self._conninfo,
                    autocommit=True,
                    connect_timeout=CONNECT_TIMEOUT_S,
                    application_name=f"{self._application_name} listener",
                    **_KEEPALIVE,
                ) as conn:
                    await conn.execute(psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(channel)))
                    if failing:
                        log.info("listening on %s again", channel)
                    failing, made_at = False, loop.time()
                    yield ""
                    async for notification in conn.notifies():
                        yield notification.payload
            except Exception as error:  # Whatever the server or a proxy before it sends: who listens goes on.
                # The change is logged, not each try.
                if not failing:
                    log.warning("listening on %s: %s; trying again until it works", channel, _one_line(error))
                failing = True
            if loop.time() - made_at > LISTEN_BACKOFF_S[1]:
                wait = LISTEN_BACKOFF_S[0]
            await asyncio.sleep(wait)
            wait = min(2 * wait, LISTEN_BACKOFF_S[1])

    async def close(self) -> None:
        """Closes the pool's connections. Those in use are closed when their users give them back."""
        await self._engine.dispose()


def _connect(dialect: Any, _record: object, args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """Connects as the pool would, but that an error of this machine's network is one of PostgreSQL's not answering."""
    try:
        return dialect.connect(*args, **options)
    except OSError as error:
        raise psycopg.OperationalError(f"cannot connect: {error!r}") from error


def _refuse_closed(dbapi_connection: Any, record: Any, _proxy: object) -> None:
    """Lets the pool replace a connection that the server has closed while nobody used it, at the price of a
    poll and no round trip.

    An idle connection has nothing to read, but for the server's farewell.
    """
    if "used" not in record.info:
        # Just made. Should it be closed already, its first statement says so as an outage, which the pool's
        # giving up after a second refusal would not.
        record.info["used"] = True
        return
    pgconn = dbapi_connection.driver_connection.pgconn
    poll = select.poll()
    try:
        poll.register(pgconn.socket, select.POLLIN)
        closed = bool(poll.poll(0))
    except psycopg.OperationalError:
        closed = True
    if closed:
        raise sqlalchemy.exc.DisconnectionError("the server has closed the connection")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or repr(error)
