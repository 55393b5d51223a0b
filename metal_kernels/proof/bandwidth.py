"""GB/s of each kernel beside a plain copy in the same run, on the device that MLX launches on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from rvllm_local.metal_kernels import KernelConfig, KernelSet, NewTokens
from rvllm_local.metal_kernels import descriptor as layout
from rvllm_local.metal_kernels.decode import Tuning
from rvllm_local.metal_kernels.proof.timing import copy_bandwidth, seconds

CALLS = 100  # as many as MLX puts into one command buffer, so that the device works while the host goes on


@dataclass(frozen=True, slots=True)
class Load:
    """One size to measure: `rows` rows of `context` tokens in flight."""

    rows: int
    context: int
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class Measured:
    """One kernel at one size: `nbytes` are what it must read and write.

    `of_copy` is its rate over a copy's.
    """

    kernel: str
    load: Load
    kv_dtype: str
    seconds: float
    nbytes: int
    of_copy: float

    @property
    def bytes_per_s(self) -> float:
        return self.nbytes / self.seconds


# Groups of 4 and 8 over 64k tokens in flight and more, a short batch, and one long
# sequence.
LOADS = (
    Load(16, 8192, 32, 8, 128), Load(16, 8192, 64, 8, 128), Load(64, 1024, 32, 8, 128), Load(64, 1024, 64, 8, 128),
    Load(1, 65536, 32, 8, 128), Load(1, 65536, 64, 8, 128), Load(64, 512, 32, 8, 64), Load(1, 512, 32, 8, 64),
)  # fmt: skip


class Bench:
    """The arrays of one load in one KV format, and the kernels' calls over them."""

    def __init__(
        self,
        load: Load,
        dtype: mx.Dtype,
        kv_dtype: mx.Dtype,
        tuning: Tuning | None = None,
    ) -> None:
        self.load = load
        self.config = KernelConfig(
            load.head_dim, load.heads, load.kv_heads, 1, dtype, kv_dtype
        )
        self.kernels = KernelSet(self.config, tuning=tuning)
        blocks_a_row = -(-load.context // layout.BLOCK_TOKENS)
        self.num_blocks = load.rows * blocks_a_row + 1
        self._fill_arena()
        order = np.random.default_rng(0).permutation(np.arange(1, self.num_blocks))
        self._describe(order.reshape(load.rows, blocks_a_row).tolist())
        self._draw_tokens(dtype)
        self.pairs = mx.array(_copy_pairs(order))
        self.layer = KernelSet.layer_index(0)
        self.fence = KernelSet.first_fence()
        scratch_size = self.kernels.scratch_size(load.rows, 1, blocks_a_row)
        self.scratch = mx.zeros((max(8, scratch_size),))
        mx.eval(self.scratch, self.pairs, self.layer, self.fence)

    def _describe(self, tables: list[list[int]]) -> None:
        """The descriptors of all rows, and of the first one alone."""
        contexts = [self.load.context] * self.load.rows
        firsts = [0] * self.load.rows
        self.packed = mx.array(layout.pack(contexts, firsts, tables, 1))
        self.single = mx.array(layout.pack(contexts[:1], firsts[:1], tables[:1], 1))
        mx.eval(self.packed, self.single)

    def _draw_tokens(self, dtype: mx.Dtype) -> None:
        """One query token a row, and its key or value."""
        load = self.load
        queries = (load.rows, load.heads, 1, load.head_dim)
        new = (load.rows, load.kv_heads, 1, load.head_dim)
        self.queries = mx.random.normal(queries).astype(dtype)
        self.new = mx.random.normal(new).astype(dtype)
        mx.eval(self.queries, self.new)

    def _fill_arena(self) -> None:
        """Random keys and values; an int8 arena has random scales beside them."""
        shape = self.config.arena_shape(self.num_blocks)
        self.scales: mx.array | None = None
        if not self.config.quantized:
            self.arena = mx.random.normal(shape).astype(self.config.kv_dtype)
            mx.eval(self.arena)
            return
        self.arena = mx.random.randint(-127, 128, shape).astype(mx.int8)
        scales_shape = self.config.scales_shape(self.num_blocks)
        self.scales = mx.random.uniform(0.001, 0.01, scales_shape)
        mx.eval(self.arena, self.scales)

    @property
    def token_bytes(self) -> int:
        """Bytes that one token's keys and values take in the arena."""
        return (
            2
            * self.load.kv_heads
            * (
                self.load.head_dim * self.config.kv_dtype.size
                + 4 * self.config.quantized
            )
        )

    def decode(self) -> mx.array:
        """A whole decode call, after the one before: the new tokens' write, attention, and the combine step if any."""
        new = NewTokens(self.new, self.new)
        out, self.fence = self.kernels.paged_decode(
            self.queries,
            self.arena,
            self.scales,
            self.packed,
            self.layer,
            self.fence,
            self.scratch,
            scale=0.1,
            new=new,
        )
        return out

    def write(self) -> mx.array:
        return self.kernels.kv_write(
            self.arena,
            self.scales,
            self.new,
            self.new,
            self.packed,
            self.layer,
            self.fence,
        )

    def gather(self) -> mx.array:
        return self.kernels.kv_gather(
            self.arena,
            self.scales,
            self.single,
            self.layer,
            self.fence,
            self.load.context,
        )[0]

    def copy(self) -> mx.array:
        return self.kernels.kv_copy(self.arena, self.scales, self.pairs, self.fence)

    def calls(self) -> Iterator[tuple[str, Callable[[], mx.array], int]]:
        """Each kernel: its name, a call, and the bytes that the call must move."""
        load, dense = (
            self.load,
            2 * self.load.kv_heads * self.load.head_dim * self.config.dtype.size,
        )
        yield "paged_decode", self.decode, load.rows * load.context * self.token_bytes
        yield "kv_write", self.write, load.rows * (dense + self.token_bytes)
        yield "kv_gather", self.gather, load.context * (dense + self.token_bytes)
        yield (
            "kv_copy",
            self.copy,
            2 * self.pairs.shape[0] * layout.BLOCK_TOKENS * self.token_bytes,
        )


def _copy_pairs(order: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Up to 64 pairs of blocks: the first ones of a shuffled order to the last ones."""
    count = min(64, len(order) // 2)
    pairs = np.stack([order[:count], order[-count:]], axis=1)
    return pairs.astype(np.int32)


def measure(
    loads: tuple[Load, ...] = LOADS, *, scale: int = 1
) -> tuple[float, list[Measured]]:
    """The copy's bytes a second, and every kernel at every load in bfloat16 and int8.

    `scale` divides the contexts.
    """
    copy = copy_bandwidth(2**30 // scale)
    measured = []
    for load in loads:
        smaller = Load(
            load.rows,
            max(64, load.context // scale),
            load.heads,
            load.kv_heads,
            load.head_dim,
        )
        for name, kv_dtype in (("bf16", mx.bfloat16), ("int8", mx.int8)):
            bench = Bench(smaller, mx.bfloat16, kv_dtype)
            for kernel, call, nbytes in bench.calls():
                mx.eval(call())
                taken = seconds(call, CALLS)
                measured.append(
                    Measured(
                        kernel, smaller, name, taken, nbytes, nbytes / taken / copy
                    )
                )
            del bench
    return copy, measured


def table(copy: float, rows: list[Measured]) -> str:
    """The measurements as text."""
    lines = [f"plain copy: {copy / 1e9:.0f} GB/s", f"{'kernel':<13}{'rows x context':>15}{'group':>6}{'dim':>5}{'kv':>6}"
             f"{'us':>10}{'GB/s':>8}{'of copy':>9}"]  # fmt: skip
    lines += [
        f"{row.kernel:<13}{f'{row.load.rows} x {row.load.context}':>15}{row.load.heads // row.load.kv_heads:>6}"
        f"{row.load.head_dim:>5}{row.kv_dtype:>6}{row.seconds * 1e6:>10.1f}{row.bytes_per_s / 1e9:>8.0f}{row.of_copy:>9.0%}"
        for row in rows
    ]
    return "\n".join(lines)
