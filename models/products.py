"""Quantized layers multiply few rows by the project's kernel where that is quicker here.

Each shape of a model is held against MLX's product and timed beside it, at 1 to 32 rows.
A shape whose numbers differ, or that no kernel takes, stays with MLX's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.metal_kernels import DispatchCounter, default_backend
from rvllm_local.metal_kernels.quantized_matmul import (
    MAX_ROWS,
    PackedWeight,
    QuantizedMatmul,
    WeightFormat,
    refusal,
)

logger = logging.getLogger(__name__)

ROW_TILES = (1, 2, 4, 8, 16, 32)
_CALLS = 8  # of one timing
_ROUNDS = 3
# Of the largest result: both products round, and MLX's also rounds its weights.
_TOLERANCE = {mx.float32: 1e-4, mx.float16: 1e-2, mx.bfloat16: 4e-2}

Product = Callable[[mx.array, PackedWeight], mx.array]
Timer = Callable[[Product, mx.array, PackedWeight], float]


@dataclass(frozen=True, slots=True)
class ProductShape:
    """What a product's speed depends on, beside the rows."""

    format: WeightFormat
    outs: int
    width: int
    dtype: mx.Dtype


@dataclass(frozen=True, slots=True)
class ShapeChoice:
    """One shape's products: the seconds of each by row tile, MLX's last.

    `served` gives the number of the kernel that serves a tile; a tile that is not there
    is MLX's. `refused` says why no kernel serves any.
    """

    seconds: Mapping[int, tuple[float, ...]]
    served: Mapping[int, int]
    refused: str | None = None


def mlx_product(x: mx.array, weight: PackedWeight) -> mx.array:
    """MLX's own quantized product."""
    return mx.quantized_matmul(
        x,
        weight.words,
        scales=weight.scales,
        biases=weight.biases,
        transpose=True,
        group_size=weight.format.group_size,
        bits=weight.format.bits,
        mode=weight.format.mode,
    )


def seconds(product: Product, x: mx.array, weight: PackedWeight) -> float:
    """The quickest of some rounds: what a call takes on a busy device."""
    mx.eval(product(x, weight))
    rounds = []
    for _ in range(_ROUNDS):
        outputs = [product(x, weight) for _ in range(_CALLS)]
        began = time.perf_counter()
        mx.eval(outputs)
        rounds.append(time.perf_counter() - began)
    return min(rounds) / _CALLS


class QuantizedProducts:
    """Multiplies by a kernel or by MLX, by what was measured for shape and rows."""

    def __init__(
        self,
        kernels: Sequence[QuantizedMatmul],
        *,
        always: bool,
        most_rows: int = MAX_ROWS,
        timer: Timer = seconds,
    ) -> None:
        """`always`: the first kernel serves wherever it is right, for equal bits.

        Else no more than `most_rows` rows are tried: compiling takes most of the time.
        """
        self._tiles: tuple[int, ...] = ROW_TILES
        if not always:
            largest = _tile_of(min(most_rows, MAX_ROWS))
            self._tiles = tuple(tile for tile in ROW_TILES if tile <= largest)
        self._kernels = tuple(kernels[:1] if always else kernels)
        self._always = always
        self._timer = timer
        self.choices: dict[ProductShape, ShapeChoice] = {}

    def __call__(self, x: mx.array, weight: PackedWeight) -> mx.array:
        """`x` `[..., in]` times the weight: `[..., out]`."""
        rows = x.size // x.shape[-1]
        kernel = self._kernel_for(x, weight, rows)
        if kernel is None:
            return mlx_product(x, weight)
        flat = kernel(x.reshape(rows, x.shape[-1]), weight)
        return flat.reshape(*x.shape[:-1], flat.shape[-1])

    def _kernel_for(
        self, x: mx.array, weight: PackedWeight, rows: int
    ) -> QuantizedMatmul | None:
        """The kernel for so many rows; None where MLX's product serves."""
        if not 1 <= rows <= MAX_ROWS:
            return None
        choice = self.choices.get(_shape_of(weight, x.dtype))
        if choice is None:
            return None
        number = choice.served.get(_tile_of(rows))
        return None if number is None else self._kernels[number]

    def choose(self, weight: PackedWeight, dtype: mx.Dtype) -> ShapeChoice:
        """Check and time one shape, unless that was done."""
        shape = _shape_of(weight, dtype)
        if shape not in self.choices:
            self.choices[shape] = self._measured(weight, dtype)
        return self.choices[shape]

    def _measured(self, weight: PackedWeight, dtype: mx.Dtype) -> ShapeChoice:
        why = refusal(weight, dtype)
        if why is not None:
            return ShapeChoice({}, {}, why)
        taken: dict[int, tuple[float, ...]] = {}
        served: dict[int, int] = {}
        for tile in self._tiles:
            x = mx.random.normal((tile, weight.width), key=mx.random.key(0))
            x = x.astype(dtype)
            why = self._fault(x, weight)
            if why is not None:
                return ShapeChoice({}, {}, why)
            if self._always:
                served[tile] = 0
                continue
            products: tuple[Product, ...] = (*self._kernels, mlx_product)
            times = [self._timer(product, x, weight) for product in products]
            taken[tile] = tuple(times)
            quickest = times.index(min(times))
            if quickest < len(self._kernels):
                served[tile] = quickest
        return ShapeChoice(taken, served)

    def _fault(self, x: mx.array, weight: PackedWeight) -> str | None:
        """What is wrong with a kernel's product; None if nothing is."""
        for kernel in self._kernels:
            try:
                why = _difference(kernel, x, weight)
            except (RuntimeError, ValueError, UnsupportedModelError) as error:
                return f"the kernel fails: {error}"
            if why is not None:
                return why
        return None


