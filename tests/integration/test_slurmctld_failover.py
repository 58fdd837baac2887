"""slurmctld dies and its backup takes over, with what it had written to the shared folder; later the first comes back.

What it had not written yet it has lost: a job it accepted in its last seconds may run without any slurmctld knowing it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import pytest

from deploy.cluster.cluster import Cluster
from tests.penstocks import Penstock, running, standin, wait_until

pytestmark = pytest.mark.xdist_group("slurmctld-failover")

TAKEN_OVER_WITHIN_S = 60
"""5 s of silence, what the commands wait beside, and what a busy machine takes."""


@pytest.fixture(scope="module")
def penstock(paired_cluster: Cluster) -> Iterator[Penstock]:
    with running(paired_cluster) as installation:
        yield installation


def attempts(penstock: Penstock, deployment: str) -> set[str]:
    """The job names of its attempts."""
    found = penstock.get("replicas", deployment)["items"]
    return {f"penstock-{deployment}-{one['attempt']['token']}" for one in found if "attempt" in one}


def live_jobs(penstock: Penstock, deployment: str) -> Counter[str]:
    """Name -> how many jobs of that name Slurm has that have not ended."""
    listed = penstock.cluster.run("squeue", "-h", "-t", "PENDING,RUNNING,COMPLETING", "-o", "%j").split()
    return Counter(name for name in listed if name.startswith(f"penstock-{deployment}-"))


def test_replicas_outlive_it_and_work_goes_on(penstock: Penstock) -> None:
    penstock.apply(standin("steady", replicas=2))
    penstock.wait_ready("steady", 2)
    before = attempts(penstock, "steady")
    # It writes when something has changed; what is written after that has the replicas running.
    changed_at = time.time()
    penstock.cluster.run("sbatch", "--hold", "--output=/dev/null", "--wrap=true")
    written = penstock.cluster.root / "state" / "job_state"

    def is_written() -> bool:
        try:
            return written.stat().st_mtime > changed_at
        except FileNotFoundError:  # Between the old one's renaming and the new one's.
            return False

    wait_until(is_written, 60, "slurmctld has written its jobs down")

    penstock.cluster.stop_controller(kill=True)
    penstock.cli("scale", "steady", "--replicas", "3")
    penstock.wait_ready("steady", 3, TAKEN_OVER_WITHIN_S)
    assert attempts(penstock, "steady") > before, penstock.cli("why", "steady").stdout
    assert "DOWN" in penstock.cluster.run("scontrol", "ping", check=False).splitlines()[0]

    penstock.cluster.start_controller()
    penstock.cli("scale", "steady", "--replicas", "2")
    penstock.wait_ready("steady", 2, TAKEN_OVER_WITHIN_S)
    assert attempts(penstock, "steady") == before, penstock.cli("why", "steady").stdout
    wait_until(lambda: set(live_jobs(penstock, "steady")) == before, 30, "the third has left")


def test_what_it_took_in_its_last_moment_is_neither_lost_nor_doubled(penstock: Penstock) -> None:
    penstock.apply(standin("young", replicas=3))
    wait_until(lambda: live_jobs(penstock, "young"), 30, "Slurm has a job")
    penstock.cluster.stop_controller(kill=True)
    penstock.wait_ready("young", 3, 2 * TAKEN_OVER_WITHIN_S)
    wanted = attempts(penstock, "young")
    wait_until(
        lambda: set(live_jobs(penstock, "young")) <= wanted, 60, lambda: f"only these live on: {wanted}"
    )
    jobs = live_jobs(penstock, "young")
    assert set(jobs.values()) <= {1}, jobs
    if set(jobs) < wanted:  # The backup never read of them; their agents report.
        assert "Slurm does not list job" in penstock.cli("why", "young").stdout
    penstock.cluster.start_controller()
