"""The command-line backend against commands that misbehave: each test writes the program that answers."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from penstock.core.jobs import JobState, Submission, UnknownAccounts
from penstock.slurm import commands
from penstock.slurm.commands import CommandLine
from penstock.slurm.port import NoAccounting, SlurmUnavailable, SubmissionRefused, SubmissionUnknown
from penstock.testing.slurm import anybody

JOB = Submission(name="n-1", comment="c", script="#!/bin/sh\necho hello\n", work_dir="/w", output="/w/out")


class Program:
    """A shell script in place of every command; `$1` is the command's name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "program"

    def does(self, script: str, *, timeout_s: float = 10) -> CommandLine:
        self.path.write_text(f"#!/bin/sh\ncd {self.folder}\n{script}\n")
        self.path.chmod(self.path.stat().st_mode | stat.S_IXUSR)
        return CommandLine(prefix=[str(self.path)], timeout_s=timeout_s)


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", "Unable to contact"),
        ("exit 1", "squeue: exit status 1 and not a word"),
        ("exit 0", "squeue printed what cannot be read: expected a header"),
        ("echo 'JOBID STATE'", "squeue printed what cannot be read"),
        ("kill -KILL $$", "squeue: exit status -9"),
        ("exec sleep 60", "squeue gave no answer in 0.2 s"),
    ],
)
async def test_a_listing_that_fails_is_not_an_empty_queue(
    program: Program, script: str, sentence: str
) -> None:
    slurm = program.does(script, timeout_s=0.2 if "sleep" in script else 10)
    with pytest.raises(SlurmUnavailable, match=sentence):
        await slurm.list_jobs()


async def test_a_missing_command(tmp_path: Path) -> None:
    slurm = CommandLine(prefix=[str(tmp_path / "nothing")])
    with pytest.raises(SlurmUnavailable, match="squeue cannot be run: .*nothing: No such file or directory"):
        await slurm.list_jobs()
    with pytest.raises(SlurmUnavailable, match="submitting job n-1: sbatch cannot be run"):
        await slurm.submit(JOB, may=anybody)


async def test_endless_output_is_cut_off(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "OUTPUT_BYTES_MAX", 1_000_000)
    with pytest.raises(SlurmUnavailable, match="squeue printed more than 1000000 bytes"):
        await program.does("exec yes").list_jobs()


@pytest.mark.parametrize(("printed", "job_id"), [("123", 123), ("123;cluster", 123), ("007\n", 7)])
async def test_the_id_of_a_submission(program: Program, printed: str, job_id: int) -> None:
    assert await program.does(f"cat >/dev/null; echo '{printed}'").submit(JOB, may=anybody) == job_id


async def test_the_script_arrives_on_standard_input_and_options_as_arguments(program: Program) -> None:
    slurm = program.does('cat > script; for word in "$@"; do echo "$word"; done > arguments; echo 1')
    await slurm.submit(JOB, may=anybody)
    assert (program.folder / "script").read_text() == JOB.script
    arguments = (program.folder / "arguments").read_text().splitlines()
    assert arguments[:2] == ["sbatch", "--parsable"]
    assert "--job-name=n-1" in arguments


@pytest.mark.parametrize(
    ("complaint", "reason"),
    [
        ("Batch job submission failed: Invalid partition name specified", "Invalid partition name specified"),
        (
            "Memory specification can not be satisfied\n"
            "sbatch: error: Batch job submission failed: Requested node configuration is not available",
            "Requested node configuration is not available (Memory specification can not be satisfied)",
        ),
        (
            "GPU jobs need --account=ai, ask the network team\n"
            "sbatch: error: Batch job submission failed: Unspecified error",
            "GPU jobs need --account=ai, ask the network team",
        ),
        (
            "Batch job submission failed: Unspecified error",
            "Unspecified error: a plugin of the site says no, without a word",
        ),
        (
            "connect to the portal first\n"
            "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
            "Invalid account or account/partition combination specified (connect to the portal first)",
        ),
        ("Invalid --time specification", "Invalid --time specification"),
        (
            "Batch job submission failed: Job violates accounting/QOS policy (job submit limit)",
            "Job violates accounting/QOS policy (job submit limit)",
        ),
    ],
)
async def test_a_clear_no(program: Program, complaint: str, reason: str) -> None:
    slurm = program.does(f"cat >/dev/null; echo 'sbatch: error: {complaint}' >&2; exit 1")
    with pytest.raises(SubmissionRefused) as refusal:
        await slurm.submit(JOB, may=anybody)
    assert refusal.value.reason == reason


