"""`logs`: the output of a replica's job, byte for byte."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from penstock.cli.connection import Server, run
from penstock.cli.options import ReplicaName, address
from penstock.v1 import replica_pb2


def logs(
    context: typer.Context,
    replica: ReplicaName,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is written, until the job ends.")
    ] = False,
    tail: Annotated[
        int | None,
        typer.Option("--tail", "-n", min=0, max=1_000_000, help="Only this many lines from the end."),
    ] = None,
) -> None:
    """Show what a replica's job has written: the agent's and the engine's output.

    It is kept to 64 MiB: beyond that its last MiB stays, behind a line that says how much was cut.

    Examples:

      penstock logs smollm2-1 --tail 50

      penstock logs smollm2-1 --follow
    """

    async def command(server: Server) -> None:
        request = replica_pb2.StreamReplicaLogsRequest(name=replica, follow=follow, tail_lines=tail)
        out = sys.stdout.buffer
        async for piece in server.replicas.StreamReplicaLogs(request):
            out.write(piece.content)
            out.flush()

    run(address(context), command)
