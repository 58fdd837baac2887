#!/usr/bin/env python3
"""The process that pyslurm lives in: one request a line on standard input, one answer a line on standard output.

The only file that imports pyslurm. It runs under whichever Python the site built pyslurm for (3.6 or later), where
there may be no Penstock, so it imports nothing of it. pyslurm is GPL-2.0-only; a process of its own keeps its licence,
its hold on the interpreter's lock through every call, and its crashes to itself.

A request is {"id": N, "call": NAME, "with": {...}}; its answer {"id": N, "value": ...} or
{"id": N, "error": {"kind": KIND, "message": TEXT}}. KIND says what the caller may conclude:

    no-job    Slurm knows no such job, or it bears another name
    refused   Slurm said no to a submission, or this file did before asking
    failed    anything else: nothing may be concluded

The first line is the greeting: {"pyslurm": VERSION} or {"error": TEXT}. The process ends when its input ends.

It decides nothing and keeps nothing between two requests.
"""

import json
import os
import sys
from typing import Any

ERRNO_SLURM = 1000
"""Slurm's own error numbers begin here; lower ones are the system's, and may be left over from an earlier call."""
ERRNO_REFUSED = range(2000, 3000)
"""slurm_errno.h: 2000 to 2999 are slurmctld's answers about jobs. Others tell of the way there: lost or late."""
ERRNO_PLUGIN_SAID_NO = -1
"""SLURM_ERROR: a job_submit plugin has returned slurm.ERROR. What it says goes to standard error."""
ERRNO_INVALID_JOB = 2017
ERRNO_OVER = (2017, 2021)
"""ESLURM_INVALID_JOB_ID and ESLURM_ALREADY_DONE."""

OPTIONS = {
    "batch": "batch_constraints",
    "cluster-constraint": "cluster_constraints",
    "container": "container",
    "core-spec": "cores_reserved_for_system",
    "cores-per-socket": "cores_per_socket",
    "cpu-freq": "cpu_frequency",
    "cpus-per-gpu": "cpus_per_gpu",
    "deadline": "deadline",
    "delay-boot": "delay_boot_time",
    "distribution": "distribution",
    "gpu-bind": "gpu_binding",
    "gpus": "gpus",
    "gpus-per-socket": "gpus_per_socket",
    "gpus-per-task": "gpus_per_task",
    "licenses": "licenses",
    "mail-user": "mail_user",
    "mcs-label": "mcs_label",
    "mem-per-cpu": "memory_per_cpu",
    "mem-per-gpu": "memory_per_gpu",
    "mincpus": "min_cpus_per_node",
    "network": "network",
    "nice": "nice",
    "nodelist": "required_nodes",
    "ntasks-per-core": "ntasks_per_core",
    "ntasks-per-socket": "ntasks_per_socket",
    "open-mode": "log_files_open_mode",
    "priority": "priority",
    "sockets-per-node": "sockets_per_node",
    "thread-spec": "threads_reserved_for_system",
    "threads-per-core": "threads_per_core",
    "time-min": "time_limit_min",
    "tmp": "temporary_disk_per_node",
    "wckey": "wckey",
}
"""sbatch's long option -> attribute of JobSubmitDescription that takes the same text."""

FLAGS = {
    "contiguous": ("requires_contiguous_nodes", True),
    "kill-on-invalid-dep": ("kill_on_invalid_dependency", True),
    "no-kill": ("kill_on_node_fail", False),
    "no-requeue": ("is_requeueable", False),
    "overcommit": ("overcommit", True),
    "oversubscribe": ("resource_sharing", "yes"),
    "reboot": ("requires_node_reboot", True),
    "requeue": ("is_requeueable", True),
    "spread-job": ("spreads_over_nodes", True),
    "use-min-nodes": ("use_min_nodes", True),
}
"""sbatch's long option without a value -> attribute and its value."""


