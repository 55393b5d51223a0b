"""Families that mlx-lm can divide: the engine's tokens are its own divided forward's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.ranks import FAMILIES, both_ways, needs_ring, save_for_ranks

pytestmark = needs_ring


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {family: save_for_ranks(family, root / family) for family in FAMILIES}


@pytest.fixture(scope="module")
def tokens(folders: dict[str, Path]) -> dict[str, list[list[int]]]:
    """Each family's tokens, mlx-lm's and the engine's; one pair of ranks has all."""
    return both_ways(list(folders.values()), 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_says_what_mlx_lm_s_divided_forward_says(
    family: str, tokens: dict[str, list[list[int]]]
) -> None:
    plain, paged = tokens[family]
    assert paged == plain
