"""What planning must never do, whatever the world looks like.

Worlds are drawn from all combinations of what PostgreSQL, Slurm and the agents may say, likely or not, as long as the
store's own constraints hold. Every time in a world lies half a second off the full second, and every world is looked
at 50 ms before one: between that look and the next, 100 ms later, no deadline passes, but any running clock ticks.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from penstock.core import decisions as acts
from penstock.core.budget import WINDOW
from penstock.core.canary import canary_counts, failed_as_canary, is_canary, request_weights
from penstock.core.decisions import EFFECTS, Action, Reason
from penstock.core.jobs import Cluster, Job, JobState, Node, Partition
from penstock.core.model import (
    AdapterStanding,
    Attempt,
    ConditionStatus,
    Deployment,
    Failure,
    Heard,
    Listing,
    Observation,
    Phase,
    Replica,
    ReplicaState,
    RolloutRecord,
    Unknown,
    job_comment,
    job_name,
    marked_token,
)
from penstock.core.plan import Plan, plan
from penstock.core.rollout import available_floor, plan_counts
from penstock.core.slurm_words import BLAMELESS_STATES
from penstock.core.spec import Adapter, AdapterRoom, Canary, NodeSpread, Rollout, RolloutStrategy, share
from tests.worlds import INSTALLATION, NOW, SPEC, at, attempt, deployment, drawn, job, replica, world

LOOK = NOW + timedelta(seconds=0.95)
A_MOMENT = timedelta(seconds=0.1)
SETTLES_WITHIN = 8
"""Passes over an unchanging listing: made, submitted, in doubt; let go, drained; adopted, ended, removed."""

bounded = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)

some_states = st.sampled_from(list(JobState))
SOME_STATES = (ReplicaState.READY, ReplicaState.READY, ReplicaState.STARTING)
moments = st.integers(-1500, 200).map(lambda seconds: at(seconds + 0.5))
past = st.integers(-1500, -1).map(lambda seconds: at(seconds + 0.5))


some_adapters = st.lists(
    st.builds(Adapter, st.sampled_from("xyz"), st.sampled_from(["/1", "/2"])),
    max_size=3,
    unique_by=lambda adapter: adapter.name,
).map(tuple)
standings = st.lists(
    st.builds(
        AdapterStanding,
        st.sampled_from("xyz"),
        st.sampled_from(["/1", "/2"]),
        st.booleans(),
        st.sampled_from(["", "no such folder"]),
    ),
    max_size=3,
    unique_by=lambda standing: standing.name,
).map(tuple)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


@st.composite
def jobs(draw: st.DrawFn, name: str, comment: str, job_id: int) -> Job:
    return Job(
        job_id=job_id,
        name=name,
        comment=comment,
        state=draw(some_states),
        state_text="?",
        reason=draw(st.sampled_from(["", "Resources", "NonZeroExitCode"])),
        nodes=draw(st.sampled_from(["", "gpu1"])),
        time_limit_s=draw(st.sampled_from([None, 600, 3600])),
        submitted_at=draw(maybe(past)),
        started_at=draw(maybe(moments)),
        ends_at=draw(maybe(moments)),
        exit_code=draw(st.sampled_from([None, 0, 1])),
        restarts=draw(st.integers(0, 1)),
    )


@st.composite
def attempts(draw: st.DrawFn, token: str, job_id: int | None, *, live: bool) -> Attempt:
    heard = job_id is not None and draw(st.booleans())
    # The store's trigger: what has ended stays ended, and a refusal is of an attempt without a job.
    return Attempt(
        token=token,
        number=draw(st.integers(1, 3)),
        intended_at=draw(past),
        submitted_at=draw(maybe(past)),
        refusal=draw(st.sampled_from(["", "Invalid account"])) if job_id is None else "",
        job_id=job_id,
        running_since=draw(maybe(past)) if job_id is not None else None,
        halted_since=draw(maybe(past)) if job_id is not None else None,
        missing_since=draw(maybe(past)),
        phase=draw(st.sampled_from([phase for phase in Phase if phase is not Phase.NONE]))
        if heard
        else Phase.NONE,
        phase_message=draw(st.sampled_from(["", "loading weights"])) if heard else "",
        endpoint="gpu1:4000" if heard else "",
        restart_count=draw(st.integers(0, 1)) if heard else None,
        registered_at=draw(past) if heard else None,
        ready_at=draw(maybe(past)) if heard else None,
        reported_at=draw(past) if heard else None,
        drain_at=draw(maybe(past)),
        signalled_at=draw(maybe(past)),
        cancelled_at=draw(maybe(past)),
        handover_at=draw(maybe(past)),
        packed=draw(st.booleans()),
        ended_at=None if live else draw(past),
        end_message=draw(st.sampled_from(["", "job 7 ended as FAILED"])),
        adapters=draw(standings) if heard else (),
    )


@st.composite
def replicas(draw: st.DrawFn, of: Deployment, number: int) -> tuple[Replica, list[Job]]:
    """One replica, and what Slurm lists under its token: nothing, its job, its job twice, or another one only."""
    kind = draw(st.sampled_from(["none", "ended", "unconfirmed", "known", "known"]))
    token, own = drawn(number), 100 * number
    job_id = own if kind == "known" else None
    live = kind in ("unconfirmed", "known")
    its = None if kind == "none" else draw(attempts(token, job_id, live=live))
    listed = []
    for job_id_listed in draw(st.sampled_from([[], [own], [own], [own], [own, own + 1], [own + 1]])):
        if its is not None:
            name, comment = job_name(of.name, token), job_comment(INSTALLATION, token)
            listed.append(draw(jobs(name, comment, job_id_listed)))
    if its is not None and listed and draw(st.booleans()):
        its = replace(its, job=listed[0])
    if not live:
        states = [ReplicaState.WAITING]
    elif job_id is None:
        states = [ReplicaState.SUBMITTING]
    else:
        states = [
            state for state in ReplicaState if state not in (ReplicaState.WAITING, ReplicaState.REMOVED)
        ]
    made = replica(
        number,
        its=its,
        deployment_uid=of.uid,
        name=f"{of.name}-{number}",
        state=draw(st.sampled_from(states)),
        since=draw(past),
        revision=draw(st.integers(1, of.revision)),
        leaving=draw(st.booleans()),
        failures=draw(st.integers(0, 8)),
        next_attempt_at=draw(maybe(moments)) if not live else None,
    )
    return made, listed


@st.composite
def deployments(draw: st.DrawFn, name: str) -> Deployment:
    deleted_at = draw(st.sampled_from([None, None, None, at(-9.5)]))
    strategy = draw(st.sampled_from(list(RolloutStrategy)))
    bake_s = draw(st.sampled_from([None, 60]))
    rollout = Rollout(
        strategy=strategy,
        max_surge=draw(st.sampled_from(["0", "1", "2", "25%", "0%"])),
        max_unavailable=draw(st.sampled_from(["0", "1", "50%", "10%"])),
        progress_deadline_s=draw(st.sampled_from([None, 60])),
        rollback_on_failure=draw(st.booleans()),
        canary=Canary(draw(st.sampled_from([1, 30, 99])), bake_s)
        if strategy is RolloutStrategy.CANARY
        else None,
    )
    revision = draw(st.integers(1, 3))
    record = RolloutRecord(
        stable_revision=draw(st.integers(0, revision)),
        canary_since=draw(maybe(past)),
        baked_revision=draw(st.integers(0, revision)),
        trusted_revisions=tuple(sorted(draw(st.sets(st.integers(1, revision))))),
        failed_revision=draw(st.integers(0, revision)),
        failed_message="chat-1: it died",
    )
    adapters = draw(some_adapters)
    wanted = draw(st.integers(0, 4))
    spread = draw(st.sampled_from([NodeSpread.ANY, NodeSpread.ANY, NodeSpread.SPREAD, NodeSpread.PACK]))
    made = deployment(
        uid=f"uid-{name}",
        name=name,
        spec=replace(SPEC, replicas=wanted, rollout=rollout, node_spread=spread),
        revision=revision,
        record=record,
        rollout_paused=draw(st.sampled_from([False, False, True])),
        promoted_revision=draw(st.integers(0, revision)),
        generation=draw(st.integers(1, 3)),
        paused=draw(st.sampled_from([False, False, True])),
        deleted_at=deleted_at,
        force_delete=deleted_at is not None and draw(st.booleans()),
    )
    return _with_adapters(made, adapters)


def _with_adapters(one: Deployment, adapters: tuple[Adapter, ...]) -> Deployment:
    room = AdapterRoom() if adapters else None
    model = replace(one.spec.model, adapters=adapters, adapter_room=room)
    return replace(one, spec=replace(one.spec, model=model))


@st.composite
def failures(draw: st.DrawFn) -> Failure:
    return Failure(
        deployment=draw(st.sampled_from(["chat", "embed", "gone"])),
        revision=draw(st.integers(1, 3)),
        replica="chat-1",
        ended_at=draw(past),
        state=draw(maybe(some_states)),
        nodes=draw(st.sampled_from([(), ("gpu1",), ("gpu1",), ("gpu2",)])),
    )


CLUSTER = Cluster(
    "test",
    "26.05.5",
    (Partition("gpu", True, True, None, None, None, 2, 16, ("gpu1", "gpu2")),),
    tuple(Node(f"gpu{number}", "IDLE", 8, 16000, {"": 2}, ("gpu",)) for number in (1, 2)),
)


@st.composite
def strangers(draw: st.DrawFn) -> list[Job]:
    """Jobs without our mark, or with another installation's, or with a copy of ours under a name of their own.

    None has the name of an attempt: that one is its job, whose mark somebody rewrote."""
    bodies = [
        ("train", ""),
        ("train", job_comment(INSTALLATION, drawn(1))),
        (job_name("chat", drawn(99)), ""),
        (job_name("chat", drawn(201)), job_comment("elsewhere", drawn(201))),
        (job_name("chat", drawn(99)), job_comment("elsewhere", drawn(99))),
        (job_name("chat", "tok1"), job_comment(INSTALLATION, "tok1")),
        (f"penstock-{drawn(1)}", job_comment(INSTALLATION, drawn(1))),
    ]
    chosen = draw(st.lists(st.sampled_from(bodies), max_size=4))
    return [draw(jobs(name, comment, 9000 + index)) for index, (name, comment) in enumerate(chosen)]


def _ids_given_again(made: list[Replica], listed: list[Job]) -> list[Job]:
    """Slurm lost its state: the first jobs listed have ids that are written to live attempts without a job there."""
    there = {job.job_id for job in listed}
    free = [one.attempt.job_id for one in made if one.live_attempt and one.attempt and one.attempt.job_id]
    again = [number for number in free if number not in there]
    return [replace(job, job_id=number) for job, number in zip(listed, again, strict=False)] + listed[
        len(again) :
    ]


@st.composite
def worlds(draw: st.DrawFn) -> Observation:
    """A world in which Slurm answered, strangers' jobs left out."""
    declared, made, listed = [], [], []
    for offset, name in enumerate(draw(st.sampled_from([["chat"], ["chat"], ["chat", "embed"]]))):
        of = draw(deployments(name))
        declared.append(of)
        for number in range(draw(st.integers(0, 5))):
            one, its_jobs = draw(replicas(of, 10 * offset + number + 1))
            made.append(one)
            listed += its_jobs
    for number in range(draw(st.integers(0, 2))):
        token = drawn(100 + number)
        listed.append(draw(jobs(job_name("chat", token), job_comment(INSTALLATION, token), 8000 + number)))
    if draw(st.booleans()):
        listed = _ids_given_again(made, listed)
    return Observation(
        now=LOOK,
        installation=INSTALLATION,
        deployments=tuple(declared),
        replicas=tuple(made),
        slurm=Listing(tuple(listed)),
        message_timeout_s=10,
        heard=draw(maybe(st.tuples(past, past).map(lambda ends: Heard(min(ends), max(ends))))),
        failures=tuple(draw(st.lists(failures(), max_size=12))),
        cluster=draw(st.sampled_from([None, CLUSTER])),
        strays_since={job.job_id: draw(past) for job in listed},
    )


