"""The simulation earns its trust: each bug that is put in on purpose breaks a rule, and the real code breaks none."""

from __future__ import annotations

import pytest

from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.rules import Violation
from tests.simulation.seeds import Ground

SEEDS = 24
"""A mutant must be caught within so many stories."""
STEPS = 60


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
async def test_mutant_is_caught(field: Ground, mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    caught: Violation | None = None
    for number in (mutant.story, *(number for number in range(SEEDS) if number != mutant.story)):
        seed = f"mutant {number}"
        with monkeypatch.context() as patch:
            mutant.apply(patch)
            try:
                await field.play(seed, STEPS, mutant.risk)
            except Violation as violation:
                caught = violation
                break
    assert caught is not None, f"nobody noticed in {SEEDS} stories"
    assert caught.rule in mutant.rules, caught
    print(f"{mutant.name}: caught in story {number}")
    # The very story that caught it is played through by the code as it is.
    await field.play(seed, STEPS, mutant.risk)
