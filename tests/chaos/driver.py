"""What people do meanwhile: scale, apply another revision, delete and apply again, without a pause.

Speaks to the front door like any client. While the gateway or PostgreSQL is down the API is unavailable, and
says so; any other refusal that a right request gets is a violation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from penstock.v1 import deployment_pb2, deployment_pb2_grpc, spec_pb2
from tests.chaos.worker import Worker
from tests.penstocks import wait_until

NAMES = ("ant", "bee", "cat")
REPLICAS_MAX = 3
CALL_WITHIN_S = 10
SETTLE_WITHIN_S = 240
"""A deletion that is under way must end first: a drain that is cut (30 s), and a cancellation that a killed slurmctld
forgot and that is repeated (60 s), after a lost node's way back."""

UNAVAILABLE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
TOO_LATE = frozenset(
    {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ABORTED}
)
"""The deployment is gone or going."""


def spec(replicas: int, *, speed: int = 20, drain_s: int = 2, node: str = "") -> spec_pb2.DeploymentSpec:
    """A deployment of the stand-in; another `speed` is another revision."""
    made = spec_pb2.DeploymentSpec(replicas=replicas, drain_timeout_s=drain_s)
    made.model.path = "/dev/null"
    made.engine.name = "standin"
    made.engine.args.extend(["--tokens-per-second", str(speed)])
    made.resources.cpus = 1
    made.resources.memory = "64MiB"
    made.restart.backoff_initial_s = 1
    made.restart.backoff_max_s = 4
    if node:
        made.placements.add().options["nodelist"] = node
    return made


class Driver(Worker):
    """Changes what is wanted, all the time."""

    def __init__(self, server: str, seed: int) -> None:
        super().__init__("driver", seed)
        channel: Any = grpc.insecure_channel(server)
        self._channel = channel
        self._api: Any = deployment_pb2_grpc.DeploymentServiceStub(channel)
        self._there: set[str] = set()
        """By our own wishes: what was deleted is applied next."""
        self.violations: list[str] = []

    def step(self) -> None:
        name, what = self.random.choice(NAMES), "apply"
        if name in self._there:
            (what,) = self.random.choices(
                ("scale", "apply", "restart", "delete", "delete by force"), (6, 4, 1, 1.5, 1.5)
            )
        replicas = self.random.randint(0, REPLICAS_MAX)
        speed = self.random.choice((20, 30, 40))
        calls: dict[str, Callable[[], object]] = {
            "scale": lambda: self.scale(name, replicas),
            "apply": lambda: self.apply(name, spec(replicas, speed=speed)),
            "restart": lambda: self._api.RestartDeployment(
                deployment_pb2.RestartDeploymentRequest(name=name), timeout=CALL_WITHIN_S
            ),
            "delete": lambda: self.delete(name),
            "delete by force": lambda: self.delete(name, force=True),
        }
        self._count(name, what, calls[what])
        self.pause(0.3, 3)

    def settle(self) -> dict[str, int]:
        """The last wish, repeated until it is accepted: deployment -> replicas."""
        wish = {name: self.random.randint(1, 2) for name in NAMES[:-1]}
        for name, replicas in wish.items():
            self._insist(lambda name=name, replicas=replicas: self.apply(name, spec(replicas, speed=50)))  # type: ignore[misc]
        self._insist(lambda: self.delete(NAMES[-1]))
        return wish

    def apply(self, name: str, wanted: spec_pb2.DeploymentSpec) -> None:
        deployment = deployment_pb2.Deployment(spec=wanted)
        deployment.metadata.name = name
        request = deployment_pb2.ApplyDeploymentRequest(deployment=deployment)
        self._api.ApplyDeployment(request, timeout=CALL_WITHIN_S)

    def scale(self, name: str, replicas: int) -> None:
        request = deployment_pb2.ScaleDeploymentRequest(name=name, replicas=replicas)
        self._api.ScaleDeployment(request, timeout=CALL_WITHIN_S)

    def delete(self, name: str, *, force: bool = False) -> None:
        request = deployment_pb2.DeleteDeploymentRequest(name=name, force=force)
        self._api.DeleteDeployment(request, timeout=CALL_WITHIN_S)

    def deployments(self) -> dict[str, deployment_pb2.Deployment]:
        request = deployment_pb2.ListDeploymentsRequest()
        found = self._api.ListDeployments(request, timeout=CALL_WITHIN_S).deployments
        return {deployment.metadata.name: deployment for deployment in found}

    def _count(self, name: str, what: str, call: Callable[[], object]) -> None:
        try:
            call()
        except grpc.RpcError as error:
            if error.code() in UNAVAILABLE:
                self.counts["API unavailable"] += 1
            elif error.code() in TOO_LATE:
                self.counts["API says too late"] += 1
            else:
                self.violations.append(f"{what}: {error.code().name}: {error.details()}")
            return
        self.counts[what] += 1
        if what == "apply":
            self._there.add(name)
        elif what.startswith("delete"):
            self._there.discard(name)

    def _insist(self, call: Callable[[], object]) -> None:
        """Until it is accepted; a deployment that is going must be gone first."""

        def accepted() -> bool:
            try:
                call()
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    return True
                if error.code() in UNAVAILABLE | TOO_LATE:
                    return False
                raise
            return True

        wait_until(accepted, SETTLE_WITHIN_S, "the last wish is accepted")
