"""Rows into core's values. The columns that each needs stand beside it, under labels that a join cannot mix up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import Row, case, select

from penstock.core.jobs import Job
from penstock.core.model import (
    AdapterStanding,
    Attempt,
    Condition,
    Deployment,
    Phase,
    Replica,
    ReplicaState,
    Revision,
    RolloutRecord,
)
from penstock.core.spec import Adapter, Spec
from penstock.store.documents import decode
from penstock.store.records import DecidedAction, DecisionRecord, Load
from penstock.store.tables import attempts, decisions, deployments, replicas, revisions

AnyRow = Row[*tuple[Any, ...]]

DEPLOYMENT = tuple(
    deployments.c[name]
    for name in (
        "uid", "name", "labels", "spec", "generation", "resource_version", "revision", "paused", "rollout_paused",
        "promoted_revision", "rollout", "force_delete", "observed_generation", "conditions", "created_at", "deleted_at",
    )
)  # fmt: skip

REVISION = tuple(
    revisions.c[name]
    for name in ("deployment_uid", "number", "spec", "created_at", "author", "cause", "proven")
)

REPLICA = tuple(column.label(f"r_{column.name}") for column in replicas.c)

REVISIONS_DRAIN = (
    select(revisions.c.spec["drain_timeout_s"].as_integer())
    .where(revisions.c.deployment_uid == replicas.c.deployment_uid, revisions.c.number == replicas.c.revision)
    .correlate(replicas)
    .scalar_subquery()
    .label("r_drain_timeout_s")
)
"""What a replica's agent was told, whatever its deployment's spec says by now."""

WANTED_ADAPTERS = case(
    (replicas.c.revision == deployments.c.revision, deployments.c.spec["model"]["adapters"]),
    else_=select(revisions.c.spec["model"]["adapters"])
    .where(revisions.c.deployment_uid == replicas.c.deployment_uid, revisions.c.number == replicas.c.revision)
    .correlate(replicas)
    .scalar_subquery(),
).label("wanted_adapters")
"""Those that a replica should have: its own revision's, as they were last wanted. Needs a join to its deployment."""

ATTEMPT = tuple(
    attempts.c[name].label(f"a_{name}")
    for name in (
        "token", "number", "intended_at", "submitted_at", "refusal", "job_id", "job", "running_since", "missing_since",
        "phase", "phase_message", "host", "port", "restart_count", "registered_at", "ready_at", "reported_at",
        "drain_at", "signalled_at", "cancelled_at", "withdrawn_at", "handover_at", "placement", "packed", "ended_at",
        "end_message", "exit_code", "last_words", "adapters", "halted_since",
    )
)  # fmt: skip
"""All but the script and the secret's hash, which few need and which are long."""

LOAD = tuple(
    attempts.c[name]
    for name in (
        "token", "running_requests", "waiting_requests", "kv_cache_usage", "prompt_tokens_total",
        "generation_tokens_total",
    )
)  # fmt: skip

DECISION = tuple(decisions.c)


def deployment(row: AnyRow) -> Deployment:
    """From a row of DEPLOYMENT."""
    return Deployment(
        uid=row.uid,
        name=row.name,
        spec=decode(Spec, row.spec),
        generation=row.generation,
        resource_version=row.resource_version,
        revision=row.revision,
        created_at=row.created_at,
        labels=row.labels,
        paused=row.paused,
        rollout_paused=row.rollout_paused,
        promoted_revision=row.promoted_revision,
        rollout=decode(RolloutRecord, row.rollout),
        deleted_at=row.deleted_at,
        force_delete=row.force_delete,
        observed_generation=row.observed_generation,
        conditions=tuple(decode(Condition, item) for item in row.conditions),
    )


def revision(row: AnyRow) -> Revision:
    """From a row of REVISION."""
    spec = decode(Spec, row.spec)
    return Revision(row.deployment_uid, row.number, spec, row.created_at, row.author, row.cause, row.proven)


def replica(row: AnyRow, its_attempt: Attempt | None) -> Replica:
    """From a row of REPLICA."""
    return Replica(
        uid=row.r_uid,
        deployment_uid=row.r_deployment_uid,
        name=row.r_name,
        number=row.r_number,
        revision=row.r_revision,
        state=ReplicaState(row.r_state),
        message=row.r_message,
        since=row.r_since,
        created_at=row.r_created_at,
        attempt=its_attempt,
        failures=row.r_failures,
        next_attempt_at=row.r_next_attempt_at,
        burst=row.r_burst,
        placement=row.r_placement,
        leaving=row.r_leaving,
        removed_at=row.r_removed_at,
    )


def attempt(row: AnyRow) -> Attempt:
    """From a row of ATTEMPT."""
    return Attempt(
        token=row.a_token,
        number=row.a_number,
        intended_at=row.a_intended_at,
        submitted_at=row.a_submitted_at,
        refusal=row.a_refusal,
        job_id=row.a_job_id,
        job=None if row.a_job is None else decode(Job, row.a_job),
        running_since=row.a_running_since,
        halted_since=row.a_halted_since,
        missing_since=row.a_missing_since,
        phase=Phase(row.a_phase),
        phase_message=row.a_phase_message,
        endpoint="" if row.a_host is None else endpoint(row.a_host, row.a_port),
        restart_count=row.a_restart_count,
        registered_at=row.a_registered_at,
        ready_at=row.a_ready_at,
        reported_at=row.a_reported_at,
        drain_at=row.a_drain_at,
        signalled_at=row.a_signalled_at,
        cancelled_at=row.a_cancelled_at,
        withdrawn_at=row.a_withdrawn_at,
        handover_at=row.a_handover_at,
        placement=row.a_placement,
        packed=row.a_packed,
        ended_at=row.a_ended_at,
        end_message=row.a_end_message,
        exit_code=row.a_exit_code,
        last_words=row.a_last_words,
        adapters=tuple(decode(AdapterStanding, item) for item in row.a_adapters),
    )


def wanted_adapters(row: AnyRow) -> tuple[Adapter, ...]:
    """From a row of WANTED_ADAPTERS. Specs that an earlier release wrote have none."""
    return tuple(decode(Adapter, item) for item in row.wanted_adapters or ())


def endpoint(host: str, port: int) -> str:
    """host:port, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def replica_with_attempt(row: AnyRow) -> Replica:
    """From a row of REPLICA and REVISIONS_DRAIN outer-joined to ATTEMPT."""
    found = replica(row, None if row.a_token is None else attempt(row))
    return replace(found, drain_timeout_s=row.r_drain_timeout_s)


def load(row: AnyRow) -> Load:
    """From a row of LOAD."""
    return Load(
        running_requests=row.running_requests,
        waiting_requests=row.waiting_requests,
        kv_cache_usage=row.kv_cache_usage,
        prompt_tokens_total=row.prompt_tokens_total,
        generation_tokens_total=row.generation_tokens_total,
    )


def decision(row: AnyRow) -> DecisionRecord:
    """From a row of DECISION."""
    return DecisionRecord(
        id=row.id,
        tick=row.tick,
        deployment=row.deployment,
        replica=row.replica,
        reason=row.reason,
        message=row.message,
        actions=tuple(decode(DecidedAction, item) for item in row.actions),
        # Row is a tuple, which has a `count` of its own.
        count=row._mapping["count"],
        first_at=row.first_at,
        last_at=row.last_at,
    )
