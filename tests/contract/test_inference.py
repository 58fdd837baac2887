"""What the inference API promises, held against agents with vLLM itself and with the stand-in: the two may not differ.

Each test says one fact of api/protos/penstock/v1/inference.proto. A class has one agent of each kind, spoken to as the
front door speaks to it; vLLM takes a minute to start, so the classes are few.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2

from penstock.v1 import inference_pb2 as pb
from penstock.v1 import inference_pb2_grpc
from penstock_runtime.engine_http import EngineError
from tests.contract.test_engine_http import ENGINES, NO_BLANKS, PARAMETERS, TOOLS_ARGS, core_of
from tests.engines import START_TIMEOUT_S, VLLM_ARGS, VLLM_ENV, make_tiny_lora, one_vllm
from tests.integration.agent_kit import (
    METADATA,
    AgentProcess,
    FakeControl,
    agent,
    attempt_folder,
    control_plane,
    rest_of,
    until,
)

TOOL = {"name": "weather", "parameters": PARAMETERS, "strict": True}
MODEL = "smollm2"
"""The name that agent_kit's agents serve."""
ADAPTER = "other/loud"
LOAD = "/v1/load_lora_adapter"
STOP = pb.FINISH_REASON_STOP
LENGTH = pb.FINISH_REASON_LENGTH


class Ready:
    """An agent that is ready, and a client of it."""

    def __init__(self, process: AgentProcess, channel: grpc.aio.Channel, control: FakeControl) -> None:
        self.process = process
        self.control = control
        self.channel = channel
        self.stub = inference_pb2_grpc.InferenceServiceStub(channel)

    async def chat(self, **fields: Any) -> pb.ChatResponse:
        """A whole answer: 8 tokens, always the same, unless `fields` say otherwise."""
        response: pb.ChatResponse = await self.stub.Chat(chat(pb.ChatRequest(), **fields), metadata=METADATA)
        return response

    async def stream(self, **fields: Any) -> list[pb.StreamChatResponse]:
        """All chunks of a stream of the same."""
        call = self.stub.StreamChat(chat(pb.StreamChatRequest(), **fields), metadata=METADATA)
        return [chunk async for chunk in call]

    async def kill_core(self) -> None:
        """What a crash does: vLLM's core is a process of its own; the stand-in plays it."""
        arguments = Path(f"/proc/{self.process.engine_pid}/cmdline").read_bytes()
        if b"penstock_runtime.standin" in arguments:
            await self.process.engine.post("/standin/faults", {"die_after_tokens": 1})
        else:
            os.kill(core_of(self.process.engine_pid), signal.SIGKILL)


def chat(request: Any, text: str = "tell me more", sampling: Any = None, **fields: Any) -> Any:
    """Fields in the contract's own names."""
    asked = {"max_tokens": 8, "temperature": 0, "ignore_eos": True, **(sampling or {})}
    base = {
        "model": MODEL,
        "messages": [{"role": "ROLE_USER", "content": [{"text": text}]}],
        "sampling": asked,
    }
    return json_format.ParseDict(base | fields, request)


def generate(request: Any, prompt: str = "tell me more", sampling: Any = None, **fields: Any) -> Any:
    asked = {"max_tokens": 8, "temperature": 0, "ignore_eos": True, **(sampling or {})}
    return json_format.ParseDict({"model": MODEL, "prompt": prompt, "sampling": asked, **fields}, request)


def text_of(chunks: list[pb.StreamChatResponse], choice: int = 0) -> str:
    return "".join(one.content for chunk in chunks for one in chunk.choices if one.index == choice)


def finished(chunks: list[pb.StreamChatResponse]) -> dict[int, int]:
    """The finish reason of each choice, which comes once."""
    ends = [(one.index, one.finish_reason) for chunk in chunks for one in chunk.choices if one.finish_reason]
    assert len(dict(ends)) == len(ends)
    return dict(ends)


