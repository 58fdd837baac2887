"""Faults of everything but the controller: two workers, so that Slurm's and the planes' overlap freely.

`SlurmFaults` stops, kills and freezes slurmctld and nodes, and does to jobs by hand what people do; `PlaneFaults`
kills the gateway and PostgreSQL, and freezes or retires the leader. Spared are Envoy, the stable deployment's
node and its jobs: what becomes of its streams must be nobody's fault. Each fault ends before the same worker's
next one; `finish` leaves everything running.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import psutil

from deploy.cluster.cluster import Cluster
from tests.chaos.controllers import Controllers
from tests.chaos.outages import Outages
from tests.chaos.postgresql import PostgreSQL
from tests.chaos.watch import FORGED_FOLDER, SeenJob, Watch
from tests.chaos.worker import Worker
from tests.penstocks import Penstock

FOREIGN_MAX = 12
"""Foreign jobs at most: they stay to the end."""


@dataclass(frozen=True)
class Foreign:
    """A job that the run submitted itself. `forged`: what is wrong with its mark."""

    id: int
    name: str
    """A slurmctld that was killed gives ids again, to Penstock's jobs too; together with the name it is one job's."""
    forged: str
    orphan: bool
    """Mark and name agree, so Penstock must take it for its own and cancel it; all others it must not touch."""


class SlurmFaults(Worker):
    """Slurm's, and people's."""

    def __init__(
        self,
        cluster: Cluster,
        watch: Watch,
        installation: str,
        stable: str,
        spared_node: str,
        outages: Outages,
        seed: int,
    ) -> None:
        super().__init__("slurm-faults", seed)
        self._outages = outages
        self._cluster = cluster
        self._watch = watch
        self._installation = installation
        self._stable = stable
        self._spared_node = spared_node
        self._held: set[int] = set()
        self.foreign: list[Foreign] = []
        self.kinds: dict[str, tuple[float, Callable[[], bool]]] = {
            "slurmctld stopped and started": (2, lambda: self._restart_slurmctld(kill=False)),
            "slurmctld killed with -9": (1, lambda: self._restart_slurmctld(kill=True)),
            "slurmctld frozen": (2, self._freeze_slurmctld),
            "node lost and back": (1, self._lose_node),
            "job cancelled by hand": (3, self._cancel),
            "job requeued by hand": (3, self._requeue),
            "job held by hand": (2, self._hold),
            "job released by hand": (2, self._release),
            "foreign job": (2, self._submit_foreign),
        }
        self.todo: list[str] = []
        """Kinds to do first, in order: for a run that is to have each once."""

    def step(self) -> None:
        self.pause(0.5, 4)
        if self.stopping.is_set():
            return
        if self.todo:
            kind = self.todo.pop(0)
        else:
            weights = [weight for weight, _ in self.kinds.values()]
            (kind,) = self.random.choices(list(self.kinds), weights)
        began = datetime.now().astimezone()
        if self.kinds[kind][1]():
            self.note(kind, began)

    def finish(self) -> None:
        super().finish()
        while self._release():
            pass

    def resume_nodes(self) -> None:
        """As an administrator would: slurmctld drains a node by itself (a job's processes that did not end in time, an
        id that was given twice), and replicas that are bound to that node wait for it."""
        drained = self._run("sinfo", "-h", "-N", "-t", "drain,drained,draining", "-o", "%N")
        for node in {*(drained or "").split()}:
            self._run("scontrol", "update", f"NodeName={node}", "State=RESUME")
            self.note("node drained by Slurm, resumed", datetime.now().astimezone())

    def _restart_slurmctld(self, *, kill: bool) -> bool:
        with self._outages.outage():
            self._cluster.stop_controller(kill=kill)
            self.pause(0, 8)
            self._cluster.start_controller()
        return True

    def _freeze_slurmctld(self) -> bool:
        with self._outages.outage():
            self._cluster.freeze_controller()
            self.pause(1, 12)
            self._cluster.thaw_controller()
        return True

    def _lose_node(self) -> bool:
        """Its slurmd dies, and the jobs on it run on unseen; after SlurmdTimeout Slurm takes them away from it."""
        others = [name for name in self._cluster.node_names if name != self._spared_node]
        node = self.random.choice(others)
        self._cluster.stop_node(node, kill=True)
        self.pause(1, 30)
        self._cluster.start_node(node)
        return True

    def _cancel(self) -> bool:
        job = self._victim(("RUNNING", "PENDING"))
        if job is None:
            return False
        self._run("scancel", f"--name={job.name}", str(job.id))
        return True

    def _requeue(self) -> bool:
        job = self._victim(("RUNNING",))
        if job is None:
            return False
        self._run("scontrol", "requeue", str(job.id))
        return True

    def _hold(self) -> bool:
        job = self._victim(("PENDING",))
        if job is None:
            return False
        self._run("scontrol", "hold", str(job.id))
        self._held.add(job.id)
        return True

    def _release(self) -> bool:
        if not self._held:
            return False
        self._run("scontrol", "release", str(self._held.pop()))
        return True

    def _victim(self, states: tuple[str, ...]) -> SeenJob | None:
        spared = f"penstock-{self._stable}-"
        # One that is gone has left its id, which may be somebody else's now.
        live = [job for job in self._watch.ours() if job.live and not job.name.startswith(spared)]
        jobs = [job for job in live if job.state in states]
        return self.random.choice(jobs) if jobs else None

    def _submit_foreign(self) -> bool:
        """A job of somebody else's, held so that it takes no room; most bear a forged mark."""
        ours = [job for job in self._watch.ours() if job.live]
        if not ours or len(self.foreign) >= FOREIGN_MAX:
            return False
        real = self.random.choice(ours)
        token = "".join(self.random.choices("abcdefgh23456789", k=20))
        mark = f"penstock/1 {self._installation} {token}"
        forgeries = {
            "no mark": ("train", ""),
            "a real mark, another name": ("train", real.comment),
            "a real name, no mark": (real.name, ""),
            "another installation's": (f"penstock-ant-{token}", f"penstock/1 0123456789ab {token}"),
            "a mark among separators and newlines": (real.name, f"~|~\n{real.comment}\n|x|"),
            "an orphan": (f"penstock-ghost-{token}", mark),
            "a twin of a real one": (real.name, real.comment),
        }
        forged = list(forgeries)[len(self.foreign) % len(forgeries)]
        name, comment = forgeries[forged]
        options = ["--parsable", "--hold", "--mem=1", "--output=/dev/null", f"--chdir={FORGED_FOLDER}"]
        done = self._run(
            "sbatch", *options, f"--job-name={name}", f"--comment={comment}", "--wrap", "sleep 3600"
        )
        if done is None or not done.strip().isdigit():
            return False
        id_ = int(done)
        self.foreign.append(
            Foreign(id_, name, forged, orphan=forged in ("an orphan", "a twin of a real one"))
        )
        return True

    def _run(self, *command: str) -> str | None:
        """What people's commands say does not matter: the job may have ended under their hands."""
        try:
            return self._cluster.run(*command, check=False)
        except subprocess.TimeoutExpired:
            return None


