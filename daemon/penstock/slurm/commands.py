"""The command-line backend: Slurm asked through squeue, sbatch, scancel, sinfo and scontrol.

It works with every Slurm since 21.08: fields are chosen by name and printed with marks made up for the call, since
JSON differs between releases and costs ten times as much. What the texts mean is in `parse.py`.

It does not know which jobs are Penstock's; it speaks for one user. It retries nothing.

The rule guarded here: a command that failed, was late, or printed less than whole rows raises. And what sbatch did not
clearly refuse may have been accepted.
"""

from __future__ import annotations

import os
import pwd
import re
import secrets
from collections.abc import Mapping, Sequence

from penstock.core.jobs import Cluster, Job, JobState, Submission, UnknownAccounts
from penstock.slurm import options, parse, process
from penstock.slurm.environment import clean_environment
from penstock.slurm.port import (
    May,
    NoAccounting,
    NoSuchJob,
    SlurmUnavailable,
    SubmissionRefused,
    SubmissionUnknown,
)
from penstock.slurm.process import ERROR_CHARACTERS_MAX, CommandFailed, NotStarted, Outcome

COMMAND_TIMEOUT_S = 30.0
"""Three times Slurm's default MessageTimeout: a command retries by itself, and one that is later than this hangs."""
OUTPUT_BYTES_MAX = 64 * 1024 * 1024
"""About 200,000 jobs of one user; more is not read, so that a broken command cannot fill the memory."""

NO_ANSWER = re.compile(
    r"unable to contact|communicat|connect|timed? ?out|zero bytes|message (send|receive) failure|unexpected message|"
    r"authenticat|credential|munge|insane message|version|standby|transport endpoint|broken pipe|reset by peer|"
    r"temporarily unavailable|too many open files|host is down|no route|network|no error|"
    r"configuration source|slurm\.conf|s_p_parse_file|internal error|i/o error|resource temporarily",
    re.IGNORECASE,
)
"""Complaints of sbatch after which a job may exist: the request may have arrived and only its answer been lost."""
PLUGIN_SAID_NO = "Unspecified error"
"""slurmctld's answer where a job_submit plugin of the site returns slurm.ERROR, tried on 22.05 and 26.05. What the
plugin says to the user stands before it, and may hold any word of NO_ANSWER."""

NO_ACCOUNTING = re.compile(r"accounting storage is disabled", re.IGNORECASE)
"""sacct's complaint where slurm.conf names no AccountingStorageType."""


