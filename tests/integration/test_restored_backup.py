"""A database restored from its backup while jobs run, on real Slurm and the embedded PostgreSQL.

The backup is a copy of the stopped server's data folder. What it knows goes on as it was; what was submitted since
belongs to no row, is told of, and is cancelled after its grace; what is not ours is left alone.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.cluster.cluster import Cluster
from penstock.store.embedded import EmbeddedServer
from tests.penstocks import Penstock, running, standin, wait_until

pytestmark = pytest.mark.xdist_group("restored-backup")


ORPHAN_GRACE_S = 20
"""Long enough for a question to the API and one to Slurm on a busy machine."""


@pytest.fixture
def penstock(slurm_cluster: Cluster) -> Iterator[Penstock]:
    with running(slurm_cluster, more=f"orphan_grace_s = {ORPHAN_GRACE_S}\n") as installation:
        yield installation


def live_jobs(penstock: Penstock) -> dict[str, str]:
    """Job id -> name, of those that Slurm has not ended."""
    listed = penstock.cluster.run("squeue", "-h", "-t", "PENDING,RUNNING,COMPLETING", "-o", "%i %j")
    return dict(line.split(maxsplit=1) for line in listed.splitlines())


def data_folder(penstock: Penstock) -> Path:
    return EmbeddedServer(penstock.folder / "state" / "postgresql")._location() / "data"


def test_jobs_go_on_while_their_database_is_of_yesterday(penstock: Penstock) -> None:
    penstock.apply(standin("kept"))
    penstock.wait_ready("kept", 1)
    ((kept, name),) = live_jobs(penstock).items()
    mark = penstock.cluster.run("squeue", "-h", "-j", kept, "-o", "%k").strip()
    assert name.endswith(mark.split()[-1])

    penstock.stop()
    data = data_folder(penstock)
    backup = data.with_name("backup")
    subprocess.run(["cp", "-a", data, backup], check=True)
    penstock.start()
    penstock.cli("scale", "kept", "--replicas", "2")
    penstock.apply(standin("newer"))
    penstock.wait_ready("kept", 2)
    penstock.wait_ready("newer", 1)
    forged = penstock.cluster.run(
        "sbatch",
        "--parsable",
        "-o",
        "/dev/null",
        "-J",
        "training",
        f"--comment={mark}",
        "--wrap",
        "sleep 600",
    ).strip()
    forgotten = live_jobs(penstock).keys() - {kept, forged}
    assert len(forgotten) == 2

    penstock.stop()
    shutil.rmtree(data)
    subprocess.run(["cp", "-a", backup, data], check=True)
    penstock.start()

    def told_of_each() -> str:
        said = penstock.cli("events", "-o", "json").stdout
        return said if all(f"job {job_id} (penstock-" in said for job_id in forgotten) else ""

    told = wait_until(told_of_each, 120, lambda: penstock.cli("events").stdout)
    assert live_jobs(penstock).keys() == {kept, forged} | forgotten, "nothing is done at once"
    assert "OrphanFound" in told
    assert "belongs to no attempt in the database" in told
    assert "unless the controller is stopped before then and the database that knows them is restored" in told
    penstock.wait_ready("kept", 1)
    wait_until(
        lambda: live_jobs(penstock).keys() == {kept, forged},
        ORPHAN_GRACE_S + 120,
        lambda: penstock.cluster.run("squeue") + penstock.cli("events").stdout,
    )
    wait_until(
        lambda: f"job {forged} has a comment like our mark" in penstock.cli("events", "-o", "json").stdout,
        60,
        lambda: penstock.cli("events").stdout,
    )
    penstock.wait_ready("kept", 1)
    assert penstock.cli("get", "deployments", "newer", check=False).returncode != 0
    penstock.cli("scale", "kept", "--replicas", "2")
    penstock.wait_ready("kept", 2)
    assert kept in live_jobs(penstock), "the one that the backup knew has served throughout"
    assert len(live_jobs(penstock)) == 3
    penstock.cluster.run("scancel", forged)
    penstock.cli("delete", "kept", "--wait")