class PlaneFaults(Worker):
    """The gateway's, PostgreSQL's, and those of the leader that kill -9 does not cover."""

    def __init__(
        self,
        penstock: Penstock,
        postgresql: PostgreSQL,
        controllers: Controllers,
        outages: Outages,
        seed: int,
    ) -> None:
        super().__init__("plane-faults", seed)
        self._outages = outages
        self._penstock = penstock
        self._postgresql = postgresql
        self._controllers = controllers
        self.kinds: dict[str, tuple[float, Callable[[], bool]]] = {
            "gateway killed with -9": (2, self._kill_gateway),
            "PostgreSQL killed with -9": (1, self._kill_postgresql),
            "PostgreSQL stopped and started": (1, self._restart_postgresql),
            "leader frozen": (1, lambda: controllers.freeze(self.random.uniform(1, 16))),
            "leader stopped cleanly": (0.5, controllers.retire),
        }
        self.todo: list[str] = []

    def step(self) -> None:
        self.pause(4, 16)
        if self.stopping.is_set():
            return
        if self.todo:
            kind = self.todo.pop(0)
        else:
            weights = [weight for weight, _ in self.kinds.values()]
            (kind,) = self.random.choices(list(self.kinds), weights)
        began = datetime.now().astimezone()
        if self.kinds[kind][1]():
            self.note(kind, began)

    def _kill_gateway(self) -> bool:
        pid = self._penstock.pid("gateway")
        try:
            ours = psutil.Process(pid).cmdline()[-2:] == ["penstock.app", "gateway"]
            if ours:
                os.kill(pid, signal.SIGKILL)
        except (psutil.Error, ProcessLookupError):
            return False
        return ours

    def _kill_postgresql(self) -> bool:
        pid = self._postgresql.pid
        if pid is None:
            return False
        with self._outages.outage():
            os.kill(pid, signal.SIGKILL)
            self.pause(0, 5)
            self._postgresql.start()
        return True

    def _restart_postgresql(self) -> bool:
        with self._outages.outage():
            self._postgresql.stop()
            self.pause(1, 6)
            self._postgresql.start()
        return True
