"""Quantized layers multiply few rows by the project's kernel where that is quicker here.

Each shape of a model is held against MLX's product and timed beside it, at 1 to 32 rows.
A shape whose numbers differ, or that no kernel takes, stays with MLX's.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx import nn

from rvllm_local.metal_kernels import DispatchCounter, default_backend
from rvllm_local.metal_kernels.quantized_matmul import (
    MAX_ROWS,
    PackedWeight,
    QuantizedMatmul,
    WeightFormat,
    refusal,
)
from rvllm_local.models.choice_notes import ChoiceNotes, Times
from rvllm_local.models.product_checks import (
    Product,
    in_pieces,
    mlx_product,
    product_fault,
)
from rvllm_local.models.timed_calls import busy_seconds, in_turn

logger = logging.getLogger(__name__)

ROW_TILES = (1, 2, 4, 8, 16, 32)
_TIMED_LAYERS = 8  # of one shape, together larger than most caches
PIECED_TILES = (64, 128)  # so many rows go through a kernel in pieces
Timer = Callable[[Product, mx.array, Sequence[PackedWeight]], float]


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


def _whole(kernel: Product, rows: int) -> Product:
    """What multiplies so many rows by the kernel."""
    if rows <= MAX_ROWS:
        return kernel
    return functools.partial(in_pieces, kernel)


def seconds(product: Product, x: mx.array, weights: Sequence[PackedWeight]) -> float:
    """What a call takes on a busy device, with the layers' weights in turn."""
    calls = [functools.partial(product, x, weight) for weight in weights]
    return busy_seconds(in_turn(calls))


class QuantizedProducts:
    """Multiplies by a kernel or by MLX, by what was measured for shape and rows."""

    def __init__(
        self,
        kernels: Sequence[QuantizedMatmul],
        *,
        always: bool,
        most_rows: int = MAX_ROWS,
        timer: Timer = seconds,
        notes: ChoiceNotes | None = None,
    ) -> None:
        """`always`: the first kernel serves wherever it is right, for equal bits.

        Else no more than `most_rows` rows are tried: compiling takes most of the time.
        What `notes` has is not timed again.
        """
        self._tiles: Sequence[int] = ROW_TILES
        self._kernels = tuple(kernels)
        if always:
            self._kernels = self._kernels[:1]
        else:
            largest = _tile_of(min(most_rows, PIECED_TILES[-1]))
            tiles = ROW_TILES + PIECED_TILES
            self._tiles = [tile for tile in tiles if tile <= largest]
        self._always = always
        self._timer = timer
        self._notes = notes
        self.choices: dict[ProductShape, ShapeChoice] = {}

    def __call__(self, x: mx.array, weight: PackedWeight) -> mx.array:
        """`x` `[..., in]` times the weight: `[..., out]`.

        MLX gets rows below each other, too: on CUDA it takes `[rows, 1, in]` for so many
        products of one row, and reads the weights for each.
        """
        width = x.shape[-1]
        rows = x.size // width
        flat = x.reshape(rows, width)
        kernel = self._kernel_for(x, weight, rows)
        if kernel is None:
            product = mlx_product(flat, weight)
        else:
            product = in_pieces(kernel, flat, weight)
        return product.reshape(*x.shape[:-1], product.shape[-1])

    def _kernel_for(
        self, x: mx.array, weight: PackedWeight, rows: int
    ) -> QuantizedMatmul | None:
        """The kernel for so many rows; None where MLX's product serves."""
        if not 1 <= rows <= PIECED_TILES[-1]:
            return None
        shape = _shape_of(weight, x.dtype)
        choice = self.choices.get(shape)
        if choice is None:
            return None
        number = choice.served.get(_tile_of(rows))
        if number is None:
            return None
        return self._kernels[number]

    def choose(self, weights: Sequence[PackedWeight], dtype: mx.Dtype) -> ShapeChoice:
        """Check and time one shape, unless that was done.

        `weights` are those of some layers of that shape.
        """
        shape = _shape_of(weights[0], dtype)
        if shape not in self.choices:
            self.choices[shape] = self._measured(weights, dtype)
            _log_choice(shape, self.choices[shape])
        return self.choices[shape]

    def _measured(
        self, weights: Sequence[PackedWeight], dtype: mx.Dtype
    ) -> ShapeChoice:
        weight = weights[0]
        why = refusal(weight, dtype)
        if why is not None:
            return ShapeChoice({}, {}, why)
        subject = self._subject(weight, dtype)
        noted: Times = {}
        if self._notes is not None and not self._always:
            noted = self._notes.read(subject)
        seconds_by_tile: Times = {}
        served: dict[int, int] = {}
        for tile in self._tiles:
            x = _random_rows(tile, weight.width, dtype)
            tried = self._kernels
            times = noted.get(tile)
            if times is not None:
                tried = self._kernels[times.index(min(times)) :][:1]
            why = product_fault(tried, x, weight)
            if why is not None:
                return ShapeChoice({}, {}, why)
            if self._always:
                served[tile] = 0
                continue
            if times is None:
                times = tuple(self._times(x, weights))
            seconds_by_tile[tile] = times
            quickest = times.index(min(times))
            if quickest < len(self._kernels):
                served[tile] = quickest
        if self._notes is not None and seconds_by_tile.keys() - noted.keys():
            self._notes.write(subject, noted | seconds_by_tile)
        return ShapeChoice(seconds_by_tile, served)

    def _subject(self, weight: PackedWeight, dtype: mx.Dtype) -> list[object]:
        """What the times depend on, beside the machine."""
        shape = _shape_of(weight, dtype)
        texts = []
        for kernel in self._kernels:
            for rows in ROW_TILES:
                texts.append(kernel.text_name(weight, dtype, rows))
        return [shape, *texts]

    def _times(self, x: mx.array, weights: Sequence[PackedWeight]) -> list[float]:
        """Seconds of each kernel, and of MLX's product last."""
        products: list[Product] = [mlx_product]
        for kernel in reversed(self._kernels):
            products.insert(0, _whole(kernel, len(x)))
        times = []
        for product in products:
            times.append(self._timer(product, x, weights))
        return times


