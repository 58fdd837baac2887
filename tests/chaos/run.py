"""`make chaos`: everything that can die dies, again and again, while people go on changing their minds.

A real Slurm cluster of three nodes, a real PostgreSQL, a real `penstock serve` and a second controller; the
stand-in engine. Faults stop after so many controllers were killed; then all must be as wanted in bounded time,
and what Slurm showed in the meantime must agree with the log.

    KILLS=100 SEED=1 make chaos          the report: .chaos/report-1.json and a table

What is judged: no token on two jobs, no two live jobs for one replica, no orphan, foreign jobs untouched, every job
explained by the log, streams to the stable deployment whole, another leader in time, converged, and then quiet.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg

from deploy.cluster.cluster import Cluster
from deploy.cluster.settings import Settings
from penstock.store import migrate
from tests.chaos import verdict
from tests.chaos.controllers import FAIL_OVER_WITHIN_S, Controllers
from tests.chaos.driver import Driver, spec
from tests.chaos.faults import PlaneFaults, SlurmFaults
from tests.chaos.outages import Outages
from tests.chaos.postgresql import PostgreSQL
from tests.chaos.streams import DEADLINE_S, Streams
from tests.chaos.watch import Watch
from tests.chaos.worker import Worker
from tests.penstocks import ROOT, Penstock, running, wait_until

CLUSTER = Settings(nodes=3, gpus=0, message_timeout_s=3, slurmd_timeout_s=10, kill_wait_s=3, preempt=False)
STABLE = "stable"
STABLE_NODE = "node1"
STABLE_REPLICAS = 2
READY_WITHIN_S = 90
CONVERGED_WITHIN_S = 240
"""An orphan's grace (60 s), a drain that is cut (30 s), a node's way back and a back-off, one after the other."""
QUIET_FOR_S = 5
SHOWN = 8
"""Violations that a message shows; the table has all."""
DONE_IN_A_ROW = 4
REPORTS = ROOT / ".chaos"


@dataclass
class Report:
    """What a run did, and what it found."""

    seed: int
    kills: int
    began_at: str = ""
    took_s: float = 0
    faults: dict[str, int] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)
    """By people."""
    jobs: int = 0
    foreign_jobs: int = 0
    samples: dict[str, int] = field(default_factory=dict)
    streams: dict[str, int] = field(default_factory=dict)
    log: dict[str, int] = field(default_factory=dict)
    longest_without_new_leader_s: float = 0
    """Whatever else was away, the standby included."""
    fail_overs: int = 0
    """Those that are judged: a standby stood by, and PostgreSQL and Slurm were there."""
    longest_fail_over_s: float = 0
    converged_after_s: float | None = None
    violations: dict[str, list[str]] = field(default_factory=dict)
    """Rule -> sentences; empty lists where it held."""
    done_at: list[str] = field(default_factory=list)
    """Faults and kills in their order, each with the time at which it began."""

    @property
    def violated(self) -> list[str]:
        return [sentence for sentences in self.violations.values() for sentence in sentences]

    def problem(self) -> str:
        """What was violated, and what was done when: for a message that is to be short."""
        rows = [self.done_at[n : n + DONE_IN_A_ROW] for n in range(0, len(self.done_at), DONE_IN_A_ROW)]
        told = [*self.violated[:SHOWN], f"{len(self.violated)} violations, seed {self.seed}; what was done:"]
        return "\n".join([*told, *("; ".join(row) for row in rows)])

    def table(self) -> str:
        rows: list[tuple[str, object]] = [("seed", self.seed), ("took", f"{self.took_s:.0f} s")]
        rows += self.faults.items()
        rows += [(f"people: {what}", count) for what, count in self.changes.items()]
        rows += [("jobs of ours", self.jobs), ("foreign and forged jobs", self.foreign_jobs)]
        rows += [(f"queue: {what}", count) for what, count in self.samples.items()]
        rows += [(f"stable deployment: {what}", count) for what, count in self.streams.items()]
        rows += [(f"log: {what}", count) for what, count in self.log.items()]
        rows.append(("fail-overs with all else up", self.fail_overs))
        rows.append(("the longest of them", f"{self.longest_fail_over_s:.1f} s"))
        rows.append(("longest wait for a new leader", f"{self.longest_without_new_leader_s:.1f} s"))
        converged = "never" if self.converged_after_s is None else f"{self.converged_after_s:.1f} s"
        rows.append(("converged after the last fault", converged))
        rows += [(f"violations: {rule}", len(found)) for rule, found in self.violations.items()]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:{width}}  {value:>8}" for name, value in rows]
        return "\n".join([*lines, *(f"VIOLATION {sentence}" for sentence in self.violated)])


def longest_s(kills: int) -> float:
    """How long faults may take: for each kill a lease that expires (10 s), a renewal interval, a start and the leader's
    first seconds."""
    return 120 + 20.0 * kills


def run(
    *,
    kills: int,
    seed: int,
    at_most_s: float,
    each_once: bool = False,
    fail_over_within_s: float = FAIL_OVER_WITHIN_S,
) -> Report:
    """One run. `at_most_s`: faults end then even if fewer were killed. `each_once`: every kind of fault is had."""
    report = Report(seed, kills, f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S}")
    began = time.monotonic()
    with installation() as (cluster, penstock, postgresql, database):
        whole = Run(report, cluster, penstock, postgresql, database, fail_over_within_s)
        whole.run(at_most_s, each_once=each_once)
    report.took_s = time.monotonic() - began
    REPORTS.mkdir(exist_ok=True)
    (REPORTS / f"report-{seed}.json").write_text(json.dumps(dataclasses.asdict(report), indent=1))
    return report


@contextlib.contextmanager
def installation() -> Iterator[tuple[Cluster, Penstock, PostgreSQL, str]]:
    """A cluster, a PostgreSQL that is nobody's child, and a Penstock that uses both."""
    root = Path(tempfile.mkdtemp(prefix="penstock-chaos-"))
    # Under root the server runs as another account, which must pass through.
    root.chmod(0o711)
    cluster, postgresql = Cluster(root / "slurm", CLUSTER), PostgreSQL(root / "postgres")
    try:
        cluster.up()
        database = postgresql.start()
        migrate.upgrade(database)
        with running(cluster, more=f'database_url = "{database}"\n') as penstock:
            yield cluster, penstock, postgresql, database
    finally:
        postgresql.stop()
        cluster.down()
        shutil.rmtree(root, ignore_errors=True)


