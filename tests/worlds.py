"""Short ways to write down a world for the planner: each builder fills in what its test does not speak of.

Times are seconds after NOW, so that a row of a table reads as a distance: `at(-40)` is 40 s ago.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from penstock.core.jobs import Job, JobState
from penstock.core.model import (
    TOKEN_ALPHABET,
    TOKEN_LENGTH,
    Attempt,
    Deployment,
    Heard,
    Listing,
    Observation,
    Phase,
    Replica,
    ReplicaState,
    RolloutRecord,
    Unknown,
    job_comment,
    job_name,
)
from penstock.core.slurm_words import HALTED_STATES
from penstock.core.spec import Model, Probes, RestartPolicy, Rollout, Spec

NOW = datetime(2026, 3, 2, 14, 0, 0, tzinfo=UTC)
INSTALLATION = "here"


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def drawn(number: int) -> str:
    """An attempt's token as the recorder draws them, the same for the same number."""
    letters = ""
    while len(letters) < TOKEN_LENGTH:
        number, letter = divmod(number, len(TOKEN_ALPHABET))
        letters = TOKEN_ALPHABET[letter] + letters
    return letters


SPEC = Spec(
    model=Model(path="/models/llama"),
    replicas=1,
    probes=Probes(startup_timeout_s=600, report_timeout_s=60),
    rollout=Rollout(),
    restart=RestartPolicy(backoff_initial_s=10, backoff_max_s=300, reset_after_s=600),
    drain_timeout_s=60,
)


def deployment(
    *,
    replicas: int = 1,
    rollout: Rollout | None = None,
    record: RolloutRecord | None = None,
    **changes: Any,
) -> Deployment:
    """Revision 1 was ready once; `rollout` is the spec's, `record` the controller's."""
    spec = replace(SPEC, replicas=replicas, rollout=rollout or Rollout())
    facts: dict[str, Any] = {
        "uid": "d1",
        "name": "chat",
        "spec": spec,
        "generation": 1,
        "resource_version": 1,
        "revision": 1,
        "created_at": at(-3600),
        "observed_generation": 1,
        "rollout": record or RolloutRecord(stable_revision=1),
    }
    return Deployment(**facts | changes)


def attempt(**changes: Any) -> Attempt:
    """Submitted 100 s ago and known to Slurm as job 7; its agent has not been heard."""
    facts: dict[str, Any] = {
        "token": drawn(1),
        "number": 1,
        "intended_at": at(-100),
        "submitted_at": at(-100),
        "job_id": 7,
    }
    listed = changes.get("job")
    if isinstance(listed, Job) and listed.state is JobState.RUNNING:
        facts["running_since"] = listed.started_at
    if isinstance(listed, Job) and listed.state in HALTED_STATES:
        facts["halted_since"] = at(-2)
    return Attempt(**facts | changes)


def ready_attempt(**changes: Any) -> Attempt:
    facts: dict[str, Any] = {
        "phase": Phase.READY,
        "endpoint": "gpu1:4000",
        "restart_count": 0,
        "registered_at": at(-60),
        "ready_at": at(-50),
        "reported_at": at(-2),
    }
    return attempt(**facts | changes)


def replica(number: int = 1, *, its: Attempt | None = None, **changes: Any) -> Replica:
    facts: dict[str, Any] = {
        "uid": f"r{number}",
        "deployment_uid": "d1",
        "name": f"chat-{number}",
        "number": number,
        "revision": 1,
        "state": ReplicaState.WAITING if its is None else ReplicaState.QUEUED,
        "message": "",
        "since": at(-100),
        "created_at": at(-100),
        "attempt": its,
    }
    return Replica(**facts | changes)


def job(state: JobState = JobState.RUNNING, *, token: str = drawn(1), **changes: Any) -> Job:
    """The attempt's job, running since a minute ago on gpu1."""
    facts: dict[str, Any] = {
        "job_id": 7,
        "name": job_name("chat", token),
        "comment": job_comment(INSTALLATION, token),
        "state": state,
        "submitted_at": at(-100),
        "started_at": None if state is JobState.PENDING else at(-60),
        "nodes": "" if state is JobState.PENDING else "gpu1",
    }
    return Job(**facts | changes)


def world(
    deployments: Sequence[Deployment] = (),
    replicas: Sequence[Replica] = (),
    jobs: Sequence[Job] | None = (),
    **changes: Any,
) -> Observation:
    """`jobs` None: Slurm did not answer."""
    slurm = Unknown("squeue: timed out", at(-30)) if jobs is None else Listing(tuple(jobs))
    facts: dict[str, Any] = {
        "now": NOW,
        "installation": INSTALLATION,
        "deployments": tuple(deployments),
        "replicas": tuple(replicas),
        "slurm": slurm,
        "message_timeout_s": 10,
        "heard": Heard(at(-3600), NOW),
    }
    return Observation(**facts | changes)
