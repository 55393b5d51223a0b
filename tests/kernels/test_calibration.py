"""The emulator against a kernel that is known to be right: MLX's own vector attention, from the headers of its package."""

from __future__ import annotations

import re
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.emulator import run_text

HEADER = Path(mx.__file__).parent / "include/mlx/backend/metal/kernels/sdpa_vector.h"
HEADS, KV_HEADS, TOKENS, D = 4, 2, 77, 64

# What MLX's launch code and build put around the template.
PROBE = """
template <typename T> struct Limits { static constexpr T finite_min = std::numeric_limits<T>::lowest(); };
%s
[[kernel]] void custom_kernel_probe(
  const device half* q [[buffer(0)]], const device half* k [[buffer(1)]], const device half* v [[buffer(2)]],
  device half* o [[buffer(3)]], const constant int& gqa [[buffer(4)]], const constant int& n [[buffer(5)]],
  const constant float& scale [[buffer(6)]],
  uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
  uint3 threadgroups_per_grid [[threadgroups_per_grid]],
  uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
  uint thread_index_in_simdgroup [[thread_index_in_simdgroup]]) {
  const size_t head = (size_t)n * 64, token = 64;
  sdpa_vector<half, 64, 64>(q, k, v, o, gqa, n, head, token, head, token, scale, nullptr, nullptr, n, n, n, nullptr, n,
    threadgroup_position_in_grid, threadgroups_per_grid, simdgroup_index_in_threadgroup, thread_index_in_simdgroup);
}
"""


def kernel_text() -> str:
    """The first template of MLX's header as a plain function, its function constants off, and a kernel that calls it."""
    text = HEADER.read_text(encoding="utf-8").split(
        "template <typename T, int D, int V = D, int TK"
    )[0]
    text = re.sub(r"#include.*|using namespace metal;", "", text)
    text = re.sub(
        r"constant (bool|int) (\w+) \[\[function_constant\(\d+\)\]\];",
        r"static const \1 \2 = 0;",
        text,
    )
    return PROBE % re.sub(r"\[\[.*?\]\]", "", text, flags=re.DOTALL)


@pytest.mark.skipif(
    not HEADER.exists(), reason="this build of MLX comes without its Metal headers"
)
@pytest.mark.parametrize("seed", [0, 5])
def test_mlx_own_kernel_gives_what_mlx_gives(seed: int) -> None:
    random = np.random.default_rng(3)
    q, k, v = (
        random.standard_normal((1, h, t, D)).astype(np.float16)
        for h, t in ((HEADS, 1), (KV_HEADS, TOKENS), (KV_HEADS, TOKENS))
    )
    scalars = [
        np.array([HEADS // KV_HEADS], np.int32),
        np.array([TOKENS], np.int32),
        np.array([0.125], np.float32),
    ]
    found = run_text(
        kernel_text(),
        [q, k, v, q.nbytes, *scalars],
        (1024 * HEADS, 1, 1),
        (1024, 1, 1),
        seed,
    )
    ours = np.frombuffer(found[3], np.float16).reshape(q.shape).astype(np.float64)
    expected = np.array(
        mx.fast.scaled_dot_product_attention(
            mx.array(q), mx.array(k), mx.array(v), scale=0.125
        )
    ).astype(np.float64)
    assert np.abs(ours - expected).max() <= 1e-3 * np.abs(expected).max()
