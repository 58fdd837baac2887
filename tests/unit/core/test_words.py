"""The small rules: marks, moves, back-off, sentences, conditions."""

from __future__ import annotations

import doctest
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from penstock.core import backoff, spec
from penstock.core.conditions import Shown, conditions_of, summary
from penstock.core.decisions import EFFECTS, Decision, Reason
from penstock.core.jobs import JobState, Node
from penstock.core.model import Condition, ConditionStatus, ReplicaState, marked_token
from penstock.core.sentences import clock, count, estimate, job_end, queue_wait
from penstock.core.slurm_words import ENDED_STATES, ENDING_STATES, HALTED_STATES, WAITING_STATES
from penstock.core.spec import RestartPolicy, share
from penstock.core.states import MEANINGS, MOVES, IllegalMove, check_move
from tests.worlds import NOW, at, attempt, deployment, drawn, job, replica

# Marks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "comment", "token"),
    [
        (f"penstock-chat-{drawn(1)}", f"penstock/1 here {drawn(1)}", drawn(1)),
        (f"penstock-a-b-c-{drawn(1)}", f"penstock/1 here {drawn(1)}", drawn(1)),
        (f"penstock-chat-{drawn(1)}", f"penstock/1 elsewhere {drawn(1)}", None),
        (f"penstock-chat-{drawn(1)}", f"penstock/2 here {drawn(1)}", None),
        (f"penstock-chat-{drawn(1)}", "", None),
        (f"penstock-chat-{drawn(1)}", "penstock/1 here", None),
        (f"penstock-chat-{drawn(1)}", f"penstock/1 here {drawn(1)} more", None),
        (f"penstock-chat-{drawn(1)}", f"penstock/1  here {drawn(1)}", None),
        (f"penstock-chat-{drawn(1)}", f" penstock/1 here {drawn(1)}", None),
        (f"penstock-chat-{drawn(1)}", f"penstock/1 here {drawn(1)}\n", None),
        (f"penstock-chat-{drawn(1)}", f"penstock/1\there\t{drawn(1)}", None),
        (f"penstock-chat-{drawn(1)}", f"x; penstock/1 here {drawn(1)}", None),
        ("penstock-chat-", "penstock/1 here ", None),
        (f"penstock-chat-{drawn(2)}", f"penstock/1 here {drawn(1)}", None),
        (f"penstock-chat-x{drawn(1)}", f"penstock/1 here {drawn(1)}", None),
        (f"penstock-{drawn(1)}", f"penstock/1 here {drawn(1)}", None),
        (f"penstock--{drawn(1)}", f"penstock/1 here {drawn(1)}", None),
        (f"train-chat-{drawn(1)}", f"penstock/1 here {drawn(1)}", None),
        (f"my-penstock-chat-{drawn(1)}", f"penstock/1 here {drawn(1)}", None),
        ("penstock-chat-tok1", "penstock/1 here tok1", None),
        (f"penstock-chat-{drawn(1)}b", f"penstock/1 here {drawn(1)}b", None),
        (f"penstock-chat-{drawn(1).upper()}", f"penstock/1 here {drawn(1).upper()}", None),
        (f"penstock-chat-{'l' * 20}", f"penstock/1 here {'l' * 20}", None),
        (f"penstock-chat,a-{drawn(1)}", f"penstock/1 here {drawn(1)}", None),
        (f"penstock-chat-{drawn(1)}\n", f"penstock/1 here {drawn(1)}", None),
    ],
)
def test_whose_a_job_is(name: str, comment: str, token: str | None) -> None:
    assert marked_token(job(name=name, comment=comment), "here") == token


# Moves ---------------------------------------------------------------------------------------------------------------


def test_every_state_has_a_meaning_and_its_moves() -> None:
    assert set(MEANINGS) == set(MOVES) == set(ReplicaState)


def test_removed_is_the_end_and_nothing_begins_out_of_turn() -> None:
    assert MOVES[ReplicaState.REMOVED] == frozenset()
    assert MOVES[ReplicaState.WAITING] == {ReplicaState.SUBMITTING, ReplicaState.REMOVED}
    assert {state for state in MOVES if ReplicaState.SUBMITTING in MOVES[state]} == {ReplicaState.WAITING}
    assert not [state for state in MOVES if state in MOVES[state]]


def test_an_illegal_move_is_named() -> None:
    check_move("chat-1", ReplicaState.READY, ReplicaState.READY)
    with pytest.raises(
        IllegalMove, match=r"replica chat-1: waiting -> ready; from waiting it may become removed, sub"
    ):
        check_move("chat-1", ReplicaState.WAITING, ReplicaState.READY)
    with pytest.raises(IllegalMove, match="may become nothing"):
        check_move("chat-1", ReplicaState.REMOVED, ReplicaState.WAITING)


def test_job_states_are_of_one_kind_each() -> None:
    kinds = (ENDED_STATES, WAITING_STATES, ENDING_STATES, HALTED_STATES)
    assert sum(map(len, kinds)) == len(frozenset().union(*kinds))
    assert JobState.UNKNOWN not in frozenset().union(*kinds)