def actions_of(made: Plan) -> list[Action]:
    return [action for decision in made.decisions for action in decision.actions]


def apply(world: Observation, made: Plan) -> Observation:
    """The world after the plan: what the database holds then. Slurm took every effect and has not shown it yet."""
    rows = {one.uid: one for one in world.replicas}
    declared = {one.uid: one for one in world.deployments}
    for status in made.replica_statuses:
        row = rows[status.replica_uid]
        since = row.since if row.state is status.state and not status.anew else world.now
        rows[row.uid] = replace(row, state=status.state, message=status.message, since=since)
    for standing in made.deployment_statuses:
        declared[standing.deployment_uid] = replace(
            declared[standing.deployment_uid],
            observed_generation=standing.observed_generation,
            conditions=standing.conditions,
        )
    listed = list(world.slurm.jobs) if isinstance(world.slurm, Listing) else []
    for action in actions_of(made):
        _do(action, world.now, rows, declared, listed)
    return replace(
        world,
        replicas=tuple(rows.values()),
        deployments=tuple(declared.values()),
        slurm=Listing(tuple(listed)),
    )


def _do(
    action: Action,
    now: datetime,
    rows: dict[str, Replica],
    declared: dict[str, Deployment],
    listed: list[Job],
) -> None:
    def change(token: str, **facts: Any) -> None:
        (one,) = [one for one in rows.values() if one.attempt is not None and one.attempt.token == token]
        assert one.attempt is not None
        rows[one.uid] = replace(one, attempt=replace(one.attempt, **facts))

    match action:
        case acts.CreateReplica(uid, revision):
            number = max([1000, *(one.number for one in rows.values())]) + 1
            rows[f"r{number}"] = replica(
                number, deployment_uid=uid, name=f"{declared[uid].name}-{number}", revision=revision
            )
        case acts.Submit(uid):
            last = rows[uid].attempt
            fresh = Attempt(
                f"new-{uid}-{now}",
                last.number + 1 if last else 1,
                now,
                now,
                packed=bool(action.beside) or action.apart,
            )
            rows[uid] = replace(rows[uid], attempt=fresh, next_attempt_at=None)
        case acts.Resubmit(_, token):
            change(token, submitted_at=now, packed=bool(action.beside) or action.apart)
        case acts.Adopt(token, job):
            # The store's constraint: a job id is written to one live attempt.
            assert not [
                one for one in rows.values() if (its := one.live_attempt) and its.job_id == job.job_id
            ]
            change(token, job_id=job.job_id, job=job, missing_since=None)
        case acts.RecordJob(token, job, running_since, halted_since):
            change(token, job=job, running_since=running_since, halted_since=halted_since)
        case acts.RecordMissing(token, since):
            change(token, missing_since=since)
        case acts.BeginHandover(token):
            change(token, handover_at=now)
        case acts.EndAttempt():
            change(
                action.token,
                ended_at=now,
                end_message=action.message,
                job=action.job,
                packed=action.found_no_room,
            )
            uid = action.replica_uid
            rows[uid] = replace(rows[uid], failures=action.failures, next_attempt_at=action.next_attempt_at)
        case acts.Drain(token=token):
            change(token, drain_at=now, signalled_at=now)
        case acts.Cancel(token=token):
            change(token, cancelled_at=now)
        case acts.Withdraw(job_id=job_id):
            listed[:] = [
                replace(one, state=JobState.CANCELLED) if one.job_id == job_id and one.waiting else one
                for one in listed
            ]
        case acts.CancelOrphan(job_id=job_id):
            listed[:] = [job for job in listed if job.job_id != job_id]
        case acts.Leave(uid):
            rows[uid] = replace(rows[uid], leaving=True)
        case acts.RemoveReplica(uid):
            assert rows.pop(uid).live_attempt is None
        case acts.RecordRollout(uid, record):
            declared[uid] = replace(declared[uid], rollout=record)
        case acts.GoBack(uid, revision, to, record):
            assert declared[uid].revision == revision
            new = revision + 1
            declared[uid] = replace(declared[uid], revision=new, promoted_revision=new, rollout=record)
            for one in list(rows.values()):
                if (one.deployment_uid, one.revision, one.leaving) == (uid, to, False):
                    rows[one.uid] = replace(one, revision=new)
        case acts.RemoveDeployment(uid):
            assert not [one for one in rows.values() if one.deployment_uid == uid]
            del declared[uid]


