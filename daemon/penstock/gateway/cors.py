"""Pages of other origins: which of them a browser may let use models, over REST and gRPC-Web.

None unless the site names them, and the control API never: who reaches that can run code. A browser sends some requests
without asking first, and keeps no more than the answer from the page, so those to the control API are refused here.
Envoy's own filter looks for its policy before the model is known: what needs one are the routes that a request has
until then.
"""

from __future__ import annotations

from typing import Any

from penstock.gateway.messages import http_filter, typed

_FILTER = "cors"
_EXPOSED = (
    "grpc-status", "grpc-message", "grpc-status-details-bin", "retry-after", "x-should-retry",
    "penstock-prompt-tokens", "penstock-completion-tokens",
)  # fmt: skip
"""What a page may read of an answer beside its body: how it ended, and when to come again."""

FOREIGN_PAGE = "the control API is not for web pages of other origins"


def own_pages(control_prefixes: tuple[str, ...]) -> str:
    """Lua that refuses what a page of another origin sends to paths that begin so."""
    prefixes = ", ".join(f'"{prefix}"' for prefix in control_prefixes)
    return f"""
local prefixes = {{ {prefixes} }}
function envoy_on_request(request)
  local headers = request:headers()
  local origin = headers:get("origin")
  if not origin or string.match(origin, "^https?://(.+)$") == headers:get(":authority") then
    return
  end
  local path = headers:get(":path") or ""
  for _, prefix in ipairs(prefixes) do
    if string.sub(path, 1, #prefix) == prefix then
      request:respond({{[":status"] = "403"}}, "{FOREIGN_PAGE}")
      return
    end
  end
end
"""


def cors_filter() -> dict[str, Any]:
    """It answers a browser's question beforehand, and marks answers; where a route has no policy it does nothing."""
    return http_filter(_FILTER, "cors.v3.Cors")


def policy(origins: tuple[str, ...]) -> dict[str, Any]:
    """The part of a route's `typed_per_filter_config` that lets pages of these origins use what it leads to; to Envoy,
    as to the site, `*` is any."""
    if not origins:
        return {}
    return {
        f"envoy.filters.http.{_FILTER}": typed(
            "filters.http.cors.v3.CorsPolicy",
            allow_origin_string_match=[{"exact": origin} for origin in origins],
            allow_methods="GET, POST",
            # The wildcard stands for all but the one named beside it.
            allow_headers="*, authorization",
            expose_headers=", ".join(_EXPOSED),
            max_age="3600",
        )
    }
