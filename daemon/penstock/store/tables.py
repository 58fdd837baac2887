"""The tables. What must never be otherwise is a constraint here, not a habit of the code that writes.

    deployments ──< revisions ──< revision_events      who did what about it, and why
        │   └────< model_names      every name that clients may put into `model`, unique over all deployments
        └────────< replicas ──< attempts      at most one live attempt a replica; a job belongs to one live attempt
    decisions     the log; hangs on nothing, so that it outlives what it speaks of
    leases        who may mutate Slurm; terms only increase
    members       processes that beat
    installation  one row: which Penstock this is

Times that are compared with each other are written by one clock. Names compare byte by byte (collation C), so
that pages have the same order whatever locale the database was made with.
"""

from __future__ import annotations

from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    MetaData,
    Sequence,
    Table,
    Text,
    UniqueConstraint,
    event,
    false,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from penstock.core.model import Phase, ReplicaState, RevisionEventType

CHANNEL = "penstock"
"""The NOTIFY channel; the payload is a deployment's name, or empty when what changed is not one deployment's."""

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "ix": "%(table_name)s_%(column_0_N_name)s_index",
    }
)

AUTHOR_MAX = 256
CAUSE_MAX = 1024
"""Characters."""

MOMENT = DateTime(timezone=True)
NAME = Text(collation="C")


def _one_of(column: str, words: type[ReplicaState | Phase | RevisionEventType]) -> str:
    return f"{column} IN ({', '.join(repr(word.value) for word in words)})"


_WORDS = f"char_length(author) <= {AUTHOR_MAX} AND char_length(cause) <= {CAUSE_MAX}"

resource_version = Sequence("resource_version", metadata=metadata, data_type=BigInteger)
"""One for all objects, so that a later write always has the greater version."""

installation = Table(
    "installation",
    metadata,
    Column("single", Boolean, primary_key=True, server_default=text("true")),
    Column("id", Text, nullable=False),
    Column("created_at", MOMENT, nullable=False),
    CheckConstraint("single", name="single"),
    CheckConstraint("id <> ''", name="id"),
)

deployments = Table(
    "deployments",
    metadata,
    Column("uid", Text, primary_key=True),
    Column("name", NAME, nullable=False, unique=True),
    Column("labels", JSONB, nullable=False, server_default=text("'{}'")),
    Column("spec", JSONB, nullable=False),
    Column("generation", BigInteger, nullable=False, server_default=text("1")),
    # Set by a trigger at each write.
    Column("resource_version", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False, server_default=text("1")),
    Column("next_replica_number", BigInteger, nullable=False, server_default=text("1")),
    Column("paused", Boolean, nullable=False, server_default=false()),
    Column("force_delete", Boolean, nullable=False, server_default=false()),
    Column("secret", Text, nullable=False),
    Column("observed_generation", BigInteger, nullable=False, server_default=text("0")),
    Column("conditions", JSONB, nullable=False, server_default=text("'[]'")),
    Column("created_at", MOMENT, nullable=False),
    Column("deleted_at", MOMENT),
    Column("rollout_paused", Boolean, nullable=False, server_default=false()),
    Column("promoted_revision", BigInteger, nullable=False, server_default=text("0")),
    # The controller's own memory of rollouts: core's RolloutRecord.
    Column("rollout", JSONB, nullable=False, server_default=text("'{}'")),
    CheckConstraint("name <> ''", name="name"),
    CheckConstraint("jsonb_typeof(labels) = 'object'", name="labels"),
    CheckConstraint("jsonb_typeof(spec) = 'object'", name="spec"),
    CheckConstraint("jsonb_typeof(conditions) = 'array'", name="conditions"),
    CheckConstraint("jsonb_typeof(rollout) = 'object'", name="rollout"),
    CheckConstraint("promoted_revision BETWEEN 0 AND revision", name="promoted_revision"),
    CheckConstraint("generation >= 1 AND revision >= 1 AND next_replica_number >= 1", name="counts"),
    CheckConstraint("observed_generation BETWEEN 0 AND generation", name="observed_generation"),
    CheckConstraint("secret <> ''", name="secret"),
    CheckConstraint("NOT force_delete OR deleted_at IS NOT NULL", name="force_delete"),
)

model_names = Table(
    "model_names",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("deployment_uid", ForeignKey("deployments.uid", ondelete="CASCADE"), nullable=False, index=True),
)

