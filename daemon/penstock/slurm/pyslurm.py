"""The pyslurm backend: Slurm asked through libslurm, in a process of its own.

Cheaper than starting a command for each question, where a site has a Python with a pyslurm that fits its Slurm. This
file makes values of what `pyslurm_server.py` answers and conclusions of its errors; `bridge.py` keeps the process.

The rule guarded here: an answer that is missing a field, late or broken off raises. A submission whose answer did not
come may have been accepted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from penstock.core.jobs import Cluster, Job, Maintenance, Node, Partition, Submission, UnknownAccounts
from penstock.core.slurm_words import ENDED_STATES
from penstock.slurm import options, parse
from penstock.slurm.bridge import Bridge, BridgeBroken
from penstock.slurm.environment import clean_environment
from penstock.slurm.port import (
    May,
    NoAccounting,
    NoSuchJob,
    SlurmUnavailable,
    SubmissionRefused,
    SubmissionUnknown,
)

SERVER = Path(__file__).with_name("pyslurm_server.py")
"""The script for the site's Python."""

CALL_TIMEOUT_S = 30.0
"""Three times Slurm's default MessageTimeout: libslurm retries by itself, and a call later than this hangs."""


class PySlurm:
    """A Slurm cluster through pyslurm; implements `penstock.slurm.port.Slurm`."""

    def __init__(
        self,
        *,
        python: Sequence[str],
        conf: str | None = None,
        server: Path | str = SERVER,
        timeout_s: float = CALL_TIMEOUT_S,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`python`: the site's Python that has pyslurm, with what must stand before it, such as a script that enters a
        container. `server`: where pyslurm_server.py is for that Python. `conf`, `environment`: as for the commands."""
        self._environment = clean_environment(conf, environment)
        self._bridge = Bridge([*python, str(server)], environment=self._environment, timeout_s=timeout_s)

    @property
    def backend(self) -> str:
        return "pyslurm"

    @property
    def one_at_a_time(self) -> bool:
        return True

    @property
    def bridge(self) -> Bridge:
        """The process; for health and tests."""
        return self._bridge

    async def start(self) -> str:
        """Start the process now and return pyslurm's version. Raises SlurmUnavailable: no such Python, no pyslurm."""
        try:
            await self._bridge.start()
        except BridgeBroken as error:
            raise SlurmUnavailable(str(error)) from error
        return str(self._bridge.greeting.get("pyslurm", ""))

    async def list_jobs(self) -> tuple[Job, ...]:
        rows = await self._value("list_jobs")
        try:
            return tuple(sorted((_job(row) for row in rows), key=lambda job: job.job_id))
        except _UNREADABLE as error:
            raise SlurmUnavailable(f"pyslurm's jobs cannot be read: {error!r}") from error

    async def find(self, name: str) -> tuple[Job, ...]:
        return tuple(job for job in await self.list_jobs() if job.name == name)

    async def history(self, job_ids: Sequence[int]) -> tuple[Job, ...]:
        """Not supported: pyslurm's way to slurmdbd was never tried."""
        raise NoAccounting("the pyslurm backend does not ask slurmdbd")

    async def submit(self, submission: Submission, *, may: May) -> int:
        wrong = options.problems(submission)
        unknown = sorted(set(submission.extra_options) - options.KNOWN_OPTIONS)
        if unknown:
            wrong.append(f"unrecognized option '--{unknown[0]}'")
        if wrong:
            raise SubmissionRefused("; ".join(wrong))
        about = f"submitting job {submission.name}"
        try:
            answer = await self._bridge.ask(
                "submit",
                may,
                attributes=_attributes(submission),
                environment=self._environment,
                extra_options=dict(submission.extra_options),
            )
        except BridgeBroken as error:
            raise (SubmissionUnknown if error.sent else SlurmUnavailable)(f"{about}: {error}") from error
        match answer:
            case {"value": int(job_id)}:
                return job_id
            case {"error": {"kind": "refused", "message": str(message)}}:
                raise SubmissionRefused(message)
            case {"error": {"message": str(message)}}:
                raise SubmissionUnknown(f"{about}: {message}")
        raise SubmissionUnknown(f"{about}: pyslurm's answer cannot be read: {parse.quote(str(answer))}")

    async def cancel(self, job_id: int, *, name: str, may: May, only_waiting: bool = False) -> None:
        await self._value("cancel", may, job_id=job_id, name=name, only_waiting=only_waiting)

    async def signal(self, job_id: int, signal: str, *, name: str, may: May) -> None:
        await self._value("signal", may, job_id=job_id, name=name, signal=signal)

    async def cluster(self) -> Cluster:
        value = await self._value("cluster")
        try:
            return _cluster(value)
        except _UNREADABLE as error:
            raise SlurmUnavailable(
                f"pyslurm's description of the cluster cannot be read: {error!r}"
            ) from error

    async def close(self) -> None:
        """End the process."""
        await self._bridge.close()

    async def _value(self, call: str, may: May | None = None, **arguments: Any) -> Any:
        try:
            answer = await self._bridge.ask(call, may, **arguments)
        except BridgeBroken as error:
            raise SlurmUnavailable(f"{call}: {error}") from error
        if "value" in answer:
            return answer["value"]
        match answer:
            case {"error": {"kind": "no-job", "message": str(message)}}:
                raise NoSuchJob(message)
            case {"error": {"message": str(message)}}:
                raise SlurmUnavailable(f"{call}: {message}")
        raise SlurmUnavailable(f"{call}: pyslurm's answer cannot be read: {parse.quote(str(answer))}")


_UNREADABLE = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)


