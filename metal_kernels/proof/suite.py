"""Every check that proves the kernels on a device, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from rvllm_local.metal_kernels.config import KernelConfig
from rvllm_local.metal_kernels.proof import (
    checks,
    delta,
    gathered,
    latent,
    quantized,
    routes,
)
from rvllm_local.metal_kernels.proof.block_checks import (
    check_copy,
    check_save_load,
    check_write_gather,
)
from rvllm_local.metal_kernels.proof.variants import (
    BF16,
    F16,
    F32,
    I8,
    VARIANTS,
    Variant,
)

Case = Callable[[], object]

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


def cases() -> Iterator[tuple[str, Case]]:
    """Name and check of every kernel.

    A check returns quietly or raises `AssertionError` with the figure that was off.
    """
    for variant in VARIANTS:
        yield from _attention_cases(variant)
    table_config = KernelConfig(16, 2, 1, 1, F32, F32)
    yield "rope table", partial(checks.check_rope_table, table_config)
    for width, dtype in NORMS:
        name = f"add and norm {width} {dtype}"
        yield name, partial(checks.check_add_norm, width, dtype)
    for head_dim, dtype, kv_dtype in STORES:
        config = KernelConfig(head_dim, 4, 2, 2, dtype, kv_dtype)
        label = f"{head_dim} {kv_dtype}"
        yield f"write and gather {label}", partial(check_write_gather, config)
        yield f"copy {label}", partial(check_copy, config)
        yield f"save and load {label}", partial(check_save_load, config)
    yield from latent.cases()
    for product in quantized.PRODUCTS:
        name = product.name
        yield f"quantized {name}", partial(quantized.check_product, product)
        alone = partial(quantized.check_rows_alone, product)
        yield f"quantized rows alone {name}", alone
    for experts in gathered.EXPERTS:
        name = experts.name
        yield f"gathered {name}", partial(gathered.check_gathered, experts)
        yield f"gathered alone {name}", partial(gathered.check_pairs_alone, experts)
        yield f"gathered gates {name}", partial(gathered.check_gated, experts)
    for case in routes.ROUTES:
        yield f"choose experts {case.name}", partial(routes.check_choice, case)
        yield f"weigh parts {case.name}", partial(routes.check_sums, case)
    for net in delta.NETS:
        yield f"gated delta {net.name}", partial(delta.check_delta, net)
        yield f"gated delta alone {net.name}", partial(delta.check_rows_alone, net)


def _attention_cases(variant: Variant) -> Iterator[tuple[str, Case]]:
    name = variant.name
    yield f"decode {name}", partial(checks.check_decode, variant)
    yield f"fused {name}", partial(checks.check_fused, variant)
    if name in INDEPENDENT:
        yield f"independent {name}", partial(checks.check_row_independence, variant)
    if name in ROTATED:
        yield f"rotated {name}", partial(checks.check_rotation, variant)
        apart = partial(checks.check_rotated_apart, variant)
        yield f"rotated apart {name}", apart


def failure(check: Callable[[], object]) -> str | None:
    """What was wrong, in one line; None if nothing was."""
    try:
        check()
    except (AssertionError, RuntimeError, ValueError) as error:
        return " ".join(str(error).split())[:300] or type(error).__name__
    return None
