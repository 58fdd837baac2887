"""The executor's groups: few transactions for many effects, and nobody pays for another's misfortune."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import functools
import os
import threading
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import select

from penstock.controller import execute, file_calls
from penstock.controller.execute import GROUP, PROOF_STANDS_FOR, Executor
from penstock.controller.folders import Folders
from penstock.controller.lease import TTL_S, Lease
from penstock.controller.outcomes import Result
from penstock.controller.record import Intent, Launch, hash_of
from penstock.core.decisions import (
    Action,
    Cancel,
    CancelOrphan,
    Decision,
    Drain,
    Reason,
    Resubmit,
    Submit,
    Withdraw,
)
from penstock.core.jobs import Submission
from penstock.core.spec import Model, Spec
from penstock.slurm.port import May, SubmissionRefused, SubmissionUnknown
from penstock.store.clock import elapsed
from penstock.store.database import Database
from penstock.store.queries import attempts, decisions, deployments, leases, replicas
from penstock.store.tables import attempts as attempts_table
from penstock.testing.slurm import FakeSlurm, SubmitFault
from tests.patience import PATIENCE_S
from tests.stored import a_replica_of, an_attempt_of
from tests.worlds import NOW


class Floor:
    """An executor with all it needs, and replicas whose submissions are written down."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.now = NOW
        self.slept_s = 0.0
        self.slurm = FakeSlurm(clock=lambda: self.now)
        self.database = database
        self.folder = folder
        self.lease = Lease(database, "one", elapsed_s=lambda: elapsed() + self.slept_s)

    @functools.cached_property
    def _executor(self) -> Executor:
        return Executor(self.database, self.slurm, Folders(self.folder), lambda: self.now)

    async def carry_out(self, intents: list[Intent]) -> list[Result]:
        """As a tick that begins now does."""
        assert self.lease.term is not None
        return [one.result for one in await self._executor.carry_out("t", self.lease.term, intents)]

    async def intents(self, count: int) -> list[Intent]:
        """As the recorder leaves them."""
        async with self.database.transaction() as conn:
            made = await deployments.create(conn, "a", {}, Spec(Model(path="/m")), NOW)
            new = await replicas.create_many(conn, {(made.uid, 1, False): count}, NOW)
            tokens = [f"token{one.number}" for one in new]
            await attempts.insert_many(
                conn,
                [
                    attempts.NewAttempt(one.uid, token, "#!", "0" * 64)
                    for one, token in zip(new, tokens, strict=True)
                ],
                NOW,
            )
            written = await decisions.insert(
                conn,
                "t",
                [Decision("a", one.name, Reason.SUBMIT, "", (Submit(one.uid),)) for one in new],
                NOW,
            )
        return [
            Intent(row.id, 0, Submit(one.uid), token, Launch(job(token), {}, "s3cret"))
            for one, token, row in zip(new, tokens, written, strict=True)
        ]

    async def rows(self) -> dict[str, Any]:
        async with self.database.snapshot() as conn:
            return {row.token: row for row in await conn.execute(select(attempts_table))}

    async def outcomes(self) -> list[str]:
        """Of the replicas in their order."""
        async with self.database.snapshot() as conn:
            return [row.actions[0].outcome for row in await decisions.after(conn, 0, limit=1000)]


def again(intent: Intent, *, asked_before: bool = False) -> Intent:
    return dataclasses.replace(intent, action=Resubmit("", intent.token), asked_before=asked_before)


def job(token: str) -> Submission:
    return Submission(f"penstock-a-{token}", "c", "#!/bin/sh\n", "/w", "/w/o", partition="cpu")


@pytest_asyncio.fixture
async def floor(database: Database, tmp_path: Path) -> AsyncIterator[Floor]:
    floor, taken = Floor(database, tmp_path), asyncio.Event()
    holding = asyncio.create_task(floor.lease.run(taken))
    await asyncio.wait_for(taken.wait(), PATIENCE_S)
    yield floor
    holding.cancel()
    await asyncio.gather(holding, return_exceptions=True)


