"""Estimates the temporary memory of a step, before a model is loaded.

A started engine measures it instead (`engine/startup/measure_scratch.py`). Arithmetic
only.
"""

from __future__ import annotations

from dataclasses import dataclass

from rvllm_local.memory.arena import KVShape
from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.memory.layout import KVLayout

_QUERY_BLOCK = 128  # queries whose scores are computed at once
_PADDED = 2  # rows are attended together if padding at most doubles what is gathered
_FLOAT = 4
_SCORED_LOGITS = (
    2 * 2**20
)  # of a prompt that is scored, or of one block if that is more


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """The widths that scratch memory follows from: a model's largest activations."""

    hidden: int
    intermediate: int
    vocab: int
    heads: int
    dtype_bytes: int
    has_sinks: bool = False


def with_room(measured: int) -> int:
    """What a step of so many bytes is given.

    A tenth more, and as much again for what MLX keeps for the next one.
    """
    return 2 * (measured + measured // 10)


def scratch_bytes(
    sizes: ModelSizes,
    rows: int,
    chunk: int,
    context: int,
    layer_kv: int,
) -> int:
    """An upper estimate of the bytes that are alive at once beside weights and arena.

    A chunk through the widest layer (four arrays of the hidden and three of the
    intermediate width, twice), sampling (six float32 arrays over the vocabulary), one
    layer's gathered KV (`layer_kv` bytes of the arena, with as much again for padding,
    keys and values apart), and the scores of a block of queries against a whole
    context. All that twice: MLX keeps freed buffers for the next ones. A started engine
    measures instead (`engine/startup/measure_scratch.py`).
    """
    tokens = max(chunk, rows)
    widths = 4 * sizes.hidden + 3 * sizes.intermediate
    layer = tokens * widths * sizes.dtype_bytes
    sampling = 6 * 4 * rows * sizes.vocab
    queries = min(chunk, _QUERY_BLOCK)
    scores = 2 * 4 * sizes.heads * queries * context
    return 2 * (2 * layer + sampling + 4 * layer_kv + scores)


def host_scratch_bytes(
    sizes: ModelSizes,
    layout: KVLayout,
    blocks: tuple[int, ...],
    rows: int,
    chunk: int,
    context: int,
) -> int:
    """The same where a CPU computes in float32.

    There one call is done before the next: of the largest prefill chunk, of the largest
    decode batch, of the drawing of its tokens and of a prompt's scoring, only the
    largest counts.
    """
    scored = max(_SCORED_LOGITS, BLOCK_TOKENS * sizes.vocab)
    peaks = [6 * _FLOAT * rows * sizes.vocab, 4 * _FLOAT * scored]
    for shape, count in zip(layout.groups, blocks, strict=True):
        seen = context
        if shape.window is not None:
            seen = min(context, shape.window + chunk)
        peaks.append(_prefill_bytes(sizes, shape, chunk, seen))
        most = _PADDED * count * BLOCK_TOKENS // rows
        peaks.append(_decode_bytes(sizes, shape, rows, min(seen, most)))
    return with_room(max(peaks))


def _prefill_bytes(sizes: ModelSizes, shape: KVShape, chunk: int, seen: int) -> int:
    """A chunk through the widest layer, and a block's scores against all it sees."""
    widths = 4 * sizes.hidden + 3 * sizes.intermediate
    activations = 2 * chunk * widths * _FLOAT
    scores = _FLOAT * sizes.heads * min(chunk, _QUERY_BLOCK) * seen
    return activations + scores + _gathered_bytes(shape, seen)


def _decode_bytes(sizes: ModelSizes, shape: KVShape, rows: int, length: int) -> int:
    """One layer's keys, then its values, of rows that are padded to one length.

    With attention sinks they are there together, and the scores in four forms.
    """
    scores = _FLOAT * sizes.heads * rows * length
    gathered = _gathered_bytes(shape, rows * length)
    if sizes.has_sinks:
        return 4 * scores + 2 * gathered
    return scores + gathered


def _gathered_bytes(shape: KVShape, tokens: int) -> int:
    """Keys or values of one layer, as floats; beside them int8 as it is stored."""
    head = _FLOAT * shape.width
    if shape.quantized:
        head += shape.width + 2 * _FLOAT
    return head * shape.kv_heads * tokens
