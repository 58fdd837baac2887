"""PostgreSQL for tests: a server of its own for each worker, and a database of its own for each test that asks for one.

    database_url        a fresh database at head, as a URL
    empty_database_url  a fresh database with nothing in it
    database            the first, as a `Database`; closed at the end

The migrations run once a worker, into a template; a fresh database is a copy of it, made in some tens of milliseconds.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
import pytest_asyncio

from penstock.store import migrate
from penstock.store.database import Database, conninfo, driver_url
from penstock.store.embedded import EmbeddedServer

TEMPLATE = "at_head"

FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum": "off"}
"""A test's data need not outlive the machine."""


@dataclass
class Databases:
    """Makes and drops databases on one server."""

    server_url: str
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def url(self, name: str) -> str:
        return (
            driver_url(self.server_url)
            .set(drivername="postgresql", database=name)
            .render_as_string(hide_password=False)
        )

    def make(self, name: str, *, template: str = "template0") -> str:
        # FILE_COPY: PostgreSQL's default way writes the whole copy to the log, which takes five times as long.
        self._run(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY FILE_COPY')
        return self.url(name)

    def make_fresh(self, *, template: str = TEMPLATE) -> str:
        return self.make(f"test_{next(self._numbers)}", template=template)

    def drop(self, url: str) -> None:
        # FORCE: what a test has left connected is cut.
        self._run(f'DROP DATABASE "{driver_url(url).database}" WITH (FORCE)')

    def _run(self, statement: str) -> None:
        with psycopg.connect(conninfo(self.server_url), autocommit=True) as conn:
            conn.execute(statement.encode())


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    with tempfile.TemporaryDirectory(prefix="penstock-test-") as name:
        folder = Path(name)
        # Under root the server runs as another account, which must pass through.
        folder.chmod(0o711)
        server = EmbeddedServer(folder / "postgres", settings=FAST)
        try:
            made = Databases(server.start())
            migrate.upgrade(made.make(TEMPLATE))
            yield made
        finally:
            server.stop()


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    url = databases.make_fresh()
    yield url
    databases.drop(url)


@pytest.fixture
def empty_database_url(databases: Databases) -> Iterator[str]:
    url = databases.make_fresh(template="template0")
    yield url
    databases.drop(url)


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    made = Database(database_url)
    yield made
    await made.close()
