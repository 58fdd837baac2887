"""engine_http.py: answers in whatever pieces they come, and those that are none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from penstock_runtime.engine_http import PAUSE_BYTES, Address, EngineError, EngineHttp
from tests.stalls import Stalls

Play = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Serve = Callable[[Play], Awaitable[EngineHttp]]

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest_asyncio.fixture
async def serve() -> AsyncIterator[Serve]:
    """A server that reads each request and then does what it is told to."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(play: Play) -> EngineHttp:
            async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                with contextlib.suppress(ConnectionError):
                    head = await reader.readuntil(b"\r\n\r\n")
                    size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                    await reader.readexactly(size)
                    await play(reader, writer)
                writer.close()

            server = await stack.enter_async_context(await asyncio.start_server(answer, "127.0.0.1", 0))
            return EngineHttp(Address("127.0.0.1", server.sockets[0].getsockname()[1]))

        yield start


def say(*pieces: bytes) -> Play:
    """Send these, each by itself, and close."""

    async def play(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)

    return play


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


STREAM = HEAD + chunk(event({"n": 0}) + event({"n": 1})) + chunk(b": a comment\n\ndata: {")
STREAM += chunk(b'"n": 2}\n\n') + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


async def read(http: EngineHttp) -> list[Any]:
    return [each async for each in http.stream("/", {})]


async def test_a_stream_in_one_piece(serve: Serve) -> None:
    assert await read(await serve(say(STREAM))) == [{"n": 0}, {"n": 1}, {"n": 2}]


async def test_a_stream_byte_by_byte(serve: Serve) -> None:
    http = await serve(say(*(STREAM[i : i + 1] for i in range(len(STREAM)))))
    assert await read(http) == [{"n": 0}, {"n": 1}, {"n": 2}]


@pytest.mark.parametrize("size", [2, 3, 5, 7, 11, 13, 17])
async def test_a_stream_cut_anywhere(serve: Serve, size: int) -> None:
    http = await serve(say(*(STREAM[i : i + size] for i in range(0, len(STREAM), size))))
    assert await read(http) == [{"n": 0}, {"n": 1}, {"n": 2}]


@pytest.mark.parametrize("end", [len(HEAD), len(HEAD) + 10, STREAM.index(b"data: [DONE]"), len(STREAM) - 26])
async def test_a_stream_that_breaks_off_is_an_error(serve: Serve, end: int) -> None:
    with pytest.raises(EngineError, match="in the middle of its answer") as caught:
        await read(await serve(say(STREAM[:end])))
    assert caught.value.status == 0


async def test_a_stream_that_ends_without_done_is_an_error(serve: Serve) -> None:
    events = (await serve(say(HEAD + chunk(event({"n": 0})) + b"0\r\n\r\n"))).stream("/", {})
    assert await anext(events) == {"n": 0}
    with pytest.raises(EngineError, match="before it was over"):
        await anext(events)


@pytest.mark.parametrize(
    ("answer", "status", "says", "type_"),
    [
        (
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 22\r\n\r\n" + b'{"detail":"Not Found"}',
            404,
            "Not Found",
            "",
        ),
        (
            b"HTTP/1.1 400 Bad Request\r\nContent-Length: 39\r\n\r\n"
            + b'{"error":{"message":"no","type":"Bad"}}',
            400,
            "^no$",
            "Bad",
        ),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\noops", 502, "answered 502 with b'oops'", ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\noops", 0, "not JSON", ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", 0, "not a JSON object", ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}", 0, "in the middle", ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n{}", 0, "not HTTP", ""),
        (b"hello\r\n\r\n", 0, "not HTTP", ""),
        (HEAD + b"zz\r\n", 0, "not HTTP", ""),
        (b"", 0, "in the middle", ""),
        (b"HTTP/1.1 200 OK\r\n" + b"x" * 70_000, 0, "not HTTP", ""),
    ],
)
async def test_answers_that_are_errors(
    serve: Serve, answer: bytes, status: int, says: str, type_: str
) -> None:
    http = await serve(say(answer))
    with pytest.raises(EngineError, match=says) as caught:
        await http.post("/", {})
    assert (caught.value.status, caught.value.type) == (status, type_)


@pytest.mark.parametrize(
    "answer",
    [
        b'HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n{"a":1}',
        b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\n{"a\r\n4\r\n":1}\r\n0\r\n\r\n',
        b'HTTP/1.1 200 OK\r\n\r\n{"a":1}',
    ],
)
async def test_whole_answers(serve: Serve, answer: bytes) -> None:
    http = await serve(say(*(answer[i : i + 1] for i in range(len(answer)))))
    assert await http.post("/", {}) == {"a": 1}


async def test_an_empty_answer_has_a_status(serve: Serve) -> None:
    http = await serve(say(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"))
    assert await http.get("/health", 5) == (503, b"")


async def test_an_answer_that_does_not_come_in_time(serve: Serve) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    http = await serve(silent)
    with pytest.raises(EngineError, match=r"did not answer /health within 0\.1 s"):
        await http.get("/health", 0.1)


async def test_leaving_closes_the_connection_at_once(serve: Serve) -> None:
    left = asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(event({"n": 0})))
        assert await reader.read() == b""
        left.set()

    http = await serve(endless)
    async with contextlib.aclosing(http.stream("/", {})) as events:
        assert await anext(events) == {"n": 0}
    with Stalls() as stalls:
        began = time.monotonic()
        async with asyncio.timeout(60):
            await left.wait()
        assert time.monotonic() - began < 2 + stalls.total_s


async def test_what_nobody_reads_stays_with_the_engine(serve: Serve) -> None:
    sent = 0
    full = asyncio.Event()

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(HEAD)
        writer.transport.set_write_buffer_limits(high=0)
        for n in range(2000):
            writer.write(chunk(event({"n": n, "filler": "x" * 4000})))
            try:
                async with asyncio.timeout(0.5 if not full.is_set() else None):
                    await writer.drain()
            except TimeoutError:
                full.set()
                await writer.drain()
            sent = n + 1
        writer.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    http = await serve(flood)
    events = http.stream("/", {})
    first = await anext(events)
    async with asyncio.timeout(20):
        await full.wait()
    assert sent * 4000 < PAUSE_BYTES + 4 * 1024 * 1024
    assert [first["n"], *[each["n"] async for each in events]] == list(range(2000))
