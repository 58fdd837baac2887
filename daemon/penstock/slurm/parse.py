"""Slurm's text, read into values.

Pure: text in, values out, no clock and no process. Two kinds of text are read: rows of chosen fields (squeue and sinfo
with `--Format`), cut by marks that the caller made up for this one call, and `key=value` lines of scontrol. What a
command is called and how it is run is in `commands.py`.

The rule guarded here: text that cannot be read in full raises ParseError. A row that ends early, a field too many or a
header that is missing must never become "no such job". Only a job's state has a word for what we do not know,
`JobState.UNKNOWN`, because new releases add states.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from penstock.core.jobs import Job, JobState, Maintenance, Node, Partition
from penstock.core.node_lists import ParseError as ParseError
from penstock.core.node_lists import expand_nodes as expand_nodes
from penstock.core.node_lists import outside_brackets
from penstock.core.node_lists import quote as quote
from penstock.core.slurm_words import ENDED_STATES

# One value --------------------------------------------------------------------------------------------------

FLAG_STATES = (
    JobState.COMPLETING,
    JobState.STAGE_OUT,
    JobState.CONFIGURING,
    JobState.RESIZING,
    JobState.REQUEUED,
    JobState.REQUEUE_FED,
    JobState.REQUEUE_HOLD,
    JobState.SPECIAL_EXIT,
    JobState.STOPPED,
    JobState.REVOKED,
    JobState.RESV_DEL_HOLD,
    JobState.SIGNALING,
)
"""Flags that Slurm lays over a base state. Where several are set, squeue shows the first in this order; so do we."""

COMPACT_STATES = {
    "BF": JobState.BOOT_FAIL,
    "CA": JobState.CANCELLED,
    "CD": JobState.COMPLETED,
    "CF": JobState.CONFIGURING,
    "CG": JobState.COMPLETING,
    "DL": JobState.DEADLINE,
    "F": JobState.FAILED,
    "LF": JobState.LAUNCH_FAILED,
    "NF": JobState.NODE_FAIL,
    "OOM": JobState.OUT_OF_MEMORY,
    "PD": JobState.PENDING,
    "PR": JobState.PREEMPTED,
    "R": JobState.RUNNING,
    "RD": JobState.RESV_DEL_HOLD,
    "RF": JobState.REQUEUE_FED,
    "RH": JobState.REQUEUE_HOLD,
    "RQ": JobState.REQUEUED,
    "RS": JobState.RESIZING,
    "RV": JobState.REVOKED,
    "S": JobState.SUSPENDED,
    "SE": JobState.SPECIAL_EXIT,
    "SI": JobState.SIGNALING,
    "SO": JobState.STAGE_OUT,
    "ST": JobState.STOPPED,
    "TO": JobState.TIMEOUT,
}
"""`JOB STATE CODES` in squeue(1)."""

_STATES: Mapping[str, JobState] = {
    **{state.value: state for state in JobState},
    **COMPACT_STATES,
    "REQUEUE": JobState.REQUEUED,  # the flag's name in the REST schema and in libslurm
}


def parse_state(text: str) -> JobState:
    """A state in any of Slurm's spellings: `RUNNING`, `R`, `RUNNING+COMPLETING`, `CANCELLED by 1000`.

    A flag hides its base state, as in squeue: `COMPLETED+COMPLETING` is COMPLETING, since the nodes are not free yet.
    """
    words = text.strip().upper().partition(" BY ")[0].split("+")
    states = [_STATES.get(word.strip(), JobState.UNKNOWN) for word in words]
    for flag in FLAG_STATES:
        if flag in states:
            return flag
    return states[0]


_NO_TIME = {"", "N/A", "NONE", "UNKNOWN", "(NULL)", "NOW"}


def parse_time(text: str) -> datetime | None:
    """`2026-11-22T10:51:21`, printed by a command that ran with TZ=UTC; None for `N/A`, `Unknown` and the like."""
    word = text.strip()
    if word.upper() in _NO_TIME:
        return None
    try:
        return datetime.strptime(word, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        raise ParseError(f"not a time: {quote(text)}; expected YYYY-MM-DDTHH:MM:SS") from None


_NO_DURATION = {"", "UNLIMITED", "INFINITE", "NOT_SET", "NONE", "N/A", "INVALID", "PARTITION_LIMIT", "(NULL)"}
_DURATION = re.compile(r"(?:(?P<days>\d+)-)?(?P<parts>\d+(?::\d+){0,2})", re.ASCII)


def parse_duration(text: str) -> int | None:
    """Seconds of `1-02:03:04`, `1-02`, `02:03:04`, `03:04` or `5` (minutes); None for `UNLIMITED`, `NONE` and the like.

    sbatch(1), `--time`: without days the last part of two is seconds; after days the first part is hours.
    """
    word = text.strip()
    if word.upper() in _NO_DURATION:
        return None
    match = _DURATION.fullmatch(word)
    if match is None:
        raise ParseError(f"not a duration: {quote(text)}; expected [days-]hours:minutes:seconds")
    parts = [int(part) for part in match["parts"].split(":")]
    if match["days"] is not None:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        return ((int(match["days"]) * 24 + hours) * 60 + minutes) * 60 + seconds
    if len(parts) == 1:
        return parts[0] * 60
    hours, minutes, seconds = (0, *parts)[-3:]
    return (hours * 60 + minutes) * 60 + seconds


def parse_exit(text: str) -> tuple[int | None, int | None]:
    """Exit code and signal of `3:0`, `0:9`, or of a raw wait status such as `768`, which squeue prints before 23.02.

    Exactly one of the two is None: a script that a signal ended has no exit code, whatever number stands there.
    """
    word = text.strip()
    code, colon, number = word.partition(":")
    try:
        if colon:
            exit_code, signal = int(code), int(number)
        else:
            status = int(code)
            exit_code, signal = (status >> 8) & 0xFF, status & 0x7F
    except ValueError:
        raise ParseError(f"not an exit code: {quote(text)}; expected CODE:SIGNAL or a wait status") from None
    return (None, signal) if signal else (exit_code, None)


_MULTIPLIERS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def parse_gpus(text: str) -> dict[str, int]:
    """GPU type -> count of a gres string: `gpu:a100:4(S:0-1),gpu:2,shard:8` is {"a100": 4, "": 2}.

    Sockets and indices in parentheses are dropped, other resources left out, repeated types added up.
    """
    gpus: dict[str, int] = {}
    if text.strip() in ("", "(null)", "N/A"):
        return gpus
    for part in outside_brackets(text.strip()):
        name, *rest = re.sub(r"\([^()]*:[^()]*\)$", "", part).split(":")
        if name != "gpu":
            continue
        kind, count = (
            ("", "1")
            if not rest
            else ("", rest[0])
            if len(rest) == 1 and _is_count(rest[0])
            else (
                rest[0],
                rest[1] if len(rest) > 1 else "1",
            )
        )
        if not _is_count(count):
            raise ParseError(f"not a count of GPUs: {quote(part)}; expected gpu[:TYPE]:COUNT")
        kind = "" if kind in ("(null)", "no_consume") else kind
        multiplier = count[-1].upper() if count[-1].isalpha() else ""
        gpus[kind] = gpus.get(kind, 0) + int(count.rstrip("kKmMgGtT")) * _MULTIPLIERS[multiplier]
    return gpus


def _is_count(text: str) -> bool:
    return re.fullmatch(r"[0-9]+[kKmMgGtT]?", text) is not None


def parse_number(text: str) -> int:
    """A plain number; `(null)` and nothing are 0."""
    word = text.strip()
    if word in ("", "(null)", "N/A"):
        return 0
    try:
        return int(word)
    except ValueError:
        raise ParseError(f"not a number: {quote(text)}") from None


def parse_job_id(text: str) -> int:
    """A job's id. Nothing, `(null)` and 0 are none: slurmctld gives ids from FirstJobId on, which is 1 or more."""
    job_id = parse_number(text)
    if job_id < 1:
        raise ParseError(f"not a job id: {quote(text)}; expected a number above 0")
    return job_id


