"""A recurrent layer's step of gated delta nets (Yang, Kautz and Hatamizadeh, 2024), in one launch.

It takes what the layer's projections gave, and gives what its last projection takes, with
the states after. Its inputs are not written to: a snapshot of a state is a reference.
Touches no arena.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.metal_kernels.config import KINDS, TYPES
from rvllm_local.metal_kernels.launch import (
    ArraysKernel,
    Dispatch,
    DispatchCounter,
    KernelText,
    Launcher,
    kernel_text,
)

_MOST_TOKENS = 8  # that a state's row stays in registers for
_MOST_SHARED_FLOATS = 7_000  # of 8,192 that a threadgroup may have
_INPUTS = (
    "mixed", "z", "a", "b", "conv", "state", "taps", "rates", "shift", "norm"
)  # fmt: skip
_OUTPUTS = ("out", "conv_after", "state_after")


@dataclass(frozen=True, slots=True)
class DeltaShape:
    """One layer's sizes. `taps` is the width of the convolution.

    by_key_head: a token's projection has each key head's query, key, values and gates
    together. Otherwise it has all queries, all keys and all values.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    taps: int
    dtype: mx.Dtype
    norm_eps: float
    key_eps: float = 1e-6
    by_key_head: bool = False

    @property
    def channels(self) -> int:
        """The size of what the convolution goes over."""
        keys = 2 * self.key_heads * self.key_dim
        return keys + self.value_heads * self.value_dim


@dataclass(frozen=True, slots=True)
class DeltaWeights:
    """A layer's own numbers.

    taps: `[channels, taps]`.
    rates: float32 `[value_heads]`, how quickly the state fades.
    shift: `[value_heads]`, added to what `rates` are multiplied by.
    norm: `[value_dim]`.
    """

    taps: mx.array
    rates: mx.array
    shift: mx.array
    norm: mx.array


@dataclass(frozen=True, slots=True)
class DeltaInputs:
    """What the projections gave for `[rows, tokens]`, each with its elements side by side.

    mixed: queries, keys and values. z: the output's gate. a and b: the state's gates.
    With `by_key_head`, z may be `mixed` itself, and a and b one array.
    """

    mixed: mx.array
    z: mx.array
    a: mx.array
    b: mx.array


def delta_refusal(shape: DeltaShape) -> str | None:
    """Why no kernel serves a layer of this shape; None if one does."""
    if shape.dtype not in (mx.float32, mx.float16, mx.bfloat16):
        return f"no kernel for activations in {shape.dtype}"
    if shape.value_heads % shape.key_heads:
        return f"no kernel for {shape.value_heads} heads over {shape.key_heads}"
    if shape.key_dim % 16 or shape.value_dim % 4:
        return f"no kernel for keys of {shape.key_dim} and values of {shape.value_dim}"
    floats = _MOST_TOKENS * 2 * (shape.key_dim + shape.value_dim)
    if floats > _MOST_SHARED_FLOATS or shape.taps < 2:
        return (
            f"no kernel for keys of {shape.key_dim}, values of {shape.value_dim} "
            f"and {shape.taps} taps"
        )
    return None


