"""What the agents in the jobs say, and what follows from it for the front door.

The rule guarded here: only the agent of a live attempt, of its newest run, moves anything. A ready report is
routable as soon as it is committed, with no tick in between; a mere heartbeat wakes nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import bindparam, case, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.core.adapters import loaded
from penstock.core.canary import request_weights
from penstock.core.decisions import Reason
from penstock.core.model import AdapterStanding, Attempt, Phase, ReplicaState, RolloutRecord
from penstock.core.routing import Endpoint, Route, RoutingState
from penstock.core.slurm_words import HALTED_STATES
from penstock.core.spec import Adapter, Admission, Rollout, Routing
from penstock.store.documents import decode, encode
from penstock.store.errors import AttemptEnded, AttemptSuperseded, JobTaken
from penstock.store.queries import notify, rows
from penstock.store.records import Agent, Load
from penstock.store.tables import attempts, deployments, replicas

AUTHENTICATE = (
    select(
        *rows.REPLICA,
        *rows.ATTEMPT,
        attempts.c.secret_hash,
        attempts.c.restart_count,
        deployments.c.name,
        deployments.c.secret,
    )
    .select_from(attempts.join(replicas, replicas.c.uid == attempts.c.replica_uid).join(deployments))
    .where(attempts.c.token == bindparam("token"))
)
LOCK = (
    select(
        *rows.ATTEMPT,
        attempts.c.restart_count,
        attempts.c.engine_port,
        attempts.c.replica_uid,
        replicas.c.leaving,
        rows.WANTED_ADAPTERS,
    )
    .select_from(attempts.join(replicas, replicas.c.uid == attempts.c.replica_uid).join(deployments))
    .where(attempts.c.token == bindparam("token"))
    .with_for_update(of=attempts)
)
REGISTER = (
    update(attempts)
    .where(attempts.c.token == bindparam("at"))
    .values(
        job_id=bindparam("in_job"),
        restart_count=bindparam("run"),
        host=bindparam("to_host"),
        port=bindparam("to_port"),
        engine_port=bindparam("to_engine"),
        phase=Phase.REGISTERED.value,
        phase_message="",
        registered_at=bindparam("now"),
        reported_at=bindparam("now"),
        ready_at=None,
        # An earlier run may have been told to drain; a replica that is to go is told again.
        drain_at=None,
        signalled_at=None,
        exit_code=None,
        last_words="",
        adapters=[],
    )
    .returning(*rows.ATTEMPT)
)
TOUCH = update(attempts).where(attempts.c.token == bindparam("at")).values(reported_at=bindparam("now"))
REPORT = (
    update(attempts)
    .where(attempts.c.token == bindparam("at"))
    .values(
        phase=bindparam("said"),
        phase_message=bindparam("sentence"),
        reported_at=bindparam("now"),
        ready_at=case(
            (bindparam("said") == Phase.READY.value, func.coalesce(attempts.c.ready_at, bindparam("now"))),
            else_=attempts.c.ready_at,
        ),
        exit_code=func.coalesce(bindparam("code", type_=attempts.c.exit_code.type), attempts.c.exit_code),
        last_words=case((bindparam("words") != "", bindparam("words")), else_=attempts.c.last_words),
        running_requests=bindparam("running"),
        waiting_requests=bindparam("waiting"),
        kv_cache_usage=bindparam("kv_cache"),
        prompt_tokens_total=bindparam("prompt_tokens"),
        generation_tokens_total=bindparam("generation_tokens"),
        adapters=bindparam("standings", type_=attempts.c.adapters.type),
    )
)
REPLICA_READY = (
    update(replicas)
    .where(
        replicas.c.uid == bindparam("at"),
        replicas.c.state.in_(
            [
                state.value
                for state in (
                    ReplicaState.WAITING,
                    ReplicaState.SUBMITTING,
                    ReplicaState.QUEUED,
                    ReplicaState.STARTING,
                )
            ]
        ),
    )
    .values(state=ReplicaState.READY.value, message=Reason.READY.meaning, since=bindparam("now"))
)
ROUTES = select(
    deployments.c.uid,
    deployments.c.name,
    deployments.c.secret,
    deployments.c.created_at,
    deployments.c.spec["model"]["served_name"].as_string().label("served_name"),
    deployments.c.spec["admission"].label("admission"),
    deployments.c.spec["routing"].label("routing"),
    deployments.c.spec["rollout"].label("policy"),
    deployments.c.spec["replicas"].as_integer().label("want"),
    deployments.c.rollout,
    deployments.c.revision,
    deployments.c.promoted_revision,
    deployments.c.spec["model"]["adapters"].label("wanted_adapters"),
).order_by(deployments.c.name)
ENDPOINTS = (
    select(
        replicas.c.deployment_uid,
        attempts.c.token,
        replicas.c.name,
        attempts.c.host,
        attempts.c.port,
        attempts.c.engine_port,
        replicas.c.revision,
        attempts.c.adapters,
        rows.WANTED_ADAPTERS,
    )
    .select_from(attempts.join(replicas, replicas.c.uid == attempts.c.replica_uid).join(deployments))
    .where(
        attempts.c.ended_at.is_(None),
        attempts.c.phase == Phase.READY.value,
        attempts.c.ready_at.is_not(None),
        attempts.c.drain_at.is_(None),
        attempts.c.signalled_at.is_(None),
        attempts.c.cancelled_at.is_(None),
        # A job that Slurm has requeued since: its agent is gone, and its port may be another program's by now.
        func.coalesce(attempts.c.job["restarts"].as_integer(), 0)
        <= func.coalesce(attempts.c.restart_count, 0),
        # While it is halted nothing of it answers; when it goes on, it is routed to again.
        func.coalesce(attempts.c.job["state"].as_string(), "").not_in(sorted(HALTED_STATES)),
        ~replicas.c.leaving,
    )
    .order_by(replicas.c.deployment_uid, replicas.c.number)
)


@dataclass(frozen=True, slots=True)
class Reported:
    """What came of a report."""

    drain: bool
    """The control plane wants this replica to leave."""
    news: bool
    """Its phase, or how it stands with an adapter, is another than it was."""
    wanted_adapters: tuple[Adapter, ...] = ()
    """Those that its engine should have."""


async def authenticate(conn: AsyncConnection, token: str) -> Agent | None:
    """Whom the token speaks for, with the hash to check its secret against; None: nobody has or had this token."""
    row = (await conn.execute(AUTHENTICATE, {"token": _storable(token)})).one_or_none()
    if row is None:
        return None
    attempt = rows.attempt(row)
    return Agent(
        secret_hash=row.secret_hash,
        attempt=attempt,
        restart_count=row.restart_count,
        replica=rows.replica(row, attempt),
        deployment=row.name,
        deployment_uid=row.r_deployment_uid,
        deployment_secret=row.secret,
    )


async def register(
    conn: AsyncConnection,
    token: str,
    *,
    job_id: int,
    restart_count: int,
    host: str,
    port: int,
    now: datetime,
    engine_port: int | None = None,
) -> Attempt:
    """The first word of an agent, or the same word again; a requeued job's run starts over from nothing.

    Raises AttemptEnded, AttemptSuperseded for another job than the recorded one or an older run of it, and JobTaken
    while the job's id is another live attempt's.
    """
    row = (await conn.execute(LOCK, {"token": token})).one_or_none()
    if row is None or row.a_ended_at is not None:
        raise AttemptEnded(token)
    if row.a_job_id is not None and row.a_job_id != job_id:
        raise AttemptSuperseded(token, f"job {row.a_job_id} runs it, not job {job_id}")
    if row.restart_count is not None and restart_count < row.restart_count:
        raise AttemptSuperseded(token, f"its job was requeued {row.restart_count} times, not {restart_count}")
    known = (row.restart_count, row.a_host, row.a_port, row.engine_port)
    if known == (restart_count, host, port, engine_port):
        await conn.execute(TOUCH, {"at": token, "now": now})
        return rows.attempt(row)
    given = {
        "at": token,
        "in_job": job_id,
        "run": restart_count,
        "to_host": _storable(host),
        "to_port": port,
        "to_engine": engine_port,
        "now": now,
    }
    try:
        async with conn.begin_nested():
            written = await conn.execute(REGISTER, given)
    except IntegrityError as error:
        raise JobTaken(token, job_id) from error
    await notify.changed_attempt(conn, token)
    return rows.attempt(written.one())


async def report(
    conn: AsyncConnection,
    token: str,
    *,
    phase: Phase,
    message: str,
    load: Load,
    exit_code: int | None,
    last_words: str,
    now: datetime,
    restart_count: int = 0,
    adapters: Sequence[AdapterStanding] = (),
) -> Reported:
    """Where an agent stands. Raises AttemptEnded, and AttemptSuperseded for a run that is not the last to register."""
    row = (await conn.execute(LOCK, {"token": token})).one_or_none()
    if row is None or row.a_ended_at is not None:
        raise AttemptEnded(token)
    if restart_count != (row.restart_count or 0):
        raise AttemptSuperseded(
            token, f"run {row.restart_count} of its job has registered since run {restart_count}"
        )
    standings = [
        encode(
            replace(one, name=_storable(one.name), path=_storable(one.path), message=_storable(one.message))
        )
        for one in adapters
    ]
    await conn.execute(
        REPORT,
        {
            "at": token,
            "said": phase.value,
            "sentence": _storable(message),
            "now": now,
            "code": exit_code,
            "words": _storable(last_words),
            "running": load.running_requests,
            "waiting": load.waiting_requests,
            "kv_cache": load.kv_cache_usage,
            "prompt_tokens": load.prompt_tokens_total,
            "generation_tokens": load.generation_tokens_total,
            "standings": standings,
        },
    )
    is_moved = row.a_phase != phase.value
    if is_moved and phase is Phase.READY:
        await conn.execute(REPLICA_READY, {"at": row.replica_uid, "now": now})
    news = is_moved or row.a_adapters != standings
    if news:
        await notify.changed_attempt(conn, token)
    drain = row.leaving or row.a_drain_at is not None
    return Reported(drain, news, rows.wanted_adapters(row))


def _storable(text: str) -> str:
    """PostgreSQL's text holds every character but zero, and what an engine prints as it dies may hold that."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _weights(row: rows.AnyRow, endpoints: Sequence[Endpoint]) -> tuple[tuple[int, int], ...]:
    """Of a row of ROUTES. Only canaries are decoded: this is read at each change."""
    if not row.policy or row.policy.get("canary") is None:
        return ()
    ready = Counter(endpoint.revision for endpoint in endpoints)
    policy, record = decode(Rollout, row.policy), decode(RolloutRecord, row.rollout)
    weights = request_weights(policy, row.want, record, row.revision, row.promoted_revision, ready)
    return tuple(sorted(weights.items()))


