"""A steady load while something happens to a deployment: 32 streams at a time, of which none may be cut or refused.

    with SteadyLoad(penstock.server, "chat", min_ready=2) as load:
        ...                          whatever is to go unnoticed; the load was whole before this line is reached
    load.assert_unhurt()             no stream cut, refused, short of a token or with one twice; ready never below
    print(load.figures)              what the run measured, one line

Each of the streams is a client of its own kind: as soon as one has ended the next one begins, through Envoy like any
client's, and nobody tries again. The engine is the stand-in, which numbers its words, so that a gap or a repeat shows;
TOKENS and its speed should make a stream last some seconds, less than `drain_timeout_s`. Beside the streams the
deployment is watched: how few ready replicas there were, and how long more ran than were wanted.

cut       the stream had begun, and then ended in any other way than with its last token
refused   the stream ended before its first token

The load runs in a thread of its own with its own event loop, so a test's own blocking calls do not hold it up.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any

import grpc

from penstock.v1 import deployment_pb2, deployment_pb2_grpc, inference_pb2, inference_pb2_grpc

STREAMS = 32
TOKENS = 60
"""At 20 a second: a stream of three seconds."""
DEADLINE_S = 60.0
BEGIN_WITHIN_S = 120.0
END_WITHIN_S = DEADLINE_S + 10.0
CONNECTIONS = 8
"""Of the load's: more than one, so that Envoy's workers share it."""
RETRY_S = 0.5
"""A watch that ends (the control API may be restarted under the load) is begun anew."""


@dataclass
class Figures:
    """What a load measured. Times in seconds."""

    took_s: float = 0.0
    streams: int = 0
    tokens: int = 0
    cut: int = 0
    refused: int = 0
    first_token_median_s: float = 0.0
    first_token_max_s: float = 0.0
    longest_gap_s: float = 0.0
    """Between two tokens of a stream."""
    wanted: int = 0
    """Replicas, when the load began."""
    least_ready: int = 0
    overlap_replica_s: float = 0.0
    """Sum over the run of the replicas beyond those wanted, each for as long as it was there."""

    def __str__(self) -> str:
        return (
            f"{self.took_s:.1f} s, {self.streams} streams, {self.tokens} tokens; {self.cut} cut,"
            f" {self.refused} refused;"
            f" first token median {1000 * self.first_token_median_s:.0f} ms, most {self.first_token_max_s:.2f} s,"
            f" longest gap {self.longest_gap_s:.2f} s; at least {self.least_ready} of {self.wanted} ready,"
            f" {self.overlap_replica_s:.0f} replica-seconds of overlap"
        )


@dataclass
class _Seen:
    """What the load's thread writes and others read when it has ended."""

    violations: list[str] = field(default_factory=list)
    first_tokens: list[float] = field(default_factory=list)
    begun: set[int] = field(default_factory=set)


