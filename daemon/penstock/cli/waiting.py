"""`wait`: until a deployment is ready or gone, with a bound."""

from __future__ import annotations

import asyncio
import enum
import re
import sys
from collections.abc import Callable
from typing import Annotated

import grpc
import typer

from penstock.cli import rows
from penstock.cli.connection import Server, run
from penstock.cli.failures import TIMED_OUT, USAGE, Failure, failure_of
from penstock.cli.options import DeploymentName, address
from penstock.cli.output import say
from penstock.v1 import deployment_pb2 as pb

Tell = Callable[[str], None]
Judge = Callable[[pb.Deployment | None, Tell], bool]

RETRY_S = 1.0
"""A server that is being restarted is asked again, until the time is up."""


class Goal(enum.StrEnum):
    """What to wait for."""

    READY = "ready"
    DELETED = "deleted"


def wait(
    context: typer.Context,
    name: DeploymentName,
    goal: Annotated[Goal, typer.Option("--for", help="What to wait for.")] = Goal.READY,
    timeout: Annotated[str, typer.Option("--timeout", "-t", help="How long: 90s, 10m, 2h.")] = "10m",
) -> None:
    """Wait until a deployment is ready (all wanted replicas, of the newest spec) or deleted. Exit code 4 when
    the time is up.

    Examples:

      penstock wait smollm2 --timeout 30m

      penstock wait smollm2 --for deleted
    """
    timeout_s = parse_duration(timeout)

    async def command(server: Server) -> None:
        await wait_for(server, name, goal, timeout_s)
        say(f"deployment/{name} {goal.value}")

    run(address(context), command)


def parse_duration(text: str) -> float:
    """Seconds of `90`, `90s`, `10m`, `2h`. Raises Failure."""
    found = re.fullmatch(r"([0-9]{1,7})([smh]?)", text)
    if found is None:
        raise Failure(f"--timeout must be a number with s, m or h, such as 90s or 10m, not {text!r}", USAGE)
    return float(int(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]])


async def wait_for(server: Server, name: str, goal: Goal, timeout_s: float) -> None:
    """Returns when it is so. Raises Failure when the time is up, or when it can never be so."""

    def is_so(found: pb.Deployment | None, tell: Tell) -> bool:
        if found is None:
            if goal is Goal.DELETED:
                return True
            raise Failure(f'there is no deployment "{name}"')
        if goal is Goal.READY and _is_ready(found):
            return True
        ready = rows.condition(found, "Ready")
        tell(ready.message if ready else "")
        return False

    await watch_until(server, name, is_so, timeout_s, f"deployment/{name} is not {goal.value}")


async def watch_until(
    server: Server, name: str, is_so: Judge, timeout_s: float, otherwise: str, *, aloud: bool = False
) -> None:
    """Shows `is_so` the deployment at each change, None once it is gone, until it says that it is so.

    What `is_so` tells is shown on a terminal, or always if `aloud`. Raises Failure with `otherwise` and the last thing
    told when the time is up. A server that goes away meanwhile is asked again.
    """
    teller = _Teller(aloud)
    try:
        async with asyncio.timeout(timeout_s):
            while not await _watch(server, name, is_so, teller):
                await asyncio.sleep(RETRY_S)
    except TimeoutError:
        last = f": {teller.last}" if teller.last else ""
        raise Failure(f"{otherwise} after {timeout_s:.0f} s{last}", TIMED_OUT) from None


async def _watch(server: Server, name: str, is_so: Judge, teller: _Teller) -> bool:
    """Whether it was so; False: the server went away and may be back soon."""
    is_there = False
    try:
        async for event in server.deployments.WatchDeployments(pb.WatchDeploymentsRequest(name=name)):
            if (
                event.event == pb.WATCH_EVENT_BOOKMARK and not is_there
            ) or event.event == pb.WATCH_EVENT_DELETED:
                if is_so(None, teller.tell):
                    return True
            elif event.event in (pb.WATCH_EVENT_ADDED, pb.WATCH_EVENT_MODIFIED):
                is_there = True
                if is_so(event.deployment, teller.tell):
                    return True
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        teller.tell(failure_of(error, server.address).message)
    return False


def _is_ready(deployment: pb.Deployment) -> bool:
    status = deployment.status
    return (
        rows.is_true(deployment, "Ready")
        and status.observed_generation == deployment.metadata.generation
        and status.updated_replicas >= status.desired_replicas
    )


class _Teller:
    """Says how things stand, each time that changes: on a terminal, or always if `aloud`."""

    def __init__(self, aloud: bool) -> None:
        self.last = ""
        self._aloud = aloud

    def tell(self, message: str) -> None:
        if message and message != self.last:
            self.last = message
            if self._aloud:
                say(message)
            elif sys.stderr.isatty():
                say(message, style="dim", stderr=True)
