"""When a deployment's replicas will be handed over, as a client sees it: forecast from what is stored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from penstock.core.estimates import Start, estimate, start_of
from penstock.core.handover import due, end_of, handed_over
from penstock.core.jobs import Cluster, JobState
from penstock.core.maintenance import threats
from penstock.core.model import Deployment, Replica
from penstock.core.placements import each_placed
from penstock.core.walltime import with_own_drain
from penstock.rpc.convert.time import time_out
from penstock.v1 import deployment_pb2

REPLICAS_MAX = 100
"""Those whose turn comes first; an answer stays short however many there are."""


def forecast_out(
    deployment: Deployment,
    replicas: Sequence[Replica],
    starts: Iterable[Start],
    now: datetime,
    cluster: Cluster | None = None,
) -> deployment_pb2.HandoverForecast:
    """`starts`: of its attempts that have ended. `cluster`: its drained nodes and maintenance; None: not known."""
    live = [attempt for replica in replicas if (attempt := replica.live_attempt) is not None]
    own = [start_of(attempt.running_since, attempt.ready_at, attempt.job) for attempt in live]
    jobs = [attempt.job for attempt in live if attempt.job is not None]
    found = estimate(deployment.spec, [*starts, *(start for start in own if start is not None)], jobs)
    made = deployment_pb2.HandoverForecast(
        estimated_wait_s=found.wait_s,
        estimated_cold_start_s=found.cold_start_s,
        measured_starts=found.measured,
        wait_is_slurms=found.slurm_says,
    )
    leaving = frozenset[str]() if cluster is None else cluster.leaving
    rows: list[deployment_pb2.ReplicaHandover] = []
    for replica in replicas:
        attempt = replica.live_attempt
        job = None if attempt is None else attempt.job
        if attempt is None or job is None or job.state is not JobState.RUNNING or replica.leaving:
            continue
        spec = with_own_drain(deployment.spec, replica)
        threatened = threats(job, each_placed(deployment.spec, replica), cluster, leaving)
        when = due(spec, attempt, job, found, now, threatened)
        if when is not None:
            row = deployment_pb2.ReplicaHandover(
                replica=replica.name,
                ends_at=time_out(end_of(attempt, job, threatened)),
                due_at=time_out(when.at),
                begun_at=time_out(attempt.handover_at) if handed_over(attempt) else None,
            )
            rows.append(row)
    made.replicas.extend(sorted(rows, key=lambda row: row.due_at.ToNanoseconds())[:REPLICAS_MAX])
    return made
