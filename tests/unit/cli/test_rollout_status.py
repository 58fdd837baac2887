"""When `rollout status` is done with waiting, and what it says until then."""

from __future__ import annotations

import pytest

from penstock.cli.rollout import _is_done
from penstock.v1 import deployment_pb2 as pb
from penstock.v1 import metadata_pb2


def shown(reason: str, *, replicas: int, updated: int = 2, generation: int = 3) -> pb.Deployment:
    """Two are wanted, of revision 2, and the controller has seen generation 3."""
    found = pb.Deployment()
    found.metadata.generation = generation
    status = found.status
    status.observed_generation, status.current_revision = 3, 2
    status.desired_replicas, status.replicas, status.updated_replicas = 2, replicas, updated
    status.conditions.add(type="Progressing", reason=reason, message="as it goes")
    return found


@pytest.mark.parametrize(
    ("reason", "replicas"),
    [("Steady", 2), ("Handover", 3), ("HandoverWait", 3)],
)
def test_it_is_done_where_a_successor_only_waits(reason: str, replicas: int) -> None:
    assert _is_done(shown(reason, replicas=replicas), 2, pytest.fail)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (shown("RolloutWait", replicas=3), "2 of 2 replicas ready, 1 other: as it goes"),
        (shown("Handover", replicas=3, updated=1), "1 of 2 replicas ready, 2 others: as it goes"),
        (shown("Handover", replicas=3, generation=4), "2 of 2 replicas ready, 1 other"),
        (shown("Handover", replicas=1, updated=1), "1 of 2 replicas ready, 0 others: as it goes"),
    ],
)
def test_it_waits_and_says_for_what(found: pb.Deployment, says: str) -> None:
    said: list[str] = []
    assert not _is_done(found, 2, said.append)
    assert said == [f"revision 2: {says}"]


def test_it_says_what_is_wrong_long_before_it_gives_up() -> None:
    found = shown("RolloutWait", replicas=3, updated=0)
    for kind, message in (("CrashLooping", "r-3 failed 3 times in a row"), ("Blocked", "r-4: held")):
        found.status.conditions.add(type=kind, status=metadata_pb2.CONDITION_STATUS_TRUE, message=message)
    said: list[str] = []
    assert not _is_done(found, 2, said.append)
    assert said == [
        "revision 2: 0 of 2 replicas ready, 3 others: as it goes; r-3 failed 3 times in a row; r-4: held"
    ]
