"""A small Slurm cluster of its own, on this machine, for development and tests.

One slurmctld, one slurmd for each node and one munged (and a slurmdbd, where one is asked for), started by hand under
one folder, on loopback, with ports, keys and sockets of their own. GPUs are fake: links to /dev/null, enough for Slurm
to hand them out. It needs no root, no systemd, no cgroups and no configuration of the machine, and it neither reads nor
touches a Slurm that the machine already has. Several such clusters can run at once, each in its own folder. (Slurm from
a chroot does need root.)

It does not know Penstock: anything that speaks to Slurm can use the SLURM_CONF that it prints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from deploy.cluster import accounting, files, pair, saved
from deploy.cluster.accounting import MARIADBD, SLURMDBD
from deploy.cluster.daemons import MUNGED, SLURMCTLD, Daemons, daemon_path
from deploy.cluster.ports import LOOPBACK, free_ports, is_free
from deploy.cluster.processes import user, wait_for
from deploy.cluster.saved import Saved
from deploy.cluster.settings import ClusterError, Settings

ROOT_LENGTH_MAX = 70
"""Unix socket paths end at 107 bytes; slurmstepd's socket adds up to 36 to the root."""
START_TIMEOUT_S = 60.0
"""From the first daemon to all nodes idle: 0.2 s on a quiet machine, 12 s with 500 nodes."""
COMMAND_TIMEOUT_S = 30.0
READING, TIMED_OUT = ("squeue", "sinfo", "sacct"), "Socket timed out"
"""What changes nothing is asked twice: a machine that stands still for longer than MessageTimeout loses an answer."""
USABLE = ("idle", "mix", "alloc", "comp", "resv", "drain", "drng")
"""sinfo's words for nodes that have answered."""


