"""The agent as its own process, between a control plane of a few lines and the stand-in engine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from penstock.core.leaving import DRAIN_GRACE_S
from penstock.v1 import inference_pb2 as pb
from penstock_runtime.in_engine.penstock_engine_door import KEY_HEADER
from penstock_runtime.ports import HeldPort
from tests.integration.agent_kit import (
    ATTEMPT,
    ATTEMPT_SECRET,
    ENGINE_KEY,
    METADATA,
    FakeControl,
    agent,
    attempt_folder,
    chat,
    client,
    control_plane,
    environment,
    environments,
    failed,
    health,
    ready_agent,
    rest_of,
    standin,
    text_of,
    until,
)
from tests.patience import PATIENCE_S
from tests.stalls import Stalls

LINGERS_S = 100.0
"""How long a dead engine's process lives on: longer than anything is waited for."""


@pytest.fixture
def control() -> FakeControl:
    return FakeControl()


@pytest.fixture
def held() -> Iterator[HeldPort]:
    """A port where nobody listens but who is told its number."""
    port = HeldPort("127.0.0.1")
    yield port
    port.close()


def gone(pid: int) -> bool:
    """Whether the process has ended, be it that nobody has asked for its exit code yet."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"


async def test_from_start_to_a_streamed_answer(tmp_path: Path, control: FakeControl) -> None:
    args = standin("--start-delay-s", "0.3", "--first-token-s", "0.05", "--tokens-per-second", "200")
    async with ready_agent(tmp_path, control, engine=args) as (_, stub):
        [registered] = control.registered
        assert (registered.attempt, registered.job_id, registered.restart_count) == (ATTEMPT, 4242, 1)
        assert (registered.host, control.secrets) == ("127.0.0.1", {ATTEMPT_SECRET})
        assert control.phases() == ["STARTING", "READY"]
        ready = control.last("READY")
        assert ready is not None
        assert 0.3 < ready.ready_after_s < PATIENCE_S
        # The proof of readiness is a token that this engine made.
        assert ready.load.generation_tokens_total == 1

        call = stub.StreamChat(chat("tell me more", max_tokens=20), metadata=METADATA)
        chunks = [chunk async for chunk in call]
        assert text_of(chunks) == " ".join(f"{['tell', 'me', 'more'][i % 3]}:{i}" for i in range(20))
        assert await call.code() is grpc.StatusCode.OK
        assert chunks[0].id.startswith("chatcmpl-")
        assert [chunk.id for chunk in chunks[1:]] == [""] * (len(chunks) - 1)
        assert chunks[-1].choices[0].finish_reason == pb.FINISH_REASON_LENGTH
        assert chunks[-1].usage.completion_tokens == 20
        assert not any(chunk.HasField("usage") for chunk in chunks[:-1])

        # Load goes with each report, every report_interval_s.
        await until(
            lambda: control.reports[-1].load.generation_tokens_total == 21, "load with the stream in it"
        )


async def test_every_call_of_a_generating_engine(tmp_path: Path, control: FakeControl) -> None:
    async with ready_agent(tmp_path, control) as (_, stub):
        sampling = pb.SamplingParameters(max_tokens=4, logprobs=1)
        messages = [pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text="a b")])]
        whole = await stub.Chat(
            pb.ChatRequest(model="chatty", messages=messages, sampling=sampling), metadata=METADATA
        )
        assert whole.choices[0].content == "a:0 b:1 a:2 b:3"
        assert whole.choices[0].finish_reason == pb.FINISH_REASON_LENGTH
        assert [len(token.top) for token in whole.choices[0].logprobs] == [1] * 4
        assert whole.usage.completion_tokens == 4

        text = await stub.Generate(
            pb.GenerateRequest(model="smollm2", prompt="x", sampling=sampling), metadata=METADATA
        )
        assert text.choices[0].text == "x:0 x:1 x:2 x:3"
        assert len(text.choices[0].logprobs) == 4

        call = stub.StreamGenerate(
            pb.StreamGenerateRequest(model="smollm2", prompt="x", sampling=sampling), metadata=METADATA
        )
        parts = [chunk async for chunk in call]
        assert "".join(choice.text for part in parts for choice in part.choices) == "x:0 x:1 x:2 x:3"
        assert sum(len(choice.logprobs) for part in parts for choice in part.choices) == 4
        assert parts[-1].usage.completion_tokens == 4

        tokens = await stub.Tokenize(pb.TokenizeRequest(model="smollm2", text="a b c"), metadata=METADATA)
        assert (len(tokens.tokens), tokens.max_model_len) == (3, 4096)

        for refused, code, words in [
            (stub.StreamChat(chat(model="other"), metadata=METADATA), "NOT_FOUND", "'other' is not served here"),
            (stub.Embed(pb.EmbedRequest(model="smollm2", inputs=["a"]), metadata=METADATA),
             "UNIMPLEMENTED", "only generates text"),
            (stub.ListModels(pb.ListModelsRequest(), metadata=METADATA), "UNIMPLEMENTED", "control plane"),
            (stub.StreamChat(chat(max_tokens=100_000), metadata=METADATA), "INVALID_ARGUMENT", "engine says"),
            (stub.StreamChat(pb.StreamChatRequest(model="smollm2"), metadata=METADATA),
             "INVALID_ARGUMENT", "messages: must contain at least 1 item"),
        ]:  # fmt: skip
            status, details = await failed(refused)
            assert (status, words in details) == (code, True), details


async def test_images_reach_the_engine_as_bytes_or_urls(tmp_path: Path, control: FakeControl) -> None:
    async with ready_agent(tmp_path, control, engine=standin("--takes-images")) as (_, stub):
        parts = [
            pb.ContentPart(text="see"),
            pb.ContentPart(image=pb.Image(mime_type="image/jpeg", data=b"\xff\xd8\xff")),
            pb.ContentPart(image_url="https://example.org/a.png"),
            pb.ContentPart(image_url="data:image/png;base64,AAECAw=="),
        ]
        request = pb.ChatRequest(
            model="smollm2",
            messages=[pb.Message(role=pb.ROLE_USER, content=parts)],
            sampling=pb.SamplingParameters(max_tokens=4),
        )
        said = (await stub.Chat(request, metadata=METADATA)).choices[0].content
        # The stand-in says an image as its type and its size.
        assert said == "see:0 image/jpeg,3:1 https://example.org/a.png:2 image/png,4:3"
        request.messages[0].content.add(image_url="file:///etc/passwd")
        status, details = await failed(stub.Chat(request, metadata=METADATA))
        assert status == "INVALID_ARGUMENT"
        assert details.startswith("messages[0].content[4].image_url: must be an http, https or data URL")


async def test_an_embedding_engine(tmp_path: Path, control: FakeControl) -> None:
    async with ready_agent(tmp_path, control, engine=standin(task="embed")) as (_, stub):
        answer = await stub.Embed(pb.EmbedRequest(model="smollm2", inputs=["a", "b"]), metadata=METADATA)
        assert [len(each.values) for each in answer.embeddings] == [384, 384]
        scores = await stub.Score(
            pb.ScoreRequest(model="smollm2", query="a", documents=["a", "b"]), metadata=METADATA
        )
        assert scores.scores[0] > scores.scores[1]
        ranked = await stub.Rerank(
            pb.RerankRequest(model="smollm2", query="b", documents=["a", "b"], top_n=1), metadata=METADATA
        )
        assert [document.index for document in ranked.documents] == [1]
        status, details = await failed(stub.StreamChat(chat(), metadata=METADATA))
        assert (status, "only embeds" in details) == ("UNIMPLEMENTED", True)


async def test_only_the_deployments_secret_opens(tmp_path: Path, control: FakeControl) -> None:
    async with ready_agent(tmp_path, control) as (_, stub):
        wrong = (("x-penstock-deployment-secret", "guess"),)
        for metadata in ((), wrong, (*METADATA, *wrong)):
            status, details = await failed(stub.StreamChat(chat(), metadata=metadata))
            assert status == "UNAUTHENTICATED"
            assert "smollm2" not in details
        port = control.registered[0].port
        assert await health(port) == "SERVING"
        assert await health(port, METADATA) == "SERVING"
        # A health check for another deployment, which had this port before, does not find this one healthy.
        assert await health(port, wrong) == "UNAUTHENTICATED"


async def test_the_engine_lets_in_its_agent_and_its_gateways_only(
    tmp_path: Path, control: FakeControl
) -> None:
    async with ready_agent(tmp_path, control) as (process, _):
        folder = process.door_folder
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "door.json").stat().st_mode) == 0o600
        keys = json.loads((folder / "door.json").read_text())
        command = Path(f"/proc/{process.engine_pid}/cmdline").read_bytes().decode()
        shown = command + str(environment(process.engine_pid))
        assert not any(secret in shown for secret in (ATTEMPT_SECRET, keys["agent"], ENGINE_KEY))
        port = control.registered[0].engine_port
        assert port == process.engine_port
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            for path in ("/health", "/metrics", "/v1/models", "/v1/load_lora_adapter", "/penstock/door", "/"):
                for wrong in (
                    {},
                    {KEY_HEADER: ""},
                    {KEY_HEADER: ENGINE_KEY[:-1]},
                    {KEY_HEADER: ATTEMPT_SECRET},
                ):
                    answer = await client.get(path, headers=wrong)
                    assert answer.status_code == 401, path
                    assert answer.json()["error"]["code"] == "invalid_api_key"
            assert (await client.get("/v1/models", headers={KEY_HEADER: ENGINE_KEY})).status_code == 200
            # Only the agent is told how busy the door is.
            assert (await client.get("/penstock/door", headers={KEY_HEADER: ENGINE_KEY})).status_code == 404
        process.signal(signal.SIGTERM)
        control.drain_may_end.set()
        assert await process.ended() == 0
        assert not folder.exists()


async def test_a_drain_lets_rest_finish_and_takes_no_more_of_it(tmp_path: Path, control: FakeControl) -> None:
    engine = standin("--tokens-per-second", "40", "--answer-tokens", "60")
    control.drain_may_end.set()
    async with ready_agent(tmp_path, control, engine=engine, drain_timeout_s=PATIENCE_S) as (process, _):
        # It goes on until all of the drain is seen.
        await process.engine.post("/standin/faults", {"hang_after_tokens": 5})
        base = f"http://127.0.0.1:{process.engine_port}"
        asked = {"model": "smollm2", "prompt": "a b", "stream": True, "max_tokens": 100}
        async with httpx.AsyncClient(base_url=base, headers={KEY_HEADER: ENGINE_KEY}) as client:
            async with client.stream("POST", "/v1/completions", json=asked) as stream:
                lines = stream.aiter_lines()
                await anext(lines)
                process.signal(signal.SIGTERM)
                await until(lambda: control.last("DRAINING"), "DRAINING")
                assert "with 1 running requests" in control.last("DRAINING").message  # type: ignore[union-attr]
                await until(lambda: control.drains, "Drain")

                async def refused() -> bool:
                    short = {**asked, "stream": False, "max_tokens": 1}
                    answer = await client.post("/v1/completions", json=short)
                    return answer.status_code == 503 and answer.headers["x-penstock-answered-by"] == "door"

                while not await refused():
                    pass
                await process.engine.post("/standin/faults", {"hang_after_tokens": None})
                rest = [line async for line in lines]
        assert rest[-2:] == ["data: [DONE]", ""]
        assert await process.ended() == 0
        assert "0 requests were cut" in process.log


async def test_a_client_who_leaves_frees_his_slot(tmp_path: Path, control: FakeControl) -> None:
    engine = standin("--tokens-per-second", "50", "--answer-tokens", "100000", "--max-model-len", "1000000")
    async with ready_agent(tmp_path, control, engine=engine) as (process, stub):
        took_s, asking_s = [], []
        for _ in range(5):
            call = stub.StreamChat(chat(max_tokens=100_000), metadata=METADATA)
            await call.read()
            assert await process.running() == 1
            asked = time.monotonic()
            assert await process.running() == 1
            left = time.monotonic()
            call.cancel()
            while await process.running():
                assert time.monotonic() < left + PATIENCE_S
            took_s.append(time.monotonic() - left)
            asking_s.append(left - asked)
        # Busy cores are slow to answer, too.
        assert sorted(took_s)[2] < 0.1 + 5 * sorted(asking_s)[2], (took_s, asking_s)


async def test_a_deadline_frees_the_slot_too(tmp_path: Path, control: FakeControl) -> None:
    async with ready_agent(tmp_path, control) as (process, stub):
        await process.engine.post("/standin/faults", {"hang_after_tokens": 2})
        call = stub.StreamChat(chat(max_tokens=9), metadata=METADATA, timeout=0.5)
        status, _ = await failed(call)
        assert status == "DEADLINE_EXCEEDED"
        end = time.monotonic() + PATIENCE_S
        while await process.running():
            assert time.monotonic() < end


async def test_a_slow_client_gets_everything(tmp_path: Path, control: FakeControl) -> None:
    engine = standin("--answer-tokens", "30000", "--max-model-len", "1000000")
    async with ready_agent(tmp_path, control, engine=engine) as (process, stub):
        call = stub.StreamChat(chat("w", max_tokens=30_000), metadata=METADATA)
        chunks: list[Any] = [await call.read()]
        # Nothing is read until all is made: what arrives fills the transport, and then the pending chunk.
        while await process.running():
            await asyncio.sleep(0.01)
        chunks += await rest_of(call)
        assert text_of(chunks) == " ".join(f"w:{i}" for i in range(30_000))
        assert chunks[-1].usage.completion_tokens == 30_000
        assert len(chunks) < 15_000


async def test_an_engine_that_dies_fails_its_streams_and_the_job(
    tmp_path: Path, control: FakeControl
) -> None:
    engine = standin("--tokens-per-second", "100", "--exit-linger-s", "0.1")
    async with ready_agent(tmp_path, control, engine=engine) as (process, stub):
        port = control.registered[0].port
        await process.engine.post("/standin/faults", {"die_after_tokens": 10})
        call = stub.StreamChat(chat("w", max_tokens=30), metadata=METADATA)
        chunks: list[pb.StreamChatResponse] = []
        status, details = await failed(call, chunks)
        assert status == "UNAVAILABLE", details
        assert text_of(chunks) == " ".join(f"w:{i}" for i in range(10))
        assert details.endswith("; 10 tokens had been made")
        trailers = dict(await call.trailing_metadata() or ())
        assert (trailers["penstock-prompt-tokens"], trailers["penstock-completion-tokens"]) == ("5", "10")

        # vLLM exits with 0 then, and Slurm must not hear that.
        assert await process.ended() == 70
        last = control.last("FAILED")
        assert last is not None
        assert last.exit_code == 70
        assert "exit code 0" in last.message
        assert "EngineCore encountered an issue" in last.last_words
        assert control.phases() == ["STARTING", "READY", "FAILED"]
        assert await health(port) == "UNAVAILABLE"


async def test_a_dead_engine_is_given_up_though_its_process_lives_on(
    tmp_path: Path, control: FakeControl
) -> None:
    engine = standin("--tokens-per-second", "100", "--exit-linger-s", str(LINGERS_S))
    async with ready_agent(tmp_path, control, engine=engine) as (process, stub):
        pid = process.engine_pid
        await process.engine.post("/standin/faults", {"die_after_tokens": 1})
        status, details = await failed(stub.StreamChat(chat(max_tokens=5), metadata=METADATA))
        assert status == "UNAVAILABLE", details
        with Stalls() as stalls:
            died = time.monotonic()
            report = await until(lambda: control.last("FAILED"), "FAILED")
            assert time.monotonic() - died < 5 + stalls.total_s, "long before its process ends"
        assert "the engine is dead" in report.message
        assert "EngineCore encountered an issue" in report.last_words
        assert await process.ended() == 70
        assert gone(pid)


async def test_an_engine_that_is_killed(tmp_path: Path, control: FakeControl) -> None:
    engine = standin("--tokens-per-second", "20")
    async with ready_agent(tmp_path, control, engine=engine) as (process, stub):
        call = stub.StreamChat(chat("w", max_tokens=30), metadata=METADATA)
        await call.read()
        os.kill(process.engine_pid, signal.SIGKILL)
        status, details = await failed(call)
        assert status == "UNAVAILABLE", details
        assert await process.ended() == 128 + signal.SIGKILL
        last = control.last("FAILED")
        assert last is not None
        assert "killed by SIGKILL" in last.message


@pytest.mark.parametrize(
    ("fault", "code"),
    [("cut_after_tokens", "UNAVAILABLE"), ("fail_requests", "INTERNAL")],
)
async def test_one_request_that_fails_harms_no_other(
    tmp_path: Path, control: FakeControl, fault: str, code: str
) -> None:
    engine = standin("--tokens-per-second", "200")
    async with ready_agent(tmp_path, control, engine=engine) as (process, stub):
        await process.engine.post("/standin/faults", {fault: 1})
        status, _ = await failed(stub.StreamChat(chat(max_tokens=5), metadata=METADATA))
        assert status == code
        await process.engine.post("/standin/faults", {"cut_after_tokens": None})
        chunks = [chunk async for chunk in stub.StreamChat(chat(max_tokens=5), metadata=METADATA)]
        assert chunks[-1].usage.completion_tokens == 5
        assert control.phases()[-1] == "READY"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
async def test_a_signal_drains(tmp_path: Path, control: FakeControl, number: signal.Signals) -> None:
    engine = standin("--tokens-per-second", "40", "--answer-tokens", "80")
    async with ready_agent(tmp_path, control, engine=engine, drain_timeout_s=PATIENCE_S) as (process, stub):
        pid, port = process.engine_pid, control.registered[0].port
        # It goes on until all of the drain is seen.
        await process.engine.post("/standin/faults", {"hang_after_tokens": 5})
        call = stub.StreamChat(chat("w", max_tokens=80), metadata=METADATA)
        chunks: list[Any] = [await call.read()]
        process.signal(number)
        await until(lambda: control.drains, "Drain")
        assert control.drains[0].message == number.name
        # As long as the front door has not said that it sends no more, what it sends is served.
        assert await health(port) == "NOT_SERVING"
        late = [chunk async for chunk in stub.StreamChat(chat("v", max_tokens=2), metadata=METADATA)]
        assert text_of(late) == "v:0 v:1"
        process.signal(number)  # a second one changes nothing
        control.drain_may_end.set()

        # And then it is not: each call until then is served.
        details = ""
        while not details:
            try:
                await stub.Tokenize(pb.TokenizeRequest(model="smollm2", text="a"), metadata=METADATA)
            except grpc.aio.AioRpcError as error:
                details = f"{error.code().name}: {error.details()}"
        assert details == "UNAVAILABLE: replica smollm2-1 is leaving; another one can take this request"
        await process.engine.post("/standin/faults", {"hang_after_tokens": None})
        chunks += await rest_of(call)
        assert text_of(chunks) == " ".join(f"w:{i}" for i in range(80))
        assert await call.code() is grpc.StatusCode.OK
        assert await process.ended() == 0
        assert control.phases() == ["STARTING", "READY", "DRAINING", "ENDED"]
        ended = control.last("ENDED")
        assert ended is not None
        assert (ended.exit_code, "0 requests were cut" in ended.message) == (0, True)
        assert gone(pid)


async def test_the_control_plane_can_ask_for_the_drain(tmp_path: Path, control: FakeControl) -> None:
    control.drain_may_end.set()
    async with ready_agent(tmp_path, control) as (process, _):
        control.ask_to_drain = True
        assert await process.ended() == 0
        assert control.phases()[-1] == "ENDED"


async def test_an_attempt_that_is_over_leaves(tmp_path: Path, control: FakeControl) -> None:
    async with ready_agent(tmp_path, control) as (process, _):
        control.refuse = dict.fromkeys(("Report", "Drain"), grpc.StatusCode.FAILED_PRECONDITION)
        assert await process.ended() == 0
        assert "this attempt is over" in process.log


async def test_what_a_drain_cannot_wait_for_is_cut(tmp_path: Path, control: FakeControl) -> None:
    control.drain_may_end.set()
    engine = standin("--tokens-per-second", "20", "--answer-tokens", "10000", "--max-model-len", "100000")
    async with ready_agent(tmp_path, control, engine=engine, drain_timeout_s=1) as (process, stub):
        call = stub.StreamChat(chat("w", max_tokens=10_000), metadata=METADATA)
        await call.read()
        asked = time.monotonic()
        process.signal(signal.SIGTERM)
        status, details = await failed(call)
        # It would have gone on for eight minutes; the controller ends an agent that is later than this.
        assert 0.9 < time.monotonic() - asked < 1 + DRAIN_GRACE_S
        assert status == "UNAVAILABLE"
        assert "had to leave after 1 s (drain_timeout_s)" in details
        assert "tokens had been made" in details
        assert await process.ended() == 0
        ended = control.last("ENDED")
        assert ended is not None
        assert "1 requests were cut" in ended.message


async def test_a_drain_without_a_control_plane(tmp_path: Path, control: FakeControl) -> None:
    control.refuse["Drain"] = grpc.StatusCode.UNAVAILABLE
    async with ready_agent(tmp_path, control) as (process, stub):
        process.signal(signal.SIGTERM)
        asked = time.monotonic()
        await until(lambda: control.last("DRAINING"), "DRAINING")
        # Front doors that look at its health need a moment to see that it leaves; until then it serves.
        assert [chunk async for chunk in stub.StreamChat(chat(max_tokens=2), metadata=METADATA)]
        assert await process.ended() == 0
        assert time.monotonic() - asked > 2


async def test_a_signal_before_it_is_ready_ends_it_at_once(tmp_path: Path, control: FakeControl) -> None:
    async with control_plane(control) as port:
        folder = attempt_folder(tmp_path, port, engine=standin("--start-delay-s", "60"))
        async with agent(folder) as process:
            await until(lambda: control.last("STARTING"), "STARTING")
            pid = process.engine_pid
            process.signal(signal.SIGTERM)
            assert await process.ended(30) == 0, "long before the engine would be ready"
            assert control.phases() == ["STARTING", "ENDED"]
            assert gone(pid)


async def test_an_engine_that_never_becomes_ready(tmp_path: Path, control: FakeControl) -> None:
    async with control_plane(control) as port:
        engine = standin("--start-delay-s", "600") | {"env": {"STARTED_BY": str(tmp_path)}}
        async with agent(attempt_folder(tmp_path, port, engine=engine, startup_timeout_s=1.5)) as process:
            await until(lambda: control.last("STARTING"), "STARTING")
            assert await process.ended() == 70
            report = control.last("FAILED")
            assert report is not None
            assert "not ready within 1.5 s" in report.message
            assert not [one for one in environments() if f"STARTED_BY={tmp_path}\0" in one]


async def test_an_engine_that_ends_while_it_starts(tmp_path: Path, control: FakeControl) -> None:
    async with control_plane(control) as port:
        engine = standin("--exit-at-start", "3", "--start-delay-s", "0.2")
        async with agent(attempt_folder(tmp_path, port, engine=engine)) as process:
            assert await process.ended() == 3
            report = control.last("FAILED")
            assert report is not None
            assert "exit code 3" in report.message
            assert report.exit_code == 3
            assert "Engine core initialization failed" in report.last_words


async def test_an_engine_that_is_not_there(tmp_path: Path, control: FakeControl) -> None:
    async with control_plane(control) as port:
        engine = {"name": "vllm"}
        folder = attempt_folder(
            tmp_path, port, engine=engine, model={"path": str(tmp_path)}, environment={"venv": "/nowhere"}
        )
        async with agent(folder) as process:
            assert await process.ended() == 70
            report = control.last("FAILED")
            assert report is not None
            assert "/nowhere/bin/python: No such file or directory" in report.message


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"venv": "/venv"}, "the model /nowhere/model is not there, on node "),
        (
            {"apptainer": {"image": "/nowhere/vllm.sif"}},
            "the container image /nowhere/vllm.sif (spec.environment.apptainer.image) is not there, on node ",
        ),
        (
            {"pyxis": {"image": "/nowhere/vllm.sqsh"}},
            "the container image /nowhere/vllm.sqsh (spec.environment.pyxis.image) is not there, on node ",
        ),
    ],
)
async def test_a_model_or_an_image_that_is_not_there(
    tmp_path: Path, control: FakeControl, environment: dict[str, Any], said: str
) -> None:
    async with control_plane(control) as port:
        model = {"path": "/nowhere/model" if "venv" in environment else "/"}
        folder = attempt_folder(tmp_path, port, engine={"name": "vllm"}, model=model, environment=environment)
        async with agent(folder) as process:
            assert await process.ended() == 70
            report = control.last("FAILED")
            assert report is not None
            assert said in report.message


async def test_a_control_plane_that_comes_later(tmp_path: Path, control: FakeControl, held: HeldPort) -> None:
    async with agent(attempt_folder(tmp_path, held.number)) as process:
        await until(lambda: "cannot register yet" in process.log, "a try to register")
        await until(lambda: "first token" in process.log, "the engine's first token")
        assert "READY" not in control.phases()
        async with control_plane(control, held.number):
            await until(lambda: control.last("READY"), "READY")
            async with client(control.registered[0].port) as stub:
                assert [chunk async for chunk in stub.StreamChat(chat(), metadata=METADATA)]


async def test_a_control_plane_that_goes_and_returns(
    tmp_path: Path, control: FakeControl, held: HeldPort
) -> None:
    first = FakeControl()
    async with control_plane(first, held.number) as port:
        context = agent(attempt_folder(tmp_path, port))
        process = await context.__aenter__()
        await until(lambda: first.last("READY"), "READY")
    try:
        await until(lambda: "does not hear this replica" in process.log, "a report that nobody heard")
        async with client(first.registered[0].port) as stub:
            assert [chunk async for chunk in stub.StreamChat(chat(), metadata=METADATA)]
        async with control_plane(control, port):
            await until(lambda: control.last("READY"), "a report after the return")
    finally:
        await context.__aexit__(None, None, None)


async def test_the_second_front_door_is_asked_when_the_first_is_down(
    tmp_path: Path, control: FakeControl, held: HeldPort
) -> None:
    async with control_plane(control) as port:
        folder = attempt_folder(tmp_path, port, control=[f"127.0.0.1:{held.number}", f"127.0.0.1:{port}"])
        async with agent(folder):
            await until(lambda: control.last("READY"), "READY")


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.FAILED_PRECONDITION])
async def test_an_attempt_that_is_refused_ends(
    tmp_path: Path, control: FakeControl, code: grpc.StatusCode
) -> None:
    control.refuse["Register"] = code
    async with control_plane(control) as port:
        async with agent(attempt_folder(tmp_path, port)) as process:
            assert await process.ended() == 77
            assert f"the control plane refused: Register is refused ({code.name})" in process.log


async def test_an_agent_that_is_killed_leaves_no_engine(tmp_path: Path, control: FakeControl) -> None:
    async with ready_agent(tmp_path, control) as (process, _):
        pid = process.engine_pid
        process.signal(signal.SIGKILL)
        await process.ended()
        await until(lambda: gone(pid), "the engine's end")


async def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    folder = attempt_folder(tmp_path, 1)
    (folder / "secret").chmod(0o644)
    async with agent(folder) as process:
        assert await process.ended() == 78
        assert "has mode 0644 and is open to group or others; it must be 0600" in process.log
