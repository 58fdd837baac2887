"""What a message that cannot be is told: the field, the value, and what is accepted."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message

from penstock import contract
from penstock.contract import Broken, Unreadable
from penstock.v1 import deployment_pb2, metadata_pb2, spec_pb2
from penstock.v1 import inference_pb2 as pb


def chat(**fields: Any) -> pb.ChatRequest:
    base: dict[str, Any] = {"model": "m", "messages": [{"role": "ROLE_USER", "content": [{"text": "Hi"}]}]}
    return json_format.ParseDict(base | fields, pb.ChatRequest())


def content(part: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "ROLE_USER", "content": [{"text": "a"}, part]}]}


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"model": ""}, "model", "must not be empty"),
        ({"messages": []}, "messages", "must contain at least 1 item"),
        ({"messages": [{}]}, "messages[0].role", "must not be"),
        (content({}), "messages[0].content[1]", "one of text, image_url and image must be given"),
        (content({"imageUrl": "file:///etc/passwd"}), "messages[0].content[1].image_url",
         'must be an http, https or data URL, not "file:///etc/passwd"'),
        (content({"image": {}}), "messages[0].content[1].image.data", "at least 1"),
        (content({"image": {"data": "AAEC", "mimeType": "text/html;x"}}),
         "messages[0].content[1].image.mime_type", "must be an image type"),
        ({"sampling": {"maxTokens": -5}}, "sampling.max_tokens", "must be at least 1, not -5"),
        ({"sampling": {"temperature": -1}}, "sampling.temperature", "must be at least 0 and at most 2, not -1"),
        ({"sampling": {"topP": "NaN"}}, "sampling.top_p", "not nan"),
        ({"sampling": {"n": 0}}, "sampling.n", "must be at least 1 and at most 128, not 0"),
        ({"sampling": {"logprobs": 21}}, "sampling.logprobs", "at most 20, not 21"),
        ({"sampling": {"stop": ["a", ""]}}, "sampling.stop[1]", "must not be empty"),
        ({"tools": [{}]}, "tools[0].name", "must not be empty"),
        ({"toolChoice": {}}, "tool_choice", "one of mode and name must be given"),
        ({"toolChoice": {"mode": "always"}}, "tool_choice.mode", "must be in list [auto, none, required]"),
        ({"output": {"choice": {}}}, "output.choice.choices", "must contain at least 1 item"),
    ],
)  # fmt: skip
def test_a_chat_that_cannot_be(fields: dict[str, Any], field: str, words: str) -> None:
    (broken,) = contract.broken_rules(chat(**fields))
    assert broken.field == field
    assert words in broken.sentence


def test_a_chat_that_can_be() -> None:
    assert list(contract.broken_rules(chat())) == []


@pytest.mark.parametrize(
    ("message", "broken"),
    [
        (pb.TokenizeRequest(model="m", text="a", messages=[pb.Message(role=pb.ROLE_USER)]),
         Broken("", "give text or messages, not both")),
        (pb.EmbedRequest(model="m"), Broken("inputs", "must contain at least 1 item(s)")),
    ],
)  # fmt: skip
def test_other_requests_that_cannot_be(message: Message, broken: Broken) -> None:
    assert list(contract.broken_rules(message)) == [broken]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (chat(**content({"text": "BAD"})), "messages[0].content[1].text"),
        (chat(sampling={"stop": ["a", "BAD"]}), "sampling.stop[1]"),
        (chat(model="BAD"), "model"),
        (deployment_pb2.ApplyDeploymentRequest(deployment=json_format.ParseDict(
            {"spec": {"engine": {"args": ["BAD"]}}}, deployment_pb2.Deployment())),
         "deployment.spec.engine.args[0]"),
    ],
)  # fmt: skip
def test_a_text_that_is_not_utf8_is_named(message: Message, field: str) -> None:
    data = message.SerializeToString().replace(b"BAD", b"\xffAD")
    with pytest.raises(Unreadable) as caught:
        contract.parse(data, type(message))
    assert (caught.value.field, caught.value.sentence) == (field, "must be UTF-8")


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        chat().SerializeToString()[:-1],
        # Inside a map's key and a Struct no field is named.
        chat(engineOptions={"BAD": 1}).SerializeToString().replace(b"BAD", b"\xffAD"),
    ],
)
def test_bytes_that_are_no_message(data: bytes) -> None:
    with pytest.raises(Unreadable, match="the message is not a penstock.v1.ChatRequest") as caught:
        contract.parse(data, pb.ChatRequest)
    assert caught.value.field == ""


def test_bytes_of_an_image_may_be_anything() -> None:
    message = chat(**content({"image": {"data": "//79"}}))
    assert contract.parse(message.SerializeToString(), pb.ChatRequest) == message


PARTS = contract.MAX_PARTS


@pytest.mark.parametrize(
    ("message", "too_many"),
    [
        (pb.ChatRequest(model="m", messages=[pb.Message(role=pb.ROLE_USER)] * PARTS), False),
        (pb.ChatRequest(model="m", messages=[pb.Message(role=pb.ROLE_USER)] * (PARTS + 1)), True),
        (pb.ChatRequest(model="m", messages=[pb.Message()] * (PARTS + 1)), True),
        (
            pb.ChatRequest(
                model="m",
                messages=[pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text="")] * (PARTS // 2))] * 3,
            ),
            True,
        ),
        (pb.DetokenizeRequest(model="m", tokens=range(PARTS + 1)), False),
        (spec_pb2.Engine(args=[""] * (PARTS + 1)), True),
        (metadata_pb2.Metadata(labels={f"x{n}": "" for n in range(PARTS + 1)}), True),
        (pb.DetokenizeRequest(model="m", tokens=[-1] * (PARTS + 1)), False),
        (chat(engineOptions={"deep": [{"x": 1}] * PARTS}), True),
        (chat(engineOptions={f"x{n}": 1 for n in range(PARTS + 1)}), True),
    ],
)  # fmt: skip
def test_a_message_of_too_many_parts_is_told_only_that(message: Message, too_many: bool) -> None:
    said = f"the message has more than {PARTS} parts"
    assert list(contract.broken_rules(message)) == ([Broken("", said)] if too_many else [])


def test_of_many_broken_rules_some_are_told() -> None:
    broken = list(contract.broken_rules(pb.ChatRequest(model="m", messages=[pb.Message()] * 1000)))
    assert len(broken) == contract.MAX_BROKEN
    assert broken[-1].field == f"messages[{contract.MAX_BROKEN - 1}].role"
