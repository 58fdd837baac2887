"""The OpenAPI documents that the front door serves: made from the contract, and shipped beside its stubs."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources as package_files

DOCUMENTS = {
    "/apis/v1/openapi.json": "control.openapi.json",
    "/v1/openapi.json": "inference.openapi.json",
}
"""Path -> file in penstock.v1."""


@lru_cache(maxsize=len(DOCUMENTS))
def document(path: str) -> bytes:
    """The document at this path. Raises KeyError for a path that has none."""
    return (package_files.files("penstock.v1") / DOCUMENTS[path]).read_bytes()
