"""Which requests belong to one replica: by a header, or by how their prompts begin, as long as it is not overloaded.

A deployment that asks for it has its replicas in a Maglev table instead of being asked by least request. A replica's
place in the table follows from its name, not from its address: a session finds the same one over gRPC and REST, and a
replica that was started again gets back what it had. What is hashed is a header that the deployment names, or the
beginning of the prompt, which a few lines of Lua take out of a body that Envoy holds anyway; no Python is asked.
Requests without either are spread at random. A replica with more requests in flight than its share allows is passed
over, for another one that is always the same for the same hash (bounded load).

Envoy's hashing policies do not know retry priorities, by which other deployments' third attempt reaches the gateway. So
the route leads to a composite cluster, which chooses by the attempt: the replicas, the replicas, the gateway.
"""

from __future__ import annotations

from typing import Any

from penstock.core.spec import Routing
from penstock.gateway.messages import Cluster, WeightedCluster, build, typed
from penstock.v1 import inference_pb2

PREFIX_FILTER = "envoy.filters.http.lua.prefix"
_SCRIPT = "prefix"
PREFIX_HEADER = "x-penstock-deployment-prefix"
"""Of its prompt's beginning a request carries a hash alone; the prefix of the name is among those that clients cannot
set."""

_LOOKED_AT_BYTES = 4096
"""So many bytes into a body its prompt must begin, and so many may there be in a gRPC message beside its text. In JSON
that begins with something longer (tools, perhaps) that beginning counts instead."""


def tries_name(cluster: str) -> str:
    """The name of the cluster that chooses by the attempt, for a deployment's cluster of this name."""
    return f"tries/{cluster}"


def target(cluster: str, routing: Routing) -> str:
    """Where a route to a deployment's cluster of this name leads."""
    return tries_name(cluster) if routing.has_affinity else cluster


def balancing(routing: Routing) -> dict[str, Any]:
    """`lb_policy` of a deployment's cluster."""
    return {"lb_policy": "MAGLEV" if routing.has_affinity else "LEAST_REQUEST"}


def bounded_load(routing: Routing) -> dict[str, Any]:
    """What `common_lb_config` has for it."""
    if not routing.has_affinity:
        return {}
    return {"consistent_hashing_lb_config": {"hash_balance_factor": routing.max_load_percent}}


def tries(cluster: str, gateway: str, connections: dict[str, Any]) -> Cluster:
    """The composite cluster. `connections`: of its fields those that all clusters share."""
    made: Cluster = build(
        Cluster(), {"name": tries_name(cluster), "lb_policy": "CLUSTER_PROVIDED", **connections}
    )
    made.cluster_type.name = "envoy.clusters.composite"
    # Envoy's stubs lack the message; this one has the same fields by the same numbers.
    chosen = build(WeightedCluster(), {"clusters": [{"name": name} for name in (cluster, cluster, gateway)]})
    made.cluster_type.typed_config.type_url = (
        "type.googleapis.com/envoy.extensions.clusters.composite.v3.ClusterConfig"
    )
    made.cluster_type.typed_config.value = chosen.SerializeToString(deterministic=True)
    return made


def place(replica: str) -> dict[str, Any]:
    """Of an endpoint's metadata for balancing: by what it has its place in the table."""
    return {"hash_key": replica}


def hash_policy(routing: Routing) -> list[dict[str, Any]]:
    """A route's: what of a request is hashed. The first that a request has counts."""
    policy: list[dict[str, Any]] = []
    if routing.session_header:
        policy.append({"header": {"header_name": routing.session_header}, "terminal": True})
    if routing.prefix_bytes:
        policy.append({"header": {"header_name": PREFIX_HEADER}})
    return policy


def looks_at_prompt(routing: Routing) -> dict[str, Any]:
    """A route's `typed_per_filter_config`."""
    if not routing.prefix_bytes:
        return {}
    return {
        PREFIX_FILTER: typed(
            "filters.http.lua.v3.LuaPerRoute",
            name=_SCRIPT,
            filter_context={"bytes": routing.prefix_bytes},
        )
    }


