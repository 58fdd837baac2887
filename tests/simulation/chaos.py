"""What happens next, drawn from the seed: a step at a time, each with its weight."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.core.changes import with_count_and_policies_of
from penstock.core.jobs import JobState, Maintenance, Submission
from penstock.core.model import job_comment, job_name
from penstock.core.spec import (
    Burst,
    Canary,
    Engine,
    Handover,
    NodeSpread,
    OutsideChanges,
    Placement,
    Rollout,
    RolloutStrategy,
)
from penstock.store.queries import deployments, replicas, revisions
from penstock.testing.jobs import FakeJob
from tests.simulation.rules import Violation
from tests.simulation.world import CALM, INSTALLATION, NODES, SPEC, STORMY, Process, Risk, World

SPOT = Placement(partition="spot", time_limit="8h", time_limit_s=28_800)
SETTLE_TICKS = 150
"""With faults off everything is as wanted after at most so many passes, five seconds apart: the longest back-off,
start-up time-out, drain and orphan's grace of SPEC, one after the other."""

SERVES = """
EXISTS (SELECT FROM replicas r JOIN attempts a ON a.replica_uid = r.uid WHERE r.deployment_uid = deployments.uid
AND NOT r.leaving AND a.ended_at IS NULL AND a.phase = 'ready')
"""
"""Of a deployment: somebody takes its requests."""

ALONE_TICKS = 40
"""About two minutes and a half: a start, the longest progress deadline of `apply` and SPEC, and a drain."""

OUTAGE_ENDS = 0.3
"""With each tick an outage ends this likely, and a process that is held still wakes."""

HALTING = (JobState.SUSPENDED, JobState.STOPPED, JobState.RESIZING, JobState.SIGNALING, JobState.CONFIGURING)
HELD = (JobState.REQUEUE_HOLD, JobState.RESV_DEL_HOLD, JobState.SPECIAL_EXIT, JobState.REQUEUED)
ENDS = (
    JobState.TIMEOUT, JobState.PREEMPTED, JobState.NODE_FAIL, JobState.BOOT_FAIL, JobState.DEADLINE,
    JobState.OUT_OF_MEMORY, JobState.CANCELLED, JobState.LAUNCH_FAILED, JobState.REVOKED,
)  # fmt: skip


async def run(world: World, steps: int, risk: Risk = STORMY) -> None:
    """`steps` drawn steps, and then the end: faults off, everything as wanted, and rest. Raises Violation."""
    await world.start_controller()
    world.risk = risk
    await apply(world)
    for _ in range(steps):
        world.steps += 1
        await step(world)
    await settle(world)


async def step(world: World) -> None:
    weights = [world.risk.steps.get(each.__name__, usual) for each, usual in STEPS.items()]
    (chosen,) = world.random.choices(list(STEPS), weights=weights)
    await chosen(world)


async def settle(world: World) -> None:
    """Rules 2, 4 and 6 at the end of a story."""
    world.say("from here on nothing goes wrong")
    process = await calm(world)
    why = ""
    for _ in range(SETTLE_TICKS):
        await world.pass_time(5)
        await tend(world)
        await process.tick()
        world.steps += 1
        why = await world.rules.unsettled()
        if not why and process.listed and not world.undelivered:
            break
    else:
        raise Violation("4", f"not as wanted after {SETTLE_TICKS} passes without a fault: {why}")
    await world.rules.at_rest()
    await rests(world, process)


async def rests(world: World, process: Process) -> None:
    """Rule 4: a pass that finds nothing to do asks Slurm once and writes nothing."""
    await process.tick()  # May still have a sentence to say anew.
    rows = await world.rules.rows()
    await process.tick()
    if await world.rules.rows() != rows:
        raise Violation("4", "a pass with nothing to do wrote to the database")
    asked = [place for place in process.passed if place not in ("cluster", "read", "listed")]
    if asked != ["list_jobs"]:
        raise Violation("4", f"a pass with nothing to do made these calls: {asked}")


