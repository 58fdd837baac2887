"""The text that the stand-in engine speaks: a plain function of the prompt, so that a gap or a repeat can be seen.

Token number i of an answer is one word of the prompt, taken in turn, with the number behind it. To "tell me more" it
answers `tell:0 me:1 more:2 tell:3 …`, whatever the speed and however the tokens are cut into chunks. A second choice
begins with the second word, and so on. A prompt without words is answered with `w:0 w:1 …`. A prompt's tokens are its
words. An answer may also be a script: fixed tokens and then the end. Nothing here waits or is random.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_WORDS = 256
"""An answer goes round these first words of the prompt; more would only cost memory."""
MAX_WORD_CHARACTERS = 32
TOKENS_PER_MESSAGE = 4
"""What a chat template adds around each message."""
ID_BYTES = 7
"""Of a word in one id, which is below 2**63."""


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
    # Set: the answer is these tokens and no others.
    script: tuple[str, ...] | None = None
    # Which choice this is.
    choice: int = 0
    # How many images came with it.
    images: int = 0

    def token(self, index: int) -> str:
        """The text of the answer's token `index`, with the space that goes before it."""
        if self.script is not None:
            return (
                self.script[index] if index < len(self.script) else ""
            )  # the token that ends it has no text
        return f"{' ' if index else ''}{self.words[(index + self.choice) % len(self.words)]}:{index}"


def from_messages(messages: Any) -> Prompt:
    """The prompt of a chat: the last message speaks, all of them count. Raises PromptError."""
    if not isinstance(messages, list) or not messages:
        raise PromptError("messages must be a list of at least one message", "messages")
    count = images = 0
    words: list[str] = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise PromptError("each of messages must be an object with role and content", "messages")
        content = message.get("content")
        words = _text(content).split()
        shown = [_image(part) for part in content if _is_image(part)] if isinstance(content, list) else []
        words += shown
        images += len(shown)
        count += len(words) + TOKENS_PER_MESSAGE
    return Prompt(_cut(words), count, images=images)


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
    """An id for each word (for each part of a long one), made of its bytes, so that ids can be turned back."""
    ids = []
    for word in text.split():
        data = word.encode("utf-8", "replace")
        for at in range(0, len(data), ID_BYTES):
            ids.append(int.from_bytes(data[at : at + ID_BYTES], "big") << 1 | (at == 0))
    return ids


def text_of_ids(ids: Sequence[int]) -> str:
    """The words that have these ids, with one space between."""
    data = b""
    for each in ids:
        part = (each >> 1).to_bytes(8, "big").lstrip(b"\0")
        data += b" " + part if each & 1 and data else part
    return data.decode(errors="replace")


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
    # The stop string itself is shown too.
    keeps: bool = False
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
            end = position + len(self.found) if self.keeps else position
            shown, self._held = self._held[:end], ""
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


def _is_image(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "image_url"


def _image(part: dict[str, Any]) -> str:
    """An image as a word: what is known of it without a network, its type and its size in bytes."""
    url = (part.get("image_url") or {}).get("url")
    if not isinstance(url, str) or not url.startswith(("http://", "https://", "data:image/")):
        raise PromptError("The URL must be either a HTTP, data or file URL.", "messages")
    if not url.startswith("data:"):
        return url
    kind, _, data = url.removeprefix("data:").partition(";base64,")
    try:
        return f"{kind},{len(base64.b64decode(data, validate=True))}"
    except ValueError as error:
        raise PromptError(f"the image cannot be read: {error}", "messages") from error


def _cut(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(word[:MAX_WORD_CHARACTERS] for word in words[:MAX_WORDS]) or ("w",)
