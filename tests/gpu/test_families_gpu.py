"""Every architecture on a real GPU: mlx-lm's own tokens, and attention by the kernels wherever there is one for its shape.

Runs under pytest, or alone: `python tests/gpu/test_families_gpu.py [ARCHITECTURE ...]`, by default all of them.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import bootstrap

bootstrap.prepare()

from rvllm_local import host

host.prepare()

from rvllm_local.metal_kernels import default_backend
from rvllm_local.models.architecture import known_families
from tests.support.matrix import judge

# What each token sees is chosen by an index that keeps keys without values.
BY_REFERENCE = {"minimax_m3_vl"}


def wrong_with(arch: str) -> str | None:
    """What is wrong with an architecture here; None for nothing, as for those that are refused everywhere."""
    found = judge(arch)
    print(
        f"{found.verdict} | {arch} | {found.backend} | {found.way} | {found.keeps} | {found.detail}",
        flush=True,
    )
    if found.verdict == "different":
        return f"differs from mlx-lm: {found.detail}"
    if found.verdict == "equal" and found.backend.startswith("kernels") == (
        arch in BY_REFERENCE
    ):
        return f"is served by the {found.backend}"
    return None


def main(architectures: list[str]) -> int:
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    return sum(
        wrong_with(arch) is not None
        for arch in architectures or sorted(known_families())
    )


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1:])))

import pytest


@pytest.mark.gpu
@pytest.mark.skipif(
    default_backend() != "cuda", reason="needs an NVIDIA GPU with MLX's CUDA build"
)
@pytest.mark.parametrize("arch", sorted(known_families()))
def test_family_on_gpu(arch: str) -> None:
    assert wrong_with(arch) is None


@pytest.mark.mac
@pytest.mark.parametrize("arch", sorted(known_families()))
def test_family_on_a_mac(arch: str) -> None:
    assert wrong_with(arch) is None
