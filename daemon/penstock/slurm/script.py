"""A replica as a batch job: a pure function from what is wanted to what Slurm is told.

The script runs the agent and nothing else; `exec` makes the agent the batch shell, so that Slurm's signals
reach it and its exit code is the job's. What the agent needs lies in the attempt's folder on the shared file
system, because Slurm shows or stores everything else: scripts, arguments, comments and environments. Nothing
secret passes through this file.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from penstock.core import parallel
from penstock.core.jobs import Submission
from penstock.core.model import job_comment, job_name
from penstock.core.spec import Resources, Spec
from penstock.core.walltime import warning_s
from penstock.slurm.parse import ParseError, expand_nodes

OUTPUT_NAME = "job.out"
"""The job's output, in the attempt's folder."""


@dataclass(frozen=True, slots=True)
class JobPlan:
    """Which attempt the job is for, and where things are as the compute nodes see them."""

    installation: str
    deployment: str
    replica: str
    revision: int
    token: str
    folder: PurePosixPath
    """The attempt's own folder; it exists when the job is submitted."""
    python: str
    """The interpreter that has `penstock_runtime`."""


def render(
    job: JobPlan,
    spec: Spec,
    exclude: tuple[str, ...] = (),
    *,
    require: tuple[str, ...] = (),
    time_limit_s: int | None = None,
    time_min_s: int | None = None,
) -> Submission:
    """What to submit for one attempt of one replica, away from the nodes of `exclude` and on those of `require`.

    `time_limit_s`: for this job; None: the placement's. `time_min_s`: Slurm may shorten it to this by itself.
    """
    placement, resources = spec.placement, spec.resources
    exclude, options = _exclusion(exclude, placement.options)
    limit_s = placement.time_limit_s if time_limit_s is None else time_limit_s
    return Submission(
        name=job_name(job.deployment, job.token),
        comment=job_comment(job.installation, job.token),
        script=script(job, spec),
        work_dir=str(job.folder),
        output=str(job.folder / OUTPUT_NAME),
        partition=placement.partition or None,
        account=placement.account or None,
        qos=placement.qos or None,
        constraint=placement.constraint or None,
        reservation=placement.reservation or None,
        exclude_nodes=exclude,
        require_nodes=require,
        time_limit_s=limit_s,
        time_min_s=time_min_s,
        nodes=resources.nodes,
        cpus_per_task=resources.cpus,
        memory_per_node_mib=resources.memory_mib,
        gres=_gres(resources),
        exclusive=placement.exclusive,
        warn_signal_s=warning_s(spec, limit_s),
        extra_options=options,
    )


def _exclusion(
    exclude: tuple[str, ...], options: Mapping[str, str]
) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """Our nodes and those of the deployment's own `exclude` as one list, and the options without it; sbatch heeds only
    the last --exclude that it is given. A list that is in a file is the deployment's alone."""
    own = options.get("exclude")
    if not exclude or own is None:
        return exclude, options
    try:
        theirs = () if "/" in own else expand_nodes(own)
    except ParseError:
        theirs = ()
    if not theirs:
        return (), options
    rest = {name: value for name, value in options.items() if name != "exclude"}
    return tuple(dict.fromkeys((*theirs, *exclude))), rest


def script(job: JobPlan, spec: Spec) -> str:
    """The batch script, complete. What is started where stands in its comments, for whoever reads the job."""
    command = shlex.join([job.python, "-m", "penstock_runtime", "--folder", str(job.folder)])
    lines = [
        f"Penstock: replica {job.replica}, revision {job.revision}, attempt {job.token}.",
        f"The agent starts the engine {spec.engine.name} {spec.environment}."
        if spec.engine.name != "standin"
        else "The agent starts the stand-in engine.",
    ]
    if spec.resources.nodes > 1:
        lines.append(
            f"It is the head, on the first of {spec.resources.nodes} nodes; with srun it starts the others' agents."
        )
    if added := parallel.added(spec):
        lines.append(f"The engine's arguments say nothing about parallelism; added: {shlex.join(added)}")
    lines.append(
        "The agent takes this shell's place: Slurm's signals are for it, and its exit code is the job's."
    )
    return "".join(["#!/bin/bash\n", *(f"# {line}\n" for line in lines), f"exec {command}\n"])


def _gres(resources: Resources) -> str | None:
    if resources.gpus == 0:
        return None
    return ":".join(word for word in ("gpu", resources.gpu_type, str(resources.gpus)) if word)
