"""Gives each rank of a job its part of a model, through the definition's own `shard`.

Rows and columns are divided between ranks; sums over all of them stand in the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.models.head_counts import kv_heads, stated_heads

# Where a definition keeps the group that it sums over.
_GROUP_NAMES = ("group", "sharding_group")


class Outline:
    """Stands for a rank of a group that does not exist yet: shapes need no more."""

    def __init__(self, size: int, rank: int = 0) -> None:
        self._size = size
        self._rank = rank

    def size(self) -> int:
        return self._size

    def rank(self) -> int:
        return self._rank


def divide(
    module: nn.Module, config: Mapping[str, Any], group: mx.distributed.Group
) -> None:
    """Leave a module the part of this rank. Nothing is evaluated.

    Raises `UnsupportedModelError` for one that cannot be divided so.
    """
    _divide(module, config, group)


def divide_outline(module: nn.Module, config: Mapping[str, Any], ranks: int) -> None:
    """Leave a module the shapes of one rank's part; it can be called, alone.

    Raises as `divide` does.
    """
    _divide(module, config, Outline(ranks))
    alone = mx.distributed.init()
    for part in module.modules():
        for name in _GROUP_NAMES:
            if isinstance(getattr(part, name, None), Outline):
                setattr(part, name, alone)


def _divide(module: nn.Module, config: Mapping[str, Any], group: Any) -> None:
    ranks = group.size()
    family = str(config.get("model_type"))
    if not hasattr(module, "shard"):
        raise UnsupportedModelError(
            f"{family} cannot be divided between {ranks} ranks: mlx-lm's definition "
            "does not say how; it runs on one"
        )
    _check_heads(config, family, ranks)
    try:
        module.shard(group)
    except (ValueError, AssertionError) as error:
        detail = " ".join(str(error).split())[:200]
        raise UnsupportedModelError(
            f"{family} cannot be divided between {ranks} ranks: {detail}"
        ) from error


def _check_heads(config: Mapping[str, Any], family: str, ranks: int) -> None:
    """Every rank must get as many heads as the others."""
    queries = stated_heads(config)
    if queries is None:
        return
    keys = kv_heads(config) or queries
    fitting = []
    for count in range(1, keys + 1):
        if queries % count == 0 and keys % count == 0:
            fitting.append(count)
    if ranks in fitting:
        return
    counts = ", ".join(str(count) for count in fitting)
    raise UnsupportedModelError(
        f"{family} cannot be divided between {ranks} ranks: it has {queries} heads and "
        f"{keys} of keys and values; as many ranks as divide both would fit: {counts}"
    )


def parameter_bytes(module: nn.Module) -> int:
    """Bytes of all parameters, evaluated or not."""
    total = 0
    for _, parameter in tree_flatten(module.parameters()):
        total += parameter.nbytes
    return total
