"""Commands that change one deployment or replica by a word: scale, restart, pause, resume, drain, delete."""

from __future__ import annotations

from typing import Annotated

import grpc
import typer

from penstock.cli.apply import read_all
from penstock.cli.author import Reason, author
from penstock.cli.connection import TIMEOUT_S, Server, run
from penstock.cli.failures import USAGE, Failure
from penstock.cli.options import DeploymentName, OptionalDeploymentName, ReplicaName, address
from penstock.cli.output import say
from penstock.cli.waiting import Goal, parse_duration, wait_for
from penstock.v1 import deployment_pb2 as pb
from penstock.v1 import replica_pb2


def scale(
    context: typer.Context,
    name: DeploymentName,
    replicas: Annotated[
        int, typer.Option("--replicas", "-r", min=0, max=10000, help="How many replicas to want.")
    ],
) -> None:
    """Set how many replicas are wanted. Restarts nothing.

    Examples:

      penstock scale smollm2 --replicas 4
    """

    async def command(server: Server) -> None:
        request = pb.ScaleDeploymentRequest(name=name, replicas=replicas)
        await server.deployments.ScaleDeployment(request, timeout=TIMEOUT_S)
        say(f"deployment/{name} scaled to {replicas}")

    run(address(context), command)


def restart(context: typer.Context, name: DeploymentName, reason: Reason = "") -> None:
    """Replace every replica by a fresh one of the same spec, as its rollout says.

    Examples:

      penstock restart smollm2
    """

    async def command(server: Server) -> None:
        request = pb.RestartDeploymentRequest(name=name, author=author(), cause=reason)
        done = (await server.deployments.RestartDeployment(request, timeout=TIMEOUT_S)).deployment
        said = f"deployment/{name} restarts as revision {done.status.current_revision}"
        say(said + stands_still(done))

    run(address(context), command)


def stands_still(deployment: pb.Deployment) -> str:
    """The end of a sentence about a revision that is made or promoted; empty unless rollouts are paused."""
    if not deployment.status.rollout.paused:
        return ""
    return f"; its rollouts stand still until `penstock rollout resume {deployment.metadata.name}`"


def pause(context: typer.Context, name: DeploymentName, reason: Reason = "") -> None:
    """Let the controller act no more on a deployment. Running replicas go on serving.
    A canary bakes anew when it is resumed.

    Examples:

      penstock pause smollm2
    """

    set_paused(context, name, True, reason)


def resume(context: typer.Context, name: DeploymentName, reason: Reason = "") -> None:
    """Let the controller act on a paused deployment again.

    Examples:

      penstock resume smollm2
    """

    set_paused(context, name, False, reason)


def set_paused(
    context: typer.Context, name: str, paused: bool, reason: str, *, rollout_only: bool = False
) -> None:
    """What pause, resume, and those of rollouts have in common."""

    async def command(server: Server) -> None:
        if paused:
            await server.deployments.PauseDeployment(
                pb.PauseDeploymentRequest(
                    name=name, rollout_only=rollout_only, author=author(), cause=reason
                ),
                timeout=TIMEOUT_S,
            )
        else:
            await server.deployments.ResumeDeployment(
                pb.ResumeDeploymentRequest(
                    name=name, rollout_only=rollout_only, author=author(), cause=reason
                ),
                timeout=TIMEOUT_S,
            )
        said = "paused" if paused else "resumed"
        say(f"deployment/{name}: rollouts {said}" if rollout_only else f"deployment/{name} {said}")

    run(address(context), command)


def drain(context: typer.Context, replica: ReplicaName) -> None:
    """Take a replica out of use: it finishes its requests and ends, and is replaced if it is still wanted.

    Examples:

      penstock drain smollm2-1
    """

    async def command(server: Server) -> None:
        await server.replicas.DrainReplica(replica_pb2.DrainReplicaRequest(name=replica), timeout=TIMEOUT_S)
        say(f"replica/{replica} drains")

    run(address(context), command)


def delete(
    context: typer.Context,
    name: OptionalDeploymentName = None,
    file: Annotated[
        list[str] | None,
        typer.Option(
            "--file", "-f", metavar="FILE", help="Delete what this manifest names; - is standard input."
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the last job has ended.")] = False,
    timeout: Annotated[str, typer.Option("--timeout", help="How long to wait: 90s, 10m, 2h.")] = "10m",
    force: Annotated[
        bool, typer.Option("--force", help="Cancel the jobs at once instead of draining.")
    ] = False,
) -> None:
    """Delete a deployment: its replicas drain, and it goes when its last job has ended.

    Examples:

      penstock delete smollm2 --wait

      penstock delete -f smollm2.yaml
    """
    if (name is None) is (not file):
        raise Failure("delete needs either a name or --file", USAGE)
    names = [name] if name else [document.deployment.metadata.name for document in read_all(file or [])]
    timeout_s = parse_duration(timeout)

    async def command(server: Server) -> None:
        for each in names:
            request = pb.DeleteDeploymentRequest(name=each, force=force)
            try:
                await server.deployments.DeleteDeployment(request, timeout=TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                # Of a manifest's deployments those that are gone are as wanted.
                if name is None and error.code() is grpc.StatusCode.NOT_FOUND:
                    say(f"deployment/{each} is not there")
                    continue
                raise
            say(f"deployment/{each} is being deleted" if wait else f"deployment/{each} marked for deletion")
        if wait:
            for each in names:
                await wait_for(server, each, Goal.DELETED, timeout_s)
                say(f"deployment/{each} deleted")

    run(address(context), command)
