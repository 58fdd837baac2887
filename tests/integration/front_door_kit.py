"""What the front door's tests start: Envoy, a gateway, control and replicas, each on its own port or socket."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import shutil
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from tempfile import mkdtemp
from types import TracebackType
from typing import Any

import grpc
import httpx
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from deploy.cluster.ports import free_ports
from penstock.core.prospect import Prospect
from penstock.core.routing import Endpoint, Route, RoutingState
from penstock.core.spec import Admission
from penstock.gateway import envoy
from penstock.gateway.door import FrontDoor
from penstock.gateway.settings import FrontDoorSettings
from penstock.v1 import inference_pb2, inference_pb2_grpc
from tests.integration.front_door_replica import Replica
from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
SECRET = "the-secret-of-m"
HOLD_NOBODY = Admission(max_held=0)
HELD_S = 240
"""How long hundreds may be held while a busy machine starts a replica."""
BIG = [("grpc.max_send_message_length", 64 * 1024 * 1024), ("grpc.use_local_subchannel_pool", 1)]


def free_port() -> int:
    """One that nobody has, and that the kernel gives nobody who does not name it."""
    (port,) = free_ports(1)
    return port


async def until(
    condition: Callable[[], Awaitable[bool] | bool], timeout_s: float = PATIENCE_S, what: str = ""
) -> float:
    """Waits for a condition; returns the seconds it took."""
    start = time.monotonic()
    while True:
        found = condition()
        if found if isinstance(found, bool) else await found:
            return time.monotonic() - start
        if time.monotonic() - start > timeout_s:
            raise AssertionError(f"not so within {timeout_s} s: {what or condition}")
        await asyncio.sleep(0.002)


async def soonest(
    within_s: float, measure: Callable[[], Awaitable[float]], *, wanted: int = 1, tries: int = 5
) -> float:
    """The last of so many wanted measurements, in seconds, that are below the bound; fails when fewer are.

    A bound is for what the front door adds. What a busy machine adds comes and goes, so a single measurement says
    little; what is slow by itself is slow each time. But what waits for a clock's next beat, a health check above all,
    is quick by luck too: of that more than one is wanted.
    """
    took: list[float] = []
    for _ in range(tries):
        took.append(await measure())
        if sum(one < within_s for one in took) == wanted:
            return took[-1]
    raise AssertionError(f"not {wanted} times within {within_s} s: {', '.join(f'{one:.3f}' for one in took)}")


def endpoint(
    port: int, host: str = "127.0.0.1", engine_port: int | None = None, revision: int = 1
) -> Endpoint:
    return Endpoint(f"a{port}", f"r{port}", host, port, engine_port, revision)


def route(deployment: str, *ports: int | Replica, names: Iterable[str] = (), secret: str = SECRET) -> Route:
    """Replicas by the port of their agent, or themselves: then their engines are known too."""
    endpoints = tuple(
        endpoint(port) if isinstance(port, int) else endpoint(port.port, engine_port=port.engine_port)
        for port in ports
    )
    return Route(deployment, (deployment, *names), secret, endpoints, HOLD_NOBODY, 1700000000)


async def program(module: str, *arguments: str) -> tuple[Process, str]:
    """Starts a Python program of the tests; returns it with the first line that it prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, stdout=PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)).decode().strip()
    assert line, f"{module} ended before it was ready"
    return process, line


