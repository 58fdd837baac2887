"""Names that clients may call the front door by, where the site lists them.

A web page can have its own name resolve to an address that only its reader's machine reaches, and is then of the front
door's origin as far as the browser knows: no Origin tells it from a page of ours, but the name in Host is still its
own. An address in place of a name cannot be made to lead elsewhere, and neither can `localhost`; so these are taken.
"""

from __future__ import annotations

WRONG_HOST_STATUS = 421
"""HTTP's Misdirected Request."""


def own_hosts(hosts: tuple[str, ...]) -> str:
    """Lua that refuses what is sent to another name than these, which are in lower case."""
    known = ", ".join(f'["{host}"]=true' for host in ("localhost", *hosts))
    return f"""
local known = {{ {known} }}
function envoy_on_request(request)
  local host = string.lower(request:headers():get(":authority") or "")
  host = string.gsub(host, ":%d+$", "")
  if not (known[host] or string.find(host, "^%d+%.%d+%.%d+%.%d+$") or string.find(host, "^%[")) then
    request:respond({{[":status"] = "{WRONG_HOST_STATUS}"}}, "")
  end
end
"""
