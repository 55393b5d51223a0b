"""Checks of the kernels that run anywhere a `KernelSet` can launch: the emulator, a Mac or an NVIDIA GPU.

Each returns quietly or raises `AssertionError` with the figure that was off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import mlx.core as mx
import numpy as np

from rvllm_local.metal_kernels import (
    AddNorm,
    KernelConfig,
    KernelSet,
    NewTokens,
    Rotation,
)
from rvllm_local.metal_kernels import descriptor as layout
from rvllm_local.metal_kernels.proof.oracle import Case, Floats, error, floats
from rvllm_local.metal_kernels.proof.variants import Variant

Make = Callable[
    ..., KernelSet
]  # `KernelSet`, or one with a launcher, a backend or a tuning of its own


def decode(
    kernels: KernelSet,
    case: Case,
    variant: Variant,
    sinks: mx.array | None = None,
    new: NewTokens | None = None,
    rotation: Rotation | None = None,
) -> mx.array:
    rows, max_blocks = (
        case.queries.shape[0],
        layout.max_blocks_of(case.descriptor.size, case.queries.shape[0]),
    )
    size = kernels.scratch_size(rows, variant.query_len, max_blocks)
    scratch = mx.full(
        (max(8, size),), mx.nan, dtype=mx.float32
    )  # whatever was there must not matter
    mx.eval(scratch)
    out, _ = kernels.paged_decode(
        case.queries,
        case.arena,
        case.scales,
        case.descriptor,
        kernels.layer_index(case.layer),
        kernels.first_fence(),
        scratch,
        scale=variant.head_dim**-0.5,
        window=variant.window,
        softcap=variant.softcap,
        sinks=sinks,
        new=new,
        rotation=rotation,
    )
    return out


def make_kernels(variant: Variant, make: Make) -> KernelSet:
    kernels = make(variant.config)
    if variant.query_tile is not None:
        kernels.tuning = dataclasses.replace(
            kernels.tuning, query_tile=variant.query_tile
        )
    return kernels


def check_decode(variant: Variant, make: Make = KernelSet) -> float:
    """The relative error of one variant against the oracle.

    The call has padding rows and blocks.
    """
    kernels = make_kernels(variant, make)
    case = Case(
        variant.config,
        variant.contexts,
        variant.query_len,
        firsts=variant.firsts,
        shared=variant.shared,
        rows=len(variant.contexts) + 1,
        layer=1,
    )
    sinks = _sinks(variant)
    out = decode(kernels, case, variant, sinks)
    assert out.dtype == variant.dtype
    expected = case.expected(
        scale=variant.head_dim**-0.5,
        window=variant.window,
        softcap=variant.softcap,
        sinks=sinks,
    )
    assert not floats(out)[len(variant.contexts) :].any(), (
        "a padding row must give zeros"
    )
    worst = max(
        error(out[i : i + 1], expected[i : i + 1]) for i in range(len(variant.contexts))
    )
    assert worst <= variant.tolerance, (
        f"{variant.name}: relative error {worst:.2e} > {variant.tolerance}"
    )
    return worst


def check_row_independence(variant: Variant, make: Make = KernelSet) -> None:
    """A row gives the same bits alone, beside longer rows, and in a larger bucket, with and without a combine step."""
    kernels = make_kernels(variant, make)
    together = Case(
        variant.config,
        variant.contexts,
        variant.query_len,
        rows=len(variant.contexts) + 2,
    )
    whole = floats(decode(kernels, together, variant, _sinks(variant)))
    for row, context in enumerate(variant.contexts):
        alone = Case(variant.config, (context,), variant.query_len)
        alone.arena, alone.scales = together.arena, together.scales
        alone.queries = together.queries[row : row + 1]
        packed = layout.pack(
            (context,), (0,), [together.tables[row]], variant.query_len
        )
        alone.descriptor = mx.array(packed)
        got = floats(decode(kernels, alone, variant, _sinks(variant)))
        assert np.array_equal(got[0], whole[row]), (
            f"{variant.name}: row {row} depends on its neighbours"
        )


def check_fused(variant: Variant, make: Make = KernelSet) -> None:
    """Writing inside the attention launch leaves the same bytes and gives the same bits as kv_write before it."""
    kernels, results = make_kernels(variant, make), []
    for fused in (False, True):
        case = Case(
            variant.config,
            variant.contexts,
            variant.query_len,
            firsts=variant.firsts,
            rows=len(variant.contexts) + 1,
        )
        keys, values = _new_tokens(variant, case)
        if fused:
            out = decode(
                kernels, case, variant, _sinks(variant), NewTokens(keys, values)
            )
        else:
            layer, fence = kernels.layer_index(case.layer), kernels.first_fence()
            mx.eval(
                kernels.kv_write(
                    case.arena, case.scales, keys, values, case.descriptor, layer, fence
                )
            )
            out = decode(kernels, case, variant, _sinks(variant))
        mx.eval(out)
        scales = np.zeros(1) if case.scales is None else floats(case.scales)
        results.append((floats(out), np.nan_to_num(floats(case.arena)), scales))
    for name, apart, together in zip(
        ("output", "arena", "scales"), *results, strict=True
    ):
        assert np.array_equal(apart, together), (
            f"{variant.name}: the fused launch changes the {name}"
        )


def check_rotation(
    variant: Variant,
    make: Make = KernelSet,
    *,
    pairs: bool = False,
) -> float:
    """Queries and new keys are rotated, and stored so.

    Returns the relative error of the output.
    """
    kernels = make_kernels(variant, make)
    count = len(variant.contexts)
    case = Case(variant.config, variant.contexts, rows=count + 1)
    keys, values = _new_tokens(variant, case)
    angles = _angles(variant)
    parts = [np.cos(angles), np.sin(angles)]
    turned_queries = _rotated(floats(case.queries), *parts, pairs=pairs)
    turned_keys = _rotated(floats(keys), *parts, pairs=pairs)
    table = mx.array(np.concatenate(parts, axis=1).astype(np.float32))
    rotation, new = Rotation(table, pairs), NewTokens(keys, values)
    out = decode(kernels, case, variant, None, new, rotation)
    mx.eval(out)
    _check_stored_keys(variant, case, turned_keys[:count, :, 0])
    queries = mx.array(turned_queries.astype(np.float32))
    case.queries = queries.astype(variant.dtype)
    expected = case.expected(
        scale=variant.head_dim**-0.5, window=variant.window, softcap=variant.softcap
    )
    worst = error(out[:count], expected[:count])
    assert worst <= variant.tolerance, (
        f"{variant.name}: relative error {worst:.2e} > {variant.tolerance}"
    )
    return worst


def check_rotated_apart(
    variant: Variant,
    make: Make = KernelSet,
    *,
    pairs: bool = False,
) -> None:
    """Keys that a launch before attention turns and writes give the same bits."""
    kernels = make_kernels(variant, make)
    angles = _angles(variant)
    parts = [np.cos(angles), np.sin(angles)]
    table = mx.array(np.concatenate(parts, axis=1).astype(np.float32))
    rotation = Rotation(table, pairs)
    results = []
    for apart in (False, True):
        case = Case(variant.config, variant.contexts, rows=len(variant.contexts) + 1)
        new: NewTokens | None = NewTokens(*_new_tokens(variant, case))
        if apart:
            assert new is not None
            fence = kernels.kv_write(
                case.arena,
                case.scales,
                new.keys,
                new.values,
                case.descriptor,
                kernels.layer_index(case.layer),
                kernels.first_fence(),
                rotation,
            )
            mx.eval(fence)
            new = None
        out = decode(kernels, case, variant, None, new, rotation)
        mx.eval(out)
        results.append((floats(out), np.nan_to_num(floats(case.arena))))
    for name, together, apart_result in zip(("output", "arena"), *results, strict=True):
        assert np.array_equal(together, apart_result), (
            f"{variant.name}: a launch for the keys changes the {name}"
        )


def _angles(variant: Variant) -> Floats:
    """The newest positions' angles `[rows, dims / 2]`; large heads turn by half."""
    dims = variant.head_dim
    if dims >= 32:
        dims //= 2
    positions = [context - 1 for context in variant.contexts]
    frequencies: Floats = 10000.0 ** (-np.arange(0, dims, 2) / dims)
    return np.array([*positions, 0])[:, None] * frequencies


