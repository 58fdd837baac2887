"""The lanes of Slurm's contract: what a test says once, done on the fake and on real clusters.

A lane is a port to test (`slurm`) and hands that do to the cluster what the port cannot: fail a node, requeue a job,
make slurmctld fall silent. A job's behaviour is one of a few words, which a real lane writes as a script and the fake
acts out.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

from deploy.cluster.cluster import Cluster
from penstock.core.jobs import Job, JobState, Maintenance, Submission
from penstock.slurm.commands import CommandLine
from penstock.slurm.port import Slurm, SlurmUnavailable
from penstock.slurm.pyslurm import SERVER, PySlurm
from penstock.testing.jobs import FakeJob
from penstock.testing.slurm import FakeSlurm, SubmitFault

T = TypeVar("T")

WAIT_S = 120.0
"""Every wait of this suite ends by then. Real waits are about a second; a busy machine may take many."""

CALL_TIMEOUT_S = 30.0

SCRIPTS = {
    "exit 0": "exit 0\n",
    "exit 3": "exit 3\n",
    "killed": "kill -KILL $$\n",
    # Notes each SIGTERM and goes at the first.
    "obey": "trap 'echo TERM >> signals; exit 0' TERM\necho up > ready\nwhile true; do sleep 0.05; done\n",
    # Notes each SIGTERM and stays until it is told to leave, or killed.
    "stay": "trap 'echo TERM >> signals' TERM\necho up > ready\nuntil [ -e leave ]; do sleep 0.05; done\n",
}
"""Behaviour -> script. The foreground `sleep` dies of a signal that is meant for the whole job; the shell does not."""

PLUGIN = """\
function slurm_job_submit(job, partitions, user) slurm.log_user("{words}") return slurm.ERROR end
function slurm_job_modify(job, changed, partitions, user) return slurm.SUCCESS end
"""
"""As a site writes job_submit.lua."""

_numbers = itertools.count(1)


async def until(what: str, ask: Callable[[], Awaitable[T]], true: Callable[[T], bool]) -> T:
    """Ask again and again until the answer is as wanted; AssertionError after WAIT_S."""
    deadline = time.monotonic() + WAIT_S
    last: T | SlurmUnavailable
    while True:
        try:
            last = answer = await ask()
        except SlurmUnavailable as error:
            # On a machine that stands still longer than MessageTimeout a question is lost, and asked again.
            last = error
        else:
            if true(answer):
                return answer
        assert time.monotonic() < deadline, f"waited {WAIT_S:.0f} s for: {what}; last: {last}"
        await asyncio.sleep(0.05)


class Lane(Protocol):
    """One implementation of the port, and hands to move its cluster."""

    kill_wait_s: float
    accounting: bool
    """Whether somebody remembers what slurmctld has forgotten."""

    @property
    def slurm(self) -> Slurm: ...

    @property
    def process(self) -> int | None:
        """The one that the backend keeps, if it keeps one."""
        ...

    def submission(self, behaviour: str, name: str | None = None, **options: Any) -> Submission:
        """A job that behaves like this, under a name that no other job has unless one is given."""
        ...

    async def ready(self, submission: Submission) -> None:
        """Wait until the script can take signals."""
        ...

    def signals(self, submission: Submission) -> list[str]:
        """The signals that the script has noted."""
        ...

    def leave(self, submission: Submission) -> None:
        """Let a job that stays go."""
        ...

    def requeue(self, job_id: int) -> None: ...

    def fail_node(self, name: str) -> None: ...

    def drain_node(self, name: str, reason: str) -> None: ...

    def restore_node(self, name: str) -> None: ...

    def announce(self, name: str, after_s: int, *nodes: str) -> None:
        """Maintenance of these nodes that begins then and lasts for an hour."""
        ...

    def say_no(self, words: str) -> None:
        """From now on a job_submit plugin refuses every job and says so; `heal_controller` takes it away."""
        ...

    def stop_controller(self) -> None: ...

    def freeze_controller(self) -> None:
        """From now on requests arrive and are not answered."""
        ...

    def heal_controller(self) -> None: ...

    async def close(self) -> None:
        """Mend what was broken, cancel what was submitted."""
        ...


async def job_when(lane: Lane, name: str, true: Callable[[Job], bool], what: str) -> Job:
    """The one job with this name, once it is as wanted."""

    async def ask() -> tuple[Job, ...]:
        return await lane.slurm.find(name)

    found = await until(f"{name} {what}", ask, lambda jobs: len(jobs) == 1 and true(jobs[0]))
    return found[0]


class FakeLane:
    """The fake, on a real clock and with short delays, since the suite waits for real clusters in real time."""

    kill_wait_s = 2.0
    accounting = True
    process = None

    def __init__(self) -> None:
        self.slurm: FakeSlurm = FakeSlurm(
            keeps_history=True,
            clock=lambda: datetime.now(UTC),
            start_delay_s=0.05,
            requeue_delay_s=1.0,
            kill_wait_s=self.kill_wait_s,
            before_call=lambda call: asyncio.sleep(0),  # As each real call, it is not done at once.
            on_start=self._start,
            on_signal=self._signal,
        )
        self._behaviours: dict[str, str] = {}
        self._signals: dict[str, list[str]] = {}

    def submission(self, behaviour: str, name: str | None = None, **options: Any) -> Submission:
        name = name or f"job-{next(_numbers)}"
        self._behaviours[name] = behaviour
        given = {"comment": "a comment", "script": "#!/bin/sh\n", "work_dir": "/tmp", "output": "/dev/null"}
        return Submission(name=name, **{**given, **options})

    async def ready(self, submission: Submission) -> None:
        await until(
            f"{submission.name} runs",
            lambda: self.slurm.find(submission.name),
            lambda jobs: any(job.state is JobState.RUNNING for job in jobs),
        )

    def signals(self, submission: Submission) -> list[str]:
        return self._signals.get(submission.name, [])

    def leave(self, submission: Submission) -> None:
        self.slurm.finish(self._id(submission.name))

    def requeue(self, job_id: int) -> None:
        self.slurm.requeue(job_id)

    def fail_node(self, name: str) -> None:
        self.slurm.fail_node(name)

    def drain_node(self, name: str, reason: str) -> None:
        self.slurm.drain_node(name, reason)

    def restore_node(self, name: str) -> None:
        self.slurm.restore_node(name)

    def announce(self, name: str, after_s: int, *nodes: str) -> None:
        begins_at = datetime.now(UTC) + timedelta(seconds=after_s)
        self.slurm.reserve(Maintenance(name, begins_at, begins_at + timedelta(hours=1), nodes))

    def say_no(self, words: str) -> None:
        self.slurm.faults.submits.append(words)

    def stop_controller(self) -> None:
        self.slurm.faults.down = "injected"

    def freeze_controller(self) -> None:
        self.slurm.faults.failing["list_jobs"] = 1
        self.slurm.faults.submits.append(SubmitFault.LOST_AFTER)

    def heal_controller(self) -> None:
        self.slurm.faults.down = ""

    async def close(self) -> None:
        await self.slurm.close()

    def _id(self, name: str) -> int:
        return next(job.job_id for job in self.slurm.jobs() if job.submission.name == name and job.active)

    def _start(self, job: FakeJob) -> None:
        match self._behaviours[job.submission.name].split():
            case ["exit", code]:
                self.slurm.finish(job.job_id, exit_code=int(code))
            case ["killed"]:
                self.slurm.finish(job.job_id, exit_signal=9)

    def _signal(self, job: FakeJob, signal: str) -> bool:
        self._signals.setdefault(job.submission.name, []).append(signal)
        if self._behaviours[job.submission.name] == "obey":
            self.slurm.finish(job.job_id)
        return True


class RealLane:
    """A real cluster through one of the backends."""

    accounting = False

    def __init__(self, cluster: Cluster, slurm: Slurm) -> None:
        self.slurm = slurm
        self.cluster = cluster
        self.kill_wait_s = float(cluster.settings.kill_wait_s)
        self._broken_nodes: set[str] = set()
        self._announced: set[str] = set()
        self._controller_down = False
        self._frozen = False
        self._plain_conf: str | None = None
        """While a plugin refuses: slurm.conf without it."""

    @property
    def process(self) -> int | None:
        return self.slurm.bridge.pid if isinstance(self.slurm, PySlurm) else None

    def submission(self, behaviour: str, name: str | None = None, **options: Any) -> Submission:
        number = next(_numbers)
        folder = self.cluster.root / "jobs" / str(number)
        folder.mkdir(parents=True)
        given = {
            "comment": "a comment",
            "script": "#!/bin/sh\n" + SCRIPTS[behaviour],
            "work_dir": str(folder),
            "output": str(folder / "out"),
        }
        return Submission(name=name or f"job-{number}", **{**given, **options})

    async def ready(self, submission: Submission) -> None:
        async def ask() -> bool:
            return (Path(submission.work_dir) / "ready").exists()

        await until(f"{submission.name} is ready", ask, bool)

    def signals(self, submission: Submission) -> list[str]:
        noted = Path(submission.work_dir) / "signals"
        return noted.read_text().split() if noted.exists() else []

    def leave(self, submission: Submission) -> None:
        (Path(submission.work_dir) / "leave").touch()

    def requeue(self, job_id: int) -> None:
        self.cluster.run("scontrol", "requeue", str(job_id))

    def fail_node(self, name: str) -> None:
        self._broken_nodes.add(name)
        self.cluster.stop_node(name, kill=True)
        # Slurm would find out by itself after SlurmdTimeout.
        self.cluster.run("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=failed for a test")

    def drain_node(self, name: str, reason: str) -> None:
        self._broken_nodes.add(name)
        self.cluster.run("scontrol", "update", f"NodeName={name}", "State=DRAIN", f"Reason={reason}")

    def restore_node(self, name: str) -> None:
        self._broken_nodes.discard(name)
        self.cluster.run("scontrol", "update", f"NodeName={name}", "State=UNDRAIN", check=False)
        self.cluster.start_node(name)

    def announce(self, name: str, after_s: int, *nodes: str) -> None:
        self._announced.add(name)
        self.cluster.run(
            "scontrol", "create", f"ReservationName={name}", f"StartTime=now+{after_s}", "Duration=60",
            f"Nodes={','.join(nodes)}", "Users=root", "Flags=MAINT,IGNORE_JOBS",
        )  # fmt: skip

    def say_no(self, words: str) -> None:
        (self.cluster.root / "job_submit.lua").write_text(PLUGIN.format(words=words))
        self._plain_conf = self.cluster.conf.read_text()
        self.cluster.conf.write_text(self._plain_conf + "JobSubmitPlugins=lua\n")
        self.cluster.stop_controller()
        self.cluster.start_controller()

    def stop_controller(self) -> None:
        self._controller_down = True
        self.cluster.stop_controller()

    def freeze_controller(self) -> None:
        self._frozen = True
        self.cluster.freeze_controller()

    def heal_controller(self) -> None:
        if self._frozen:
            self.cluster.thaw_controller()
        if self._plain_conf is not None:
            self.cluster.conf.write_text(self._plain_conf)
            self._plain_conf = None
            self.cluster.stop_controller()
            self._controller_down = True
        if self._controller_down:
            self.cluster.start_controller()
        self._frozen = self._controller_down = False

    async def close(self) -> None:
        await self.slurm.close()
        self.heal_controller()
        for name in list(self._broken_nodes):
            self.restore_node(name)
        for name in self._announced:
            self.cluster.run("scontrol", "delete", f"ReservationName={name}", check=False)
        self.cluster.reset()


def commands(cluster: Cluster) -> RealLane:
    """A cluster through its commands."""
    slurm = CommandLine(conf=str(cluster.conf), prefix=cluster.prefix, timeout_s=CALL_TIMEOUT_S)
    return RealLane(cluster, slurm)


def accounted(cluster: Cluster) -> RealLane:
    """A cluster with a slurmdbd through its commands."""
    made = commands(cluster)
    made.accounting = True
    return made


def pyslurm(cluster: Cluster) -> RealLane:
    """A cluster through pyslurm, whose script must lie where the chroot sees it."""
    server = Path(shutil.copy(SERVER, cluster.root))
    slurm = PySlurm(
        python=[*cluster.prefix, "python3"], conf=str(cluster.conf), server=server, timeout_s=CALL_TIMEOUT_S
    )
    return RealLane(cluster, slurm)
