"""A decode step whose graph is built before its tokens are known.

Drafts have to be read before the next step can be chosen, so that the device waits for
the host. The largest part of that is building the graph, which depends on shapes alone:
it is built while the device still computes. Its inputs lie in memory that host and
device share, and are filled in once they are known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.int32]
Outputs = tuple[mx.array, mx.array, tuple[mx.array | None, ...]]


class HostArray:
    """An int32 array that is filled after a graph was built upon it, before it runs."""

    def __init__(self, size: int) -> None:
        self.array = mx.array(np.zeros(size, dtype=np.int32))
        self._memory = np.array(self.array, copy=False)

    def fill(self, words: Words) -> None:
        self._memory[:] = words


@dataclass(frozen=True, slots=True)
class PreparedStep:
    """Its graph follows `fence`; `key` says of which shapes it is."""

    key: tuple[object, ...]
    fence: mx.array
    inputs: tuple[HostArray, ...]
    outputs: Outputs

    def serves(self, key: tuple[object, ...], fence: mx.array) -> bool:
        """It is such a step, and nothing touched the arenas since it was prepared."""
        return self.key == key and self.fence is fence

    def filled(self, words: Sequence[Words]) -> Outputs:
        """What the step brings with these inputs. It can be had once."""
        for array, content in zip(self.inputs, words, strict=True):
            array.fill(content)
        return self.outputs


def prepare_step(
    key: tuple[object, ...],
    fence: mx.array,
    sizes: Sequence[int],
    describe: Callable[[Sequence[mx.array]], Outputs],
) -> PreparedStep:
    """Build a step's graph upon inputs of these sizes."""
    inputs = tuple([HostArray(size) for size in sizes])
    outputs = describe([each.array for each in inputs])
    return PreparedStep(key, fence, inputs, outputs)
