"""`get`: deployments, replicas and revisions, as tables or as data, once or as they change."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import grpc
import typer
from google.protobuf.message import Message

from penstock.cli import pages, rows
from penstock.cli.connection import TIMEOUT_S, Server, persist, run
from penstock.cli.failures import USAGE, Failure
from penstock.cli.options import OptionalDeploymentName, address
from penstock.cli.output import Format, data, say, table
from penstock.v1 import deployment_pb2, replica_pb2


class Kind(enum.StrEnum):
    """What can be got, with the short words that hands type."""

    DEPLOYMENTS = "deployments"
    DEPLOYMENT = "deployment"
    DEPLOY = "deploy"
    REPLICAS = "replicas"
    REPLICA = "replica"
    REVISIONS = "revisions"
    REVISION = "revision"


def get(
    context: typer.Context,
    kind: Annotated[Kind, typer.Argument(help="deployments, replicas or revisions.", metavar="KIND")],
    name: OptionalDeploymentName = None,
    output: Annotated[Format, typer.Option("--output", "-o", help="How to show it.")] = Format.TABLE,
    selector: Annotated[
        str,
        typer.Option(
            "--selector", "-l", help="Only deployments with these labels: a=b,c!=d,e.", metavar="LABELS"
        ),
    ] = "",
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Go on with each change until interrupted.")
    ] = False,
) -> None:
    """Show deployments, replicas or revisions.

    NAME is a deployment's name; for replicas it may be a replica's name too. Revisions are of one deployment,
    so they need it.

    Examples:

      penstock get deployments

      penstock get deployments -l team=search -o wide

      penstock get replicas smollm2 --watch

      penstock get deployments smollm2 -o yaml
    """
    word = kind.value[:6]
    if word == "revisi" and not name:
        raise Failure("get revisions needs the deployment's name: penstock get revisions NAME", USAGE)
    if selector and word != "deploy":
        raise Failure("--selector is for deployments: only they have labels", USAGE)
    if watch and word == "revisi":
        raise Failure("--watch is for deployments and replicas: a revision never changes", USAGE)
    showers = {"deploy": _deployments, "replic": _replicas, "revisi": _revisions}

    async def command(server: Server) -> None:
        if watch:
            watcher = _watch_deployments if word == "deploy" else _watch_replicas
            await watcher(server, name or "", selector, output)
        else:
            await showers[word](server, name or "", selector, output)

    run(address(context), command)


async def _deployments(server: Server, name: str, selector: str, output: Format) -> None:
    if name and not selector:
        request = deployment_pb2.GetDeploymentRequest(name=name)
        found = [(await server.deployments.GetDeployment(request, timeout=TIMEOUT_S)).deployment]
    else:
        found = [
            item async for item in pages.deployments(server, selector) if name in ("", item.metadata.name)
        ]
    _show("deployment", found, output, is_list=not name)


async def _replicas(server: Server, name: str, selector: str, output: Format) -> None:
    found, is_one = await _find_replicas(server, name)
    _show("replica", found, output, is_list=not is_one)


async def _revisions(server: Server, name: str, selector: str, output: Format) -> None:
    _show("revision", [item async for item in pages.revisions(server, name)], output, is_list=True)


async def _find_replicas(server: Server, name: str) -> tuple[list[replica_pb2.Replica], bool]:
    """Those of a deployment, or the one of that name; and whether it is the latter."""
    if not name:
        return [item async for item in pages.replicas(server)], False
    try:
        return [item async for item in pages.replicas(server, name)], False
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        no_deployment = error
    try:
        found = await server.replicas.GetReplica(replica_pb2.GetReplicaRequest(name=name), timeout=TIMEOUT_S)
        return [found.replica], True
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        raise no_deployment from None


def _name(item: Any) -> str:
    if isinstance(item, deployment_pb2.Deployment):
        return item.metadata.name
    return item.name if isinstance(item, replica_pb2.Replica) else f"{item.deployment}/{item.number}"


def _show(
    noun: str, found: Sequence[Message], output: Format, *, is_list: bool, widths: list[int] | None = None
) -> None:
    """`widths`: of the columns so far; given again they mean that the header has been shown."""
    if output is Format.NAME:
        for item in found:
            say(f"{noun}/{_name(item)}")
    elif output in (Format.JSON, Format.YAML):
        data(found, output, is_list=is_list)
    elif not found and not widths:
        say(f"no {noun}s found", stderr=True)
    else:
        wide = output is Format.WIDE
        headers, row = {
            "deployment": (rows.DEPLOYMENTS_WIDE if wide else rows.DEPLOYMENTS, rows.deployment_row),
            "replica": (rows.REPLICAS_WIDE if wide else rows.REPLICAS, rows.replica_row),
            "revision": (rows.REVISIONS_WIDE if wide else rows.REVISIONS, rows.revision_row),
        }[noun]
        make: Any = row
        table(headers, [make(item, wide=wide) for item in found], widths=widths)


async def _watch_deployments(server: Server, name: str, selector: str, output: Format) -> None:
    known: dict[str, deployment_pb2.Deployment] | None = None
    widths: list[int] = []

    async def watch(answered: Callable[[], None]) -> None:
        nonlocal known
        first: dict[str, deployment_pb2.Deployment] | None = {}
        async for event in server.deployments.WatchDeployments(
            deployment_pb2.WatchDeploymentsRequest(name=name, filter=selector)
        ):
            answered()
            now = event.deployment.metadata.name
            if first is not None and event.event != deployment_pb2.WATCH_EVENT_BOOKMARK:
                first[now] = event.deployment
            elif first is not None:
                # Of a watch that was begun again, what differs from the one before.
                changed = [item for key, item in first.items() if known is None or item != known.get(key)]
                if changed or known is None:
                    _show("deployment", changed, output, is_list=True, widths=widths)
                for gone in (known or {}).keys() - first.keys():
                    say(f"deployment/{gone} deleted")
                known, first = first, None
            elif known is not None and event.event == deployment_pb2.WATCH_EVENT_DELETED:
                known.pop(now, None)
                say(f"deployment/{now} deleted")
            elif known is not None:
                known[now] = event.deployment
                _show("deployment", [event.deployment], output, is_list=False, widths=widths)

    await persist(server, watch)


async def _watch_replicas(server: Server, name: str, selector: str, output: Format) -> None:
    before: dict[str, replica_pb2.Replica] | None = None
    widths: list[int] = []

    async def look(answered: Callable[[], None]) -> None:
        nonlocal before
        found, _ = await _find_replicas(server, name)
        answered()
        now = {item.name: item for item in found}
        if before is None:
            _show("replica", found, output, is_list=True, widths=widths)
        else:
            changed = [
                item for item in found if _without_reports(item) != _without_reports(before.get(item.name))
            ]
            if changed:
                _show("replica", changed, output, is_list=True, widths=widths)
            for gone in before.keys() - now.keys():
                say(f"replica/{gone} removed")
        before = now

    await persist(server, look)


def _without_reports(item: replica_pb2.Replica | None) -> replica_pb2.Replica | None:
    """A heartbeat is no change that a person waits for."""
    if item is None:
        return None
    bare = replica_pb2.Replica()
    bare.CopyFrom(item)
    bare.ClearField("load")
    bare.attempt.ClearField("reported_at")
    return bare
