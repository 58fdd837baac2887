"""What the fuzzers play against: a whole Penstock with stand-in replicas, and the judges of what is left afterwards.

`Site` is `penstock serve` on a real Slurm cluster with three deployments: `target` generates, `pool` embeds, and
`bystander` is nobody's target. `judged` wraps a fuzzer's run. While it runs, a client asks the bystander over REST and
gRPC again and again; after it nothing may have died, and what the processes hold must be near what they held before.

How long a fuzzer plays is PENSTOCK_FUZZ_SECONDS, 30 when unset; the seed is PENSTOCK_FUZZ_SEED, or a fresh one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import psutil

from deploy.cluster.cluster import Cluster
from penstock import Client
from penstock.client import PenstockError, Retry
from tests.penstocks import Penstock, running, standin, wait_until

MIB = 1024 * 1024
CHILDREN = ("gateway", "controller", "envoy")
DEPLOYMENTS = ("target", "pool", "bystander")

# What a process may hold more of afterwards. Allocators keep what they had at most; a leak grows with every case.
MORE_MEMORY_BYTES = 96 * MIB
# Connections to replicas are kept for a while, one for each thread and replica, and replicas may still be made and
# replaced as the control API was told to; so are those to PostgreSQL. A leak of one in ten cases makes over a hundred.
MORE_FILES = 64
SETTLES_WITHIN_S = 40.0
"""Longer than the request time-outs of the connections that still stalled at the end, and than idle ones live."""
BYSTANDER_EVERY_S = 0.2
BYSTANDER_PATIENCE_S = 15.0
"""For an answer that takes a few milliseconds: the fuzzers leave little of two cores."""


def seconds() -> float:
    """How long each fuzzer plays."""
    return float(os.environ.get("PENSTOCK_FUZZ_SECONDS") or 30)


def seed() -> int:
    """The seed that was asked for, or a fresh one."""
    given = os.environ.get("PENSTOCK_FUZZ_SEED")
    return int(given) if given else secrets.randbelow(2**31)


@dataclass
class Site:
    """The installation, and where it listens."""

    penstock: Penstock

    @property
    def address(self) -> str:
        return self.penstock.server

    @property
    def url(self) -> str:
        return f"http://{self.penstock.server}"

    def processes(self) -> dict[str, psutil.Process]:
        """Penstock's own, and the replicas' agents and engines."""
        found = {name: psutil.Process(self.penstock.pid(name)) for name in CHILDREN}
        commands = {process: process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])}
        for name in DEPLOYMENTS:
            token = self.penstock.get("replicas", f"{name}-1")["attempt"]["token"]
            [agent] = (
                process
                for process, words in commands.items()
                if "penstock_runtime" in words and words[-1].endswith(f"/{token}")
            )
            found[f"{name}'s agent"] = agent
            [found[f"{name}'s engine"]] = agent.children()
        return found


@contextlib.contextmanager
def site(cluster: Cluster) -> Iterator[Site]:
    """Started, with its replicas ready."""
    with running(cluster) as penstock:
        fast = ["--tokens-per-second", "2000", "--max-model-len", "512"]
        penstock.apply(standin("target", args=fast))
        penstock.apply(standin("bystander", args=fast))
        penstock.apply(standin("pool").replace("name: standin,", "name: standin, task: ENGINE_TASK_EMBED,"))
        for name in DEPLOYMENTS:
            penstock.wait_ready(name, 1)
        yield Site(penstock)


@dataclass
class _Held:
    """What one process holds."""

    process: psutil.Process
    memory_bytes: int
    files: int

    @classmethod
    def by(cls, process: psutil.Process) -> _Held:
        return cls(process, process.memory_info().rss, process.num_fds())

    def __str__(self) -> str:
        return f"{self.memory_bytes / MIB:.0f} MiB, {self.files} files"


@dataclass
class Judgement:
    """What was seen while a fuzzer played; complete once `judged` is left."""

    asked: int = 0
    failures: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    held: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"the bystander answered {self.asked - len(self.failures)} of {self.asked}, the slowest in"
            f" {self.slowest_s:.2f} s; held before and after: " + "; ".join(self.held)
        )


@contextlib.contextmanager
def judged(site: Site) -> Iterator[Judgement]:
    """Watches while the block runs, and judges after it. AssertionError: something died, leaked, or was kept from
    others."""
    before = {name: _Held.by(process) for name, process in site.processes().items()}
    connections_before = _connections(site)
    judgement = Judgement()
    over = threading.Event()
    bystander = threading.Thread(target=_ask_again_and_again, args=(site, judgement, over))
    bystander.start()
    try:
        yield judgement
    finally:
        over.set()
        bystander.join()
    for name in CHILDREN:
        pid = site.penstock.pid(name)
        assert pid == before[name].process.pid, f"{name} was started anew:\n{site.penstock.log_end}"
    for name, held in before.items():
        # A replica that the control API was told to replace is gone by right; a bystander's never is.
        if not name.startswith(("target", "pool")):
            assert held.process.is_running(), f"{name} has died:\n{site.penstock.log_end}"
    assert not judgement.failures, f"the bystander was not answered: {judgement.failures[:5]}"
    assert judgement.asked, "nobody asked the bystander"
    _settle(site, before, connections_before, judgement)
    log = site.penstock.log
    assert "Traceback" not in log, (
        "a stack trace in the log:\n" + log[max(0, log.index("Traceback") - 1000) :][:6000]
    )


def _settle(site: Site, before: dict[str, _Held], connections_before: int, judgement: Judgement) -> None:
    """Waits until no process holds more than it did, within the bounds above."""
    living = {name: held for name, held in before.items() if held.process.is_running()}

    def excess() -> list[str]:
        found = []
        for name, held in living.items():
            now = _Held.by(held.process)
            if (
                now.memory_bytes > held.memory_bytes + MORE_MEMORY_BYTES
                or now.files > held.files + MORE_FILES
            ):
                found.append(f"{name}: {held}, now {now}, connected to {_connected(held.process)}")
        connections = _connections(site)
        if connections > connections_before + MORE_FILES:
            found.append(f"clients' connections: {connections_before}, now {connections}")
        return found

    wait_until(lambda: not excess(), SETTLES_WITHIN_S, lambda: f"what was taken is given back: {excess()}")
    judgement.held = [f"{name} {held} / {_Held.by(held.process)}" for name, held in living.items()]


def _connected(process: psutil.Process) -> str:
    """The ends that its connections share, and how many each has, the most first."""
    connections = process.net_connections("all")
    ends = Counter(f"{end} {one.status}" for one in connections for end in (one.laddr, one.raddr))
    return ", ".join(f"{end}: {count}" for end, count in ends.most_common(12))


def _connections(site: Site) -> int:
    """Clients' connections that Envoy has."""
    port = int(site.address.rpartition(":")[2])
    envoy = psutil.Process(site.penstock.pid("envoy"))
    return sum(
        1
        for one in envoy.net_connections("tcp")
        if one.laddr.port == port and one.status == psutil.CONN_ESTABLISHED
    )


def _ask_again_and_again(site: Site, judgement: Judgement, over: threading.Event) -> None:
    with (
        httpx.Client(base_url=site.url, timeout=BYSTANDER_PATIENCE_S) as rest,
        Client(site.address, timeout=BYSTANDER_PATIENCE_S, retry=Retry(attempts=1)) as client,
    ):
        while not over.wait(BYSTANDER_EVERY_S):
            for ask in (lambda: _rest(rest), lambda: client.generate("bystander", "one two", max_tokens=4)):
                judgement.asked += 1
                began = time.monotonic()
                try:
                    ask()
                except (AssertionError, httpx.HTTPError, PenstockError) as error:
                    judgement.failures.append(f"after {time.monotonic() - began:.2f} s: {error!r}")
                judgement.slowest_s = max(judgement.slowest_s, time.monotonic() - began)


def _rest(client: httpx.Client) -> None:
    answer = client.post(
        "/v1/completions", json={"model": "bystander", "prompt": "one two three", "max_tokens": 4}
    )
    assert answer.status_code == 200, f"{answer.status_code} {answer.text[:300]}"
    assert answer.json()["usage"]["completion_tokens"] > 0
