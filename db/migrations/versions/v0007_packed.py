"""Whether an attempt asked for nodes that run other replicas of its deployment."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

SCHEMA = """
ALTER TABLE attempts ADD COLUMN packed BOOLEAN DEFAULT false NOT NULL;
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(SCHEMA)