def _attributes(submission: Submission) -> dict[str, Any]:
    """What pyslurm's JobSubmitDescription is told; what is not wanted is left out."""
    optional = {
        "partitions": submission.partition,
        "account": submission.account,
        "qos": submission.qos,
        "constraints": submission.constraint,
        "reservations": submission.reservation,
        "excluded_nodes": ",".join(submission.exclude_nodes) or None,
        "required_nodes": ",".join(submission.require_nodes) or None,
        "time_limit": None if submission.time_limit_s is None else options.minutes(submission.time_limit_s),
        "time_limit_min": None if submission.time_min_s is None else options.minutes(submission.time_min_s),
        "cpus_per_task": submission.cpus_per_task,
        "memory_per_node": None
        if submission.memory_per_node_mib is None
        else f"{submission.memory_per_node_mib}M",
        "gres_per_node": _gres(submission.gres),
        "resource_sharing": "exclusive" if submission.exclusive else None,
        "signal": None if submission.warn_signal_s is None else f"B:SIGTERM@{submission.warn_signal_s}",
        "dependencies": "singleton" if submission.singleton else None,
    }
    return {
        **{name: value for name, value in optional.items() if value is not None},
        "name": submission.name,
        "comment": submission.comment,
        "script": submission.script,
        "working_directory": submission.work_dir,
        "standard_output": submission.output,
        "nodes": str(submission.nodes),
        "ntasks": submission.nodes * submission.tasks_per_node,
        "ntasks_per_node": submission.tasks_per_node,
    }


def _gres(text: str | None) -> str | None:
    """sbatch takes `gpu` for one GPU; pyslurm wants the count written out."""
    if not text:
        return None
    return ",".join(part if part.rsplit(":", 1)[-1].isdigit() else f"{part}:1" for part in text.split(","))


def _time(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _job(row: Mapping[str, Any]) -> Job:
    state = parse.parse_state(row["state"])
    code, number = row["exit"]
    exit_code, exit_signal = parse.parse_exit(f"{code}:{number}") if state in ENDED_STATES else (None, None)
    return Job(
        job_id=int(row["job_id"]),
        name=str(row["name"]),
        comment=str(row["comment"]),
        state=state,
        state_text=str(row["state"]),
        reason=parse.parse_text(str(row["reason"])),
        partition=str(row["partition"]),
        nodes=str(row["nodes"]),
        submitted_at=_time(row["submitted_at"]),
        started_at=_time(row["started_at"]),
        ends_at=_time(row["ends_at"]),
        time_limit_s=row["time_limit_s"],
        exit_code=exit_code,
        exit_signal=exit_signal,
        restarts=int(row["restarts"]),
    )


def _cluster(value: Mapping[str, Any]) -> Cluster:
    asked: Counter[str] = Counter()
    for nodes, gres in value["gres_asked"]:
        for name in parse.expand_nodes(nodes):
            asked[name] += sum(_gpus(gres).values())
    return Cluster(
        name=value["name"],
        slurm_version=value["slurm_version"],
        partitions=tuple(
            Partition(
                **{
                    **row,
                    "nodes": parse.expand_nodes(row["nodes"]),
                    "allowed_accounts": _names(row["allowed_accounts"]),
                    "allowed_qos": _names(row["allowed_qos"]),
                }
            )
            for row in value["partitions"]
        ),
        nodes=tuple(_node(row, asked[row["name"]]) for row in value["nodes"]),
        accounts=UnknownAccounts(value["accounts_error"])
        if value["accounts_error"]
        else _names(value["accounts"]),
        message_timeout_s=int(value["message_timeout_s"]),
        maintenance=tuple(
            sorted(
                (_maintenance(row) for row in value["maintenance"]), key=lambda one: (one.begins_at, one.name)
            )
        ),
    )


def _maintenance(row: Mapping[str, Any]) -> Maintenance:
    begins_at, ends_at = _time(row["begins_at"]), _time(row["ends_at"])
    if begins_at is None or ends_at is None:
        raise ValueError(f"reservation {row['name']} has no times")
    return Maintenance(row["name"], begins_at, ends_at, parse.expand_nodes(row["nodes"]))


def _node(row: Mapping[str, Any], gpus_asked: int) -> Node:
    return Node(
        name=row["name"],
        state=str(row["state"]).upper(),
        cpus=int(row["cpus"]),
        memory_mib=int(row["memory_mib"]),
        gpus=_gpus(row["gres"]),
        partitions=tuple(row["partitions"]),
        features=tuple(row["features"]),
        reason=parse.parse_text(row["reason"]),
        cpus_allocated=int(row["cpus_allocated"]),
        memory_allocated_mib=int(row["memory_allocated_mib"]),
        gpus_allocated=sum(_gpus(row["gres_allocated"]).values()) or gpus_asked,
    )


def _gpus(gres: Mapping[str, int]) -> dict[str, int]:
    """`{"gpu:a100": 2}`, or `{"gres/gpu": 1}` as jobs have it, is `{"a100": 2}` and `{"": 1}`."""
    return parse.parse_gpus(",".join(f"{name.removeprefix('gres/')}:{count}" for name, count in gres.items()))


def _names(names: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(names)
