"""Cases for the gRPC port, below gRPC: bytes that a broken or hostile client could send. Pure: a seed and a number in,
bytes out.

Each kind is a function of a random generator. A case says whether its one request must come to an end by itself: in an
answer, a reset, or a connection that is closed. The others are left by the client in the middle of what they send.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from penstock.v1 import deployment_pb2, inference_pb2, replica_pb2, runtime_pb2

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_BYTES = 16384
"""The largest frame that a peer must take."""
MIB = 1024 * 1024

Headers = Sequence[tuple[str, str | bytes]]

INFERENCE = "/penstock.v1.InferenceService/"
TARGETS = (
    INFERENCE + "Generate",
    INFERENCE + "StreamGenerate",
    INFERENCE + "Chat",
    INFERENCE + "StreamChat",
    INFERENCE + "Embed",
    INFERENCE + "Tokenize",
    INFERENCE + "ListModels",
    INFERENCE + "Nothing",
    "/penstock.v1.DeploymentService/GetDeployment",
    "/penstock.v1.DeploymentService/ListDeployments",
    "/penstock.v1.DeploymentService/WatchDeployments",
    "/penstock.v1.DeploymentService/PlanDeployment",
    "/penstock.v1.ReplicaService/ListReplicas",
    "/penstock.v1.ReplicaService/StreamReplicaLogs",
    "/penstock.v1.DecisionService/ListDecisions",
    "/penstock.v1.DecisionService/WatchDecisions",
    "/penstock.v1.ClusterService/GetSystem",
    "/penstock.v1.RuntimeService/Register",
    "/penstock.v1.RuntimeService/Report",
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/some.Other/Method",
)
ENDLESS = ("Watch", "ServerReflectionInfo")
"""Methods whose answers end when the client leaves."""


@dataclass(frozen=True)
class Case:
    """What a client sends on one connection."""

    kind: str
    sent: bytes
    ends: bool
    """The request on stream `last` comes to an end without the client's doing anything more."""
    grpc: bool = True
    """It is HTTP/2 that a gRPC server can be expected to read; so are its answers."""
    last: int = 1
    """The stream whose end is waited for."""


def case(seed: int, number: int) -> Case:
    """The case of this number; the same for the same seed."""
    # A string, so that neighbouring seeds have nothing in common.
    rng = random.Random(f"{seed}:{number}")
    names = list(_KINDS)
    [name] = rng.choices(names, [_KINDS[each][1] for each in names])
    return _KINDS[name][0](name, rng)


def stalling(seed: int, number: int) -> Case:
    """A request that stops in the middle."""
    return _stalls("stalls", random.Random(f"{seed}:stalling:{number}"))


# Messages ----------------------------------------------------------------------------------------------------


def _message(rng: random.Random, path: str) -> bytes:
    """A good one for the method; for those that have none here, of another type."""
    name = path.rpartition("/")[2]
    if name in ("Generate", "StreamGenerate"):
        request = inference_pb2.GenerateRequest(model=_model(rng), prompt="one two three")
        request.sampling.max_tokens = rng.choice((1, 4, 16))
        return request.SerializeToString()
    if name in ("Chat", "StreamChat"):
        chat = inference_pb2.ChatRequest(model=_model(rng))
        chat.messages.add(role=inference_pb2.ROLE_USER).content.add(text="one two three")
        chat.sampling.max_tokens = 4
        return chat.SerializeToString()
    if name == "Tokenize":
        return inference_pb2.TokenizeRequest(model=_model(rng), text="one two").SerializeToString()
    if name == "Embed":
        return inference_pb2.EmbedRequest(model="pool", inputs=["one"]).SerializeToString()
    if name == "GetDeployment":
        return deployment_pb2.GetDeploymentRequest(name="target").SerializeToString()
    if name == "PlanDeployment":
        plan = deployment_pb2.PlanDeploymentRequest()
        plan.deployment.metadata.name = "planned"
        plan.deployment.spec.model.path = "/m"
        return plan.SerializeToString()
    if name == "StreamReplicaLogs":
        return replica_pb2.StreamReplicaLogsRequest(name="target-1").SerializeToString()
    if name in ("Register", "Report"):
        return runtime_pb2.RegisterRequest().SerializeToString()
    return b""


