"""When it was decided that a waiting job is withdrawn, so that somebody else's scancel is not taken for ours."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

SCHEMA = """
ALTER TABLE attempts ADD COLUMN withdrawn_at TIMESTAMP WITH TIME ZONE;
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(SCHEMA)