async def calm(world: World) -> Process:
    """Everything that was broken is mended, and one controller runs whose clock is right."""
    world.risk = CALM
    if world.slurm_down:
        world.slurm_goes(up=True)
    if world.database_down:
        world.database_goes(up=True)
    if world.control_down:
        world.control(up=True)
    for process in world.held:
        await process.go_on()
    for process in world.running:
        process.skew_s = 0.0
    for node in ("node1", "node2", "node3"):
        world.slurm.restore_node(node)
    for job in world.slurm.jobs():
        world.slurm.show(job.job_id, None)
        mark_again(world, job)
        if job.state is JobState.PENDING and job.eligible_at.year > 9000:
            world.slurm.release(job.job_id)
        if job.submission.name == "training" and not job.ended and job.state is JobState.RUNNING:
            world.slurm.finish(job.job_id)
    for agent in world.agents.values():
        agent.silent_from = None
        agent.ready_at = agent.ready_at or world.now
        if agent.exit_code:
            agent.ends_at, agent.exit_code = None, 0
    world.ghosts.clear()
    # What somebody cancelled or holds is to stay so only until they say otherwise; now they do.
    await world.admin.execute("UPDATE deployments SET spec = spec - 'outside_changes'")
    for name in await names(world, "paused AND deleted_at IS NULL"):
        await pause(world, name, False)
    for name in await names(world, "rollout_paused AND deleted_at IS NULL"):
        await _pause_rollout(world, name, False)
    if not world.running:
        return await world.start_controller()
    await world.pass_time(1)
    held = [process for process in world.running if process.lease.held]
    return held[0] if held else world.running[0]


# Controllers -----------------------------------------------------------------------------------------------------


async def tick(world: World) -> None:
    await world.pass_time(world.random.choice((0.2, 1, 1, 2, 5, 5, 10)))
    if world.slurm_down and world.chance(OUTAGE_ENDS):
        await slurm_outage(world)
    if world.database_down and world.chance(OUTAGE_ENDS):
        await database_outage(world)
    if world.control_down and world.chance(OUTAGE_ENDS):
        await control_outage(world)
    if world.held and world.chance(OUTAGE_ENDS):
        await wake(world)
    for process in world.running:
        await process.tick()
    if not world.running and not world.held:
        await world.start_controller()


async def another_controller(world: World) -> None:
    if len(world.running) + len(world.held) < 2:
        await world.start_controller()


async def kill(world: World) -> None:
    if world.running:
        process = world.random.choice(world.running)
        world.say(f"{process.name} is killed")
        await process.kill()


async def wake(world: World) -> None:
    """One way or the other: what was due in its lease's task comes before or after what was due in its pass."""
    for process in world.held:
        if process.waits or world.chance(0.5):
            await process.go_on()
        else:
            process.wake()


async def long_wait(world: World) -> None:
    await world.pass_time(world.random.choice((20, 40, 70)))


async def clock_jump(world: World) -> None:
    if world.running:
        process = world.random.choice(world.running)
        process.skew_s = world.random.choice((0.0, 0.0, 3600.0, -3600.0))
        world.say(f"the clock of {process.name} is now {process.skew_s:+.0f} s off")


# The database ----------------------------------------------------------------------------------------------------


async def database_outage(world: World) -> None:
    world.database_goes(up=world.database_down)


async def back_up(world: World) -> None:
    if not world.backed_up and not world.database_down:
        await world.back_up()


async def restore(world: World) -> None:
    if world.backed_up and not world.held and not world.database_down and world.chance(0.3):
        await world.restore()


async def control_outage(world: World) -> None:
    world.control(up=world.control_down)
    world.say(f"the control API is {'down' if world.control_down else 'up'}")


# Slurm -----------------------------------------------------------------------------------------------------------


async def slurm_outage(world: World) -> None:
    world.slurm_goes(up=world.slurm_down)


async def reset(world: World) -> None:
    if world.chance(0.4):
        world.say("slurmctld has lost its state")
        world.reset_slurm(processes_live=world.chance(0.5))


async def job_changes(world: World) -> None:
    """A human, a scheduler or a node does something to one of our jobs."""
    jobs = world.jobs(JobState.RUNNING, JobState.PENDING)
    if not jobs:
        return
    job = world.random.choice(jobs)
    slurm, job_id = world.slurm, job.job_id
    if job.state is JobState.RUNNING:
        kind = world.random.choice(
            ("requeue", "end", "show", "unknown", "clear", "scancel", "unmark", "mark again")
        )
        if kind == "requeue":
            slurm.requeue(job_id)
        elif kind == "end":
            slurm.end(job_id, world.random.choice(ENDS))
        elif kind == "show":
            shown = world.random.choice(HALTING)
            slurm.show(job_id, shown)
            kind = f"shown as {shown}"
        elif kind == "unknown":
            slurm.show(job_id, JobState.UNKNOWN, "HIBERNATED")
        elif kind == "clear":
            slurm.show(job_id, None)
        elif kind == "unmark":
            kind = await unmark(world, job)
        elif kind == "mark again":
            mark_again(world, job)
        else:
            await slurm.cancel(job_id, name=job.name)
    else:
        kind = world.random.choice(("hold", "release", "show", "scancel", "unmark", "mark again"))
        if kind == "hold":
            reason = world.random.choice(("JobHeldUser", "JobHeldAdmin"))
            slurm.hold(job_id, reason)
            kind = f"held ({reason})"
        elif kind == "release":
            slurm.release(job_id)
        elif kind == "show":
            shown = world.random.choice(HELD)
            slurm.show(job_id, shown)
            kind = f"shown as {shown}"
        elif kind == "unmark":
            kind = await unmark(world, job)
        elif kind == "mark again":
            mark_again(world, job)
        else:
            await slurm.cancel(job_id, name=job.name)
    world.say(f"job {job_id} is changed from outside: {kind}")


