"""What of a stream has arrived and was not sent yet: at most one chunk. Pure.

The engine sends an event a token; a reader may be slower than that. Instead of queueing events, each one is
merged into the pending chunk: texts are appended, parts of tool calls are appended to their call, log
probabilities to their list, each in its choice. Taking the chunk empties it. How fast either side is, and how
bytes travel, is not known here.

The rule guarded here: however adds and takes alternate, what is taken, put together, is what was added: no
gap, no repeat, no change of order within a choice.
"""

from __future__ import annotations

import abc
from typing import Any, Generic, TypeVar

from penstock.v1 import inference_pb2 as pb
from penstock_runtime import translate
from penstock_runtime.translate import Json

ChunkT = TypeVar("ChunkT", pb.StreamChatResponse, pb.StreamGenerateResponse)

# What a token's log probability counts for beside its text, so that a chunk's size in bytes stays near its
# `size`.
_LOGPROB_SIZE = 32


class EngineFault(Exception):
    """The engine said in the stream that it failed.

    `status` is its HTTP-like code, 500 where it gave none; `type` and `parameter` as EngineError has them.
    """

    def __init__(self, message: str, status: int, type: str = "", parameter: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.parameter = parameter


class _Call:
    """The pending part of one tool call."""

    __slots__ = ("arguments", "id", "name")

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []


class _Choice:
    """The pending part of one choice."""

    __slots__ = ("calls", "finish_reason", "logprobs", "reasoning", "stop_reason", "text")

    def __init__(self) -> None:
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.calls: dict[int, _Call] = {}
        self.logprobs: list[pb.TokenLogprob] = []
        self.finish_reason: pb.FinishReason.ValueType = pb.FINISH_REASON_UNSPECIFIED
        self.stop_reason = ""


class Merge(abc.ABC, Generic[ChunkT]):
    """The pending chunk of one stream of `choices` choices."""

    def __init__(self, choices: int) -> None:
        # Characters (and a little more for other things) waiting; 0: nothing to send.
        self.size = 0
        # The prompt's tokens, and those made so far in each choice, as the engine counts them in every event.
        self._prompt_tokens = 0
        self._made = dict.fromkeys(range(choices), 0)
        # Id and model go with the first chunk only.
        self._said = False
        self._id = ""
        self._model = ""
        self._pending: dict[int, _Choice] = {}
        self._unfinished = set(range(choices))
        # The engine's own sum, which comes last; and the same until it is taken.
        self._sum: pb.Usage | None = None
        self._usage: pb.Usage | None = None

    @property
    def finished(self) -> bool:
        """Whether every choice has its finish reason: only the token counts may still come."""
        return not self._unfinished

    @property
    def counted(self) -> pb.Usage:
        """The tokens that the engine has told of so far, sent on or not."""
        if self._sum is not None:
            return self._sum
        return pb.Usage(prompt_tokens=self._prompt_tokens, completion_tokens=sum(self._made.values()))

    def add(self, event: Json) -> None:
        """Merges one event of the engine's stream.

        Raises EngineFault, or BadAnswer for what is no event at all.
        """
        error = event.get("error")
        if error is not None:
            raise _engine_fault(error)
        try:
            choices, usage = event["choices"], event.get("usage")
            for choice in choices:
                pending = self._pending.get(choice["index"])
                if pending is None:
                    pending = self._pending[choice["index"]] = _Choice()
                self._read(choice, pending)
                reason = choice.get("finish_reason")
                if reason:
                    pending.finish_reason = translate.finish_reason(reason)
                    pending.stop_reason = translate.stop_reason(choice)
                    self.size += 1
                    self._unfinished.discard(choice["index"])
                if usage:
                    self._made[choice["index"]] = usage["completion_tokens"]
                    self._prompt_tokens = usage["prompt_tokens"]
            if usage and not choices:
                self._usage = self._sum = translate.usage(usage)
                self.size += 1
            if not self._id:
                self._id = event.get("id") or ""
                self._model = event.get("model") or ""
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise translate.BadAnswer(
                f"the engine sent an event that is not of its API: {error!r}"
            ) from error

    def take(self) -> ChunkT:
        """The pending chunk; nothing is pending afterwards."""
        pending, self._pending = self._pending, {}
        self.size = 0
        chunk = self._build(pending)
        if not self._said:
            self._said = True
            chunk.id = self._id
            chunk.model = self._model
        if self._usage is not None:
            chunk.usage.CopyFrom(self._usage)
            self._usage = None
        return chunk

    @abc.abstractmethod
    def _read(self, choice: Json, pending: _Choice) -> None:
        """Appends what an event has for one choice, and counts it."""

    @abc.abstractmethod
    def _build(self, pending: dict[int, _Choice]) -> ChunkT:
        """A chunk of what is pending."""


class ChatMerge(Merge[pb.StreamChatResponse]):
    """The pending chunk of /v1/chat/completions."""

    def _read(self, choice: Json, pending: _Choice) -> None:
        delta = choice["delta"]
        text = delta.get("content")
        if text:
            pending.text.append(text)
            self.size += len(text)
        # The common event has its text and nothing else.
        if not text or len(delta) > 1:
            self._read_rest(delta, pending)
        logprobs = choice.get("logprobs")
        if logprobs:
            read = translate.chat_logprobs(logprobs)
            pending.logprobs += read
            self.size += _logprobs_size(read)

    def _read_rest(self, delta: Json, pending: _Choice) -> None:
        reasoning = delta.get("reasoning") or delta.get("reasoning_content")
        if reasoning:
            pending.reasoning.append(reasoning)
            self.size += len(reasoning)
        calls = delta.get("tool_calls")
        if calls:
            self._read_calls(calls, pending)

    def _read_calls(self, calls: list[Json], pending: _Choice) -> None:
        for part in calls:
            index = part["index"]
            call = pending.calls.get(index)
            if call is None:
                call = pending.calls[index] = _Call()
            call.id = part.get("id") or call.id
            function = part.get("function") or {}
            # Some engines send a name whole, some in parts; those that send it whole send it once.
            call.name += function.get("name") or ""
            arguments = function.get("arguments")
            if arguments:
                call.arguments.append(arguments)
                self.size += len(arguments)
            self.size += 1

    def _build(self, pending: dict[int, _Choice]) -> pb.StreamChatResponse:
        chunk = pb.StreamChatResponse()
        for index, each in pending.items():
            choice = chunk.choices.add(
                index=index,
                content="".join(each.text),
                finish_reason=each.finish_reason,
                stop_reason=each.stop_reason,
                logprobs=each.logprobs,
            )
            if each.reasoning:
                choice.reasoning_content = "".join(each.reasoning)
            for number, call in each.calls.items():
                choice.tool_calls.add(
                    index=number, id=call.id, name=call.name, arguments="".join(call.arguments)
                )
        return chunk


class GenerateMerge(Merge[pb.StreamGenerateResponse]):
    """The pending chunk of /v1/completions."""

    def _read(self, choice: Json, pending: _Choice) -> None:
        text = choice["text"]
        if text:
            pending.text.append(text)
            self.size += len(text)
        logprobs = choice.get("logprobs")
        if logprobs:
            read = translate.generate_logprobs(logprobs)
            pending.logprobs += read
            self.size += _logprobs_size(read)

    def _build(self, pending: dict[int, _Choice]) -> pb.StreamGenerateResponse:
        chunk = pb.StreamGenerateResponse()
        for index, each in pending.items():
            chunk.choices.add(
                index=index,
                text="".join(each.text),
                finish_reason=each.finish_reason,
                stop_reason=each.stop_reason,
                logprobs=each.logprobs,
            )
        return chunk


def _logprobs_size(logprobs: list[pb.TokenLogprob]) -> int:
    return sum(_LOGPROB_SIZE * (1 + len(each.top)) for each in logprobs)


def _engine_fault(error: Any) -> EngineFault:
    if not isinstance(error, dict):
        return EngineFault(str(error), 500)
    status = error.get("code")
    return EngineFault(
        str(error.get("message") or "the engine gave no reason"),
        status if isinstance(status, int) else 500,
        str(error.get("type") or ""),
        str(error.get("param") or ""),
    )
