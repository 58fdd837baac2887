"""Where a replica's next job goes: the placements that are tried in order, and which replicas are the guaranteed ones.

Placements. Each replica begins with the first one. A job that waits in the queue for longer than its placement's
patience is withdrawn, and the next attempt goes to the next placement; at the last one it waits for good. Waiting is no
failure: no back-off, and nobody's fault. An attempt that was ready ends the search, so that the next one begins with
the first placement again: what was full then may have room now.

Base and burst. The first `Burst.base` replicas run in the deployment's own placements, those beyond it in the burst's.
Which of the two a replica is was settled when it was made, and never changes: where the numbers are not as wanted (the
base was changed, or a guaranteed replica went), the surplus of one kind is handed over to new ones of the other, so
that nothing that serves goes before its successor is ready. Of equals, what a scaling lets go is a burst replica.

A rollout makes the new revision's guaranteed ones first. Where old replicas are meant to stay beside the new ones (a
canary, a rollout that failed or stands still), the base counts those of all revisions; old ones of the wrong kind are
left alone until the rollout goes on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from penstock.core.decisions import Action, CreateReplica, Decision, Leave, Reason
from penstock.core.model import Deployment, Replica
from penstock.core.rollout import Counts, keeps_old, least_worth
from penstock.core.sentences import count
from penstock.core.spec import Placement, Spec


def placement_of(spec: Spec, replica: Replica, index: int) -> Placement:
    """The placement with this index, or the last one where there are fewer by now."""
    listed = spec.placements_of(burst=replica.burst)
    return listed[min(index, len(listed) - 1)]


def placed(spec: Spec, replica: Replica, index: int) -> Spec:
    """The spec with the one placement where the replica's job runs, or is to run."""
    chosen = placement_of(spec, replica, index)
    return spec if chosen is spec.placement else replace(spec, placement=chosen)


def each_placed(spec: Spec, replica: Replica) -> tuple[Spec, ...]:
    """The same at each of the replica's placements, in the order in which they are tried."""
    return tuple(
        placed(spec, replica, index) for index in range(len(spec.placements_of(burst=replica.burst)))
    )


def named(spec: Spec, replica: Replica, index: int) -> str:
    """Such as `placement 2 of 3 (partition gpu, QOS high)`; empty where there is no choice."""
    listed = spec.placements_of(burst=replica.burst)
    if len(listed) == 1 and not replica.burst:
        return ""
    index = min(index, len(listed) - 1)
    said = _asked(listed[index])
    kind = "burst placement" if replica.burst else "placement"
    return f"{kind} {index + 1} of {len(listed)}" + f" ({said})" * bool(said)


def described(spec: Spec, replica: Replica, index: int) -> str:
    """As `named`; where there is no choice, what the one placement asks for, such as `partition gpu`."""
    return named(spec, replica, index) or _asked(placement_of(spec, replica, index))


def _asked(one: Placement) -> str:
    words = {
        "partition": one.partition,
        "QOS": one.qos,
        "account": one.account,
        "constraint": one.constraint,
        "reservation": one.reservation,
    }
    return ", ".join(f"{word} {value}" for word, value in words.items() if value)


def misplaced(
    deployment: Deployment, replicas: Sequence[Replica], handed_over: Collection[str]
) -> tuple[Replica, ...]:
    """Replicas of the kind, base or burst, of which there are more than wanted; those that serve nobody first.

    None where there are too many replicas anyway, and it is the right ones that a scaling lets go.
    """
    if deployment.paused or deployment.rollout_paused or deployment.deleted_at is not None:
        return ()
    current = [
        one
        for one in replicas
        if not one.leaving and one.revision == deployment.revision and one.uid not in handed_over
    ]
    surplus = len(current) - deployment.spec.replicas
    kept = least_worth(current)[max(0, surplus) :]
    return _beyond(deployment, current) if _beyond(deployment, kept) else ()


def _beyond(deployment: Deployment, replicas: Sequence[Replica]) -> tuple[Replica, ...]:
    base = _base(deployment)
    found: list[Replica] = []
    for burst, wanted in ((False, base), (True, deployment.spec.replicas - base)):
        kind = least_worth([one for one in replicas if one.burst is burst])
        found += kind[: max(0, len(kind) - wanted)]
    return tuple(found)


def with_kinds(
    deployment: Deployment,
    replicas: Sequence[Replica],
    moving: Collection[str],
    idle: Sequence[Replica],
    counts: Counts,
) -> Counts:
    """The counts with every new replica's kind, and without the `idle`, which serve nobody and are misplaced.

    `moving`: uids of replicas that do not count, because a successor takes over from them.
    """
    gone = counts.leaving | {one.uid for one in idle} | set(moving)
    staying = [one for one in replicas if not one.leaving and one.uid not in gone]
    current = [one for one in staying if one.revision == deployment.revision]
    base = _base(deployment)
    guaranteed = sum(not one.burst for one in (staying if keeps_old(deployment, replicas) else current))
    room = deployment.spec.replicas - base - sum(one.burst for one in current)
    actions: list[Action] = []
    for action in counts.decision.actions if counts.decision is not None else ():
        if isinstance(action, CreateReplica):
            is_current = action.revision == deployment.revision
            # More bursts of the current revision than `misplaced` lets be would be made again and again.
            action = replace(action, burst=guaranteed >= base and (room > 0 or not is_current))
            guaranteed += not action.burst
            room -= action.burst and is_current
        actions.append(action)
    actions += [Leave(one.uid) for one in idle]
    if counts.decision is None and not idle:
        return counts
    said = f"{count(len(idle), 'replica')} on the wrong side of spec.burst.base to go"
    if counts.decision is None:
        decision = Decision(deployment.name, "", Reason.SCALE_DOWN, said, tuple(actions))
    else:
        message = counts.decision.message + f"; {said}" * bool(idle)
        decision = replace(counts.decision, message=message, actions=tuple(actions))
    return Counts(decision, counts.leaving | {one.uid for one in idle})


def _base(deployment: Deployment) -> int:
    """How many of the wanted replicas are guaranteed ones."""
    burst, wanted = deployment.spec.burst, deployment.spec.replicas
    return wanted if burst is None else min(burst.base, wanted)
