"""The official `openai` package, unmodified, through the front door: the calls that services make.

Before the stand-in, and before vLLM with a tiny random model: what it says is noise, so only shapes are looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from penstock.core.routing import engine_key
from tests.engines import (
    STANDIN_TIMEOUT_S,
    Background,
    Started,
    engine_door,
    standin_launch,
    start_in_background,
    start_vllm,
    until,
)
from tests.integration.front_door_kit import SECRET, House, endpoint, route

TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
NO_BLANKS = {str(3 + ord(blank)): -100 for blank in "\t\n\r "}
"""The tiny model would make blanks for ever between the words of a JSON object."""
CALM: Any = {"max_tokens": 300, "temperature": 0, "logit_bias": NO_BLANKS}
HELLO: Any = [{"role": "user", "content": "say something to me"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather at a place",
        # vLLM holds a model to the parameters only when told so.
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string", "enum": ["Paris", "Oslo"]}},
            "required": ["place"],
            "additionalProperties": False,
        },
    },
}


class Capital(BaseModel):
    """What a structured answer is to be."""

    city: Literal["Paris", "Oslo"]
    big: bool


@dataclass
class Door:
    """The front door, and the engine behind its deployment `m`."""

    url: str
    engine: Started
    background: Background
    real: bool

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key="sk-anything", **{"max_retries": 0, **options})

    def async_client(self, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.url, api_key="sk-anything", **{"max_retries": 0, **options})

    async def running(self) -> int:
        _, text = await self.engine.http.get("/metrics", 60)
        lines = [line for line in text.decode().splitlines() if line.startswith("vllm:num_requests_running{")]
        return int(float(lines[0].rpartition(" ")[2]))


@pytest.fixture(
    scope="module",
    params=[
        "standin",
        pytest.param("vllm", marks=[pytest.mark.real_engine, pytest.mark.timeout(900)]),
    ],
)
def door(request: pytest.FixtureRequest) -> Iterator[Door]:
    with contextlib.ExitStack() as stack:
        started = stack.enter_context(_engine(request))
        embedding = stack.enter_context(_standin("--max-model-len", "512", task="embed"))
        background = Background()
        stack.callback(background.close)
        house = House()
        background.run(house.__aenter__(), 60)
        stack.callback(lambda: background.run(house.__aexit__(None, None, None), 60))
        routes = [route("none")]
        for name, (engine, _) in (("m", started), ("e", embedding)):
            agent = background.run(house.replica(name), 60)
            assert engine.door is not None
            engine.door.expect(engine_key(SECRET, f"a{agent.port}"))
            engine.door.open()
            one = route(name)
            end = endpoint(agent.port, engine_port=engine.door.port)
            routes.append(type(one)(name, one.model_names, SECRET, (end,), one.admission, 1700000000))
        background.run(house.serve(*routes), 60)
        found = Door(f"http://{house.settings.listen}/v1", started[0], background, request.param == "vllm")
        background.run(_answers(found), 60)
        yield found


async def _answers(door: Door) -> None:
    async with door.async_client() as client:

        async def ask(model: str) -> bool:
            with contextlib.suppress(openai.APIStatusError):
                if model == "e":
                    return bool((await client.embeddings.create(model="e", input="x")).data)
                return bool((await client.completions.create(model="m", prompt="x", max_tokens=1)).choices)
            return False

        for model in ("m", "e"):
            await until(f"{model} answers", lambda model=model: ask(model), bool)  # type: ignore[misc]


@contextlib.contextmanager
def _engine(request: pytest.FixtureRequest) -> Iterator[tuple[Started, Background]]:
    if request.param == "standin":
        with _standin("--tokens-per-second", "200", *TOOLS) as started:
            yield started
        return
    env, model = request.getfixturevalue("engine_env"), request.getfixturevalue("tiny_llama")
    with start_vllm(env, model, *TOOLS) as started:
        yield started


@contextlib.contextmanager
def _standin(*args: str, task: str = "generate") -> Iterator[tuple[Started, Background]]:
    with engine_door() as at:
        what = standin_launch(*args, task=task, door=at, names=("m", "e"))
        with start_in_background(what, STANDIN_TIMEOUT_S, at) as started:
            yield started


def test_models(door: Door) -> None:
    with door.client() as client:
        assert [model.id for model in client.models.list()] == ["e", "m", "none"]
        assert client.models.retrieve("m").created == 1700000000
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve("nope")
        assert caught.value.code == "model_not_found"


def test_a_chat(door: Door) -> None:
    with door.client() as client:
        answer = client.chat.completions.create(model="m", messages=HELLO, max_tokens=8, temperature=0)
        assert answer.choices[0].message.content is not None
        assert answer.choices[0].finish_reason in ("length", "stop")
        assert answer.usage is not None
        assert 0 < answer.usage.completion_tokens <= 8
        raw = client.chat.completions.with_raw_response.create(model="m", messages=HELLO, max_tokens=1)
        assert raw.http_response.status_code == 200
        assert raw.parse().choices


def test_a_streamed_chat(door: Door) -> None:
    with door.client() as client:
        chunks = list(
            client.chat.completions.create(
                model="m",
                messages=HELLO,
                max_tokens=8,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        assert len([chunk for chunk in chunks if chunk.choices]) > 1
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in ("length", "stop")
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens > 0


async def test_many_async_chats_and_streams(door: Door) -> None:
    async with door.async_client() as client:

        async def chat() -> str:
            answer = await client.chat.completions.create(model="m", messages=HELLO, max_tokens=4)
            return answer.choices[0].finish_reason

        async def stream() -> str | None:
            reason = None
            asked = client.chat.completions.create(model="m", messages=HELLO, max_tokens=4, stream=True)
            async for chunk in await asked:
                if chunk.choices:
                    reason = chunk.choices[0].finish_reason or reason
            return reason

        reasons = await asyncio.gather(*(chat() for _ in range(8)), *(stream() for _ in range(8)))
        assert set(reasons) <= {"length", "stop"}


def test_completions_with_several_choices(door: Door) -> None:
    with door.client() as client:
        answer = client.completions.create(model="m", prompt="one two", max_tokens=4, n=2, logprobs=1)
        assert [choice.index for choice in answer.choices] == [0, 1]
        assert answer.choices[0].logprobs is not None
        stopped = client.completions.create(model="m", prompt="one two", max_tokens=4, seed=7, stop=["zzz"])
        assert stopped.choices[0].finish_reason in ("length", "stop")


def test_tools(door: Door) -> None:
    with door.client() as client:
        wanted: Any = {"type": "function", "function": {"name": "weather"}}
        answer = client.chat.completions.create(
            model="m",
            messages=HELLO,
            tools=[WEATHER],
            tool_choice=wanted,
            max_tokens=300,
            temperature=0,
            logit_bias=NO_BLANKS,
        )
        [call] = answer.choices[0].message.tool_calls or []
        assert call.type == "function"
        assert call.function.name == "weather"
        assert json.loads(call.function.arguments)["place"] in ("Paris", "Oslo")


def test_streamed_tools(door: Door) -> None:
    with door.client() as client:
        wanted: Any = {"type": "function", "function": {"name": "weather"}}
        arguments = ""
        asked = client.chat.completions.create(
            model="m",
            messages=HELLO,
            tools=[WEATHER],
            tool_choice=wanted,
            max_tokens=300,
            temperature=0,
            logit_bias=NO_BLANKS,
            stream=True,
        )
        for chunk in asked:
            for call in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
                arguments += (call.function.arguments or "") if call.function else ""
        assert json.loads(arguments)["place"] in ("Paris", "Oslo")


def test_structured_output(door: Door) -> None:
    with door.client() as client:
        answer = client.chat.completions.parse(
            model="m",
            messages=HELLO,
            response_format=Capital,
            max_tokens=300,
            temperature=0,
            logit_bias=NO_BLANKS,
        )
        assert isinstance(answer.choices[0].message.parsed, Capital)


def test_embeddings(door: Door) -> None:
    with door.client() as client:
        # Its default encoding is base64.
        answer = client.embeddings.create(model="e", input=["one", "two"])
        assert [each.index for each in answer.data] == [0, 1]
        assert len(answer.data[0].embedding) == 384
        assert answer.usage.prompt_tokens > 0


def test_errors_are_those_that_the_package_knows(door: Door) -> None:
    with door.client() as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            client.chat.completions.create(model="nope", messages=HELLO)
        assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
        assert "model 'nope' does not exist" in unknown.value.message
        with pytest.raises(openai.BadRequestError) as negative:
            client.chat.completions.create(model="m", messages=HELLO, max_tokens=-1)
        assert "max_" in negative.value.message
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model="m", prompt="long " * 100_000, max_tokens=4)
        with pytest.raises(openai.InternalServerError) as none_ready:
            client.chat.completions.create(model="none", messages=HELLO)
        assert none_ready.value.status_code == 503
        assert none_ready.value.code == "no_ready_replica"
        assert none_ready.value.response.headers["retry-after"] == "5"
        with pytest.raises(openai.NotFoundError):
            client.files.list()
        # What this deployment's engine has not, it refuses in the shape of every other error.
        with pytest.raises(openai.NotFoundError) as not_offered:
            client.embeddings.create(model="m", input="x")
        assert not_offered.value.code == "not_offered"
        assert "the engine has no POST /v1/embeddings" in not_offered.value.message
        with pytest.raises(openai.APIStatusError) as too_long:
            client.completions.create(model="m", prompt="x" * (17 << 20))
        assert too_long.value.status_code == 413


async def test_a_stream_that_is_closed_frees_the_engine(door: Door) -> None:
    async with door.async_client() as client:
        stream = await client.completions.create(
            model="m", prompt="x", max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
        )
        await anext(aiter(stream))
        assert await door.running() == 1
        await stream.close()
        await until("the slot is free", door.running, lambda running: running == 0)


async def test_a_time_out_frees_the_engine(door: Door) -> None:
    async with door.async_client(timeout=0.5) as client:
        with pytest.raises(openai.APITimeoutError):
            await client.completions.create(
                model="m", prompt="x", max_tokens=1900, extra_body={"ignore_eos": True, "n": 8}
            )
        await until("the slot is free", door.running, lambda running: running == 0)


def test_responses(door: Door) -> None:
    with door.client() as client:
        if not door.real:
            with pytest.raises(openai.NotFoundError):
                client.responses.create(model="m", input="say something")
            return
        answer = client.responses.create(model="m", input="say something", max_output_tokens=8)
        assert answer.output
        kinds = [
            event.type
            for event in client.responses.create(
                model="m", input="say something", max_output_tokens=8, stream=True
            )
        ]
        assert kinds[0] == "response.created"
        assert kinds[-1] in ("response.completed", "response.incomplete")