@bounded
@given(worlds())
def test_unknown_is_not_absent(world: Observation) -> None:
    """Rule 3."""
    made = plan(replace(world, slurm=Unknown("squeue: timed out", at(-30.5))))
    assert actions_of(made) == []
    assert made.replica_statuses == ()
    assert [decision.reason for decision in made.decisions] == [Reason.CLUSTER_UNREACHABLE]


@bounded
@given(worlds(), strangers())
def test_strangers_jobs_change_nothing(world: Observation, others: list[Job]) -> None:
    """Rule 2: a job without our mark is not touched. Nothing but the sentence on the cluster knows of it, where
    it bears what only looks like our mark."""
    assert isinstance(world.slurm, Listing)
    crowded = plan(replace(world, slurm=Listing((*world.slurm.jobs, *others))))
    alone = plan(world)
    told = [
        replace(one, message=other.message) if one.subject == ("", "") else one
        for one, other in zip(crowded.decisions, alone.decisions, strict=True)
    ]
    assert replace(crowded, decisions=tuple(told)) == alone


@bounded
@given(worlds())
def test_adapters_move_no_job_and_no_replica(world: Observation) -> None:
    """Whatever is wanted and said of them: without any the same is done, and the same shown but for words."""
    bare = replace(world, deployments=tuple(_with_adapters(one, ()) for one in world.deployments))
    made, without = plan(world), plan(bare)
    assert actions_of(made) == actions_of(without)
    states = {status.replica_uid: status.state for status in made.replica_statuses}
    for status in without.replica_statuses:
        assert states.pop(status.replica_uid) is status.state
    known = {one.uid: one.state for one in world.replicas}
    assert all(known[uid] is state for uid, state in states.items())


