"""What `rvllm doctor` says of a device's arithmetic: types, rates, and matrix units."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import mlx.core as mx

from rvllm_local.commands.finding import Finding
from rvllm_local.machine import gpu_generation, is_on_cpu, prefers_float16
from rvllm_local.models.timed_calls import busy_seconds

_SIZE = 2048  # rows and columns of the matrices that are multiplied
_WITH_MATRIX_UNITS = 17  # generation of the M5's GPU
# Shader cores multiply float16 little faster than float32; matrix units much.
_FASTER = 1.5


def arithmetic_findings() -> list[Finding]:
    """The type that models compute in here, and the rate of products in each."""
    if is_on_cpu():
        return [Finding("dtype", "ok", "float32: a CPU computes in it")]
    return [judged(measured_rates(), gpu_generation(), narrows=prefers_float16())]


def judged(
    rates: Mapping[str, float], generation: int | None, *, narrows: bool
) -> Finding:
    """`rates` are multiply-adds a second by type. `narrows`: bfloat16 is avoided here."""
    types = "models compute in the type that they are stored in"
    if narrows:
        types = "models of bfloat16 compute in float16 where it holds them"
    written = [f"{2 * rate / 1e12:.1f} in {name}" for name, rate in rates.items()]
    detail = f"{types}; products: TFLOP/s {', '.join(written)}"
    if generation is None:
        return Finding("dtype", "ok", detail)
    faster = rates["float16"] / rates["float32"]
    if faster >= _FASTER:
        return Finding("dtype", "ok", f"{detail}; matrix units are in use")
    if generation < _WITH_MATRIX_UNITS:
        return Finding("dtype", "ok", detail)
    return Finding(
        "dtype",
        "warning",
        f"{detail}; the matrix units of this GPU are not in use, by these rates",
        "install the newest macOS and mlx: prompts are read several times faster then",
    )


def measured_rates(size: int = _SIZE) -> dict[str, float]:
    """Multiply-adds a second of a product of square matrices, by type."""
    rates = {}
    for dtype in (mx.float16, mx.bfloat16, mx.float32):
        matrix = mx.ones((size, size), dtype)
        mx.eval(matrix)
        seconds = busy_seconds(functools.partial(mx.matmul, matrix, matrix))
        name = str(dtype).rpartition(".")[2]
        rates[name] = size**3 / seconds
    return rates
