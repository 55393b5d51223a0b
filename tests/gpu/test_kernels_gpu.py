"""The kernels on a real GPU, NVIDIA's through MLX's CUDA build or Apple's: right, in place, and the same when pipelined.

Runs under pytest, or alone on a host that has only numpy and MLX: `python tests/gpu/test_kernels_gpu.py [FILTER]`.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import bootstrap

bootstrap.prepare()

from rvllm_local import host

host.prepare()

import mlx.core as mx
import numpy as np
from mlx import nn

from rvllm_local.metal_kernels import (
    DispatchCounter,
    KernelConfig,
    KernelSet,
    NewTokens,
    default_backend,
)
from rvllm_local.metal_kernels import descriptor as layout
from rvllm_local.metal_kernels.proof import suite
from rvllm_local.metal_kernels.proof.variants import BF16
from rvllm_local.models.fuse import fuse_projections
from rvllm_local.models.products import (
    QuantizedProducts,
    install_products,
    products_here,
)


class Loop:
    """A toy decode loop: each layer writes KV made from its input in place and attends; outputs feed the next step."""

    def __init__(
        self,
        config: KernelConfig,
        rows: int,
        context: int,
        steps: int,
        *,
        compiled: bool,
    ) -> None:
        self.kernels, self.config, self.rows = KernelSet(config), config, rows
        per_row = -(-(context + steps) // 32)
        order = np.random.default_rng(1).permutation(np.arange(1, rows * per_row + 1))
        self.tables = order.reshape(rows, per_row).tolist()
        mx.random.seed(5)
        self.arena = mx.random.normal(config.arena_shape(rows * per_row + 1)).astype(
            config.kv_dtype
        )
        shape = (rows, config.num_heads, 1, config.head_dim)
        self.state, self.fence, self.context = (
            mx.random.normal(shape).astype(config.dtype),
            KernelSet.first_fence(),
            context,
        )
        self.layers = [KernelSet.layer_index(i) for i in range(config.num_layers)]
        self.scratch = mx.zeros((max(8, self.kernels.scratch_size(rows, 1, per_row)),))
        mx.eval(self.arena, self.state, self.fence, self.layers, self.scratch)
        self.step = mx.compile(self._step) if compiled else self._step

    def _step(
        self,
        x: mx.array,
        packed: mx.array,
        fence: mx.array,
        arena: mx.array,
        scratch: mx.array,
        *layers: mx.array,
    ) -> list[mx.array]:
        kv_heads = self.config.kv_heads
        for layer in layers:
            keys, values = mx.sin(x[:, :kv_heads] * 1.7), mx.cos(x[:, :kv_heads] * 1.3)
            new = NewTokens(keys, values)
            out, fence = self.kernels.paged_decode(
                x, arena, None, packed, layer, fence, scratch, scale=0.125, new=new
            )
            x = x + out
            x = x * mx.rsqrt(mx.mean(mx.square(x), axis=-1, keepdims=True) + 1e-5)
        return [x, fence]

    def submit(self) -> mx.array:
        self.context += 1
        packed = layout.pack(
            [self.context] * self.rows, [0] * self.rows, self.tables, 1
        )
        out = self.step(
            self.state,
            mx.array(packed),
            self.fence,
            self.arena,
            self.scratch,
            *self.layers,
        )
        self.state, self.fence = out
        return self.state

    def run(self, steps: int, *, pipelined: bool) -> list[np.ndarray]:
        seen: list[np.ndarray] = []
        waiting: mx.array | None = None
        for _ in range(steps):
            out = self.submit()
            mx.async_eval(out, self.fence)
            if not pipelined:
                mx.synchronize()
                seen.append(np.array(out.astype(mx.float32)))
                continue
            if waiting is not None:
                seen.append(np.array(waiting.astype(mx.float32)))
            waiting = out
        if waiting is not None:
            seen.append(np.array(waiting.astype(mx.float32)))
        return seen


LOOP = KernelConfig(64, 8, 2, 4, BF16, BF16)


def check_pipelined(compiled: bool) -> None:
    synchronous = Loop(LOOP, 4, 500, 60, compiled=compiled).run(60, pipelined=False)
    pipelined = Loop(LOOP, 4, 500, 60, compiled=compiled).run(60, pipelined=True)
    for step, (a, b) in enumerate(zip(synchronous, pipelined, strict=True)):
        assert np.array_equal(a, b), f"step {step} differs when pipelined"
        assert np.isfinite(a).all()


def check_memory() -> float:
    """Peak memory beyond the arena while one step is in flight, as a share of the arena."""
    loop = Loop(KernelConfig(128, 32, 8, 16, BF16, BF16), 16, 3000, 40, compiled=True)
    loop.run(3, pipelined=True)
    mx.synchronize()
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    loop.run(20, pipelined=True)
    share = (mx.get_peak_memory() - before) / loop.arena.nbytes
    assert share < 0.01, f"extra peak memory is {share:.2%} of the arena"
    return float(share)


class Projections(nn.Module):  # type: ignore[misc]
    """Quantized layers as a model has them, two of them to be joined."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(2048, 4096, bias=False)
        self.up_proj = nn.Linear(2048, 4096, bias=False)
        self.down_proj = nn.Linear(4096, 2048, bias=True)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(self.gate_proj(x) * self.up_proj(x))


