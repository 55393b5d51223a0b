"""What this machine could run beside the model that is ready now.

The expected speed is arithmetic: each token reads all weights once, as small as they
are packed, so it is the measured bandwidth by the bytes of the weights.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rvllm_local.tui.state import ModelInfo

LEAST_BESIDE = 2**30  # bytes that a plan needs beside the weights
MEASURED_BYTES = 64 * 2**20  # copied to measure; more than a processor's caches
MEASURING_S = 30.0  # after which nothing is told of the speed
USABLE = 5.0  # tokens a second, about as fast as one reads
_MEASURE = (
    "from rvllm_local.metal_kernels.proof.timing import copy_bandwidth;"
    f"print(copy_bandwidth({MEASURED_BYTES}))"
)


@dataclass(frozen=True, slots=True)
class BestModel:
    """The model to offer, and the tokens a second to expect of it."""

    info: ModelInfo
    speed: float | None


async def measure_bandwidth() -> float | None:
    """Bytes a second that this machine's memory moves; None if that cannot be told.

    A process of its own measures: what it has to load would stay in the chat for good.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _MEASURE,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(MEASURING_S):
            answer, _ = await process.communicate()
        return float(answer)
    except (TimeoutError, ValueError):
        return None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def expected_speed(info: ModelInfo, bandwidth: float) -> float | None:
    """Tokens a second of one reply; None where the model's weights are not known."""
    if not info.read:
        return None
    return bandwidth / info.read


def best_model(
    offers: Sequence[ModelInfo],
    present_size: int,
    bandwidth: float,
) -> BestModel | None:
    """The largest model that fits and is fast enough to read along; else None.

    It must be larger than the present one, whose size is given in bytes.
    """
    best: BestModel | None = None
    for info in offers:
        speed = expected_speed(info, bandwidth)
        size = info.size or 0
        is_fast = speed is not None and speed >= USABLE
        if not info.fits or not is_fast or size <= present_size:
            continue
        if best is None or size > (best.info.size or 0):
            best = BestModel(info, speed)
    return best
