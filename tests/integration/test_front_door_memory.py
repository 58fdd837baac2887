"""What Envoy holds of bodies that come slowly or late, of many clients together: it is bounded, and streams go on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace

import psutil
import pytest
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, RstStreamFrame, SettingsFrame, WindowUpdateFrame

from penstock.gateway.settings import MIB
from tests.fuzz.frames import INFERENCE, grpc_headers, opening, request_frames
from tests.integration.front_door_kit import House, endpoint, route, texts, until

HEAP = 256 * MIB
CLIENTS = 60
BODY = 15 * MIB
MOST = 512 * MIB
"""Of memory: the bound, Envoy's own program, and what came between two looks at it. All bodies together are 900 MiB."""
CHUNK = 16384
STAYS_S = 50.0
"""Longer than a busy machine takes to send them all, and less than request_timeout_s, which ends one that stalls."""

Upload = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.mark.parametrize("protocol", ["HTTP/1.1", "HTTP/2"])
async def test_bodies_that_never_end_are_bounded_together_and_cut_no_stream(protocol: str) -> None:
    upload = {"HTTP/1.1": _rest, "HTTP/2": _grpc}[protocol]
    async with House(max_heap_bytes=HEAP) as house, contextlib.AsyncExitStack() as stack:
        _, port, engine_port = await house.rest_process("a")
        await house.serve(replace(route("m"), endpoints=(endpoint(port, engine_port=engine_port),)))
        envoy, peak = psutil.Process(house.envoy.pid), 0
        call = house.stream("m", 100_000, 0.01)
        asked = {"model": "m", "prompt": "100000:0.01", "stream": True}
        rest = await stack.enter_async_context(house.rest.stream("POST", "/v1/completions", json=asked))
        tokens, events = aiter(call), rest.aiter_lines()
        assert (texts([await anext(tokens)]), await anext(events)) == (["0"], "data: 0")
        clients = [asyncio.create_task(_client(house.settings.listen, upload)) for _ in range(CLIENTS)]

        def most_are_refused() -> bool:
            nonlocal peak
            peak = max(peak, envoy.memory_info().rss)
            return sum(client.done() and client.result() for client in clients) > CLIENTS / 2

        await until(most_are_refused, STAYS_S, "most are refused")
        assert peak < MOST, f"{peak / MIB:.0f} MiB"
        # Streams that ran before go on, each token of them.
        for number in range(1, 100):
            assert texts([await anext(tokens)]) == [str(number)]
            assert [await anext(events), await anext(events)] == ["", f"data: {number}"]
        call.cancel()
        for client in clients:
            client.cancel()
        await asyncio.wait(clients)

        async def answered() -> bool:
            return bool((await house.answered_by("m")) == "a")

        await until(answered, what="what was taken is given back")


async def _client(address: str, upload: Upload) -> bool:
    """Sends a body but for its end, and stays. Whether it was turned away."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(STAYS_S):
            await upload(reader, writer)
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
    return True


async def _rest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Returns once there is an answer, or the connection is closed."""
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n" % (BODY + 1)
    )
    for _ in range(BODY // CHUNK):
        writer.write(b"x" * CHUNK)
        await writer.drain()
    await reader.read(1)


async def _grpc(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The same, keeping to the windows that Envoy opens."""
    prefix = b"\0" + BODY.to_bytes(4, "big")
    writer.write(opening() + request_frames(grpc_headers(INFERENCE + "Generate"), prefix, end=False))
    ear = _Windows(65535 - len(prefix), writer)
    hearing = asyncio.create_task(ear.hear(reader))
    left = BODY - len(prefix)
    try:
        while not ear.over:
            if not (size := min(CHUNK, left, *ear.windows.values())) > 0:
                ear.moved.clear()
                await ear.moved.wait()
                continue
            writer.write(DataFrame(1, b"x" * size).serialize())
            left -= size
            ear.windows = {stream: window - size for stream, window in ear.windows.items()}
            await writer.drain()
    finally:
        hearing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await hearing


class _Windows:
    """How much may be sent on the connection (0) and on stream 1, and whether anything more may."""

    def __init__(self, size: int, writer: asyncio.StreamWriter) -> None:
        self.windows = {0: size, 1: size}
        self._writer = writer
        self.over = False
        self.moved = asyncio.Event()

    async def hear(self, reader: asyncio.StreamReader) -> None:
        waiting = b""
        while data := await reader.read(1 << 16):
            waiting += data
            while len(waiting) >= 9:
                frame, length = Frame.parse_frame_header(memoryview(waiting[:9]))
                if len(waiting) < 9 + length:
                    break
                frame.parse_body(memoryview(waiting[9 : 9 + length]))
                waiting = waiting[9 + length :]
                self._take(frame)
        self.over = True
        self.moved.set()

    def _take(self, frame: Frame) -> None:
        if isinstance(frame, WindowUpdateFrame):
            self.windows[frame.stream_id] += frame.window_increment
        elif isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
            self._writer.write(SettingsFrame(0, flags=["ACK"]).serialize())
            self.windows[1] += frame.settings.get(SettingsFrame.INITIAL_WINDOW_SIZE, 65535) - 65535
        elif isinstance(frame, RstStreamFrame | GoAwayFrame) or "END_STREAM" in frame.flags:
            self.over = True
        self.moved.set()
