"""Attempts: the intent before each submission, and what became of it.

Every write but the first names the attempt by its token and touches live attempts only: what has ended stays
as it ended. Each returns whether there was something to write to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, column, delete, func, or_, select, update
from sqlalchemy import insert as insert_into
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import BigInteger, Text

from penstock.core.decisions import RecordJob
from penstock.core.estimates import SAMPLES, Start, start_of
from penstock.core.jobs import Job, JobState
from penstock.core.model import Attempt, Failure
from penstock.core.node_lists import known_nodes
from penstock.store.documents import decode, encode
from penstock.store.errors import NotFound
from penstock.store.queries import notify, rows
from penstock.store.records import Load
from penstock.store.tables import attempts, deployments, replicas

ATTEMPTS_KEPT = 100
"""A replica's newest. At the shortest back-off that is still longer than Slurm remembers an ended job
(MinJobAge, 300 s)."""

FAILURES_READ_MAX = 20_000
"""The newest, in a tick. The budgets end most loops long before an hour holds so many."""

LAST_NUMBERS = (
    select(attempts.c.replica_uid, func.max(attempts.c.number).label("last"))
    .where(attempts.c.replica_uid == func.any(bindparam("uids", type_=ARRAY(Text))))
    .group_by(attempts.c.replica_uid)
)
INSERT = insert_into(attempts)
CLEAR_BACK_OFF = (
    update(replicas)
    .where(
        replicas.c.uid == func.any(bindparam("uids", type_=ARRAY(Text))),
        replicas.c.next_attempt_at.is_not(None),
    )
    .values(next_attempt_at=None)
)
PRUNE = delete(attempts).where(
    attempts.c.replica_uid == bindparam("uid"),
    attempts.c.number <= bindparam("last"),
    attempts.c.ended_at.is_not(None),
)
_LIVE = update(attempts).where(attempts.c.token == bindparam("at"), attempts.c.ended_at.is_(None))
# Two controllers' clocks may disagree after one takes over from the other; the order of an attempt's times
# must hold all the same.
_NOT_BEFORE_INTENT = func.greatest(bindparam("now"), attempts.c.intended_at)
MARK_SUBMITTING = notify.telling(
    update(attempts)
    .where(
        attempts.c.token == func.any(bindparam("tokens", type_=ARRAY(Text))),
        attempts.c.ended_at.is_(None),
        attempts.c.job_id.is_(None),
    )
    # A late word about an earlier call must not shorten the doubt about a later one.
    .values(submitted_at=func.greatest(_NOT_BEFORE_INTENT, attempts.c.submitted_at))
)
_MARKED = _LIVE.where(
    attempts.c.job_id.is_(None),
    attempts.c.submitted_at == func.greatest(bindparam("marked_at"), attempts.c.intended_at),
)
UNMARK_SUBMITTING = notify.telling(_MARKED.values(submitted_at=None))
RECORD_REFUSAL = notify.telling(_MARKED.values(refusal=bindparam("sentence")))
LAUNCH_AGAIN = notify.telling(
    _LIVE.where(attempts.c.job_id.is_(None)).values(
        script=bindparam("its_script"), secret_hash=bindparam("its_hash"), packed=bindparam("beside")
    )
)
MARK_DRAINING = notify.telling(_LIVE.where(attempts.c.drain_at.is_(None)).values(drain_at=bindparam("now")))
MARK_HANDED_OVER = notify.telling(_LIVE.values(handover_at=bindparam("now")))
MARK_WITHDRAWN = notify.telling(_LIVE.values(withdrawn_at=bindparam("now")))
MARK_SIGNALLED = notify.telling(_LIVE.values(signalled_at=bindparam("now")))
MARK_CANCELLED = notify.telling(_LIVE.values(cancelled_at=bindparam("now")))
RECORD = _LIVE
_TAKES_JOB = _LIVE.where(or_(attempts.c.job_id.is_(None), attempts.c.job_id == bindparam("its_id")))
RECORD_JOB_ID = notify.telling(_TAKES_JOB.values(job_id=bindparam("its_id"), missing_since=None))
_given = (
    func.unnest(bindparam("tokens", type_=ARRAY(Text)), bindparam("job_ids", type_=ARRAY(BigInteger)))
    .table_valued(column("token", Text), column("job_id", BigInteger))
    .render_derived(name="given")
)
RECORD_JOB_IDS = notify.telling(
    update(attempts)
    .where(
        attempts.c.token == _given.c.token,
        attempts.c.ended_at.is_(None),
        or_(attempts.c.job_id.is_(None), attempts.c.job_id == _given.c.job_id),
    )
    .values(job_id=_given.c.job_id, missing_since=None)
)
RECORD_JOBS = _LIVE.values(
    job=bindparam("its_job", type_=attempts.c.job.type),
    running_since=bindparam("since", type_=attempts.c.running_since.type),
    halted_since=bindparam("halted", type_=attempts.c.halted_since.type),
)
END = _LIVE.values(
    ended_at=_NOT_BEFORE_INTENT,
    end_message=bindparam("sentence"),
    exit_code=func.coalesce(bindparam("code", type_=attempts.c.exit_code.type), attempts.c.exit_code),
    job=func.coalesce(bindparam("final", type_=attempts.c.job.type), attempts.c.job),
    missing_since=None,
    failed=bindparam("blamed"),
    packed=bindparam("without_room"),
).returning(attempts.c.replica_uid)
RECORD_FAILURES = (
    update(replicas)
    .where(replicas.c.uid == bindparam("at"))
    .values(failures=bindparam("in_a_row"), next_attempt_at=bindparam("due"), placement=bindparam("goes_to"))
)
LIST_FOR = (
    select(*rows.ATTEMPT)
    .where(attempts.c.replica_uid == bindparam("uid"))
    .order_by(attempts.c.number.desc())
    .limit(bindparam("count"))
)
FAILURES = (
    select(
        deployments.c.name.label("deployment"),
        replicas.c.revision,
        replicas.c.name.label("replica"),
        attempts.c.ended_at,
        attempts.c.job["state"].as_string().label("state"),
        attempts.c.job["nodes"].as_string().label("nodes"),
    )
    .select_from(attempts.join(replicas, replicas.c.uid == attempts.c.replica_uid).join(deployments))
    .where(attempts.c.failed, attempts.c.ended_at > bindparam("after"))
    .order_by(attempts.c.ended_at.desc(), attempts.c.token)
    .limit(FAILURES_READ_MAX)
)
_started = (
    select(
        replicas.c.deployment_uid,
        attempts.c.running_since,
        attempts.c.ready_at,
        attempts.c.job,
        func.row_number()
        .over(partition_by=replicas.c.deployment_uid, order_by=attempts.c.ready_at.desc())
        .label("newest"),
    )
    .select_from(attempts.join(replicas, replicas.c.uid == attempts.c.replica_uid))
    .where(
        attempts.c.ended_at.is_not(None),
        attempts.c.ready_at > attempts.c.running_since,
        or_(
            bindparam("of", type_=Text).is_(None),
            replicas.c.deployment_uid == bindparam("of", type_=Text),
        ),
    )
    .subquery()
)
STARTS = select(_started).where(_started.c.newest <= SAMPLES)
SCRIPT = select(attempts.c.script).where(attempts.c.token == bindparam("token"))
KNOWN = select(attempts.c.token).where(attempts.c.token.in_(bindparam("tokens", expanding=True)))
LOADS = select(*rows.LOAD).where(attempts.c.token.in_(bindparam("tokens", expanding=True)))


@dataclass(frozen=True, slots=True)
class NewAttempt:
    """What is written of an attempt before its submission."""

    replica_uid: str
    token: str
    script: str = dataclasses.field(repr=False)
    secret_hash: str = dataclasses.field(repr=False)
    placement: int = 0
    packed: bool = False


async def insert_many(conn: AsyncConnection, made: Sequence[NewAttempt], now: datetime) -> None:
    """The intents to submit, one for each replica, which must be committed before sbatch is called.

    Raises sqlalchemy's IntegrityError when a replica has a live attempt already, or there is no such replica.
    """
    if not made:
        return
    uids = [new.replica_uid for new in made]
    last: dict[str, int] = {
        row.replica_uid: row.last for row in await conn.execute(LAST_NUMBERS, {"uids": uids})
    }
    values = [
        {**dataclasses.asdict(new), "number": last.get(new.replica_uid, 0) + 1, "intended_at": now}
        for new in made
    ]
    await conn.execute(INSERT, values)
    await conn.execute(CLEAR_BACK_OFF, {"uids": uids})
    surplus = [
        {"uid": uid, "last": number + 1 - ATTEMPTS_KEPT}
        for uid, number in last.items()
        if number >= ATTEMPTS_KEPT
    ]
    if surplus:
        await conn.execute(PRUNE, surplus)
    await notify.changed_attempts(conn, [new.token for new in made])


async def mark_submitting(conn: AsyncConnection, tokens: Sequence[str], now: datetime) -> frozenset[str]:
    """Writes of each that sbatch is about to be called. Returns for which: not for one that has ended or has a job."""
    if not tokens:
        return frozenset()
    marked = await conn.execute(MARK_SUBMITTING, {"tokens": list(tokens), "now": now})
    return frozenset(row.token for row in marked)


async def unmark_submitting(conn: AsyncConnection, token: str, marked_at: datetime) -> bool:
    """Takes that mark back: sbatch was not called after all. False where another mark has taken its place."""
    return await _write(conn, UNMARK_SUBMITTING, token, marked_at=marked_at)


async def record_refusal(
    conn: AsyncConnection, token: str, sentence: str, marked_at: datetime | None
) -> bool:
    """Writes that Slurm said no to the submission with this mark. False where another mark has taken its place, or the
    attempt has a job."""
    return await _write(conn, RECORD_REFUSAL, token, sentence=sentence, marked_at=marked_at)


async def launch_again(
    conn: AsyncConnection, token: str, script: str, secret_hash: str, *, packed: bool
) -> bool:
    """Writes with what an attempt that has no job yet is submitted again: its script, which a newer release may render
    otherwise, and the secret that lies in its folder: the first one may have died with its controller; and whether it
    asks for nodes that run others."""
    return await _write(conn, LAUNCH_AGAIN, token, its_script=script, its_hash=secret_hash, beside=packed)


async def record_job_id(conn: AsyncConnection, token: str, job_id: int, job: Job | None = None) -> bool:
    """Writes that Slurm has the attempt, as this job. Raises IntegrityError when another live attempt has the id.

    False, and nothing is written, for an attempt that has ended or has another job already: a leader that slept
    must not put its late answer in the place of what its successor found.
    """
    if job is None:
        return await _write(conn, RECORD_JOB_ID, token, its_id=job_id)
    values = {"job_id": job_id, "missing_since": None, "job": encode(job)}
    return await _write(conn, notify.telling(_TAKES_JOB.values(values)), token, its_id=job_id)


async def record_job_ids(conn: AsyncConnection, taken: Sequence[tuple[str, int]]) -> None:
    """The same for many attempts (token, job id), each given once, in one statement."""
    if taken:
        tokens, job_ids = zip(*taken, strict=True)
        await conn.execute(RECORD_JOB_IDS, {"tokens": list(tokens), "job_ids": list(job_ids)})


async def record_jobs(conn: AsyncConnection, seen: Sequence[RecordJob]) -> None:
    """Writes what Slurm says of these attempts' jobs, in one statement and one word to the others."""
    if seen:
        await conn.execute(
            RECORD_JOBS,
            [
                {
                    "at": one.token,
                    "its_job": encode(one.job),
                    "since": one.running_since,
                    "halted": one.halted_since,
                }
                for one in seen
            ],
        )
        await notify.changed_attempts(conn, [one.token for one in seen])


