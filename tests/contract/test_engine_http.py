"""What Penstock relies on of an engine's HTTP, held against vLLM itself and the stand-in: the two may not differ.

Each test says one fact. Where they may differ (the words of a message, the length of a default answer) nothing is said.
A class has one engine of each kind; vLLM takes a minute to start, so the classes are few.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock_runtime.engine import EngineError
from penstock_runtime.engine_http import Address, EngineHttp, Json
from tests.engines import (
    STANDIN_TIMEOUT_S,
    Background,
    Started,
    engine_door,
    standin_launch,
    start_in_background,
    start_vllm,
    text_of,
    until,
)

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
SEQUENCES = 4
"""How many requests run at once, in both engines: few, so that a queue is easily made."""
TOOLS_ARGS = (
    "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
    # A random model would go on with blanks for ever where JSON allows them.
    "--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}',
)  # fmt: skip
PICTURE = {
    "role": "user",
    "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}],
}
PARAMETERS = {
    "type": "object",
    "properties": {"unit": {"enum": ["C", "F"]}, "sunny": {"type": "boolean"}},
    "required": ["unit", "sunny"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS, "strict": True}}
NAMED = {"type": "function", "function": {"name": "weather"}}
NO_BLANKS = {str(3 + ord(blank)): -100 for blank in "\t\n\r "}
"""The tiny Llama's blanks, which it would make for ever inside a tool's arguments."""
LONG = 1500
"""Tokens that take either engine a few seconds."""
REAL_TIMEOUT_S = 1200
"""For a test that has to wait for its turn to start vLLM, and then for the start."""

ENGINES = [
    "standin",
    pytest.param(
        "vllm",
        marks=[pytest.mark.real_engine, pytest.mark.xdist_group("vllm"), pytest.mark.timeout(REAL_TIMEOUT_S)],
    ),
]


@contextlib.contextmanager
def running(
    request: pytest.FixtureRequest, kind: str, *args: str, task: str = "generate"
) -> Iterator[tuple[Started, Background]]:
    if kind == "vllm":
        env: Path = request.getfixturevalue("engine_env")
        model: Path = request.getfixturevalue("tiny_llama" if task == "generate" else "minilm")
        with start_vllm(env, model, "--max-num-seqs", str(SEQUENCES), *args, task=task) as started:
            yield started
        return
    speed = ("--tokens-per-second", "250", "--max-num-seqs", str(SEQUENCES), "--max-model-len", "2048")
    with engine_door() as door:
        what = standin_launch(*speed, *args, task=task, door=door)
        with start_in_background(what, STANDIN_TIMEOUT_S) as started:
            yield started


def chat(**fields: Any) -> Json:
    """A chat of which 8 tokens are asked, always the same ones."""
    messages = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "tell me more"}]
    return {
        "model": "m",
        "messages": messages,
        "max_tokens": 8,
        "temperature": 0,
        "ignore_eos": True,
        **fields,
    }


def completion(**fields: Any) -> Json:
    return {
        "model": "m",
        "prompt": "tell me more",
        "max_tokens": 8,
        "temperature": 0,
        "ignore_eos": True,
        **fields,
    }


BODIES = {CHAT: chat, COMPLETIONS: completion}


async def stream(engine: Started, path: str, request_id: str = "", **fields: Any) -> list[Json]:
    """All events of a stream."""
    body = BODIES[path](stream=True, **fields)
    return [event async for event in engine.http.stream(path, body, request_id)]


def finish_reasons(events: list[Json]) -> list[Any]:
    return [
        choice["finish_reason"]
        for event in events
        for choice in event.get("choices", ())
        if choice["finish_reason"]
    ]


async def load(engine: Started) -> Any:
    return await engine.engine.load()


async def test_an_engine_that_is_not_there_is_an_error_without_a_status() -> None:
    with pytest.raises(EngineError) as caught:
        await EngineHttp(Address("127.0.0.1", 1)).post(CHAT, chat())
    assert caught.value.status == 0


@pytest.fixture(scope="class", params=ENGINES)
def serving(request: pytest.FixtureRequest) -> Iterator[tuple[Started, Background]]:
    with running(request, request.param, *TOOLS_ARGS) as started:
        yield started


class TestServing:
    """An engine that generates: answers, streams, refusals, metrics, queue; and at the end its core is killed."""

    @pytest.fixture
    def engine(self, serving: tuple[Started, Background]) -> Started:
        return serving[0]

    async def test_health_and_models(self, engine: Started) -> None:
        assert await engine.engine.alive()
        status, body = await engine.http.get("/v1/models", 10)
        assert status == 200
        assert b'"id":"m"' in body.replace(b" ", b"")
        assert b'"max_model_len":2048' in body.replace(b" ", b"")

    @pytest.mark.parametrize(("path", "prefix"), [(CHAT, "chatcmpl-"), (COMPLETIONS, "cmpl-")])
    async def test_a_whole_answer(self, engine: Started, path: str, prefix: str) -> None:
        answer = await engine.http.post(path, BODIES[path](), "the-id")
        assert answer["id"] == f"{prefix}the-id"
        assert answer["model"] == "m"
        (choice,) = answer["choices"]
        text = choice["message"]["content"] if path == CHAT else choice["text"]
        assert len(text.split()) == 8
        assert choice["finish_reason"] == "length"
        assert choice["logprobs"] is None
        usage = answer["usage"]
        assert usage["completion_tokens"] == 8
        assert usage["prompt_tokens"] > 0
        assert usage["total_tokens"] == usage["prompt_tokens"] + 8

    @pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
    async def test_a_stream_says_what_the_whole_answer_says(self, engine: Started, path: str) -> None:
        whole = (await engine.http.post(path, BODIES[path]()))["choices"][0]
        events = await stream(engine, path, "the-id")
        assert text_of(events) == (whole["message"]["content"] if path == CHAT else whole["text"])
        assert len({event["id"] for event in events}) == 1
        assert events[0]["id"].endswith("-the-id")
        assert all(len(event["choices"]) == 1 for event in events)
        assert finish_reasons(events) == ["length"]
        assert events[-1]["choices"][0]["finish_reason"] == "length"
        if path == CHAT:
            assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert not any(event.get("usage") for event in events)

    @pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
    async def test_usage_comes_last_where_it_is_asked_for(self, engine: Started, path: str) -> None:
        events = await stream(engine, path, stream_options={"include_usage": True})
        assert events[-1]["choices"] == []
        assert events[-1]["usage"]["completion_tokens"] == 8
        assert not any(event.get("usage") for event in events[:-1])

    async def test_continuous_usage_counts_up(self, engine: Started) -> None:
        options = {"include_usage": True, "continuous_usage_stats": True}
        events = await stream(engine, COMPLETIONS, stream_options=options)
        counts = [event["usage"]["completion_tokens"] for event in events]
        assert counts == sorted(counts)
        assert counts[-1] == 8

    @pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
    async def test_a_stop_string_ends_the_text_before_it(self, engine: Started, path: str) -> None:
        text = text_of(await stream(engine, path))
        stop = text.split()[4]
        events = await stream(engine, path, stop=[stop])
        assert text_of(events) == text[: text.index(stop)]
        assert finish_reasons(events) == ["stop"]
        assert events[-1]["choices"][0]["stop_reason"] == stop

    async def test_log_probabilities_only_where_asked_for(self, engine: Started) -> None:
        plain = await stream(engine, CHAT, max_tokens=3)
        assert all(event["choices"][0]["logprobs"] is None for event in plain)
        asked = await stream(engine, CHAT, max_tokens=3, logprobs=True, top_logprobs=2)
        tokens = [
            token
            for event in asked
            for token in (event["choices"][0]["logprobs"] or {"content": []})["content"]
        ]
        assert "".join(token["token"] for token in tokens) == text_of(asked)
        assert all(token["logprob"] <= 0 and len(token["top_logprobs"]) == 2 for token in tokens)
        whole = await engine.http.post(COMPLETIONS, completion(max_tokens=3, logprobs=1))
        assert len(whole["choices"][0]["logprobs"]["token_logprobs"]) == 3

    @pytest.mark.parametrize(
        ("path", "body", "status", "type_"),
        [
            (CHAT, chat(model="nope"), 404, "NotFoundError"),
            (CHAT, chat(logprobs=True, top_logprobs=1_000_000), 400, "BadRequestError"),
            (COMPLETIONS, completion(logprobs=1_000_000), 400, "BadRequestError"),
            (CHAT, chat(model="nope", stream=True), 404, "NotFoundError"),
            (CHAT, {"model": "m"}, 400, "Bad Request"),
            (CHAT, chat(max_tokens=0), 400, "BadRequestError"),
            (CHAT, chat(max_tokens=5000), 400, "BadRequestError"),
            (CHAT, chat(max_tokens=5000, stream=True), 400, "BadRequestError"),
            (CHAT, chat(temperature=-1), 400, "BadRequestError"),
            (CHAT, chat(n=2), 400, "BadRequestError"),
            (CHAT, chat(max_tokens=-1), 400, "BadRequestError"),
            (CHAT, chat(messages=[]), 400, "BadRequestError"),
            (CHAT, chat(messages=[{"role": "user", "content": "a " * 5000}]), 400, "BadRequestError"),
            (CHAT, chat(messages=[PICTURE]), 400, "BadRequestError"),
            (
                CHAT,
                chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "no"}}),
                400,
                "BadRequestError",
            ),
            (CHAT, chat(structured_outputs={"regex": "(("}), 400, "BadRequestError"),
            (CHAT, chat(structured_outputs={"json": {"type": "nope"}}), 400, "BadRequestError"),
            (CHAT, chat(structured_outputs={"choice": []}), 400, "BadRequestError"),
            ("/detokenize", {"model": "m", "tokens": [-1]}, 400, "Bad Request"),
            (COMPLETIONS, completion(stream_options={"include_usage": True}), 400, "BadRequestError"),
            (EMBEDDINGS, {"model": "m", "input": "a"}, 404, ""),
        ],
    )
    async def test_refusals(self, engine: Started, path: str, body: Json, status: int, type_: str) -> None:
        """A stream that is refused is refused as a whole answer is: by status, before any event."""
        asked = anext(engine.http.stream(path, body)) if body.get("stream") else engine.http.post(path, body)
        with pytest.raises(EngineError) as caught:
            await asked
        assert (caught.value.status, caught.value.type) == (status, type_)
        assert caught.value.message

    @pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
    async def test_choices_are_made_side_by_side(self, engine: Started, path: str) -> None:
        asked: Json = {"n": 3, "temperature": 1, "seed": 1}
        whole = await engine.http.post(path, BODIES[path](**asked))
        assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
        assert whole["usage"]["completion_tokens"] == 24
        options = {"include_usage": True, "continuous_usage_stats": True}
        events = await stream(engine, path, stream_options=options, **asked)
        assert sorted(finish_reasons(events)) == ["length"] * 3
        texts = [
            text_of([{"choices": [one]} for event in events for one in event["choices"] if one["index"] == i])
            for i in range(3)
        ]
        assert all(texts)
        assert len(set(texts)) > 1
        # Each choice is counted by itself as it grows, and all of them at the end.
        counted = {choice["index"]: event["usage"] for event in events for choice in event["choices"]}
        assert [counted[i]["completion_tokens"] for i in range(3)] == [8, 8, 8]
        assert events[-1]["usage"]["completion_tokens"] == 24

    @pytest.mark.parametrize("choice", ["required", NAMED])
    async def test_a_tool_that_must_be_called(self, engine: Started, choice: Any) -> None:
        asked: Json = {"tools": [TOOL], "tool_choice": choice, "max_tokens": 300, "ignore_eos": False}
        asked["logit_bias"] = NO_BLANKS
        # As OpenAI's: the call of a tool that the request names ends as an answer does.
        ending = "tool_calls" if choice == "required" else "stop"
        whole = (await engine.http.post(CHAT, chat(**asked)))["choices"][0]
        (call,) = whole["message"]["tool_calls"]
        assert (call["type"], call["function"]["name"]) == ("function", "weather")
        arguments = json.loads(call["function"]["arguments"])
        assert arguments.keys() == {"unit", "sunny"}
        assert arguments["unit"] in ("C", "F")
        assert whole["finish_reason"] == ending

        events = await stream(engine, CHAT, **asked)
        parts = [
            part
            for event in events
            for choice in event["choices"]
            for part in choice["delta"].get("tool_calls") or ()
        ]
        assert {part["index"] for part in parts} == {0}
        assert parts[0]["id"]
        assert parts[0]["function"]["name"] == "weather"
        assert not any(part.get("id") or part["function"].get("name") for part in parts[1:])
        streamed = "".join(part["function"].get("arguments") or "" for part in parts)
        assert json.loads(streamed).keys() == {"unit", "sunny"}
        assert finish_reasons(events) == [ending]

    @pytest.mark.parametrize("choice", ["auto", "none"])
    async def test_a_tool_that_need_not_be_called(self, engine: Started, choice: str) -> None:
        answer = (await engine.http.post(CHAT, chat(tools=[TOOL], tool_choice=choice)))["choices"][0]
        assert not answer["message"].get("tool_calls")
        assert len(answer["message"]["content"].split()) == 8

    @pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
    @pytest.mark.parametrize(
        ("shape", "fits"),
        [
            ({"structured_outputs": {"choice": ["red", "green"]}}, re.compile("red|green")),
            ({"structured_outputs": {"regex": "[ab]{3}-[0-9]"}}, re.compile("[ab]{3}-[0-9]")),
            ({"structured_outputs": {"json": PARAMETERS}}, PARAMETERS),
            (
                {
                    "response_format": {
                        "type": "json_schema",
                        "json_schema": {"name": "a", "schema": PARAMETERS},
                    }
                },
                PARAMETERS,
            ),
        ],
    )
    async def test_an_answer_of_a_shape(self, engine: Started, path: str, shape: Json, fits: Any) -> None:
        asked: Json = {"max_tokens": 100, "ignore_eos": False, **shape}
        choice = (await engine.http.post(path, BODIES[path](**asked)))["choices"][0]
        text = choice["message"]["content"] if path == CHAT else choice["text"]
        assert text_of(await stream(engine, path, **asked)) == text
        assert choice["finish_reason"] == "stop"
        if isinstance(fits, re.Pattern):
            assert fits.fullmatch(text)
        else:
            # Properties come in the schema's order.
            assert list(json.loads(text)) == list(fits["properties"])

    async def test_the_field_at_fault_is_named(self, engine: Started) -> None:
        with pytest.raises(EngineError) as caught:
            await engine.http.post(CHAT, chat(max_tokens=5000))
        assert caught.value.parameter == "max_tokens"

    async def test_unknown_fields_are_ignored(self, engine: Started) -> None:
        assert (await engine.http.post(CHAT, chat(some_other_field=1)))["usage"]["completion_tokens"] == 8

    async def test_the_counters_count_tokens(self, engine: Started) -> None:
        before = await load(engine)
        usage = (await engine.http.post(COMPLETIONS, completion(max_tokens=20)))["usage"]
        after = await until(
            "the tokens to be counted",
            lambda: load(engine),
            lambda now: now.generation_tokens_total == before.generation_tokens_total + 20,
        )
        assert after.prompt_tokens_total == before.prompt_tokens_total + usage["prompt_tokens"]

    async def test_a_client_that_leaves_frees_its_slot(self, engine: Started) -> None:
        before = await load(engine)
        events = engine.http.stream(CHAT, chat(max_tokens=LONG, stream=True))
        async with contextlib.aclosing(events):
            for _ in range(3):
                await anext(events)
            busy = await load(engine)
            assert busy.running == 1
            assert 0 < busy.kv_cache_usage <= 1
        free = await until("the slot to be free", lambda: load(engine), lambda now: now.running == 0)
        assert free.generation_tokens_total - before.generation_tokens_total < LONG, "before all was made"

    async def test_requests_beyond_the_slots_wait_and_are_served_in_turn(self, engine: Started) -> None:
        tasks = [asyncio.create_task(stream(engine, COMPLETIONS, max_tokens=LONG)) for _ in range(SEQUENCES)]
        await until("all slots to be taken", lambda: load(engine), lambda now: now.running == SEQUENCES)
        tasks += [asyncio.create_task(stream(engine, COMPLETIONS)) for _ in range(2)]
        seen = await until("a queue", lambda: load(engine), lambda now: now.waiting > 0)
        assert seen.running <= SEQUENCES
        for events in await asyncio.gather(*tasks):
            assert finish_reasons(events) == ["length"]
        done = await until("an end", lambda: load(engine), lambda now: now.running == 0)
        assert done.waiting == 0

    async def test_a_stream_that_nobody_reads_does_not_grow_here(self, engine: Started) -> None:
        """The answer is read when somebody wants it, and all of it is there then."""
        events = engine.http.stream(COMPLETIONS, completion(max_tokens=LONG, stream=True))
        first = await anext(events)
        await until("the engine to be done", lambda: load(engine), lambda now: now.running == 0)
        rest = [event async for event in events]
        assert len(text_of([first, *rest]).split()) == LONG

    async def test_tokenize(self, engine: Started) -> None:
        answer = await engine.http.post("/tokenize", {"model": "m", "prompt": "tell me more"})
        assert answer["count"] == len(answer["tokens"]) > 0
        assert answer["max_model_len"] == 2048
        back = await engine.http.post("/detokenize", {"model": "m", "tokens": answer["tokens"]})
        assert back["prompt"] == "tell me more"
        messages = [{"role": "user", "content": "tell me more"}]
        chat_of = await engine.http.post("/tokenize", {"model": "m", "messages": messages})
        assert chat_of["count"] >= answer["count"]

    async def test_done_is_no_success_and_exit_0_is_a_failure(
        self, serving: tuple[Started, Background]
    ) -> None:
        engine, background = serving
        events = engine.http.stream(CHAT, chat(max_tokens=LONG, stream=True))
        seen = [await anext(events) for _ in range(3)]
        whole = asyncio.create_task(engine.http.post(CHAT, chat(max_tokens=LONG)))
        await until("both to run", lambda: load(engine), lambda now: now.running == 2)
        await kill_core(engine)
        # Under HTTP 200: an error event or nothing, then [DONE].
        seen += [event async for event in events]
        assert finish_reasons(seen) == []
        assert "error" not in seen[-1] or seen[-1]["error"]["code"] == 500
        with pytest.raises(EngineError) as caught:
            await whole
        assert caught.value.status in (0, 500)
        await until("the engine to be dead", lambda: engine.engine.alive(), lambda alive: not alive)
        ended = background.run(engine.engine.wait_exit(), 60)
        assert (ended.code, ended.asked) == (0, False)
        assert ended.exit_code != 0
        assert ended.last_words


@pytest.fixture(scope="class", params=ENGINES)
def pooling(request: pytest.FixtureRequest) -> Iterator[tuple[Started, Background]]:
    with running(request, request.param, "--max-model-len", "256", task="embed") as started:
        yield started


class TestPooling:
    """An engine that embeds, scores and reranks; and at the end it is stopped."""

    @pytest.fixture
    def engine(self, pooling: tuple[Started, Background]) -> Started:
        return pooling[0]

    async def test_embeddings(self, engine: Started) -> None:
        answer = await engine.http.post(EMBEDDINGS, {"model": "m", "input": ["a b", "c", "a b"]})
        vectors = [each["embedding"] for each in answer["data"]]
        assert [each["index"] for each in answer["data"]] == [0, 1, 2]
        assert vectors[0] == pytest.approx(vectors[2], abs=1e-4)
        assert vectors[0] != pytest.approx(vectors[1], abs=1e-2)
        assert sum(number * number for number in vectors[0]) == pytest.approx(1, abs=1e-3)
        assert answer["usage"]["prompt_tokens"] > 0
        packed = await engine.http.post(
            EMBEDDINGS, {"model": "m", "input": "a b", "encoding_format": "base64"}
        )
        assert isinstance(packed["data"][0]["embedding"], str)

    @pytest.mark.parametrize("version", ["", "/v1"])
    async def test_score_and_rerank(self, engine: Started, version: str) -> None:
        score = await engine.http.post(
            f"{version}/score", {"model": "m", "text_1": "a b", "text_2": ["c d", "a b"]}
        )
        same = {each["index"]: each["score"] for each in score["data"]}
        assert same[1] == pytest.approx(1, abs=1e-2)
        assert same[0] < same[1]
        assert score["usage"]["prompt_tokens"] > 0
        asked = {"model": "m", "query": "a b", "documents": ["c d", "a b"]}
        rerank = await engine.http.post(f"{version}/rerank", asked)
        assert [each["index"] for each in rerank["results"]] == [1, 0]
        assert rerank["results"][0]["document"]["text"] == "a b"
        best = await engine.http.post(f"{version}/rerank", asked | {"top_n": 1})
        assert [each["index"] for each in best["results"]] == [1]

    async def test_tokens_and_back(self, engine: Started) -> None:
        answer = await engine.http.post(
            "/tokenize", {"model": "m", "prompt": "a b", "add_special_tokens": False}
        )
        back = await engine.http.post("/detokenize", {"model": "m", "tokens": answer["tokens"]})
        assert back["prompt"] == "a b"

    @pytest.mark.parametrize(
        "body", [{"input": ["a " * 300]}, {"input": "a", "dimensions": 5}, {"input": []}, {"input": 5}]
    )
    async def test_what_cannot_be_embedded(self, engine: Started, body: Json) -> None:
        with pytest.raises(EngineError) as caught:
            await engine.http.post(EMBEDDINGS, {"model": "m", **body})
        assert caught.value.status == 400

    async def test_it_does_not_generate(self, engine: Started) -> None:
        with pytest.raises(EngineError) as caught:
            await engine.http.post(CHAT, chat())
        assert caught.value.status == 404

    async def test_sigterm(self, pooling: tuple[Started, Background]) -> None:
        engine, background = pooling
        ended = background.run(engine.engine.stop(30), 40)
        assert (ended.code, ended.exit_code, ended.asked) == (0, 0, True)


async def kill_core(engine: Started) -> None:
    """What a crash does: vLLM's core is a process of its own; the stand-in plays it."""
    if "penstock_runtime.standin" in engine.launch.command.argv:
        await engine.behave(die_after_tokens=1)
        return
    os.kill(core_of(engine.engine.pid), signal.SIGKILL)


def core_of(parent: int) -> int:
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            if fields["PPid"] == str(parent) and b"EngineCore" in (status.parent / "cmdline").read_bytes():
                return int(fields["Pid"])
    raise AssertionError(f"vLLM {parent} has no core")
