"""Engines for tests: the stand-in, as many as wanted; vLLM with a tiny model, one on the machine at a time.

    pytest_plugins = ["tests.engines"]      in tests/conftest.py

    standin        a function: `started = await standin("--tokens-per-second", "50")`; stopped when the test ends
    engine_env     the folder of the virtual environment that has vLLM
    tiny_llama     the folder of a random model of 5 MB, which vLLM starts with
    smollm2        the folder of SmolLM2-135M-Instruct
    minilm         the folder of all-MiniLM-L6-v2, which embeds

    start_vllm     a context manager: vLLM with a model, healthy and proven; a `Started`
    one_vllm       a context manager: whoever starts a vLLM of his own holds it meanwhile

The folders are made by deploy/engine/environment.py where they are not there yet. One that cannot be made skips its
tests and says why in the summary; with PENSTOCK_REQUIRE_LANES=1 it fails them. Tests that start vLLM carry the mark
`real_engine`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import json
import random
import struct
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import pytest
import pytest_asyncio

from penstock_runtime.config import EngineConfig, EnvironmentConfig, ModelConfig
from penstock_runtime.door import EngineDoor
from penstock_runtime.engine import Engine, Launch, StartError, launch
from penstock_runtime.engine_http import EngineHttp
from tests.clusters import lane_missing

ROOT = Path(__file__).resolve().parents[1]
LOCK = Path(tempfile.gettempdir()) / "penstock-tests-vllm.lock"
"""Two vLLMs at once on two cores take each other's time-outs."""
MAKE_TIMEOUT_S = 1200
START_TIMEOUT_S = 600.0
"""vLLM alone on two cores is healthy after 60 s; beside four others that work it took four times that."""
STANDIN_TIMEOUT_S = 60.0
"""It is up in a fraction of a second; this only ends a hang."""
VLLM_ARGS = ("--dtype", "float32", "--enforce-eager", "--max-model-len", "2048")
VLLM_ENV = {"VLLM_CPU_KVCACHE_SPACE": "1"}

T = TypeVar("T")
StartStandin = Callable[..., Awaitable["Started"]]


def pytest_configure(config: pytest.Config) -> None:
    """The mark that tells which tests start vLLM."""
    config.addinivalue_line("markers", "real_engine: starts vLLM (a minute each time, 3 GB)")


@dataclass
class Started:
    """An engine that is healthy. `http` may be used from any event loop; `engine` starts and stops on its own."""

    engine: Engine
    http: EngineHttp
    launch: Launch
    output: io.BytesIO
    # What lets gateways in; they are not until it is opened.
    door: EngineDoor | None = None

    @property
    def model(self) -> str:
        return self.launch.served_name

    async def behave(self, **changes: Any) -> None:
        """Change a stand-in's speed and faults."""
        await self.http.post("/standin/faults", changes)


class Background:
    """An event loop in a thread: for an engine that serves the tests of a whole class, each with a loop of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T], timeout_s: float) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_s)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class PaperDoor(EngineDoor):
    """For command lines that are read and never run."""

    port = 99

    def __init__(self, folder: str, bind: str) -> None:
        self.folder = Path(folder)
        self.bind = bind
        self._key = "the-agents-own"


PAPER_DOOR = PaperDoor("/run/door", "10.0.0.7")


def standin_launch(
    *args: str,
    task: str = "generate",
    env: Mapping[str, str] | None = None,
    door: EngineDoor,
    names: Sequence[str] = ("m",),
) -> Launch:
    """A stand-in, called `m` unless told otherwise."""
    config = EngineConfig(name="standin", args=args, env=env or {}, task=cast(Any, task))
    return launch(config, EnvironmentConfig(), ModelConfig(), served_names=names, door=door)


@pytest_asyncio.fixture
async def standin() -> AsyncIterator[StartStandin]:
    """A function that starts a stand-in: arguments as on its command line, `task` and `env` by name."""
    stack = contextlib.ExitStack()
    running: list[Started] = []

    async def start(*args: str, task: str = "generate", env: Mapping[str, str] | None = None) -> Started:
        what = standin_launch(*args, task=task, env=env, door=stack.enter_context(engine_door()))
        started = _started(what)
        running.append(started)
        await started.engine.start()
        await started.engine.wait_healthy(STANDIN_TIMEOUT_S)
        return started

    yield start
    for each in running:
        await each.engine.stop(0)
    stack.close()


@contextlib.contextmanager
def engine_door() -> Iterator[EngineDoor]:
    """A port on loopback and a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="penstock-engine-") as folder:
        door = EngineDoor(Path(folder), "127.0.0.1")
        try:
            yield door
        finally:
            door.release()


