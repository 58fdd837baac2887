"""Between gRPC and the servicers: field rules before a call, statuses after it.

`Guarded` stands in for the server while servicers are added, and puts each method of ours inside the same
frame: the request must obey the contract's field rules, and whatever is raised leaves as one gRPC status with
one sentence. A refusal carries google.rpc.BadRequest; an outage of PostgreSQL is UNAVAILABLE; a bug is INTERNAL
with an id that the log has too, and tells the client nothing else.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, NoReturn, cast

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from penstock.rpc import validate
from penstock.rpc.refusals import Fault, Refused, Violation
from penstock.store import errors as store
from penstock.store.database import is_outage
from penstock.v1 import runtime_pb2

log = logging.getLogger(__name__)

MAX_DETAIL_BYTES = 4096
"""Details and message travel as HTTP trailers, of which many proxies take 8 KiB in all."""
MAX_MESSAGE = 1500
"""Characters of a status message, for the same reason."""

_OWN_CHECK = frozenset({"ApplyDeployment", "PlanDeployment"})
"""Methods that check their request themselves: what it means depends on the update mask."""

_AGENTS = runtime_pb2.DESCRIPTOR.services_by_name["RuntimeService"].full_name + "/"

Context = grpc.aio.ServicerContext[Any, Any]


class Guarded:
    """Takes servicers as a grpc.aio.Server does, and hands their guarded methods on to it."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Nothing: the registered handlers below are the same methods, and those are guarded."""

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        guarded = {name: _guard(f"{service}/{name}", handler) for name, handler in handlers.items()}
        self._server.add_registered_method_handlers(service, guarded)
        # Both kinds, as generated code does: interceptors and older servers look at the generic ones.
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, guarded),))


def _guard(method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
    check = validate.check_report if method.startswith(_AGENTS) else validate.check
    if method.rsplit("/", 1)[-1] in _OWN_CHECK:
        check = _nothing
    untyped = cast(Any, handler)
    if handler.response_streaming:
        stream = cast(Callable[[Message, Context], AsyncIterator[Message]], untyped.unary_stream)

        async def guarded_stream(request: Message, context: Context) -> AsyncIterator[Message]:
            try:
                check(request)
                async for response in stream(request, context):
                    yield response
            except Exception as error:
                await _end(method, error, context)

        return grpc.unary_stream_rpc_method_handler(
            cast(Any, guarded_stream), untyped.request_deserializer, untyped.response_serializer
        )
    unary = cast(Callable[[Message, Context], Awaitable[Message]], untyped.unary_unary)

    async def guarded(request: Message, context: Context) -> Message:
        try:
            check(request)
            return await unary(request, context)
        except Exception as error:
            await _end(method, error, context)

    return grpc.unary_unary_rpc_method_handler(
        cast(Any, guarded), untyped.request_deserializer, untyped.response_serializer
    )


def _nothing(request: Message) -> None:
    """No check: the method has its own."""


async def _end(method: str, error: Exception, context: Context) -> NoReturn:
    """Ends the call with the error's status; never returns."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    refused = refusal_of(error)
    if refused is None:
        mark = secrets.token_hex(4)
        log.error("%s failed by a bug, %s", method, mark, exc_info=error)
        refused = Refused(
            grpc.StatusCode.INTERNAL, f"this is a bug in Penstock; its log has the details under {mark}"
        )
    message = (
        refused.message if len(refused.message) <= MAX_MESSAGE else refused.message[: MAX_MESSAGE - 3] + "..."
    )
    trailers: tuple[tuple[str, bytes], ...] = ()
    if refused.violations:
        trailers = (("grpc-status-details-bin", _details(refused, message).SerializeToString()),)
    await context.abort(refused.status, message, trailing_metadata=cast(Any, trailers))


def _details(refused: Refused, message: str) -> status_pb2.Status:
    bad_request = error_details_pb2.BadRequest()
    room = MAX_DETAIL_BYTES
    for violation in refused.violations:
        room -= (
            len(violation.field.encode()) + len(violation.message.encode()) + len(violation.fault.word) + 12
        )
        if room < 0:
            break
        bad_request.field_violations.add(
            field=violation.field, description=violation.message, reason=violation.fault.word
        )
    detail = any_pb2.Any()
    detail.Pack(bad_request)
    # The message is in the status already; twice would be more than the trailers hold.
    return status_pb2.Status(code=refused.status.value[0], message=message[:200], details=[detail])


def refusal_of(error: Exception) -> Refused | None:
    """What a client is to hear of an exception; None: it is a bug."""
    match error:
        case Refused():
            return error
        case store.NotFound():
            return Refused(grpc.StatusCode.NOT_FOUND, str(error))
        case store.NameTaken():
            return _field(Fault.TAKEN, "metadata.name", error)
        case store.ServedNameTaken():
            return _field(Fault.TAKEN, error.field, error)
        case store.FilterError():
            return _field(Fault.BAD_VALUE, "filter", error)
        case store.VersionConflict():
            return Refused(grpc.StatusCode.ABORTED, str(error))
        case store.BeingDeleted() | store.AttemptEnded() | store.AttemptSuperseded():
            return Refused(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        case store.SchemaMismatch() | store.JobTaken():
            return Refused(grpc.StatusCode.UNAVAILABLE, str(error))
    if is_outage(error):
        return Refused(
            grpc.StatusCode.UNAVAILABLE,
            "PostgreSQL does not answer; replicas go on serving, and the call may be repeated",
        )
    return None


def _field(fault: Fault, field: str, error: Exception) -> Refused:
    return Refused(fault.status, str(error), (Violation(field, str(error), fault),))
