#!/usr/bin/env python3
"""A small Slurm cluster of its own, on this machine, for development and tests.

One slurmctld, one slurmd for each node and one munged, started by hand under one folder, on loopback, with ports, keys
and sockets of their own. GPUs are fake: links to /dev/null, enough for Slurm to hand them out. It needs no root, no
systemd, no cgroups and no configuration of the machine, and it neither reads nor touches a Slurm that the machine
already has. Several such clusters can run at once, each in its own folder. (Slurm from a chroot does need root.)

It does not know Penstock: anything that speaks to Slurm can use the SLURM_CONF that it prints.

The rule guarded here: only what this program started is ever signalled. A process is known by its pid *and* its start
time, and a job's process by the cluster's name in its environment.

    python deploy/cluster/cluster.py up --root ~/.local/state/penstock/cluster
    python deploy/cluster/cluster.py status --root ...
    python deploy/cluster/cluster.py down --root ...
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pwd
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

NODES_MAX = 64
"""A slurmd takes about 6 MB and a port; a development machine has no use for more."""
ROOT_LENGTH_MAX = 70
"""Unix socket paths end at 107 bytes; slurmstepd's socket adds up to 36 to the root."""
PORTS = range(20000, 32000)
"""Below the kernel's ephemeral ports, so that no outgoing connection takes a port between choosing and using it."""
LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 60.0
"""From the first daemon to all nodes idle: 0.2 s on a quiet machine, 12 s with 500 nodes."""
STOP_TIMEOUT_S = 15.0
"""How long a daemon may take to leave on SIGTERM before it is killed."""
COMMAND_TIMEOUT_S = 30.0
MUNGE_FILES = {"key": "munge.key", "pid": "munged.pid", "log": "munged.log", "seed": "seed"}
DAEMON_MARK = "PENSTOCK_CLUSTER_ROOT"
"""Set in the environment of the daemons only; slurmstepd inherits it, jobs do not."""


class ClusterError(Exception):
    """The cluster cannot be made or kept as asked; the message says what is needed."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a cluster is made of. Changing it needs `down` first."""

    nodes: int = 2
    cpus: int = 8
    """CPUs that each node claims to have; the machine need not have them."""
    memory_mib: int = 16000
    gpus: int = 2
    gpu_type: str = ""
    slurm: str = "system"
    """`system`, or the root folder of a chroot that holds Slurm."""
    min_job_age_s: int = 300
    """How long slurmctld remembers an ended job."""
    message_timeout_s: int = 10
    slurmd_timeout_s: int = 30
    """A node that has been silent this long is marked down."""
    kill_wait_s: int = 30
    """Seconds between SIGTERM and SIGKILL."""
    preempt: bool = True
    """Add the partition `preempt`, whose jobs are requeued when any other partition needs their nodes."""
    enforce_part_limits: bool = False
    """Refuse at submit what the partition's limits forbid; Slurm's default lets such a job pend for ever."""


@dataclass(frozen=True, slots=True)
class Started:
    """A daemon that this program started."""

    pid: int
    start_time: int
    """Clock ticks after boot, as in /proc/PID/stat; with the pid it names one process for ever, until a reboot."""
    boot_id: str


def start_time(pid: int) -> int | None:
    """When process `pid` started, in clock ticks after boot; None when there is none, or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def environ_of(pid: int) -> dict[str, str]:
    """The environment that process `pid` was started with; empty when it is gone or another user's."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition(b"=") for entry in raw.split(b"\0"))
    return {os.fsdecode(key): os.fsdecode(value) for key, separator, value in pairs if separator}


def processes() -> Iterator[int]:
    yield from (int(name) for name in os.listdir("/proc") if name.isdigit())


