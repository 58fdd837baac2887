"""Byte-level BPE's alphabet, and the tokenizer.json that the `tokenizers` library reads for such a vocabulary.

Byte-level BPE writes every byte as one printable character: printable bytes stand for themselves, the others are moved
up past 255. A vocabulary of these characters can spell any text. It knows nothing of a particular model.
Source: the byte-to-unicode table of GPT-2's encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Json = dict[str, Any]


def alphabet() -> list[str]:
    """The 256 characters that stand for the bytes 0 to 255, in the order of the bytes."""
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    moved = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(moved)) for byte in range(256)]


def tokenizer_json(
    vocabulary: Mapping[str, int],
    merges: Sequence[Sequence[str]],
    special: Sequence[str],
    *,
    split_digits: bool,
) -> Json:
    """The content of tokenizer.json: `special` tokens are never split and never printed."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    steps: list[Json] = [{"type": "Digits", "individual_digits": True}] if split_digits else []
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": vocabulary[token],
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token in special
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(vocabulary),
            "merges": [list(merge) for merge in merges],
        },
    }
