"""A PostgreSQL that is nobody's child: started and stopped by a process of its own each time.

Not by the run itself: under root the server's programs are started as another account, which takes a real fork,
and a fork of a process with gRPC's threads in it dies at times.

    python -m tests.chaos.postgresql start|stop FOLDER
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from penstock.store.embedded import EmbeddedServer
from tests.penstocks import ROOT

WITHIN_S = 60
"""What a killed server's children still hold is let go of within moments; a start waits for the log's replay."""


class PostgreSQL:
    """One server in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def start(self) -> str:
        """Starts it unless it runs; its URL."""
        return self._do("start")

    def stop(self) -> None:
        self._do("stop")

    @property
    def pid(self) -> int | None:
        return EmbeddedServer(self._folder).pid

    def _do(self, what: str) -> str:
        command = [sys.executable, "-m", "tests.chaos.postgresql", what, str(self._folder)]
        deadline = time.monotonic() + WITHIN_S
        while True:
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
            if done.returncode == 0:
                return done.stdout.strip()
            if time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL cannot be told to {what}: {done.stderr}")
            time.sleep(0.5)


def main() -> int:
    server = EmbeddedServer(Path(sys.argv[2]))
    if sys.argv[1] == "start":
        print(server.start())
    else:
        server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
