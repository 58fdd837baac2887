"""Bad input at the port of a whole Penstock: the right status, OpenAI's or google.rpc's shape, and no effect on others.

Every case is sent to a deployment while a paced stream of another one runs, which must come whole and without a stall.
A client that stalls is told so after a minute by default, so those tests have a front door with a shorter one.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2, status_pb2
from hpack import Encoder

from deploy.cluster.cluster import Cluster
from penstock.v1 import inference_pb2 as pb
from penstock.v1 import inference_pb2_grpc
from tests.fuzz.frames import INFERENCE, Case, framed, grpc_headers, opening, request_frames
from tests.fuzz.listen import Ear, exchange
from tests.integration.front_door_kit import House, route
from tests.penstocks import Penstock, running, standin
from tests.stalls import Stalls

MIB = 1024 * 1024
GENERATE = INFERENCE + "Generate"
COMPLETIONS = "/v1/completions"
JSON = {"content-type": "application/json"}
STREAM_TOKENS = 30
PACE = 20
"""Tokens a second of the stream that nobody may disturb."""
LONGEST_GAP_S = 3.0
"""Between two of its tokens, on a machine of two busy cores that does not stand still."""


@pytest.fixture(scope="module")
def whole(slurm_cluster: Cluster) -> Iterator[Penstock]:
    with running(slurm_cluster) as penstock:
        penstock.apply(standin("m", args=["--max-model-len", "64"]))
        penstock.apply(standin("other", args=["--tokens-per-second", str(PACE)]))
        penstock.wait_ready("m", 1)
        penstock.wait_ready("other", 1)
        yield penstock


@contextlib.asynccontextmanager
async def undisturbed(whole: Penstock) -> AsyncIterator[None]:
    """A stream of the other deployment runs from before the block until after it, and is whole."""
    begun = threading.Event()
    # In a thread: what a client takes to make bad input is no gap of the server's.
    stream = asyncio.create_task(asyncio.to_thread(_stream, whole.server, begun))
    try:
        assert await asyncio.to_thread(begun.wait, 60)
        yield
    finally:
        await asyncio.wait_for(stream, 60)


def _stream(server: str, begun: threading.Event) -> None:
    body = {
        "model": "other", "prompt": "x", "max_tokens": STREAM_TOKENS, "stream": True, "ignore_eos": True
    }  # fmt: skip
    chunks, last = 0, 0.0
    with Stalls() as stalls, httpx.Client(base_url=f"http://{server}", timeout=60) as client:
        with client.stream("POST", COMPLETIONS, json=body) as answer:
            assert answer.status_code == 200, answer.read()
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                now = time.monotonic() - stalls.total_s
                assert not last or now - last < LONGEST_GAP_S, f"a gap of {now - last:.1f} s"
                last = now
                chunks += bool(json.loads(line[6:])["choices"])
                begun.set()
    assert chunks >= STREAM_TOKENS


@dataclass(frozen=True)
class Rest:
    """A request that is refused, and how."""

    name: str
    content: bytes
    status: int
    code: str | int
    says: str
    headers: tuple[tuple[str, str], ...] = ()


def _completion(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "prompt": "x", **fields}).encode()


REST = [
    Rest("malformed JSON", b'{"model": "m", ', 400, "invalid_json", "the body is not JSON"),
    Rest("missing model", b'{"prompt": "x"}', 400, "missing_model", "`model` is missing"),
    Rest("unknown model", b'{"model": "n"}', 404, "model_not_found", "models that exist: m, other"),
    Rest(
        "body over the limit",
        _completion(prompt="x" * (17 * MIB)),
        413,
        "max_request_bytes",
        "longer than 16 MiB",
    ),
    Rest("invalid UTF-8 prompt", b'{"model": "m", "prompt": "\xff"}', 400, "invalid_json", "is not UTF-8"),
    Rest("too long context", _completion(prompt="word " * 200), 400, 400, "maximum context length is 64"),
    Rest("negative max tokens", _completion(max_tokens=-1), 400, 400, "max_tokens"),
    Rest(
        "10,000 headers",
        _completion(),
        431,
        "max_headers",
        "more than 100",
        tuple((f"x-{number}", "1") for number in range(10_000)),
    ),
]


@pytest.mark.parametrize("case", REST, ids=lambda case: case.name)
async def test_rest(whole: Penstock, case: Rest) -> None:
    async with undisturbed(whole), httpx.AsyncClient(base_url=f"http://{whole.server}", timeout=20) as client:
        answer = await client.post(COMPLETIONS, content=case.content, headers=JSON | dict(case.headers))
        assert answer.status_code == case.status, answer.text
        assert answer.headers["content-type"].startswith("application/json")
        error = answer.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["code"] == case.code
        assert case.says in error["message"]
        assert "Traceback" not in answer.text
        assert (
            await client.post(COMPLETIONS, content=_completion(max_tokens=1), headers=JSON)
        ).status_code == 200


@dataclass(frozen=True)
class Rpc:
    """Bytes that are refused, and how. `path`: the method's; `fields`: that google.rpc.BadRequest names."""

    name: str
    body: bytes
    status: grpc.StatusCode
    says: str
    path: str = GENERATE
    fields: tuple[str, ...] = ()


