"""Replicas over nodes: which nodes a submission leaves to the others, and when it waits for them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from penstock.core.decisions import Decision, EndAttempt, Reason, Resubmit, Submit, Withdraw
from penstock.core.jobs import Cluster, Job, JobState, Node, Partition
from penstock.core.model import Deployment, Replica, ReplicaState
from penstock.core.plan import plan
from penstock.core.spec import NodeSpread, Placement, Resources
from penstock.core.spread import SPREAD_MAX, crowded
from tests.worlds import SPEC, at, attempt, deployment, job, replica, world


def cluster(*taken: int, cpus: int = 4) -> Cluster:
    """Nodes n1, n2, ... of which so many CPUs are taken."""
    nodes = tuple(
        Node(f"n{number}", "MIXED", cpus, 16_000, {}, ("gpu",), cpus_allocated=used)
        for number, used in enumerate(taken, start=1)
    )
    names = tuple(node.name for node in nodes)
    gpu = Partition("gpu", True, True, None, None, None, len(nodes), cpus * len(nodes), names)
    return Cluster("c", "22.05.8", (gpu,), nodes)


@pytest.mark.parametrize(
    ("there", "taken", "left_out"),
    [
        ({}, (0, 0), ()),
        ({"n1": 1}, (1, 0), ("n1",)),
        ({"n1": 1, "n2": 1}, (1, 1), ()),
        ({"n1": 2, "n2": 1}, (2, 1), ("n1",)),
        # The other one is full: sharing is better than waiting.
        ({"n1": 1}, (1, 4), ()),
        ({"n1": 1}, (4, 4), ()),
        ({"n1": 1, "n2": 1}, (1, 1, 0), ("n1", "n2")),
    ],
)
def test_what_is_left_to_the_others(
    there: dict[str, int], taken: tuple[int, ...], left_out: tuple[str, ...]
) -> None:
    assert crowded(SPEC, there, cluster(*taken)) == left_out


def test_enough_nodes_always_remain() -> None:
    wide = replace(SPEC, resources=Resources(nodes=2))
    assert crowded(wide, {"n1": 1}, cluster(1, 0)) == ()
    assert crowded(wide, {"n1": 1}, cluster(1, 0, 0)) == ("n1",)
    assert crowded(SPEC, {"n1": 1}, cluster(1, 0), left_out=("n2",)) == ()
    assert crowded(SPEC, {"n1": 1}, None) == ()
    many = {f"n{number}": 1 for number in range(1, 200)}
    assert len(crowded(SPEC, many, cluster(*[1] * 199, 0))) == SPREAD_MAX


def test_nodes_that_somebody_chose_are_his() -> None:
    chosen = replace(SPEC, placement=Placement(options={"nodelist": "n1"}))
    assert crowded(chosen, {"n1": 1}, cluster(1, 0)) == ()


def spread(replicas: int) -> Deployment:
    of = deployment(replicas=replicas)
    return replace(of, spec=replace(of.spec, node_spread=NodeSpread.SPREAD))


def test_they_are_submitted_one_by_one() -> None:
    decided = plan(world([spread(3)], [replica(1), replica(2), replica(3)]))
    reasons = {decision.replica: decision.reason for decision in decided.decisions if decision.replica}
    assert reasons == {"chat-1": Reason.SUBMIT, "chat-2": Reason.SPREADING, "chat-3": Reason.SPREADING}


@pytest.mark.parametrize(("ago_s", "submitted"), [(5, False), (15, True)])
def test_a_queue_is_not_waited_for(ago_s: float, submitted: bool) -> None:
    waiting = job(JobState.PENDING, reason="Resources")
    first = replica(1, its=attempt(job=waiting, intended_at=at(-ago_s), submitted_at=at(-ago_s)))
    decided = plan(world([spread(2)], [first, replica(2)], [waiting]))
    (second,) = [decision for decision in decided.decisions if decision.replica == "chat-2"]
    assert (second.reason is Reason.SUBMIT) is submitted


def test_the_submission_says_where_it_does_not_go() -> None:
    running = job(nodes="n1")
    first = replica(1, its=attempt(job=running))
    seen = world([spread(2)], [first, replica(2)], [running], cluster=cluster(1, 0))
    (second,) = [decision for decision in plan(seen).decisions if decision.replica == "chat-2"]
    (submit,) = second.actions
    assert isinstance(submit, Submit)
    assert submit.exclude == ("n1",)
    assert second.message == "attempt 1 of revision 1 is submitted; not on n1, with replicas of it already"


SERVING = job(token="tok9", job_id=9, nodes="n1")
FIRST = replica(1, its=attempt(token="tok9", job_id=9, job=SERVING))
WAITING = job(JobState.PENDING, reason="Resources")
APART = replace(deployment(replicas=2), spec=replace(SPEC, replicas=2, node_spread=NodeSpread.SPREAD))


def second(one: Replica, *jobs: Job) -> Decision:
    seen = plan(world([APART], [FIRST, one], [SERVING, *jobs], cluster=cluster(1, 0)))
    return next(decision for decision in seen.decisions if decision.replica == "chat-2")


def test_a_submission_that_stays_away_says_so() -> None:
    (submit,) = second(replica(2)).actions
    assert isinstance(submit, Submit)
    assert (submit.exclude, submit.apart, submit.beside) == (("n1",), True, ())


@pytest.mark.parametrize(
    ("apart", "since_s", "reason"),
    [(True, 14, Reason.QUEUED), (True, 15, Reason.SPREAD_GIVEN_UP), (False, 900, Reason.QUEUED)],
)
def test_a_job_that_finds_no_room_apart_is_withdrawn(apart: bool, since_s: float, reason: Reason) -> None:
    """What kept it from a node may be long untrue: a job that is requeued keeps what it was submitted with."""
    its = attempt(packed=apart, intended_at=at(-since_s), submitted_at=at(-since_s), job=WAITING)
    decision = second(replica(2, its=its, since=at(-since_s)), WAITING)
    assert decision.reason is reason
    assert any(isinstance(one, Withdraw) for one in decision.actions) is (reason is Reason.SPREAD_GIVEN_UP)


def test_the_next_one_goes_anywhere() -> None:
    gone = job(JobState.CANCELLED, nodes="", started_at=None, ends_at=at(-1))
    its = attempt(packed=True, intended_at=at(-20), submitted_at=at(-20), job=WAITING, withdrawn_at=at(-2))
    decision = second(replica(2, its=its, since=at(-20)), gone)
    assert decision.reason is Reason.SPREAD_GIVEN_UP
    assert "no room apart from the deployment's replicas; next attempt at once" in decision.message
    (end,) = [action for action in decision.actions if isinstance(action, EndAttempt)]
    assert (end.failed, end.found_no_room) == (False, True)
    ended = replace(its, job=gone, ended_at=at(0), end_message=end.message)
    (submit,) = second(replica(2, its=ended, next_attempt_at=at(0), state=ReplicaState.WAITING)).actions
    assert isinstance(submit, Submit)
    assert (submit.exclude, submit.apart) == ((), False)


@pytest.mark.parametrize(("apart", "away"), [(True, ("n1",)), (False, ())])
def test_what_is_submitted_again_stays_away_as_it_did_before(apart: bool, away: tuple[str, ...]) -> None:
    its = attempt(job_id=None, packed=apart, submitted_at=at(-60))
    (resubmit,) = second(replica(2, its=its, state=ReplicaState.SUBMITTING)).actions
    assert isinstance(resubmit, Resubmit)
    assert (resubmit.exclude, resubmit.apart) == (away, apart)
