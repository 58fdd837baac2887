"""What rollouts, handovers and placements must remember."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SCHEMA = """
ALTER TABLE deployments
    ADD COLUMN rollout_paused BOOLEAN DEFAULT false NOT NULL,
    ADD COLUMN promoted_revision BIGINT DEFAULT 0 NOT NULL,
    ADD COLUMN rollout JSONB DEFAULT '{}' NOT NULL,
    ADD CONSTRAINT deployments_rollout_check CHECK (jsonb_typeof(rollout) = 'object'),
    ADD CONSTRAINT deployments_promoted_revision_check CHECK (promoted_revision BETWEEN 0 AND revision);

ALTER TABLE revisions
    ADD COLUMN author TEXT DEFAULT '' NOT NULL,
    ADD COLUMN cause TEXT DEFAULT '' NOT NULL,
    ADD CONSTRAINT revisions_words_check CHECK (char_length(author) <= 256 AND char_length(cause) <= 1024);

ALTER TABLE replicas ADD COLUMN burst BOOLEAN DEFAULT false NOT NULL;

ALTER TABLE attempts
    ADD COLUMN handover_at TIMESTAMP WITH TIME ZONE,
    ADD COLUMN placement INTEGER DEFAULT 0 NOT NULL,
    ADD CONSTRAINT attempts_placement_check CHECK (placement >= 0);
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(SCHEMA)
