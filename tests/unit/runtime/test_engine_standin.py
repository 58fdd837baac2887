"""The stand-in's own promises: text that shows every gap, speed as set, faults as asked. What it shares with vLLM is in
tests/contract/test_engine_http.py."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from penstock_runtime.engine import EngineError
from penstock_runtime.engine_http import Json
from penstock_runtime.standin_engine import Behaviour, BehaviourError
from penstock_runtime.standin_text import StopFinder, from_messages, from_prompt
from tests.engines import Started, StartStandin, text_of, until

CHAT = "/v1/chat/completions"


def body(**fields: Any) -> Json:
    return {"model": "m", "messages": [{"role": "user", "content": "tell me more"}], "stream": True, **fields}


async def stream(started: Started, **fields: Any) -> list[Json]:
    return [event async for event in started.http.stream(CHAT, body(**fields))]


def expected(tokens: int) -> str:
    return " ".join(f"{('tell', 'me', 'more')[i % 3]}:{i}" for i in range(tokens))


async def running(started: Started) -> int:
    return (await started.engine.load()).running


async def present(started: Started) -> int:
    load = await started.engine.load()
    return load.running + load.waiting


@pytest.mark.parametrize("args", [(), ("--tokens-per-chunk", "7"), ("--tokens-per-second", "2000")])
async def test_no_token_is_missing_and_none_comes_twice(standin: StartStandin, args: tuple[str, ...]) -> None:
    started = await standin(*args)
    events = await stream(started, max_tokens=100, ignore_eos=True)
    assert text_of(events) == expected(100)


async def test_an_answer_ends_by_itself(standin: StartStandin) -> None:
    started = await standin("--answer-tokens", "5")
    events = await stream(started, stream_options={"include_usage": True})
    assert text_of(events) == expected(5)
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert events[-1]["usage"]["completion_tokens"] == 6  # and the token that says that it is over


async def test_speed_is_as_set(standin: StartStandin) -> None:
    started = await standin("--first-token-s", "0.3", "--tokens-per-second", "100")
    events = started.http.stream(CHAT, body(max_tokens=41, ignore_eos=True))
    begun = time.monotonic()
    await anext(events)
    first = time.monotonic() - begun
    rest = [event async for event in events]
    whole = time.monotonic() - begun
    assert len(rest) == 41
    # Never faster; how much slower is the machine's doing. Where this process is held up after the first token, the
    # others are there when it goes on: what is sure is when they end.
    assert first >= 0.3
    assert whole >= 0.69


async def test_speed_can_change_in_the_middle(standin: StartStandin) -> None:
    started = await standin("--tokens-per-second", "20")
    events = started.http.stream(CHAT, body(max_tokens=1000, ignore_eos=True))
    seen = [await anext(events), await anext(events)]
    await started.behave(tokens_per_second=0)
    async with asyncio.timeout(30):  # at 20 tokens a second it would be 50 s
        seen += [event async for event in events]
    assert text_of(seen) == expected(1000)


async def test_it_is_fast_enough_to_measure_others(standin: StartStandin) -> None:
    started = await standin("--max-model-len", "100000")
    bodies = [{**body(max_tokens=1000, ignore_eos=True), "stream": False} for _ in range(32)]
    fastest = 0.0
    for _ in range(10):  # What a busy machine takes away comes and goes.
        before = time.monotonic()
        answers = await asyncio.gather(*(started.http.post(CHAT, each) for each in bodies))
        tokens = sum(answer["usage"]["completion_tokens"] for answer in answers)
        fastest = max(fastest, tokens / (time.monotonic() - before))
        if fastest > 20_000:
            return
    raise AssertionError(f"{fastest:.0f} tokens a second at best")


async def test_dying_in_the_middle(standin: StartStandin) -> None:
    started = await standin("--tokens-per-second", "200", "--die-after-tokens", "10")
    other = asyncio.create_task(stream(started, max_tokens=8, ignore_eos=True))
    events = await stream(started, max_tokens=100, ignore_eos=True)
    assert text_of(events) == expected(10)
    assert events[-1]["error"]["code"] == 500
    assert (await started.engine.wait_exit()).code == 0
    assert text_of(await other).startswith("tell:0")


async def test_a_dead_core_is_unhealthy_before_it_is_gone(standin: StartStandin) -> None:
    started = await standin("--die-after-tokens", "0", "--exit-linger-s", "30")
    with pytest.raises(EngineError):
        await started.http.post(CHAT, {**body(), "stream": False})
    assert (await started.http.get("/health", 5))[0] == 503


async def test_a_hang_lasts_until_it_is_lifted(standin: StartStandin) -> None:
    started = await standin("--hang-after-tokens", "4")
    events = started.http.stream(CHAT, body(max_tokens=8, ignore_eos=True))
    seen = [await anext(events) for _ in range(5)]
    assert text_of(seen) == expected(4)
    waiting = asyncio.ensure_future(anext(events))
    assert not (await asyncio.wait((waiting,), timeout=0.2))[0]
    await started.behave(hang_after_tokens=None)
    seen += [await waiting, *[event async for event in events]]
    assert text_of(seen) == expected(8)


async def test_a_connection_that_is_cut(standin: StartStandin) -> None:
    started = await standin("--cut-after-tokens", "3")
    events = started.http.stream(CHAT, body(max_tokens=8))
    seen = [await anext(events) for _ in range(4)]
    assert text_of(seen) == expected(3)
    with pytest.raises(EngineError, match="in the middle"):
        await anext(events)


async def test_so_many_requests_fail(standin: StartStandin) -> None:
    started = await standin("--fail-requests", "2")
    for _ in range(2):
        with pytest.raises(EngineError) as caught:
            await stream(started)
        assert caught.value.status == 500
    assert text_of(await stream(started, max_tokens=2)) == expected(2)


async def test_a_queue_is_served_in_order(standin: StartStandin) -> None:
    started = await standin("--max-num-seqs", "1", "--hang-after-tokens", "1")
    ended: list[int] = []

    async def ask(number: int) -> None:
        await stream(started, max_tokens=3)
        ended.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(ask(number))
            await until("its turn in the queue", lambda: present(started), number.__lt__)
        load = await started.engine.load()
        assert (load.running, load.waiting) == (1, 3)
        await started.behave(hang_after_tokens=None)
    assert ended == [0, 1, 2, 3]


async def test_one_who_leaves_the_queue_takes_no_slot(standin: StartStandin) -> None:
    started = await standin("--max-num-seqs", "1", "--hang-after-tokens", "1")
    first = asyncio.create_task(stream(started, max_tokens=3))
    await until("the first to run", started.engine.load, lambda load: load.running == 1)
    second = asyncio.create_task(stream(started, max_tokens=3))
    await until("the second to wait", started.engine.load, lambda load: load.waiting == 1)
    second.cancel()
    await until("the second to be gone", started.engine.load, lambda load: load.waiting == 0)
    await started.behave(hang_after_tokens=None)
    assert text_of(await first) == expected(3)
    assert await until("an end", lambda: running(started), lambda now: now == 0) == 0


async def test_sigterm_cuts_streams_unless_told_to_let_them_finish(standin: StartStandin) -> None:
    started = await standin("--tokens-per-second", "50")
    events = started.http.stream(CHAT, body(max_tokens=1000, ignore_eos=True))
    seen = [await anext(events) for _ in range(3)]
    os.kill(started.engine.pid, signal.SIGTERM)
    async with asyncio.timeout(60):
        seen += [event async for event in events]
    assert seen[-1]["error"]["type"] == "InternalServerError"
    assert (await started.engine.wait_exit()).code == 0


async def test_sigterm_with_a_shutdown_timeout_lets_streams_finish(standin: StartStandin) -> None:
    """As vLLM does: new requests get 500, though /health says 200 all the while."""
    started = await standin("--hang-after-tokens", "2", "--shutdown-timeout", "30")
    events = started.http.stream(CHAT, body(max_tokens=5))
    seen = [await anext(events)]
    stopping = asyncio.create_task(started.engine.stop(30))

    async def refusal() -> int:
        try:
            await stream(started, max_tokens=0)
        except EngineError as error:
            return error.status
        return 200

    # 400 until the signal has arrived, for asking no tokens.
    await until("a refusal", refusal, lambda status: status == 500)
    assert await started.engine.alive()
    await started.behave(hang_after_tokens=None)
    seen += [event async for event in events]
    assert text_of(seen) == expected(5)
    ended = await stopping
    assert (ended.code, ended.exit_code, ended.asked) == (0, 0, True)


async def test_a_shutdown_timeout_ends(standin: StartStandin) -> None:
    started = await standin("--tokens-per-second", "20", "--shutdown-timeout", "0.3")
    events = started.http.stream(CHAT, body(max_tokens=1000, ignore_eos=True))
    seen = [await anext(events)]
    os.kill(started.engine.pid, signal.SIGTERM)
    async with asyncio.timeout(60):
        seen += [event async for event in events]
    assert "error" in seen[-1]


async def test_the_environment_sets_what_no_argument_does(standin: StartStandin) -> None:
    env = {"PENSTOCK_STANDIN_ANSWER_TOKENS": "3", "PENSTOCK_STANDIN_MAX_NUM_SEQS": "9"}
    started = await standin("--max-num-seqs", "2", env=env)
    _, text = await started.http.get("/standin/faults", 5)
    assert b'"answer_tokens":3' in text
    assert b'"max_num_seqs":2' in text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"speed": 1}, "speed is not known; known are start_delay_s"),
        ({"answer_tokens": 0}, "answer_tokens is 0; it must be 1 or above"),
        ({"tokens_per_second": "fast"}, "tokens_per_second is 'fast'; it must be of type float"),
        ({"unhealthy": 7}, "unhealthy is 7; it must be of type bool"),
        ({"die_after_tokens": 1.5}, "die_after_tokens is 1.5; it must be of type int or null"),
    ],
)
async def test_a_wrong_setting_is_refused_and_changes_nothing(
    standin: StartStandin, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(BehaviourError) as caught:
        Behaviour().changed(changes)
    assert str(caught.value).startswith(says)
    started = await standin()
    with pytest.raises(EngineError) as refused:
        await started.behave(exit_linger_s=5, **changes)
    assert refused.value.status == 400
    assert b'"exit_linger_s":0.0' in (await started.http.get("/standin/faults", 5))[1]


def test_arguments_that_vllm_knows_are_taken_and_others_are_not() -> None:
    command = [sys.executable, "-m", "penstock_runtime.standin", "--exit-at-start", "0"]
    known = [
        "--dtype",
        "float32",
        "--enforce-eager",
        "-tp",
        "2",
        "--gpu-memory-utilization=0.9",
        "some/model",
    ]
    assert subprocess.run([*command, *known], capture_output=True, timeout=30).returncode == 0
    unknown = subprocess.run([*command, "--max-token"], capture_output=True, text=True, timeout=30)
    assert unknown.returncode == 2
    assert "unrecognized arguments: --max-token" in unknown.stderr


async def test_over_tcp_with_keep_alive_pipelining_and_chunked_bodies() -> None:
    command = [sys.executable, "-u", "-m", "penstock_runtime.standin", "--port", "0", "--model", "m"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        port = int(line.partition("http://127.0.0.1:")[2].split()[0])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        asked = b'{"prompt":"a","max_tokens":1}'
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
        sized = head + b"Content-Length: %d\r\n\r\n" % len(asked) + asked
        pieces = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in (asked[:9], asked[9:]))
        chunked = head + b"Transfer-Encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n"
        writer.write(sized + chunked + b"GET /nothing HTTP/1.1\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(60):
            answers = await reader.read()
        writer.close()
        assert answers.count(b'"text":"a:0"') == 2
        assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"200", b"404"]
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"hello\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", b"413"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", b"501"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000, b"431"),
        (b"GET /v1/completions HTTP/1.1\r\nConnection: close\r\n\r\n", b"405"),
        (b"POST /v1/completions HTTP/1.1\r\nConnection: close\r\nContent-Length: 1\r\n\r\n{", b"400"),
        (b"POST /v1/completions HTTP/1.1\r\nConnection: close\r\nContent-Length: 2\r\n\r\n[]", b"400"),
    ],
)
async def test_requests_that_cannot_be_read(standin: StartStandin, request_: bytes, status: bytes) -> None:
    started = await standin()
    address = started.launch.address
    reader, writer = await asyncio.open_connection(address.host, address.port)
    key = "".join(f"{name}: {value}\r\n" for name, value in address.headers.items()).encode()
    writer.write(request_.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r\n" + key))
    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.close()
    assert answer.split()[1] == status


def test_stop_strings_across_tokens() -> None:
    finder = StopFinder(("bc", "cd1"))
    shown = "".join(finder.push(piece) for piece in ("a", "b", "xb", "x", "c", "d", "1"))
    assert finder.found == "cd1"
    assert shown == "abxbx"
    quiet = StopFinder(("xyz",))
    assert quiet.push("ax") + quiet.push("y") + quiet.rest() == "axy"
    assert quiet.found is None


def test_prompts() -> None:
    assert from_messages([{"role": "user", "content": [{"type": "text", "text": "a b"}]}]).words == ("a", "b")
    assert (
        from_messages([{"role": "system", "content": "a b c"}, {"role": "user", "content": ""}]).tokens == 11
    )
    assert from_prompt([5, 6]).words == ("t5", "t6")
    assert from_prompt(["one text"]).words == ("one", "text")
    assert from_prompt("").token(3) == " w:3"