async def adapter_counts(
    conn: AsyncConnection, deployment_uids: Sequence[str]
) -> Mapping[str, Mapping[str, int]]:
    """For each of these deployments, adapters' names and how many replicas take requests for them; none: no key."""
    counts: dict[str, Counter[str]] = {uid: Counter() for uid in deployment_uids}
    statement = ENDPOINTS.where(replicas.c.deployment_uid.in_(bindparam("uids", expanding=True)))
    for row in await conn.execute(statement, {"uids": list(deployment_uids)}):
        counts[row.deployment_uid].update(_adapters(row))
    return counts


def _adapters(row: rows.AnyRow) -> tuple[str, ...]:
    """Of a row of ENDPOINTS: those that it has of those that it should have."""
    standings = [decode(AdapterStanding, item) for item in row.adapters]
    return loaded(rows.wanted_adapters(row), standings)


async def routing_state(conn: AsyncConnection) -> RoutingState:
    """All deployments by name, and where requests for each may go. Give it a connection of `Database.snapshot`."""
    endpoints: dict[str, list[Endpoint]] = {}
    for row in await conn.execute(ENDPOINTS):
        at = (row.host, row.port, row.engine_port)
        endpoint = Endpoint(row.token, row.name, *at, row.revision, _adapters(row))
        endpoints.setdefault(row.deployment_uid, []).append(endpoint)
    return RoutingState(
        tuple(
            Route(
                deployment=row.name,
                model_names=tuple(dict.fromkeys((row.name, row.served_name or row.name))),
                secret=row.secret,
                endpoints=tuple(endpoints.get(row.uid, ())),
                # Missing in what an earlier release wrote.
                admission=decode(Admission, row.admission or {}),
                created_at_s=int(row.created_at.timestamp()),
                weights=_weights(row, endpoints.get(row.uid, ())),
                routing=decode(Routing, row.routing or {}),
                adapters=tuple(adapter.name for adapter in rows.wanted_adapters(row)),
            )
            for row in await conn.execute(ROUTES)
        )
    )
