"""The decision of everything: what is wanted and what is there go in, what to do and why comes out.

`plan` is a pure function. It takes no hint of why it was called, holds nothing between calls, and called again after
its actions were carried out it finds nothing to do. The order of a pass:

1. how each replica stands by itself (`replicas`);
2. how the rollout goes (`progress`), and how many replicas of which revision there are to be (`rollout`): that may let
   some go, and those are looked at again;
3. what to show of each deployment (`conditions`);
4. jobs that bear our mark and belong to nothing (`orphans`);
5. what came to nothing before is tried again only when that is due (`pace`).

When Slurm did not answer, one decision says so, and nothing else happens (rule 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

from penstock.core.altered import Altered, Unmarked, altered_job, renamed, unmarked
from penstock.core.budget import held_back
from penstock.core.conditions import BLOCKING, conditions_of
from penstock.core.decisions import (
    EFFECTS,
    Decision,
    EndAttempt,
    GoBack,
    Reason,
    RecordRollout,
    RemoveDeployment,
)
from penstock.core.estimates import Estimates, estimate, start_of
from penstock.core.jobs import Job
from penstock.core.maintenance import bounds, threats
from penstock.core.model import (
    Attempt,
    Condition,
    Deployment,
    Failure,
    Listing,
    Observation,
    Replica,
    ReplicaState,
    Unknown,
    marked_token,
)
from penstock.core.orphans import plan_orphans
from penstock.core.pace import paced, why
from penstock.core.pack import company, packs
from penstock.core.placements import each_placed, misplaced, placed, with_kinds
from penstock.core.progress import rollout_record
from penstock.core.replicas import jobs_of, plan_replica
from penstock.core.rollout import Counts, failed, plan_counts
from penstock.core.scene import Outlook, Scene
from penstock.core.sentences import clock
from penstock.core.spec import Spec
from penstock.core.spread import crowded, occupied, one_by_one, spreads
from penstock.core.states import check_move
from penstock.core.suspects import Suspect, avoided, suspects
from penstock.core.walltime import Bounds

_REMEDIES = (*EFFECTS, EndAttempt)
"""What mends by itself what is said to be in the way."""


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """A replica whose state or sentence differs from what is stored, or whose state begins anew."""

    replica_uid: str
    state: ReplicaState
    message: str
    anew: bool = False
    """Its `since` is now, though the state is the same."""


@dataclass(frozen=True, slots=True)
class DeploymentStatus:
    """A deployment whose conditions or observed generation differ from what is stored."""

    deployment_uid: str
    observed_generation: int
    conditions: tuple[Condition, ...]


class _Terms(NamedTuple):
    """What a submission at one placement keeps to."""

    avoiding: tuple[Suspect, ...]
    occupied: tuple[str, ...]
    """Nodes that run replicas of the deployment: those it asks for where it packs, and stays away from where it
    spreads."""
    bounds: Bounds


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
    listing = observation.slurm
    jobs_by_token, others = _jobs_by_token(listing, observation.installation)
    suspected = suspects(observation.failures, observation.now)
    leaving = observation.cluster.leaving if observation.cluster is not None else frozenset[str]()
    failures_by_name: dict[str, list[Failure]] = {}
    for failure in observation.failures:
        failures_by_name.setdefault(failure.deployment, []).append(failure)
    known_ids = _known_ids(observation.replicas)
    decisions: list[Decision] = []
    replica_statuses: list[ReplicaStatus] = []
    deployment_statuses: list[DeploymentStatus] = []
    for deployment in observation.deployments:
        replicas = replicas_by_deployment.get(deployment.uid, [])
        failures = failures_by_name.get(deployment.name, [])
        outcome = _plan_deployment(
            observation,
            listing,
            deployment,
            replicas,
            jobs_by_token,
            others,
            known_ids,
            failures,
            suspected,
            leaving,
        )
        decisions += outcome.decisions
        replica_statuses += outcome.replica_statuses
        deployment_statuses += outcome.deployment_statuses
    of_cluster = plan_orphans(observation, jobs_by_token)
    more = why(of_cluster, observation.vain) + _clock_told(observation.clock_off_s)
    decisions.append(replace(of_cluster, message=f"{of_cluster.message}{more}"))
    return Plan(
        tuple(paced(decision, observation.vain, observation.now) for decision in decisions),
        tuple(replica_statuses),
        tuple(deployment_statuses),
    )


def _clock_told(off_s: int) -> str:
    if not off_s:
        return ""
    how = f"{round(abs(off_s) / 60)} min {'ahead of' if off_s > 0 else 'behind'}"
    return f"; the clock of the controller's host is {how} the database's, by which all times here are: set it right"


def _jobs_by_token(listing: Listing, installation: str) -> tuple[Mapping[str, tuple[Job, ...]], Unmarked]:
    """The jobs that bear our mark, by their token; and the others."""
    jobs: dict[str, tuple[Job, ...]] = {}
    others: list[Job] = []
    for job in listing.jobs:
        token = marked_token(job, installation)
        if token is not None:
            jobs[token] = (*jobs.get(token, ()), job)
        else:
            others.append(job)
    return jobs, unmarked(others)


def _known_ids(replicas: Sequence[Replica]) -> Mapping[int, str]:
    """Which live attempt each job id is written to; the store lets it be one."""
    live = [attempt for replica in replicas if (attempt := replica.live_attempt) is not None]
    return {attempt.job_id: attempt.token for attempt in live if attempt.job_id is not None}


def _id_taken(
    attempt: Attempt,
    job: Job | None,
    jobs_by_token: Mapping[str, tuple[Job, ...]],
    known_ids: Mapping[int, str],
) -> bool:
    if attempt.job_id is None:
        return job is not None and known_ids.get(job.job_id, attempt.token) != attempt.token
    if job is not None:
        return False
    return any(other.job_id == attempt.job_id for jobs in jobs_by_token.values() for other in jobs)


def _plan_deployment(
    observation: Observation,
    listing: Listing,
    deployment: Deployment,
    replicas: Sequence[Replica],
    jobs_by_token: Mapping[str, tuple[Job, ...]],
    others: Unmarked,
    known_ids: Mapping[int, str],
    failures: Sequence[Failure],
    suspected: tuple[Suspect, ...],
    leaving: frozenset[str],
) -> Plan:
    if deployment.deleted_at is not None and not replicas:
        message = "nothing of it is left; it is removed"
        decision = Decision(deployment.name, "", Reason.DELETED, message, (RemoveDeployment(deployment.uid),))
        return Plan((decision,), (), ())

    held = held_back(deployment, replicas, failures, observation.now) if failures else {}
    may_submit = any(
        attempt is None or attempt.job_id is None
        for attempt in (replica.live_attempt for replica in replicas)
    )
    jobs: dict[str, Job | None] = {}
    altered: dict[str, Altered] = {}
    for replica in replicas:
        attempt = replica.live_attempt
        job = None if attempt is None else jobs_of(attempt, jobs_by_token)
        if attempt is not None:
            found = renamed(attempt, deployment.name, job)
            if job is None:
                found = altered_job(attempt, deployment.name, observation.installation, others)
            if found is not None:
                job, altered[replica.uid] = found.job, found
        jobs[replica.uid] = job
    estimates = _estimates(observation, deployment, replicas, jobs.values())
    together = packs(deployment)
    there = occupied(jobs.values()) if may_submit and (together or spreads(deployment)) else {}
    at_placements: dict[tuple[bool, int], _Terms] = {}
    placements: dict[bool, tuple[Spec, ...]] = {}

    def at_its_placement(replica: Replica) -> _Terms:
        attempt = replica.live_attempt
        index = replica.placement if attempt is None else attempt.placement
        if (replica.burst, index) not in at_placements:
            spec = placed(deployment.spec, replica, index)
            avoiding = avoided(spec, suspected, observation.cluster, deployment.name) if may_submit else ()
            at_placements[replica.burst, index] = _Terms(
                avoiding=avoiding,
                occupied=(company if together else crowded)(
                    spec, there, observation.cluster, [one.node for one in avoiding]
                ),
                bounds=bounds(spec, observation.cluster, estimates, observation.now),
            )
        return at_placements[replica.burst, index]

    def tried(replica: Replica) -> tuple[Spec, ...]:
        if replica.burst not in placements:
            placements[replica.burst] = each_placed(deployment.spec, replica)
        return placements[replica.burst]

    def look(replica: Replica) -> Outlook:
        attempt, job = replica.live_attempt, jobs[replica.uid]
        terms = at_its_placement(replica)
        outlook = plan_replica(
            Scene(
                now=observation.now,
                deployment=deployment,
                replica=replica,
                job=job,
                altered=altered.get(replica.uid),
                message_timeout_s=observation.message_timeout_s,
                answers_since=listing.answers_since,
                heard=observation.heard,
                past=None if attempt is None else observation.history.get(attempt.token),
                held_back=held.get(replica.uid),
                avoiding=terms.avoiding,
                crowded=() if together else terms.occupied,
                company=terms.occupied if together else (),
                id_taken=attempt is not None and _id_taken(attempt, job, jobs_by_token, known_ids),
                estimates=None if deployment.paused else estimates,
                threats=() if job is None else threats(job, tried(replica), observation.cluster, leaving),
                bounds=terms.bounds,
            )
        )
        # What is seen or said of it outweighs what came of earlier calls.
        open_still = attempt is not None and attempt.job_id is None and job is None and not attempt.refusal
        unconfirmed = attempt.token if attempt is not None and open_still else ""
        return _told(outlook, why(outlook.decision, observation.vain, unconfirmed))

    # Counted is what this observation shows, not what the last tick wrote: a replica that has just died serves nobody.
    outlooks = {replica.uid: look(replica) for replica in replicas}
    if together or spreads(deployment):
        reason = Reason.PACKING if together else Reason.SPREADING
        outlooks |= one_by_one(deployment, replicas, jobs, outlooks, reason, observation.now)
    seen = [_seen(replica, outlooks[replica.uid]) for replica in replicas]
    handed_over = _by_their_end(outlooks)
    recorded = deployment.rollout
    deployment = replace(
        deployment, rollout=rollout_record(deployment, seen, held, observation.now, failures)
    )
    wrong = misplaced(deployment, seen, handed_over)
    idle = [replica for replica in wrong if replica.state is not ReplicaState.READY]
    moving = [*handed_over, *(replica.uid for replica in wrong if replica.uid not in handed_over)]
    gone = {replica.uid for replica in idle}
    counts = _counts(
        deployment,
        [replace(one, leaving=True) if one.uid in gone else one for one in seen],
        [uid for uid in moving if uid not in gone],
    )
    counts = with_kinds(deployment, seen, moving, idle, counts)
    for replica in replicas:
        if replica.uid in counts.leaving:
            outlooks[replica.uid] = look(replace(replica, leaving=True))
        check_move(replica.name, replica.state, outlooks[replica.uid].state)
    own = counts.decision or _standing(deployment, replicas, outlooks)
    if deployment.rollout != recorded and own.reason is not Reason.ROLLED_BACK:
        record = RecordRollout(deployment.uid, deployment.rollout)
        own = replace(own, actions=(record, *own.actions))
    shown = [(outlook.state, outlook.message) for outlook in outlooks.values()]
    blocked = [
        outlook.decision
        for outlook in outlooks.values()
        if outlook.decision.reason in BLOCKING
        and not any(isinstance(one, _REMEDIES) for one in outlook.decision.actions)
    ]
    after = [_after(replica, outlooks[replica.uid], observation.now) for replica in replicas]
    return Plan(
        (own, *(outlook.decision for outlook in outlooks.values())),
        tuple(
            ReplicaStatus(replica.uid, outlook.state, outlook.message, outlook.waits_anew)
            for replica in replicas
            if (outlook := outlooks[replica.uid]).waits_anew
            or (replica.state, replica.message) != (outlook.state, outlook.message)
        ),
        _status_if_changed(
            deployment, conditions_of(deployment, own, shown, after, observation.now, blocked)
        ),
    )


def _told(outlook: Outlook, more: str) -> Outlook:
    """The outlook with both its sentences continued."""
    if not more:
        return outlook
    decision = replace(outlook.decision, message=f"{outlook.decision.message}{more}")
    return replace(outlook, decision=decision, message=f"{outlook.message}{more}")


def _by_their_end(outlooks: Mapping[str, Outlook]) -> list[str]:
    """Uids of the replicas that are handed over: first the one whose job ends first, last those that nothing ends."""
    ends = {uid: outlook.ends_at for uid, outlook in outlooks.items() if outlook.handed_over}
    known = sorted((end, uid) for uid, end in ends.items() if end is not None)
    return [*(uid for _, uid in known), *(uid for uid, end in ends.items() if end is None)]


def _estimates(
    observation: Observation, deployment: Deployment, replicas: Sequence[Replica], jobs: Iterable[Job | None]
) -> Estimates:
    live = [
        start_of(attempt.running_since, attempt.ready_at, attempt.job)
        for attempt in (replica.live_attempt for replica in replicas)
        if attempt is not None
    ]
    starts = [*observation.starts.get(deployment.uid, ()), *(start for start in live if start is not None)]
    return estimate(deployment.spec, starts, (job for job in jobs if job is not None))


def _counts(deployment: Deployment, seen: Sequence[Replica], handed_over: Sequence[str]) -> Counts:
    """How many of what there are to be; going back by itself comes before anything else."""
    record = deployment.rollout
    has_failed = record.failed_revision == deployment.revision != record.cannot_go_back
    standing = deployment.deleted_at is None and not (deployment.paused or deployment.rollout_paused)
    if not (
        has_failed and standing and record.stable_revision and deployment.spec.rollout.rollback_on_failure
    ):
        return plan_counts(deployment, seen, handed_over)
    to, new = record.stable_revision, deployment.revision + 1
    # The new revision is the stable one's spec, so it has nothing to prove, and cannot fail in its turn.
    after = replace(record, stable_revision=new, canary_since=None)
    cause = f"rolled back by itself to revision {to}: revision {deployment.revision} failed: {record.failed_message}"
    message = f"{failed(deployment)}; the deployment goes back to revision {to} by itself, as revision {new}"
    go_back = GoBack(deployment.uid, deployment.revision, to, after, cause)
    return Counts(Decision(deployment.name, "", Reason.ROLLED_BACK, message, (go_back,)), leaving=frozenset())


def _seen(replica: Replica, outlook: Outlook) -> Replica:
    if replica.state is outlook.state and outlook.new_run is None:
        return replica
    return replace(replica, state=outlook.state, attempt=outlook.new_run or replica.attempt)


def _after(replica: Replica, outlook: Outlook, now: datetime) -> Replica:
    """The replica as this tick leaves it, as far as its deployment's conditions speak of it."""
    for action in outlook.decision.actions:
        if isinstance(action, EndAttempt) and replica.attempt is not None:
            ended = replace(
                replica.attempt, ended_at=now, end_message=action.message, exit_code=action.exit_code
            )
            replica = replace(replica, failures=action.failures, attempt=ended)
    return replace(replica, state=outlook.state, message=outlook.message)


