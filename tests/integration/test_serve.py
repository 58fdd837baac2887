"""`penstock serve` where it cannot: it ends, and says in one sentence what a human must mend."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from penstock.supervisor import FINAL_EXIT

END_WITHIN_S = 180
"""Ends what hangs. It makes a database first, which takes a busy machine long."""


def test_a_front_door_whose_port_is_taken_ends_it_at_the_start(tmp_path: Path) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("sbatch", "squeue", "scontrol", "sinfo", "scancel"):
        (commands / name).write_text("#!/bin/sh\nexit 1\n")
        (commands / name).chmod(0o755)
    # PostgreSQL does not run as root, and its account must be able to pass; a socket's path must be short.
    with (
        tempfile.TemporaryDirectory(prefix="penstock-test-") as folder,
        socket.create_server(("127.0.0.1", 0)) as taken,
    ):
        Path(folder).chmod(0o711)
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [Path(sys.executable).with_name("penstock"), "serve"],
            env={
                **os.environ,
                "PATH": f"{commands}:{os.environ['PATH']}",
                "PENSTOCK_STATE_DIR": f"{folder}/state",
                "PENSTOCK_LISTEN": address,
                "PENSTOCK_SLURM_BACKEND": "cli",
            },
            capture_output=True,
            text=True,
            timeout=END_WITHIN_S,
        )
        assert not list(Path(folder, "state", "run").glob("*.pid")), "a child was left behind"
    assert done.returncode == FINAL_EXIT, done.stderr
    assert "ERROR gateway: listen: the front door cannot be opened: " in done.stderr
    assert f"cannot bind '{address}': Address already in use" in done.stderr
    assert "Traceback" not in done.stderr
