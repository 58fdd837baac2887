"""Penstock on a Slurm with a real slurmdbd: what it remembers is used, and where it is down nothing else stops."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
from collections.abc import Iterator

import pytest

from deploy.cluster.cluster import Cluster
from penstock.core.jobs import UnknownAccounts
from penstock.slurm.commands import CommandLine
from penstock.slurm.port import SlurmUnavailable
from tests.penstocks import running, standin, wait_until

pytestmark = pytest.mark.xdist_group("accounting")


@pytest.fixture
def cluster(accounted_cluster: Cluster) -> Iterator[Cluster]:
    """Mended and empty afterwards."""
    conf = accounted_cluster.conf.read_text()
    yield accounted_cluster
    accounted_cluster.start_accounting()
    if accounted_cluster.conf.read_text() != conf:
        accounted_cluster.conf.write_text(conf)
        accounted_cluster.stop_controller()
        accounted_cluster.start_controller()
    accounted_cluster.reset()


async def test_slurm_goes_on_without_slurmdbd(cluster: Cluster) -> None:
    slurm = CommandLine(conf=str(cluster.conf))
    cluster.stop_accounting()
    with pytest.raises(SlurmUnavailable, match=r"^sacct: .*Problem talking to the database"):
        await slurm.history([1])
    job = int(cluster.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 60"))
    assert job in {one.job_id for one in await slurm.list_jobs()}
    assert (await slurm.cluster()).accounts is None, "no association is enforced"


async def test_the_accounts_of_a_user_are_known_where_they_count(cluster: Cluster) -> None:
    slurm = CommandLine(conf=str(cluster.conf))
    cluster.conf.write_text(cluster.conf.read_text() + "AccountingStorageEnforce=associations\n")
    cluster.run("sacctmgr", "--immediate", "add", "account", "physics", f"Cluster={cluster.name}")
    cluster.run("sacctmgr", "--immediate", "add", "user", getpass.getuser(), "Account=physics")
    cluster.stop_controller()
    cluster.start_controller()
    accounts = (await slurm.cluster()).accounts
    assert isinstance(accounts, tuple)
    assert "physics" in accounts

    cluster.stop_accounting()
    unknown = (await slurm.cluster()).accounts
    assert isinstance(unknown, UnknownAccounts)
    assert "sacctmgr" in unknown.error


def test_what_slurmctld_forgot_is_told_from_the_accounts(cluster: Cluster) -> None:
    """The controller is away while its job is killed and slurmctld loses its state: ids begin again at 1."""
    with running(cluster) as penstock:
        penstock.apply(standin("lost"))
        penstock.wait_ready("lost", 1)
        job = penstock.get("replicas", "lost-1")["attempt"]["job_id"]
        penstock.stop()
        for pid in cluster.daemons.job_processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

        def row() -> str:
            return cluster.run("sacct", "-nXP", f"--jobs={job}", "--format=State,JobName").strip()

        # slurmctld tells of starts every 5 s and of ends at once: until then a short job has its end, and no name.
        wait_until(lambda: row().startswith("FAILED|penstock-lost-"), 60, lambda: f"job {job}: {row()!r}")
        cluster.stop_controller()
        shutil.rmtree(cluster.root / "state")
        (cluster.root / "state").mkdir(mode=0o700)
        cluster.start_controller()

        penstock.start()
        told = wait_until(lambda: _said(penstock.cli("why", "lost").stdout), 60, lambda: penstock.log[-3000:])
        assert f"job {job} ended as FAILED, signal 9, as accounting says" in told
        penstock.wait_ready("lost", 1)
        assert len(cluster.run("squeue", "-h", "-t", "RUNNING", "-u", str(os.geteuid())).splitlines()) == 1


def _said(why: str) -> str:
    """The line that quotes the accounts; empty: there is none yet."""
    return next((line for line in why.splitlines() if "as accounting says" in line), "")
