"""Relays one held REST request, as relay.py does for gRPC: back to the front door, and its answer to the client.

A client that asked for a stream of events (`"stream": true`) hears how it stands in comments, which every reader of
such streams skips. From the first comment on its status is 200, so an error that comes later comes as an event, in the
shape that engines use for errors in the middle of a stream. Others just wait, and get the status that their answer has.

The rule guarded here: once the status of the answer has come, the request is never sent again; an answer that breaks
off breaks off at the client too, and is not ended as if it were whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import Iterable

import aiohttp
from aiohttp import web
from yarl import URL

from penstock.core.routing import Route
from penstock.gateway import openai
from penstock.gateway.clusters import ANSWERED_BY_HEADER
from penstock.gateway.hold import Held, Refused
from penstock.gateway.relay import line_headers
from penstock.gateway.relay_listener import RELAYED_HEADER, relay_address
from penstock.gateway.settings import FrontDoorSettings

CONNECT_TIMEOUT_S = 1.0
CHUNK_BYTES = 65536
PATIENCE_HEADER = "x-stainless-read-timeout"
"""What OpenAI's own clients send: for how many seconds they wait for the next byte."""

_OF_THE_CONNECTION = frozenset(
    {
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "host",
        "expect",
        "content-length",
    }
)
_EVENTS = "text/event-stream"
Fields = list[tuple[str, str]]


class RestRelay:
    """The way back to the front door. Use: `start`, `stop`."""

    def __init__(self, settings: FrontDoorSettings) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None

    def start(self) -> None:
        """Connects when it is first used."""
        path = relay_address(self._settings).removeprefix("unix:")
        self._session = aiohttp.ClientSession(
            # As many as are held, which has a bound of its own.
            connector=aiohttp.UnixConnector(path, limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )

    async def stop(self) -> None:
        """Ends what is being relayed."""
        if self._session is not None:
            await self._session.close()

    async def serve(
        self, held: Held, request: web.Request, body: bytes, route: Route, *, streams: bool
    ) -> web.StreamResponse:
        """Waits, relays, and answers as the engine does. Raises Refused, with nothing sent."""
        events = web.StreamResponse(
            headers={"content-type": _EVENTS, "cache-control": "no-cache", ANSWERED_BY_HEADER: "gateway"}
        )
        fields = [
            *_passed_on(request.headers.items()),
            (RELAYED_HEADER, held.key),
            *line_headers(route),
        ]
        try:
            while True:
                async for progress in held.wait():
                    if not streams:
                        continue
                    if not events.prepared:
                        await events.prepare(request)
                    await events.write(f": {progress.sentence}\n\n".encode())
                if (answer := await self._relayed(held, request, fields, body, events)) is not None:
                    return answer
        except Refused as refused:
            if not events.prepared:
                raise
            status, code = status_and_code(refused)
            await events.write(_event(openai.error(status, refused.sentence, code)))
            return events
        except ConnectionResetError:
            return events  # The client has left.

    async def _relayed(
        self, held: Held, request: web.Request, fields: Fields, body: bytes, events: web.StreamResponse
    ) -> web.StreamResponse | None:
        """The answer; None: the request is back in its line. Raises Refused."""
        if self._session is None:
            raise RuntimeError("the relay was not started")
        url = URL(f"http://penstock{request.raw_path}", encoded=True)
        try:
            answer = await self._session.request(
                request.method, url, headers=fields, data=body, allow_redirects=False
            )
        except aiohttp.ClientError:
            held.lost()
            return None
        async with answer:
            if held.returned_at_attempt or answer.status == 503:
                held.lost()
                return None
            if answer.status == 429 and held.turned_away():
                return None
            held.answered()
            return await _pass(answer, request, events)


async def _pass(
    answer: aiohttp.ClientResponse, request: web.Request, events: web.StreamResponse
) -> web.StreamResponse:
    """To the client, as it comes."""
    if events.prepared and answer.status != 200:
        try:
            body = await answer.content.readexactly(CHUNK_BYTES)
        except asyncio.IncompleteReadError as whole:
            body = whole.partial
        except aiohttp.ClientPayloadError:
            body = b""  # The engine has died over its words.
        await events.write(_event(_error_of(answer.status, body.decode(errors="replace"))))
        return events
    response = events
    if not events.prepared:
        # Of the front door's two looks at this answer the first has judged the replica already.
        response = web.StreamResponse(
            status=answer.status, reason=answer.reason, headers={ANSWERED_BY_HEADER: "gateway"}
        )
        for key, value in _passed_on(answer.headers.items()):
            response.headers.add(key, value)
        if answer.content_length is not None:
            response.content_length = answer.content_length
        await response.prepare(request)
    try:
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
    except (aiohttp.ClientPayloadError, ConnectionResetError):
        if request.transport is not None:
            request.transport.abort()
    return response


def status_and_code(refused: Refused) -> tuple[int, str]:
    """What a refusal is in HTTP, and its word for programs."""
    if refused.losses:
        return 503, "replica_failed"
    return (429, "too_many_wait") if refused.limit else (503, "no_ready_replica")


def patience_s(request: web.Request, *, streams: bool) -> float:
    """For how long the client waits for the next byte, as far as it says so; who hears comments waits for ever."""
    if streams:
        return math.inf
    with contextlib.suppress(ValueError):
        if (seconds := float(request.headers.get(PATIENCE_HEADER, ""))) > 0:
            return seconds
    return math.inf


def _error_of(status: int, text: str) -> dict[str, object]:
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(text)
        if isinstance(found, dict) and "error" in found:
            return found
    return openai.error(status, text or f"the engine answered with status {status}", "engine_error")


def _event(document: dict[str, object]) -> bytes:
    return f"data: {json.dumps(document)}\n\n".encode()


def _passed_on(fields: Iterable[tuple[str, str]]) -> Fields:
    """Without what is of one connection, or was put there by the front door."""
    return [
        (key, value)
        for key, value in fields
        if key.lower() not in _OF_THE_CONNECTION
        and not key.lower().startswith(("x-envoy-", "x-penstock-deployment", ANSWERED_BY_HEADER))
    ]
