"""Launch functions for whole blocks: copy, save and load, all layers at once."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from rvllm_local.metal_kernels.arguments import check_pairs, require
from rvllm_local.metal_kernels.config import BLOCK, FENCE_SIZE
from rvllm_local.metal_kernels.launch import Dispatch
from rvllm_local.metal_kernels.launches import Defines, KernelLaunches

COPY_THREADS = 256
_WORD_BYTES = 16  # that a thread moves


@dataclass(frozen=True, slots=True)
class _Output:
    """The one array that a kernel returns."""

    name: str
    shape: tuple[int, ...]
    dtype: mx.Dtype


_FENCE_OUT = _Output("fence_out", (FENCE_SIZE,), mx.int32)


class BlockKernels(KernelLaunches):
    """Moves blocks with their scales. README.md holds each kernel's contract."""

    def kv_copy(
        self,
        arena: mx.array,
        scales: mx.array | None,
        pairs: mx.array,
        fence: mx.array,
    ) -> mx.array:
        """Copy blocks in place: `pairs` int32 `[n, 2]` of (source, destination).

        Returns the next fence. A pair with equal ends does nothing. A destination may
        not be another pair's source.
        """
        inputs = self._arena_inputs(arena, scales, fence)
        check_pairs(pairs)
        if pairs.size < FENCE_SIZE:
            missing = FENCE_SIZE // 2 - pairs.shape[0]
            pairs = mx.pad(pairs, [(0, missing), (0, 0)])
        inputs |= {"pairs": pairs, "fence": fence}
        count = pairs.shape[0]
        return self._run_on_words("kv_copy", inputs, count, _FENCE_OUT)

    def kv_save(
        self,
        arena: mx.array,
        scales: mx.array | None,
        blocks: mx.array,
        fence: mx.array,
        count: int,
    ) -> mx.array:
        """The first `count` of `blocks` int32 `[>= 8]` as words.

        uint32 `[count, block bytes / 4]`: a block's elements, then its scales.
        """
        inputs = self._arena_inputs(arena, scales, fence)
        require("blocks", blocks, (max(FENCE_SIZE, count),), mx.int32)
        inputs |= {"blocks": blocks, "fence": fence}
        saved = _Output("saved", (count, 4 * self._words), mx.uint32)
        return self._run_on_words("kv_save", inputs, count, saved)

    def kv_load(
        self,
        arena: mx.array,
        scales: mx.array | None,
        blocks: mx.array,
        saved: mx.array,
        fence: mx.array,
    ) -> mx.array:
        """Write `saved`, as `kv_save` gave it, into the first of `blocks`, in place.

        Returns the next fence.
        """
        inputs = self._arena_inputs(arena, scales, fence)
        count = saved.shape[0]
        require("saved", saved, (count, 4 * self._words), mx.uint32)
        require("blocks", blocks, (max(FENCE_SIZE, count),), mx.int32)
        inputs |= {"blocks": blocks, "saved": saved, "fence": fence}
        return self._run_on_words("kv_load", inputs, count, _FENCE_OUT)

    def _run_on_words(
        self,
        kind: str,
        inputs: dict[str, mx.array],
        blocks: int,
        output: _Output,
    ) -> mx.array:
        """One thread a 16-byte word along x, one block along y; the only output."""
        defines = self._word_defines()
        text = self._text(kind, defines, tuple(inputs), (output.name,))
        groups = -(-self._words // COPY_THREADS)
        dispatch = Dispatch(
            kernel=text,
            inputs=tuple(inputs.values()),
            grid=(groups * COPY_THREADS, blocks, 1),
            threadgroup=(COPY_THREADS, 1, 1),
            shapes=(output.shape,),
            dtypes=(output.dtype,),
        )
        return self._run(dispatch)[0]

    @property
    def _block_rows(self) -> int:
        """Heads' keys and values of single tokens in one block."""
        c = self.config
        return c.num_layers * 2 * c.kv_heads * BLOCK

    @property
    def _data_words(self) -> int:
        c = self.config
        return c.num_layers * c.layer_elements * c.kv_dtype.size // _WORD_BYTES

    @property
    def _scale_words(self) -> int:
        if not self.config.quantized:
            return 0
        return self._block_rows * mx.float32.size // _WORD_BYTES

    @property
    def _words(self) -> int:
        """16-byte words of one block with its scales."""
        return self._data_words + self._scale_words

    def _word_defines(self) -> Defines:
        return {
            "RV_BLOCK_WORDS": self._data_words,
            "RV_SCALE_WORDS": self._scale_words,
            "RV_COPY_THREADS": COPY_THREADS,
        }
