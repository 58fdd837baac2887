"""The pure part: routing state in, Envoy's configuration out, and what a change of state changes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from penstock.core.routing import Endpoint, Route, RoutingState
from penstock.core.spec import Routing
from penstock.gateway.messages import (
    Cluster,
    ClusterLoadAssignment,
    Listener,
    RouteConfiguration,
    WeightedCluster,
)
from penstock.gateway.resources import (
    CLUSTER,
    ENDPOINT,
    LISTENER,
    ROUTE,
    Resources,
    api_descriptors,
    resources,
)
from penstock.gateway.settings import AddressError, FrontDoorSettings, envoy_address

SETTINGS = FrontDoorSettings(
    state_folder=Path("/state"),
    control="unix:/state/control.sock",
    gateway="unix:/state/gateway.sock",
    gateway_rest="unix:/state/rest.sock",
    xds="127.0.0.1:1",
)
TYPES = {CLUSTER: Cluster, ENDPOINT: ClusterLoadAssignment, LISTENER: Listener, ROUTE: RouteConfiguration}


def route(deployment: str, *ports: int, names: tuple[str, ...] = (), secret: str = "s") -> Route:
    return Route(
        deployment,
        (deployment, *names),
        secret,
        tuple(Endpoint(f"a{port}", "r", "10.0.0.1", port) for port in ports),
    )


def made(*routes: Route, settings: FrontDoorSettings = SETTINGS) -> Resources:
    return resources(RoutingState(routes), settings, api_descriptors())


def changed(before: Resources, after: Resources) -> set[str]:
    return {
        type_url.rsplit(".", 1)[-1]
        for type_url in TYPES
        if before.version(type_url) != after.version(type_url)
    }


def read(found: Resources, type_url: str, name: str) -> dict[str, Any]:
    message = TYPES[type_url]()
    assert found.by_type[type_url][name].body.Unpack(message)
    read_back: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return read_back


def replicas(found: Resources, deployment: str) -> list[tuple[str, int]]:
    places = read(found, ENDPOINT, f"deployment/{deployment}")["endpoints"]
    addresses = [end["endpoint"]["address"]["socket_address"] for end in places[0].get("lb_endpoints", [])]
    return [(address["address"], address["port_value"]) for address in addresses]


BASE = (route("m", 1, 2), route("n"))
AFFINE = replace(BASE[0], routing=Routing(session_header="x-session", prefix_bytes=100))


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (BASE, set()),
        (tuple(reversed(BASE)), set()),
        ((route("m", 2, 1), route("n")), set()),
        ((route("m", 1), route("n")), {"ClusterLoadAssignment"}),
        ((route("m", 1, 2), route("n", 3)), {"ClusterLoadAssignment"}),
        ((route("m", 1, 2, names=("org/m",)), route("n")), {"RouteConfiguration"}),
        ((route("m", 1, 2, secret="new"), route("n")), {"Cluster", "RouteConfiguration"}),
        ((AFFINE, route("n")), {"Cluster", "RouteConfiguration"}),
        ((*BASE, route("o")), {"Cluster", "ClusterLoadAssignment", "RouteConfiguration"}),
        ((route("m", 1, 2),), {"Cluster", "ClusterLoadAssignment", "RouteConfiguration"}),
    ],
)
def test_a_change_changes_only_its_types_and_never_the_listener(
    after: tuple[Route, ...], expected: set[str]
) -> None:
    assert changed(made(*BASE), made(*after)) == expected


def test_only_the_changed_deployments_endpoints_are_new() -> None:
    before, after = (
        made(route("m", 1), route("n", 2)).by_type[ENDPOINT],
        made(route("m", 1), route("n", 3)).by_type[ENDPOINT],
    )
    assert before["deployment/m"].digest == after["deployment/m"].digest
    assert before["deployment/n"].digest != after["deployment/n"].digest


def test_replicas_come_first_and_the_gateway_last() -> None:
    found = made(route("m", 1, 2), route("n"))
    assert replicas(found, "m") == [("10.0.0.1", 1), ("10.0.0.1", 2)]
    assert replicas(found, "n") == []
    for deployment in ("m", "n"):
        last = read(found, ENDPOINT, f"deployment/{deployment}")["endpoints"][1]
        assert last["priority"] == 1
        assert last["lb_endpoints"][0]["endpoint"]["address"] == {"pipe": {"path": "/state/gateway.sock"}}


def shares(of: Route) -> list[tuple[int, list[int]]]:
    """Weight and ports of each group of replicas."""
    places = read(made(of), ENDPOINT, f"deployment/{of.deployment}")["endpoints"][:-1]
    return [
        (
            place["load_balancing_weight"],
            [
                end["endpoint"]["address"]["socket_address"]["port_value"]
                for end in place.get("lb_endpoints", [])
            ],
        )
        for place in places
    ]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({}, [(1, [1, 2, 3, 4])]),
        ({1: 90, 2: 10}, [(90, [1, 2, 3]), (10, [4])]),
        ({1: 100, 2: 0}, [(100, [1, 2, 3])]),
        ({2: 10}, [(10, [4])]),
        ({1: 0, 2: 0}, [(1, [1, 2, 3, 4])]),
    ],
)
def test_a_canary_gets_its_share_and_the_rest_the_others(
    weights: dict[int, int], expected: list[tuple[int, list[int]]]
) -> None:
    ends = tuple(
        Endpoint(f"a{port}", "r", "10.0.0.1", port, revision=2 if port == 4 else 1) for port in (1, 2, 3, 4)
    )
    assert shares(replace(route("m"), endpoints=ends, weights=tuple(weights.items()))) == expected


def test_by_default_least_request_chooses_and_nothing_is_hashed() -> None:
    found = made(*BASE)
    assert {read(found, CLUSTER, f"{kind}/m")["lb_policy"] for kind in ("deployment", "rest")} == {
        "LEAST_REQUEST"
    }
    assert not [name for name in found.by_type[CLUSTER] if name.startswith("tries/")]
    assert "hash_policy" not in str(read(found, ROUTE, "main"))
    assert "hash_policy" not in str(read(found, ROUTE, "relay"))


def test_affinity_is_a_table_a_cluster_by_attempt_and_what_is_hashed() -> None:
    found = made(AFFINE, route("n"))
    for kind in ("deployment", "rest"):
        cluster = read(found, CLUSTER, f"{kind}/m")
        assert cluster["lb_policy"] == "MAGLEV"
        assert cluster["common_lb_config"]["consistent_hashing_lb_config"] == {"hash_balance_factor": 150}
        assert read(found, CLUSTER, f"{kind}/n")["lb_policy"] == "LEAST_REQUEST"
    tries = Cluster()
    assert found.by_type[CLUSTER]["tries/rest/m"].body.Unpack(tries)
    chosen = WeightedCluster.FromString(tries.cluster_type.typed_config.value)
    assert [one.name for one in chosen.clusters] == ["rest/m", "rest/m", "gateway-rest"]
    for name in ("main", "relay"):
        routes = read(found, ROUTE, name)["virtual_hosts"][0]["routes"]
        mine = [one for one in routes if one.get("route", {}).get("cluster", "").startswith("tries/")]
        assert len(mine) == (2 if name == "main" else 3)
        for one in mine:
            hashed = [policy["header"]["header_name"] for policy in one["route"]["hash_policy"]]
            assert hashed == ["x-session", "x-penstock-deployment-prefix"]
    ends = read(found, ENDPOINT, "rest/m")["endpoints"][0].get("lb_endpoints", [])
    assert all(end["metadata"]["filter_metadata"]["envoy.lb"] == {"hash_key": "r"} for end in ends)


@pytest.mark.parametrize(
    ("host", "port"), [("node-1", 1), ("", 1), ("10.0.0.1", 0), ("10.0.0.1", 65536), ("10.0.0", 1)]
)
def test_an_endpoint_that_envoy_would_refuse_is_left_out(host: str, port: int) -> None:
    bad = replace(
        route("m", 5), endpoints=(Endpoint("a", "r", "10.0.0.1", 5), Endpoint("b", "r", host, port))
    )
    assert replicas(made(bad), "m") == [("10.0.0.1", 5)]


def test_an_ipv6_endpoint_is_taken() -> None:
    assert replicas(made(replace(route("m"), endpoints=(Endpoint("a", "r", "fd00::1", 5),))), "m") == [
        ("fd00::1", 5)
    ]


def test_a_name_leads_to_one_deployment_and_its_own_name_wins() -> None:
    found = made(route("m", names=("n", "shared")), route("n", names=("shared",)))
    by_name: dict[str, list[str]] = {}
    for one in read(found, ROUTE, "main")["virtual_hosts"][0]["routes"]:
        for header in one["match"].get("headers", []):
            if header["name"] == "x-model":
                by_name.setdefault(header["string_match"]["exact"], []).append(one["route"]["cluster"])
    assert by_name == {
        "m": ["deployment/m", "rest/m"],
        "n": ["deployment/n", "rest/n"],
        "shared": ["deployment/m", "rest/m"],
    }


def test_the_secret_is_only_where_it_is_needed() -> None:
    found = made(route("m", 1, secret="hush-m"), route("n", 2, secret="hush-n"))
    assert "hush" not in str(read(found, LISTENER, "main"))
    assert "hush-m" not in str(read(found, CLUSTER, "deployment/n"))
    for one in read(found, ROUTE, "main")["virtual_hosts"][0]["routes"]:
        cluster = one.get("route", {}).get("cluster", "")
        assert set(re.findall(r"hush-\w", str(one))) == (
            {f"hush-{cluster[-1]}"} if cluster.startswith("deployment/") else set()
        )


def test_there_is_a_runtime_listener_only_when_wanted() -> None:
    assert list(made().by_type[LISTENER]) == ["main", "relay"]
    found = made(route("m"), settings=replace(SETTINGS, runtime_listen="10.0.0.9:8601"))
    assert list(found.by_type[LISTENER]) == ["main", "runtime", "relay"]
    carried = [
        one["match"]["prefix"]
        for one in read(found, ROUTE, "runtime")["virtual_hosts"][0]["routes"]
        if "route" in one
    ]
    assert carried == ["/penstock.v1.RuntimeService/"]


def test_every_inference_method_with_a_model_is_read_for_it() -> None:
    listener = str(read(made(), LISTENER, "main"))
    methods = set(re.findall(r"penstock\.v1\.InferenceService\.(\w+)'", listener))
    assert {
        "Chat",
        "StreamChat",
        "Generate",
        "StreamGenerate",
        "Embed",
        "Score",
        "Rerank",
        "Tokenize",
    } <= methods
    assert "ListModels" not in methods


@pytest.mark.parametrize("question", ["envoy.filters.http.ext_authz", "envoy.filters.http.no_body"])
def test_nobody_is_asked_about_a_body_but_on_the_way_to_the_control_api(question: str) -> None:
    settings = replace(SETTINGS, cors_origins=("https://a.example",), runtime_listen="127.0.0.1:2")
    found = made(AFFINE, BASE[1], settings=settings)
    asked = []
    for listener in found.by_type[LISTENER]:
        [chain] = read(found, LISTENER, listener)["filter_chains"]
        manager = chain["filters"][0]["typed_config"]
        asked += [one for one in manager["http_filters"] if one["name"] == question]
    assert [one["disabled"] for one in asked] == [True]
    routes = [
        one
        for name in found.by_type[ROUTE]
        for one in read(found, ROUTE, name)["virtual_hosts"][0]["routes"]
        if question in one.get("typed_per_filter_config", {})
    ]
    assert [one["match"]["prefix"] for one in routes] == ["/apis/"]


def test_a_dead_replica_is_found_within_two_seconds() -> None:
    assert SETTINGS.health_interval_s + SETTINGS.health_timeout_s < 2
    check = read(made(route("m")), CLUSTER, "deployment/m")["health_checks"][0]
    assert (check["unhealthy_threshold"], check["interval"], check["no_traffic_interval"]) == (
        1,
        "0.400s",
        "0.400s",
    )


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("unix:/a/b.sock", {"pipe": {"path": "/a/b.sock"}}),
        ("127.0.0.1:80", {"socket_address": {"address": "127.0.0.1", "port_value": 80}}),
        ("[::1]:80", {"socket_address": {"address": "::1", "port_value": 80}}),
    ],
)
def test_addresses(address: str, expected: dict[str, Any]) -> None:
    assert envoy_address(address) == expected


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("unix:relative.sock", "must be absolute"),
        ("unix:/" + "x" * 107, "at most 107 bytes"),
        ("localhost:80", "neither unix:/path nor IP:port"),
        ("127.0.0.1", "neither unix:/path nor IP:port"),
        ("127.0.0.1:http", "the port must be 1 to 65535"),
        ("127.0.0.1:0", "the port must be 1 to 65535"),
    ],
)
def test_addresses_that_envoy_could_not_use_are_refused(address: str, complaint: str) -> None:
    with pytest.raises(AddressError, match=re.escape(complaint)):
        envoy_address(address)
