"""One case, sent on a connection of its own, and all that came back for it, judged."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

from hpack import Decoder, HPACKError
from hyperframe.exceptions import HyperframeError
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, GoAwayFrame, HeadersFrame, RstStreamFrame

from tests.fuzz.frames import PREFACE, Case
from tests.fuzz.rest_hooks import TRACES

ENDS_WITHIN_S = 30.0
LEFT_AFTER_S = 0.15
"""How long the client stays that leaves in the middle."""
READ_BYTES = 1 << 16

# Envoy's and Penstock's own, and those of gRPC over HTTP. Never 500: that is nobody's promise.
STATUSES = frozenset({100, 200, 400, 403, 404, 405, 408, 411, 413, 414, 415, 426, 429, 431, 501, 503, 504})
GRPC_STATUSES = frozenset({0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16})
"""All but UNKNOWN, INTERNAL and DATA_LOSS."""
FRAMING = frozenset(
    {"truncated message", "wrong length", "bad compression flag", "many messages", "gRPC-Web"}
)
"""Where gRPC's own specification says INTERNAL: a message whose frame, or whose compression, cannot be."""
METADATA = "Error parsing '"
"""How gRPC itself begins to say, with INTERNAL, that a header is not base64 where it must be."""
INTERNAL = 13


@dataclass
class Answer:
    """What came on one stream."""

    headers: list[tuple[str, str]] = field(default_factory=list)
    data: bytes = b""
    over: bool = False

    def get(self, name: str) -> str:
        """The last of this name; empty: none."""
        return next((value for key, value in reversed(self.headers) if key == name), "")


class Ear:
    """Reads what a server sends, as far as it can be read."""

    def __init__(self, *, is_http2: bool) -> None:
        self.raw = b""
        self._is_http2 = is_http2
        self.answers: dict[int, Answer] = {}
        self._waiting = b""
        self._decoder = Decoder()
        self._block = b""

    def hear(self, data: bytes) -> None:
        """More bytes of an HTTP/2 connection. Raises HyperframeError, HPACKError for what no client could read."""
        self.raw += data[: 1 << 20]
        # What is sent before the preface could be read is answered in HTTP/1.1.
        if not self._is_http2 or self.raw.startswith(b"HTTP/1.1 "):
            return
        self._waiting += data
        while len(self._waiting) >= 9:
            frame, length = Frame.parse_frame_header(memoryview(self._waiting[:9]))
            if len(self._waiting) < 9 + length:
                return
            frame.parse_body(memoryview(self._waiting[9 : 9 + length]))
            self._waiting = self._waiting[9 + length :]
            self._take(frame)

    def _take(self, frame: Frame) -> None:
        answer = self.answers.setdefault(frame.stream_id, Answer())
        if isinstance(frame, HeadersFrame | ContinuationFrame):
            self._block += frame.data
            if "END_HEADERS" in frame.flags:
                answer.headers += [
                    (str(name), str(value)) for name, value in self._decoder.decode(self._block)
                ]
                self._block = b""
        elif isinstance(frame, DataFrame):
            answer.data += frame.data
        if "END_STREAM" in frame.flags or isinstance(frame, RstStreamFrame | GoAwayFrame):
            answer.over = True

    def is_over(self, stream: int) -> bool:
        """The request on this stream has had its answer, or the connection is done for."""
        return any(self.answers[each].over for each in (0, stream) if each in self.answers)


class NoEnd(Exception):
    """A request that should have come to an end has none."""


async def play(address: str, case: Case) -> str:
    """Sends it and listens. What is wrong with the answers, in a sentence; empty: nothing."""
    try:
        ear = await exchange(address, case)
    except NoEnd as error:
        return str(error)
    except (HyperframeError, HPACKError) as error:
        return f"an answer that cannot be read: {error!r}"
    return fault(case, ear)


async def exchange(address: str, case: Case, within_s: float = ENDS_WITHIN_S) -> Ear:
    """Sends it on a connection of its own, and hears what comes. Raises NoEnd, HyperframeError, HPACKError."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    ear = Ear(is_http2=case.grpc)
    sending = asyncio.create_task(_send(writer, case.sent))
    try:
        async with asyncio.timeout(within_s if case.ends else LEFT_AFTER_S):
            while not (case.ends and ear.is_over(case.last)) and (data := await reader.read(READ_BYTES)):
                ear.hear(data)
    except TimeoutError:
        if case.ends:
            raise NoEnd(f"no end within {within_s:g} s") from None
    except ConnectionError:
        # Closed in the middle, as it may be.
        pass
    finally:
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sending
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return ear


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        writer.write(data)
        await writer.drain()


def fault(case: Case, ear: Ear) -> str:
    """What no answer may be."""
    text = ear.raw.decode(errors="replace")
    for trace in TRACES:
        if trace in text or any(
            trace in answer.data.decode(errors="replace") for answer in ear.answers.values()
        ):
            return f"a stack trace: {text[:2000]}"
    if not case.grpc or not case.sent.startswith(PREFACE):
        first = text.split("\r\n", 1)[0].split(" ")
        if first[0].startswith("HTTP/1") and int(first[1]) not in STATUSES:
            return f"HTTP/1.1 status {first[1]}: {text[:1000]}"
        return ""
    for stream, answer in ear.answers.items():
        status, grpc_status = answer.get(":status"), answer.get("grpc-status")
        said = f"on stream {stream}: {answer.headers} {answer.data[:500]!r}"
        if status and int(status) not in STATUSES:
            return f"status {status} {said}"
        if grpc_status and int(grpc_status) not in GRPC_STATUSES:
            promised = case.kind in FRAMING or answer.get("grpc-message").startswith(METADATA)
            if int(grpc_status) != INTERNAL or not promised:
                return f"grpc-status {grpc_status} {said}"
    return ""
