"""What is decided and said of adapters, and which changes of a spec running replicas follow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from penstock.core import adapters
from penstock.core.changes import needs_revision, with_count_and_policies_of, with_room_kept
from penstock.core.decisions import Reason
from penstock.core.model import AdapterStanding, ConditionStatus, Deployment, Replica, ReplicaState
from penstock.core.plan import plan
from penstock.core.prospect import adapter_prospect
from penstock.core.spec import Adapter, AdapterRoom, Engine, Model, Spec
from tests.worlds import NOW, deployment, drawn, job, ready_attempt, replica, world

X, Y = Adapter("x", "/lora/x"), Adapter("y", "/lora/y")
HAS_X, HAS_Y = AdapterStanding("x", "/lora/x", loaded=True), AdapterStanding("y", "/lora/y", loaded=True)
LOADS_Y = AdapterStanding("y", "/lora/y")
MISSING = "/lora/y has no adapter_config.json"
FAILS_Y = AdapterStanding("y", "/lora/y", message=MISSING)


def spec(*wanted: Adapter, room: AdapterRoom | None = None, **changes: Any) -> Spec:
    """As the API makes it: adapters bring their room."""
    room = room or (AdapterRoom() if wanted else None)
    return Spec(model=Model(path="/m", adapters=wanted, adapter_room=room), **changes)


def wanting(*wanted: Adapter, **changes: Any) -> Deployment:
    model = replace(deployment().spec.model, adapters=wanted, adapter_room=AdapterRoom())
    found = deployment(**changes)
    return replace(found, spec=replace(found.spec, model=model))


def ready(*standings: AdapterStanding, number: int = 1, **changes: Any) -> Replica:
    its = ready_attempt(token=drawn(number), job_id=6 + number, adapters=standings)
    return replica(number, its=its, **{"state": ReplicaState.READY, **changes})


ALWAYS_ROOM, SERVERS = AdapterRoom(), Engine(args=("--api-server-count", "4"))
CHANGES: list[tuple[str, Spec, Spec, bool]] = [
    ("one more", spec(X), spec(X, Y), False),
    ("one less", spec(X, Y), spec(X), False),
    ("another folder", spec(X), spec(replace(X, path="/lora/x2")), False),
    ("the last is removed", spec(X), spec(), False),
    ("the first needs room", spec(), spec(X), True),
    ("the first has room", spec(room=ALWAYS_ROOM), spec(X), False),
    ("room alone", spec(), spec(room=ALWAYS_ROOM), True),
    ("other room", spec(X), spec(X, room=AdapterRoom(max_rank=64)), True),
    ("another model too", spec(X), replace(spec(X, Y), model=Model(path="/n", adapters=(X, Y))), True),
    ("another number too", spec(X, replicas=1), spec(X, Y, replicas=2), False),
    ("several API servers hear of none", spec(X, engine=SERVERS), spec(X, Y, engine=SERVERS), True),
    ("the same with them", spec(X, engine=SERVERS), spec(X, engine=SERVERS), False),
]


@pytest.mark.parametrize(
    ("old", "new", "expected"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES]
)
def test_a_change_of_adapters_replaces_replicas_only_where_engines_cannot_follow(
    old: Spec, new: Spec, expected: bool
) -> None:
    assert needs_revision(old, new) is expected
    assert not needs_revision(new, new)


def test_room_stays_as_long_as_the_revision_does() -> None:
    kept = with_room_kept(spec(X), spec())
    assert kept.model == Model(path="/m", adapter_room=AdapterRoom())
    assert not needs_revision(kept, spec(Y)), "the engines have the room still"
    assert with_room_kept(spec(X), spec(drain_timeout_s=7)).model.adapter_room is None
    assert with_room_kept(spec(), spec()).model.adapter_room is None


def test_a_rollback_brings_back_the_revisions_own_adapters() -> None:
    assert with_count_and_policies_of(spec(X, replicas=5), spec(Y)) == spec(Y, replicas=5)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((), False),
        (("--api-server-count", "1"), False),
        (("--api_server_count=2",), True),
        (("-dp", "2"), True),
        (("-dp", "2", "-asc", "1"), False),
        (("--data-parallel-size=1",), False),
        (("--max-model-len", "2"), False),
        (("--api-server-count",), True),
    ],
)
def test_engines_that_take_adapters_at_their_start_only(args: tuple[str, ...], expected: bool) -> None:
    assert adapters.fixed(Engine(args=args)) is expected


def test_only_the_wanted_folder_counts() -> None:
    elsewhere = AdapterStanding("x", "/old", loaded=True)
    assert adapters.loaded((X, Y), (HAS_X, HAS_Y)) == ("x", "y")
    assert adapters.loaded((X, Y), (elsewhere, HAS_Y, AdapterStanding("z", "/z", loaded=True))) == ("y",)
    assert adapters.loaded((X,), (AdapterStanding("x", "/lora/x"),)) == ()


def conditions(found: Deployment, *replicas: Replica) -> dict[str, Any]:
    listed = [job(token=one.attempt.token, job_id=one.attempt.job_id) for one in replicas if one.attempt]
    made = plan(world([found], replicas, listed))
    (status,) = made.deployment_statuses
    return {condition.type: condition for condition in status.conditions}


ROWS: list[tuple[str, list[Replica], ConditionStatus, str, str]] = [
    ("all have all", [ready(HAS_X, HAS_Y), ready(HAS_X, HAS_Y, number=2)], ConditionStatus.TRUE, "Ready",
     "2 adapters on 2 ready replicas"),
    ("one loads", [ready(HAS_X, LOADS_Y), ready(HAS_X, HAS_Y, number=2)], ConditionStatus.FALSE, "AdaptersLoading",
     "1 of 2 ready replicas have all of 2 adapters; chat-1: 1 adapter not loaded yet: y"),
    ("one fails", [ready(HAS_X), ready(HAS_X, FAILS_Y, number=2)], ConditionStatus.FALSE, "AdapterFailed",
     "0 of 2 ready replicas have all of 2 adapters; chat-2: adapter 'y' cannot be loaded, which is tried again: "
     + MISSING),
    ("an older revision is not judged", [ready(revision=0), ready(HAS_X, HAS_Y, number=2)], ConditionStatus.TRUE,
     "Ready", "2 adapters on 1 ready replica"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("replicas", "status", "reason", "message"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_a_condition_says_how_they_are_loaded(
    replicas: list[Replica], status: ConditionStatus, reason: str, message: str
) -> None:
    found = conditions(wanting(X, Y, replicas=2), *replicas)["AdaptersLoaded"]
    assert (found.status, found.reason, found.message) == (status, reason, message)


def test_without_adapters_there_is_no_such_condition() -> None:
    assert "AdaptersLoaded" not in conditions(deployment(), ready())


def test_with_no_ready_replica_it_does_not_hold() -> None:
    found = conditions(wanting(X))["AdaptersLoaded"]
    assert found.status is ConditionStatus.FALSE
    assert found.message == "1 adapter, and no replica that is ready for them"


@pytest.mark.parametrize(
    ("standings", "reason", "said"),
    [
        ((HAS_X, HAS_Y), Reason.READY, ""),
        ((HAS_X,), Reason.ADAPTERS_LOADING, "; 1 adapter not loaded yet: y"),
        ((), Reason.ADAPTERS_LOADING, "; 2 adapters not loaded yet: x, y"),
        (
            (FAILS_Y,),
            Reason.ADAPTER_FAILED,
            f"; adapter 'y' cannot be loaded, which is tried again: {MISSING}",
        ),
    ],
)
def test_a_replica_says_what_it_lacks_and_takes_requests_all_the_same(
    standings: tuple[AdapterStanding, ...], reason: Reason, said: str
) -> None:
    one = ready(*standings, message="stale")
    made = plan(world([wanting(X, Y)], [one], [job(token=drawn(1), job_id=7)]))
    (decision,) = [found for found in made.decisions if found.replica == "chat-1"]
    message = f"takes requests at gpu1:4000 (job 7){said}"
    assert (decision.reason, decision.message) == (reason, message)
    (status,) = made.replica_statuses
    assert (status.state, status.message) == (ReplicaState.READY, message)


PROSPECTS: list[tuple[str, list[Replica], str, str]] = [
    (
        "it is being loaded",
        [ready(HAS_X)],
        "0 of 1 ready replicas have it; chat-1: 1 adapter not loaded yet: y",
        "",
    ),
    (
        "it cannot be",
        [ready(FAILS_Y)],
        f"0 of 1 ready replicas have it; chat-1: adapter 'y' cannot be loaded, which is tried again: {MISSING}",
        "no replica can load it",
    ),
    (
        "one may yet",
        [ready(FAILS_Y), ready(number=2)],
        f"0 of 2 ready replicas have it; chat-1: adapter 'y' cannot be loaded, which is tried again: {MISSING}",
        "",
    ),
    ("it was loaded this moment", [ready(HAS_Y)], "1 of 1 ready", ""),
]


@pytest.mark.parametrize(
    ("replicas", "sentence", "hopeless"), [row[1:] for row in PROSPECTS], ids=[row[0] for row in PROSPECTS]
)
def test_what_a_client_of_an_adapter_may_hope_for(
    replicas: list[Replica], sentence: str, hopeless: str
) -> None:
    found = adapter_prospect(wanting(X, Y), replicas, "y", NOW)
    assert (found.sentence, found.hopeless) == (sentence, hopeless)


def test_without_a_ready_replica_it_is_the_deployments_prospect() -> None:
    found = adapter_prospect(wanting(X), [replica(message="queued in Slurm")], "x", NOW)
    assert found.sentence == "0 of 1 ready: queued in Slurm"
