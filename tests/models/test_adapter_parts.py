"""The parts of an adapter that the ranks of a job have make up the whole of it."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.models.adapter_files import Adapter, LowRank, read_adapter
from rvllm_local.models.adapter_parts import divide_adapters
from rvllm_local.models.describe import describe
from rvllm_local.models.locate import ModelFiles, locate
from tests.support.lora import save_adapter
from tests.support.ranks import save_for_ranks

RANKS = 2
BY_ROWS = ("self_attn.q_proj", "mlp.gate_proj")
BY_COLUMNS = ("self_attn.o_proj", "mlp.down_proj")


class RankOf:
    """A rank of a group that nobody has formed: dividing asks for no more."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return RANKS


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    folder = save_for_ranks("llama", tmp_path_factory.mktemp("m") / "llama")
    return locate(str(folder))


@pytest.fixture(scope="module")
def whole(files: ModelFiles, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    folder = tmp_path_factory.mktemp("adapter") / "a"
    save_adapter(folder, files.path, [*BY_ROWS, *BY_COLUMNS])
    return read_adapter("a", folder, describe(files).module)


def part_of(whole: Adapter, files: ModelFiles, rank: int) -> Adapter:
    outline = describe(files)
    group = RankOf(rank)
    (part,) = divide_adapters([whole], outline.module, outline.config, group)  # type: ignore[arg-type]
    return part


def test_the_parts_make_up_the_whole(whole: Adapter, files: ModelFiles) -> None:
    parts = [part_of(whole, files, rank) for rank in range(RANKS)]
    assert len(whole.layers) == 2 * len(BY_ROWS + BY_COLUMNS)
    for path, layer in whole.layers.items():
        ours = [part.layers[path] for part in parts]
        if path.endswith(BY_COLUMNS):
            joined = mx.concatenate([part.a for part in ours], axis=0)
            assert mx.array_equal(joined, layer.a)
            assert all(mx.array_equal(part.b, layer.b) for part in ours)
            assert all(part.group is not None for part in ours)
        else:
            joined = mx.concatenate([part.b for part in ours], axis=1)
            assert mx.array_equal(joined, layer.b)
            assert all(mx.array_equal(part.a, layer.a) for part in ours)
            assert all(part.group is None for part in ours)


def test_a_layer_that_is_divided_in_another_way_is_refused(
    whole: Adapter, files: ModelFiles
) -> None:
    outline = describe(files)
    path = "model.layers.0.self_attn.q_proj"

    class Odd(type(outline.module)):  # type: ignore[misc]
        def shard(self, group: object) -> None:
            layer = self.layers[0].self_attn.q_proj
            layer.weight = layer.weight[::2]  # and its bias stays whole

    outline.module.__class__ = Odd
    alone = Adapter("a", {path: LowRank(*_halves(whole, path))}, "f")
    with pytest.raises(UnsupportedModelError, match=path):
        divide_adapters([alone], outline.module, outline.config, RankOf(0))  # type: ignore[arg-type]


def test_a_sum_that_the_definition_completes_is_left_to_it(tmp_path: Path) -> None:
    """DeepSeek's experts and their neighbours are summed once, at the layer's end."""
    outline = describe(locate(str(save_for_ranks("deepseek_v3", tmp_path / "m"))))
    path = "model.layers.1.mlp.shared_experts.down_proj"
    outputs, inputs = dict(outline.module.named_modules())[path].weight.shape
    layer = LowRank(mx.ones((inputs, 2)), mx.ones((2, outputs)), 1.0)
    whole = Adapter("a", {path: layer}, "f")
    (part,) = divide_adapters([whole], outline.module, outline.config, RankOf(1))  # type: ignore[arg-type]
    assert part.layers[path].a.shape == (inputs // RANKS, 2)
    assert part.layers[path].group is None


def _halves(adapter: Adapter, path: str) -> tuple[mx.array, mx.array, float]:
    layer = adapter.layers[path]
    return layer.a, layer.b, layer.scale
