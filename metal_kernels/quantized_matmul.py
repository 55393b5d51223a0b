"""Products of a few rows with MLX's packed weights: each weight is read once for all rows.

The order of a row's additions follows from the input's width and the format alone, so a
row's bits are the same alone and among others. Touches no arena.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.metal_kernels.config import KINDS, TYPES
from rvllm_local.metal_kernels.launch import (
    ArraysKernel,
    Dispatch,
    DispatchCounter,
    KernelText,
    Launcher,
    kernel_text,
)

MAX_ROWS = 32
CHUNK = 32  # weights that lie in one group, whatever its size
_ROW_TILES = (1, 2, 4, 8, 16, 32)
_AFFINE_BITS = (2, 3, 4, 5, 6, 8)
_GROUPS = (32, 64, 128)
_MATRIX_COLUMNS = 8  # rows of x in one product of the matrix units
_LEAST_ELEMENTS = 8  # Metal binds smaller arrays as constant


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How weights are packed, in MLX's words: `mode` is "affine" or "mxfp4"."""

    bits: int
    group_size: int
    mode: str = "affine"


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight `[out, in]` as MLX packs it: `words` uint32 `[out, in * bits / 32]`.

    `scales` are `[out, in / group_size]`; `biases` likewise, or None for mxfp4.
    """

    words: mx.array
    scales: mx.array
    biases: mx.array | None
    format: WeightFormat

    @property
    def width(self) -> int:
        """The size of an input row."""
        return int(self.words.shape[1]) * 32 // self.format.bits


@dataclass(frozen=True, slots=True)
class MatrixTuning:
    """How CUDA's matrix units are used. It changes no result beyond rounding.

    A threadgroup owns `16 * tiles` outputs; its `warps` share the input's width. Each
    lane has `run_words` words of a weight row in flight, or one in `shrinks` of them. A
    multiprocessor has room for `resident` threadgroups. Warps and words alone fix the
    order of additions.
    """

    tiles: int = 2
    warps: int = 4
    run_words: int = 8
    resident: int = 1
    shrinks: int = 1


def matrix_tuning(rows: int) -> MatrixTuning:
    """What was measured to be best on an H200.

    Few warps a threadgroup and many threadgroups hide each other's loads; more rows
    need more registers, so that fewer threadgroups fit, or less is in flight.
    """
    if rows <= _MATRIX_COLUMNS:
        return MatrixTuning(resident=4)
    if rows <= 2 * _MATRIX_COLUMNS:
        return MatrixTuning(resident=3)
    return MatrixTuning(resident=3, shrinks=2)


@dataclass(frozen=True, slots=True)
class ProductLayout:
    """How one launch maps its work to threads."""

    body: str
    parts: tuple[str, ...]
    outputs_a_group: int
    threads: int
    defines: dict[str, object]


def refusal(weight: PackedWeight, dtype: mx.Dtype) -> str | None:
    """Why no kernel multiplies rows of `dtype` with this weight; None if one does."""
    form = weight.format
    is_affine = form.mode == "affine" and form.bits in _AFFINE_BITS
    is_float4 = form.mode == "mxfp4" and form.bits == 4 and form.group_size == 32
    if not (is_affine or is_float4):
        return f"no kernel for weights of {form.bits} bits in mode {form.mode}"
    if form.group_size not in _GROUPS:
        return f"no kernel for groups of {form.group_size} (there are {_GROUPS})"
    if dtype not in (mx.float32, mx.float16, mx.bfloat16):
        return f"no kernel for activations in {dtype}"
    if weight.words.ndim != 2 or weight.words.dtype != mx.uint32:
        return f"no kernel for packed weights of shape {weight.words.shape}"
    groups = weight.width // form.group_size
    if weight.width % form.group_size:
        return f"no kernel for rows of {weight.width} in groups of {form.group_size}"
    least = min(weight.words.size, weight.scales.size)
    if least < _LEAST_ELEMENTS:
        return f"no kernel for a weight of {least} words or scales"
    shape = (weight.words.shape[0], groups)
    scales_dtype = mx.uint8 if is_float4 else dtype
    if weight.scales.shape != shape or weight.scales.dtype != scales_dtype:
        return f"no kernel for scales in {weight.scales.dtype} of {weight.scales.shape}"
    biases = weight.biases
    if is_float4 and biases is None:
        return None
    if is_float4:
        return "no kernel for mxfp4 with biases"
    if biases is None or biases.shape != shape or biases.dtype != dtype:
        return "no kernel for biases that differ from the scales in shape or type"
    return None


class QuantizedMatmul(ArraysKernel):
    """`x @ weight.T` for 1 to 32 rows of x."""

    def __init__(
        self,
        *,
        backend: str | None = None,
        launcher: Launcher | None = None,
        counter: DispatchCounter | None = None,
        tuning: MatrixTuning | None = None,
        matrix_rows: int | None = None,
    ) -> None:
        """From `matrix_rows` rows on Metal multiplies by simdgroup matrices.

        None: never. Then a row's bits are the same at any number of rows; CUDA's
        matrix units give equal bits anyway.
        """
        super().__init__(backend=backend, launcher=launcher, counter=counter)
        if matrix_rows is None:
            matrix_rows = MAX_ROWS + 1
        self._matrix_rows = matrix_rows
        self._tuning = tuning

    def __call__(self, x: mx.array, weight: PackedWeight) -> mx.array:
        """`[rows, in]` times the weight: `[rows, out]` in x's type.

        Raises `UnsupportedModelError` for a format without a kernel, and `ValueError`
        for rows of another width or more than 32 of them.
        """
        why = refusal(weight, x.dtype)
        if why is not None:
            raise UnsupportedModelError(f"{why}; MLX's product serves this layer")
        if x.ndim != 2 or x.shape[1] != weight.width or not 1 <= len(x) <= MAX_ROWS:
            raise ValueError(
                f"x must be [1 to {MAX_ROWS} rows, {weight.width}], not {x.shape}"
            )
        rows = x.shape[0]
        outs = weight.words.shape[0]
        layout = self._layout(weight, x.dtype, rows)
        inputs = {"x": x} | _arrays(weight)
        text = self._text(layout, tuple(inputs))
        groups = -(-outs // layout.outputs_a_group)
        self.counter.add({"quantized_matmul": 1})
        dispatch = Dispatch(
            kernel=text,
            inputs=tuple(inputs.values()),
            grid=(groups * layout.threads, 1, 1),
            threadgroup=(layout.threads, 1, 1),
            shapes=((rows, outs),),
            dtypes=(x.dtype,),
        )
        return self._launcher(dispatch)[0]

    def text_name(self, weight: PackedWeight, dtype: mx.Dtype, rows: int) -> str:
        """The name of what is launched for so many rows; it carries a hash."""
        layout = self._layout(weight, dtype, rows)
        return self._text(layout, ("x", *_arrays(weight))).name

    def _layout(
        self,
        weight: PackedWeight,
        dtype: mx.Dtype,
        rows: int,
    ) -> ProductLayout:
        defines = product_defines(weight, dtype, self.backend)
        if self.backend == "cuda" and suits_matrix_units(weight.format, dtype):
            tuning = self._tuning or matrix_tuning(rows)
            return matrix_layout(weight, dtype, rows, defines, tuning)
        if self.backend == "metal" and rows >= self._matrix_rows:
            return simdgroup_layout(weight.format, rows, defines)
        return lanes_layout(weight.format, rows, defines)

    def _text(self, layout: ProductLayout, inputs: tuple[str, ...]) -> KernelText:
        key = (layout.body, inputs, *layout.defines.items())
        text = self._texts.get(key)
        if text is None:
            text = kernel_text(
                "quantized_matmul",
                layout.body,
                self.backend,
                layout.defines,
                inputs,
                ("out",),
                layout.parts,
                contiguous=True,
            )
            self._texts[key] = text
        return text


def _arrays(weight: PackedWeight) -> dict[str, mx.array]:
    """The weight's arrays by their names in a text."""
    arrays = {"weight": weight.words, "scales": weight.scales}
    if weight.biases is not None:
        arrays["biases"] = weight.biases
    return arrays


