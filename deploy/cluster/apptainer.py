#!/usr/bin/env python3
"""Apptainer, and a sandbox image to run in it, made once and kept: for tests on a machine that has neither.

Debian has packaged it in sid only, for a younger C library than Debian 12's, and PyPI has none. So it lives in a
small Debian sid of its own, and the program `apptainer` that is made here enters that for each call: in a mount
namespace that ends with it, with this machine's other folders where they are here. The image is a copy of the same
Debian, with Python.

It lies in ${XDG_CACHE_HOME:-~/.cache}/penstock/apptainer. It is complete when its marker holds the hash of this recipe.

    python -m deploy.cluster.apptainer          # make it, unless it is there; print the folder of the program
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from deploy.cluster.chroot import KEYRING, MIRROR, ChrootError, remove, step

SUITE = "sid"
PACKAGES = ("apptainer", "python3")
CONFIGURED = {
    # Containers of root would otherwise ask for every capability, and fail on a machine that lacks one.
    "root default capabilities": "no",
}
PROGRAM = """\
#!/bin/sh
# Apptainer wants a root that is a mount, so chroot alone will not do.
exec unshare --mount --propagation private sh -c '
root="$0"; here="$PWD"
mount --bind "$root" "$root"
for each in /*; do case "$each" in
    /bin|/boot|/etc|/lib|/lib32|/lib64|/libx32|/lost+found|/mnt|/sbin|/usr|/var) ;;
    *) if [ -d "$each" ]; then mkdir -p "$root$each"; mount --rbind "$each" "$root$each"; fi ;;
esac; done
cd "$root" && pivot_root . mnt && cd "$here" && exec chroot / /usr/bin/apptainer "$@"' ROOT "$@"
"""
"""The last path in full: this program may be first on the PATH in there, too."""


@dataclass(frozen=True, slots=True)
class Apptainer:
    """What there is."""

    programs: Path
    """A folder for the PATH, with `apptainer` in it."""
    sandbox: Path
    """An image: a folder with a Debian and its Python."""


def folder() -> Path:
    """Where all of it lies."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "penstock" / "apptainer"


def recipe_hash() -> str:
    parts = [SUITE, MIRROR, *PACKAGES, *CONFIGURED, *CONFIGURED.values(), PROGRAM]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def ensure() -> Apptainer:
    """Made first if need be (about a minute, 1 GB). Several callers at once make it once. Raises ChrootError."""
    if os.geteuid() != 0:
        raise ChrootError("entering Apptainer's own Debian takes root")
    if missing := [name for name in ("debootstrap", "unshare", "pivot_root") if shutil.which(name) is None]:
        raise ChrootError(f"missing {', '.join(missing)}: apt-get install debootstrap util-linux")
    folder().mkdir(parents=True, exist_ok=True)
    with (folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        complete = folder() / "complete"
        if not complete.exists() or complete.read_text().strip() != recipe_hash():
            complete.unlink(missing_ok=True)
            _make()
            complete.write_text(recipe_hash() + "\n")
    return Apptainer(folder() / "bin", folder() / "sandbox")


def _make() -> None:
    root, sandbox, programs = (folder() / name for name in ("root", "sandbox", "bin"))
    log = folder() / "log"
    log.write_text("")
    for old in (root, sandbox, programs):
        remove(old)
    print(f"apptainer: making {folder()} (once; about a minute)", file=sys.stderr, flush=True)
    include = f"--include={','.join(PACKAGES)}"
    step(
        ["debootstrap", "--variant=minbase", f"--keyring={KEYRING}", include, SUITE, str(root), MIRROR],
        log,
        {},
    )
    shutil.rmtree(root / "var/cache/apt/archives", ignore_errors=True)
    for name in ("hosts", "localtime", "resolv.conf"):
        if not (root / "etc" / name).exists():
            (root / "etc" / name).unlink(missing_ok=True)
            (root / "etc" / name).touch()  # mounted into every container
    step(["cp", "-a", f"{root}/.", str(sandbox)], log, {})
    configuration = root / "etc/apptainer/apptainer.conf"
    text = configuration.read_text()
    for key, value in CONFIGURED.items():
        text, found = re.subn(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.MULTILINE)
        if not found:
            raise ChrootError(f"this Apptainer's configuration has no {key!r}")
    configuration.write_text(text)
    programs.mkdir()
    program = programs / "apptainer"
    program.write_text(PROGRAM.replace("ROOT", str(root)))
    program.chmod(0o755)
    step([str(program), "exec", str(sandbox), "python3", "-c", "import asyncio, json"], log, {})


def main() -> int:
    try:
        print(ensure().programs)
    except ChrootError as error:
        print(f"apptainer: NO APPTAINER HERE: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
