"""The first schema.

Expands or contracts, never both: the release before must go on working on what a migration leaves behind.
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SCHEMA = """
CREATE SEQUENCE resource_version AS BIGINT;

CREATE TABLE installation (
    single BOOLEAN DEFAULT true NOT NULL,
    id TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT installation_pkey PRIMARY KEY (single),
    CONSTRAINT installation_single_check CHECK (single),
    CONSTRAINT installation_id_check CHECK (id <> '')
);

CREATE TABLE deployments (
    uid TEXT NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    labels JSONB DEFAULT '{}' NOT NULL,
    spec JSONB NOT NULL,
    generation BIGINT DEFAULT 1 NOT NULL,
    resource_version BIGINT NOT NULL,
    revision BIGINT DEFAULT 1 NOT NULL,
    next_replica_number BIGINT DEFAULT 1 NOT NULL,
    paused BOOLEAN DEFAULT false NOT NULL,
    force_delete BOOLEAN DEFAULT false NOT NULL,
    secret TEXT NOT NULL,
    observed_generation BIGINT DEFAULT 0 NOT NULL,
    conditions JSONB DEFAULT '[]' NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    deleted_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT deployments_pkey PRIMARY KEY (uid),
    CONSTRAINT deployments_name_check CHECK (name <> ''),
    CONSTRAINT deployments_labels_check CHECK (jsonb_typeof(labels) = 'object'),
    CONSTRAINT deployments_spec_check CHECK (jsonb_typeof(spec) = 'object'),
    CONSTRAINT deployments_conditions_check CHECK (jsonb_typeof(conditions) = 'array'),
    CONSTRAINT deployments_counts_check
        CHECK (generation >= 1 AND revision >= 1 AND next_replica_number >= 1),
    CONSTRAINT deployments_observed_generation_check CHECK (observed_generation BETWEEN 0 AND generation),
    CONSTRAINT deployments_secret_check CHECK (secret <> ''),
    CONSTRAINT deployments_force_delete_check CHECK (NOT force_delete OR deleted_at IS NOT NULL),
    CONSTRAINT deployments_name_key UNIQUE (name)
);

CREATE TABLE decisions (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    tick TEXT NOT NULL,
    deployment TEXT COLLATE "C" NOT NULL,
    replica TEXT COLLATE "C" NOT NULL,
    reason TEXT NOT NULL,
    message TEXT NOT NULL,
    actions JSONB DEFAULT '[]' NOT NULL,
    count BIGINT DEFAULT 1 NOT NULL,
    first_at TIMESTAMP WITH TIME ZONE NOT NULL,
    last_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT decisions_pkey PRIMARY KEY (id),
    CONSTRAINT decisions_subject_check CHECK (replica = '' OR deployment <> ''),
    CONSTRAINT decisions_actions_check CHECK (jsonb_typeof(actions) = 'array'),
    CONSTRAINT decisions_count_check CHECK (count >= 1),
    CONSTRAINT decisions_last_at_check CHECK (last_at >= first_at)
);

CREATE INDEX decisions_deployment_index ON decisions (deployment, id);

CREATE INDEX decisions_subject_index ON decisions (deployment, replica, id);

CREATE INDEX decisions_last_at_index ON decisions (last_at);

CREATE TABLE leases (
    name TEXT NOT NULL,
    holder TEXT NOT NULL,
    term BIGINT NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT leases_pkey PRIMARY KEY (name),
    CONSTRAINT leases_term_check CHECK (term >= 1)
);

CREATE TABLE members (
    role TEXT NOT NULL,
    id TEXT NOT NULL,
    address TEXT NOT NULL,
    open_since TIMESTAMP WITH TIME ZONE NOT NULL,
    seen_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT members_pkey PRIMARY KEY (role, id),
    CONSTRAINT members_seen_at_check CHECK (seen_at >= open_since)
);

CREATE TABLE model_names (
    name TEXT COLLATE "C" NOT NULL,
    deployment_uid TEXT NOT NULL,
    CONSTRAINT model_names_pkey PRIMARY KEY (name),
    CONSTRAINT model_names_deployment_uid_fkey
        FOREIGN KEY(deployment_uid) REFERENCES deployments (uid) ON DELETE CASCADE
);

