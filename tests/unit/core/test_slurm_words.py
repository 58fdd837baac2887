"""The table of Slurm's words: complete, and without contradiction."""

from __future__ import annotations

import glob
import subprocess
import sys

import pytest

from penstock.core.model import ReplicaState
from penstock.core.plan import plan
from penstock.core.slurm_words import (
    DOES,
    ENDED_STATES,
    LIMITS,
    REASONS,
    STATES,
    WAITING_STATES,
    Blame,
    JobState,
    Kind,
    Wait,
    reason_row,
    waits_for,
)
from tests.worlds import at, deployment, job, ready_attempt, replica, world

LIBRARIES = "/usr/lib/*/slurm*/libslurmfull.so"
"""Of whichever Slurm is installed; where there is none the test says so."""
READ = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
name = next(n for n in ("job_state_reason_string", "job_reason_string") if hasattr(library, n))
word = getattr(library, name)
word.restype, word.argtypes = ctypes.c_char_p, [ctypes.c_int]
print("\\n".join(filter(None, ((word(number) or b"").decode() for number in range(400)))))
"""


def test_every_state_has_its_row() -> None:
    assert set(STATES) == set(JobState)
    for state, row in STATES.items():
        assert (row.blame is not None) == (row.kind is Kind.ENDED), state
        assert row.meaning.endswith("."), state
        assert row.does.endswith("."), state
    assert not ENDED_STATES & WAITING_STATES


@pytest.mark.parametrize("state", sorted(ENDED_STATES - {JobState.CANCELLED}))
def test_the_table_says_what_follows_an_end_of_a_replica_that_was_ready(state: JobState) -> None:
    ended = job(state)
    own = replica(1, state=ReplicaState.READY, its=ready_attempt(job=ended, running_since=at(-60)))
    end = next(found for found in plan(world([deployment()], [own], [ended])).decisions if found.replica)
    row = STATES[state]
    at_once = (
        row.blame is not Blame.REVISION or "Where it had been ready, that is nobody's failure" in row.does
    )
    assert ("next attempt at once" in end.message) is at_once, end.message


def test_every_reason_has_its_row() -> None:
    assert set(LIMITS) <= set(REASONS)
    assert {row.wait for row in REASONS.values()} == set(Wait) == set(DOES)
    assert all(row.meaning.endswith(".") and row.meaning[0].isupper() for row in REASONS.values())


def test_slurm_has_no_reason_without_a_row() -> None:
    libraries = glob.glob(LIBRARIES)
    if not libraries:
        pytest.skip("no Slurm is installed here whose words could be compared")
    # In a process of its own: the library is not made to share one with others.
    listed = subprocess.run(
        [sys.executable, "-c", READ, libraries[0]], capture_output=True, text=True, check=True
    )
    words = {word for word in listed.stdout.splitlines() if word.strip() and not word.startswith("Invalid:")}
    assert len(words) > 150
    assert sorted(word for word in words if word[0].isalpha() and reason_row(word) is None) == []


@pytest.mark.parametrize(
    ("reason", "wait"),
    [
        ("Resources", Wait.ROOM),
        ("ReqNodeNotAvail, UnavailableNodes:gpu[1-2]", Wait.ROOM),
        ("QOSMaxGRESPerUser", Wait.ROOM),
        ("QOSMaxGRESPerJob", Wait.SOMEBODY),
        ("AssocGrpCPURunMinutesLimit", Wait.ROOM),
        ("QOSMinCpuNotSatisfied", Wait.SOMEBODY),
        ("PartitionTimeLimit", Wait.SOMEBODY),
        ("BeginTime", Wait.ITS_TURN),
        ("Dependency", Wait.ITS_TURN),
        ("JobHeldUser", Wait.HELD),
        ("launch_failed_requeued_held", Wait.HELD_BY_SLURM),
        ("launch failed requeued held", Wait.HELD_BY_SLURM),
        ("", Wait.ITS_TURN),
        ("NobodyKnows", Wait.ROOM),
    ],
)
def test_what_a_pending_job_waits_for(reason: str, wait: Wait) -> None:
    assert waits_for(JobState.PENDING, reason) is wait


def test_a_hold_is_one_whatever_its_reason() -> None:
    assert waits_for(JobState.SPECIAL_EXIT, "") is Wait.HELD_BY_SLURM
    assert waits_for(JobState.REQUEUE_HOLD, "BeginTime") is Wait.HELD_BY_SLURM
    assert waits_for(JobState.REQUEUE_HOLD, "JobHeldAdmin") is Wait.HELD


def test_a_word_that_nobody_knows_has_no_row() -> None:
    assert reason_row("NobodyKnows") is None
