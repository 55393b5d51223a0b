"""Writes decoder layers as an ONNX graph: everything of a step between the embedding and the head.

A layer stores its keys and values in the arena and reads its context from there, so a whole step is one call. The
arena is an input and, at the same address, an output: `ScatterND` writes in geometry where both are one.
"""

from __future__ import annotations

from dataclasses import dataclass

from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.models.cpu.onnx_file import CONTRIB, GraphWriter
from rvllm_local.models.cpu.products import ProductWriter
from rvllm_local.models.cpu.structure import Attention, DecoderLayer, Norm


@dataclass(frozen=True, slots=True)
class LayerGeometry:
    """Where a layer's KV lies (its number in the model, its group), and the shape of its heads.

    `rotation` is the number of its table of cosines and sines, None for a layer without; `pairs` and `rotated` (the
    elements of a head that turn) are the table's.
    """

    number: int
    group: int
    heads: int
    kv_heads: int
    head_dim: int
    rotation: int | None = None
    pairs: bool = False
    rotated: int = 0


class StepGraph:
    """Some layers of a model, `[rows, tokens, width]` in and out."""

    def __init__(self, width: int) -> None:
        self.writer = GraphWriter()
        self._products = ProductWriter(self.writer)
        self._width = width
        self._residual = self.writer.input("residual", "float32", ("R", "L", width))
        self._branch: str | None = None  # what is still to be added to the residual
        self._declared: set[str] = set()

    def add(self, layer: DecoderLayer, geometry: LayerGeometry) -> None:
        """Write one layer."""
        linear = self._products.linear
        normed = self._normed(layer.attention_norm)
        attended = self._attended(normed, layer.attention, geometry)
        self._branch = linear(attended, [layer.attention.output])[0]
        normed = self._normed(layer.mlp_norm)
        gate, up, down = layer.mlp
        gates, values = linear(normed, [gate, up])
        # With this alpha the operator is x * sigmoid(x).
        opened = self.writer.node("QuickGelu", [gates], CONTRIB, alpha=1.0)
        hidden = self.writer.node("Mul", [opened, values])
        self._branch = linear(hidden, [down])[0]

    def finish(self, norm: Norm | None) -> bytes:
        """The model's bytes; its output `hidden` is the residual, or what the last norm makes of it."""
        if norm is not None:
            hidden = self._normed(norm)
        elif self._branch is not None:
            hidden = self.writer.node("Add", [self._branch, self._residual])
        else:
            hidden = self._residual
        dims = ("R", "L", self._width)
        self.writer.output(hidden, "hidden", "float32", dims)
        return self.writer.model()

    def _input(self, name: str, dtype: str, dims: tuple[int | str, ...]) -> str:
        if name not in self._declared:
            self._declared.add(name)
            self.writer.input(name, dtype, dims)
        return name

    def _normed(self, norm: Norm) -> str:
        """The norm of the residual, to which the last branch is added first."""
        scale = self.writer.constant(norm.scale)
        if self._branch is None:
            return self._rms(self._residual, scale, norm.eps)
        normed, _, _, self._residual = self.writer.nodes(
            "SkipSimplifiedLayerNormalization",
            [self._branch, self._residual, scale],
            (True, False, False, True),
            CONTRIB,
            epsilon=norm.eps,
        )
        self._branch = None
        return normed

    def _rms(self, x: str, scale: str, eps: float) -> str:
        return self.writer.node(
            "SimplifiedLayerNormalization", [x, scale], axis=-1, epsilon=eps
        )

    def _attended(
        self, normed: str, attention: Attention, geometry: LayerGeometry
    ) -> str:
        """`[rows, tokens, heads * head_dim]`, before the output's product."""
        writer, head_dim, kv_heads = self.writer, geometry.head_dim, geometry.kv_heads
        projections = list(attention.projections)
        queries, keys, values = self._products.linear(normed, projections)
        if attention.head_norms is not None:
            queries = self._normed_heads(queries, attention.head_norms[0], geometry)
            keys = self._normed_heads(keys, attention.head_norms[1], geometry)
        queries = self._rotated(queries, geometry, geometry.heads)
        keys = self._rotated(keys, geometry, kv_heads)
        context = self._context(self._stored(keys, values, geometry), geometry)
        weights = self._weights(queries, context[0], attention.scale, geometry)
        attended = writer.node("MatMul", [weights, context[1]])
        shape = writer.shape(0, kv_heads, geometry.heads // kv_heads, -1, head_dim)
        attended = writer.node("Reshape", [attended, shape])
        attended = writer.node("Transpose", [attended], perm=(0, 3, 1, 2, 4))
        shape = writer.shape(0, 0, geometry.heads * head_dim)
        return writer.node("Reshape", [attended, shape])

    def _context(self, stored: str, geometry: LayerGeometry) -> list[str]:
        """Keys and values of each row's blocks, `[rows, kv_heads, context, head_dim]` twice."""
        writer, group, kv_heads = self.writer, geometry.group, geometry.kv_heads
        shape = writer.shape(-1, BLOCK_TOKENS * geometry.head_dim)
        blocks = writer.node("Reshape", [stored, shape])
        context = []
        for part in ("keys", "values"):
            dims = ("R", kv_heads, f"blocks{group}")
            index = self._input(f"{part}{group}", "int64", dims)
            gathered = writer.node("Gather", [blocks, index], axis=0)
            shape = writer.shape(0, kv_heads, -1, geometry.head_dim)
            context.append(writer.node("Reshape", [gathered, shape]))
        return context

    def _weights(
        self, queries: str, keys: str, scale: float, geometry: LayerGeometry
    ) -> str:
        """Softmax over the context, `[rows, kv_heads, group * tokens, context]`."""
        writer, group, head_dim = self.writer, geometry.group, geometry.head_dim
        per_kv_head = geometry.heads // geometry.kv_heads
        shape = writer.shape(0, 0, geometry.kv_heads, per_kv_head, head_dim)
        grouped = writer.node("Reshape", [queries, shape])
        grouped = writer.node("Transpose", [grouped], perm=(0, 2, 3, 1, 4))
        shape = writer.shape(0, geometry.kv_heads, -1, head_dim)
        grouped = writer.node("Reshape", [grouped, shape])
        scores = writer.node(
            "FusedMatMul", [grouped, keys], CONTRIB, transB=1, alpha=scale
        )
        dims = ("R", 1, "Q", f"context{group}")
        mask = self._input(f"mask{group}", "float32", dims)
        masked = writer.node("Add", [scores, mask])
        return writer.node("Softmax", [masked], axis=-1)

    def _stored(self, keys: str, values: str, geometry: LayerGeometry) -> str:
        """The layer's part of the arena with the new keys and values in it, `[places, head_dim]`."""
        writer, number = self.writer, geometry.number
        new = writer.node("Concat", [keys, values], axis=-1)
        new = writer.node("Reshape", [new, writer.shape(-1, geometry.head_dim)])
        dims = (f"places{number}", geometry.head_dim)
        before = self._input(f"arena{number}", "float32", dims)
        index = self._input(f"stores{geometry.group}", "int64", ("W", 1))
        return writer.store_into(
            "ScatterND", [before, index, new], f"stored{number}", dims
        )

    def _normed_heads(self, heads: str, norm: Norm, geometry: LayerGeometry) -> str:
        """Head by head, or all heads at once where the norm is as wide as they are together."""
        writer, width = self.writer, len(norm.scale)
        scale = writer.constant(norm.scale)
        if width != geometry.head_dim:
            return self._rms(heads, scale, norm.eps)
        parted = writer.node("Reshape", [heads, writer.shape(0, 0, -1, width)])
        normed = self._rms(parted, scale, norm.eps)
        return writer.node("Reshape", [normed, writer.shape(0, 0, -1)])

    def _rotated(self, heads: str, geometry: LayerGeometry, count: int) -> str:
        number = geometry.rotation
        if number is None:
            return heads
        positions = self._input("positions", "int64", ("R", "L"))
        dims = ("T", geometry.rotated // 2)
        tables = [
            self._input(f"{name}{number}", "float32", dims)
            for name in ("cosines", "sines")
        ]
        partial = geometry.rotated if geometry.rotated < geometry.head_dim else 0
        return self.writer.node(
            "RotaryEmbedding",
            [heads, positions, *tables],
            CONTRIB,
            num_heads=count,
            interleaved=int(geometry.pairs),
            rotary_embedding_dim=partial,
        )
