"""`cluster`: what there is to run on, and whether Penstock's own parts answer."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli.connection import TIMEOUT_S, Server, run
from penstock.cli.options import address
from penstock.cli.output import DataFormat, age, data, say, table
from penstock.v1 import cluster_pb2 as pb
from penstock.v1 import metadata_pb2


def cluster(
    context: typer.Context,
    output: Annotated[DataFormat, typer.Option("--output", "-o", help="How to show it.")] = DataFormat.TABLE,
) -> None:
    """Show the Slurm cluster as Penstock sees it: partitions, nodes and limits.

    Examples:

      penstock cluster
    """

    async def command(server: Server) -> None:
        system = await server.cluster.GetSystem(pb.GetSystemRequest(), timeout=TIMEOUT_S)
        if output is DataFormat.TABLE:
            _system(system)
        found = await server.cluster.GetCluster(pb.GetClusterRequest(), timeout=TIMEOUT_S)
        if output is DataFormat.TABLE:
            _cluster(found)
        else:
            data([found], output, is_list=False)

    run(address(context), command)


def _system(system: pb.GetSystemResponse) -> None:
    words = {
        metadata_pb2.CONDITION_STATUS_TRUE: "answers",
        metadata_pb2.CONDITION_STATUS_FALSE: "does not answer",
    }
    say(f"Penstock {system.version}, schema {system.schema_version}")
    for part in system.conditions:
        message = f": {part.message}" if part.message else ""
        say(f"  {part.type} {words.get(part.status, 'is not known')} since {age(part.since)}{message}")


def _cluster(found: pb.GetClusterResponse) -> None:
    seen = f"seen {age(found.observed_at)} ago"
    say(f"\nCluster {found.name}, Slurm {found.slurm_version} through {found.backend}, {seen}\n")
    table(
        ("PARTITION", "STATE", "DEFAULT", "MAX-TIME", "DEFAULT-TIME", "NODES", "CPUS", "GPUS"),
        [
            (
                item.name,
                "up" if item.up else "down",
                "yes" if item.is_default else "",
                _limit(item.max_time_s) if item.HasField("max_time_s") else "none",
                _limit(item.default_time_s) if item.HasField("default_time_s") else "-",
                str(item.total_nodes),
                str(item.total_cpus),
                str(item.total_gpus),
            )
            for item in found.partitions
        ],
    )
    say()
    table(
        ("NODE", "STATE", "CPUS", "MEMORY-MIB", "GPUS", "GPU-TYPES", "PARTITIONS", "REASON"),
        [
            (
                item.name,
                item.state,
                f"{item.cpus_allocated}/{item.cpus}",
                f"{item.memory_allocated_mib}/{item.memory_mib}",
                f"{item.gpus_allocated}/{item.gpus}",
                ",".join(f"{kind or 'gpu'}:{count}" for kind, count in sorted(item.gpu_types.items())) or "-",
                ",".join(item.partitions),
                "; ".join(text for text in (item.reason, item.avoided) if text),
            )
            for item in found.nodes
        ],
    )


def _limit(seconds: int) -> str:
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600:02}:{rest % 3600 // 60:02}:{rest % 60:02}"
    return f"{days}-{clock}" if days else clock
