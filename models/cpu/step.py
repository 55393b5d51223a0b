"""Runs a decoder's steps through onnxruntime over the arenas.

A step is a chunk of one prompt, or a token of many rows. It is one call where the weights
fit one session. Between the embedding and the logits nothing of it is MLX's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from rvllm_local.attention.geometry import CallGeometry
from rvllm_local.memory.arena import Arena
from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.memory.layout import KVLayout, LayerSlot
from rvllm_local.models.cpu.onnx_file import GraphWriter
from rvllm_local.models.cpu.products import ProductWriter, rows_of
from rvllm_local.models.cpu.runtime import SessionOpener
from rvllm_local.models.cpu.step_graph import LayerGeometry, StepGraph
from rvllm_local.models.cpu.step_inputs import Rotation, Rotations, StepInputs
from rvllm_local.models.cpu.stored import StoredEmbedding
from rvllm_local.models.cpu.structure import Attention, Decoder

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Lookup = Callable[[npt.NDArray[Any]], FloatArray]

_MOST_BYTES = 96 << 20  # of weights in sessions that are made at once
_MOST_SCORES = 4 << 20  # of one layer's attention; longer chunks go in parts
_LEAST_CHUNK = 64  # tokens; fewer would pay for the weights too often


@dataclass(frozen=True, slots=True)
class _Segment:
    """A session over some layers, and the binding that holds the arena's addresses."""

    session: Any
    binding: Any
    described: frozenset[str]


@dataclass(frozen=True, slots=True)
class StepSizes:
    """The widths of a model's activations."""

    hidden: int
    intermediate: int
    vocab: int
    heads: int


