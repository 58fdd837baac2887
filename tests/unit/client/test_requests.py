"""What a caller gives, and the request that it becomes."""

from __future__ import annotations

import asyncio
import inspect
import json
from typing import Any

import pytest

from penstock.client import Answer, AsyncClient, Client, InvalidRequest
from penstock.client import requests as written
from penstock.client.messages import conversation
from penstock.v1 import inference_pb2 as pb
from tests.unit.client.playing import Scene, stage

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
def test_what_has_no_place_is_refused_by_name(message: dict[str, Any], field: str) -> None:
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
    ],
)
def test_options_that_cannot_be(options: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        written.chat(pb.ChatRequest, "m", "hello", options)
    assert [each.field for each in raised.value.fields] == [field]


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