@pytest.mark.parametrize(
    "script",
    [
        "echo 'Batch job submission failed: Unable to contact slurm controller (connect failure)' >&2; exit 1",
        "echo 'Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1",
        "echo 'Batch job submission failed: Zero Bytes were transmitted or received' >&2; exit 1",
        "echo 'Batch job submission failed: Protocol authentication error' >&2; exit 1",
        "echo 'Batch job submission failed: Unexpected message received' >&2; exit 1",
        "echo 'Batch job submission failed: Connection refused' >&2; exit 1",
        "echo 'Batch job submission failed: No error' >&2; exit 1",
        "echo 'sbatch: error: slurm_unpack_received_msg: [x] auth_g_verify: has authentication error' >&2;"
        " echo 'sbatch: error: Batch job submission failed: Unspecified error' >&2; exit 1",
        "echo 'sbatch: fatal: Could not establish a configuration source' >&2; exit 1",
        "exit 1",
        "exit 0",
        "echo Submitted batch job 5",
        "echo 12; exit 1",
        "kill -KILL $$",
        "exec sleep 60",
    ],
)
async def test_a_submission_that_may_have_gone_through(program: Program, script: str) -> None:
    slurm = program.does(f"cat >/dev/null; {script}", timeout_s=0.3 if "sleep" in script else 10)
    with pytest.raises(SubmissionUnknown, match="submitting job n-1"):
        await slurm.submit(JOB, may=anybody)


@pytest.mark.parametrize(
    ("script", "answered"),
    [
        ("echo Submitted batch job 5", True),
        ("exit 1", True),
        ("echo 'Batch job submission failed: Unable to contact slurm controller' >&2; exit 1", False),
        ("kill -KILL $$", False),
        ("exec sleep 60", False),
    ],
)
async def test_what_is_unknown_is_silence_only_where_nothing_came_back(
    program: Program, script: str, answered: bool
) -> None:
    slurm = program.does(f"cat >/dev/null; {script}", timeout_s=0.3 if "sleep" in script else 10)
    with pytest.raises(SubmissionUnknown) as unknown:
        await slurm.submit(JOB, may=anybody)
    assert unknown.value.answered == answered


