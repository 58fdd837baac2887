"""Since when a job has been seen suspended, which is not since when its replica has been shown as queued."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

SCHEMA = """
ALTER TABLE attempts ADD COLUMN halted_since TIMESTAMP WITH TIME ZONE;
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(SCHEMA)
