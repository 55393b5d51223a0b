"""The table of architectures in docs/models.md: complete, and true for one architecture of each kind."""

from __future__ import annotations

import pytest

from rvllm_local.errors import ModelFileError
from rvllm_local.models.architecture import known_families
from rvllm_local.models.families import build_model
from scripts.architectures import cells_of, row_of, written_rows
from tests.support.kernel_way import kernel_way
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
    "llama4",  # layers in chunks
    "mimo_v2_flash",  # sinks, and keys wider than values
    "plamo2",
    "qwen3_5",
    "rwkv7",
)


def test_every_architecture_has_a_row() -> None:
    assert set(written_rows()) == known_families()


def test_enough_architectures_are_served() -> None:
    rows = [cells_of(row) for row in written_rows().values()]
    served = [row for row in rows if row[1] == "served"]
    assert len(served) >= 118
    assert sum("recurrent" in row[2] for row in served) >= 24
    assert not any(row[1] == "DIFFERENT" for row in rows)


@pytest.mark.parametrize("arch", SAMPLE)
def test_the_table_is_true(arch: str) -> None:
    row = written_rows()[arch]
    assert row_of(judge(arch), cells_of(row)[4]) == row


@pytest.mark.parametrize("arch", ["lfm2", "deepseek_v2"])
def test_the_way_over_the_kernels_is_true(arch: str) -> None:
    assert kernel_way(arch) == cells_of(written_rows()[arch])[4]


def test_a_vocabulary_too_small_for_its_masked_tokens_is_refused() -> None:
    with pytest.raises(ModelFileError, match="masks token 100351"):
        build_model({**zoo_config("phi3small"), "vocab_size": 384})
