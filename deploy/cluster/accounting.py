"""Accounting for a cluster: slurmdbd and the MariaDB behind it, for sites that have both.

The database is made here; `Daemons` starts and ends both. The database listens on a socket in the cluster's own folder,
which only its user may enter, so that it needs no passwords.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

from deploy.cluster.processes import user
from deploy.cluster.settings import ClusterError

MARIADBD, SLURMDBD = "mariadbd", "slurmdbd"
INSTALL = "mariadb-install-db"
INSTALL_TIMEOUT_S = 120.0
"""4 s on a quiet machine, most of it waiting for the disk."""


def folder(root: Path) -> Path:
    """Where the database lies."""
    return root / "accounting"


def install(root: Path) -> None:
    """Makes an empty database, unless there is a complete one. Raises ClusterError."""
    at = folder(root)
    at.mkdir(mode=0o700, exist_ok=True)
    if (at / "complete").exists():
        return
    if (at / "data").exists():
        shutil.rmtree(at / "data")  # half-made, by an install that was cut short
    command = [
        INSTALL, "--no-defaults", f"--datadir={at / 'data'}", f"--user={user()}",
        "--auth-root-authentication-method=normal", "--skip-test-db",
    ]  # fmt: skip
    # A group of its own: it is a script, and the server that it started would write on without it.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
    ) as process:
        try:
            said, _ = process.communicate(timeout=INSTALL_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise ClusterError(f"{INSTALL} did not end within {INSTALL_TIMEOUT_S:g} s") from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        raise ClusterError(f"{INSTALL} ended with {process.returncode}: {said.strip()}")
    (at / "complete").touch()


def socket(root: Path) -> Path:
    """Where MariaDB listens, and nowhere else."""
    return folder(root) / "socket"


def mariadbd_options(root: Path) -> list[str]:
    """Small: it keeps some thousand jobs, and a loss of the last second with the machine harms no test."""
    at = folder(root)
    return [
        "--no-defaults", f"--user={user()}", f"--datadir={at / 'data'}", f"--socket={socket(root)}",
        f"--pid-file={at / 'pid'}", "--skip-networking", "--skip-grant-tables",
        "--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=2",
    ]  # fmt: skip


def slurmdbd_conf(root: Path, *, port: int, address: str) -> str:
    """slurmdbd.conf, which slurmdbd refuses unless only its user may read it."""
    return f"""\
# Written by deploy.cluster; changes are lost at the next start.
DbdHost=localhost
DbdAddr={address}
DbdPort={port}
SlurmUser={user()}
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket
LogFile={root}/log/slurmdbd.log
PidFile={root}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser={user()}
StorageLoc=slurm
"""


def slurm_conf(root: Path, *, port: int, address: str) -> str:
    """What slurm.conf says of it. AccountingStorageEnforce is left out: the value 0 would be fatal."""
    return f"""\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={address}
AccountingStoragePort={port}
AccountingStoragePass={root}/munge/socket
"""


def environment(root: Path) -> dict[str, str]:
    """slurmdbd takes no socket in its configuration; the library that it speaks to MariaDB with reads this."""
    return {"MYSQL_UNIX_PORT": str(socket(root))}
