"""The stand-in engine: vLLM's HTTP without a model, at a set speed and with faults on demand. A product, for tests.

    python -m penstock_runtime.standin --model ANY --served-model-name NAME --uds PATH [--tokens-per-second 50 ...]

It starts in a fraction of a second, needs nothing beyond the base install, and answers as vLLM 0.32 does: paths, JSON,
streams, errors, metrics, and the ways in which it dies. `standin_text` says what it answers, so that a test can tell
that no token is missing and none came twice.

Arguments are vLLM's: those that matter here are obeyed, the others that vLLM knows are taken and have no effect,
unknown ones end the process with code 2. Every field of `standin_engine.Behaviour` (speed and faults) is an argument
too (`--die-after-tokens 5`), an environment variable (`PENSTOCK_STANDIN_DIE_AFTER_TOKENS=5`; the argument wins), and
a key of `POST /standin/faults`, which changes it while the process runs.

How it ends, in vLLM's ways:

    SIGTERM                         streams get an error event and [DONE] at once; refuses; exit 0
    SIGTERM, --shutdown-timeout N   streams finish for up to N seconds, /health 200, new requests 500; exit 0
    die_after_tokens                error event and [DONE] to all, /health 503, then refuses; exit 0
    exit_at_start CODE              never listens; exit CODE

Over several nodes (`--nnodes --node-rank --master-addr --master-port --headless`): as `standin_ranks` says.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import logging
import os
import signal
import sys
import time
import typing
from collections.abc import Callable, Sequence
from pathlib import Path

from penstock_runtime import standin_ranks
from penstock_runtime.in_engine.penstock_engine_door import FILE_VARIABLE
from penstock_runtime.standin_api import Api, Service
from penstock_runtime.standin_door import guarded
from penstock_runtime.standin_engine import CORE_DIED, Behaviour, BehaviourError, Engine
from penstock_runtime.standin_http import Connection

ENVIRONMENT_PREFIX = "PENSTOCK_STANDIN_"
UPDATING = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
"""The variable without which vLLM takes adapters at its start only."""
FLUSH_S = 2.0
"""At the end, how long the last bytes may take to reach clients that read."""
BACKLOG = 2048
"""uvicorn's own: so many clients may connect before they are accepted."""