class CommandLine:
    """A Slurm cluster through its commands; implements `penstock.slurm.port.Slurm`."""

    def __init__(
        self,
        *,
        conf: str | None = None,
        prefix: Sequence[str] = (),
        timeout_s: float = COMMAND_TIMEOUT_S,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`prefix`: put before each command, such as a script that enters a container.
        `conf`, `environment`: as for `clean_environment`."""
        self._environment = clean_environment(conf, environment)
        self._prefix = tuple(prefix)
        self._timeout_s = timeout_s

    @property
    def backend(self) -> str:
        return "cli"

    @property
    def one_at_a_time(self) -> bool:
        return False

    async def list_jobs(self) -> tuple[Job, ...]:
        marks = _marks()
        output = await self._ask(
            "squeue",
            "--all",
            "--array",
            "--states=all",
            f"--user={os.geteuid()}",
            f"--Format={parse.format_option(parse.JOB_FIELDS, marks)}",
        )
        try:
            return parse.parse_jobs(output, marks)
        except parse.ParseError as error:
            raise SlurmUnavailable(f"squeue printed what cannot be read: {error}") from error

    async def find(self, name: str) -> tuple[Job, ...]:
        # squeue's --name filters in squeue itself, after loading the same rows, and splits the name at commas.
        return tuple(job for job in await self.list_jobs() if job.name == name)

    async def history(self, job_ids: Sequence[int]) -> tuple[Job, ...]:
        if not job_ids:
            return ()
        mark = _marks().field
        outcome = await self._change(
            "sacct",
            "--parsable2",
            f"--delimiter={mark}",
            "--allocations",
            "--duplicates",
            f"--user={os.geteuid()}",
            f"--jobs={','.join(map(str, job_ids))}",
            f"--format={','.join(parse.HISTORY_FIELDS)}",
        )
        if outcome.status != 0 and NO_ACCOUNTING.search(outcome.complaint):
            raise NoAccounting(f"sacct: {outcome.complaint}")
        if outcome.status != 0:
            raise SlurmUnavailable(f"sacct: {outcome.complaint}")
        try:
            return parse.parse_history(outcome.stdout, mark)
        except parse.ParseError as error:
            raise SlurmUnavailable(f"sacct printed what cannot be read: {error}") from error

    async def submit(self, submission: Submission, *, may: May) -> int:
        wrong = options.problems(submission)
        if wrong:
            raise SubmissionRefused("; ".join(wrong))
        try:
            outcome = await self._run(
                "sbatch", "--parsable", *options.arguments(submission), stdin=submission.script, may=may
            )
        except NotStarted as error:
            raise SlurmUnavailable(f"submitting job {submission.name}: {error}") from error
        except CommandFailed as error:
            raise SubmissionUnknown(f"submitting job {submission.name}: {error}") from error
        if outcome.status == 0:
            match = re.fullmatch(r"([0-9]+)(;[^\n]*)?", outcome.stdout.strip())
            if match is None:
                raise SubmissionUnknown(
                    f"submitting job {submission.name}: sbatch printed {parse.quote(outcome.stdout)}, not a job id",
                    answered=True,
                )
            return int(match[1])
        refusal = _refusal(outcome)
        if refusal is None:
            raise SubmissionUnknown(
                f"submitting job {submission.name}: sbatch: {outcome.complaint}",
                answered=outcome.status >= 0 and NO_ANSWER.search(outcome.stderr) is None,
            )
        raise SubmissionRefused(refusal)

    async def cancel(self, job_id: int, *, name: str, may: May, only_waiting: bool = False) -> None:
        job = await self._look_up(job_id, name)
        if job.ended or (only_waiting and not job.waiting):
            return
        waiting = ["--state=PENDING"] if only_waiting else []
        outcome = await self._change("scancel", *waiting, f"--name={name}", str(job_id), may=may)
        if outcome.status != 0 and not _already_over(outcome):
            raise SlurmUnavailable(f"cancelling job {job_id}: scancel: {outcome.complaint}")

    async def signal(self, job_id: int, signal: str, *, name: str, may: May) -> None:
        job = await self._look_up(job_id, name)
        if job.state is not JobState.RUNNING:
            raise NoSuchJob(f"job {job_id} ({name}) is {job.state}, so it cannot be sent {signal}")
        outcome = await self._change(
            "scancel", "--batch", f"--signal={signal}", f"--name={name}", str(job_id), may=may
        )
        if outcome.status == 0:
            return
        if _already_over(outcome):
            raise NoSuchJob(f"job {job_id} ({name}) ended before it could be sent {signal}")
        raise SlurmUnavailable(f"sending {signal} to job {job_id}: scancel: {outcome.complaint}")

    async def cluster(self) -> Cluster:
        marks = _marks()
        config = await self._ask("scontrol", "show", "config")
        partitions = await self._ask("scontrol", "--all", "--oneliner", "show", "partition")
        nodes = await self._ask(
            "sinfo", "--all", "--Node", f"--Format={parse.format_option(parse.NODE_FIELDS, marks)}"
        )
        reservations = await self._ask("scontrol", "--all", "--oneliner", "show", "reservation")
        try:
            settings = parse.parse_config(config)
            return Cluster(
                name=settings["ClusterName"],
                slurm_version=settings["SLURM_VERSION"],
                partitions=parse.parse_partitions(partitions),
                nodes=parse.parse_nodes(nodes, marks),
                accounts=await self._accounts(settings),
                message_timeout_s=parse.parse_seconds(settings["MessageTimeout"]),
                maintenance=parse.parse_reservations(reservations),
            )
        except parse.ParseError as error:
            raise SlurmUnavailable(f"the cluster's description cannot be read: {error}") from error

    async def close(self) -> None:
        """Nothing is held between calls."""

    async def _accounts(self, settings: Mapping[str, str]) -> tuple[str, ...] | UnknownAccounts | None:
        """The accounts of this user where slurmctld enforces associations; None where any account is accepted.

        slurmdbd is asked for them: where it is down, the rest of the cluster is known all the same.
        """
        if "associations" not in settings.get("AccountingStorageEnforce", ""):
            return None
        try:
            user = pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:
            return UnknownAccounts(
                f"the accounts cannot be asked for: user id {os.geteuid()} has no name on this host"
            )
        try:
            output = await self._ask(
                "sacctmgr",
                "--noheader",
                "--parsable2",
                "show",
                "associations",
                f"users={user}",
                "format=Account",
            )
        except SlurmUnavailable as error:
            return UnknownAccounts(str(error))
        return tuple(sorted({line.strip() for line in output.splitlines() if line.strip()}))

    async def _look_up(self, job_id: int, name: str) -> Job:
        """The job with this id and name, or NoSuchJob. Of several rows with one id, the one that has not ended."""
        jobs = [job for job in await self.list_jobs() if job.job_id == job_id]
        for job in sorted(jobs, key=lambda job: job.ended):
            if job.name == name:
                return job
            raise NoSuchJob(
                f"job {job_id} is named {parse.quote(job.name)}, not {name}: its id was used again"
            )
        raise NoSuchJob(f"Slurm knows no job {job_id} ({name}) of this user")

    async def _ask(self, *command: str) -> str:
        """What a command that changes nothing printed; SlurmUnavailable when it failed."""
        outcome = await self._change(*command)
        if outcome.status != 0:
            raise SlurmUnavailable(f"{command[0]}: {outcome.complaint}")
        return outcome.stdout

    async def _change(self, *command: str, may: May | None = None) -> Outcome:
        """Run a command whose repetition does no harm; SlurmUnavailable when it did not run to its end."""
        try:
            # Times are printed in the command's own zone. sbatch must not get this: it passes its variables on.
            return await self._run(*command, extra={"TZ": "UTC"}, may=may)
        except CommandFailed as error:
            raise SlurmUnavailable(str(error)) from error

    async def _run(
        self,
        *command: str,
        stdin: str = "",
        extra: Mapping[str, str] | None = None,
        may: May | None = None,
    ) -> Outcome:
        """Run a command to its end. Raises CommandFailed; leaves no process behind, also when cancelled, and also
        when this process is killed: our successor counts from when we called."""
        return await process.run(
            (*self._prefix, *command),
            {**self._environment, **(extra or {})},
            name=command[0],
            stdin=stdin,
            timeout_s=self._timeout_s,
            output_bytes_max=OUTPUT_BYTES_MAX,
            may=may,
        )


def _marks() -> parse.Marks:
    nonce = secrets.token_hex(8)
    return parse.Marks(field=f"\x1f{nonce}\x1f", row=f"\x1e{nonce}\x1e")


_REFUSAL = re.compile(r"Batch job submission failed: (.+)")
_OF_LIBSLURM = re.compile(r"\w+: ")
"""libslurm's own complaints begin with the name of their function."""


def _refusal(outcome: Outcome) -> str | None:
    """Slurm's sentence, and the site's, when sbatch clearly said no; None when that is open."""
    if outcome.status < 0 or outcome.stdout.strip():
        return None
    lines = [re.sub(r"^sbatch: ((error|fatal): )?", "", line).strip() for line in outcome.stderr.splitlines()]
    lines = [line for line in lines if line and not line.startswith("Try ")]
    sentences = [match[1] for line in lines if (match := _REFUSAL.search(line))]
    words = [line for line in lines if not _REFUSAL.search(line)]
    if not sentences:
        # sbatch gave up over its own options, before it asked.
        judged, reason = lines, "; ".join(lines)
    elif sentences == [PLUGIN_SAID_NO]:
        judged = [line for line in words if _OF_LIBSLURM.match(line)]
        reason = "; ".join(words) or f"{PLUGIN_SAID_NO}: a plugin of the site says no, without a word"
    else:
        judged, reason = sentences, "; ".join(sentences) + (f" ({'; '.join(words)})" if words else "")
    if not lines or any(NO_ANSWER.search(line) for line in judged):
        return None
    return reason[:ERROR_CHARACTERS_MAX]


_OVER = re.compile(
    r"already completing or completed|invalid job id|already completed|job is pending", re.IGNORECASE
)


def _already_over(outcome: Outcome) -> bool:
    return _OVER.search(outcome.stderr) is not None
