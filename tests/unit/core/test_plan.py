"""The pass as a whole: its order, what it shows, and what it says of the cluster."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from penstock.core.decisions import (
    EFFECTS,
    CancelOrphan,
    CreateReplica,
    Drain,
    EndAttempt,
    Leave,
    Reason,
    RecordMissing,
    RemoveDeployment,
    Submit,
)
from penstock.core.jobs import Job, JobState
from penstock.core.model import Attempt, ConditionStatus, Listing, Observation, Replica, ReplicaState
from penstock.core.plan import Plan, plan
from penstock.core.states import IllegalMove
from tests.worlds import NOW, at, attempt, deployment, drawn, job, ready_attempt, replica, world


def reasons(made: Plan) -> dict[tuple[str, str], Reason]:
    assert len({decision.subject for decision in made.decisions}) == len(made.decisions)
    return {decision.subject: decision.reason for decision in made.decisions}


def serving(number: int = 1, **changes: Any) -> tuple[Replica, Job]:
    listed = job(job_id=number, token=drawn(number))
    its = ready_attempt(token=drawn(number), job_id=number, job=listed)
    return replica(number, its=its, state=ReplicaState.READY, **changes), listed


def test_nothing_declared() -> None:
    made = plan(world())
    assert reasons(made) == {("", ""): Reason.CLUSTER_REACHABLE}
    assert made.decisions[0].message == "Slurm answers, and every job of ours belongs to an attempt"
    assert not made.replica_statuses
    assert not made.deployment_statuses


def test_a_new_deployment_first_gets_replicas_and_each_of_those_an_attempt() -> None:
    made = plan(world([deployment(replicas=2)]))
    assert made.decisions[0].actions == (CreateReplica("d1", 1),) * 2
    made = plan(world([deployment(replicas=2)], [replica(1), replica(2)]))
    assert [decision.actions for decision in made.decisions[1:3]] == [(Submit("r1"),), (Submit("r2"),)]
    assert [status.state for status in made.replica_statuses] == [ReplicaState.SUBMITTING] * 2


def test_steady_is_silent() -> None:
    its, listed = serving()
    first = plan(world([deployment()], [its], [listed]))
    assert reasons(first) == {
        ("chat", ""): Reason.STEADY,
        ("chat", "chat-1"): Reason.READY,
        ("", ""): Reason.CLUSTER_REACHABLE,
    }
    settled = world(
        [deployment(conditions=first.deployment_statuses[0].conditions)],
        [replace(its, message=first.replica_statuses[0].message)],
        [listed],
    )
    for later in (0, 1, 50):
        again = plan(replace(settled, now=at(later)))
        assert again == Plan(first.decisions, (), ())
    assert not any(decision.actions for decision in first.decisions)


def test_the_one_that_is_let_go_is_drained_in_the_same_pass() -> None:
    (one, first), (two, second) = serving(1), serving(2)
    made = plan(world([deployment()], [one, two], [first, second]))
    assert made.decisions[0].actions == (Leave("r2"),)
    assert [type(action) for action in made.decisions[2].actions] == [Drain]
    assert reasons(made)["chat", ""] is Reason.SCALE_DOWN


def test_a_replica_that_died_in_this_very_listing_is_not_counted_as_ready() -> None:
    """Otherwise the old one would go because of a successor that is dead: a dip below the minimum (rule 5)."""
    old, old_job = serving(1)
    new, new_job = serving(2, revision=2)
    before = world([deployment(revision=2)], [old, new], [old_job, new_job])
    assert reasons(plan(before))["chat", ""] is Reason.ROLLOUT_RETIRE
    died = replace(before, slurm=world([], [], [old_job, replace(new_job, state=JobState.NODE_FAIL)]).slurm)
    made = plan(died)
    assert reasons(made)["chat", ""] is Reason.ROLLOUT_WAIT
    assert not [
        action for decision in made.decisions for action in decision.actions if isinstance(action, Leave)
    ]


@pytest.mark.parametrize(
    ("replicas", "message"),
    [([], "0 of 0 ready"), ([replica(its=attempt(), leaving=True)], "0 of 0 ready, 1 on the way out")],
    ids=["none", "one on the way out"],
)
def test_zero_replicas(replicas: list[Replica], message: str) -> None:
    made = plan(world([deployment(replicas=0)], replicas, [job()]))
    assert made.decisions[0].message == message


def test_a_deleted_deployment_goes_with_its_last_replica() -> None:
    its, listed = serving()
    deleted = deployment(deleted_at=at(-1), paused=True)
    made = plan(world([deleted], [its], [listed]))
    assert reasons(made)["chat", ""] is Reason.DELETING
    made = plan(world([deleted]))
    assert made.decisions[0].reason is Reason.DELETED
    assert made.decisions[0].actions == (RemoveDeployment("d1"),)
    assert not made.deployment_statuses


def test_when_slurm_is_silent_nothing_is_done() -> None:
    made = plan(world([deployment(generation=4)], [replica(), replica(2, leaving=True)], None))
    assert reasons(made) == {("", ""): Reason.CLUSTER_UNREACHABLE}
    (decision,) = made.decisions
    assert decision.message == "Slurm has not answered since 13:59:30: squeue: timed out"
    assert decision.actions == ()
    assert not made.replica_statuses
    (status,) = made.deployment_statuses
    assert status.observed_generation == 1
    unreachable = {condition.type: condition for condition in status.conditions}["ClusterReachable"]
    assert (unreachable.status, unreachable.reason) == (ConditionStatus.FALSE, "ClusterUnreachable")


def test_a_new_generation_is_observed() -> None:
    made = plan(world([deployment(generation=4)]))
    assert made.deployment_statuses[0].observed_generation == 4


def test_a_state_that_cannot_be_is_a_bug() -> None:
    its = replica(its=ready_attempt(), state=ReplicaState.WAITING)
    with pytest.raises(IllegalMove, match="chat-1: waiting -> ready"):
        plan(world([deployment()], [its], [job()]))


@pytest.mark.parametrize("asked_at", [None, at(-3600)])
@pytest.mark.parametrize(
    ("answers_since", "reason", "until"),
    [
        (None, Reason.RESUBMIT, ""),
        (at(-10), Reason.RESUBMIT, ""),
        (at(-9), None, "14:00:01"),
        (NOW, None, "14:00:10"),
    ],
)
def test_what_waited_at_the_door_of_a_slurm_that_hung_may_still_come(
    asked_at: datetime | None, answers_since: datetime | None, reason: Reason | None, until: str
) -> None:
    """For one message time-out after it answers again."""
    its = replica(
        its=attempt(job_id=None, intended_at=at(-3600), submitted_at=asked_at), state=ReplicaState.SUBMITTING
    )
    seen = replace(world([deployment()], [its]), slurm=Listing((), answers_since))
    doubt = Reason.SUBMISSION_PUT_OFF if asked_at is None else Reason.SUBMISSION_DOUBTFUL
    found, message, _ = its_decision(seen)
    assert found is (reason or doubt)
    assert until in message


# Jobs without their mark ----------------------------------------------------------------------------------------------

UNMARKED = (
    f"job 7's comment is no longer ours; put it back with scontrol update JobId=7 Comment='penstock/1 here {drawn(1)}';"
    " until then it is neither touched nor replaced"
)


def its_decision(observation: Observation) -> tuple[Reason, str, tuple[object, ...]]:
    decision = next(one for one in plan(observation).decisions if one.replica == "chat-1")
    return decision.reason, decision.message, decision.actions


@pytest.mark.parametrize(
    ("altered", "message"),
    [
        ({"comment": "an analysis"}, UNMARKED),
        ({"comment": ""}, UNMARKED),
        (
            {"name": "analysis"},
            UNMARKED.replace("comment", "name").replace(
                f"Comment='penstock/1 here {drawn(1)}'", f"JobName=penstock-chat-{drawn(1)}"
            ),
        ),
        (
            {"name": f"penstock-other-{drawn(1)}"},
            UNMARKED.replace("comment", "name").replace(
                f"Comment='penstock/1 here {drawn(1)}'", f"JobName=penstock-chat-{drawn(1)}"
            ),
        ),
    ],
)
@pytest.mark.parametrize(
    "its",
    [ready_attempt(missing_since=at(-60)), ready_attempt(reported_at=at(-3600)), attempt()],
    ids=["serves", "is silent", "never starts"],
)
@pytest.mark.parametrize("leaving", [False, True])
def test_a_job_whose_mark_was_rewritten_is_left_and_not_replaced(
    altered: dict[str, Any], message: str, its: Attempt, leaving: bool
) -> None:
    """Another one would run beside it, and without its mark it is not ours to touch."""
    listed = job(**altered)
    known = replica(
        its=replace(its, job=listed, running_since=at(-3600)), state=ReplicaState.READY, leaving=leaving
    )
    made = plan(world([deployment(replicas=0 if leaving else 1)], [known], [listed]))
    assert not [one for decision in made.decisions for one in decision.actions if isinstance(one, EFFECTS)]
    decision = next(one for one in made.decisions if one.replica == "chat-1")
    assert (decision.reason, decision.message) == (Reason.JOB_UNMARKED, message)
    if its.missing_since is not None:
        assert decision.actions == (RecordMissing(drawn(1), None),)
    (status,) = made.deployment_statuses
    blocked = next(one for one in status.conditions if one.type == "Blocked")
    assert (blocked.status, blocked.message) == (ConditionStatus.TRUE, f"chat-1: {message}")


def test_a_job_without_its_mark_that_has_ended_ends_its_attempt() -> None:
    listed = job(JobState.FAILED, comment="an analysis", exit_code=1)
    its = replica(its=ready_attempt(job=job()), state=ReplicaState.READY)
    reason, message, actions = its_decision(world([deployment()], [its], [listed]))
    assert reason is Reason.JOB_ENDED
    assert message.startswith("job 7 ended as FAILED with exit code 1")
    assert isinstance(actions[0], EndAttempt)


@pytest.mark.parametrize("altered", [{"comment": "an analysis"}, {"name": f"penstock-other-{drawn(1)}"}])
def test_a_lost_reply_and_a_lost_mark_are_found_by_what_still_stands(altered: dict[str, Any]) -> None:
    listed = job(JobState.PENDING, **altered)
    its = replica(its=attempt(job_id=None), state=ReplicaState.SUBMITTING)
    assert its_decision(world([deployment()], [its], [listed]))[0] is Reason.ADOPT


def test_of_a_strangers_job_only_the_id_agrees() -> None:
    listed = job(name="analysis", comment="an analysis")
    its = replica(its=ready_attempt(reported_at=at(-60), job=job()), state=ReplicaState.READY)
    assert its_decision(world([deployment()], [its], [listed]))[0] is Reason.JOB_MISSING


# Orphans -------------------------------------------------------------------------------------------------------------


def cluster_says(observation: Observation) -> tuple[Reason, str, tuple[object, ...]]:
    decision = next(decision for decision in plan(observation).decisions if decision.subject == ("", ""))
    return decision.reason, decision.message, decision.actions


def stray(number: int = 9, **changes: Any) -> Job:
    facts: dict[str, Any] = {"job_id": number, "submitted_at": at(-60)}
    return job(token=drawn(100 + number), **facts | changes)


def long_seen(*jobs: Job) -> dict[str, Any]:
    return {"strays_since": {one.job_id: at(-60) for one in jobs}}


def test_an_orphan_is_given_time_then_cancelled() -> None:
    """From the listing that showed it first: its submission is by Slurm's clock, which may be an hour off."""
    assert cluster_says(world([], [], [stray(submitted_at=at(-3600))], strays_since={9: at(-59)})) == (
        Reason.ORPHAN_FOUND,
        f"job 9 (penstock-chat-{drawn(109)}) bears our mark and belongs to no attempt in the database;"
        " cancelled at 14:00:01, unless the controller is stopped before then and the database that knows them is"
        " restored",
        (),
    )
    patient = world([], [], [stray()], strays_since={9: at(-899)}, orphan_grace_s=900)
    assert cluster_says(patient)[0] is Reason.ORPHAN_FOUND, "as long as the site has chosen"
    assert cluster_says(replace(patient, orphan_grace_s=899))[0] is Reason.ORPHAN_CANCELLED
    known = frozenset({drawn(109)})
    assert cluster_says(world([], [], [stray()], known_tokens=known)) == (
        Reason.ORPHAN_FOUND,
        f"job 9 (penstock-chat-{drawn(109)}) bears our mark and belongs to an attempt that has ended;"
        " cancelled at 14:01:00",
        (),
    )
    assert cluster_says(world([], [], [stray()], known_tokens=known, **long_seen(stray()))) == (
        Reason.ORPHAN_CANCELLED,
        f"job 9 (penstock-chat-{drawn(109)}) bears our mark and belongs to an attempt that has ended; cancelled",
        (CancelOrphan(9, f"penstock-chat-{drawn(109)}"),),
    )


