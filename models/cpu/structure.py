"""Finds the parts of a decoder that `step_graph` can write.

These are norms, rotation, attention, and a gated MLP. The parts decide, not the class: a
definition that computes anything besides fails in the load-time self-check.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx import nn

from rvllm_local.models.cpu.stored import StoredEmbedding, StoredLinear

FloatArray = npt.NDArray[np.float32]
Rotation = Callable[..., mx.array]

_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP = {"gate_proj", "up_proj", "down_proj"}


@dataclass(frozen=True, slots=True)
class Norm:
    """An RMS norm: `scale` `[width]` and epsilon."""

    scale: FloatArray
    eps: float


@dataclass(frozen=True, slots=True)
class Attention:
    """One layer's attention; `rope` is None for a layer that rotates nothing."""

    projections: tuple[nn.Module, nn.Module, nn.Module]
    output: nn.Module
    scale: float
    rope: nn.Module | None
    head_norms: tuple[Norm, Norm] | None


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """`attention` and `mlp` (gate, up, down).

    Each comes after its norm and is added to the residual.
    """

    attention_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: tuple[nn.Module, nn.Module, nn.Module]


@dataclass(frozen=True, slots=True)
class Decoder:
    """A whole model. `head` is None where the embedding is the head, too."""

    embedding: nn.Module
    layers: tuple[DecoderLayer, ...]
    norm: Norm
    head: nn.Module | None


def find_decoder(model: nn.Module) -> Decoder | None:
    """The decoder's parts; None if a part is missing, or is there that is not known."""
    body = model.get("model")
    if not isinstance(body, nn.Module):
        return None
    if not _has_only(model, {"model"}, {"lm_head"}):
        return None
    if not _has_only(body, {"embed_tokens", "layers", "norm"}):
        return None
    head = model.get("lm_head")
    embedding = body["embed_tokens"]
    norm = _norm(body["norm"])
    if norm is None or not isinstance(embedding, _EMBEDDINGS):
        return None
    if head is not None and not isinstance(head, _LINEARS):
        return None
    layers = []
    for module in body["layers"]:
        layer = _layer(module)
        if layer is None:
            return None
        layers.append(layer)
    if not layers:
        return None
    return Decoder(embedding, tuple(layers), norm, head)


_LINEARS = (StoredLinear, nn.Linear)
_EMBEDDINGS = (StoredEmbedding, nn.Embedding)


def _layer(layer: nn.Module) -> DecoderLayer | None:
    if not _has_only(layer, _LAYER):
        return None
    attention_norm = _norm(layer["input_layernorm"])
    mlp_norm = _norm(layer["post_attention_layernorm"])
    attention = _attention(layer["self_attn"])
    mlp = layer["mlp"]
    if attention_norm is None or mlp_norm is None or attention is None:
        return None
    if not isinstance(mlp, nn.Module) or not _has_only(mlp, _MLP):
        return None
    parts = (mlp["gate_proj"], mlp["up_proj"], mlp["down_proj"])
    if not all(isinstance(part, _LINEARS) for part in parts):
        return None
    return DecoderLayer(attention_norm, attention, mlp_norm, parts)


def _attention(attention: nn.Module) -> Attention | None:
    names = {"rope", "q_norm", "k_norm"}
    if not _has_only(attention, _ATTENTION, names):
        return None
    scale = getattr(attention, "scale", None)
    if not isinstance(scale, float):
        return None
    projections = (attention["q_proj"], attention["k_proj"], attention["v_proj"])
    output = attention["o_proj"]
    for part in (*projections, output):
        if not isinstance(part, _LINEARS):
            return None
    head_norms = None
    if "q_norm" in attention or "k_norm" in attention:
        query_norm = _norm(attention.get("q_norm"))
        key_norm = _norm(attention.get("k_norm"))
        if query_norm is None or key_norm is None:
            return None
        head_norms = (query_norm, key_norm)
    rope = attention.get("rope")
    if isinstance(rope, nn.Identity):
        rope = None
    return Attention(
        projections=projections,
        output=output,
        scale=scale,
        rope=rope,
        head_norms=head_norms,
    )


