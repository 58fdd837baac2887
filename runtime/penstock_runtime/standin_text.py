"""The text that the stand-in engine speaks: a plain function of the prompt, so that a gap or a repeat can be seen.

Token number i of an answer is one word of the prompt, taken in turn, with the number behind it. To "tell me more" it
answers `tell:0 me:1 more:2 tell:3 …`, whatever the speed and however the tokens are cut into chunks. A prompt without
words is answered with `w:0 w:1 …`. A prompt's tokens are its words. Nothing here waits or is random.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_WORDS = 256
"""An answer goes round these first words of the prompt; more would only cost memory."""
MAX_WORD_CHARACTERS = 32
TOKENS_PER_MESSAGE = 4
"""What a chat template adds around each message."""
VOCABULARY = 50_000


class PromptError(Exception):
    """A prompt that vLLM would refuse too; says which field."""

    def __init__(self, message: str, parameter: str) -> None:
        super().__init__(message)
        self.parameter = parameter


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an answer is made from: its words, and how many tokens were asked with."""

    words: tuple[str, ...]
    tokens: int

    def token(self, index: int) -> str:
        """The text of the answer's token `index`, with the space that goes before it."""
        return f"{' ' if index else ''}{self.words[index % len(self.words)]}:{index}"


def from_messages(messages: Any) -> Prompt:
    """The prompt of a chat: the last message speaks, all of them count. Raises PromptError."""
    if not isinstance(messages, list) or not messages:
        raise PromptError("messages must be a list of at least one message", "messages")
    count = 0
    words: list[str] = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise PromptError("each of messages must be an object with role and content", "messages")
        words = _text(message.get("content")).split()
        count += len(words) + TOKENS_PER_MESSAGE
    return Prompt(_cut(words), count)


def from_prompt(prompt: Any) -> Prompt:
    """The prompt of a completion: a text or a list of token ids; one of either. Raises PromptError."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        words = prompt.split()
        return Prompt(_cut(words), max(1, len(words)))
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        return Prompt(_cut([f"t{token}" for token in prompt[:MAX_WORDS]]), len(prompt))
    raise PromptError(
        "prompt must be one text or one list of token ids (the stand-in takes no batches)", "prompt"
    )


def token_ids(text: str) -> list[int]:
    """One id for each word, the same wherever the word stands."""
    return [zlib.crc32(word.encode()) % VOCABULARY for word in text.split()]


def embedding(text: str, size: int) -> list[float]:
    """A vector of length 1 and `size` numbers that depends on the text alone."""
    stream = hashlib.shake_128(text.encode()).digest(2 * size)
    numbers = [int.from_bytes(stream[2 * i : 2 * i + 2], "little") / 32767.5 - 1 for i in range(size)]
    length = sum(number * number for number in numbers) ** 0.5
    return [number / length for number in numbers]


@dataclass(slots=True)
class StopFinder:
    """Finds the first stop string in a text that comes in pieces, and gives out only what cannot be part of one."""

    stops: Sequence[str]
    _held: str = ""
    found: str | None = field(default=None, init=False)

    def push(self, text: str) -> str:
        """What may be shown after `text` arrived; once `found` is set, that was all."""
        if not self.stops:
            return text
        self._held += text
        at = [(self._held.find(stop), stop) for stop in self.stops if stop in self._held]
        if at:
            position, self.found = min(at)
            shown, self._held = self._held[:position], ""
            return shown
        keep = max(len(stop) for stop in self.stops) - 1
        cut = max(0, len(self._held) - keep)
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def rest(self) -> str:
        """What was held back, when the text has ended without a stop string."""
        held, self._held = self._held, ""
        return held


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text", "") for part in content if isinstance(part, dict)]
        return " ".join(part for part in parts if isinstance(part, str))
    if content is None:
        return ""
    raise PromptError("content must be a text or a list of parts", "messages")


def _cut(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(word[:MAX_WORD_CHARACTERS] for word in words[:MAX_WORDS]) or ("w",)
