"""Vectors as JSON, written a little at a time: streams share the event loop."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
from starlette.responses import Response

from rvllm_local.conversation.pooled import vectors_of
from rvllm_local.engine.limits import Pools
from rvllm_local.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from rvllm_local.conversation.pooled import Vectors

_NUMBERS_AT_ONCE = 16_384  # about a millisecond
_LEAST_LENGTH = 1e-12  # a vector of zeros stays one


async def join_vectors(
    parts: Sequence[bytes],
    dimensions: int | None,
    pools: Pools,
    is_unit: bool = False,
) -> Vectors:
    """Like `vectors_of`, beside the event loop; of length 1 where that is asked for.

    Raises `EngineError` for vectors that are no numbers.
    """
    import numpy as np

    vectors = await asyncio.to_thread(vectors_of, parts, dimensions, pools)
    if not np.isfinite(vectors).all():
        raise EngineError("the model made vectors that are no numbers")
    if not is_unit:
        return vectors
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    divisors = np.maximum(lengths, _LEAST_LENGTH)
    return np.asarray(vectors / divisors, dtype=np.float32)


async def write_vectors(vectors: Vectors, is_base64: bool = False) -> list[bytes]:
    """Each vector as JSON: its numbers, or base64 of their bytes as float32."""
    written = []
    at_once = max(1, _NUMBERS_AT_ONCE // vectors.shape[1])
    for number, vector in enumerate(vectors):
        text = _written(vector, is_base64)
        written.append(text)
        if number % at_once == at_once - 1:
            await asyncio.sleep(0)
    return written


def _written(vector: npt.NDArray[np.float32], is_base64: bool) -> bytes:
    if not is_base64:
        return msgspec.json.encode(vector.tolist())
    numbers = vector.astype("<f4")
    data = base64.b64encode(numbers.tobytes())
    return b'"' + data + b'"'


class WrittenReply(Response):
    """A body that is JSON already."""

    media_type = "application/json"