class SteadyLoad:
    """A context manager. Enter: returns once every stream has had a token. Exit: the last streams end by themselves."""

    def __init__(
        self, server: str, model: str, *, streams: int = STREAMS, tokens: int = TOKENS, min_ready: int = 0
    ) -> None:
        """`min_ready`: fewer ready replicas of the deployment `model` than that are a violation, too."""
        self._server, self._model = server, model
        self._streams, self._tokens, self._min_ready = streams, tokens, min_ready
        self._seen = _Seen()
        self._stopping = threading.Event()
        self._all_begun = threading.Event()
        self._thread = threading.Thread(target=self._main, name="steady load", daemon=True)
        self._error: BaseException | None = None
        self._began = 0.0
        self._beyond, self._beyond_since = 0, 0.0
        self.figures = Figures()

    @property
    def violations(self) -> list[str]:
        """Each in a sentence with its time of day; complete once the load has ended."""
        return list(self._seen.violations)

    @property
    def whole(self) -> bool:
        """Nothing is violated so far."""
        return not self._seen.violations

    def assert_unhurt(self) -> None:
        """Fails with the first violations, if there were any."""
        found = self.violations
        assert not found, f"{len(found)} violations; {self.figures}\n" + "\n".join(found[:20])
        assert self.figures.streams >= self._streams, str(self.figures)

    def __enter__(self) -> SteadyLoad:
        self._began = time.monotonic()
        self._thread.start()
        begun = self._all_begun.wait(BEGIN_WITHIN_S)
        if not begun or self._error is not None:
            self._stopping.set()
            self._thread.join(END_WITHIN_S)
            raise AssertionError(
                f"not all of {self._streams} streams began: {self.violations[:5]}"
            ) from self._error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join(END_WITHIN_S)
        self.figures.took_s = time.monotonic() - self._began
        firsts = sorted(self._seen.first_tokens)
        if firsts:
            self.figures.first_token_median_s = firsts[len(firsts) // 2]
            self.figures.first_token_max_s = firsts[-1]
        if kind is None and self._error is not None:
            raise self._error
        if kind is None and self._thread.is_alive():
            raise AssertionError("the load does not end")

    # In the load's own thread ----------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:
            self._error = error
            self._all_begun.set()

    async def _run(self) -> None:
        channels = [
            # Connections that are not shared behind our back.
            grpc.aio.insecure_channel(self._server, options=[("grpc.use_local_subchannel_pool", 1)])
            for _ in range(CONNECTIONS)
        ]
        watch = asyncio.create_task(self._watch(channels[0]))
        try:
            clients: list[Coroutine[Any, Any, None]] = [
                self._client(channels[number % CONNECTIONS], number) for number in range(self._streams)
            ]
            await asyncio.gather(*clients)
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            self._count_overlap(time.monotonic())
            for channel in channels:
                await channel.close()

    async def _client(self, channel: grpc.aio.Channel, number: int) -> None:
        stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
        while not self._stopping.is_set():
            if not await self._stream(stub, number):
                await asyncio.sleep(RETRY_S)  # Whoever is refused does not knock a thousand times a second.

    async def _stream(self, stub: Any, number: int) -> bool:
        began, said = time.monotonic(), datetime.now().astimezone()
        last = began
        text, finish, ended = "", inference_pb2.FINISH_REASON_UNSPECIFIED, "OK"
        try:
            async for chunk in stub.StreamChat(self._request(), timeout=DEADLINE_S):
                now = time.monotonic()
                if not text:
                    self._seen.first_tokens.append(now - began)
                    self._seen.begun.add(number)
                    if len(self._seen.begun) == self._streams:
                        self._all_begun.set()
                else:
                    self.figures.longest_gap_s = max(self.figures.longest_gap_s, now - last)
                last = now
                for choice in chunk.choices:
                    text += choice.content
                    finish = choice.finish_reason or finish
        except grpc.aio.AioRpcError as error:
            ended = f"{error.code().name}: {error.details()}"
        numbers = [int(found) for found in re.findall(r":(\d+)", text)]
        self.figures.streams += 1
        self.figures.tokens += len(numbers)
        whole = numbers == list(range(self._tokens)) and finish == inference_pb2.FINISH_REASON_LENGTH
        if ended == "OK" and whole:
            return True
        if text:
            self.figures.cut += 1
        else:
            self.figures.refused += 1
        self._violated(
            f"the stream begun at {said:%H:%M:%S.%f} was {'cut' if text else 'refused'} after"
            f" {time.monotonic() - began:.2f} s and {len(numbers)} of {self._tokens} tokens: {ended}"
        )
        return False

    def _request(self) -> inference_pb2.StreamChatRequest:
        part = inference_pb2.ContentPart(text="one two three")
        message = inference_pb2.Message(role=inference_pb2.ROLE_USER, content=[part])
        sampling = inference_pb2.SamplingParameters(max_tokens=self._tokens, ignore_eos=True)
        return inference_pb2.StreamChatRequest(model=self._model, messages=[message], sampling=sampling)

    def _violated(self, sentence: str) -> None:
        if len(self._seen.violations) < 1000:  # A load that nobody serves makes thousands alike.
            self._seen.violations.append(sentence)

    async def _watch(self, channel: grpc.aio.Channel) -> None:
        """Follows the deployment's own counts, through outages of the control API."""
        stub: Any = deployment_pb2_grpc.DeploymentServiceStub(channel)
        while True:
            try:
                request = deployment_pb2.WatchDeploymentsRequest(name=self._model)
                async for event in stub.WatchDeployments(request):
                    if event.event in (
                        deployment_pb2.WATCH_EVENT_ADDED,
                        deployment_pb2.WATCH_EVENT_MODIFIED,
                    ):
                        self._counted(event.deployment.status)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(RETRY_S)

    def _counted(self, status: deployment_pb2.DeploymentStatus) -> None:
        figures = self.figures
        if not figures.wanted:
            figures.wanted = status.desired_replicas
            figures.least_ready = status.ready_replicas
        figures.least_ready = min(figures.least_ready, status.ready_replicas)
        self._count_overlap(time.monotonic())
        self._beyond = max(0, status.replicas - status.desired_replicas)
        if status.ready_replicas < self._min_ready:
            self._violated(
                f"at {datetime.now().astimezone():%H:%M:%S.%f} {status.ready_replicas} replicas are ready,"
                f" {self._min_ready} must be"
            )

    def _count_overlap(self, now: float) -> None:
        self.figures.overlap_replica_s += self._beyond * (now - self._beyond_since)
        self._beyond_since = now