class GatedDelta(ArraysKernel):
    """The step of any number of layers of one model."""

    def __init__(
        self,
        *,
        backend: str | None = None,
        launcher: Launcher | None = None,
        counter: DispatchCounter | None = None,
        simdgroups: int | None = None,
    ) -> None:
        """`simdgroups` a threadgroup change no bit of a result."""
        super().__init__(backend=backend, launcher=launcher, counter=counter)
        if simdgroups is None:
            simdgroups = 16 if self.backend == "cuda" else 8
        self._simdgroups = simdgroups

    def __call__(
        self,
        shape: DeltaShape,
        weights: DeltaWeights,
        inputs: DeltaInputs,
        conv: mx.array,
        state: mx.array,
    ) -> tuple[mx.array, mx.array, mx.array]:
        """`[rows, tokens, value_heads * value_dim]`, and both states after.

        `conv` is `[rows, taps - 1, channels]`, the convolution's last inputs. `state`
        is float32 `[rows, value_heads, value_dim, key_dim]`. Raises
        `UnsupportedModelError` for a shape without a kernel and `ValueError` for arrays
        that do not fit it.
        """
        why = delta_refusal(shape)
        if why is not None:
            raise UnsupportedModelError(f"{why}; MLX serves this layer")
        rows, tokens, _ = inputs.mixed.shape
        _check_states(shape, rows, conv, state)
        threads = 32 * self._simdgroups
        self.counter.add({"gated_delta_step": 1})
        dispatch = Dispatch(
            kernel=self._text(shape, tokens),
            inputs=(
                inputs.mixed,
                inputs.z,
                inputs.a,
                inputs.b,
                conv,
                state,
                weights.taps,
                weights.rates,
                weights.shift,
                weights.norm,
            ),
            grid=(threads * shape.value_heads, rows, 1),
            threadgroup=(threads, 1, 1),
            shapes=(
                (rows, tokens, shape.value_heads * shape.value_dim),
                conv.shape,
                state.shape,
            ),
            dtypes=(shape.dtype, shape.dtype, mx.float32),
        )
        out, conv_after, state_after = self._launcher(dispatch)
        return out, conv_after, state_after

    def _text(self, shape: DeltaShape, tokens: int) -> KernelText:
        tile = 1
        while tile < min(tokens, _MOST_TOKENS):
            tile *= 2
        text = self._texts.get((shape, tile))
        if text is None:
            text = kernel_text(
                "gated_delta_step",
                "gated_delta.metal",
                self.backend,
                self._defines(shape, tile),
                _INPUTS,
                _OUTPUTS,
                ("delta_parts.h",),
            )
            self._texts[shape, tile] = text
        return text

    def _defines(self, shape: DeltaShape, tile: int) -> dict[str, object]:
        kind = TYPES[self.backend][shape.dtype]
        row_lanes = 8 if shape.key_dim % 32 == 0 else 4
        return {
            "RV_T": kind,
            "RV_T_BYTES": shape.dtype.size,
            "RV_KV": kind,
            "RV_KIND": KINDS[shape.dtype],
            "RV_D": shape.value_dim,
            "RV_LAYERS": 1,
            "RV_KV_HEADS": 1,
            "RV_TOKENS": tile,
            "RV_DK": shape.key_dim,
            "RV_DV": shape.value_dim,
            "RV_KEY_HEADS": shape.key_heads,
            "RV_VALUE_HEADS": shape.value_heads,
            "RV_SHARING": shape.value_heads // shape.key_heads,
            "RV_CHANNELS": shape.channels,
            "RV_TAPS": shape.taps,
            "RV_BY_KEY_HEAD": int(shape.by_key_head),
            "RV_SIMDGROUPS": self._simdgroups,
            "RV_ROW_LANES": row_lanes,
            "RV_LANE_KEYS": shape.key_dim // row_lanes,
            "RV_EPS": f"{shape.norm_eps:.9e}f",
            "RV_KEY_EPS": f"{shape.key_eps / shape.key_dim:.9e}f",
            "RV_QUERY_SCALE": f"{1 / shape.key_dim:.9e}f",
            "RV_KEY_SCALE": f"{shape.key_dim**-0.5:.9e}f",
        }


def _check_states(
    shape: DeltaShape, rows: int, conv: mx.array, state: mx.array
) -> None:
    kept = (rows, shape.taps - 1, shape.channels)
    if conv.shape != kept or conv.dtype != shape.dtype:
        raise ValueError(
            f"the convolution's state must be {shape.dtype} {kept}, "
            f"not {conv.dtype} {conv.shape}"
        )
    size = (rows, shape.value_heads, shape.value_dim, shape.key_dim)
    if state.shape != size or state.dtype != mx.float32:
        raise ValueError(
            f"the state must be float32 {size}, not {state.dtype} {state.shape}"
        )