class Answer(Exception):
    """An error to be told to the caller."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def text(thing: Any, attribute: str) -> str:
    """An attribute that a user wrote. pyslurm cannot decode what is not UTF-8; one such job must not hide the rest."""
    try:
        return str(getattr(thing, attribute) or "")
    except UnicodeDecodeError:
        return "\N{REPLACEMENT CHARACTER}"


def exit_of(job: Any) -> Any:
    """Exit code and signal. pyslurm takes 128 off an exit code of 128 or more; that cannot be undone here."""
    return [job.exit_code or 0, job.exit_code_signal or 0]


def minutes(value: Any) -> Any:
    """Seconds of a number of minutes; null for UNLIMITED."""
    return int(value) * 60 if isinstance(value, int) or str(value).isdigit() else None


def job_row(job: Any) -> Any:
    """One job, as the client reads it."""
    return {
        "job_id": job.id,
        "name": text(job, "name"),
        "comment": text(job, "comment"),
        "state": job.state or "",
        "reason": text(job, "state_reason"),
        "partition": job.partition or "",
        "nodes": job.allocated_nodes or "",
        "submitted_at": job.submit_time,
        "started_at": job.start_time,
        "ends_at": job.end_time,
        "time_limit_s": minutes(job.time_limit),
        "exit": exit_of(job),
        "restarts": job.requeue_count or 0,
    }


def list_jobs(pyslurm: Any) -> Any:
    """The jobs of this user; libslurm loads everybody's."""
    uid = os.geteuid()
    return [job_row(job) for job in pyslurm.Jobs.load().values() if job.user_id == uid]


def look_up(pyslurm: Any, job_id: int, name: str) -> Any:
    """The job of this user with this id and name."""
    try:
        job = pyslurm.Job.load(job_id)
    except pyslurm.RPCError as error:
        if error.errno == ERRNO_INVALID_JOB:
            raise Answer("no-job", f"Slurm knows no job {job_id} ({name})") from error
        raise
    if job.user_id != os.geteuid():
        raise Answer("no-job", f"job {job_id} is another user's, not {name}")
    if text(job, "name") != name:
        raise Answer(
            "no-job", f"job {job_id} is named {text(job, 'name')!r}, not {name}: its id was used again"
        )
    return job


def signal(pyslurm: Any, job_id: int, name: str, signal: str) -> None:
    """Send a signal to the batch shell of a running job."""
    job = look_up(pyslurm, job_id, name)
    if job.state != "RUNNING":
        raise Answer("no-job", f"job {job_id} ({name}) is {job.state}, so it cannot be sent {signal}")
    try:
        job.send_signal("SIG" + signal.replace("SIG", "", 1), steps="batch")
    except pyslurm.RPCError as error:
        if error.errno in ERRNO_OVER:
            raise Answer("no-job", f"job {job_id} ({name}) ended before it could be sent {signal}") from error
        if error.errno >= ERRNO_SLURM:
            raise


def cancel(pyslurm: Any, job_id: int, name: str, only_waiting: bool = False) -> None:
    """Slurm's own cancelling: SIGTERM, then SIGKILL after KillWait."""
    job = look_up(pyslurm, job_id, name)
    if only_waiting and job.state != "PENDING":
        return
    try:
        job.cancel()
    except pyslurm.RPCError as error:
        # pyslurm reads errno although the call succeeded; what is below 1000 there is left over from a system call.
        if error.errno not in ERRNO_OVER and error.errno >= ERRNO_SLURM:
            raise


def submit(pyslurm: Any, attributes: Any, environment: Any, extra_options: Any) -> int:
    """Submit one job and return its id. Options that are not wanted are not in `attributes`."""
    for name, value in extra_options.items():
        if name in FLAGS and not value:
            attribute, value = FLAGS[name]
        elif name in OPTIONS and value:
            attribute = OPTIONS[name]
        else:
            raise Answer(
                "refused",
                f"sbatch's --{name}{'=' + value if value else ''} has no counterpart in pyslurm",
            )
        attributes.setdefault(attribute, value)
    try:
        description = pyslurm.JobSubmitDescription(environment=environment, **attributes)
        return int(description.submit())
    except pyslurm.RPCError as error:
        if error.errno in ERRNO_REFUSED or error.errno == ERRNO_PLUGIN_SAID_NO:
            raise Answer("refused", str(error)) from error
        raise
    except (TypeError, ValueError, AttributeError) as error:
        # Raised while the description is filled in, before anything is sent.
        raise Answer("refused", str(error)) from error


def allowed(names: Any) -> Any:
    """A list of names; null for all."""
    given = list(names or [])
    return None if not given or given == ["ALL"] else given