def _check_stored_keys(
    variant: Variant,
    case: Case,
    expected: Floats,
) -> None:
    """The newest keys in the arena, `[rows, kv_heads, D]`, are the turned ones."""
    rows = range(len(variant.contexts))
    stored = np.stack([case.dense(row)[0][:, -1] for row in rows])
    allowed = {
        mx.float32: 1e-5,
        mx.float16: 2e-3,
        mx.bfloat16: 1.6e-2,
        mx.int8: 2e-2,
    }[variant.kv_dtype]
    worst = np.abs(stored - expected).max()
    assert worst <= allowed * np.abs(expected).max(), (
        f"{variant.name}: stored keys are off"
    )


def check_rope_table(config: KernelConfig, make: Make = KernelSet) -> None:
    """The table of cosines and sines, up to positions where a careless argument reduction would show."""
    kernels, contexts = make(config), (1, 33, 4100, 131072)
    packed = mx.array(
        layout.pack(
            contexts,
            [n // 32 * 32 - 32 if n > 32 else 0 for n in contexts],
            [[1, 2]] * 4,
            1,
            rows=5,
        )
    )
    frequencies = mx.array((10000.0 ** (-np.arange(0, 16, 2) / 16)).astype(np.float32))
    table = floats(kernels.rope_table(packed, frequencies, 5))
    angles = (np.array([*contexts, 1]) - 1).astype(np.float32)[:, None] * np.array(
        frequencies
    )[None]  # in float32, as MLX
    expected = np.concatenate(
        [np.cos(angles.astype(np.float64)), np.sin(angles.astype(np.float64))], axis=1
    )
    assert np.abs(table - expected).max() <= 2e-6, (
        f"a rotation's table is off by {np.abs(table - expected).max():.1e}"
    )


def check_add_norm(
    width: int,
    dtype: mx.Dtype,
    make: Callable[[], AddNorm] = AddNorm,
) -> float:
    """The sum, rounded once, and its RMS norm, of rows far apart in size.

    Returns the relative error of the norm.
    """
    random, eps = np.random.default_rng(6), 1e-5
    sizes = np.array([1e-3, 1.0, 30.0], dtype=np.float32)[:, None, None]
    stream, added = (
        mx.array(
            random.standard_normal((3, 1, width), dtype=np.float32) * sizes
        ).astype(dtype)
        for _ in range(2)
    )
    weight = mx.array(random.uniform(0.5, 2, width).astype(np.float32)).astype(dtype)
    mx.eval(stream, added, weight)
    total, normed = make()(stream, added, weight, eps)
    mx.eval(total, normed)
    assert np.array_equal(
        floats(total), floats(mx.array(floats(stream) + floats(added)).astype(dtype))
    ), "a sum is off"
    sums = floats(total)
    expected = (
        floats(weight) * sums / np.sqrt((sums**2).mean(axis=-1, keepdims=True) + eps)
    )
    allowed = {mx.float32: 2e-6, mx.float16: 2e-3, mx.bfloat16: 1.6e-2}[dtype]
    worst = max(error(normed[row], expected[row]) for row in range(3))
    assert worst <= allowed, f"a norm of {width} elements is off by {worst:.2e}"
    return worst


def _rotated(
    x: Floats,
    cosines: Floats,
    sines: Floats,
    *,
    pairs: bool,
) -> Floats:
    """Rotary embedding in float64: `x` `[rows, heads, 1, D]`, angles `[rows, dims / 2]`."""
    half = cosines.shape[1]
    cosines, sines = cosines[:, None, None], sines[:, None, None]
    places = (
        (np.s_[..., 0 : 2 * half : 2], np.s_[..., 1 : 2 * half : 2])
        if pairs
        else (np.s_[..., :half], np.s_[..., half : 2 * half])
    )
    turned = x.copy()
    turned[places[0]] = x[places[0]] * cosines - x[places[1]] * sines
    turned[places[1]] = x[places[1]] * cosines + x[places[0]] * sines
    return turned


def _sinks(variant: Variant) -> mx.array | None:
    return (
        mx.array(np.linspace(-1, 2, variant.num_heads), dtype=mx.float32)
        if variant.sinks
        else None
    )


def _new_tokens(variant: Variant, case: Case) -> tuple[mx.array, mx.array]:
    """Random new keys and values of a case, as a joint projection leaves them: views with gaps."""
    c, rows = variant.config, case.queries.shape[0]
    joint = np.random.default_rng(9).standard_normal(
        (rows, variant.query_len, 2 * c.kv_heads, c.head_dim), np.float32
    )
    new = mx.array(joint).astype(c.dtype)
    mx.eval(new)
    keys, values = (part.transpose(0, 2, 1, 3) for part in mx.split(new, 2, axis=2))
    return keys, values
