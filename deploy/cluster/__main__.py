"""The development cluster's command line: up, status, down.

python -m deploy.cluster up --root ~/.local/state/penstock/cluster
python -m deploy.cluster status --root ...
python -m deploy.cluster down --root ...
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from deploy.cluster.cluster import Cluster
from deploy.cluster.settings import ClusterError, Settings


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.cluster",
        description="A small Slurm cluster on this machine, for development and tests.",
    )
    parser.add_argument("action", choices=["up", "down", "status"])
    parser.add_argument(
        "--root", type=Path, required=True, help="the folder that holds everything of this cluster"
    )
    default = Settings()
    parser.add_argument("--nodes", type=int, default=default.nodes)
    parser.add_argument("--cpus", type=int, default=default.cpus, help="CPUs that each node claims to have")
    parser.add_argument(
        "--memory-mib", type=int, default=default.memory_mib, help="memory that each node claims to have"
    )
    parser.add_argument("--gpus", type=int, default=default.gpus, help="fake GPUs for each node")
    parser.add_argument("--gpu-type", default=default.gpu_type, help="name them, as in gpu:a100:2")
    parser.add_argument(
        "--slurm",
        nargs="+",
        default=["system"],
        metavar=("system | chroot", "DIR"),
        help="which Slurm to run",
    )
    parser.add_argument("--backup", action="store_true", help="have a second slurmctld that takes over")
    parser.add_argument("--accounting", action="store_true", help="have a slurmdbd, and a MariaDB for it")
    parser.add_argument("--min-job-age-s", type=int, default=default.min_job_age_s)
    parser.add_argument("--kill-wait-s", type=int, default=default.kill_wait_s)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments()
    given = parser.parse_args(argv)
    match given.slurm:
        case ["system"]:
            slurm = "system"
        case ["chroot", folder]:
            slurm = str(Path(folder).absolute())
        case _:
            parser.error("--slurm takes: system, or: chroot DIR")
    settings = Settings(
        nodes=given.nodes,
        cpus=given.cpus,
        memory_mib=given.memory_mib,
        gpus=given.gpus,
        gpu_type=given.gpu_type,
        slurm=slurm,
        backup=given.backup,
        accounting=given.accounting,
        min_job_age_s=given.min_job_age_s,
        kill_wait_s=given.kill_wait_s,
    )
    cluster = Cluster(given.root, settings)
    try:
        if given.action == "up":
            began = time.monotonic()
            cluster.up()
            print(f"{settings.nodes} nodes are ready after {time.monotonic() - began:.1f} s", file=sys.stderr)
            print(f"export SLURM_CONF={shlex.quote(str(cluster.conf))}")
        elif given.action == "down":
            cluster.down()
        else:
            state = cluster.status()
            for name, alive in state.items():
                print(f"{name}: {'running' if alive else 'stopped'}")
            return 0 if state and all(state.values()) else 3
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