def test_many_orphans_are_one_decision() -> None:
    jobs = [stray(number) for number in range(14, 9, -1)]
    reason, message, actions = cluster_says(world([], [], jobs, **long_seen(*jobs)))
    assert reason is Reason.ORPHAN_CANCELLED
    assert message.endswith(f"job 12 (penstock-chat-{drawn(112)}) bears our mark and belongs to no attempt in the"
                            " database; and 2 more; cancelled")  # fmt: skip
    assert actions == tuple(
        CancelOrphan(number, f"penstock-chat-{drawn(100 + number)}") for number in range(10, 15)
    )


def test_only_what_is_due_is_cancelled() -> None:
    _, message, actions = cluster_says(
        world([], [], [stray(9), stray(10)], strays_since={9: at(-60), 10: at(-1)})
    )
    assert actions == (CancelOrphan(9, f"penstock-chat-{drawn(109)}"),)
    assert drawn(110) not in message


@pytest.mark.parametrize(
    "listed",
    [
        stray(state=JobState.FAILED),
        stray(state=JobState.COMPLETING),
        stray(state=JobState.UNKNOWN),
        stray(comment=""),
        stray(comment=f"penstock/1 elsewhere {drawn(109)}"),
        stray(name="training-run"),
        stray(comment=f" penstock/1 here {drawn(109)}"),
        stray(comment=f"penstock/1 here {drawn(109)}\npenstock/1 here {drawn(109)}"),
        stray(comment=f"penstock/1 here {drawn(109)} extra"),
        stray(comment=f"penstock/1\there\t{drawn(109)}"),
        stray(comment="penstock/1 here "),
        stray(name=f"penstock-{drawn(109)}"),
        stray(name=f"penstock-chat-{drawn(109)}\n"),
    ],
    ids=[
        "ended",
        "ending",
        "of a state unknown",
        "without the mark",
        "another installation's",
        "a copied mark",
        "a space before it",
        "two lines",
        "a word too many",
        "other separators",
        "no token",
        "no deployment in the name",
        "a newline behind the name",
    ],
)
def test_what_is_no_orphan(listed: Job) -> None:
    assert cluster_says(world([], [], [listed]))[0] is Reason.CLUSTER_REACHABLE