class CpuStep:
    """A whole model over its arenas. Make it with `build_step`."""

    def __init__(
        self,
        sizes: StepSizes,
        lookup: Lookup,
        segments: Sequence[_Segment],
        head: Any,
        rotations: Sequence[Rotation],
        inputs: StepInputs,
    ) -> None:
        self._sizes = sizes
        self._lookup = lookup
        self._segments = segments
        self._head = head
        self._rotations = rotations
        self._inputs = inputs

    def logits(self, geometry: CallGeometry, token_ids: IntArray) -> FloatArray:
        """The logits `[rows, vocab]` of one token a row."""
        hidden = self.hidden(geometry, token_ids[:, None])
        logits = self.head(hidden)
        return logits[:, 0]

    def head(self, hidden: FloatArray) -> FloatArray:
        """Logits `[..., vocab]` of what `hidden` returned, `[..., width]`."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        (outputs,) = self._head.run(["logits"], {"hidden": flat})
        logits: FloatArray = outputs
        return logits.reshape(*hidden.shape[:-1], logits.shape[-1])

    def scratch_bytes(self, tokens: int, rows: int) -> int:
        """The most bytes that a call of `tokens` takes beside the gathered context."""
        sizes = self._sizes
        layer = tokens * (6 * sizes.hidden + 4 * sizes.intermediate)
        scores = 2 * _MOST_SCORES
        logits = 2 * rows * sizes.vocab
        return 4 * (layer + scores + logits)

    def longest_chunk(self, context: int) -> int:
        """Tokens of a prompt that one call takes when its context ends at `context`."""
        scores_a_token = self._sizes.heads * max(1, context)
        tokens = _MOST_SCORES // scores_a_token
        whole_blocks = tokens // BLOCK_TOKENS * BLOCK_TOKENS
        return max(_LEAST_CHUNK, whole_blocks)

    def hidden(self, geometry: CallGeometry, tokens: npt.NDArray[Any]) -> FloatArray:
        """Store the KV of `tokens` `[rows, tokens]`.

        Returns what the last norm makes of the residual.
        """
        shared = self._inputs.of(geometry, self._rotations)
        hidden = self._lookup(tokens)
        shape = hidden.shape
        hidden = hidden.reshape(-1, shape[-1])
        for segment in self._segments:
            output = np.empty_like(hidden)
            binding = segment.binding
            binding.bind_cpu_input("residual", hidden)
            for name in segment.described:
                binding.bind_cpu_input(name, shared[name])
            binding.bind_output(
                "hidden",
                "cpu",
                0,
                np.float32,
                output.shape,
                output.ctypes.data,
            )
            segment.session.run_with_iobinding(binding)
            hidden = output
        return hidden.reshape(shape)


def build_step(
    decoder: Decoder,
    layout: KVLayout,
    arenas: Sequence[Arena],
) -> CpuStep | None:
    """A step over `arenas`; None where the decoder's layers have no form here.

    The packed weights are taken out of the decoder's layers, one layer at a time. Where
    there is no step, nothing is taken.
    """
    described = _geometries(decoder, layout)
    if described is None:
        return None
    geometries, rotations = described
    first_layer = decoder.layers[0]
    sizes = StepSizes(
        hidden=len(decoder.norm.scale),
        intermediate=rows_of(first_layer.mlp[0]),
        vocab=rows_of(decoder.head or decoder.embedding),
        heads=geometries[0].heads,
    )
    head_graph, lookup = _ends(decoder)
    inputs = StepInputs(arenas, sizes.heads)
    with ThreadPoolExecutor(2) as threads:
        opener = SessionOpener(threads, _MOST_BYTES)
        head = opener.open(head_graph)
        del head_graph
        segments = _segments(decoder, geometries, layout, arenas, opener)
        return CpuStep(
            sizes,
            lookup,
            segments,
            head.result(),
            rotations,
            inputs,
        )


def _segments(
    decoder: Decoder,
    geometries: Sequence[LayerGeometry],
    layout: KVLayout,
    arenas: Sequence[Arena],
    opener: SessionOpener,
) -> list[_Segment]:
    """Sessions over all layers: two that are made at once, or more that are smaller."""
    width = len(decoder.norm.scale)
    last_number = len(geometries) - 1
    most_layers = (len(geometries) + 1) // 2
    parts = []
    graph = StepGraph(width)
    numbers: list[int] = []
    for layer, geometry in zip(decoder.layers, geometries, strict=True):
        graph.add(layer, geometry)
        numbers.append(geometry.number)
        norm = None
        if geometry.number == last_number:
            norm = decoder.norm
        is_full = graph.writer.nbytes >= _MOST_BYTES or len(numbers) >= most_layers
        if norm is not None or is_full:
            graph.finish(norm)
            parts.append((opener.open(graph.writer), graph.described, numbers))
            graph = StepGraph(width)
            numbers = []
    segments = []
    for session_to_come, described, its_numbers in parts:
        session = session_to_come.result()
        binding = _bound(session, its_numbers, layout, arenas)
        segments.append(_Segment(session, binding, described))
    return segments


def _geometries(
    decoder: Decoder, layout: KVLayout
) -> tuple[list[LayerGeometry], list[Rotation]] | None:
    """How each layer lies in the arenas, and the rotations that they number.

    None for a layout with more than float32 keys and values, and for rotations that no
    table holds.
    """
    if len(layout.slots) != len(decoder.layers) or any(layout.nesting):
        return None
    rotations = Rotations()
    geometries = []
    for number, slot in enumerate(layout.slots):
        if not isinstance(slot, LayerSlot):
            return None
        attention = decoder.layers[number].attention
        geometry = _plain_geometry(number, slot, layout, attention)
        if geometry is None:
            return None
        if attention.rope is not None:
            index = rotations.number_of(attention.rope, geometry.head_dim)
            if index is None:
                return None
            table = rotations.every[index].table
            geometry = dataclasses.replace(
                geometry,
                rotation=index,
                pairs=table.pairs,
                rotated=table.width,
            )
        geometries.append(geometry)
    heads = {geometry.heads for geometry in geometries}
    if len(heads) > 1:
        return None
    return geometries, rotations.every


def _plain_geometry(
    number: int,
    slot: LayerSlot,
    layout: KVLayout,
    attention: Attention,
) -> LayerGeometry | None:
    """A layer without its rotation; None for another KV than float32 of one width."""
    shape = layout.groups[slot.group]
    is_plain = shape.dtype == mx.float32 and not shape.quantized
    if not is_plain or shape.key_dim != shape.value_dim:
        return None
    query_projection = attention.projections[0]
    return LayerGeometry(
        number=number,
        group=slot.group,
        heads=rows_of(query_projection) // shape.key_dim,
        kv_heads=shape.kv_heads,
        head_dim=shape.key_dim,
    )


def _bound(
    session: Any,
    numbers: Sequence[int],
    layout: KVLayout,
    arenas: Sequence[Arena],
) -> Any:
    """A binding in which each layer's arena is input and output at one address."""
    binding = session.io_binding()
    for number in numbers:
        slot = layout.slots[number]
        assert isinstance(slot, LayerSlot)
        shape = arenas[slot.group].shape
        memory = np.array(arenas[slot.group].array, copy=False)
        blocks = memory.reshape(-1, BLOCK_TOKENS, shape.width)
        part = blocks[slot.layer * 2 * shape.kv_heads :]
        described = ("cpu", 0, np.float32, part.shape, part.ctypes.data)
        binding.bind_input(f"arena{number}", *described)
        binding.bind_output(f"stored{number}", *described)
    return binding


def _ends(decoder: Decoder) -> tuple[GraphWriter, Lookup]:
    """The graph of the head, and the lookup of the embedding."""
    writer = GraphWriter()
    products = ProductWriter(writer)
    columns = len(decoder.norm.scale)
    hidden = writer.input("hidden", "float32", ("T", columns))
    embedding = decoder.embedding
    if isinstance(embedding, StoredEmbedding):
        table = embedding.take()
        lookup: Lookup = table.values
    else:
        values = np.array(embedding["weight"])
        lookup = values.__getitem__
    if decoder.head is not None:
        (logits,) = products.linear(hidden, [decoder.head])
        rows: int | str = "V"
    elif isinstance(embedding, StoredEmbedding):
        logits = products.packed(hidden, table, None)
        rows = table.rows
    else:
        logits = writer.node("MatMul", [hidden, writer.constant(values.T)])
        rows = len(values)
    writer.output(logits, "logits", "float32", ("T", rows))
    return writer, lookup