class Run:
    """The parts of one run, put together."""

    def __init__(
        self,
        report: Report,
        cluster: Cluster,
        penstock: Penstock,
        postgresql: PostgreSQL,
        database: str,
        fail_over_within_s: float,
    ) -> None:
        self.fail_over_within_s = fail_over_within_s
        self.report = report
        self.penstock = penstock
        self.database = database
        with psycopg.connect(database) as connection:
            (self.installation,) = verdict.one(connection, "SELECT id FROM installation")
        seed = report.seed
        attempts = penstock.folder / "state" / "attempts" / self.installation
        self.driver = Driver(penstock.server, seed)
        self.watch = Watch(cluster, self.installation, attempts, seed)
        outages = Outages()
        self.controllers = Controllers(penstock, database, report.kills, outages, seed)
        self.slurm = SlurmFaults(cluster, self.watch, self.installation, STABLE, STABLE_NODE, outages, seed)
        self.planes = PlaneFaults(penstock, postgresql, self.controllers, outages, seed)
        self.streams = [Streams(penstock.server, STABLE, number, seed) for number in range(2)]

    def run(self, at_most_s: float, *, each_once: bool) -> None:
        # Slurm drains its node, too, and then a successor takes over: what it streams may end.
        self.driver.apply(STABLE, spec(STABLE_REPLICAS, drain_s=DEADLINE_S, node=STABLE_NODE))
        wait_until(lambda: self._ready(STABLE) == STABLE_REPLICAS, READY_WITHIN_S, self._say)
        faults: list[Worker] = [self.slurm, self.planes, self.controllers]
        everyone: list[Worker] = [self.watch, *self.streams, self.driver, *faults]
        if each_once:
            self.slurm.todo, self.planes.todo = list(self.slurm.kinds), list(self.planes.kinds)
        for worker in everyone:
            worker.start()
        try:
            self._until_done(everyone, at_most_s)
            for worker in (self.driver, *faults):
                worker.finish()
            ended = time.monotonic()
            self.controllers.keep_second()
            wish = {**self.driver.settle(), STABLE: STABLE_REPLICAS}
            problem = self._converge(wish)
            if not problem:
                self.report.converged_after_s = time.monotonic() - ended - QUIET_FOR_S
            for stream in self.streams:
                stream.finish()
            self._judge(problem)
        except BaseException as error:
            error.add_note(self._end())
            raise
        finally:
            for worker in everyone:
                worker.stopping.set()
            for worker in everyone:
                with contextlib.suppress(Exception):
                    worker.finish()
            self.controllers.stop_second()
            self._keep_logs()

    def _until_done(self, everyone: list[Worker], at_most_s: float) -> None:
        deadline = time.monotonic() + at_most_s
        shown = 0
        while time.monotonic() < deadline:
            for worker in everyone:
                if worker.error is not None:
                    raise worker.error
            left = self.slurm.todo or self.planes.todo
            if self.controllers.done and not left:
                return
            killed = self.controllers.counts.total()
            if killed >= shown + 10:
                shown = killed
                print(
                    f"{killed} kills, {len(self.watch.ours())} jobs, {len(self._so_far())} violations so far"
                )
            time.sleep(0.2)

    def _end(self) -> str:
        """How it stood when the run itself broke off."""
        self.report.violations = {"so far": self._so_far()}
        self.report.done_at = self._done_at()
        return f"{self.report.problem()}\n{self.penstock.log_end}"

    def _done_at(self) -> list[str]:
        done = [done for worker in (self.controllers, self.slurm, self.planes) for done in worker.done_at]
        return [f"{began:%H:%M:%S} {what}" for began, what in sorted(done)]

    def _so_far(self) -> list[str]:
        cut = [line for stream in self.streams for line in stream.violations]
        return [*self.watch.violations.values(), *cut, *self.driver.violations]

    def _converge(self, wish: dict[str, int]) -> str:
        """Waits until all is as wished and stays so; what stood in the way, or nothing."""
        deadline = time.monotonic() + CONVERGED_WITHIN_S
        while True:
            self.slurm.resume_nodes()
            problem = self._problem(wish)
            if not problem:
                before = self._marks()
                time.sleep(QUIET_FOR_S)
                after = self._marks()
                if before == after:
                    return ""
                problem = f"not quiet: {before} became {after} in {QUIET_FOR_S} s"
            if time.monotonic() > deadline:
                return problem
            time.sleep(0.5)

    def _problem(self, wish: dict[str, int]) -> str:
        try:
            found = self.driver.deployments()
            owned = verdict.live_tokens(self.database)
        except Exception as error:  # Not back yet: that is a problem, too.
            return str(error)
        if found.keys() != wish.keys():
            return f"there are {sorted(found)}, not {sorted(wish)}"
        for name, replicas in wish.items():
            status = found[name].status
            if not status.ready_replicas == status.replicas == replicas:
                return f"{name} has {status.ready_replicas} of {status.replicas} ready, for {replicas} wanted"
        live = [job for job in self.watch.ours() if job.live]
        if len(live) != sum(wish.values()):
            return f"{len(live)} jobs live, for {sum(wish.values())} replicas"
        wrong = verdict.orphans(live, owned, self.installation)
        wrong += [
            line
            for line in verdict.foreign(self.watch.jobs(), self.slurm.foreign)
            if "should have been cancelled" in line
        ]
        return "; ".join(wrong)

    def _marks(self) -> tuple[object, ...]:
        """What may not change any more once all is as wished."""
        with psycopg.connect(self.database) as connection:
            (newest,) = verdict.one(connection, "SELECT max(id) FROM decisions")
        return newest, sorted(job.id for job in self.watch.ours() if job.live)

    def _ready(self, name: str) -> int:
        return self.driver.deployments()[name].status.ready_replicas

    def _say(self) -> str:
        return f"{STABLE} is ready"

    def _judge(self, problem: str) -> None:
        report, log = self.report, verdict.read_log(self.database)
        ours = self.watch.ours()
        counts = Counter[str]()
        for worker in (self.controllers, self.slurm, self.planes):
            counts += worker.counts
        report.faults = dict(counts.most_common())
        report.done_at = self._done_at()
        report.changes = dict(self.driver.counts.most_common())
        report.jobs, report.foreign_jobs = len(ours), len(self.slurm.foreign)
        report.samples = dict(self.watch.counts)
        report.streams = {
            what: sum(stream.counts[what] for stream in self.streams) for what in ("streams", "tokens")
        }
        report.log = {
            "decisions": log.decisions,
            "ticks that had something to say": log.ticks,
            "terms of the lease": log.terms,
            "effects whose outcome died with the controller": log.without_outcome,
        }
        report.longest_without_new_leader_s = self.controllers.longest_without_leader_s
        report.fail_overs = len(self.controllers.fail_overs_s)
        report.longest_fail_over_s = max(self.controllers.fail_overs_s, default=0.0)
        live = [job for job in ours if job.live]
        daemons = self.penstock.log + self.controllers.log.read_text(errors="replace")
        report.violations = {
            "doubled jobs": list(self.watch.violations.values()),
            "orphans": verdict.orphans(live, verdict.live_tokens(self.database), self.installation),
            "foreign jobs touched": verdict.foreign(self.watch.jobs(), self.slurm.foreign),
            "jobs that the log does not explain": verdict.unexplained(ours, log),
            "streams cut or refused": [line for stream in self.streams for line in stream.violations],
            "right requests refused": self.driver.violations,
            "slow fail-overs": verdict.slow(self.controllers.fail_overs_s, self.fail_over_within_s),
            "not converged": [problem] if problem else [],
            "bugs in the daemon's log": verdict.crashed(daemons),
        }

    def _keep_logs(self) -> None:
        REPORTS.mkdir(exist_ok=True)
        for name in ("serve.log", "second.log"):
            if (self.penstock.folder / name).exists():
                shutil.copy(self.penstock.folder / name, REPORTS / f"{self.report.seed}-{name}")
        with contextlib.suppress(psycopg.Error):  # The logs of the daemons tell why it is gone.
            verdict.write_log(self.database, REPORTS / f"{self.report.seed}-decisions.log")


def main() -> int:
    """The long form."""
    kills, seed = int(os.environ.get("KILLS") or 100), int(os.environ.get("SEED") or time.time())
    at_most_s = float(os.environ.get("AT_MOST_S") or longest_s(kills))
    print(f"{kills} kills, seed {seed}, at most {at_most_s:.0f} s of faults", flush=True)
    report: Any = run(kills=kills, seed=seed, at_most_s=at_most_s)
    print(report.table())
    print(f"kept in {REPORTS / f'report-{seed}.json'}")
    return 1 if report.violated else 0


if __name__ == "__main__":
    sys.exit(main())
