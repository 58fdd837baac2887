"""Every gate that needs no server, one line each with its time; all of them run, and any failure fails the whole.

What a gate prints is shown only when it fails. Gates take turns rather than run side by side: the type checker
alone fills a small machine, and one order makes one transcript.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

TYPED = ("daemon", "runtime", "tests", "deploy", "db")

Gate = Callable[[], str]


def command(*arguments: str) -> Gate:
    """A gate that passes when the command exits 0; what it printed is the failure's text."""

    def run() -> str:
        program = str(BIN / arguments[0]) if (BIN / arguments[0]).exists() else arguments[0]
        done = subprocess.run(
            [program, *arguments[1:]], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        return (
            "" if done.returncode == 0 else done.stdout.strip() or f"{arguments[0]} exited {done.returncode}"
        )

    return run


def changelog() -> str:
    """CHANGELOG.md is there and has a section for what is not released yet."""
    path = ROOT / "CHANGELOG.md"
    if path.exists() and re.search(r"^## \[Unreleased\]$", path.read_text(), re.MULTILINE):
        return ""
    return 'CHANGELOG.md needs a section "## [Unreleased]" (keepachangelog.com)'


def breaking() -> str:
    """Nothing that the last release's contract promised is gone. Passes where there is no release yet."""
    git = ["git", "-C", str(ROOT)]
    tag = subprocess.run(
        [*git, "describe", "--tags", "--abbrev=0", "--match=v*"], text=True, capture_output=True
    )
    if tag.returncode != 0:
        return ""
    path = "daemon/penstock/v1/descriptor.binpb"
    old = subprocess.run([*git, "show", f"{tag.stdout.strip()}:{path}"], capture_output=True)
    if old.returncode != 0:
        return f"{tag.stdout.strip()} has no {path} to compare with"
    with tempfile.NamedTemporaryFile(suffix=".binpb") as released:
        released.write(old.stdout)
        released.flush()
        return command("buf", "breaking", path, "--against", released.name, "--config", "buf.yaml")()


GATES: dict[str, Gate] = {
    "lock in step with pyproject.toml": command("deploy/dev/lock.sh", "--check"),
    "changelog": changelog,
    "format (ruff)": command("ruff", "format", "--check", "--output-format=concise"),
    "lint (ruff)": command("ruff", "check", "--output-format=concise"),
    "imports (import-linter)": command("lint-imports", "--no-cache"),
    "contract style (buf lint)": command("buf", "lint"),
    "contract promises (buf breaking)": breaking,
    "stubs fresh": command("python", "deploy/dev/proto.py", "--check"),
    "OpenAPI documents fresh": command("python", "-m", "deploy.dev.openapi", "--check"),
    "types (mypy --strict)": command("mypy", *(name for name in TYPED if any((ROOT / name).rglob("*.py")))),
}


def main() -> None:
    """Runs the gates, or those whose name holds one of the arguments."""
    os.environ.setdefault("NO_COLOR", "1")
    failed: list[str] = []
    for name, gate in GATES.items():
        if sys.argv[1:] and not any(word in name for word in sys.argv[1:]):
            continue
        began = time.monotonic()
        problem = gate()
        print(f"{'FAIL' if problem else 'ok':4}  {name}  {time.monotonic() - began:.1f} s", flush=True)
        if problem:
            print("      " + problem.replace("\n", "\n      "), flush=True)
            failed.append(name)
    if failed:
        sys.exit(f"make check: {len(failed)} of {len(GATES)} gates failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
