"""Replicas spread over the nodes of a real Slurm, and packed on few."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.penstocks import Penstock, standin, wait_until

pytestmark = pytest.mark.xdist_group("node_spread")

NAME = "laid"


@pytest.fixture
def laid(penstock: Penstock) -> Iterator[Penstock]:
    yield penstock
    penstock.cli("delete", NAME, "--wait")


def on_nodes(penstock: Penstock) -> Counter[str]:
    """How many of the jobs that run each node has."""
    return Counter(penstock.cluster.run("squeue", "-h", "-t", "R", "-o", "%N").split())


def test_spread_over_the_nodes_and_then_shared(laid: Penstock) -> None:
    """Slurm alone would fill the first node; the third replica finds no node without one, and does not wait."""
    laid.apply(standin(NAME, replicas=3, more="  node_spread: spread"))
    laid.wait_ready(NAME, 3)
    assert sorted(on_nodes(laid).values()) == [1, 2]
    assert "with replicas of it already" in laid.cli("events", NAME).stdout


def test_packed_on_the_node_of_another_one(laid: Penstock) -> None:
    """Slurm alone would begin with the first node as soon as it is back."""
    laid.cluster.run("scontrol", "update", "nodename=node1", "state=drain", "reason=test")
    try:
        laid.apply(standin(NAME, more="  node_spread: pack"))
        laid.wait_ready(NAME, 1)
    finally:
        laid.cluster.run("scontrol", "update", "nodename=node1", "state=resume")
    laid.cli("scale", NAME, "--replicas", "2")
    laid.wait_ready(NAME, 2)
    wait_until(lambda: on_nodes(laid).total() == 2, 60, lambda: laid.cli("why", NAME).stdout)
    assert on_nodes(laid) == {"node2": 2}
    assert "on node2, beside replicas of it" in laid.cli("events", NAME).stdout
