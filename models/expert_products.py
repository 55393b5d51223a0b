"""Routed experts multiply few rows by the project's kernel where that is quicker here.

mlx-lm's `SwitchGLU` and `SwitchMLP` are held against themselves and timed, as single
layers are in `products.py`. With the kernel nothing is sorted: a launch finds the rows of
each expert itself.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.metal_kernels.gathered_matmul import (
    MAX_PAIRS,
    ExpertWeights,
    GatheredMatmul,
)
from rvllm_local.metal_kernels.quantized_matmul import (
    MAX_ROWS,
    PackedWeight,
    WeightFormat,
    refusal,
)
from rvllm_local.models.replaced_calls import replace_call
from rvllm_local.models.timed_calls import busy_seconds, in_turn

logger = logging.getLogger(__name__)

# Projections of the definitions, the last one back to the input's width.
_PARTS = {
    "SwitchGLU": ("up_proj", "gate_proj", "down_proj"),
    "SwitchMLP": ("fc1", "fc2"),
}
TRIED_ROWS = (1, 8, MAX_ROWS)
_TIMED_LAYERS = 8  # of one kind, together larger than most caches
# Of the largest result: two products follow each other.
_TOLERANCE = {
    mx.float32: 1e-4,
    mx.float16: 2e-2,
    mx.bfloat16: 8e-2,
}

Inputs = tuple[mx.array, mx.array]  # rows, and the experts that each asks for
Call = Callable[[mx.array, mx.array], mx.array]
Timer = Callable[[Sequence[Call], Sequence[Inputs]], float]


@dataclass(frozen=True, slots=True)
class ExpertsChoice:
    """What serves one kind of experts.

    seconds: each kernel's and MLX's, by rows.
    most_rows: kernels serve up to so many; 0 where they serve none.
    refused: why they serve none, if they could not be timed.
    matrix_rows: from so many rows on it is the second kernel.
    """

    seconds: dict[int, tuple[float, ...]]
    most_rows: int
    refused: str | None = None
    matrix_rows: int | None = None


def seconds(layers: Sequence[Call], inputs: Sequence[Inputs]) -> float:
    """What a call takes on a busy device, the layers taking turns."""
    calls = []
    for layer, (x, experts) in zip(layers, inputs, strict=True):
        calls.append(functools.partial(layer, x, experts))
    return busy_seconds(in_turn(calls))


def install_expert_products(
    model: nn.Module,
    multiply: GatheredMatmul,
    *,
    each: int,
    always: bool,
    matrices: GatheredMatmul | None = None,
    most_rows: int = MAX_ROWS,
    tried: Sequence[int] = TRIED_ROWS,
    timer: Timer = seconds,
) -> list[ExpertsChoice]:
    """Have the model's experts multiply by the kernel; returns what was chosen.

    Every kind of experts is tried once, with `each` experts a row and the numbers of rows
    in `tried` that are no more than `most_rows`. `matrices` is a second kernel, for more
    rows. `always`: the first serves wherever it is right, for equal bits.
    """
    if always:
        matrices = None
    else:
        tried = [rows for rows in tried if rows <= max(1, most_rows)]
    by_kind: dict[tuple[object, ...], list[_Experts]] = {}
    for module in model.modules():
        names = _PARTS.get(type(module).__name__, ())
        parts = [module.get(name) for name in names]
        if not parts or any(not _is_quantized(part) for part in parts):
            continue
        experts = _Experts(module, parts, multiply, matrices)
        by_kind.setdefault(experts.kind, []).append(experts)
    choices = []
    for kind, alike in by_kind.items():
        choice = _choose(alike[:_TIMED_LAYERS], tried, each, always, timer)
        _log(choice, kind)
        choices.append(choice)
        if choice.most_rows:
            for experts in alike:
                experts.install(choice)
    return choices


def _choose(
    layers: Sequence[_Experts],
    tried: Sequence[int],
    each: int,
    always: bool,
    timer: Timer,
) -> ExpertsChoice:
    """Hold the kernel against the definition in one layer, and time both in all."""
    first = layers[0]
    why = first.refusal()
    if why is not None:
        return ExpertsChoice({}, 0, why)
    ways: list[list[Call]] = [[layer.multiplied for layer in layers]]
    if first.has_matrices:
        ways.append([layer.multiplied_by_matrices for layer in layers])
    ways.append([layer.defined for layer in layers])
    taken: dict[int, tuple[float, ...]] = {}
    most_rows = 0
    matrix_rows = None
    for rows in tried:
        if rows * each > MAX_PAIRS:
            break
        inputs = [first.random(rows, each, seed) for seed in range(len(layers))]
        why = first.fault(*inputs[0])
        if why is not None:
            return ExpertsChoice({}, 0, why)
        if not always:
            *of_kernels, of_mlx = [timer(way, inputs) for way in ways]
            taken[rows] = (*of_kernels, of_mlx)
            quickest = min(of_kernels)
            if quickest > of_mlx:
                break
            if quickest == of_kernels[0]:
                matrix_rows = None
            elif matrix_rows is None:
                matrix_rows = rows
        most_rows = rows
    return ExpertsChoice(taken, most_rows, matrix_rows=matrix_rows)


class _Experts:
    """One layer's experts as the kernel takes them."""

    def __init__(
        self,
        module: Any,
        parts: Sequence[Any],
        multiply: GatheredMatmul,
        matrices: GatheredMatmul | None,
    ) -> None:
        self._module = module
        self._parts = parts
        self._multiply = multiply
        self._matrices = matrices
        self._weights = [_stacked(part) for part in parts]
        kind = type(module)
        # A model that was served before has a replaced call already.
        self._definition = getattr(kind.__call__, "definition", kind.__call__)

    @property
    def kind(self) -> tuple[object, ...]:
        """What the speed depends on."""
        sizes = []
        for weights in self._weights:
            packed = weights.weight
            sizes.append((packed.words.shape, packed.format, packed.scales.dtype))
        return (type(self._module).__name__, self._weights[0].num_experts, *sizes)

    @property
    def has_matrices(self) -> bool:
        return self._matrices is not None

    def install(self, choice: ExpertsChoice) -> None:
        """Let the module compute by what was chosen."""

        def call(module: nn.Module, x: mx.array, indices: mx.array) -> mx.array:
            rows = indices.size // indices.shape[-1]
            if rows > choice.most_rows or indices.size > MAX_PAIRS:
                output: mx.array = self._definition(module, x, indices)
                return output
            if choice.matrix_rows is not None and rows >= choice.matrix_rows:
                return self.multiplied_by_matrices(x, indices)
            return self.multiplied(x, indices)

        call.definition = self._definition  # type: ignore[attr-defined]
        replace_call(self._module, call)

    def multiplied(self, x: mx.array, indices: mx.array) -> mx.array:
        """`x` `[..., in]` through the experts `[..., each]`: `[..., each, in]`."""
        return self._through(self._multiply, x, indices)

    def multiplied_by_matrices(self, x: mx.array, indices: mx.array) -> mx.array:
        """The same by the second kernel."""
        assert self._matrices is not None
        return self._through(self._matrices, x, indices)

    def _through(
        self, multiply: GatheredMatmul, x: mx.array, indices: mx.array
    ) -> mx.array:
        experts = indices.reshape(-1).astype(mx.uint32)
        rows = x.reshape(-1, x.shape[-1])
        *first, last = range(len(self._parts))
        if self._is_gated(multiply):
            up, gate = self._weights[:2]
            hidden = multiply.gated(rows, up, gate, experts)
        else:
            inner = [self._product(multiply, part, rows, experts) for part in first]
            hidden = self._module.activation(*inner)
        out = self._product(multiply, last, hidden, experts)
        return out.reshape(*indices.shape, out.shape[-1])

    def _is_gated(self, multiply: GatheredMatmul) -> bool:
        """True where one launch makes what the last projection takes."""
        if type(self._module.get("activation")).__name__ != "SwiGLU":
            return False
        if any("bias" in part for part in self._parts[:2]):
            return False
        return multiply.can_gate(*self._weights[:2])

    def _product(
        self,
        multiply: GatheredMatmul,
        part: int,
        x: mx.array,
        experts: mx.array,
    ) -> mx.array:
        product = multiply(x, self._weights[part], experts)
        layer = self._parts[part]
        if "bias" in layer:
            product = product + layer["bias"][experts]
        return product

    def defined(self, x: mx.array, indices: mx.array) -> mx.array:
        """What the definition computes."""
        output: mx.array = self._definition(self._module, x, indices)
        return output

    def refusal(self) -> str | None:
        """Why no kernel takes these weights; None if one does."""
        for weights in self._weights:
            why = refusal(weights.weight, self._dtype)
            if why is not None:
                return why
        return None

    @property
    def _dtype(self) -> mx.Dtype:
        packed = self._weights[0].weight
        if packed.format.mode == "affine":
            return packed.scales.dtype
        return mx.bfloat16

    def random(self, rows: int, each: int, seed: int) -> Inputs:
        """Rows, and different experts for each of them."""
        random = np.random.default_rng(seed)
        count = self._weights[0].num_experts
        choices = [random.permutation(count)[:each] for _ in range(rows)]
        width = self._weights[0].weight.width
        x = random.standard_normal((rows, width), dtype=np.float32)
        indices = mx.array(np.stack(choices).astype(np.uint32))
        return mx.array(x).astype(self._dtype), indices

    def fault(self, x: mx.array, indices: mx.array) -> str | None:
        """What is wrong with a kernel's numbers; None if nothing is."""
        ways = [self.multiplied]
        if self.has_matrices:
            ways.append(self.multiplied_by_matrices)
        for way in ways:
            why = self._difference(way, x, indices)
            if why is not None:
                return why
        return None

    def _difference(self, way: Call, x: mx.array, indices: mx.array) -> str | None:
        try:
            given = way(x, indices).astype(mx.float32)
            expected = self.defined(x, indices).astype(mx.float32)
            largest = mx.maximum(mx.abs(expected).max(), 1e-6)
            distance = float(np.array(mx.abs(given - expected).max() / largest))
        except (RuntimeError, ValueError, UnsupportedModelError) as error:
            return f"the kernel fails: {error}"
        if distance <= _TOLERANCE[x.dtype]:  # false for NaN
            return None
        return f"the kernel's experts differ from MLX's by {distance:.1e}"