async def unmark(world: World, job: FakeJob) -> str:
    """Somebody rewrites the comment, or the name. Never both: then nobody can know the job; and no name of a job whose
    id no attempt has written down: its name is what it is looked up by."""
    mark_again(world, job)
    known = await world.admin.execute(
        "SELECT token FROM attempts WHERE job_id = %s AND ended_at IS NULL", (job.job_id,)
    )
    row = await known.fetchone()
    if row is not None and row.token == job.submission.name.rpartition("-")[2] and world.chance(0.4):
        name = world.random.choice(("analysis", f"penstock-other-{row.token}"))
        world.slurm.rename(job.job_id, name)
        return f"its name is {name}"
    world.slurm.comment(job.job_id, "an analysis")
    return "it has another comment"


def mark_again(world: World, job: FakeJob) -> None:
    world.slurm.rename(job.job_id, None)
    world.slurm.comment(job.job_id, None)


async def preemption(world: World) -> None:
    """Somebody more important needs nodes: many of our jobs go at once, by requeue or for good."""
    for job in world.jobs(JobState.RUNNING):
        if world.chance(0.6):
            if world.chance(0.5):
                world.slurm.requeue(job.job_id)
            else:
                world.slurm.end(job.job_id, JobState.PREEMPTED)
            world.say(f"job {job.job_id} is preempted, and is now {job.state}")


async def node_changes(world: World) -> None:
    node = world.random.choice(("node1", "node2", "node3"))
    kind = world.random.choice(("fail", "restore", "restore", "drain"))
    world.say(f"{node}: {kind}")
    if kind == "fail":
        world.slurm.fail_node(node)
    elif kind == "drain":
        world.slurm.drain_node(node)
    else:
        world.slurm.restore_node(node)


async def maintenance(world: World) -> None:
    """A node is to be taken at a time, whatever runs there."""
    begins_at = world.now + timedelta(seconds=world.random.choice((40, 120, 600)))
    node = world.random.choice(NODES).name
    world.slurm.reserve(Maintenance("firmware", begins_at, begins_at + timedelta(seconds=60), (node,)))
    world.say(f"maintenance of {node} is announced for {begins_at:%H:%M:%S}")


async def no_room(world: World) -> None:
    """For a while no node takes a new job, and some that run are queued again."""
    full_up(world)
    await preemption(world)
    await scale(world)
    for _ in range(12):
        await tick(world)
    make_room(world)


def full_up(world: World) -> None:
    world.say("no node takes new jobs")
    for node in NODES:
        world.slurm.drain_node(node.name)


def make_room(world: World) -> None:
    world.say("every node takes jobs again")
    for node in NODES:
        world.slurm.restore_node(node.name)


async def foreign_job(world: World) -> None:
    """Jobs of the same user that are not ours, and one kind that is: a mark of ours without a row."""
    token = world.new_token()
    ours = [job.submission for job in world.jobs(JobState.RUNNING, JobState.PENDING)]
    copied = ours[0].comment if ours else job_comment(INSTALLATION, token)
    name, comment = world.random.choice(
        (
            ("training", ""),
            ("training", copied),
            (job_name("chat", token), job_comment("elsewhere", token)),
            ("penstock-", job_comment(INSTALLATION, token)),
            ("training", f"penstock/1 {INSTALLATION}\n{token}|;,\t{token}"),
            (job_name("chat", token), f"penstock/1 {INSTALLATION} {token}\nand more"),
            (job_name("chat", token), job_comment(INSTALLATION, token)),
        )
    )
    submission = Submission(
        name, comment, "#!/bin/bash\n", "/tmp", "/tmp/out", cpus_per_task=1, singleton=False
    )
    job_id = await world.slurm.submit(submission)
    world.say(f"someone submits job {job_id}: {name!r}, {comment!r}")


