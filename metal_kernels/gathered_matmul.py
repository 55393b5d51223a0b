"""Products of rows with the packed weights of experts that each row asks for.

An expert's weights are read once for up to eight of its rows. The sums are those of
`quantized_matmul`: a row's bits are the same alone and among others. Touches no arena.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    WeightFormat,
    lanes_layout,
    matrix_layout,
    product_defines,
    refusal,
    simdgroup_layout,
    suits_matrix_units,
)

MAX_PAIRS = 512  # of a row and an expert
_FEW_ELEMENTS = 8  # Metal binds smaller arrays as constant
_KINDS = {1: "gathered_matmul", 2: "gathered_gates"}  # by weights at once
_NAMES = (
    ("weight", "scales", "biases"),
    ("gate", "gate_scales", "gate_biases"),
)
_MOST_WARPS = 4


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """The experts' weights below each other: `weight` is `[experts * out, in]`."""

    weight: PackedWeight
    num_experts: int

    @property
    def outs(self) -> int:
        """The size of an output row."""
        return int(self.weight.words.shape[0]) // self.num_experts


def expert_tuning(width: int, form: WeightFormat) -> MatrixTuning:
    """Warps that all have work: an expert is narrower than a layer.

    On an H200 three instead of four for 12 groups took 25 us instead of 33.
    """
    usual = MatrixTuning()
    lane_words = form.group_size * form.bits // 128
    run = max(1, min(4, usual.run_words // lane_words))
    runs = -(-width // (form.group_size * run))
    turns = -(-runs // _MOST_WARPS)
    warps = -(-runs // turns)
    if warps == _MOST_WARPS:
        return MatrixTuning(resident=4)
    return MatrixTuning(tiles=1, warps=warps, resident=8)


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
        self._tuning = tuning

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
        return self._product(x, (weights,), experts)

    def gated(
        self,
        x: mx.array,
        weights: ExpertWeights,
        gate: ExpertWeights,
        experts: mx.array,
    ) -> mx.array:
        """The product with `weights`, times SiLU of the product with `gate`.

        One launch, for weights of one format and size. Raises as a product does, and
        `ValueError` for weights that differ, or by simdgroup matrices.
        """
        if not self.can_gate(weights, gate):
            raise ValueError("no launch gates one of these weights with the other")
        return self._product(x, (weights, gate), experts)

    def can_gate(self, weights: ExpertWeights, gate: ExpertWeights) -> bool:
        """True if `gated` takes these two."""
        packed, gates = weights.weight, gate.weight
        is_alike = packed.format == gates.format
        is_alike = is_alike and packed.words.shape == gates.words.shape
        by_matrices = self.backend == "metal" and self._by_matrices
        return (
            is_alike and packed.scales.dtype == gates.scales.dtype and not by_matrices
        )

    def _product(
        self,
        x: mx.array,
        weights: tuple[ExpertWeights, ...],
        experts: mx.array,
    ) -> mx.array:
        first = weights[0]
        for each in weights:
            why = refusal(each.weight, x.dtype)
            if why is not None:
                raise UnsupportedModelError(f"{why}; MLX's product serves this layer")
        pairs = experts.size
        _check_pairs(x, first, experts)
        layout = self._layout(first, x.dtype, len(weights))
        inputs = {"x": x}
        for names, each in zip(_NAMES, weights, strict=False):
            packed = each.weight
            arrays = (packed.words, packed.scales, packed.biases)
            for name, array in zip(names, arrays, strict=True):
                if array is not None:
                    inputs[name] = array
        inputs["experts"] = experts
        tiles = -(-first.outs // layout.outputs_a_group)
        kind = _KINDS[len(weights)]
        self.counter.add({kind: 1})
        dispatch = Dispatch(
            kernel=self._text(kind, layout, tuple(inputs), pairs < _FEW_ELEMENTS),
            inputs=tuple(inputs.values()),
            grid=(tiles * layout.threads, min(pairs, first.num_experts), 1),
            threadgroup=(layout.threads, 1, 1),
            shapes=((pairs, first.outs),),
            dtypes=(x.dtype,),
        )
        return self._launcher(dispatch)[0]

    def _layout(
        self, weights: ExpertWeights, dtype: mx.Dtype, count: int
    ) -> ProductLayout:
        """For products with so many weights at once."""
        packed = weights.weight
        form = packed.format
        defines = product_defines(packed, dtype, self.backend)
        defines |= {"RV_EXPERTS": weights.num_experts, "RV_PAIRS": MAX_PAIRS}
        defines["RV_WEIGHTS"] = count
        if self.backend == "cuda" and suits_matrix_units(form, dtype):
            tuning = self._tuning or expert_tuning(packed.width, form)
            if tuning.tiles % count:  # as many of each weight
                tuning = replace(tuning, tiles=count)
            layout = matrix_layout(packed, dtype, 1, defines, tuning)
            outs = layout.outputs_a_group // count
            return replace(layout, outputs_a_group=outs)
        if self.backend == "metal" and self._by_matrices:
            return simdgroup_layout(form, 1, defines)
        return lanes_layout(form, 1, defines)

    def _text(
        self,
        kind: str,
        layout: ProductLayout,
        inputs: tuple[str, ...],
        has_few: bool,
    ) -> KernelText:
        """Few pairs are in another address space on Metal: the text has another name."""
        key = (kind, layout.body, inputs, has_few, *layout.defines.items())
        text = self._texts.get(key)
        if text is None:
            parts = (*layout.parts, "gathered_parts.h")
            if layout.body == "quantized_matmul.metal":
                parts = (*parts, "gathered_lanes.h")
            text = kernel_text(
                kind,
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