async def test_a_group_takes_two_transactions(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    intents = await floor.intents(2 * GROUP + 3)
    begun = 0
    transaction, ask = Database.transaction, Lease._ask
    renewals = set[asyncio.Task[Any] | None]()

    def counted(self: Database) -> Any:
        nonlocal begun
        # The lease is renewed beside them.
        begun += asyncio.current_task() not in renewals
        return transaction(self)

    async def renewing(self: Lease, number: int | None) -> int | None:
        renewals.add(asyncio.current_task())
        return await ask(self, number)

    monkeypatch.setattr(Database, "transaction", counted)
    monkeypatch.setattr(Lease, "_ask", renewing)
    await floor.carry_out(intents)
    monkeypatch.undo()
    assert begun == 6
    rows = await floor.rows()
    submitted = {row.submission.name: row.job_id for row in floor.slurm.jobs()}
    assert {f"penstock-a-{token}": row.job_id for token, row in rows.items()} == submitted
    assert len(submitted) == len(intents)
    assert await floor.outcomes() == [f"job {rows[intent.token].job_id}" for intent in intents]
    assert (floor.folder / "token1" / "secret").read_text() == "s3cret\n"


async def test_an_id_that_is_still_anothers(floor: Floor) -> None:
    """Slurm has lost its state and gives job ids again."""
    intents = await floor.intents(3)
    async with floor.database.transaction() as conn:
        other = await deployments.create(conn, "b", {}, Spec(Model(path="/m")), NOW)
        its = await a_replica_of(conn, other.uid, 1, NOW)
        await an_attempt_of(conn, its.uid, "old", "#!", "0" * 64, NOW)
        await attempts.record_job_id(conn, "old", 2)
    await floor.carry_out(intents)
    rows = await floor.rows()
    assert sorted(str(rows[intent.token].job_id) for intent in intents) == ["1", "3", "None"]
    assert sorted(await floor.outcomes()) == [
        "job 1",
        "job 2, but that id is still another attempt's",
        "job 3",
    ]


async def test_a_folder_that_cannot_be_made(floor: Floor) -> None:
    """That is no word of Slurm's, and ends no attempt: it is not even asked."""
    intents = await floor.intents(3)
    (floor.folder / "token2").write_text("in the way")
    assert await floor.carry_out(intents) == [Result.DONE, Result.VAIN, Result.DONE]
    row = (await floor.rows())["token2"]
    assert (row.refusal, row.submitted_at) == ("", None)
    told = f"its folder in {floor.folder} cannot be made: File exists; see what is in the way"
    assert (await floor.outcomes())[1] == told
    assert len(floor.slurm.jobs()) == 2


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (errno.ENOSPC, "No space left on device; make room there"),
        (errno.EDQUOT, "Disk quota exceeded; make room there, or raise the quota"),
        (errno.EACCES, f"Permission denied; let the user with the id {os.geteuid()} write there"),
        (errno.EROFS, "Read-only file system; mount it so that it can be written to"),
    ],
)
async def test_what_a_human_can_do_is_said(
    floor: Floor, monkeypatch: pytest.MonkeyPatch, error: int, told: str
) -> None:
    def full(*given: Any, **options: Any) -> None:
        raise OSError(error, os.strerror(error), str(floor.folder))

    monkeypatch.setattr(Path, "mkdir", full)
    assert await floor.carry_out(await floor.intents(1)) == [Result.VAIN]
    assert await floor.outcomes() == [f"its folder in {floor.folder} cannot be made: {told}"]