class Failed:
    """A call that did not end well: status, words, and what the details hold."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code = error.code().name
        self.words = error.details() or ""
        self.trailers = dict(error.trailing_metadata() or ())
        self.reason, self.fields, self.usage = "", list[str](), pb.Usage()
        found = status_pb2.Status.FromString(self.trailers["grpc-status-details-bin"])
        for detail in found.details:
            info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
            if detail.Unpack(info):
                self.reason = info.reason
            elif detail.Unpack(request):
                self.fields = [each.field for each in request.field_violations]
            else:
                assert detail.Unpack(self.usage)


async def failure(call: Any, chunks: list[Any] | None = None) -> Failed:
    """How a call fails; what a stream brings before is added to `chunks`."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (rest_of(call, chunks) if hasattr(call, "read") else call)
    return Failed(caught.value)


@contextlib.asynccontextmanager
async def ready(
    request: pytest.FixtureRequest, folder: Path, *args: str, task: str, model: str, adapters: Any = ()
) -> AsyncIterator[Ready]:
    """An agent with the engine that the fixture's parameter names."""
    control = FakeControl()
    engine: dict[str, Any] = {"name": request.param, "args": list(args), "env": {}, "task": task}
    changes: dict[str, Any] = {"engine": engine, "model": {"adapters": adapters, "adapter_room": {}}}
    with contextlib.ExitStack() as stack:
        if request.param == "vllm":
            venv, path = request.getfixturevalue("engine_env"), request.getfixturevalue(model)
            engine |= {"args": [*VLLM_ARGS, *args], "env": VLLM_ENV}
            changes |= {
                "environment": {"venv": str(venv)},
                "model": {"path": str(path), "adapters": adapters, "adapter_room": {}},
            }
            changes["startup_timeout_s"] = START_TIMEOUT_S
            stack.enter_context(one_vllm())
        async with control_plane(control) as port, agent(attempt_folder(folder, port, **changes)) as process:
            ended = process.process
            await until(
                lambda: control.last("READY") or ended.returncode is not None, "READY", START_TIMEOUT_S
            )
            assert control.last("READY"), process.log
            async with grpc.aio.insecure_channel(f"127.0.0.1:{control.registered[0].port}") as channel:
                yield Ready(process, channel, control)


@pytest_asyncio.fixture(scope="class", loop_scope="class", params=ENGINES)
async def generating(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Ready]:
    args: tuple[str, ...] = TOOLS_ARGS
    if request.param == "standin":
        args = (*TOOLS_ARGS, "--max-model-len", "2048", "--tokens-per-second", "200")
    folder = tmp_path_factory.mktemp("agent")
    adapters = [{"name": ADAPTER, "path": str(make_tiny_lora(folder / "lora"))}]
    async with ready(request, folder, *args, task="generate", model="tiny_llama", adapters=adapters) as found:
        yield found


