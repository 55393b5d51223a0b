"""Linear layers to which adapters add their low-rank products.

Each row of a call may use another adapter. The base product is computed once for all
rows. The caller of the model says before each call which rows use which adapter; number
0 is the model as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_unflatten

from rvllm_local.models.adapter_files import Adapter, LowRank


class AdapterChoice:
    """Which adapter each row of the next call uses.

    All adapted layers of one model share it.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        # [rows]; None where all rows use the model as it is
        self.rows: mx.array | None = None

    @contextlib.contextmanager
    def traced(self, rows: mx.array | None) -> Iterator[None]:
        """Each row's adapter is an argument of a graph while this is open."""
        self.rows = rows
        try:
            yield
        finally:
            self.rows = None

    def choose(self, adapters: Sequence[int]) -> None:
        """Set the adapters of the rows of the next call; a prefill call has one row."""
        self.rows = None
        if any(adapters):
            self.rows = mx.array(list(adapters), dtype=mx.uint32)


def adapted_bytes(adapters: Sequence[Adapter]) -> int:
    """What the low-rank weights will take in memory."""
    total = 0
    for path in _adapted_paths(adapters):
        parts = []
        for adapter in adapters:
            if path in adapter.layers:
                parts.append(adapter.layers[path])
        first = parts[0]
        inputs = first.a.shape[0]
        outputs = first.b.shape[1]
        rank = max(part.a.shape[1] for part in parts)
        values = (inputs + outputs) * rank
        copies = len(adapters) + 1  # number 0 is an adapter that adds zeros
        total += copies * values * first.a.dtype.size
    return total


def _adapted_paths(adapters: Sequence[Adapter]) -> list[str]:
    """Paths of the layers for which any adapter has weights."""
    paths: set[str] = set()
    for adapter in adapters:
        paths |= adapter.layers.keys()
    return sorted(paths)


def adapt(module: nn.Module, adapters: Sequence[Adapter]) -> AdapterChoice:
    """Replace a loaded model's linear layers for which any adapter has weights."""
    choice = AdapterChoice(len(adapters))
    layers = dict(module.named_modules())
    adapted = []
    for path in _adapted_paths(adapters):
        parts = [adapter.layers.get(path) for adapter in adapters]
        layer = AdaptedLinear(layers[path], parts, choice)
        adapted.append((path, layer))
    module.update_modules(tree_unflatten(adapted))
    return choice


class AdaptedLinear(nn.Module):  # type: ignore[misc]
    """A linear layer with the low-rank products of several adapters.

    Their weights are `[adapter, in, rank]` and `[adapter, rank, out]`. Ranks are filled
    up with zeros to the largest. An adapter without weights for this layer adds zeros.
    """

    def __init__(
        self,
        base: nn.Module,
        parts: Sequence[LowRank | None],
        choice: AdapterChoice,
    ) -> None:
        super().__init__()
        self.base = base
        self._choice = choice
        filled = _with_zeros(parts)
        self._group = filled[-1].group
        rank = max(part.a.shape[1] for part in filled)
        self._a = mx.stack([_padded(part.a, 1, rank) for part in filled])
        self._b = mx.stack([_padded(part.b, 0, rank) for part in filled])
        self._scales = mx.array([part.scale for part in filled])
        mx.eval(self._a, self._b, self._scales)

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self.base(x)
        rows = self._choice.rows
        if rows is None:
            return y
        # Some definitions flatten rows and tokens.
        by_row = x.reshape(rows.size, -1, x.shape[-1])
        scales = self._scales[rows][:, None, None]
        low = mx.gather_mm(by_row, self._a, rhs_indices=rows)
        if self._group is not None:
            low = mx.distributed.all_sum(low, group=self._group)
        added = scales * mx.gather_mm(low, self._b, rhs_indices=rows)
        added = added.astype(x.dtype)
        return y + added.reshape(y.shape)


def _with_zeros(parts: Sequence[LowRank | None]) -> list[LowRank]:
    """A part for each adapter, and before them one for the model as it is."""
    given = next(part for part in parts if part is not None)
    inputs = given.a.shape[0]
    outputs = given.b.shape[1]
    zeros = LowRank(
        a=mx.zeros((inputs, 1), dtype=given.a.dtype),
        b=mx.zeros((1, outputs), dtype=given.b.dtype),
        scale=0.0,
        group=given.group,
    )
    filled = [zeros]
    for part in parts:
        filled.append(part or zeros)
    return filled


def _padded(matrix: mx.array, axis: int, size: int) -> mx.array:
    """The matrix with zeros behind it, up to `size` along an axis."""
    widths = [(0, 0), (0, 0)]
    widths[axis] = (0, size - matrix.shape[axis])
    return mx.pad(matrix, widths)