@bounded
@given(worlds())
def test_adapters_are_said_to_be_loaded_just_when_every_ready_replica_has_them(world: Observation) -> None:
    after = apply(world, plan(world))
    for one in after.deployments:
        found = {condition.type: condition for condition in one.conditions}
        wanted = one.spec.model.adapters
        assert ("AdaptersLoaded" in found) <= bool(wanted)
        if "AdaptersLoaded" not in found or isinstance(world.slurm, Unknown):
            continue
        ready = [
            set(replica.live_attempt.adapters)
            for replica in after.replicas
            if replica.deployment_uid == one.uid
            and replica.state is ReplicaState.READY
            and replica.revision == one.revision
            and not replica.leaving
            and replica.live_attempt is not None
        ]
        has_all = bool(ready) and all(
            any((said.name, said.path, said.loaded) == (adapter.name, adapter.path, True) for said in its)
            for its in ready
            for adapter in wanted
        )
        assert (found["AdaptersLoaded"].status is ConditionStatus.TRUE) is has_all


@bounded
@given(worlds())
def test_ready_replicas_stay_above_the_floor(world: Observation) -> None:
    """Rule 5. Which ones are ready is asked of a world in which nothing is scaled, rolled or given up."""
    untouched = replace(world, deployments=tuple(replace(one, paused=True) for one in world.deployments))
    ready = {decision.subject for decision in plan(untouched).decisions if decision.reason is Reason.READY}
    let_go: set[str] = set()
    for action in actions_of(plan(world)):
        match action:
            case acts.Leave(uid):
                let_go.add(uid)
            case acts.Drain(token=token) | acts.Cancel(token=token):
                let_go |= {one.uid for one in world.replicas if one.attempt and one.attempt.token == token}
    for of in world.deployments:
        if of.deleted_at is not None or of.spec.rollout.strategy is RolloutStrategy.RECREATE:
            continue
        serving = {
            one.uid
            for one in world.replicas
            if one.deployment_uid == of.uid and not one.leaving and (of.name, one.name) in ready
        }
        floor = available_floor(of.spec.rollout, of.spec.replicas)
        assert len(serving - let_go) >= min(len(serving), floor)
        if serving & let_go:
            event("a ready replica was let go")


