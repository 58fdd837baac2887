"""Make a tiny Llama with random weights: every part of a real model, none of its cost. For tests.

    python make_tiny_llama.py FOLDER

Everything follows from a seed, so two machines make the same files byte for byte; nothing but the standard library is
needed. Its words are made of syllables. The output rows of all tokens that are no word with a space before it are zero,
so greedy decoding chooses only such words and never ends by itself: a test that asks for N tokens gets N words.
"""

from __future__ import annotations

import json
import random
import sys
from array import array
from collections.abc import Callable
from itertools import product
from pathlib import Path

import byte_tokens
import safetensors_file

SEED = 8600
HIDDEN = 64
INTERMEDIATE = 176
LAYERS = 2
HEADS = 2
KEY_VALUE_HEADS = 1
HEAD = HIDDEN // HEADS
"""vLLM's attention on a CPU knows heads of 32 and up; with 16 it gets healthy and dies of the first request."""
VOCABULARY = 8192
CONTEXT = 4096
CONSONANTS = "bcdfghjklmnprstvwxyz"
VOWELS = "aeiou"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
FIRST_WORD = len(SPECIAL) + 256 + len(CONSONANTS) * len(VOWELS)
"""Before it come the special tokens, single bytes, and syllables without a space."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "float32",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_VALUE_HEADS,
    "head_dim": HEAD,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "max_position_embeddings": CONTEXT,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "use_cache": True,
}


def words() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary (token -> id, exactly VOCABULARY of them) and the merges that build its words from bytes."""
    tokens = [*SPECIAL, *byte_tokens.alphabet()]
    merges: list[tuple[str, str]] = []
    space = byte_tokens.alphabet()[ord(" ")]

    def merge(left: str, right: str) -> str:
        merges.append((left, right))
        tokens.append(left + right)
        return left + right

    syllables = [merge(consonant, vowel) for consonant, vowel in product(CONSONANTS, VOWELS)]
    starts = [merge(space, syllable) for syllable in syllables]
    for start, syllable in product(starts, syllables):
        if len(tokens) == VOCABULARY:
            break
        merge(start, syllable)
    return {token: index for index, token in enumerate(tokens)}, merges


def weights(rng: random.Random) -> dict[str, tuple[safetensors_file.Shape, Callable[[], bytes]]]:
    """Name -> shape and bytes of every tensor, drawn from `rng` in the order in which they are written."""

    def little_endian(values: array[float]) -> bytes:
        if sys.byteorder == "big":
            values.byteswap()
        return values.tobytes()

    def uniform(
        rows: int, columns: int, spread: float, zero_rows: int = 0
    ) -> tuple[safetensors_file.Shape, Callable[[], bytes]]:
        def draw() -> bytes:
            zeros = [0.0] * (zero_rows * columns)
            drawn = [(rng.random() * 2 - 1) * spread for _ in range((rows - zero_rows) * columns)]
            return little_endian(array("f", zeros + drawn))

        return (rows, columns), draw

    ones = (HIDDEN,), lambda: little_endian(array("f", [1.0] * HIDDEN))
    tensors = {"model.embed_tokens.weight": uniform(VOCABULARY, HIDDEN, 1.0)}
    for index in range(LAYERS):
        layer = f"model.layers.{index}."
        tensors[layer + "input_layernorm.weight"] = ones
        tensors[layer + "self_attn.q_proj.weight"] = uniform(HIDDEN, HIDDEN, 0.3)
        tensors[layer + "self_attn.k_proj.weight"] = uniform(KEY_VALUE_HEADS * HEAD, HIDDEN, 0.3)
        tensors[layer + "self_attn.v_proj.weight"] = uniform(KEY_VALUE_HEADS * HEAD, HIDDEN, 0.3)
        tensors[layer + "self_attn.o_proj.weight"] = uniform(HIDDEN, HIDDEN, 0.3)
        tensors[layer + "post_attention_layernorm.weight"] = ones
        tensors[layer + "mlp.gate_proj.weight"] = uniform(INTERMEDIATE, HIDDEN, 0.3)
        tensors[layer + "mlp.up_proj.weight"] = uniform(INTERMEDIATE, HIDDEN, 0.3)
        tensors[layer + "mlp.down_proj.weight"] = uniform(HIDDEN, INTERMEDIATE, 0.3)
    tensors["model.norm.weight"] = ones
    tensors["lm_head.weight"] = uniform(VOCABULARY, HIDDEN, 0.5, zero_rows=FIRST_WORD)
    return tensors


def main(folder: Path) -> None:
    vocabulary, merges = words()
    tokenizer = byte_tokens.tokenizer_json(vocabulary, merges, SPECIAL, split_digits=False)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[1],
        "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[0],
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    safetensors_file.write_f32(folder / "model.safetensors", weights(random.Random(SEED)))
    for name, content in (
        ("config.json", CONFIG),
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", settings),
    ):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
