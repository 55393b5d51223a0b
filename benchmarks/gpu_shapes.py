"""Model shapes that GPU benchmarks measure, and a text side that spells nothing."""

from __future__ import annotations

from typing import Any

LLAMA_1B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "vocab_size": 128256,
    "rope_theta": 500000.0,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
}
LLAMA_8B: dict[str, Any] = LLAMA_1B | {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "intermediate_size": 14336,
    "head_dim": 128,
    "tie_word_embeddings": False,
}
SHAPES = {"8b": LLAMA_8B, "1b": LLAMA_1B}


class NoText:
    """The detokenizer is fed one byte a token."""

    end_token_ids: frozenset[int] = frozenset()

    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        return "a" * len(ids)

    def id_to_bytes(self, token_id: int) -> bytes | None:
        return b"a"

    def keeping(self, kept_special: object) -> NoText:
        return self