# People ----------------------------------------------------------------------------------------------------------


async def names(world: World, where: str = "true") -> list[str]:
    found = await world.admin.execute(f"SELECT name FROM deployments WHERE {where} ORDER BY name".encode())
    return [row.name for row in await found.fetchall()]


async def apply(world: World) -> None:
    name = world.random.choice(world.names)
    count = world.random.randint(0, 3)
    surge, unavailable = world.random.choice((("1", "0"), ("2", "1"), ("0", "1"), ("50%", "0"), ("0", "0")))
    (strategy,) = world.random.choices(list(RolloutStrategy), weights=world.risk.strategies)
    canary = Canary(world.random.choice((1, 50, 99)), world.random.choice((None, 40)))
    rollout = Rollout(
        strategy,
        surge,
        unavailable,
        progress_deadline_s=world.random.choice((None, 60)),
        rollback_on_failure=world.chance(0.3),
        canary=canary if strategy is RolloutStrategy.CANARY else None,
    )
    spec = replace(SPEC, replicas=count, rollout=rollout)
    risk = world.risk
    if world.chance(risk.fallback):
        spec = replace(spec, fallbacks=(SPOT,), placement=replace(spec.placement, patience_s=20))
    if world.chance(risk.burst):
        spec = replace(spec, burst=Burst(world.random.randint(0, 2), (SPOT,)))
    if world.chance(risk.respect):
        spec = replace(spec, outside_changes=OutsideChanges.RESPECT)
    if world.chance(risk.spread):
        spec = replace(spec, node_spread=NodeSpread.SPREAD)
    if world.chance(risk.pack):
        spec = replace(spec, node_spread=NodeSpread.PACK)
    if world.chance(risk.short):
        limited = replace(spec.placement, time_limit="5m", time_limit_s=300)
        spec = replace(spec, placement=limited, handover=Handover(margin_s=20))

    async def create(conn: AsyncConnection) -> None:
        await deployments.create(conn, name, {}, spec, world.clock())

    await world.people(f"someone creates {name} with {count} replicas", create)


async def change_burst(world: World) -> None:
    """The base moves; that is no new revision."""
    for name in (await names(world))[:1]:
        base = world.random.randint(0, 3)

        async def change(conn: AsyncConnection, name: str = name, base: int = base) -> None:
            old = (await deployments.get(conn, name)).spec
            new = replace(old, burst=Burst(base, (SPOT,)))
            await deployments.update_spec(
                conn, name, new, None, world.clock(), new_revision=False, expected_version=None
            )

        await world.people(f"someone gives {name} a base of {base}", change)


async def edit(world: World) -> None:
    for name in (await names(world))[:1]:
        await _edit(world, name)


async def _edit(world: World, name: str) -> None:
    arg = str(world.random.randint(1, 9))

    async def change(conn: AsyncConnection) -> None:
        old = (await deployments.get(conn, name)).spec
        new = replace(old, engine=Engine(args=(arg,)))
        await deployments.update_spec(
            conn, name, new, None, world.clock(), new_revision=True, expected_version=None
        )

    await world.people(f"someone edits {name}: a new revision", change)


async def roll_out(world: World) -> None:
    """Somebody edits a deployment, and then nobody touches it: its rollout is through, or stops, or stands.

    Some begin while the cluster has no room, and wait in the queue longer than their progress deadline.
    """
    if world.chance(0.5):
        await leave_alone(world)  # There is something to roll from.
    full = world.chance(0.4)
    if full:
        full_up(world)
    await edit(world)
    await leave_alone(world)
    if full:
        make_room(world)


