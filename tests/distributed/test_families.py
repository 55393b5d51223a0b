"""Families that mlx-lm can divide: the engine's tokens are its own divided forward's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ranks import FAMILIES, free_hosts, needs_ring, save_for_ranks

pytestmark = needs_ring


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {family: save_for_ranks(family, root / family) for family in FAMILIES}


@pytest.fixture(scope="module")
def both_ways(folders: dict[str, Path]) -> dict[str, list[list[int]]]:
    """Each family's tokens, mlx-lm's and the engine's; one pair of ranks has all."""
    addresses = ",".join(free_hosts(2))
    command = [sys.executable, "-m", "tests.support.rank_group"]
    paths = [str(folder) for folder in folders.values()]
    ranks = []
    for rank in range(2):
        arguments = [*command, str(rank), addresses, *paths]
        ranks.append(subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True))
    printed = [process.communicate(timeout=280)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0]
    tokens: dict[str, list[list[int]]] = json.loads(printed[0])
    return tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_says_what_mlx_lm_s_divided_forward_says(
    family: str, both_ways: dict[str, list[list[int]]]
) -> None:
    plain, paged = both_ways[family]
    assert paged == plain