CREATE INDEX model_names_deployment_uid_index ON model_names (deployment_uid);

CREATE TABLE revisions (
    deployment_uid TEXT NOT NULL,
    number BIGINT NOT NULL,
    spec JSONB NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT revisions_pkey PRIMARY KEY (deployment_uid, number),
    CONSTRAINT revisions_number_check CHECK (number >= 1),
    CONSTRAINT revisions_spec_check CHECK (jsonb_typeof(spec) = 'object'),
    CONSTRAINT revisions_deployment_uid_fkey
        FOREIGN KEY(deployment_uid) REFERENCES deployments (uid) ON DELETE CASCADE
);

CREATE TABLE replicas (
    uid TEXT NOT NULL,
    deployment_uid TEXT NOT NULL,
    number BIGINT NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    revision BIGINT NOT NULL,
    state TEXT DEFAULT 'waiting' NOT NULL,
    message TEXT DEFAULT '' NOT NULL,
    since TIMESTAMP WITH TIME ZONE NOT NULL,
    failures INTEGER DEFAULT 0 NOT NULL,
    next_attempt_at TIMESTAMP WITH TIME ZONE,
    leaving BOOLEAN DEFAULT false NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    removed_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT replicas_pkey PRIMARY KEY (uid),
    CONSTRAINT replicas_deployment_uid_number_key UNIQUE (deployment_uid, number),
    CONSTRAINT replicas_deployment_uid_revision_fkey
        FOREIGN KEY(deployment_uid, revision) REFERENCES revisions (deployment_uid, number),
    CONSTRAINT replicas_number_check CHECK (number >= 1),
    CONSTRAINT replicas_state_check
        CHECK (state IN ('waiting', 'submitting', 'queued', 'starting', 'ready', 'draining', 'stopping',
        'removed')),
    CONSTRAINT replicas_removed_at_check CHECK ((state = 'removed') = (removed_at IS NOT NULL)),
    CONSTRAINT replicas_failures_check CHECK (failures >= 0),
    CONSTRAINT replicas_deployment_uid_fkey
        FOREIGN KEY(deployment_uid) REFERENCES deployments (uid) ON DELETE CASCADE,
    CONSTRAINT replicas_name_key UNIQUE (name)
);

CREATE INDEX replicas_removed_at_index ON replicas (removed_at);

