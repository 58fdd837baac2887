"""How a call ends that does not end well: one status, its sentence, and details that a program can read. Pure.

Every way to fail is an exception; this is the table from exceptions to statuses. Whether the engine is dying,
which turns its last words into UNAVAILABLE, is inference.py's to find out.

Details are google.rpc's: an ErrorInfo of the domain `penstock` always, a BadRequest where fields are at fault,
and the contract's Usage where tokens had been made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import grpc
from google.protobuf.message import Message

from penstock import details
from penstock.contract import Broken, Unreadable, in_one_sentence
from penstock.v1 import inference_pb2 as pb
from penstock_runtime.engine import EngineError
from penstock_runtime.gate import Closed
from penstock_runtime.merge import EngineFault
from penstock_runtime.pipe import Unfinished
from penstock_runtime.translate import BadAnswer, BadRequest, field_of

# A client takes 8 KiB of trailers by default; percent-encoding may triple a message, which goes twice.
MAX_MESSAGE_BYTES = 1024
MAX_DETAIL_BYTES = 2048

PROMPT_TOKENS_KEY = "penstock-prompt-tokens"
COMPLETION_TOKENS_KEY = "penstock-completion-tokens"

Trailers = tuple[tuple[str, str | bytes], ...]


class NoSuchModel(Exception):
    """The caller asked for a model that this replica does not serve."""


class NotSupported(Exception):
    """The call exists, but not on this replica."""


class BrokenRules(Exception):
    """The message breaks field rules of the contract."""

    def __init__(self, broken: Sequence[Broken]) -> None:
        super().__init__(in_one_sentence([str(each) for each in broken]))
        self.broken = tuple(broken)


@dataclass(frozen=True, slots=True)
class Ending:
    """One status. `reason` is the ErrorInfo's."""

    code: grpc.StatusCode
    reason: str
    message: str
    broken: tuple[Broken, ...] = ()
    usage: pb.Usage | None = None

    def after(self, usage: pb.Usage) -> Ending:
        """The same, where tokens had been made before."""
        if not usage.completion_tokens:
            return self
        made = f"{usage.completion_tokens} token{'s' if usage.completion_tokens > 1 else ''} had been made"
        return replace(self, message=f"{self.message}; {made}", usage=usage)

    def trailers(self) -> Trailers:
        """The metadata that carries the details."""
        said: list[Message] = [details.error_info(self.reason)]
        if self.broken:
            cut = [Broken(each.field, _cut(each.sentence)) for each in self.broken]
            said.append(details.bad_request(cut, max_bytes=MAX_DETAIL_BYTES))
        if self.usage is not None:
            said.append(self.usage)
        status = details.status(self.code.value[0], self.message, *said)
        return ((details.KEY, status.SerializeToString()), *counts(self.usage))


def counts(usage: pb.Usage | None) -> Trailers:
    """The token counts as trailing metadata, for whoever meters calls without reading them."""
    if usage is None or not (usage.prompt_tokens or usage.completion_tokens):
        return ()
    return (
        (PROMPT_TOKENS_KEY, str(usage.prompt_tokens)),
        (COMPLETION_TOKENS_KEY, str(usage.completion_tokens)),
    )


def ending(error: Exception) -> Ending:
    """What a call that `error` ended ends with."""
    end = _of(error)
    return replace(end, message=_cut(end.message))


def _of(error: Exception) -> Ending:
    code = grpc.StatusCode
    match error:
        case Closed():
            return Ending(code.UNAVAILABLE, "REPLICA_CLOSED", str(error))
        case NoSuchModel():
            return Ending(code.NOT_FOUND, "MODEL_NOT_FOUND", str(error))
        case NotSupported():
            return Ending(code.UNIMPLEMENTED, "NOT_SUPPORTED", str(error))
        case BrokenRules():
            return Ending(code.INVALID_ARGUMENT, details.BAD_VALUE, str(error), error.broken)
        case Unreadable() | BadRequest():
            broken = (Broken(error.field, error.sentence),) if error.field else ()
            return Ending(code.INVALID_ARGUMENT, details.BAD_VALUE, str(error), broken)
        case EngineError() | EngineFault():
            return _of_engine(error)
        case Unfinished():
            said = "the engine closed the stream before it was finished"
            return Ending(code.UNAVAILABLE, "ENGINE_GONE", said)
        case BadAnswer():
            return Ending(code.INTERNAL, "BAD_ANSWER", str(error))
        case _:
            return Ending(code.INTERNAL, "AGENT_FAILED", f"the agent failed: {error!r}")


def _of_engine(error: EngineError | EngineFault) -> Ending:
    """By the engine's HTTP status; 0 where it gave none because the connection failed."""
    code = grpc.StatusCode
    status, words = error.status, f"the engine says: {error}"
    if status == 0:
        return Ending(code.UNAVAILABLE, "ENGINE_GONE", str(error))
    if status in (502, 503, 504):
        return Ending(code.UNAVAILABLE, "ENGINE_GONE", words)
    if status == 429:
        return Ending(code.RESOURCE_EXHAUSTED, "ENGINE_BUSY", words)
    # The model was found before the engine was asked; a 404 of another type than this is a path's.
    if status == 404 and error.type == "NotFoundError":
        return Ending(code.NOT_FOUND, "ENGINE_REFUSED", words)
    if status in (404, 405, 501):
        return Ending(code.UNIMPLEMENTED, "NOT_SUPPORTED", words)
    if 400 <= status < 500:
        broken = (Broken(field_of(error.parameter), str(error)),) if error.parameter else ()
        return Ending(code.INVALID_ARGUMENT, "ENGINE_REFUSED", words, broken)
    return Ending(code.INTERNAL, "ENGINE_FAILED", words)


def _cut(text: str) -> str:
    data = text.encode("utf-8", "replace")
    return (
        text
        if len(data) <= MAX_MESSAGE_BYTES
        else data[: MAX_MESSAGE_BYTES - 3].decode("utf-8", "ignore") + "..."
    )