@bounded
@given(worlds())
def test_what_is_made_fits_the_wanted_number_and_the_surge(world: Observation) -> None:
    """Whatever revisions there are; and what never got ready and has not ended counts, too."""
    made = plan(world)
    gone = {action.replica_uid for action in actions_of(made) if isinstance(action, acts.Leave)}
    creates = Counter(
        action.deployment_uid for action in actions_of(made) if isinstance(action, acts.CreateReplica)
    )
    for of in world.deployments:
        if not creates[of.uid]:
            continue
        event(f"made for {of.spec.rollout.strategy}")
        most = of.spec.replicas + share(of.spec.rollout.max_surge, of.spec.replicas, up=True)
        there = 0
        for one in world.replicas:
            its = one.live_attempt
            if one.deployment_uid != of.uid or (its is not None and its.handover_at is not None):
                continue
            unborn = its is not None and its.ready_at is None and one.revision != of.revision
            there += unborn or not (one.leaving or one.uid in gone)
        assert there + creates[of.uid] <= most


@bounded
@given(worlds())
def test_a_rollout_that_failed_makes_no_more_of_its_revision(world: Observation) -> None:
    _assert_nothing_made_of_what_failed(world)


@bounded
@given(worlds())
def test_nor_does_it_where_none_was_ever_whole(world: Observation) -> None:
    """Its predecessors' replicas are kept up by their own kind, each that is handed over, too."""
    failed = [
        replace(
            of,
            revision=of.revision + 1,
            rollout=RolloutRecord(failed_revision=of.revision + 1, failed_message="chat-1: it died"),
            rollout_paused=False,
            paused=False,
        )
        for of in world.deployments
    ]
    _assert_nothing_made_of_what_failed(replace(world, deployments=tuple(failed)))


