"""Which ids of requests are passed on, and what a stream asks of the engine in a crowd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

import grpc
import pytest

from penstock.v1 import inference_pb2 as pb
from penstock_runtime.engine import Engine
from penstock_runtime.gate import Gate
from penstock_runtime.inference import CROWD, Inference, request_id
from penstock_runtime.translate import Json


class Call:
    """As much of a call's context as request_id looks at."""

    def __init__(self, *metadata: tuple[str, str | bytes]) -> None:
        self._metadata = metadata

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self._metadata


def of(*metadata: tuple[str, str | bytes]) -> str:
    return request_id(cast(grpc.aio.ServicerContext[Any, Any], Call(*metadata)))


def test_the_front_doors_request_id_is_kept() -> None:
    assert of(("user-agent", "x"), ("x-request-id", "0b5c-41.A_z")) == "0b5c-41.A_z"


@pytest.mark.parametrize("given", ["", "a b", "a\r\nHost: b", "x" * 129, b"\x00"])
def test_what_cannot_be_a_header_gets_a_new_id(given: str | bytes) -> None:
    made = of(("x-request-id", given))
    assert made != given
    assert len(made) == 32
    assert made != of(("x-request-id", given))


class Recorder:
    """An engine and a call's context in one: keeps what was asked, and answers with one word."""

    def __init__(self) -> None:
        self.asked: list[Json] = []

    async def stream(self, path: str, body: Json, request_id: str) -> AsyncGenerator[Json, None]:
        self.asked.append(body)
        yield {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]}

    def invocation_metadata(self) -> tuple[()]:
        return ()

    async def write(self, chunk: pb.StreamChatResponse) -> None:
        assert chunk.choices[0].content == "a"

    def set_trailing_metadata(self, metadata: Any) -> None:
        pass


async def stay(gate: Gate, end: asyncio.Event) -> None:
    with gate.enter():
        await end.wait()


@pytest.mark.parametrize(
    ("others", "options", "tools", "interval"),
    [
        (CROWD - 2, {}, [], None),
        (CROWD - 1, {}, [], 2),
        (CROWD - 1, {"stream_interval": 1}, [], 1),
        (CROWD - 1, {}, [pb.Tool(name="f")], None),
    ],
)
async def test_in_a_crowd_two_tokens_come_at_a_time(
    others: int, options: dict[str, Any], tools: list[pb.Tool], interval: int | None
) -> None:
    gate, engine, end = Gate("closed"), Recorder(), asyncio.Event()
    gate.open()
    crowd = [asyncio.create_task(stay(gate, end)) for _ in range(others)]
    while gate.inside < others:
        await asyncio.sleep(0)
    inference = Inference(cast(Engine, engine), gate, model_names=("m",), adapters=tuple, task="generate")
    request = pb.StreamChatRequest(model="m", messages=[pb.Message(role=pb.ROLE_USER)], tools=tools)
    request.engine_options.update(options)
    await inference.StreamChat(request, cast(Any, engine))
    assert engine.asked[0].get("stream_interval") == interval
    end.set()
    await asyncio.gather(*crowd)
