"""What Slurm shows, sampled for the whole run: the record that the controller's log is held against.

Reads squeue by itself, not through Penstock, and knows only the mark. The rule guarded here is the first: at
no sampled moment two jobs with one token, and at none two live jobs for one replica.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from deploy.cluster.cluster import Cluster
from tests.chaos.worker import Worker

EVERY_S = 0.3
ANSWER_WITHIN_S = 5
LINE = re.compile(r"(\d+)\|([A-Z_]+)\|([^|]*)\|([^|]*)\|(.*)")
FORGED_FOLDER = "/"
"""The working folder of the jobs that the run submits itself; Penstock's have their attempts' own."""
MARK = re.compile(r"penstock/1 (\S+) (\S+)")
LIVE = frozenset({"PENDING", "CONFIGURING", "RUNNING", "SUSPENDED"})
Row = tuple[int, str, str, str, str]
"""Id, state, name, working folder, comment."""
Key = tuple[int, str, str]
"""Id, name, working folder: one job for ever."""
ENDING = frozenset({"COMPLETING", "STAGE_OUT"})


@dataclass
class SeenJob:
    """One job, as far as samples showed it. Its id is not enough to know it by: a slurmctld that is killed forgets
    what it has not saved, and gives ids again."""

    id: int
    name: str
    folder: str
    comment: str
    states: list[str] = field(default_factory=list)
    """Each change."""
    gone: bool = False
    """The last sample did not show it."""
    resurrected: bool = False
    """It had ended, and a requeue by hand brought it back."""

    @property
    def state(self) -> str:
        return self.states[-1]

    @property
    def live(self) -> bool:
        return not self.gone and self.state in LIVE

    def token(self, installation: str) -> str | None:
        """Its attempt's token, if mark and name agree and the run did not forge them."""
        if self.folder == FORGED_FOLDER:
            return None
        mark = MARK.fullmatch(self.comment)
        if mark is None or mark[1] != installation or not self.name.endswith(f"-{mark[2]}"):
            return None
        return mark[2]


class Watch(Worker):
    """Samples the queue. `ours` and `jobs` may be called at any time."""

    def __init__(self, cluster: Cluster, installation: str, attempts: Path, seed: int) -> None:
        super().__init__("watch", seed)
        self._cluster = cluster
        self._installation = installation
        self._attempts = attempts
        self._replicas: dict[str, str] = {}
        self._lock = threading.Lock()
        self._jobs: dict[Key, SeenJob] = {}
        self.violations: dict[str, str] = {}
        """What went wrong -> the sentence; each once."""

    def step(self) -> None:
        rows = self._sample()
        if rows is None:
            self.counts["samples without an answer"] += 1
        else:
            self.counts["samples"] += 1
            with self._lock:
                self._take(rows)
                self._judge()
        self.stopping.wait(EVERY_S)

    def jobs(self) -> list[SeenJob]:
        with self._lock:
            return list(self._jobs.values())

    def ours(self) -> list[SeenJob]:
        """Jobs that bear the installation's mark and that the run did not forge."""
        return [job for job in self.jobs() if job.token(self._installation)]

    def _sample(self) -> list[Row] | None:
        try:
            done = subprocess.run(
                [*self._cluster.prefix, "squeue", "-h", "--states=all", "-o", "%i|%T|%j|%Z|%k"],
                env={**os.environ, **self._cluster.env},
                capture_output=True,
                text=True,
                timeout=ANSWER_WITHIN_S,
            )
        except subprocess.TimeoutExpired:
            return None
        if done.returncode:
            return None
        # A forged comment may hold newlines: what does not look like a row is its tail.
        found = [LINE.fullmatch(line) for line in done.stdout.splitlines()]
        return [(int(row[1]), row[2], row[3], row[4], row[5]) for row in found if row is not None]

    def _take(self, rows: Iterable[Row]) -> None:
        for job in self._jobs.values():
            job.gone = True
        for id_, state, name, folder, comment in rows:
            job = self._jobs.setdefault((id_, name, folder), SeenJob(id_, name, folder, comment, [state]))
            job.gone = False
            if job.state != state:
                if state in LIVE and job.state not in LIVE | ENDING:
                    job.resurrected = True
                job.states.append(state)

    def _judge(self) -> None:
        by_token: dict[str, set[int]] = {}
        live_by_replica: dict[str, set[int]] = {}
        for job in self._jobs.values():
            token = job.token(self._installation)
            if token is None or job.gone:
                continue
            by_token.setdefault(token, set()).add(job.id)
            if job.live and not job.resurrected:
                live_by_replica.setdefault(self._replica(token), set()).add(job.id)
        for token, ids in by_token.items():
            if len(ids) > 1:
                self.violations[f"token {token}"] = f"jobs {sorted(ids)} bear one token, {token}"
        for replica, ids in live_by_replica.items():
            if len(ids) > 1:
                self.violations[f"replica {replica}"] = (
                    f"jobs {sorted(ids)} live at once for replica {replica}"
                )

    def _replica(self, token: str) -> str:
        """Whose attempt it is, from the file that was written before the submission."""
        if token not in self._replicas:
            config = json.loads((self._attempts / token / "agent.json").read_text())
            self._replicas[token] = config["replica"]
        return self._replicas[token]
