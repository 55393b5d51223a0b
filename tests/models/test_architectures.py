"""The table of architectures in docs/models.md: complete, and true for one architecture of each kind."""

from __future__ import annotations

import pytest

from rvllm_local.errors import ModelFileError
from rvllm_local.models.architecture import known_families
from rvllm_local.models.families import build_model
from scripts.architectures import row_of, written_rows
from tests.support.matrix import judge
from tests.support.zoo import zoo_config

SAMPLE = (
    "afm7",  # layers that read another layer's keys
    "cohere2",  # windows
    "deepseek_v2",  # latent attention
    "deepseek_v32",  # latent attention with an index, two caches a layer
    "falcon_h1",  # attention and a state in one layer
    "gear",  # windows, a recurrent state and capped logits
    "gemma2",  # capped logits
    "granitemoehybrid",
    "llama4",  # refused
    "mimo_v2_flash",  # sinks, and keys wider than values
    "plamo2",
    "qwen3_5",
    "rwkv7",
)


def test_every_architecture_has_a_row() -> None:
    assert set(written_rows()) == known_families()


def test_enough_architectures_are_served() -> None:
    rows = [
        [cell.strip() for cell in row.split("|")] for row in written_rows().values()
    ]
    served = [row for row in rows if row[2] == "served"]
    assert len(served) >= 90
    assert sum("recurrent" in row[3] for row in served) >= 15
    assert not any(row[2] == "DIFFERENT" for row in rows)


@pytest.mark.parametrize("arch", SAMPLE)
def test_the_table_is_true(arch: str) -> None:
    assert row_of(judge(arch)) == written_rows()[arch]


def test_a_vocabulary_too_small_for_its_masked_tokens_is_refused() -> None:
    with pytest.raises(ModelFileError, match="masks token 100351"):
        build_model(zoo_config("phi3small"))