def _assert_nothing_made_of_what_failed(world: Observation) -> None:
    """As long as there is one to fall back on: a stable one, or a replica of another one."""
    made = plan(world)
    records = {
        action.deployment_uid: action.rollout
        for action in actions_of(made)
        if isinstance(action, acts.RecordRollout)
    }
    creates = [action for action in actions_of(made) if isinstance(action, acts.CreateReplica)]
    for of in world.deployments:
        record = records.get(of.uid, of.rollout)
        there = [one for one in world.replicas if one.deployment_uid == of.uid and not one.leaving]
        others = {one.revision for one in there if one.revision != of.revision}
        if record.stable_revision not in (0, of.revision):
            others.add(record.stable_revision)
        is_over = record.failed_revision == of.revision and not of.rollout_paused
        if not (is_over and others) or of.spec.rollout.strategy is RolloutStrategy.RECREATE:
            continue
        for action in creates:
            if action.deployment_uid == of.uid:
                event("one was made of another revision")
                assert action.revision in others


@bounded
@given(worlds())
def test_a_handover_takes_no_replica_before_its_successor_is_ready(world: Observation) -> None:
    """Rule 5, without the leave that a rollout has: what is handed over goes only beyond the wanted number."""
    rows = {one.uid: one for one in world.replicas}
    untouched = replace(world, deployments=tuple(replace(one, paused=True) for one in world.deployments))
    ready = {decision.subject for decision in plan(untouched).decisions if decision.reason is Reason.READY}
    for decision in plan(world).decisions:
        if decision.reason is not Reason.HANDOVER or decision.replica:
            continue
        (of,) = [one for one in world.deployments if one.name == decision.deployment]
        gone = {action.replica_uid for action in decision.actions if isinstance(action, acts.Leave)}
        serving = [
            one.uid
            for one in rows.values()
            if one.deployment_uid == of.uid and not one.leaving and (of.name, one.name) in ready
        ]
        if gone:
            event("one was handed over")
            assert len(set(serving) - gone) >= of.spec.replicas


def canary_of(replicas: int) -> Deployment:
    """Revision 3 beside revision 1; of revision 2 is what an earlier canary has left."""
    policy = Rollout(RolloutStrategy.CANARY, canary=Canary(1))
    return deployment(replicas=replicas, revision=3, rollout=policy, record=RolloutRecord(stable_revision=1))