def products_here(counter: DispatchCounter) -> list[QuantizedMatmul]:
    """The kernels of this machine. The first gives a row equal bits in any company."""
    kernels = [QuantizedMatmul(counter=counter)]
    if default_backend() == "metal":
        kernels.append(QuantizedMatmul(counter=counter, matrix_rows=1))
    return kernels


def install_products(
    model: nn.Module, products: QuantizedProducts, dtype: mx.Dtype
) -> int:
    """Have each quantized layer multiply through `products`; how many layers do.

    Layers keep their arrays and their place. Activations have the type of the scales,
    or `dtype` where those are powers of two.
    """
    layers = 0
    for layer in _quantized_layers(model):
        packed = _packed(layer)
        x_dtype = dtype if layer.mode != "affine" else packed.scales.dtype
        choice = products.choose(packed, x_dtype)
        if choice.refused is not None:
            shape = _shape_of(packed, x_dtype)
            logger.info(
                "MLX multiplies layers of %d x %d: %s",
                shape.outs,
                shape.width,
                choice.refused,
            )
            continue
        is_linear = isinstance(layer, nn.QuantizedLinear)
        layer.__class__ = _ChosenLinear if is_linear else _ChosenEmbedding
        layer._products = products
        layers += 1
    return layers


class _ChosenLinear(nn.QuantizedLinear):  # type: ignore[misc]
    """A quantized linear layer that multiplies as was measured to be quicker."""

    _products: QuantizedProducts

    def __call__(self, x: mx.array) -> mx.array:
        product = self._products(x, _packed(self))
        return product + self["bias"] if "bias" in self else product


class _ChosenEmbedding(nn.QuantizedEmbedding):  # type: ignore[misc]
    """A quantized embedding whose weight is also the output projection."""

    _products: QuantizedProducts

    def as_linear(self, x: mx.array) -> mx.array:
        return self._products(x, _packed(self))


# Those of a model that was served before are chosen anew.
_LAYERS = (
    nn.QuantizedLinear,
    nn.QuantizedEmbedding,
    _ChosenLinear,
    _ChosenEmbedding,
)


def _quantized_layers(model: nn.Module) -> Iterator[Any]:
    """Plain quantized layers, those inside joined projections included."""
    for module in model.modules():
        if type(module) in _LAYERS:
            yield module
        joined = getattr(module, "joined_layer", None)
        if type(joined) in _LAYERS:
            yield joined


def _packed(layer: Any) -> PackedWeight:
    form = WeightFormat(layer.bits, layer.group_size, layer.mode)
    return PackedWeight(layer["weight"], layer["scales"], layer.get("biases"), form)


def _shape_of(weight: PackedWeight, dtype: mx.Dtype) -> ProductShape:
    return ProductShape(weight.format, weight.words.shape[0], weight.width, dtype)


def _tile_of(rows: int) -> int:
    return next(tile for tile in ROW_TILES if tile >= rows)


def _difference(
    multiply: QuantizedMatmul, x: mx.array, weight: PackedWeight
) -> str | None:
    """What is wrong with the kernel's numbers beside MLX's; None if nothing is."""
    expected = mlx_product(x, weight).astype(mx.float32)
    error = mx.abs(multiply(x, weight).astype(mx.float32) - expected).max()
    largest = mx.maximum(mx.abs(expected).max(), 1e-6)
    relative = float(np.array(error / largest))
    allowed = _TOLERANCE[x.dtype]
    if relative <= allowed:  # false for NaN
        return None
    return f"the kernel's product differs from MLX's by {relative:.1e} of its largest"