VALUES_WITHOUT_EFFECT = (
    "--api-server-count", "--block-size", "--chat-template", "--chat-template-content-format", "--config-format",
    "--convert", "--cpu-offload-gb", "--data-parallel-size", "--device", "--distributed-executor-backend",
    "--download-dir", "--dtype", "--generation-config", "--gpu-memory-utilization", "--hf-config-path",
    "--kv-cache-dtype", "--kv-cache-memory-bytes", "--limit-mm-per-prompt", "--load-format", "--max-cpu-loras",
    "--max-loras", "--max-num-batched-tokens", "--max-parallel-loading-workers", "--override-generation-config",
    "--pipeline-parallel-size", "--quantization", "--reasoning-parser", "--revision", "--seed",
    "--speculative-config", "--structured-outputs-config", "--swap-space", "--tensor-parallel-size", "--tokenizer",
    "--tokenizer-mode", "--tokenizer-revision", "--tool-call-parser", "--uvicorn-log-level",
)  # fmt: skip
SHORT_VALUES_WITHOUT_EFFECT = ("-dp", "-pp", "-q", "-tp")
FLAGS_WITHOUT_EFFECT = (
    "--disable-access-log-for-endpoints", "--disable-log-requests", "--disable-log-stats",
    "--disable-uvicorn-access-log", "--enable-chunked-prefill", "--enable-expert-parallel",
    "--enable-log-requests", "--enable-prefix-caching", "--enable-prompt-tokens-details",
    "--enable-server-load-tracking", "--enforce-eager", "--no-enable-chunked-prefill", "--no-enable-prefix-caching",
    "--trust-remote-code",
)  # fmt: skip


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, Behaviour]:
    """The command line, with the environment under it. Ends the process with code 2 where either is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m penstock_runtime.standin",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model_tag", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--model", default="standin", help="any name; the served name unless one is given")
    parser.add_argument("--served-model-name", nargs="+", help="what requests call the model")
    parser.add_argument("--uds", help="listen on this Unix socket instead of host and port")
    parser.add_argument("--middleware", help="any name: let in only whom the door's file names")
    parser.add_argument("--host", default="127.0.0.1", help="(%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="(%(default)s)")
    parser.add_argument(
        "--max-model-len", type=int, default=4096, help="tokens of prompt and answer (%(default)s)"
    )
    parser.add_argument(
        "--runner", default="auto", choices=("auto", "generate", "pooling"), help="pooling: embeddings"
    )
    parser.add_argument(
        "--embedding-size", type=int, default=384, help="numbers in an embedding (%(default)s)"
    )
    parser.add_argument(
        "--shutdown-timeout", type=float, default=0, help="seconds that streams get after SIGTERM"
    )
    parser.add_argument(
        "--nnodes", "-n", type=int, default=1, help="processes that are one engine (%(default)s)"
    )
    parser.add_argument("--node-rank", "-r", type=int, default=0, help="which of them this is (%(default)s)")
    parser.add_argument(
        "--master-addr", default="127.0.0.1", help="where rank 0 meets the others (%(default)s)"
    )
    parser.add_argument("--master-port", type=int, default=29501, help="(%(default)s)")
    parser.add_argument("--headless", action="store_true", help="listen to nobody; for every rank but 0")
    parser.add_argument(
        "--enable-force-include-usage", action="store_true", help="usage in every event of a stream"
    )
    parser.add_argument("--enable-auto-tool-choice", action="store_true", help="tools may be called unasked")
    parser.add_argument(
        "--lora-modules", nargs="+", default=[], help="NAME=PATH or JSON; they answer in capitals"
    )
    parser.add_argument("--enable-lora", action="store_true", help="adapters may be loaded")
    parser.add_argument("--max-lora-rank", type=int, default=16, help="of an adapter (%(default)s)")
    parser.add_argument("--takes-images", action="store_true", help="as a multimodal model does")
    for name in (*VALUES_WITHOUT_EFFECT, *SHORT_VALUES_WITHOUT_EFFECT):
        parser.add_argument(name, help=argparse.SUPPRESS)
    for name in FLAGS_WITHOUT_EFFECT:
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    behaviours = parser.add_argument_group("speed and faults")
    hints = typing.get_type_hints(Behaviour)
    for field in dataclasses.fields(Behaviour):
        flag = f"--{field.name.replace('_', '-')}"
        if hints[field.name] is bool:
            behaviours.add_argument(flag, nargs="?", const="true", help=f"({field.default})")
        else:
            behaviours.add_argument(flag, help=f"({field.default})")
    chosen = parser.parse_args(arguments)
    asked = {}
    for field in dataclasses.fields(Behaviour):
        value = getattr(chosen, field.name)
        if value is None:
            value = os.environ.get(ENVIRONMENT_PREFIX + field.name.upper())
        if value is not None:
            asked[field.name] = value
    try:
        return chosen, Behaviour().changed(asked)
    except BehaviourError as error:
        parser.error(str(error))


async def serve(chosen: argparse.Namespace, behaviour: Behaviour) -> int:
    """Listen, answer, and end in one of the ways above; returns the exit code."""
    loop = asyncio.get_running_loop()
    engine = Engine(behaviour, engine_names(chosen)[0], chosen.max_model_len)
    stop = asyncio.Event()

    def asked_to_stop() -> None:
        if not engine.behaviour.ignore_sigterm:
            stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop)
    if behaviour.start_delay_s > 0 and await within(behaviour.start_delay_s, stop):
        return 0
    if behaviour.exit_at_start is not None:
        say(f"RuntimeError: Engine core initialization failed (exit_at_start={behaviour.exit_at_start})")
        return behaviour.exit_at_start
    if chosen.headless:
        return await standin_ranks.work(chosen.master_addr, chosen.master_port, chosen.node_rank, stop)
    if chosen.nnodes > 1:
        head = standin_ranks.Head(chosen.nnodes, lambda: engine.fail(CORE_DIED))
        meeting = await head.listen(chosen.master_addr, chosen.master_port)
        await within(None, head.complete, stop, engine.failed)
        meeting.close()
        if stop.is_set() or engine.failure is not None:
            return 0
        say(f"{chosen.nnodes} ranks are here")
    return await answer(chosen, engine, stop)


async def answer(chosen: argparse.Namespace, engine: Engine, stop: asyncio.Event) -> int:
    """Listen, answer, and end; returns the exit code."""
    names = engine_names(chosen)
    service = Service(
        model=chosen.model_tag or chosen.model,
        names=names,
        max_model_len=chosen.max_model_len,
        pooling=chosen.runner == "pooling",
        embedding_size=chosen.embedding_size,
        force_include_usage=chosen.enable_force_include_usage,
        auto_tools=chosen.enable_auto_tool_choice,
        takes_images=chosen.takes_images,
        adapters=dict(adapter(module) for module in chosen.lora_modules),
        max_lora_rank=chosen.max_lora_rank
        if chosen.enable_lora and os.environ.get(UPDATING) == "1"
        else None,
    )
    api = Api(engine, service)
    connections: set[Connection] = set()
    # vLLM would import it; here the name says only that there is to be a door.
    handle = guarded(api.handle, os.environ[FILE_VARIABLE], api.offers) if chosen.middleware else api.handle
    server = await listen(chosen, lambda: Connection(handle, connections))
    await within(None, stop, engine.failed)
    if engine.failure is not None:
        say(f"ERROR {engine.failure}")
        await within(engine.behaviour.exit_linger_s, stop)
    elif chosen.shutdown_timeout > 0:
        say(
            f"Shutting down: up to {chosen.shutdown_timeout:g} s for {engine.running + engine.waiting} requests"
        )
        api.draining = True
        if await within(chosen.shutdown_timeout, engine.idle, engine.failed):
            await within(engine.behaviour.exit_linger_s, engine.failed)
    server.close()
    engine.fail(CORE_DIED)
    await flush(connections)
    if chosen.uds:
        Path(chosen.uds).unlink(missing_ok=True)
    say("Application shutdown complete.")
    return 0


def engine_names(chosen: argparse.Namespace) -> tuple[str, ...]:
    """What requests may call the model."""
    return tuple(chosen.served_model_name or [chosen.model_tag or chosen.model])


def adapter(module: str) -> tuple[str, str]:
    """Name and path, of either spelling."""
    if module.startswith("{"):
        found = json.loads(module)
        return str(found["name"]), str(found["path"])
    name, _, path = module.partition("=")
    return name, path


async def listen(chosen: argparse.Namespace, connect: Callable[[], Connection]) -> asyncio.Server:
    """Listen where the arguments say, over a socket file that an earlier process left behind if need be."""
    loop = asyncio.get_running_loop()
    if chosen.uds:
        Path(chosen.uds).unlink(missing_ok=True)
        server: asyncio.Server = await loop.create_unix_server(connect, chosen.uds, backlog=BACKLOG)
        say(f"Starting vLLM server on unix:{chosen.uds} (the stand-in: no model is loaded)")
    else:
        server = await loop.create_server(connect, chosen.host, chosen.port, backlog=BACKLOG)
        port = server.sockets[0].getsockname()[1]
        say(f"Starting vLLM server on http://{chosen.host}:{port} (the stand-in: no model is loaded)")
    return server


async def within(seconds: float | None, *events: asyncio.Event) -> bool:
    """Wait until one of `events` is set; False where that took longer than `seconds`."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        done, _ = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
    finally:
        for wait in waits:
            wait.cancel()


async def flush(connections: set[Connection]) -> None:
    """Let the last bytes reach those who read; FLUSH_S at most."""
    end = time.monotonic() + FLUSH_S
    while connections and time.monotonic() < end:
        for connection in tuple(connections):
            connection.close_if_idle()
        await asyncio.sleep(0.005)


def say(text: str) -> None:
    """One line on standard output, where vLLM logs too."""
    print(f"INFO (standin pid={os.getpid()}) {text}", flush=True)


def main() -> int:
    """The command."""
    logging.basicConfig(level=logging.WARNING)
    chosen, behaviour = parse(sys.argv[1:])
    return asyncio.run(serve(chosen, behaviour))


if __name__ == "__main__":
    sys.exit(main())
