"""Adds to the residual stream and norms the sum in one launch, where MLX needs two.

Touches no arena.
"""

from __future__ import annotations

import mlx.core as mx

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.metal_kernels.config import KINDS, TYPES
from rvllm_local.metal_kernels.launch import (
    ArraysKernel,
    Dispatch,
    KernelText,
    kernel_text,
)

_VECTOR = 8  # elements a thread loads at once
# A row is small: more threads wait longer for each other than they save.
_MOST_SIMDGROUPS = 8


class AddNorm(ArraysKernel):
    """`added + stream` and its RMS norm (Zhang and Sennrich, 2019).

    It serves all widths of one model.
    """

    def __call__(
        self,
        stream: mx.array,
        added: mx.array,
        weight: mx.array,
        eps: float,
    ) -> tuple[mx.array, mx.array]:
        """The sum, and the normed sum.

        Both have `stream`'s shape `[..., width]` and type; `weight` is `[width]`.
        Raises `UnsupportedModelError` where types or shapes differ, or the width is not
        a multiple of 8.
        """
        width = stream.shape[-1]
        if stream.shape != added.shape or weight.shape != (width,) or width % _VECTOR:
            raise UnsupportedModelError(
                f"no launch adds {added.shape} to a stream of {stream.shape} "
                f"and norms it by {weight.shape}"
            )
        is_one_type = stream.dtype == added.dtype == weight.dtype
        if not is_one_type or stream.dtype not in TYPES[self.backend]:
            raise UnsupportedModelError(
                f"no launch adds {added.dtype} to a stream of {stream.dtype} "
                f"and norms it by {weight.dtype}"
            )
        threads = 32 * _simdgroups(width)
        self.counter.add({"add_norm": 1})
        total, normed = self._launcher(
            Dispatch(
                self._text(width, stream.dtype, eps),
                (stream, added, weight),
                (threads * (stream.size // width), 1, 1),
                (threads, 1, 1),
                (stream.shape, stream.shape),
                (stream.dtype, stream.dtype),
            )
        )
        return total, normed

    def _text(
        self,
        width: int,
        dtype: mx.Dtype,
        eps: float,
    ) -> KernelText:
        """The text, made once.

        It takes a millisecond, and every layer of every traced shape needs it.
        """
        text = self._texts.get((width, dtype, eps))
        if text is None:
            names = ("stream", "added", "weight"), ("total", "normed")
            defines = self._defines(width, dtype, eps)
            text = kernel_text(
                "add_norm",
                "add_norm.metal",
                self.backend,
                defines,
                *names,
                contiguous=True,
            )
            self._texts[width, dtype, eps] = text
        return text

    def _defines(
        self,
        width: int,
        dtype: mx.Dtype,
        eps: float,
    ) -> dict[str, object]:
        kind, simdgroups = TYPES[self.backend][dtype], _simdgroups(width)
        return {
            "RV_T": kind,
            "RV_T_BYTES": dtype.size,
            "RV_KV": kind,
            "RV_KIND": KINDS[dtype],
            "RV_D": width,
            "RV_LAYERS": 1,
            "RV_KV_HEADS": 1,
            "RV_SIMDGROUPS": simdgroups,
            "RV_LOADS": -(-width // (_VECTOR * 32 * simdgroups)),
            "RV_EPS": f"{eps:.9e}f",
        }


def _simdgroups(width: int) -> int:
    return min(_MOST_SIMDGROUPS, -(-width // (_VECTOR * 32)))