def _generate(**sampling: Any) -> bytes:
    request = pb.GenerateRequest(model="m", prompt=sampling.pop("prompt", "x"))
    for name, value in sampling.items():
        setattr(request.sampling, name, value)
    return request.SerializeToString()


INVALID = grpc.StatusCode.INVALID_ARGUMENT
LIST = "/penstock.v1.DeploymentService/ListDeployments"
RPC = [
    Rpc("no message", b"", INVALID, "the request has no message"),
    Rpc("truncated frame", framed(_generate())[:-3], INVALID, "Did not receive enough data"),
    Rpc(
        "truncated frame, control", framed(b"\x1a\x05label")[:-3], INVALID, "is missing, or is cut off", LIST
    ),
    Rpc("wrong length", framed(_generate(), length=1 << 20), INVALID, "Did not receive enough data"),
    Rpc("no protobuf", framed(b"\x07\xff\xff"), INVALID, "is not a penstock.v1.GenerateRequest"),
    Rpc("no protobuf, control", framed(b"\x0a\xff\xff"), INVALID, "is not a penstock.v1.", LIST),
    Rpc("missing model", framed(b""), INVALID, "the field `model` is empty", fields=("model",)),
    Rpc("unknown model", framed(b"\x0a\x01n"), grpc.StatusCode.NOT_FOUND, "model 'n' does not exist"),
    Rpc(
        "invalid UTF-8 prompt",
        framed(b"\x0a\x01m\x12\x02\xff\xfe"),
        INVALID,
        "must be UTF-8",
        fields=("prompt",),
    ),
    Rpc(
        "invalid UTF-8, control",
        framed(b"\x1a\x02\xff\xfe"),
        INVALID,
        "must be UTF-8",
        LIST,
        fields=("filter",),
    ),
    Rpc("too long context", framed(_generate(prompt="word " * 200)), INVALID, "maximum context length is 64"),
    Rpc(
        "negative max tokens",
        framed(_generate(max_tokens=-1)),
        INVALID,
        "-1",
        fields=("sampling.max_tokens",),
    ),
]


@pytest.mark.parametrize("case", RPC, ids=lambda case: case.name)
async def test_grpc(whole: Penstock, case: Rpc) -> None:
    async with undisturbed(whole):
        sent = opening() + request_frames(grpc_headers(case.path), case.body)
        ear = await exchange(whole.server, Case(case.name, sent, ends=True), 20)
        answer = ear.answers[1]
        assert (answer.get("grpc-status"), case.says in answer.get("grpc-message")) == (
            str(case.status.value[0]),
            True,
        ), answer
        assert "Traceback" not in str(answer)
        if case.fields:
            assert _fields(ear) == case.fields
        async with grpc.aio.insecure_channel(whole.server) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            assert (
                await stub.Generate(pb.GenerateRequest.FromString(_generate(max_tokens=1)), timeout=20)
            ).choices


async def test_grpc_body_over_the_limit(whole: Penstock) -> None:
    options = [("grpc.max_send_message_length", 64 * MIB), ("grpc.use_local_subchannel_pool", 1)]
    async with undisturbed(whole), grpc.aio.insecure_channel(whole.server, options=options) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Generate(pb.GenerateRequest.FromString(_generate(prompt="x" * (17 * MIB))), timeout=20)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "16 MiB" in str(caught.value.details())
        assert (
            await stub.Generate(pb.GenerateRequest.FromString(_generate(max_tokens=1)), timeout=20)
        ).choices


async def test_grpc_10_000_headers(whole: Penstock) -> None:
    """Over HTTP/2 Envoy answers no request with too many headers: it resets the stream, and only that."""
    many = [(f"x-{number}", "1") for number in range(10_000)]
    encoder = Encoder()
    sent = opening() + request_frames(grpc_headers(GENERATE, *many), framed(_generate()), encoder=encoder)
    body = framed(_generate(max_tokens=1))
    sent += request_frames(grpc_headers(GENERATE), body, stream=3, encoder=encoder)
    async with undisturbed(whole):
        ear = await exchange(whole.server, Case("10,000 headers", sent, ends=True, last=3), 20)
        assert (ear.answers[1].over, ear.answers[1].headers) == (True, [])
        assert ear.answers[3].get("grpc-status") == "0"


