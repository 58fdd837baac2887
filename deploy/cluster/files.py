"""The files that make a cluster, as text: nothing here reads or writes one."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from deploy.cluster import pair
from deploy.cluster.settings import Settings


def slurm_conf(
    root: Path,
    name: str,
    settings: Settings,
    *,
    ports: Sequence[int],
    address: str,
    only_there: bool,
    user: str,
    accounting: str = "",
) -> str:
    """slurm.conf. The first of `ports` is slurmctld's, those after it are the nodes'; `only_there`: the daemons listen
    at `address` alone; `accounting`: the lines that name slurmdbd, if there is one.

    What is not obvious: cred_expire under 5 is dropped with only a log line, and the default holds a requeued job for
    two minutes; config_overrides lets a node claim CPUs that the machine lacks.
    """
    bound = ["NoInAddrAny"] * only_there + ["NoCtldInAddrAny"] * (only_there or settings.backup)
    bind = f"CommunicationParameters={','.join(bound)}" if bound else ""
    controllers = pair.slurm_conf() if settings.backup else f"SlurmctldHost=localhost({address})\n"
    gres = (
        f" Gres=gpu:{settings.gpu_type + ':' if settings.gpu_type else ''}{settings.gpus}"
        if settings.gpus
        else ""
    )
    nodes = "\n".join(
        f"NodeName=node{number} NodeHostname=localhost NodeAddr={address} Port={port} CPUs={settings.cpus}"
        f" RealMemory={settings.memory_mib}{gres}"
        for number, port in enumerate(ports[1 : 1 + settings.nodes], start=1)
    )
    everywhere = f"Nodes=node[1-{settings.nodes}] State=UP"
    tier = " PriorityTier=10" if settings.preempt else ""
    preempt = (
        f"PartitionName=preempt {everywhere} MaxTime=UNLIMITED DefaultTime=60 PriorityTier=1"
        " PreemptMode=REQUEUE GraceTime=5\n"
        if settings.preempt
        else ""
    )
    preempt_type = "PreemptType=preempt/partition_prio\nPreemptMode=REQUEUE" if settings.preempt else ""
    return f"""\
# Written by deploy.cluster; changes are lost at the next start.
ClusterName={name}
{controllers}SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
{bind}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/%n.log
ProctrackType=proctrack/linuxproc
MpiDefault=none
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1000
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge={settings.min_job_age_s}
MessageTimeout={settings.message_timeout_s}
UnkillableStepTimeout={5 * settings.message_timeout_s + 10}
SlurmdTimeout={settings.slurmd_timeout_s}
KillWait={settings.kill_wait_s}
EnforcePartLimits={"ALL" if settings.enforce_part_limits else "NO"}
{preempt_type}
{accounting}{nodes}
PartitionName=gpu {everywhere} Default=YES MaxTime=UNLIMITED DefaultTime=60{tier}
PartitionName=cpu {everywhere} MaxTime=UNLIMITED DefaultTime=60{tier}
PartitionName=short {everywhere} MaxTime=10 DefaultTime=5{tier}
{preempt}"""


def gres_conf(root: Path, settings: Settings) -> str:
    """gres.conf: each node's GPUs, all of them links to the same nothing."""
    if not settings.gpus:
        return ""
    kind = f" Type={settings.gpu_type}" if settings.gpu_type else ""
    numbers = "0" if settings.gpus == 1 else f"[0-{settings.gpus - 1}]"
    return f"NodeName=node[1-{settings.nodes}] Name=gpu{kind} File={root}/dev/gpu{numbers}\n"


def enter_script(chroot: Path, root: Path) -> str:
    """A script that runs a command in the chroot, where the cluster's folder has the same path as outside.

    The mounts are in a mount namespace of the command's own: they are gone when it ends, and removing the chroot
    can never reach through a forgotten mount into /dev.
    """
    inside = shlex.quote(f"{chroot}{root}")
    return f"""\
#!/bin/sh
set -e
if [ "$PENSTOCK_CLUSTER_ENTERED" != 1 ]; then
    mkdir -p {inside}
    PENSTOCK_CLUSTER_ENTERED=1 exec unshare --mount --propagation private "$0" "$@"
fi
unset PENSTOCK_CLUSTER_ENTERED
mount --bind /dev {shlex.quote(str(chroot / "dev"))}
mount --bind /proc {shlex.quote(str(chroot / "proc"))}
mount --rbind /sys {shlex.quote(str(chroot / "sys"))}
mount --bind {shlex.quote(str(root))} {inside}
mount --bind {inside}/hosts {shlex.quote(str(chroot / "etc" / "hosts"))}
exec chroot {shlex.quote(str(chroot))} "$@"
"""
