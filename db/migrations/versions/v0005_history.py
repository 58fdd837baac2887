"""What became of a revision, and who did what about it."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

SCHEMA = """
ALTER TABLE revisions ADD COLUMN proven BOOLEAN DEFAULT false NOT NULL;

UPDATE revisions SET proven = true
FROM deployments
WHERE deployments.uid = revisions.deployment_uid
    AND revisions.number IN (
        deployments.promoted_revision,
        (deployments.rollout ->> 'stable_revision')::bigint,
        (deployments.rollout ->> 'baked_revision')::bigint
    )
    AND revisions.number <> COALESCE((deployments.rollout ->> 'failed_revision')::bigint, 0);

CREATE TABLE revision_events (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    deployment_uid TEXT NOT NULL,
    revision BIGINT NOT NULL,
    type TEXT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    author TEXT DEFAULT '' NOT NULL,
    cause TEXT DEFAULT '' NOT NULL,
    CONSTRAINT revision_events_pkey PRIMARY KEY (id),
    CONSTRAINT revision_events_deployment_uid_revision_fkey FOREIGN KEY (deployment_uid, revision)
        REFERENCES revisions (deployment_uid, number) ON DELETE CASCADE,
    CONSTRAINT revision_events_type_check CHECK (type IN (
        'promoted', 'completed', 'failed', 'undone', 'rollouts_paused', 'rollouts_resumed', 'paused', 'resumed'
    )),
    CONSTRAINT revision_events_words_check CHECK (char_length(author) <= 256 AND char_length(cause) <= 1024)
);

CREATE INDEX revision_events_revision_index ON revision_events (deployment_uid, revision, id);
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(SCHEMA)
