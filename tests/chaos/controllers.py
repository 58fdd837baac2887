"""The controllers, and their end: `penstock serve` keeps one, the run keeps a second, and the leader is killed with -9.

A kill waits for a leader of a new term and then for a drawn moment of its first seconds, because that is when
it adopts, submits and cancels. Now and then both die. How long it takes until another leads is judged where a standby
stood by, and PostgreSQL and Slurm were there all the time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import psutil
import psycopg

from tests.chaos.outages import Outages
from tests.chaos.worker import Worker
from tests.penstocks import Penstock

LOOK_EVERY_S = 0.2
ACTS_FOR_S = 3.0
"""A leader is killed at most this long after its term began."""
BOTH = 0.1
"""How often the other one dies too."""

KILL = "controller killed with -9"

FAIL_OVER_WITHIN_S = 15.0
"""After a kill -9 of the leader: its lease runs for 10 s, and the standby asks every few."""
UP = "controller: Slurm through "
"""In the log of a controller that has started: all that it does next is to ask for the lease."""

LEADER = "SELECT holder, term FROM leases WHERE name = 'controller' AND expires_at > clock_timestamp()"


class Controllers(Worker):
    """Kills leaders until there were `kills`; keeps a second controller running."""

    def __init__(self, penstock: Penstock, database: str, kills: int, outages: Outages, seed: int) -> None:
        super().__init__("controllers", seed)
        self._penstock = penstock
        self._database = database
        self._kills = kills
        self._last_term = 0
        self._outages = outages
        self._second: subprocess.Popen[bytes] | None = None
        self._seconds = 0
        """How many second controllers were started."""
        self._killed_at_s: float | None = None
        """When the last leader was killed, beside a standby and with all else there."""
        self.fail_overs_s: list[float] = []
        """Those that are judged."""
        self.longest_without_leader_s = 0.0
        """With PostgreSQL and all else in whatever state the other faults left it."""

    @property
    def done(self) -> bool:
        return self.counts[KILL] >= self._kills

    @property
    def log(self) -> Path:
        return self._penstock.folder / "second.log"

    def step(self) -> None:
        self.keep_second()
        began = time.monotonic()
        leader = self.leader()
        while leader is None or leader[1] == self._last_term:
            if self.stopping.wait(LOOK_EVERY_S):
                return
            self.keep_second()
            leader = self.leader()
        now = time.monotonic()
        self.longest_without_leader_s = max(self.longest_without_leader_s, now - began)
        if self._killed_at_s is not None and not self._outages.since(self._killed_at_s):
            self.fail_overs_s.append(now - self._killed_at_s)
        self._killed_at_s = None
        self.pause(0, ACTS_FOR_S)
        if self.done or self.stopping.is_set():
            self.stopping.wait(LOOK_EVERY_S)
            return
        pid, self._last_term = leader
        victims = {pid} if self.random.random() > BOTH else {pid, *self._pids()}
        stands_by = len(victims) == 1 and self._stands_by(pid)
        for victim in victims:
            killed = self._kill(victim)
        self._killed_at_s = time.monotonic() if killed and stands_by else None

    def leader(self) -> tuple[int, int] | None:
        """The leader's pid and term; None: there is none, or nobody can say."""
        try:
            with psycopg.connect(self._database, connect_timeout=2) as connection:
                row = connection.execute(LEADER).fetchone()
        except psycopg.OperationalError:
            return None
        return None if row is None else (int(row[0].split("/")[1]), int(row[1]))

    def freeze(self, for_s: float) -> bool:
        """SIGSTOP for the leader, SIGCONT after that time: it wakes up and may not know that it was succeeded."""
        leader = self.leader()
        if leader is None or not self._is_ours(leader[0]):
            return False
        with contextlib.suppress(ProcessLookupError), self._outages.outage():
            os.kill(leader[0], signal.SIGSTOP)
            self.stopping.wait(for_s)
            os.kill(leader[0], signal.SIGCONT)
        return True

    def retire(self) -> bool:
        """SIGTERM for the leader: it gives the lease back."""
        leader = self.leader()
        if leader is None or not self._is_ours(leader[0]):
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(leader[0], signal.SIGTERM)
        return True

    def keep_second(self) -> None:
        """Starts the second controller unless it runs."""
        if self._second is not None and self._second.poll() is None:
            return
        self._seconds += 1
        with self.log.open("ab") as output:
            self._second = subprocess.Popen(
                [sys.executable, "-m", "penstock.app", "controller"],
                env={**os.environ, "PENSTOCK_CONFIG": str(self._penstock.folder / "penstock.toml")},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def stop_second(self) -> None:
        if self._second is not None:
            self._second.send_signal(signal.SIGCONT)
            self._second.terminate()
            self._second.wait(30)

    def _pids(self) -> list[int]:
        supervised = self._penstock.pid("controller")
        second = [] if self._second is None else [self._second.pid]
        return [supervised, *second]

    def _is_ours(self, pid: int) -> bool:
        """A pid in a row or a file may be somebody else's by now."""
        with contextlib.suppress(psutil.Error):
            command = psutil.Process(pid).cmdline()
            return pid in self._pids() and command[-2:] == ["penstock.app", "controller"]
        return False

    def _stands_by(self, leader: int) -> bool:
        """Whether the controller that does not lead has started, so that it asks for the lease."""
        supervised, second = self._penstock.pid("controller"), self._second
        if second is None or second.poll() is not None or not self._is_ours(supervised):
            return False
        if leader == supervised:
            return self.log.read_text(errors="replace").count(UP) == self._seconds
        said = self._penstock.log
        return leader == second.pid and said.rfind(UP) > said.rfind("controller: started, pid ")

    def _kill(self, pid: int) -> bool:
        """Whether it was there."""
        if not self._is_ours(pid):
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.note(KILL, datetime.now().astimezone())
            return True
        return False