def check_products() -> str:
    """Layers that multiply as was measured: as MLX does, eager and compiled."""
    mx.random.seed(3)
    module = Projections()
    module.set_dtype(BF16)
    nn.quantize(module, group_size=64, bits=4)
    inputs = [mx.random.normal((rows, 1, 2048)).astype(BF16) for rows in (1, 5, 32)]
    inputs.append(mx.random.normal((1, 100, 2048)).astype(BF16))
    expected = [module(x).astype(mx.float32) for x in inputs]
    mx.eval(expected)
    fuse_projections(module)
    products = QuantizedProducts(products_here(DispatchCounter()), always=False)
    began = time.perf_counter()
    layers = install_products(module, products, BF16)
    taken = time.perf_counter() - began
    assert layers == 2, products.choices
    for call in (module, mx.compile(module)):
        for x, right in zip(inputs, expected, strict=True):
            error = mx.abs(call(x).astype(mx.float32) - right).max() / right.max()
            assert error.item() < 4e-2, f"{x.shape}: {error.item():.1e}"
    tiles = [sorted(choice.served) for choice in products.choices.values()]
    return f"row tiles by the kernel {tiles}, chosen in {taken:.1f} s"


def cases() -> Iterator[tuple[str, Callable[[], object]]]:
    yield from suite.cases()
    yield "products in a compiled step", check_products
    yield "pipelined eager", lambda: check_pipelined(compiled=False)
    yield "pipelined compiled", lambda: check_pipelined(compiled=True)
    yield "peak memory", check_memory


def main(pattern: str) -> int:
    failures = 0
    for name, check in cases():
        if pattern not in name:
            continue
        start = time.perf_counter()
        try:
            print(
                f"ok   {name}: {check()} ({time.perf_counter() - start:.1f} s)",
                flush=True,
            )
        except Exception:
            failures += 1
            print(f"FAIL {name}\n{traceback.format_exc(limit=-3)[-1800:]}", flush=True)
    print(f"{failures} failures with mlx {mx.__version__} on {default_backend()}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ""))

import pytest

ALL = dict(cases())


@pytest.mark.gpu
@pytest.mark.skipif(
    default_backend() != "cuda", reason="needs an NVIDIA GPU with MLX's CUDA build"
)
@pytest.mark.parametrize("name", ALL)
def test_kernel_on_gpu(name: str) -> None:
    ALL[name]()


@pytest.mark.mac
@pytest.mark.parametrize("name", ALL)
def test_kernel_on_a_mac(name: str) -> None:
    ALL[name]()
