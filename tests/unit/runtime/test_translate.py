"""From the contract to the engine's JSON and back, as tables."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from google.protobuf import json_format

from penstock.v1 import inference_pb2 as pb
from penstock_runtime import translate
from penstock_runtime.translate import BadAnswer, BadRequest, Json


def chat(**fields: Any) -> pb.ChatRequest:
    base: dict[str, Any] = {"model": "m", "messages": [{"role": "ROLE_USER", "content": [{"text": "Hi"}]}]}
    return json_format.ParseDict(base | fields, pb.ChatRequest())


def chat_body(**fields: Any) -> Json:
    body = translate.chat_body(chat(**fields), model="engine-name", stream=False)
    assert body.pop("model") == "engine-name"
    if "messages" not in fields:
        assert body.pop("messages") == [{"role": "user", "content": "Hi"}]
    return body


SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "minLength": 3, "x": 0.5}}}


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ({}, {}),
        ({"sampling": {"maxTokens": 5}}, {"max_tokens": 5}),
        ({"sampling": {"temperature": 0}}, {"temperature": 0.0}),
        ({"sampling": {"topP": 0.5, "topK": -1, "minP": 0.1}}, {"top_p": 0.5, "top_k": -1, "min_p": 0.1}),
        ({"sampling": {"stop": ["a", "b"], "seed": "7"}}, {"stop": ["a", "b"], "seed": 7}),
        ({"sampling": {"seed": "0"}}, {"seed": 0}),
        ({"sampling": {"presencePenalty": 1, "frequencyPenalty": -1}},
         {"presence_penalty": 1.0, "frequency_penalty": -1.0}),
        ({"sampling": {"repetitionPenalty": 1.5, "n": 2, "ignoreEos": False}},
         {"repetition_penalty": 1.5, "n": 2, "ignore_eos": False}),
        ({"sampling": {"logprobs": 0}}, {"logprobs": True, "top_logprobs": 0}),
        ({"sampling": {"logprobs": 3}}, {"logprobs": True, "top_logprobs": 3}),
        ({"output": {"jsonSchema": SCHEMA}}, {"structured_outputs": {"json": SCHEMA}}),
        ({"output": {"jsonSchemaText": '{"b": 1, "a": 2}'}}, {"structured_outputs": {"json": {"b": 1, "a": 2}}}),
        ({"output": {"grammar": "root ::= x"}}, {"structured_outputs": {"grammar": "root ::= x"}}),
        ({"output": {"regex": "a+"}}, {"structured_outputs": {"regex": "a+"}}),
        ({"output": {"choice": {"choices": ["x", "y"]}}}, {"structured_outputs": {"choice": ["x", "y"]}}),
        ({"output": {"jsonObject": True}}, {"structured_outputs": {"json_object": True}}),
        ({"output": {"jsonObject": False}}, {}),
        ({"tools": [{"name": "f", "description": "d", "parameters": SCHEMA}]},
         {"tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}]}),
        ({"tools": [{"name": "f", "parametersText": json.dumps(SCHEMA)}]},
         {"tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]}),
        ({"tools": [{"name": "f", "strict": False}]},
         {"tools": [{"type": "function", "function": {"name": "f", "strict": False}}]}),
        ({"tools": [{"name": "f"}], "toolChoice": {"mode": "required"}},
         {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"}),
        ({"toolChoice": {"name": "f"}}, {"tool_choice": {"type": "function", "function": {"name": "f"}}}),
        ({"engineOptions": {"min_tokens": 4, "bad_words": ["x"], "add_generation_prompt": True, "y": None}},
         {"min_tokens": 4, "bad_words": ["x"], "add_generation_prompt": True, "y": None}),
    ],
)  # fmt: skip
def test_chat_fields(fields: dict[str, Any], body: Json) -> None:
    assert chat_body(**fields) == body


def test_the_order_of_a_tools_parameters_is_kept() -> None:
    schema = {"type": "object", "properties": {"zeta": {}, "alpha": {}, "mid": {"maximum": 2**64}}}
    [tool] = chat_body(tools=[{"name": "f", "parametersText": json.dumps(schema)}])["tools"]
    assert json.dumps(tool["function"]["parameters"]) == json.dumps(schema)


def test_whole_numbers_stay_whole() -> None:
    options = chat_body(engineOptions={"a": 4, "b": 4.5, "c": -0.0, "d": 1e300})
    assert [type(options[key]) for key in "abcd"] == [int, float, int, float]


@pytest.mark.parametrize(
    ("message", "body"),
    [
        ({"role": "ROLE_SYSTEM", "content": [{"text": "Be brief"}]}, {"role": "system", "content": "Be brief"}),
        ({"role": "ROLE_USER"}, {"role": "user", "content": ""}),
        ({"role": "ROLE_USER", "content": [{"text": "a"}, {"text": "b"}]},
         {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}),
        ({"role": "ROLE_USER", "content": [{"imageUrl": "https://example.org/a.png"}]},
         {"role": "user",
          "content": [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]}),
        ({"role": "ROLE_USER", "content": [{"image": {"mimeType": "image/jpeg", "data": "AAEC"}}]},
         {"role": "user",
          "content": [{"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,AAEC"}}]}),
        ({"role": "ROLE_ASSISTANT", "toolCalls": [{"id": "c1", "name": "f", "arguments": "{}"}]},
         {"role": "assistant", "content": None,
          "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}),
        ({"role": "ROLE_TOOL", "content": [{"text": "42"}], "toolCallId": "c1"},
         {"role": "tool", "content": "42", "tool_call_id": "c1"}),
    ],
)  # fmt: skip
def test_messages(message: dict[str, Any], body: Json) -> None:
    assert chat_body(messages=[message])["messages"] == [body]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"engineOptions": {"temperature": 1}}, "engine_options.temperature: is not accepted"),
        ({"engineOptions": {"stream": False}}, "engine_options.stream: is not accepted"),
        ({"output": {"jsonSchemaText": "{"}}, "output.json_schema_text: must be JSON"),
        ({"output": {"jsonSchemaText": "[]"}}, "output.json_schema_text: must be a JSON object"),
        ({"tools": [{"name": "f", "parametersText": "[" * 100_000}]}, "tools.parameters_text: must be JSON"),
        ({"tools": [{"name": "f", "parametersText": "1"}]}, "tools.parameters_text: must be a JSON object"),
        ({"tools": [{"name": "f", "parametersText": " " * 600_000}] * 2},
         "tools.parameters_text: must be at most 1048576 characters over all tools, not 1200000"),
    ],
)  # fmt: skip
def test_what_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest) as refused:
        chat_body(**fields)
    assert words in str(refused.value)


def test_a_stream_asks_for_usage() -> None:
    request = pb.StreamGenerateRequest(
        model="m", prompt="Once", sampling=pb.SamplingParameters(logprobs=2, max_tokens=1)
    )
    assert translate.generate_body(request, model="m", stream=True) == {
        "model": "m",
        "prompt": "Once",
        "max_tokens": 1,
        "logprobs": 2,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }


def test_a_number_that_json_does_not_have_is_refused() -> None:
    request = chat()
    request.engine_options.update({"x": [float("inf")]})
    with pytest.raises(BadRequest, match="engine_options.x: must have finite numbers, not inf"):
        translate.chat_body(request, model="m", stream=False)


def test_chat_answer() -> None:
    answer = {
        "id": "chatcmpl-1",
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": None,
                    "reasoning": "hm",
                    "tool_calls": [
                        {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                    ],
                },
                "finish_reason": "tool_calls",
                "logprobs": {
                    "content": [
                        {
                            "token": "ö",
                            "logprob": -0.5,
                            "bytes": [195, 182],
                            "top_logprobs": [{"token": "o", "logprob": -1.5, "bytes": None}],
                        }
                    ]
                },
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}},
    }
    assert translate.chat_response(answer) == pb.ChatResponse(
        id="chatcmpl-1",
        model="m",
        choices=[
            pb.ChatChoice(
                index=0,
                reasoning_content="hm",
                tool_calls=[pb.ToolCall(index=0, id="c", name="f", arguments="{}")],
                finish_reason=pb.FINISH_REASON_TOOL_CALLS,
                logprobs=[
                    pb.TokenLogprob(
                        token="ö",
                        logprob=-0.5,
                        utf8="ö".encode(),
                        top=[pb.TokenLogprob(token="o", logprob=-1.5)],
                    )
                ],
            )
        ],
        usage=pb.Usage(prompt_tokens=3, completion_tokens=2, cached_prompt_tokens=1),
    )


def test_generate_answer() -> None:
    answer = {
        "id": "cmpl-1",
        "model": "m",
        "choices": [
            {
                "index": 1,
                "text": "ab",
                "finish_reason": "length",
                "logprobs": {
                    "tokens": ["a", "b"],
                    "token_logprobs": [None, -1.0],
                    "top_logprobs": [None, {"b": -1.0, "c": -2.0}],
                },
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    }
    assert translate.generate_response(answer) == pb.GenerateResponse(
        id="cmpl-1",
        model="m",
        choices=[
            pb.GenerateChoice(
                index=1,
                text="ab",
                finish_reason=pb.FINISH_REASON_LENGTH,
                logprobs=[
                    pb.TokenLogprob(token="a"),
                    pb.TokenLogprob(
                        token="b",
                        logprob=-1,
                        top=[pb.TokenLogprob(token="b", logprob=-1), pb.TokenLogprob(token="c", logprob=-2)],
                    ),
                ],
            )
        ],
        usage=pb.Usage(prompt_tokens=1, completion_tokens=2),
    )


@pytest.mark.parametrize("reason", [None, "", "error"])
def test_an_answer_without_a_finish_reason_is_none(reason: str | None) -> None:
    answer = {"choices": [{"index": 0, "message": {"content": "a"}, "finish_reason": reason}], "usage": None}
    with pytest.raises(BadAnswer):
        translate.chat_response(answer)


def test_a_finish_reason_from_the_future_still_finishes() -> None:
    assert translate.finish_reason("repetition") == pb.FINISH_REASON_STOP


def test_embeddings_in_order_in_both_spellings() -> None:
    packed = base64.b64encode(struct.pack("<2f", 0.25, -1.5)).decode()
    answer = {
        "model": "m",
        "data": [{"index": 1, "embedding": [1.0, 2.0]}, {"index": 0, "embedding": packed}],
        "usage": {"prompt_tokens": 4},
    }
    assert translate.embed_response(answer) == pb.EmbedResponse(
        model="m",
        embeddings=[pb.Embedding(values=[0.25, -1.5]), pb.Embedding(values=[1, 2])],
        usage=pb.Usage(prompt_tokens=4),
    )


def test_pooling_bodies() -> None:
    assert translate.embed_body(pb.EmbedRequest(model="x", inputs=["a"], dimensions=64), model="m") == {
        "model": "m", "input": ["a"], "encoding_format": "base64", "dimensions": 64,
    }  # fmt: skip
    assert translate.score_body(pb.ScoreRequest(query="q", documents=["a", "b"]), model="m") == {
        "model": "m", "text_1": "q", "text_2": ["a", "b"],
    }  # fmt: skip
    assert translate.rerank_body(pb.RerankRequest(query="q", documents=["a"], top_n=1), model="m") == {
        "model": "m", "query": "q", "documents": ["a"], "top_n": 1,
    }  # fmt: skip
    assert translate.tokenize_body(pb.TokenizeRequest(text="t"), model="m") == {"model": "m", "prompt": "t"}
    message = pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text="Hi")])
    chat_of = pb.TokenizeRequest(messages=[message], tools=[pb.Tool(name="f")], add_special_tokens=False)
    assert translate.tokenize_body(chat_of, model="m") == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "add_special_tokens": False,
    }
    with pytest.raises(BadRequest, match=r"must be at least 0, not -3") as caught:
        translate.detokenize_body(pb.DetokenizeRequest(tokens=[1, -2, -3]), model="m")
    assert caught.value.field == "tokens[2]"
    assert translate.detokenize_body(pb.DetokenizeRequest(tokens=[1, 2]), model="m") == {
        "model": "m", "tokens": [1, 2],
    }  # fmt: skip


def test_options_of_pooling_requests() -> None:
    score, rerank = pb.ScoreRequest(query="q", documents=["a"]), pb.RerankRequest(query="q", documents=["a"])
    for request in (score, rerank):
        request.engine_options.update({"truncate_prompt_tokens": 8})
    assert translate.score_body(score, model="m")["truncate_prompt_tokens"] == 8
    assert translate.rerank_body(rerank, model="m")["truncate_prompt_tokens"] == 8
    score.engine_options.update({"text_2": "b"})
    with pytest.raises(BadRequest, match="engine_options.text_2: is not accepted"):
        translate.score_body(score, model="m")


def test_pooling_answers() -> None:
    scores = translate.score_response(
        {"model": "m", "data": [{"index": 1, "score": 0.5}, {"index": 0, "score": 1}]}
    )
    assert list(scores.scores) == [1, 0.5]
    ranked = translate.rerank_response({"model": "m", "results": [{"index": 1, "relevance_score": 0.5}]})
    assert ranked.documents[0] == pb.RankedDocument(index=1, score=0.5)
    tokens = translate.tokenize_response({"tokens": [5, 6], "max_model_len": 2048, "count": 2})
    assert (list(tokens.tokens), tokens.max_model_len) == ([5, 6], 2048)
