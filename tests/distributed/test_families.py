"""Families that mlx-lm can divide: the engine's tokens are its own divided forward's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from rvllm_local import LLM, SamplingParams
from rvllm_local.distributed.ring import free_addresses
from tests.support.rank_pair import NUM_TOKENS, PROMPT
from tests.support.ranks import needs_ring
from tests.support.tiny import save_tiny, save_tokenizer
from tests.support.zoo import zoo_model

pytestmark = needs_ring
FAMILIES = ("qwen3", "qwen3_moe", "gpt_oss", "deepseek_v3")


def save_family(family: str, folder: Path) -> Path:
    if family != "deepseek_v3":
        return save_tiny(family, folder, seed=1)
    model, config = zoo_model(family)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {family: save_family(family, root / family) for family in FAMILIES}


@pytest.fixture(scope="module")
def both_ways(folders: dict[str, Path]) -> dict[str, list[list[int]]]:
    """Each family's tokens, mlx-lm's and the engine's; one pair of ranks has all."""
    addresses = free_addresses(2)
    command = [sys.executable, "-m", "tests.support.rank_pair"]
    paths = [str(folder) for folder in folders.values()]
    ranks = []
    for rank in range(2):
        arguments = [*command, str(rank), *addresses, *paths]
        ranks.append(subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True))
    printed = [process.communicate(timeout=280)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0]
    tokens: dict[str, list[list[int]]] = json.loads(printed[0])
    return tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_says_what_mlx_lm_s_divided_forward_says(
    family: str, folders: dict[str, Path], both_ways: dict[str, list[list[int]]]
) -> None:
    plain, paged = both_ways[family]
    assert paged == plain
    params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True)
    with LLM(str(folders[family]), kv_memory="4MB") as alone:
        (answer,) = alone.generate(PROMPT, params)
    assert list(answer.token_ids) == plain
