"""Checks of attention over latents, on any device that a `KernelSet` can launch on.

Each returns quietly or raises `AssertionError` with the figure that was off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import mlx.core as mx
import numpy as np

from rvllm_local.metal_kernels import KernelConfig, KernelSet, NewTokens, Rotation
from rvllm_local.metal_kernels import descriptor as layout
from rvllm_local.metal_kernels.config import BLOCK
from rvllm_local.metal_kernels.proof.oracle import TOLERANCE, Floats, error, floats

Make = Callable[..., KernelSet]
_SCALE = 0.07


@dataclass(frozen=True, slots=True)
class Latent:
    """One latent_decode variant: contexts that cross its blocks, stages and splits."""

    name: str
    rank: int
    rope: int
    heads: int
    dtype: mx.Dtype
    kv_dtype: mx.Dtype
    query_len: int = 1
    contexts: tuple[int, ...] = (1, 31, 33, 300)
    firsts: tuple[int, ...] | None = None
    layer: int = 1

    @property
    def config(self) -> KernelConfig:
        return KernelConfig(
            self.rank, self.heads, 1, 2, self.dtype, self.kv_dtype, self.rope
        )


F32, F16, BF16, I8 = mx.float32, mx.float16, mx.bfloat16, mx.int8
LATENTS = (
    Latent("r512-bf16", 512, 64, 16, BF16, BF16, contexts=(1, 33, 300)),
    Latent("r512-f16-h20-q2", 512, 64, 20, F16, F16, 2, (2, 65, 290)),
    Latent("r512-f32", 512, 64, 16, F32, F32, contexts=(1, 33, 290)),
    Latent("r512-bf16-int8", 512, 64, 16, BF16, I8, contexts=(5, 290)),
    Latent("r256-bf16-h40", 256, 32, 40, BF16, BF16, contexts=(17, 260)),
    Latent("r96-f16-h3", 96, 48, 3, F16, F16, contexts=(16, 48, 259)),
    Latent("r64-bf16-h8-q8", 64, 32, 8, BF16, BF16, 8, (8, 9, 500)),
    Latent("r32-f32-firsts", 32, 16, 4, F32, F32, 2, (40, 600), (0, 256)),
    Latent("r16-f32", 16, 8, 2, F32, F32, contexts=(1, 90, 300)),
    Latent("r16-f16", 16, 8, 4, F16, F16, contexts=(1, 90)),
    Latent("r24-f32-int8", 24, 8, 5, F32, I8, contexts=(3, 70)),
    Latent("r32-as-wide", 32, 32, 4, F16, F16, contexts=(3, 550)),
)


@dataclass(slots=True)
class LatentCase:
    """Random latents in shuffled blocks, with the queries of the rows' last tokens."""

    variant: Latent
    extra_rows: int = 1  # of padding
    tables: list[list[int]] = field(init=False)
    arena: mx.array = field(init=False)
    scales: mx.array | None = field(init=False, default=None)
    queries: mx.array = field(init=False)
    rotated: mx.array = field(init=False)
    descriptor: mx.array = field(init=False)

    def __post_init__(self) -> None:
        v = self.variant
        random = np.random.default_rng(4)
        counts = []
        for context, first in zip(v.contexts, self.firsts, strict=True):
            counts.append(-(-(context - first) // BLOCK))
        ids = list(random.permutation(np.arange(1, sum(counts) + 1)))
        self.tables = [[int(ids.pop()) for _ in range(count)] for count in counts]
        self._fill_arena(random, sum(counts) + 1)
        rows = len(v.contexts) + self.extra_rows
        self.queries = self._random(random, (rows, v.query_len, v.heads, v.rank))
        # As a projection of both leaves it: a view with gaps.
        both = self._random(random, (rows, v.query_len, v.heads, 8 + v.rope))
        self.rotated = both[..., 8:]
        packed = layout.pack(
            v.contexts, self.firsts, self.tables, v.query_len, rows=rows
        )
        self.descriptor = mx.array(packed)
        mx.eval(self.arena, self.queries, self.rotated, self.descriptor)

    @property
    def firsts(self) -> tuple[int, ...]:
        return self.variant.firsts or (0,) * len(self.variant.contexts)

    def _random(self, random: np.random.Generator, shape: tuple[int, ...]) -> mx.array:
        """`[rows, heads, q_len, dim]` of a `[rows, q_len, heads, dim]` array."""
        dense = mx.array(random.standard_normal(shape, dtype=np.float32))
        return dense.astype(self.variant.dtype).transpose(0, 2, 1, 3)

    def _fill_arena(self, random: np.random.Generator, num_blocks: int) -> None:
        """Fill the blocks; slots past a context hold NaN, as they may."""
        v = self.variant
        shape = v.config.arena_shape(num_blocks)
        if v.config.quantized:
            self.arena = mx.array(random.integers(-127, 128, shape, dtype=np.int8))
            sizes = random.uniform(0.002, 0.02, v.config.scales_shape(num_blocks))
            self.scales = mx.array(sizes.astype(np.float32))
            mx.eval(self.scales)
            return
        stored = random.standard_normal((num_blocks, 2, self.row))
        latents, rotated = _parts(stored, v)
        for table, context, first in zip(
            self.tables, v.contexts, self.firsts, strict=True
        ):
            unused = len(table) * BLOCK - (context - first)
            if unused:
                latents[table[-1], :, BLOCK - unused :] = np.nan
                rotated[table[-1], :, BLOCK - unused :] = np.nan
        dense = mx.array(stored.reshape(shape).astype(np.float32))
        self.arena = dense.astype(v.kv_dtype)

    @property
    def row(self) -> int:
        return self.variant.config.layer_elements

    def dense(self, row: int) -> tuple[Floats, Floats]:
        """Latents `[tokens, rank]` and rotated parts `[tokens, rope]` of a row."""
        v = self.variant
        stored = floats(self.arena).reshape(-1, 2, self.row)
        length = v.contexts[row] - self.firsts[row]
        parts = []
        for kv, part in enumerate(_parts(stored, v)):
            tokens = part[self.tables[row], v.layer]
            if self.scales is not None:
                scales = floats(self.scales)[self.tables[row], v.layer, kv, 0]
                tokens = tokens * scales[..., None]
            parts.append(tokens.reshape(-1, tokens.shape[-1])[:length])
        return parts[0], parts[1]

    def expected(self) -> Floats:
        """What latent_decode must return, `[rows, heads, q_len, rank]`."""
        v = self.variant
        out = np.zeros(self.queries.shape)
        queries, rotated = floats(self.queries), floats(self.rotated)
        for row, context in enumerate(v.contexts):
            latents, turned = self.dense(row)
            logits = queries[row] @ latents.T + rotated[row] @ turned.T
            keys = np.arange(self.firsts[row], context)
            newest = np.arange(context - v.query_len, context)
            hidden = keys[None, :] > newest[:, None]
            logits = np.where(hidden, -np.inf, logits * _SCALE)
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            out[row] = weights / weights.sum(-1, keepdims=True) @ latents
        return out

    def decode(
        self,
        kernels: KernelSet,
        new: NewTokens | None = None,
        rotation: Rotation | None = None,
    ) -> mx.array:
        rows, _, q_len, _ = self.queries.shape
        max_blocks = layout.max_blocks_of(self.descriptor.size, rows)
        size = kernels.scratch_size(rows, q_len, max_blocks)
        # Whatever was there must not matter.
        scratch = mx.full((max(8, size),), mx.nan, dtype=mx.float32)
        mx.eval(scratch)
        out, _ = kernels.latent_decode(
            self.queries,
            self.rotated,
            self.arena,
            self.scales,
            self.descriptor,
            kernels.layer_index(self.variant.layer),
            kernels.first_fence(),
            scratch,
            scale=_SCALE,
            new=new,
            rotation=rotation,
        )
        mx.eval(out)
        return out


def _parts(stored: Floats, variant: Latent) -> tuple[Floats, Floats]:
    """Views of `stored` `[blocks, layers, elements]`: latents, then rotated parts."""
    planes = stored.shape[:2]
    split = BLOCK * variant.rank
    latents = stored[..., :split].reshape(*planes, BLOCK, variant.rank)
    rotated = stored[..., split:].reshape(*planes, BLOCK, variant.rope)
    return latents, rotated


def check_latent(variant: Latent, make: Make = KernelSet) -> float:
    """The relative error against float64; a padding row gives zeros."""
    case = LatentCase(variant)
    out = case.decode(make(variant.config))
    assert out.dtype == variant.dtype
    rows = len(variant.contexts)
    assert not floats(out)[rows:].any(), "a padding row must give zeros"
    expected = case.expected()
    return _worst(variant, out, expected)


def _worst(variant: Latent, out: mx.array, expected: Floats) -> float:
    """The largest relative error of a row, which must be within the tolerance."""
    errors = []
    for row in range(len(variant.contexts)):
        errors.append(error(out[row], expected[row]))
    worst = max(errors)
    allowed = TOLERANCE[variant.dtype]
    assert worst <= allowed, f"{variant.name}: relative error {worst:.2e} > {allowed}"
    return worst


def check_rows_alone(variant: Latent, make: Make = KernelSet) -> None:
    """A row gives the same bits alone, beside longer rows, and in a larger bucket."""
    kernels = make(variant.config)
    case = LatentCase(variant)
    together = floats(case.decode(kernels))
    queries, rotated = case.queries, case.rotated
    for row, context in enumerate(variant.contexts):
        first, table = case.firsts[row], case.tables[row]
        packed = layout.pack((context,), (first,), [table], variant.query_len)
        case.descriptor = mx.array(packed)
        case.queries = queries[row : row + 1]
        case.rotated = rotated[row : row + 1]
        alone = floats(case.decode(kernels))
        same = np.array_equal(alone[0], together[row])
        assert same, f"{variant.name}: row {row} depends on its neighbours"


def check_fused(variant: Latent, make: Make = KernelSet) -> None:
    """Writing in the attention launch gives the bits that kv_write before it gives."""
    kernels = make(variant.config)
    outputs = []
    for is_fused in (False, True):
        case = LatentCase(variant)
        new = new_tokens(case)
        if is_fused:
            out = case.decode(kernels, new)
        else:
            layer, fence = kernels.layer_index(variant.layer), kernels.first_fence()
            written = kernels.kv_write(
                case.arena,
                case.scales,
                new.keys,
                new.values,
                case.descriptor,
                layer,
                fence,
            )
            mx.eval(written)
            out = case.decode(kernels)
        stored = np.nan_to_num(floats(case.arena))
        outputs.append((floats(out), stored))
    apart, together = outputs
    name = variant.name
    assert np.array_equal(apart[1], together[1]), f"{name}: other bytes are stored"
    assert np.array_equal(apart[0], together[0]), f"{name}: the output changes"


def check_rotation(
    variant: Latent, make: Make = KernelSet, *, pairs: bool = True
) -> float:
    """Rotated parts of queries and of new keys are turned, and latents are not."""
    kernels = make(variant.config)
    case = LatentCase(variant)
    rows = len(variant.contexts) + case.extra_rows
    angles = np.random.default_rng(7).uniform(0, 6, (rows, variant.rope // 2))
    table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    rotation = Rotation(mx.array(table.astype(np.float32)), pairs)
    new = new_tokens(case)
    out = case.decode(kernels, new, rotation)
    case.rotated = _turned(case.rotated, angles, pairs=pairs)
    turned = floats(_turned(new.values, angles, pairs=pairs))
    for row, context in enumerate(variant.contexts):
        latents, parts = case.dense(row)
        assert len(parts) == context - case.firsts[row]
        _check_stored(variant, latents[-1], floats(new.keys)[row, 0, 0])
        _check_stored(variant, parts[-1], turned[row, 0, 0])
    return _worst(variant, out, case.expected())


def _check_stored(variant: Latent, stored: Floats, expected: Floats) -> None:
    allowed = {F32: 1e-5, F16: 2e-3, BF16: 1.6e-2, I8: 2e-2}[variant.kv_dtype]
    worst = np.abs(stored - expected).max() / np.abs(expected).max()
    assert worst <= allowed, f"{variant.name}: a stored token is off by {worst:.1e}"


def _turned(x: mx.array, angles: Floats, *, pairs: bool) -> mx.array:
    """`x` `[rows, heads, 1, rope]` rotated, in its own type."""
    half = x.shape[-1] // 2
    cosines, sines = np.cos(angles)[:, None, None], np.sin(angles)[:, None, None]
    dense = floats(x)
    # Where the first elements of all pairs are, and then the second ones.
    order = np.arange(2 * half).reshape(2, half)
    if pairs:
        order = np.arange(2 * half).reshape(half, 2).T
    first, second = dense[..., order[0]], dense[..., order[1]]
    turned = dense.copy()
    turned[..., order[0]] = first * cosines - second * sines
    turned[..., order[1]] = second * cosines + first * sines
    return mx.array(turned.astype(np.float32)).astype(x.dtype)


def new_tokens(case: LatentCase) -> NewTokens:
    """Random new latents and rotated parts, as one projection of both leaves them."""
    v = case.variant
    random = np.random.default_rng(9)
    rows = len(v.contexts) + case.extra_rows
    shape = (rows, v.query_len, 1, v.rank + v.rope)
    joint = mx.array(random.standard_normal(shape, dtype=np.float32)).astype(v.dtype)
    mx.eval(joint)
    by_head = joint.transpose(0, 2, 1, 3)
    return NewTokens(by_head[..., : v.rank], by_head[..., v.rank :])


def cases() -> Iterator[tuple[str, Callable[[], object]]]:
    """Name and check of every variant."""
    for variant in LATENTS:
        yield f"latent {variant.name}", partial(check_latent, variant)
    for variant in LATENTS:
        name = variant.name
        if variant.query_len == 1:
            yield f"latent rotated {name}", partial(check_rotation, variant)
        yield f"latent fused {name}", partial(check_fused, variant)
        yield f"latent alone {name}", partial(check_rows_alone, variant)
