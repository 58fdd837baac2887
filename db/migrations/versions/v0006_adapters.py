"""Which LoRA adapters a replica has, as its agent said last."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

SCHEMA = """
ALTER TABLE attempts
    ADD COLUMN adapters JSONB DEFAULT '[]' NOT NULL,
    ADD CONSTRAINT attempts_adapters_check CHECK (jsonb_typeof(adapters) = 'array');
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(SCHEMA)
