"""A small HTTP/1.1 server for the stand-in engine, on the standard library alone.

One `Connection` per client, one request at a time on it (keep-alive; pipelined requests wait their turn). Bodies come
with Content-Length or in chunks; answers go out whole, or in chunks as they are made. It knows nothing of models.

The rule guarded here: a client that leaves is known at once. Its handler's task is cancelled as soon as the connection
is lost, which is what frees its slot in the engine.
"""

from __future__ import annotations

import asyncio
import http
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

MAX_HEAD_BYTES = 64 * 1024
"""uvicorn's own limit for the request line and headers together."""
MAX_BODY_BYTES = 32 * 1024 * 1024
"""Beyond any real prompt: a megabyte is some 250,000 tokens."""
WRITE_HIGH_WATER_BYTES = 64 * 1024
"""A stream that a client does not read pauses once this much waits for it."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """One request, read whole. Header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON; raises ValueError."""
        return json.loads(self.body)


class Refused(Exception):
    """A request that cannot be read; the connection ends after the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Exchange:
    """The answer to one request: either `respond` once, or `start_stream`, any number of `write`, `end`."""

    def __init__(self, connection: Connection, keep_alive: bool, head_only: bool) -> None:
        self._connection = connection
        self._keep_alive = keep_alive
        self._head_only = head_only
        self.started = False

    def respond(
        self, status: int, body: bytes = b"", content_type: str = "application/json", **headers: str
    ) -> None:
        """Answer with a whole body."""
        lines = [f"content-length: {len(body)}"]
        if body:
            lines.append(f"content-type: {content_type}")
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self._head(status, lines)
        if not self._head_only:
            self._connection.send(body)

    def start_stream(self, content_type: str) -> None:
        """Begin an answer whose length is not known."""
        self._head(200, [f"content-type: {content_type}", "transfer-encoding: chunked"])

    def write(self, data: bytes) -> None:
        """Send one piece of a stream; never empty, since an empty chunk would end it."""
        self._connection.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def drain(self) -> None:
        """Wait until the client has read enough for more to be sent."""
        await self._connection.writable.wait()

    def end(self) -> None:
        """End a stream, whole."""
        self._connection.send(b"0\r\n\r\n")

    def cut(self) -> None:
        """Drop the connection in the middle, as a crash would."""
        self._connection.abort()

    def _head(self, status: int, lines: list[str]) -> None:
        if self.started:
            raise RuntimeError("an answer has one head")
        self.started = True
        reason = http.HTTPStatus(status).phrase
        fixed = [
            f"HTTP/1.1 {status} {reason}",
            f"date: {formatdate(usegmt=True)}",
            "server: penstock-standin",
        ]
        if not self._keep_alive:
            lines = [*lines, "connection: close"]
        self._connection.send("\r\n".join([*fixed, *lines, "", ""]).encode("latin-1"))


Handler = Callable[[Request, Exchange], Awaitable[None]]


class Connection(asyncio.Protocol):
    """One client's connection: reads requests, runs the handler on each in turn, knows when the client has left."""

    def __init__(self, handler: Handler, connections: set[Connection]) -> None:
        self._handler = handler
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._task: asyncio.Task[None] | None = None
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES)
        self._transport = transport
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._connections.discard(self)
        self.writable.set()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._task is None:
            self._next()
        elif len(self._received) > MAX_HEAD_BYTES + MAX_BODY_BYTES and self._transport is not None:
            self._transport.pause_reading()

    def send(self, data: bytes) -> None:
        """Write, or do nothing where the client has left."""
        if self._transport is not None:
            self._transport.write(data)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def close_if_idle(self) -> None:
        """Close between two requests; a running one goes on."""
        if self._task is None and self._transport is not None:
            self._transport.close()

    def _next(self) -> None:
        """Start on the next request if all of it has arrived."""
        try:
            request = self._parse()
        except Refused as refused:
            body = json.dumps({"detail": str(refused)}).encode()
            Exchange(self, keep_alive=False, head_only=False).respond(refused.status, body)
            if self._transport is not None:
                self._transport.close()
            return
        if request is not None:
            self._task = asyncio.get_running_loop().create_task(self._serve(request))

    async def _serve(self, request: Request) -> None:
        keep_alive = request.headers.get("connection", "").lower() != "close"
        exchange = Exchange(self, keep_alive, head_only=request.method == "HEAD")
        try:
            await self._handler(request, exchange)
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            if exchange.started:
                self.abort()
            else:
                exchange.respond(500, b'{"detail":"Internal Server Error"}')
        finally:
            self._task = None
        if self._transport is None:
            return
        if not keep_alive:
            self._transport.close()
            return
        self._transport.resume_reading()
        self._next()

    def _parse(self) -> Request | None:
        """The first request in what was received, taken out of it; None where part of it is missing."""
        head_end = self._received.find(b"\r\n\r\n")
        if head_end > MAX_HEAD_BYTES or (head_end < 0 and len(self._received) > MAX_HEAD_BYTES):
            raise Refused(431, f"the request's head is longer than {MAX_HEAD_BYTES} bytes")
        if head_end < 0:
            return None
        first, *lines = self._received[:head_end].decode("latin-1").split("\r\n")
        words = first.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            raise Refused(400, "Invalid HTTP request received.")
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                raise Refused(400, "Invalid HTTP request received.")
            headers[name.lower()] = value.strip()
        body_start = head_end + 4
        if headers.get("expect", "").lower() == "100-continue" and len(self._received) == body_start:
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "transfer-encoding" in headers:
            found = self._chunked_body(body_start, headers["transfer-encoding"])
        else:
            found = self._sized_body(body_start, headers.get("content-length", "0"))
        if found is None:
            return None
        body, end = found
        del self._received[:end]
        return Request(words[0], words[1].partition("?")[0], headers, body)

    def _sized_body(self, start: int, length: str) -> tuple[bytes, int] | None:
        if not length.isascii() or not length.isdigit():
            raise Refused(400, "Content-Length is not a number")
        end = start + int(length)
        if int(length) > MAX_BODY_BYTES:
            raise Refused(413, f"the body is longer than {MAX_BODY_BYTES} bytes")
        return (bytes(self._received[start:end]), end) if len(self._received) >= end else None

    def _chunked_body(self, start: int, coding: str) -> tuple[bytes, int] | None:
        if coding.lower() != "chunked":
            raise Refused(501, f"Transfer-Encoding {coding} is not known")
        pieces: list[bytes] = []
        size = 0
        while (line_end := self._received.find(b"\r\n", start)) >= 0:
            try:
                length = int(self._received[start:line_end].partition(b";")[0], 16)
            except ValueError:
                raise Refused(400, "a chunk's size is not a number") from None
            size += length
            if length < 0 or size > MAX_BODY_BYTES:
                raise Refused(413, f"the body is longer than {MAX_BODY_BYTES} bytes")
            start = line_end + 2
            if len(self._received) < start + length + 2:
                return None
            if length == 0:
                if self._received[start : start + 2] != b"\r\n":
                    raise Refused(400, "trailers after a chunked body are not read")
                return b"".join(pieces), start + 2
            pieces.append(bytes(self._received[start : start + length]))
            start += length + 2
        return None