@settings(bounded, max_examples=400)
@given(
    deployments("chat"),
    st.lists(st.tuples(st.integers(1, 3), st.sampled_from(SOME_STATES), st.booleans()), max_size=7),
)
@example(canary_of(1), [(2, ReplicaState.READY, True), (3, ReplicaState.READY, False)])
@example(
    replace(canary_of(2), rollout_paused=True),
    [(1, ReplicaState.READY, True), (2, ReplicaState.READY, False), (3, ReplicaState.READY, False)],
)
@example(
    replace(canary_of(1), rollout_paused=True),
    [(1, ReplicaState.READY, True), (2, ReplicaState.READY, False), (3, ReplicaState.READY, False)],
)
@example(
    replace(canary_of(2), rollout_paused=True),
    [(1, ReplicaState.READY, True), *[(3, ReplicaState.READY, False)] * 3],
)
def test_neither_side_of_a_canary_stands_in_for_the_other(
    of: Deployment, rows: list[tuple[int, ReplicaState, bool]]
) -> None:
    """Rule 5 for each revision: requests are shared by revision, so a ready one of another is no successor; and the
    stable one gets one of its own."""
    of = replace(of, deleted_at=None, paused=False)
    there = [
        replica(number, revision=min(revision, of.revision), state=state)
        for number, (revision, state, _) in enumerate(rows, start=1)
    ]
    ending = [one.uid for one, (_, _, handed_over) in zip(there, rows, strict=True) if handed_over]
    counts = plan_counts(of, there, ending)
    gone = counts.leaving
    if not (is_canary(of) or (failed_as_canary(of) and of.rollout_paused)) or not of.spec.replicas:
        return
    new, old = canary_counts(of.spec.rollout, of.spec.replicas)
    if of.rollout_paused:
        new = min(new, sum(one.revision == of.revision for one in there))
    borne = {of.rollout.stable_revision, *of.rollout.trusted_revisions} - {of.revision}
    for number, revisions in ((new, {of.revision}), (old, borne)):  # Replicas of others get no requests.
        ready = [one for one in there if one.revision in revisions and one.state is ReplicaState.READY]
        if any(one.uid in gone and one.uid in ending for one in ready):
            event("one was handed over beside a canary, paused" * of.rollout_paused or "beside a canary")
            assert sum(one.uid not in gone for one in ready) >= number
    stay = Counter(one.revision for one in there if one.uid not in gone and one.uid not in ending)
    if of.rollout_paused:
        actions = counts.decision.actions if counts.decision is not None else ()
        stay.update(one.revision for one in actions if isinstance(one, acts.CreateReplica))
        assert sum(stay[revision] for revision in borne) >= max(old, of.spec.replicas - new)


@bounded
@given(worlds())
def test_one_submission_a_replica_and_none_beside_a_live_attempt(world: Observation) -> None:
    """Rule 1, the planner's part."""
    assert isinstance(world.slurm, Listing)
    rows = {one.uid: one for one in world.replicas}
    names = {job.name for job in world.slurm.jobs}
    submissions: Counter[str] = Counter()
    for action in actions_of(plan(world)):
        match action:
            case acts.Submit(uid):
                submissions[uid] += 1
                assert rows[uid].live_attempt is None
            case acts.Resubmit(uid, token):
                submissions[uid] += 1
                live = rows[uid].live_attempt
                assert live is not None
                assert (live.token, live.job_id) == (token, None)
                assert not any(name.endswith(f"-{token}") for name in names)
    assert all(count == 1 for count in submissions.values())


@bounded
@given(worlds(), st.randoms(use_true_random=False))
def test_the_same_world_gives_the_same_plan(world: Observation, chance: random.Random) -> None:
    """However often it is asked, and in whatever order Slurm lists its jobs."""
    assert isinstance(world.slurm, Listing)
    shuffled = list(world.slurm.jobs)
    chance.shuffle(shuffled)
    made = plan(world)
    assert plan(world) == made
    assert plan(replace(world, slurm=Listing(tuple(shuffled)))) == made


@bounded
@given(worlds())
def test_one_decision_a_subject_and_a_sentence_in_each(world: Observation) -> None:
    made = plan(world)
    subjects = [decision.subject for decision in made.decisions]
    assert len(set(subjects)) == len(subjects)
    expected = {("", ""), *((of.name, "") for of in world.deployments)}
    names = {of.uid: of.name for of in world.deployments}
    expected |= {(names[one.deployment_uid], one.name) for one in world.replicas}
    assert set(subjects) == expected
    for decision in made.decisions:
        assert decision.message
        assert "\n" not in decision.message


SUSPENDED = job(JobState.SUSPENDED)
WAITING = job(JobState.PENDING, reason="Resources")


@bounded
@given(worlds())
@example(world([deployment()], [replica(its=attempt(), state=ReplicaState.SUBMITTING)], [SUSPENDED]))
@example(world([deployment()], [replica(its=attempt(job=WAITING))], [SUSPENDED]))
@example(world([deployment()], [replica(its=attempt(packed=True), state=ReplicaState.STARTING)], [WAITING]))
def test_statuses_once_written_are_not_written_again(world: Observation) -> None:
    """Whether what is seen of jobs is written with them, as it is, or not."""
    made = plan(world)
    seen = [
        replace(one, actions=tuple(act for act in one.actions if isinstance(act, acts.RecordJob)))
        for one in made.decisions
    ]
    for decisions in ((), tuple(seen)):
        again = plan(apply(world, replace(made, decisions=decisions)))
        assert again.replica_statuses == ()
        assert again.deployment_statuses == ()


