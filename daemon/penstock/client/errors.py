"""How a call fails, one exception for each kind, made from the status and the google.rpc details that came with it.

docs/inference.md lists the statuses and the reasons. A request that cannot even be written down fails with the same
InvalidRequest as one that the server refuses, and one on a closed client as one that closing it has cancelled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from penstock.v1 import inference_pb2 as pb

DETAILS_KEY = "grpc-status-details-bin"
PROMPT_TOKENS_KEY = "penstock-prompt-tokens"
COMPLETION_TOKENS_KEY = "penstock-completion-tokens"

# gRPC says only in words that no connection came about, so that nothing can have been sent.
_UNREACHED = re.compile(
    r"failed to connect to all addresses|Connection refused|DNS resolution failed|Name or service not known"
)


class FieldViolation(NamedTuple):
    """A field that cannot be as it is: its path, such as `sampling.max_tokens`, and what is accepted."""

    field: str
    description: str


class PenstockError(Exception):
    """A call that failed. The text is the server's own sentence."""

    def __init__(
        self,
        message: str,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        *,
        fields: tuple[FieldViolation, ...] = (),
        unreached: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.fields = fields
        """The request's fields that are at fault, where the server names any."""
        self.unreached = unreached
        """No server was reached: nothing was sent."""
        self.reason = ""
        """The ErrorInfo's, such as NO_READY_REPLICA; empty where there is none."""
        self.limit = ""
        """The name of the limit that was reached, where one was."""
        self.retry_after_s: float | None = None
        """When the server wants to be asked again, at the earliest. None: it does not say."""
        self.usage: pb.Usage | None = None
        """Tokens read and made before it failed. None: the server does not say."""
        self.received = ""
        """The first choice's text as far as a stream had brought it."""
        self.attempts = 1
        """How often the request was sent, this time included."""


class InvalidRequest(PenstockError):
    """The request cannot be as it is; `fields` says where."""


class NotFound(PenstockError):
    """There is no such model."""


class NotSupported(PenstockError):
    """This model, or its engine, does not do that."""


class Denied(PenstockError):
    """Who asks is not known, or may not."""


class Overloaded(PenstockError):
    """A limit is reached: `limit`, and `retry_after_s` where coming again helps."""


class Unavailable(PenstockError):
    """Nobody can answer now, or the replica ended before its answer did: then `received` and `usage` say how far."""


class DeadlineExceeded(PenstockError):
    """The timeout was too short; `received` has what had come."""


class Cancelled(PenstockError):
    """The call was cancelled by the server, or by closing a `Client` (an `AsyncClient` then ends what runs with a
    CancelledError), or it came after that."""


class ServerError(PenstockError):
    """The server or the engine failed at this request, and lives on."""


_KINDS: dict[grpc.StatusCode, type[PenstockError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNIMPLEMENTED: NotSupported,
    grpc.StatusCode.UNAUTHENTICATED: Denied,
    grpc.StatusCode.PERMISSION_DENIED: Denied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
}


def invalid(field: str, sentence: str) -> InvalidRequest:
    """What a request that cannot be written down fails with."""
    return InvalidRequest(
        f"{field}: {sentence}",
        grpc.StatusCode.INVALID_ARGUMENT,
        fields=(FieldViolation(field, sentence),),
    )


def closed() -> Cancelled:
    """What a call on a closed client fails with."""
    return Cancelled("the client is closed", grpc.StatusCode.CANCELLED)


def error_of(error: grpc.RpcError) -> PenstockError:
    """A failed call's status and details, of gRPC with or without asyncio."""
    code, said = error.code(), error.details() or ""
    kind = _KINDS.get(code, ServerError)
    unreached = code is grpc.StatusCode.UNAVAILABLE and _UNREACHED.search(said) is not None
    found = kind(said or f"the call failed with {code.name}", code, unreached=unreached)
    _read(found, error.trailing_metadata() or ())
    return found


def _read(found: PenstockError, metadata: Iterable[Any]) -> None:
    fields = dict(metadata)
    prompt, made = fields.get(PROMPT_TOKENS_KEY), fields.get(COMPLETION_TOKENS_KEY)
    if isinstance(prompt, str) and isinstance(made, str) and prompt.isdecimal() and made.isdecimal():
        found.usage = pb.Usage(prompt_tokens=int(prompt), completion_tokens=int(made))
    raw = fields.get(DETAILS_KEY)
    if not isinstance(raw, bytes):
        return
    try:
        details = status_pb2.Status.FromString(raw).details
    except DecodeError:
        return
    info, bad, usage = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), pb.Usage()
    retry = error_details_pb2.RetryInfo()
    for detail in details:
        if detail.Unpack(info):
            found.reason, found.limit = info.reason, info.metadata.get("limit", "")
        elif detail.Unpack(bad):
            found.fields = tuple(
                FieldViolation(each.field, each.description) for each in bad.field_violations
            )
        elif detail.Unpack(retry):
            found.retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
        elif detail.Unpack(usage):
            found.usage = usage
