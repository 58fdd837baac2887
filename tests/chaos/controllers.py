"""The controllers, and their end: `penstock serve` keeps one, the run keeps a second, and the leader is killed with -9.

A kill waits for a leader of a new term and then for a drawn moment of its first seconds, because that is when
it adopts, submits and cancels. Now and then it is the standby that dies, or both.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import psycopg

from tests.chaos.worker import Worker
from tests.penstocks import Penstock

LOOK_EVERY_S = 0.2
ACTS_FOR_S = 3.0
"""A leader is killed at most this long after its term began."""
BOTH = 0.1
"""How often the other one dies too."""

LEADER = "SELECT holder, term FROM leases WHERE name = 'controller' AND expires_at > clock_timestamp()"


class Controllers(Worker):
    """Kills leaders until there were `kills`; keeps a second controller running."""

    def __init__(self, penstock: Penstock, database: str, kills: int, seed: int) -> None:
        super().__init__("controllers", seed)
        self._penstock = penstock
        self._database = database
        self._kills = kills
        self._last_term = 0
        self._second: subprocess.Popen[bytes] | None = None
        self.longest_without_leader_s = 0.0
        """With PostgreSQL and all else in whatever state the other faults left it."""

    @property
    def done(self) -> bool:
        return self.counts["controller killed with -9"] >= self._kills

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
        self.longest_without_leader_s = max(self.longest_without_leader_s, time.monotonic() - began)
        self.pause(0, ACTS_FOR_S)
        if self.done or self.stopping.is_set():
            self.stopping.wait(LOOK_EVERY_S)
            return
        pid, self._last_term = leader
        victims = {pid} if self.random.random() > BOTH else {pid, *self._pids()}
        for victim in victims:
            self._kill(victim)

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
        with contextlib.suppress(ProcessLookupError):
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

    def _kill(self, pid: int) -> None:
        if not self._is_ours(pid):
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.counts["controller killed with -9"] += 1
