"""Linear layers to which adapters add their low-rank products, another one for each row of a call if need be.

The base product is computed once for all rows. Who calls the model says before each call which rows use which adapter;
number 0 is the model as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_unflatten

from rvllm_local.models.adapter_files import Adapter, LowRank


class AdapterChoice:
    """Which adapter each row of the next call uses; shared by the adapted layers of one model."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.rows: mx.array | None = (
            None  # [rows]; None where all rows use the model as it is
        )

    def choose(self, adapters: Sequence[int]) -> None:
        """Set the adapters of the rows of the next call; a prefill call has one row."""
        self.rows = mx.array(list(adapters), dtype=mx.uint32) if any(adapters) else None


def adapted_bytes(adapters: Sequence[Adapter]) -> int:
    """What the low-rank weights will take in memory."""
    total = 0
    for path in {path for adapter in adapters for path in adapter.layers}:
        parts = [adapter.layers[path] for adapter in adapters if path in adapter.layers]
        width = parts[0].a.shape[0] + parts[0].b.shape[1]
        total += (
            (len(adapters) + 1)
            * width
            * max(part.a.shape[1] for part in parts)
            * parts[0].a.dtype.size
        )
    return total


def adapt(module: nn.Module, adapters: Sequence[Adapter]) -> AdapterChoice:
    """Put adapted layers in the places of a loaded model's linear layers, as far as any adapter has weights for them."""
    choice = AdapterChoice(len(adapters))
    paths = sorted({path for adapter in adapters for path in adapter.layers})
    layers = dict(module.named_modules())
    placed = [
        (
            path,
            AdaptedLinear(
                layers[path], [adapter.layers.get(path) for adapter in adapters], choice
            ),
        )
        for path in paths
    ]
    module.update_modules(tree_unflatten(placed))
    return choice


class AdaptedLinear(nn.Module):  # type: ignore[misc]
    """A linear layer with the low-rank products of several adapters: `[adapter, in, rank]` and `[adapter, rank, out]`.

    Ranks are filled up with zeros to the largest; an adapter without weights for this layer adds zeros.
    """

    def __init__(
        self, base: nn.Module, parts: Sequence[LowRank | None], choice: AdapterChoice
    ) -> None:
        super().__init__()
        self.base = base
        self._choice = choice
        given = next(part for part in parts if part is not None)
        inputs, outputs = given.a.shape[0], given.b.shape[1]
        empty = LowRank(
            mx.zeros((inputs, 1), dtype=given.a.dtype),
            mx.zeros((1, outputs), dtype=given.b.dtype),
            0.0,
        )
        filled = [empty, *(part or empty for part in parts)]
        rank = max(part.a.shape[1] for part in filled)
        self._a = mx.stack(
            [mx.pad(part.a, [(0, 0), (0, rank - part.a.shape[1])]) for part in filled]
        )
        self._b = mx.stack(
            [mx.pad(part.b, [(0, rank - part.b.shape[0]), (0, 0)]) for part in filled]
        )
        self._scales = mx.array([part.scale for part in filled])
        mx.eval(self._a, self._b, self._scales)

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self.base(x)
        rows = self._choice.rows
        if rows is None:
            return y
        by_row = x.reshape(
            rows.size, -1, x.shape[-1]
        )  # some definitions flatten rows and tokens
        low = mx.gather_mm(by_row, self._a, rhs_indices=rows)
        added = self._scales[rows][:, None, None] * mx.gather_mm(
            low, self._b, rhs_indices=rows
        )
        summed: mx.array = y + added.astype(x.dtype).reshape(y.shape)
        return summed
