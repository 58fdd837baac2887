"""What a development cluster is made of, and what is wrong when it cannot be made.

It does not know where the cluster lies or what runs."""

from __future__ import annotations

from dataclasses import dataclass

NODES_MAX = 64
"""A slurmd takes about 6 MB and a port; a development machine has no use for more."""


class ClusterError(Exception):
    """The cluster cannot be made or kept as asked; the message says what is needed."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a cluster is made of. Changing it needs `down` first."""

    nodes: int = 2
    cpus: int = 8
    """CPUs that each node claims to have; the machine need not have them."""
    memory_mib: int = 16000
    gpus: int = 2
    gpu_type: str = ""
    slurm: str = "system"
    """`system`, or the root folder of a chroot that holds Slurm."""
    min_job_age_s: int = 300
    """How long slurmctld remembers an ended job."""
    message_timeout_s: int = 10
    slurmd_timeout_s: int = 30
    """A node that has been silent this long is marked down."""
    kill_wait_s: int = 30
    """Seconds between SIGTERM and SIGKILL."""
    preempt: bool = True
    """Add the partition `preempt`, whose jobs are requeued when any other partition needs their nodes."""
    enforce_part_limits: bool = False
    """Refuse at submit what the partition's limits forbid; Slurm's default lets such a job pend for ever."""

    backup: bool = False
    """Have a second slurmctld, which takes over from the first. Takes root."""
    accounting: bool = False
    """Have a slurmdbd and its MariaDB, which remember what slurmctld forgets. With `system` alone."""

    def check(self) -> None:
        """Raises ClusterError, which names the option and what is possible."""
        if not 1 <= self.nodes <= NODES_MAX:
            raise ClusterError(f"--nodes is {self.nodes}; 1 to {NODES_MAX} are possible")
        if self.gpus < 0 or self.cpus < 1 or self.memory_mib < 1:
            raise ClusterError("--gpus must be 0 or more, --cpus and --memory-mib 1 or more")

    @property
    def node_names(self) -> tuple[str, ...]:
        return tuple(f"node{number}" for number in range(1, self.nodes + 1))

    @property
    def ports(self) -> int:
        """How many it takes: slurmctld's, one for each node, slurmdbd's last."""
        return 1 + self.nodes + self.accounting

    @property
    def of_system(self) -> bool:
        """The machine's own Slurm, not one from a chroot."""
        return self.slurm == "system"
