"""What a caller gives, and the request that it becomes."""

from __future__ import annotations

import asyncio
import inspect
import json
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from penstock.client import Answer, AsyncClient, Cancelled, Client, InvalidRequest, fields
from penstock.client import requests as written
from penstock.client.messages import conversation
from penstock.v1 import inference_pb2 as pb
from tests.unit.client.playing import Scene, stage

HALF = "x\ud800"
"""Half of a pair of surrogates: a str, and no text that UTF-8 has."""
ENDLESS: dict[str, Any] = {}
ENDLESS["itself"] = ENDLESS
WEATHER = {"name": "weather", "description": "of a town", "parameters": {"type": "object"}}


def text(role: pb.Role.ValueType, said: str) -> pb.Message:
    return pb.Message(role=role, content=[pb.ContentPart(text=said)])


def test_messages_of_openais_shape() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"town": "Ulm"}'}}
    picture = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    given: list[dict[str, Any] | pb.Message] = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "what is it?"}, picture]},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        text(pb.ROLE_USER, "thanks"),
    ]
    parts = [pb.ContentPart(text="what is it?"), pb.ContentPart(image_url="https://example.org/a.png")]
    called = pb.ToolCall(index=0, id="c1", name="weather", arguments='{"town": "Ulm"}')
    answered = text(pb.ROLE_TOOL, "rain")
    answered.tool_call_id = "c1"
    assert conversation(given) == [
        text(pb.ROLE_SYSTEM, "be brief"),
        pb.Message(role=pb.ROLE_USER, content=parts),
        pb.Message(role=pb.ROLE_ASSISTANT, tool_calls=[called]),
        answered,
        text(pb.ROLE_USER, "thanks"),
    ]
    assert conversation("hello") == [text(pb.ROLE_USER, "hello")]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "robot", "content": "x"}, "messages[0].role"),
        ({"role": "user", "content": 3}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "audio"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": ["x"]}, "messages[0].content[0]"),
        ({"role": "user", "content": "x", "name": "Ann"}, "messages[0].name"),
        ("hello", "messages[0]"),
        ({"role": ["user"], "content": "x"}, "messages[0].role"),
        ({"role": "user", "content": "x", 5: 1}, "messages[0].5"),
        ({"role": "user", "content": HALF}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "text", "text": HALF}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": [{"type": "text", "text": {(1, 2): 3}}]}, "messages[0].content[0].text"),
        ({"role": "tool", "content": "x", "tool_call_id": 5}, "messages[0].tool_call_id"),
        ({"role": "assistant", "tool_calls": 5}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": ["f"]}, "messages[0].tool_calls[0]"),
        (
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "https://x", "detail": "low"}}],
            },
            "messages[0].content[0].image_url.detail",
        ),
        ({"role": "assistant", "tool_calls": [{"id": "c"}]}, "messages[0].tool_calls[0].function"),
    ],
)
def test_what_has_no_place_is_refused_by_name(message: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        conversation([message])
    assert [each.field for each in raised.value.fields] == [field]


def test_a_whole_chat_request() -> None:
    request = written.chat(
        pb.StreamChatRequest,
        "m",
        "hello",
        {
            "max_tokens": 5,
            "temperature": 0,
            "stop": "\n",
            "seed": None,
            "json_schema": {"type": "object"},
            "tools": [{"type": "function", "function": WEATHER}, WEATHER],
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
            "engine_options": {"min_tokens": 2},
        },
    )
    tool = pb.Tool(name="weather", description="of a town", parameters_text='{"type": "object"}')
    wanted = pb.StreamChatRequest(
        model="m",
        messages=[text(pb.ROLE_USER, "hello")],
        sampling=pb.SamplingParameters(max_tokens=5, temperature=0, stop=["\n"]),
        output=pb.OutputFormat(json_schema_text='{"type": "object"}'),
        tools=[tool, tool],
        tool_choice=pb.ToolChoice(name="weather"),
    )
    wanted.engine_options.update({"min_tokens": 2})
    assert request == wanted


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"regex": "a", "grammar": "b"}, "output"),
        ({"temprature": 1}, "temprature"),
        ({"engine_options": {"x": object()}}, "engine_options"),
        ({"engine_options": {"seeds": [1, 2**53 + 1]}}, "engine_options.seeds[1]"),
        ({"engine_options": {"seed": -(2**60)}}, "engine_options.seed"),
        (
            {"tools": [{"name": "f", "parameters": {"properties": {"n": {"maximum": float("inf")}}}}]},
            "tools[0].parameters",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": 5}, "tools"),
        ({"tools": ["weather"]}, "tools[0]"),
        ({"tools": [{"name": "f", "strict": "yes"}]}, "tools[0].strict"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"tool_choice": HALF}, "tool_choice"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 2.5}, "max_tokens"),
        ({"seed": 2**70}, "seed"),
        ({"temperature": 10**400}, "temperature"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a", HALF]}, "stop[1]"),
        ({"json_schema": HALF}, "json_schema"),
        ({"json_schema": 5}, "json_schema"),
        ({"choice": ["a", None]}, "choice[1]"),
        ({"regex": HALF}, "regex"),
        ({"json_object": "yes"}, "json_object"),
        ({"engine_options": 5}, "engine_options"),
        ({"engine_options": {"x": HALF}}, "engine_options"),
        ({"engine_options": ENDLESS}, "engine_options"),
    ],
)
def test_options_that_cannot_be(options: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        written.chat(pb.ChatRequest, "m", "hello", options)
    assert [each.field for each in raised.value.fields] == [field]


@pytest.mark.parametrize(
    ("call", "given", "said"),
    [
        (
            "chat",
            (HALF, "hello"),
            "model: must be text that UTF-8 has: surrogates not allowed, at character 1",
        ),
        ("chat", (5, "hello"), "model: must be text, not 5"),
        (
            "chat",
            ("m", HALF),
            "messages: must be text that UTF-8 has: surrogates not allowed, at character 1",
        ),
        ("chat", ("m", 5), "messages: must be a list, not 5"),
        ("generate", ("m", 5), "prompt: must be text, not 5"),
        ("embed", ("m", ["a", 5]), "inputs[1]: must be text, not 5"),
        ("embed", ("m", None), "inputs: must be a list, not None"),
        ("score", ("m", "q", [b"a"]), "documents[0]: must be text, not b'a'"),
        ("rerank", ("m", ["q"], "a"), "query: must be text, not ['q']"),
        (
            "tokenize",
            ("m", HALF),
            "text: must be text that UTF-8 has: surrogates not allowed, at character 1",
        ),
        ("detokenize", ("m", [1, 2.5]), "tokens[1]: must be a whole number of 64 bits, not 2.5"),
        ("detokenize", ("m", 7), "tokens: must be a list, not 7"),
    ],
)
async def test_arguments_that_no_request_can_hold_are_refused_by_name(
    call: str, given: tuple[Any, ...], said: str
) -> None:
    """By both clients alike, before anything is sent."""
    with Client("127.0.0.1:1") as client, pytest.raises(InvalidRequest) as raised:
        getattr(client, call)(*given)
    assert (str(raised.value), raised.value.code) == (said, grpc.StatusCode.INVALID_ARGUMENT)
    async with AsyncClient("127.0.0.1:1") as other:
        with pytest.raises(InvalidRequest) as raised:
            await getattr(other, call)(*given)
    assert str(raised.value) == said


@pytest.mark.parametrize("address", [None, 8600, "", HALF])
@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_an_address_that_is_none(client: Any, address: Any) -> None:
    with pytest.raises(InvalidRequest, match="^address: must be text, as host:port, not "):
        client(address)


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_an_address_that_is_a_url(client: Any) -> None:
    with pytest.raises(
        InvalidRequest, match="^address: must be host:port, without http:// or https://, not "
    ):
        client("http://127.0.0.1:8600/v1")


@pytest.mark.parametrize("timeout", ["5", timedelta(seconds=5), float("nan"), 10**400])
async def test_a_timeout_that_is_no_time(timeout: Any) -> None:
    said = "^timeout: must be a number of seconds, or None, not "
    with Client("127.0.0.1:1") as client, pytest.raises(InvalidRequest, match=said):
        client.models(timeout=timeout)
    async with AsyncClient("127.0.0.1:1") as other:
        with pytest.raises(InvalidRequest, match=said):
            await other.models(timeout=timeout)


@pytest.mark.parametrize("timeout", [float("inf"), 1e300, 1e8])
async def test_a_timeout_that_never_comes_is_none(timeout: float) -> None:
    listed = Scene([pb.ListModelsResponse(models=[pb.ServedModel(name="m")])])
    async with stage(listed) as played, AsyncClient(played.address, timeout=timeout) as client:
        assert len(await client.models()) == 1
        with Client(played.address, timeout=timeout) as other:
            assert len(await asyncio.to_thread(other.models)) == 1


@pytest.mark.parametrize("used", [True, False])
async def test_a_call_on_a_closed_client_is_cancelled(used: bool) -> None:
    listed = Scene([pb.ListModelsResponse(models=[pb.ServedModel(name="m")])])
    async with stage(listed) as played:
        client, other = Client(played.address), AsyncClient(played.address)
        if used:
            assert len(await asyncio.to_thread(client.models)) == len(await other.models()) == 1
        for _ in range(2):
            client.close()
            await other.close()
        for call in (client.models, lambda: next(client.stream_generate("m", "x"))):
            with pytest.raises(Cancelled, match="^the client is closed$"):
                call()
        for asked in (other.models(), anext(other.stream_generate("m", "x"))):
            with pytest.raises(Cancelled, match="^the client is closed$"):
                await asked
        assert len(played.requests) == 2 * used


def test_what_gRPC_says_no_to_otherwise_is_not_taken_for_a_closed_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("something else")

    with Client("127.0.0.1:1") as client:
        channel = SimpleNamespace(
            unary_unary=lambda *_: refuse, unary_stream=lambda *_: refuse, close=lambda: None
        )
        monkeypatch.setattr(client, "_channel", channel)
        for call in (client.models, lambda: next(client.stream_generate("m", "x"))):
            with pytest.raises(ValueError, match="^something else$"):
                call()


def test_of_every_value_that_a_request_may_have_it_is_known_what_is_accepted() -> None:
    """So that a wrong one is always told by its argument. Messages, and roles, are made by the client itself."""
    seen: set[str] = set()
    unseen = [one.input_type for one in pb.DESCRIPTOR.services_by_name["InferenceService"].methods]
    while unseen:
        message = unseen.pop()
        if message.full_name in seen or message.full_name.startswith("google.protobuf."):
            continue
        seen.add(message.full_name)
        for field in message.fields:
            if field.message_type is not None:
                unseen.append(field.message_type)
            elif field.full_name != "penstock.v1.Message.role":
                assert field.cpp_type in fields._ACCEPTED, field.full_name
    assert "penstock.v1.SamplingParameters" in seen


def test_a_tools_parameters_arrive_in_their_order() -> None:
    schema = {
        "properties": {"zeta": {}, "alpha": {"maximum": 2**64}, "mid": {"const": "ü"}},
        "type": "object",
    }
    asked = written.chat(pb.ChatRequest, "m", "hello", {"tools": [{"name": "f", "parameters": schema}]})
    assert asked.tools[0].parameters_text == json.dumps(schema)
    with pytest.raises(InvalidRequest):
        written.chat(pb.ChatRequest, "m", "hello", {"tools": [{"name": "f", "parameters": "text"}]})


def test_whole_numbers_arrive_as_they_were() -> None:
    given = {"most": 2**53, "least": -(2**53), "yes": True, "float": 1e300}
    options = written.chat(pb.ChatRequest, "m", "hello", {"engine_options": given}).engine_options
    assert dict(options) == given


def test_an_answer_is_the_first_choices_and_goes_on() -> None:
    call = pb.ToolCall(id="c1", name="weather", arguments="{}")
    answer = Answer(
        pb.ChatResponse(
            choices=[
                pb.ChatChoice(index=1, content="other"),
                pb.ChatChoice(content="one", tool_calls=[call], finish_reason=pb.FINISH_REASON_STOP),
            ]
        )
    )
    assert (answer.text, answer.tool_calls, answer.usage) == ("one", (call,), None)
    assert answer.finish_reason == pb.FINISH_REASON_STOP
    assert answer.message == pb.Message(
        role=pb.ROLE_ASSISTANT, content=[pb.ContentPart(text="one")], tool_calls=[call]
    )
    assert Answer(pb.StreamGenerateResponse(usage=pb.Usage(prompt_tokens=1))).text == ""


def test_the_two_clients_are_one() -> None:
    def calls(client: type) -> dict[str, list[inspect.Parameter]]:
        named = {name for name in vars(client) if not name.startswith("_")} | {"__init__"}
        return {name: list(inspect.signature(getattr(client, name)).parameters.values()) for name in named}

    assert calls(Client) == calls(AsyncClient)


async def test_every_call_reaches_its_method() -> None:
    """With both clients; the server answers each with a message of the kind that was asked for."""
    answers = [
        Scene([pb.GenerateResponse(choices=[pb.GenerateChoice(text="on")])]),
        Scene([pb.StreamGenerateResponse(choices=[pb.GenerateChoice(text="on")])]),
        Scene([pb.EmbedResponse(embeddings=[pb.Embedding(values=[1, 2])])]),
        Scene([pb.ScoreResponse(scores=[0.5])]),
        Scene([pb.RerankResponse(documents=[pb.RankedDocument(index=1, score=2)])]),
        Scene([pb.TokenizeResponse(tokens=[7, 8])]),
        Scene([pb.DetokenizeResponse(text="back")]),
        Scene([pb.ListModelsResponse(models=[pb.ServedModel(name="m")])]),
    ]
    asked = [
        pb.GenerateRequest(model="m", prompt="go", sampling=pb.SamplingParameters(max_tokens=1)),
        pb.StreamGenerateRequest(model="m", prompt="go"),
        pb.EmbedRequest(model="m", inputs=["one"], dimensions=2),
        pb.ScoreRequest(model="m", query="q", documents=["a"]),
        pb.RerankRequest(model="m", query="q", documents=["a", "b"], top_n=1),
        pb.TokenizeRequest(model="m", text="hello"),
        pb.DetokenizeRequest(model="m", tokens=[7, 8]),
        pb.ListModelsRequest(),
    ]

    def without_asyncio(address: str) -> None:
        with Client(address, timeout=10) as client:
            assert client.generate("m", "go", max_tokens=1).text == "on"
            assert [piece.text for piece in client.stream_generate("m", "go")] == ["on"]
            assert list(client.embed("m", "one", dimensions=2).embeddings[0].values) == [1, 2]
            assert list(client.score("m", "q", "a").scores) == [0.5]
            assert client.rerank("m", "q", ["a", "b"], top_n=1).documents[0].index == 1
            assert list(client.tokenize("m", "hello").tokens) == [7, 8]
            assert client.detokenize("m", [7, 8]) == "back"
            assert [model.name for model in client.models()] == ["m"]

    async with stage(*answers) as played:
        await asyncio.to_thread(without_asyncio, played.address)
        assert played.requests == asked
    async with stage(*answers) as played, AsyncClient(played.address, timeout=10) as client:
        assert (await client.generate("m", "go", max_tokens=1)).text == "on"
        assert [piece.text async for piece in client.stream_generate("m", "go")] == ["on"]
        assert list((await client.embed("m", "one", dimensions=2)).embeddings[0].values) == [1, 2]
        assert list((await client.score("m", "q", "a")).scores) == [0.5]
        assert (await client.rerank("m", "q", ["a", "b"], top_n=1)).documents[0].index == 1
        assert list((await client.tokenize("m", "hello")).tokens) == [7, 8]
        assert await client.detokenize("m", [7, 8]) == "back"
        assert [model.name for model in await client.models()] == ["m"]
        assert played.requests == asked