def _is_quantized(part: Any) -> bool:
    """True for mlx-lm's quantized experts without a scale for all weights."""
    if type(part).__name__ != "QuantizedSwitchLinear":
        return False
    return getattr(part, "global_scale", None) is None


def _stacked(part: Any) -> ExpertWeights:
    """The experts' weights below each other; they share the layer's memory."""
    form = WeightFormat(part.bits, part.group_size, part.mode)
    biases = part.get("biases")
    if biases is not None:
        biases = biases.reshape(-1, biases.shape[-1])
    words = part["weight"]
    scales = part["scales"]
    weight = PackedWeight(
        words.reshape(-1, words.shape[-1]),
        scales.reshape(-1, scales.shape[-1]),
        biases,
        form,
    )
    mx.eval(weight.words, weight.scales)
    return ExpertWeights(weight, words.shape[0])


def _log(choice: ExpertsChoice, kind: tuple[object, ...]) -> None:
    words = choice.refused
    if words is None:
        times = []
        for rows, each_took in choice.seconds.items():
            took = "/".join(f"{seconds * 1e6:.0f}" for seconds in each_took)
            times.append(f"{rows} rows {took} us")
        words = ", ".join(times) or "by the kernel"
    logger.info("%s experts, kernels and MLX: %s", kind[1], words)
