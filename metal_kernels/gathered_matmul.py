"""Products of rows with the packed weights of experts that each row asks for.

An expert's weights are read once for up to eight of its rows. The sums are those of
`quantized_matmul`: a row's bits are the same alone and among others. Touches no arena.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.metal_kernels.launch import (
    ArraysKernel,
    Dispatch,
    DispatchCounter,
    KernelText,
    Launcher,
    kernel_text,
)
from rvllm_local.metal_kernels.quantized_matmul import (
    MatrixTuning,
    PackedWeight,
    ProductLayout,
    lanes_layout,
    matrix_layout,
    matrix_tuning,
    product_defines,
    refusal,
    simdgroup_layout,
    suits_matrix_units,
)

MAX_PAIRS = 512  # of a row and an expert
_FEW_ELEMENTS = 8  # Metal binds smaller arrays as constant


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """The experts' weights below each other: `weight` is `[experts * out, in]`."""

    weight: PackedWeight
    num_experts: int

    @property
    def outs(self) -> int:
        """The size of an output row."""
        return int(self.weight.words.shape[0]) // self.num_experts


class GatheredMatmul(ArraysKernel):
    """`x[row] @ weights[expert].T` for pairs of a row and an expert."""

    def __init__(
        self,
        *,
        backend: str | None = None,
        launcher: Launcher | None = None,
        counter: DispatchCounter | None = None,
        tuning: MatrixTuning | None = None,
        by_matrices: bool = False,
    ) -> None:
        """`by_matrices`: simdgroup matrices multiply on Metal, whose bits are others."""
        super().__init__(backend=backend, launcher=launcher, counter=counter)
        self._by_matrices = by_matrices
        self._tuning = tuning or matrix_tuning(1)
        self._texts: dict[tuple[object, ...], KernelText] = {}

    def __call__(
        self,
        x: mx.array,
        weights: ExpertWeights,
        experts: mx.array,
    ) -> mx.array:
        """`[pairs, out]` in x's type, for `experts` uint32 `[pairs]`.

        `x` is `[rows, in]`; a row's pairs stand together, and all rows have equally
        many. Raises `UnsupportedModelError` for a format without a kernel, and
        `ValueError` for rows of another width or more than 512 pairs.
        """
        why = refusal(weights.weight, x.dtype)
        if why is not None:
            raise UnsupportedModelError(f"{why}; MLX's product serves this layer")
        pairs = experts.size
        _check_pairs(x, weights, experts)
        layout = self._layout(weights, x.dtype)
        packed = weights.weight
        inputs = {"x": x, "weight": packed.words, "scales": packed.scales}
        if packed.biases is not None:
            inputs["biases"] = packed.biases
        inputs["experts"] = experts
        tiles = -(-weights.outs // layout.outputs_a_group)
        self.counter.add({"gathered_matmul": 1})
        dispatch = Dispatch(
            kernel=self._text(layout, tuple(inputs), pairs < _FEW_ELEMENTS),
            inputs=tuple(inputs.values()),
            grid=(tiles * layout.threads, min(pairs, weights.num_experts), 1),
            threadgroup=(layout.threads, 1, 1),
            shapes=((pairs, weights.outs),),
            dtypes=(x.dtype,),
        )
        return self._launcher(dispatch)[0]

    def _layout(self, weights: ExpertWeights, dtype: mx.Dtype) -> ProductLayout:
        packed = weights.weight
        form = packed.format
        defines = product_defines(packed, dtype, self.backend)
        defines |= {"RV_EXPERTS": weights.num_experts, "RV_PAIRS": MAX_PAIRS}
        if self.backend == "cuda" and suits_matrix_units(form, dtype):
            return matrix_layout(packed, dtype, 1, defines, self._tuning)
        if self.backend == "metal" and self._by_matrices:
            return simdgroup_layout(form, 1, defines)
        return lanes_layout(form, 1, defines)

    def _text(
        self,
        layout: ProductLayout,
        inputs: tuple[str, ...],
        has_few: bool,
    ) -> KernelText:
        """Few pairs are in another address space on Metal: the text has another name."""
        key = (layout.body, inputs, has_few, *layout.defines.items())
        text = self._texts.get(key)
        if text is None:
            parts = (*layout.parts, "gathered_parts.h")
            if layout.body == "quantized_matmul.metal":
                parts = (*parts, "gathered_lanes.h")
            text = kernel_text(
                "gathered_matmul",
                layout.body.replace("quantized", "gathered"),
                self.backend,
                layout.defines | {"RV_FEW": int(has_few)},
                inputs,
                ("out",),
                parts,
                contiguous=True,
            )
            self._texts[key] = text
        return text


def _check_pairs(x: mx.array, weights: ExpertWeights, experts: mx.array) -> None:
    width = weights.weight.width
    if x.ndim != 2 or x.shape[1] != width or len(x) < 1:
        raise ValueError(f"x must be [rows, {width}], not {x.shape}")
    if experts.ndim != 1 or experts.dtype != mx.uint32:
        raise ValueError(
            f"experts must be uint32 [pairs], not {experts.dtype} {experts.shape}"
        )
    if not 1 <= experts.size <= MAX_PAIRS or experts.size % len(x):
        raise ValueError(
            f"{len(x)} rows cannot have {experts.size} pairs with experts in all: "
            f"at most {MAX_PAIRS}, equally many each"
        )