async def roll_out_too_soon(world: World) -> None:
    """Somebody edits a deployment that was never whole, and what starts from then on comes to nothing: there is only
    what serves by then to fall back on."""
    await apply(world)
    never = "coalesce((rollout->>'stable_revision')::int, 0) = 0 AND deleted_at IS NULL"
    for _ in range(ALONE_TICKS // 2):
        serving = await names(world, f"{never} AND {SERVES}")
        if serving or not await names(world, never):
            break
        await tick(world)
    for name in serving:
        await _edit(world, name)
    usual = world.risk
    world.risk = replace(usual, agent=1.0, agents=("stuck", "dies"))
    await leave_alone(world)
    world.risk = usual


async def leave_alone(world: World) -> None:
    """Until everything is as wanted, or for ALONE_TICKS."""
    for _ in range(ALONE_TICKS):
        await tick(world)
        if not await world.rules.unsettled():
            return


async def undo(world: World) -> None:
    """Somebody wants an earlier revision again."""
    if known := await names(world):
        name, back = world.random.choice(known), world.random.randint(1, 3)

        async def change(conn: AsyncConnection) -> None:
            found = await deployments.get(conn, name)
            to = await revisions.get(conn, found.uid, max(1, found.revision - back))
            spec = with_count_and_policies_of(found.spec, to.spec)
            await deployments.update_spec(
                conn,
                name,
                spec,
                None,
                world.clock(),
                new_revision=True,
                expected_version=None,
                proven=to.proven,
            )

        await world.people(f"someone undoes {back} rollouts of {name}", change)


async def promote(world: World, where: str = "true") -> None:
    for name in await names(world, f"deleted_at IS NULL AND {where}"):

        async def change(conn: AsyncConnection, name: str = name) -> None:
            found = await deployments.get(conn, name)
            await deployments.promote(conn, name, found.revision, world.clock())

        await world.people(f"someone promotes {name}", change)


async def pause_rollout(world: World) -> None:
    if known := await names(world, "deleted_at IS NULL"):
        await _pause_rollout(world, world.random.choice(known), world.chance(0.5))


async def _pause_rollout(world: World, name: str, paused: bool) -> None:
    async def change(conn: AsyncConnection) -> None:
        await deployments.set_paused(conn, name, paused, world.clock(), rollout_only=True)

    await world.people(f"someone {'pauses' if paused else 'resumes'} the rollouts of {name}", change)


async def tend(world: World) -> None:
    """What a person does in the end: canaries are promoted, and what has failed is tried again."""
    await promote(world, "promoted_revision < revision AND spec->'rollout'->>'strategy' = 'canary'")
    stopped = "deleted_at IS NULL AND (rollout->>'failed_revision')::bigint = revision"
    for name in await names(world, stopped):

        async def again(conn: AsyncConnection, name: str = name) -> None:
            spec = (await deployments.get(conn, name)).spec
            await deployments.update_spec(
                conn, name, spec, None, world.clock(), new_revision=True, expected_version=None
            )

        await world.people(f"someone restarts {name}", again)


async def scale(world: World) -> None:
    if known := await names(world):
        name, count = world.random.choice(known), world.random.randint(0, 3)

        async def change(conn: AsyncConnection) -> None:
            await deployments.scale(conn, name, count, world.clock())

        await world.people(f"someone scales {name} to {count}", change)


async def pause(world: World, name: str = "", paused: bool | None = None) -> None:
    if not name and (known := await names(world)):
        name = world.random.choice(known)
    if not name:
        return
    wanted = world.chance(0.4) if paused is None else paused

    async def change(conn: AsyncConnection) -> None:
        await deployments.set_paused(conn, name, wanted, world.clock())

    await world.people(f"someone {'pauses' if wanted else 'resumes'} {name}", change)


async def delete(world: World) -> None:
    if known := await names(world):
        name, force = world.random.choice(known), world.chance(0.3)

        async def change(conn: AsyncConnection) -> None:
            await deployments.mark_deleted(conn, name, force, world.clock())

        await world.people(f"someone deletes {name}" + (" by force" if force else ""), change)


async def drain_by_hand(world: World) -> None:
    found = await world.admin.execute("SELECT name, uid FROM replicas WHERE removed_at IS NULL ORDER BY name")
    known: list[Any] = await found.fetchall()
    if known:
        row = world.random.choice(known)

        async def change(conn: AsyncConnection) -> None:
            await replicas.mark_leaving(conn, row.uid)

        await world.people(f"someone drains {row.name}", change)


STEPS: dict[Callable[[World], Coroutine[Any, Any, None]], float] = {
    tick: 60,
    another_controller: 3,
    kill: 1,
    wake: 3,
    long_wait: 2,
    clock_jump: 0.7,
    database_outage: 1.5,
    back_up: 0.7,
    restore: 1,
    control_outage: 0.7,
    slurm_outage: 2,
    reset: 0.7,
    job_changes: 5,
    preemption: 1,
    node_changes: 2,
    maintenance: 0.7,
    no_room: 0.5,
    foreign_job: 2,
    apply: 3,
    edit: 2.5,
    roll_out: 0.5,
    roll_out_too_soon: 0,  # Where the weather says so only: STORMY does.
    undo: 1,
    promote: 1,
    pause_rollout: 1.5,
    change_burst: 0.7,
    scale: 4,
    pause: 1.5,
    delete: 1.5,
    drain_by_hand: 1,
}