def test_a_forged_mark_is_told_of() -> None:
    forged = [job(job_id=number, name="training") for number in range(20, 15, -1)]
    tells = "Slurm answers, and every job of ours belongs to an attempt; "
    assert cluster_says(
        world([], [], [*forged[-1:], job(JobState.FAILED, name="training"), stray(comment="")])
    ) == (
        Reason.CLUSTER_REACHABLE,
        f"{tells}job 16 has a comment like our mark, and its name or its token does not agree: it is left alone;"
        " scontrol update JobId=16 Comment='' if it is yours",
        (),
    )
    assert cluster_says(world([], [], forged))[1] == (
        f"{tells}jobs 16, 17, 18 and 2 more have comments like our mark, and their names or tokens differ: they"
        " are left alone; scontrol update JobId=16 Comment='' if it is yours"
    )


@pytest.mark.parametrize("seen", [{}, long_seen(stray())])
def test_a_forged_mark_is_told_of_beside_an_orphan(seen: dict[str, Any]) -> None:
    _, message, _ = cluster_says(world([], [], [job(job_id=16, name="training"), stray()], **seen))
    assert f"job 9 (penstock-chat-{drawn(109)}) bears our mark" in message
    assert "; job 16 has a comment like our mark" in message


@pytest.mark.parametrize(
    ("rest", "told"),
    [
        ("", True),
        (" ", True),
        (f" {drawn(109)}|;,\t{drawn(109)}", True),
        (f"\n{drawn(109)}", True),
        (f" {drawn(109)}\npenstock/1 here {drawn(109)}", True),
        (" lost9", True),
        ("after", False),
        (f"|{drawn(109)}", False),
    ],
)
def test_a_mark_with_more_or_less_in_it_is_told_of(rest: str, told: bool) -> None:
    """And left alone, whatever separates its words."""
    _, message, actions = cluster_says(world([], [], [stray(comment=f"penstock/1 here{rest}")]))
    assert actions == ()
    assert ("job 9 has a comment like our mark" in message) is told