@pytest.mark.asyncio(loop_scope="class")
class TestGenerating:
    """An agent whose engine generates; at the end the engine's core is killed under a stream."""

    async def test_a_whole_answer_and_a_stream_say_the_same(self, generating: Ready) -> None:
        whole = await generating.chat()
        (choice,) = whole.choices
        assert len(choice.content.split()) == 8
        assert choice.finish_reason == LENGTH
        assert whole.id.startswith("chatcmpl-")
        assert whole.usage.completion_tokens == 8
        chunks = await generating.stream()
        assert text_of(chunks) == choice.content
        assert finished(chunks) == {0: LENGTH}
        assert [bool(chunk.id) for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
        assert [chunk.HasField("usage") for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        assert chunks[-1].usage == whole.usage

    async def test_continuations(self, generating: Ready) -> None:
        whole = await generating.stub.Generate(
            generate(pb.GenerateRequest(), sampling={"logprobs": 2}), metadata=METADATA
        )
        (choice,) = whole.choices
        assert len(choice.text.split()) == 8
        assert "".join(one.token for one in choice.logprobs) == choice.text
        call = generating.stub.StreamGenerate(generate(pb.StreamGenerateRequest()), metadata=METADATA)
        chunks = [chunk async for chunk in call]
        assert "".join(one.text for chunk in chunks for one in chunk.choices) == choice.text
        assert chunks[-1].choices[0].finish_reason == LENGTH
        assert chunks[-1].usage.completion_tokens == 8

    async def test_counts_are_trailing_metadata_too(self, generating: Ready) -> None:
        unary = generating.stub.Chat(chat(pb.ChatRequest()), metadata=METADATA)
        usage = (await unary).usage
        stream = generating.stub.StreamChat(chat(pb.StreamChatRequest()), metadata=METADATA)
        assert [chunk async for chunk in stream]
        for call in (unary, stream):
            trailers = dict(await call.trailing_metadata() or ())
            assert trailers["penstock-prompt-tokens"] == str(usage.prompt_tokens)
            assert trailers["penstock-completion-tokens"] == "8"

    async def test_choices_interleave_and_end_each_by_itself(self, generating: Ready) -> None:
        asked = {"n": 3, "temperature": 1, "seed": 5, "max_tokens": 20}
        whole = await generating.chat(sampling=asked)
        assert [choice.index for choice in whole.choices] == [0, 1, 2]
        chunks = await generating.stream(sampling=asked)
        assert finished(chunks) == {0: LENGTH, 1: LENGTH, 2: LENGTH}
        assert all(text_of(chunks, i) for i in range(3))
        assert chunks[-1].usage.completion_tokens == 60
        assert chunks[-1].usage == whole.usage

    async def test_the_same_seed_says_the_same(self, generating: Ready) -> None:
        one, two = [
            (await generating.chat(sampling={"temperature": 1, "seed": 7})).choices[0].content
            for _ in range(2)
        ]
        assert one == two

    async def test_a_stop_string_ends_the_text_before_it_and_is_told(self, generating: Ready) -> None:
        text = (await generating.chat()).choices[0].content
        stop = text.split()[4]
        (choice,) = (await generating.chat(sampling={"stop": [stop, "never"]})).choices
        assert choice.content == text[: text.index(stop)]
        assert (choice.finish_reason, choice.stop_reason) == (STOP, stop)
        chunks = await generating.stream(sampling={"stop": [stop]})
        assert text_of(chunks) == choice.content
        assert [one.stop_reason for chunk in chunks for one in chunk.choices if one.finish_reason] == [stop]

    @pytest.mark.parametrize("likeliest", [0, 3])
    async def test_log_probabilities(self, generating: Ready, likeliest: int) -> None:
        sampling = {"logprobs": likeliest}
        whole = (await generating.chat(sampling=sampling)).choices[0]
        chunks = await generating.stream(sampling=sampling)
        streamed = [one for chunk in chunks for choice in chunk.choices for one in choice.logprobs]
        for tokens in (list(whole.logprobs), streamed):
            assert "".join(one.token for one in tokens) == whole.content
            assert b"".join(one.utf8 for one in tokens).decode() == whole.content
            assert all(one.logprob <= 0 and len(one.top) == likeliest for one in tokens)

    @pytest.mark.parametrize("choice", [{"mode": "required"}, {"name": "weather"}])
    async def test_a_tool_call(self, generating: Ready, choice: dict[str, str]) -> None:
        asked: dict[str, Any] = {
            "tools": [TOOL],
            "tool_choice": choice,
            "sampling": {"max_tokens": 300, "ignore_eos": False},
            "engine_options": {"logit_bias": NO_BLANKS},
        }
        ending = pb.FINISH_REASON_TOOL_CALLS if "mode" in choice else STOP
        (whole,) = (await generating.chat(**asked)).choices
        (call,) = whole.tool_calls
        assert call.name == "weather"
        assert call.id
        assert json.loads(call.arguments).keys() == {"unit", "sunny"}
        assert whole.finish_reason == ending
        chunks = await generating.stream(**asked)
        parts = [one for chunk in chunks for choice in chunk.choices for one in choice.tool_calls]
        assert {one.index for one in parts} == {0}
        assert [one.name for one in parts if one.name] == ["weather"]
        assert len([one.id for one in parts if one.id]) == 1
        assert json.loads("".join(one.arguments for one in parts)).keys() == {"unit", "sunny"}
        assert finished(chunks) == {0: ending}

    async def test_the_answer_to_a_tool_call_is_talked_about(self, generating: Ready) -> None:
        arguments = '{"unit":"C","sunny":true}'
        messages = [
            {"role": "ROLE_USER", "content": [{"text": "what is it like"}]},
            {
                "role": "ROLE_ASSISTANT",
                "tool_calls": [{"id": "c1", "name": "weather", "arguments": arguments}],
            },
            {"role": "ROLE_TOOL", "content": [{"text": "21 degrees"}], "tool_call_id": "c1"},
        ]
        (choice,) = (await generating.chat(messages=messages, tools=[TOOL])).choices
        assert len(choice.content.split()) == 8

    @pytest.mark.parametrize(
        ("output", "fits"),
        [
            ({"choice": {"choices": ["red", "green"]}}, lambda text: text in ("red", "green")),
            ({"regex": "[ab]{3}"}, lambda text: len(text) == 3 and set(text) <= {"a", "b"}),
            ({"json_schema": PARAMETERS}, lambda text: json.loads(text).keys() == {"unit", "sunny"}),
            (
                {"json_schema_text": json.dumps(PARAMETERS)},
                lambda text: list(json.loads(text)) == ["unit", "sunny"],
            ),
        ],
    )
    async def test_an_answer_of_a_shape(self, generating: Ready, output: Any, fits: Any) -> None:
        sampling = {"max_tokens": 100, "ignore_eos": False}
        (choice,) = (await generating.chat(output=output, sampling=sampling)).choices
        assert fits(choice.content)
        assert choice.finish_reason == STOP
        request = generate(pb.GenerateRequest(), output=output, sampling=sampling)
        assert fits((await generating.stub.Generate(request, metadata=METADATA)).choices[0].text)

    async def test_further_options_of_the_engine(self, generating: Ready) -> None:
        text = (await generating.chat()).choices[0].content
        stop = text.split()[4]
        options = {"include_stop_str_in_output": True}
        (choice,) = (await generating.chat(sampling={"stop": [stop]}, engine_options=options)).choices
        assert choice.content == text[: text.index(stop) + len(stop)]

    async def test_an_adapter_is_a_model_of_its_own(self, generating: Ready) -> None:
        base = await generating.chat()
        other = await generating.chat(model=ADAPTER)
        assert other.model == ADAPTER
        assert other.choices[0].content != base.choices[0].content
        assert other.choices[0].finish_reason == LENGTH
        assert text_of(await generating.stream(model=ADAPTER)) == other.choices[0].content
        assert (await generating.chat()).choices[0].content == base.choices[0].content
        failed = await failure(generating.stub.Chat(chat(pb.ChatRequest(), model="none"), metadata=METADATA))
        assert (failed.code, failed.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
        assert ADAPTER in failed.words

    async def test_adapters_come_and_go_while_it_runs(self, generating: Ready, tmp_path: Path) -> None:
        control, later = generating.control, make_tiny_lora(tmp_path / "later")
        (first,) = control.reports[-1].adapters
        assert (first.name, first.loaded, first.message) == (ADAPTER, True, "")
        loud = (await generating.chat(model=ADAPTER)).choices[0].content
        control.adapters = {ADAPTER: Path(first.path), "late": later, "none": tmp_path / "none"}
        await until(lambda: control.standings().get("late", ("", False))[1], "it is loaded", 60)
        assert (await generating.chat(model="late")).choices[0].content == loud
        _, loaded, message = control.standings()["none"]
        assert not loaded
        assert "adapter_config.json" in message
        control.adapters = {ADAPTER: Path(first.path)}
        await until(lambda: "'late' is unloaded" in generating.process.log, "it is unloaded", 60)
        failed = await failure(generating.stub.Chat(chat(pb.ChatRequest(), model="late"), metadata=METADATA))
        assert (failed.code, failed.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
        assert set(control.standings()) == {ADAPTER}
        # The same once more, as somebody may who thinks better of it.
        control.adapters = {ADAPTER: Path(first.path), "late": later}
        await until(lambda: control.standings().get("late", ("", False))[1], "it is loaded again", 60)
        assert (await generating.chat(model="late")).choices[0].content == loud
        assert (await generating.chat(model=ADAPTER)).choices[0].content == loud
        control.adapters = {ADAPTER: Path(first.path)}
        log = generating.process
        await until(lambda: log.log.count("'late' is unloaded") == 2, "it is unloaded again", 60)

    async def test_what_the_engine_says_of_adapters(self, generating: Ready, tmp_path: Path) -> None:
        """The words and statuses that the agent, and whoever reads what it reports, lives by."""
        engine = generating.process.engine
        wide = make_tiny_lora(tmp_path / "wide")
        config = json.loads((wide / "adapter_config.json").read_text())
        (wide / "adapter_config.json").write_text(json.dumps(config | {"r": 64}))
        (there,) = [one for one in generating.control.reports[-1].adapters if one.name == ADAPTER]
        for name, path, status, words in (
            (ADAPTER, there.path, 400, "has already been loaded"),
            (MODEL, there.path, 400, "conflicts with a served base model"),
            ("none", tmp_path / "none", 404, "No adapter found for <path>"),
            ("wide", wide, 500, "LoRA rank 64 is greater than max_lora_rank 16."),
        ):
            with pytest.raises(EngineError, match=re.escape(words)) as caught:
                await engine.order(LOAD, {"lora_name": name, "lora_path": str(path)}, 60)
            assert caught.value.status == status
        with pytest.raises(EngineError, match="cannot be found") as caught:
            await engine.order("/v1/unload_lora_adapter", {"lora_name": "none"}, 60)
        assert caught.value.status == 404
        listed = json.loads((await engine.get("/v1/models", 5))[1])["data"]
        assert {card["id"]: (card["root"], card["parent"]) for card in listed if card["parent"]} == {
            ADAPTER: (there.path, MODEL)
        }

    async def test_tokens_and_back(self, generating: Ready) -> None:
        tokens = await generating.stub.Tokenize(
            pb.TokenizeRequest(model=MODEL, text="tell me more"), metadata=METADATA
        )
        assert tokens.max_model_len == 2048
        back = await generating.stub.Detokenize(
            pb.DetokenizeRequest(model=MODEL, tokens=tokens.tokens), metadata=METADATA
        )
        assert back.text == "tell me more"
        message = pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text="tell me more")])
        chat_of = await generating.stub.Tokenize(
            pb.TokenizeRequest(model=MODEL, messages=[message]), metadata=METADATA
        )
        assert len(chat_of.tokens) >= len(tokens.tokens)

    @pytest.mark.parametrize(
        ("fields", "field"),
        [
            ({"messages": []}, "messages"),
            ({"sampling": {"max_tokens": -1}}, "sampling.max_tokens"),
            ({"sampling": {"temperature": -1}}, "sampling.temperature"),
            ({"sampling": {"n": 0}}, "sampling.n"),
            ({"tool_choice": {"mode": "perhaps"}}, "tool_choice.mode"),
            ({"engine_options": {"max_tokens": 5}}, "engine_options.max_tokens"),
            ({"output": {"json_schema_text": "{"}}, "output.json_schema_text"),
            # The engine's own refusals.
            ({"sampling": {"max_tokens": 5000}}, "sampling.max_tokens"),
            ({"tools": [TOOL], "tool_choice": {"name": "other"}}, "tool_choice"),
        ],
    )
    async def test_a_field_at_fault_is_named(self, generating: Ready, fields: Any, field: str) -> None:
        whole = await failure(generating.stub.Chat(chat(pb.ChatRequest(), **fields), metadata=METADATA))
        request = chat(pb.StreamChatRequest(), **fields)
        streamed = await failure(generating.stub.StreamChat(request, metadata=METADATA))
        for failed in (whole, streamed):
            assert (failed.code, failed.fields) == ("INVALID_ARGUMENT", [field]), failed.words

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"text": "a " * 5000}, "maximum context length is 2048 tokens"),
            ({"sampling": {"n": 2}}, "n must be 1 when using greedy sampling"),
            ({"output": {"regex": "(("}}, "the engine says"),
            ({"output": {"json_schema": {"type": "nope"}}}, "the engine says"),
            (
                {"messages": [{"role": "ROLE_USER", "content": [{"image": {"data": "AAAA"}}]}]},
                "is not a multimodal model",
            ),
        ],
    )
    async def test_the_engine_refuses_in_its_own_words(
        self, generating: Ready, fields: Any, words: str
    ) -> None:
        failed = await failure(generating.stub.Chat(chat(pb.ChatRequest(), **fields), metadata=METADATA))
        assert (failed.code, failed.reason) == ("INVALID_ARGUMENT", "ENGINE_REFUSED")
        assert words in failed.words

    @pytest.mark.parametrize("method", ["Chat", "StreamChat"])
    async def test_what_is_no_message(self, generating: Ready, method: str) -> None:
        whole = chat(pb.ChatRequest(), text="XXXX").SerializeToString()
        for data, field in (
            (whole.replace(b"XXXX", b"X\xffXX"), "messages[0].content[0].text"),
            (whole[:-3], ""),
        ):
            ways = {"Chat": generating.channel.unary_unary, "StreamChat": generating.channel.unary_stream}
            call: Any = ways[method](f"/penstock.v1.InferenceService/{method}")
            failed = await failure(call(data, metadata=METADATA))
            assert (failed.code, failed.fields) == ("INVALID_ARGUMENT", [field] if field else [])

    async def test_a_pooling_call_is_not_supported(self, generating: Ready) -> None:
        request = pb.EmbedRequest(model=MODEL, inputs=["a"])
        failed = await failure(generating.stub.Embed(request, metadata=METADATA))
        assert (failed.code, failed.reason) == ("UNIMPLEMENTED", "NOT_SUPPORTED")

    async def test_deadline_and_cancellation_reach_the_engine(self, generating: Ready) -> None:
        long = {"max_tokens": 1900}
        stub = generating.stub
        for end in ("deadline", "cancel", "unary"):
            if end == "unary":
                request = chat(pb.ChatRequest(), sampling=long)
                error = await failed_code(stub.Chat(request, metadata=METADATA, timeout=0.5))
                assert error == "DEADLINE_EXCEEDED"
            else:
                request = chat(pb.StreamChatRequest(), sampling=long)
                call = stub.StreamChat(request, metadata=METADATA, timeout=1 if end == "deadline" else None)
                if end == "cancel":
                    await call.read()
                    assert await generating.process.running() == 1
                    call.cancel()
                else:
                    assert await failed_code(rest_of(call)) == "DEADLINE_EXCEEDED"
            left = time.monotonic()
            while await generating.process.running():
                assert time.monotonic() < left + 8, "the stand-in would take two seconds more"

    async def test_an_engine_that_dies_counts_what_it_made(self, generating: Ready) -> None:
        call = generating.stub.StreamChat(
            chat(pb.StreamChatRequest(), sampling={"max_tokens": 1900}), metadata=METADATA
        )
        chunks: list[Any] = [await call.read() for _ in range(3)]
        await generating.kill_core()
        failed = await failure(call, chunks)
        assert failed.code == "UNAVAILABLE"
        made = len(text_of(chunks).split())
        assert failed.words.endswith(f"; {made} tokens had been made")
        assert failed.usage.completion_tokens == made
        assert failed.trailers["penstock-completion-tokens"] == str(made)
        assert finished(chunks) == {}
        assert await generating.process.ended() not in (0, None)