def _has_only(
    module: nn.Module,
    required: Set[str],
    optional: Set[str] = frozenset(),
) -> bool:
    """True if the module has the required children and arrays, and no unknown ones."""
    names = set()
    for name, value in module.items():
        parts = value
        if not isinstance(value, list):
            parts = [value]
        if any(isinstance(part, nn.Module | mx.array) for part in parts):
            names.add(name)
    return required <= names <= required | optional


def _norm(norm: Any) -> Norm | None:
    """The scale of an RMS norm; None for anything else.

    It is the norm's weight, or one more than that.
    """
    if not isinstance(norm, nn.Module):
        return None
    weight = norm.get("weight")
    if not isinstance(weight, mx.array) or weight.ndim != 1:
        return None
    eps = getattr(norm, "eps", None)
    if not isinstance(eps, float):
        return None
    row = mx.sin(mx.arange(weight.size))[None]
    try:
        normed = norm(row)
    except (TypeError, ValueError):  # it wants more than a row
        return None
    for scale in (weight, 1.0 + weight):
        expected = mx.fast.rms_norm(row, scale, eps)
        if mx.allclose(normed, expected, rtol=1e-5).item():
            values = np.array(scale.astype(mx.float32))
            return Norm(values, eps)
    return None


@dataclass(frozen=True, slots=True)
class RotationTable:
    """Cosines and sines of a rotation, `[positions, width / 2]`.

    They are those that the model's own module makes. With `pairs` neighbours are rotated
    together, not the halves of a head.
    """

    cosines: FloatArray
    sines: FloatArray
    pairs: bool

    @property
    def width(self) -> int:
        """Elements of a head that turn."""
        return 2 * int(self.cosines.shape[1])

    def members(self) -> tuple[slice, slice]:
        """Where the first and the second elements of all pairs stand in a head."""
        return _members(self.width, self.pairs)


def _members(width: int, pairs: bool) -> tuple[slice, slice]:
    if pairs:
        return slice(0, width, 2), slice(1, width, 2)
    half = width // 2
    return slice(0, half), slice(half, width)


def rotation_table(
    rope: Rotation,
    head_dim: int,
    positions: int,
) -> RotationTable | None:
    """What `rope` does to a head at each position.

    None if that is no rotation of the head's first elements. A head that is 1 in all the
    first members of its pairs becomes their cosines and sines.
    """
    width = _width(rope, head_dim)
    for pairs in (False, True):
        first, second = _members(width, pairs)
        probe = np.zeros((positions, head_dim), dtype=np.float32)
        probe[:, first] = 1
        rotated = _rotated(rope, probe)
        table = RotationTable(rotated[:, first], rotated[:, second], pairs)
        if _is_same(rope, table, head_dim):
            return table
    return None


def _width(rope: Rotation, head_dim: int) -> int:
    """Elements of a head that turn, as the module says."""
    for name in ("dims", "dim"):
        width = getattr(rope, name, None)
        if isinstance(width, int) and 0 < width <= head_dim:
            return width
    return head_dim


def _rotated(rope: Rotation, heads: FloatArray) -> FloatArray:
    """Heads `[positions, head_dim]` as the module rotates them."""
    batch = mx.array(heads[None, None])
    rotated = rope(batch, offset=0).astype(mx.float32)
    values: FloatArray = np.array(rotated)[0, 0]
    return values


def _is_same(rope: Rotation, table: RotationTable, head_dim: int) -> bool:
    """True if the table turns random heads as the module does."""
    positions = min(8, len(table.cosines))
    random = np.random.default_rng(3)
    heads = random.standard_normal((positions, head_dim)).astype(np.float32)
    cosines = table.cosines[:positions]
    sines = table.sines[:positions]
    first, second = table.members()
    left = heads[:, first]
    right = heads[:, second]
    rotated = heads.copy()
    rotated[:, first] = left * cosines - right * sines
    rotated[:, second] = left * sines + right * cosines
    expected = _rotated(rope, heads)
    return bool(np.allclose(rotated, expected, atol=1e-4))