def test_of_a_doubled_submission_the_second_job_goes() -> None:
    twin = job(JobState.PENDING, job_id=8, reason="Dependency")
    its = replica(its=attempt(job=job()), state=ReplicaState.STARTING)
    reason, message, actions = cluster_says(world([deployment()], [its], [job(), twin], **long_seen(twin)))
    assert reason is Reason.ORPHAN_CANCELLED
    assert "belongs to an attempt that another job is running" in message
    assert actions == (CancelOrphan(8, f"penstock-chat-{drawn(1)}"),)


def test_while_the_attempts_job_is_not_known_none_is_an_orphan() -> None:
    twin = job(JobState.PENDING, job_id=8)
    its = replica(its=attempt(job_id=None), state=ReplicaState.SUBMITTING)
    assert cluster_says(world([deployment()], [its], [job(), twin]))[0] is Reason.CLUSTER_REACHABLE


# Ids that are given again -------------------------------------------------------------------------------------------


def test_slurm_lost_its_state_and_gave_a_live_attempts_id_to_another() -> None:
    """The store lets one live attempt have an id: the one whose job is gone ends before the other takes it."""
    lost = replica(1, its=ready_attempt(token=drawn(1), job_id=7), state=ReplicaState.READY)
    fresh = replica(2, its=attempt(token=drawn(2), job_id=None), state=ReplicaState.SUBMITTING)
    listed = job(token=drawn(2), job_id=7)
    made = plan(world([deployment(replicas=2)], [lost, fresh], [listed]))
    says = {decision.replica: (decision.reason, decision.message) for decision in made.decisions}
    assert says["chat-1"] == (
        Reason.JOB_LOST,
        "job 7 is gone from Slurm, and its id is another job's now; next attempt 14:00:10",
    )
    assert says["chat-2"] == (
        Reason.SUBMISSION_DOUBTFUL,
        "job 7 bears attempt 1's token; its id is still another attempt's",
    )
    ended = replica(1, its=ready_attempt(token=drawn(1), job_id=7, ended_at=NOW), next_attempt_at=at(10))
    made = plan(world([deployment(replicas=2)], [ended, fresh], [listed]))
    assert reasons(made)["chat", "chat-2"] is Reason.ADOPT


def test_now_is_the_observations() -> None:
    assert plan(world([deployment()])).deployment_statuses[0].conditions[0].since == NOW


def test_a_clock_that_is_wrong_is_told_of() -> None:
    """Whatever else there is to say of the cluster; and a reachable cluster it is."""
    right, orphan = world([], [], []), world([], [], [stray()])
    for seen in (right, orphan):
        reason, message, _ = cluster_says(seen)
        for off_s, how in ((3600, "60 min ahead of"), (-90, "2 min behind")):
            told = f"; the clock of the controller's host is {how} the database's, by which all times here are: set it"
            assert cluster_says(replace(seen, clock_off_s=off_s))[:2] == (reason, f"{message}{told} right")