# Back-off ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failures", "policy", "seconds"),
    [
        (1, RestartPolicy(10, 300), 10),
        (2, RestartPolicy(10, 300), 20),
        (5, RestartPolicy(10, 300), 160),
        (6, RestartPolicy(10, 300), 300),
        (10_000, RestartPolicy(10, 300), 300),
        (1, RestartPolicy(600, 300), 600),
        (4, RestartPolicy(600, 300), 600),
    ],
)
def test_delay(failures: int, policy: RestartPolicy, seconds: int) -> None:
    assert backoff.delay(failures, policy) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("ready_s", "before", "after"), [(None, 0, 1), (None, 4, 5), (-599, 4, 5), (-600, 4, 1), (-9999, 0, 1)]
)
def test_failures_in_a_row(ready_s: float | None, before: int, after: int) -> None:
    one = attempt(ready_at=None if ready_s is None else at(ready_s))
    assert backoff.failures_after(replica(failures=before), one, NOW, RestartPolicy(10, 300, 600)) == after


# Sentences -----------------------------------------------------------------------------------------------------------

BERLIN = timezone(timedelta(hours=1))


@pytest.mark.parametrize(
    ("moment", "now", "text"),
    [
        (at(10), NOW, "14:00:10"),
        (at(10), NOW.astimezone(BERLIN), "15:00:10"),
        (at(86_400), NOW, "2026-03-03 14:00"),
        (at(-86_400), NOW, "2026-03-01 14:00"),
        (at(36_000), NOW.astimezone(BERLIN), "2026-03-03 01:00"),
    ],
)
def test_clock(moment: datetime, now: datetime, text: str) -> None:
    assert clock(moment, now) == text


def test_estimate_is_to_the_minute() -> None:
    assert estimate(at(185), NOW) == "14:03"
    assert estimate(at(86_400), NOW) == "2026-03-03 14:00"


def test_count() -> None:
    assert [count(number, "replica") for number in (0, 1, 2)] == ["0 replicas", "1 replica", "2 replicas"]


def test_queue_wait() -> None:
    waiting = job(JobState.PENDING, reason="Resources", started_at=at(185))
    assert queue_wait(waiting, NOW) == "queued in Slurm as job 7, Resources, estimated start 14:03"
    assert queue_wait(waiting, at(185)) == "queued in Slurm as job 7, Resources"
    again = job(JobState.PENDING, reason="BeginTime", restarts=2)
    assert queue_wait(again, NOW) == "queued in Slurm as job 7, requeued 2 times, BeginTime"


@pytest.mark.parametrize(
    ("state", "exit_code", "signal", "reason", "text"),
    [
        (JobState.COMPLETED, 0, None, "", "job 7 ended as COMPLETED"),
        (
            JobState.FAILED,
            1,
            None,
            "NonZeroExitCode",
            "job 7 ended as FAILED with exit code 1 (NonZeroExitCode)",
        ),
        (JobState.FAILED, 0, 53, "JobLaunchFailure", "job 7 ended as FAILED, signal 53 (JobLaunchFailure)"),
        (
            JobState.TIMEOUT,
            0,
            9,
            "TimeLimit",
            "job 7 ended as TIMEOUT, signal 9 (TimeLimit): it reached its time limit",
        ),
        (
            JobState.OUT_OF_MEMORY,
            None,
            None,
            "",
            "job 7 ended as OUT_OF_MEMORY: it used more memory than it was given",
        ),
    ],
)
def test_job_end(state: JobState, exit_code: int | None, signal: int | None, reason: str, text: str) -> None:
    assert job_end(job(state, exit_signal=signal, reason=reason), exit_code) == text


# Conditions ----------------------------------------------------------------------------------------------------------

R, T, F, U = Reason, ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN
QUEUED: Shown = (ReplicaState.QUEUED, "queued in Slurm as job 7, Resources")
STARTING: Shown = (ReplicaState.STARTING, "job 8 runs on gpu1: loading weights")
WAITING: Shown = (ReplicaState.WAITING, "1 attempt failed; next attempt 14:00:09")
READY: Shown = (ReplicaState.READY, "takes requests at gpu1:4000 (job 7)")


@pytest.mark.parametrize(
    ("shown", "changes", "text"),
    [
        ([], {}, "0 of 2 ready"),
        ([QUEUED], {}, "0 of 2 ready: queued in Slurm as job 7, Resources"),
        ([WAITING, QUEUED, STARTING], {}, "0 of 2 ready: job 8 runs on gpu1: loading weights"),
        ([READY, WAITING], {}, "1 of 2 ready: 1 attempt failed; next attempt 14:00:09"),
        ([READY, READY], {}, "2 of 2 ready"),
        ([READY, READY, READY], {}, "3 of 2 ready"),
        ([], {"paused": True}, "0 of 2 ready: paused"),
        ([READY], {"deleted_at": at(-1)}, "1 of 2 ready: the deployment is being deleted"),
    ],
)
def test_summary(shown: list[Shown], changes: dict[str, Any], text: str) -> None:
    assert summary(deployment(replicas=2, **changes), shown) == text