async def test_a_cancelled_call_leaves_no_process(program: Program) -> None:
    task = asyncio.create_task(program.does("echo $$ > pid.new; mv pid.new pid; exec sleep 60").list_jobs())
    deadline = time.monotonic() + 60
    while not (program.folder / "pid").exists():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    pid = int((program.folder / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists()


async def test_the_daemons_environment_stays_with_the_daemon(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://secret")
    monkeypatch.setenv("SBATCH_PARTITION", "wrong")
    monkeypatch.setenv("SLURM_CONF", "/etc/theirs.conf")
    slurm = program.does("cat >/dev/null; env > variables; echo 1")
    await slurm.submit(JOB, may=anybody)
    lines = (program.folder / "variables").read_text().splitlines()
    names = {line.partition("=")[0] for line in lines}
    assert not names & {"DATABASE_URL", "SBATCH_PARTITION", "TZ"}
    assert "SLURM_CONF=/etc/theirs.conf" in lines
    assert f"HOME={os.environ['HOME']}" in lines


async def test_accounts_are_asked_for_where_they_are_enforced(program: Program) -> None:
    config = (
        "ClusterName = c\\nMessageTimeout = 10 sec\\nSLURM_VERSION = 22.05.8\\n"
        "AccountingStorageEnforce = ENFORCED\\n"
    )
    answer = (
        'case "$1 $*" in\n'
        f"scontrol*config) printf '{config}' ;;\n"
        "scontrol*partition) echo 'No partitions in the system' ;;\n"
        # sinfo prints a header alone: the marks are the arguments' own.
        'sinfo*) for word in "$@"; do case "$word" in --Format=*) printf %s "${word#--Format=}" | tr , "\\n" |'
        ' sed "s/^[A-Za-z]*:/H/" | tr -d "\\n" ;; esac; done ;;\n'
        "sacctmgr*) printf 'physics\\nchemistry\\nphysics\\n' ;;\n"
        "esac"
    )
    enforced = await program.does(answer.replace("ENFORCED", "associations,limits")).cluster()
    assert enforced.accounts == ("chemistry", "physics")
    free = await program.does(answer.replace("ENFORCED", "none")).cluster()
    assert free.accounts is None
    no_slurmdbd = answer.replace(
        "printf 'physics", "echo 'Unable to connect to slurmdbd' >&2; exit 1; printf 'x"
    )
    unsaid = await program.does(no_slurmdbd.replace("ENFORCED", "associations")).cluster()
    assert unsaid.accounts == UnknownAccounts("sacctmgr: Unable to connect to slurmdbd")
    assert unsaid.message_timeout_s == 10


async def test_accounts_of_a_user_without_a_name_cannot_be_asked_for(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000_000)
    accounts = await program.does("exit 0")._accounts({"AccountingStorageEnforce": "associations,limits"})
    assert isinstance(accounts, UnknownAccounts)
    assert "user id 4000000000 has no name on this host" in accounts.error


SACCT = """
for argument; do case $argument in --delimiter=*) mark=${argument#--delimiter=};; esac; done
echo "$@" > asked
row() { line=$1; shift; for field; do line="$line$mark$field"; done; echo "$line"; }
row JobIDRaw State ExitCode Partition NodeList Submit Start End JobName
row 7 "CANCELLED by 1000" 0:15 gpu "None assigned" 2026-03-02T14:00:00 Unknown 2026-03-02T14:00:05 penstock-a-t1
row 7 FAILED 3:0 gpu gpu[01-02] 2026-03-02T15:00:00 2026-03-02T15:00:01 2026-03-02T15:09:00 penstock-a-t2
"""


async def test_history_is_read_from_sacct(program: Program) -> None:
    slurm = program.does(SACCT)
    found = await slurm.history([7, 8])
    asked = (program.folder / "asked").read_text()
    assert "--jobs=7,8" in asked
    assert f"--user={os.geteuid()}" in asked
    assert [
        (job.job_id, job.name, job.state, job.exit_code, job.exit_signal, job.nodes) for job in found
    ] == [
        (7, "penstock-a-t1", JobState.CANCELLED, None, 15, ""),
        (7, "penstock-a-t2", JobState.FAILED, 3, None, "gpu[01-02]"),
    ]
    assert found[0].started_at is None
    assert found[1].ends_at == datetime(2026, 3, 2, 15, 9, tzinfo=UTC)


async def test_history_of_a_job_without_an_id_is_none(program: Program) -> None:
    slurm = program.does(SACCT.replace("row 7 FAILED", "row '(null)' FAILED"))
    with pytest.raises(SlurmUnavailable, match=r"not a job id: '\(null\)'; expected a number above 0"):
        await slurm.history([7, 8])


async def test_nothing_asked_of_history_starts_no_command(program: Program) -> None:
    slurm = program.does("touch asked")
    assert await slurm.history([]) == ()
    assert not (program.folder / "asked").exists()


@pytest.mark.parametrize(
    ("script", "error", "sentence"),
    [
        ("echo 'Slurm accounting storage is disabled' >&2; exit 1", NoAccounting, "storage is disabled"),
        (
            "echo 'sacct: error: Problem talking to the database' >&2; exit 1",
            SlurmUnavailable,
            "Problem talking",
        ),
        ("exit 0", SlurmUnavailable, "expected sacct's header"),
        (SACCT + "echo half a row", SlurmUnavailable, "expected 9 fields, got 1"),
    ],
)
async def test_a_history_that_cannot_be_had(
    program: Program, script: str, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        await program.does(script).history([7])
