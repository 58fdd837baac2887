"""Answers the inference requests that no replica can take, with the reason.

Envoy sends here what it cannot send to a replica: requests for a deployment of which none answers (its name
is then in a header that clients cannot set), and requests for models that nobody serves. It knows the names
that are served and asks one injected function for the sentence; it reads no table and keeps no request
waiting.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc
from google.protobuf import duration_pb2, message_factory
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from penstock.core.prospect import Prospect
from penstock.core.routing import Route, RoutingState
from penstock.gateway.routes import DEPLOYMENT_HEADER, INFERENCE
from penstock.v1 import inference_pb2

log = logging.getLogger(__name__)

Explain = Callable[[str], Awaitable[Prospect]]
"""Deployment name to how it is, and what a client may hope for."""

NAMES_SHOWN = 20
EXPLAIN_TIMEOUT_S = 2.0
"""Longer than any healthy database takes, shorter than anyone waits for an error."""
REASON_KEPT_S = 0.5
"""Clients that try again in a loop cost one question to the database in this time, for each deployment."""
RETRY_AFTER_S = 5
ERROR_DOMAIN = "penstock"

_Context = grpc.aio.ServicerContext[Any, Any]
_METHODS = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].methods_by_name


class ExplainHandler(grpc.GenericRpcHandler):
    """Takes every method of InferenceService but ListModels. Add it to the server before any other handler of
    that service."""

    def __init__(self, explain: Explain) -> None:
        self._explain = explain
        self._routes: dict[str, Route] = {}
        self._names: list[str] = []
        self._reasons: dict[str, tuple[float, asyncio.Task[Prospect]]] = {}

    def set_state(self, state: RoutingState) -> None:
        """What is served from now on."""
        self._routes = {route.deployment: route for route in state.routes}
        self._names = sorted(
            {name for route in state.routes for name in (route.deployment, *route.model_names)}
        )
        self._reasons = {name: reason for name, reason in self._reasons.items() if name in self._routes}

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = details.method.removeprefix(INFERENCE)
        if method == details.method or method == "ListModels" or method not in _METHODS:
            return None
        request_class = message_factory.GetMessageClass(_METHODS[method].input_type)

        async def answer(request: bytes, context: _Context) -> AsyncIterator[bytes]:
            # A caller of a unary method cannot tell a stream that ends with an error from its own kind of
            # error.
            await self._answer(request, request_class, context)
            for chunk in list[bytes]():
                yield chunk

        return grpc.unary_stream_rpc_method_handler(answer)

    async def _answer(self, request: bytes, request_class: type[Message], context: _Context) -> None:
        metadata = dict(context.invocation_metadata() or ())
        deployment = str(metadata.get(DEPLOYMENT_HEADER, ""))
        # Sending headers first keeps the status in the trailers, where Envoy does not take it for a reason to
        # try again.
        await context.send_initial_metadata(())
        route = self._routes.get(deployment)
        if route is None:
            await self._no_such_model(request, request_class, context)
        reason = (await self._reason(deployment)).sentence
        if route.endpoints:
            sentence = (
                f"no replica of deployment {deployment!r} answers the front door at this moment: {reason}"
            )
        else:
            sentence = f"deployment {deployment!r} has no ready replica: {reason}"
        await _end(
            context,
            code_pb2.UNAVAILABLE,
            sentence,
            error_details_pb2.ErrorInfo(
                reason="NO_READY_REPLICA", domain=ERROR_DOMAIN, metadata={"deployment": deployment}
            ),
            error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=RETRY_AFTER_S)),
        )

    async def _no_such_model(
        self, request: bytes, request_class: type[Message], context: _Context
    ) -> NoReturn:
        try:
            model = str(getattr(request_class.FromString(request), "model", ""))
        except DecodeError:
            await _end(
                context,
                code_pb2.INVALID_ARGUMENT,
                f"the message is not a {request_class.DESCRIPTOR.full_name}",
            )
        shown = ", ".join(self._names[:NAMES_SHOWN]) or "none"
        more = len(self._names) - NAMES_SHOWN
        there_are = f"models that exist: {shown}" + (f", and {more} more" if more > 0 else "")
        wrong = f"model {model[:200]!r} does not exist" if model else "the field `model` is empty"
        await _end(
            context,
            code_pb2.NOT_FOUND,
            f"{wrong}; {there_are}",
            error_details_pb2.ErrorInfo(
                reason="MODEL_NOT_FOUND", domain=ERROR_DOMAIN, metadata={"model": model[:200]}
            ),
        )

    async def _reason(self, deployment: str) -> Prospect:
        asked_at, task = self._reasons.get(deployment, (0.0, None))
        now = time.monotonic()
        if task is None or now - asked_at > REASON_KEPT_S:
            task = asyncio.create_task(self._ask(deployment))
            self._reasons[deployment] = (now, task)
        return await asyncio.shield(task)

    async def _ask(self, deployment: str) -> Prospect:
        try:
            return await asyncio.wait_for(self._explain(deployment), EXPLAIN_TIMEOUT_S)
        except TimeoutError:
            return Prospect(f"the reason could not be read within {EXPLAIN_TIMEOUT_S:g} s")
        except Exception:
            # The client still gets its UNAVAILABLE; the cause is for the operator.
            log.exception("cannot say why deployment %r has no ready replica", deployment)
            return Prospect("the reason cannot be read now")


async def _end(context: _Context, code: int, sentence: str, *details: Message) -> NoReturn:
    status = status_pb2.Status(code=code, message=sentence)
    for detail in details:
        status.details.add().Pack(detail)
    await context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort_with_status raises")
