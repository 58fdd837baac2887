"""What an on-call engineer reads of the handovers to come."""

from __future__ import annotations

from dataclasses import replace

from penstock.core.estimates import Start
from penstock.core.jobs import Cluster, JobState, Maintenance, Node, Partition
from penstock.rpc.convert.handover import REPLICAS_MAX, forecast_out
from penstock.rpc.convert.time import time_out
from tests.worlds import NOW, at, deployment, job, ready_attempt, replica

RUNS = job(submitted_at=at(-100), started_at=at(-60), ends_at=at(3540), time_limit_s=3600)
ENDED = Start(at(-9000), 300.0, 90.0)


def test_when_and_what_it_rests_on() -> None:
    begun = replace(RUNS, ends_at=at(340), time_limit_s=400)
    copies = [
        replica(1, its=ready_attempt(job=RUNS)),
        replica(2, its=ready_attempt(job=begun, handover_at=at(-5))),
        replica(3, its=ready_attempt(job=RUNS), leaving=True),
        replica(4, its=ready_attempt(job=job(JobState.PENDING))),
        replica(5),
    ]
    found = forecast_out(deployment(), copies, [ENDED], NOW)
    assert (found.estimated_wait_s, found.estimated_cold_start_s, found.measured_starts) == (300, 90, 4)
    assert not found.wait_is_slurms
    assert [row.replica for row in found.replicas] == ["chat-2", "chat-1"]
    second, first = found.replicas
    assert second.begun_at == time_out(at(-5))
    assert not first.HasField("begun_at")
    # The end, less the warning of 90 and 30 s, the wait, the cold start and the margin.
    assert (first.ends_at, first.due_at) == (time_out(at(3540)), time_out(at(3540 - 120 - 300 - 90 - 120)))


def test_drained_nodes_and_maintenance_are_foreseen() -> None:
    def cluster(state: str, *maintenance: Maintenance) -> Cluster:
        nodes = tuple(
            Node(name, its, 8, 16000, {"": 2}, ("gpu",)) for name, its in (("gpu1", state), ("gpu2", "IDLE"))
        )
        gpu = Partition("gpu", True, True, 86_400, 7200, None, 2, 16, ("gpu1", "gpu2"))
        return Cluster("test", "26.05.5", (gpu,), nodes, maintenance=maintenance)

    runs = replace(RUNS, nodes="gpu1")
    copies = [replica(1, its=ready_attempt(job=runs))]
    unlimited = [replica(1, its=ready_attempt(job=replace(runs, time_limit_s=None)))]
    firmware = Maintenance("firmware", at(1800), at(5400), ("gpu1",))

    (row,) = forecast_out(deployment(), copies, [ENDED], NOW, cluster("IDLE", firmware)).replicas
    assert (row.ends_at, row.due_at) == (time_out(at(1800)), time_out(at(1800 - 300 - 90 - 120)))

    (row,) = forecast_out(deployment(), unlimited, [ENDED], NOW, cluster("MIXED+DRAIN")).replicas
    assert not row.HasField("ends_at")
    assert row.due_at.ToDatetime() <= NOW.replace(tzinfo=None)
    assert not forecast_out(deployment(), unlimited, [ENDED], NOW, cluster("IDLE")).replicas


def test_the_answer_stays_short() -> None:
    copies = [replica(number, its=ready_attempt(job=RUNS)) for number in range(1, 2 * REPLICAS_MAX)]
    assert len(forecast_out(deployment(), copies, [], NOW).replicas) == REPLICAS_MAX
