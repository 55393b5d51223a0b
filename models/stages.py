"""Gives each rank of a pipeline its layers, through the definition's own `pipeline`.

The last rank has the first layers. The definition sends hidden states on to the next
rank, and those of rank 0 to all, over the group that MLX has formed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx import nn

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.models.sharding import Outline


def take_stage(
    module: nn.Module,
    config: Mapping[str, Any],
    ranks: int,
    rank: int,
) -> None:
    """Leave a module the layers of this rank. Nothing is evaluated.

    A call of it goes through these layers alone, from the embedding to the logits, until
    `join_stages`. Raises `UnsupportedModelError` for a model that has no pipeline.
    """
    family = str(config.get("model_type"))
    stack: Any = getattr(module, "model", None)
    if not hasattr(stack, "pipeline"):
        raise UnsupportedModelError(
            f"{family} cannot be a pipeline of {ranks} ranks: mlx-lm's definition does "
            "not say how; leave out --pipeline, or use one rank"
        )
    group = Outline(ranks, rank)
    try:
        stack.pipeline(group)
    except (ValueError, AssertionError) as error:
        words = str(error).split()
        detail = " ".join(words)[:200]
        raise UnsupportedModelError(
            f"{family} cannot be a pipeline of {ranks} ranks: {detail}"
        ) from error
    _place(module, ranks=1, rank=0)


def join_stages(
    module: nn.Module,
    ranks: int,
    rank: int,
) -> None:
    """From now on each call goes through the layers of all ranks."""
    _place(module, ranks, rank)


def _place(module: nn.Module, ranks: int, rank: int) -> None:
    """Some definitions keep the layers a level deeper than `pipeline`."""
    for part in module.modules():
        if hasattr(part, "pipeline_size"):
            part.pipeline_size = ranks
            part.pipeline_rank = rank
