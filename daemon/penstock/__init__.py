"""Penstock keeps language models served on a Slurm cluster."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.client import AsyncClient, Client, PenstockError

__all__ = ["AsyncClient", "Client", "PenstockError", "__version__"]

__version__ = version("penstock")

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        # The client brings gRPC along, which whoever imports another part may not want.
        if name in __all__:
            from penstock import client

            return getattr(client, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
