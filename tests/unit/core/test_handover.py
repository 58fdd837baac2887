"""When a successor is due, by what was measured, what Slurm says and what people do; and two clocks that differ."""

from __future__ import annotations

import doctest
from dataclasses import replace
from datetime import timedelta

import pytest

from penstock.core import estimates as module
from penstock.core.estimates import Estimates, Start, estimate, start_of
from penstock.core.handover import Threat, by_our_clock, due, handed_over, sentence
from penstock.core.jobs import Job, JobState
from penstock.core.model import Attempt
from penstock.core.spec import Handover
from tests.worlds import NOW, SPEC, at, attempt, job, ready_attempt

HOUR = 3600
LIMIT = job(started_at=at(-60), ends_at=at(-60 + HOUR), time_limit_s=HOUR)
TAKES = Estimates(wait_s=30, cold_start_s=90, measured=3)
"""With the margin of 120 s: 240 s before the end of its service."""
WARNED_S = 120
"""So long before its limit the agent may be told to drain: the drain time-out, and twice half a minute."""


def test_doctests() -> None:
    assert doctest.testmod(module).failed == 0


def ready(of: Job = LIMIT, **changes: object) -> Attempt:
    return ready_attempt(job=of, **changes)


def test_due_by_wait_cold_start_and_margin() -> None:
    found = due(SPEC, ready(), LIMIT, TAKES, NOW)
    assert found is not None
    assert (found.ends_at, found.at) == (at(HOUR - 60), at(HOUR - 60 - WARNED_S - 240))
    assert sentence(found, SPEC, TAKES) == (
        "job 7 reaches its time limit at 14:59:00 and may be told to drain 120 s before;"
        " a successor may take 30 s in the queue and 90 s to start"
        " (as 9 in 10 of the last 3 starts did), with 120 s to spare, and is due"
    )


def test_never_before_half_of_the_time_is_over() -> None:
    found = due(SPEC, ready(), LIMIT, replace(TAKES, cold_start_s=HOUR), NOW)
    assert found is not None
    assert found.at == at(-60 + (HOUR - WARNED_S) / 2)


@pytest.mark.parametrize(
    "of",
    [job(started_at=at(-60), ends_at=at(365 * 86400)), job(time_limit_s=HOUR)],
    ids=["no limit, and an end in a year", "no end is told"],
)
def test_what_has_no_end_is_not_handed_over(of: Job) -> None:
    assert due(SPEC, ready(of), of, TAKES, NOW) is None


def test_disabled() -> None:
    spec = replace(SPEC, handover=Handover(enabled=False))
    assert due(spec, ready(), LIMIT, TAKES, NOW, (Threat("node gpu1 is drained"),)) is None


def test_a_limit_that_somebody_altered() -> None:
    shorter = replace(LIMIT, ends_at=at(-60 + 600), time_limit_s=600)
    found = due(SPEC, ready(shorter), shorter, TAKES, NOW)
    assert found is not None
    assert found.ends_at == at(540)


@pytest.mark.parametrize("hours", [-1, 0, 1])
def test_slurms_clock_may_be_an_hour_off(hours: int) -> None:
    """Whichever way: the successor is due when the job has as much time left as it takes."""
    off = timedelta(hours=hours)
    theirs = replace(
        LIMIT, submitted_at=at(-100) + off, started_at=at(-60) + off, ends_at=at(-60 + HOUR) + off
    )
    found = due(SPEC, ready(theirs, running_since=at(-58)), theirs, TAKES, NOW)
    assert found is not None
    assert found.ends_at == at(HOUR - 60)


def test_we_were_away_when_it_started() -> None:
    """It was seen to run 20 minutes late; the time of its submission tells the truth."""
    found = due(SPEC, ready(running_since=at(-60 + 1200)), LIMIT, TAKES, NOW)
    assert found is not None
    assert found.ends_at == at(HOUR - 60)


def test_a_requeued_run_counts_from_when_it_was_seen_to_run() -> None:
    again = replace(LIMIT, restarts=1, submitted_at=at(-70))
    assert by_our_clock(ready(running_since=at(-55)), again, at(0)) == at(5)
    assert by_our_clock(attempt(running_since=None), again, at(0)) is None


def test_a_decision_stands_for_its_run() -> None:
    assert handed_over(ready(running_since=at(-60), handover_at=at(-10)))
    assert not handed_over(ready(running_since=at(-5), handover_at=at(-10)))  # It was requeued since.
    assert not handed_over(ready(running_since=None, handover_at=at(-10)))
    assert not handed_over(ready())


def test_a_drained_node_is_left_at_once() -> None:
    found = due(SPEC, ready(), LIMIT, TAKES, NOW, (Threat("node gpu1 is drained"),))
    assert found is not None
    assert found.at <= NOW
    assert sentence(found, SPEC, TAKES) == "node gpu1 is drained; a successor takes over elsewhere"


def test_maintenance_comes_before_the_limit() -> None:
    found = due(SPEC, ready(), LIMIT, TAKES, NOW, (Threat("maintenance takes node gpu1", at(1000)),))
    assert found is not None
    assert (found.at, found.ends_at) == (at(1000 - 240), at(1000))


def start(number: int, wait_s: float, cold_s: float) -> Start:
    return Start(at(-number * 100), wait_s, cold_s)


def test_before_anything_was_measured_the_longest_start_counts() -> None:
    assert estimate(SPEC, [], []) == Estimates(0, SPEC.probes.startup_timeout_s, 0)
    assert "no start was measured yet" in estimate(SPEC, [], []).sentence


def test_the_newest_starts_count_and_one_bad_one_does_not() -> None:
    old = [start(number, 900, 900) for number in range(21, 40)]
    new = [start(number, 5, 60) for number in range(1, 21)]
    bad = [replace(new[0], wait_s=4000.0)]
    found = estimate(SPEC, [*old, *new[1:], *bad], [])
    assert found == Estimates(5, 60, 20)


def test_what_slurm_says_of_a_waiting_job_counts_where_it_is_more() -> None:
    waiting = job(JobState.PENDING, submitted_at=at(-10), started_at=at(290))
    assert estimate(SPEC, [start(1, 20, 60)], [waiting]) == Estimates(300, 60, 1, slurm_says=True)
    assert estimate(SPEC, [start(1, 400, 60)], [waiting]) == Estimates(400, 60, 1)
    assert estimate(SPEC, [start(1, 20, 60)], [job()]) == Estimates(20, 60, 1)


def test_what_an_attempt_tells_of_its_start() -> None:
    listed = job(submitted_at=at(-100), started_at=at(-60))
    assert start_of(at(-58), at(-8), listed) == Start(at(-8), 40, 50)
    assert start_of(None, at(-8), listed) is None
    assert start_of(at(-58), None, listed) is None
    assert start_of(at(-5), at(-8), listed) is None  # Ready before it was seen to run: we were away.
    assert start_of(at(-58), at(-8), None) is None
