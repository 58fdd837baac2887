"""The cluster, as Slurm described it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from penstock.core import jobs as core
from penstock.rpc.convert.time import time_out
from penstock.v1 import cluster_pb2


def cluster_out(
    cluster: core.Cluster, backend: str, observed_at: datetime, avoided: Mapping[str, str]
) -> cluster_pb2.GetClusterResponse:
    """Partitions and nodes with what they have and what of it is taken. `avoided`: node -> why replicas stay away."""
    return cluster_pb2.GetClusterResponse(
        name=cluster.name,
        slurm_version=cluster.slurm_version,
        backend=backend,
        partitions=[_partition_out(partition, cluster.nodes) for partition in cluster.partitions],
        nodes=[_node_out(node, avoided.get(node.name, "")) for node in cluster.nodes],
        observed_at=time_out(observed_at),
    )


def _partition_out(partition: core.Partition, nodes: tuple[core.Node, ...]) -> cluster_pb2.Partition:
    return cluster_pb2.Partition(
        name=partition.name,
        up=partition.up,
        is_default=partition.is_default,
        max_time_s=partition.max_time_s,
        default_time_s=partition.default_time_s,
        max_nodes=partition.max_nodes,
        total_nodes=partition.total_nodes,
        total_cpus=partition.total_cpus,
        total_gpus=sum(node.total_gpus for node in nodes if partition.name in node.partitions),
    )


def _node_out(node: core.Node, avoided: str) -> cluster_pb2.Node:
    return cluster_pb2.Node(
        name=node.name,
        state=node.state,
        reason=node.reason,
        cpus=node.cpus,
        cpus_allocated=node.cpus_allocated,
        memory_mib=node.memory_mib,
        memory_allocated_mib=node.memory_allocated_mib,
        gpus=node.total_gpus,
        gpus_allocated=node.gpus_allocated,
        gpu_types=node.gpus,
        partitions=node.partitions,
        features=node.features,
        avoided=avoided,
    )
