"""`apply` and `delete -f`: manifests to the server. All documents are checked before the first of them
changes anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import grpc
import typer

from penstock.cli.author import Reason, author
from penstock.cli.connection import TIMEOUT_S, Server, run
from penstock.cli.failures import REFUSED, USAGE, Failure, failure_of
from penstock.cli.manifest import BadManifest, Document, Problem, read
from penstock.cli.options import Files, address
from penstock.cli.output import say, table
from penstock.v1 import deployment_pb2 as pb

_DONE = {
    pb.APPLY_OUTCOME_CREATED: "created",
    pb.APPLY_OUTCOME_CONFIGURED: "configured",
    pb.APPLY_OUTCOME_UNCHANGED: "unchanged",
}
_WOULD = {
    pb.APPLY_OUTCOME_CREATED: "would be created",
    pb.APPLY_OUTCOME_CONFIGURED: "would be configured",
    pb.APPLY_OUTCOME_UNCHANGED: "would be unchanged",
}
MAX_PROBLEMS = 20
"""A manifest with more is the wrong file, or one mistake repeated."""


def apply(
    context: typer.Context,
    file: Files,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would change and be decided; change nothing.")
    ] = False,
    reason: Reason = "",
) -> None:
    """Make deployments be as manifests say: create them, change them, or leave them as they are.

    All documents are checked before the first is applied.

    Examples:

      penstock apply -f smollm2.yaml

      penstock apply -f smollm2.yaml --dry-run

      penstock get deployments smollm2 -o yaml | penstock apply -f -
    """
    documents = read_all(file)
    where = address(context)

    async def command(server: Server) -> None:
        plans = await _plan(server, documents)
        for document, plan in zip(documents, plans, strict=True):
            if dry_run:
                _show(document, plan)
            else:
                await _apply(server, document, reason)

    run(where, command)


def read_all(files: Sequence[str]) -> list[Document]:
    """The documents of all files. Raises Failure with everything that is wrong in any of them."""
    documents: list[Document] = []
    problems: list[Problem] = []
    for file in files:
        try:
            documents += read(file)
        except BadManifest as error:
            problems += error.problems
        except OSError as error:
            problems.append(Problem(file, 0, "", f"cannot be read: {error.strerror}"))
    seen: dict[str, Document] = {}
    for document in documents:
        name = document.deployment.metadata.name
        if name in seen:
            first = seen[name]
            message = f'"{name}" stands in {first.source}:{first.line} already'
            problems.append(Problem(document.source, document.line, "metadata.name", message))
        seen[name] = document
    if len(problems) == 1:
        raise Failure(str(problems[0]), USAGE)
    if problems:
        shown = tuple(str(problem) for problem in problems[:MAX_PROBLEMS])
        more = (f"and {len(problems) - MAX_PROBLEMS} more",) if len(problems) > MAX_PROBLEMS else ()
        raise Failure(f"{len(problems)} mistakes in the manifest; nothing was changed", USAGE, shown + more)
    return documents


async def _plan(server: Server, documents: Sequence[Document]) -> list[pb.PlanDeploymentResponse]:
    plans: list[pb.PlanDeploymentResponse] = []
    failures: list[Failure] = []
    for document in documents:
        try:
            request = pb.PlanDeploymentRequest(deployment=document.deployment)
            plans.append(await server.deployments.PlanDeployment(request, timeout=TIMEOUT_S))
        except grpc.aio.AioRpcError as error:
            failure = failure_of(error, server.address, f"{document.source}:{document.line}")
            if failure.code != REFUSED:
                raise failure from error
            failures.append(failure)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        lines = [
            line
            for failure in failures
            for line in (failure.message, *(f"  {more}" for more in failure.details))
        ]
        message = f"{len(failures)} of {len(documents)} deployments were refused; nothing was changed"
        raise Failure(message, REFUSED, tuple(lines))
    return plans


async def _apply(server: Server, document: Document, reason: str) -> None:
    request = pb.ApplyDeploymentRequest(deployment=document.deployment, author=author(), cause=reason)
    try:
        done = await server.deployments.ApplyDeployment(request, timeout=TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        raise failure_of(error, server.address, f"{document.source}:{document.line}") from error
    warn(done.warnings)
    say(f"deployment/{done.deployment.metadata.name} {_DONE.get(done.outcome, 'applied')}")


def warn(warnings: Sequence[str]) -> None:
    """What the server wants the person to know, beside the answer."""
    for warning in warnings:
        say(f"warning: {warning}", style="yellow", stderr=True)


def _show(document: Document, plan: pb.PlanDeploymentResponse) -> None:
    warn(plan.warnings)
    say(
        f"deployment/{document.deployment.metadata.name} {_WOULD.get(plan.outcome, 'would be applied')}",
        style="bold",
    )
    if plan.changes:
        table(
            ("FIELD", "BEFORE", "AFTER"),
            [(item.path, item.before or "-", item.after or "-") for item in plan.changes],
        )
    if plan.decisions:
        say("\nThe controller would decide:")
        for decision in plan.decisions:
            actions = ", ".join(f"{action.action} {action.target}".strip() for action in decision.actions)
            say(f"  {decision.replica or decision.deployment or 'cluster'}: {decision.reason}: {decision.message}"
                + (f" [{actions}]" if actions else ""))  # fmt: skip
    if plan.script:
        say("\nA new replica's batch script:")
        say("\n".join(f"  {line}" for line in plan.script.rstrip("\n").split("\n")))
