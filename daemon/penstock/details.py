"""google.rpc's details of an error: what its sentence says, once more for programs.

The same for everyone who ends a call: the control API, the gateway, and the agents in the jobs. Which errors there are,
and which details each of them has, is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from google.protobuf import duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from penstock.contract import Broken

KEY = "grpc-status-details-bin"
"""The trailer that carries a Status with its details."""
DOMAIN = "penstock"
"""Of every ErrorInfo."""
BAD_VALUE = "BAD_VALUE"
"""The reason of a field that cannot be as it is."""

_FRAME_BYTES = 12
"""Of a field violation: the tags and lengths of its texts, and its own."""


def status(code: int, message: str, *details: Message) -> status_pb2.Status:
    """A call's end. `code`: of google.rpc.Code, which are gRPC's."""
    made = status_pb2.Status(code=code, message=message)
    for detail in details:
        made.details.add().Pack(detail)
    return made


def error_info(reason: str, metadata: Mapping[str, str] | None = None) -> error_details_pb2.ErrorInfo:
    """Why, in a word for programs."""
    return error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)


def retry_info(after_s: int) -> error_details_pb2.RetryInfo:
    """When to come again."""
    return error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=after_s))


def bad_request(
    broken: Iterable[Broken], *, reason: str = BAD_VALUE, max_bytes: int | None = None
) -> error_details_pb2.BadRequest:
    """The fields at fault: as many, from the first on, as `max_bytes` hold; None: all."""
    made = error_details_pb2.BadRequest()
    size = 0
    for field, sentence in broken:
        size += len(field.encode()) + len(sentence.encode()) + len(reason) + _FRAME_BYTES
        if max_bytes is not None and size > max_bytes:
            break
        made.field_violations.add(field=field, description=sentence, reason=reason)
    return made
