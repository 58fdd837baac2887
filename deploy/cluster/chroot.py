#!/usr/bin/env python3
"""A Debian forky chroot with Slurm 26.05 and pyslurm, made once and kept.

For `python -m deploy.cluster up --slurm chroot DIR`: it puts a second release of Slurm, four years younger than
Debian 12's, beside the machine's own, and carries the only pyslurm on PyPI that builds against a Slurm packaged today.

It lies in ${XDG_CACHE_HOME:-~/.cache}/penstock/slurm-26.05. It is complete when its marker holds the hash of this
recipe; change the recipe and the next call makes it anew. Nothing is mounted in it between calls.

pyslurm is GPL-2.0-only. It is fetched and built on the machine that wants it and is no part of Penstock.

    python deploy/cluster/chroot.py          # make it, unless it is there; print its path
    python deploy/cluster/chroot.py --check  # print its path, or say why there is none
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

SUITE = "forky"
MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
DEBOOTSTRAP = Path("/usr/share/debootstrap")
SLURM_VERSION = "26.05"
PACKAGES = (
    "slurmctld slurmd slurm-client munge libslurm-dev ca-certificates"
    " gcc libc6-dev python3-dev cython3 python3-setuptools python3-wheel python3-pip"
).split()
REQUIREMENT = (
    "pyslurm==25.11.2 --hash=sha256:6e0e4bc639ea3177591b102b77c1dd8df55a9e411ac42ef339a4adb3908cca34\n"
)
HEADERS = {
    # The sdist refuses any Slurm but 25.11. These three stand before the system's headers, say that it is one, and
    # give back the names that 26.05 has dropped or not yet taken.
    "slurm_version.h": "#define SLURM_VERSION_NUMBER 0x190b02\n",
    "slurm.h": (
        "#ifndef SLURM_BACKWARD_COMPAT\n#define SLURM_BACKWARD_COMPAT 1\n#endif\n"
        "#include_next <slurm/slurm.h>\n#define slurm_free_ctl_conf slurm_free_conf\n"
    ),
    "slurm_errno.h": (
        "#include_next <slurm/slurm_errno.h>\n"
        "#define ESLURM_ERROR_ON_DESC_TO_RECORD_COPY ((slurm_err_t) 2022)\n"
    ),
}
BUILD_SETTINGS = {
    "SLURM_INCLUDE_DIR": "/opt/pyslurm-headers",
    "SLURM_LIB_DIR": "/usr/lib/x86_64-linux-gnu",
    "CFLAGS": "-O0 -g0",  # a third of the time of -O2; nobody waits for this code
}
STEP_TIMEOUT_S = 1200.0
"""Each step takes about a minute; a mirror that is ten times slower still may finish."""


class ChrootError(Exception):
    """The chroot cannot be made here; one sentence says why."""


def folder() -> Path:
    """Where the chroot, its marker and the log of its making lie."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "penstock" / f"slurm-{SLURM_VERSION}"


