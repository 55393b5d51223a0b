"""A definition whose file has a dash in its name is found, and served as others are."""

from __future__ import annotations

from typing import Any

from tests.support.matrix import judge
from tests.support.zoo import VOCAB_SIZE


def block(*, has_attention: bool) -> dict[str, Any]:
    attention = {"no_op": not has_attention, "replace_with_linear": False}
    if has_attention:
        attention["n_heads_in_group"] = 2
    ffn = {"no_op": False, "replace_with_linear": False, "ffn_mult": 1.5}
    return {"attention": attention, "ffn": ffn}


def test_nemotron_nas_has_layers_without_attention() -> None:
    blocks = [block(has_attention=True), block(has_attention=False)]
    config = {
        "model_type": "nemotron-nas",
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": VOCAB_SIZE,
        "block_configs": [*blocks, block(has_attention=True)],
    }
    verdict = judge("nemotron-nas", config)
    assert (verdict.verdict, verdict.detail) == ("equal", "")
