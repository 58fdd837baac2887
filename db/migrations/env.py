"""Alembic's entry: runs the migrations on the connection that `penstock.store.migrate` hands over.

Called by the alembic command (to write a new migration) it connects to PENSTOCK_DATABASE_URL.
"""

from __future__ import annotations

import os

from alembic import context
from sqlalchemy import Connection, NullPool, create_engine

from penstock.store.database import driver_url
from penstock.store.tables import metadata


def run(connection: Connection) -> None:
    """Runs them all in the connection's transaction: PostgreSQL takes schema changes back as well as any other."""
    context.configure(
        connection=connection, target_metadata=metadata, compare_type=True, compare_server_default=True
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    with create_engine(driver_url(os.environ["PENSTOCK_DATABASE_URL"]), poolclass=NullPool).begin() as own:
        run(own)
