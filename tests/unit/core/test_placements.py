"""Where jobs go: the placements in order, and which replicas are guaranteed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from penstock.core.changes import needs_revision, with_count_and_policies_of
from penstock.core.decisions import CreateReplica, EndAttempt, Leave, Reason, Submit, Withdraw
from penstock.core.endings import PACE_S
from penstock.core.jobs import Job, JobState
from penstock.core.model import Deployment, Phase, Replica, ReplicaState, RolloutRecord
from penstock.core.placements import misplaced, named, placement_of, with_kinds
from penstock.core.plan import plan
from penstock.core.replicas import plan_replica
from penstock.core.rollout import plan_counts
from penstock.core.scene import Scene
from penstock.core.spec import Burst, Canary, OutsideChanges, Placement, Rollout
from penstock.core.waiting import PACK_WAIT_S
from tests.worlds import NOW, at, attempt, deployment, drawn, job, replica, world

S = ReplicaState
FIRST, SECOND = Placement(partition="gpu", patience_s=300), Placement(qos="long", patience_s=60)
TWO = deployment()
TWO = replace(TWO, spec=replace(TWO.spec, placement=FIRST, fallbacks=(SECOND,)))
WAITING = job(JobState.PENDING, reason="Resources")
WITHDRAW = Withdraw(drawn(1), 7, f"penstock-chat-{drawn(1)}")


def queued(since_s: float, listed: Job = WAITING, placement: int = 0, **changes: object) -> Replica:
    its = attempt(job=listed, placement=placement, **changes)
    return replace(replica(its=its, state=S.QUEUED), since=at(since_s))


@pytest.mark.parametrize(
    ("of", "one", "listed", "gives_up"),
    [
        (TWO, queued(-299), WAITING, False),
        (TWO, queued(-300), WAITING, True),
        (deployment(), queued(-9999), WAITING, False),
        (replace(TWO, paused=True), queued(-9999), WAITING, False),
        # At the last one it waits for good.
        (TWO, queued(-9999, placement=1), WAITING, False),
        # It waits for its own double, or for Slurm after a requeue, and in no queue.
        (TWO, queued(-9999, it := replace(WAITING, reason="Dependency")), it, False),
        (TWO, queued(-9999, it := replace(WAITING, reason="BeginTime")), it, False),
        (TWO, queued(-9999, it := replace(WAITING, reason="PartitionTimeLimit")), it, True),
        # It has only just been seen to wait.
        (TWO, replace(queued(-9999), state=S.SUBMITTING), WAITING, False),
    ],
)
def test_patience(of: Deployment, one: Replica, listed: Job, gives_up: bool) -> None:
    outlook = plan_replica(Scene(NOW, of, one, listed, 10, None))
    assert (WITHDRAW in outlook.decision.actions) is gives_up
    assert outlook.state is S.QUEUED
    assert (outlook.decision.reason is Reason.PLACEMENT_GIVEN_UP) is gives_up


@pytest.mark.parametrize(
    ("seen", "listed"),
    [
        (job(JobState.SUSPENDED), replace(WAITING, restarts=1)),
        (job(JobState.SUSPENDED), WAITING),
        (WAITING, replace(WAITING, restarts=1)),
    ],
    ids=["suspended and requeued", "suspended", "ran between two looks, and requeued"],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_wait_after_the_job_had_nodes_counts_from_its_first_sight(
    seen: Job, listed: Job, packed: bool
) -> None:
    """It was shown as queued all the while, and only once is that begun anew."""
    one = queued(-360, seen, packed=packed)
    its_patience_s = PACK_WAIT_S if packed else FIRST.patience_s
    first = plan(world([TWO], [one], [listed]))
    (status,) = first.replica_statuses
    assert (status.state, status.anew) == (S.QUEUED, True)
    assert first.decisions[1].reason is Reason.QUEUED
    assert one.attempt is not None
    its = replace(one.attempt, job=listed, halted_since=None)
    recorded = replace(one, message=status.message, since=NOW, attempt=its)
    again = plan(world([TWO], [recorded], [listed]))
    assert (again.replica_statuses, again.decisions[1].actions) == ((), ())
    for waited_s, gives_up in ((its_patience_s - 1, False), (its_patience_s, True)):
        later = plan(replace(world([TWO], [recorded], [listed]), now=at(waited_s)))
        assert (WITHDRAW in later.decisions[1].actions) is gives_up
        assert not any(status.anew for status in later.replica_statuses)


@pytest.mark.parametrize(
    ("one", "ends_as", "goes_to", "reason"),
    [
        (queued(-300, withdrawn_at=at(-1)), JobState.CANCELLED, 1, Reason.PLACEMENT_GIVEN_UP),
        (queued(-300, withdrawn_at=at(-300)), JobState.CANCELLED, 1, Reason.PLACEMENT_GIVEN_UP),
        # It was due, but nobody of ours has withdrawn it: nobody looked for a while.
        (queued(-300), JobState.CANCELLED, 0, Reason.CANCELLED_OUTSIDE),
        # That was decided in an earlier wait; then it ran, and was requeued.
        (queued(-300, withdrawn_at=at(-301)), JobState.CANCELLED, 0, Reason.CANCELLED_OUTSIDE),
        (queued(-100), JobState.CANCELLED, 0, Reason.CANCELLED_OUTSIDE),
        (queued(-9999, placement=1), JobState.CANCELLED, 1, Reason.CANCELLED_OUTSIDE),
        (queued(-300, placement=1), JobState.FAILED, 1, Reason.JOB_ENDED),
        (queued(-300, placement=1, ready_at=at(-50)), JobState.PREEMPTED, 0, Reason.PREEMPTED),
        # Its agent has registered: it has had nodes, and somebody else cancelled it.
        (
            queued(-300, phase=Phase.STARTING, withdrawn_at=at(-1)),
            JobState.CANCELLED,
            0,
            Reason.CANCELLED_OUTSIDE,
        ),
        # It was held, so nobody of ours has withdrawn it.
        (
            queued(-300, replace(WAITING, reason="JobHeldAdmin"), withdrawn_at=at(-1)),
            JobState.CANCELLED,
            0,
            Reason.CANCELLED_OUTSIDE,
        ),
    ],
)
def test_where_the_next_attempt_goes(one: Replica, ends_as: JobState, goes_to: int, reason: Reason) -> None:
    outlook = plan_replica(Scene(NOW, TWO, one, job(ends_as), 10, None))
    (end,) = [action for action in outlook.decision.actions if isinstance(action, EndAttempt)]
    assert (outlook.decision.reason, end.placement) == (reason, goes_to)
    if reason is Reason.PLACEMENT_GIVEN_UP:
        assert (end.failures, end.failed, end.next_attempt_at) == (0, False, NOW)


@pytest.mark.parametrize("outside", list(OutsideChanges))
@pytest.mark.parametrize("withdrawn", [True, False])
def test_what_somebody_cancelled_while_nobody_looked_is_his(outside: OutsideChanges, withdrawn: bool) -> None:
    """A young job, requeued and cancelled during an outage of ours, in which its patience ended."""
    of = replace(
        TWO, spec=replace(TWO.spec, outside_changes=outside, placement=replace(FIRST, patience_s=10))
    )
    its = attempt(job=WAITING, intended_at=at(-20), withdrawn_at=at(-1) if withdrawn else None)
    one = replace(replica(its=its, state=S.QUEUED), since=at(-15))
    outlook = plan_replica(Scene(NOW, of, one, job(JobState.CANCELLED), 10, None))
    (end,) = [action for action in outlook.decision.actions if isinstance(action, EndAttempt)]
    assert end.next_attempt_at == (NOW if withdrawn else at(-20 + PACE_S))
    left = outside is OutsideChanges.RESPECT and not withdrawn
    after = replace(
        one,
        state=S.WAITING,
        placement=end.placement,
        next_attempt_at=end.next_attempt_at,
        attempt=replace(its, job=job(JobState.CANCELLED), ended_at=NOW),
    )
    later = plan_replica(Scene(at(PACE_S), of, after, None, 10, None))
    assert any(isinstance(action, Submit) for action in later.decision.actions) is not left


def test_patience_and_fallbacks_are_no_part_of_a_revision() -> None:
    old = TWO.spec
    patient = replace(old, placement=replace(FIRST, patience_s=900))
    assert not needs_revision(old, patient)
    assert not needs_revision(old, replace(old, fallbacks=()))
    assert needs_revision(old, replace(old, placement=replace(FIRST, partition="cpu")))
    kept = with_count_and_policies_of(replace(patient, fallbacks=()), old)
    assert kept.placements == (replace(FIRST, patience_s=900),)


def test_names_and_places() -> None:
    one, burst = replica(), replica(burst=True)
    assert named(TWO.spec, one, 1) == "placement 2 of 2 (QOS long)"
    assert named(deployment().spec, one, 0) == ""
    bursting = replace(TWO.spec, burst=Burst(1, (SECOND,)))
    assert named(bursting, burst, 0) == "burst placement 1 of 1 (QOS long)"
    assert placement_of(bursting, burst, 5) is SECOND
    assert placement_of(TWO.spec, burst, 5) is SECOND
    assert placement_of(TWO.spec, one, 0) is FIRST


def bursting(replicas: int, base: int) -> Deployment:
    of = deployment(replicas=replicas)
    return replace(of, spec=replace(of.spec, burst=Burst(base, (SECOND,))))


def rolling(replicas: int, base: int, rollout: Rollout, **changes: Any) -> Deployment:
    """From revision 1 to revision 2."""
    of = deployment(replicas=replicas, rollout=rollout, revision=2, **changes)
    return replace(of, spec=replace(of.spec, burst=Burst(base, (SECOND,))))


def some(bases: str, bursts: str) -> list[Replica]:
    """A letter for each: r is ready, q queued."""
    states = {"r": S.READY, "q": S.QUEUED}
    kinds = [(letter, False) for letter in bases] + [(letter, True) for letter in bursts]
    return [
        replica(number, state=states[letter], burst=burst)
        for number, (letter, burst) in enumerate(kinds, start=1)
    ]


@pytest.mark.parametrize(
    ("want", "base", "there", "wrong"),
    [
        (3, 2, some("rr", "r"), []),
        (3, 2, some("rr", "rr"), []),  # A scaling lets the right one go.
        (2, 2, some("qq", "rr"), [3, 4]),  # The bursts stay until the guaranteed ones are ready.
        (4, 4, some("rr", "rr"), [3, 4]),
        (4, 1, some("rrrr", ""), [2, 3, 4]),
        (4, 1, some("rrrr", "qqq"), [2, 3, 4]),  # The new ones are not the surplus.
        (3, 2, some("rq", "rr"), [4]),
        (2, 5, some("rr", ""), []),
        (5, 2, some("rr", "r"), []),
    ],
)
def test_what_is_of_the_wrong_kind(want: int, base: int, there: list[Replica], wrong: list[int]) -> None:
    of = bursting(want, base)
    assert sorted(one.number for one in misplaced(of, there, frozenset())) == wrong
    assert misplaced(replace(of, paused=True), there, frozenset()) == ()


def test_without_a_burst_nothing_is_of_the_wrong_kind() -> None:
    assert misplaced(deployment(replicas=2), some("rrr", ""), frozenset()) == ()
    # Its burst was taken out of the spec.
    assert len(misplaced(deployment(replicas=2), some("r", "r"), frozenset())) == 1


def test_a_replica_that_is_handed_over_is_no_surplus() -> None:
    there = some("rrq", "r")
    assert misplaced(bursting(3, 2), there, frozenset({"r1"})) == ()


@pytest.mark.parametrize(
    ("want", "base", "there", "kinds"),
    [(3, 2, [], [False, False, True]), (4, 1, some("r", ""), [True] * 3), (3, 2, some("r", "r"), [False])],
)
def test_guaranteed_ones_are_made_first(
    want: int, base: int, there: list[Replica], kinds: list[bool]
) -> None:
    of = bursting(want, base)
    counts = with_kinds(of, there, frozenset(), (), plan_counts(of, there))
    assert counts.decision is not None
    made = [action.burst for action in counts.decision.actions if isinstance(action, CreateReplica)]
    assert made == kinds


def old(bases: int, bursts: int) -> list[Replica]:
    """Ready replicas of revision 1, which is the stable one."""
    return some("r" * bases, "r" * bursts)


def new(number: int, *, burst: bool) -> Replica:
    return replica(number, state=S.READY, burst=burst, revision=2)


CANARY = Rollout(max_surge="1", canary=Canary(25, None))
MOST = Rollout(max_surge="1", canary=Canary(75, None))
FAILED = RolloutRecord(stable_revision=1, failed_revision=2, failed_message="chat-9: no")


@pytest.mark.parametrize(
    ("of", "there", "moving", "made"),
    [
        # Beside old ones that stay, the base counts both revisions.
        (rolling(4, 2, CANARY), old(2, 2), set(), [(2, True)]),
        (rolling(4, 2, CANARY), [*old(2, 1), new(9, burst=True)], {"r1"}, [(1, False)]),
        (rolling(4, 2, CANARY), [*old(2, 1), new(9, burst=True)], {"r3"}, [(1, True)]),
        (rolling(4, 2, CANARY), [*old(2, 1), new(9, burst=True)], {"r9"}, [(2, True)]),
        # Of the new revision there are never more bursts than there will be in the end.
        (rolling(4, 2, MOST), [*old(2, 0), new(8, burst=True), new(9, burst=True)], set(), [(2, False)]),
        # A revision that failed has no successors.
        (rolling(4, 2, Rollout(), record=FAILED), old(2, 2), {"r1"}, [(1, False)]),
        (rolling(4, 2, Rollout(), record=FAILED), old(2, 2), {"r4"}, [(1, True)]),
        (rolling(2, 1, Rollout(), record=FAILED), [old(1, 0)[0], new(9, burst=True)], {"r9"}, [(1, True)]),
        # Nor has one whose rollout stands still, whether or not anything was stable before it.
        (rolling(4, 2, Rollout(), rollout_paused=True), old(2, 2), {"r2"}, [(1, False)]),
        (
            rolling(1, 1, Rollout(), rollout_paused=True, record=RolloutRecord()),
            old(1, 0),
            {"r1"},
            [(1, False)],
        ),
        # A rollout that goes on makes the new revision's guaranteed ones first.
        (rolling(4, 2, Rollout()), old(2, 2), set(), [(2, False)]),
    ],
)
def test_kind_and_revision_of_what_a_rollout_makes(
    of: Deployment, there: list[Replica], moving: set[str], made: list[tuple[int, bool]]
) -> None:
    counts = with_kinds(of, there, frozenset(moving), (), plan_counts(of, there, sorted(moving)))
    assert counts.decision is not None
    actions = [action for action in counts.decision.actions if isinstance(action, CreateReplica)]
    assert [(action.revision, action.burst) for action in actions] == made


def test_what_serves_nobody_and_is_misplaced_goes_at_once() -> None:
    of, there = bursting(2, 2), some("rr", "q")
    counts = with_kinds(of, there, frozenset({"r3"}), [there[2]], plan_counts(of, there[:2]))
    assert counts.decision is not None
    assert counts.decision.actions == (Leave("r3"),)
    assert counts.leaving == {"r3"}


@pytest.mark.parametrize(
    ("placements", "revision", "to"),
    [
        ((Placement(),), 1, ""),
        ((Placement(partition="gpu", constraint="a100"),), 1, " to partition gpu, constraint a100"),
        ((Placement(reservation="course"),), 1, " to reservation course"),
        ((FIRST, SECOND), 1, " to placement 2 of 2 (QOS long)"),
        ((FIRST, SECOND), 2, ""),
    ],
    ids=["the cluster's own", "the only one", "a reservation", "one of two", "of a revision before"],
)
def test_a_refusal_says_where_it_was_to_run(
    placements: tuple[Placement, ...], revision: int, to: str
) -> None:
    of = deployment()
    spec = replace(of.spec, placement=placements[0], fallbacks=placements[1:])
    one = replica(its=attempt(job_id=None, refusal="Invalid feature", placement=1), state=S.SUBMITTING)
    outlook = plan_replica(Scene(NOW, replace(of, spec=spec, revision=revision), one, None, 10, None))
    assert outlook.message == f"Slurm refused attempt 1{to}: Invalid feature; next attempt 14:00:10"
