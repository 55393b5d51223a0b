"""Additions to the residual stream that wait for the norm that follows them.

In a compiled step one launch does both. While a step is traced the embedding returns a
`ResidualStream` in place of an array. Adding to it only notes what to add, and the next
`JoinedNorm` launches the sum and its norm together. A model that does anything else
with its stream fails in the load-time self-check, and is then run without this.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
from mlx import nn

from rvllm_local.metal_kernels import AddNorm


class ResidualStream:
    """An array `[rows, tokens, width]`, and perhaps one more that is still to be added to it."""

    def __init__(self, base: mx.array, added: mx.array | None = None) -> None:
        self._base = base
        self._added = added

    def __add__(self, other: mx.array) -> ResidualStream:
        return ResidualStream(self.array, other)

    def __mul__(self, factor: float | mx.array) -> ResidualStream:
        return ResidualStream(self.array * factor)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._base.shape

    @property
    def dtype(self) -> mx.Dtype:
        return self._base.dtype

    @property
    def array(self) -> mx.array:
        """The whole sum, added now if it still waited."""
        if self._added is not None:
            self._base = self._base + self._added
            self._added = None
        return self._base

    def normed(self, norm: JoinedNorm, add_norm: AddNorm) -> mx.array:
        """The norm of the sum. The sum is computed afterwards, too."""
        if self._added is None:
            plain: mx.array = norm.inner(self._base)
            return plain
        total, normed = add_norm(
            self._base,
            self._added,
            norm.scale,
            norm.inner.eps,
        )
        self._base = total
        self._added = None
        return normed


class JoinedAdds:
    """The launch that adds and norms, for one model.

    `are_on` says whether the model's embeddings return streams now.
    """

    def __init__(self, add_norm: AddNorm) -> None:
        self.add_norm = add_norm
        self.are_on = False

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Streams while this is open."""
        self.are_on = True
        try:
            yield
        finally:
            self.are_on = False


class _StandIn(nn.Module):  # type: ignore[misc]
    """Stands in for a module, and has whatever that module has.

    Some definitions read a norm's weight themselves.
    """

    def __init__(self, inner: nn.Module, joined: JoinedAdds) -> None:
        super().__init__()
        self.inner = inner
        self.joined = joined

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        if "inner" not in self:  # not made yet
            raise AttributeError(name)
        return getattr(self["inner"], name)


class StreamedEmbedding(_StandIn):
    """Stands in for a model's embedding."""

    def __call__(self, tokens: mx.array) -> Any:
        embedded = self.inner(tokens)
        if self.joined.are_on:
            return ResidualStream(embedded)
        return embedded


class JoinedNorm(_StandIn):
    """Stands in for an RMS norm, and is that norm for every array.

    It multiplies by `scale` `[width]`.
    """

    def __init__(
        self,
        inner: nn.Module,
        scale: mx.array,
        joined: JoinedAdds,
    ) -> None:
        super().__init__(inner, joined)
        self.scale = scale

    def __call__(self, x: Any, *gates: Any) -> mx.array:
        if isinstance(x, ResidualStream) and not gates:
            return x.normed(self, self.joined.add_norm)
        output: mx.array = self.inner(x, *gates)
        return output


def install_joined_adds(model: nn.Module, add_norm: AddNorm) -> JoinedAdds | None:
    """Replace embeddings and RMS norms by stand-ins, or take over those of before.

    None for a model without embeddings or without RMS norms.
    """
    joined = JoinedAdds(add_norm)
    installed = set()  # classes of stand-ins
    for module in list(model.modules()):
        if isinstance(module, JoinedNorm | StreamedEmbedding):
            module.joined = joined
            installed.add(type(module))
            continue
        for name, child in list(module.items()):
            stand_in = _stand_in(child, joined)
            if stand_in is not None:
                setattr(module, name, stand_in)
                installed.add(type(stand_in))
    if len(installed) < 2:
        return None
    return joined


def _stand_in(child: Any, joined: JoinedAdds) -> JoinedNorm | StreamedEmbedding | None:
    # A layer that multiplies by the kernels is of a class below MLX's.
    if isinstance(child, nn.Embedding | nn.QuantizedEmbedding):
        return StreamedEmbedding(child, joined)
    if not isinstance(child, nn.Module):
        return None
    if isinstance(child, JoinedNorm | StreamedEmbedding):
        return None
    scale = _scale_of(child)
    if scale is None:
        return None
    return JoinedNorm(child, scale, joined)


def _scale_of(norm: nn.Module) -> mx.array | None:
    """The factor of an RMS norm: its weight, or (Gemma) one more.

    None for any other module. The result for one row decides: the definitions have
    norms of their own under the same name.
    """
    weight = norm.get("weight")
    eps = getattr(norm, "eps", None)
    if not isinstance(weight, mx.array) or weight.ndim != 1:
        return None
    if not isinstance(eps, float):
        return None
    row = mx.sin(mx.arange(weight.size))[None].astype(weight.dtype)
    try:
        normed = norm(row)
        for scale in (weight, 1.0 + weight):
            expected = mx.fast.rms_norm(row, scale, eps)
            if mx.array_equal(normed, expected).item():
                mx.eval(scale)
                return scale
    except (TypeError, ValueError):  # it wants more than a row
        return None
    return None
