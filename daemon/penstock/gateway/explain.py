"""Takes the gRPC inference requests that no replica can: holds those that waiting may help, and tells the others why.

Envoy sends here what it cannot send to a replica: requests for a deployment of which none answers (its name
is then in a header that clients cannot set), and requests for models that nobody serves. What there is to say is known
by `served`, and who may wait by `hold`; rest.py does the same for clients of the REST API.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import grpc
from google.protobuf import wrappers_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2
from grpc_status import rpc_status

from penstock import details
from penstock.contract import Broken
from penstock.core.routing import Route
from penstock.gateway.hold import Hold, Refused, losses
from penstock.gateway.relay import GrpcRelay, patience_s
from penstock.gateway.relay_listener import RELAYED_HEADER
from penstock.gateway.routes import ADAPTER_HEADER, ATTEMPTS_HEADER, DEPLOYMENT_HEADER, INFERENCE
from penstock.gateway.served import NAME_SHOWN_CHARACTERS, Served
from penstock.v1 import inference_pb2

MAX_READ_AT_ONCE = 16
"""Messages that are on their way into memory and not counted yet; the others wait in Envoy's buffers."""

_Context = grpc.aio.ServicerContext[Any, Any]
_METHODS = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].methods_by_name


class ExplainHandler(grpc.GenericRpcHandler):
    """Takes every method of InferenceService but ListModels. Add it to the server before any other handler of
    that service."""

    def __init__(self, served: Served, hold: Hold, relay: GrpcRelay) -> None:
        self._served = served
        self._hold = hold
        self._relay = relay
        self._reading = asyncio.Semaphore(MAX_READ_AT_ONCE)

    def service(self, asked: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = asked.method.removeprefix(INFERENCE)
        if method == asked.method or method == "ListModels" or method not in _METHODS:
            return None

        async def answer(_: AsyncIterator[bytes], context: _Context) -> None:
            try:
                await self._answer(asked.method, _METHODS[method].input_type, context)
            except grpc.aio.InternalError as gone:
                # What is sent fails only when the call is over: whoever called has left.
                raise asyncio.CancelledError from gone

        # A caller of a unary method cannot tell a stream of one message, or of none and an error, from its own kind of
        # answer. The message is read by `_answer`, once it is known that there is room for it.
        return grpc.stream_stream_rpc_method_handler(answer)

    async def _answer(self, method: str, request_type: Descriptor, context: _Context) -> None:
        metadata = dict(context.invocation_metadata() or ())
        deployment, adapter = (str(metadata.get(key, "")) for key in (DEPLOYMENT_HEADER, ADAPTER_HEADER))
        attempt = int(metadata.get(ATTEMPTS_HEADER, 1))
        # Sending headers first keeps the status in the trailers, where Envoy does not take it for a reason to
        # try again; and Envoy keeps no copy of the message any more.
        await context.send_initial_metadata(())
        if key := metadata.get(RELAYED_HEADER):
            self._hold.returned(str(key), attempt)
            await _end(context, code_pb2.UNAVAILABLE, "no replica answers")
        route = self._served.route(deployment, adapter)
        if route is None:
            await self._no_such_model(await self._read(context), request_type, context)
        patience = patience_s(context)
        try:
            lost = losses(route, attempt)
            prospect = await self._hold.consider(route, patience, lost)
            request = await self._read(context)
            with self._hold.enter(route, prospect, len(request), patience, lost) as held:
                await self._relay.serve(held, method, request, route, context)
        except Refused as refused:
            await _refuse(context, route, refused)

    async def _read(self, context: _Context) -> bytes:
        async with self._reading:
            request = await context.read()
        return request if isinstance(request, bytes) else b""

    async def _no_such_model(self, request: bytes, request_type: Descriptor, context: _Context) -> NoReturn:
        try:
            model = model_of(request)
        except DecodeError:
            await _end(context, code_pb2.INVALID_ARGUMENT, f"the message is not a {request_type.full_name}")
        sentence = self._served.unknown(model)
        if not model:
            info = details.error_info(details.BAD_VALUE)
            bad = details.bad_request([Broken("model", sentence)])
            await _end(context, code_pb2.INVALID_ARGUMENT, sentence, info, bad)
        info = details.error_info("MODEL_NOT_FOUND", {"model": model[:NAME_SHOWN_CHARACTERS]})
        await _end(context, code_pb2.NOT_FOUND, sentence, info)


def model_of(request: bytes) -> str:
    """The `model` of any inference request, its field 1. Raises DecodeError.

    Read as a message that has that one field: 16 MiB of small fields as what they are would take a second, in which
    nothing else moves, and half a gigabyte.
    """
    return wrappers_pb2.StringValue.FromString(request).value


async def _refuse(context: _Context, route: Route, refused: Refused) -> NoReturn:
    code, reason, metadata = code_pb2.UNAVAILABLE, "NO_READY_REPLICA", {"deployment": route.deployment}
    if route.adapter:
        metadata["adapter"] = route.adapter
    if refused.limit:
        code, reason, metadata = (
            code_pb2.RESOURCE_EXHAUSTED,
            "TOO_MANY_WAIT",
            {**metadata, "limit": refused.limit},
        )
    again = [details.retry_info(refused.retry_after_s)]
    if refused.losses:
        # It may be what ended them, and tokens may have been made: it is not to come again, whatever else is wrong.
        code, reason, again = code_pb2.UNAVAILABLE, "REPLICA_ENDED", []
    await _end(context, code, refused.sentence, details.error_info(reason, metadata), *again)


async def _end(context: _Context, code: int, sentence: str, *said: Message) -> NoReturn:
    await context.abort_with_status(rpc_status.to_status(details.status(code, sentence, *said)))
    raise AssertionError("abort_with_status raises")
