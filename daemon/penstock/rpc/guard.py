"""Between gRPC and the servicers: field rules before a call, statuses after it.

`Guarded` stands in for the server while servicers are added, and puts each method inside the same frame: the
request must be readable and obey the contract's field rules, and whatever is raised leaves as one gRPC status with
one sentence. gRPC's own reading of a message answers a bad one with UNKNOWN and Python's words, and one that is missing
or cut off never (the call hangs until the client leaves); so every method takes its bytes as a stream, and reads them
here. A refusal carries google.rpc.BadRequest; an outage of PostgreSQL is UNAVAILABLE; a bug is INTERNAL
with an id that the log has too, and tells the client nothing else.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, NoReturn, cast

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message
from google.rpc import status_pb2

from penstock import contract, details
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
"""Methods that check the deployment in their request themselves: what it means depends on the update mask."""

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
    check: Callable[[Any], None] = validate.check_report if method.startswith(_AGENTS) else validate.check
    if method.rsplit("/", 1)[-1] in _OWN_CHECK:
        check = validate.check_around
    found = descriptor_pool.Default().FindMethodByName(method.replace("/", "."))
    request_class = message_factory.GetMessageClass(found.input_type)
    untyped = cast(Any, handler)

    def read(data: bytes) -> Message:
        request = contract.parse(data, request_class)
        check(request)
        return request

    async def one(sent: AsyncIterator[bytes]) -> Message:
        async for data in sent:
            return read(data)
        raise contract.Unreadable("", f"the {request_class.DESCRIPTOR.full_name} is missing, or is cut off")

    if handler.request_streaming:

        def answers(sent: AsyncIterator[bytes], context: Context) -> AsyncIterator[Message]:
            return cast(
                AsyncIterator[Message], untyped.stream_stream((read(data) async for data in sent), context)
            )

    elif handler.response_streaming:

        async def answers(sent: AsyncIterator[bytes], context: Context) -> AsyncIterator[Message]:
            async for response in untyped.unary_stream(await one(sent), context):
                yield response

    else:

        async def answers(sent: AsyncIterator[bytes], context: Context) -> AsyncIterator[Message]:
            yield await untyped.unary_unary(await one(sent), context)

    async def guarded(sent: AsyncIterator[bytes], context: Context) -> AsyncIterator[Message]:
        try:
            async for response in answers(sent, context):
                yield response
        except Exception as error:
            await _end(method, error, context)

    # A caller of a unary method cannot tell a stream of one message, or of none and an error, from its own kind.
    return grpc.stream_stream_rpc_method_handler(cast(Any, guarded), None, untyped.response_serializer)


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
        trailers = ((details.KEY, _details(refused, message).SerializeToString()),)
    await context.abort(refused.status, message, trailing_metadata=cast(Any, trailers))


def _details(refused: Refused, message: str) -> status_pb2.Status:
    # All of a refusal's are of one kind.
    reason = refused.violations[0].fault.word
    broken = [contract.Broken(violation.field, violation.message) for violation in refused.violations]
    bad = details.bad_request(broken, reason=reason, max_bytes=MAX_DETAIL_BYTES)
    # The message is in the status already; twice would be more than the trailers hold.
    return details.status(refused.status.value[0], message[:200], bad)


def refusal_of(error: Exception) -> Refused | None:
    """What a client is to hear of an exception; None: it is a bug."""
    match error:
        case Refused():
            return error
        case contract.Unreadable():
            return Refused(Fault.BAD_VALUE.status, str(error), _about(error))
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


def _about(error: contract.Unreadable) -> tuple[Violation, ...]:
    return (Violation(error.field, error.sentence),) if error.field else ()


def _field(fault: Fault, field: str, error: Exception) -> Refused:
    return Refused(fault.status, str(error), (Violation(field, str(error), fault),))
