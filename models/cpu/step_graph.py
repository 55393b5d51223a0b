"""Writes decoder layers as an ONNX graph: a step between the embedding and the head.

A layer stores its keys and values in the arena and reads its context from there, so a
whole step is one call. The arena is an input and, at the same address, an output:
`ScatterND` writes in place where both are one.
"""

from __future__ import annotations

from dataclasses import dataclass

from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.models.cpu.onnx_file import CONTRIB, GraphWriter
from rvllm_local.models.cpu.products import ProductWriter
from rvllm_local.models.cpu.structure import Attention, DecoderLayer, Norm


@dataclass(frozen=True, slots=True)
class LayerGeometry:
    """Where a layer's KV lies, and the shape of its heads.

    `number` is the layer's in the model. `rotation` is the number of its table of cosines
    and sines, None for a layer without. `pairs` and `rotated`, the elements of a head
    that turn, are the table's.
    """

    number: int
    group: int
    heads: int
    kv_heads: int
    head_dim: int
    rotation: int | None = None
    pairs: bool = False
    rotated: int = 0

    @property
    def group_heads(self) -> int:
        """Query heads that share one head of keys and values."""
        return self.heads // self.kv_heads


class StepGraph:
    """Some layers of a model, `[rows * tokens, width]` in and out.

    Only attention knows rows from tokens. A product of two dimensions adds what it is
    given in one operation, and is twice as fast as one of three and an addition.
    """

    def __init__(self, width: int) -> None:
        self.writer = GraphWriter()
        self._products = ProductWriter(self.writer)
        self._width = width
        self._residual = self.writer.input("residual", "float32", ("T", width))
        self._branch: str | None = None  # what is still to be added to the residual
        self._declared: set[str] = set()  # what calls describe; no arena

    def add(self, layer: DecoderLayer, geometry: LayerGeometry) -> None:
        """Write one layer."""
        linear = self._products.linear
        normed = self._normed(layer.attention_norm)
        attended = self._attended(normed, layer.attention, geometry)
        (self._branch,) = linear(attended, [layer.attention.output])
        normed = self._normed(layer.mlp_norm)
        gate, up, down = layer.mlp
        gates, values = linear(normed, [gate, up])
        # With this alpha the operator is x * sigmoid(x).
        opened = self.writer.node("QuickGelu", [gates], CONTRIB, alpha=1.0)
        hidden = self.writer.node("Mul", [opened, values])
        (self._branch,) = linear(hidden, [down])

    def finish(self, norm: Norm | None) -> None:
        """Hand out the residual, or what the last norm makes of it, as `hidden`."""
        if norm is not None:
            hidden = self._normed(norm)
        elif self._branch is not None:
            hidden = self.writer.node("Add", [self._branch, self._residual])
        else:
            hidden = self._residual
        dims = ("T", self._width)
        self.writer.output(hidden, "hidden", "float32", dims)

    @property
    def described(self) -> frozenset[str]:
        """The names of the inputs that describe a call. Not each graph has all of them."""
        return frozenset(self._declared)

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
            "SimplifiedLayerNormalization",
            [x, scale],
            axis=-1,
            epsilon=eps,
        )

    def _attended(
        self,
        normed: str,
        attention: Attention,
        geometry: LayerGeometry,
    ) -> str:
        """`[rows * tokens, heads * head_dim]`, before the output's product."""
        heads = self._turned(self._projected(normed, attention, geometry), geometry)
        stored = self._stored(heads, geometry)
        dims = ("R", geometry.kv_heads, "Q", 2)
        queries = self._picked(heads, "queries", dims, geometry)
        context_keys = self._gathered(stored, "keys", geometry)
        context_values = self._gathered(stored, "values", geometry)
        weights = self._weights(queries, context_keys, attention.scale, geometry)
        attended = self.writer.node("MatMul", [weights, context_values])
        by_token = self._picked(attended, "attended", ("T", "H", 3), geometry)
        shape = self.writer.shape(-1, geometry.heads * geometry.head_dim)
        return self.writer.node("Reshape", [by_token, shape])

    def _projected(
        self,
        normed: str,
        attention: Attention,
        geometry: LayerGeometry,
    ) -> str:
        """Each token's queries, keys and values.

        They are `[rows * tokens * heads, 1, head_dim]`.
        """
        writer = self.writer
        projections = list(attention.projections)
        if attention.head_norms is None:
            heads = self._products.side_by_side(normed, projections)
        else:
            query_norm, key_norm = attention.head_norms
            queries, keys, values = self._products.linear(normed, projections)
            queries = self._normed_heads(queries, query_norm, geometry)
            keys = self._normed_heads(keys, key_norm, geometry)
            heads = writer.node("Concat", [queries, keys, values], axis=-1)
        shape = writer.shape(-1, 1, geometry.head_dim)
        return writer.node("Reshape", [heads, shape])

    def _picked(
        self,
        heads: str,
        order: str,
        dims: tuple[int | str, ...],
        geometry: LayerGeometry,
    ) -> str:
        """Some heads, in another order."""
        index = self._input(f"{order}{geometry.group}", "int64", dims)
        return self.writer.node("GatherND", [heads, index])

    def _gathered(self, blocks: str, part: str, geometry: LayerGeometry) -> str:
        """Keys or values of each row's blocks, `[rows, kv_heads, context, head_dim]`."""
        writer = self.writer
        group = geometry.group
        dims = ("R", geometry.kv_heads, f"blocks{group}")
        index = self._input(f"{part}{group}", "int64", dims)
        gathered = writer.node("Gather", [blocks, index], axis=0)
        shape = writer.shape(0, geometry.kv_heads, -1, geometry.head_dim)
        return writer.node("Reshape", [gathered, shape])

    def _weights(
        self,
        queries: str,
        keys: str,
        scale: float,
        geometry: LayerGeometry,
    ) -> str:
        """Softmax over the context, `[rows, kv_heads, group * tokens, context]`."""
        writer = self.writer
        group = geometry.group
        scores = writer.node(
            "FusedMatMul",
            [queries, keys],
            CONTRIB,
            transB=1,
            alpha=scale,
        )
        dims = ("R", 1, "Q", f"context{group}")
        mask = self._input(f"mask{group}", "float32", dims)
        masked = writer.node("Add", [scores, mask])
        return writer.node("Softmax", [masked], axis=-1)

    def _stored(self, heads: str, geometry: LayerGeometry) -> str:
        """The layer's part of the arena with the new keys and values in it.

        It is `[blocks, slots, head_dim]`.
        """
        number = geometry.number
        new = self._picked(heads, "fresh", ("W", 2), geometry)
        dims = (f"places{number}", BLOCK_TOKENS, geometry.head_dim)
        before = self.writer.input(f"arena{number}", "float32", dims)
        index = self._input(f"stores{geometry.group}", "int64", ("W", 2))
        inputs = [before, index, new]
        return self.writer.store_into("ScatterND", inputs, f"stored{number}", dims)

    def _normed_heads(self, heads: str, norm: Norm, geometry: LayerGeometry) -> str:
        """The norm of each head, or of all together where the norm is as wide."""
        writer = self.writer
        width = len(norm.scale)
        scale = writer.constant(norm.scale)
        if width != geometry.head_dim:
            return self._rms(heads, scale, norm.eps)
        by_head = writer.shape(0, -1, width)
        parted = writer.node("Reshape", [heads, by_head])
        normed = self._rms(parted, scale, norm.eps)
        together = writer.shape(0, -1)
        return writer.node("Reshape", [normed, together])

    def _turned(self, heads: str, geometry: LayerGeometry) -> str:
        """The heads, rotated. Values are, too, by an angle of 0."""
        number = geometry.rotation
        if number is None:
            return heads
        turns = self._input(f"turns{geometry.group}", "int64", ("N", 1))
        dims = ("P", geometry.rotated // 2)
        cosines = self._input(f"cosines{number}", "float32", dims)
        sines = self._input(f"sines{number}", "float32", dims)
        partial = 0  # the operator's word for all of the head
        if geometry.rotated < geometry.head_dim:
            partial = geometry.rotated
        return self.writer.node(
            "RotaryEmbedding",
            [heads, turns, cosines, sines],
            CONTRIB,
            num_heads=1,
            interleaved=int(geometry.pairs),
            rotary_embedding_dim=partial,
        )
