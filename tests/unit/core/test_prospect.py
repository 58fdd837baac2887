"""What a client may hope for: a table, a row for each kind of waiting."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from penstock.core.estimates import Start
from penstock.core.jobs import JobState
from penstock.core.model import Deployment, Replica, ReplicaState
from penstock.core.prospect import prospect
from penstock.core.spec import OutsideChanges, Placement
from tests.worlds import NOW, at, attempt, deployment, job, replica


def queued(start: float | None, reason: str = "Priority", **changes: Any) -> Replica:
    listed = job(
        state=JobState.PENDING, reason=reason, started_at=None if start is None else at(start), job_id=7
    )
    return replica(state=ReplicaState.QUEUED, attempt=attempt(job=listed), **changes)


def running(**changes: Any) -> Replica:
    listed = job(state=JobState.RUNNING, started_at=at(-50), job_id=8)
    return replica(state=ReplicaState.STARTING, attempt=attempt(job=listed), **changes)


def ended(**changes: Any) -> Replica:
    return replica(state=ReplicaState.WAITING, attempt=attempt(ended_at=at(-5)), **changes)


def with_spec(**changes: Any) -> Deployment:
    return replace(deployment(), spec=replace(deployment().spec, **changes))


SOMEBODY = "what its jobs wait for in Slurm's queue is somebody who acts"
ROWS: list[tuple[str, Deployment, list[Replica], str, float]] = [
    ("a new deployment", deployment(), [], "", 0),
    ("its job runs", deployment(), [running()], "", 0),
    ("Slurm expects to start it", deployment(), [queued(300)], "", 300),
    ("Slurm does not say when", deployment(), [queued(None)], "", 0),
    ("the estimate has passed", deployment(), [queued(-3)], "", 0),
    ("the earlier of two", deployment(replicas=2), [queued(300), queued(200)], "", 200),
    ("one of two has no estimate", deployment(replicas=2), [queued(300), queued(None)], "", 0),
    ("one of two is not made yet", deployment(replicas=2), [queued(300)], "", 0),
    ("backing off", deployment(), [ended(next_attempt_at=at(40), failures=2)], "", 40),
    ("about to be submitted", deployment(), [ended()], "", 0),
    ("it drains and comes back", deployment(), [replica(attempt=attempt(drain_at=at(-1)))], "", 0),
    ("paused while its job runs", deployment(paused=True), [running()], "", 0),
    (
        "paused without a job",
        deployment(paused=True),
        [ended()],
        "it is paused, and none of its jobs is on the way to being ready",
        0,
    ),
    (
        "paused before it had a replica",
        deployment(paused=True),
        [],
        "it is paused, and none of its jobs is on the way to being ready",
        0,
    ),
    ("scaled away", deployment(replicas=0), [running(leaving=True)], "it is scaled to 0 replicas", 0),
    ("deleted", deployment(deleted_at=at(-1)), [running()], "it is being deleted", 0),
    (
        "crash-looping",
        deployment(),
        [ended(failures=4, next_attempt_at=at(5))],
        "its replicas crash-loop, one of them 4 times in a row",
        0,
    ),
    ("one of two crash-loops", deployment(replicas=2), [ended(failures=4), queued(60)], "", 60),
    ("its job can never start", deployment(), [queued(None, "PartitionTimeLimit")], SOMEBODY, 0),
    (
        "one of two can never start",
        deployment(replicas=2),
        [queued(None, "PartitionTimeLimit"), running()],
        "",
        0,
    ),
    (
        "another placement is tried next",
        with_spec(fallbacks=(Placement(partition="other"),)),
        [queued(None, "PartitionTimeLimit")],
        "",
        0,
    ),
    ("its job is held, and let go of", deployment(), [queued(None, "JobHeldUser")], "", 0),
    (
        "its job is held, and stays so",
        with_spec(outside_changes=OutsideChanges.RESPECT),
        [queued(None, "JobHeldUser")],
        SOMEBODY,
        0,
    ),
    ("a crash-looping one is replaced", deployment(), [ended(failures=4, leaving=True)], "", 0),
]


@pytest.mark.parametrize(
    ("wanted", "replicas", "hopeless", "wait_s"),
    [row[1:] for row in ROWS],
    ids=[row[0] for row in ROWS],
)
def test_what_may_be_hoped_for(
    wanted: Deployment, replicas: list[Replica], hopeless: str, wait_s: float
) -> None:
    found = prospect(wanted, replicas, NOW)
    assert (found.hopeless, found.wait_s) == (hopeless, wait_s)


def test_the_nearest_job_is_shown() -> None:
    three = deployment(replicas=3)
    found = prospect(three, [queued(300), queued(200), running()], NOW)
    assert found.job is not None
    assert found.job.job_id == 8
    found = prospect(three, [queued(None), queued(300), queued(200)], NOW)
    assert found.job is not None
    assert found.job.started_at == at(200)
    assert prospect(three, [ended()], NOW).job is None
    assert prospect(three, [ended()], NOW).sentence == "0 of 3 ready"


def test_measured_cold_starts_tell_when_one_is_probably_ready() -> None:
    measured = [Start(at(-1000 * number), 5, seconds) for number, seconds in enumerate((90, 60, 70), 1)]
    begun = running()
    assert begun.attempt is not None
    started = replace(begun, attempt=replace(begun.attempt, running_since=at(-50)))
    for replicas, ready_s in (
        ([started], 40),
        ([queued(300)], 390),
        ([queued(300), started], 40),
        ([queued(None)], None),
        ([ended(next_attempt_at=at(40))], None),
        ([replace(started, attempt=replace(begun.attempt, running_since=at(-100)))], None),
    ):
        found = prospect(deployment(replicas=len(replicas)), replicas, NOW, measured)
        assert found.ready_at == (None if ready_s is None else at(ready_s))
        assert found.wait_s == prospect(deployment(replicas=len(replicas)), replicas, NOW).wait_s
    assert prospect(deployment(), [started], NOW).ready_at is None, "nothing was measured"
