"""What the front door must know: which models there are, and which replicas may take requests for them.

The gateway turns this into Envoy's configuration; it never reads the tables for it. An endpoint is listed here exactly
when its attempt is live, has proved itself ready, is not draining, and its job is not halted.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field, replace

from penstock.core.spec import Admission, Routing


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One ready replica's agent."""

    attempt: str
    """The attempt's token."""
    replica: str
    host: str
    port: int
    engine_port: int | None = None
    """Of the engine's own HTTP server, at the same host. None: it has none, and serves no REST."""
    revision: int = 0
    adapters: tuple[str, ...] = ()
    """Names of the LoRA adapters that it has loaded."""


@dataclass(frozen=True, slots=True)
class Route:
    """One deployment, as clients see it."""

    deployment: str
    model_names: tuple[str, ...]
    """What clients may put into `model`: the deployment's name, and its served name where it has one."""
    secret: str
    """What Envoy presents to the deployment's agents."""
    endpoints: tuple[Endpoint, ...]
    """Empty: requests are led to the gateway, which holds them or says why not."""
    admission: Admission = field(default_factory=Admission)
    created_at_s: int = 0
    """When the deployment was made, in seconds since 1970: the OpenAI API tells it of a model."""
    weights: tuple[tuple[int, int], ...] = ()
    """Revision -> its share of the requests, in proportion to the others'; 0: none, as long as another one has a
    replica. Empty: all replicas are alike."""
    routing: Routing = field(default_factory=Routing)
    adapters: tuple[str, ...] = ()
    """Names of its LoRA adapters: models of their own, whose requests go to endpoints that have them alone."""
    adapter: str = ""
    """Not empty: this is the part of the deployment's route that leads to this adapter."""

    def to_adapter(self, name: str) -> Route:
        """The part that leads to this adapter."""
        having = tuple(endpoint for endpoint in self.endpoints if name in endpoint.adapters)
        return replace(self, adapter=name, endpoints=having)

    @property
    def line(self) -> str:
        """By this name its requests wait: each adapter has a line of its own. No deployment's name has a slash."""
        return f"{self.deployment}/{self.adapter}" if self.adapter else self.deployment


@dataclass(frozen=True, slots=True)
class RoutingState:
    """All deployments, those without an endpoint too: their clients are told why."""

    routes: tuple[Route, ...]


def engine_key(secret: str, attempt: str) -> str:
    """What opens the door of this attempt's engine and of no other, so that who takes over its port learns little.

    `secret`: the deployment's. Both ends are told it or can work it out, so that it is stored nowhere.
    """
    return hmac.new(secret.encode(), f"engine {attempt}".encode(), hashlib.sha256).hexdigest()
