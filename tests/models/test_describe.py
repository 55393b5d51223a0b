"""What a configuration says of a model: its heads under any of their names."""

from __future__ import annotations

from typing import Any

import pytest

from rvllm_local.models.describe import num_heads
from rvllm_local.models.head_counts import stated_heads


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        ({"num_attention_heads": 32, "hidden_size": 2048}, 32),
        ({"n_heads": 48}, 48),
        ({"num_query_heads": [12, 16, 20]}, 20),
        ({"text_config": {"num_attention_heads": 8}}, 8),
        ({"hidden_size": 2048}, None),
    ],
)
def test_query_heads_have_many_names(config: dict[str, Any], heads: int | None) -> None:
    assert stated_heads(config) == heads


def test_heads_that_are_not_stated_are_guessed_for_plans() -> None:
    assert num_heads({"hidden_size": 2048}) == 32
    assert num_heads({"n_heads": 4, "hidden_size": 2048}) == 4
