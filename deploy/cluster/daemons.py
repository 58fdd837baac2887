"""The daemons of one cluster: started, known again, signalled, ended.

munged, slurmctld and one slurmd for each node, which is named like its node; slurmdbd and its MariaDB, and a
second slurmctld, where asked for. It knows nothing of jobs but which processes are theirs.

The rule guarded here: only what this program started is ever signalled. A process is known by its pid *and* its start
time, and a job's process by the cluster's name in its environment.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deploy.cluster import accounting, pair, saved
from deploy.cluster.accounting import MARIADBD, SLURMDBD
from deploy.cluster.processes import Started, boot_id, environ_of, processes, start_time, wait_for
from deploy.cluster.settings import ClusterError

STOP_TIMEOUT_S = 15.0
"""How long a daemon may take to leave on SIGTERM before it is killed."""
DAEMON_MARK = "PENSTOCK_CLUSTER_ROOT"
"""Set in the environment of the daemons only; slurmstepd inherits it, jobs do not."""
MUNGED, SLURMCTLD = "munged", pair.PRIMARY
MUNGE_FILES = {"key": "munge.key", "pid": "munged.pid", "log": "munged.log", "seed": "seed"}


class Daemons:
    """Those of the cluster called `name` in `root`; `prefix` enters the chroot that holds them, if one does."""

    def __init__(self, root: Path, name: str, prefix: Sequence[str], env: Mapping[str, str]) -> None:
        self._root = root
        self._name = name
        self._prefix = prefix
        self._env = env

    @property
    def names(self) -> tuple[str, ...]:
        """All that the cluster has, in the order of their start. Empty when there is no cluster in the folder."""
        settings = saved.load(self._root).settings
        if settings is None:
            return ()
        return (
            MUNGED,
            *((MARIADBD, SLURMDBD) if settings.accounting else ()),
            SLURMCTLD,
            *((pair.BACKUP,) if settings.backup else ()),
            *settings.node_names,
        )

    def start(self, daemon: str) -> None:
        """In a session of its own, so that a Ctrl-C meant for the caller does not reach it."""
        if self.alive(daemon):
            return
        log = os.open(
            self._root / "log" / f"{daemon}.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644
        )
        command = [*self._prefix, *self._command(daemon)]
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("SLURM", "SBATCH", "PENSTOCK"))
        }
        environment |= {**self._env, DAEMON_MARK: str(self._root)}
        if daemon == SLURMDBD:
            environment |= accounting.environment(self._root)
        with open(os.devnull) as nothing:
            actions = [
                (os.POSIX_SPAWN_DUP2, nothing.fileno(), 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
            ]
            pid = os.posix_spawnp(command[0], command, environment, file_actions=actions, setsid=True)
        os.close(log)
        kept = saved.load(self._root)
        kept.daemons[daemon] = Started(pid=pid, start_time=start_time(pid) or 0, boot_id=boot_id())
        saved.save(self._root, kept)

    def alive(self, daemon: str) -> bool:
        return self._pid(daemon) is not None

    def check_alive(self, daemon: str) -> None:
        """Raises ClusterError, its first line with the daemon's own reason, when it has ended."""
        if self.alive(daemon):
            return
        log = self._root / "log" / f"{daemon}.out"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        for word in ("fatal", "rror", ""):
            reasons = [line for line in lines if word in line]
            if reasons:
                raise ClusterError(f"{daemon} ended at once: {reasons[-1].strip()}\n{self.last_words()}")
        raise ClusterError(f"{daemon} ended at once, without a word")

    def signal(self, daemon: str, number: signal.Signals) -> None:
        pid = self._pid(daemon)
        if pid is None:
            raise ClusterError(f"{daemon} of the cluster in {self._root} does not run")
        os.kill(pid, number)

    def stop(self, daemon: str, *, kill: bool = False) -> None:
        """Asks it to leave, or ends it; returns once it is gone. Raises ClusterError when it cannot be ended."""
        pid = self._pid(daemon)
        if pid is None:
            return
        os.kill(pid, signal.SIGCONT)
        os.kill(pid, signal.SIGKILL if kill else signal.SIGTERM)
        if not wait_for(lambda: not self.alive(daemon), STOP_TIMEOUT_S):
            os.kill(pid, signal.SIGKILL)
            if not wait_for(lambda: not self.alive(daemon), STOP_TIMEOUT_S):
                raise ClusterError(f"{daemon} (pid {pid}) does not end, not even on SIGKILL")
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # ours only when it was started in this very process

    def stop_all(self) -> None:
        """The daemons, the jobs' processes, and what either left behind."""
        # A slurmd that is told to stop leaves its jobs running, and slurmctld cannot stop without its slurmscriptd,
        # which bears our mark too: job processes go first, strays of the daemons last.
        kill_all(self.job_processes)
        self.stop(pair.BACKUP)
        self.stop(SLURMCTLD)  # gracefully: it saves the job ids it has given
        for daemon in self.names:
            if daemon not in (MUNGED, MARIADBD, SLURMDBD, SLURMCTLD, pair.BACKUP):
                # A slurmd that is asked to stop would wait for slurmctld to take its last reports.
                self.stop(daemon, kill=True)
        kill_all(self._strays)
        kill_all(self.job_processes)
        for daemon in (SLURMDBD, MARIADBD, MUNGED):
            self.stop(daemon)

    def job_processes(self) -> set[int]:
        """Processes of this cluster's jobs: their environment names the cluster, whoever their parent is now."""
        found = set()
        for pid in processes():
            environment = environ_of(pid)
            if environment.get("SLURM_CLUSTER_NAME") == self._name and "SLURM_JOB_ID" in environment:
                found.add(pid)
        return found

    def last_words(self) -> str:
        """The end of every daemon's log, for an error message."""
        lines = []
        for name in self.names:
            for path in (self._root / "log" / f"{name}.out", self._root / "log" / f"{name}.log"):
                if path.exists():
                    ends = path.read_text(errors="replace").splitlines()[-5:]
                    lines += [f"{path.name}: {line}" for line in ends]
        return "\n".join(lines)

    def _command(self, daemon: str) -> list[str]:
        if daemon == MUNGED:
            at = self._root / "munge"
            # --force: munged asks that everybody can reach its socket, which nobody else needs to: the root may lie
            # in a home of mode 0700.
            files = [f"--{kind}-file={at}/{name}" for kind, name in MUNGE_FILES.items()]
            return [daemon_path(MUNGED), "--foreground", "--force", f"--socket={at}/socket", *files]
        conf = str(self._root / "slurm.conf")
        if daemon in pair.HOSTS and saved.load(self._root).has_backup:
            return pair.command(daemon, daemon_path(SLURMCTLD), self._root)
        if daemon == SLURMCTLD:
            return [daemon_path(SLURMCTLD), "-D", "-f", conf]
        if daemon == SLURMDBD:
            return [daemon_path(SLURMDBD), "-D"]
        if daemon == MARIADBD:
            return [daemon_path(MARIADBD), *accounting.mariadbd_options(self._root)]
        return [daemon_path("slurmd"), "-D", "-N", daemon, "-f", conf]

    def _pid(self, daemon: str) -> int | None:
        """The pid of a daemon that we started and that still is that very process."""
        started = saved.load(self._root).daemons.get(daemon)
        if started is None:
            return None
        same = started.boot_id == boot_id() and start_time(started.pid) == started.start_time
        return started.pid if same else None

    def _strays(self) -> set[int]:
        """slurmstepd and slurmscriptd: they carry our mark and are not among the daemons that we started."""
        ours = {self._pid(daemon) for daemon in self.names} | {os.getpid()}
        return {
            pid
            for pid in processes()
            if pid not in ours and environ_of(pid).get(DAEMON_MARK) == str(self._root)
        }


def kill_all(find: Callable[[], set[int]]) -> None:
    """Kills what `find` finds, and sees that it finds no more. Raises ClusterError when some do not end."""
    for pid in find():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if not wait_for(lambda: not find(), STOP_TIMEOUT_S):
        raise ClusterError(f"processes do not end, not even on SIGKILL: {sorted(find())}")


def daemon_path(name: str) -> str:
    """Slurm's daemons live in sbin, which is in few users' PATH; in a chroot the same path holds."""
    return (
        shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
        or f"/usr/sbin/{name}"
    )