async def record_missing(conn: AsyncConnection, token: str, since: datetime | None) -> bool:
    """Writes since when complete listings have lacked the job; None: they have it."""
    return await _write(conn, notify.telling(RECORD.values(missing_since=since)), token)


async def mark_draining(conn: AsyncConnection, token: str, now: datetime) -> bool:
    """Takes the attempt out of routing. False when that was written before, too."""
    return await _write(conn, MARK_DRAINING, token, now=now)


async def mark_handed_over(conn: AsyncConnection, token: str, now: datetime) -> bool:
    """Writes since when a successor is to take over from it."""
    return await _write(conn, MARK_HANDED_OVER, token, now=now)


async def mark_withdrawn(conn: AsyncConnection, token: str, now: datetime) -> bool:
    """Writes that its job is about to be withdrawn, if it still waits."""
    return await _write(conn, MARK_WITHDRAWN, token, now=now)


async def mark_signalled(conn: AsyncConnection, token: str, now: datetime) -> bool:
    """Writes that its job was told to drain."""
    return await _write(conn, MARK_SIGNALLED, token, now=now)


async def mark_cancelled(conn: AsyncConnection, token: str, now: datetime) -> bool:
    """Writes that its job was told to end."""
    return await _write(conn, MARK_CANCELLED, token, now=now)


