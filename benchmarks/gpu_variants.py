"""What an engine of a GPU benchmark does without, or does otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from rvllm_local.engine.compiled import CompiledDecode, bucket
from rvllm_local.engine.run_mode import RunMode
from rvllm_local.engine.runner import ModelRunner
from rvllm_local.engine.startup import choose_runner, install_kernels
from rvllm_local.metal_kernels.quantized_matmul import PackedWeight
from rvllm_local.models import recurrent_steps
from rvllm_local.models.product_checks import Product, mlx_product
from rvllm_local.models.products import QuantizedProducts

# What `--without` leaves out: the launches stay mlx-lm's own.
PARTS = {
    "recurrent": "install_gated_delta",
    "experts": "install_expert_products",
    "routes": "install_routed_blocks",
}


def quickest_mode(
    _model: object,
    make_runner: Callable[[RunMode], ModelRunner],
    _kv: object,
    *,
    rotates: bool = False,
    joins: bool = False,
    **_settings: object,
) -> ModelRunner:
    """Stands in for the self-check."""
    mode = RunMode(batched=True, dense=False, rotates=rotates, joins=joins)
    return make_runner(mode)


def some_scratch(*_given: object, **_settings: object) -> int:
    """Stands in for the measurement of what a step takes."""
    return 2**30


def pad_steps(least: int) -> None:
    """From now on a compiled step has at least so many rows."""

    def padded_rows(rows: int) -> int:
        return max(least, bucket(rows, 1))

    CompiledDecode.padded_rows = staticmethod(padded_rows)  # type: ignore[method-assign]


def leave_out(part: str) -> None:
    """From now on an engine installs no such kernels."""
    setattr(install_kernels, PARTS[part], _installs_nothing)


def _installs_nothing(*_given: object, **_settings: object) -> int:
    return 0


def leave_out_checks() -> None:
    """From now on an engine takes the quickest mode as it is, which compiles less.

    Recurrent kernels are not held against their definition: on CUDA its convolution
    of thousands of groups takes minutes to plan.
    """
    choose_runner.find_agreeing_runner = quickest_mode
    choose_runner.measure_scratch = some_scratch
    recurrent_steps._Layer._difference = _differs_nowhere  # type: ignore[method-assign]


def leave_out_timing() -> None:
    """From now on our products serve wherever they are right; MLX's are not timed.

    MLX compiles its products of eight and more rows when they are first called.
    """
    install_kernels.QuantizedProducts = _products_of_ours  # type: ignore[misc, assignment]


def _products_of_ours(*given: Any, **settings: Any) -> QuantizedProducts:
    return QuantizedProducts(*given, **(settings | {"timer": _untimed, "notes": None}))


def _untimed(product: Product, _x: mx.array, _weights: Sequence[PackedWeight]) -> float:
    return 2.0 if product is mlx_product else 1.0


def _differs_nowhere(_layer: object) -> None:
    return None


def with_layers(shape: dict[str, Any], layers: int | None) -> dict[str, Any]:
    """The shape with so many layers, or with its own."""
    if layers is None:
        return shape
    changed = {"num_hidden_layers": layers}
    if "text_config" in shape:
        return shape | {"text_config": shape["text_config"] | changed}
    return shape | changed
