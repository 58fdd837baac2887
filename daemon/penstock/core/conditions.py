"""A deployment's conditions, and the one sentence that says how it is.

Facts about now, computed afresh each tick; only `since` looks back, to the conditions stored before.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from penstock.core import adapters
from penstock.core.decisions import Decision, Reason
from penstock.core.model import Attempt, Condition, ConditionStatus, Deployment, Replica, ReplicaState
from penstock.core.sentences import count

BLOCKING = frozenset({Reason.QUEUE_BLOCKED, Reason.HELD, Reason.CANCELLED_OUTSIDE, Reason.JOB_UNMARKED})
"""Reasons that stand until a human does something, where the decision has no action of its own."""

LOOP_FAILURES = 3
"""In a row: a model that needs a second try is no loop."""
LAST_LINES = 5
LAST_CHARACTERS = 600
"""Of the engine's last words: a traceback's end says what it died of, and the whole is with the attempt."""

Shown = tuple[ReplicaState, str]
"""The state and the sentence that a replica is to be shown with."""

_NEAREST_FIRST = (
    ReplicaState.STARTING,
    ReplicaState.QUEUED,
    ReplicaState.SUBMITTING,
    ReplicaState.WAITING,
    ReplicaState.STOPPING,
    ReplicaState.DRAINING,
)
"""Of several replicas that are not ready, the one nearest to it is what a waiting client wants to hear of."""


def summary(deployment: Deployment, shown: Sequence[Shown]) -> str:
    """Such as `0 of 1 ready: queued in Slurm as job 7, Resources, estimated start 14:03`."""
    ready = sum(state is ReplicaState.READY for state, _ in shown)
    text = f"{ready} of {deployment.spec.replicas} ready"
    if deployment.deleted_at is not None:
        return f"{text}: the deployment is being deleted"
    if ready >= deployment.spec.replicas:
        return text
    for state in _NEAREST_FIRST:
        for candidate, message in shown:
            if candidate is state and message:
                return f"{text}: {message}"
    return f"{text}: paused" if deployment.paused else text


def _awaited(replicas: Sequence[Replica]) -> str:
    """What the replica says that is nearest to being ready, as the end of a sentence; empty where none is awaited."""
    staying = [one for one in replicas if not one.leaving and one.message]
    nearest = (one for state in _NEAREST_FIRST for one in staying if one.state is state)
    return next((f"; {one.name}: {one.message}" for one in nearest), "")


def conditions_of(
    deployment: Deployment,
    own: Decision,
    shown: Sequence[Shown],
    replicas: Sequence[Replica],
    now: datetime,
    blocked: Sequence[Decision] = (),
) -> tuple[Condition, ...]:
    """Ready, Progressing, Paused, ClusterReachable, CrashLooping, Blocked, and AdaptersLoaded where there are adapters,
    in this order.

    `blocked`: decisions about replicas that go no further unless somebody acts, see BLOCKING.
    """
    before = {condition.type: condition for condition in deployment.conditions}
    want = deployment.spec.replicas
    ready = sum(state is ReplicaState.READY for state, _ in shown)
    reachable = own.reason is not Reason.CLUSTER_UNREACHABLE
    settled = own.reason in (
        Reason.STEADY,
        Reason.PAUSED,
        Reason.ROLLOUT_PAUSED,
        Reason.ROLLOUT_FAILED,
    )
    found = [
        (
            "Ready",
            _is(ready >= want and deployment.deleted_at is None),
            own.reason,
            summary(deployment, shown),
        ),
        (
            "Progressing",
            _is(not settled) if reachable else ConditionStatus.UNKNOWN,
            own.reason,
            own.message + _awaited(replicas) * (reachable and not settled),
        ),
        ("Paused", _is(deployment.paused), Reason.PAUSED if deployment.paused else own.reason, ""),
        (
            "ClusterReachable",
            _is(reachable),
            Reason.CLUSTER_REACHABLE if reachable else own.reason,
            "" if reachable else own.message,
        ),
    ]
    looping = worst_loop(replicas)
    message = crash_loop(looping) if looping is not None else ""
    if not message and looping is not None and (said := before.get("CrashLooping")) is not None:
        message = said.message  # The next try is under way, and how the last one ended has been said.
    found.append(
        (
            "CrashLooping",
            _is(looping is not None),
            Reason.CRASH_LOOPING if looping is not None else own.reason,
            message,
        )
    )
    found.append(_blocked(own, before.get("Blocked"), blocked, reachable=reachable))
    if deployment.spec.model.adapters:
        found.append(_adapters(deployment, own, replicas))
    return tuple(
        Condition(kind, status, reason.word, message, _since(before.get(kind), status, now))
        for kind, status, reason, message in found
    )


def _blocked(
    own: Decision, before: Condition | None, blocked: Sequence[Decision], *, reachable: bool
) -> tuple[str, ConditionStatus, Reason, str]:
    """Whether somebody must act; while Slurm does not answer that is as it was last known."""
    if not reachable:
        return "Blocked", ConditionStatus.UNKNOWN, own.reason, before.message if before is not None else ""
    if not blocked:
        return "Blocked", ConditionStatus.FALSE, own.reason, ""
    more = f"; and {len(blocked) - 1} more" if len(blocked) > 1 else ""
    return (
        "Blocked",
        ConditionStatus.TRUE,
        blocked[0].reason,
        f"{blocked[0].replica}: {blocked[0].message}{more}",
    )


def _adapters(
    deployment: Deployment, own: Decision, replicas: Sequence[Replica]
) -> tuple[str, ConditionStatus, Reason, str]:
    """Whether every ready replica has every adapter."""
    kind, wanted = "AdaptersLoaded", count(len(deployment.spec.model.adapters), "adapter")
    ready = [replica for replica in replicas if adapters.judged(deployment, replica)]
    if not ready:
        return kind, ConditionStatus.FALSE, own.reason, f"{wanted}, and no replica that is ready for them"
    lacking = {replica.name: lacks for replica in ready if (lacks := adapters.lacks(deployment, replica))}
    if not lacking:
        return kind, ConditionStatus.TRUE, Reason.READY, f"{wanted} on {count(len(ready), 'ready replica')}"
    failing = {name: lacks for name, lacks in lacking.items() if any(lack.message for lack in lacks)}
    name, lacks = next(iter((failing or lacking).items()))
    reason = Reason.ADAPTER_FAILED if failing else Reason.ADAPTERS_LOADING
    message = f"{len(ready) - len(lacking)} of {len(ready)} ready replicas have all of {wanted}; {name}: "
    return kind, ConditionStatus.FALSE, reason, message + adapters.told(lacks)


def worst_loop(replicas: Sequence[Replica]) -> Replica | None:
    """The replica with the most failures in a row, if they are many, and it is neither ready again nor to go."""
    looping = [
        replica
        for replica in replicas
        if replica.failures >= LOOP_FAILURES
        and not replica.leaving
        and replica.state not in (ReplicaState.READY, ReplicaState.REMOVED)
    ]
    return max(looping, key=lambda replica: (replica.failures, -replica.number), default=None)


def crash_loop(replica: Replica) -> str:
    """How often it failed, how its last attempt ended, and what its engine said last, on one line. Empty while an
    attempt is live: what is recorded is of that one then."""
    attempt = replica.attempt
    if attempt is None or attempt.live:
        return ""
    code = f" with exit code {attempt.exit_code}" if attempt.exit_code is not None else ""
    text = (
        f"{replica.name} failed {replica.failures} times in a row, the last time{code}: {attempt.end_message}"
    )
    return text + last_lines(attempt)


def last_lines(attempt: Attempt) -> str:
    """What the engine said last, as the end of a sentence; empty where it said nothing."""
    lines = [line.strip() for line in attempt.last_words.splitlines() if line.strip()][-LAST_LINES:]
    said = " | ".join(lines)
    if len(said) > LAST_CHARACTERS:
        said = f"...{said[-LAST_CHARACTERS:]}"
    return f"; the engine's last lines: {said}" if said else ""


def _is(value: bool) -> ConditionStatus:
    return ConditionStatus.TRUE if value else ConditionStatus.FALSE


def _since(before: Condition | None, status: ConditionStatus, now: datetime) -> datetime:
    return before.since if before is not None and before.status is status else now