@contextlib.contextmanager
def one_vllm() -> Iterator[None]:
    """Wait until no other test of this machine runs vLLM, and keep others waiting."""
    with LOCK.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def start_vllm(
    engine_env: Path, model: Path, *args: str, task: str = "generate"
) -> Iterator[tuple[Started, Background]]:
    """vLLM serving `model` as `m`, healthy and proven. `engine` is for the loop of the Background."""
    config = EngineConfig(name="vllm", args=(*VLLM_ARGS, *args), env=VLLM_ENV, task=cast(Any, task))
    with engine_door() as door, one_vllm():
        what = launch(
            config,
            EnvironmentConfig(venv=str(engine_env)),
            ModelConfig(path=str(model)),
            served_names=("m",),
            door=door,
        )
        with start_in_background(what, START_TIMEOUT_S, door) as started:
            yield started


@contextlib.contextmanager
def start_in_background(
    what: Launch, timeout_s: float, door: EngineDoor | None = None
) -> Iterator[tuple[Started, Background]]:
    """Any engine, on a loop of its own."""
    background = Background()
    started = _started(what)
    started.door = door
    try:
        try:
            background.run(started.engine.start(), timeout_s)
            background.run(started.engine.wait_healthy(timeout_s), timeout_s + 10)
            background.run(started.engine.prove_ready(60), 70)
        except StartError as error:
            pytest.fail(f"{error}\n{_text(started.output)}", pytrace=False)
        yield started, background
    finally:
        background.run(started.engine.stop(0), 60)
        background.close()


@pytest.fixture(scope="session")
def engine_env() -> Path:
    return made("engine")


@pytest.fixture(scope="session")
def tiny_llama() -> Path:
    return made("model:tiny-llama")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return made("model:SmolLM2-135M-Instruct")


@pytest.fixture(scope="session")
def minilm() -> Path:
    return made("model:all-MiniLM-L6-v2")


def made(part: str) -> Path:
    """The folder of one part of deploy/engine/environment.py, made if need be."""
    script = ROOT / "deploy" / "engine" / "environment.py"
    command = [sys.executable, str(script), "--only", part, "--json"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=MAKE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        lane_missing(f"NO {part}: not made within {MAKE_TIMEOUT_S} s")
    if result.returncode != 0:
        lane_missing(f"NO {part}: {result.stderr.strip()}")
    return Path(json.loads(result.stdout)[part])


def make_tiny_lora(folder: Path) -> Path:
    """A LoRA adapter for the tiny Llama, with weights that are large enough to be heard."""
    rng, rank, hidden = random.Random(1), 4, 64
    tensors: dict[str, tuple[int, int]] = {}
    for layer, (part, out) in product(range(2), {"q_proj": 64, "o_proj": 64}.items()):
        name = f"base_model.model.model.layers.{layer}.self_attn.{part}"
        tensors |= {f"{name}.lora_A.weight": (rank, hidden), f"{name}.lora_B.weight": (out, rank)}
    header: dict[str, Any] = {}
    data = array("f")
    for name, (rows, columns) in tensors.items():
        begin = 4 * len(data)
        data.extend(rng.uniform(-1, 1) for _ in range(rows * columns))
        header[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [begin, 4 * len(data)]}
    text = json.dumps(header).encode()
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data.tobytes())
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 64, "bias": "none",
        "target_modules": ["q_proj", "o_proj"],
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


async def until(
    what: str, ask: Callable[[], Awaitable[T]], true: Callable[[T], bool], timeout_s: float = 60.0
) -> T:
    """Ask again and again until the answer is as wanted; AssertionError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = await ask()
        if true(answer):
            return answer
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for: {what}; last: {answer}"
        await asyncio.sleep(0.02)


def text_of(events: Sequence[Mapping[str, Any]]) -> str:
    """What a stream's events say, put together."""
    parts = (choice for event in events for choice in event.get("choices", ()))
    return "".join(part["text"] if "text" in part else part["delta"].get("content") or "" for part in parts)


def _started(what: Launch) -> Started:
    output = io.BytesIO()
    return Started(Engine(what, echo=cast(BinaryIO, output)), EngineHttp(what.address), what, output)


def _text(output: io.BytesIO) -> str:
    return output.getvalue().decode(errors="replace")[-6000:]