def cluster(pyslurm: Any) -> Any:
    """Partitions, nodes and limits."""
    config = pyslurm.slurmctld.Config.load()
    accounts, accounts_error = None, ""
    if "ASSOCIATIONS" in config.accounting_storage_enforce:
        try:
            user = pyslurm.utils.helpers.uid_to_name(os.geteuid())
            found = pyslurm.db.Associations.load(pyslurm.db.AssociationFilter(users=[user]))
            accounts = sorted({association.account for association in found})
        except Exception as error:  # slurmctld runs on without slurmdbd
            accounts_error = f"{type(error).__name__}: {error}"
    return {
        "gres_asked": gres_asked(pyslurm),
        "name": config.cluster_name,
        "slurm_version": config.version,
        "message_timeout_s": config.message_timeout,
        "accounts": accounts,
        "accounts_error": accounts_error,
        "maintenance": [
            {
                "name": reservation.name,
                "begins_at": reservation.start_time,
                "ends_at": reservation.end_time,
                "nodes": reservation.nodes or "",
            }
            for reservation in pyslurm.Reservations.load().values()
            if pyslurm.ReservationFlags.MAINTENANCE in reservation.flags
        ],
        "partitions": [
            {
                "name": partition.name,
                "up": partition.state == "UP",
                "is_default": bool(partition.is_default),
                "max_time_s": minutes(partition.max_time),
                "default_time_s": minutes(partition.default_time),
                "max_nodes": partition.max_nodes if isinstance(partition.max_nodes, int) else None,
                "total_nodes": partition.total_nodes,
                "total_cpus": partition.total_cpus,
                "nodes": partition.nodes or "",
                "allowed_accounts": allowed(partition.allowed_accounts),
                "allowed_qos": allowed(partition.allowed_qos),
            }
            for partition in pyslurm.Partitions.load().values()
        ],
        "nodes": [
            {
                "name": node.name,
                "state": node.state,
                "cpus": node.total_cpus,
                "memory_mib": node.real_memory,
                "gres": node.configured_gres or {},
                "partitions": sorted(node.partitions or []),
                "features": list(node.available_features or []),
                "reason": text(node, "reason"),
                "cpus_allocated": node.allocated_cpus or 0,
                "memory_allocated_mib": node.allocated_memory or 0,
                "gres_allocated": node.allocated_gres or {},
            }
            for node in pyslurm.Nodes.load().values()
        ],
    }


def gres_asked(pyslurm: Any) -> Any:
    """Node list and resources asked for on each of its nodes, for every job that holds nodes.

    A node tells what is in use only where Slurm accounts for it (AccountingStorageTRES), and a job's layout crashes
    pyslurm. So this stands in for it; it does not see GPUs asked for in other ways than --gres.
    """
    holding = ("RUNNING", "COMPLETING", "SUSPENDED")
    jobs = [job for job in pyslurm.Jobs.load().values() if job.state in holding and job.allocated_nodes]
    return [[job.allocated_nodes, getattr(job, "gres_per_node", None) or {}] for job in jobs]


CALLS: Any = {
    "list_jobs": list_jobs,
    "submit": submit,
    "cancel": cancel,
    "signal": signal,
    "cluster": cluster,
}


def answer(pyslurm: Any, line: str) -> Any:
    """The answer to one request."""
    request = json.loads(line)
    try:
        return {"id": request["id"], "value": CALLS[request["call"]](pyslurm, **request["with"])}
    except Answer as error:
        return {"id": request["id"], "error": {"kind": error.kind, "message": str(error)}}
    except (
        Exception
    ) as error:  # whatever it is, the caller must hear of it, and the next request may do better
        return {
            "id": request["id"],
            "error": {"kind": "failed", "message": f"{type(error).__name__}: {error}"},
        }


def main() -> int:
    """Answer until the input ends."""
    # libslurm writes to standard output and error as it likes: the protocol keeps a descriptor that it does not know.
    out = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    # Beside this file lie modules of other names; one of them is called pyslurm too.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]

    def say(message: Any) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    try:
        import pyslurm  # type: ignore[import-not-found, unused-ignore]
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}"})
        return 1
    say({"pyslurm": pyslurm.version.__version__})
    for line in sys.stdin:
        say(answer(pyslurm, line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