def recipe_hash() -> str:
    parts = [
        SUITE,
        MIRROR,
        SLURM_VERSION,
        *PACKAGES,
        REQUIREMENT,
        *HEADERS.values(),
        *BUILD_SETTINGS.values(),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def existing() -> Path | None:
    """The chroot, if it is complete and made by this recipe."""
    with contextlib.suppress(FileNotFoundError):
        if (folder() / "complete").read_text().strip() == recipe_hash():
            return folder() / "root"
    return None


def ensure(*, quiet: bool = False) -> Path:
    """The chroot's root folder; made first if need be (about two minutes, 0.9 GB).

    Several callers at once make it once. Raises ChrootError where it cannot be made.
    """
    found = existing()
    if found is not None:
        return found
    obstacle = _obstacle()
    if obstacle is not None:
        raise ChrootError(obstacle)
    folder().mkdir(parents=True, exist_ok=True)
    with (folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return existing() or _make(quiet=quiet)


def _obstacle() -> str | None:
    if os.geteuid() != 0:
        return "making a chroot takes root: run this as root once, or do without Slurm 26.05"
    missing = [name for name in ("debootstrap", "unshare", "chroot") if shutil.which(name) is None]
    if missing:
        return f"missing {', '.join(missing)}: apt-get install debootstrap util-linux coreutils"
    if not Path(KEYRING).exists():
        return f"missing {KEYRING}: apt-get install debian-archive-keyring"
    if os.uname().machine != "x86_64":
        return f"tried on x86_64 only, this machine is {os.uname().machine}"
    free_gb = shutil.disk_usage(_nearest(folder())).free / 1e9
    return f"{free_gb:.1f} GB free for {folder()}; 2 GB are needed" if free_gb < 2 else None


def _nearest(path: Path) -> Path:
    return path if path.exists() else _nearest(path.parent)


def _make(*, quiet: bool) -> Path:
    new = folder() / "root.new"
    log = folder() / "log"
    log.write_text("")
    for old in (new, folder() / "root"):
        remove(old)
    (folder() / "complete").unlink(missing_ok=True)
    began = time.monotonic()

    def say(text: str) -> None:
        if not quiet:
            print(f"chroot: {time.monotonic() - began:4.0f} s  {text}", file=sys.stderr, flush=True)

    say(f"making {folder()} (once; about two minutes)")
    say(f"1/4 Debian {SUITE}, the smallest there is")
    with _scripts() as scripts:
        step(
            ["debootstrap", "--variant=minbase", f"--keyring={KEYRING}", SUITE, str(new), MIRROR],
            log,
            {"DEBOOTSTRAP_DIR": str(scripts)},
        )
    say(f"2/4 Slurm {SLURM_VERSION}, munge and what pyslurm is built with")
    # No package may start a daemon.
    policy = new / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    install = [
        "apt-get",
        "install",
        "--yes",
        "--no-install-recommends",
        "-o",
        "Dpkg::Options::=--force-unsafe-io",
    ]
    step(["chroot", str(new), *install, *PACKAGES], log, {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"})
    version = subprocess.run(
        ["chroot", str(new), "slurmctld", "-V"], capture_output=True, text=True, timeout=60
    ).stdout.split()
    if not version or not version[-1].startswith(f"{SLURM_VERSION}."):
        raise ChrootError(
            f"Debian {SUITE} now has Slurm {' '.join(version)}; this recipe is for {SLURM_VERSION}"
        )
    say("3/4 pyslurm, from its source on PyPI")
    headers = new / BUILD_SETTINGS["SLURM_INCLUDE_DIR"].lstrip("/") / "slurm"
    headers.mkdir(parents=True)
    for name, text in HEADERS.items():
        (headers / name).write_text(text)
    (new / "opt/requirements.txt").write_text(REQUIREMENT)
    pip = (
        "python3 -m pip install --no-build-isolation --no-deps --no-binary :all: --require-hashes"
        " --break-system-packages --root-user-action=ignore --no-cache-dir -r /opt/requirements.txt"
    )
    step(_inside(new, pip), log, BUILD_SETTINGS)
    say("4/4 trying it")
    (new / "etc/hosts").touch()  # Cluster mounts its own over it
    # Without this setting importing it would look for a cluster.
    step(["chroot", str(new), "python3", "-c", "import pyslurm"], log, {"PYSLURM_DISABLE_AUTO_INIT": "1"})
    shutil.rmtree(new / "var/cache/apt/archives", ignore_errors=True)
    new.rename(folder() / "root")
    (folder() / "complete").write_text(recipe_hash() + "\n")
    say("complete")
    return folder() / "root"


def _inside(root: Path, command: str) -> list[str]:
    """A command in the chroot that may use the network as this machine does: its resolver and its certificates."""
    script = (
        'for path in /etc/ssl/certs /etc/resolv.conf; do [ -e "$path" ] && mount --bind "$path" "$1$path"; done;'
        ' mount --bind /proc "$1/proc"; mount --bind /dev "$1/dev"; exec chroot "$1" sh -c "$2"'
    )
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(root), command]


@contextlib.contextmanager
def _scripts() -> Iterator[Path]:
    """debootstrap's own scripts, with one for a suite that is younger than it: all suites share one recipe."""
    if (DEBOOTSTRAP / "scripts" / SUITE).exists():
        yield DEBOOTSTRAP
        return
    copy = folder() / "debootstrap"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(DEBOOTSTRAP, copy, symlinks=True)
    (copy / "scripts" / SUITE).symlink_to("sid")
    yield copy
    shutil.rmtree(copy, ignore_errors=True)


def step(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
    """Runs one step of a recipe, its output added to `log`. Raises ChrootError with its last words."""
    with log.open("a") as output:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                timeout=STEP_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            raise ChrootError(
                f"{command[0]} was not done after {STEP_TIMEOUT_S:.0f} s; its output is in {log}"
            ) from None
    if done.returncode != 0:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-3:]
        raise ChrootError(
            f"{command[0]} ended with {done.returncode}: {' | '.join(last)} (all of it in {log})"
        )


def remove(path: Path) -> None:
    """Remove an old or half-made chroot; never through a mount, such as an interrupted debootstrap may leave."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in sorted((mount for mount in mounts if Path(mount).is_relative_to(path)), reverse=True):
        subprocess.run(["umount", mount], check=True, timeout=60)
    if path.exists():
        shutil.rmtree(path)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the chroot with Slurm 26.05 and pyslurm, once.")
    parser.add_argument("--check", action="store_true", help="make nothing")
    given = parser.parse_args(argv)
    try:
        root = existing() if given.check else ensure()
    except ChrootError as error:
        print(f"chroot: NO SLURM {SLURM_VERSION} HERE: {error}", file=sys.stderr)
        return 1
    if root is None:
        print(f"chroot: not made yet; {_obstacle() or 'run this without --check'}", file=sys.stderr)
        return 1
    print(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
