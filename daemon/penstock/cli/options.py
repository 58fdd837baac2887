"""Options and arguments that several commands share, and what the shell is told of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

import grpc
import typer

from penstock.cli.connection import Server, find_address, run
from penstock.cli.failures import Failure
from penstock.cli.pages import PAGE
from penstock.v1 import deployment_pb2, replica_pb2

COMPLETION_TIMEOUT_S = 1.0
"""A shell that hangs at the tab key is worse than one that knows no names."""


def address(context: typer.Context) -> str:
    """The server that this command talks to. Raises Failure."""
    return find_address(context.find_root().params.get("server"))


def complete_deployment(incomplete: str) -> list[str]:
    """Names of deployments, for the shell; none where no server answers."""

    async def ask(server: Server) -> list[str]:
        request = deployment_pb2.ListDeploymentsRequest(page_size=PAGE)
        found = await server.deployments.ListDeployments(request, timeout=COMPLETION_TIMEOUT_S)
        return [item.metadata.name for item in found.deployments]

    return _completed(ask, incomplete)


def complete_replica(incomplete: str) -> list[str]:
    """Names of replicas, likewise."""

    async def ask(server: Server) -> list[str]:
        request = replica_pb2.ListReplicasRequest(page_size=PAGE)
        found = await server.replicas.ListReplicas(request, timeout=COMPLETION_TIMEOUT_S)
        return [item.name for item in found.replicas]

    return _completed(ask, incomplete)


def _completed(ask: Callable[[Server], Awaitable[list[str]]], incomplete: str) -> list[str]:
    try:
        return [name for name in run(find_address(None), ask) if name.startswith(incomplete)]
    except (Failure, grpc.RpcError):
        return []


DeploymentName = Annotated[
    str, typer.Argument(metavar="NAME", help="A deployment's name.", autocompletion=complete_deployment)
]
OptionalDeploymentName = Annotated[
    str | None,
    typer.Argument(metavar="NAME", help="A deployment's name.", autocompletion=complete_deployment),
]
ReplicaName = Annotated[
    str,
    typer.Argument(
        metavar="REPLICA", help="A replica's name, such as smollm2-1.", autocompletion=complete_replica
    ),
]
Files = Annotated[
    list[str],
    typer.Option("--file", "-f", metavar="FILE", help="YAML or JSON; - is standard input. May be repeated."),
]