@bounded
@given(worlds())
def test_it_settles_and_then_says_the_same_thing_each_tick(world: Observation) -> None:
    """Rule 4, and no running clocks: over an unchanging listing the actions end, and then the sentences stand."""
    for _ in range(SETTLES_WITHIN):
        made = plan(world)
        if not (actions_of(made) or made.replica_statuses or made.deployment_statuses):
            break
        world = apply(world, made)
    made = plan(world)
    assert made == Plan(made.decisions, (), ())
    assert actions_of(made) == []
    assert plan(replace(world, now=world.now + A_MOMENT)) == made


@bounded
@given(worlds())
def test_effects_are_few(world: Observation) -> None:
    """At most one effect on Slurm for each replica in a tick, orphans apart."""
    for decision in plan(world).decisions:
        if decision.replica:
            assert sum(isinstance(action, EFFECTS) for action in decision.actions) <= 1


@bounded
@given(worlds())
def test_no_revision_is_tried_beyond_its_budget(world: Observation) -> None:
    """What has failed in the last hour, what may fail yet and what is submitted now fit the budget together."""
    rows = {one.uid: one for one in world.replicas}
    tried = Counter(
        (rows[action.replica_uid].deployment_uid, rows[action.replica_uid].revision)
        for action in actions_of(plan(world))
        if isinstance(action, acts.Submit) and action.replica_uid in rows
    )
    for of in world.deployments:
        allowed = of.spec.restart.failures_allowed(of.spec.replicas)
        for revision in range(1, of.revision + 1):
            lost = sum(
                (one.deployment, one.revision) == (of.name, revision)
                and one.state is not None
                and one.state not in BLAMELESS_STATES
                and one.ended_at > world.now - WINDOW
                for one in world.failures
            )
            under_way = sum(
                one.deployment_uid == of.uid
                and one.revision == revision
                and (its := one.live_attempt) is not None
                and its.phase is not Phase.READY
                for one in world.replicas
            )
            submitted = tried[of.uid, revision]
            if lost and submitted:
                event("tried although attempts failed")
                assert lost + under_way + submitted <= allowed


@bounded
@given(worlds())
def test_a_node_is_asked_for_only_beside_others_and_one_job_at_a_time(world: Observation) -> None:
    """Asked for is what runs the deployment's, is usable, and is not left out; and no spread deployment asks."""
    jobs = {job.job_id: job for job in world.slurm.jobs} if isinstance(world.slurm, Listing) else {}
    declared = {one.uid: one for one in world.deployments}
    rows = {one.uid: one for one in world.replicas}
    asked: Counter[str] = Counter()
    for action in actions_of(plan(world)):
        if isinstance(action, acts.Submit) and action.replica_uid in rows:
            of = declared[rows[action.replica_uid].deployment_uid]
            asked[of.uid] += of.spec.node_spread is not NodeSpread.ANY
            if action.beside:
                event("a node was asked for")
                assert of.spec.node_spread is NodeSpread.PACK
                assert len(action.beside) <= of.spec.resources.nodes
                assert not set(action.beside) & set(action.exclude)
                assert world.cluster is not None
                assert set(action.beside) <= {node.name for node in world.cluster.nodes if node.usable}
                # By its mark where its id is not known yet.
                there = {
                    job.nodes
                    for one in world.replicas
                    if one.deployment_uid == of.uid and (its := one.live_attempt)
                    for job in jobs.values()
                    if not job.ended
                    and (job.job_id == its.job_id or marked_token(job, INSTALLATION) == its.token)
                }
                assert set(action.beside) <= there
    assert all(count <= 1 for count in asked.values())


@given(st.integers(1, 99), st.integers(1, 300), st.data())
def test_no_replica_of_a_canary_bears_more_than_when_it_is_whole(
    percent: int, want: int, data: st.DataObject
) -> None:
    rollout = Rollout(strategy=RolloutStrategy.CANARY, canary=Canary(percent))
    new, _ = canary_counts(rollout, want)
    before = 0
    for ready in [*sorted(data.draw(st.sets(st.integers(1, new)))), new]:
        weights = request_weights(rollout, want, RolloutRecord(1), 2, 0, {1: 1, 2: ready})
        assert weights[1] + weights[2] == 100
        assert weights[2] * new <= max(percent * ready, new), "its part, or the least there is"
        assert weights[2] >= max(before, 1)
        before = weights[2]
    assert before == percent
