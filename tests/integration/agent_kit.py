"""What the agent's tests need around it: a small control plane, an attempt's folder, and the agent as a process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from penstock.v1 import inference_pb2 as pb
from penstock.v1 import inference_pb2_grpc, runtime_pb2, runtime_pb2_grpc
from penstock_runtime.engine_http import Address, EngineHttp
from penstock_runtime.in_engine.penstock_engine_door import FILE_VARIABLE, KEY_HEADER
from tests.patience import PATIENCE_S

ATTEMPT = "a1b2c3"
ATTEMPT_SECRET = "the-attempts-secret"
DEPLOYMENT_SECRET = "the-deployments-secret"
ENGINE_KEY = "the-engines-key"
METADATA = (("x-penstock-deployment-secret", DEPLOYMENT_SECRET),)

# A wait that takes this long has failed: what takes a second alone takes ten beside others.


async def until(condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """The first truth that `condition` tells; fails after `timeout_s`, saying `what` did not come."""
    end = time.monotonic() + timeout_s
    while not (truth := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        await asyncio.sleep(0.005)
    return truth


@dataclass
class FakeControl(runtime_pb2_grpc.RuntimeServiceServicer):
    """RuntimeService that remembers what it was told, and answers as it is told."""

    registered: list[runtime_pb2.RegisterRequest] = field(default_factory=list)
    reports: list[runtime_pb2.ReportRequest] = field(default_factory=list)
    drains: list[runtime_pb2.DrainRequest] = field(default_factory=list)
    secrets: set[str] = field(default_factory=set)
    # Answered to each call of this name with this status instead.
    refuse: dict[str, grpc.StatusCode] = field(default_factory=dict)
    ask_to_drain: bool = False
    # Drain is answered once this is set.
    drain_may_end: asyncio.Event = field(default_factory=asyncio.Event)
    report_interval_s: int = 1
    # Name -> folder of those that it wants loaded. None: it says nothing of adapters.
    adapters: dict[str, Path] | None = None

    async def _admit(self, name: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        metadata = dict(context.invocation_metadata() or ())
        self.secrets.add(str(metadata.get("x-penstock-attempt-secret")))
        if name in self.refuse:
            await context.abort(self.refuse[name], f"{name} is refused")

    async def Register(self, request: Any, context: Any) -> runtime_pb2.RegisterResponse:
        await self._admit("Register", context)
        self.registered.append(request)
        return runtime_pb2.RegisterResponse(
            deployment_secret=DEPLOYMENT_SECRET,
            report_interval_s=self.report_interval_s,
            engine_key=ENGINE_KEY,
        )

    async def Report(self, request: Any, context: Any) -> runtime_pb2.ReportResponse:
        await self._admit("Report", context)
        self.reports.append(request)
        response = runtime_pb2.ReportResponse(drain=self.ask_to_drain)
        if self.adapters is not None:
            response.adapters.SetInParent()
            for name, path in self.adapters.items():
                response.adapters.adapters.add(name=name, path=str(path))
        return response

    async def Drain(self, request: Any, context: Any) -> runtime_pb2.DrainResponse:
        await self._admit("Drain", context)
        self.drains.append(request)
        await self.drain_may_end.wait()
        return runtime_pb2.DrainResponse()

    def standings(self) -> dict[str, tuple[str, bool, str]]:
        """By the newest report: adapter -> folder, whether it is loaded, why not."""
        found = self.reports[-1].adapters if self.reports else ()
        return {one.name: (one.path, one.loaded, one.message) for one in found}

    def phases(self) -> list[str]:
        """The phases reported, each once."""
        names = [runtime_pb2.AgentPhase.Name(report.phase)[12:] for report in self.reports]
        return [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]

    def last(self, phase: str) -> runtime_pb2.ReportRequest | None:
        """The newest report of `phase`."""
        number = runtime_pb2.AgentPhase.Value(f"AGENT_PHASE_{phase}")
        return next((report for report in reversed(self.reports) if report.phase == number), None)


@asynccontextmanager
async def control_plane(control: FakeControl, port: int = 0) -> AsyncIterator[int]:
    """Serves `control` on a loopback port, and yields the port."""
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    runtime_pb2_grpc.add_RuntimeServiceServicer_to_server(control, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(0)


def attempt_folder(home: Path, port: int, **changes: Any) -> Path:
    """An attempt's folder for an agent with the stand-in engine; `changes` are keys of agent.json."""
    folder = home / "attempt"
    folder.mkdir(mode=0o700, parents=True)
    config: dict[str, Any] = {
        "attempt": ATTEMPT,
        "deployment": "smollm2",
        "replica": "smollm2-1",
        "revision": 1,
        "control": [f"127.0.0.1:{port}"],
        "engine": {"name": "standin", "args": [], "env": {}, "task": "generate"},
        "environment": {},
        "model": {},
        "model_names": ["smollm2", "chatty"],
        "startup_timeout_s": PATIENCE_S,
        "drain_timeout_s": 10,
        "gpus": 0,
        "nodes": 1,
        "bind": "127.0.0.1",
        "advertise": "",
    }
    config |= changes
    for name, text in {"agent.json": json.dumps(config), "secret": ATTEMPT_SECRET + "\n"}.items():
        path = folder / name
        path.touch(mode=0o600)
        path.write_text(text)
    return folder