def prefix_filter() -> dict[str, Any]:
    """The HTTP filter: it does nothing on routes that do not name its script. It comes after the route is chosen."""
    return {
        "name": PREFIX_FILTER,
        "typed_config": typed("filters.http.lua.v3.Lua", source_codes={_SCRIPT: {"inline_string": _LUA}}),
    }


def _grpc_paths() -> str:
    """A Lua table: method -> the numbers of the fields that lead to the text of its prompt."""
    fields = {"Chat": ("messages", "content", "text"), "Generate": ("prompt",)}
    service = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
    found = []
    for unary, path in fields.items():
        for method in (unary, f"Stream{unary}"):
            message, numbers = service.methods_by_name[method].input_type, []
            for name in path:
                field = message.fields_by_name[name]
                numbers.append(str(field.number))
                message = field.message_type or message
            found.append(f'["/{service.full_name}/{method}"]={{ {", ".join(numbers)} }}')
    return ", ".join(found)


# The hash is a polynomial modulo a prime below 2^32, four bytes a step, so that every product is exact in a double;
# Envoy hashes it once more.
_LUA = f"""
local grpc_paths = {{ {_grpc_paths()} }}
local keys = {{ '"messages"', '"prompt"', '"input"' }}
local function varint(bytes, at)
  local value, scale = 0, 1
  for at = at, at + 9 do
    local part = string.byte(bytes, at)
    if not part then
      return nil
    end
    value = value + part % 128 * scale
    if part < 128 then
      return value, at + 1
    end
    scale = scale * 128
  end
end
local function gather(bytes, at, ending, path, depth, found, wanted)
  while at and at <= ending and wanted > 0 do
    local tag, value
    tag, at = varint(bytes, at)
    if not tag or tag % 8 ~= 0 and tag % 8 ~= 2 then
      return wanted
    end
    value, at = varint(bytes, at)
    if value and tag % 8 == 2 then
      if math.floor(tag / 8) == path[depth] then
        local stop = math.min(at + value - 1, ending)
        if path[depth + 1] then
          wanted = gather(bytes, at, stop, path, depth + 1, found, wanted)
        else
          local text = string.sub(bytes, at, math.min(stop, at + wanted - 1))
          found[#found + 1] = text
          wanted = wanted - #text
        end
      end
      at = at + value
    end
  end
  return wanted
end
local function of_grpc(bytes, path, size)
  local found = {{}}
  gather(bytes, 6, #bytes, path, 1, found, size)
  return table.concat(found)
end
local function of_json(text, size)
  local first
  for _, key in ipairs(keys) do
    local _, ending = string.find(text, key, 1, true)
    if ending and (not first or ending < first) then
      first = ending
    end
  end
  first = first or 0
  return string.sub(text, first + 1, first + size)
end
local function hash(text)
  local sum = 0
  text = text .. "\\0\\0\\0"
  for at = 1, #text - 3, 4 do
    local a, b, c, d = string.byte(text, at, at + 3)
    sum = (sum * 1000003 + a + b * 256 + c * 65536 + d * 16777216) % 4294967291
  end
  return string.format("%.0f", sum)
end
function envoy_on_request(request)
  local headers = request:headers()
  local path = grpc_paths[headers:get(":path")]
  if not path and string.find(headers:get("content-type") or "", "application/grpc", 1, true) == 1 then
    return
  end
  local size = request:filterContext():get("bytes")
  local body = request:body()
  if not body then
    return
  end
  local bytes = body:getBytes(0, math.min(body:length(), size + {_LOOKED_AT_BYTES}))
  local prefix = path and of_grpc(bytes, path, size) or of_json(bytes, size)
  if #prefix == size then
    -- What was got before the body came may not be used any more.
    request:headers():replace("{PREFIX_HEADER}", hash(prefix))
  end
end
"""
