"""Every query against a real PostgreSQL: what is written comes back, what must not be is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.core.decisions import Cancel, CreateReplica, Decision, Reason, RecordJob, Submit
from penstock.core.jobs import Job, JobState
from penstock.core.model import (
    Attempt,
    Condition,
    ConditionStatus,
    Deployment,
    Heard,
    Phase,
    Replica,
    ReplicaState,
    RevisionEvent,
    RevisionEventType,
    RolloutRecord,
)
from penstock.core.plan import DeploymentStatus, ReplicaStatus
from penstock.core.routing import Endpoint, Route
from penstock.core.spec import Canary, Model, RestartPolicy, Rollout, RolloutStrategy, Spec
from penstock.rpc import history
from penstock.rpc.refusals import Refused
from penstock.store.database import Database
from penstock.store.errors import (
    AttemptEnded,
    AttemptSuperseded,
    BeingDeleted,
    LeaseLost,
    NameTaken,
    NotFound,
    ServedNameTaken,
    VersionConflict,
)
from penstock.store.filters import parse_filter
from penstock.store.queries import (
    attempts,
    decisions,
    deployments,
    installation,
    leases,
    members,
    replicas,
    revision_events,
    revisions,
    runtime,
    world,
)
from penstock.store.records import DecidedAction, Load, RevisionCount
from tests.stored import a_replica_of, an_attempt_of

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SPEC = Spec(Model(hub="owner/model"))
IDLE = Load()


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def job(job_id: int = 7, state: JobState = JobState.RUNNING, nodes: str = "") -> Job:
    return Job(job_id=job_id, name="penstock-a-t", comment="", state=state, nodes=nodes, submitted_at=NOW)


async def a_deployment(conn: AsyncConnection, name: str = "a", spec: Spec = SPEC) -> Deployment:
    return await deployments.create(conn, name, {}, spec, NOW)


async def a_replica(conn: AsyncConnection, name: str = "a") -> Replica:
    deployment = await a_deployment(conn, name)
    return await a_replica_of(conn, deployment.uid, 1, NOW)


async def an_attempt(conn: AsyncConnection, token: str = "t", name: str = "a") -> tuple[Replica, Attempt]:
    replica = await a_replica(conn, name)
    return replica, await an_attempt_of(conn, replica.uid, token, "#!/bin/sh\n", "hash", NOW)


async def end(conn: AsyncConnection, token: str, *, now: datetime = NOW) -> bool:
    return await attempts.end(
        conn, token, message="over", exit_code=1, job=None, failures=1, next_attempt_at=later(10), now=now
    )


@pytest.fixture
async def conn(database: Database) -> AsyncIterator[AsyncConnection]:
    """One transaction for the whole test."""
    async with database.transaction() as opened:
        yield opened


def refused(conn: AsyncConnection) -> AbstractAsyncContextManager[Any]:
    """A savepoint: the statement that fails in it does not end the test's transaction."""
    return conn.begin_nested()


class TestInstallation:
    async def test_is_given_once(self, database: Database) -> None:
        async with database.transaction() as conn:
            first = await installation.ensure(conn, NOW)
        async with database.transaction() as conn:
            assert await installation.ensure(conn, later(9)) == first
        assert first


