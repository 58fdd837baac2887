"""`serve`, `db upgrade` and `version`: the commands that are no RPC, because there is no server yet to ask."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

import penstock
from penstock.cli.failures import UNAVAILABLE, USAGE, Failure
from penstock.cli.output import say

Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="The daemon's penstock.toml. [env: PENSTOCK_CONFIG]"),
]


def serve(config: Config = None) -> None:
    """Run Penstock: the controller, the gateway, Envoy and, where no database is configured, PostgreSQL.

    Each setting can also come from the environment, as PENSTOCK_<SETTING>.

    Examples:

      penstock serve

      penstock serve --config /etc/penstock/penstock.toml
    """
    _use(config)
    # The daemon's modules take a second to load, which every other command would wait for.
    from penstock import app, process, settings

    try:
        loaded = settings.load()
    except settings.SettingsError as error:
        raise Failure(str(error), USAGE) from error
    raise typer.Exit(process.run(app.run_all, loaded))


def upgrade(config: Config = None) -> None:
    """Bring the database to the schema of this release. Does nothing where it has it already.

    Examples:

      penstock db upgrade

      PENSTOCK_DATABASE_URL=postgresql://penstock@db/penstock penstock db upgrade
    """
    _use(config)
    from penstock import settings
    from penstock.store import migrate
    from penstock.store.database import driver_url, is_outage
    from penstock.store.embedded import EmbeddedServer, EmbeddedServerError
    from penstock.store.errors import StoreError

    try:
        loaded = settings.load()
    except settings.SettingsError as error:
        raise Failure(str(error), USAGE) from error
    try:
        driver_url(loaded.database_url or "postgresql://")
    except ValueError as error:
        raise Failure(f"database_url: {error}", USAGE) from error
    own = EmbeddedServer(loaded.state_dir / "postgresql") if loaded.database_url is None else None
    was_running = own is not None and own.pid is not None
    try:
        try:
            url = loaded.database_url or (own.start() if own is not None else "")
            before, after = migrate.upgrade(url)
        finally:
            if own is not None and not was_running:
                own.stop()
    except (StoreError, EmbeddedServerError) as error:
        raise Failure(str(error)) from error
    except Exception as error:
        if not is_outage(error):
            raise
        raise Failure(f"PostgreSQL does not answer: {error}", UNAVAILABLE) from error
    if before == after:
        say(f"the database has schema {after} already")
    else:
        say(f"the database was brought from schema {before or 'none'} to {after}")


def version() -> None:
    """Show the version of this command.

    Examples:

      penstock version
    """
    say(f"penstock {penstock.__version__}")


def _use(config: Path | None) -> None:
    if config is not None:
        # By the environment, because the daemon's own processes read it too.
        os.environ["PENSTOCK_CONFIG"] = str(config.absolute())
