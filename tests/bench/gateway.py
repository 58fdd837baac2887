"""`make bench-gateway`: what the front door adds to a stream, beside the routers that others use.

    direct         the replica itself
    penstock       Envoy with Penstock's configuration: model from the body, least request, health checks
    vllm-router    \\
    sglang-router   peers from PyPI, as their documentation starts them, one worker
    litellm        /

All stand before the same replica, which streams as fast as it is read or at a pace; it and the clients are one Go
program (`tests/bench/load`), because in Python they would be the limit. In each round every one is measured once, one
after the other, and of the rounds the medians are shown: compare within a run only. Nothing here asserts a time.

CPU is user and system time of a contender's whole process tree, the gateway's Python included.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from penstock.v1 import inference_pb2 as pb
from tests.integration.front_door_kit import House, endpoint, free_port, route

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock" / "peers"
PEERS = {
    "vllm-router": "vllm-router==0.1.17",
    "sglang-router": "sglang-router==0.3.2",
    # Newer ones ask for a companion that is not published.
    "litellm": "litellm[proxy]==1.105.0",
}
KEY = "sk-bench-0123456789abcdef0123456789abcdef"
"""LiteLLM does not start without one."""
START_S = 120.0
METHOD = "/penstock.v1.InferenceService/StreamChat"
PACE = "20ms"


@dataclass(frozen=True, slots=True)
class Run:
    """One load."""

    name: str
    streams: int
    requests: int
    tokens: int
    pace: str = "0"
    slow: bool = True
    """Whether a contender that takes a millisecond for a token is asked, too."""


RUNS = (
    Run("1 stream", 1, 40, 100),
    Run("32 streams", 32, 640, 100),
    Run("128 streams", 128, 1280, 100, slow=False),
    Run("1 token a request, 32 at a time", 32, 1600, 1, slow=False),
    Run("32 streams, paced", 32, 32, 150, PACE),
    Run("128 streams, paced", 128, 128, 150, PACE, slow=False),
    Run("1,000 streams, paced", 1000, 1000, 250, PACE, slow=False),
)
SLOW_REQUESTS = 64


@dataclass(frozen=True, slots=True)
class Contender:
    """Something that stands before the replica."""

    name: str
    address: tuple[str, ...]
    """Arguments of `load drive` that lead there."""
    processes: tuple[psutil.Process, ...]
    """The roots of its process trees; none: there is nothing between."""
    slow: bool = False


@dataclass(slots=True)
class Figures:
    """What the rounds of one contender and one run showed."""

    reports: list[dict[str, Any]] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    """A token, or a request where a request is one token."""
    memory_mib: float = 0.0

    def median(self, key: str) -> float:
        return statistics.median([float(report[key]) for report in self.reports])


def tree(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def all_of(roots: Sequence[psutil.Process]) -> list[psutil.Process]:
    return [one for root in roots for one in tree(root)]


def cpu_s(roots: Sequence[psutil.Process]) -> float:
    total = 0.0
    for one in all_of(roots):
        with contextlib.suppress(psutil.NoSuchProcess):
            used = one.cpu_times()
            total += used.user + used.system
    return total


def memory_mib(roots: Sequence[psutil.Process]) -> float:
    return sum(float(one.memory_info().rss) for one in all_of(roots)) / 2**20


def build(folder: Path) -> Path:
    """The load program."""
    program = folder / "load"
    environment = {**os.environ, "GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOFLAGS": ""}
    subprocess.run(["go", "build", "-o", program, "."], cwd=HERE / "load", env=environment, check=True)
    return program


def peer(name: str) -> Path:
    """The peer's command, installed in an environment of its own when it is not there yet."""
    folder = CACHE / PEERS[name].replace("[proxy]", "").replace("==", "-")
    command = folder / "bin" / name
    if not command.exists():
        print(f"installing {PEERS[name]}", flush=True)
        subprocess.run(["uv", "venv", "-q", "--clear", folder], check=True)
        subprocess.run(
            ["uv", "pip", "install", "-q", "--python", folder / "bin" / "python", PEERS[name]], check=True
        )
    return command


