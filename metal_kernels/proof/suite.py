"""Every check that proves the kernels on a device, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rvllm_local.metal_kernels.kernels import KernelConfig
from rvllm_local.metal_kernels.proof import checks
from rvllm_local.metal_kernels.proof.variants import BF16, F16, F32, I8, VARIANTS

STORES = ((128, BF16, BF16), (64, BF16, I8), (80, F16, F16), (96, F32, F32), (16, F32, I8))


def cases() -> Iterator[tuple[str, Callable[[], object]]]:
    """Name and check; a check returns quietly or raises `AssertionError` with the figure that was off."""
    for variant in VARIANTS:
        yield f"decode {variant.name}", lambda v=variant: checks.check_decode(v)  # type: ignore[misc]
    for variant in (VARIANTS[0], VARIANTS[5]):
        yield f"independent {variant.name}", lambda v=variant: checks.check_row_independence(v)  # type: ignore[misc]
    for dim, dtype, kv in STORES:
        config, label = KernelConfig(dim, 4, 2, 2, dtype, kv), f"{dim} {kv}"
        yield f"write and gather {label}", lambda c=config: checks.check_write_gather(c)  # type: ignore[misc]
        yield f"copy {label}", lambda c=config: checks.check_copy(c)  # type: ignore[misc]
        yield f"save and load {label}", lambda c=config: checks.check_save_load(c)  # type: ignore[misc]


def failure(check: Callable[[], object]) -> str | None:
    """What was wrong, in one line; None if nothing was."""
    try:
        check()
    except (AssertionError, RuntimeError, ValueError) as error:
        return " ".join(str(error).split())[:300] or type(error).__name__
    return None
