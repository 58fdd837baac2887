"""Where an agent stands, as it tells the control plane.

    STARTING --> READY --> DRAINING --> ENDED
        |          |           |
        |          +--> FAILED <+       (the engine died and nobody asked it to)
        +--> FAILED | ENDED             (never ready | told to leave before it was)

FAILED and ENDED are last words: the process ends with them. The table below is the law, the picture only a
view of it. What is done in a phase is agent.py's business, how it is told is reporter.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.v1.runtime_pb2 import (
    AGENT_PHASE_DRAINING,
    AGENT_PHASE_ENDED,
    AGENT_PHASE_FAILED,
    AGENT_PHASE_READY,
    AGENT_PHASE_STARTING,
    AgentPhase,
)

MOVES: Mapping[AgentPhase.ValueType, frozenset[AgentPhase.ValueType]] = {
    AGENT_PHASE_STARTING: frozenset({AGENT_PHASE_READY, AGENT_PHASE_FAILED, AGENT_PHASE_ENDED}),
    AGENT_PHASE_READY: frozenset({AGENT_PHASE_DRAINING, AGENT_PHASE_FAILED}),
    AGENT_PHASE_DRAINING: frozenset({AGENT_PHASE_ENDED, AGENT_PHASE_FAILED}),
    AGENT_PHASE_FAILED: frozenset(),
    AGENT_PHASE_ENDED: frozenset(),
}

# As in runtime.proto, in bytes; messages are cut to this rather than refused by the control plane.
MAX_MESSAGE_BYTES = 4096
MAX_LAST_WORDS_BYTES = 16384


class IllegalMove(Exception):
    """A phase was to follow another that it cannot follow."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One phase and what is to be said about it; the fields are those of ReportRequest."""

    phase: AgentPhase.ValueType
    message: str
    exit_code: int | None = None
    last_words: str = ""
    ready_after_s: float = 0.0

    def then(
        self,
        phase: AgentPhase.ValueType,
        message: str,
        *,
        exit_code: int | None = None,
        last_words: str = "",
        ready_after_s: float | None = None,
    ) -> Standing:
        """The standing that follows. Raises IllegalMove when the table has no such move."""
        if phase not in MOVES[self.phase]:
            raise IllegalMove(f"{AgentPhase.Name(phase)} cannot follow {AgentPhase.Name(self.phase)}")
        ready_after_s = self.ready_after_s if ready_after_s is None else ready_after_s
        return Standing(phase, message, exit_code, last_words, ready_after_s)


def head(text: str, limit: int) -> str:
    """The beginning of `text`, at most `limit` bytes of UTF-8."""
    return text.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")


def tail(text: str, limit: int) -> str:
    """The end of `text`, at most `limit` bytes of UTF-8."""
    return text.encode("utf-8", "replace")[-limit:].decode("utf-8", "ignore")
