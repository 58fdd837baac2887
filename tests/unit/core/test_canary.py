"""Canaries, and how a rollout goes: how many, until when, which requests, and when it has failed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest

from penstock.core import backoff
from penstock.core.budget import HeldBack
from penstock.core.canary import canary_counts, failed_as_canary, is_canary, is_past_canary, request_weights
from penstock.core.decisions import CreateReplica, GoBack, Leave, Reason, RecordRollout
from penstock.core.model import Deployment, Failure, Phase, Replica, ReplicaState, RolloutRecord
from penstock.core.plan import plan
from penstock.core.progress import TRIES, rollout_record
from penstock.core.rollout import plan_counts
from penstock.core.spec import Canary, RestartPolicy, Rollout, RolloutStrategy
from tests.worlds import NOW, at, attempt, deployment, drawn, job, ready_attempt, replica, world

READY, STARTING, QUEUED, WAITING = (
    ReplicaState.READY,
    ReplicaState.STARTING,
    ReplicaState.QUEUED,
    ReplicaState.WAITING,
)


def canary(percent: int = 25, bake_s: int | None = None, **more: Any) -> Rollout:
    return Rollout(strategy=RolloutStrategy.CANARY, canary=Canary(percent, bake_s), **more)


def these(*rows: tuple[int, ReplicaState]) -> list[Replica]:
    return [replica(number, revision=row[0], state=row[1]) for number, row in enumerate(rows, start=1)]


@pytest.mark.parametrize(
    ("percent", "want", "surge", "expected"),
    [
        (10, 10, "1", (1, 9)),
        (10, 15, "1", (2, 13)),
        (1, 4, "0", (1, 3)),
        (99, 4, "1", (3, 1)),
        (50, 2, "1", (1, 1)),
        (50, 1, "1", (1, 1)),
        (50, 1, "0", (1, 0)),
    ],
)
def test_counts(percent: int, want: int, surge: str, expected: tuple[int, int]) -> None:
    assert canary_counts(canary(percent, max_surge=surge), want) == expected


@pytest.mark.parametrize(
    ("expected", "facts"),
    [
        (True, {}),
        (False, {"revision": 1}),
        (False, {"promoted_revision": 2}),
        (False, {"record": RolloutRecord(stable_revision=1, baked_revision=2)}),
        (False, {"record": RolloutRecord(stable_revision=0)}),
        (False, {"record": RolloutRecord(stable_revision=1, failed_revision=2)}),
        (False, {"replicas": 0}),
        (False, {"rollout": Rollout()}),
    ],
)
def test_there_is_a_canary_only_of_what_is_new_beside_what_is_stable(
    expected: bool, facts: dict[str, Any]
) -> None:
    of = deployment(**{"rollout": canary(), "revision": 2, **facts})
    assert is_canary(of) is expected
    assert failed_as_canary(of) is (of.rollout.failed_revision == 2)


TRUSTED = RolloutRecord(stable_revision=1, trusted_revisions=(2,))
"""Revision 2 was promoted and is not on all replicas yet."""


@pytest.mark.parametrize(
    ("says", "record", "revision", "promoted", "ready", "expected"),
    [
        ("whole: its share", RolloutRecord(1), 2, 0, {1: 9, 2: 3}, {1: 75, 2: 25}),
        ("more of it than that get no more", RolloutRecord(1), 2, 0, {1: 9, 2: 4}, {1: 75, 2: 25}),
        ("two of its three are ready", RolloutRecord(1), 2, 0, {1: 9, 2: 2}, {1: 84, 2: 16}),
        ("the first of its three is ready", RolloutRecord(1), 2, 0, {1: 9, 2: 1}, {1: 92, 2: 8}),
        ("not ready yet", RolloutRecord(1), 2, 0, {1: 12}, {1: 100}),
        ("failed", RolloutRecord(1, failed_revision=2), 2, 0, {1: 3, 2: 1}, {1: 100, 2: 0}),
        ("promoted: all alike", RolloutRecord(1), 2, 2, {1: 3, 2: 1}, {}),
        ("undone: it gets nothing", RolloutRecord(1), 3, 3, {3: 3, 2: 1}, {3: 3, 2: 0}),
        ("over", RolloutRecord(2), 2, 2, {2: 4}, {}),
        ("beside a trusted one, too", TRUSTED, 3, 2, {1: 1, 2: 8, 3: 3}, {1: 75, 2: 600, 3: 225}),
        ("all the old ones are trusted ones", TRUSTED, 3, 2, {2: 9}, {2: 100}),
        (
            "failed beside a trusted one",
            replace(TRUSTED, failed_revision=3),
            3,
            2,
            {1: 1, 2: 3, 3: 1},
            {1: 100, 2: 300, 3: 0},
        ),
        ("promoted: the trusted one serves until it goes", TRUSTED, 3, 3, {1: 1, 2: 3, 3: 1}, {}),
        ("a canary that was undone is not trusted", TRUSTED, 4, 4, {2: 3, 3: 1, 4: 1}, {2: 3, 3: 0, 4: 1}),
        ("the first revision", RolloutRecord(0), 1, 0, {1: 4}, {}),
    ],
)
def test_requests(
    says: str,
    record: RolloutRecord,
    revision: int,
    promoted: int,
    ready: dict[int, int],
    expected: dict[int, int],
) -> None:
    assert request_weights(canary(25), 12, record, revision, promoted, ready) == expected


def test_the_smallest_canary_gets_requests_too() -> None:
    """1% of 200 is two replicas, and half of 1% rounds to nothing."""
    assert request_weights(canary(1), 200, RolloutRecord(1), 2, 0, {1: 198, 2: 1}) == {1: 99, 2: 1}


FAILED = RolloutRecord(stable_revision=1, failed_revision=2, failed_message="r9: it died")


@dataclass(frozen=True)
class Row:
    name: str
    of: Deployment
    replicas: list[Replica]
    reason: Reason
    says: str
    leave: list[str] = field(default_factory=list)
    made: list[int] = field(default_factory=list)
    handed_over: list[str] = field(default_factory=list)


ROWS = [
    Row(
        "a canary is made above the wanted number",
        deployment(replicas=4, revision=2, rollout=canary()),
        these((1, READY), (1, READY), (1, READY), (1, READY)),
        Reason.ROLLOUT_CANARY,
        "the canary of revision 2: 0 of 1 ready, beside 4 of revision 1; to be promoted by hand; 1 made",
        made=[2],
    ),
    Row(
        "without surge one goes first",
        deployment(replicas=4, revision=2, rollout=canary(max_surge="0", max_unavailable="1")),
        these((1, READY), (1, READY), (1, READY), (1, READY)),
        Reason.ROLLOUT_CANARY,
        "the canary of revision 2: 0 of 1 ready, beside 4 of revision 1; to be promoted by hand;"
        " 1 made, 1 to go",
        leave=["r4"],
        made=[2],
    ),
    Row(
        "a stable one that is missing is made anew, of its own revision",
        deployment(replicas=4, revision=2, rollout=canary()),
        these((1, READY), (1, READY), (2, READY)),
        Reason.ROLLOUT_CANARY,
        "the canary of revision 2: 1 of 1 ready, beside 2 of revision 1;"
        " waits for `penstock rollout promote chat`; 1 made",
        made=[1],
    ),
    Row(
        "failed: what is ready stays, the rest goes, and the stable revision makes up for it",
        deployment(replicas=3, revision=2, record=FAILED),
        these((1, READY), (2, READY), (2, STARTING), (2, QUEUED)),
        Reason.ROLLOUT_FAILED,
        "revision 2 failed: r9: it died; the rollout is stopped: apply another spec, go back by"
        " `penstock rollout undo chat`, or try again by `penstock restart chat`; 1 made, 2 to go",
        leave=["r4", "r3"],
        made=[1],
    ),
    Row(
        "a failed canary goes wholly, as its places are taken",
        deployment(replicas=3, revision=2, rollout=canary(), record=FAILED),
        these((1, READY), (1, READY), (2, READY)),
        Reason.ROLLOUT_FAILED,
        "revision 2 failed: r9: it died; the rollout is stopped: apply another spec, go back by"
        " `penstock rollout undo chat`, or try again by `penstock restart chat`; 1 made",
        made=[1],
    ),
    Row(
        "paused: a missing one is made of the revision that was there",
        deployment(replicas=3, revision=3, rollout_paused=True),
        these((1, READY), (2, READY)),
        Reason.ROLLOUT_PAUSED,
        "the rollout of revision 3 stands still until `penstock rollout resume chat`; 0 of 3 are of it;"
        " 1 made",
        made=[1],
    ),
    Row(
        "paused: scaled down",
        deployment(replicas=1, revision=2, rollout_paused=True),
        these((1, READY), (1, READY)),
        Reason.ROLLOUT_PAUSED,
        "the rollout of revision 2 stands still until `penstock rollout resume chat`; 0 of 1 are of it;"
        " 1 to go",
        leave=["r2"],
    ),
    Row(
        "paused: a successor is of the revision of the one that it takes over from",
        deployment(replicas=2, revision=2, rollout_paused=True),
        these((1, READY), (2, READY)),
        Reason.ROLLOUT_PAUSED,
        "the rollout of revision 2 stands still until `penstock rollout resume chat`; 1 of 2 are of it;"
        " 1 of 2 replicas handed over; 1 made",
        made=[2],
        handed_over=["r2"],
    ),
    Row(
        "paused: and of the old one where that ends",
        deployment(replicas=2, revision=2, rollout_paused=True),
        these((1, READY), (2, READY)),
        Reason.ROLLOUT_PAUSED,
        "the rollout of revision 2 stands still until `penstock rollout resume chat`; 1 of 2 are of it;"
        " 1 of 2 replicas handed over; 1 made",
        made=[1],
        handed_over=["r1"],
    ),
    Row(
        "one that was promoted, and is not everywhere yet, is kept beside the next canary",
        deployment(replicas=4, revision=3, promoted_revision=2, rollout=canary(), record=TRUSTED),
        these((1, READY), (2, READY), (2, READY), (2, READY)),
        Reason.ROLLOUT_CANARY,
        "the canary of revision 3: 0 of 1 ready, beside 1 of revision 1 and 3 of revision 2;"
        " to be promoted by hand; 1 made",
        made=[3],
    ),
    Row(
        "but for those of it that never served",
        deployment(replicas=4, revision=3, promoted_revision=2, rollout=canary(), record=TRUSTED),
        these((1, READY), (1, READY), (2, READY), (2, STARTING)),
        Reason.ROLLOUT_CANARY,
        "the canary of revision 3: 0 of 1 ready, beside 2 of revision 1 and 1 of revision 2;"
        " to be promoted by hand;"
        " 1 made, 1 to go",
        leave=["r4"],
        made=[3],
    ),
    Row(
        "a canary of one does not stand in for the stable one whose job ends",
        deployment(replicas=1, revision=2, rollout=canary(10)),
        these((1, READY), (2, READY)),
        Reason.ROLLOUT_CANARY,
        "the canary of revision 2: 1 of 1 ready, beside 1 of revision 1; 1 of 2 replicas handed over;"
        " waits for `penstock rollout promote chat`; 1 made",
        made=[1],
        handed_over=["r1"],
    ),
    Row(
        "which goes when its own successor is ready",
        deployment(replicas=1, revision=2, rollout=canary(10)),
        these((1, READY), (2, READY), (1, READY)),
        Reason.ROLLOUT_CANARY,
        "the canary of revision 2: 1 of 1 ready, beside 2 of revision 1; 1 of 3 replicas handed over;"
        " waits for `penstock rollout promote chat`; 1 to go",
        leave=["r1"],
        handed_over=["r1"],
    ),
    Row(
        "both handed over: the one goes whose own successor is ready, be it the later one",
        deployment(replicas=2, revision=2, rollout=canary(50)),
        these((1, READY), (2, READY), (2, READY), (1, STARTING)),
        Reason.ROLLOUT_CANARY,
        "the canary of revision 2: 1 of 1 ready, beside 2 of revision 1; 2 of 4 replicas handed over;"
        " waits for `penstock rollout promote chat`; 1 to go",
        leave=["r2"],
        handed_over=["r1", "r2"],
    ),
    Row(
        "paused: nor does a canary that stands still",
        deployment(replicas=1, revision=2, rollout=canary(10), rollout_paused=True),
        these((1, READY), (2, READY)),
        Reason.ROLLOUT_PAUSED,
        "the rollout of revision 2 stands still until `penstock rollout resume chat`; 1 of 1 are of it;"
        " 1 of 2 replicas handed over; 1 made",
        made=[1],
        handed_over=["r1"],
    ),
    Row(
        "paused: a canary's successor is of its own revision",
        deployment(replicas=1, revision=2, rollout=canary(10), rollout_paused=True),
        these((1, READY), (2, READY)),
        Reason.ROLLOUT_PAUSED,
        "the rollout of revision 2 stands still until `penstock rollout resume chat`; 1 of 1 are of it;"
        " 1 of 2 replicas handed over; 1 made",
        made=[2],
        handed_over=["r2"],
    ),
    Row(
        "paused: a canary that has failed is kept as it is, too",
        deployment(replicas=1, revision=2, rollout=canary(10), rollout_paused=True, record=FAILED),
        these((1, READY), (2, READY)),
        Reason.ROLLOUT_PAUSED,
        "the rollout of revision 2 stands still until `penstock rollout resume chat`; 1 of 1 are of it;"
        " 1 of 2 replicas handed over; 1 made",
        made=[1],
        handed_over=["r1"],
    ),
    Row(
        "paused: what an earlier canary has left is no successor of the stable one",
        deployment(replicas=1, revision=3, rollout=canary(1), rollout_paused=True),
        these((1, READY), (2, READY), (3, READY)),
        Reason.ROLLOUT_PAUSED,
        "the rollout of revision 3 stands still until `penstock rollout resume chat`; 1 of 1 are of it;"
        " 1 of 3 replicas handed over; 1 made",
        made=[1],
        handed_over=["r1"],
    ),
    Row(
        "paused: and goes when that one has been made",
        deployment(replicas=1, revision=3, rollout=canary(1), rollout_paused=True),
        these((1, READY), (2, READY), (3, READY), (1, STARTING)),
        Reason.ROLLOUT_PAUSED,
        "the rollout of revision 3 stands still until `penstock rollout resume chat`; 1 of 1 are of it;"
        " 1 of 4 replicas handed over; 1 to go",
        leave=["r2"],
        handed_over=["r1"],
    ),
    Row(
        "paused: nor does it take the successor's room",
        deployment(replicas=2, revision=3, rollout=canary(1), rollout_paused=True),
        these((1, READY), (2, READY), (3, STARTING), (3, STARTING)),
        Reason.ROLLOUT_PAUSED,
        "the rollout of revision 3 stands still until `penstock rollout resume chat`; 2 of 2 are of it;"
        " 1 of 4 replicas handed over; 1 made",
        made=[1],
        handed_over=["r1"],
    ),
    Row(
        "paused: nor do more of a canary than there should be",
        deployment(replicas=2, revision=2, rollout=canary(1), rollout_paused=True),
        these((1, READY), (2, READY), (2, READY), (2, STARTING)),
        Reason.ROLLOUT_PAUSED,
        "the rollout of revision 2 stands still until `penstock rollout resume chat`; 3 of 2 are of it;"
        " 1 of 4 replicas handed over; 1 made, 1 to go",
        leave=["r4"],
        made=[1],
        handed_over=["r1"],
    ),
    Row(
        "paused: one that serves goes for it only where enough others do",
        deployment(replicas=2, revision=2, rollout=canary(1), rollout_paused=True),
        these((1, STARTING), (2, READY), (2, READY), (2, READY)),
        Reason.ROLLOUT_PAUSED,
        "the rollout of revision 2 stands still until `penstock rollout resume chat`; 3 of 2 are of it;"
        " 1 of 4 replicas handed over; 1 made, 1 to go",
        leave=["r4"],
        made=[1],
        handed_over=["r1"],
    ),
    Row(
        "paused: but it stays where too few others serve, and the successor does not go instead of it",
        deployment(replicas=2, revision=3, rollout=canary(1), rollout_paused=True),
        these((1, READY), (2, READY), (3, STARTING), (3, STARTING), (1, STARTING)),
        Reason.ROLLOUT_PAUSED,
        "the rollout of revision 3 stands still until `penstock rollout resume chat`; 2 of 2 are of it;"
        " 1 of 5 replicas handed over",
        handed_over=["r1"],
    ),
    Row(
        "paused before it was begun: a canary is not begun",
        deployment(replicas=4, revision=2, rollout=canary(), rollout_paused=True),
        these((1, READY), (1, READY), (1, READY), (1, READY)),
        Reason.ROLLOUT_PAUSED,
        "the rollout of revision 2 stands still until `penstock rollout resume chat`; 0 of 4 are of it",
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_numbers(row: Row) -> None:
    found = plan_counts(row.of, row.replicas, row.handed_over)
    assert found.decision is not None
    assert (found.decision.reason, found.decision.message) == (row.reason, row.says)
    gone = [one.replica_uid for one in found.decision.actions if isinstance(one, Leave)]
    assert gone == row.leave
    assert found.leaving == frozenset(row.leave)
    assert [one.revision for one in found.decision.actions if isinstance(one, CreateReplica)] == row.made


def running(seconds: float, **changes: Any) -> Replica:
    """Of revision 2, its job seen to run for so long."""
    its = attempt(
        running_since=at(-seconds), phase=Phase.STARTING, phase_message="loading weights", **changes
    )
    return replica(3, revision=2, state=STARTING, its=its)


def test_a_revision_fails_when_its_deadline_passes_and_not_before() -> None:
    of = deployment(replicas=1, revision=2, rollout=Rollout(progress_deadline_s=120))
    assert rollout_record(of, [running(119)], {}, NOW) == of.rollout
    found = rollout_record(of, [running(120)], {}, NOW)
    assert found.failed_revision == 2
    assert (
        found.failed_message == "chat-3: job 7 generated no token within 120 s of its start: loading weights"
    )


def test_neither_the_queue_nor_a_pause_nor_a_stable_revision_fails() -> None:
    of = deployment(replicas=1, revision=2, rollout=Rollout(progress_deadline_s=120))
    queued = replica(3, revision=2, state=QUEUED, its=attempt(submitted_at=at(-90_000)))
    assert rollout_record(of, [queued], {}, NOW) == of.rollout
    for other in (
        replace(of, paused=True),
        replace(of, rollout_paused=True),
        replace(of, rollout=RolloutRecord(stable_revision=2)),
    ):
        assert rollout_record(other, [running(500)], {}, NOW) == other.rollout


def test_a_revision_fails_when_its_budget_is_spent() -> None:
    of = deployment(replicas=1, revision=2)
    ended = attempt(ended_at=at(-5), end_message="job 7 ended as FAILED", last_words="no such option\n")
    mine = replica(3, revision=2, state=WAITING, its=ended)
    assert rollout_record(of, [mine], {"r3": HeldBack(1, 2, None)}, NOW) == of.rollout
    found = rollout_record(of, [mine], {"r3": HeldBack(2, 2, at(3000))}, NOW)
    assert found.failed_message == (
        "chat-3: 2 of the 2 failures an hour that the revision may lose are spent: job 7 ended as FAILED;"
        " the engine's last lines: no such option"
    )


def test_a_canary_bakes_only_as_long_as_it_is_whole() -> None:
    of = deployment(replicas=4, revision=2, rollout=canary(bake_s=60))
    one = [replica(3, revision=2, state=READY)]
    begun = rollout_record(of, one, {}, NOW)
    assert (begun.canary_since, begun.baked_revision) == (NOW, 0)
    assert rollout_record(replace(of, rollout=begun), [], {}, at(59)).canary_since is None
    baked = rollout_record(replace(of, rollout=begun), one, {}, at(60))
    assert (baked.canary_since, baked.baked_revision) == (None, 2)
    stands_still = rollout_record(replace(of, rollout=begun, rollout_paused=True), one, {}, at(60))
    assert (stands_still.canary_since, stands_still.baked_revision) == (None, 0)
    resumed = rollout_record(replace(of, rollout=stands_still), one, {}, at(90))
    assert (resumed.canary_since, resumed.baked_revision) == (at(90), 0)


def test_what_is_ready_everywhere_is_stable() -> None:
    of = deployment(replicas=2, revision=2, record=FAILED)
    found = rollout_record(of, these((2, READY), (2, READY)), {}, NOW)
    assert found == RolloutRecord(stable_revision=2)
    assert rollout_record(replace(of, spec=replace(of.spec, replicas=0)), [], {}, NOW) == FAILED


def test_what_is_past_its_canary_is_trusted_once_it_serves() -> None:
    of = deployment(replicas=4, revision=2, rollout=canary())
    mine = these((1, READY), (1, READY), (2, READY), (2, STARTING))
    assert rollout_record(of, mine, {}, NOW).trusted_revisions == ()
    promoted = replace(of, promoted_revision=2)
    assert rollout_record(promoted, these((1, READY), (2, STARTING)), {}, NOW) == of.rollout
    found = rollout_record(promoted, mine, {}, NOW)
    assert found.trusted_revisions == (2,)
    after = replace(of, revision=3, promoted_revision=2, rollout=found)
    assert rollout_record(after, mine, {}, NOW).trusted_revisions == (2,)
    assert rollout_record(after, these((1, READY), (3, READY)), {}, NOW).trusted_revisions == ()
    whole = rollout_record(promoted, these(*[(2, READY)] * 4), {}, NOW)
    assert (whole.stable_revision, whole.trusted_revisions) == (2, ())
    broken = replica(9, revision=2, its=attempt(ended_at=at(-5)), failures=TRIES)
    assert rollout_record(promoted, [*mine, broken], {}, NOW).trusted_revisions == ()


@pytest.mark.parametrize(
    ("past", "promoted", "record"),
    [
        (False, 0, RolloutRecord(1)),
        (True, 2, RolloutRecord(1)),
        (True, 0, RolloutRecord(1, baked_revision=2)),
        (False, 2, RolloutRecord(1, failed_revision=2)),
    ],
)
def test_a_restart_of_what_is_past_its_canary_needs_none(
    past: bool, promoted: int, record: RolloutRecord
) -> None:
    of = deployment(replicas=4, revision=2, rollout=canary(), promoted_revision=promoted, record=record)
    assert is_past_canary(of) is past


def test_it_goes_back_by_itself_where_that_is_asked_for() -> None:
    asked = deployment(replicas=1, revision=2, rollout=Rollout(rollback_on_failure=True), record=FAILED)
    decided = plan(world([asked], [], [])).decisions[0]
    assert decided.reason is Reason.ROLLED_BACK
    (action,) = decided.actions
    assert isinstance(action, GoBack)
    assert (action.revision, action.to) == (2, 1)
    assert action.rollout == replace(FAILED, stable_revision=3)
    for held in ({"paused": True}, {"rollout_paused": True}, {"deleted_at": at(-1)}):
        found = plan(world([replace(asked, **held)], [], [])).decisions[0]
        assert found.reason is not Reason.ROLLED_BACK


def test_the_startup_timeout_fails_a_rollout_by_default_too() -> None:
    """Both end at the same second, and the tick that gives the job up must not hide that it was late."""
    of = deployment(replicas=1, revision=2)
    serving, late = job(token=drawn(2), job_id=8), job(started_at=at(-600))
    mine = [
        replica(1, state=READY, its=ready_attempt(token=drawn(2), job_id=8, job=serving)),
        replica(2, revision=2, state=STARTING, its=attempt(phase=Phase.STARTING, job=late)),
    ]
    own, *_ = plan(world([of], mine, [serving, late])).decisions
    assert own.reason is Reason.ROLLOUT_FAILED
    recorded = next(one for one in own.actions if isinstance(one, RecordRollout))
    assert recorded.rollout.failed_message == "chat-2: job 7 generated no token within 600 s of its start"


@pytest.mark.parametrize("altered", [{}, {"comment": "an analysis"}, {"name": f"penstock-other-{drawn(1)}"}])
def test_the_deadline_counts_from_the_start_of_this_run(altered: dict[str, Any]) -> None:
    """A node failed, and between two looks its job was requeued and began anew: stored is the earlier run."""
    of = deployment(replicas=1, revision=2)
    serving, before = job(token=drawn(2), job_id=8), job(started_at=at(-600), **altered)
    mine = [
        replica(1, state=READY, its=ready_attempt(token=drawn(2), job_id=8, job=serving)),
        replica(2, revision=2, state=STARTING, its=attempt(phase=Phase.STARTING, job=before)),
    ]
    own, *_ = plan(world([of], mine, [serving, replace(before, restarts=1, started_at=at(-4))])).decisions
    assert own.reason is Reason.ROLLOUT_WAIT


def test_a_revision_fails_when_one_replica_failed_too_often_in_a_row() -> None:
    """The only replica of the surge waits longer and longer, and would never spend the budget of four."""
    of = deployment(replicas=4, revision=2)
    stable = [replica(number, state=READY) for number in range(1, 5)]
    ended = attempt(ended_at=at(-5), end_message="job 7 ended as FAILED", last_words="no such option\n")

    def failing(failures: int) -> Replica:
        return replica(5, revision=2, its=ended, failures=failures, next_attempt_at=at(160))

    assert rollout_record(of, [*stable, failing(7)], {}, NOW) == of.rollout
    own = plan(world([of], [failing(8)], [])).decisions[0]
    assert own.reason is Reason.ROLLOUT_FAILED
    recorded = next(one for one in own.actions if isinstance(one, RecordRollout))
    assert recorded.rollout.failed_message == (
        "chat-5: 8 attempts failed in a row: job 7 ended as FAILED; the engine's last lines: no such option"
    )
    whole = replace(of, rollout=RolloutRecord(stable_revision=2))
    assert rollout_record(whole, [failing(9)], {}, NOW) == whole.rollout


def test_the_tries_outlast_a_short_outage() -> None:
    waits = [
        sum(
            (backoff.delay(failures, RestartPolicy(), of) for failures in range(1, TRIES)),
            start=timedelta(),
        ).total_seconds()
        for of in ("", *(f"chat-{number}" for number in range(50)))
    ]
    assert waits[0] == 910
    assert min(waits) >= 682


def test_refusals_and_what_was_lost_are_no_tries_of_a_revision() -> None:
    """A partition that is closed for minutes, or a limit on submissions, says nothing of the new spec."""
    of = deployment(replicas=4, revision=2)
    ended = attempt(ended_at=at(-5), end_message="job 7 ended as FAILED")
    refused = replace(ended, job_id=None, refusal="Slurm says no")
    mine = replica(5, revision=2, its=refused, failures=30, next_attempt_at=at(160))
    assert rollout_record(of, [mine], {}, NOW) == of.rollout
    failing = replace(mine, attempt=ended, failures=TRIES + 2)
    lost = [Failure("chat", 2, "chat-5", at(-900 + at_s), None) for at_s in range(3)]
    others = [replace(lost[0], replica="chat-6"), replace(lost[0], revision=1)]
    assert rollout_record(of, [failing], {}, NOW, lost) == of.rollout
    assert rollout_record(of, [failing], {}, NOW, [*lost[:2], *others]).failed_revision == 2


def test_a_policy_that_allows_more_failures_gives_more_tries() -> None:
    patient = RestartPolicy(backoff_initial_s=1, backoff_max_s=1, max_failures_per_hour=20)
    of = deployment(replicas=1, revision=2)
    of = replace(of, spec=replace(of.spec, restart=patient))
    mine = replica(2, revision=2, its=attempt(ended_at=at(-5)), failures=19, next_attempt_at=at(1))
    assert rollout_record(of, [mine], {}, NOW) == of.rollout
    assert rollout_record(of, [replace(mine, failures=20)], {}, NOW).failed_revision == 2


def test_it_stays_where_it_was_tried_to_go_back_and_cannot() -> None:
    record = replace(FAILED, cannot_go_back=2)
    of = deployment(replicas=1, revision=2, rollout=Rollout(rollback_on_failure=True), record=record)
    assert plan(world([of], [], [])).decisions[0].reason is Reason.ROLLOUT_FAILED
    again = replace(of, rollout=replace(record, cannot_go_back=1))
    assert plan(world([again], [], [])).decisions[0].reason is Reason.ROLLED_BACK
