"""The schema is the same thing three times: what the migrations make, what schema.sql says, what tables.py declares."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import psycopg
import pytest
import sqlalchemy.exc
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import NullPool, create_engine

from penstock.store import migrate, schema
from penstock.store.database import conninfo, driver_url
from penstock.store.errors import SchemaMismatch
from penstock.store.tables import metadata
from tests.databases import Databases

SCHEMA_SQL = migrate.migrations_folder() / "schema.sql"


def test_migrations_make_what_schema_sql_says(database_url: str) -> None:
    assert schema.dump(database_url) == SCHEMA_SQL.read_text()


def test_schema_sql_makes_what_it_says(empty_database_url: str) -> None:
    with psycopg.connect(conninfo(empty_database_url)) as conn:
        conn.execute(SCHEMA_SQL.read_text().encode())
    assert schema.dump(empty_database_url) == SCHEMA_SQL.read_text()


def test_tables_declare_what_the_migrations_make(empty_database_url: str) -> None:
    engine = create_engine(driver_url(empty_database_url), poolclass=NullPool)
    metadata.create_all(engine)
    # The dump has all that Alembic's comparison passes over: checks, predicates of indexes, triggers.
    assert schema.dump(empty_database_url) == SCHEMA_SQL.read_text()


def test_alembic_finds_nothing_to_migrate(database_url: str) -> None:
    engine = create_engine(driver_url(database_url), poolclass=NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, metadata) == []


def test_the_dump_tells_a_difference(database_url: str) -> None:
    before = schema.dump(database_url)
    with psycopg.connect(conninfo(database_url)) as conn:
        conn.execute("ALTER TABLE leases DROP CONSTRAINT leases_term_check")
    assert schema.dump(database_url) != before


def test_the_command_says_whether_the_file_is_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "penstock.store.schema", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_upgrade_from_nothing(empty_database_url: str) -> None:
    assert migrate.current(empty_database_url) is None
    assert migrate.upgrade(empty_database_url) == (None, migrate.head())
    assert migrate.current(empty_database_url) == migrate.head()
    migrate.require_head(empty_database_url)
    assert migrate.upgrade(empty_database_url) == (migrate.head(), migrate.head())


def test_of_two_upgrades_at_once_the_second_finds_it_done(empty_database_url: str) -> None:
    results: list[object] = []
    threads = [
        threading.Thread(target=lambda: results.append(migrate.upgrade(empty_database_url))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(results, key=str) == [(migrate.head(), migrate.head()), (None, migrate.head())]


def test_another_schema_is_refused_with_what_to_do(empty_database_url: str) -> None:
    with pytest.raises(SchemaMismatch) as caught:
        migrate.require_head(empty_database_url)
    assert str(caught.value) == (
        f"the database has schema none, and this release needs {migrate.head()}; run: penstock db upgrade"
    )


def test_a_later_releases_schema_is_refused_and_left_alone(database_url: str) -> None:
    with psycopg.connect(conninfo(database_url)) as conn:
        conn.execute("UPDATE alembic_version SET version_num = '9999'")
    for call in (migrate.require_head, migrate.upgrade):
        with pytest.raises(SchemaMismatch) as caught:
            call(database_url)
        assert str(caught.value) == (
            f"the database has schema 9999, and this release needs {migrate.head()}; install the release that made it"
        )


def test_a_failed_upgrade_changes_nothing(empty_database_url: str) -> None:
    with psycopg.connect(conninfo(empty_database_url)) as conn:
        conn.execute("CREATE TABLE leases (in_the_way int)")
    with pytest.raises(sqlalchemy.exc.ProgrammingError, match="already exists"):
        migrate.upgrade(empty_database_url)
    assert migrate.current(empty_database_url) is None
    with psycopg.connect(conninfo(empty_database_url)) as conn:
        tables = conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert tables == [("leases",)]


def test_the_migrations_are_found_in_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "penstock" / "_db" / "migrations").mkdir(parents=True)
    monkeypatch.setattr("penstock.__file__", str(tmp_path / "penstock" / "__init__.py"))
    assert migrate.migrations_folder() == tmp_path / "penstock" / "_db" / "migrations"


def test_fresh_databases_share_nothing(databases: Databases) -> None:
    first, second = databases.make_fresh(), databases.make_fresh()
    try:
        with psycopg.connect(conninfo(first)) as conn:
            conn.execute("INSERT INTO installation (id, created_at) VALUES ('x', now())")
        with psycopg.connect(conninfo(second)) as conn:
            assert conn.execute("SELECT count(*) FROM installation").fetchone() == (0,)
    finally:
        databases.drop(first)
        databases.drop(second)
