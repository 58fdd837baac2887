"""LoRA adapters: which of them a replica has, which it lacks, and what is said of it.

A deployment names its adapters; each replica's agent is told which, loads them into its engine, and reports how it went
(`AdapterStanding`). Whoever decides, routes or explains asks here. Loading, and trying again, is the agent's business.

The rule guarded here: a replica has an adapter only as its agent said last, and only from the very folder that is
wanted. So a request for it meets no replica that does not know it, or that has other weights under its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from penstock.core.arguments import options
from penstock.core.model import AdapterStanding, Deployment, Replica, ReplicaState
from penstock.core.sentences import count
from penstock.core.spec import Adapter, Engine

_SERVERS = ("--api-server-count", "-asc")
_SERVERS_BY_DEFAULT = ("--data-parallel-size", "-dp", "--data-parallel-size-local", "-dpl")
"""vLLM starts as many API servers as these say, where the first do not say how many."""


@dataclass(frozen=True, slots=True)
class Lack:
    """An adapter that a ready replica should have and has not."""

    replica: str
    adapter: str
    message: str
    """Why it cannot be loaded; empty: it is about to be."""


def fixed(engine: Engine) -> bool:
    """Whether the engine takes adapters at its start only: of several API servers of vLLM one alone would hear of them.

    >>> fixed(Engine(args=("--api-server-count", "2"))), fixed(Engine(args=("-dp=4", "--api_server_count=1")))
    (True, False)
    """
    for names in (_SERVERS, _SERVERS_BY_DEFAULT):
        for _, name, value in options(engine.args):
            if name in names:
                return value != "1"
    return False


def loaded(wanted: Iterable[Adapter], standings: Iterable[AdapterStanding]) -> tuple[str, ...]:
    """The names of those wanted that a replica has."""
    has = {(one.name, one.path) for one in standings if one.loaded}
    return tuple(adapter.name for adapter in wanted if (adapter.name, adapter.path) in has)


def lacks(deployment: Deployment, replica: Replica) -> tuple[Lack, ...]:
    """What a replica has not of the adapters that are wanted. Nothing is said of one that is not ready, that is to go,
    or that is of another revision, whose adapters may be others."""
    attempt = replica.live_attempt
    if attempt is None or not judged(deployment, replica):
        return ()
    wanted = deployment.spec.model.adapters
    has = loaded(wanted, attempt.adapters)
    said = {(one.name, one.path): one.message for one in attempt.adapters}
    return tuple(
        Lack(replica.name, adapter.name, said.get((adapter.name, adapter.path), ""))
        for adapter in wanted
        if adapter.name not in has
    )


def judged(deployment: Deployment, replica: Replica) -> bool:
    """Whether the replica is one of those that should have all adapters by now."""
    return (
        replica.state is ReplicaState.READY
        and not replica.leaving
        and replica.revision == deployment.revision
        and replica.live_attempt is not None
    )


def told(lacking: Sequence[Lack]) -> str:
    """What a replica lacks, in one sentence; the first failure is told whole."""
    failed = [lack for lack in lacking if lack.message]
    if failed:
        more = len(failed) - 1
        also = f"; and {count(more, 'other adapter')} cannot be loaded either" if more else ""
        return (
            f"adapter {failed[0].adapter!r} cannot be loaded, which is tried again: {failed[0].message}{also}"
        )
    return f"{count(len(lacking), 'adapter')} not loaded yet: {', '.join(lack.adapter for lack in lacking)}"