def parse_text(text: str) -> str:
    """A free text; Slurm prints `(null)`, `None` or `none` where there is none."""
    return "" if text in ("(null)", "None", "none", "N/A") else text


def parse_names(text: str) -> tuple[str, ...]:
    """A comma-separated list of names."""
    return tuple(name for name in parse_text(text.strip()).split(",") if name)


# Rows of chosen fields --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Marks:
    """What ends a field and what ends a row.

    The caller makes them up anew for each call, so that no name or comment, whoever wrote it, can hold them: it
    was written before. They start with no digit (a width would be read from it) and hold no comma.
    """

    field: str
    row: str


JOB_FIELDS = (
    "JobID", "State", "Reason", "Partition", "NodeList", "SubmitTime", "StartTime", "EndTime", "TimeLimit",
    "exit_code", "RestartCnt", "Name", "Comment",
)  # fmt: skip
"""squeue's `--Format` fields, by name, in the order that `parse_jobs` reads them."""

NODE_FIELDS = (
    "NodeList", "Partition", "StateComplete", "CPUsState", "Memory", "AllocMem", "Gres", "GresUsed", "Features",
    "Reason",
)  # fmt: skip
"""sinfo's, one row for each node and partition."""


def format_option(fields: tuple[str, ...], marks: Marks) -> str:
    """The value of `--Format` that prints these fields at full length, each ended by its mark."""
    return ",".join(f"{name}:{marks.row if name is fields[-1] else marks.field}" for name in fields)


