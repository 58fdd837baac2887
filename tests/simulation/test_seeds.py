"""Seeds: the same ones each time, and fresh ones for as long as there is time."""

from __future__ import annotations

import os
import time

import pytest

from tests.simulation.seeds import Ground, play_until

FIXED = [*(f"fixed {number}" for number in range(16)), "b0fd29e7"]
"""The last one: a ready agent's word outlived its job's nodes, which Slurm was making ready anew."""
FRESH_S = float(os.environ.get("PENSTOCK_SIMULATION_SECONDS", "60"))
"""How long fresh seeds are played."""


async def test_fixed_seeds(field: Ground) -> None:
    for seed in FIXED:
        await field.play(seed)


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
