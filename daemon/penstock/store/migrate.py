"""Bringing a database to the schema of this release, and refusing to work on any other.

The migrations lie in db/migrations of the source tree, and in an installed wheel beside the package. This is
the one place that runs them; alembic.ini serves people who write a new one.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, NullPool, create_engine, text

import penstock
from penstock.store.database import CONNECT_TIMEOUT_S, driver_url
from penstock.store.errors import SchemaMismatch

UPGRADE_LOCK = 0x70656E73746F636B
"""Of two upgrades at once the second waits, and then finds nothing to do. The number spells "penstock"."""


def migrations_folder() -> Path:
    """In a wheel `penstock/_db/migrations`, in the source tree `db/migrations`."""
    package = Path(penstock.__file__).parent
    installed = package / "_db" / "migrations"
    return installed if installed.is_dir() else package.parents[1] / "db" / "migrations"


def head() -> str:
    """The revision that this release needs."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise FileNotFoundError(f"no migrations in {migrations_folder()}")
    return revision


def upgrade(url: str) -> tuple[str | None, str]:
    """Brings the database to `head`, in one transaction. Returns the revision before and the one now.

    Raises SchemaMismatch for a database that a later release has upgraded, and sqlalchemy's OperationalError
    when there is none.
    """
    engine = _engine(url)
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": UPGRADE_LOCK})
        before = _current(connection)
        _refuse_unknown(before)
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return before, head()


def current(url: str) -> str | None:
    """The database's revision; None: it has no schema of ours."""
    with _engine(url).connect() as connection:
        return _current(connection)


def require_head(url: str) -> None:
    """Raises SchemaMismatch unless the database has exactly the schema of this release."""
    found, wanted = current(url), head()
    _refuse_unknown(found)
    if found != wanted:
        raise SchemaMismatch(found, wanted)


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _refuse_unknown(found: str | None) -> None:
    """A revision that is none of ours is a later release's, and there is no way back."""
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if found is not None and found not in known:
        raise SchemaMismatch(found, head(), later=True)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _engine(url: str) -> Engine:
    return create_engine(
        driver_url(url), poolclass=NullPool, connect_args={"connect_timeout": CONNECT_TIMEOUT_S}
    )
