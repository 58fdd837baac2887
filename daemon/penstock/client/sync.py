"""The client for code without asyncio. Thread-safe; one for a whole process is enough.

What is asked is requests.py's to write down, and whether it is asked again retry.py's; here it is sent. aio.py is the
same for asyncio.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from penstock.client import methods, requests
from penstock.client.answers import Answer
from penstock.client.errors import closed
from penstock.client.messages import Conversation, Tool
from penstock.client.methods import Method, RequestT, ResponseT
from penstock.client.requests import ChatOptions, GenerateOptions
from penstock.client.retry import Attempts, Retry
from penstock.v1 import inference_pb2 as pb

StreamT = TypeVar("StreamT", pb.StreamChatResponse, pb.StreamGenerateResponse)


class Client:
    """Talks to one front door. Use it as a context manager, or `close` it.

    `address`: host:port. `timeout`: of each call that names none, in seconds, with all its attempts; None: none.
    `credentials`: for TLS; None: no TLS. Every method raises PenstockError, in the kinds of
    penstock.client.errors.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout: float | None = None,
        retry: Retry | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        methods.address(address)
        self._timeout = timeout
        self._retry = retry or Retry()
        self._channel = (
            grpc.insecure_channel(address, methods.OPTIONS)
            if credentials is None
            else grpc.secure_channel(address, credentials, methods.OPTIONS)
        )
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancels what runs."""
        # Before the channel is: a call of another thread's that finds it closed is to find this, too.
        self._is_closed = True
        self._channel.close()

    def chat(
        self,
        model: str,
        messages: Conversation,
        *,
        timeout: float | None = None,
        **options: Unpack[ChatOptions],
    ) -> Answer[pb.ChatResponse]:
        """A whole answer to a conversation.

        `messages`: a text, which is one message of the user, or a list of messages in OpenAI's shape or the contract's.
        """
        request = requests.chat(pb.ChatRequest, model, messages, options)
        return Answer(self._ask(methods.CHAT, request, timeout))

    def stream_chat(
        self,
        model: str,
        messages: Conversation,
        *,
        timeout: float | None = None,
        on_wait: Callable[[pb.WaitProgress], object] | None = None,
        **options: Unpack[ChatOptions],
    ) -> Generator[Answer[pb.StreamChatResponse], None, None]:
        """The same in pieces, as they come. Closing the iterator ends the work for it.

        `on_wait`: is told how the request stands while it waits for a replica.
        """
        request = requests.chat(pb.StreamChatRequest, model, messages, options)
        return self._stream(methods.STREAM_CHAT, request, timeout, on_wait)

    def generate(
        self,
        model: str,
        prompt: str,
        *,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Answer[pb.GenerateResponse]:
        """What the model goes on with after a text."""
        request = requests.generate(pb.GenerateRequest, model, prompt, options)
        return Answer(self._ask(methods.GENERATE, request, timeout))

    def stream_generate(
        self,
        model: str,
        prompt: str,
        *,
        timeout: float | None = None,
        on_wait: Callable[[pb.WaitProgress], object] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generator[Answer[pb.StreamGenerateResponse], None, None]:
        """The same in pieces, as `stream_chat`."""
        request = requests.generate(pb.StreamGenerateRequest, model, prompt, options)
        return self._stream(methods.STREAM_GENERATE, request, timeout, on_wait)

    def embed(
        self,
        model: str,
        inputs: str | Sequence[str],
        *,
        dimensions: int | None = None,
        engine_options: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> pb.EmbedResponse:
        """One embedding for each text, in order."""
        request = requests.embed(model, inputs, dimensions, engine_options)
        return self._ask(methods.EMBED, request, timeout)

    def score(
        self,
        model: str,
        query: str,
        documents: str | Sequence[str],
        *,
        engine_options: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> pb.ScoreResponse:
        """How well each document fits the query, in order."""
        request = requests.score(model, query, documents, engine_options)
        return self._ask(methods.SCORE, request, timeout)

    def rerank(
        self,
        model: str,
        query: str,
        documents: str | Sequence[str],
        *,
        top_n: int | None = None,
        engine_options: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> pb.RerankResponse:
        """The documents' positions, best first."""
        request = requests.rerank(model, query, documents, top_n, engine_options)
        return self._ask(methods.RERANK, request, timeout)

    def tokenize(
        self,
        model: str,
        text: Conversation,
        *,
        tools: Sequence[Tool] = (),
        add_special_tokens: bool | None = None,
        timeout: float | None = None,
    ) -> pb.TokenizeResponse:
        """The tokens of a text; of a list of messages as the model's chat template writes them."""
        request = requests.tokenize(model, text, tools, add_special_tokens)
        return self._ask(methods.TOKENIZE, request, timeout)

    def detokenize(self, model: str, tokens: Sequence[int], *, timeout: float | None = None) -> str:
        """The text of tokens."""
        request = requests.detokenize(model, tokens)
        return self._ask(methods.DETOKENIZE, request, timeout).text

    def models(self, *, timeout: float | None = None) -> list[pb.ServedModel]:
        """What can be asked for."""
        return list(self._ask(methods.LIST_MODELS, pb.ListModelsRequest(), timeout).models)

    def _ask(
        self, method: Method[RequestT, ResponseT], request: RequestT, timeout: float | None
    ) -> ResponseT:
        attempts = Attempts(self._retry, self._timeout if timeout is None else timeout)
        send = self._channel.unary_unary(
            method.path, method.request.SerializeToString, method.response.FromString
        )
        while True:
            try:
                return send(request, timeout=attempts.left_s())
            except grpc.RpcError as error:
                wait_s = attempts.after(error, generates=method.generates)
            except ValueError as error:  # All that gRPC raises over a channel that is closed.
                if not self._is_closed:
                    raise
                raise closed() from error
            time.sleep(wait_s)

    def _stream(
        self,
        method: Method[RequestT, StreamT],
        request: RequestT,
        timeout: float | None,
        on_wait: Callable[[pb.WaitProgress], object] | None,
    ) -> Generator[Answer[StreamT], None, None]:
        attempts = Attempts(self._retry, self._timeout if timeout is None else timeout)
        send = self._channel.unary_stream(
            method.path, method.request.SerializeToString, method.response.FromString
        )
        received: list[str] | None = None
        while True:
            try:
                call = send(request, timeout=attempts.left_s())
            except ValueError as error:  # As above.
                if not self._is_closed:
                    raise
                raise closed() from error
            try:
                for response in call:
                    if response.HasField("waiting"):
                        if on_wait is not None:
                            on_wait(response.waiting)
                        continue
                    answer = Answer(response)
                    received = received or []
                    received.append(answer.text)
                    yield answer
                return
            except grpc.RpcError as error:
                wait_s = attempts.after(error, received=received)
            finally:
                # Nothing for one that has ended; for a caller who leaves, the engine stops.
                call.cancel()
            time.sleep(wait_s)