def products_here(counter: DispatchCounter) -> list[QuantizedMatmul]:
    """The kernels of this machine. The first gives a row equal bits in any company."""
    kernels = [QuantizedMatmul(counter=counter)]
    if default_backend() == "metal":
        kernels.append(QuantizedMatmul(counter=counter, matrix_rows=1))
    return kernels


def install_products(
    model: nn.Module,
    products: QuantizedProducts,
    dtype: mx.Dtype,
) -> int:
    """Have each quantized layer multiply through `products`; returns how many do.

    Layers stay where they are and keep their arrays. Activations have the type of the
    scales, or `dtype` where those are powers of two.
    """
    by_shape: dict[ProductShape, dict[int, Any]] = {}
    for layer in _quantized_layers(model):
        packed = _packed(layer)
        x_dtype = dtype
        if layer.mode == "affine":
            x_dtype = packed.scales.dtype
        shape = _shape_of(packed, x_dtype)
        by_shape.setdefault(shape, {})[id(layer)] = layer
    installed = 0
    for shape, alike in by_shape.items():
        layers = list(alike.values())
        weights = [_packed(layer) for layer in layers[:_TIMED_LAYERS]]
        choice = products.choose(weights, shape.dtype)
        if choice.refused is None:
            _install(layers, products)
            installed += len(layers)
    return installed


def _install(layers: Sequence[Any], products: QuantizedProducts) -> None:
    for layer in layers:
        if isinstance(layer, nn.QuantizedLinear):
            layer.__class__ = _ChosenLinear
        else:
            layer.__class__ = _ChosenEmbedding
        layer._products = products


def _log_choice(shape: ProductShape, choice: ShapeChoice) -> None:
    """One line of a shape: what was timed by rows, or why MLX multiplies."""
    words = choice.refused
    if words is None:
        times = []
        for tile, taken in choice.seconds.items():
            number = choice.served.get(tile)
            by = "MLX" if number is None else f"kernel {number + 1}"
            times.append(f"{tile} rows {_microseconds(taken)} by {by}")
        words = ", ".join(times) or "by the kernel"
    logger.info(
        "layers of %d x %d, kernels and MLX: %s", shape.outs, shape.width, words
    )


def _microseconds(seconds_each: Sequence[float]) -> str:
    parts = [f"{one_time * 1e6:.0f}" for one_time in seconds_each]
    return "/".join(parts) + " us"


class _ChosenLinear(nn.QuantizedLinear):  # type: ignore[misc]
    """A quantized linear layer that multiplies as was measured to be quicker."""

    _products: QuantizedProducts

    def __call__(self, x: mx.array) -> mx.array:
        product = self._products(x, _packed(self))
        if "bias" in self:
            product = product + self["bias"]
        return product


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
    words = layer["weight"]
    scales = layer["scales"]
    return PackedWeight(words, scales, layer.get("biases"), form)


def _random_rows(rows: int, width: int, dtype: mx.Dtype) -> mx.array:
    """The same at each start."""
    key = mx.random.key(0)
    return mx.random.normal((rows, width), key=key).astype(dtype)


def _shape_of(weight: PackedWeight, dtype: mx.Dtype) -> ProductShape:
    outs = weight.words.shape[0]
    return ProductShape(weight.format, outs, weight.width, dtype)


def _tile_of(rows: int) -> int:
    """The smallest tile that holds so many rows."""
    for tile in ROW_TILES + PIECED_TILES:
        if tile >= rows:
            return tile
    raise AssertionError(f"{rows} rows are more than the largest tile")
