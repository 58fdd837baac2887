"""However reads and writes alternate, what comes out, put together, is what went in."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.v1 import inference_pb2 as pb
from penstock_runtime.merge import ChatMerge, EngineFault, GenerateMerge
from penstock_runtime.pipe import Pipe, Unfinished
from penstock_runtime.translate import BadAnswer, Json

REASONS = {"stop": pb.FINISH_REASON_STOP, "length": pb.FINISH_REASON_LENGTH}
USAGE = {"prompt_tokens": 3, "completion_tokens": 9}


@dataclass
class Whole:
    """A stream put together: text, reasoning, calls, log probabilities and finish reason of each choice."""

    text: dict[int, str] = field(default_factory=lambda: defaultdict(str))
    reasoning: dict[int, str] = field(default_factory=lambda: defaultdict(str))
    arguments: dict[tuple[int, int], str] = field(default_factory=lambda: defaultdict(str))
    names: dict[tuple[int, int], str] = field(default_factory=lambda: defaultdict(str))
    tokens: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    finished: dict[int, int] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    usages: list[pb.Usage] = field(default_factory=list)


def event(*choices: Json, usage: Json | None = None) -> Json:
    return {"id": "chatcmpl-1", "model": "m", "choices": list(choices), "usage": usage}


def of_events(events: Iterable[Json]) -> Whole:
    whole = Whole(ids=["chatcmpl-1"], usages=[pb.Usage(prompt_tokens=3, completion_tokens=9)])
    for each in events:
        for choice in each["choices"]:
            index, delta = choice["index"], choice["delta"]
            whole.text[index] += delta.get("content") or ""
            whole.reasoning[index] += delta.get("reasoning") or ""
            for call in delta.get("tool_calls") or ():
                whole.arguments[index, call["index"]] += call["function"].get("arguments") or ""
                whole.names[index, call["index"]] += call["function"].get("name") or ""
            whole.tokens[index] += [one["token"] for one in (choice.get("logprobs") or {}).get("content", ())]
            if choice.get("finish_reason"):
                whole.finished[index] = REASONS[choice["finish_reason"]]
    return whole


def of_chunks(chunks: Iterable[pb.StreamChatResponse]) -> Whole:
    whole = Whole()
    for chunk in chunks:
        whole.ids += [chunk.id] if chunk.id else []
        whole.usages += [chunk.usage] if chunk.HasField("usage") else []
        for choice in chunk.choices:
            assert choice.index not in whole.finished, "text after the finish reason"
            whole.text[choice.index] += choice.content
            whole.reasoning[choice.index] += choice.reasoning_content
            for call in choice.tool_calls:
                whole.arguments[choice.index, call.index] += call.arguments
                whole.names[choice.index, call.index] += call.name
            whole.tokens[choice.index] += [one.token for one in choice.logprobs]
            if choice.finish_reason:
                whole.finished[choice.index] = choice.finish_reason
    return whole


def same(left: Whole, right: Whole) -> None:
    for name in ("text", "reasoning", "arguments", "names", "tokens"):
        ours, theirs = getattr(left, name), getattr(right, name)
        assert {k: v for k, v in ours.items() if v} == {k: v for k, v in theirs.items() if v}, name
    assert (left.finished, left.ids, left.usages) == (right.finished, right.ids, right.usages)


texts = st.text(max_size=5)


@st.composite
def deltas(draw: st.DrawFn) -> Json:
    delta: Json = {}
    if draw(st.booleans()):
        delta["content"] = draw(texts)
    if draw(st.integers(0, 3)) == 0:
        delta["reasoning"] = draw(texts)
    if draw(st.integers(0, 3)) == 0:
        delta["tool_calls"] = [
            {
                "index": draw(st.integers(0, 1)),
                "id": "c",
                "function": {"name": None, "arguments": draw(texts)},
            }
        ]
    return delta


@st.composite
def streams(draw: st.DrawFn) -> tuple[int, list[Json]]:
    """A stream as an engine sends it: events of several choices mixed, each choice finished once, usage at the end."""
    choices = draw(st.integers(1, 3))
    steps = draw(st.lists(st.tuples(st.integers(0, choices - 1), deltas(), st.booleans()), max_size=30))
    events = [
        event(
            {
                "index": index,
                "delta": delta,
                "logprobs": {"content": [{"token": str(i), "logprob": -1.0}]} if logprobs else None,
                "finish_reason": None,
            }
        )
        for i, (index, delta, logprobs) in enumerate(steps)
    ]
    for index in range(choices):
        after = max((i for i, (of, _, _) in enumerate(steps) if of == index), default=-1)
        reason = draw(st.sampled_from(sorted(REASONS)))
        events.append(event({"index": index, "delta": {}, "finish_reason": reason}))
        # Not all at the end: a choice may finish as soon as its last text is out.
        if draw(st.booleans()):
            events.insert(after + 1, events.pop())
            steps.insert(after + 1, (-1, {}, False))
    return choices, [*events, event(usage=USAGE)]


@settings(deadline=None)
@given(streams(), st.data())
def test_adds_and_takes_in_any_order(stream: tuple[int, list[Json]], data: st.DataObject) -> None:
    choices, events = stream
    merge = ChatMerge(choices)
    chunks = []
    for each in events:
        merge.add(each)
        if merge.size and data.draw(st.booleans()):
            chunks.append(merge.take())
    if merge.size:
        chunks.append(merge.take())
    assert merge.finished
    same(of_chunks(chunks), of_events(events))


@settings(deadline=None)
@given(streams(), st.lists(st.integers(0, 3), max_size=60), st.integers(1, 12))
def test_a_pipe_with_any_speeds(stream: tuple[int, list[Json]], pauses: list[int], limit: int) -> None:
    choices, events = stream
    pause = iter(pauses)

    async def engine() -> AsyncGenerator[Json, None]:
        for each in events:
            for _ in range(next(pause, 0)):
                await asyncio.sleep(0)
            yield each

    async def run() -> list[pb.StreamChatResponse]:
        pipe = Pipe(ChatMerge(choices), limit=limit)
        reader = asyncio.create_task(pipe.fill(engine()))
        chunks = []
        async for chunk in pipe.chunks():
            for _ in range(next(pause, 0)):
                await asyncio.sleep(0)
            chunks.append(chunk)
        await reader
        return chunks

    chunks = asyncio.run(run())
    same(of_chunks(chunks), of_events(events))
    # The last chunk has the token counts, and at least one choice's finish reason beside them.
    assert chunks[-1].HasField("usage")
    assert any(choice.finish_reason for choice in chunks[-1].choices)


def text_event(text: str, reason: str | None = None) -> Json:
    return event({"index": 0, "delta": {"content": text}, "finish_reason": reason})


async def collect(pipe: Pipe[pb.StreamChatResponse], events: list[Any]) -> tuple[str, Exception | None]:
    """The text that came out, and what ended the stream. An exception among `events` is raised there."""

    async def engine() -> AsyncGenerator[Json, None]:
        for each in events:
            if isinstance(each, Exception):
                raise each
            yield each

    reader = asyncio.create_task(pipe.fill(engine()))
    text = ""
    try:
        async for chunk in pipe.chunks():
            text += "".join(choice.content for choice in chunk.choices)
    except Exception as error:
        return text, error
    finally:
        await reader
    return text, None


@pytest.mark.parametrize(
    ("events", "kind"),
    [
        ([text_event("a"), text_event("b")], Unfinished),
        ([text_event("a"), text_event("b"), ConnectionResetError()], ConnectionResetError),
        ([text_event("a"), text_event("b"), {"error": {"message": "died", "code": 500}}], EngineFault),
        ([text_event("a"), text_event("b"), {"error": "died"}], EngineFault),
        ([text_event("a"), text_event("b"), {"error": None}], BadAnswer),
        ([text_event("a"), text_event("b"), {"choices": [{"delta": {}}]}], BadAnswer),
        ([text_event("a"), text_event("b", "error")], BadAnswer),
        ([text_event("a"), text_event("b", "stop"), ConnectionResetError()], ConnectionResetError),
    ],
)
async def test_what_came_before_a_failure_is_sent(events: list[Any], kind: type[Exception]) -> None:
    merge = ChatMerge(1)
    text, error = await collect(Pipe(merge), events)
    assert text == "ab"
    assert type(error) is kind


def test_what_was_made_is_counted_though_its_end_never_came() -> None:
    """The engine counts each choice by itself in every event, and all of them at the end."""
    merge = ChatMerge(2)
    assert merge.counted == pb.Usage()
    for index, made in ((0, 1), (1, 1), (0, 3)):
        usage = {"prompt_tokens": 5, "completion_tokens": made}
        merge.add(event({"index": index, "delta": {"content": "x"}, "finish_reason": None}, usage=usage))
        assert not merge.take().HasField("usage")
    assert merge.counted == pb.Usage(prompt_tokens=5, completion_tokens=4)
    merge.add(event(usage=USAGE))
    assert merge.counted.completion_tokens == merge.take().usage.completion_tokens == 9


async def test_a_second_choice_that_never_finished_is_missed() -> None:
    _, error = await collect(Pipe(ChatMerge(2)), [text_event("a", "stop")])
    assert isinstance(error, Unfinished)


async def test_a_slow_writer_stops_the_reader() -> None:
    read = 0

    async def engine() -> AsyncGenerator[Json, None]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield text_event("x" * 10)
        yield text_event("", "stop")

    pipe = Pipe(ChatMerge(1), limit=50)
    reader = asyncio.create_task(pipe.fill(engine()))
    chunks = pipe.chunks()
    first = await anext(chunks)
    seen = len(first.choices[0].content)
    for _ in range(50):
        await asyncio.sleep(0)
    assert read * 10 <= seen + 60
    rest = [chunk async for chunk in chunks]
    await reader
    assert seen + sum(len(chunk.choices[0].content) for chunk in rest) == 1000
    assert max(len(chunk.choices[0].content) for chunk in rest) <= 50


async def test_a_reader_that_is_cancelled_is_no_end() -> None:
    started = asyncio.Event()

    async def engine() -> AsyncGenerator[Json, None]:
        yield text_event("a")
        started.set()
        await asyncio.Event().wait()

    pipe = Pipe(ChatMerge(1))
    reader = asyncio.create_task(pipe.fill(engine()))
    await started.wait()
    reader.cancel()
    with pytest.raises(Unfinished):
        _ = [chunk async for chunk in pipe.chunks()]


def test_generate_merges_text_and_log_probabilities() -> None:
    merge = GenerateMerge(1)
    for text in ("Once", " upon"):
        logprobs = {"tokens": [text], "token_logprobs": [-0.5], "top_logprobs": [{text: -0.5}]}
        merge.add(event({"index": 0, "text": text, "logprobs": logprobs, "finish_reason": None}))
    chunk = merge.take()
    assert chunk.choices[0].text == "Once upon"
    assert [one.token for one in chunk.choices[0].logprobs] == ["Once", " upon"]
    before = merge.finished
    merge.add(event({"index": 0, "text": "", "finish_reason": "stop", "stop_reason": "."}))
    assert (before, merge.finished) == (False, True)
    merge.add(event(usage=USAGE))
    last = merge.take()
    assert (last.id, last.choices[0].finish_reason) == ("", pb.FINISH_REASON_STOP)
    assert last.choices[0].stop_reason == "."
    assert last.usage.completion_tokens == 9


def test_parts_of_a_tool_call_become_one() -> None:
    merge = ChatMerge(1)
    parts: list[Json] = [
        {"index": 0, "id": "call-1", "type": "function", "function": {"name": "weather", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"city":'}},
        {"index": 0, "function": {"arguments": ' "Oslo"}'}},
        {"index": 1, "id": "call-2", "function": {"name": "time", "arguments": "{}"}},
    ]
    for part in parts:
        merge.add(event({"index": 0, "delta": {"tool_calls": [part]}, "finish_reason": None}))
    assert list(merge.take().choices[0].tool_calls) == [
        pb.ToolCall(index=0, id="call-1", name="weather", arguments='{"city": "Oslo"}'),
        pb.ToolCall(index=1, id="call-2", name="time", arguments="{}"),
    ]
