"""Real Slurm clusters for tests, one of each kind for each test process.

    pytest_plugins = ["tests.clusters"]      in tests/conftest.py

    slurm_cluster      the machine's own Slurm (Debian 12: 22.05), two nodes with two fake GPUs each
    slurm_26_cluster   Slurm 26.05 in a chroot that is made once and kept (two minutes the first time)
    paired_cluster     the machine's own Slurm with a second slurmctld that takes over (root only)
    accounted_cluster  the machine's own Slurm with a slurmdbd and its MariaDB

Each is a `deploy.cluster.cluster.Cluster`: `.conf` (SLURM_CONF), `.env`, `.root`, `.prefix` (put before commands),
`.run`, `.reset`, and `stop_controller`, `start_controller`, `freeze_controller`, `thaw_controller`, `stop_node`,
`start_node`.
A test that stops something starts it again. They are shared by the tests of one process, so a test gives its jobs names
that no other uses, and cancels them.

A cluster that cannot be made skips its tests and says why in the summary; with PENSTOCK_REQUIRE_LANES=1 it fails them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from deploy.cluster import chroot
from deploy.cluster.cluster import Cluster
from deploy.cluster.settings import ClusterError, Settings

MESSAGE_TIMEOUT_S = 3
"""Short, because tests of a controller that is down wait for it; longer than a busy machine's hiccups."""
KILL_WAIT_S = 3


def lane_missing(reason: str) -> NoReturn:
    """Skip the test, or fail it where every lane is required."""
    if os.environ.get("PENSTOCK_REQUIRE_LANES") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[Cluster]:
    """A cluster of the machine's own Slurm."""
    yield from _running("system")


@pytest.fixture(scope="session")
def accounted_cluster() -> Iterator[Cluster]:
    """A cluster of the machine's own Slurm that keeps accounts."""
    yield from _running("system", accounting=True)


@pytest.fixture(scope="session")
def paired_cluster() -> Iterator[Cluster]:
    """A cluster of the machine's own Slurm with two slurmctld."""
    yield from _running("system", backup=True)


@pytest.fixture(scope="session")
def slurm_26_cluster() -> Iterator[Cluster]:
    """A cluster of Slurm 26.05 in the chroot."""
    try:
        root = chroot.ensure()
    except chroot.ChrootError as error:
        lane_missing(f"NO SLURM {chroot.SLURM_VERSION}: {error}")
    yield from _running(str(root))


def _running(slurm: str, *, accounting: bool = False, backup: bool = False) -> Iterator[Cluster]:
    # Not pytest's own temporary folder: its path is too long for sockets.
    root = Path(tempfile.mkdtemp(prefix="penstock-slurm-"))
    settings = Settings(
        slurm=slurm,
        message_timeout_s=MESSAGE_TIMEOUT_S,
        kill_wait_s=KILL_WAIT_S,
        accounting=accounting,
        backup=backup,
    )
    cluster = Cluster(root, settings)
    try:
        try:
            cluster.up()
        except ClusterError as error:
            lane_missing(f"NO SLURM CLUSTER ({slurm}): {str(error).splitlines()[0]}")
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(root)
