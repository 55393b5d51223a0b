"""The stand-ins for mlx-lm's rotations turn as the rotations do."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from rvllm_local.attention.rotation import Rotary, install_rotations
from tests.support.kernel_way import chosen_runner

DIMS = 16
SCALED = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0] * (DIMS // 2),
        "long_factor": [1.5] * (DIMS // 2),
        "original_max_position_embeddings": 64,
    },
    "proportional": {"rope_type": "proportional", "partial_rotary_factor": 0.5},
}


def stand_in(kind: str) -> Rotary:
    from mlx_lm.models.rope_utils import initialize_rope

    holder = nn.Module()
    holder.rope = initialize_rope(
        DIMS,
        10_000.0,
        False,
        SCALED[kind],
        max_position_embeddings=256,
    )
    assert install_rotations(holder) == 1
    rotary: Rotary = holder.rope
    return rotary


@pytest.mark.parametrize("kind", SCALED)
def test_frequencies_and_gain_are_the_rotations(kind: str) -> None:
    rotary = stand_in(kind)
    x = np.random.default_rng(1).standard_normal((1, 1, 1, 24)).astype(np.float32)
    position = 70
    angles = position * np.array(rotary.frequencies)
    half = rotary.dims // 2
    first, second = x[..., :half], x[..., half : rotary.dims]
    turned = x.copy()
    cosines, sines = np.cos(angles), np.sin(angles)
    turned[..., :half] = rotary.gain * (first * cosines - second * sines)
    turned[..., half : rotary.dims] = rotary.gain * (first * sines + second * cosines)
    expected = np.array(rotary(mx.array(x), offset=position))
    assert np.abs(turned - expected).max() < 1e-4


def test_only_some_rotations_have_a_gain() -> None:
    gains = {kind: stand_in(kind).gain for kind in SCALED}
    assert gains["linear"] == gains["llama3"] == gains["proportional"] == 1.0
    assert gains["yarn"] > 1.0
    assert gains["longrope"] > 1.0


def test_a_launch_rotates_by_yarn() -> None:
    runner = chosen_runner("llama", rope_scaling=SCALED["yarn"])
    assert runner.mode.rotates
