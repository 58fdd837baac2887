"""What a submission is told to sbatch: pure, submission -> options.

The rule guarded here: the options that Penstock's own rules rest on (the job's name, its comment, one job and no
array, no waiting) cannot be changed by a deployment's extra options.
"""

from __future__ import annotations

import re

from penstock.core.jobs import Submission

COMMENT_BYTES_MAX = 1024
"""Slurm's own limit (MAX_COMMENT_LEN); a longer comment is refused with a sentence that does not name it."""
NAME_BYTES_MAX = 256
"""Slurm takes longer names; none of ours comes near."""

RESERVED_OPTIONS = {
    "array": "a replica is one job",
    "begin": "the controller decides when to start",
    "bb": "not supported yet",
    "bbf": "not supported yet",
    "chdir": "Penstock sets it",
    "clusters": "a daemon serves one cluster",
    "comment": "Penstock finds its jobs by it",
    "dependency": "Penstock's lock against doubled submissions uses it",
    "error": "Penstock sets output, and errors go there too",
    "export": "a job gets a clean environment",
    "export-file": "a job gets a clean environment",
    "get-user-env": "a job gets a clean environment",
    "help": "it submits nothing",
    "hold": "scale the deployment to 0 instead",
    "input": "a job has no input",
    "job-name": "Penstock finds its jobs by it",
    "output": "Penstock sets it",
    "parsable": "Penstock reads the output",
    "quiet": "Penstock reads the output",
    "test-only": "it submits nothing",
    "uid": "Penstock submits as its own user",
    "gid": "Penstock submits as its own user",
    "usage": "it submits nothing",
    "version": "it submits nothing",
    "wait": "Penstock does not wait for jobs to end",
    "wrap": "Penstock writes the script",
}
"""sbatch's options that a deployment may not set, and why."""

KNOWN_OPTIONS = frozenset(
    """
    acctg-freq batch bell burst-buffer-file cluster-constraint constraint container contiguous core-spec
    cores-per-socket cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot distribution exclude exclusive
    extra-node-info gpu-bind gpu-freq gpus gpus-per-node gpus-per-socket gpus-per-task gres gres-flags hint
    ignore-pbs kill-on-invalid-dep licenses mail-type mail-user mcs-label mem mem-bind mem-per-cpu mem-per-gpu
    mincpus network nice no-kill no-requeue nodefile nodelist nodes ntasks ntasks-per-core ntasks-per-gpu
    ntasks-per-node ntasks-per-socket open-mode overcommit oversubscribe partition power prefer priority profile
    propagate qos reboot requeue reservation signal sockets-per-node spread-job switches thread-spec
    threads-per-core time time-min tmp tres-per-task use-min-nodes verbose wait-all-nodes wckey account
    """.split()
)
"""sbatch(1)'s long options that are not reserved, of all releases together: for backends that have no sbatch to ask."""

_NAME = re.compile(r"[a-z][a-z0-9-]*")


def problems(submission: Submission) -> list[str]:
    """What is wrong with a submission before Slurm is asked; one sentence each."""
    found = []
    for name in submission.extra_options:
        if not _NAME.fullmatch(name):
            found.append(f"extra option {name!r} is not the name of a long option of sbatch, without dashes")
        # sbatch also takes any prefix of an option's name that is unique.
        hit = next((reserved for reserved in RESERVED_OPTIONS if reserved.startswith(name)), None)
        if hit is not None:
            found.append(f"extra option {name!r} cannot be set: {RESERVED_OPTIONS[hit]}")
    for label, text, limit in (
        ("name", submission.name, NAME_BYTES_MAX),
        ("comment", submission.comment, COMMENT_BYTES_MAX),
    ):
        if len(text.encode()) > limit:
            found.append(f"the job's {label} has {len(text.encode())} bytes; Slurm takes {limit}")
    if not submission.name:
        found.append("the job's name is empty")
    if not submission.script.startswith("#!"):
        found.append("the script does not begin with #! and an interpreter")
    texts = (submission.script, *arguments(submission)) if not found else ()
    if any("\0" in text for text in texts):
        found.append("a NUL byte stands in the script or in an option")
    return found


def minutes(seconds: int) -> int:
    """Whole minutes, rounded up, as Slurm does."""
    return -(-seconds // 60)


def arguments(submission: Submission) -> list[str]:
    """sbatch's arguments. Extra options come first, so that ours win where both are given."""
    options = [
        f"--{name}={value}" if value else f"--{name}" for name, value in submission.extra_options.items()
    ]
    optional = {
        "partition": submission.partition,
        "account": submission.account,
        "qos": submission.qos,
        "constraint": submission.constraint,
        "reservation": submission.reservation,
        "exclude": ",".join(submission.exclude_nodes) or None,
        "nodelist": ",".join(submission.require_nodes) or None,
        "time": None if submission.time_limit_s is None else str(minutes(submission.time_limit_s)),
        "time-min": None if submission.time_min_s is None else str(minutes(submission.time_min_s)),
        "cpus-per-task": None if submission.cpus_per_task is None else str(submission.cpus_per_task),
        "mem": None if submission.memory_per_node_mib is None else f"{submission.memory_per_node_mib}M",
        "gres": submission.gres,
        "signal": None if submission.warn_signal_s is None else f"B:TERM@{submission.warn_signal_s}",
        "dependency": "singleton" if submission.singleton else None,
    }
    options += [f"--{name}={value}" for name, value in optional.items() if value is not None]
    if submission.exclusive:
        options.append("--exclusive")
    return [
        *options,
        f"--nodes={submission.nodes}",
        f"--ntasks-per-node={submission.tasks_per_node}",
        f"--job-name={submission.name}",
        f"--comment={submission.comment}",
        f"--chdir={submission.work_dir}",
        f"--output={submission.output}",
    ]