async def end(
    conn: AsyncConnection,
    token: str,
    *,
    message: str,
    exit_code: int | None,
    job: Job | None,
    failures: int,
    next_attempt_at: datetime | None,
    now: datetime,
    failed: bool = False,
    placement: int = 0,
    found_no_room: bool = False,
) -> bool:
    """Writes that the attempt is over, whether it counts as a failure of its revision or node and whether it was
    withdrawn for want of room beside others, and the failures in a row, the back-off and the next placement of its
    replica.

    `exit_code` and `job` None: what the agent and the last listing said stays.
    """
    ended = await conn.execute(
        END,
        {
            "at": token,
            "now": now,
            "sentence": message,
            "code": exit_code,
            "final": None if job is None else encode(job),
            "blamed": failed,
            "without_room": found_no_room,
        },
    )
    replica_uid = ended.scalar_one_or_none()
    if replica_uid is None:
        return False
    await conn.execute(
        RECORD_FAILURES,
        {"at": replica_uid, "in_a_row": failures, "due": next_attempt_at, "goes_to": placement},
    )
    await notify.changed_attempt(conn, token)
    return True


async def list_for(conn: AsyncConnection, replica_uid: str, limit: int = 20) -> tuple[Attempt, ...]:
    """The replica's attempts, newest first."""
    found = await conn.execute(LIST_FOR, {"uid": replica_uid, "count": limit})
    return tuple(rows.attempt(row) for row in found)


