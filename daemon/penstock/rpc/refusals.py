"""What a client may have done wrong, as values: one violation a field, one refusal a call.

Knows neither the protos nor core. `guard` makes the gRPC status of a refusal; nothing else in this package
aborts a call.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import grpc

from penstock import details
from penstock.contract import in_one_sentence, quoted


class Fault(enum.Enum):
    """What is wrong with a field, and the status that says so. A call is refused for the first kind that it
    has.
    """

    BAD_VALUE = (details.BAD_VALUE, grpc.StatusCode.INVALID_ARGUMENT)
    NOT_SUPPORTED_YET = ("NOT_SUPPORTED_YET", grpc.StatusCode.UNIMPLEMENTED)
    CLUSTER_CANNOT = ("CLUSTER_CANNOT", grpc.StatusCode.FAILED_PRECONDITION)
    TAKEN = ("TAKEN", grpc.StatusCode.ALREADY_EXISTS)

    def __init__(self, word: str, status: grpc.StatusCode) -> None:
        self.word = word
        self.status = status


@dataclass(frozen=True, slots=True)
class Violation:
    """One field that cannot be as it is."""

    field: str
    """As in a manifest: `spec.placements[0].time_limit`."""
    message: str
    """What was given and what is accepted."""
    fault: Fault = Fault.BAD_VALUE

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class Refused(Exception):
    """The call is refused. One sentence, and the fields it speaks of where it is about fields."""

    def __init__(self, status: grpc.StatusCode, message: str, violations: tuple[Violation, ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.violations = violations


def refuse(violations: list[Violation]) -> None:
    """Raises Refused with all violations of the first kind that there is; returns if there is none."""
    for fault in Fault:
        if named := tuple(violation for violation in violations if violation.fault is fault):
            said = in_one_sentence([str(violation) for violation in named])
            raise Refused(fault.status, said, named)


def not_found(noun: str, name: str) -> Refused:
    """The sentence for an object that is not there."""
    return Refused(grpc.StatusCode.NOT_FOUND, f"there is no {noun} {quoted(name)}")
