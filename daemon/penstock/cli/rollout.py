"""`rollout`: how the change of a spec goes, and what a person does about it. The words are kubectl's."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli import change, pages, rows
from penstock.cli.author import Reason as Cause
from penstock.cli.author import author
from penstock.cli.connection import TIMEOUT_S, Server, run
from penstock.cli.failures import REFUSED, Failure
from penstock.cli.options import DeploymentName, address
from penstock.cli.output import Format, data, say, table
from penstock.cli.waiting import Tell, parse_duration, watch_until
from penstock.core.decisions import Reason
from penstock.core.sentences import count
from penstock.v1 import deployment_pb2 as pb

_HANDOVERS = (Reason.HANDOVER.word, Reason.HANDOVER_WAIT.word)

rollout = typer.Typer(
    help="How a change of a spec goes: status, history, undo, promote, pause, resume, restart.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@rollout.command()
def status(
    context: typer.Context,
    name: DeploymentName,
    revision: Annotated[
        int | None, typer.Option("--revision", min=1, help="Of this revision. [default: the current one]")
    ] = None,
    timeout: Annotated[str, typer.Option("--timeout", "-t", help="How long: 90s, 10m, 2h.")] = "1h",
) -> None:
    """Wait until a revision runs everywhere, with a line for each step.

    Exit code 1 when it fails or another revision takes its place, 4 when the time is up.

    Examples:

      penstock rollout status smollm2 --timeout 30m
    """
    timeout_s = parse_duration(timeout)
    watched = revision or 0

    def is_done(found: pb.Deployment | None, tell: Tell) -> bool:
        nonlocal watched
        if found is None:
            raise Failure(f'there is no deployment "{name}"')
        watched = watched or found.status.current_revision
        return _is_done(found, watched, tell)

    async def command(server: Server) -> None:
        await watch_until(
            server, name, is_done, timeout_s, f"deployment/{name} is not rolled out", aloud=True
        )
        say(f"deployment/{name} runs revision {watched}")

    run(address(context), command)


def _is_done(found: pb.Deployment, revision: int, tell: Tell) -> bool:
    """Whether this revision runs everywhere. Raises Failure when it never will."""
    now, its = found.status, found.status.rollout
    if its.failed_revision == revision:
        went_back = now.current_revision > revision
        then = f"; revision {now.current_revision} is wanted now" if went_back else ""
        raise Failure(f"revision {revision} failed{then}: {its.failed_message}", REFUSED)
    if now.current_revision != revision:
        raise Failure(
            f"revision {revision} is not the wanted one: that is revision {now.current_revision}", REFUSED
        )
    wanted = now.desired_replicas
    is_said = now.observed_generation == found.metadata.generation
    progressing = rows.condition(found, "Progressing") if is_said else None
    # A job that ends has a successor beside it, perhaps for hours. That is said where no other revision is left.
    handed_over = progressing is not None and progressing.reason in _HANDOVERS
    as_wanted = now.replicas == wanted or (handed_over and now.replicas > wanted)
    if is_said and not its.canary and now.updated_replicas >= wanted and as_wanted:
        return True
    why = f": {progressing.message}" if progressing is not None and progressing.message else ""
    wrong = (rows.condition(found, kind) for kind in ("CrashLooping", "Blocked") if rows.is_true(found, kind))
    why += "".join(f"; {one.message}" for one in wrong if one is not None and one.message)
    tell(
        f"revision {revision}: {now.updated_replicas} of {wanted} replicas ready,"
        f" {count(now.replicas - now.updated_replicas, 'other')}{why}"
    )
    return False


@rollout.command()
def history(
    context: typer.Context,
    name: DeploymentName,
    revision: Annotated[
        int | None, typer.Option("--revision", min=1, help="Show this revision in full, with its spec.")
    ] = None,
    output: Annotated[Format, typer.Option("--output", "-o", help="How to show it.")] = Format.TABLE,
) -> None:
    """Show a deployment's revisions, newest first: who did what about them, when and why.

    Examples:

      penstock rollout history smollm2

      penstock rollout history smollm2 --revision 3
    """

    async def command(server: Server) -> None:
        found = [item async for item in pages.revisions(server, name)]
        if revision is not None:
            chosen = [item for item in found if item.number == revision]
            if not chosen:
                listed = f"`penstock rollout history {name}` lists those it has"
                raise Failure(f'deployment "{name}" has no revision {revision}; {listed}', REFUSED)
            data(chosen, Format.JSON if output is Format.JSON else Format.YAML, is_list=False)
        elif output is Format.NAME:
            for item in found:
                say(f"revision/{item.deployment}/{item.number}")
        elif output in (Format.JSON, Format.YAML):
            data(found, output, is_list=True)
        else:
            table(rows.HISTORY, [row for item in found for row in rows.history_rows(item)])

    run(address(context), command)


@rollout.command()
def undo(
    context: typer.Context,
    name: DeploymentName,
    to: Annotated[
        int | None,
        typer.Option("--to-revision", min=1, help="The revision to go back to. [default: the one before]"),
    ] = None,
    reason: Cause = "",
) -> None:
    """Want the spec of an earlier revision again. Replicas that still run it are not touched, and their number stays.

    Without --to-revision it is the newest one that has another spec and did not fail. What was promoted or ran
    everywhere before goes to all replicas at once, whatever the strategy.

    Examples:

      penstock rollout undo smollm2

      penstock rollout undo smollm2 --to-revision 3 --reason "answers in French"
    """

    async def command(server: Server) -> None:
        request = pb.RollbackDeploymentRequest(name=name, revision=to or 0, author=author(), cause=reason)
        say(_rolled_back(await server.deployments.RollbackDeployment(request, timeout=TIMEOUT_S)))

    run(address(context), command)


def _rolled_back(done: pb.RollbackDeploymentResponse) -> str:
    name, status = done.deployment.metadata.name, done.deployment.status
    if done.outcome == pb.APPLY_OUTCOME_UNCHANGED:
        return f"deployment/{name} stays as it is: its revision {status.current_revision} has that spec"
    said = f"deployment/{name} rolled back, as revision {status.current_revision}"
    if status.rollout.canary:
        bakes = done.deployment.spec.rollout.canary.HasField("bake_s")
        said += f", on a canary until `penstock rollout promote {name}`" + " or its bake time" * bakes
    return said + change.stands_still(done.deployment)


@rollout.command()
def promote(
    context: typer.Context,
    name: DeploymentName,
    revision: Annotated[
        int | None,
        typer.Option("--revision", min=1, help="Only if this is the canary's revision. [default: whichever]"),
    ] = None,
    reason: Cause = "",
) -> None:
    """Roll a canary's revision out to all replicas.

    Examples:

      penstock rollout promote smollm2 --reason "as fast, and fewer errors"
    """

    async def command(server: Server) -> None:
        request = pb.PromoteDeploymentRequest(
            name=name, revision=revision or 0, author=author(), cause=reason
        )
        done = (await server.deployments.PromoteDeployment(request, timeout=TIMEOUT_S)).deployment
        said = f"deployment/{name}: revision {done.status.current_revision} promoted"
        say(said + change.stands_still(done))

    run(address(context), command)


@rollout.command()
def pause(context: typer.Context, name: DeploymentName, reason: Cause = "") -> None:
    """Let a deployment's rollouts stand still. Its replicas are kept as they are, and replaced when they end.
    A canary bakes anew when they are resumed.

    Examples:

      penstock rollout pause smollm2
    """

    change.set_paused(context, name, True, reason, rollout_only=True)


@rollout.command()
def resume(context: typer.Context, name: DeploymentName, reason: Cause = "") -> None:
    """Let a deployment's rollouts go on.

    Examples:

      penstock rollout resume smollm2
    """

    change.set_paused(context, name, False, reason, rollout_only=True)


rollout.command()(change.restart)
