"""RuntimeService as an agent meets it, and what the other services then show of its replica."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from penstock.core import decisions as core
from penstock.core.jobs import Job, JobState
from penstock.rpc.runtime import SECRET_KEY
from penstock.store.database import Database
from penstock.store.queries import attempts, decisions, replicas, runtime
from penstock.v1 import decision_pb2, deployment_pb2, inference_pb2, replica_pb2, spec_pb2
from penstock.v1 import runtime_pb2 as pb
from penstock.v1.decision_pb2_grpc import DecisionServiceStub
from penstock.v1.deployment_pb2_grpc import DeploymentServiceStub
from penstock.v1.inference_pb2_grpc import InferenceServiceStub
from penstock.v1.replica_pb2_grpc import ReplicaServiceStub
from penstock.v1.runtime_pb2_grpc import RuntimeServiceStub
from tests.control_api import SECRET, ControlApi, control_api, make_attempt, now, refused
from tests.patience import PATIENCE_S
from tests.stored import a_replica_of

PROOF = ((SECRET_KEY, SECRET),)


@pytest_asyncio.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[ControlApi]:
    async with control_api(database, tmp_path) as made:
        request = deployment_pb2.ApplyDeploymentRequest()
        request.deployment.metadata.name = "a"
        request.deployment.spec.model.CopyFrom(spec_pb2.Model(path="/m", served_name="big"))
        await DeploymentServiceStub(made.channel).ApplyDeployment(request)
        made.routing_changes.clear()
        yield made


@pytest.fixture
def agent(api: ControlApi) -> RuntimeServiceStub:
    return RuntimeServiceStub(api.channel)


def register(token: str = "token1", **changes: Any) -> pb.RegisterRequest:
    given: dict[str, Any] = {"attempt": token, "job_id": 7, "host": "127.0.0.1", "port": 4000}
    return pb.RegisterRequest(**(given | changes))


def report(phase: pb.AgentPhase.ValueType, **changes: Any) -> pb.ReportRequest:
    return pb.ReportRequest(attempt="token1", phase=phase, **changes)


async def test_register_then_ready_then_routable(api: ControlApi, agent: RuntimeServiceStub) -> None:
    await make_attempt(api, "a")
    answer = await agent.Register(register(), metadata=PROOF)
    assert len(answer.deployment_secret) > 20
    assert answer.report_interval_s == 5
    api.routing_changes.clear()
    assert not (await api.stored(runtime.routing_state)).routes[0].endpoints
    await agent.Report(
        report(pb.AGENT_PHASE_READY, load=replica_pb2.Load(running_requests=3)), metadata=PROOF
    )
    assert len(api.routing_changes) == 1
    (endpoint,) = (await api.stored(runtime.routing_state)).routes[0].endpoints
    assert (endpoint.attempt, endpoint.host, endpoint.port) == ("token1", "127.0.0.1", 4000)
    await agent.Report(
        report(pb.AGENT_PHASE_READY, load=replica_pb2.Load(running_requests=4)), metadata=PROOF
    )
    assert len(api.routing_changes) == 1, "a heartbeat changes no route"
    shown = (await ReplicaServiceStub(api.channel).ListReplicas(replica_pb2.ListReplicasRequest())).replicas[
        0
    ]
    assert (shown.name, shown.state, shown.load.running_requests) == (
        "a-1",
        replica_pb2.REPLICA_STATE_READY,
        4,
    )
    assert (shown.attempt.job_id, shown.attempt.endpoint) == (7, "127.0.0.1:4000")


async def test_registering_again_changes_nothing(api: ControlApi, agent: RuntimeServiceStub) -> None:
    await make_attempt(api, "a")
    first = await agent.Register(register(), metadata=PROOF)
    assert await agent.Register(register(), metadata=PROOF) == first


@pytest.mark.parametrize(
    "proof", [(), ((SECRET_KEY, "wrong"),), ((SECRET_KEY, SECRET), (SECRET_KEY, SECRET))]
)
@pytest.mark.parametrize("token", ["token1", "nobody"])
async def test_without_the_secret_nothing_is_told(
    api: ControlApi, agent: RuntimeServiceStub, proof: Any, token: str
) -> None:
    await make_attempt(api, "a")
    calls = (
        agent.Register(register(token), metadata=proof),
        agent.Report(pb.ReportRequest(attempt=token, phase=pb.AGENT_PHASE_READY), metadata=proof),
        agent.Drain(pb.DrainRequest(attempt=token), metadata=proof),
    )
    for call in calls:
        code, message, _ = await refused(call)
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert message == f"the attempt's secret in the metadata key {SECRET_KEY} is missing or wrong"
    assert api.routing_changes == []


async def test_an_ended_attempt_is_told_to_stop(api: ControlApi, agent: RuntimeServiceStub) -> None:
    await make_attempt(api, "a")
    await api.stored(
        attempts.end,
        "token1",
        exit_code=1,
        job=None,
        message="over",
        failures=1,
        next_attempt_at=None,
        now=now(),
    )
    for call in (
        agent.Register(register(), metadata=PROOF),
        agent.Report(report(pb.AGENT_PHASE_READY), metadata=PROOF),
        agent.Drain(pb.DrainRequest(attempt="token1"), metadata=PROOF),
    ):
        code, message, _ = await refused(call)
        assert (code, message) == (grpc.StatusCode.FAILED_PRECONDITION, "attempt token1 has ended")


async def test_a_second_job_with_the_same_token_is_refused(
    api: ControlApi, agent: RuntimeServiceStub
) -> None:
    await make_attempt(api, "a")
    await agent.Register(register(), metadata=PROOF)
    code, message, _ = await refused(agent.Register(register(job_id=8), metadata=PROOF))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert message == "attempt token1 is carried on elsewhere: job 7 runs it, not job 8"


async def test_a_job_that_is_another_attempts_is_to_try_again(
    api: ControlApi, agent: RuntimeServiceStub
) -> None:
    await make_attempt(api, "a")
    await make_attempt(api, "a", "token2")
    await agent.Register(register(), metadata=PROOF)
    code, message, _ = await refused(agent.Register(register("token2", port=4001), metadata=PROOF))
    assert (code, message) == (
        grpc.StatusCode.UNAVAILABLE,
        "job 7 is still recorded as another live attempt's; attempt token2 is to register again in a while",
    )


async def test_an_earlier_run_speaks_for_nobody(api: ControlApi, agent: RuntimeServiceStub) -> None:
    """A node that was cut off does not know that its job was requeued elsewhere."""
    await make_attempt(api, "a")
    await agent.Register(register(), metadata=PROOF)
    await agent.Register(register(restart_count=1, port=4001), metadata=PROOF)
    for call in (
        agent.Report(report(pb.AGENT_PHASE_READY), metadata=PROOF),
        agent.Drain(pb.DrainRequest(attempt="token1"), metadata=PROOF),
    ):
        code, message, _ = await refused(call)
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "run 1 of its job has registered since run 0" in message
    assert not (await api.stored(runtime.routing_state)).routes[0].endpoints
    await agent.Report(report(pb.AGENT_PHASE_READY, restart_count=1), metadata=PROOF)
    assert (await api.stored(runtime.routing_state)).routes[0].endpoints


async def test_a_requeued_run_starts_over(api: ControlApi, agent: RuntimeServiceStub) -> None:
    await make_attempt(api, "a")
    await agent.Register(register(), metadata=PROOF)
    await agent.Report(report(pb.AGENT_PHASE_READY), metadata=PROOF)
    await agent.Register(register(restart_count=1, port=4001), metadata=PROOF)
    assert not (await api.stored(runtime.routing_state)).routes[0].endpoints
    assert (await refused(agent.Register(register(), metadata=PROOF)))[
        0
    ] is grpc.StatusCode.FAILED_PRECONDITION


async def test_words_before_registering(api: ControlApi, agent: RuntimeServiceStub) -> None:
    await make_attempt(api, "a")
    code, message, _ = await refused(agent.Report(report(pb.AGENT_PHASE_READY), metadata=PROOF))
    assert (code, message) == (grpc.StatusCode.FAILED_PRECONDITION, "attempt token1 has not registered")


async def test_draining_waits_for_the_front_doors(api: ControlApi, agent: RuntimeServiceStub) -> None:
    await make_attempt(api, "a")
    await agent.Register(register(), metadata=PROOF)
    await agent.Report(
        report(pb.AGENT_PHASE_READY, load=replica_pb2.Load(generation_tokens_total=9)), metadata=PROOF
    )
    api.routing_changes.clear()
    await agent.Drain(pb.DrainRequest(attempt="token1", message="SIGTERM"), metadata=PROOF)
    assert (len(api.routing_changes), api.routing_waits) == (1, [5.0])
    assert not (await api.stored(runtime.routing_state)).routes[0].endpoints
    loads = await api.stored(attempts.loads, ["token1"])
    assert loads["token1"].generation_tokens_total == 9


async def test_draining_does_not_wait_for_ever(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(_: float) -> bool:
        await asyncio.Event().wait()
        return True

    monkeypatch.setattr("penstock.rpc.runtime.DRAIN_WAIT_S", 0.1)
    async with control_api(database, tmp_path, routing_applied=never) as api:
        request = deployment_pb2.ApplyDeploymentRequest()
        request.deployment.metadata.name = "a"
        request.deployment.spec.model.path = "/m"
        await DeploymentServiceStub(api.channel).ApplyDeployment(request)
        await make_attempt(api, "a")
        agent = RuntimeServiceStub(api.channel)
        await agent.Register(register(), metadata=PROOF)
        await asyncio.wait_for(agent.Drain(pb.DrainRequest(attempt="token1"), metadata=PROOF), PATIENCE_S)


async def test_a_replica_that_is_to_go_is_told_so(api: ControlApi, agent: RuntimeServiceStub) -> None:
    await make_attempt(api, "a")
    await agent.Register(register(), metadata=PROOF)
    assert not (await agent.Report(report(pb.AGENT_PHASE_READY), metadata=PROOF)).drain
    service = ReplicaServiceStub(api.channel)
    await service.DrainReplica(replica_pb2.DrainReplicaRequest(name="a-1"))
    assert (await agent.Report(report(pb.AGENT_PHASE_READY), metadata=PROOF)).drain
    assert not (await api.stored(runtime.routing_state)).routes[0].endpoints
    await service.DrainReplica(replica_pb2.DrainReplicaRequest(name="a-1"))


async def test_last_words_may_hold_anything(api: ControlApi, agent: RuntimeServiceStub) -> None:
    await make_attempt(api, "a")
    await agent.Register(register(), metadata=PROOF)
    failed = report(pb.AGENT_PHASE_FAILED, message="died\0", last_words="\x1b[31mboom\0\n", exit_code=9)
    await agent.Report(failed, metadata=PROOF)
    found = await ReplicaServiceStub(api.channel).GetReplica(replica_pb2.GetReplicaRequest(name="a-1"))
    assert found.attempts[0].last_words == "\x1b[31mboom\N{REPLACEMENT CHARACTER}\n"
    assert (found.attempts[0].exit_code, found.script) == (9, "#!/bin/bash\n")


async def test_replicas_and_their_jobs_are_shown(api: ControlApi) -> None:
    await make_attempt(api, "a")
    await make_attempt(api, "a", "token2")
    job = Job(7, "n", "c", JobState.PENDING, state_text="PENDING", reason="Resources")
    await api.stored(attempts.record_job_id, "token1", 7, job)
    service = ReplicaServiceStub(api.channel)
    page = await service.ListReplicas(replica_pb2.ListReplicasRequest(deployment="a", page_size=1))
    assert (page.replicas[0].attempt.job_state, page.replicas[0].attempt.job_reason) == (
        "PENDING",
        "Resources",
    )
    rest = await service.ListReplicas(
        replica_pb2.ListReplicasRequest(deployment="a", page_size=1, page_token=page.next_page_token)
    )
    assert ([item.name for item in rest.replicas], rest.next_page_token) == (["a-2"], "")
    for call in (
        service.ListReplicas(replica_pb2.ListReplicasRequest(deployment="b")),
        service.GetReplica(replica_pb2.GetReplicaRequest(name="b-1")),
        service.DrainReplica(replica_pb2.DrainReplicaRequest(name="b-1")),
    ):
        assert (await refused(call))[0] is grpc.StatusCode.NOT_FOUND


async def test_a_replica_that_is_gone_drains_no_more(api: ControlApi) -> None:
    replica = await make_attempt(api, "a")
    await api.stored(
        attempts.end, "token1", exit_code=0, job=None, message="", failures=0, next_attempt_at=None, now=now()
    )
    await api.stored(replicas.remove, replica.uid, now())
    call = ReplicaServiceStub(api.channel).DrainReplica(replica_pb2.DrainReplicaRequest(name="a-1"))
    code, message, _ = await refused(call)
    assert (code, message) == (grpc.StatusCode.FAILED_PRECONDITION, 'replica "a-1" is gone already')


async def _output(call: Any) -> bytes:
    return b"".join([piece.content async for piece in call])


async def test_a_jobs_output_is_streamed_and_followed_to_its_end(api: ControlApi) -> None:
    await make_attempt(api, "a")
    folder = api.attempts_folder / "token1"
    folder.mkdir()
    content = b"\xff\x00line\n" * 30_000
    (folder / "job.out").write_bytes(content)
    service = ReplicaServiceStub(api.channel)
    assert (
        await _output(service.StreamReplicaLogs(replica_pb2.StreamReplicaLogsRequest(name="a-1"))) == content
    )
    tail = replica_pb2.StreamReplicaLogsRequest(name="a-1", tail_lines=2)
    assert await _output(service.StreamReplicaLogs(tail)) == b"\xff\x00line\n" * 2
    following = service.StreamReplicaLogs(
        replica_pb2.StreamReplicaLogsRequest(name="a-1", follow=True, tail_lines=1)
    )
    pieces = following.__aiter__()
    first = await asyncio.wait_for(anext(pieces), PATIENCE_S)
    assert first.content == b"\xff\x00line\n"
    with (folder / "job.out").open("ab") as file:
        file.write(b"last")
    await api.stored(
        attempts.end, "token1", exit_code=0, job=None, message="", failures=0, next_attempt_at=None, now=now()
    )
    assert await asyncio.wait_for(_output(pieces), PATIENCE_S) == b"last"


async def test_there_is_no_output_before_a_job(api: ControlApi) -> None:
    replica = await make_attempt(api, "a")
    async with api.database.transaction() as conn:
        await a_replica_of(conn, replica.deployment_uid, 1, now())
    service = ReplicaServiceStub(api.channel)
    call = service.StreamReplicaLogs(replica_pb2.StreamReplicaLogsRequest(name="a-2"))
    code, message, _ = await refused(call.read())
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert message == 'replica "a-2" has had no job yet, and so no output'
    assert await _output(service.StreamReplicaLogs(replica_pb2.StreamReplicaLogsRequest(name="a-1"))) == b""


async def test_what_was_decided_is_listed_watched_and_explained(api: ControlApi) -> None:
    await make_attempt(api, "a")
    service = DecisionServiceStub(api.channel)

    async def decide(*messages: str) -> None:
        made = [core.Decision("a", "", core.Reason.SCALE_UP, message) for message in messages]
        await api.stored(decisions.insert, "tick", made, now())

    await decide("one", "two", "three")
    page = await service.ListDecisions(decision_pb2.ListDecisionsRequest(deployment="a", page_size=2))
    assert [item.message for item in page.decisions] == ["three", "two"]
    rest = await service.ListDecisions(
        decision_pb2.ListDecisionsRequest(deployment="a", page_size=2, page_token=page.next_page_token)
    )
    assert ([item.message for item in rest.decisions], rest.next_page_token) == (["one"], "")
    assert not (await service.ListDecisions(decision_pb2.ListDecisionsRequest(deployment="b"))).decisions

    async def following(watch: Any) -> str:
        return str((await asyncio.wait_for(watch.read(), PATIENCE_S)).decision.message)

    first_id = rest.decisions[0].id
    from_two = service.WatchDecisions(decision_pb2.WatchDecisionsRequest(deployment="a", after=first_id))
    only_new = service.WatchDecisions(decision_pb2.WatchDecisionsRequest())
    assert [await following(from_two), await following(from_two)] == ["two", "three"]
    await asyncio.wait_for(only_new.initial_metadata(), PATIENCE_S)
    await decide("four")
    assert (await following(from_two), await following(only_new)) == ("four", "four")
    from_two.cancel()
    only_new.cancel()

    explained = await service.Explain(decision_pb2.ExplainRequest(deployment="a"))
    nothing_yet = service.WatchDecisions(
        decision_pb2.WatchDecisionsRequest(deployment="a", after=explained.decisions[0].id)
    )
    await asyncio.wait_for(nothing_yet.initial_metadata(), PATIENCE_S)
    nothing_yet.cancel()
    assert explained.summary.startswith("0 of 1 ready")
    assert [item.replica for item in explained.replicas] == ["a-1"]
    assert [item.message for item in explained.decisions] == ["four", "three", "two", "one"]
    for request in (
        decision_pb2.ExplainRequest(deployment="b"),
        decision_pb2.ExplainRequest(deployment="a", replica="a-9"),
    ):
        assert (await refused(service.Explain(request)))[0] is grpc.StatusCode.NOT_FOUND


async def test_models_are_listed_under_all_their_names(api: ControlApi, agent: RuntimeServiceStub) -> None:
    await make_attempt(api, "a")
    await agent.Register(register(), metadata=PROOF)
    await agent.Report(report(pb.AGENT_PHASE_READY), metadata=PROOF)
    service = InferenceServiceStub(api.channel)
    found = (await service.ListModels(inference_pb2.ListModelsRequest())).models
    assert [(item.name, item.deployment, item.ready_replicas, item.task) for item in found] == [
        ("a", "a", 1, spec_pb2.ENGINE_TASK_GENERATE),
        ("big", "a", 1, spec_pb2.ENGINE_TASK_GENERATE),
    ]
    chat = inference_pb2.ChatRequest(
        model="a", messages=[inference_pb2.Message(role=inference_pb2.ROLE_USER)]
    )
    assert (await refused(service.Chat(chat)))[0] is grpc.StatusCode.UNIMPLEMENTED
