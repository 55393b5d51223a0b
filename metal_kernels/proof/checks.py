"""Checks of the kernels that run anywhere a `KernelSet` can launch: the emulator, a Mac or an NVIDIA GPU.

Each returns quietly or raises `AssertionError` with the figure that was off.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from rvllm_local.metal_kernels import KernelConfig, KernelSet
from rvllm_local.metal_kernels import descriptor as layout
from rvllm_local.metal_kernels.launch import Launcher
from rvllm_local.metal_kernels.proof.oracle import Case, error, floats
from rvllm_local.metal_kernels.proof.variants import Variant


def decode(kernels: KernelSet, case: Case, variant: Variant, sinks: mx.array | None) -> mx.array:
    return kernels.paged_decode(
        case.queries,
        case.arena,
        case.scales,
        case.descriptor,
        kernels.layer_index(case.layer),
        kernels.first_token(),
        scale=variant.head_dim**-0.5,
        window=variant.window,
        softcap=variant.softcap,
        sinks=sinks,
    )


def check_decode(variant: Variant, launcher: Launcher | None = None) -> float:
    """Compares one variant with the oracle, with padding rows and blocks; the relative error."""
    kernels = KernelSet(variant.config, launcher=launcher, query_tile=variant.query_tile)
    case = Case(
        variant.config,
        variant.contexts,
        variant.query_len,
        firsts=variant.firsts,
        shared=variant.shared,
        rows=len(variant.contexts) + 1,
        layer=1,
    )
    sinks = mx.array(np.linspace(-1, 2, variant.num_heads), dtype=mx.float32) if variant.sinks else None
    out = decode(kernels, case, variant, sinks)
    assert out.dtype == variant.dtype
    expected = case.expected(scale=variant.head_dim**-0.5, window=variant.window, softcap=variant.softcap, sinks=sinks)
    assert not floats(out)[len(variant.contexts) :].any(), "a padding row must give zeros"
    worst = max(error(out[i : i + 1], expected[i : i + 1]) for i in range(len(variant.contexts)))
    assert worst <= variant.tolerance, f"{variant.name}: relative error {worst:.2e} > {variant.tolerance}"
    return worst


def check_row_independence(variant: Variant, launcher: Launcher | None = None) -> None:
    """A row gives the same bits alone, beside longer rows, and in a larger bucket."""
    kernels = KernelSet(variant.config, launcher=launcher, query_tile=variant.query_tile)
    together = Case(variant.config, variant.contexts, variant.query_len, rows=len(variant.contexts) + 2)
    whole = floats(decode(kernels, together, variant, None))
    for row, context in enumerate(variant.contexts):
        alone = Case(variant.config, (context,), variant.query_len)
        alone.arena, alone.scales = together.arena, together.scales
        alone.queries = together.queries[row : row + 1]
        packed = layout.pack((context,), (0,), [together.tables[row]], variant.query_len)
        alone.descriptor = mx.array(packed)
        got = floats(decode(kernels, alone, variant, None))
        assert np.array_equal(got[0], whole[row]), f"{variant.name}: row {row} depends on its neighbours"


def check_write_gather(config: KernelConfig, launcher: Launcher | None = None) -> None:
    """kv_write puts tokens where the tables say and nowhere else; kv_gather brings them back."""
    kernels, random = KernelSet(config, launcher=launcher), np.random.default_rng(3)
    q_len, contexts, tables = 37, (40, 0, 101), [[3, 1], [], [2, 6, 4, 5]]
    arena = mx.zeros(config.arena_shape(8), dtype=config.kv_dtype)
    scales = mx.zeros(config.scales_shape(8), dtype=mx.float32) if config.quantized else None
    shape = (len(contexts), q_len, config.kv_heads, config.head_dim)
    new = [mx.array(random.standard_normal(shape, dtype=np.float32)).astype(config.dtype) for _ in "kv"]
    keys, values = (x.transpose(0, 2, 1, 3) for x in new)
    packed = mx.array(layout.pack(contexts, (0, 0, 0), tables, q_len))
    mx.eval(arena, keys, values, packed, *([] if scales is None else [scales]))
    layer, token = kernels.layer_index(1), kernels.first_token()
    token = kernels.kv_write(arena, scales, keys, values, packed, layer, token)
    mx.eval(token)
    assert token.tolist() == [1] * 8, "a writer must return the next token"
    allowed = {mx.float32: 1e-6, mx.float16: 1e-3, mx.bfloat16: 8e-3, mx.int8: 1.2e-2}[config.kv_dtype]
    for row in (0, 2):
        one = mx.array(layout.pack((contexts[row],), (0,), [tables[row]], q_len))
        length = contexts[row] + 5
        got = kernels.kv_gather(arena, scales, one, layer, token, length)
        for dense, source in zip(got, (keys, values), strict=True):
            expected = np.zeros((config.kv_heads, length, config.head_dim))
            expected[:, contexts[row] - q_len : contexts[row]] = floats(source)[row]
            assert error(dense[0], expected) <= allowed, f"kv_gather is off by {error(dense[0], expected):.2e}"
    stored = floats(arena)
    assert not stored[0].any(), "the scratch block was written"
    assert not stored[7].any(), "an unowned block was written"
    assert not stored[:, 0].any(), "another layer was written"


def check_copy(config: KernelConfig, launcher: Launcher | None = None) -> None:
    """kv_copy moves whole blocks with their scales and leaves the others alone."""
    kernels, random = KernelSet(config, launcher=launcher), np.random.default_rng(4)
    arena = mx.array(random.integers(-100, 100, config.arena_shape(6))).astype(config.kv_dtype)
    scales = None
    if config.quantized:
        scales = mx.array(random.standard_normal(config.scales_shape(6), dtype=np.float32))
        mx.eval(scales)
    mx.eval(arena)
    before = floats(arena)
    scales_before = None if scales is None else floats(scales)
    pairs = [(1, 4), (2, 5)]
    mx.eval(kernels.kv_copy(arena, scales, mx.array(pairs, dtype=mx.int32), kernels.first_token()))
    for source, target in pairs:
        before[target] = before[source]
        if scales_before is not None:
            scales_before[target] = scales_before[source]
    assert np.array_equal(floats(arena), before), "kv_copy changed the wrong blocks"
    assert scales is None or np.array_equal(floats(scales), scales_before)  # type: ignore[arg-type]


def check_save_load(config: KernelConfig, launcher: Launcher | None = None) -> None:
    """kv_save gives a block's bytes, elements before scales, and kv_load puts them into another block."""
    kernels, random = KernelSet(config, launcher=launcher), np.random.default_rng(5)
    arena = mx.array(random.integers(-100, 100, config.arena_shape(6))).astype(config.kv_dtype)
    scales = None
    if config.quantized:
        scales = mx.array(random.standard_normal(config.scales_shape(6), dtype=np.float32))
        mx.eval(scales)
    token = kernels.first_token()
    sources = mx.array([4, 2, 0, 0, 0, 0, 0, 0], dtype=mx.int32)
    targets = mx.array([1, 5, 0, 0, 0, 0, 0, 0], dtype=mx.int32)
    mx.eval(arena, sources, targets, token)
    before, scales_before = floats(arena), None if scales is None else floats(scales)
    saved = kernels.kv_save(arena, scales, sources, token, 2)
    mx.eval(saved)
    whole = [arena] if scales is None else [arena, scales]
    for row, source in enumerate((4, 2)):
        expected = b"".join(np.array(part[source].view(mx.uint8)).tobytes() for part in whole)
        assert np.array(saved[row]).tobytes() == expected, "kv_save gave other bytes"
    mx.eval(kernels.kv_load(arena, scales, targets, saved, token))
    for source, target in ((4, 1), (2, 5)):
        before[target] = before[source]
        if scales_before is not None:
            scales_before[target] = scales_before[source]
    assert np.array_equal(floats(arena), before), "kv_load changed the wrong blocks"
    assert scales is None or np.array_equal(floats(scales), scales_before)  # type: ignore[arg-type]
