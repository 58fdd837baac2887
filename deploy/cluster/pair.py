"""A second slurmctld that takes over from the first, as sites with a backup controller have it.

Slurm tells the two apart by the names of their hosts, so each is given one of its own: a namespace in which the machine
has that name, another loopback address, and a folder for its pid file. That takes root.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

PRIMARY, BACKUP = "slurmctld", "slurmctld-backup"
TIMEOUT_S = 5
"""How long the first may be silent until the second takes over."""


@dataclass(frozen=True, slots=True)
class Host:
    """Where one of the two believes to be."""

    name: str
    address: str


HOSTS = {PRIMARY: Host("controller1", "127.0.0.1"), BACKUP: Host("controller2", "127.0.0.2")}


def slurm_conf() -> str:
    """What slurm.conf says of them: commands ask the first, and the second where it does not answer."""
    hosts = "".join(f"SlurmctldHost={host.name}({host.address})\n" for host in HOSTS.values())
    return f"{hosts}SlurmctldTimeout={TIMEOUT_S}\n"


def command(daemon: str, slurmctld: str, root: Path) -> list[str]:
    """Runs this one of them. The pid stays: each program here becomes the next."""
    conf, log = root / "slurm.conf", root / "log" / f"{daemon}.log"
    steps = (
        ("hostname", HOSTS[daemon].name),
        ("mount", "--bind", f"{root / 'hosts'}", "/etc/hosts"),
        ("mount", "--bind", f"{root / 'run' / daemon}", f"{root / 'run'}"),
        ("exec", slurmctld, "-D", "-f", f"{conf}", "-L", f"{log}"),
    )
    start = " && ".join(map(shlex.join, steps))
    return ["unshare", "--uts", "--mount", "--propagation", "private", "sh", "-c", start]


def hosts_file() -> str:
    """What they see as /etc/hosts."""
    return "127.0.0.1 localhost\n" + "".join(f"{host.address} {host.name}\n" for host in HOSTS.values())
