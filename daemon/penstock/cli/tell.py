"""`describe`, `why` and `events`: how things are, and what the controller decided and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated

import typer

from penstock.cli import pages, rows
from penstock.cli.connection import TIMEOUT_S, Server, persist, run
from penstock.cli.options import DeploymentName, OptionalDeploymentName, address, complete_replica
from penstock.cli.output import DataFormat, age, clock, data, say, spec_text, table
from penstock.v1 import decision_pb2, deployment_pb2, metadata_pb2

EVENTS = 50


def describe(context: typer.Context, name: DeploymentName) -> None:
    """Show everything about a deployment: its spec, conditions, replicas, and what was decided last.

    Examples:

      penstock describe smollm2
    """

    async def command(server: Server) -> None:
        request = deployment_pb2.GetDeploymentRequest(name=name)
        answer = await server.deployments.GetDeployment(request, timeout=TIMEOUT_S)
        found = answer.deployment
        explained = await server.decisions.Explain(
            decision_pb2.ExplainRequest(deployment=name), timeout=TIMEOUT_S
        )
        copies = [item async for item in pages.replicas(server, name)]
        meta, status = found.metadata, found.status
        say(f"Name:        {meta.name}")
        say(
            f"Labels:      {', '.join(f'{key}={value}' for key, value in sorted(meta.labels.items())) or '-'}"
        )
        say(f"Created:     {clock(meta.created_at)} ({age(meta.created_at)} ago)")
        if meta.HasField("deleted_at"):
            say(f"Deleted:     {clock(meta.deleted_at)} ({age(meta.deleted_at)} ago)")
        say(f"Generation:  {meta.generation}, of which the controller has seen {status.observed_generation}")
        say(f"Revision:    {status.current_revision}")
        say(
            f"Replicas:    {status.ready_replicas} ready of {status.desired_replicas} wanted; {status.replicas} there"
        )
        say(f"State:       {explained.summary}")
        say("\nSpec")
        for line in spec_text(found).splitlines():
            say(f"  {line}")
        say("\nConditions")
        _conditions(explained.conditions)
        say("\nReplicas")
        if copies:
            headers = ("NAME", "STATE", "REVISION", "JOB", "NODES", "ENDPOINT", "AGE", "MESSAGE")
            table(headers, [
                (item.name, rows.state_word(item), str(item.revision), str(item.attempt.job_id or "-"),
                 item.attempt.nodes or "-", rows.endpoint(item), age(item.created_at), item.message)
                for item in copies
            ])  # fmt: skip
        else:
            say("none")
        if found.spec.model.adapters:
            say("\nAdapters")
            table(rows.ADAPTERS, rows.adapter_rows(found.spec, copies))
        _handovers(answer.handover)
        say("\nDecisions, newest last")
        _events(list(reversed(explained.decisions)), [])

    run(address(context), command)


def why(
    context: typer.Context,
    name: DeploymentName,
    replica: Annotated[
        str, typer.Argument(metavar="REPLICA", help="One of its replicas.", autocompletion=complete_replica)
    ] = "",
    output: Annotated[DataFormat, typer.Option("--output", "-o", help="How to show it.")] = DataFormat.TABLE,
) -> None:
    """Say in sentences why a deployment or a replica is as it is.

    Examples:

      penstock why smollm2

      penstock why smollm2 smollm2-1
    """

    async def command(server: Server) -> None:
        request = decision_pb2.ExplainRequest(deployment=name, replica=replica)
        found = await server.decisions.Explain(request, timeout=TIMEOUT_S)
        if output is not DataFormat.TABLE:
            data([found], output, is_list=False)
            return
        say(f"{replica or name}: {found.summary if not replica else found.replicas[0].message}", style="bold")
        if not replica:
            for item in found.replicas:
                say(f"  {item.replica}: {item.message}")
            false = [item for item in found.conditions if item.message]
            if false:
                say("\nConditions")
                _conditions(false)
        if found.decisions:
            say("\nDecisions, newest last")
            _events(list(reversed(found.decisions)), [])

    run(address(context), command)


def events(
    context: typer.Context,
    name: OptionalDeploymentName = None,
    replica: Annotated[
        str, typer.Option("--replica", help="Only about this replica.", autocompletion=complete_replica)
    ] = "",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new ones until interrupted.")
    ] = False,
    number: Annotated[
        int, typer.Option("--number", "-n", min=0, max=1000, help="How many of the last.")
    ] = EVENTS,
    output: Annotated[
        DataFormat, typer.Option("--output", "-o", help="How to show them.")
    ] = DataFormat.TABLE,
) -> None:
    """Show what the controller decided, oldest first. A decision made again and again is one line with a count.

    Examples:

      penstock events

      penstock events smollm2 --follow
    """

    async def command(server: Server) -> None:
        request = decision_pb2.ListDecisionsRequest(
            deployment=name or "", replica=replica, page_size=max(number, 1)
        )
        found = list(reversed((await server.decisions.ListDecisions(request, timeout=TIMEOUT_S)).decisions))
        newest = found[-1].id if found else 0
        widths: list[int] = []
        shown = found if number else []
        if output is DataFormat.TABLE:
            if shown or follow:
                _events(shown, widths)
            else:
                about = f" about {replica or name}" if replica or name else ""
                say(f"no decisions found{about}", stderr=True)
        elif shown or not follow:
            data(shown, output, is_list=True)
        if not follow:
            return

        async def watch(answered: Callable[[], None]) -> None:
            nonlocal newest
            watching = decision_pb2.WatchDecisionsRequest(
                deployment=name or "", replica=replica, after=newest
            )
            async for event in server.decisions.WatchDecisions(watching):
                answered()
                newest = event.decision.id
                if output is DataFormat.TABLE:
                    _events([event.decision], widths)
                else:
                    data([event.decision], output, is_list=False)

        await persist(server, watch, has_answered=True)

    run(address(context), command)


def _events(found: list[decision_pb2.Decision], widths: list[int]) -> None:
    made = []
    for item in found:
        outcomes = [
            f"{action.action} {action.target}: {action.outcome}" for action in item.actions
            if action.outcome not in ("", "done")
        ]  # fmt: skip
        message = "; ".join((item.message, *outcomes))
        subject = item.replica or item.deployment or "cluster"
        count = f"{item.count}x" if item.count > 1 else ""
        made.append((clock(item.last_at), subject, item.reason, count, message))
    table(("LAST", "ABOUT", "REASON", "COUNT", "MESSAGE"), made, widths=widths)


def _handovers(forecast: deployment_pb2.HandoverForecast) -> None:
    if not forecast.replicas:
        return
    said = "as Slurm estimates" if forecast.wait_is_slurms else "measured"
    say(
        f"\nHandovers: a successor is estimated to wait {forecast.estimated_wait_s} s ({said}) and to need"
        f" {forecast.estimated_cold_start_s} s to start (of {forecast.measured_starts} starts)"
    )
    table(("NAME", "JOB ENDS", "SUCCESSOR DUE", "BEGUN"), [
        (item.replica, clock(item.ends_at) if item.HasField("ends_at") else "-", clock(item.due_at),
         clock(item.begun_at) if item.HasField("begun_at") else "-")
        for item in forecast.replicas
    ])  # fmt: skip


def _conditions(found: Iterable[metadata_pb2.Condition]) -> None:
    words = {
        metadata_pb2.CONDITION_STATUS_TRUE: "True",
        metadata_pb2.CONDITION_STATUS_FALSE: "False",
        metadata_pb2.CONDITION_STATUS_UNKNOWN: "Unknown",
    }
    table(
        ("TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"),
        [
            (item.type, words.get(item.status, "Unknown"), item.reason, age(item.since), item.message)
            for item in found
        ],
    )