def wait_for(condition: Callable[[], bool], timeout_s: float, *, every_s: float = 0.02) -> bool:
    """Whether the condition became true within the time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True


class Cluster:
    """A cluster in a folder. Making this object starts nothing."""

    def __init__(self, root: Path | str, settings: Settings | None = None) -> None:
        self.root = Path(root).absolute()
        self._settings = settings

    # What it is ------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        saved = self._load().get("settings")
        if isinstance(saved, dict):
            return Settings(**saved)
        return self._settings or Settings()

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
        return tuple(f"node{number}" for number in range(1, self.settings.nodes + 1))

    @property
    def prefix(self) -> tuple[str, ...]:
        """What to put before a Slurm command: nothing, or the script that enters the chroot."""
        return () if self.settings.slurm == "system" else (str(self.root / "enter"),)

    def run(self, *command: str, check: bool = True, stdin: str | None = None) -> str:
        """Run one of Slurm's commands against this cluster and return what it printed."""
        done = subprocess.run(
            [*self.prefix, *command],
            env={**os.environ, **self.env},
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
        )
        if check and done.returncode != 0:
            raise ClusterError(f"{shlex.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    # The whole -------------------------------------------------------------------------------------------------

    def up(self) -> None:
        """Make everything run that is not running. Idempotent; a second call takes milliseconds.

        Raises ClusterError: bad settings, other settings than the running cluster's, a missing program or right,
        a daemon that does not come up (with the end of its log).
        """
        with self._locked():
            state = self._load()
            running = any(self.status().values())
            if running:
                if self._settings is not None and self._settings != self.settings:
                    raise ClusterError(
                        f"the cluster in {self.root} runs with other settings ({self._differences()}): run down first"
                    )
            else:
                self._write(self._settings or self.settings, state)
            try:
                self._start_missing()
                self._wait_ready()
            except ClusterError:
                if not running:
                    self._stop_all()
                raise

    def down(self) -> None:
        """Cancel every job, end every daemon, and check that nothing of this cluster is left. Idempotent."""
        if not self.root.is_dir():
            return
        with self._locked():
            state = self._load()
            if not state:
                return
            if self._alive("slurmctld"):
                with contextlib.suppress(ClusterError, subprocess.TimeoutExpired):
                    self.run("scancel", "--quiet", "--full", "--user", pwd.getpwuid(os.geteuid()).pw_name)
                    wait_for(lambda: not self._job_processes(), 1.0)
            self._stop_all()
            state["daemons"] = {}
            self._save(state)

    def status(self) -> dict[str, bool]:
        """Every daemon of this cluster and whether it runs. Empty when there is no cluster in this folder."""
        return {name: self._alive(name) for name in self._daemons(self._load())}

    # One daemon at a time, for tests of failures -----------------------------------------------------------------

    def stop_controller(self, *, kill: bool = False) -> None:
        self._stop("slurmctld", kill=kill)

    def start_controller(self) -> None:
        """Start slurmctld and wait until it answers."""
        self._start("slurmctld")
        self._wait("slurmctld answers", lambda: "UP" in self.run("scontrol", "ping", check=False))

    def freeze_controller(self) -> None:
        """Stop slurmctld in its tracks (SIGSTOP): connections are accepted by the kernel and never answered."""
        self._signal("slurmctld", signal.SIGSTOP)

    def thaw_controller(self) -> None:
        self._signal("slurmctld", signal.SIGCONT)

    def stop_node(self, name: str, *, kill: bool = False) -> None:
        """End a node's slurmd; its jobs run on."""
        self._stop(name, kill=kill)

    def start_node(self, name: str) -> None:
        """Start a node's slurmd and wait until slurmctld has heard from it."""
        self._start(name)

        def answers() -> bool:
            state = self.run("sinfo", "-h", "-N", "-n", name, "-o", "%T").split()
            return bool(state) and not any("*" in word or word.startswith("down") for word in state)

        self._wait(f"{name} answers", answers)

    def reset(self) -> None:
        """Cancel every job of this user, kill what does not go at once, and wait until none runs or waits."""
        self.run("scancel", "--user", pwd.getpwuid(os.geteuid()).pw_name)

        def gone() -> bool:
            for pid in self._job_processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not self.run("squeue", "-h", "-o", "%i").strip()

        self._wait("no job is left", gone)

    # Files -----------------------------------------------------------------------------------------------------

    def _write(self, settings: Settings, previous: dict[str, object]) -> None:
        """Lay out the folder. The state of slurmctld stays, so that job ids go on and are not used twice."""
        self._check(settings)
        for folder in (
            "",
            "munge",
            "state",
            "log",
            "run",
            "dev",
            *(f"spool/node{n + 1}" for n in range(settings.nodes)),
        ):
            (self.root / folder).mkdir(mode=0o755, parents=True, exist_ok=True)
        for folder in ("munge", "state"):
            (self.root / folder).chmod(0o700 if folder == "state" else 0o711)
        key = self.root / "munge" / "munge.key"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(random.SystemRandom().randbytes(1024))
        for number in range(settings.gpus):
            device = self.root / "dev" / f"gpu{number}"
            if not device.exists():
                device.symlink_to(
                    "/dev/null"
                )  # Slurm wants a file to be there; a device node would take root
        ports = previous.get("ports")
        if not isinstance(ports, list) or len(ports) != settings.nodes + 1 or not all(map(is_free, ports)):
            ports = free_ports(settings.nodes + 1)
        self._save({"settings": dataclasses.asdict(settings), "ports": ports, "daemons": {}})
        if settings.slurm != "system":
            (self.root / "hosts").write_text(f"{LOOPBACK} localhost {socket.gethostname()}\n")
            enter = self.root / "enter"
            enter.write_text(enter_script(Path(settings.slurm), self.root))
            enter.chmod(0o755)
        self.conf.write_text(self._slurm_conf(settings, ports))
        files = (
            f"File={self.root}/dev/gpu[0-{settings.gpus - 1}]"
            if settings.gpus > 1
            else f"File={self.root}/dev/gpu0"
        )
        kind = f" Type={settings.gpu_type}" if settings.gpu_type else ""
        nodes = f"NodeName=node[1-{settings.nodes}] Name=gpu{kind} {files}\n" if settings.gpus else ""
        (self.root / "gres.conf").write_text(nodes)
        cgroup = self.root / "cgroup.conf"
        if self._version(settings) >= (23, 2):
            cgroup.write_text("CgroupPlugin=disabled\n")
        else:
            cgroup.unlink(missing_ok=True)

    def _slurm_conf(self, settings: Settings, ports: Sequence[int]) -> str:
        """slurm.conf. What is not obvious: cred_expire under 5 is dropped with only a log line, and the default
        holds a requeued job for two minutes; config_overrides lets a node claim CPUs that the machine lacks."""
        user = pwd.getpwuid(os.geteuid()).pw_name
        address = self._address()
        bind = (
            "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny"
            if self._hostname_address() == address
            else ""
        )
        gres = (
            f" Gres=gpu:{settings.gpu_type + ':' if settings.gpu_type else ''}{settings.gpus}"
            if settings.gpus
            else ""
        )
        nodes = "\n".join(
            f"NodeName=node{number} NodeHostname=localhost NodeAddr={address} Port={port} CPUs={settings.cpus}"
            f" RealMemory={settings.memory_mib}{gres}"
            for number, port in enumerate(ports[1:], start=1)
        )
        everywhere = f"Nodes=node[1-{settings.nodes}] State=UP"
        tier = " PriorityTier=10" if settings.preempt else ""
        preempt = (
            f"PartitionName=preempt {everywhere} MaxTime=UNLIMITED DefaultTime=60 PriorityTier=1"
            " PreemptMode=REQUEUE GraceTime=5\n"
            if settings.preempt
            else ""
        )
        preempt_type = "PreemptType=preempt/partition_prio\nPreemptMode=REQUEUE" if settings.preempt else ""
        return f"""\
# Written by cluster.py; changes are lost at the next start.
ClusterName={self.name}
SlurmctldHost=localhost({address})
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={self.root}/munge/socket,cred_expire=5
{bind}
StateSaveLocation={self.root}/state
SlurmdSpoolDir={self.root}/spool/%n
SlurmctldPidFile={self.root}/run/slurmctld.pid
SlurmdPidFile={self.root}/run/%n.pid
SlurmctldLogFile={self.root}/log/slurmctld.log
SlurmdLogFile={self.root}/log/%n.log
ProctrackType=proctrack/linuxproc
MpiDefault=none
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1000
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge={settings.min_job_age_s}
MessageTimeout={settings.message_timeout_s}
UnkillableStepTimeout={5 * settings.message_timeout_s + 10}
SlurmdTimeout={settings.slurmd_timeout_s}
KillWait={settings.kill_wait_s}
EnforcePartLimits={"ALL" if settings.enforce_part_limits else "NO"}
{preempt_type}
{nodes}
PartitionName=gpu {everywhere} Default=YES MaxTime=UNLIMITED DefaultTime=60{tier}
PartitionName=cpu {everywhere} MaxTime=UNLIMITED DefaultTime=60{tier}
PartitionName=short {everywhere} MaxTime=10 DefaultTime=5{tier}
{preempt}"""

    def _hostname_address(self) -> str | None:
        """What this machine's own name resolves to. With NoInAddrAny Slurm's daemons listen there and only there."""
        if self.settings.slurm != "system":
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

    def _ports(self) -> list[int]:
        ports = self._load()["ports"]
        assert isinstance(ports, list)
        return ports

    def _check(self, settings: Settings) -> None:
        if not 1 <= settings.nodes <= NODES_MAX:
            raise ClusterError(f"--nodes is {settings.nodes}; 1 to {NODES_MAX} are possible")
        if settings.gpus < 0 or settings.cpus < 1 or settings.memory_mib < 1:
            raise ClusterError("--gpus must be 0 or more, --cpus and --memory-mib 1 or more")
        if len(str(self.root)) > ROOT_LENGTH_MAX:
            raise ClusterError(
                f"the root {self.root} is longer than {ROOT_LENGTH_MAX} characters, too long for sockets"
            )
        if any(character.isspace() or character in ",#'\"" for character in str(self.root)):
            raise ClusterError(
                f"the root {self.root} holds a character that slurm.conf cannot quote: choose another"
            )
        if os.geteuid() != 0 and settings.slurm != "system":
            raise ClusterError("entering a chroot takes root: run as root, or use --slurm system")
        where = Path("/") if settings.slurm == "system" else Path(settings.slurm)
        path = ":".join(
            str(where / folder) for folder in ("usr/sbin", "usr/bin", "sbin", "bin", "usr/local/sbin")
        )
        if settings.slurm == "system":
            path = os.environ.get("PATH", "") + ":" + path
        programs = ("munged", "slurmctld", "slurmd", "sinfo", "scontrol", "scancel")
        missing = [name for name in programs if shutil.which(name, path=path) is None]
        if missing:
            raise ClusterError(
                f"missing {', '.join(missing)} in {where}: apt-get install slurmctld slurmd slurm-client munge"
            )

    def _version(self, settings: Settings) -> tuple[int, int]:
        prefix = () if settings.slurm == "system" else (str(self.root / "enter"),)
        words = subprocess.run(
            [*prefix, daemon_path("slurmctld"), "-V"], capture_output=True, text=True
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

    def _load(self) -> dict[str, object]:
        try:
            loaded = json.loads((self.root / "cluster.json").read_text())
        except FileNotFoundError:
            return {}
        return loaded if isinstance(loaded, dict) else {}

    def _save(self, state: Mapping[str, object]) -> None:
        temporary = self.root / "cluster.json.new"
        temporary.write_text(json.dumps(state, indent=1))
        temporary.replace(self.root / "cluster.json")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    # Processes -------------------------------------------------------------------------------------------------

    def _daemons(self, state: Mapping[str, object]) -> tuple[str, ...]:
        return ("munged", "slurmctld", *self.node_names) if state else ()

    def _command(self, daemon: str) -> list[str]:
        if daemon == "munged":
            at = self.root / "munge"
            # --force: munged asks that everybody can reach its socket, which nobody else needs to: the root may lie
            # in a home of mode 0700.
            files = [f"--{kind}-file={at}/{name}" for kind, name in MUNGE_FILES.items()]
            return [daemon_path("munged"), "--foreground", "--force", f"--socket={at}/socket", *files]
        if daemon == "slurmctld":
            return [daemon_path("slurmctld"), "-D", "-f", str(self.conf)]
        return [daemon_path("slurmd"), "-D", "-N", daemon, "-f", str(self.conf)]

    def _start_missing(self) -> None:
        if not self._alive("munged"):
            (self.root / "munge" / "socket").unlink(missing_ok=True)
            self._start("munged")
            self._wait("munged listens", self._munge_listens)
        self._start("slurmctld")
        # A slurmd that finds no slurmctld tries again only after a second.
        self._wait("slurmctld listens", self._controller_listens)
        for node in self.node_names:
            self._start(node)

    def _start(self, daemon: str) -> None:
        """Start one daemon in a session of its own, so that a Ctrl-C meant for the caller does not reach it."""
        if self._alive(daemon):
            return
        log = os.open(
            self.root / "log" / f"{daemon}.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644
        )
        command = [*self.prefix, *self._command(daemon)]
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("SLURM", "SBATCH", "PENSTOCK"))
        }
        environment |= {**self.env, DAEMON_MARK: str(self.root)}
        with open(os.devnull) as nothing:
            actions = [
                (os.POSIX_SPAWN_DUP2, nothing.fileno(), 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
            ]
            pid = os.posix_spawnp(command[0], command, environment, file_actions=actions, setsid=True)
        os.close(log)
        started = Started(pid=pid, start_time=start_time(pid) or 0, boot_id=boot_id())
        state = self._load()
        daemons = state.setdefault("daemons", {})
        assert isinstance(daemons, dict)
        daemons[daemon] = dataclasses.asdict(started)
        self._save(state)

    def _process(self, daemon: str) -> int | None:
        """The pid of a daemon that we started and that still is that very process."""
        daemons = self._load().get("daemons")
        saved = daemons.get(daemon) if isinstance(daemons, dict) else None
        if saved is None:
            return None
        started = Started(**saved)
        same = started.boot_id == boot_id() and start_time(started.pid) == started.start_time
        return started.pid if same else None

    def _alive(self, daemon: str) -> bool:
        return self._process(daemon) is not None

    def _signal(self, daemon: str, number: signal.Signals) -> None:
        pid = self._process(daemon)
        if pid is None:
            raise ClusterError(f"{daemon} of the cluster in {self.root} does not run")
        os.kill(pid, number)

    def _stop(self, daemon: str, *, kill: bool = False) -> None:
        pid = self._process(daemon)
        if pid is None:
            return
        os.kill(pid, signal.SIGCONT)
        os.kill(pid, signal.SIGKILL if kill else signal.SIGTERM)
        if not wait_for(lambda: not self._alive(daemon), STOP_TIMEOUT_S):
            os.kill(pid, signal.SIGKILL)
            if not wait_for(lambda: not self._alive(daemon), STOP_TIMEOUT_S):
                raise ClusterError(f"{daemon} (pid {pid}) does not end, not even on SIGKILL")
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # ours only when `up` ran in this very process

    def _stop_all(self) -> None:
        # A slurmd that is told to stop leaves its jobs running, and slurmctld cannot stop without its slurmscriptd,
        # which bears our mark too: job processes go first, strays of the daemons last.
        self._kill(self._job_processes)
        self._stop("slurmctld")  # gracefully: it saves the job ids it has given
        for node in self.node_names:
            self._stop(
                node, kill=True
            )  # a slurmd asked to stop would wait for slurmctld to take its last reports
        self._kill(self._step_daemons)
        self._kill(self._job_processes)
        self._stop("munged")

    def _job_processes(self) -> set[int]:
        """Processes of this cluster's jobs: their environment names the cluster, whoever their parent is now."""
        found = set()
        for pid in processes():
            environment = environ_of(pid)
            if environment.get("SLURM_CLUSTER_NAME") == self.name and "SLURM_JOB_ID" in environment:
                found.add(pid)
        return found

    def _step_daemons(self) -> set[int]:
        """slurmstepd and slurmscriptd: they carry our mark and are not among the daemons that we started."""
        ours = {self._process(daemon) for daemon in self._daemons(self._load())}
        return {
            pid
            for pid in processes()
            if pid not in ours and environ_of(pid).get(DAEMON_MARK) == str(self.root)
        } - {os.getpid()}

    def _kill(self, find: Callable[[], set[int]]) -> None:
        for pid in find():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not wait_for(lambda: not find(), STOP_TIMEOUT_S):
            raise ClusterError(f"processes do not end, not even on SIGKILL: {sorted(find())}")

    # Waiting ---------------------------------------------------------------------------------------------------

    def _wait(self, what: str, condition: Callable[[], bool]) -> None:
        if not wait_for(condition, START_TIMEOUT_S):
            raise ClusterError(f"waited {START_TIMEOUT_S:.0f} s in vain: {what}\n{self._last_words()}")

    def _munge_listens(self) -> bool:
        self._check_alive("munged")
        return (self.root / "munge" / "socket").is_socket()

    def _controller_listens(self) -> bool:
        """Slurm's own commands retry a refused connection for MessageTimeout; this does not."""
        self._check_alive("slurmctld")
        host, port = self._address(), self._ports()[0]
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex((host, port)) == 0

    def _wait_ready(self) -> None:
        def ready() -> bool:
            for daemon in ("slurmctld", *self.node_names):
                self._check_alive(daemon)
            states = self.run("sinfo", "-h", "-N", "-o", "%N %t", check=False).split("\n")
            words = {line.split()[0]: line.split()[1] for line in states if line.strip()}
            return len(words) == len(self.node_names) and all(
                word in ("idle", "mix", "alloc", "comp", "resv", "drain", "drng") for word in words.values()
            )

        self._wait("all nodes answer", ready)

    def _check_alive(self, daemon: str) -> None:
        """Raises ClusterError, its first line with the daemon's own reason, when it has ended."""
        if self._alive(daemon):
            return
        log = self.root / "log" / f"{daemon}.out"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        for word in ("fatal", "rror", ""):
            reasons = [line for line in lines if word in line]
            if reasons:
                raise ClusterError(f"{daemon} ended at once: {reasons[-1].strip()}\n{self._last_words()}")
        raise ClusterError(f"{daemon} ended at once, without a word")

    def _last_words(self) -> str:
        """The end of every daemon's log, for the error message."""
        lines = []
        for name in self._daemons(self._load()):
            for path in (self.root / "log" / f"{name}.out", self.root / "log" / f"{name}.log"):
                if path.exists():
                    lines += [
                        f"{path.name}: {line}" for line in path.read_text(errors="replace").splitlines()[-5:]
                    ]
        return "\n".join(lines)


def daemon_path(name: str) -> str:
    """Slurm's daemons live in sbin, which is in few users' PATH; in a chroot the same path holds."""
    return (
        shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
        or f"/usr/sbin/{name}"
    )


def enter_script(chroot: Path, root: Path) -> str:
    """A script that runs a command in the chroot, where the cluster's folder has the same path as outside.

    The mounts are in a mount namespace of the command's own: they are gone when it ends, and removing the chroot
    can never reach through a forgotten mount into /dev.
    """
    inside = shlex.quote(f"{chroot}{root}")
    return f"""\
#!/bin/sh
set -e
if [ "$PENSTOCK_CLUSTER_ENTERED" != 1 ]; then
    mkdir -p {inside}
    PENSTOCK_CLUSTER_ENTERED=1 exec unshare --mount --propagation private "$0" "$@"
fi
unset PENSTOCK_CLUSTER_ENTERED
mount --bind /dev {shlex.quote(str(chroot / "dev"))}
mount --bind /proc {shlex.quote(str(chroot / "proc"))}
mount --rbind /sys {shlex.quote(str(chroot / "sys"))}
mount --bind {shlex.quote(str(root))} {inside}
mount --bind {inside}/hosts {shlex.quote(str(chroot / "etc" / "hosts"))}
exec chroot {shlex.quote(str(chroot))} "$@"
"""


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody has now. Random, so that clusters started at the same moment differ."""
    candidates = random.SystemRandom().sample(PORTS, len(PORTS))
    found = [port for port, _ in zip(filter(is_free, candidates), range(count), strict=False)]
    if len(found) < count:
        raise ClusterError(f"no {count} free ports between {PORTS.start} and {PORTS.stop}")
    return found


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="A small Slurm cluster on this machine, for development and tests."
    )
    parser.add_argument("action", choices=["up", "down", "status"])
    parser.add_argument(
        "--root", type=Path, required=True, help="the folder that holds everything of this cluster"
    )
    default = Settings()
    parser.add_argument("--nodes", type=int, default=default.nodes)
    parser.add_argument("--cpus", type=int, default=default.cpus, help="CPUs that each node claims to have")
    parser.add_argument(
        "--memory-mib", type=int, default=default.memory_mib, help="memory that each node claims to have"
    )
    parser.add_argument("--gpus", type=int, default=default.gpus, help="fake GPUs for each node")
    parser.add_argument("--gpu-type", default=default.gpu_type, help="name them, as in gpu:a100:2")
    parser.add_argument(
        "--slurm",
        nargs="+",
        default=["system"],
        metavar=("system | chroot", "DIR"),
        help="which Slurm to run",
    )
    parser.add_argument("--min-job-age-s", type=int, default=default.min_job_age_s)
    parser.add_argument("--kill-wait-s", type=int, default=default.kill_wait_s)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments()
    given = parser.parse_args(argv)
    match given.slurm:
        case ["system"]:
            slurm = "system"
        case ["chroot", folder]:
            slurm = str(Path(folder).absolute())
        case _:
            parser.error("--slurm takes: system, or: chroot DIR")
    settings = Settings(
        nodes=given.nodes,
        cpus=given.cpus,
        memory_mib=given.memory_mib,
        gpus=given.gpus,
        gpu_type=given.gpu_type,
        slurm=slurm,
        min_job_age_s=given.min_job_age_s,
        kill_wait_s=given.kill_wait_s,
    )
    cluster = Cluster(given.root, settings)
    try:
        if given.action == "up":
            began = time.monotonic()
            cluster.up()
            print(f"{settings.nodes} nodes are ready after {time.monotonic() - began:.1f} s", file=sys.stderr)
            print(f"export SLURM_CONF={shlex.quote(str(cluster.conf))}")
        elif given.action == "down":
            cluster.down()
        else:
            state = cluster.status()
            for name, alive in state.items():
                print(f"{name}: {'running' if alive else 'stopped'}")
            return 0 if state and all(state.values()) else 3
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
