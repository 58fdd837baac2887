"""A whole Penstock for tests: `penstock serve` on a real Slurm cluster, with its own PostgreSQL and Envoy.

pytest_plugins = ["tests.penstocks"]      in tests/conftest.py

penstock        one for a test module, shared by its tests
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import grpc
import psutil
import pytest

from deploy.cluster.cluster import Cluster
from deploy.cluster.ports import free_ports
from tests.patience import JOB_PATIENCE_S, PATIENCE_S

ROOT = Path(__file__).resolve().parents[1]
COMMAND = str(Path(sys.executable).with_name("penstock"))
LOOK_EVERY_S = 0.05
"""Often enough to lose no time, and so rarely that what is waited for has the machine."""
LOG_LINES = 15
"""Of the log in a failure's message."""


@dataclass
class Penstock:
    """A running installation. `process` is its supervisor."""

    folder: Path
    server: str
    cluster: Cluster
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        return (self.folder / "serve.log").read_text(errors="replace")

    @property
    def log_end(self) -> str:
        """For a failure's message."""
        return "\n".join(self.log.splitlines()[-LOG_LINES:])

    def cli(
        self, *arguments: str, stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Runs `penstock ...` against it."""
        done = subprocess.run(
            [COMMAND, *arguments],
            env={**os.environ, "PENSTOCK_SERVER": self.server, "COLUMNS": "200"},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if check and done.returncode:
            raise AssertionError(
                f"penstock {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def get(self, kind: Literal["deployments", "replicas"], name: str) -> Any:
        """A deployment, a replica, or a deployment's replicas as `items`, as `penstock get -o json` shows them.

        Over REST: whoever waits looks again and again, and a new process for each look keeps a core busy.
        """
        if kind == "deployments":
            return self._rest(f"deployments/{name}")["deployment"]
        try:
            return {"items": self._rest(f"replicas?deployment={name}&page_size=1000").get("replicas", [])}
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
        return self._rest(f"replicas/{name}")["replica"]

    def _rest(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://{self.server}/apis/v1/{path}", timeout=PATIENCE_S) as answer:
            return json.load(answer)

    def apply(self, manifest: str) -> subprocess.CompletedProcess[str]:
        return self.cli("apply", "-f", "-", stdin=manifest)

    def channel(self) -> Any:
        """A blocking channel; Any, because the stubs' types are those of asyncio."""
        return grpc.insecure_channel(self.server)

    def pid(self, child: str) -> int:
        """Of the gateway, the controller or Envoy."""
        noted = json.loads((self.run_folder / f"{child}.pid").read_text())
        pid: int = noted["pid"]
        return pid

    @property
    def run_folder(self) -> Path:
        return self.folder / "state" / "run"

    def kill(self, child: str) -> int:
        """kill -9; returns the pid that is dead now."""
        pid = self.pid(child)
        os.kill(pid, signal.SIGKILL)
        return pid

    def wait_back(self, child: str, dead: int, within_s: float = PATIENCE_S) -> None:
        """Waits until the supervisor has started it again."""
        wait_until(
            lambda: self.pid(child) != dead and psutil.pid_exists(self.pid(child)),
            within_s,
            f"{child} is back",
        )

    def wait_ready(self, name: str, ready: int, within_s: float = JOB_PATIENCE_S) -> Any:
        """Waits until so many replicas are ready and none is on its way; returns the deployment."""

        def settled() -> Any:
            found = self.get("deployments", name)
            status = found.get("status", {})
            same = int(status.get("ready_replicas", 0)) == ready == int(status.get("replicas", 0))
            return found if same else None

        return wait_until(
            settled, within_s, lambda: f"{ready} ready: {self.cli('why', name).stdout}\n{self.log_end}"
        )

    def start(self) -> None:
        """Starts the supervisor, and waits until the control API answers, from a gateway of its own."""
        earlier = self.pid("gateway") if (self.run_folder / "gateway.pid").exists() else None
        with (self.folder / "serve.log").open("ab") as output:
            self.process = subprocess.Popen(
                [COMMAND, "serve", "--config", str(self.folder / "penstock.toml")],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        wait_until(
            lambda: (self.run_folder / "gateway.pid").exists() and self.pid("gateway") != earlier,
            JOB_PATIENCE_S,
            "the gateway is started",
        )
        wait_until(self._answers, JOB_PATIENCE_S, lambda: f"penstock serve answers:\n{self.log_end}")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(PATIENCE_S)

    def _answers(self) -> bool:
        assert self.process.poll() is None, (
            f"penstock serve ended with {self.process.returncode}:\n{self.log_end}"
        )
        try:
            self._rest("deployments")
        except OSError:
            return False
        return True


def wait_until(condition: Callable[[], Any], within_s: float, what: str | Callable[[], str]) -> Any:
    """The condition's first true value; fails after `within_s`, saying what was waited for."""
    deadline = time.monotonic() + within_s
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            pytest.fail(
                f"not within {within_s} s: {what if isinstance(what, str) else what()}", pytrace=False
            )
        time.sleep(LOOK_EVERY_S)


def standin(name: str, *, replicas: int = 1, gpus: int = 0, args: Sequence[str] = (), more: str = "") -> str:
    """A manifest with the stand-in engine. `more`: further lines of the spec."""
    return f"""
apiVersion: penstock/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  model: {{path: /dev/null}}
  engine: {{name: standin, args: {json.dumps(list(args))}}}
  replicas: {replicas}
  resources: {{gpus: {gpus}, cpus: 1, memory: 256MiB}}
  drain_timeout_s: 10
  restart: {{backoff_initial_s: 1, backoff_max_s: 4}}
{more}
"""


@contextlib.contextmanager
def running(cluster: Cluster, *, more: str = "") -> Iterator[Penstock]:
    """An installation of its own on this cluster, stopped and removed at the end. `more`: lines of its
    penstock.toml."""
    folder = Path(tempfile.mkdtemp(prefix="penstock-test-"))
    server = f"127.0.0.1:{free_ports(1)[0]}"
    (folder / "penstock.toml").write_text(
        f'state_dir = "{folder / "state"}"\n'
        f'listen = "{server}"\n'
        f'slurm_conf = "{cluster.conf}"\n'
        f'slurm_prefix = "{" ".join(cluster.prefix)}"\n'
        "tick_interval_s = 1.0\n" + more
    )
    installation = Penstock(folder, server, cluster, None)  # type: ignore[arg-type]
    try:
        installation.start()
        yield installation
    finally:
        installation.stop()
        cluster.reset()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def penstock(slurm_cluster: Cluster) -> Iterator[Penstock]:
    """One for the module."""
    with running(slurm_cluster) as installation:
        yield installation
