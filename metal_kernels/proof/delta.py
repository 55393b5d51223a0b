"""Checks of the recurrent step of gated delta nets against float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from rvllm_local.metal_kernels.gated_delta import (
    DeltaInputs,
    DeltaShape,
    DeltaWeights,
    GatedDelta,
)
from rvllm_local.metal_kernels.proof.oracle import TOLERANCE, Floats, error, floats

Make = Callable[[], GatedDelta]
F32, F16, BF16 = mx.float32, mx.float16, mx.bfloat16


@dataclass(frozen=True, slots=True)
class Net:
    """One variant, and the rows and tokens that are tried."""

    name: str
    shape: DeltaShape
    calls: tuple[tuple[int, int], ...]  # rows, tokens


NETS = (
    Net("128-bf16", DeltaShape(2, 4, 128, 128, 4, BF16, 1e-6), ((3, 1),)),
    Net("32-f32", DeltaShape(2, 4, 32, 24, 4, F32, 1e-6), ((2, 5), (1, 19))),
    Net("16-f32", DeltaShape(4, 4, 16, 40, 3, F32, 1e-5), ((3, 1),)),
    Net("192-f16", DeltaShape(1, 3, 192, 64, 4, F16, 1e-6), ((1, 3),)),
    Net(
        "by-key-head-f32",
        DeltaShape(2, 6, 32, 16, 4, F32, 1e-6, by_key_head=True),
        ((2, 1),),
    ),
    Net(
        "by-key-head-bf16",
        DeltaShape(2, 4, 64, 64, 4, BF16, 1e-6, by_key_head=True),
        ((2, 2),),
    ),
)


class Case:
    """Random inputs of one call. Each projection is a part of a wider array."""

    def __init__(self, shape: DeltaShape, rows: int, tokens: int) -> None:
        self.shape = shape
        self.rows = rows
        self.tokens = tokens
        self.random = np.random.default_rng(rows)
        heads = shape.value_heads
        self.weights = DeltaWeights(
            taps=self._made(shape.channels, shape.taps),
            rates=mx.array(self.random.uniform(0.1, 4, heads).astype(np.float32)),
            shift=self._made(heads),
            norm=1 + 0.2 * self._made(shape.value_dim),
        )
        self.inputs = self._inputs()
        self.conv = self._made(self.rows, shape.taps - 1, shape.channels)
        size = (self.rows, heads, shape.value_dim, shape.key_dim)
        state = self.random.standard_normal(size, dtype=np.float32)
        self.state = mx.array(state)
        mx.eval(self.conv, self.state)

    def _made(self, *size: int) -> mx.array:
        values = self.random.standard_normal(size, dtype=np.float32)
        return mx.array(values).astype(self.shape.dtype)

    def _inputs(self) -> DeltaInputs:
        shape = self.shape
        values = shape.value_heads * shape.value_dim
        sizes = [shape.channels, values, shape.value_heads, shape.value_heads]
        joint = self._made(self.rows, self.tokens, sum(sizes))
        if shape.by_key_head:
            mixed, gates = mx.split(joint, [shape.channels + values], axis=-1)
            return DeltaInputs(mixed, mixed, gates, gates)
        cuts = np.cumsum(sizes)[:-1].tolist()
        mixed, z, a, b = mx.split(joint, cuts, axis=-1)
        return DeltaInputs(mixed, z, a, b)

    def parted(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Channels `[rows, tokens, channels]`, z `[..., heads, value_dim]`, a and b."""
        shape = self.shape
        lead = (self.rows, self.tokens)
        inputs = self.inputs
        mixed, a, b = floats(inputs.mixed), floats(inputs.a), floats(inputs.b)
        z = floats(inputs.z)
        if shape.by_key_head:
            each = shape.value_heads // shape.key_heads
            values = each * shape.value_dim
            by_head = mixed.reshape(*lead, shape.key_heads, -1)
            cuts = np.cumsum([shape.key_dim, shape.key_dim, values])
            parts = np.split(by_head, cuts, axis=-1)
            flat = [part.reshape(*lead, -1) for part in parts]
            mixed, z = np.concatenate(flat[:3], axis=-1), flat[3]
            gates = a.reshape(*lead, shape.key_heads, 2, each)
            b, a = gates[..., 0, :], gates[..., 1, :]
        heads = (*lead, shape.value_heads)
        return mixed, z.reshape(*heads, -1), a.reshape(heads), b.reshape(heads)


