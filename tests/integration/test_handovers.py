"""Handovers on real Slurm with the stand-in engine, under a steady load of which nothing is cut or refused."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.integration.steady_load import SteadyLoad
from tests.patience import JOB_PATIENCE_S
from tests.penstocks import Penstock, standin, wait_until

pytestmark = pytest.mark.xdist_group("handovers")

SPEED = ["--tokens-per-second", "20"]
LIMIT_S = 120
"""The shortest time limit that leaves room: Slurm counts in minutes, and its warning may come 30 s early."""
GENERATIONS = 3
MARGIN_S = 25


def more(time_limit: str) -> str:
    return f"""
  placements: [{{time_limit: {time_limit}}}]
  handover: {{margin_s: {MARGIN_S}}}
"""


def jobs(penstock: Penstock, *columns: str) -> list[str]:
    """Those that run."""
    return penstock.cluster.run("squeue", "-h", "-t", "R", "-o", " ".join(columns or ("%i",))).split()


@pytest.fixture
def served(penstock: Penstock, request: pytest.FixtureRequest) -> Iterator[str]:
    """A deployment of one replica, whose jobs have the time limit that is asked for."""
    penstock.apply(standin("short", args=SPEED, more=more(request.param)))
    penstock.wait_ready("short", 1)
    yield "short"
    penstock.cli("delete", "short", "--wait")


@pytest.mark.timeout(GENERATIONS * LIMIT_S + 2 * JOB_PATIENCE_S + 240)
@pytest.mark.parametrize("served", ["2m"], indirect=True)
def test_three_generations_of_walltime_under_load(penstock: Penstock, served: str) -> None:
    began = time.monotonic()
    with SteadyLoad(penstock.server, served, min_ready=1) as load:
        seen: set[str] = set()

        def generations() -> bool:
            seen.update(jobs(penstock))
            return len(seen) > GENERATIONS

        wait_until(generations, GENERATIONS * LIMIT_S, lambda: penstock.cli("why", served).stdout)
        first, *_ = sorted(seen, key=int)
        wait_until(
            lambda: first not in jobs(penstock), JOB_PATIENCE_S, lambda: penstock.cli("why", served).stdout
        )
        wait_until(
            lambda: len(jobs(penstock)) == 1, JOB_PATIENCE_S, lambda: penstock.cli("why", served).stdout
        )
    load.assert_unhurt()
    events = penstock.cli("events", served).stdout
    assert "Handover" in events
    assert "TIMEOUT" not in events
    print(f"\n{GENERATIONS} handovers of walltime in {time.monotonic() - began:.0f} s; {load.figures}")


@pytest.mark.parametrize("served", ["10m"], indirect=True)  # Else the time limit's own turn comes first.
def test_a_drained_node_is_left_under_load(penstock: Penstock, served: str) -> None:
    (where,) = jobs(penstock, "%N")
    with SteadyLoad(penstock.server, served, min_ready=1) as load:
        began = time.monotonic()
        penstock.cluster.run("scontrol", "update", f"NodeName={where}", "State=DRAIN", "Reason=disk")
        try:
            wait_until(
                lambda: (now := jobs(penstock, "%N")) and where not in now,
                JOB_PATIENCE_S,
                lambda: penstock.cli("why", served).stdout,
            )
            took_s = time.monotonic() - began
        finally:
            penstock.cluster.run("scontrol", "update", f"NodeName={where}", "State=UNDRAIN", check=False)
    load.assert_unhurt()
    events = penstock.cli("events", served).stdout
    assert f"node {where} is drained" in events, events
    print(f"\na drained node is free after {took_s:.1f} s; {load.figures}")
