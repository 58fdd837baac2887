"""Routing state in, Envoy's configuration out: a pure function, and for each type a version that changes with it.

What changes often is cheap: a replica that comes or goes changes one deployment's endpoints and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources as package_files

from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from penstock.core.routing import RoutingState
from penstock.gateway.clusters import clusters
from penstock.gateway.endpoints import assignments
from penstock.gateway.listener import listeners
from penstock.gateway.relay_listener import relay_listener, relay_routes
from penstock.gateway.routes import route_configurations
from penstock.gateway.settings import FrontDoorSettings

_PREFIX = "type.googleapis.com/envoy.config."
CLUSTER = f"{_PREFIX}cluster.v3.Cluster"
ENDPOINT = f"{_PREFIX}endpoint.v3.ClusterLoadAssignment"
LISTENER = f"{_PREFIX}listener.v3.Listener"
ROUTE = f"{_PREFIX}route.v3.RouteConfiguration"


@dataclass(frozen=True, slots=True)
class Resource:
    """One message of Envoy's configuration."""

    name: str
    body: Any
    digest: str
    """Of the contents: equal for equal configuration while this process lives. Another one may write the maps inside in
    another order."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Everything Envoy must know, by type and name."""

    by_type: Mapping[str, Mapping[str, Resource]]

    def version(self, type_url: str) -> str:
        """Changes if and only if a resource of this type did."""
        digests = "".join(resource.name + resource.digest for resource in self.by_type[type_url].values())
        return hashlib.blake2b(digests.encode(), digest_size=8).hexdigest()


def resources(state: RoutingState, settings: FrontDoorSettings, descriptors: bytes) -> Resources:
    """Envoy's whole configuration. Raises AddressError for settings that Envoy could not use.

    `descriptors`: a serialized FileDescriptorSet with InferenceService, see `api_descriptors`.
    """
    routes = tuple(sorted(state.routes, key=lambda route: route.deployment))
    return Resources(
        {
            CLUSTER: _named(clusters(routes, settings), "name"),
            ENDPOINT: _named(assignments(routes, settings), "cluster_name"),
            LISTENER: _named([*listeners(settings, descriptors), relay_listener(settings)], "name"),
            ROUTE: _named([*route_configurations(routes, settings), relay_routes(routes, settings)], "name"),
        }
    )


@lru_cache(maxsize=1)
def api_descriptors() -> bytes:
    """The API's descriptor set, as it is shipped with its stubs."""
    return (package_files.files("penstock.v1") / "descriptor.binpb").read_bytes()


def _named(messages: Iterable[Message], key: str) -> dict[str, Resource]:
    found: dict[str, Resource] = {}
    for message in messages:
        body = Any()
        body.Pack(message, deterministic=True)
        name = str(getattr(message, key))
        found[name] = Resource(name, body, hashlib.blake2b(body.value, digest_size=8).hexdigest())
    return found