def _standing(
    deployment: Deployment, replicas: Sequence[Replica], outlooks: Mapping[str, Outlook]
) -> Decision:
    """The deployment's decision where its number of replicas is right."""
    staying = [outlooks[replica.uid] for replica in replicas if not replica.leaving]
    ready = sum(outlook.state is ReplicaState.READY for outlook in staying)
    going = len(replicas) - len(staying)
    want = deployment.spec.replicas
    message = f"{ready} of {want} ready" + (f", {going} on the way out" if going else "")
    if deployment.rollout.failed_revision == deployment.revision:
        message = f"{failed(deployment)}; there is no other to keep, so it is tried again; {message}"
        return Decision(deployment.name, "", Reason.ROLLOUT_FAILED, message)
    reason = Reason.STEADY if ready == want and not going else Reason.PROGRESSING
    return Decision(deployment.name, "", reason, message)


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
        its = replicas.get(deployment.uid, [])
        shown = [(replica.state, replica.message) for replica in its]
        conditions = conditions_of(deployment, decision, shown, its, observation.now)
        # The generation was not acted on, so it was not observed.
        if conditions != deployment.conditions:
            statuses.append(DeploymentStatus(deployment.uid, deployment.observed_generation, conditions))
    return Plan((decision,), (), tuple(statuses))
