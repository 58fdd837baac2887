"""How the stand-in writes answers: a whole one, or a stream's events, in vLLM's shapes. Pure.

What is answered comes as pieces, each of one choice. A choice that calls a tool has its pieces written as the parts of
that call: the first event of the call names it, the others carry its arguments.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock_runtime.standin_engine import Piece
from penstock_runtime.standin_text import Prompt

FINGERPRINT = "vllm-standin"


@dataclass(frozen=True, slots=True)
class Asked:
    """A chat or completion request, checked."""

    chat: bool
    id: str
    model: str
    created: int
    # One for each choice.
    prompts: tuple[Prompt, ...]
    max_tokens: int
    ignore_eos: bool
    stops: tuple[str, ...]
    keep_stop: bool
    # How many alternatives beside the token itself; None: no logprobs at all.
    logprobs: int | None
    # The tool that every choice calls, its arguments being the text; empty: none.
    tool: str
    # The request named it; then the call ends as an answer does.
    tool_named: bool
    stream: bool
    usage: bool
    usage_everywhere: bool

    @property
    def prompt_tokens(self) -> int:
        return self.prompts[0].tokens

    def call_id(self, choice: int) -> str:
        return f"chatcmpl-tool-{self.id.rpartition('-')[2]}-{choice}"

    def finish_reason(self, piece: Piece) -> str | None:
        """As vLLM has it: a call that was made whole ends with its own reason, unless the request named its tool."""
        called = self.tool and not self.tool_named
        return "tool_calls" if called and piece.finish_reason == "stop" else piece.finish_reason


class ChunkWriter:
    """Writes the events of one choice; what is the same in all of them is made once."""

    def __init__(self, asked: Asked, choice: int) -> None:
        self._asked = asked
        self._choice = choice
        self._made = 0
        kind = "chat.completion.chunk" if asked.chat else "text_completion"
        head = {"id": asked.id, "object": kind, "created": asked.created, "model": asked.model}
        self._head = "data: " + json.dumps(head, separators=(",", ":"))[:-1]
        self._before = f'{self._head},"choices":[{{"index":{choice},'
        if not asked.chat:
            self._before += '"text":'
            self._between = ""
        elif asked.tool:
            self._before += '"delta":{"content":null,"tool_calls":[{"index":0,"function":{"arguments":'
            self._between = "}}]}"
        else:
            self._before += '"delta":{"content":'
            self._between = "}"

    def opening(self) -> bytes:
        """A chat's first event gives the role; where a tool is called, the second one its name."""
        asked = self._asked
        if not asked.chat:
            return b""
        events = self._event('{"role":"assistant","content":""}')
        if asked.tool:
            call = {
                "id": asked.call_id(self._choice),
                "type": "function",
                "index": 0,
                "function": {"name": asked.tool},
            }
            events += self._event(json.dumps({"content": None, "tool_calls": [call]}))
        return events.encode()

    def _event(self, delta: str) -> str:
        choice = f'{{"index":{self._choice},"delta":{delta},"logprobs":null,"finish_reason":null}}'
        return f'{self._head},"choices":[{choice}]{self._usage()}}}\n\n'

    def chunk(self, piece: Piece) -> bytes:
        """One event."""
        asked = self._asked
        self._made += piece.tokens
        end = '"finish_reason":null'
        if piece.finish_reason is not None:
            end = f'"finish_reason":"{asked.finish_reason(piece)}","stop_reason":{json.dumps(piece.stop_reason)}'
        logprobs = (
            "null" if asked.logprobs is None else json.dumps(_logprobs_of(asked, self._choice, [piece]))
        )
        text = f'{self._before}{json.dumps(piece.text)}{self._between},"logprobs":{logprobs},{end}}}]'
        text += self._usage()
        if piece.finish_reason is not None and not asked.usage:
            text += f',"system_fingerprint":"{FINGERPRINT}"'
        return f"{text}}}\n\n".encode()

    def usage(self, made: int) -> bytes:
        """The event after the last token, where usage was asked for; `made` counts all choices."""
        usage = json.dumps(_usage(self._asked, made), separators=(",", ":"))
        return (
            f'{self._head},"choices":[],"usage":{usage},"system_fingerprint":"{FINGERPRINT}"}}\n\n'.encode()
        )

    def _usage(self) -> str:
        if not self._asked.usage_everywhere:
            return ""
        prompt, made = self._asked.prompt_tokens, self._made
        return (
            f',"usage":{{"prompt_tokens":{prompt},"total_tokens":{prompt + made},"completion_tokens":{made}}}'
        )


def whole_answer(asked: Asked, got: Mapping[int, Sequence[Piece]]) -> dict[str, Any]:
    """The answer to a request that did not ask for a stream; `got` has every choice's pieces."""
    made = sum(piece.tokens for pieces in got.values() for piece in pieces)
    return {
        "id": asked.id,
        "object": "chat.completion" if asked.chat else "text_completion",
        "created": asked.created,
        "model": asked.model,
        "choices": [_choice(asked, index, got[index]) for index in sorted(got)],
        "system_fingerprint": FINGERPRINT,
        "usage": _usage(asked, made),
    }


def _choice(asked: Asked, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
    text = "".join(piece.text for piece in pieces)
    choice: dict[str, Any] = {"index": index}
    if not asked.chat:
        choice["text"] = text
    elif asked.tool:
        call = {
            "id": asked.call_id(index),
            "type": "function",
            "function": {"name": asked.tool, "arguments": text},
        }
        choice["message"] = {"role": "assistant", "content": "", "tool_calls": [call]}
    else:
        choice["message"] = {"role": "assistant", "content": text}
    choice["logprobs"] = None if asked.logprobs is None else _logprobs_of(asked, index, pieces)
    choice |= {"finish_reason": asked.finish_reason(pieces[-1]), "stop_reason": pieces[-1].stop_reason}
    return choice


def _usage(asked: Asked, made: int) -> dict[str, int]:
    prompt = asked.prompt_tokens
    return {"prompt_tokens": prompt, "total_tokens": prompt + made, "completion_tokens": made}


def _logprobs_of(asked: Asked, choice: int, pieces: Sequence[Piece]) -> dict[str, Any]:
    """Made-up numbers in the shape of the endpoint: chat's list of tokens, or completions' lists side by side."""
    tokens: list[dict[str, Any]] = []
    for piece in pieces:
        for index in range(piece.first, piece.first + piece.tokens):
            token = asked.prompts[choice].token(index)
            named = {"token": token, "logprob": -0.125 * (1 + index % 8), "bytes": list(token.encode())}
            others = [named | {"token": f"{token}~{rank}"} for rank in range(1, asked.logprobs or 0)]
            tokens.append(named | {"top_logprobs": [named, *others] if asked.logprobs else []})
    if asked.chat:
        return {"content": tokens}
    return {
        "text_offset": [sum(len(before["token"]) for before in tokens[:at]) for at in range(len(tokens))],
        "token_logprobs": [each["logprob"] for each in tokens],
        "tokens": [each["token"] for each in tokens],
        "top_logprobs": [{top["token"]: top["logprob"] for top in each["top_logprobs"]} for each in tokens],
    }
