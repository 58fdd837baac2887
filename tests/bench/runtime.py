"""`make bench-runtime`: what the agent costs between a real vLLM and its clients.

    http    the engine's own HTTP server, read from its socket
    grpc    InferenceService of the agent beside it, over TCP on this machine

Both stream chats of a tiny random Llama, as many at a time as `STREAMS` says, in turn and several times in one run,
with one client process for both. The engine counts the tokens. CPU is the agent's own. On few cores the
engine, the agent and the client take them from each other, so the agent's CPU time a token says more than the rates.
Compare within a run only. Nothing here asserts a time.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from penstock_runtime.engine_http import EngineHttp
from tests.engines import ROOT, START_TIMEOUT_S, VLLM_ARGS, VLLM_ENV
from tests.integration.agent_kit import (
    METADATA,
    AgentProcess,
    FakeControl,
    agent,
    attempt_folder,
    chat,
    client,
    control_plane,
    until,
)

STREAMS = (1, 32, 128)
TOKENS = 250
ROUNDS = 3
PROMPT = "tell me more"


@dataclass
class Measured:
    """One load: tokens a second, seconds to the first token, events or messages a token, agent's CPU seconds."""

    rate: float
    first_s: float
    parts: float
    cpu_us: float


Stream = Callable[[int], Awaitable[tuple[int, int, float]]]
"""Tokens to ask for; returns tokens made, events or messages that carried them, seconds to the first."""


async def main() -> None:
    """Starts vLLM under an agent, and prints a line for each number of streams."""
    paths = made("engine", "model:tiny-llama")
    async with serving(*paths) as (process, port):
        engine = process.engine
        usage = psutil.Process(process.process.pid)
        async with client(port) as stub:
            ways: dict[str, Stream] = {"http": over_http(engine), "grpc": over_grpc(stub)}
            for stream in ways.values():
                await load(stream, 32, usage)  # what is done once is done
            print(
                f"{'streams':>7}  {'':4}  {'tokens/s':>8}  {'first ms':>8}  {'parts/token':>11}  {'agent µs/token':>14}"
            )
            for streams in STREAMS:
                got: dict[str, list[Measured]] = {name: [] for name in ways}
                for _ in range(ROUNDS):
                    for name, stream in ways.items():
                        got[name].append(await load(stream, streams, usage))
                report(streams, got)


def report(streams: int, got: dict[str, list[Measured]]) -> None:
    """Medians of each way, and of the rates' ratio round by round."""
    for name, rounds in got.items():
        rate, first_s, parts, cpu_us = (
            statistics.median(getattr(one, field) for one in rounds)
            for field in ("rate", "first_s", "parts", "cpu_us")
        )
        print(
            f"{streams:7}  {name}  {rate:8.0f}  {first_s * 1e3:8.1f}  {parts:11.2f}  {cpu_us:14.1f}",
            flush=True,
        )
    ratios = [grpc.rate / http.rate for http, grpc in zip(got["http"], got["grpc"], strict=True)]
    print(
        f"{'':7}  grpc / http {statistics.median(ratios):.2f}  ({min(ratios):.2f} to {max(ratios):.2f})",
        flush=True,
    )


async def load(stream: Stream, streams: int, usage: psutil.Process) -> Measured:
    """`streams` at once, to their end."""
    before, begun = usage.cpu_times(), time.perf_counter()
    done = await asyncio.gather(*(stream(TOKENS) for _ in range(streams)))
    took_s, after = time.perf_counter() - begun, usage.cpu_times()
    tokens = sum(made for made, _, _ in done)
    cpu_s = after.user + after.system - before.user - before.system
    return Measured(
        rate=tokens / took_s,
        first_s=statistics.median(first for _, _, first in done),
        parts=sum(parts for _, parts, _ in done) / tokens,
        cpu_us=cpu_s / tokens * 1e6,
    )


def over_http(engine: EngineHttp) -> Stream:
    """The engine's own server, by the agent's own client."""

    async def stream(tokens: int) -> tuple[int, int, float]:
        body = {
            "model": "smollm2",
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        begun, first_s, parts, made = time.perf_counter(), 0.0, 0, 0
        async for event in engine.stream("/v1/chat/completions", body):
            if event.get("usage"):
                made = event["usage"]["completion_tokens"]
            elif event["choices"][0]["delta"].get("content"):
                first_s = first_s or time.perf_counter() - begun
                parts += 1
        return made, parts, first_s

    return stream


def over_grpc(stub: Any) -> Stream:
    """InferenceService, by gRPC's own client."""

    async def stream(tokens: int) -> tuple[int, int, float]:
        request = chat(PROMPT, max_tokens=tokens, ignore_eos=True)
        begun, first_s, parts, made = time.perf_counter(), 0.0, 0, 0
        async for chunk in stub.StreamChat(request, metadata=METADATA):
            first_s = first_s or time.perf_counter() - begun
            parts += 1
            made = chunk.usage.completion_tokens or made
        return made, parts, first_s

    return stream


@asynccontextmanager
async def serving(engine: str, model: str) -> AsyncIterator[tuple[AgentProcess, int]]:
    """An agent with vLLM, ready, and its port."""
    control = FakeControl()
    args = [*VLLM_ARGS, "--max-num-seqs", str(max(STREAMS))]
    changes: dict[str, Any] = {
        "engine": {"name": "vllm", "args": args, "env": VLLM_ENV, "task": "generate"},
        "environment": {"venv": engine},
        "model": {"path": model},
        "startup_timeout_s": START_TIMEOUT_S,
    }
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as home:
        async with (
            control_plane(control) as port,
            agent(attempt_folder(Path(home), port, **changes)) as process,
        ):
            ended = process.process
            await until(
                lambda: control.last("READY") or ended.returncode is not None, "READY", START_TIMEOUT_S
            )
            if not control.last("READY"):
                sys.exit(process.log)
            yield process, control.registered[0].port


def made(*parts: str) -> list[str]:
    """The folders of the engine and of the model, made if need be."""
    script = str(ROOT / "deploy" / "engine" / "environment.py")
    wanted = [argument for part in parts for argument in ("--only", part)]
    done = subprocess.run(
        [sys.executable, script, "--progress", *wanted], stdout=subprocess.PIPE, text=True, check=True
    )
    folders = dict(line.split("\t") for line in done.stdout.splitlines())
    return [folders[part] for part in parts]


if __name__ == "__main__":
    asyncio.run(main())
