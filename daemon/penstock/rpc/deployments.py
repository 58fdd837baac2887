"""DeploymentService: what someone wants served.

Takes a wish, checks it whole (field rules, what this release carries out, what this cluster could ever run),
and commits it in one transaction or not at all. Acts on nothing: the controller hears of the commit.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import grpc
from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.rpc import pages
from penstock.rpc.admit import Admission, version_in
from penstock.rpc.admitted import Admitted
from penstock.rpc.cluster_view import ClusterView
from penstock.rpc.convert.decision import planned_out
from penstock.rpc.convert.deployment import deployment_out, new_deployment, revisions_out
from penstock.rpc.convert.handover import forecast_out
from penstock.rpc.deps import Deps
from penstock.rpc.forecast import forecast
from penstock.rpc.masks import differences
from penstock.rpc.nudges import Nudges
from penstock.rpc.revise import LOST_RACES, promote, restart, roll_back
from penstock.rpc.standing import whole
from penstock.rpc.watch import Change, Changes
from penstock.store.errors import NameTaken, NotFound, VersionConflict
from penstock.store.filters import Match, Term, parse_filter
from penstock.store.queries import attempts, deployments, replicas, revision_events, revisions
from penstock.store.records import RevisionCount
from penstock.v1 import deployment_pb2 as pb
from penstock.v1 import deployment_pb2_grpc, metadata_pb2

Context = grpc.aio.ServicerContext[Any, Any]

MAX_WATCHED = 10_000
"""Deployments that one watch keeps a digest of."""

_EVENTS = {
    Change.ADDED: pb.WATCH_EVENT_ADDED,
    Change.MODIFIED: pb.WATCH_EVENT_MODIFIED,
    Change.DELETED: pb.WATCH_EVENT_DELETED,
    Change.BOOKMARK: pb.WATCH_EVENT_BOOKMARK,
}


class DeploymentServicer(deployment_pb2_grpc.DeploymentServiceServicer):
    """Each method as its comment in deployment.proto says."""

    def __init__(self, deps: Deps, view: ClusterView, nudges: Nudges) -> None:
        self._deps = deps
        self._view = view
        self._db = deps.db
        self._admission = Admission(deps.db, view)
        self._nudges = nudges

    async def ApplyDeployment(
        self, request: pb.ApplyDeploymentRequest, context: Context
    ) -> pb.ApplyDeploymentResponse:
        for tried in range(LOST_RACES):
            admitted = await self._admission.admit(request.deployment, request.update_mask.paths)
            if request.create_only and admitted.old is not None:
                raise NameTaken(admitted.name, admitted.name)
            try:
                return await self._write(admitted, request.author, request.cause)
            except (VersionConflict, NameTaken):
                # Lost to somebody who wrote since the look; a writer who named a version wants to hear of that.
                if admitted.version is not None or request.create_only or tried == LOST_RACES - 1:
                    raise
        raise AssertionError("the last try returns or raises")

    async def PlanDeployment(
        self, request: pb.PlanDeploymentRequest, context: Context
    ) -> pb.PlanDeploymentResponse:
        admitted = await self._admission.admit(request.deployment, request.update_mask.paths)
        old, now = admitted.old, self._deps.clock()
        adopted: frozenset[int] = frozenset()
        if old is None:
            wished = new_deployment(admitted.name, admitted.labels, admitted.spec, now)
        else:
            if admitted.version is not None and admitted.version != old.resource_version:
                raise VersionConflict(old.name, admitted.version, old.resource_version)
            async with self._db.snapshot() as conn:
                specs = await revisions.in_use(conn, old)
            change = admitted.over(old, specs)
            wished, adopted = change.after, change.adopted
        before = deployment_out(old) if old else pb.Deployment()
        after = deployment_out(wished)
        changes = differences(_identity(before), _identity(after), "metadata")
        changes += differences(before.spec, after.spec, "spec")
        outcome = pb.APPLY_OUTCOME_CONFIGURED if changes else pb.APPLY_OUTCOME_UNCHANGED
        decisions = await forecast(self._deps, self._view.cluster, wished, adopted, is_new=old is None)
        return pb.PlanDeploymentResponse(
            outcome=outcome if old else pb.APPLY_OUTCOME_CREATED,
            changes=[pb.FieldChange(path=path, before=was, after=will) for path, was, will in changes],
            decisions=[planned_out(decision, now) for decision in decisions],
            script=self._deps.render_script(wished),
            warnings=admitted.warnings,
        )

    async def GetDeployment(
        self, request: pb.GetDeploymentRequest, context: Context
    ) -> pb.GetDeploymentResponse:
        async with self._db.snapshot() as conn:
            found, copies = await whole(conn, request.name)
            starts = (await attempts.starts(conn, found.uid)).get(found.uid, ())
            held = self._deps.held_requests().get(found.name, 0)
            return pb.GetDeploymentResponse(
                deployment=deployment_out(found, await _counts(conn, found.uid), held),
                handover=forecast_out(found, copies, starts, self._deps.clock(), self._view.cluster),
            )

    async def ListDeployments(
        self, request: pb.ListDeploymentsRequest, context: Context
    ) -> pb.ListDeploymentsResponse:
        start = pages.position(request, request.page_token, (str,))
        after_name = str(start[0]) if start else ""
        size = pages.size(request.page_size)
        async with self._db.snapshot() as conn:
            found, more = await self._page(conn, after_name, size, request.filter)
        token = pages.token(request, found[-1].metadata.name) if more else ""
        return pb.ListDeploymentsResponse(deployments=found, next_page_token=token)

    async def WatchDeployments(
        self, request: pb.WatchDeploymentsRequest, context: Context
    ) -> AsyncIterator[pb.WatchDeploymentsResponse]:
        parse_filter(request.filter)
        changes: Changes[pb.Deployment] = Changes(MAX_WATCHED, gone=_gone)
        with self._nudges.watch() as watcher:
            while True:
                for change, deployment in changes.since(await self._watched(request)):
                    yield pb.WatchDeploymentsResponse(event=_EVENTS[change], deployment=deployment)
                await watcher.wait()

    async def DeleteDeployment(
        self, request: pb.DeleteDeploymentRequest, context: Context
    ) -> pb.DeleteDeploymentResponse:
        async with self._db.transaction() as conn:
            marked = await deployments.mark_deleted(
                conn,
                request.name,
                request.force,
                self._deps.clock(),
                expected_version=version_in(request.resource_version, "resource_version"),
            )
            shown = deployment_out(marked, await _counts(conn, marked.uid))
        self._deps.on_routing_change()
        return pb.DeleteDeploymentResponse(deployment=shown)

    async def ScaleDeployment(
        self, request: pb.ScaleDeploymentRequest, context: Context
    ) -> pb.ScaleDeploymentResponse:
        async with self._db.transaction() as conn:
            scaled = await deployments.scale(
                conn,
                request.name,
                request.replicas,
                self._deps.clock(),
                expected_version=version_in(request.resource_version, "resource_version"),
            )
            return pb.ScaleDeploymentResponse(
                deployment=deployment_out(scaled, await _counts(conn, scaled.uid))
            )

    async def RestartDeployment(
        self, request: pb.RestartDeploymentRequest, context: Context
    ) -> pb.RestartDeploymentResponse:
        await restart(self._db, request.name, self._deps.clock(), author=request.author, cause=request.cause)
        return pb.RestartDeploymentResponse(deployment=await self._shown(request.name))

    async def RollbackDeployment(
        self, request: pb.RollbackDeploymentRequest, context: Context
    ) -> pb.RollbackDeploymentResponse:
        made = await roll_back(
            self._db,
            request.name,
            request.revision,
            self._deps.clock(),
            author=request.author,
            cause=request.cause,
        )
        self._deps.on_routing_change()  # Its canary, if there was one, gets no more requests.
        outcome = pb.APPLY_OUTCOME_UNCHANGED if made is None else pb.APPLY_OUTCOME_CONFIGURED
        return pb.RollbackDeploymentResponse(deployment=await self._shown(request.name), outcome=outcome)

    async def PromoteDeployment(
        self, request: pb.PromoteDeploymentRequest, context: Context
    ) -> pb.PromoteDeploymentResponse:
        found = await promote(
            self._db,
            request.name,
            request.revision,
            self._deps.clock(),
            author=request.author,
            cause=request.cause,
        )
        self._deps.on_routing_change()
        return pb.PromoteDeploymentResponse(deployment=await self._shown(found.name))

    async def PauseDeployment(
        self, request: pb.PauseDeploymentRequest, context: Context
    ) -> pb.PauseDeploymentResponse:
        return pb.PauseDeploymentResponse(deployment=await self._set_paused(request, True))

    async def ResumeDeployment(
        self, request: pb.ResumeDeploymentRequest, context: Context
    ) -> pb.ResumeDeploymentResponse:
        return pb.ResumeDeploymentResponse(deployment=await self._set_paused(request, False))

    async def ListRevisions(
        self, request: pb.ListRevisionsRequest, context: Context
    ) -> pb.ListRevisionsResponse:
        start = pages.position(request, request.page_token, (int,))
        size = pages.size(request.page_size)
        async with self._db.snapshot() as conn:
            found = await deployments.get(conn, request.name)
            rows = await revisions.list_page(
                conn, found.uid, before_number=int(start[0]) if start else None, limit=size + 1
            )
            events = await revision_events.of(conn, found.uid, [row.number for row in rows[:size]])
            counts = (await replicas.count(conn, [found.uid]))[found.uid]
        token = pages.token(request, rows[size - 1].number) if len(rows) > size else ""
        return pb.ListRevisionsResponse(
            revisions=revisions_out(found, rows[:size], events, counts), next_page_token=token
        )

    async def _write(self, admitted: Admitted, author: str, cause: str) -> pb.ApplyDeploymentResponse:
        old, now = admitted.old, self._deps.clock()
        async with self._db.transaction() as conn:
            if old is None:
                made = await deployments.create(
                    conn, admitted.name, admitted.labels, admitted.spec, now, author=author, cause=cause
                )
                outcome = pb.APPLY_OUTCOME_CREATED
            else:
                made = await deployments.update_spec(
                    conn,
                    old.name,
                    admitted.spec,
                    admitted.labels,
                    now,
                    new_revision=admitted.makes_revision,
                    # What was looked at is what is written over, for a writer who named no version too.
                    expected_version=old.resource_version if admitted.version is None else admitted.version,
                    author=author,
                    cause=cause,
                )
                same = made.resource_version == old.resource_version
                outcome = pb.APPLY_OUTCOME_UNCHANGED if same else pb.APPLY_OUTCOME_CONFIGURED
            shown = deployment_out(made, await _counts(conn, made.uid))
        if outcome != pb.APPLY_OUTCOME_UNCHANGED:
            # The names that clients may ask for may be other ones now.
            self._deps.on_routing_change()
        return pb.ApplyDeploymentResponse(deployment=shown, outcome=outcome, warnings=admitted.warnings)

    async def _set_paused(
        self, request: pb.PauseDeploymentRequest | pb.ResumeDeploymentRequest, paused: bool
    ) -> pb.Deployment:
        async with self._db.transaction() as conn:
            changed = await deployments.set_paused(
                conn,
                request.name,
                paused,
                self._deps.clock(),
                rollout_only=request.rollout_only,
                author=request.author,
                cause=request.cause,
            )
            return deployment_out(changed, await _counts(conn, changed.uid))

    async def _shown(self, name: str) -> pb.Deployment:
        async with self._db.snapshot() as conn:
            found = await deployments.get(conn, name)
            return deployment_out(found, await _counts(conn, found.uid))

    async def _watched(self, request: pb.WatchDeploymentsRequest) -> dict[str, pb.Deployment]:
        """Everything the watch is about, by name, as of one instant."""
        found: dict[str, pb.Deployment] = {}
        async with self._db.snapshot() as conn:
            if request.name:
                with contextlib.suppress(NotFound):
                    one = await deployments.get(conn, request.name)
                    if _has(one.labels, parse_filter(request.filter)):
                        held = self._deps.held_requests().get(one.name, 0)
                        found[one.name] = deployment_out(one, await _counts(conn, one.uid), held)
                return found
            after_name, more = "", True
            # One too many is read, where there is one: then the watch is refused, and does not pass over it.
            while more and len(found) <= MAX_WATCHED:
                page, more = await self._page(conn, after_name, pages.MAX_SIZE, request.filter)
                found |= {deployment.metadata.name: deployment for deployment in page}
                after_name = page[-1].metadata.name if page else ""
        return found

    async def _page(
        self, conn: AsyncConnection, after_name: str, size: int, filter_text: str
    ) -> tuple[list[pb.Deployment], bool]:
        """A page of deployments with their counts, and whether there are more behind it."""
        found = await deployments.list_page(
            conn, after_name=after_name, limit=size + 1, terms=parse_filter(filter_text)
        )
        counts = await replicas.count(conn, [deployment.uid for deployment in found[:size]])
        held = self._deps.held_requests()
        shown = [deployment_out(one, counts[one.uid], held.get(one.name, 0)) for one in found[:size]]
        return shown, len(found) > size


def _has(labels: Mapping[str, str], terms: Sequence[Term]) -> bool:
    """What the store's statement asks of many, asked of one."""
    for term in terms:
        is_equal = term.label in labels and (term.match is Match.SET or labels[term.label] == term.value)
        if is_equal is (term.match is Match.NOT_EQUAL):
            return False
    return True


async def _counts(conn: AsyncConnection, deployment_uid: str) -> tuple[RevisionCount, ...]:
    return (await replicas.count(conn, [deployment_uid]))[deployment_uid]


def _identity(deployment: pb.Deployment) -> metadata_pb2.Metadata:
    """The part of the metadata that a client writes."""
    return metadata_pb2.Metadata(name=deployment.metadata.name, labels=deployment.metadata.labels)


def _gone(name: str) -> pb.Deployment:
    return pb.Deployment(metadata=metadata_pb2.Metadata(name=name))
