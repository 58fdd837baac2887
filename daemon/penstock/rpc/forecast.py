"""What the controller would decide next if a wish were committed now: the planner asked on a world that holds
it. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from penstock.core.budget import WINDOW
from penstock.core.decisions import Decision
from penstock.core.estimates import Start
from penstock.core.jobs import MESSAGE_TIMEOUT_S, Cluster
from penstock.core.model import Deployment, Listing, Observation, Replica, Unknown
from penstock.core.plan import plan
from penstock.rpc.deps import Deps
from penstock.rpc.standing import MAX_REPLICAS
from penstock.slurm.port import SlurmUnavailable
from penstock.store.queries import attempts, members, replicas


async def forecast(
    deps: Deps, cluster: Cluster | None, wished: Deployment, adopted: Collection[int], *, is_new: bool
) -> tuple[Decision, ...]:
    """The decisions about this deployment and its replicas that the next tick would make. `cluster`: if it is known;
    `adopted`: revisions whose replicas would belong to the wished one."""
    own: tuple[Replica, ...] = ()
    starts: Mapping[str, tuple[Start, ...]] = {}
    async with deps.db.snapshot() as conn:
        if not is_new:
            own = tuple(
                replace(one, revision=wished.revision) if one.revision in adopted and not one.leaving else one
                for one in await replicas.list_page(conn, deployment=wished.name, limit=MAX_REPLICAS)
            )
            starts = await attempts.starts(conn, wished.uid)
        heard = await members.heard(conn)
        now = deps.clock()
        failures = await attempts.failures(conn, now - WINDOW)
    slurm: Listing | Unknown
    try:
        slurm = Listing(await deps.slurm.list_jobs())
    except SlurmUnavailable as error:
        slurm = Unknown(str(error), now)
    decided = plan(
        Observation(
            now=now,
            installation=deps.installation,
            deployments=(wished,),
            replicas=own,
            slurm=slurm,
            heard=heard,
            failures=failures,
            starts=starts,
            cluster=cluster,
            message_timeout_s=cluster.message_timeout_s if cluster else MESSAGE_TIMEOUT_S,
        )
    )
    # Jobs of other deployments look like orphans to a planner that was shown one deployment only.
    return tuple(
        found for found in decided.decisions if found.deployment == wished.name or isinstance(slurm, Unknown)
    )
