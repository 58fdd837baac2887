"""Steady streams to the deployment that is kept stable: none may be cut, refused, or miss a token.

The stand-in numbers its words, so a gap or a repeat shows. Only what carries the stream by design is spared by
the run (Envoy, the replica's own node and job); everything else may die under it.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import grpc

from penstock.v1 import inference_pb2, inference_pb2_grpc
from tests.chaos.worker import Worker

TOKENS = 80
"""At the stable deployment's 20 a second: a stream of four seconds."""
DEADLINE_S = 60


class Streams(Worker):
    """One stream after another, over one connection. `violations`: each that was not whole."""

    def __init__(self, server: str, model: str, number: int, seed: int) -> None:
        super().__init__(f"streams-{number}", seed)
        channel: Any = grpc.insecure_channel(server)
        self._channel = channel
        self._stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
        self._model = model
        self.violations: list[str] = []

    def step(self) -> None:
        began = datetime.now().astimezone()
        text, finish, ended = "", inference_pb2.FINISH_REASON_UNSPECIFIED, "OK"
        try:
            for chunk in self._stub.StreamChat(self._request(), timeout=DEADLINE_S):
                for choice in chunk.choices:
                    text += choice.content
                    finish = choice.finish_reason or finish
        except grpc.RpcError as error:
            ended = f"{error.code().name}: {error.details()}"
        numbers = [int(number) for number in re.findall(r":(\d+)", text)]
        self.counts["streams"] += 1
        self.counts["tokens"] += len(numbers)
        whole = numbers == list(range(TOKENS)) and finish == inference_pb2.FINISH_REASON_LENGTH
        if ended != "OK" or not whole:
            self.violations.append(
                f"the stream begun at {began:%H:%M:%S.%f} ended with {ended} after {len(numbers)} of {TOKENS} tokens"
            )
            self.pause(0.5, 0.5)

    def _request(self) -> inference_pb2.StreamChatRequest:
        message = inference_pb2.Message(
            role=inference_pb2.ROLE_USER, content=[inference_pb2.ContentPart(text="one two three")]
        )
        sampling = inference_pb2.SamplingParameters(max_tokens=TOKENS, ignore_eos=True)
        return inference_pb2.StreamChatRequest(model=self._model, messages=[message], sampling=sampling)

    def finish(self) -> None:
        super().finish()
        self._channel.close()