async def failed_code(awaitable: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return caught.value.code().name


CAT, CAR = "A kitten sleeps on the sofa.", "The engine of the truck broke down."


@pytest_asyncio.fixture(scope="class", loop_scope="class", params=ENGINES)
async def pooling(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Ready]:
    folder = tmp_path_factory.mktemp("agent")
    async with ready(request, folder, "--max-model-len", "256", task="embed", model="minilm") as found:
        yield found


@pytest.mark.asyncio(loop_scope="class")
class TestPooling:
    """An agent whose engine embeds, scores and reranks."""

    async def test_embeddings(self, pooling: Ready) -> None:
        request = pb.EmbedRequest(model=MODEL, inputs=[CAT, CAR, CAT])
        call = pooling.stub.Embed(request, metadata=METADATA)
        answer = await call
        vectors = [list(each.values) for each in answer.embeddings]
        assert [len(vector) for vector in vectors] == [384] * 3
        assert sum(number * number for number in vectors[0]) == pytest.approx(1, abs=1e-3)
        assert vectors[0] == pytest.approx(vectors[2], abs=1e-4)
        assert vectors[0] != pytest.approx(vectors[1], abs=1e-2)
        assert answer.usage.prompt_tokens > 0
        trailers = dict(await call.trailing_metadata() or ())
        assert trailers["penstock-prompt-tokens"] == str(answer.usage.prompt_tokens)

    async def test_scores_and_ranks(self, pooling: Ready) -> None:
        scores = await pooling.stub.Score(
            pb.ScoreRequest(model=MODEL, query=CAT, documents=[CAR, CAT]), metadata=METADATA
        )
        assert scores.scores[1] == pytest.approx(1, abs=1e-2)
        assert scores.scores[0] < 0.9
        ranked = await pooling.stub.Rerank(
            pb.RerankRequest(model=MODEL, query=CAT, documents=[CAR, CAT]), metadata=METADATA
        )
        assert [each.index for each in ranked.documents] == [1, 0]
        assert [each.score for each in ranked.documents] == pytest.approx(scores.scores[::-1], abs=1e-4)
        best = await pooling.stub.Rerank(
            pb.RerankRequest(model=MODEL, query=CAT, documents=[CAR, CAT], top_n=1), metadata=METADATA
        )
        assert [each.index for each in best.documents] == [1]

    async def test_what_a_text_means_counts(self, pooling: Ready, request: pytest.FixtureRequest) -> None:
        """For the real model only: the stand-in knows no meaning."""
        if request.node.callspec.params["pooling"] == "standin":
            return
        documents = ["A cat is napping on a couch.", CAR, "Stock prices fell on Monday."]
        ranked = await pooling.stub.Rerank(
            pb.RerankRequest(model=MODEL, query=CAT, documents=documents), metadata=METADATA
        )
        assert ranked.documents[0].index == 0
        assert ranked.documents[0].score > 0.5 > ranked.documents[1].score

    async def test_tokens_and_back(self, pooling: Ready) -> None:
        asked = pb.TokenizeRequest(model=MODEL, text="a b", add_special_tokens=False)
        tokens = (await pooling.stub.Tokenize(asked, metadata=METADATA)).tokens
        assert len(tokens) == 2
        back = pb.DetokenizeRequest(model=MODEL, tokens=tokens)
        assert (await pooling.stub.Detokenize(back, metadata=METADATA)).text == "a b"

    @pytest.mark.parametrize(
        ("fields", "field"),
        [
            ({"inputs": []}, ["inputs"]),
            ({"inputs": ["a"], "dimensions": 0}, ["dimensions"]),
            ({"inputs": ["a " * 300]}, None),
            ({"inputs": ["a"], "dimensions": 5}, None),
        ],
    )
    async def test_what_cannot_be_embedded(
        self, pooling: Ready, fields: Any, field: list[str] | None
    ) -> None:
        failed = await failure(pooling.stub.Embed(pb.EmbedRequest(model=MODEL, **fields), metadata=METADATA))
        assert failed.code == "INVALID_ARGUMENT"
        assert field is None or failed.fields == field

    async def test_it_does_not_generate(self, pooling: Ready) -> None:
        request = chat(pb.StreamChatRequest())
        failed = await failure(pooling.stub.StreamChat(request, metadata=METADATA))
        assert (failed.code, failed.reason) == ("UNIMPLEMENTED", "NOT_SUPPORTED")
