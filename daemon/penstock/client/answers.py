"""What a model has generated: the contract's message, with what is asked of it most at hand.

Most answers have one choice, the first; of others `response.choices` has all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from penstock.v1 import inference_pb2 as pb

ResponseT = TypeVar(
    "ResponseT",
    pb.ChatResponse,
    pb.StreamChatResponse,
    pb.GenerateResponse,
    pb.StreamGenerateResponse,
)


@dataclass(frozen=True, slots=True)
class Answer(Generic[ResponseT]):
    """A whole answer; in a stream the next piece of one, which may be several tokens or only the usage."""

    response: ResponseT
    """All of it, as the contract has it."""

    @property
    def text(self) -> str:
        """Of the first choice; in a stream what is new. Empty where there is none."""
        choice = self._first()
        if choice is None:
            return ""
        return choice.content if isinstance(choice, pb.ChatChoice) else choice.text

    @property
    def tool_calls(self) -> tuple[pb.ToolCall, ...]:
        """Of the first choice. In a stream parts of them, to be merged by their `index`."""
        choice = self._first()
        return tuple(choice.tool_calls) if isinstance(choice, pb.ChatChoice) else ()

    @property
    def finish_reason(self) -> pb.FinishReason.ValueType:
        """Of the first choice. FINISH_REASON_UNSPECIFIED in a stream: more will come."""
        choice = self._first()
        return pb.FINISH_REASON_UNSPECIFIED if choice is None else choice.finish_reason

    @property
    def usage(self) -> pb.Usage | None:
        """How many tokens it took; in a stream only the last piece says."""
        return self.response.usage if self.response.HasField("usage") else None

    @property
    def message(self) -> pb.Message:
        """A whole answer to a chat as the assistant's message, to go on from."""
        content = [pb.ContentPart(text=self.text)] if self.text else []
        return pb.Message(role=pb.ROLE_ASSISTANT, content=content, tool_calls=self.tool_calls)

    def _first(self) -> pb.ChatChoice | pb.GenerateChoice | None:
        for choice in self.response.choices:
            if choice.index == 0:
                return choice
        return None