def product_defines(
    weight: PackedWeight,
    dtype: mx.Dtype,
    backend: str,
) -> dict[str, object]:
    """The macros of every text that multiplies by packed weights."""
    kind = TYPES[backend][dtype]
    return {
        "RV_T": kind,
        "RV_T_BYTES": dtype.size,
        "RV_KV": kind,
        "RV_KIND": KINDS[dtype],
        "RV_D": CHUNK,
        "RV_LAYERS": 1,
        "RV_KV_HEADS": 1,
        "RV_WBITS": weight.format.bits,
        "RV_WEIGHTS": 1,
        "RV_QGROUP": weight.format.group_size,
    }


def lanes_layout(
    form: WeightFormat,
    rows: int,
    common: dict[str, object],
) -> ProductLayout:
    """Each simdgroup owns a few outputs: as many as its registers hold for the rows."""
    tile = next(size for size in _ROW_TILES if size >= rows)
    outs = min(4, MAX_ROWS // tile)
    simdgroups = 2
    defines = common | _unpacking_defines(form)
    defines |= {"RV_ROWS": tile, "RV_OUTS": outs, "RV_SIMDGROUPS": simdgroups}
    return ProductLayout(
        "quantized_matmul.metal",
        ("quantized_parts.h", "quantized_lanes.h"),
        outs * simdgroups,
        32 * simdgroups,
        defines,
    )


def simdgroup_layout(
    form: WeightFormat,
    rows: int,
    common: dict[str, object],
) -> ProductLayout:
    """Four simdgroups share unpacked weights and rows in threadgroup memory."""
    tile = next(size for size in _ROW_TILES if size >= max(rows, 8))
    defines = common | _unpacking_defines(form) | {"RV_ROWS": tile}
    parts = ("matrix_parts.h", "quantized_parts.h")
    return ProductLayout("quantized_matrix.metal", parts, 32, 128, defines)


def _unpacking_defines(form: WeightFormat) -> dict[str, object]:
    """How a chunk's words are loaded, and what its bits mean."""
    wide = 1
    if form.bits % 4 == 0:
        wide = 4
    elif form.bits % 2 == 0:
        wide = 2
    defines: dict[str, object] = {"RV_WIDE": wide}
    if form.mode == "mxfp4":
        defines["RV_FLOAT4"] = 1
    return defines


def suits_matrix_units(form: WeightFormat, dtype: mx.Dtype) -> bool:
    return form.mode == "affine" and form.bits in (4, 8) and dtype != mx.float32


def _columns(rows: int) -> int:
    """Products side by side for so many rows: as few numbers as are compiled at load."""
    columns = 1
    while columns * _MATRIX_COLUMNS < rows:
        columns *= 2
    return columns


def matrix_layout(
    weight: PackedWeight,
    dtype: mx.Dtype,
    rows: int,
    common: dict[str, object],
    tuning: MatrixTuning,
) -> ProductLayout:
    """The warps of a threadgroup share K by a rule that the rows do not change."""
    form = weight.format
    groups = weight.width // form.group_size
    lane_words = form.group_size * form.bits // 128
    share = max(1, min(4, tuning.run_words // lane_words))
    run = max(1, share // tuning.shrinks)
    splits_bytes = form.bits == 8 and dtype == mx.bfloat16
    near = 128 if dtype == mx.bfloat16 else 1024
    defines = common | {
        "RV_M": tuning.tiles,
        "RV_C": _columns(rows),
        "RV_SIMDGROUPS": tuning.warps,
        "RV_RESIDENT": tuning.resident,
        "RV_RUN": run,
        "RV_SHARE_RUN": share,
        "RV_LANE_WORDS": lane_words,
        "RV_OCTET_WORDS": form.bits // 4,
        "RV_ELEMENT_WORDS": run // 2 if groups % run == 0 else 0,
        "RV_HALVES": 2 if splits_bytes else 1,
        "RV_WHOLE_BYTES": int(form.bits == 8 and not splits_bytes),
        "RV_OFFSET": f"{near * (17 if splits_bytes else 1)}.0f",
    }
    return ProductLayout(
        "quantized_matmul.cu",
        ("ptx.h", "quantized_mma.h"),
        16 * tuning.tiles,
        32 * tuning.warps,
        defines,
    )
