"""GB/s of each kernel beside a plain copy in the same run, on the device that MLX launches on."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from rvllm_local.metal_kernels import KernelConfig, KernelSet, NewTokens
from rvllm_local.metal_kernels import descriptor as layout
from rvllm_local.metal_kernels.decode import Tuning

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
    """One kernel at one size: `nbytes` are what it must read and write; `of_copy` is its rate over a copy's."""

    kernel: str
    load: Load
    kv_dtype: str
    seconds: float
    nbytes: int
    of_copy: float

    @property
    def bytes_per_s(self) -> float:
        return self.nbytes / self.seconds


# Groups of 4 and 8 over 64k tokens in flight and more, a short batch, and one long sequence.
LOADS = (
    Load(16, 8192, 32, 8, 128), Load(16, 8192, 64, 8, 128), Load(64, 1024, 32, 8, 128), Load(64, 1024, 64, 8, 128),
    Load(1, 65536, 32, 8, 128), Load(1, 65536, 64, 8, 128), Load(64, 512, 32, 8, 64), Load(1, 512, 32, 8, 64),
)  # fmt: skip


def seconds(build: Callable[[], mx.array], calls: int, rounds: int = 5) -> float:
    """Median time of one call while the device is busy: what `calls` more of them take after the first `calls`.

    The difference leaves out what the host needs before the device has anything to do.
    """
    differences = []
    for _ in range(rounds):
        taken = []
        for count in (calls, 2 * calls):
            outputs = [build() for _ in range(count)]
            mx.synchronize()
            start = time.perf_counter()
            mx.eval(outputs)
            mx.synchronize()
            taken.append(time.perf_counter() - start)
        differences.append((taken[1] - taken[0]) / calls)
    return statistics.median(differences)


def copy_bandwidth(nbytes: int) -> float:
    """Bytes read and written a second by a plain pass over `nbytes`: on a CPU a copy on all of its cores."""
    if mx.default_device() == mx.Device(mx.cpu):
        return _host_copy_bandwidth(nbytes)
    source = mx.random.uniform(shape=(nbytes // 4,))
    mx.eval(source)
    return 2 * source.nbytes / seconds(lambda: mx.abs(source), 8)


def _host_copy_bandwidth(nbytes: int) -> float:
    """The destination is written before: new memory would cost a page fault for each page."""
    source, target = np.zeros(nbytes, np.uint8), np.ones(nbytes, np.uint8)
    source[:] = 1
    cores = os.cpu_count() or 1
    parts = list(
        zip(np.array_split(target, cores), np.array_split(source, cores), strict=True)
    )
    taken = []
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(5):
            began = time.perf_counter()
            list(pool.map(lambda part: np.copyto(*part), parts))
            taken.append(time.perf_counter() - began)
    return 2 * nbytes / statistics.median(taken)


class Bench:
    """The arrays of one load in one KV format, and the kernels' calls over them."""

    def __init__(
        self,
        load: Load,
        dtype: mx.Dtype,
        kv_dtype: mx.Dtype,
        tuning: Tuning | None = None,
    ) -> None:
        self.load, per_row = load, -(-load.context // layout.BLOCK_TOKENS)
        self.config = KernelConfig(
            load.head_dim, load.heads, load.kv_heads, 1, dtype, kv_dtype
        )
        self.kernels = KernelSet(self.config, tuning=tuning)
        num_blocks = load.rows * per_row + 1
        self.scales = None
        if self.config.quantized:
            self.arena = mx.random.randint(
                -127, 128, self.config.arena_shape(num_blocks)
            ).astype(mx.int8)
            self.scales = mx.random.uniform(
                0.001, 0.01, self.config.scales_shape(num_blocks)
            )
            mx.eval(self.scales)
        else:
            self.arena = mx.random.normal(self.config.arena_shape(num_blocks)).astype(
                kv_dtype
            )
        order = (
            np.random.default_rng(0)
            .permutation(np.arange(1, num_blocks))
            .reshape(load.rows, per_row)
        )
        self.num_blocks = num_blocks
        contexts, firsts = [load.context] * load.rows, [0] * load.rows
        self.packed = mx.array(layout.pack(contexts, firsts, order.tolist(), 1))
        self.single = mx.array(
            layout.pack(contexts[:1], firsts[:1], order[:1].tolist(), 1)
        )
        self.queries = mx.random.normal(
            (load.rows, load.heads, 1, load.head_dim)
        ).astype(dtype)
        self.new = mx.random.normal(
            (load.rows, load.kv_heads, 1, load.head_dim)
        ).astype(dtype)
        pairs = min(64, (num_blocks - 1) // 2)
        self.pairs = mx.array(
            np.stack(
                [order.reshape(-1)[:pairs], order.reshape(-1)[-pairs:]], axis=1
            ).astype(np.int32)
        )
        self.layer, self.token = KernelSet.layer_index(0), KernelSet.first_token()
        self.scratch = mx.zeros(
            (max(8, self.kernels.scratch_size(load.rows, 1, per_row)),)
        )
        mx.eval(
            self.arena,
            self.scratch,
            self.packed,
            self.single,
            self.queries,
            self.new,
            self.pairs,
            self.layer,
            self.token,
        )

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
        out, self.token = self.kernels.paged_decode(
            self.queries,
            self.arena,
            self.scales,
            self.packed,
            self.layer,
            self.token,
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
            self.token,
        )

    def gather(self) -> mx.array:
        return self.kernels.kv_gather(
            self.arena,
            self.scales,
            self.single,
            self.layer,
            self.token,
            self.load.context,
        )[0]

    def copy(self) -> mx.array:
        return self.kernels.kv_copy(self.arena, self.scales, self.pairs, self.token)

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


def measure(
    loads: tuple[Load, ...] = LOADS, *, scale: int = 1
) -> tuple[float, list[Measured]]:
    """The copy's bytes a second, and every kernel at every load in bfloat16 and int8; `scale` divides the contexts."""
    copy = copy_bandwidth(2**30 // scale)
    found = []
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
                found.append(
                    Measured(
                        kernel, smaller, name, taken, nbytes, nbytes / taken / copy
                    )
                )
            del bench
    return copy, found


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
