"""An HTTP/1.1 client for one engine on this machine: whole answers, and streams of events.

One connection per request: to leave a request is to close its connection, which is how the engine learns of it. The
answers are read by hand because the agent shares one event loop with the gRPC server that carries every token
(docs/decisions/0005-engine-http-client.md has the measurements). It knows HTTP and JSON, not vLLM.

The rules guarded here: an answer that breaks off is an error, never a shorter answer; and what a slow reader has not
taken stays with the engine, above a bound.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

MAX_HEAD_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 256 * 1024 * 1024
"""Of a whole answer: some ten thousand embeddings of 4096 numbers as JSON."""
PAUSE_BYTES = 256 * 1024
"""A stream whose reader is this far behind is read no further; the kernel's buffer and the engine's then fill up."""
RECEIVE_BYTES = 64 * 1024
"""Read at once from a connection."""
CONNECT_TIMEOUT_S = 5.0
"""For a socket on the same machine; the engine's event loop may be busy for seconds, its kernel's queue is not."""


class EngineError(Exception):
    """The engine refused, failed, or did not answer.

    `status` is its HTTP status, or 0 where there is none: it could not be reached, or it left in the middle. `type` is
    OpenAI's error type where the engine gave one ("BadRequestError", "NotFoundError", "InternalServerError", …), and
    `parameter` the request's field that it complains of.
    """

    def __init__(self, status: int, message: str, type: str = "", parameter: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.parameter = parameter


@dataclass(frozen=True, slots=True)
class Address:
    """Where an engine listens, and what every request to it carries."""

    host: str
    port: int
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class EngineHttp:
    """The engine at `address`. Holds no connection and needs no closing."""

    def __init__(self, address: Address) -> None:
        self._address = address

    async def get(self, path: str, timeout_s: float) -> tuple[int, bytes]:
        """Status and body, whatever the status. Raises EngineError (status 0) where there is no answer in time."""
        try:
            async with asyncio.timeout(timeout_s):
                async with self._ask("GET", path, None, "") as answer:
                    return answer.status, await answer.whole()
        except TimeoutError as error:
            raise EngineError(0, f"the engine did not answer {path} within {timeout_s:g} s") from error

    async def post(self, path: str, body: Json, request_id: str = "") -> Json:
        """The JSON of a 200 answer; raises EngineError for any other and for none."""
        async with self._ask("POST", path, body, request_id) as answer:
            content = await answer.whole()
            if answer.status != 200:
                raise _refusal(answer.status, content)
            return _object(content)

    async def order(self, path: str, body: Json, timeout_s: float) -> None:
        """Have something done whose 200 answer says no more; raises EngineError for any other and for none."""
        try:
            async with asyncio.timeout(timeout_s):
                async with self._ask("POST", path, body, "") as answer:
                    content = await answer.whole()
        except TimeoutError as error:
            raise EngineError(0, f"the engine did not answer {path} within {timeout_s:g} s") from error
        if answer.status != 200:
            raise _refusal(answer.status, content)

    async def stream(self, path: str, body: Json, request_id: str = "") -> AsyncGenerator[Json, None]:
        """The events of a stream up to its [DONE], each as JSON; an error that the engine sends as one is one of them.

        Raises EngineError where the engine refuses, and where the stream breaks off before [DONE]. Close it
        (contextlib.aclosing) to leave early: the connection is closed at once.
        """
        async with self._ask("POST", path, body, request_id) as answer:
            if answer.status != 200:
                raise _refusal(answer.status, await answer.whole())
            rest = b""
            while data := await answer.some():
                *events, rest = (rest + data).split(b"\n\n")
                for event in events:
                    if not event.startswith(b"data: "):
                        continue  # a comment, which keeps a connection awake
                    content = event[6:]
                    if content == b"[DONE]":
                        return
                    yield _object(content)
                if len(rest) > MAX_ANSWER_BYTES:
                    raise EngineError(0, f"the engine sent an event of more than {MAX_ANSWER_BYTES} bytes")
            raise EngineError(0, "the engine ended the stream before it was over")

    def _ask(self, method: str, path: str, body: Json | None, request_id: str) -> _Request:
        content = b"" if body is None else json.dumps(body).encode()
        head = [
            f"{method} {path} HTTP/1.1",
            "Host: engine",
            "Connection: close",
            f"Content-Length: {len(content)}",
            *(f"{name}: {value}" for name, value in self._address.headers.items()),
        ]
        if body is not None:
            head.append("Content-Type: application/json")
        if request_id:
            head.append(f"X-Request-Id: {request_id}")
        return _Request(self._address, "\r\n".join([*head, "", ""]).encode("latin-1") + content)


class _Request:
    """One request: entering sends it and waits for the head of its answer, leaving closes the connection.

    Not a generator, so that a stream which nobody closed can still be closed when the event loop ends.
    """

    def __init__(self, address: Address, content: bytes) -> None:
        self._address = address
        self._content = content
        self._transport: asyncio.Transport | None = None

    async def __aenter__(self) -> _Answer:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                host, port = self._address.host, self._address.port
                self._transport, answer = await loop.create_connection(_Answer, host, port)
                # Otherwise the kernel takes up to 6 MB of a stream that nobody reads.
                connection = self._transport.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PAUSE_BYTES)
        except (OSError, TimeoutError) as error:
            raise EngineError(0, f"the engine cannot be reached: {error!r}") from error
        try:
            self._transport.write(self._content)
            await answer.begun()
        except BaseException:
            self._transport.abort()
            raise
        return answer

    async def __aexit__(self, *_: object) -> None:
        if self._transport is not None:
            self._transport.abort()


class _Answer(asyncio.BufferedProtocol):
    """One answer as it arrives. One reader waits on it at a time."""

    # Received into, and taken out of before anyone else runs, so one serves all. Without it asyncio allocates 256 KiB
    # for every read, which costs more than all the rest of the work on a token.
    _buffer = memoryview(bytearray(RECEIVE_BYTES))

    def __init__(self) -> None:
        self.status = 0
        self._raw = bytearray()
        self._body = bytearray()
        # Of the body: bytes left of the current chunk or of the whole; None until a chunk's size has been read.
        self._left: int | None = None
        self._chunked = False
        self._until_close = False
        self._ended = False
        self._problem: EngineError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._raw += self._buffer[:nbytes]
        try:
            if self.status or self._head():
                self._decode()
        except ValueError:
            self._problem = EngineError(0, "the engine's answer is not HTTP")
        if len(self._body) > PAUSE_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self.status and self._until_close and exc is None:
            self._ended = True
        if not self._ended and self._problem is None:
            self._problem = EngineError(0, "the engine closed the connection in the middle of its answer")
        self._wake()

    async def begun(self) -> None:
        """Wait for the head."""
        while not self.status:
            await self._more()

    async def some(self) -> bytes:
        """What has arrived of the body, at least one byte; b"" at its end."""
        while not self._body:
            if self._ended:
                return b""
            await self._more()
        data = bytes(self._body)
        self._body.clear()
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    async def whole(self) -> bytes:
        """The body."""
        parts: list[bytes] = []
        size = 0
        while data := await self.some():
            parts.append(data)
            size += len(data)
            if size > MAX_ANSWER_BYTES:
                raise EngineError(0, f"the engine's answer is longer than {MAX_ANSWER_BYTES} bytes")
        return b"".join(parts)

    async def _more(self) -> None:
        if self._problem is not None:
            raise self._problem
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _head(self) -> bool:
        """Read the head if all of it is there; raises ValueError where it is none."""
        end = self._raw.find(b"\r\n\r\n")
        if end < 0:
            if len(self._raw) > MAX_HEAD_BYTES:
                raise ValueError("head too long")
            return False
        first, *lines = self._raw[:end].decode("latin-1").split("\r\n")
        del self._raw[: end + 4]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1."):
            raise ValueError("not an answer of HTTP/1")
        status = int(rest.partition(" ")[0])
        if headers.get("transfer-encoding", "").lower() == "chunked":
            self._chunked = True
        elif "content-length" in headers:
            self._left = int(headers["content-length"])
        else:
            self._until_close = True
        self.status = status
        return True

    def _decode(self) -> None:
        """Move what is there of the body from the connection's bytes to the body's; raises ValueError."""
        if self._until_close:
            self._body += self._raw
            self._raw.clear()
        elif not self._chunked:
            self._ended = self._take() == 0
        else:
            self._decode_chunks()

    def _decode_chunks(self) -> None:
        raw = self._raw
        at = 0
        while not self._ended:
            if self._left is None:
                end = raw.find(b"\r\n", at)
                if end < 0:
                    break
                self._left = int(raw[at:end].partition(b";")[0], 16) + 2  # and the line end after the chunk
                at = end + 2
                if self._left == 2:
                    self._ended = True
                    break
            size = min(self._left, len(raw) - at)
            if size == 0:
                break
            text = max(0, min(size, self._left - 2))
            self._body += raw[at : at + text]
            self._left = self._left - size or None
            at += size
        del raw[:at]

    def _take(self) -> int:
        """Of a body whose length is known: take what is there; how much is left."""
        left = (self._left or 0) - len(self._raw)
        self._body += self._raw
        self._raw.clear()
        self._left = max(0, left)
        return self._left


def _refusal(status: int, content: bytes) -> EngineError:
    """An answer that is not 200, in OpenAI's shape or in FastAPI's."""
    try:
        body = _object(content)
    except EngineError:
        return EngineError(status, f"the engine answered {status} with {content[:200]!r}")
    error = body.get("error")
    if isinstance(error, dict):
        return EngineError(
            status, str(error.get("message")), str(error.get("type") or ""), str(error.get("param") or "")
        )
    return EngineError(status, str(body.get("detail", body)))


def _object(content: bytes) -> Json:
    try:
        value = json.loads(content.decode())
    except ValueError as error:
        raise EngineError(0, f"the engine's answer is not JSON: {content[:200]!r}") from error
    if not isinstance(value, dict):
        raise EngineError(0, f"the engine's answer is not a JSON object: {content[:200]!r}")
    return value