def _model(rng: random.Random) -> str:
    return rng.choice(("target", "target", "target", "pool", "nobody", ""))


def framed(message: bytes, flag: int = 0, length: int | None = None) -> bytes:
    """A gRPC message with its prefix, which may lie."""
    said = len(message) if length is None else length
    return bytes([flag]) + (said & 0xFFFFFFFF).to_bytes(4, "big") + message


def _mangled(rng: random.Random, data: bytes) -> bytes:
    """With a few bytes changed, taken out, put in, or said twice."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(found) + 1)
        match rng.randrange(4):
            case 0 if at < len(found):
                found[at] = rng.randrange(256)
            case 1:
                del found[at : at + rng.randint(1, 9)]
            case 2:
                found[at:at] = rng.randbytes(rng.randint(1, 9))
            case _:
                found[at:at] = found[at : at + rng.randint(1, 64)]
    return bytes(found)


# HTTP/2 ------------------------------------------------------------------------------------------------------


def opening(**settings: int) -> bytes:
    """The preface and the client's SETTINGS, each as `_ID=value`."""
    return PREFACE + SettingsFrame(0, settings={int(k[1:]): v for k, v in settings.items()}).serialize()


def grpc_headers(
    path: str, *more: tuple[str, str], content_type: str = "application/grpc"
) -> list[tuple[str, str]]:
    """Those of a gRPC call, and then `more`."""
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "penstock"),
        ("content-type", content_type),
        ("te", "trailers"),
        *more,
    ]


def request_frames(
    headers: Headers, body: bytes, *, stream: int = 1, end: bool = True, encoder: Encoder | None = None
) -> bytes:
    """Its HEADERS, CONTINUATION and DATA frames."""
    block = (encoder or Encoder()).encode(headers, huffman=False)
    blocks = [block[at : at + FRAME_BYTES] for at in range(0, len(block), FRAME_BYTES)] or [b""]
    frames: list[Frame] = [HeadersFrame(stream, blocks[0])]
    frames += [ContinuationFrame(stream, part) for part in blocks[1:]]
    frames[-1].flags.add("END_HEADERS")
    if not body and end:
        frames[0].flags.add("END_STREAM")
    for at in range(0, len(body), FRAME_BYTES):
        frames.append(DataFrame(stream, body[at : at + FRAME_BYTES]))
    if body and end:
        frames[-1].flags.add("END_STREAM")
    return b"".join(frame.serialize() for frame in frames)


def _asked(kind: str, path: str, body: bytes, *more: tuple[str, str]) -> Case:
    """One whole request."""
    return Case(kind, opening() + request_frames(grpc_headers(path, *more), body), _ends(path))


def _ends(path: str) -> bool:
    return not any(word in path for word in ENDLESS)


# Kinds -------------------------------------------------------------------------------------------------------


def _good(kind: str, rng: random.Random) -> Case:
    path = rng.choice(TARGETS)
    return _asked(kind, path, framed(_message(rng, path)))


def _truncated(kind: str, rng: random.Random) -> Case:
    path = rng.choice(TARGETS)
    whole = framed(_message(rng, path) or b"\x0a\x01x")
    return _asked(kind, path, whole[: rng.randrange(1, len(whole))])