class Bench:
    """The replica and its contenders, all of which end with the stack."""

    def __init__(self, folder: Path, load: Path, stack: contextlib.AsyncExitStack) -> None:
        self._folder = folder
        self._load = load
        self._stack = stack
        self._http = f"127.0.0.1:{free_port()}"
        self._rpc_port = free_port()

    def start(self, name: str, *command: str | Path, **environment: str) -> psutil.Process:
        log = (self._folder / f"{name}.log").open("wb")
        self._stack.callback(log.close)
        started = subprocess.Popen(
            [str(word) for word in command],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
        process = psutil.Process(started.pid)

        def stop() -> None:
            for one in reversed(tree(process)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            started.wait()

        self._stack.callback(stop)
        return process

    def replica(self) -> None:
        token = pb.StreamChatResponse(
            id="chatcmpl-bench",
            model="bench",
            choices=[pb.ChatChoice(content=" word")],
        )
        end = pb.StreamChatResponse(
            id="chatcmpl-bench",
            model="bench",
            choices=[pb.ChatChoice(finish_reason=pb.FINISH_REASON_STOP)],
        )
        message = pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text="Say many words.")])
        asked = pb.StreamChatRequest(model="bench", messages=[message])
        for name, content in (("chunk", token), ("last", end), ("request", asked)):
            (self._folder / name).write_bytes(content.SerializeToString())
        rpc = f"127.0.0.1:{self._rpc_port}"
        chunk, last = self._folder / "chunk", self._folder / "last"
        self.start(
            "replica", self._load, "serve", "-http", self._http, "-grpc", rpc, "-chunk", chunk, "-last", last
        )
        answers(f"http://{self._http}/health")

    def rpc(self, target: str) -> tuple[str, ...]:
        return ("-grpc", target, "-method", METHOD, "-message", str(self._folder / "request"))

    def direct(self) -> list[Contender]:
        return [
            Contender("direct REST", ("-url", f"http://{self._http}"), ()),
            Contender("direct gRPC", self.rpc(f"127.0.0.1:{self._rpc_port}"), ()),
        ]

    async def penstock(self) -> list[Contender]:
        """Envoy and the gateway, with one replica that the state says is ready."""
        house = await self._stack.enter_async_context(House(gateway=False))
        replica = endpoint(self._rpc_port, engine_port=int(self._http.rpartition(":")[2]))
        gateway = await house.gateway_process(replace(route("bench"), endpoints=(replica,)))
        await house.open()
        await until_answered(house)
        both = (psutil.Process(house.envoy.pid), psutil.Process(gateway.pid))
        return [
            Contender("penstock REST", ("-url", f"http://{house.settings.listen}"), both),
            Contender("penstock gRPC", self.rpc(house.settings.listen), both),
        ]

    def routers(self) -> list[Contender]:
        """The peers that can be installed here."""
        upstream, found = f"http://{self._http}", []
        for name, prepare in (
            ("vllm-router", self._vllm),
            ("sglang-router", self._sglang),
            ("litellm", self._litellm),
        ):
            try:
                command = peer(name)
            except subprocess.CalledProcessError as error:
                print(f"WITHOUT {name}: {PEERS[name]} cannot be installed ({error})", flush=True)
                continue
            port = free_port()
            process = prepare(command, port, upstream)
            found.append(
                Contender(
                    name,
                    ("-url", f"http://127.0.0.1:{port}", "-key", KEY),
                    (process,),
                    slow=name == "litellm",
                )
            )
        return found

    def _vllm(self, command: Path, port: int, upstream: str) -> psutil.Process:
        process = self.start(
            "vllm-router", command, "--host", "127.0.0.1", "--port", str(port), "--worker-urls", upstream,
            "--policy", "round_robin", "--prometheus-port", str(free_port()), "--log-level", "error",
        )  # fmt: skip
        answers(f"http://127.0.0.1:{port}/health")
        return process

    def _sglang(self, command: Path, port: int, upstream: str) -> psutil.Process:
        process = self.start(
            "sglang-router", command, "launch", "--host", "127.0.0.1", "--port", str(port), "--worker-urls",
            upstream, "--policy", "round_robin", "--prometheus-port", str(free_port()), "--log-level", "error",
        )  # fmt: skip
        answers(f"http://127.0.0.1:{port}/v1/models")
        return process

    def _litellm(self, command: Path, port: int, upstream: str) -> psutil.Process:
        parameters = {"model": "openai/bench", "api_base": f"{upstream}/v1", "api_key": "none"}
        config = self._folder / "litellm.json"
        config.write_text(json.dumps({"model_list": [{"model_name": "bench", "litellm_params": parameters}]}))
        process = self.start(
            "litellm", command, "--config", config, "--host", "127.0.0.1", "--port", str(port), "--telemetry",
            "False", DISABLE_ADMIN_UI="true", LITELLM_MASTER_KEY=KEY, LITELLM_LOG="ERROR",
        )  # fmt: skip
        answers(f"http://127.0.0.1:{port}/health/liveliness")
        return process

    def measure(self, contender: Contender, run: Run, figures: Figures) -> None:
        requests = min(run.requests, SLOW_REQUESTS) if contender.slow else run.requests
        command = [
            str(self._load), "drive", *contender.address, "-streams", str(run.streams), "-requests", str(requests),
            "-tokens", str(run.tokens), "-pace", run.pace,
        ]  # fmt: skip
        before = cpu_s(contender.processes)
        said = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        if contender.processes:
            figures.cpu_us.append((cpu_s(contender.processes) - before) * 1e6 / max(1, said["tokens"]))
            figures.memory_mib = max(figures.memory_mib, memory_mib(contender.processes))
        if said["failed"]:
            print(
                f"  {contender.name}, {run.name}: {said['failed']} of {said['requests']} failed: {said['errors']}"
            )
        figures.reports.append(said)