def standin(*args: str, task: str = "generate") -> dict[str, Any]:
    """The `engine` of agent.json: the stand-in with these arguments."""
    return {"name": "standin", "args": list(args), "env": {}, "task": task}


class AgentProcess:
    """The agent as its own process. Its output is in `log`, kept in a file so that no pipe fills up."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def ended(self, timeout_s: float = PATIENCE_S) -> int:
        """Its exit code, once it has ended."""
        async with asyncio.timeout(timeout_s):
            return await self.process.wait()

    @property
    def engine_pid(self) -> int:
        """The process id of the engine, its only child."""
        return children(self.process.pid)[0]

    @property
    def door_folder(self) -> Path:
        """Where the engine's keys and their guard are."""
        return Path(environment(self.engine_pid)[FILE_VARIABLE]).parent

    @property
    def engine_port(self) -> int:
        """Where the engine listens."""
        arguments = Path(f"/proc/{self.engine_pid}/cmdline").read_bytes().decode().split("\0")
        return int(arguments[arguments.index("--port") + 1])

    @property
    def engine(self) -> EngineHttp:
        """The engine itself, past the agent and with the agent's key."""
        keys = json.loads((self.door_folder / "door.json").read_text())
        return EngineHttp(Address("127.0.0.1", self.engine_port, {KEY_HEADER: keys["agent"]}))

    async def running(self) -> int:
        """How many requests the engine says are running."""
        _, text = await self.engine.get("/metrics", PATIENCE_S)
        lines = [line for line in text.decode().splitlines() if line.startswith("vllm:num_requests_running{")]
        return int(float(lines[0].rpartition(" ")[2]))


def environment(pid: int) -> dict[str, str]:
    """What the process was started with."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def children(pid: int) -> list[int]:
    """The child processes of `pid`."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # Threads end.
            found += map(int, task.read_text().split())
    return found


def environments() -> list[str]:
    """What each living process was started with, as far as it may be read."""
    found: list[str] = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes().decode(errors="replace"))
    return found


@asynccontextmanager
async def agent(folder: Path) -> AsyncIterator[AgentProcess]:
    """Runs the agent; whatever is left of it and its engine at the end is killed."""
    log = folder / "output.log"
    env = os.environ | {
        "SLURM_JOB_ID": "4242",
        "SLURM_RESTART_COUNT": "1",
    }
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "penstock_runtime", "--folder", str(folder),
            stdout=output, stderr=output, env=env,
        )  # fmt: skip
    try:
        yield AgentProcess(process, log)
    finally:
        if process.returncode is None:
            left = children(process.pid)
            process.kill()
            await process.wait()
            for child in left:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child, 9)


@asynccontextmanager
async def ready_agent(
    home: Path, control: FakeControl, **changes: Any
) -> AsyncIterator[tuple[AgentProcess, inference_pb2_grpc.InferenceServiceStub]]:
    """A control plane, an agent that is ready, and a client of it."""
    async with control_plane(control) as port:
        async with agent(attempt_folder(home, port, **changes)) as process:
            await until(lambda: control.last("READY") or process.process.returncode is not None, "READY")
            assert control.last("READY"), process.log
            async with client(control.registered[0].port) as stub:
                yield process, stub


@asynccontextmanager
async def client(port: int) -> AsyncIterator[inference_pb2_grpc.InferenceServiceStub]:
    """InferenceService at a loopback port."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)


async def health(port: int, metadata: tuple[tuple[str, str], ...] = ()) -> str:
    """What the agent's health says, or the status that it refuses with."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(), metadata=metadata, timeout=PATIENCE_S)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def chat(text: str = "Hi", model: str = "smollm2", **sampling: Any) -> pb.StreamChatRequest:
    """A request of one message."""
    return pb.StreamChatRequest(
        model=model,
        messages=[pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text=text)])],
        sampling=pb.SamplingParameters(**sampling),
    )


def text_of(chunks: list[pb.StreamChatResponse]) -> str:
    """The text of a stream's first choice."""
    return "".join(choice.content for chunk in chunks for choice in chunk.choices)


async def rest_of(call: Any, chunks: list[Any] | None = None) -> list[Any]:
    """What is still to come of a stream whose first chunks were taken by `read`, added to `chunks`.

    Raises AioRpcError, and then `chunks` has what came before.
    """
    chunks = [] if chunks is None else chunks
    while (chunk := await call.read()) is not grpc.aio.EOF:
        chunks.append(chunk)
    return chunks


async def failed(call: Any, chunks: list[Any] | None = None) -> tuple[str, str]:
    """Status and words of a call that does not end well; what a stream brought before is added to `chunks`."""
    try:
        await (rest_of(call, chunks) if hasattr(call, "read") else call)
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    raise AssertionError("the call ended well")