class TestDeployments:
    async def test_comes_back_as_it_was_made(self, conn: AsyncConnection) -> None:
        spec = replace(SPEC, replicas=3)
        made = await deployments.create(conn, "a", {"team": "search"}, spec, NOW)
        assert made == await deployments.get(conn, "a")
        assert (made.spec, made.labels, made.created_at) == (spec, {"team": "search"}, NOW)
        assert (made.generation, made.revision, made.observed_generation) == (1, 1, 0)
        assert (await revisions.get(conn, made.uid, 1)).spec == spec

    async def test_a_taken_name_is_refused(self, conn: AsyncConnection) -> None:
        await a_deployment(conn)
        with pytest.raises(NameTaken, match="there is one already"):
            await a_deployment(conn)

    async def test_a_taken_served_name_is_refused_and_names_its_holder(self, conn: AsyncConnection) -> None:
        spec = replace(SPEC, model=Model(hub="o/m", served_name="llama"))
        await a_deployment(conn, "a", spec)
        async with refused(conn) as savepoint:
            with pytest.raises(ServedNameTaken, match="'llama' is taken by deployment 'a'"):
                await a_deployment(conn, "b", spec)
            await savepoint.rollback()
        await a_deployment(conn, "c")
        with pytest.raises(ServedNameTaken, match="'a'"):
            await deployments.update_spec(
                conn, "c", spec, None, NOW, new_revision=True, expected_version=None
            )

    async def test_going_back_into_a_name_that_is_taken_is_tried_once_and_said(
        self, conn: AsyncConnection
    ) -> None:
        made = await a_deployment(conn, "a", replace(SPEC, model=Model(hub="o/m", served_name="llama")))
        await deployments.update_spec(conn, "a", SPEC, None, NOW, new_revision=True, expected_version=None)
        await a_deployment(conn, "b", replace(SPEC, model=Model(hub="o/m", served_name="llama")))
        after = RolloutRecord(stable_revision=3, failed_revision=2, failed_message="a-2: it died")
        assert not await deployments.go_back(conn, made.uid, 2, 1, rollout=after, cause="", now=NOW)
        stays = await deployments.get(conn, "a")
        assert (stays.revision, stays.rollout.stable_revision, stays.rollout.cannot_go_back) == (2, 1, 2)
        assert stays.rollout.failed_message == (
            "a-2: it died; it cannot go back to revision 1: the model name 'llama' is taken by deployment 'b';"
            " choose another spec.model.served_name"
        )

    async def test_a_failed_revision_is_judged_anew_by_other_limits(self, conn: AsyncConnection) -> None:
        made = await a_deployment(conn)
        failed = RolloutRecord(1, failed_revision=1, failed_message="a-1: it died", cannot_go_back=1)
        for limits in (
            replace(SPEC, rollout=Rollout(progress_deadline_s=7200)),
            replace(
                SPEC,
                rollout=Rollout(progress_deadline_s=7200),
                restart=RestartPolicy(max_failures_per_hour=9),
            ),
        ):
            await deployments.record_rollout(conn, made.uid, failed, NOW)
            same = replace((await deployments.get(conn, "a")).spec, replicas=limits.replicas + 1)
            for spec, expected in ((same, failed), (limits, RolloutRecord(1))):
                changed = await deployments.update_spec(
                    conn, "a", spec, None, NOW, new_revision=False, expected_version=None
                )
                assert changed.rollout == expected

    async def test_what_became_of_a_revision_is_kept_with_it(self, conn: AsyncConnection) -> None:
        """Of a promoted revision that failed, going back to it needs a canary again; of one that ran all over none."""
        made = await a_deployment(conn)
        for model in ("promoted", "baked"):
            spec = replace(SPEC, model=Model(hub=f"owner/{model}"))
            await deployments.update_spec(
                conn, "a", spec, None, NOW, new_revision=True, expected_version=None
            )
        await deployments.promote(conn, "a", 2, NOW, author="anna", cause="looks well")
        await deployments.promote(conn, "a", 2, later(1), author="bob")
        for seconds, record in enumerate(
            (
                RolloutRecord(1),
                RolloutRecord(1, failed_revision=2, failed_message="a-2: it died"),
                RolloutRecord(1, baked_revision=3),
                RolloutRecord(1, baked_revision=3),
                RolloutRecord(3, baked_revision=3),
            )
        ):
            await deployments.record_rollout(conn, made.uid, record, later(seconds))
        found = await revision_events.of(conn, made.uid, [1, 2, 3, 4])
        penstock, kinds = deployments.PENSTOCK, RevisionEventType
        assert found == {
            1: (RevisionEvent(kinds.COMPLETED, later(0), penstock, "all wanted replicas were ready"),),
            2: (
                RevisionEvent(kinds.PROMOTED, NOW, "anna", "looks well"),
                RevisionEvent(kinds.FAILED, later(1), penstock, "a-2: it died"),
            ),
            3: (
                RevisionEvent(kinds.PROMOTED, later(2), penstock, "its canary stood its bake time"),
                RevisionEvent(kinds.COMPLETED, later(4), penstock, "all wanted replicas were ready"),
            ),
        }
        assert [one.proven for one in await revisions.list_page(conn, made.uid, limit=9)] == [
            True,
            False,
            True,
        ]

    async def test_a_revision_keeps_its_newest_events_and_takes_them_with_it(
        self, conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(revision_events, "EVENTS_KEPT", 3)
        monkeypatch.setattr(revisions, "REVISIONS_KEPT", 1)
        made = await a_deployment(conn)
        for number in range(6):
            await deployments.set_paused(conn, "a", number % 2 == 0, later(number), cause=f"{number}")
        found = await revision_events.of(conn, made.uid, [1])
        assert [one.cause for one in found[1]] == ["3", "4", "5"]
        await deployments.update_spec(conn, "a", SPEC, None, NOW, new_revision=True, expected_version=None)
        assert await revision_events.of(conn, made.uid, [1, 2]) == {}
        gone = RolloutRecord(1, failed_revision=1, failed_message="too late")
        await deployments.record_rollout(conn, made.uid, gone, NOW)
        assert await revision_events.of(conn, made.uid, [1]) == {}

    async def test_going_back_is_told_of_both_revisions(self, conn: AsyncConnection) -> None:
        made = await a_deployment(conn)
        other = replace(SPEC, model=Model(hub="owner/other"))
        await deployments.update_spec(conn, "a", other, None, NOW, new_revision=True, expected_version=None)
        await deployments.record_rollout(conn, made.uid, RolloutRecord(1), NOW)
        after = RolloutRecord(stable_revision=3, failed_revision=2, failed_message="a-2: it died")
        assert await deployments.go_back(conn, made.uid, 2, 1, rollout=after, cause="it died", now=NOW)
        events = await revision_events.of(conn, made.uid, [2, 3])
        assert [one.type for one in events[2]] == [RevisionEventType.FAILED, RevisionEventType.UNDONE]
        assert 3 not in events
        stands = await revisions.get(conn, made.uid, 3)
        assert (stands.author, stands.cause, stands.proven) == (deployments.PENSTOCK, "it died", True)

    async def test_undo_passes_over_what_failed_and_what_is_no_other_spec(
        self, conn: AsyncConnection
    ) -> None:
        made = await a_deployment(conn)
        for model in ("bad", "model", "model"):  # Revision 2 failed, 3 is 1 again, 4 its restart.
            spec = replace(SPEC, model=Model(hub=f"owner/{model}"))
            await deployments.update_spec(
                conn, "a", spec, None, NOW, new_revision=True, expected_version=None
            )
        assert await history.previous(conn, await deployments.get(conn, "a")) == 2
        await deployments.record_rollout(conn, made.uid, RolloutRecord(3, failed_revision=2), NOW)
        with pytest.raises(Refused, match="than that, but those that failed: 2"):
            await history.previous(conn, await deployments.get(conn, "a"))

    async def test_a_name_served_by_another_is_refused(self, conn: AsyncConnection) -> None:
        await a_deployment(conn, "a", replace(SPEC, model=Model(hub="o/m", served_name="b")))
        with pytest.raises(NameTaken, match="'a' serves its model, or an adapter, under that name"):
            await a_deployment(conn, "b")

    async def test_a_served_name_is_free_again_when_it_is_given_up(self, conn: AsyncConnection) -> None:
        spec = replace(SPEC, model=Model(hub="o/m", served_name="llama"))
        await a_deployment(conn, "a", spec)
        await deployments.update_spec(conn, "a", SPEC, None, NOW, new_revision=True, expected_version=None)
        await a_deployment(conn, "b", spec)
        with pytest.raises(NameTaken):
            await a_deployment(conn, "a")

    async def test_the_same_spec_writes_nothing(self, conn: AsyncConnection) -> None:
        made = await a_deployment(conn)
        again = await deployments.update_spec(
            conn, "a", SPEC, {}, NOW, new_revision=False, expected_version=made.resource_version
        )
        assert again == made

    async def test_labels_change_the_version_but_no_generation(self, conn: AsyncConnection) -> None:
        made = await a_deployment(conn)
        changed = await deployments.update_spec(
            conn, "a", SPEC, {"k": "v"}, NOW, new_revision=False, expected_version=None
        )
        assert changed.labels == {"k": "v"}
        assert changed.generation == 1
        assert changed.resource_version > made.resource_version

    async def test_a_restart_is_a_new_revision_of_the_same_spec(self, conn: AsyncConnection) -> None:
        made = await a_deployment(conn)
        changed = await deployments.update_spec(
            conn, "a", SPEC, None, later(1), new_revision=True, expected_version=None
        )
        assert (changed.revision, changed.generation, changed.spec) == (2, 2, SPEC)
        listed = await revisions.list_page(conn, made.uid, limit=10)
        assert [(item.number, item.spec) for item in listed] == [(2, SPEC), (1, SPEC)]
        assert [
            item.number for item in await revisions.list_page(conn, made.uid, before_number=2, limit=10)
        ] == [1]

    async def test_scaling_makes_no_revision(self, conn: AsyncConnection) -> None:
        await a_deployment(conn)
        scaled = await deployments.scale(conn, "a", 5, NOW)
        assert (scaled.spec.replicas, scaled.revision, scaled.generation) == (5, 1, 2)

    async def test_old_revisions_go_unless_a_replica_runs_them(
        self, conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(revisions, "REVISIONS_KEPT", 2)
        made = await a_deployment(conn)
        await a_replica_of(conn, made.uid, 1, NOW)
        for _ in range(4):
            await deployments.update_spec(
                conn, "a", SPEC, None, NOW, new_revision=True, expected_version=None
            )
        assert [item.number for item in await revisions.list_page(conn, made.uid, limit=9)] == [5, 4, 1]

    async def test_undo_to_a_revision_that_was_pruned_says_which_are_left(
        self, conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(revisions, "REVISIONS_KEPT", 2)
        made = await a_deployment(conn)
        await a_replica_of(conn, made.uid, 1, NOW)
        for _ in range(4):
            await deployments.update_spec(
                conn, "a", SPEC, None, NOW, new_revision=True, expected_version=None
            )
        found = await deployments.get(conn, "a")
        with pytest.raises(Refused, match='"a" has no revision 3; it has 1, 4 to 5'):
            await history.revision(conn, found, 3)

    async def test_an_older_version_is_refused_with_the_current_one(self, conn: AsyncConnection) -> None:
        made = await a_deployment(conn)
        scaled = await deployments.scale(conn, "a", 2, NOW, expected_version=made.resource_version)
        with pytest.raises(VersionConflict) as caught:
            await deployments.scale(conn, "a", 3, NOW, expected_version=made.resource_version)
        assert caught.value.current == scaled.resource_version
        with pytest.raises(VersionConflict):
            await deployments.mark_deleted(conn, "a", False, NOW, expected_version=made.resource_version)

    async def test_of_two_writers_at_once_one_is_refused(self, database: Database) -> None:
        async with database.transaction() as conn:
            made = await a_deployment(conn)

        async def scale(count: int) -> int:
            async with database.transaction() as conn:
                await deployments.scale(conn, "a", count, NOW, expected_version=made.resource_version)
            return count

        results = await asyncio.gather(scale(2), scale(3), return_exceptions=True)
        won = [result for result in results if isinstance(result, int)]
        lost = [result for result in results if isinstance(result, VersionConflict)]
        assert (len(won), len(lost)) == (1, 1)
        async with database.transaction() as conn:
            assert (await deployments.get(conn, "a")).spec.replicas == won[0]

    async def test_what_is_not_there_is_said(self, conn: AsyncConnection) -> None:
        for call in (
            deployments.get(conn, "x"),
            deployments.scale(conn, "x", 1, NOW),
            deployments.set_paused(conn, "x", True, NOW),
            deployments.mark_deleted(conn, "x", False, NOW),
            revisions.get(conn, "x", 1),
            replicas.get(conn, "x-1"),
            a_replica_of(conn, "x", 1, NOW),
            attempts.script(conn, "x"),
        ):
            with pytest.raises(NotFound):
                await call

    async def test_what_is_being_deleted_takes_no_changes(self, conn: AsyncConnection) -> None:
        await a_deployment(conn)
        marked = await deployments.mark_deleted(conn, "a", False, NOW)
        assert (marked.deleted_at, marked.force_delete) == (NOW, False)
        forced = await deployments.mark_deleted(conn, "a", True, later(5))
        assert (forced.deleted_at, forced.force_delete) == (NOW, True)
        assert await deployments.mark_deleted(conn, "a", False, later(6)) == forced
        with pytest.raises(BeingDeleted):
            await deployments.scale(conn, "a", 1, NOW)
        with pytest.raises(BeingDeleted):
            await deployments.set_paused(conn, "a", True, NOW)

    async def test_pause(self, conn: AsyncConnection) -> None:
        await a_deployment(conn)
        paused = await deployments.set_paused(conn, "a", True, NOW)
        assert paused.paused
        assert await deployments.set_paused(conn, "a", True, NOW) == paused

    async def test_status_is_written_only_where_it_differs(self, conn: AsyncConnection) -> None:
        made = await a_deployment(conn)
        conditions = (Condition("Ready", ConditionStatus.FALSE, "Queued", "0 of 1 ready", NOW),)
        other = await a_deployment(conn, "b")
        assert await deployments.write_status(conn, []) == 0
        both = [DeploymentStatus(made.uid, 1, conditions), DeploymentStatus(other.uid, 0, ())]
        assert await deployments.write_status(conn, both) == 1
        written = await deployments.get(conn, "a")
        assert (written.observed_generation, written.conditions) == (1, conditions)
        assert written.resource_version > made.resource_version
        assert await deployments.write_status(conn, both) == 0
        assert (await deployments.get(conn, "a")) == written

    async def test_pages_and_filters(self, conn: AsyncConnection) -> None:
        for name, labels in (
            ("a", {"team": "search", "tier": "prod"}),
            ("a-b", {"team": "search"}),
            ("ab", {"team": "ads", "gpu": ""}),
            ("b", {}),
        ):
            await deployments.create(conn, name, labels, SPEC, NOW)

        async def names(text: str = "", after: str = "", limit: int = 9) -> list[str]:
            page = await deployments.list_page(conn, after_name=after, limit=limit, terms=parse_filter(text))
            return [deployment.name for deployment in page]

        # Byte by byte: '-' comes before letters.
        assert await names() == ["a", "a-b", "ab", "b"]
        assert await names(limit=2) == ["a", "a-b"]
        assert await names(after="a-b") == ["ab", "b"]
        assert await names("team=search") == ["a", "a-b"]
        assert await names("team!=search") == ["ab", "b"]
        assert await names("team=search,tier!=prod") == ["a-b"]
        assert await names("gpu") == ["ab"]

    async def test_removal_takes_everything_but_the_log(self, conn: AsyncConnection) -> None:
        replica, _ = await an_attempt(conn)
        await decisions.insert(conn, "tick", [Decision("a", "", Reason.DELETED, "gone")], NOW)
        assert not await deployments.remove(conn, replica.deployment_uid)
        await end(conn, "t")
        assert await deployments.remove(conn, replica.deployment_uid)
        assert not await deployments.remove(conn, replica.deployment_uid)
        assert await world.load(conn) == type(await world.load(conn))((), ())
        assert await runtime.authenticate(conn, "t") is None
        assert len(await decisions.list_page(conn, deployment="a", limit=9)) == 1
        await a_deployment(conn)


class TestReplicas:
    async def test_numbers_are_never_used_twice(self, conn: AsyncConnection) -> None:
        first = await a_replica(conn)
        assert (first.name, first.number, first.state) == ("a-1", 1, ReplicaState.WAITING)
        assert await replicas.get(conn, "a-1") == replace(first, drain_timeout_s=SPEC.drain_timeout_s)
        await replicas.remove(conn, first.uid, NOW)
        second = await a_replica_of(conn, first.deployment_uid, 1, NOW)
        assert second.name == "a-2"

    async def test_one_keeps_its_own_revisions_drain_timeout(self, conn: AsyncConnection) -> None:
        await a_replica(conn)
        before = await world.load(conn)
        shorter = replace(SPEC, drain_timeout_s=5)
        await deployments.update_spec(conn, "a", shorter, None, NOW, new_revision=True, expected_version=None)
        after = await world.load(conn)
        for found in (before, after):
            assert found.replicas[0].drain_timeout_s == SPEC.drain_timeout_s
        assert after.deployments[0].spec.drain_timeout_s == 5

    async def test_a_revision_that_is_not_there_is_refused(self, conn: AsyncConnection) -> None:
        made = await a_deployment(conn)
        with pytest.raises(IntegrityError):
            await a_replica_of(conn, made.uid, 2, NOW)

    async def test_pages(self, conn: AsyncConnection) -> None:
        a, b = await a_deployment(conn, "a"), await a_deployment(conn, "b")
        for uid in (b.uid, a.uid, a.uid):
            await a_replica_of(conn, uid, 1, NOW)
        gone = await replicas.get(conn, "a-1")
        await replicas.remove(conn, gone.uid, later(1), message="scaled away")

        async def names(**given: Any) -> list[str]:
            return [replica.name for replica in await replicas.list_page(conn, **{"limit": 9, **given})]

        assert await names() == ["a-2", "b-1"]
        assert await names(include_removed=True) == ["a-1", "a-2", "b-1"]
        assert await names(include_removed=True, limit=1) == ["a-1"]
        assert await names(include_removed=True, after=("a", 1)) == ["a-2", "b-1"]
        assert await names(after=("a", 2)) == ["b-1"]
        assert await names(deployment="b") == ["b-1"]
        removed = await replicas.get(conn, "a-1")
        assert (removed.state, removed.removed_at, removed.message) == (
            ReplicaState.REMOVED,
            later(1),
            "scaled away",
        )

    async def test_status_of_many_at_once_only_where_it_differs(self, conn: AsyncConnection) -> None:
        made = await a_deployment(conn)
        uids = [(await a_replica_of(conn, made.uid, 1, NOW)).uid for _ in range(3)]
        queued = [ReplicaStatus(uid, ReplicaState.QUEUED, "Resources") for uid in uids]
        assert await replicas.write_status(conn, queued, later(1)) == 3
        assert await replicas.write_status(conn, queued, later(2)) == 0
        assert await replicas.write_status(conn, [], later(2)) == 0
        changed = [
            replace(queued[0], message="Priority"),
            replace(queued[1], state=ReplicaState.STARTING),
            queued[2],
        ]
        assert await replicas.write_status(conn, changed, later(3)) == 2
        found = await replicas.list_page(conn, limit=9)
        assert [(item.state, item.message, item.since) for item in found] == [
            (ReplicaState.QUEUED, "Priority", later(1)),
            (ReplicaState.STARTING, "Resources", later(3)),
            (ReplicaState.QUEUED, "Resources", later(1)),
        ]
        assert await replicas.write_status(conn, [replace(queued[2], anew=True)], later(4)) == 1
        assert (await replicas.get(conn, found[2].name)).since == later(4)

    async def test_leaving_is_written_once(self, conn: AsyncConnection) -> None:
        replica = await a_replica(conn)
        assert await replicas.mark_leaving(conn, replica.uid)
        assert not await replicas.mark_leaving(conn, replica.uid)
        assert (await replicas.get(conn, "a-1")).leaving

    async def test_one_with_a_live_attempt_is_not_removed(self, conn: AsyncConnection) -> None:
        replica, _ = await an_attempt(conn)
        assert not await replicas.remove(conn, replica.uid, NOW)
        await end(conn, "t")
        assert await replicas.remove(conn, replica.uid, NOW)
        assert not await replicas.remove(conn, replica.uid, NOW)

    async def test_counts_by_revision(self, conn: AsyncConnection) -> None:
        replica, _ = await an_attempt(conn)
        await runtime.register(conn, "t", job_id=7, restart_count=0, host="h", port=1, now=NOW)
        await ready(conn, "t")
        await a_replica_of(conn, replica.deployment_uid, 1, NOW)
        await deployments.update_spec(conn, "a", SPEC, None, NOW, new_revision=True, expected_version=None)
        await a_replica_of(conn, replica.deployment_uid, 2, NOW)
        empty = await a_deployment(conn, "b")
        assert await replicas.count(conn, [replica.deployment_uid, empty.uid]) == {
            replica.deployment_uid: (RevisionCount(1, 2, 1, 1), RevisionCount(2, 1, 0, 0)),
            empty.uid: (),
        }

    async def test_removed_ones_are_forgotten_in_batches(self, conn: AsyncConnection) -> None:
        made = await a_deployment(conn)
        for _ in range(3):
            await replicas.remove(conn, (await a_replica_of(conn, made.uid, 1, NOW)).uid, NOW)
        kept = await a_replica_of(conn, made.uid, 1, NOW)
        assert await replicas.prune(conn, NOW, batch=2) == 0
        assert await replicas.prune(conn, later(1), batch=2) == 2
        assert await replicas.prune(conn, later(1), batch=2) == 1
        (left,) = await replicas.list_page(conn, limit=9, include_removed=True)
        assert left.uid == kept.uid


class TestAttempts:
    async def test_a_second_live_attempt_is_refused(self, conn: AsyncConnection) -> None:
        replica, first = await an_attempt(conn)
        assert (first.number, first.live, first.intended_at) == (1, True, NOW)
        with pytest.raises(IntegrityError, match="attempts_live_index"):
            async with refused(conn):
                await an_attempt_of(conn, replica.uid, "u", "#!", "hash", NOW)
        await end(conn, "t")
        second = await an_attempt_of(conn, replica.uid, "u", "#!", "hash", NOW)
        assert second.number == 2

    async def test_of_two_intents_at_once_one_is_refused(self, database: Database) -> None:
        async with database.transaction() as conn:
            replica = await a_replica(conn)

        async def intend(token: str) -> None:
            async with database.transaction() as conn:
                await an_attempt_of(conn, replica.uid, token, "#!", "hash", NOW)

        results = await asyncio.gather(intend("t"), intend("u"), return_exceptions=True)
        assert sorted(type(result).__name__ for result in results) == ["IntegrityError", "NoneType"]

    async def test_a_token_is_unique_for_ever(self, conn: AsyncConnection) -> None:
        replica, _ = await an_attempt(conn)
        await end(conn, "t")
        with pytest.raises(IntegrityError, match="attempts_pkey"):
            await an_attempt_of(conn, replica.uid, "t", "#!", "hash", NOW)

    async def test_a_job_belongs_to_one_live_attempt(self, conn: AsyncConnection) -> None:
        await an_attempt(conn, "t", "a")
        await an_attempt(conn, "u", "b")
        await attempts.record_job_id(conn, "t", 7)
        with pytest.raises(IntegrityError, match="attempts_live_job_index"):
            async with refused(conn):
                await attempts.record_job_id(conn, "u", 7)
        # Ids come again after Slurm's state was reset: an ended attempt's may be anybody's.
        await end(conn, "t")
        assert await attempts.record_job_id(conn, "u", 7)

    async def test_a_job_id_is_positive(self, conn: AsyncConnection) -> None:
        await an_attempt(conn)
        with pytest.raises(IntegrityError, match="attempts_job_id_check"):
            await attempts.record_job_id(conn, "t", 0)

    async def test_the_course_of_one(self, conn: AsyncConnection) -> None:
        replica, _ = await an_attempt(conn)
        assert await attempts.mark_submitting(conn, ["t", "nobody"], later(1)) == {"t"}
        assert await attempts.record_job_id(conn, "t", 7, job(state=JobState.PENDING))
        assert await attempts.record_missing(conn, "t", later(2))
        assert await attempts.record_missing(conn, "t", None)
        await attempts.record_jobs(conn, [RecordJob("t", job(), later(1), later(2))])
        assert await attempts.mark_draining(conn, "t", later(3))
        assert not await attempts.mark_draining(conn, "t", later(9))
        assert await attempts.mark_withdrawn(conn, "t", later(3))
        assert await attempts.mark_withdrawn(conn, "t", later(4)), "the last one counts"
        assert await attempts.mark_signalled(conn, "t", later(4))
        assert await attempts.mark_cancelled(conn, "t", later(5))
        ended_job = job(state=JobState.FAILED)
        assert await attempts.end(
            conn,
            "t",
            message="The job failed.",
            exit_code=3,
            job=ended_job,
            failures=2,
            next_attempt_at=later(20),
            now=later(6),
        )
        expected = Attempt(
            token="t",
            number=1,
            intended_at=NOW,
            submitted_at=later(1),
            job_id=7,
            job=ended_job,
            running_since=later(1),
            halted_since=later(2),
            drain_at=later(3),
            signalled_at=later(4),
            cancelled_at=later(5),
            withdrawn_at=later(4),
            ended_at=later(6),
            end_message="The job failed.",
            exit_code=3,
        )
        found = await replicas.get(conn, "a-1")
        assert found.attempt == expected
        assert (found.failures, found.next_attempt_at) == (2, later(20))
        assert await attempts.list_for(conn, replica.uid) == (expected,)
        assert await attempts.script(conn, "t") == "#!/bin/sh\n"

    async def test_what_has_ended_stays_as_it_ended(self, conn: AsyncConnection) -> None:
        await an_attempt(conn)
        await end(conn, "t")
        before = (await replicas.get(conn, "a-1")).attempt
        assert not await end(conn, "t", now=later(9))
        assert not await attempts.mark_submitting(conn, ["t"], later(9))
        assert not await attempts.record_job_id(conn, "t", 8)
        await attempts.record_jobs(conn, [RecordJob("t", job(8))])
        assert not await attempts.record_refusal(conn, "t", "no", later(9))
        assert not await attempts.mark_cancelled(conn, "t", later(9))
        assert (await replicas.get(conn, "a-1")).attempt == before
        with pytest.raises(IntegrityError, match="cannot live again"):
            await conn.exec_driver_sql("UPDATE attempts SET ended_at = NULL")

    async def test_failures_are_those_that_were_blamed_and_are_young(self, conn: AsyncConnection) -> None:
        replica = await a_replica(conn)
        for number, (blamed, minutes) in enumerate([(True, 10), (False, 20), (True, 30)], 1):
            token = f"t{number}"
            await an_attempt_of(conn, replica.uid, token, "#!", "hash", NOW)
            await attempts.record_job_id(conn, token, number, job(number))
            await attempts.end(
                conn,
                token,
                message="",
                exit_code=1,
                job=job(number, state=JobState.FAILED, nodes="gpu[1-2]"),
                failures=number,
                next_attempt_at=None,
                now=later(60 * minutes),
                failed=blamed,
            )
        found = await attempts.failures(conn, NOW)
        assert [(one.ended_at, one.state, one.nodes) for one in found] == [
            (later(1800), JobState.FAILED, ("gpu1", "gpu2")),
            (later(600), JobState.FAILED, ("gpu1", "gpu2")),
        ]
        assert {(one.deployment, one.revision, one.replica) for one in found} == {("a", 1, "a-1")}
        assert len(await attempts.failures(conn, later(600))) == 1

    async def test_a_refusal(self, conn: AsyncConnection) -> None:
        await an_attempt(conn)
        await attempts.mark_submitting(conn, ["t"], later(1))
        assert await attempts.record_refusal(conn, "t", "Invalid account", later(1))
        found = (await replicas.get(conn, "a-1")).attempt
        assert found is not None
        assert found.refusal == "Invalid account"

    async def test_a_refusal_is_of_the_call_with_its_mark(self, conn: AsyncConnection) -> None:
        """Another controller has called again since, and may have been accepted."""
        await an_attempt(conn)
        await attempts.mark_submitting(conn, ["t"], later(1))
        await attempts.mark_submitting(conn, ["t"], later(40))
        assert not await attempts.record_refusal(conn, "t", "Invalid account", later(1))
        await attempts.record_job_id(conn, "t", 7)
        assert not await attempts.record_refusal(conn, "t", "Invalid account", later(40))

    async def test_a_late_mark_does_not_shorten_the_doubt(self, conn: AsyncConnection) -> None:
        await an_attempt(conn)
        await attempts.mark_submitting(conn, ["t"], later(40))
        await attempts.mark_submitting(conn, ["t"], later(1))
        found = (await replicas.get(conn, "a-1")).attempt
        assert found is not None
        assert found.submitted_at == later(40)

    async def test_what_has_a_job_is_not_marked(self, conn: AsyncConnection) -> None:
        await an_attempt(conn)
        await attempts.record_job_id(conn, "t", 7)
        assert await attempts.mark_submitting(conn, ["t"], later(1)) == frozenset()
        assert not await attempts.launch_again(conn, "t", "#!/bin/bash\n", "another", packed=False)
        assert await attempts.script(conn, "t") == "#!/bin/sh\n"

    async def test_a_clock_behind_the_intents_clock_breaks_nothing(self, conn: AsyncConnection) -> None:
        await an_attempt(conn)
        await attempts.mark_submitting(conn, ["t"], later(-60))
        await end(conn, "t", now=later(-60))
        found = (await replicas.get(conn, "a-1")).attempt
        assert found is not None
        assert (found.submitted_at, found.ended_at) == (NOW, NOW)

    async def test_a_new_intent_ends_the_back_off(self, conn: AsyncConnection) -> None:
        replica, _ = await an_attempt(conn)
        await end(conn, "t")
        await an_attempt_of(conn, replica.uid, "u", "#!", "hash", NOW)
        found = await replicas.get(conn, "a-1")
        assert found.next_attempt_at is None
        assert found.attempt is not None
        assert found.attempt.token == "u"

    async def test_old_ones_are_forgotten(
        self, conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(attempts, "ATTEMPTS_KEPT", 2)
        replica = await a_replica(conn)
        for token in "abcd":
            await an_attempt_of(conn, replica.uid, token, "#!", "hash", NOW)
            await end(conn, token)
        assert [item.token for item in await attempts.list_for(conn, replica.uid)] == ["d", "c"]


async def ready(
    conn: AsyncConnection, token: str, *, now: datetime = NOW, load: Load = IDLE, run: int = 0
) -> runtime.Reported:
    return await runtime.report(
        conn,
        token,
        phase=Phase.READY,
        message="ok",
        load=load,
        exit_code=None,
        last_words="",
        now=now,
        restart_count=run,
    )


class TestRuntime:
    async def test_who_a_token_is(self, conn: AsyncConnection) -> None:
        replica, attempt = await an_attempt(conn)
        agent = await runtime.authenticate(conn, "t")
        assert agent is not None
        assert (agent.secret_hash, agent.attempt, agent.deployment) == ("hash", attempt, "a")
        assert agent.replica == replace(replica, attempt=attempt)
        (route,) = (await runtime.routing_state(conn)).routes
        assert agent.deployment_secret == route.secret
        assert await runtime.authenticate(conn, "nobody") is None

    async def test_register_is_idempotent_and_starts_over_for_a_later_run(
        self, conn: AsyncConnection
    ) -> None:
        await an_attempt(conn)
        first = await runtime.register(conn, "t", job_id=7, restart_count=0, host="n1", port=50, now=NOW)
        assert (first.job_id, first.endpoint, first.phase) == (7, "n1:50", Phase.REGISTERED)
        await ready(conn, "t")
        await runtime.register(conn, "t", job_id=7, restart_count=0, host="n1", port=50, now=later(1))
        found = (await replicas.get(conn, "a-1")).attempt
        assert found is not None
        assert (found.phase, found.ready_at, found.reported_at) == (Phase.READY, NOW, later(1))
        again = await runtime.register(
            conn, "t", job_id=7, restart_count=1, host="fe80::1", port=51, now=later(2)
        )
        assert (again.phase, again.ready_at, again.endpoint) == (Phase.REGISTERED, None, "[fe80::1]:51")
        with pytest.raises(AttemptSuperseded, match="requeued 1 times"):
            await runtime.register(conn, "t", job_id=7, restart_count=0, host="n1", port=50, now=later(3))
        with pytest.raises(AttemptSuperseded, match="job 7 runs it, not job 8"):
            await runtime.register(conn, "t", job_id=8, restart_count=2, host="n1", port=50, now=later(3))

    async def test_an_ended_attempt_is_told_so(self, conn: AsyncConnection) -> None:
        await an_attempt(conn)
        await end(conn, "t")
        with pytest.raises(AttemptEnded):
            await runtime.register(conn, "t", job_id=7, restart_count=0, host="n1", port=50, now=NOW)
        with pytest.raises(AttemptEnded):
            await ready(conn, "t")
        with pytest.raises(AttemptEnded):
            await ready(conn, "nobody")

    async def test_ready_is_written_once_and_moves_the_replica_at_once(self, conn: AsyncConnection) -> None:
        await an_attempt(conn)
        await runtime.register(conn, "t", job_id=7, restart_count=0, host="n1", port=50, now=NOW)
        assert await ready(conn, "t", now=later(1)) == runtime.Reported(drain=False, news=True)
        load = Load(1, 2, 0.5, 3, 4)
        assert await ready(conn, "t", now=later(2), load=load) == runtime.Reported(drain=False, news=False)
        found = await replicas.get(conn, "a-1")
        assert (found.state, found.since) == (ReplicaState.READY, later(1))
        assert found.attempt is not None
        assert (found.attempt.ready_at, found.attempt.reported_at) == (later(1), later(2))
        assert await attempts.loads(conn, ["t", "x"]) == {"t": load}

    async def test_ready_without_having_registered_is_refused(self, conn: AsyncConnection) -> None:
        await an_attempt(conn)
        with pytest.raises(IntegrityError, match="attempts_ready_at_check"):
            await ready(conn, "t")

    async def test_last_words(self, conn: AsyncConnection) -> None:
        await an_attempt(conn)
        await runtime.report(
            conn, "t", phase=Phase.FAILED, message="gone", load=IDLE, exit_code=137, last_words="OOM", now=NOW
        )
        await runtime.report(
            conn, "t", phase=Phase.FAILED, message="gone", load=IDLE, exit_code=None, last_words="", now=NOW
        )
        found = (await replicas.get(conn, "a-1")).attempt
        assert found is not None
        assert (found.phase, found.exit_code, found.last_words) == (Phase.FAILED, 137, "OOM")

    async def test_whatever_an_engine_prints_can_be_stored(self, conn: AsyncConnection) -> None:
        await an_attempt(conn)
        await runtime.report(
            conn,
            "t",
            phase=Phase.FAILED,
            message="a\0b",
            load=IDLE,
            exit_code=1,
            last_words="\0\U0001f600",
            now=NOW,
        )
        found = (await replicas.get(conn, "a-1")).attempt
        assert found is not None
        assert (found.phase_message, found.last_words) == ("a\ufffdb", "\ufffd\U0001f600")

    async def test_routing(self, conn: AsyncConnection) -> None:
        spec = replace(SPEC, model=Model(hub="o/m", served_name="llama"))
        made = await a_deployment(conn, "a", spec)
        for token in ("t1", "t2", "t3"):
            replica = await a_replica_of(conn, made.uid, 1, NOW)
            await an_attempt_of(conn, replica.uid, token, "#!", "hash", NOW)
        await a_deployment(conn, "b")

        async def routable() -> list[str]:
            routes = {route.deployment: route for route in (await runtime.routing_state(conn)).routes}
            assert routes["a"].model_names == ("a", "llama")
            assert routes["b"] == Route(
                "b", ("b",), routes["b"].secret, (), created_at_s=int(NOW.timestamp())
            )
            assert routes["a"].secret != routes["b"].secret
            return [endpoint.attempt for endpoint in routes["a"].endpoints]

        for number, token in enumerate(("t1", "t2", "t3"), 1):
            await runtime.register(
                conn, token, job_id=number, restart_count=0, host="n1", port=number, engine_port=99, now=NOW
            )
        assert await routable() == []
        for token in ("t1", "t2", "t3"):
            await ready(conn, token)
        assert await routable() == ["t1", "t2", "t3"]
        (route, _) = (await runtime.routing_state(conn)).routes
        assert route.endpoints[0] == Endpoint("t1", "a-1", "n1", 1, 99, 1)
        await replicas.mark_leaving(conn, (await replicas.get(conn, "a-1")).uid)
        assert await routable() == ["t2", "t3"]
        assert (await ready(conn, "t1")).drain
        await attempts.mark_draining(conn, "t2", NOW)
        assert await routable() == ["t3"]
        assert (await ready(conn, "t2")).drain
        await runtime.register(conn, "t3", job_id=3, restart_count=1, host="n1", port=3, now=NOW)
        assert await routable() == []
        await ready(conn, "t3", run=1)
        assert await routable() == ["t3"]
        requeued = Job(3, "n", "c", JobState.PENDING, restarts=2)
        await attempts.record_jobs(conn, [RecordJob("t3", requeued)])
        assert await routable() == []
        await attempts.record_jobs(
            conn, [RecordJob("t3", replace(requeued, state=JobState.RUNNING, restarts=1))]
        )
        assert await routable() == ["t3"]
        await end(conn, "t3")
        assert await routable() == []

    async def test_a_canary_gets_as_much_of_its_share_as_is_ready(self, conn: AsyncConnection) -> None:
        policy = Rollout(strategy=RolloutStrategy.CANARY, canary=Canary(50))
        made = await a_deployment(conn, spec=replace(SPEC, replicas=4, rollout=policy))
        await deployments.record_rollout(conn, made.uid, RolloutRecord(stable_revision=1), NOW)
        other = replace(made.spec, model=Model(hub="owner/other"))
        await deployments.update_spec(conn, "a", other, None, NOW, new_revision=True, expected_version=None)

        async def weights_with(job_id: int, revision: int) -> tuple[tuple[int, int], ...]:
            token = f"t{job_id}"
            replica = await a_replica_of(conn, made.uid, revision, NOW)
            await an_attempt_of(conn, replica.uid, token, "#!", "hash", NOW)
            await runtime.register(conn, token, job_id=job_id, restart_count=0, host="n1", port=1, now=NOW)
            await ready(conn, token)
            (route,) = (await runtime.routing_state(conn)).routes
            return route.weights

        assert await weights_with(1, 1) == ((1, 100),)
        assert await weights_with(2, 2) == ((1, 75), (2, 25))
        assert await weights_with(3, 2) == ((1, 50), (2, 50))


async def test_a_late_answer_takes_no_other_jobs_place(conn: AsyncConnection) -> None:
    """A leader that slept wakes with a job id after its successor has found and written another one."""
    await an_attempt(conn)
    assert await attempts.record_job_id(conn, "t", 8)
    assert await attempts.record_job_id(conn, "t", 8)
    assert not await attempts.record_job_id(conn, "t", 7)
    assert not await attempts.record_job_id(conn, "t", 7, Job(7, "n", "c", JobState.RUNNING))
    for number, token in enumerate(("u", "v", "w")):
        await an_attempt(conn, token, f"other{number}")
    assert await end(conn, "v")
    await attempts.record_job_ids(conn, [("u", 10), ("t", 7), ("v", 11), ("w", 9)])
    rows = await conn.exec_driver_sql("SELECT token, job_id FROM attempts")
    assert {row.token: row.job_id for row in rows} == {"t": 8, "u": 10, "v": None, "w": 9}


class TestDecisions:
    async def test_the_log(self, conn: AsyncConnection) -> None:
        made = [
            Decision("", "", Reason.CLUSTER_UNREACHABLE, "slurmctld does not answer"),
            Decision("a", "", Reason.SCALE_UP, "0 of 1", (CreateReplica("uid", 1),)),
            Decision("a", "a-1", Reason.SUBMIT, "attempt 1", (Submit("r"), Cancel("t", 7, "name"))),
        ]
        inserted = await decisions.insert(conn, "tick-1", made, NOW)
        assert [record.reason for record in inserted] == ["ClusterUnreachable", "ScaleUp", "Submit"]
        assert await decisions.list_page(conn, limit=9) == tuple(reversed(inserted))
        assert await decisions.list_page(conn, deployment="a", limit=9) == (inserted[2], inserted[1])
        assert await decisions.list_page(conn, deployment="a", replica="a-1", limit=9) == (inserted[2],)
        assert await decisions.list_page(conn, before_id=inserted[2].id, limit=1) == (inserted[1],)
        assert await decisions.after(conn, inserted[0].id, limit=9) == inserted[1:]
        assert await decisions.after(conn, 0, deployment="a", limit=1) == (inserted[1],)
        assert await decisions.last_id(conn) == inserted[2].id
        gone = inserted[2].id + 1
        await decisions.record_outcomes(conn, [])
        await decisions.record_outcomes(
            conn,
            [(gone, 0, "?"), (inserted[2].id, 5, "there is no such action"), (inserted[2].id, 0, "done")],
        )
        (submit, *_) = await decisions.list_page(conn, limit=1)
        assert submit.actions == (
            DecidedAction("submit", "replica r", "done"),
            DecidedAction("cancel", "job 7"),
        )

    async def test_a_decision_made_again(self, conn: AsyncConnection) -> None:
        (record,) = await decisions.insert(conn, "t", [Decision("", "", Reason.STEADY, "ok")], NOW)
        await decisions.bump(conn, [])
        await decisions.bump(conn, [(record.id, 5, later(60))])
        await decisions.bump(conn, [(record.id, 2, later(30))])
        assert await decisions.list_page(conn, limit=9) == (replace(record, count=8, last_at=later(60)),)

    async def test_what_is_tried_again_has_no_outcome_yet(self, conn: AsyncConnection) -> None:
        made = Decision("", "", Reason.CANCEL, "again", (Cancel("t", 7, "name"),))
        (record,) = await decisions.insert(conn, "t", [made], NOW)
        await decisions.record_outcomes(conn, [(record.id, 0, "Slurm does not answer")])
        await decisions.bump(conn, [(record.id, 1, later(60))], {record.id: decisions.written(made, {})})
        (again,) = await decisions.list_page(conn, limit=9)
        assert again == replace(record, count=2, last_at=later(60))
        assert [one.outcome for one in again.actions] == [""]

    async def test_the_newest_of_each_subject_that_is_there(self, conn: AsyncConnection) -> None:
        await a_replica(conn)
        subjects = [("", ""), ("a", ""), ("a", "a-1"), ("gone", ""), ("a", "a-9")]
        for message in ("old", "new"):
            await decisions.insert(
                conn, "t", [Decision(*who, Reason.STEADY, message) for who in subjects], NOW
            )
        newest = await decisions.newest_per_subject(conn)
        assert set(newest) == {("", ""), ("a", ""), ("a", "a-1")}
        assert {record.message for record in newest.values()} == {"new"}

    async def test_retention(self, conn: AsyncConnection) -> None:
        await a_replica(conn)
        for moment in (0, 1, 2, 3):
            await decisions.insert(
                conn,
                "t",
                [Decision(*who, Reason.STEADY, "") for who in (("a", ""), ("a", "a-1"), ("gone", ""))],
                later(moment),
            )

        async def left(deployment: str, replica: str = "") -> int:
            found = await decisions.list_page(conn, deployment=deployment, limit=99)
            return len([record for record in found if record.replica == replica])

        assert await decisions.prune(conn, NOW, keep_per_subject=2, batch=100) == 0
        assert await decisions.prune(conn, later(3), keep_per_subject=2, batch=3) == 3
        while await decisions.prune(conn, later(3), keep_per_subject=2, batch=3):
            pass
        # Of those that are there the newest two stay; of what is gone only what is young.
        assert (await left("a"), await left("a", "a-1"), await left("gone")) == (2, 2, 1)


class TestLeases:
    async def test_one_holder_at_a_time_and_terms_increase(self, database: Database) -> None:
        async with database.transaction() as conn:
            assert await leases.acquire(conn, "controller", "one", 60) == 1
        async with database.transaction() as conn:
            assert await leases.acquire(conn, "controller", "two", 60) is None
            assert await leases.renew(conn, "controller", "one", 1, 60)
            assert not await leases.renew(conn, "controller", "two", 1, 60)
            await leases.fence(conn, "controller", "one", 1)
            with pytest.raises(LeaseLost):
                await leases.fence(conn, "controller", "one", 2)
            with pytest.raises(LeaseLost):  # A restored database may give a term again.
                await leases.fence(conn, "controller", "two", 1)
        async with database.transaction() as conn:
            await leases.release(conn, "controller", "one", 1)
        async with database.transaction() as conn:
            with pytest.raises(LeaseLost):
                await leases.fence(conn, "controller", "one", 1)
            assert not await leases.renew(conn, "controller", "one", 1, 60)
            assert await leases.acquire(conn, "controller", "two", 60) == 2
            await leases.release(conn, "controller", "one", 1)
            await leases.fence(conn, "controller", "two", 2)

    async def test_a_term_runs_out_by_the_databases_clock(self, database: Database) -> None:
        async with database.transaction() as conn:
            assert await leases.acquire(conn, "controller", "one", 0) == 1
        async with database.transaction() as conn:
            with pytest.raises(LeaseLost):
                await leases.fence(conn, "controller", "one", 1)
            assert await leases.acquire(conn, "controller", "two", 60) == 2

    async def test_of_two_at_once_one_gets_it(self, database: Database) -> None:
        async def acquire(holder: str) -> int | None:
            async with database.transaction() as conn:
                return await leases.acquire(conn, "controller", holder, 60)

        assert sorted(map(str, await asyncio.gather(acquire("one"), acquire("two")))) == ["1", "None"]

    async def test_nobody_takes_over_while_a_fenced_transaction_is_open(self, database: Database) -> None:
        async with database.transaction() as conn:
            await leases.acquire(conn, "controller", "one", 3)  # Not over before it is fenced.

        async def take() -> int:
            while True:
                async with database.transaction() as conn:
                    term = await leases.acquire(conn, "controller", "two", 60)
                if term is not None:
                    return term

        async with database.transaction() as fenced:
            await leases.fence(fenced, "controller", "one", 1)
            taking = asyncio.create_task(take())
            done, _ = await asyncio.wait({taking}, timeout=4)
            assert not done
        assert await asyncio.wait_for(taking, 60) == 2

    @pytest.mark.parametrize("change", ["term = 4", "holder = 'thief'", "term = 4, holder = 'thief'"])
    async def test_the_table_itself_keeps_terms_increasing(self, conn: AsyncConnection, change: str) -> None:
        for _ in range(5):
            await leases.acquire(conn, "controller", "one", 60)
        with pytest.raises(IntegrityError, match="only increases"):
            await conn.exec_driver_sql(f"UPDATE leases SET {change}")


class TestMembers:
    async def test_heard_since_the_earliest_that_is_present(self, database: Database) -> None:
        async with database.transaction() as conn:
            assert await members.heard(conn) is None
        async with database.transaction() as conn:
            await members.beat(conn, members.GATEWAY, "g1", "127.0.0.1:1", came=True)
        async with database.transaction() as conn:
            await members.beat(conn, members.GATEWAY, "g2", "127.0.0.1:2", came=True)
            await members.beat(conn, "controller", "c1", "", came=True)
        async with database.transaction() as conn:
            await members.beat(conn, members.GATEWAY, "g1", "127.0.0.1:3", came=False)
        async with database.transaction() as conn:
            first, second = await members.list_present(conn, members.GATEWAY)
            assert (first.address, second.address) == ("127.0.0.1:3", "127.0.0.1:2")
            assert first.open_since < second.open_since < first.seen_at
            assert await members.heard(conn) == Heard(first.open_since, first.seen_at)
            await conn.exec_driver_sql(
                "UPDATE members SET seen_at = seen_at - interval '31 s', open_since = open_since - interval '1 h'"
                " WHERE id = 'g1'"
            )
            assert await members.heard(conn) == Heard(second.open_since, second.seen_at)
            await members.beat(conn, members.GATEWAY, "g1", "127.0.0.1:3", came=False)
            first, second = await members.list_present(conn, members.GATEWAY)
            assert first.open_since > second.open_since

    async def test_nobody_heard_while_all_were_away(self, database: Database) -> None:
        """However short that was: each time it may be what an agent tried to say that was lost."""
        for came in (True, False, True):
            async with database.transaction() as conn:
                await members.beat(conn, members.GATEWAY, "g1", "", came=came)
                (one,) = await members.list_present(conn, members.GATEWAY)
                assert await members.heard(conn) == Heard(one.open_since, one.seen_at)
                assert (one.open_since == one.seen_at) == came

    @pytest.mark.parametrize(("ago_s", "unbroken"), [(4, True), (6, False)])
    async def test_whoever_comes_soon_after_anothers_beat_makes_no_break(
        self, conn: AsyncConnection, ago_s: int, unbroken: bool
    ) -> None:
        await members.beat(conn, members.GATEWAY, "g1", "", came=True)
        await conn.exec_driver_sql(
            f"UPDATE members SET seen_at = now() - interval '{ago_s} s', open_since = now() - interval '1 h'"
        )
        await members.beat(conn, members.GATEWAY, "g2", "", came=True)
        first, second = await members.list_present(conn, members.GATEWAY)
        assert await members.heard(conn) == Heard((first if unbroken else second).open_since, second.seen_at)

    async def test_when_the_clock_went_back_nobody_has_heard_anything_yet(
        self, conn: AsyncConnection
    ) -> None:
        for name in ("g1", "g2"):
            await members.beat(conn, members.GATEWAY, name, "", came=True)
        await conn.exec_driver_sql(
            "UPDATE members SET seen_at = now() + interval '300 s', open_since = now() - interval '1 d'"
        )
        assert await members.heard(conn) is None
        await members.beat(conn, members.GATEWAY, "g1", "", came=False)
        heard = await members.heard(conn)
        assert heard is not None
        assert heard.since == heard.until < datetime.now(UTC) + timedelta(seconds=60)

    async def test_the_long_gone_are_forgotten(self, conn: AsyncConnection) -> None:
        await members.beat(conn, members.GATEWAY, "g1", "", came=True)
        await conn.exec_driver_sql(
            "UPDATE members SET open_since = now() - interval '2 h', seen_at = now() - interval '2 h'"
        )
        await members.beat(conn, members.GATEWAY, "g2", "", came=True)
        assert (await conn.exec_driver_sql("SELECT id FROM members")).scalars().all() == ["g2"]


class TestWorld:
    async def test_load_brings_each_replica_with_its_newest_attempt(self, database: Database) -> None:
        async with database.transaction() as conn:
            replica, _ = await an_attempt(conn)
            await end(conn, "t")
            newest = await an_attempt_of(conn, replica.uid, "u", "#!", "hash", NOW)
            await a_deployment(conn, "b")
            gone = await a_replica_of(conn, replica.deployment_uid, 1, NOW)
            await replicas.remove(conn, gone.uid, NOW)
            bare = await a_replica_of(conn, replica.deployment_uid, 1, NOW)
        async with database.snapshot() as conn:
            found = await world.load(conn)
            assert [deployment.name for deployment in found.deployments] == ["a", "b"]
            assert [(item.name, item.attempt) for item in found.replicas] == [
                ("a-1", newest),
                (bare.name, None),
            ]
            assert await world.ended_tokens(conn, ["t", "u", "x"]) == {"t"}
            assert await world.ended_tokens(conn, []) == frozenset()
