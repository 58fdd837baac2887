"""Takes the REST requests that no replica can: lists the models, holds what waiting may help, says what is wrong. It
gives the OpenAPI documents too, and says whether the body of a request to the control API may be transcoded.

Envoy sends here, as explain.py says for gRPC, what has no ready replica, no such model, or no `model` that it could
read; this reads the request once more and says so in OpenAI's shape.
"""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

from aiohttp import web

from penstock.core.routing import Route
from penstock.gateway import control_bodies, control_rest, json_text, openai
from penstock.gateway.clusters import ANSWERED_BY_HEADER
from penstock.gateway.documents import DOCUMENTS, document
from penstock.gateway.hold import Hold, Refused, losses
from penstock.gateway.relay_listener import RELAYED_HEADER
from penstock.gateway.relay_rest import RestRelay, patience_s, status_and_code
from penstock.gateway.routes import (
    ADAPTER_HEADER,
    ASKED_MODEL_HEADER,
    ATTEMPTS_HEADER,
    DEPLOYMENT_HEADER,
    STREAM_HEADER,
)
from penstock.gateway.served import NAME_SHOWN_CHARACTERS, Served
from penstock.gateway.settings import ADDED_HEADERS, MIB, FrontDoorSettings

_NO_STRING = re.compile(r"[-0-9\[{]|(true|false|null)$")

MAX_READ_AT_ONCE = 16
"""Bodies in memory that nobody counts yet; the others wait, unread, in Envoy's buffers."""
MAX_PARSED_BYTES = 65536
"""Of a body that is found fault with: a few milliseconds. Nothing else runs here while JSON is parsed."""

BACKLOG = 4096
"""Connections that wait to be accepted, as many as Linux lets them be by default. A socket whose line is full refuses
at once, and when the only replica dies all of its clients come here in the same moment."""