def parse_rows(output: str, fields: tuple[str, ...], marks: Marks) -> list[dict[str, str]]:
    """Rows of an output with its header, each a mapping from field to text; the text may hold newlines.

    Raises ParseError when the header is missing (the command printed nothing or something else), when a row has
    other fields than asked for, or when the output does not end where a row ends.
    """
    pieces = output.split(marks.row)
    if len(pieces) < 2:
        raise ParseError(f"expected a header and rows, got {quote(output)}")
    if pieces[-1].strip("\n"):
        raise ParseError(f"the output ends in the middle of a row: {quote(pieces[-1])}")
    rows = []
    for piece in pieces[:-1]:
        values = piece.removeprefix("\n").split(marks.field)
        if len(values) != len(fields):
            raise ParseError(f"expected {len(fields)} fields, got {len(values)} in {quote(piece)}")
        rows.append(dict(zip(fields, values, strict=True)))
    return rows[1:]


def parse_jobs(output: str, marks: Marks) -> tuple[Job, ...]:
    """The jobs in squeue's output with JOB_FIELDS, by id."""
    return tuple(
        sorted((_job(row) for row in parse_rows(output, JOB_FIELDS, marks)), key=lambda job: job.job_id)
    )


def _job(row: Mapping[str, str]) -> Job:
    state = parse_state(row["State"])
    exit_code, exit_signal = parse_exit(row["exit_code"]) if state in ENDED_STATES else (None, None)
    return Job(
        job_id=parse_job_id(row["JobID"]),
        name=row["Name"],
        comment="" if row["Comment"] == "(null)" else row["Comment"],
        state=state,
        state_text=row["State"].strip(),
        reason=parse_text(row["Reason"].strip()),
        partition=row["Partition"].strip(),
        nodes=parse_text(row["NodeList"].strip()),
        submitted_at=parse_time(row["SubmitTime"]),
        started_at=parse_time(row["StartTime"]),
        ends_at=parse_time(row["EndTime"]),
        time_limit_s=parse_duration(row["TimeLimit"]),
        exit_code=exit_code,
        exit_signal=exit_signal,
        restarts=parse_number(row["RestartCnt"]),
    )


HISTORY_FIELDS = (
    "JobIDRaw", "State", "ExitCode", "Partition", "NodeList", "Submit", "Start", "End", "JobName",
)  # fmt: skip
"""sacct's, the only one that anybody chooses last."""


def parse_history(output: str, mark: str) -> tuple[Job, ...]:
    """The jobs in sacct's output with HISTORY_FIELDS, its header first, each run a row, in the order of submission.

    `mark` stands between fields; sacct ends a row by a newline only, so that a name with one in it cannot be read.
    """
    lines = output.removesuffix("\n").split("\n")
    if tuple(lines[0].split(mark)) != HISTORY_FIELDS:
        raise ParseError(f"expected sacct's header, got {quote(lines[0])}")
    jobs = []
    for line in lines[1:]:
        values = line.split(mark)
        if len(values) != len(HISTORY_FIELDS):
            raise ParseError(f"expected {len(HISTORY_FIELDS)} fields, got {len(values)} in {quote(line)}")
        jobs.append(_past_job(dict(zip(HISTORY_FIELDS, values, strict=True))))
    return tuple(
        sorted(jobs, key=lambda job: (job.job_id, job.submitted_at or datetime.min.replace(tzinfo=UTC)))
    )


def _past_job(row: Mapping[str, str]) -> Job:
    state = parse_state(row["State"])
    exit_code, exit_signal = parse_exit(row["ExitCode"]) if state in ENDED_STATES else (None, None)
    nodes = row["NodeList"].strip()
    return Job(
        job_id=parse_job_id(row["JobIDRaw"]),
        name=row["JobName"],
        comment="",
        state=state,
        state_text=row["State"].strip(),
        partition=row["Partition"].strip(),
        nodes="" if nodes == "None assigned" else parse_text(nodes),
        submitted_at=parse_time(row["Submit"]),
        started_at=parse_time(row["Start"]),
        ends_at=parse_time(row["End"]),
        exit_code=exit_code,
        exit_signal=exit_signal,
    )