class Cluster:
    """A cluster in a folder. Making this object starts nothing."""

    def __init__(self, root: Path | str, settings: Settings | None = None) -> None:
        self.root = Path(root).absolute()
        self._settings = settings

    # What it is ------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        return saved.load(self.root).settings or self._settings or Settings()

    @property
    def conf(self) -> Path:
        """What SLURM_CONF must be."""
        return self.root / "slurm.conf"

    @property
    def env(self) -> dict[str, str]:
        """The environment that points Slurm's commands at this cluster."""
        return {"SLURM_CONF": str(self.conf)}

    @property
    def name(self) -> str:
        """Unique to the folder: Slurm puts it into every job's environment, and `down` finds strays by it."""
        return f"penstock{hashlib.sha256(str(self.root).encode()).hexdigest()[:10]}"

    @property
    def node_names(self) -> tuple[str, ...]:
        return self.settings.node_names

    @property
    def prefix(self) -> tuple[str, ...]:
        """What to put before a Slurm command: nothing, or the script that enters the chroot."""
        return self._prefix(self.settings)

    @property
    def daemons(self) -> Daemons:
        return Daemons(self.root, self.name, self.prefix, self.env)

    def run(self, *command: str, check: bool = True, stdin: str | None = None) -> str:
        """Run one of Slurm's commands against this cluster and return what it printed."""
        done = self._done(command, stdin)
        if check and command[0] in READING and TIMED_OUT in done.stderr:
            done = self._done(command, stdin)
        if check and done.returncode != 0:
            raise ClusterError(f"{shlex.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def _done(self, command: tuple[str, ...], stdin: str | None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.prefix, *command],
            env={**os.environ, **self.env},
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
        )

    def _said(self, *command: str) -> str | None:
        """What it printed; None where slurmctld did not answer it in time, as a busy one may not."""
        try:
            return self.run(*command)
        except (ClusterError, subprocess.TimeoutExpired):
            return None

    # The whole -------------------------------------------------------------------------------------------------

    def up(self) -> None:
        """Make everything run that is not running. Idempotent; a second call takes milliseconds.

        Raises ClusterError: bad settings, other settings than the running cluster's, a missing program or right,
        a daemon that does not come up (with the end of its log).
        """
        with saved.locked(self.root):
            running = any(self.status().values())
            if not running:
                self._lay_out(self._settings or self.settings)
            elif self._settings is not None and self._settings != self.settings:
                raise ClusterError(
                    f"the cluster in {self.root} runs with other settings ({self._differences()}): run down first"
                )
            try:
                self._start_missing()
                self._wait_ready()
            except ClusterError:
                if not running:
                    self.daemons.stop_all()
                raise

    def down(self) -> None:
        """Cancel every job, end every daemon, and check that nothing of this cluster is left. Idempotent."""
        if not self.root.is_dir():
            return
        with saved.locked(self.root):
            kept, daemons = saved.load(self.root), self.daemons
            if kept.settings is None:
                return
            if daemons.alive(SLURMCTLD):
                with contextlib.suppress(ClusterError, subprocess.TimeoutExpired):
                    self.run("scancel", "--quiet", "--full", "--user", user())
                    wait_for(lambda: not daemons.job_processes(), 1.0)
            daemons.stop_all()
            kept.daemons = {}
            saved.save(self.root, kept)

    def status(self) -> dict[str, bool]:
        """Every daemon of this cluster and whether it runs. Empty when there is no cluster in this folder."""
        daemons = self.daemons
        return {name: daemons.alive(name) for name in daemons.names}

    # One daemon at a time, for tests of failures -----------------------------------------------------------------

    def stop_controller(self, *, kill: bool = False) -> None:
        self.daemons.stop(SLURMCTLD, kill=kill)

    def start_controller(self) -> None:
        """Start slurmctld and wait until it answers."""
        self.daemons.start(SLURMCTLD)
        self._wait("slurmctld answers", lambda: "UP" in self.run("scontrol", "ping", check=False))

    def freeze_controller(self) -> None:
        """Stop slurmctld in its tracks (SIGSTOP): connections are accepted by the kernel and never answered."""
        self.daemons.signal(SLURMCTLD, signal.SIGSTOP)

    def thaw_controller(self) -> None:
        self.daemons.signal(SLURMCTLD, signal.SIGCONT)

    def stop_accounting(self) -> None:
        """Stop slurmdbd; slurmctld runs on, and keeps what it has to tell it."""
        self.daemons.stop(SLURMDBD)

    def start_accounting(self) -> None:
        """Start slurmdbd, and MariaDB where it does not run, and wait until it knows this cluster."""
        accounting.install(self.root)
        self.daemons.start(MARIADBD)
        self._wait("mariadbd listens", self._database_listens)
        self.daemons.start(SLURMDBD)
        self._wait("slurmdbd answers", self._accounting_answers)

    def stop_node(self, name: str, *, kill: bool = False) -> None:
        """End a node's slurmd; its jobs run on."""
        self.daemons.stop(name, kill=kill)

    def start_node(self, name: str) -> None:
        """Start a node's slurmd and wait until slurmctld has heard from it."""
        self.daemons.start(name)

        def answers() -> bool:
            state = (self._said("sinfo", "-h", "-N", "-n", name, "-o", "%T") or "").split()
            return bool(state) and not any("*" in word or word.startswith("down") for word in state)

        self._wait(f"{name} answers", answers)

    def reset(self) -> None:
        """Cancel every job of this user, kill what does not go at once, and wait until none runs or waits. Nodes that
        were drained meanwhile are taken back: slurmctld drains by itself what was slow to end a job."""
        daemons = self.daemons

        def gone() -> bool:
            self._said("scancel", "--user", user())
            for pid in daemons.job_processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            left = self._said("squeue", "-h", "-o", "%i")
            return left is not None and not left.strip()

        self._wait("no job is left", gone)
        for node in (self._said("sinfo", "-h", "-N", "-t", "drain", "-o", "%N") or "").split():
            self._said("scontrol", "update", f"NodeName={node}", "State=RESUME")

    # Before the start ------------------------------------------------------------------------------------------

    def _lay_out(self, settings: Settings) -> None:
        """Write the folder. The state of slurmctld stays, so that job ids go on and are not used twice."""
        self._check(settings)
        spools = [f"spool/{name}" for name in settings.node_names]
        for folder in ("", "munge", "state", "log", "run", "dev", *spools):
            (self.root / folder).mkdir(mode=0o755, parents=True, exist_ok=True)
        (self.root / "munge").chmod(0o711)
        (self.root / "state").chmod(0o700)
        key = self.root / "munge" / "munge.key"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(random.SystemRandom().randbytes(1024))
        for number in range(settings.gpus):
            device = self.root / "dev" / f"gpu{number}"
            if not device.exists():
                # Slurm wants a file to be there; a device node would take root.
                device.symlink_to("/dev/null")
        ports = saved.load(self.root).ports
        if len(ports) != settings.ports or not all(map(is_free, ports)):
            ports = free_ports(settings.ports)
        saved.save(self.root, Saved(settings=settings, ports=ports))
        if settings.backup:
            (self.root / "hosts").write_text(pair.hosts_file())
            for daemon in pair.HOSTS:
                (self.root / "run" / daemon).mkdir(exist_ok=True)
        if not settings.of_system:
            (self.root / "hosts").write_text(f"{LOOPBACK} localhost {socket.gethostname()}\n")
            enter = self.root / "enter"
            enter.write_text(files.enter_script(Path(settings.slurm), self.root))
            enter.chmod(0o755)
        self.conf.write_text(self._slurm_conf(settings, ports))
        (self.root / "gres.conf").write_text(files.gres_conf(self.root, settings))
        if settings.accounting:
            slurmdbd = self.root / "slurmdbd.conf"
            slurmdbd.touch(mode=0o600)
            slurmdbd.write_text(accounting.slurmdbd_conf(self.root, port=ports[-1], address=self._address()))
        cgroup = self.root / "cgroup.conf"
        if self._version(settings) >= (23, 2):
            cgroup.write_text("CgroupPlugin=disabled\n")
        else:
            cgroup.unlink(missing_ok=True)

    def _slurm_conf(self, settings: Settings, ports: list[int]) -> str:
        address = self._address()
        only_there = self._hostname_address() == address
        kept = (
            accounting.slurm_conf(self.root, port=ports[-1], address=address) if settings.accounting else ""
        )
        return files.slurm_conf(
            self.root,
            self.name,
            settings,
            ports=ports,
            address=address,
            only_there=only_there,
            user=user(),
            accounting=kept,
        )

    def _check(self, settings: Settings) -> None:
        settings.check()
        if len(str(self.root)) > ROOT_LENGTH_MAX:
            raise ClusterError(
                f"the root {self.root} is longer than {ROOT_LENGTH_MAX} characters, too long for sockets"
            )
        if any(character.isspace() or character in ",#'\"" for character in str(self.root)):
            raise ClusterError(
                f"the root {self.root} holds a character that slurm.conf cannot quote: choose another"
            )
        if settings.accounting and not settings.of_system:
            raise ClusterError(
                "accounting takes the machine's own MariaDB: use --slurm system, or do without --accounting"
            )
        if os.geteuid() != 0 and not settings.of_system:
            raise ClusterError("entering a chroot takes root: run as root, or use --slurm system")
        if settings.backup and not settings.of_system:
            raise ClusterError("a second slurmctld was tried with --slurm system only")
        if os.geteuid() != 0 and settings.backup:
            raise ClusterError("a second slurmctld takes root: run as root, or do without --backup")
        where = Path("/") if settings.of_system else Path(settings.slurm)
        folders = ("usr/sbin", "usr/bin", "sbin", "bin", "usr/local/sbin")
        path = ":".join(str(where / folder) for folder in folders)
        if settings.of_system:
            path = os.environ.get("PATH", "") + ":" + path
        programs = ["munged", "slurmctld", "slurmd", "sinfo", "scontrol", "scancel"]
        packages = "slurmctld slurmd slurm-client munge"
        if settings.accounting:
            programs += [SLURMDBD, MARIADBD, accounting.INSTALL]
            packages += " slurmdbd mariadb-server-core mariadb-client-core"
        missing = [name for name in programs if shutil.which(name, path=path) is None]
        if missing:
            raise ClusterError(f"missing {', '.join(missing)} in {where}: apt-get install {packages}")

    def _prefix(self, settings: Settings) -> tuple[str, ...]:
        return () if settings.of_system else (str(self.root / "enter"),)

    def _version(self, settings: Settings) -> tuple[int, int]:
        words = subprocess.run(
            [*self._prefix(settings), daemon_path(SLURMCTLD), "-V"], capture_output=True, text=True
        ).stdout.split()
        try:
            major, minor = words[-1].split(".")[:2]
            return int(major), int(minor)
        except (IndexError, ValueError):
            raise ClusterError(f"slurmctld -V printed {' '.join(words)!r}; a version was expected") from None

    def _differences(self) -> str:
        asked, running = dataclasses.asdict(self._settings or Settings()), dataclasses.asdict(self.settings)
        return ", ".join(
            f"{key}={running[key]}, asked {asked[key]}" for key in asked if asked[key] != running[key]
        )

    def _hostname_address(self) -> str | None:
        """What this machine's own name resolves to. With NoInAddrAny Slurm's daemons listen there and only there."""
        if not self.settings.of_system:
            return LOOPBACK  # the chroot is given a hosts file that says so
        try:
            return socket.gethostbyname(socket.gethostname())
        except OSError:
            return None

    def _address(self) -> str:
        """Where daemons are reached: loopback always. Debian's own default maps the host's name to 127.0.1.1.

        Where the machine's name is no loopback address, the daemons listen on every interface; munge keeps others out.
        """
        address = self._hostname_address()
        return address if address is not None and address.startswith("127.") else LOOPBACK

    # The start -------------------------------------------------------------------------------------------------

    def _start_missing(self) -> None:
        daemons = self.daemons
        if not daemons.alive(MUNGED):
            (self.root / "munge" / "socket").unlink(missing_ok=True)
            daemons.start(MUNGED)
            self._wait("munged listens", self._munge_listens)
        if self.settings.accounting:
            self.start_accounting()
        daemons.start(SLURMCTLD)
        # A slurmd that finds no slurmctld tries again only after a second.
        self._wait("slurmctld listens", self._controller_listens)
        if self.settings.backup:
            daemons.start(pair.BACKUP)
            self._wait("the backup slurmctld listens", lambda: self._controller_listens(pair.BACKUP))
        for node in self.node_names:
            daemons.start(node)

    def _wait(self, what: str, condition: Callable[[], bool]) -> None:
        if not wait_for(condition, START_TIMEOUT_S):
            raise ClusterError(f"waited {START_TIMEOUT_S:.0f} s in vain: {what}\n{self.daemons.last_words()}")

    def _munge_listens(self) -> bool:
        self.daemons.check_alive(MUNGED)
        return (self.root / "munge" / "socket").is_socket()

    def _database_listens(self) -> bool:
        self.daemons.check_alive(MARIADBD)
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(accounting.socket(self.root))) == 0

    def _accounting_answers(self) -> bool:
        """And knows this cluster: slurmctld does not make itself known."""
        self.daemons.check_alive(SLURMDBD)
        if self.name in self.run("sacctmgr", "-nP", "show", "cluster", "format=Cluster", check=False).split():
            return True
        self.run("sacctmgr", "--immediate", "--quiet", "add", "cluster", self.name, check=False)
        return False

    def _controller_listens(self, daemon: str = SLURMCTLD) -> bool:
        """Slurm's own commands retry a refused connection for MessageTimeout; this does not."""
        self.daemons.check_alive(daemon)
        address = pair.HOSTS[daemon].address if self.settings.backup else self._address()
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex((address, saved.load(self.root).ports[0])) == 0

    def _wait_ready(self) -> None:
        daemons = self.daemons

        def ready() -> bool:
            for daemon in (SLURMCTLD, *self.node_names):
                daemons.check_alive(daemon)
            states = self.run("sinfo", "-h", "-N", "-o", "%N %t", check=False).split("\n")
            words = {line.split()[0]: line.split()[1] for line in states if line.strip()}
            return len(words) == len(self.node_names) and all(word in USABLE for word in words.values())

        self._wait("all nodes answer", ready)
