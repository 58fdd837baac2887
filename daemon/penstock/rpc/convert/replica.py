"""Replicas, their attempts, and what agents report."""

from __future__ import annotations

import math
from collections.abc import Iterable

from penstock.core import model as core
from penstock.rpc.convert.time import time_out
from penstock.store.records import Load
from penstock.v1 import replica_pb2, runtime_pb2

_STATES = {
    core.ReplicaState.WAITING: replica_pb2.REPLICA_STATE_WAITING,
    core.ReplicaState.SUBMITTING: replica_pb2.REPLICA_STATE_SUBMITTING,
    core.ReplicaState.QUEUED: replica_pb2.REPLICA_STATE_QUEUED,
    core.ReplicaState.STARTING: replica_pb2.REPLICA_STATE_STARTING,
    core.ReplicaState.READY: replica_pb2.REPLICA_STATE_READY,
    core.ReplicaState.DRAINING: replica_pb2.REPLICA_STATE_DRAINING,
    core.ReplicaState.STOPPING: replica_pb2.REPLICA_STATE_STOPPING,
    core.ReplicaState.REMOVED: replica_pb2.REPLICA_STATE_REMOVED,
}
_PHASES: dict[runtime_pb2.AgentPhase.ValueType, core.Phase] = {
    runtime_pb2.AGENT_PHASE_STARTING: core.Phase.STARTING,
    runtime_pb2.AGENT_PHASE_READY: core.Phase.READY,
    runtime_pb2.AGENT_PHASE_DRAINING: core.Phase.DRAINING,
    runtime_pb2.AGENT_PHASE_FAILED: core.Phase.FAILED,
    runtime_pb2.AGENT_PHASE_ENDED: core.Phase.ENDED,
}


def phase_in(phase: runtime_pb2.AgentPhase.ValueType) -> core.Phase:
    """The phase of a report that has passed validation."""
    return _PHASES[phase]


def load_in(load: replica_pb2.Load) -> Load:
    """How busy an agent says it is, brought into the range of what can be: an odd number is no reason to lose a
    report.
    """
    usage = load.kv_cache_usage
    return Load(
        running_requests=max(0, load.running_requests),
        waiting_requests=max(0, load.waiting_requests),
        kv_cache_usage=min(max(usage, 0.0), 1.0) if math.isfinite(usage) else 0.0,
        prompt_tokens_total=max(0, load.prompt_tokens_total),
        generation_tokens_total=max(0, load.generation_tokens_total),
    )


def standings_in(standings: Iterable[replica_pb2.AdapterStanding]) -> tuple[core.AdapterStanding, ...]:
    """How an agent says that it stands with adapters."""
    return tuple(core.AdapterStanding(one.name, one.path, one.loaded, one.message) for one in standings)


def replica_out(replica: core.Replica, deployment: str, load: Load | None = None) -> replica_pb2.Replica:
    """The replica as a client sees it. The last words are shown with its attempts only."""
    attempt = replica.attempt
    return replica_pb2.Replica(
        name=replica.name,
        deployment=deployment,
        revision=replica.revision,
        state=_STATES[replica.state],
        message=replica.message,
        since=time_out(replica.since),
        created_at=time_out(replica.created_at),
        attempt=attempt_out(attempt) if attempt else None,
        attempts=attempt.number if attempt else 0,
        failures=replica.failures,
        next_attempt_at=time_out(replica.next_attempt_at),
        load=load_out(load) if load else None,
        adapters=[
            replica_pb2.AdapterStanding(name=one.name, path=one.path, loaded=one.loaded, message=one.message)
            for one in (attempt.adapters if attempt and attempt.live else ())
        ],
    )


def load_out(load: Load) -> replica_pb2.Load:
    """How busy the replica is by its own report."""
    return replica_pb2.Load(
        running_requests=load.running_requests,
        waiting_requests=load.waiting_requests,
        kv_cache_usage=load.kv_cache_usage,
        prompt_tokens_total=load.prompt_tokens_total,
        generation_tokens_total=load.generation_tokens_total,
    )


def attempt_out(attempt: core.Attempt) -> replica_pb2.Attempt:
    """One submission, with what Slurm last said of its job."""
    job = attempt.job
    return replica_pb2.Attempt(
        token=attempt.token,
        job_id=attempt.job_id or 0,
        job_state=(job.state_text or job.state.value) if job else "",
        job_reason=job.reason if job else "",
        start_at=time_out(job.started_at) if job else None,
        end_at=time_out(job.ends_at) if job else None,
        nodes=job.nodes if job else "",
        endpoint=attempt.endpoint,
        submitted_at=time_out(attempt.submitted_at),
        registered_at=time_out(attempt.registered_at),
        ready_at=time_out(attempt.ready_at),
        ended_at=time_out(attempt.ended_at),
        exit_code=attempt.exit_code,
        last_words=attempt.last_words,
        reported_at=time_out(attempt.reported_at),
    )
