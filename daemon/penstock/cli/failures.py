"""What can go wrong in a command, its sentence and its exit code. A traceback is for bugs of the command line
itself."""

from __future__ import annotations

import grpc

from penstock.client.errors import DeadlineExceeded, PenstockError, Unavailable, error_of

REFUSED = 1
USAGE = 2
UNAVAILABLE = 3
TIMED_OUT = 4
INTERRUPTED = 130


class Failure(Exception):
    """Ends the command. `details` are shown below the message, a line each."""

    def __init__(self, message: str, code: int = REFUSED, details: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.details = details


def failure_of(error: grpc.RpcError | PenstockError, server: str, subject: str = "") -> Failure:
    """What a person is told of a failed call."""
    found = error if isinstance(error, PenstockError) else error_of(error)
    if found.unreached:
        return Failure(
            f"no Penstock server answers at {server}; is it running there (penstock serve)?", UNAVAILABLE
        )
    if isinstance(found, DeadlineExceeded):
        return Failure(found.message, UNAVAILABLE)
    before = f"{subject}: " if subject else ""
    if len(found.fields) > 1:
        violations = tuple(f"{each.field}: {each.description}" for each in found.fields)
        return Failure(f"{before}{len(violations)} fields cannot be as they are", REFUSED, violations)
    exit_code = UNAVAILABLE if isinstance(found, Unavailable) else REFUSED
    return Failure(f"{before}{found.message}", exit_code)