async def failures(conn: AsyncConnection, after: datetime) -> tuple[Failure, ...]:
    """The attempts that ended after this time and count as failures, newest first."""
    return tuple(
        Failure(
            deployment=row.deployment,
            revision=row.revision,
            replica=row.replica,
            ended_at=row.ended_at,
            state=JobState(row.state) if row.state else None,
            nodes=known_nodes(row.nodes or ""),
        )
        for row in await conn.execute(FAILURES, {"after": after})
    )


async def starts(conn: AsyncConnection, deployment_uid: str | None = None) -> Mapping[str, tuple[Start, ...]]:
    """How the last attempts that have ended came to serve, at most SAMPLES of each deployment; None: of all of them."""
    found: dict[str, tuple[Start, ...]] = {}
    for row in await conn.execute(STARTS, {"of": deployment_uid}):
        job = None if row.job is None else decode(Job, row.job)
        if (start := start_of(row.running_since, row.ready_at, job)) is not None:
            found[row.deployment_uid] = (*found.get(row.deployment_uid, ()), start)
    return found


async def script(conn: AsyncConnection, token: str) -> str:
    """The batch script that the attempt was, or is to be, submitted with. Raises NotFound."""
    found: str | None = (await conn.execute(SCRIPT, {"token": token})).scalar_one_or_none()
    if found is None:
        raise NotFound("attempt", token)
    return found


async def known(conn: AsyncConnection, tokens: Sequence[str]) -> frozenset[str]:
    """Those of these tokens that belong to attempts which are still kept."""
    return frozenset((await conn.execute(KNOWN, {"tokens": list(tokens)})).scalars())


async def loads(conn: AsyncConnection, tokens: Sequence[str]) -> Mapping[str, Load]:
    """How busy these attempts are, by their agents' last reports."""
    return {row.token: rows.load(row) for row in await conn.execute(LOADS, {"tokens": list(tokens)})}


async def _write(conn: AsyncConnection, statement: Any, token: str, **values: object) -> bool:
    """Writes to the attempt and tells the others, in one statement: one made by `notify.telling`."""
    written = await conn.execute(statement, {"at": token, **values})
    return bool(written.all())
