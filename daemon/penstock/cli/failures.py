"""What can go wrong in a command, its sentence and its exit code. A traceback is for bugs of the command line
itself."""

from __future__ import annotations

import re
from collections.abc import Iterator

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

REFUSED = 1
USAGE = 2
UNAVAILABLE = 3
TIMED_OUT = 4
INTERRUPTED = 130

_UNREACHABLE = re.compile(
    r"failed to connect to all addresses|Connection refused|DNS resolution failed|Name or service not known"
)


class Failure(Exception):
    """Ends the command. `details` are shown below the message, a line each."""

    def __init__(self, message: str, code: int = REFUSED, details: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.details = details


def failure_of(error: grpc.aio.AioRpcError, server: str, subject: str = "") -> Failure:
    """What a person is told of a failed call."""
    code, said = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE and _UNREACHABLE.search(said):
        return Failure(
            f"no Penstock server answers at {server}; is it running there (penstock serve)?", UNAVAILABLE
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Failure(said or f"the server at {server} did not answer in time", UNAVAILABLE)
    before = f"{subject}: " if subject else ""
    violations = tuple(_violations(error))
    if len(violations) > 1:
        return Failure(f"{before}{len(violations)} fields cannot be as they are", REFUSED, violations)
    exit_code = UNAVAILABLE if code is grpc.StatusCode.UNAVAILABLE else REFUSED
    return Failure(before + (said or f"the call failed with {code.name}"), exit_code)


def _violations(error: grpc.aio.AioRpcError) -> Iterator[str]:
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin" or not isinstance(value, bytes):
            continue
        try:
            details = status_pb2.Status.FromString(value).details
        except DecodeError:
            return
        for detail in details:
            bad_request = error_details_pb2.BadRequest()
            if detail.Unpack(bad_request):
                for violation in bad_request.field_violations:
                    yield f"{violation.field}: {violation.description}"