@pytest.mark.parametrize(
    "service", ["penstock.v1.DeploymentService", "grpc.reflection.v1.ServerReflection", None]
)
async def test_grpc_a_path_that_is_no_text(whole: Penstock, service: str | None) -> None:
    """Servers that stand behind would end over it, and answer nothing any more."""
    path = (f"/{service}/List".encode() if service else GENERATE.encode()) + b"\x95"
    headers: list[tuple[str, str | bytes]] = [
        (key, path if key == ":path" else value) for key, value in grpc_headers(GENERATE)
    ]
    sent = opening() + request_frames(headers, framed(_generate()))
    async with undisturbed(whole), grpc.aio.insecure_channel(whole.server) as channel:
        ear = await exchange(whole.server, Case("a path that is no text", sent, ends=True, last=1), 20)
        assert ear.answers[1].get("grpc-status") == str(grpc.StatusCode.UNIMPLEMENTED.value[0])
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        assert (await stub.ListModels(pb.ListModelsRequest(), timeout=20)).models


async def test_headers_that_the_front_door_lets_in_are_taken_behind_it_too(whole: Penstock) -> None:
    token = "t" * 50_000
    async with undisturbed(whole), httpx.AsyncClient(base_url=f"http://{whole.server}", timeout=20) as client:
        headers = JSON | {"x-token": token}
        assert (await client.get("/v1/models", headers=headers)).status_code == 200
        asked = _completion(max_tokens=1)
        assert (await client.post(COMPLETIONS, content=asked, headers=headers)).status_code == 200
        unknown = await client.post(COMPLETIONS, content=b'{"model": "n"}', headers=headers)
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with undisturbed(whole), grpc.aio.insecure_channel(whole.server, options=options) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        metadata = (("x-token", token),)
        request = pb.GenerateRequest.FromString(_generate(max_tokens=1))
        assert (await stub.Generate(request, metadata=metadata, timeout=20)).choices
        assert (await stub.ListModels(pb.ListModelsRequest(), metadata=metadata, timeout=20)).models
        request.model = "n"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Generate(request, metadata=metadata, timeout=20)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("model", ["m", "unknown", None], ids=["agent", "gateway", "control"])
async def test_a_header_that_cannot_be_read_is_no_trouble_of_the_next_call(model: str | None) -> None:
    """A stranger's and a good client's calls share one connection to a gRPC server."""
    method = INFERENCE + ("Generate" if model else "ListModels")
    body = framed(pb.GenerateRequest(model=model, prompt="x").SerializeToString() if model else b"")
    # One worker, so that all calls meet there.
    async with House(worker_threads=1) as house:
        await house.serve(route("m", await house.replica("a")))

        async def answer(*more: tuple[str, str]) -> tuple[str, str]:
            sent = opening() + request_frames(grpc_headers(method, *more), body)
            ear = await exchange(house.settings.listen, Case("headers", sent, ends=True), 20)
            return ear.answers[1].get("grpc-status"), ear.answers[1].get("grpc-message")

        # None of them was sent before, so that no server can know them as a whole.
        good = ((("grpc-timeout", f"{number}S"), ("x-token-bin", f"AA{number}")) for number in range(20, 30))
        said = "model 'unknown' does not exist; models that exist: m" if model == "unknown" else ""
        expected = (str((grpc.StatusCode.NOT_FOUND if said else grpc.StatusCode.OK).value[0]), said)
        assert await answer(*next(good)) == expected
        for bad in (("grpc-timeout", "x"), ("x-token-bin", "%%%")):
            status, message = await answer(bad)
            assert message.startswith(f"Error parsing '{bad[0]}'"), (status, message)
            assert await answer(*next(good)) == expected


@pytest.mark.parametrize("stalls_in", ["headers", "message"])
async def test_a_grpc_client_that_stalls_is_told_so_and_holds_up_nobody(stalls_in: str) -> None:
    async with House(request_headers_timeout_s=1, request_timeout_s=1) as house:
        a = await house.replica("a")
        await house.serve(route("m", a))
        assert await house.status("m") == grpc.StatusCode.OK
        whole_request = opening() + request_frames(grpc_headers(GENERATE), framed(_generate()))
        cut = {"headers": len(opening()) + 20, "message": len(whole_request) - 4}[stalls_in]
        case = Case("stalls", whole_request[:cut], ends=True)
        stalled = asyncio.create_task(exchange(house.settings.listen, case, 20))
        began = time.monotonic()
        while not stalled.done():
            assert await house.status("m") == grpc.StatusCode.OK
        assert time.monotonic() - began < 10
        ear = await stalled
        if stalls_in == "message":
            answer = ear.answers[1]
            assert answer.get("grpc-status") == str(grpc.StatusCode.DEADLINE_EXCEEDED.value[0]), answer
            assert "request_timeout_s" in answer.get("grpc-message")
        else:
            # There is no request yet that could have an answer: the connection or the stream is ended.
            assert ear.is_over(1) or 1 not in ear.answers


def _fields(ear: Ear) -> tuple[str, ...]:
    """Those that the status' google.rpc.BadRequest names."""
    text = ear.answers[1].get("grpc-status-details-bin")
    status = status_pb2.Status.FromString(base64.b64decode(text + "=" * (-len(text) % 4)))
    found = error_details_pb2.BadRequest()
    for detail in status.details:
        if detail.Unpack(found):
            return tuple(violation.field for violation in found.field_violations)
    return ()
