"""Preemption on real Slurm with the stand-in engine, under a steady load of which nothing is cut or refused."""

from __future__ import annotations

import time

import pytest

from tests.integration.steady_load import SteadyLoad
from tests.penstocks import Penstock, standin, wait_until

pytestmark = pytest.mark.xdist_group("preemption")

# Each on a node of its own, so that a job of a higher partition takes the burst replica's and nothing else.
KEPT = """
  placements: [{partition: cpu, options: {nodelist: node1}}]
  burst:
    base: 1
    placements: [{partition: preempt, options: {nodelist: node2}}]
"""
TAKES = (
    "sbatch",
    "--parsable",
    "-o",
    "/dev/null",
    "-p",
    "gpu",
    "-w",
    "node2",
    "--exclusive",
    "-t",
    "2",
    "--wrap",
    "sleep 100",
)


def test_a_burst_replica_is_preempted_under_load(penstock: Penstock) -> None:
    """The grace time of the partition (5 s) is enough for streams of 1 s, because the replica drains in it. What a busy
    machine adds to the drain has the other 4 s."""
    penstock.apply(standin("kept", replicas=2, args=["--tokens-per-second", "20"], more=KEPT))
    penstock.wait_ready("kept", 2)
    with SteadyLoad(penstock.server, "kept", tokens=20, min_ready=1) as load:
        began = time.monotonic()
        taken = penstock.cluster.run(*TAKES).strip()
        wait_until(
            lambda: penstock.cluster.run("squeue", "-h", "-j", taken, "-o", "%T").strip() == "RUNNING",
            60,
            lambda: penstock.cluster.run("squeue"),
        )
        took_s = time.monotonic() - began
        penstock.cluster.run("scancel", taken)
        penstock.wait_ready("kept", 2, 120)
    decided = penstock.cli("events", "kept").stdout
    assert "Preempting" in decided, decided
    assert "BackOff" not in decided, decided
    print(f"\na burst replica preempted: its node is free after {took_s:.1f} s; {load.figures}")
    load.assert_unhurt()
    penstock.cli("delete", "kept", "--wait")
