"""Which backend a daemon uses, and why: one choice at start, said in one sentence.

The rule guarded here: `auto` falls back to the commands only before anything was done, never half-way through; which
backend is in use is a line in the log and a field of health, not a guess.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Literal

from penstock.slurm.commands import CommandLine
from penstock.slurm.environment import clean_environment
from penstock.slurm.port import Slurm, SlurmUnavailable
from penstock.slurm.pyslurm import PySlurm

Choice = Literal["auto", "cli", "pyslurm"]


async def choose(
    choice: Choice = "auto",
    *,
    conf: str | None = None,
    pyslurm_python: Sequence[str] = (),
    prefix: Sequence[str] = (),
) -> tuple[Slurm, str]:
    """The backend, ready to use, and one sentence that says why it was chosen.

    `auto` takes pyslurm where `pyslurm_python` names a Python with it and it starts, else the commands. Whether
    slurmctld answers does not matter here: it may be down now and back in a minute. `conf`: SLURM_CONF. `prefix`: put
    before each of Slurm's commands. Raises SlurmUnavailable when what was chosen by name cannot be used.
    """
    if choice == "pyslurm" and not pyslurm_python:
        raise SlurmUnavailable("the pyslurm backend needs the setting of the Python that has pyslurm")
    why_not = "no Python with pyslurm is configured"
    if choice != "cli" and pyslurm_python:
        backend = PySlurm(python=pyslurm_python, conf=conf)
        try:
            version = await backend.start()
        except SlurmUnavailable as error:
            await backend.close()
            if choice == "pyslurm":
                raise
            why_not = f"pyslurm does not start: {error}"
        else:
            return backend, f"Slurm through pyslurm {version} under {pyslurm_python[0]}."
    commands = CommandLine(conf=conf, prefix=prefix)
    program = prefix[0] if prefix else "sbatch"
    if shutil.which(program, path=clean_environment(conf)["PATH"]) is None:
        raise SlurmUnavailable(f"there is no {program} in the PATH; {why_not}")
    reason = "as configured" if choice == "cli" else why_not
    return commands, f"Slurm through its commands: {reason}."