async def end(process: Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


class Control(inference_pb2_grpc.InferenceServiceServicer):
    """Stands for the control API: health, and ListModels."""

    async def ListModels(
        self, request: inference_pb2.ListModelsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> inference_pb2.ListModelsResponse:
        return inference_pb2.ListModelsResponse(models=[inference_pb2.ServedModel(name="from-control")])


class House:
    """Settings in a fresh short folder (a socket's path must be short), and Envoy; the door in this process,
    with `gateway`.

    Envoy binds its port late, with its first listener. So the port is none that the kernel might give to a replica
    meanwhile: then clients would speak to the replica, and be refused for ever.

    Replicas live in the test's own process, or share its two cores, and answer a health check as late as the machine
    lets them. The checks wait for that, unless a test is about replicas that do not answer: else one would be left out
    for a moment that no test can foresee.
    """

    def __init__(
        self,
        *,
        gateway: bool = True,
        control_services: Callable[[grpc.aio.Server], None] | None = None,
        **settings: Any,
    ) -> None:
        self._control_services = control_services
        self.folder = Path(mkdtemp(prefix="door"))
        self.settings = FrontDoorSettings(
            state_folder=self.folder,
            control=f"unix:{self.folder}/control.sock",
            gateway=f"unix:{self.folder}/gateway.sock",
            gateway_rest=f"unix:{self.folder}/rest.sock",
            xds=f"unix:{self.folder}/xds.sock",
            **{"listen": f"127.0.0.1:{free_port()}", "health_timeout_s": PATIENCE_S, **settings},
        )
        self.door = FrontDoor(self.settings, self.explain)
        self.prospect = Prospect("0 of 1 ready: queued in Slurm, Resources, estimated start 14:03")
        self.explained: list[str] = []
        self._gateway = gateway
        self._stack = contextlib.AsyncExitStack()

    async def explain(self, deployment: str, adapter: str) -> Prospect:
        self.explained.append(f"{deployment}/{adapter}" if adapter else deployment)
        return self.prospect

    async def __aenter__(self) -> House:
        await self._start_control()
        if self._gateway:
            await self.door.start()
            self._stack.push_async_callback(self.door.stop)
        path = envoy.write_bootstrap(self.settings)
        self.envoy = await asyncio.create_subprocess_exec(*envoy.command(self.settings, path))
        self._stack.push_async_callback(end, self.envoy)
        self.channel = self.new_channel()
        self._stack.push_async_callback(self.channel.close, None)
        self.rest = self.new_client()
        self._stack.push_async_callback(self.rest.aclose)
        self.stub = inference_pb2_grpc.InferenceServiceStub(self.channel)
        return self

    async def _start_control(self) -> None:
        control = grpc.aio.server()
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(Control(), control)
        service = health.aio.HealthServicer()
        await service.set("", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(service, control)
        if self._control_services is not None:
            self._control_services(control)
        control.add_insecure_port(self.settings.control)
        await control.start()
        self._stack.push_async_callback(control.stop, None)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()
        if error is not None and (self.folder / envoy.LOG_FILE).exists():
            print((self.folder / envoy.LOG_FILE).read_text()[-4000:])
        shutil.rmtree(self.folder)

    def new_channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self.settings.listen, options=BIG)

    def new_client(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=f"http://{self.settings.listen}", timeout=PATIENCE_S, **options)

    async def replica(self, name: str, secret: str = SECRET) -> Replica:
        """A replica in this process."""
        replica = Replica(name, secret)
        await replica.start()
        self._stack.push_async_callback(replica.stop)
        return replica

    async def replica_process(self, name: str, secret: str = SECRET) -> tuple[Process, int]:
        """A replica that can be killed."""
        process, port, _ = await self.rest_process(name, secret)
        return process, port

    async def rest_process(self, name: str, secret: str = SECRET) -> tuple[Process, int, int]:
        """The same, with the port of its engine too."""
        process, ports = await program("tests.integration.front_door_replica", name, secret)
        self._stack.push_async_callback(end, process)
        port, engine_port = (int(part) for part in ports.split())
        return process, port, engine_port

    async def gateway_process(self, *routes: Route) -> Process:
        """The gateway's Python in a process; the state is read from a file."""
        self.write_state(*routes)
        process, _ = await program("tests.integration.front_door_gateway", str(self.folder / "state.json"))
        self._stack.push_async_callback(end, process)
        return process

    def write_state(self, *routes: Route) -> None:
        settings = {
            "state_folder": str(self.folder),
            "listen": self.settings.listen,
            "control": self.settings.control,
            "gateway": self.settings.gateway,
            "gateway_rest": self.settings.gateway_rest,
            "xds": self.settings.xds,
            "health_timeout_s": self.settings.health_timeout_s,
        }
        listed = [
            {
                "deployment": one.deployment,
                "model_names": list(one.model_names),
                "secret": one.secret,
                "endpoints": [dataclasses.asdict(end) for end in one.endpoints],
            }
            for one in routes
        ]
        (self.folder / "state.json").write_text(json.dumps({"settings": settings, "routes": listed}))

    async def serve(self, *routes: Route) -> None:
        """Sets the state and waits until Envoy has it and its port answers."""
        await self.door.set_state(RoutingState(routes))
        await self.open()
        assert await self.door.applied(PATIENCE_S), "Envoy did not take the state"

    async def open(self) -> None:
        await asyncio.wait_for(self.channel.channel_ready(), PATIENCE_S)

    async def generate(
        self, model: str, prompt: str = "hello", **options: Any
    ) -> inference_pb2.GenerateResponse:
        request = inference_pb2.GenerateRequest(model=model, prompt=prompt)
        return await self.stub.Generate(request, **{"timeout": PATIENCE_S, **options})

    async def status(self, model: str, prompt: str = "hello", **options: Any) -> grpc.StatusCode:
        try:
            await self.generate(model, prompt, **options)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    async def answered_by(self, model: str) -> str:
        """The replica's name, or the status."""
        try:
            return (await self.generate(model)).id
        except grpc.aio.AioRpcError as error:
            return error.code().name

    async def has(self, port: int, requests: int) -> bool:
        """Whether the front door has so many requests in flight at this port."""
        transport = httpx.AsyncHTTPTransport(uds=str(self.folder / envoy.ADMIN_SOCKET))
        async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
            clusters = (await client.get("/clusters?format=json")).json()["cluster_statuses"]
        active = sum(
            int(stat.get("value", 0))
            for cluster in clusters
            for host in cluster.get("host_statuses", ())
            if host["address"].get("socket_address", {}).get("port_value") == port
            for stat in host["stats"]
            if stat["name"] == "rq_active"
        )
        return active == requests

    def stream(
        self, model: str, count: int, interval_s: float
    ) -> grpc.aio.UnaryStreamCall[inference_pb2.StreamGenerateRequest, inference_pb2.StreamGenerateResponse]:
        request = inference_pb2.StreamGenerateRequest(model=model, prompt=f"{count}:{interval_s}")
        return self.stub.StreamGenerate(request)


def seen(response: inference_pb2.GenerateResponse) -> dict[str, Any]:
    """What the replica was sent."""
    found: dict[str, Any] = json.loads(response.choices[0].text)
    return found


def texts(chunks: list[inference_pb2.StreamGenerateResponse]) -> list[str]:
    return [chunk.choices[0].text for chunk in chunks]