def answers(url: str) -> None:
    """Waits until there is an HTTP answer, whatever its status."""
    until, request = time.monotonic() + START_S, urllib.request.Request(url)
    request.add_header("Authorization", f"Bearer {KEY}")
    while True:
        try:
            with urllib.request.urlopen(request, timeout=2):
                return
        except OSError as error:
            if time.monotonic() > until:
                raise RuntimeError(f"{url} does not answer: {error}") from error
            time.sleep(0.2)


async def until_answered(house: House) -> None:
    until = time.monotonic() + START_S
    while await house.answered_by("bench") in ("UNAVAILABLE", "NOT_FOUND"):
        if time.monotonic() > until:
            raise RuntimeError("the front door does not reach the replica")
        await asyncio.sleep(0.1)


def table(contenders: Sequence[Contender], run: Run, figures: Mapping[str, Figures]) -> Iterator[str]:
    """One run's lines. What is added is against `direct` of the same protocol."""
    unit = "request" if run.tokens == 1 else "token"
    yield f"{run.name} ({run.requests} requests of {run.tokens} tokens{', ' + run.pace if run.slow else ''})"
    yield (
        f"  {'':16}{'CPU µs/' + unit:>16}{'tokens/s':>12}{'of direct':>11}{'first p50':>11}{'p99 ms':>9}"
        f"{'gap p50':>10}{'p99 ms':>9}{'stalls':>8}{'failed':>8}{'MiB':>7}"
    )
    base = {one.name.removeprefix("direct "): figures[one.name] for one in contenders if not one.processes}
    for contender in contenders:
        found = figures.get(contender.name)
        if found is None:
            yield f"  {contender.name:16}{'not asked: it would take minutes':>40}"
            continue
        own = base["gRPC" if "gRPC" in contender.name else "REST"]
        cpu = f"{statistics.median(found.cpu_us):.1f}" if found.cpu_us else ""
        ratio = found.median("tokens_per_s") / own.median("tokens_per_s")
        yield (
            f"  {contender.name:16}{cpu:>16}{found.median('tokens_per_s'):>12,.0f}{ratio:>11.2f}"
            f"{found.median('first_p50_ms'):>11.2f}{found.median('first_p99_ms'):>9.2f}"
            f"{found.median('gap_p50_ms'):>10.3f}{found.median('gap_p99_ms'):>9.3f}"
            f"{found.median('stalls'):>8.0f}{found.median('failed'):>8.0f}{found.memory_mib:>7.0f}"
        )


async def bench(rounds: int, only: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench")))
        replica = Bench(folder, build(folder), stack)
        replica.replica()
        contenders = [*replica.direct(), *await replica.penstock(), *replica.routers()]
        for run in RUNS:
            if only and only not in run.name:
                continue
            asked = {one.name: Figures() for one in contenders if run.slow or not one.slow}
            for _ in range(rounds):
                for contender in contenders:
                    if contender.name in asked:
                        await asyncio.to_thread(replica.measure, contender, run, asked[contender.name])
            for line in table(contenders, run, asked):
                print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="runs whose name holds this")
    given = parser.parse_args()
    if shutil.which("go") is None:
        sys.exit("go is not installed: deploy/dev/system-packages.sh bench")
    asyncio.run(bench(given.rounds, given.only))


if __name__ == "__main__":
    main()
