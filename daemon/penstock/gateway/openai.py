"""The REST API as clients of OpenAI's know it: which paths lead to an engine, and what an error looks like.

An engine has more paths than these, some of which load adapters or stop it; so what is let through is named one by one.
Whatever an engine does not offer it refuses itself.
"""

from __future__ import annotations

from typing import Any

ENGINE_PATHS = (
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/rerank",
    "/v1/score",
    "/v2/embed",
    "/v2/rerank",
)
"""POST with a JSON object that has `model`."""
BARE_PATHS = ("tokenize", "detokenize", "rerank", "score", "classify", "pooling")
"""The same; engines have them at the root, and they are taken under /v1 too."""
MODELS_PATH = "/v1/models"
PREFIXES = ("/v1/", "/v2/")
"""All of it is REST: what is not known there is refused in OpenAI's shape."""

REWRITES = {
    **{path: path for path in ENGINE_PATHS},
    **{f"/{name}": f"/{name}" for name in BARE_PATHS},
    **{f"/v1/{name}": f"/{name}" for name in BARE_PATHS if f"/v1/{name}" not in ENGINE_PATHS},
}
"""Each path that leads to an engine, and what the engine calls it."""

NOT_AGAIN = {"x-should-retry": "false"}
"""Header by which OpenAI's clients know what not to send again; others go by a Retry-After that is not there."""

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error(status: int, message: str, code: str, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error object. `code`: a word for programs; `param`: the field to blame."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
