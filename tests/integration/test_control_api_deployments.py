"""DeploymentService as a client meets it: real servicers, PostgreSQL, and a fake Slurm."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from penstock.contract import MAX_BROKEN
from penstock.core.model import RolloutRecord
from penstock.rpc import deployments as servicer
from penstock.rpc import pages
from penstock.store.database import Database
from penstock.store.queries import deployments
from penstock.v1 import deployment_pb2 as pb
from penstock.v1 import metadata_pb2, spec_pb2
from penstock.v1.deployment_pb2_grpc import DeploymentServiceStub
from tests.control_api import ControlApi, control_api, make_attempt, now, refused
from tests.patience import PATIENCE_S


@pytest_asyncio.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[ControlApi]:
    async with control_api(database, tmp_path) as made:
        yield made


@pytest.fixture
def stub(api: ControlApi) -> DeploymentServiceStub:
    return DeploymentServiceStub(api.channel)


def wish(
    name: str = "a", version: str = "", labels: dict[str, str] | None = None, **spec: Any
) -> pb.Deployment:
    given = {"model": spec_pb2.Model(path="/models/a")} | spec
    return pb.Deployment(
        metadata=metadata_pb2.Metadata(name=name, labels=labels or {}, resource_version=version),
        spec=spec_pb2.DeploymentSpec(**given),
    )


class TestApply:
    async def test_creates_then_changes_nothing_then_changes(
        self, stub: DeploymentServiceStub, api: ControlApi
    ) -> None:
        made = await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish(labels={"team": "x"})))
        assert made.outcome == pb.APPLY_OUTCOME_CREATED
        assert (made.deployment.metadata.generation, made.deployment.status.current_revision) == (1, 1)
        assert dict(made.deployment.metadata.labels) == {"team": "x"}
        again = await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish(labels={"team": "x"})))
        assert again.outcome == pb.APPLY_OUTCOME_UNCHANGED
        assert again.deployment == made.deployment
        changed = await stub.ApplyDeployment(
            pb.ApplyDeploymentRequest(deployment=wish(resources=spec_pb2.Resources(cpus=2)))
        )
        assert changed.outcome == pb.APPLY_OUTCOME_CONFIGURED
        assert (changed.deployment.metadata.generation, changed.deployment.status.current_revision) == (2, 2)
        assert not changed.deployment.metadata.labels
        assert len(api.routing_changes) == 2

    async def test_what_is_read_says_how_many_requests_wait(
        self, api: ControlApi, stub: DeploymentServiceStub
    ) -> None:
        for name in ("a", "b"):
            await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish(name)))
        api.held = {"a": 3}
        got = await stub.GetDeployment(pb.GetDeploymentRequest(name="a"))
        assert got.deployment.status.held_requests == 3
        listed = (await stub.ListDeployments(pb.ListDeploymentsRequest())).deployments
        assert [one.status.held_requests for one in listed] == [3, 0]

    async def test_only_what_a_replica_depends_on_makes_a_revision(self, stub: DeploymentServiceStub) -> None:
        await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish()))
        changed = await stub.ApplyDeployment(
            pb.ApplyDeploymentRequest(
                deployment=wish(
                    replicas=3,
                    rollout=spec_pb2.Rollout(max_surge="2"),
                    restart=spec_pb2.RestartPolicy(backoff_max_s=100),
                    routing=spec_pb2.Routing(session_header="x-session-id", prefix_bytes=1024),
                )
            )
        )
        assert (changed.deployment.metadata.generation, changed.deployment.status.current_revision) == (2, 1)
        read = (await stub.GetDeployment(pb.GetDeploymentRequest(name="a"))).deployment
        assert read.spec.routing == spec_pb2.Routing(session_header="x-session-id", prefix_bytes=1024)

    async def test_what_was_read_can_be_applied_again(self, stub: DeploymentServiceStub) -> None:
        await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish(replicas=2)))
        read = (await stub.GetDeployment(pb.GetDeploymentRequest(name="a"))).deployment
        again = await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=read))
        assert again.outcome == pb.APPLY_OUTCOME_UNCHANGED

    async def test_an_older_version_is_refused(self, stub: DeploymentServiceStub) -> None:
        first = (await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish()))).deployment
        await stub.ScaleDeployment(pb.ScaleDeploymentRequest(name="a", replicas=2))
        old = first.metadata.resource_version
        code, message, _ = await refused(
            stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish(version=old, replicas=3)))
        )
        assert code is grpc.StatusCode.ABORTED
        assert f"not {old}: read it again" in message
        assert (await stub.GetDeployment(pb.GetDeploymentRequest(name="a"))).deployment.spec.replicas == 2

    @pytest.mark.parametrize("version", ["x", "-1", "9" * 30])
    async def test_a_version_that_never_was(self, stub: DeploymentServiceStub, version: str) -> None:
        code, message, fields = await refused(
            stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish(version=version)))
        )
        assert code is grpc.StatusCode.INVALID_ARGUMENT, message
        assert [*fields] == ["metadata.resource_version"]

    async def test_writers_without_a_version_all_win_in_turn(self, stub: DeploymentServiceStub) -> None:
        await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish()))
        calls = [
            stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish(replicas=count)))
            for count in (2, 3, 4)
        ]
        await asyncio.gather(*calls)
        found = (await stub.GetDeployment(pb.GetDeploymentRequest(name="a"))).deployment
        assert found.metadata.generation == 4

    async def test_two_who_create_the_same_thing_at_once(self, stub: DeploymentServiceStub) -> None:
        calls = [stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish())) for _ in range(4)]
        outcomes = [answer.outcome for answer in await asyncio.gather(*calls)]
        assert sorted(outcomes) == [pb.APPLY_OUTCOME_CREATED] + [pb.APPLY_OUTCOME_UNCHANGED] * 3

    async def test_a_name_that_is_taken(self, stub: DeploymentServiceStub) -> None:
        await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish()))
        code, message, fields = await refused(
            stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish(replicas=9), create_only=True))
        )
        assert code is grpc.StatusCode.ALREADY_EXISTS
        assert message == "a deployment cannot be named 'a': there is one already"
        assert [*fields] == ["metadata.name"]

    async def test_a_served_name_that_is_taken(self, stub: DeploymentServiceStub) -> None:
        await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish()))
        model = spec_pb2.Model(path="/b", served_name="a")
        code, message, fields = await refused(
            stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish("b", model=model)))
        )
        assert code is grpc.StatusCode.ALREADY_EXISTS
        assert "the model name 'a' is taken by deployment 'a'" in message
        assert [*fields] == ["spec.model.served_name"]
        assert not (await stub.ListDeployments(pb.ListDeploymentsRequest(filter="x"))).deployments

    async def test_a_mask_changes_its_paths_only(self, stub: DeploymentServiceStub) -> None:
        await stub.ApplyDeployment(
            pb.ApplyDeploymentRequest(deployment=wish(labels={"a": "1"}, replicas=2, drain_timeout_s=9))
        )
        request = pb.ApplyDeploymentRequest(deployment=pb.Deployment())
        request.deployment.metadata.name = "a"
        request.deployment.spec.replicas = 5
        request.deployment.spec.model.path = "/other"
        request.update_mask.paths.append("spec.replicas")
        found = (await stub.ApplyDeployment(request)).deployment
        assert (found.spec.replicas, found.spec.model.path, found.spec.drain_timeout_s) == (5, "/models/a", 9)
        assert dict(found.metadata.labels) == {"a": "1"}

    async def test_a_mask_needs_the_deployment(self, stub: DeploymentServiceStub) -> None:
        request = pb.ApplyDeploymentRequest(deployment=wish())
        request.update_mask.paths.append("spec.replicas")
        assert (await refused(stub.ApplyDeployment(request)))[0] is grpc.StatusCode.NOT_FOUND

    async def test_bad_fields_come_as_violations(self, stub: DeploymentServiceStub) -> None:
        bad = wish(resources=spec_pb2.Resources(memory="8 GiBs", gpus=-1))
        code, message, fields = await refused(stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=bad)))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert message.startswith("2 fields cannot be as they are: spec.resources.gpus: must be at least 0")
        assert fields["spec.resources.memory"].endswith('such as 8GiB or 16G, not "8 GiBs"')

    async def test_an_empty_request(self, stub: DeploymentServiceStub) -> None:
        code, _, fields = await refused(stub.ApplyDeployment(pb.ApplyDeploymentRequest()))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert [*fields] == ["metadata.name"]

    async def test_very_many_violations_fit_into_trailers(self, stub: DeploymentServiceStub) -> None:
        bad = wish(engine=spec_pb2.Engine(env={f"{number} {'x' * 100}": "" for number in range(128)}))
        code, message, fields = await refused(stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=bad)))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert message.startswith(f"{MAX_BROKEN} fields"), "as many are told of"
        assert 5 < len(fields) < MAX_BROKEN

    async def test_what_the_cluster_can_never_run(self, stub: DeploymentServiceStub) -> None:
        bad = wish(resources=spec_pb2.Resources(gpus=5))
        code, message, fields = await refused(stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=bad)))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert message == (
            "spec.resources.gpus: 5 GPUs a node cannot be had:"
            " the most that a node of partition gpu has is 2 GPUs (node node1)"
        )
        assert [*fields] == ["spec.resources.gpus"]

    async def test_a_cluster_that_does_not_answer_refuses_nothing(
        self, api: ControlApi, stub: DeploymentServiceStub
    ) -> None:
        api.slurm.faults.down = "slurmctld is away"
        made = await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish()))
        assert made.outcome == pb.APPLY_OUTCOME_CREATED
        # Whether the cluster was ever seen before it went away decides which of the two it says.
        assert len(made.warnings) <= 1
        assert all("whether this cluster can run it was" in warning for warning in made.warnings)

    async def test_a_scale_that_forgets_the_number_stops_nothing(self, stub: DeploymentServiceStub) -> None:
        await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish(replicas=2)))
        code, said = (await refused(stub.ScaleDeployment(pb.ScaleDeploymentRequest(name="a"))))[:2]
        assert (code, said) == (grpc.StatusCode.INVALID_ARGUMENT, "replicas: must be given")
        to_none = await stub.ScaleDeployment(pb.ScaleDeploymentRequest(name="a", replicas=0))
        assert to_none.deployment.spec.replicas == 0

    async def test_a_deployment_on_its_way_out_takes_no_change(self, stub: DeploymentServiceStub) -> None:
        await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish()))
        gone = await stub.DeleteDeployment(pb.DeleteDeploymentRequest(name="a"))
        assert gone.deployment.metadata.HasField("deleted_at")
        for call in (
            stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish(replicas=4))),
            stub.ScaleDeployment(pb.ScaleDeploymentRequest(name="a", replicas=1)),
            stub.RestartDeployment(pb.RestartDeploymentRequest(name="a")),
            stub.PauseDeployment(pb.PauseDeploymentRequest(name="a")),
        ):
            assert (await refused(call))[0] is grpc.StatusCode.FAILED_PRECONDITION
        again = await stub.DeleteDeployment(pb.DeleteDeploymentRequest(name="a", force=True))
        assert again.deployment.metadata.deleted_at == gone.deployment.metadata.deleted_at


class TestPlan:
    async def test_says_what_would_happen_and_changes_nothing(self, stub: DeploymentServiceStub) -> None:
        planned = await stub.PlanDeployment(pb.PlanDeploymentRequest(deployment=wish(replicas=2)))
        assert planned.outcome == pb.APPLY_OUTCOME_CREATED
        assert ("metadata.name", "", "a") in [
            (item.path, item.before, item.after) for item in planned.changes
        ]
        assert [(item.reason, len(item.actions)) for item in planned.decisions] == [("ScaleUp", 2)]
        assert planned.script == "#!/bin/bash\n# a\n"
        assert (await refused(stub.GetDeployment(pb.GetDeploymentRequest(name="a"))))[
            0
        ] is grpc.StatusCode.NOT_FOUND

    async def test_shows_each_field_that_would_change(self, stub: DeploymentServiceStub) -> None:
        await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish(replicas=2)))
        planned = await stub.PlanDeployment(
            pb.PlanDeploymentRequest(deployment=wish(replicas=3, engine=spec_pb2.Engine(args=["--x"])))
        )
        assert planned.outcome == pb.APPLY_OUTCOME_CONFIGURED
        assert [(item.path, item.before, item.after) for item in planned.changes] == [
            ("spec.engine.args", "", '["--x"]'),
            ("spec.replicas", "2", "3"),
        ]

    async def test_a_spec_that_ran_before_takes_over_the_replicas_that_run_it(
        self, api: ControlApi, stub: DeploymentServiceStub
    ) -> None:
        """Revision 1 is applied again while 2 is a canary: nothing of it is made anew, and it is no canary."""
        canary = spec_pb2.Rollout(
            strategy=spec_pb2.ROLLOUT_STRATEGY_CANARY, canary=spec_pb2.Canary(percent=50)
        )
        stable, other = wish(replicas=2, rollout=canary), wish(replicas=2, rollout=canary, drain_timeout_s=9)
        await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=stable))
        await make_attempt(api, "a", "token1")
        uid = (await api.stored(deployments.get, "a")).uid
        await api.stored(deployments.record_rollout, uid, RolloutRecord(stable_revision=1), now())
        await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=other))
        await make_attempt(api, "a", "token2")
        planned = await stub.PlanDeployment(pb.PlanDeploymentRequest(deployment=stable))
        applied = await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=stable))
        assert applied.deployment.status.current_revision == 3
        true = await stub.PlanDeployment(pb.PlanDeploymentRequest(deployment=stable))
        assert true.outcome == pb.APPLY_OUTCOME_UNCHANGED
        assert planned.decisions[0].message == true.decisions[0].message
        assert planned.decisions[0].message.startswith("1 of 2 are of revision 3, 1 of an old one")

    async def test_a_failed_revision_that_is_given_more_time_is_tried_again(
        self, api: ControlApi, stub: DeploymentServiceStub
    ) -> None:
        await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish()))
        await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish(drain_timeout_s=9)))
        uid = (await api.stored(deployments.get, "a")).uid
        failed = RolloutRecord(stable_revision=1, failed_revision=2, failed_message="it died")
        await api.stored(deployments.record_rollout, uid, failed, now())
        same = wish(drain_timeout_s=9)
        planned = await stub.PlanDeployment(pb.PlanDeploymentRequest(deployment=same))
        assert [item.reason for item in planned.decisions] == ["RolloutFailed"]
        longer = wish(drain_timeout_s=9, rollout=spec_pb2.Rollout(progress_deadline_s=900))
        planned = await stub.PlanDeployment(pb.PlanDeploymentRequest(deployment=longer))
        assert [item.reason for item in planned.decisions] == ["ScaleUp"]

    async def test_refuses_what_apply_refuses(self, stub: DeploymentServiceStub) -> None:
        bad = wish(resources=spec_pb2.Resources(gpus=5))
        code, _, fields = await refused(stub.PlanDeployment(pb.PlanDeploymentRequest(deployment=bad)))
        assert (code, [*fields]) == (grpc.StatusCode.FAILED_PRECONDITION, ["spec.resources.gpus"])

    async def test_an_unreachable_cluster_is_a_decision(
        self, api: ControlApi, stub: DeploymentServiceStub
    ) -> None:
        api.slurm.faults.down = "slurmctld is away"
        planned = await stub.PlanDeployment(pb.PlanDeploymentRequest(deployment=wish()))
        assert [item.reason for item in planned.decisions] == ["ClusterUnreachable"]


class TestList:
    async def test_pages_lead_through_everything_once(self, stub: DeploymentServiceStub) -> None:
        names = [f"d{number}" for number in range(7)]
        for name in names:
            await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish(name)))
        request, found = pb.ListDeploymentsRequest(page_size=3), []
        while True:
            page = await stub.ListDeployments(request)
            found.append([item.metadata.name for item in page.deployments])
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        assert found == [names[:3], names[3:6], names[6:]]
        request.filter = "x=y"
        assert (await refused(stub.ListDeployments(request)))[2].keys() == {"page_token"}

    async def test_filters_by_label(self, stub: DeploymentServiceStub) -> None:
        for name, labels in (("a", {"team": "x"}), ("b", {"team": "y", "gpu": ""}), ("c", {})):
            await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish(name, labels=labels)))
        for text, names in (
            ("team=x", ["a"]),
            ("team!=x", ["b", "c"]),
            ("gpu", ["b"]),
            ("team=y,gpu", ["b"]),
        ):
            page = await stub.ListDeployments(pb.ListDeploymentsRequest(filter=text))
            assert [item.metadata.name for item in page.deployments] == names, text

    async def test_a_filter_that_cannot_be_read(self, stub: DeploymentServiceStub) -> None:
        code, _, fields = await refused(stub.ListDeployments(pb.ListDeploymentsRequest(filter="=x")))
        assert (code, [*fields]) == (grpc.StatusCode.INVALID_ARGUMENT, ["filter"])


class TestRevisions:
    async def test_restart_and_rollback_are_revisions(self, stub: DeploymentServiceStub) -> None:
        await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish(replicas=2)))
        await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish(replicas=2, drain_timeout_s=9)))
        restarted = (await stub.RestartDeployment(pb.RestartDeploymentRequest(name="a"))).deployment
        assert (restarted.status.current_revision, restarted.metadata.generation) == (3, 3)
        await stub.ScaleDeployment(pb.ScaleDeploymentRequest(name="a", replicas=5))
        back = (await stub.RollbackDeployment(pb.RollbackDeploymentRequest(name="a", revision=1))).deployment
        assert (back.status.current_revision, back.spec.replicas) == (4, 5)
        assert not back.spec.HasField("drain_timeout_s")
        previous = (await stub.RollbackDeployment(pb.RollbackDeploymentRequest(name="a"))).deployment
        assert (previous.status.current_revision, previous.spec.drain_timeout_s) == (5, 9)
        page = await stub.ListRevisions(pb.ListRevisionsRequest(name="a", page_size=2))
        assert [(item.number, item.current) for item in page.revisions] == [(5, True), (4, False)]
        rest = await stub.ListRevisions(
            pb.ListRevisionsRequest(name="a", page_size=3, page_token=page.next_page_token)
        )
        assert [item.number for item in rest.revisions] == [3, 2, 1]
        assert rest.next_page_token == ""

    async def test_a_revision_that_is_not_there(self, stub: DeploymentServiceStub) -> None:
        await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish()))
        code, message, _ = await refused(stub.RollbackDeployment(pb.RollbackDeploymentRequest(name="a")))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert message == (
            'deployment "a" has no revision before its current one, 1, with another spec than that'
        )
        code, message, _ = await refused(
            stub.RollbackDeployment(pb.RollbackDeploymentRequest(name="a", revision=7))
        )
        assert (code, message) == (
            grpc.StatusCode.NOT_FOUND,
            'deployment "a" has no revision 7; it has 1',
        )

    async def test_pausing_shows_at_once(self, stub: DeploymentServiceStub) -> None:
        await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish()))
        paused = (await stub.PauseDeployment(pb.PauseDeploymentRequest(name="a"))).deployment
        assert [item.type for item in paused.status.conditions] == ["Paused"]
        resumed = (await stub.ResumeDeployment(pb.ResumeDeploymentRequest(name="a"))).deployment
        assert not resumed.status.conditions


class TestWatch:
    async def test_the_present_then_each_change(self, api: ControlApi, stub: DeploymentServiceStub) -> None:
        await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish()))
        watch = stub.WatchDeployments(pb.WatchDeploymentsRequest())

        async def following() -> tuple[int, str, int]:
            event = await asyncio.wait_for(watch.read(), PATIENCE_S)
            assert isinstance(event, pb.WatchDeploymentsResponse)
            return event.event, event.deployment.metadata.name, event.deployment.spec.replicas

        assert await following() == (pb.WATCH_EVENT_ADDED, "a", 1)
        assert await following() == (pb.WATCH_EVENT_BOOKMARK, "", 0)
        await stub.ScaleDeployment(pb.ScaleDeploymentRequest(name="a", replicas=4))
        assert await following() == (pb.WATCH_EVENT_MODIFIED, "a", 4)
        await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish("b")))
        assert await following() == (pb.WATCH_EVENT_ADDED, "b", 1)
        uid = (await api.stored(deployments.get, "a")).uid
        await api.stored(deployments.remove, uid)
        assert await following() == (pb.WATCH_EVENT_DELETED, "a", 0)
        watch.cancel()

    async def test_one_deployment_and_a_filter(self, stub: DeploymentServiceStub) -> None:
        await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish(labels={"x": "1"})))
        for text, events in (("x", [1, 4]), ("x=1", [1, 4]), ("x=2", [4]), ("x!=1", [4]), ("y!=1", [1, 4])):
            watch = stub.WatchDeployments(pb.WatchDeploymentsRequest(name="a", filter=text))
            found = []
            for _ in events:
                event: Any = await asyncio.wait_for(watch.read(), PATIENCE_S)
                found.append(event.event)
            watch.cancel()
            assert found == events, text

    async def test_a_watch_is_as_bad_as_its_filter(self, stub: DeploymentServiceStub) -> None:
        watch = stub.WatchDeployments(pb.WatchDeploymentsRequest(filter="=x"))
        assert (await refused(watch.read()))[0] is grpc.StatusCode.INVALID_ARGUMENT

    async def test_more_than_a_watch_holds_is_refused_and_none_of_it_passed_over(
        self, stub: DeploymentServiceStub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also where what it holds is whole pages, and the first that is too many begins the next."""
        monkeypatch.setattr(servicer, "MAX_WATCHED", 2)
        monkeypatch.setattr(pages, "MAX_SIZE", 1)
        for name in ("a", "b"):
            await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish(name)))
        watch = stub.WatchDeployments(pb.WatchDeploymentsRequest())
        for name in ("a", "b", ""):
            event: Any = await asyncio.wait_for(watch.read(), PATIENCE_S)
            assert event.deployment.metadata.name == name
        watch.cancel()
        await stub.ApplyDeployment(pb.ApplyDeploymentRequest(deployment=wish("c")))
        code, _, _ = await refused(stub.WatchDeployments(pb.WatchDeploymentsRequest()).read())
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_bug_is_an_id_and_nothing_else(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> str:
        raise ZeroDivisionError("secret inside")

    async with control_api(database, tmp_path, render_script=broken) as api:
        stub = DeploymentServiceStub(api.channel)
        code, message, _ = await refused(stub.PlanDeployment(pb.PlanDeploymentRequest(deployment=wish())))
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in message
    mark = message.split()[-1]
    assert any(mark in record.getMessage() for record in caplog.records)
