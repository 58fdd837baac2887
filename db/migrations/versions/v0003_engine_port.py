"""Where the front door finds an engine's own HTTP server."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SCHEMA = """
ALTER TABLE attempts
    ADD COLUMN engine_port INTEGER,
    ADD CONSTRAINT attempts_engine_port_check CHECK (engine_port BETWEEN 1 AND 65535);
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(SCHEMA)