revisions = Table(
    "revisions",
    metadata,
    Column("deployment_uid", ForeignKey("deployments.uid", ondelete="CASCADE"), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("spec", JSONB, nullable=False),
    Column("created_at", MOMENT, nullable=False),
    Column("author", Text, nullable=False, server_default=text("''")),
    Column("cause", Text, nullable=False, server_default=text("''")),
    Column("proven", Boolean, nullable=False, server_default=false()),
    CheckConstraint("number >= 1", name="number"),
    CheckConstraint(_WORDS, name="words"),
    CheckConstraint("jsonb_typeof(spec) = 'object'", name="spec"),
)

revision_events = Table(
    "revision_events",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("deployment_uid", Text, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("type", Text, nullable=False),
    Column("at", MOMENT, nullable=False),
    Column("author", Text, nullable=False, server_default=text("''")),
    Column("cause", Text, nullable=False, server_default=text("''")),
    ForeignKeyConstraint(
        ["deployment_uid", "revision"], ["revisions.deployment_uid", "revisions.number"], ondelete="CASCADE"
    ),
    CheckConstraint(_one_of("type", RevisionEventType), name="type"),
    CheckConstraint(_WORDS, name="words"),
    Index("revision_events_revision_index", "deployment_uid", "revision", "id"),
)

replicas = Table(
    "replicas",
    metadata,
    Column("uid", Text, primary_key=True),
    Column("deployment_uid", ForeignKey("deployments.uid", ondelete="CASCADE"), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("name", NAME, nullable=False, unique=True),
    Column("revision", BigInteger, nullable=False),
    Column("state", Text, nullable=False, server_default=text("'waiting'")),
    Column("message", Text, nullable=False, server_default=text("''")),
    Column("since", MOMENT, nullable=False),
    Column("failures", Integer, nullable=False, server_default=text("0")),
    Column("next_attempt_at", MOMENT),
    Column("leaving", Boolean, nullable=False, server_default=false()),
    Column("created_at", MOMENT, nullable=False),
    Column("removed_at", MOMENT, index=True),
    Column("burst", Boolean, nullable=False, server_default=false()),
    Column("placement", Integer, nullable=False, server_default=text("0")),
    UniqueConstraint("deployment_uid", "number"),
    # No cascade of its own: a revision goes with its deployment, or when no replica runs it.
    ForeignKeyConstraint(["deployment_uid", "revision"], ["revisions.deployment_uid", "revisions.number"]),
    CheckConstraint("number >= 1", name="number"),
    CheckConstraint(_one_of("state", ReplicaState), name="state"),
    CheckConstraint("(state = 'removed') = (removed_at IS NOT NULL)", name="removed_at"),
    CheckConstraint("failures >= 0", name="failures"),
    CheckConstraint("placement >= 0", name="placement"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("token", NAME, primary_key=True),
    Column("replica_uid", ForeignKey("replicas.uid", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("intended_at", MOMENT, nullable=False),
    Column("submitted_at", MOMENT),
    Column("refusal", Text, nullable=False, server_default=text("''")),
    Column("job_id", BigInteger),
    Column("job", JSONB(none_as_null=True)),
    Column("running_since", MOMENT),
    Column("missing_since", MOMENT),
    Column("phase", Text, nullable=False, server_default=text("'none'")),
    Column("phase_message", Text, nullable=False, server_default=text("''")),
    Column("restart_count", Integer),
    Column("host", Text),
    Column("port", Integer),
    Column("registered_at", MOMENT),
    Column("ready_at", MOMENT),
    Column("reported_at", MOMENT),
    Column("drain_at", MOMENT),
    Column("signalled_at", MOMENT),
    Column("cancelled_at", MOMENT),
    Column("ended_at", MOMENT),
    Column("end_message", Text, nullable=False, server_default=text("''")),
    Column("exit_code", Integer),
    Column("last_words", Text, nullable=False, server_default=text("''")),
    # Its revision or its node may be to blame for its end.
    Column("failed", Boolean, nullable=False, server_default=false()),
    Column("running_requests", Integer, nullable=False, server_default=text("0")),
    Column("waiting_requests", Integer, nullable=False, server_default=text("0")),
    Column("kv_cache_usage", Double, nullable=False, server_default=text("0")),
    Column("prompt_tokens_total", BigInteger, nullable=False, server_default=text("0")),
    Column("generation_tokens_total", BigInteger, nullable=False, server_default=text("0")),
    Column("secret_hash", Text, nullable=False),
    Column("script", Text, nullable=False),
    Column("handover_at", MOMENT),
    Column("placement", Integer, nullable=False, server_default=text("0")),
    Column("engine_port", Integer),
    Column("adapters", JSONB, nullable=False, server_default=text("'[]'")),
    # Its submission asked for nodes that run other replicas.
    Column("packed", Boolean, nullable=False, server_default=false()),
    Column("withdrawn_at", MOMENT),
    Column("halted_since", MOMENT),
    UniqueConstraint("replica_uid", "number"),
    CheckConstraint("char_length(token) BETWEEN 1 AND 64", name="token"),
    CheckConstraint("number >= 1", name="number"),
    CheckConstraint("job_id > 0", name="job_id"),
    CheckConstraint("jsonb_typeof(job) = 'object'", name="job"),
    CheckConstraint("jsonb_typeof(adapters) = 'array'", name="adapters"),
    CheckConstraint("restart_count >= 0", name="restart_count"),
    CheckConstraint("placement >= 0", name="placement"),
    CheckConstraint(_one_of("phase", Phase), name="phase"),
    CheckConstraint("(host IS NULL) = (port IS NULL) AND host <> ''", name="host"),
    CheckConstraint("port BETWEEN 1 AND 65535", name="port"),
    CheckConstraint("engine_port BETWEEN 1 AND 65535", name="engine_port"),
    CheckConstraint("registered_at IS NULL OR host IS NOT NULL", name="registered_at"),
    CheckConstraint("ready_at IS NULL OR registered_at IS NOT NULL", name="ready_at"),
    CheckConstraint("submitted_at >= intended_at", name="submitted_at"),
    CheckConstraint("ended_at >= intended_at", name="ended_at"),
    CheckConstraint("NOT failed OR ended_at IS NOT NULL", name="failed"),
    CheckConstraint("secret_hash <> ''", name="secret_hash"),
    CheckConstraint("running_requests >= 0 AND waiting_requests >= 0", name="requests"),
    CheckConstraint("kv_cache_usage BETWEEN 0 AND 1", name="kv_cache_usage"),
    CheckConstraint("prompt_tokens_total >= 0 AND generation_tokens_total >= 0", name="tokens"),
    # Rule 1: at most one live attempt a replica, and one live attempt a job.
    Index("attempts_live_index", "replica_uid", unique=True, postgresql_where=text("ended_at IS NULL")),
    Index("attempts_live_job_index", "job_id", unique=True, postgresql_where=text("ended_at IS NULL")),
    # Each tick asks for the last hour's.
    Index("attempts_failed_index", "ended_at", postgresql_where=text("failed")),
    # Heartbeats change no indexed column; with room in the page each is a heap-only update and leaves the
    # indexes alone.
    postgresql_with={"fillfactor": "70"},
)

decisions = Table(
    "decisions",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("tick", Text, nullable=False),
    Column("deployment", NAME, nullable=False),
    Column("replica", NAME, nullable=False),
    Column("reason", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("actions", JSONB, nullable=False, server_default=text("'[]'")),
    Column("count", BigInteger, nullable=False, server_default=text("1")),
    Column("first_at", MOMENT, nullable=False),
    Column("last_at", MOMENT, nullable=False, index=True),
    CheckConstraint("replica = '' OR deployment <> ''", name="subject"),
    CheckConstraint("jsonb_typeof(actions) = 'array'", name="actions"),
    CheckConstraint("count >= 1", name="count"),
    CheckConstraint("last_at >= first_at", name="last_at"),
    Index("decisions_subject_index", "deployment", "replica", "id"),
    Index("decisions_deployment_index", "deployment", "id"),
)

leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("term", BigInteger, nullable=False),
    Column("expires_at", MOMENT, nullable=False),
    CheckConstraint("term >= 1", name="term"),
)

members = Table(
    "members",
    metadata,
    Column("role", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("address", Text, nullable=False),
    Column("open_since", MOMENT, nullable=False),
    Column("seen_at", MOMENT, nullable=False),
    CheckConstraint("seen_at >= open_since", name="seen_at"),
)

TRIGGERS = (
    """
CREATE FUNCTION deployments_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.resource_version := nextval('resource_version');
    RETURN NEW;
END $$
""",
    """
CREATE TRIGGER deployments_version BEFORE INSERT OR UPDATE ON deployments
    FOR EACH ROW EXECUTE FUNCTION deployments_version()
""",
    """
CREATE FUNCTION attempts_end_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING
        MESSAGE = 'attempt ' || OLD.token || ' has ended and cannot live again', ERRCODE = 'check_violation';
END $$
""",
    """
CREATE TRIGGER attempts_end_once BEFORE UPDATE OF ended_at ON attempts
    FOR EACH ROW WHEN (OLD.ended_at IS NOT NULL AND NEW.ended_at IS NULL) EXECUTE FUNCTION attempts_end_once()
""",
    """
CREATE FUNCTION leases_term() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING
        MESSAGE = 'the term of lease ' || OLD.name || ' only increases, and a new holder needs a new term',
        ERRCODE = 'check_violation';
END $$
""",
    """
CREATE TRIGGER leases_term BEFORE UPDATE ON leases
    FOR EACH ROW WHEN (NEW.term < OLD.term OR (NEW.term = OLD.term AND NEW.holder <> OLD.holder))
    EXECUTE FUNCTION leases_term()
""",
)
"""What a column or a check cannot say. The migrations bear their own copies: a migration never changes once
released."""

for _statement in TRIGGERS:
    event.listen(metadata, "after_create", DDL(_statement))