def check_delta(net: Net, make: Make = GatedDelta) -> float:
    """Compares output and states with float64; the largest relative error."""
    step = make()
    worst = 0.0
    for rows, tokens in net.calls:
        case = Case(net.shape, rows, tokens)
        given = step(net.shape, case.weights, case.inputs, case.conv, case.state)
        assert given[0].dtype == net.shape.dtype
        for actual, expected in zip(given, expected_step(case), strict=True):
            worst = max(worst, error(actual, expected))
    allowed = 2 * TOLERANCE[net.shape.dtype]  # several roundings follow each other
    assert worst <= allowed, f"{net.name}: error {worst:.2e} > {allowed}"
    return worst


def check_rows_alone(net: Net, make: Make = GatedDelta) -> None:
    """A row's bits are the same alone and among others, and token by token."""
    step = make()
    case = Case(net.shape, 3, 4)
    whole = step(net.shape, case.weights, case.inputs, case.conv, case.state)
    conv, state = case.conv[1:2], case.state[1:2]
    outputs = []
    for token in range(case.tokens):
        inputs = _part(case.inputs, 1, token)
        out, conv, state = step(net.shape, case.weights, inputs, conv, state)
        outputs.append(out)
    alone = (mx.concatenate(outputs, axis=1), conv, state)
    for lonely, many in zip(alone, whole, strict=True):
        assert mx.array_equal(lonely[0], many[1]), (
            f"{net.name}: a row, token by token, differs from the row among others"
        )


def _part(inputs: DeltaInputs, row: int, token: int) -> DeltaInputs:
    """One token of one row."""
    parts = []
    for array in (inputs.mixed, inputs.z, inputs.a, inputs.b):
        parts.append(array[row : row + 1, token : token + 1])
    return DeltaInputs(*parts)


def expected_step(case: Case) -> tuple[Floats, Floats, Floats]:
    """The definition, written down in float64."""
    shape, weights = case.shape, case.weights
    channels, z, a, b = case.parted()
    seen = np.concatenate([floats(case.conv), channels], axis=1)
    fade = np.exp(-floats(weights.rates) * np.logaddexp(a + floats(weights.shift), 0))
    read, state = _recurrence(case, _heads(case, seen), fade, _sigmoid(b))
    size = np.sqrt((read**2).mean(axis=-1, keepdims=True) + shape.norm_eps)
    out = read / size * floats(weights.norm) * z * _sigmoid(z)
    return out.reshape(*channels.shape[:2], -1), seen[:, case.tokens :], state


def _heads(case: Case, seen: Floats) -> tuple[Floats, Floats, Floats]:
    """Queries, keys and values `[rows, tokens, value_heads, size]`."""
    shape = case.shape
    taps = floats(case.weights.taps)
    mixed = np.zeros((case.rows, case.tokens, shape.channels))
    for tap in range(shape.taps):
        mixed += seen[:, tap : tap + case.tokens] * taps[:, tap]
    mixed *= _sigmoid(mixed)
    width = shape.key_heads * shape.key_dim
    each = shape.value_heads // shape.key_heads
    keys = []
    for start in (0, width):
        part = mixed[..., start : start + width]
        part = part.reshape(*part.shape[:2], shape.key_heads, -1)
        length = np.sqrt((part**2).sum(axis=-1, keepdims=True) + shape.key_eps)
        keys.append(np.repeat(part / length, each, axis=2))
    values = mixed[..., 2 * width :]
    values = values.reshape(*values.shape[:2], shape.value_heads, -1)
    return keys[0] * shape.key_dim**-0.5, keys[1], values


def _recurrence(
    case: Case,
    heads: tuple[Floats, Floats, Floats],
    fade: Floats,
    strength: Floats,
) -> tuple[Floats, Floats]:
    """What each token reads from the state, and the state after."""
    queries, keys, values = heads
    state = floats(case.state)
    read = np.zeros_like(values)
    for t in range(case.tokens):
        state = state * fade[:, t, :, None, None]
        memory = np.einsum("rhvk,rhk->rhv", state, keys[:, t])
        change = (values[:, t] - memory) * strength[:, t, :, None]
        state = state + change[..., None] * keys[:, t, :, None, :]
        read[:, t] = np.einsum("rhvk,rhk->rhv", state, queries[:, t])
    return read, state


def _sigmoid(x: Floats) -> Floats:
    value: Floats = 1 / (1 + np.exp(-x))
    return value
