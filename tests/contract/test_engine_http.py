"""What Penstock relies on of an engine's HTTP, held against vLLM itself and the stand-in: the two may not differ.

Each test says one fact. Where they may differ (the words of a message, the length of a default answer) nothing is said.
A class has one engine of each kind; vLLM takes a minute to start, so the classes are few.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock_runtime.engine import EngineError
from penstock_runtime.engine_http import EngineHttp, Json
from tests.engines import (
    STANDIN_TIMEOUT_S,
    Background,
    Started,
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
        model: Path = request.getfixturevalue("tiny_llama")
        with start_vllm(env, model, "--max-num-seqs", str(SEQUENCES), *args, task=task) as started:
            yield started
        return
    folder = tempfile.mkdtemp(prefix="penstock-engine-")
    speed = ("--tokens-per-second", "800", "--max-num-seqs", str(SEQUENCES), "--max-model-len", "2048")
    what = standin_launch(*speed, *args, task=task, uds=f"{folder}/s.sock")
    with start_in_background(what, STANDIN_TIMEOUT_S) as started:
        yield started
    shutil.rmtree(folder)


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


async def test_an_engine_that_is_not_there_is_an_error_without_a_status(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        await EngineHttp(str(tmp_path / "none.sock")).post(CHAT, chat())
    assert caught.value.status == 0


@pytest.fixture(scope="class", params=ENGINES)
def serving(request: pytest.FixtureRequest) -> Iterator[tuple[Started, Background]]:
    with running(request, request.param) as started:
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
            (CHAT, chat(model="nope", stream=True), 404, "NotFoundError"),
            (CHAT, {"model": "m"}, 400, "Bad Request"),
            (CHAT, chat(max_tokens=0), 400, "BadRequestError"),
            (CHAT, chat(max_tokens=5000), 400, "BadRequestError"),
            (CHAT, chat(max_tokens=5000, stream=True), 400, "BadRequestError"),
            (CHAT, chat(temperature=-1), 400, "BadRequestError"),
            (CHAT, chat(n=2), 400, "BadRequestError"),
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
        events = engine.http.stream(CHAT, chat(max_tokens=LONG, stream=True))
        async with contextlib.aclosing(events):
            for _ in range(3):
                await anext(events)
            busy = await load(engine)
            assert busy.running == 1
            assert 0 < busy.kv_cache_usage <= 1
        left = time.monotonic()
        await until("the slot to be free", lambda: load(engine), lambda now: now.running == 0)
        # Itself 0.1 s; the rest is for reading metrics on a machine that does other things too.
        assert time.monotonic() - left < 2

    async def test_requests_beyond_the_slots_wait_and_are_served_in_turn(self, engine: Started) -> None:
        tasks = [
            asyncio.create_task(stream(engine, COMPLETIONS, max_tokens=200)) for _ in range(SEQUENCES + 2)
        ]
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
    with running(request, request.param, task="embed") as started:
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

    async def test_score_and_rerank(self, engine: Started) -> None:
        score = await engine.http.post("/score", {"model": "m", "text_1": "a b", "text_2": ["c d", "a b"]})
        same = {each["index"]: each["score"] for each in score["data"]}
        assert same[1] == pytest.approx(1, abs=1e-2)
        assert same[0] < same[1]
        rerank = await engine.http.post(
            "/rerank", {"model": "m", "query": "a b", "documents": ["c d", "a b"]}
        )
        assert [each["index"] for each in rerank["results"]] == [1, 0]
        assert rerank["results"][0]["document"]["text"] == "a b"

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