@pytest.mark.parametrize(
    ("reason", "shown", "changes", "statuses"),
    [
        (R.STEADY, [READY], {}, (T, F, F, T)),
        (R.PROGRESSING, [QUEUED], {}, (F, T, F, T)),
        (R.PAUSED, [READY], {"paused": True}, (T, F, T, T)),
        (R.DELETING, [READY], {"deleted_at": at(-1)}, (F, T, F, T)),
        (R.CLUSTER_UNREACHABLE, [READY], {}, (T, U, F, F)),
    ],
)
def test_conditions(
    reason: Reason,
    shown: list[Shown],
    changes: dict[str, Any],
    statuses: tuple[ConditionStatus, ...],
) -> None:
    found = conditions_of(deployment(**changes), Decision("chat", "", reason, "a sentence"), shown, (), NOW)
    assert tuple(condition.type for condition in found) == (
        "Ready",
        "Progressing",
        "Paused",
        "ClusterReachable",
        "CrashLooping",
        "Blocked",
    )
    assert tuple(condition.status for condition in found) == (*statuses, F, U if U in statuses else F)
    assert {condition.since for condition in found} == {NOW}


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        (R.ROLLOUT_WAIT, "a sentence; chat-2: loading weights"),
        (R.PROGRESSING, "a sentence; chat-2: loading weights"),
        (R.STEADY, "a sentence"),
        (R.ROLLOUT_PAUSED, "a sentence"),
    ],
)
def test_who_waits_is_told_what_for(reason: Reason, says: str) -> None:
    """By the replica that is nearest to being ready, of those that are to stay."""
    its = [
        replica(number=number, state=state, message=message, leaving=leaving)
        for number, state, message, leaving in (
            (1, ReplicaState.QUEUED, "queued in Slurm as job 7", False),
            (2, ReplicaState.STARTING, "loading weights", False),
            (3, ReplicaState.STARTING, "warming up", True),
            (4, ReplicaState.READY, "takes requests", False),
        )
    ]
    found = conditions_of(deployment(), Decision("chat", "", reason, "a sentence"), [READY], its, NOW)
    assert {one.type: one.message for one in found}["Progressing"] == says


def test_since_moves_with_the_status_alone() -> None:
    before = tuple(
        Condition(kind, status, "Old", "old", at(-50))
        for kind, status in (
            ("Ready", T),
            ("Progressing", T),
            ("Paused", F),
            ("ClusterReachable", T),
            ("CrashLooping", F),
            ("Blocked", F),
        )
    )
    found = conditions_of(
        deployment(conditions=before), Decision("chat", "", R.STEADY, "1 of 1 ready"), [READY], (), NOW
    )
    since = {condition.type: condition.since for condition in found}
    assert {kind for kind, moment in since.items() if moment == at(-50)} == since.keys() - {"Progressing"}
    assert since["Progressing"] == NOW


# The rest ------------------------------------------------------------------------------------------------------------


def test_reasons_are_words_with_a_meaning() -> None:
    assert len({reason.word for reason in Reason}) == len(Reason)
    for reason in Reason:
        assert reason.word.isalpha()
        assert reason.word[0].isupper()
        assert reason.name == "".join(f"_{c}" if c.isupper() else c.upper() for c in reason.word).lstrip("_")
        assert reason.meaning.endswith(".")


def test_effects_are_what_mutates_slurm() -> None:
    assert {effect.__name__ for effect in EFFECTS} == {
        "Submit",
        "Resubmit",
        "Drain",
        "Cancel",
        "Withdraw",
        "CancelOrphan",
    }


@pytest.mark.parametrize(
    ("text", "of", "up", "amount"),
    [("0", 9, True, 0), ("3", 9, False, 3), ("0%", 9, True, 0), ("1%", 9, True, 1), ("99%", 9, False, 8),
     ("100%", 9, False, 9)],
)  # fmt: skip
def test_share(text: str, of: int, up: bool, amount: int) -> None:
    assert share(text, of, up=up) == amount


@pytest.mark.parametrize(
    ("state", "usable"),
    [
        ("IDLE", True),
        ("MIXED+PLANNED", True),
        ("IDLE+DRAIN", False),
        ("DOWN*", False),
        ("IDLE+NOT_RESPONDING", False),
    ],
)
def test_usable_nodes(state: str, usable: bool) -> None:
    node = Node("gpu1", state, 8, 16_000, {"a100": 2, "": 1}, ("gpu",))
    assert node.usable is usable
    assert node.total_gpus == 3


@pytest.mark.parametrize("module", [backoff, spec], ids=lambda module: module.__name__)
def test_examples_in_the_docstrings(module: object) -> None:
    results = doctest.testmod(module)  # type: ignore[arg-type]
    assert results.attempted > 0
    assert results.failed == 0
