"""Checks of what the launch functions are given: shapes and types, by name."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from rvllm_local.metal_kernels.config import FENCE_SIZE, MAX_QUERY_LEN


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotary embedding that a launch applies.

    `table` float32 `[rows, dims]` holds each row's cosines, then its sines. The first
    `dims` elements of a head are rotated. Partners are neighbours with `pairs`, else
    they are half of `dims` apart.
    """

    table: mx.array
    pairs: bool = False


@dataclass(frozen=True, slots=True)
class NewTokens:
    """Keys and values `[rows, kv_heads, q_len, D]` that a decode launch writes first."""

    keys: mx.array
    values: mx.array


def require(
    name: str,
    array: mx.array,
    shape: tuple[int, ...],
    dtype: mx.Dtype,
) -> None:
    """Raises `ValueError` for an array of another shape or type."""
    if tuple(array.shape) != shape or array.dtype != dtype:
        raise ValueError(
            f"{name} must be {dtype} of shape {shape}, "
            f"not {array.dtype} of {tuple(array.shape)}"
        )


def check_scratch(scratch: mx.array, needed: int) -> None:
    """Raises `ValueError` for a scratch with fewer than `needed` floats, or 8."""
    least = max(FENCE_SIZE, needed)
    if scratch.dtype != mx.float32 or scratch.ndim != 1 or scratch.size < least:
        raise ValueError(
            f"scratch must be float32 with {least} elements or more, "
            f"not {scratch.dtype} of {scratch.shape}"
        )


def check_decode_options(
    q_len: int,
    heads: int,
    window: int,
    softcap: float,
    sinks: mx.array | None,
) -> None:
    """Raises `ValueError` for options that `paged_decode` does not take."""
    if not 1 <= q_len <= MAX_QUERY_LEN:
        raise ValueError(
            f"paged_decode takes 1 to {MAX_QUERY_LEN} query tokens a row, "
            f"not {q_len}; use kv_gather"
        )
    if sinks is not None and sinks.shape != (heads,):
        raise ValueError(f"sinks must have shape ({heads},), not {sinks.shape}")
    if window < 0 or softcap < 0:
        raise ValueError(
            f"window and softcap must not be negative, not {window} and {softcap}"
        )


def check_pairs(pairs: mx.array) -> None:
    """Raises `ValueError` for what is not a list of (source, destination) blocks."""
    is_list = pairs.ndim == 2 and pairs.shape[1] == 2 and pairs.shape[0] >= 1
    if not is_list or pairs.dtype != mx.int32:
        raise ValueError(
            f"pairs must be int32 of shape (n, 2), not {pairs.dtype} of {pairs.shape}"
        )


def checked_table(
    rotation: Rotation,
    rows: int,
    q_len: int,
    head_dim: int,
) -> mx.array:
    """The rotation's table, with at least 8 elements.

    Metal binds a smaller array as `constant`, and the kernels take a `device` pointer.
    Raises `ValueError` for a table that is not one of these rows'.
    """
    table = rotation.table
    is_table = table.ndim == 2 and table.shape[0] == rows
    if q_len != 1 or not is_table or table.shape[1] % 2 or table.shape[1] > head_dim:
        raise ValueError(
            "a rotation needs one query token a row and a table "
            f"[rows, dims <= {head_dim}], not {q_len} and {table.shape}"
        )
    require("rotation table", table, table.shape, mx.float32)
    if table.size < FENCE_SIZE:
        return mx.pad(table.reshape(-1), (0, FENCE_SIZE - table.size))
    return table
