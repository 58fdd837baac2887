"""Nodes that are to be given back: what is handed over, and what a submission is asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from penstock.core.decisions import BeginHandover
from penstock.core.estimates import Estimates
from penstock.core.handover import Threat
from penstock.core.jobs import Cluster, Maintenance, Node, Partition
from penstock.core.maintenance import bounds, threats, waits_for_nothing
from penstock.core.model import ReplicaState
from penstock.core.plan import plan
from penstock.core.spec import Burst, Handover, Placement, Resources, Spec
from penstock.core.walltime import Bounds, job_number, time_limit_s, warning_s
from tests.worlds import NOW, SPEC, at, deployment, job, ready_attempt, replica, world

HOUR = replace(SPEC, placement=Placement(time_limit="1h", time_limit_s=3600))
TAKES = Estimates(wait_s=0, cold_start_s=60, measured=1)
"""With 120 s of margin and 90 s of warning: not worth starting for less than 270 s."""


def cluster(*maintenance: Maintenance, states: tuple[str, str] = ("IDLE", "IDLE")) -> Cluster:
    nodes = tuple(
        Node(f"gpu{number}", state, 8, 16000, {"": 2}, ("gpu",)) for number, state in enumerate(states, 1)
    )
    gpu = Partition("gpu", True, True, 86_400, 7200, None, 2, 16, ("gpu1", "gpu2"))
    return Cluster("test", "26.05.5", (gpu,), nodes, maintenance=maintenance)


def firmware(begins_s: float, *nodes: str) -> Maintenance:
    return Maintenance("firmware", at(begins_s), at(begins_s + 3600), nodes or ("gpu1", "gpu2"))


def of(spec: Spec, seen: Cluster) -> tuple[Threat, ...]:
    return threats(job(nodes="gpu1"), [spec], seen, seen.leaving)


def test_nothing_threatens() -> None:
    assert of(HOUR, cluster()) == ()
    assert threats(job(), [HOUR], None, frozenset()) == ()
    assert of(HOUR, cluster(states=("IDLE", "MIXED+DRAIN"))) == ()
    assert of(HOUR, cluster(firmware(900, "gpu2"))) == ()


@pytest.mark.parametrize("state", ["MIXED+DRAIN", "DRAINING", "ALLOCATED+FAIL"])
def test_a_drained_node_threatens_where_there_is_another(state: str) -> None:
    assert of(HOUR, cluster(states=(state, "IDLE"))) == (Threat("node gpu1 is drained"),)
    assert of(HOUR, cluster(states=(state, "DOWN*"))) == ()
    large = replace(HOUR, resources=Resources(gpus=3))
    assert of(large, cluster(states=(state, "IDLE"))) == ()


@pytest.mark.parametrize(("partition", "handed_over"), [("gpu", True), ("spare", False)])
def test_another_node_is_looked_for_where_the_replica_may_run(partition: str, handed_over: bool) -> None:
    """A replica beyond the base runs in a placement of its own."""
    nodes = (
        Node("gpu1", "MIXED+DRAIN", 8, 16000, {"": 2}, ("gpu", "spare")),
        Node("gpu2", "IDLE", 8, 16000, {"": 2}, ("gpu",)),
    )
    gpu = Partition("gpu", True, True, 86_400, 7200, None, 2, 16, ("gpu1", "gpu2"))
    spare = replace(gpu, name="spare", is_default=False, total_nodes=1, nodes=("gpu1",))
    burst = Burst(0, (replace(HOUR.placement, partition=partition),))
    of = deployment(replicas=1, spec=replace(HOUR, burst=burst))
    runs = job(nodes="gpu1", partition=partition, time_limit_s=3600, ends_at=at(3600))
    mine = replica(burst=True, state=ReplicaState.READY, its=ready_attempt(job=runs))
    seen = replace(world([of], [mine], [runs]), cluster=Cluster("test", "26.05.5", (gpu, spare), nodes))
    acts = [action for decision in plan(seen).decisions for action in decision.actions]
    assert any(isinstance(action, BeginHandover) for action in acts) is handed_over


@pytest.mark.parametrize(
    ("node", "begins_s", "handed_over"),
    [("MIXED+DRAIN", None, True), ("MIXED", 830, True), ("MIXED", 831, False)],
    ids=["drained", "660 + 40 + 10 + 120 s before a maintenance", "too early for it"],
)
def test_a_fallback_takes_the_successor_too(node: str, begins_s: int | None, handed_over: bool) -> None:
    """The first placement has no other node, so a successor first waits there for as long as its patience lasts."""
    nodes = (
        Node("gpu1", node, 8, 16000, {"": 2}, ("gpu",)),
        Node("gpu2", "IDLE", 8, 16000, {"": 2}, ("spare",)),
    )
    gpu = Partition("gpu", True, True, 86_400, 7200, None, 1, 8, ("gpu1",))
    spare = replace(gpu, name="spare", is_default=False, nodes=("gpu2",))
    first = Placement(partition="gpu", time_limit="8h", time_limit_s=28_800, patience_s=660)
    of = deployment(
        replicas=1, spec=replace(SPEC, placement=first, fallbacks=(Placement(partition="spare"),))
    )
    runs = job(nodes="gpu1", partition="gpu", time_limit_s=28_800, ends_at=at(28_740))
    mine = replica(state=ReplicaState.READY, its=ready_attempt(job=runs))
    coming = () if begins_s is None else (firmware(begins_s, "gpu1"),)
    there = Cluster("test", "26.05.5", (gpu, spare), nodes, maintenance=coming)
    decided = plan(replace(world([of], [mine], [runs]), cluster=there)).decisions
    begun = [one for one in decided for action in one.actions if isinstance(action, BeginHandover)]
    assert bool(begun) is handed_over
    if handed_over and begins_s is not None:
        assert "only a placement after 660 s of patience has other nodes" in begun[0].message


def test_a_node_that_is_down_is_not_drained() -> None:
    assert of(HOUR, cluster(states=("DOWN+DRAIN", "IDLE"))) == ()


def test_maintenance_threatens_where_there_is_another_node() -> None:
    (found,) = of(HOUR, cluster(firmware(900, "gpu1")))
    assert found == Threat("maintenance firmware takes node gpu1", at(900))
    assert of(HOUR, cluster(firmware(900))) == ()
    assert (
        of(HOUR, cluster(firmware(-90, "gpu1"))) == ()
    )  # It was there before the job: somebody means it so.


@pytest.mark.parametrize(
    ("limit_s", "ends_s", "threatened"),
    [
        (None, 365 * 86_400, True),
        (3600, 3600, True),
        (3600, None, True),
        (900, 900, False),
        (600, 600, False),
    ],
)
def test_maintenance_after_a_jobs_own_end_threatens_nobody(
    limit_s: int | None, ends_s: int | None, threatened: bool
) -> None:
    runs = job(nodes="gpu1", time_limit_s=limit_s, ends_at=None if ends_s is None else at(ends_s))
    seen = cluster(firmware(900, "gpu1"))
    assert bool(threats(runs, [HOUR], seen, seen.leaving)) is threatened


def test_a_job_ends_before_the_maintenance_of_all_nodes() -> None:
    found = bounds(HOUR, cluster(firmware(1860)), TAKES, NOW)
    assert found == Bounds(None, 1800, 450, "; it must end before maintenance firmware at 14:31:00")
    assert time_limit_s(HOUR, 1, found) == 1800


@pytest.mark.parametrize(("left_s", "least_s"), [(3000, 750), (1200, 300), (1080, 270), (600, 270)])
def test_slurm_may_shorten_it_but_not_to_a_successor_a_minute(left_s: int, least_s: int) -> None:
    assert bounds(HOUR, cluster(firmware(left_s + 60)), TAKES, NOW).at_least_s == least_s


@pytest.mark.parametrize(
    "seen",
    [cluster(), cluster(firmware(1860, "gpu1")), cluster(firmware(7200)), cluster(firmware(-60)), None],
    ids=["none", "a node is left", "later than its end", "it goes on already", "nobody could look"],
)
def test_a_job_is_not_bounded(seen: Cluster | None) -> None:
    assert bounds(HOUR, seen, TAKES, NOW) == Bounds()


def test_too_little_time_is_not_used() -> None:
    found = bounds(HOUR, cluster(firmware(300)), TAKES, NOW)
    assert (found.within_s, found.at_least_s) == (None, None)
    assert found.told == (
        "; it starts after maintenance firmware, which begins at 14:05:00: too soon for a cold start of 60 s"
    )


def test_without_a_limit_of_its_own_the_partitions_counts() -> None:
    assert bounds(SPEC, cluster(), TAKES, NOW) == Bounds(7200)
    assert bounds(SPEC, cluster(firmware(3660)), TAKES, NOW).within_s == 3600
    elsewhere = replace(SPEC, placement=Placement(partition="cpu"))
    assert bounds(elsewhere, cluster(), TAKES, NOW) == Bounds()


def test_a_waiting_job_is_replaced_once() -> None:
    within = Bounds(None, 1800, 270)
    assert waits_for_nothing(job(time_limit_s=3600), 3600, within)
    assert waits_for_nothing(job(), None, within)
    assert not waits_for_nothing(job(time_limit_s=3600), 3600, Bounds())
    assert not waits_for_nothing(job(time_limit_s=1200), 3600, within)
    # One that was asked to end before is not replaced again when it has waited: Slurm may shorten it itself.
    assert not waits_for_nothing(job(time_limit_s=2400), 3600, within)


def test_limits_are_spread_in_whole_minutes() -> None:
    limits = [time_limit_s(HOUR, number, Bounds()) for number in range(1, 8)]
    assert limits == [3360, 3540, 3300, 3420, 3600, 3360, 3480]
    assert time_limit_s(HOUR, 3, Bounds()) == limits[2]
    assert (
        len(
            {
                time_limit_s(replace(HOUR, handover=Handover(stagger_percent=50)), n, Bounds())
                for n in range(30)
            }
        )
        > 20
    )


def test_what_is_left_as_it_is() -> None:
    short = replace(SPEC, placement=Placement(time_limit="2m", time_limit_s=120))
    assert {time_limit_s(short, number, Bounds()) for number in range(20)} == {120}
    off = replace(HOUR, handover=Handover(enabled=False))
    assert {time_limit_s(off, number, Bounds()) for number in range(20)} == {3600}
    assert time_limit_s(SPEC, 1, Bounds()) is None
    assert time_limit_s(SPEC, 1, Bounds(within_s=1830)) == 1800


def test_jobs_of_one_replica_are_told_apart_too() -> None:
    assert [job_number(replica(4), number) for number in (1, 2)] == [4, 5]


def test_the_warning_is_at_most_half_of_the_limit() -> None:
    assert [warning_s(SPEC, limit_s) for limit_s in (None, 3600, 120)] == [90, 90, 60]