def _wrong_length(kind: str, rng: random.Random) -> Case:
    path = rng.choice(TARGETS)
    message = _message(rng, path)
    said = rng.choice((0, len(message) // 2, len(message) + 1, 2 * len(message) + 7, 2**24, 2**31, 2**32 - 1))
    return _asked(kind, path, framed(message, length=said))


def _bad_flag(kind: str, rng: random.Random) -> Case:
    path = rng.choice(TARGETS)
    more = rng.choice(((), (("grpc-encoding", rng.choice(("gzip", "identity", "nothing", ""))),)))
    return _asked(kind, path, framed(_message(rng, path), flag=rng.choice((1, 2, 127, 255))), *more)


def _invalid_utf8(kind: str, rng: random.Random) -> Case:
    """In `model`, in `prompt`, or in a string of another method's request."""
    path = rng.choice(TARGETS)
    bad = rng.choice((b"\xff", b"\xc3(", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"a\x80"))
    field = rng.choice((1, 2))
    model = b"\x0a\x06target" if field == 2 else b""
    return _asked(kind, path, framed(model + bytes([field << 3 | 2, len(bad)]) + bad))


def _mangled_message(kind: str, rng: random.Random) -> Case:
    path = rng.choice(TARGETS)
    return _asked(kind, path, framed(_mangled(rng, _message(rng, path))))


def _random_message(kind: str, rng: random.Random) -> Case:
    return _asked(kind, rng.choice(TARGETS), framed(rng.randbytes(rng.randint(0, 300))))


def _deep_message(kind: str, rng: random.Random) -> Case:
    """Nested beyond what protobuf reads: a Struct in a Struct in a Struct."""
    value = b""
    for _ in range(rng.choice((50, 120, 400))):
        value = b"\x0a" + _varint(len(value)) + value
    path = rng.choice(TARGETS)
    return _asked(
        kind,
        path,
        framed(_message(rng, path) + rng.choice((b"\x12", b"\x52", b"\x7a")) + _varint(len(value)) + value),
    )


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _many_messages(kind: str, rng: random.Random) -> Case:
    """None, or several, where one is expected."""
    path = rng.choice(TARGETS)
    return _asked(kind, path, framed(_message(rng, path)) * rng.choice((0, 2, 3, 50)))


def _odd_headers(kind: str, rng: random.Random) -> Case:
    path = rng.choice(TARGETS)
    odd = rng.choice(
        (
            ("grpc-timeout", rng.choice(("", "-1S", "1", "S", "99999999999999H", "1n", "0S", "1x"))),
            ("grpc-encoding", "gzip"),
            ("grpc-accept-encoding", ",,,;q=x"),
            ("grpc-trace-bin", "not base64 %%%"),
            ("grpc-status-details-bin", "AAAA"),
            ("content-length", rng.choice(("0", "7", "-1", "99999999999999999999", "x"))),
            ("x-penstock-deployment", "bystander"),
            ("x-penstock-deployment-ticket", "0" * 32),
            ("x-envoy-upstream-rq-timeout-ms", "1"),
            ("te", "gzip"),
            ("connection", "close"),
            ("Upper-Case", "x"),
            ("cookie", "a=b; " * 200),
            ("x-odd", "\x01\x7f"),
            ("bad name", "x"),
            (":path", "/again"),
            (":unknown", "x"),
            ("transfer-encoding", "chunked"),
            ("expect", "100-continue"),
            ("host", "other"),
        )
    )
    headers = grpc_headers(path, odd)
    if rng.random() < 0.3:
        del headers[rng.randrange(len(headers))]
    if rng.random() < 0.2:
        rng.shuffle(headers)
    return Case(kind, opening() + request_frames(headers, framed(_message(rng, path))), _ends(path))


def _odd_start(kind: str, rng: random.Random) -> Case:
    """Other methods, paths and media types."""
    method = rng.choice(("GET", "PUT", "HEAD", "OPTIONS", "CONNECT", "TRACE", "", "POST", "gRPC"))
    path = rng.choice(("", "*", "//", "/..", "/%00", "/" + "a" * 9000, INFERENCE, *TARGETS))
    kind_of = rng.choice(
        ("application/grpc", "application/grpc+json", "application/grpc-web", "text/html", "")
    )
    headers = [(":method", method), *grpc_headers(path, content_type=kind_of)[1:]]
    return Case(kind, opening() + request_frames(headers, framed(_message(rng, path))), _ends(path))


def _many_headers(kind: str, rng: random.Random) -> Case:
    path = rng.choice(TARGETS)
    count = rng.choice((101, 1_000, 10_000))
    more = [(f"x-{number}", "1") for number in range(count)]
    return Case(
        kind, opening() + request_frames(grpc_headers(path, *more), framed(_message(rng, path))), _ends(path)
    )


def _large_header(kind: str, rng: random.Random) -> Case:
    path = rng.choice(TARGETS)
    more = ("x-large", "y" * rng.choice((50_000, 70_000, 300_000)))
    return Case(
        kind, opening() + request_frames(grpc_headers(path, more), framed(_message(rng, path))), _ends(path)
    )


def _large_body(kind: str, rng: random.Random) -> Case:
    path = rng.choice((INFERENCE + "Generate", INFERENCE + "ListModels"))
    return _asked(kind, path, framed(b"\x12" + _varint(17 * MIB) + bytes(17 * MIB)))


def _random_frames(kind: str, rng: random.Random) -> Case:
    sent = opening()
    for _ in range(rng.randint(1, 40)):
        payload = rng.randbytes(rng.choice((0, 1, 4, 5, 6, 8, 9, 50, 500)))
        stream = rng.choice((0, 1, 1, 3, 5, 2, 2**31 - 1, rng.randrange(2**31)))
        kind_of = rng.choice((*range(10), rng.randrange(256)))
        sent += len(payload).to_bytes(3, "big") + bytes([kind_of, rng.randrange(256)])
        sent += stream.to_bytes(4, "big") + payload
    return Case(kind, sent, False)


def _mangled_frames(kind: str, rng: random.Random) -> Case:
    """A good request, its bytes changed after the preface."""
    path = rng.choice(TARGETS)
    whole = SettingsFrame(0).serialize() + request_frames(grpc_headers(path), framed(_message(rng, path)))
    return Case(kind, PREFACE + _mangled(rng, whole), False)


def _mangled_block(kind: str, rng: random.Random) -> Case:
    """Frames that are whole, with header blocks that HPACK cannot read."""
    block = _mangled(rng, Encoder().encode(grpc_headers(rng.choice(TARGETS))))[:FRAME_BYTES]
    frame = HeadersFrame(1, block, flags=["END_HEADERS", "END_STREAM"])
    return Case(kind, opening() + frame.serialize(), False)


def _resets(kind: str, rng: random.Random) -> Case:
    """Streams that are begun and left at once."""
    sent, encoder = opening(), Encoder()
    path = rng.choice(TARGETS)
    for number in range(rng.choice((1, 20, 200))):
        stream = 2 * number + 1
        end = rng.random() < 0.5
        sent += request_frames(
            grpc_headers(path), framed(_message(rng, path)), stream=stream, end=end, encoder=encoder
        )
        sent += RstStreamFrame(stream, error_code=rng.choice((0, 1, 5, 8, 99))).serialize()
    return Case(kind, sent, False)


def _many_streams(kind: str, rng: random.Random) -> Case:
    """Some hundreds of requests at once on one connection."""
    sent, encoder = opening(), Encoder()
    for number in range(rng.choice((50, 150))):
        path = rng.choice(TARGETS)
        body = framed(_message(rng, path))
        sent += request_frames(grpc_headers(path), body, stream=2 * number + 1, encoder=encoder)
    return Case(kind, sent, False)


def _floods(kind: str, rng: random.Random) -> Case:
    """Small frames that each ask for work, a few thousand of them."""
    frame: Frame
    match rng.randrange(6):
        case 0:
            frame = PingFrame(0, b"12345678")
        case 1:
            frame = SettingsFrame(0, settings={4: 65535})
        case 2:
            frame = WindowUpdateFrame(0, window_increment=1)
        case 3:
            frame = PriorityFrame(1, depends_on=3, stream_weight=5)
        case 4:
            frame = DataFrame(1, b"")
        case _:
            frame = ContinuationFrame(1, b"")
    before = request_frames(grpc_headers(INFERENCE + "Generate"), b"", end=False)
    if isinstance(frame, ContinuationFrame):
        before = HeadersFrame(1, Encoder().encode(grpc_headers(INFERENCE + "Generate"))).serialize()
    return Case(kind, opening() + before + frame.serialize() * rng.choice((100, 3000)), False)


def _rules_broken(kind: str, rng: random.Random) -> Case:
    """Frames that HTTP/2 forbids where they stand."""
    frames: list[Frame] = [
        PushPromiseFrame(1, promised_stream_id=2),
        HeadersFrame(2, Encoder().encode(grpc_headers(TARGETS[0])), flags=["END_HEADERS"]),
        DataFrame(3, b"x" * 100),
        WindowUpdateFrame(1, window_increment=2**31 - 1),
        ContinuationFrame(1, b"x"),
        GoAwayFrame(0, last_stream_id=0, error_code=1, additional_data=b"x" * 1000),
        RstStreamFrame(7, error_code=0),
    ]
    # hyperframe makes no DATA frame for the connection itself.
    data_on_0 = b"\x00\x00\x01\x00\x00\x00\x00\x00\x00x" if rng.random() < 0.2 else b""
    sent = opening() + request_frames(grpc_headers(TARGETS[0]), b"", end=False)
    for frame in rng.sample(frames, rng.randint(1, 4)):
        sent += frame.serialize()
    return Case(kind, sent + data_on_0, False)


def _no_window(kind: str, rng: random.Random) -> Case:
    """A reader that never reads: what is made for it must wait, bounded, and end when it leaves."""
    path = INFERENCE + rng.choice(("StreamGenerate", "Generate", "StreamChat"))
    return Case(kind, opening(_4=0) + request_frames(grpc_headers(path), framed(_message(rng, path))), False)


def _stalls(kind: str, rng: random.Random) -> Case:
    """It stops sending, anywhere."""
    path = rng.choice(TARGETS)
    whole = opening() + request_frames(grpc_headers(path), framed(_message(rng, path)))
    return Case(kind, whole[: rng.randrange(1, len(whole))], False)


def _no_preface(kind: str, rng: random.Random) -> Case:
    return Case(kind, rng.randbytes(rng.randint(1, 400)), False, grpc=False)


def _http1(kind: str, rng: random.Random) -> Case:
    """The port speaks HTTP/1.1 as well."""
    body = b'{"model": "target", "prompt": "x", "max_tokens": 1}'
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    length = b"Content-Length: %d\r\n" % len(body)
    chunked = b"Transfer-Encoding: chunked\r\n"
    sent = rng.choice(
        (
            head + length + b"\r\n" + body,
            head + length + length.replace(b": ", b": 1") + b"\r\n" + body,
            head + length + chunked + b"\r\n" + body,
            head + chunked + b"\r\nffffffffffffffffff\r\n" + body,
            head + chunked + b"\r\n-5\r\n" + body,
            head + chunked + b"\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
            head + b"Content-Length: -1\r\n\r\n" + body,
            head + length + b"\r\n" + body[:-5],
            head + b"X: \x00\r\n" + length + b"\r\n" + body,
            head.replace(b"HTTP/1.1", b"HTTP/3.7") + length + b"\r\n" + body,
            head.replace(b"POST", b"P\x00ST") + length + b"\r\n" + body,
            head + length + b"\r\n" + _mangled(rng, body),
            _mangled(rng, head + length + b"\r\n") + body,
            head + length + b"Expect: 100-continue\r\n\r\n" + body,
            head
            + length
            + b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAAA\r\n\r\n"
            + body,
            (head + length + b"\r\n" + body) * 20,
        )
    )
    return Case(kind, sent, False, grpc=False)


def _grpc_web(kind: str, rng: random.Random) -> Case:
    path = rng.choice(TARGETS)
    content_type = rng.choice(("application/grpc-web+proto", "application/grpc-web-text"))
    body = rng.choice((framed(_message(rng, path)), b"!!!!", b"AAAA" * 9, rng.randbytes(40)))
    return Case(
        kind, opening() + request_frames(grpc_headers(path, content_type=content_type), body), _ends(path)
    )


_KINDS: dict[str, tuple[Callable[[str, random.Random], Case], int]] = {
    "good": (_good, 6),
    "truncated message": (_truncated, 6),
    "wrong length": (_wrong_length, 6),
    "bad compression flag": (_bad_flag, 5),
    "invalid UTF-8": (_invalid_utf8, 6),
    "mangled message": (_mangled_message, 12),
    "random message": (_random_message, 6),
    "deep message": (_deep_message, 4),
    "many messages": (_many_messages, 4),
    "odd headers": (_odd_headers, 10),
    "odd start": (_odd_start, 6),
    "many headers": (_many_headers, 2),
    "large header": (_large_header, 2),
    "large body": (_large_body, 1),
    "random frames": (_random_frames, 12),
    "mangled frames": (_mangled_frames, 10),
    "mangled header block": (_mangled_block, 6),
    "resets": (_resets, 3),
    "many streams": (_many_streams, 1),
    "floods": (_floods, 3),
    "rules broken": (_rules_broken, 5),
    "no window": (_no_window, 3),
    "stalls": (_stalls, 6),
    "no preface": (_no_preface, 4),
    "HTTP/1.1": (_http1, 8),
    "gRPC-Web": (_grpc_web, 5),
}
"""Name -> how it is made, and how often beside the others."""
