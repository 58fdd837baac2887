"""Seeds: the same ones each time, and fresh ones for as long as there is time."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest

from tests.simulation import seeds as playing
from tests.simulation.seeds import Ground, play_until
from tests.simulation.world import STORMY

FIXED = [f"fixed {number}" for number in range(16)]
"""None of them is a failure that once was: with each risk that is added a seed tells another story. What a failure
taught is a row of the unit tests."""
FRESH_S = float(os.environ.get("PENSTOCK_SIMULATION_SECONDS", "60"))
"""How long fresh seeds are played."""


async def test_fixed_seeds(field: Ground) -> None:
    for seed in FIXED:
        await field.play(seed)


async def test_replicas_that_are_packed(field: Ground) -> None:
    """Deployments that are packed ask for nodes in this weather too, for the right ones (rule `pack`)."""
    risk = replace(STORMY, pack=0.8)
    played = [await field.play(f"packed {number}", risk=risk) for number in range(8)]
    assert any(job.submission.require_nodes for world in played for job in world.slurm.jobs())


@pytest.mark.timeout(FRESH_S + 240)
async def test_fresh_seeds(field: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    until = time.monotonic() + FRESH_S
    with capsys.disabled():
        seeds, steps = await play_until(field, lambda: time.monotonic() >= until, say=lambda line: None)
        print(f"\nsimulation: {seeds} fresh seeds, {steps} steps, no rule broken")
    assert seeds > 0


async def test_a_seed_is_one_story(field: Ground) -> None:
    """Byte for byte, so that a failure can be seen again."""
    first = await field.play("twice")
    second = await field.play("twice")
    assert first.lines == second.lines
    assert len(first.lines) > 30


@pytest.mark.parametrize("given", ["abc", "0", "-1", "nan"])
def test_a_time_that_cannot_be_played_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("SECONDS_TO_PLAY", given)
    with pytest.raises(SystemExit, match=f"SECONDS={given} cannot be played"):
        playing.main()
