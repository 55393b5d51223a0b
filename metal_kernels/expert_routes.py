"""Which experts a row goes through, and the sum of what they give: a launch each.

A row's bits depend on that row alone. Touches no arena.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mlx.core as mx

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.metal_kernels.config import KINDS, TYPES
from rvllm_local.metal_kernels.launch import (
    ArraysKernel,
    Dispatch,
    KernelText,
    kernel_text,
)

MOST_EXPERTS = 1024  # a lane has 32 of them
MOST_EACH = 32  # a lane keeps one's share
_LEAST_EXPERTS = 8  # Metal binds smaller arrays as constant
_VECTOR = 8  # elements a thread loads at once
_MOST_THREADS = 128
_FEW_SHARES = 8


class ExpertRoutes(ArraysKernel):
    """The experts of the largest logits, and the weighted sum of their results."""

    def choose(
        self,
        logits: mx.array,
        each: int,
        *,
        of_chosen: bool,
    ) -> tuple[mx.array, mx.array]:
        """The `each` experts of every row of `logits` `[rows, experts]`, largest first.

        They are uint32 `[rows * each]`; their shares of the softmax have the type of
        the logits. `of_chosen`: shares of a row add up to 1. Of experts with equal
        logits any may be taken, the same always. Raises `UnsupportedModelError` for a
        type or numbers without a kernel.
        """
        rows, count = logits.shape
        self._check_type(logits.dtype)
        if not _LEAST_EXPERTS <= count <= MOST_EXPERTS:
            raise UnsupportedModelError(
                f"no launch chooses among {count} experts "
                f"({_LEAST_EXPERTS} to {MOST_EXPERTS})"
            )
        if not 1 <= each <= min(count, MOST_EACH):
            raise UnsupportedModelError(
                f"no launch chooses {each} of {count} experts (at most {MOST_EACH})"
            )
        defines = {
            "RV_D": count,
            "RV_EXPERTS": count,
            "RV_SLOTS": -(-count // 32),
            "RV_EACH": each,
            "RV_OF_CHOSEN": int(of_chosen),
        }
        names = ("logits",), ("experts", "shares")
        self.counter.add({"choose_experts": 1})
        experts, shares = self._launcher(
            Dispatch(
                self._text("choose_experts", logits.dtype, defines, *names),
                (logits,),
                (32 * rows, 1, 1),
                (32, 1, 1),
                ((rows * each,), (rows * each,)),
                (mx.uint32, logits.dtype),
            )
        )
        return experts, shares

    def weigh(self, parts: mx.array, shares: mx.array) -> mx.array:
        """`[rows, width]`: of each row its `parts` `[rows, each, width]` times `shares`.

        `shares` are `[rows * each]` of the parts' type. Raises `UnsupportedModelError`
        for other types, or a width that is no multiple of 8.
        """
        rows, each, width = parts.shape
        self._check_type(parts.dtype)
        is_alike = shares.dtype == parts.dtype and shares.shape == (rows * each,)
        if not is_alike or width % _VECTOR:
            raise UnsupportedModelError(
                f"no launch weighs parts of {parts.shape} in {parts.dtype} "
                f"by {shares.shape} in {shares.dtype}"
            )
        threads = min(_MOST_THREADS, -(-width // _VECTOR))
        groups = -(-width // (_VECTOR * threads))
        defines = {
            "RV_D": width,
            "RV_EACH": each,
            "RV_THREADS": threads,
            "RV_FEW": int(rows * each < _FEW_SHARES),
        }
        names = ("parts", "shares"), ("out",)
        self.counter.add({"weigh_parts": 1})
        (out,) = self._launcher(
            Dispatch(
                self._text("weigh_parts", parts.dtype, defines, *names),
                (parts, shares),
                (groups * threads, rows, 1),
                (threads, 1, 1),
                ((rows, width),),
                (parts.dtype,),
            )
        )
        return out

    def _check_type(self, dtype: mx.Dtype) -> None:
        if dtype == mx.int8 or dtype not in TYPES[self.backend]:
            raise UnsupportedModelError(f"no launch routes experts in {dtype}")

    def _text(
        self,
        kind: str,
        dtype: mx.Dtype,
        defines: Mapping[str, object],
        inputs: Sequence[str],
        outputs: Sequence[str],
    ) -> KernelText:
        """The text, made once; few shares are in another address space on Metal."""
        key = (kind, dtype, *defines.items())
        text = self._texts.get(key)
        if text is None:
            stored = TYPES[self.backend][dtype]
            common = {
                "RV_T": stored,
                "RV_T_BYTES": dtype.size,
                "RV_KV": stored,
                "RV_KIND": KINDS[dtype],
                "RV_LAYERS": 1,
                "RV_KV_HEADS": 1,
            }
            text = kernel_text(
                kind,
                f"{kind}.metal",
                self.backend,
                common | dict(defines),
                inputs,
                outputs,
                contiguous=True,
            )
            self._texts[key] = text
        return text
