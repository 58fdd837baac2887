"""Replicas on few nodes: which node a submission asks for, for how long, and what comes then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from penstock.core import suspects
from penstock.core.decisions import Decision, EndAttempt, Reason, Resubmit, Submit, Withdraw
from penstock.core.jobs import Cluster, Job, JobState, Node
from penstock.core.model import Deployment, Replica, ReplicaState
from penstock.core.pack import company
from penstock.core.plan import plan
from penstock.core.spec import NodeSpread, OutsideChanges, Placement, Resources, Spec
from tests.unit.core.test_spread import cluster
from tests.worlds import SPEC, at, attempt, deployment, job, replica, world


@pytest.mark.parametrize(
    ("there", "taken", "asked"),
    [
        ({}, (0, 0), ()),
        ({"n1": 1}, (1, 0), ("n1",)),
        # Most of ours first, then what others have filled most.
        ({"n1": 1, "n2": 2}, (3, 2), ("n2",)),
        ({"n1": 1, "n2": 1}, (1, 2), ("n2",)),
        # No room beside it: anywhere is better than waiting.
        ({"n1": 1}, (4, 0), ()),
        ({"n1": 2, "n2": 1}, (4, 1, 0), ("n2",)),
        # The look is older than our own jobs.
        ({"n1": 4}, (0, 0), ()),
        ({"gone": 1}, (0, 0), ()),
    ],
)
def test_what_is_asked_for(there: dict[str, int], taken: tuple[int, ...], asked: tuple[str, ...]) -> None:
    assert company(SPEC, there, cluster(*taken)) == asked


def test_what_is_not_asked_for() -> None:
    there = {"n1": 1, "n2": 1}
    assert company(SPEC, there, None) == ()
    assert company(SPEC, there, cluster(1, 1), left_out=("n1",)) == ("n2",)
    drained = cluster(1, 1)
    away = replace(drained.nodes[0], state="DRAINED")
    assert company(SPEC, there, replace(drained, nodes=(away, drained.nodes[1]))) == ("n2",)
    for placement in (Placement(options={"nodelist": "n1"}), Placement(exclusive=True)):
        assert company(replace(SPEC, placement=placement), there, cluster(1, 1)) == ()
    wide = replace(SPEC, resources=Resources(nodes=3))
    assert company(wide, there, cluster(1, 1, 0)) == ("n1", "n2"), "the third is left to Slurm"


def test_only_nodes_that_run_a_replica_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass must not cost nodes times deployments."""
    seen: list[str] = []

    def looked_at(spec: Spec, node: Node, of: Cluster) -> bool:
        seen.append(node.name)
        return could_run(spec, node, of)

    could_run = suspects.could_run
    monkeypatch.setattr(suspects, "could_run", looked_at)
    assert company(SPEC, {"n2": 1}, cluster(0, 1, 0, 0)) == ("n2",)
    assert seen == ["n2"]


def packed(replicas: int = 2, **changes: Any) -> Deployment:
    of = deployment(replicas=replicas)
    return replace(of, spec=replace(of.spec, node_spread=NodeSpread.PACK, **changes))


SERVING = job(token="tok9", job_id=9, nodes="n1")
FIRST = replica(1, its=attempt(token="tok9", job_id=9, job=SERVING))


def second(of: Deployment, one: Replica, *jobs: Job) -> Decision:
    seen = plan(world([of], [FIRST, one], [SERVING, *jobs], cluster=cluster(1, 0)))
    return next(decision for decision in seen.decisions if decision.replica == "chat-2")


def test_a_submission_asks_for_the_node_of_another_replica() -> None:
    decision = second(packed(), replica(2))
    (submit,) = decision.actions
    assert isinstance(submit, Submit)
    assert (submit.beside, submit.exclude) == (("n1",), ())
    assert decision.message == "attempt 1 of revision 1 is submitted; on n1, beside replicas of it"


def test_they_are_submitted_one_by_one() -> None:
    decided = plan(world([packed(3)], [replica(1), replica(2), replica(3)]))
    reasons = {decision.replica: decision.reason for decision in decided.decisions if decision.replica}
    assert reasons == {"chat-1": Reason.SUBMIT, "chat-2": Reason.PACKING, "chat-3": Reason.PACKING}


WAITING = job(JobState.PENDING, reason="Resources")


def waits(since_s: float, *, asked: bool = True, **changes: Any) -> Replica:
    its = attempt(packed=asked, intended_at=at(-since_s), submitted_at=at(-since_s), **changes)
    return replica(2, its=its, since=at(-since_s))


