"""How many replicas of which revision: what is made, what goes, and what is said."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from penstock.core.decisions import CreateReplica, Leave, Reason
from penstock.core.model import Deployment, Replica, ReplicaState, RolloutRecord
from penstock.core.rollout import available_floor, plan_counts
from penstock.core.spec import Rollout, RolloutStrategy
from tests.worlds import at, deployment, replica

WAITING, QUEUED, STARTING, READY, STOPPING = (
    ReplicaState.WAITING,
    ReplicaState.QUEUED,
    ReplicaState.STARTING,
    ReplicaState.READY,
    ReplicaState.STOPPING,
)
RECREATE = Rollout(strategy=RolloutStrategy.RECREATE)
NEVER_WHOLE = RolloutRecord(failed_revision=2, failed_message="chat-9: it died")
"""Revision 2 failed, and none was ever ready on all replicas."""
STOPPED = (
    "revision 2 failed: chat-9: it died; the rollout is stopped: apply another spec, go back by"
    " `penstock rollout undo chat`, or try again by `penstock restart chat`"
)


def these(*rows: tuple[int, ReplicaState] | tuple[int, ReplicaState, str]) -> list[Replica]:
    """Replicas numbered from 1, each a revision, a state and, if it is leaving, the word."""
    return [
        replica(number, revision=row[0], state=row[1], leaving=len(row) == 3)
        for number, row in enumerate(rows, start=1)
    ]


@dataclass(frozen=True)
class Row:
    name: str
    of: Deployment
    replicas: list[Replica]
    reason: Reason | None
    says: str = ""
    leave: list[str] = field(default_factory=list)
    made: int = 0
    handed_over: tuple[str, ...] = ()
    made_old: int = 0
    """Of revision 1, where another one is the current."""


ROWS = [
    Row("as wanted", deployment(), these((1, READY)), None),
    Row("none wanted, none there", deployment(replicas=0), [], None),
    Row("first", deployment(replicas=2), [], Reason.SCALE_UP, "0 of 2 exist; 2 made", made=2),
    Row(
        "one more",
        deployment(replicas=2),
        these((1, READY)),
        Reason.SCALE_UP,
        "1 of 2 exist; 1 made",
        made=1,
    ),
    Row(
        "one is leaving and is replaced",
        deployment(),
        these((1, READY, "leaving")),
        Reason.SCALE_UP,
        "0 of 1 exist; 1 made",
        made=1,
    ),
    Row(
        "down: those that serve nobody go first, then the youngest",
        deployment(replicas=1),
        these((1, READY), (1, READY), (1, QUEUED), (1, STOPPING)),
        Reason.SCALE_DOWN,
        "4 replicas for 1 wanted; 3 to go",
        leave=["r4", "r3", "r2"],
    ),
    Row(
        "down to none",
        deployment(replicas=0),
        these((1, READY)),
        Reason.SCALE_DOWN,
        "1 replica for 0 wanted; 1 to go",
        leave=["r1"],
    ),
    Row(
        "paused",
        deployment(replicas=3, paused=True),
        [],
        Reason.PAUSED,
        "nothing is done until `penstock resume chat`",
    ),
    Row(
        "paused in the middle of a rollout",
        deployment(replicas=2, paused=True, revision=2),
        these((1, READY), (2, STARTING)),
        Reason.PAUSED,
        "nothing is done until `penstock resume chat`",
    ),
    Row(
        "deleted",
        deployment(replicas=2, deleted_at=at(-1)),
        these((1, READY), (1, WAITING)),
        Reason.DELETING,
        "2 replicas to be drained first",
        leave=["r1", "r2"],
    ),
    Row(
        "deleted while paused",
        deployment(deleted_at=at(-1), paused=True),
        these((1, READY)),
        Reason.DELETING,
        "1 replica to be drained first",
        leave=["r1"],
    ),
    Row(
        "deleted by force, all leaving already",
        deployment(deleted_at=at(-1), force_delete=True),
        these((1, STOPPING, "leaving")),
        Reason.DELETING,
        "1 replica to be cancelled first",
    ),
    Row(
        "rollout begins: one above the wanted number",
        deployment(replicas=2, revision=2),
        these((1, READY), (1, READY)),
        Reason.ROLLOUT_SURGE,
        "0 of 2 are of revision 2, 2 of an old one; 1 made",
        made=1,
    ),
    Row(
        "rollout waits for the new one",
        deployment(replicas=2, revision=2),
        these((1, READY), (1, READY), (2, STARTING)),
        Reason.ROLLOUT_WAIT,
        "1 of 2 are of revision 2, 2 of an old one; 2 ready, and 2 must stay so",
    ),
    Row(
        "the new one is ready: an old one goes and the next is made",
        deployment(replicas=2, revision=2),
        these((1, READY), (1, READY), (2, READY)),
        Reason.ROLLOUT_RETIRE,
        "1 of 2 are of revision 2, 2 of an old one; 1 made, 1 to go",
        leave=["r2"],
        made=1,
    ),
    Row(
        "the last old one goes",
        deployment(replicas=2, revision=2),
        these((1, READY), (1, READY, "leaving"), (2, READY), (2, READY)),
        Reason.ROLLOUT_RETIRE,
        "2 of 2 are of revision 2, 1 of an old one; 1 to go",
        leave=["r1"],
    ),
    Row(
        "an old one that serves nobody goes at once, a serving one stays",
        deployment(replicas=2, revision=2),
        these((1, READY), (1, STARTING)),
        Reason.ROLLOUT_RETIRE,
        "0 of 2 are of revision 2, 2 of an old one; 2 made, 1 to go",
        leave=["r2"],
        made=2,
    ),
    Row(
        "the new ones fail: the old ones stay",
        deployment(replicas=2, revision=2),
        these((1, READY), (1, READY), (2, WAITING)),
        Reason.ROLLOUT_WAIT,
        "1 of 2 are of revision 2, 2 of an old one; 2 ready, and 2 must stay so",
    ),
    Row(
        "one may be missing: no surge is needed",
        deployment(replicas=3, revision=2, rollout=Rollout(max_surge="0", max_unavailable="1")),
        these((1, READY), (1, READY), (1, READY)),
        Reason.ROLLOUT_RETIRE,
        "0 of 3 are of revision 2, 3 of an old one; 1 made, 1 to go",
        leave=["r3"],
        made=1,
    ),
    Row(
        "both shares round to nothing: one may be missing",
        deployment(replicas=2, revision=2, rollout=Rollout(max_surge="0%", max_unavailable="25%")),
        these((1, READY), (1, READY)),
        Reason.ROLLOUT_RETIRE,
        "0 of 2 are of revision 2, 2 of an old one; 1 made, 1 to go",
        leave=["r2"],
        made=1,
    ),
    Row(
        "rolled back in the middle: the newest revision's unready one goes",
        deployment(replicas=2, revision=3),
        these((1, READY), (1, READY), (2, STARTING)),
        Reason.ROLLOUT_RETIRE,
        "0 of 2 are of revision 3, 3 of an old one; 1 made, 1 to go",
        leave=["r3"],
        made=1,
    ),
    Row(
        "scaled to none in the middle of a rollout",
        deployment(replicas=0, revision=2),
        these((1, READY), (2, READY)),
        Reason.ROLLOUT_RETIRE,
        "1 of 0 are of revision 2, 1 of an old one; 2 to go",
        leave=["r1", "r2"],
    ),
    Row(
        "handover: a successor is made beside it",
        deployment(replicas=2),
        these((1, READY), (1, READY)),
        Reason.HANDOVER,
        "1 of 2 replicas handed over; 1 successor made",
        made=1,
        handed_over=("r1",),
    ),
    Row(
        "handover: it stays until the successor is ready",
        deployment(replicas=2),
        these((1, READY), (1, READY), (1, STARTING)),
        Reason.HANDOVER_WAIT,
        "1 of 3 replicas handed over; 1 of 2 ready without them",
        handed_over=("r1",),
    ),
    Row(
        "handover: and goes then",
        deployment(replicas=2),
        these((1, READY), (1, READY), (1, READY)),
        Reason.HANDOVER,
        "1 of 3 replicas handed over; 1 to go",
        leave=["r1"],
        handed_over=("r1",),
    ),
    Row(
        "handover of all at once: one goes for each that is ready",
        deployment(replicas=2),
        these((1, READY), (1, READY), (1, READY), (1, QUEUED)),
        Reason.HANDOVER,
        "2 of 4 replicas handed over; 1 to go",
        leave=["r1"],
        handed_over=("r1", "r2"),
    ),
    Row(
        "handover of all at once: first the one whose job ends first",
        deployment(replicas=2),
        these((1, READY), (1, READY), (1, READY), (1, QUEUED)),
        Reason.HANDOVER,
        "2 of 4 replicas handed over; 1 to go",
        leave=["r2"],
        handed_over=("r2", "r1"),
    ),
    Row(
        "handover: another one has died meanwhile, so it stays",
        deployment(replicas=2),
        these((1, READY), (1, WAITING), (1, READY)),
        Reason.HANDOVER_WAIT,
        "1 of 3 replicas handed over; 1 of 2 ready without them",
        handed_over=("r1",),
    ),
    Row(
        "handover: it drains by itself already, and is left to it",
        deployment(replicas=1),
        these((1, ReplicaState.DRAINING), (1, READY)),
        Reason.HANDOVER_WAIT,
        "1 of 2 replicas handed over; 1 of 1 ready without them",
        handed_over=("r1",),
    ),
    Row(
        "handover while it is scaled up",
        deployment(replicas=3),
        these((1, READY)),
        Reason.HANDOVER,
        "1 of 1 replica handed over; 3 successors made",
        made=3,
        handed_over=("r1",),
    ),
    Row(
        "handover while it is scaled down: the successor goes where nothing else is ready",
        deployment(replicas=1),
        these((1, READY), (1, READY), (1, QUEUED)),
        Reason.SCALE_DOWN,
        "3 replicas for 1 wanted; 2 to go",
        leave=["r1", "r3"],
        handed_over=("r1",),
    ),
    Row(
        "rollout with a handover: the old one that ends goes first, and its room is beyond the surge",
        deployment(replicas=2, revision=2),
        these((1, READY), (1, READY), (2, READY)),
        Reason.ROLLOUT_RETIRE,
        "1 of 2 are of revision 2, 2 of an old one; 1 made, 1 to go",
        leave=["r1"],
        made=1,
        handed_over=("r1",),
    ),
    Row(
        "rollout with a handover of a new one: it is no loss to count one less",
        deployment(replicas=2, revision=2),
        these((1, READY), (2, READY)),
        Reason.ROLLOUT_SURGE,
        "0 of 2 are of revision 2, 1 of an old one, 1 handed over; 2 made",
        made=2,
        handed_over=("r2",),
    ),
    Row(
        "rollout with two handovers: first the one whose job ends first",
        deployment(replicas=2, revision=2),
        these((1, READY), (1, READY), (2, READY), (2, STARTING)),
        Reason.ROLLOUT_RETIRE,
        "2 of 2 are of revision 2, 2 of an old one; 1 to go",
        leave=["r1"],
        handed_over=("r1", "r2"),
    ),
    Row(
        "nothing was ever whole and the new ones failed: whoever serves is handed over to its own kind",
        deployment(replicas=3, revision=2, record=NEVER_WHOLE),
        these((1, READY), (1, READY), (2, WAITING), (2, WAITING)),
        Reason.ROLLOUT_FAILED,
        f"{STOPPED}; 2 made, 2 to go",
        leave=["r4", "r3"],
        made_old=2,
        handed_over=("r1",),
    ),
    Row(
        "nothing was ever whole and the new ones failed: a preempted old one comes back",
        deployment(replicas=2, revision=2, record=NEVER_WHOLE),
        these((1, READY), (1, QUEUED)),
        Reason.ROLLOUT_FAILED,
        STOPPED,
    ),
    Row(
        "nothing was ever whole and the new ones failed: what is ready of them stays",
        deployment(replicas=3, revision=2, record=NEVER_WHOLE),
        these((1, READY), (2, READY), (2, WAITING)),
        Reason.ROLLOUT_FAILED,
        f"{STOPPED}; 1 made, 1 to go",
        leave=["r3"],
        made_old=1,
    ),
    Row(
        "nothing was ever whole, two have failed: kept up is the one that served",
        deployment(replicas=2, revision=3, record=replace(NEVER_WHOLE, failed_revision=3)),
        these((1, READY), (2, STARTING), (3, WAITING)),
        Reason.ROLLOUT_FAILED,
        f"{STOPPED.replace('revision 2', 'revision 3')}; 1 made, 2 to go",
        leave=["r2", "r3"],
        made_old=1,
    ),
    Row(
        "nothing to fall back on: the failed one is tried again",
        deployment(replicas=2, revision=2, record=NEVER_WHOLE),
        these((1, STOPPING, "leaving"), (2, WAITING)),
        Reason.SCALE_UP,
        "1 of 2 exist; 1 made",
        made=1,
    ),
    Row(
        "recreate: the old ones go",
        deployment(replicas=2, revision=2, rollout=RECREATE),
        these((1, READY), (1, READY)),
        Reason.ROLLOUT_RETIRE,
        "2 replicas of an old revision must go before new ones are made",
        leave=["r1", "r2"],
    ),
    Row(
        "recreate: and must be gone",
        deployment(replicas=2, revision=2, rollout=RECREATE),
        these((1, STOPPING, "leaving")),
        Reason.ROLLOUT_WAIT,
        "1 replica of an old revision must be gone before new ones are made",
    ),
    Row(
        "recreate: then the new ones come",
        deployment(replicas=2, revision=2, rollout=RECREATE),
        [],
        Reason.SCALE_UP,
        "0 of 2 exist; 2 made",
        made=2,
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_counts(row: Row) -> None:
    counts = plan_counts(row.of, row.replicas, row.handed_over)
    assert counts.leaving == frozenset(row.leave)
    if row.reason is None:
        assert counts.decision is None
        return
    assert counts.decision is not None
    assert (counts.decision.reason, counts.decision.message) == (row.reason, row.says)
    assert counts.decision.subject == ("chat", "")
    made, made_old = CreateReplica("d1", row.of.revision), CreateReplica("d1", 1)
    assert counts.decision.actions == (
        *(Leave(uid) for uid in row.leave),
        *([made_old] * row.made_old),
        *([made] * row.made),
    )


@pytest.mark.parametrize(
    ("surge", "unavailable", "want", "floor"),
    [
        ("1", "0", 3, 3),
        ("1", "1", 3, 2),
        ("1", "50%", 3, 2),
        ("25%", "25%", 4, 3),
        ("0", "100%", 4, 0),
        ("0", "9", 4, 0),
        ("0%", "10%", 4, 3),
        ("0", "0", 0, 0),
    ],
)
def test_available_floor(surge: str, unavailable: str, want: int, floor: int) -> None:
    assert available_floor(Rollout(max_surge=surge, max_unavailable=unavailable), want) == floor
