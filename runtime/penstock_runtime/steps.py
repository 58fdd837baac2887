"""Steps of this very job: what `srun` is told, as a pure function.

Two things are steps: the agents of a replica's other nodes, and an engine in a Pyxis container. Everything that srun
would take from the job's environment and that is not the same for a step is said here, because Slurm's releases differ
in what they take.
"""

from __future__ import annotations

from collections.abc import Mapping


def srun(inherited: Mapping[str, str], *, nodes: int, where: str) -> tuple[str, ...]:
    """The beginning of the command: one task on each of `nodes` nodes. `where`: an option that says which.

    `--overlap`, because a node's agent may be a step itself and holds what the engine is to use; `--export=ALL`,
    because the job was submitted with a clean environment, and without it its steps would have none at all;
    `--cpus-per-task`, because since 22.05 a step has one CPU unless it says otherwise; `--mem=0`: all of the job's.
    """
    cpus = inherited.get("SLURM_CPUS_PER_TASK")
    return (
        "srun",
        f"--nodes={nodes}",
        f"--ntasks={nodes}",
        "--ntasks-per-node=1",
        where,
        *((f"--cpus-per-task={cpus}",) if cpus else ()),
        "--mem=0",
        "--overlap",
        "--export=ALL",
        "--input=none",
        "--unbuffered",
        "--mpi=none",
        "--kill-on-bad-exit=1",
    )