def parse_nodes(output: str, marks: Marks) -> tuple[Node, ...]:
    """The nodes in sinfo's output with NODE_FIELDS; the rows of one node differ in the partition only."""
    rows: dict[str, Mapping[str, str]] = {}
    partitions: dict[str, list[str]] = {}
    for row in parse_rows(output, NODE_FIELDS, marks):
        name = row["NodeList"].strip()
        rows.setdefault(name, row)
        partitions.setdefault(name, []).append(row["Partition"].strip().removesuffix("*"))
    return tuple(_node(name, row, tuple(sorted(partitions[name]))) for name, row in rows.items())


def _node(name: str, row: Mapping[str, str], partitions: tuple[str, ...]) -> Node:
    cpus = row["CPUsState"].strip().split("/")
    if len(cpus) != 4:
        raise ParseError(f"not allocated/idle/other/total CPUs: {quote(row['CPUsState'])}")
    return Node(
        name=name,
        state=row["StateComplete"].strip().upper(),
        cpus=parse_number(cpus[3]),
        memory_mib=parse_number(row["Memory"]),
        gpus=parse_gpus(row["Gres"]),
        partitions=partitions,
        features=parse_names(row["Features"]),
        reason=parse_text(row["Reason"].strip()),
        cpus_allocated=parse_number(cpus[0]),
        memory_allocated_mib=parse_number(row["AllocMem"]),
        gpus_allocated=sum(parse_gpus(row["GresUsed"]).values()),
    )


# scontrol ---------------------------------------------------------------------------------------------------


def parse_partitions(output: str) -> tuple[Partition, ...]:
    """The partitions in the output of `scontrol --oneliner show partition`."""
    if output.strip() == "No partitions in the system":
        return ()
    return tuple(_partition(line) for line in output.splitlines() if line.strip())


def _partition(line: str) -> Partition:
    pairs = dict(word.partition("=")[::2] for word in line.split())
    try:
        return Partition(
            name=pairs["PartitionName"],
            up=pairs["State"].upper() == "UP",
            is_default=pairs["Default"].upper() == "YES",
            max_time_s=parse_duration(pairs["MaxTime"]),
            default_time_s=parse_duration(pairs["DefaultTime"]),
            max_nodes=None if pairs["MaxNodes"].upper() == "UNLIMITED" else parse_number(pairs["MaxNodes"]),
            total_nodes=parse_number(pairs["TotalNodes"]),
            total_cpus=parse_number(pairs["TotalCPUs"]),
            nodes=expand_nodes(pairs["Nodes"]),
            allowed_accounts=_allowed(pairs.get("AllowAccounts", "ALL")),
            allowed_qos=_allowed(pairs.get("AllowQos", "ALL")),
        )
    except KeyError as missing:
        raise ParseError(f"a partition without {missing}: {quote(line)}") from None


def _allowed(text: str) -> tuple[str, ...] | None:
    return None if text.upper() == "ALL" else parse_names(text)


def parse_reservations(output: str) -> tuple[Maintenance, ...]:
    """Those for maintenance in the output of `scontrol --oneliner show reservation`, printed with TZ=UTC."""
    if output.strip() == "No reservations in the system":
        return ()
    found = []
    for line in output.splitlines():
        pairs = dict(word.partition("=")[::2] for word in line.split())
        if not pairs or "MAINT" not in pairs.get("Flags", "").split(","):
            continue
        try:
            begins_at, ends_at = parse_time(pairs["StartTime"]), parse_time(pairs["EndTime"])
            nodes = expand_nodes(pairs["Nodes"])
            name = pairs["ReservationName"]
        except KeyError as missing:
            raise ParseError(f"a reservation without {missing}: {quote(line)}") from None
        if begins_at is None or ends_at is None:
            raise ParseError(f"a reservation without its times: {quote(line)}")
        found.append(Maintenance(name, begins_at, ends_at, nodes))
    return tuple(sorted(found, key=lambda one: (one.begins_at, one.name)))


def parse_config(output: str) -> dict[str, str]:
    """The settings in the output of `scontrol show config`, as printed: `MessageTimeout` is `10 sec`."""
    pairs = (line.partition("=") for line in output.splitlines())
    config = {key.strip(): value.strip() for key, separator, value in pairs if separator}
    for key in ("ClusterName", "MessageTimeout", "SLURM_VERSION"):
        if key not in config:
            raise ParseError(f"no {key} in the configuration that scontrol printed: {quote(output)}")
    return config


def parse_seconds(text: str) -> int:
    """`10 sec` of the configuration."""
    return parse_number(text.split()[0]) if text.split() else 0
