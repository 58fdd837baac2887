"""Which server, and how a command talks to it: one channel for as long as the command runs."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
import tomllib
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc

from penstock.cli.failures import INTERRUPTED, USAGE, Failure, failure_of
from penstock.cli.output import say
from penstock.client import AsyncClient, PenstockError, Retry
from penstock.v1 import (
    cluster_pb2_grpc,
    decision_pb2_grpc,
    deployment_pb2_grpc,
    replica_pb2_grpc,
)

Result = TypeVar("Result")

DEFAULT_SERVER = "127.0.0.1:8600"
VARIABLE = "PENSTOCK_SERVER"
TIMEOUT_S = 60.0
"""For one answer. An apply may wait for Slurm's own MessageTimeout twice."""
RETRY_S = (1.0, 5.0)
"""First and longest wait before a watch is begun again. Replicas are looked at with the first: nothing tells of their
changes one by one."""
END_WITHIN_S = 2.0
"""From Ctrl-C to the end, whatever hangs."""
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""A page of a thousand deployments, each with long arguments, is below this."""

_SERVER = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s/:\[\]]+):[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Server:
    """The stubs of one channel, and a client of the inference API."""

    address: str
    deployments: deployment_pb2_grpc.DeploymentServiceStub
    replicas: replica_pb2_grpc.ReplicaServiceStub
    decisions: decision_pb2_grpc.DecisionServiceStub
    cluster: cluster_pb2_grpc.ClusterServiceStub
    client: AsyncClient


def config_path() -> Path:
    """The user's configuration file; it need not be there."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "penstock" / "config.toml"


def find_address(given: str | None) -> str:
    """The server: from the option, the environment, the configuration file, or the default. Raises Failure."""
    source, address = "--server", given
    if address is None:
        source, address = VARIABLE, os.environ.get(VARIABLE) or None
    if address is None:
        source, address = str(config_path()), _configured()
    if address is None:
        return DEFAULT_SERVER
    if not _SERVER.fullmatch(address):
        raise Failure(
            f"{source}: the server must be host:port, such as {DEFAULT_SERVER}, not {address!r}", USAGE
        )
    return address


def _configured() -> str | None:
    path = config_path()
    try:
        with path.open("rb") as file:
            settings = tomllib.load(file)
    except FileNotFoundError:
        return None
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise Failure(f"{path}: cannot be read: {error}", USAGE) from error
    if unknown := sorted(settings.keys() - {"server"}):
        raise Failure(f"{path}: there is no setting {unknown[0]!r}; there is server", USAGE)
    server = settings.get("server")
    if server is not None and not isinstance(server, str):
        raise Failure(f"{path}: server must be text such as {DEFAULT_SERVER!r}", USAGE)
    return server


def run(address: str, command: Callable[[Server], Awaitable[Result]]) -> Result:
    """Runs a command's calls to their end. Raises Failure for whatever the server or the way to it says no with."""
    try:
        return asyncio.run(_interruptible(_run(address, command)))
    except (grpc.aio.AioRpcError, PenstockError) as error:
        raise failure_of(error, address) from error
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise Failure("", INTERRUPTED) from None


async def persist(
    server: Server, once: Callable[[Callable[[], None]], Awaitable[None]], *, has_answered: bool = False
) -> None:
    """Runs `once` again and again, also while the server or its database is away, which is said once.

    `once` calls what it is given when the server has answered it. Raises AioRpcError for another trouble, and where
    the server has never answered (`has_answered`: it has, before this).
    """
    wait_s, is_away = RETRY_S[0], False

    def answered() -> None:
        nonlocal wait_s, is_away, has_answered
        wait_s, is_away, has_answered = RETRY_S[0], False, True

    while True:
        try:
            await once(answered)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or not has_answered:
                raise
            if not is_away:
                say(f"{failure_of(error, server.address).message}; trying again", stderr=True)
            is_away = True
        await asyncio.sleep(wait_s)
        wait_s = min(2 * wait_s, RETRY_S[1])


async def _interruptible(command: Coroutine[object, object, Result]) -> Result:
    """Ctrl-C cancels the command; where that is lost inside gRPC, or comes again, the process ends all the same."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None  # Inside a coroutine there is one.
    before = signal.getsignal(signal.SIGINT)
    asked = False

    def interrupt(*_: object) -> None:
        nonlocal asked
        if asked:
            os._exit(INTERRUPTED)
        asked = True
        killer = threading.Timer(END_WITHIN_S, os._exit, (INTERRUPTED,))
        killer.daemon = True
        killer.start()
        loop.call_soon_threadsafe(task.cancel)

    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        return await command
    signal.signal(signal.SIGINT, interrupt)
    try:
        return await command
    finally:
        signal.signal(signal.SIGINT, before)


async def _run(address: str, command: Callable[[Server], Awaitable[Result]]) -> Result:
    options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
    # A person hears at once what is wrong, and asks again as it suits.
    client = AsyncClient(address, retry=Retry(attempts=1))
    async with client, grpc.aio.insecure_channel(address, options=options) as channel:
        return await command(
            Server(
                address=address,
                deployments=deployment_pb2_grpc.DeploymentServiceStub(channel),
                replicas=replica_pb2_grpc.ReplicaServiceStub(channel),
                decisions=decision_pb2_grpc.DecisionServiceStub(channel),
                cluster=cluster_pb2_grpc.ClusterServiceStub(channel),
                client=client,
            )
        )
