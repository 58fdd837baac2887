"""Which phase may follow which, and what is cut to length."""

from __future__ import annotations

import pytest

from penstock.v1.runtime_pb2 import (
    AGENT_PHASE_DRAINING,
    AGENT_PHASE_ENDED,
    AGENT_PHASE_FAILED,
    AGENT_PHASE_READY,
    AGENT_PHASE_STARTING,
    AgentPhase,
)
from penstock_runtime.standing import MOVES, IllegalMove, Standing, head, tail

LEGAL = {
    (AGENT_PHASE_STARTING, AGENT_PHASE_READY),
    (AGENT_PHASE_STARTING, AGENT_PHASE_FAILED),
    (AGENT_PHASE_STARTING, AGENT_PHASE_ENDED),
    (AGENT_PHASE_READY, AGENT_PHASE_DRAINING),
    (AGENT_PHASE_READY, AGENT_PHASE_FAILED),
    (AGENT_PHASE_DRAINING, AGENT_PHASE_ENDED),
    (AGENT_PHASE_DRAINING, AGENT_PHASE_FAILED),
}


@pytest.mark.parametrize("before", MOVES)
@pytest.mark.parametrize("after", MOVES)
def test_moves(before: AgentPhase.ValueType, after: AgentPhase.ValueType) -> None:
    standing = Standing(before, "before", ready_after_s=2.5)
    if (before, after) in LEGAL:
        assert standing.then(after, "after", exit_code=3) == Standing(after, "after", 3, "", 2.5)
    else:
        with pytest.raises(IllegalMove, match="cannot follow"):
            standing.then(after, "after")


def test_every_phase_of_the_contract_is_in_the_table() -> None:
    assert set(MOVES) == set(AgentPhase.values()) - {0}


def test_cutting_to_bytes_cuts_no_character_in_half() -> None:
    assert (head("aöb", 2), tail("aöb", 2), head("ab", 9), tail("", 4)) == ("a", "b", "ab", "")
    assert tail("x" * 20_000, 16_384) == "x" * 16_384
