"""What Slurm's programs, and through a submission the jobs, see of the daemon's environment.

The rule guarded here: the rest stays with the daemon. It may hold the database's password, which a job would show to
everyone who may look at it; and SLURM_*, SBATCH_* and SQUEUE_* would change what is asked and submitted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

PASSED_ON = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LD_LIBRARY_PATH", "TMPDIR")
"""A login shell's variables; LD_LIBRARY_PATH where Slurm is installed off the beaten track."""


def clean_environment(conf: str | None, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables to run Slurm's programs with.

    `conf`: SLURM_CONF; None for the daemon's own, or else what Slurm finds by itself (a built-in path, a DNS record).
    `environment`: what to choose from, in place of the process's own.
    """
    source = os.environ if environment is None else environment
    chosen = {name: source[name] for name in PASSED_ON if name in source}
    chosen.setdefault("PATH", os.defpath)
    conf = conf or source.get("SLURM_CONF")
    return {**chosen, "SLURM_CONF": conf} if conf else chosen
