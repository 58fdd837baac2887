"""`make bench-runtime`: what the agent costs between a real vLLM and its clients.

    http    the engine's own HTTP server
    grpc    InferenceService of the agent beside it

Both stream chats of a tiny random Llama over TCP on this machine, as many at a time as `STREAMS` says, in turn and
several times in one run, read by the clients of `tests/bench/load`. The tokens are the engine's count; a part is an
event or a message; CPU is the agent's own. On few cores the engine, the agent and the clients take them from each
other, so that the agent's CPU says more than the rates do. Compare within a run only. Nothing here asserts a time.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from penstock_runtime.in_engine.penstock_engine_door import KEY_HEADER
from tests.bench.gateway import build
from tests.engines import ROOT, START_TIMEOUT_S, VLLM_ARGS, VLLM_ENV
from tests.integration.agent_kit import (
    METADATA,
    AgentProcess,
    FakeControl,
    agent,
    attempt_folder,
    chat,
    control_plane,
    until,
)

STREAMS = (1, 32, 128)
TOKENS = 250
ROUNDS = 3
PROMPT = "tell me more"
WAYS = ("http", "grpc")


@dataclass
class Measured:
    """One load: tokens a second, seconds to the first token, events or messages a token, agent's CPU seconds."""

    rate: float
    first_s: float
    parts: float
    cpu_us: float


async def main() -> None:
    """Starts vLLM under an agent, and prints a line for each number of streams."""
    paths = made("engine", "model:tiny-llama")
    async with serving(*paths) as (process, port):
        with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
            clients = Clients(Path(folder), process, port)
            for way in WAYS:
                await clients.run(way, 32)  # what is done once is done
            print(
                f"{'streams':>7}  {'':4}  {'tokens/s':>8}  {'first ms':>8}  {'parts/token':>11}  {'agent µs/token':>14}"
            )
            for streams in STREAMS:
                got: dict[str, list[Measured]] = {way: [] for way in WAYS}
                for _ in range(ROUNDS):
                    for way, rounds in got.items():
                        rounds.append(await clients.run(way, streams))
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


class Clients:
    """The load program, told where to go. `port` is the agent's."""

    def __init__(self, folder: Path, process: AgentProcess, port: int) -> None:
        self._program = build(folder)
        self._process = process
        self._usage = psutil.Process(process.process.pid)
        body = {
            "model": "smollm2",
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": TOKENS,
            "ignore_eos": True,
            "stream": True,
        }
        (folder / "body").write_text(json.dumps(body))
        (folder / "message").write_bytes(chat(PROMPT, max_tokens=TOKENS, ignore_eos=True).SerializeToString())
        method = ("-method", "/penstock.v1.InferenceService/StreamChat", "-message", str(folder / "message"))
        keys = json.loads((process.door_folder / "door.json").read_text())
        ((secret_name, secret),) = METADATA
        self._ways = {
            "http": (
                "-url", f"http://127.0.0.1:{process.engine_port}", "-body", str(folder / "body"),
                "-header", KEY_HEADER, "-value", keys["agent"],
            ),
            "grpc": ("-grpc", f"127.0.0.1:{port}", *method, "-header", secret_name, "-value", secret),
        }  # fmt: skip

    async def run(self, way: str, streams: int) -> Measured:
        """`streams` at once, each once, to their end."""
        before, made_before = self._usage.cpu_times(), await self._tokens()
        process = await asyncio.create_subprocess_exec(
            self._program, "drive", "-merged", *self._ways[way], "-streams", str(streams), "-requests", str(streams),
            "-tokens", str(TOKENS), stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, _ = await process.communicate()
        said = json.loads(output)
        after, made = self._usage.cpu_times(), await self._tokens() - made_before
        if said["failed"] or made != streams * TOKENS:
            raise RuntimeError(f"{made} tokens of {streams * TOKENS} were made: {said}")
        cpu_s = after.user + after.system - before.user - before.system
        return Measured(
            rate=made / said["seconds"],
            first_s=said["first_p50_ms"] / 1e3,
            parts=said["tokens"] / made,
            cpu_us=cpu_s / made * 1e6,
        )

    async def _tokens(self) -> int:
        _, text = await self._process.engine.get("/metrics", 5)
        lines = [
            line for line in text.decode().splitlines() if line.startswith("vllm:generation_tokens_total{")
        ]
        return sum(int(float(line.rpartition(" ")[2])) for line in lines)


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