async def test_a_file_server_that_hangs_holds_nothing_but_submissions(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To read a pipe that nobody writes to hangs as a file of a dead server does."""
    # What does not hang answers by then, on a busy machine too.
    monkeypatch.setattr(file_calls, "ANSWER_WITHIN_S", 3.0)
    intents = await floor.intents(GROUP + 1)
    running = await floor.slurm.submit(job("token0"))
    drain = Intent(intents[0].decision_id, 0, Drain("", "token0", running, "penstock-a-token0"), "token0")
    floor.now += timedelta(seconds=5)
    floor.slurm.advance()
    (floor.folder / "token2").mkdir()
    os.mkfifo(floor.folder / "token2" / "secret")
    hang = f"the folder {floor.folder} does not answer for 3 s; look at its file server"

    ended = await asyncio.wait_for(floor.carry_out([*intents, drain]), 60)
    assert ended == [Result.DONE, *[Result.VAIN] * GROUP, Result.DONE], "the other group was through before"
    assert len(floor.slurm.jobs()) == 2
    held = threading.active_count()
    for _ in range(20):  # The ticks of twenty seconds.
        assert set(await asyncio.wait_for(floor.carry_out(intents[:GROUP]), 60)) == {Result.VAIN}
    assert threading.active_count() <= held, "nobody joins the one that hangs"
    assert (await floor.outcomes())[0] == hang
    rows = await floor.rows()
    assert {rows[intent.token].submitted_at for intent in intents[:GROUP]} == {None}

    (floor.folder / "token2" / "secret").write_text("of before\n")  # The server is back.
    async with asyncio.timeout(60):
        while Result.VAIN in await floor.carry_out(intents[:1]):
            await asyncio.sleep(0.01)
    (floor.folder / "token2" / "secret").unlink()
    assert set(await floor.carry_out(intents[1:GROUP])) == {Result.DONE}


async def test_an_agent_of_the_first_call_and_one_of_the_second_are_let_in(floor: Floor) -> None:
    """The second call's secret is new, and the folder's is what an agent reads."""
    first = await floor.intents(3)
    folders = Folders(floor.folder)
    for token in ("token1", "token2"):
        folders.prepare(token, {}, f"of {token}")
    await floor.slurm.submit(job("token1"))
    await floor.carry_out([again(one) for one in first])
    hashes = {token: row.secret_hash for token, row in (await floor.rows()).items()}
    assert hashes == {
        "token1": "0" * 64,  # Its job was found: what is known of it is left alone.
        "token2": hash_of("of token2"),
        "token3": hash_of("s3cret"),
    }
    assert folders.prepare("token2", {}, "") == "of token2"
    assert folders.prepare("token3", {}, "") == "s3cret"


async def test_doubt_counts_from_a_mark_that_is_fresh(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm takes its time, so that the last of a group are called long after it was marked."""
    monkeypatch.setattr(execute, "CONCURRENCY", 1)
    intents = await floor.intents(5)
    began: list[datetime] = []

    async def begin(call: str) -> None:
        began.append(floor.now)

    async def slow(call: str) -> None:
        floor.now += timedelta(seconds=4)

    floor.slurm.before_call, floor.slurm.after_call = begin, slow
    await floor.carry_out(intents)
    assert len(floor.slurm.jobs()) == 5
    marked = sorted(row.submitted_at for row in (await floor.rows()).values())
    assert all(
        timedelta(0) <= call - mark <= PROOF_STANDS_FOR for call, mark in zip(began, marked, strict=True)
    )


async def test_a_submission_that_waits_too_long_for_its_turn(floor: Floor) -> None:
    intents = await floor.intents(1)

    async def wait(call: str) -> None:
        floor.now += PROOF_STANDS_FOR + timedelta(seconds=1)

    floor.slurm.before_call = wait
    await floor.carry_out(intents)
    assert await floor.outcomes() == ["not tried: another call to Slurm took more than 1 s"]
    assert floor.slurm.jobs() == ()
    assert (await floor.rows())["token1"].submitted_at is None


async def test_only_a_submission_that_was_not_sent_is_in_no_doubt(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "CONCURRENCY", 1)
    monkeypatch.setattr(execute, "SILENT_AFTER", 2)
    intents = await floor.intents(3)
    floor.slurm.faults.submits += [SubmitFault.NOT_SENT, SubmitFault.LOST_BEFORE]
    results = await floor.carry_out(intents)
    assert results == [Result.VAIN, Result.VAIN, Result.OPEN]
    assert (await floor.outcomes())[2] == "not tried: Slurm does not answer"
    marks = [(await floor.rows())[one.token].submitted_at for one in intents]
    assert marks == [None, floor.now, None]


async def test_an_answer_that_nothing_follows_from_is_no_silence(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So whoever gets such ones keeps nobody else from being submitted, and is tried more and more seldom."""
    monkeypatch.setattr(execute, "SILENT_AFTER", 2)

    async def submit(submission: Submission, *, may: May) -> int:
        may()
        raise SubmissionUnknown("sbatch printed 'hm', not a job id", answered=True)

    monkeypatch.setattr(floor.slurm, "submit", submit)
    assert await floor.carry_out(await floor.intents(4)) == [Result.VAIN] * 4


async def test_what_is_repeated_stays_in_the_doubt_about_its_first_call(floor: Floor) -> None:
    (first,) = await floor.intents(1)
    floor.slurm.faults.submits += [SubmitFault.LOST_BEFORE, SubmitFault.NOT_SENT]
    await floor.carry_out([first])
    await floor.carry_out([again(first, asked_before=True)])
    assert (await floor.rows())["token1"].submitted_at == floor.now


async def test_what_slurm_was_never_asked_for_is_in_no_doubt_however_often_it_is_not_sent(
    floor: Floor,
) -> None:
    (first,) = await floor.intents(1)
    floor.slurm.faults.submits += [SubmitFault.NOT_SENT, SubmitFault.NOT_SENT]
    await floor.carry_out([first])
    await floor.carry_out([again(first)])
    assert (await floor.rows())["token1"].submitted_at is None


@pytest.mark.parametrize("beside", [("node1",), ()])
async def test_what_is_repeated_is_packed_as_its_last_call_was(floor: Floor, beside: tuple[str, ...]) -> None:
    (first,) = await floor.intents(1)
    await floor.carry_out(
        [dataclasses.replace(again(first), action=Resubmit("", first.token, beside=beside))]
    )
    row = (await floor.rows())["token1"]
    assert row.job_id is not None
    assert row.packed is bool(beside)


@pytest.mark.parametrize("kind", [Drain, Cancel, Withdraw, CancelOrphan])
async def test_what_meets_no_such_job_is_tried_at_a_pace(floor: Floor, kind: type) -> None:
    """Somebody has renamed it, or it shows a state in which it hears no signal: the next try comes to nothing, too."""
    (first,) = await floor.intents(1)
    name = f"penstock-a-{first.token}"
    actions: dict[type, Action] = {
        Drain: Drain("", first.token, 99, name),
        Cancel: Cancel(first.token, 99, name),
        Withdraw: Withdraw(first.token, 99, name),
        CancelOrphan: CancelOrphan(99, name),
    }
    results = await floor.carry_out([dataclasses.replace(first, action=actions[kind], launch=None)])
    assert results == [Result.VAIN]
    (said,) = await floor.outcomes()
    assert said.endswith(f"Slurm knows no job 99 ({name}) of this user")
    row = (await floor.rows())[first.token]
    assert (row.signalled_at, row.cancelled_at) == (None, None)


async def test_anothers_mark_is_not_taken_back(floor: Floor) -> None:
    """Another controller submits the attempt again while this one's call waits."""
    intents = await floor.intents(1)

    async def wait(call: str) -> None:
        floor.now += timedelta(seconds=40)
        async with floor.database.transaction() as conn:
            await attempts.mark_submitting(conn, ["token1"], floor.now)

    floor.slurm.before_call = wait
    await floor.carry_out(intents)
    assert floor.slurm.jobs() == ()
    assert (await floor.rows())["token1"].submitted_at == floor.now


async def test_a_lease_that_is_lost_while_a_call_waits(floor: Floor) -> None:
    """The call is left to the new holder: nothing is sent, and nothing is said of it."""
    intents = await floor.intents(2)

    async def sleep(call: str) -> None:
        floor.slept_s = TTL_S

    floor.slurm.before_call = sleep
    await floor.carry_out(intents)
    assert await floor.outcomes() == ["", ""]
    assert floor.slurm.jobs() == ()


async def test_a_tick_ends_with_its_term(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second submission waits behind the first. Meanwhile another controller holds the lease, submits it and stops,
    and this one takes the lease again."""
    monkeypatch.setattr(execute, "GROUP", 1)
    monkeypatch.setattr(execute, "LANES", 1)
    floor, taken = Floor(database, tmp_path), asyncio.Event()
    await floor.lease.hold(taken)
    intents = await floor.intents(2)

    async def another_holds_it(call: str) -> None:
        floor.slurm.before_call = None
        floor.now += timedelta(seconds=32)
        async with database.transaction() as conn:
            await leases.release(conn, leases.CONTROLLER, "one", 1)
            assert await leases.acquire(conn, leases.CONTROLLER, "two", 60) == 2
            await attempts.mark_submitting(conn, ["token2"], floor.now)
        await floor.slurm.submit(job("token2"))
        async with database.transaction() as conn:
            await leases.release(conn, leases.CONTROLLER, "two", 2)
        await floor.lease.hold(taken)
        await floor.lease.hold(taken)
        assert floor.lease.term is not None

    floor.slurm.before_call = another_holds_it
    await floor.carry_out(intents)
    assert [its.submission.name for its in floor.slurm.jobs()] == ["penstock-a-token2"]
    assert await floor.outcomes() == ["", ""]


async def test_what_has_a_job_or_has_ended_by_now_is_not_sent(floor: Floor) -> None:
    intents = await floor.intents(3)
    async with floor.database.transaction() as conn:
        await attempts.record_job_id(conn, "token1", 7)
        await attempts.end(
            conn, "token2", message="", exit_code=None, job=None, failures=0, next_attempt_at=None, now=NOW
        )
    before = await floor.rows()
    assert await floor.carry_out([intents[0], again(intents[1]), intents[2]]) == [
        Result.OPEN, Result.OPEN, Result.DONE,
    ]  # fmt: skip
    assert [its.submission.name for its in floor.slurm.jobs()] == ["penstock-a-token3"]
    told = "not tried: the attempt has a job by now, or has ended"
    assert await floor.outcomes() == [told, told, "job 1"]
    after = await floor.rows()
    assert [after[token] for token in ("token1", "token2")] == [
        before[token] for token in ("token1", "token2")
    ]


async def test_a_refusal_that_comes_late_is_not_anothers(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is written another controller has called again, and Slurm may have taken that."""
    intents = await floor.intents(1)

    async def refuse(submission: Submission, *, may: May) -> int:
        may()
        floor.now += timedelta(seconds=40)
        async with floor.database.transaction() as conn:
            await attempts.mark_submitting(conn, ["token1"], floor.now)
        raise SubmissionRefused("Invalid account")

    monkeypatch.setattr(floor.slurm, "submit", refuse)
    await floor.carry_out(intents)
    assert (await floor.rows())["token1"].refusal == ""


async def test_the_script_that_is_kept_is_the_one_that_was_sent_last(floor: Floor) -> None:
    """A newer release renders it otherwise."""
    (first,) = await floor.intents(1)
    floor.slurm.faults.submits.append(SubmitFault.LOST_BEFORE)
    await floor.carry_out([first])
    newer = Launch(dataclasses.replace(job("token1"), script="#!/bin/bash\n"), {}, "s3cret")
    await floor.carry_out([dataclasses.replace(again(first, asked_before=True), launch=newer)])
    (sent,) = floor.slurm.jobs()
    assert (await floor.rows())["token1"].script == sent.submission.script == "#!/bin/bash\n"


async def test_doubt_counts_from_the_end_of_a_call_without_an_answer(floor: Floor) -> None:
    intents = await floor.intents(1)

    async def hang(call: str) -> None:
        floor.now += timedelta(seconds=30)
        raise SubmissionUnknown("sbatch gave no answer in 30 s")

    floor.slurm.before_call = hang
    await floor.carry_out(intents)
    (row,) = (await floor.rows()).values()
    assert row.submitted_at == floor.now == NOW + timedelta(seconds=30)
    assert await floor.outcomes() == ["not known: sbatch gave no answer in 30 s"]


async def test_a_proof_that_takes_too_long_proves_nothing(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    intents = await floor.intents(1)
    prove = Executor._prove

    async def slowly(self: Executor, tick: Any, effects: Any) -> None:
        await prove(self, tick, effects)
        floor.now += PROOF_STANDS_FOR + timedelta(seconds=1)

    monkeypatch.setattr(Executor, "_prove", slowly)
    await floor.carry_out(intents)
    assert await floor.outcomes() == ["not tried: the database took more than 1 s"]
    assert floor.slurm.jobs() == ()