CREATE TABLE attempts (
    token TEXT COLLATE "C" NOT NULL,
    replica_uid TEXT NOT NULL,
    number INTEGER NOT NULL,
    intended_at TIMESTAMP WITH TIME ZONE NOT NULL,
    submitted_at TIMESTAMP WITH TIME ZONE,
    refusal TEXT DEFAULT '' NOT NULL,
    job_id BIGINT,
    job JSONB,
    running_since TIMESTAMP WITH TIME ZONE,
    missing_since TIMESTAMP WITH TIME ZONE,
    phase TEXT DEFAULT 'none' NOT NULL,
    phase_message TEXT DEFAULT '' NOT NULL,
    restart_count INTEGER,
    host TEXT,
    port INTEGER,
    registered_at TIMESTAMP WITH TIME ZONE,
    ready_at TIMESTAMP WITH TIME ZONE,
    reported_at TIMESTAMP WITH TIME ZONE,
    drain_at TIMESTAMP WITH TIME ZONE,
    signalled_at TIMESTAMP WITH TIME ZONE,
    cancelled_at TIMESTAMP WITH TIME ZONE,
    ended_at TIMESTAMP WITH TIME ZONE,
    end_message TEXT DEFAULT '' NOT NULL,
    exit_code INTEGER,
    last_words TEXT DEFAULT '' NOT NULL,
    failed BOOLEAN DEFAULT false NOT NULL,
    running_requests INTEGER DEFAULT 0 NOT NULL,
    waiting_requests INTEGER DEFAULT 0 NOT NULL,
    kv_cache_usage DOUBLE PRECISION DEFAULT 0 NOT NULL,
    prompt_tokens_total BIGINT DEFAULT 0 NOT NULL,
    generation_tokens_total BIGINT DEFAULT 0 NOT NULL,
    secret_hash TEXT NOT NULL,
    script TEXT NOT NULL,
    CONSTRAINT attempts_pkey PRIMARY KEY (token),
    CONSTRAINT attempts_replica_uid_number_key UNIQUE (replica_uid, number),
    CONSTRAINT attempts_token_check CHECK (char_length(token) BETWEEN 1 AND 64),
    CONSTRAINT attempts_number_check CHECK (number >= 1),
    CONSTRAINT attempts_job_id_check CHECK (job_id > 0),
    CONSTRAINT attempts_job_check CHECK (jsonb_typeof(job) = 'object'),
    CONSTRAINT attempts_restart_count_check CHECK (restart_count >= 0),
    CONSTRAINT attempts_phase_check
        CHECK (phase IN ('none', 'registered', 'starting', 'ready', 'draining', 'failed', 'ended')),
    CONSTRAINT attempts_host_check CHECK ((host IS NULL) = (port IS NULL) AND host <> ''),
    CONSTRAINT attempts_port_check CHECK (port BETWEEN 1 AND 65535),
    CONSTRAINT attempts_registered_at_check CHECK (registered_at IS NULL OR host IS NOT NULL),
    CONSTRAINT attempts_ready_at_check CHECK (ready_at IS NULL OR registered_at IS NOT NULL),
    CONSTRAINT attempts_submitted_at_check CHECK (submitted_at >= intended_at),
    CONSTRAINT attempts_ended_at_check CHECK (ended_at >= intended_at),
    CONSTRAINT attempts_failed_check CHECK (NOT failed OR ended_at IS NOT NULL),
    CONSTRAINT attempts_secret_hash_check CHECK (secret_hash <> ''),
    CONSTRAINT attempts_requests_check CHECK (running_requests >= 0 AND waiting_requests >= 0),
    CONSTRAINT attempts_kv_cache_usage_check CHECK (kv_cache_usage BETWEEN 0 AND 1),
    CONSTRAINT attempts_tokens_check CHECK (prompt_tokens_total >= 0 AND generation_tokens_total >= 0),
    CONSTRAINT attempts_replica_uid_fkey FOREIGN KEY(replica_uid) REFERENCES replicas (uid) ON DELETE CASCADE
) WITH (fillfactor = 70);

CREATE UNIQUE INDEX attempts_live_index ON attempts (replica_uid) WHERE ended_at IS NULL;

CREATE INDEX attempts_failed_index ON attempts (ended_at) WHERE failed;

CREATE UNIQUE INDEX attempts_live_job_index ON attempts (job_id) WHERE ended_at IS NULL;

CREATE FUNCTION deployments_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.resource_version := nextval('resource_version');
    RETURN NEW;
END $$;

CREATE TRIGGER deployments_version BEFORE INSERT OR UPDATE ON deployments
    FOR EACH ROW EXECUTE FUNCTION deployments_version();

CREATE FUNCTION attempts_end_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING
        MESSAGE = 'attempt ' || OLD.token || ' has ended and cannot live again', ERRCODE = 'check_violation';
END $$;

CREATE TRIGGER attempts_end_once BEFORE UPDATE OF ended_at ON attempts
    FOR EACH ROW WHEN (OLD.ended_at IS NOT NULL AND NEW.ended_at IS NULL) EXECUTE FUNCTION attempts_end_once();

CREATE FUNCTION leases_term() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING
        MESSAGE = 'the term of lease ' || OLD.name || ' only increases, and a new holder needs a new term',
        ERRCODE = 'check_violation';
END $$;

CREATE TRIGGER leases_term BEFORE UPDATE ON leases
    FOR EACH ROW WHEN (NEW.term < OLD.term OR (NEW.term = OLD.term AND NEW.holder <> OLD.holder))
    EXECUTE FUNCTION leases_term();
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(SCHEMA)
