"""`make bench-latency`: how long the control path takes, on a real Slurm cluster, with the stand-in engine.

    apply to accepted      from the call of ApplyDeployment until Penstock knows the job's id, beside a bare
    sbatch of the same kind ready to routable      from the agent's report (as stored) until a request through
    the front door succeeds dead to unroutable     from kill -9 of one of two agents until the last request
    that failed

Each is repeated, and the median and the extremes are printed. All in one run on one machine: compare within a run only.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import psutil

from deploy.cluster.cluster import Cluster
from deploy.cluster.settings import Settings
from penstock.v1 import (
    deployment_pb2,
    deployment_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    replica_pb2,
    replica_pb2_grpc,
    spec_pb2,
)
from tests.penstocks import Penstock, running, wait_until

ROUNDS = 10
PATIENCE_S = 60
READY = replica_pb2.REPLICA_STATE_READY


def main() -> int:
    """Runs the three measurements and prints a line for each."""
    with installation() as penstock, penstock.channel() as channel:
        bench = Bench(penstock, channel)
        bench.warm_up()
        accepted, bare = bench.apply_to_accepted()
        report("apply to accepted", accepted)
        report("  bare sbatch, same run", bare)
        report("  beyond sbatch's own time", [a - b for a, b in zip(accepted, bare, strict=True)])
        report("ready to routable", bench.ready_to_routable())
        report("dead to unroutable", bench.dead_to_unroutable())
    return 0


def report(name: str, seconds: list[float]) -> None:
    """One line: median, least and most, in milliseconds."""
    p50, least, most = (value * 1e3 for value in (statistics.median(seconds), min(seconds), max(seconds)))
    print(f"{name:28} p50 {p50:7.1f} ms   min {least:7.1f}   max {most:7.1f}   n {len(seconds)}", flush=True)


@contextmanager
def installation() -> Iterator[Penstock]:
    root = Path(tempfile.mkdtemp(prefix="penstock-bench-"))
    cluster = Cluster(root, Settings())
    try:
        cluster.up()
        with running(cluster) as penstock:
            yield penstock
    finally:
        cluster.down()
        shutil.rmtree(root, ignore_errors=True)


class Bench:
    """The measurements, over one connection to the front door."""

    def __init__(self, penstock: Penstock, channel: Any) -> None:
        self._penstock = penstock
        self._deployments: Any = deployment_pb2_grpc.DeploymentServiceStub(channel)
        self._replicas: Any = replica_pb2_grpc.ReplicaServiceStub(channel)
        self._inference: Any = inference_pb2_grpc.InferenceServiceStub(channel)

    def warm_up(self) -> None:
        self._apply("warm", 1)
        self._until_routable("warm")
        self._delete("warm")

    def apply_to_accepted(self) -> tuple[list[float], list[float]]:
        accepted, bare = [], []
        for number in range(ROUNDS):
            bare.append(self._bare_sbatch())
            name = f"accepted-{number}"
            began = time.perf_counter()
            self._apply(name, 1)
            self._spin(lambda name=name: any(replica.attempt.job_id for replica in self._list(name)))  # type: ignore[misc]
            accepted.append(time.perf_counter() - began)
            self._delete(name)
        return accepted, bare

    def ready_to_routable(self) -> list[float]:
        taken = []
        for number in range(ROUNDS):
            name = f"routable-{number}"
            self._apply(name, 1)
            routable_at = self._until_routable(name)
            (replica,) = self._list(name)
            ready_at = replica.attempt.ready_at.ToDatetime(tzinfo=UTC)
            taken.append((routable_at - ready_at).total_seconds())
            self._delete(name)
        return taken

    def dead_to_unroutable(self) -> list[float]:
        self._apply("dead", 2)
        taken = []
        for _ in range(ROUNDS):
            self._spin(lambda: [replica.state for replica in self._list("dead")] == [READY, READY])
            agent = self._agent(self._list("dead")[0].attempt.token)
            for process in [agent, *agent.children(recursive=True)]:
                process.kill()
            died = time.perf_counter()
            last_failure = died
            while time.perf_counter() - died < 3:
                if not self._ask("dead"):
                    last_failure = time.perf_counter()
            taken.append(last_failure - died)
        self._delete("dead")
        return taken

    def _apply(self, name: str, replicas: int) -> None:
        spec = spec_pb2.DeploymentSpec(replicas=replicas, drain_timeout_s=1)
        spec.model.path = "/dev/null"
        spec.engine.name = "standin"
        spec.resources.cpus = 1
        spec.resources.memory = "64MiB"
        spec.restart.backoff_initial_s = spec.restart.backoff_max_s = 1
        deployment = deployment_pb2.Deployment(spec=spec)
        deployment.metadata.name = name
        self._deployments.ApplyDeployment(deployment_pb2.ApplyDeploymentRequest(deployment=deployment))

    def _delete(self, name: str) -> None:
        self._deployments.DeleteDeployment(deployment_pb2.DeleteDeploymentRequest(name=name, force=True))
        wait_until(lambda: not self._list(name), PATIENCE_S, f"{name} is gone")

    def _list(self, name: str) -> list[replica_pb2.Replica]:
        try:
            found = self._replicas.ListReplicas(replica_pb2.ListReplicasRequest(deployment=name))
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return []
            raise
        return list(found.replicas)

    def _until_routable(self, name: str) -> datetime:
        self._spin(lambda: self._ask(name))
        return datetime.now(UTC)

    def _ask(self, name: str) -> bool:
        message = inference_pb2.Message(
            role=inference_pb2.ROLE_USER, content=[inference_pb2.ContentPart(text="hello")]
        )
        request = inference_pb2.ChatRequest(
            model=name, messages=[message], sampling=inference_pb2.SamplingParameters(max_tokens=1)
        )
        try:
            self._inference.Chat(request, timeout=5)
        except grpc.RpcError:
            return False
        return True

    def _spin(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(self._penstock.log[-3000:])
            time.sleep(0.002)

    def _bare_sbatch(self) -> float:
        options = ["--parsable", "--hold", "--output=/dev/null", "--wrap", "true"]
        command = [*self._penstock.cluster.prefix, "sbatch", *options]
        environment = {"PATH": "/usr/bin:/bin", **self._penstock.cluster.env}
        began = time.perf_counter()
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, cwd=Path("/")
        )
        taken = time.perf_counter() - began
        self._penstock.cluster.run("scancel", done.stdout.strip())
        return taken

    @staticmethod
    def _agent(token: str) -> psutil.Process:
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if "penstock_runtime" in words and any(token in word for word in words):
                return process
        raise LookupError(f"no agent has the token {token}")


if __name__ == "__main__":
    sys.exit(main())
