"""The client for asyncio. One for each event loop is enough.

The same as sync.py, call for call: what is asked is requests.py's to write down, and whether it is asked again
retry.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
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


class AsyncClient:
    """Talks to one front door. Use it with `async with`, or `close` it.

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
        self._timeout = timeout
        self._retry = retry or Retry()
        self._address = methods.address(address)
        self._credentials = credentials
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancels what runs."""
        # One that was never used as well: what is asked of it later is to find it closed.
        await self._open().close()

    def _open(self) -> grpc.aio.Channel:
        # Made by the first call, because it belongs to the event loop that runs then.
        if self._channel is None:
            self._channel = (
                grpc.aio.insecure_channel(self._address, methods.OPTIONS)
                if self._credentials is None
                else grpc.aio.secure_channel(self._address, self._credentials, methods.OPTIONS)
            )
        return self._channel

    async def chat(
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
        return Answer(await self._ask(methods.CHAT, request, timeout))

    def stream_chat(
        self,
        model: str,
        messages: Conversation,
        *,
        timeout: float | None = None,
        on_wait: Callable[[pb.WaitProgress], object] | None = None,
        **options: Unpack[ChatOptions],
    ) -> AsyncGenerator[Answer[pb.StreamChatResponse], None]:
        """The same in pieces, as they come, for `async for`. Closing the iterator ends the work for it.

        `on_wait`: is told how the request stands while it waits for a replica.
        """
        request = requests.chat(pb.StreamChatRequest, model, messages, options)
        return self._stream(methods.STREAM_CHAT, request, timeout, on_wait)

    async def generate(
        self,
        model: str,
        prompt: str,
        *,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Answer[pb.GenerateResponse]:
        """What the model goes on with after a text."""
        request = requests.generate(pb.GenerateRequest, model, prompt, options)
        return Answer(await self._ask(methods.GENERATE, request, timeout))

    def stream_generate(
        self,
        model: str,
        prompt: str,
        *,
        timeout: float | None = None,
        on_wait: Callable[[pb.WaitProgress], object] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncGenerator[Answer[pb.StreamGenerateResponse], None]:
        """The same in pieces, as `stream_chat`."""
        request = requests.generate(pb.StreamGenerateRequest, model, prompt, options)
        return self._stream(methods.STREAM_GENERATE, request, timeout, on_wait)

    async def embed(
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
        return await self._ask(methods.EMBED, request, timeout)

    async def score(
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
        return await self._ask(methods.SCORE, request, timeout)

    async def rerank(
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
        return await self._ask(methods.RERANK, request, timeout)

    async def tokenize(
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
        return await self._ask(methods.TOKENIZE, request, timeout)

    async def detokenize(self, model: str, tokens: Sequence[int], *, timeout: float | None = None) -> str:
        """The text of tokens."""
        request = requests.detokenize(model, tokens)
        return (await self._ask(methods.DETOKENIZE, request, timeout)).text

    async def models(self, *, timeout: float | None = None) -> list[pb.ServedModel]:
        """What can be asked for."""
        return list((await self._ask(methods.LIST_MODELS, pb.ListModelsRequest(), timeout)).models)

    async def _ask(
        self, method: Method[RequestT, ResponseT], request: RequestT, timeout: float | None
    ) -> ResponseT:
        attempts = Attempts(self._retry, self._timeout if timeout is None else timeout)
        send = self._open().unary_unary(
            method.path, method.request.SerializeToString, method.response.FromString
        )
        while True:
            try:
                return await send(request, timeout=attempts.left_s())
            except grpc.RpcError as error:
                wait_s = attempts.after(error, generates=method.generates)
            except grpc.aio.UsageError as error:  # All that gRPC raises over a channel that is closed.
                raise closed() from error
            await asyncio.sleep(wait_s)

    async def _stream(
        self,
        method: Method[RequestT, StreamT],
        request: RequestT,
        timeout: float | None,
        on_wait: Callable[[pb.WaitProgress], object] | None,
    ) -> AsyncGenerator[Answer[StreamT], None]:
        attempts = Attempts(self._retry, self._timeout if timeout is None else timeout)
        send = self._open().unary_stream(
            method.path, method.request.SerializeToString, method.response.FromString
        )
        received: list[str] | None = None
        while True:
            try:
                call = send(request, timeout=attempts.left_s())
            except grpc.aio.UsageError as error:  # As above.
                raise closed() from error
            try:
                async for response in call:
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
            await asyncio.sleep(wait_s)