@pytest.mark.parametrize(
    ("asked", "since_s", "reason"),
    [(True, 14, Reason.QUEUED), (True, 15, Reason.PACK_GIVEN_UP), (False, 900, Reason.QUEUED)],
)
def test_a_job_that_finds_no_room_there_is_withdrawn(asked: bool, since_s: float, reason: Reason) -> None:
    decision = second(packed(), waits(since_s, asked=asked, job=WAITING), WAITING)
    assert decision.reason is reason
    assert any(isinstance(action, Withdraw) for action in decision.actions) is (
        reason is Reason.PACK_GIVEN_UP
    )


def test_its_turn_to_come_is_no_want_of_room() -> None:
    begins = replace(WAITING, reason="BeginTime")
    assert second(packed(), waits(900, job=begins), begins).reason is Reason.QUEUED


@pytest.mark.parametrize("outside", list(OutsideChanges))
def test_the_next_one_goes_anywhere_at_once(outside: OutsideChanges) -> None:
    """Whatever is done about what somebody cancels: this was our own act."""
    of = packed(outside_changes=outside)
    gone = job(JobState.CANCELLED, nodes="", started_at=None, ends_at=at(-1))
    decision = second(of, waits(20, job=WAITING, withdrawn_at=at(-2)), gone)
    assert decision.reason is Reason.PACK_GIVEN_UP
    (end,) = [action for action in decision.actions if isinstance(action, EndAttempt)]
    assert (end.placement, end.next_attempt_at, end.failed) == (0, at(0), False)
    ended = waits(
        20,
        asked=end.found_no_room,
        job=gone,
        withdrawn_at=at(-2),
        ended_at=at(0),
        end_message=end.message,
    )
    waiting = replace(ended, state=ReplicaState.WAITING, next_attempt_at=at(0))
    (submit,) = second(of, waiting).actions
    assert isinstance(submit, Submit)
    assert submit.beside == ()


def test_what_somebody_cancelled_before_it_was_withdrawn_is_his() -> None:
    gone = job(JobState.CANCELLED, nodes="", started_at=None, ends_at=at(-1))
    decision = second(packed(), waits(20, job=WAITING), gone)
    assert decision.reason is Reason.CANCELLED_OUTSIDE
    (end,) = [action for action in decision.actions if isinstance(action, EndAttempt)]
    assert (end.placement, end.next_attempt_at) == (0, at(40)), "at the pace of what somebody cancels"


@pytest.mark.parametrize(
    "before",
    [
        waits(600, job=replace(WAITING, reason="JobHeldUser"), withdrawn_at=at(-300)),
        waits(20, job=job(nodes="n1"), withdrawn_at=at(-16), running_since=at(-15)),
    ],
    ids=["held by somebody", "ran"],
)
def test_what_somebody_cancelled_is_no_withdrawal(before: Replica) -> None:
    """And stays so, where that is respected, in every later tick."""
    of = packed(outside_changes=OutsideChanges.RESPECT)
    gone = job(JobState.CANCELLED, ends_at=at(-1))
    decision = second(of, before, gone)
    assert decision.reason is Reason.CANCELLED_OUTSIDE
    (end,) = [action for action in decision.actions if isinstance(action, EndAttempt)]
    assert before.attempt is not None
    ended = replace(
        before.attempt, job=gone, ended_at=at(0), end_message=end.message, packed=end.found_no_room
    )
    after = replace(before, attempt=ended, state=ReplicaState.WAITING, next_attempt_at=end.next_attempt_at)
    seen = replace(world([of], [FIRST, after], [SERVING], cluster=cluster(1, 0)), now=at(700))
    later = next(decision for decision in plan(seen).decisions if decision.replica == "chat-2")
    assert (later.reason, later.actions) == (Reason.CANCELLED_OUTSIDE, ())


@pytest.mark.parametrize(("asked", "beside"), [(True, ("n1",)), (False, ())])
def test_what_is_submitted_again_asks_as_it_did_before(asked: bool, beside: tuple[str, ...]) -> None:
    """For the nodes that run others by now; one that was to run anywhere runs anywhere."""
    its = attempt(job_id=None, packed=asked, submitted_at=at(-60))
    decision = second(packed(), replica(2, its=its, state=ReplicaState.SUBMITTING))
    (resubmit,) = decision.actions
    assert isinstance(resubmit, Resubmit)
    assert resubmit.beside == beside
    assert ("; on n1, beside replicas of it" in decision.message) is asked