class RestServer:
    """An HTTP server for Envoy. Use: `start`, `stop`."""

    def __init__(self, settings: FrontDoorSettings, served: Served, hold: Hold) -> None:
        self._settings = settings
        self._served = served
        self._hold = hold
        self._relay = RestRelay(settings)
        self._reading = asyncio.Semaphore(MAX_READ_AT_ONCE)
        # One at a time, as what is made of JSON may be tens of times its size.
        self._looking = asyncio.Semaphore(1)
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listens. Raises OSError if the address is taken."""
        app = web.Application(
            client_max_size=self._settings.max_request_bytes + MIB, middlewares=[_in_openai_shape]
        )
        for document_path in DOCUMENTS:
            app.router.add_get(document_path, _document)
        app.router.add_get(openai.MODELS_PATH, self._models)
        for method in control_rest.METHODS_WITH_BODY:
            app.router.add_route(method, control_rest.PREFIX + "{path:.*}", self._control_body)
        # Names may have slashes.
        app.router.add_get(openai.MODELS_PATH + "/{model:.+}", self._model)
        app.router.add_route("*", "/{path:.*}", self._explain)
        # Who has left waits no more, and nobody is waited for at the end.
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            handler_cancellation=True,
            shutdown_timeout=0,
            # One may be all that Envoy lets in.
            max_line_size=self._settings.largest_headers_bytes,
            max_field_size=self._settings.largest_headers_bytes,
            max_headers=self._settings.max_headers + ADDED_HEADERS,
        )
        self._relay.start()
        await self._runner.setup()
        address = self._settings.gateway_rest
        if address.startswith("unix:"):
            path = Path(address.removeprefix("unix:"))
            await web.UnixSite(self._runner, str(path), backlog=BACKLOG).start()
            path.chmod(0o600)
        else:
            host, _, port = address.rpartition(":")
            await web.TCPSite(self._runner, host.strip("[]"), int(port), backlog=BACKLOG).start()

    async def stop(self) -> None:
        """Ends at once."""
        if self._runner is not None:
            await self._runner.cleanup()
        await self._relay.stop()

    async def _models(self, request: web.Request) -> web.StreamResponse:
        models = [_model(name, route) for name, route in self._served.models.items()]
        return _json(200, {"object": "list", "data": models})

    async def _model(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["model"]
        route = self._served.models.get(name)
        if route is None:
            return self._no_such_model(name)
        return _json(200, _model(name, route))

    async def _control_body(self, request: web.Request) -> web.StreamResponse:
        """Envoy's question: 200 lets the request pass, all else is its answer."""
        async with self._looking:
            body = await request.read()
            # All else goes on meanwhile.
            refusal = await asyncio.to_thread(control_bodies.refusal, request.method, request.raw_path, body)
        if refusal is None:
            return web.Response()
        return web.Response(body=json.dumps(refusal).encode(), status=400, content_type="application/json")

    async def _explain(self, request: web.Request) -> web.StreamResponse:
        deployment = request.headers.get(DEPLOYMENT_HEADER)
        if deployment is not None:
            return await self._not_ready(request, deployment, request.headers.get(ADAPTER_HEADER, ""))
        if request.path not in openai.REWRITES:
            return _error(404, f"there is no {request.method} {request.path}", "no_such_path")
        if request.method != "POST":
            message = f"{request.path} takes POST, not {request.method}"
            return _error(405, message, "method_not_allowed", allow="POST")
        if request.content_type != "application/json":
            message = f"Content-Type is {request.content_type!r}; application/json is accepted"
            return _error(415, message, "unsupported_media_type")
        model = request.headers.get(ASKED_MODEL_HEADER, "")
        # What looks like it may be no string in the body, which Envoy has made a text of.
        if model and not _NO_STRING.match(model):
            return self._no_such_model(model)
        async with self._reading:
            return self._fault(await request.read())

    async def _not_ready(self, request: web.Request, deployment: str, adapter: str) -> web.StreamResponse:
        attempt = int(request.headers.get(ATTEMPTS_HEADER, "1"))
        if key := request.headers.get(RELAYED_HEADER):
            self._hold.returned(key, attempt)
            return _error(503, "no replica answers", "no_ready_replica")
        route = self._served.route(deployment, adapter)
        if route is None:  # Deleted a moment ago: Envoy still had the route.
            return self._no_such_model(adapter or deployment)
        lost = losses(route, attempt)
        try:
            streams = request.headers.get(STREAM_HEADER) == "true"
            patience = patience_s(request, streams=streams)
            prospect = await self._hold.consider(route, patience, lost)
            async with self._reading:
                body = await request.read()
            # At once: from here on the waiting room counts the body.
            with self._hold.enter(route, prospect, len(body), patience, lost) as held:
                return await self._relay.serve(held, request, body, route, streams=streams)
        except Refused as refused:
            return _refusal(refused, deployment, attempt - 1)

    def _no_such_model(self, model: str) -> web.Response:
        return _error(404, self._served.unknown(model), "model_not_found", "model")

    def _fault(self, body: bytes) -> web.Response:
        """Envoy found no model in it; why not."""
        if len(body) > MAX_PARSED_BYTES:
            if b'"model"' not in body:
                return _error(400, "the field `model` is missing", "missing_model", "model")
            message = "the body is not JSON, or no JSON object whose field `model` is the name of a model"
            return _error(400, message, "invalid_json")
        try:
            asked = json_text.read_as_envoy(body)
        except json_text.NotJson as error:
            return _error(400, str(error), "invalid_json")
        if not isinstance(asked, dict):
            return _error(400, "the body is not a JSON object", "invalid_json")
        if "model" not in asked:
            return _error(400, "the field `model` is missing", "missing_model", "model")
        model = asked["model"]
        if not isinstance(model, str) or not model:
            shown = json.dumps(model)[:NAME_SHOWN_CHARACTERS]
            message = f"the field `model` is {shown}; the name of a model is accepted, as a string"
            return _error(400, message, "invalid_model", "model")
        if model in self._served.models:
            message = "the body is not JSON as RFC 8259 has it, in UTF-8 and not compressed"
            return _error(400, message, "invalid_json")
        return self._no_such_model(model)


async def _document(request: web.Request) -> web.StreamResponse:
    return web.Response(
        body=document(request.path), content_type="application/json", headers={ANSWERED_BY_HEADER: "gateway"}
    )


def _refusal(refused: Refused, deployment: str, tried: int) -> web.Response:
    status, code = status_and_code(refused)
    sentence = refused.sentence
    if tried:
        sentence = (
            f"{tried} tries at replicas of deployment {deployment!r} ended before the first byte of an answer, "
            f"in a refused connection or a server error; {sentence}"
        )
    if refused.losses:
        return _error(status, sentence, code, **openai.NOT_AGAIN)
    return _error(status, sentence, code, retry_after=str(refused.retry_after_s))


def _model(name: str, route: Route) -> dict[str, Any]:
    card = {"id": name, "object": "model", "created": route.created_at_s, "owned_by": "penstock"}
    # As engines do: an adapter's parent is the model that it is of, by the name that it is served under.
    return card | ({"parent": route.model_names[-1]} if route.adapter else {})


def _json(status: int, body: dict[str, Any], **headers: str) -> web.Response:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return web.json_response(body, status=status, headers={ANSWERED_BY_HEADER: "gateway", **fields})


def _error(status: int, message: str, code: str, param: str | None = None, **headers: str) -> web.Response:
    return _json(status, openai.error(status, message, code, param), **headers)


@web.middleware
async def _in_openai_shape(request: web.Request, handler: Any) -> web.StreamResponse:
    """aiohttp's own refusals, such as a body over the limit."""
    try:
        answer: web.StreamResponse = await handler(request)
    except web.HTTPException as refusal:
        return _error(refusal.status, refusal.reason, refusal.reason.lower().replace(" ", "_"))
    return answer
