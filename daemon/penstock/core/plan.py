"""The decision of everything: what is wanted and what is there go in, what to do and why comes out.

`plan` is a pure function. It takes no hint of why it was called, holds nothing between calls, and called again after its actions were
carried out it finds nothing to do. The order of a pass:

1. how many replicas of which revision (`rollout`), which may let some go;
2. each replica by itself (`replicas`), those let go included;
3. jobs that bear our mark and belong to nothing (`orphans`);
4. what to show of each deployment (`conditions`).

When Slurm did not answer, steps 1 to 3 give one decision that says so, and nothing else happens (rule 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from penstock.core.conditions import conditions_of
from penstock.core.decisions import Decision, Reason, RemoveDeployment
from penstock.core.jobs import Job
from penstock.core.model import (
    Condition,
    Deployment,
    Listing,
    Observation,
    Replica,
    ReplicaState,
    Unknown,
    marked_token,
)
from penstock.core.orphans import plan_orphans
from penstock.core.replicas import Outlook, Scene, jobs_of, plan_replica
from penstock.core.rollout import plan_counts
from penstock.core.sentences import clock
from penstock.core.states import check_move


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """A replica whose state or sentence differs from what is stored."""

    replica_uid: str
    state: ReplicaState
    message: str


@dataclass(frozen=True, slots=True)
class DeploymentStatus:
    """A deployment whose conditions or observed generation differ from what is stored."""

    deployment_uid: str
    observed_generation: int
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a tick is to do. Empty `replica_statuses` and `deployment_statuses`: nothing to show anew."""

    decisions: tuple[Decision, ...]
    """At most one for each subject."""
    replica_statuses: tuple[ReplicaStatus, ...]
    deployment_statuses: tuple[DeploymentStatus, ...]


def plan(observation: Observation) -> Plan:
    """Decides everything for one tick. Raises IllegalMove on a bug, and nothing else."""
    replicas_by_deployment: dict[str, list[Replica]] = {}
    for replica in observation.replicas:
        replicas_by_deployment.setdefault(replica.deployment_uid, []).append(replica)
    if isinstance(observation.slurm, Unknown):
        return _blind(observation, observation.slurm, replicas_by_deployment)
    jobs_by_token = _jobs_by_token(observation.slurm, observation.installation)
    decisions: list[Decision] = []
    replica_statuses: list[ReplicaStatus] = []
    deployment_statuses: list[DeploymentStatus] = []
    for deployment in observation.deployments:
        replicas = replicas_by_deployment.get(deployment.uid, [])
        outcome = _plan_deployment(observation, deployment, replicas, jobs_by_token)
        decisions += outcome.decisions
        replica_statuses += outcome.replica_statuses
        deployment_statuses += outcome.deployment_statuses
    decisions += plan_orphans(observation, observation.slurm, jobs_by_token)
    return Plan(tuple(decisions), tuple(replica_statuses), tuple(deployment_statuses))


def _jobs_by_token(listing: Listing, installation: str) -> Mapping[str, tuple[Job, ...]]:
    jobs: dict[str, tuple[Job, ...]] = {}
    for job in listing.jobs:
        token = marked_token(job, installation)
        if token is not None:
            jobs[token] = (*jobs.get(token, ()), job)
    return jobs


def _plan_deployment(
    observation: Observation,
    deployment: Deployment,
    replicas: Sequence[Replica],
    jobs_by_token: Mapping[str, tuple[Job, ...]],
) -> Plan:
    counts = plan_counts(deployment, replicas)
    outlooks: list[tuple[Replica, Outlook]] = []
    for replica in replicas:
        subject = replace(replica, leaving=True) if replica.uid in counts.leaving else replica
        attempt = subject.live_attempt
        job = jobs_of(attempt, jobs_by_token) if attempt is not None else None
        scene = Scene(
            observation.now,
            deployment,
            subject,
            job,
            observation.message_timeout_s,
            observation.reports_open_since,
        )
        outlook = plan_replica(scene)
        check_move(replica.name, replica.state, outlook.state)
        outlooks.append((replica, outlook))
    if deployment.deleted_at is not None and not replicas:
        message = "its last job has ended"
        decision = Decision(deployment.name, "", Reason.DELETED, message, (RemoveDeployment(deployment.uid),))
        return Plan((decision,), (), ())
    own = counts.decision or _standing(deployment, outlooks)
    conditions = conditions_of(
        deployment,
        own,
        [(replica, outlook.state, outlook.message) for replica, outlook in outlooks],
        observation.now,
    )
    return Plan(
        (own, *(outlook.decision for _, outlook in outlooks)),
        tuple(
            ReplicaStatus(replica.uid, outlook.state, outlook.message)
            for replica, outlook in outlooks
            if (replica.state, replica.message) != (outlook.state, outlook.message)
        ),
        _status_if_changed(deployment, conditions),
    )


def _standing(deployment: Deployment, outlooks: Sequence[tuple[Replica, Outlook]]) -> Decision:
    ready = sum(outlook.state is ReplicaState.READY for _, outlook in outlooks)
    want = deployment.spec.replicas
    reason = Reason.STEADY if ready == want == len(outlooks) else Reason.PROGRESSING
    return Decision(deployment.name, "", reason, f"{ready} of {want} ready")


def _status_if_changed(
    deployment: Deployment, conditions: tuple[Condition, ...]
) -> tuple[DeploymentStatus, ...]:
    if conditions == deployment.conditions and deployment.observed_generation == deployment.generation:
        return ()
    return (DeploymentStatus(deployment.uid, deployment.generation, conditions),)


def _blind(observation: Observation, unknown: Unknown, replicas: Mapping[str, Sequence[Replica]]) -> Plan:
    """Slurm did not answer: say so, and leave everything as it is."""
    message = f"Slurm has not answered since {clock(unknown.since, observation.now)}: {unknown.error}"
    decision = Decision("", "", Reason.CLUSTER_UNREACHABLE, message)
    statuses: list[DeploymentStatus] = []
    for deployment in observation.deployments:
        shown = [(replica, replica.state, replica.message) for replica in replicas.get(deployment.uid, [])]
        conditions = conditions_of(deployment, decision, shown, observation.now)
        # The generation was not acted on, so it was not observed.
        if conditions != deployment.conditions:
            statuses.append(DeploymentStatus(deployment.uid, deployment.observed_generation, conditions))
    return Plan((decision,), (), tuple(statuses))
