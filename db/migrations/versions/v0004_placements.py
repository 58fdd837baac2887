"""Where a replica's next attempt goes."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

SCHEMA = """
ALTER TABLE replicas
    ADD COLUMN placement INTEGER DEFAULT 0 NOT NULL,
    ADD CONSTRAINT replicas_placement_check CHECK (placement >= 0);
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(SCHEMA)
