"""The calls of the inference API as both clients make them, and the channel that they make them on.

The generated stubs are typed for asyncio alone; a path and a message class serve both.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

from penstock.client.errors import invalid
from penstock.v1 import inference_pb2 as pb

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Of one message that comes: 2,048 embeddings of 4,096 numbers are half of it."""
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # By itself gRPC waits up to two minutes before it connects anew, and every attempt until then fails at once.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)

_SERVICE = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name


@dataclass(frozen=True, slots=True)
class Method(Generic[RequestT, ResponseT]):
    """One call. `generates`: a whole answer is generated before anything of it is seen."""

    name: str
    request: type[RequestT]
    response: type[ResponseT]
    generates: bool = False

    @property
    def path(self) -> str:
        """As gRPC has it."""
        return f"/{_SERVICE}/{self.name}"


def address(given: object) -> str:
    """The same. Raises InvalidRequest for what gRPC cannot even try."""
    if not isinstance(given, str) or not given or not given.isprintable():
        raise invalid("address", f"must be text, as host:port, not {reprlib.repr(given)}")
    # OpenAI's clients want these; gRPC would look them up as names.
    if given.startswith(("http://", "https://")):
        raise invalid("address", f"must be host:port, without http:// or https://, not {reprlib.repr(given)}")
    return given


CHAT = Method("Chat", pb.ChatRequest, pb.ChatResponse, generates=True)
STREAM_CHAT = Method("StreamChat", pb.StreamChatRequest, pb.StreamChatResponse)
GENERATE = Method("Generate", pb.GenerateRequest, pb.GenerateResponse, generates=True)
STREAM_GENERATE = Method("StreamGenerate", pb.StreamGenerateRequest, pb.StreamGenerateResponse)
EMBED = Method("Embed", pb.EmbedRequest, pb.EmbedResponse)
SCORE = Method("Score", pb.ScoreRequest, pb.ScoreResponse)
RERANK = Method("Rerank", pb.RerankRequest, pb.RerankResponse)
TOKENIZE = Method("Tokenize", pb.TokenizeRequest, pb.TokenizeResponse)
DETOKENIZE = Method("Detokenize", pb.DetokenizeRequest, pb.DetokenizeResponse)
LIST_MODELS = Method("ListModels", pb.ListModelsRequest, pb.ListModelsResponse)
