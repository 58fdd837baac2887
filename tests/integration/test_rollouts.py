"""Rollouts on real Slurm with the stand-in engine, under a steady load of which nothing is cut or refused."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.integration.steady_load import SteadyLoad
from tests.penstocks import Penstock, standin, wait_until

pytestmark = pytest.mark.xdist_group("rollouts")

SPEED = ["--tokens-per-second", "20"]


@pytest.fixture
def served(penstock: Penstock) -> Iterator[str]:
    """A deployment of two ready replicas."""
    penstock.apply(standin("rolled", replicas=2, args=SPEED))
    penstock.wait_ready("rolled", 2)
    yield "rolled"
    penstock.cli("delete", "rolled", "--wait")


def jobs(penstock: Penstock) -> set[str]:
    return set(penstock.cluster.run("squeue", "-h", "-o", "%i").split())


def test_the_load_notices_what_is_cut_and_what_is_refused(penstock: Penstock, served: str) -> None:
    with SteadyLoad(penstock.server, served, min_ready=2) as load:
        penstock.cluster.run("scancel", "--full", "--signal=KILL", *jobs(penstock))
        wait_until(lambda: not load.whole, 30, "streams are cut")
        penstock.wait_ready(served, 2)
    assert load.figures.cut >= 1
    assert load.figures.refused >= 1
    assert load.figures.least_ready < 2
    with pytest.raises(AssertionError, match="violations"):
        load.assert_unhurt()


def test_a_rolling_update_under_load(penstock: Penstock, served: str) -> None:
    before = jobs(penstock)
    with SteadyLoad(penstock.server, served, min_ready=2) as load:
        began = time.monotonic()
        penstock.apply(standin(served, replicas=2, args=[*SPEED, "--seed", "2"]))
        wait_until(lambda: not before & jobs(penstock), 90, lambda: penstock.cli("why", served).stdout)
        penstock.wait_ready(served, 2)
        took_s = time.monotonic() - began
    load.assert_unhurt()
    print(f"\nrolling update of 2 replicas: {took_s:.1f} s from change to done; {load.figures}")
