"""Every check that proves the kernels on a device, by name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

from rvllm_local.metal_kernels.config import KernelConfig
from rvllm_local.metal_kernels.proof import checks, quantized
from rvllm_local.metal_kernels.proof.variants import BF16, F16, F32, I8, VARIANTS

STORES = (
    (512, F16, F16),
    (128, BF16, BF16),
    (64, BF16, I8),
    (80, F16, F16),
    (96, F32, F32),
    (16, F32, I8),
)

NORMS = ((2048, BF16), (72, F16), (576, F32), (5120, BF16))

INDEPENDENT = (
    "d64-long",
    "d512-f16-g8",
    "d64-bf16-g4-q3",
    "d64-f16-sinks",
    "d128-bf16-g8",
    "d128-bf16-int8-g4",
)
ROTATED = (
    "d64-long",
    "d80-f16-mha",
    "d128-bf16-g8",
    "d128-bf16-int8-g4",
    "d512-f16-g8",
    "d16-f16-tiny",
)


def cases() -> Iterator[tuple[str, Callable[[], object]]]:
    """Name and check; a check returns quietly or raises `AssertionError` with the figure that was off."""
    for variant in VARIANTS:
        yield f"decode {variant.name}", lambda v=variant: checks.check_decode(v)  # type: ignore[misc]
        yield f"fused {variant.name}", lambda v=variant: checks.check_fused(v)  # type: ignore[misc]
        if variant.name in INDEPENDENT:
            yield (
                f"independent {variant.name}",
                lambda v=variant: checks.check_row_independence(v),  # type: ignore[misc]
            )
        if variant.name in ROTATED:
            yield f"rotated {variant.name}", lambda v=variant: checks.check_rotation(v)  # type: ignore[misc]
    yield (
        "rope table",
        lambda: checks.check_rope_table(KernelConfig(16, 2, 1, 1, F32, F32)),
    )
    for width, dtype in NORMS:
        yield (
            f"add and norm {width} {dtype}",
            lambda w=width, d=dtype: checks.check_add_norm(w, d),  # type: ignore[misc]
        )
    for dim, dtype, kv in STORES:
        config, label = KernelConfig(dim, 4, 2, 2, dtype, kv), f"{dim} {kv}"
        yield f"write and gather {label}", lambda c=config: checks.check_write_gather(c)  # type: ignore[misc]
        yield f"copy {label}", lambda c=config: checks.check_copy(c)  # type: ignore[misc]
        yield f"save and load {label}", lambda c=config: checks.check_save_load(c)  # type: ignore[misc]
    yield from _quantized_cases()


def _quantized_cases() -> Iterator[tuple[str, Callable[[], object]]]:
    """Those of the quantized products."""
    for product in quantized.PRODUCTS:
        yield (
            f"quantized {product.name}",
            functools.partial(quantized.check_product, product),
        )
        yield (
            f"quantized rows alone {product.name}",
            functools.partial(quantized.check_rows_alone, product),
        )


def failure(check: Callable[[], object]) -> str | None:
    """What was wrong, in one line; None if nothing was."""
    try:
        check()
    except (AssertionError, RuntimeError, ValueError) as error:
        return " ".join(str(error).split())[:300] or type(error).__name__
    return None
