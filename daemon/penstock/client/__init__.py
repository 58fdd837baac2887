"""The Python client of the inference API: `Client` and, for asyncio, `AsyncClient`. docs/client.md shows their use.

It knows the contract (penstock.v1) and gRPC, and nothing else of Penstock, so that the base install is enough. What it
takes are plain values, dicts of OpenAI's shape, or the contract's messages; what it gives are the contract's messages,
which are typed and documented already, and around the generated ones an `Answer` with the text at hand.
"""

from penstock.client.aio import AsyncClient
from penstock.client.answers import Answer
from penstock.client.errors import (
    Cancelled,
    DeadlineExceeded,
    Denied,
    FieldViolation,
    InvalidRequest,
    NotFound,
    NotSupported,
    Overloaded,
    PenstockError,
    ServerError,
    Unavailable,
)
from penstock.client.retry import Retry
from penstock.client.sync import Client

__all__ = [
    "Answer",
    "AsyncClient",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "Denied",
    "FieldViolation",
    "InvalidRequest",
    "NotFound",
    "NotSupported",
    "Overloaded",
    "PenstockError",
    "Retry",
    "ServerError",
    "Unavailable",
]
