"""Finds the parts of a decoder that `step_graph` knows how to write: norms, rotation, attention, a gated MLP.

The parts tell, not the class: a definition that computes anything besides fails in the load-time self-check.
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
    """`attention` and `mlp` (gate, up, down), each after its norm and added to the residual."""

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
    """The decoder's parts; None if anything is there that is not known, or is missing."""
    body = model.get("model")
    if not isinstance(body, nn.Module) or not _has_only(model, {"model"}, {"lm_head"}):
        return None
    if not _has_only(body, {"embed_tokens", "layers", "norm"}):
        return None
    head, embedding, norm = (
        model.get("lm_head"),
        body["embed_tokens"],
        _norm(body["norm"]),
    )
    layers = [_layer(layer) for layer in body["layers"]]
    if norm is None or not layers or not isinstance(embedding, _EMBEDDINGS):
        return None
    if head is not None and not isinstance(head, _LINEARS):
        return None
    complete = [layer for layer in layers if layer is not None]
    if len(complete) < len(layers):
        return None
    return Decoder(embedding, tuple(complete), norm, head)


_LINEARS = (StoredLinear, nn.Linear)
_EMBEDDINGS = (StoredEmbedding, nn.Embedding)


def _layer(layer: nn.Module) -> DecoderLayer | None:
    if not _has_only(layer, _LAYER):
        return None
    norms = [_norm(layer[f"{name}_layernorm"]) for name in ("input", "post_attention")]
    attention, mlp = _attention(layer["self_attn"]), layer["mlp"]
    if norms[0] is None or norms[1] is None or attention is None:
        return None
    if not isinstance(mlp, nn.Module) or not _has_only(mlp, _MLP):
        return None
    parts = (mlp["gate_proj"], mlp["up_proj"], mlp["down_proj"])
    if not all(isinstance(part, _LINEARS) for part in parts):
        return None
    return DecoderLayer(norms[0], attention, norms[1], parts)


def _attention(attention: nn.Module) -> Attention | None:
    names = {"rope", "q_norm", "k_norm"}
    if not _has_only(attention, _ATTENTION, names):
        return None
    scale = getattr(attention, "scale", None)
    projections = (attention["q_proj"], attention["k_proj"], attention["v_proj"])
    linears = (*projections, attention["o_proj"])
    if not all(isinstance(part, _LINEARS) for part in linears):
        return None
    if not isinstance(scale, float):
        return None
    head_norms = None
    if "q_norm" in attention or "k_norm" in attention:
        query, key = _norm(attention.get("q_norm")), _norm(attention.get("k_norm"))
        if query is None or key is None:
            return None
        head_norms = (query, key)
    rope = attention.get("rope")
    if isinstance(rope, nn.Identity):
        rope = None
    return Attention(projections, attention["o_proj"], scale, rope, head_norms)


def _has_only(
    module: nn.Module, required: Set[str], optional: Set[str] = frozenset()
) -> bool:
    """True if the module's children and arrays are the required ones, and perhaps optional ones."""
    names = set()
    for name, value in module.items():
        parts = value if isinstance(value, list) else [value]
        if any(isinstance(part, nn.Module | mx.array) for part in parts):
            names.add(name)
    return required <= names <= required | optional


def _norm(norm: Any) -> Norm | None:
    """What an RMS norm multiplies by, its weight or one more than that; None for anything else."""
    weight, eps = None, None
    if isinstance(norm, nn.Module):
        weight, eps = norm.get("weight"), getattr(norm, "eps", None)
    if not isinstance(weight, mx.array) or weight.ndim != 1:
        return None
    if not isinstance(eps, float):
        return None
    row = mx.sin(mx.arange(weight.size))[None]
    try:
        normed = norm(row)
    except (TypeError, ValueError):  # it wants more than a row
        return None
    for scale in (weight, 1.0 + weight):
        if mx.allclose(normed, mx.fast.rms_norm(row, scale, eps), rtol=1e-5).item():
            return Norm(np.array(scale.astype(mx.float32)), eps)
    return None


@dataclass(frozen=True, slots=True)
class RotationTable:
    """Cosines and sines of a rotation, `[positions, width / 2]`, as the model's own module makes them.

    `pairs`: neighbours are rotated together, not the halves of a head.
    """

    cosines: FloatArray
    sines: FloatArray
    pairs: bool

    @property
    def width(self) -> int:
        """Elements of a head that turn."""
        return 2 * int(self.cosines.shape[1])


def rotation_table(
    rope: Callable[..., mx.array], head_dim: int, positions: int
) -> RotationTable | None:
    """What `rope` does to a head at each position; None if that is no rotation of its first elements.

    A head that is 1 in all the first members of its pairs becomes their cosines and sines.
    """
    for pairs in (False, True):
        for width in _widths(rope, head_dim):
            probe = np.zeros((1, 1, positions, head_dim), dtype=np.float32)
            if pairs:
                probe[..., 0:width:2] = 1
            else:
                probe[..., : width // 2] = 1
            turned = np.array(rope(mx.array(probe), offset=0).astype(mx.float32))[0, 0]
            if pairs:
                table = RotationTable(turned[:, 0:width:2], turned[:, 1:width:2], True)
            else:
                half = width // 2
                table = RotationTable(turned[:, :half], turned[:, half:width], False)
            if _is_same(rope, table, head_dim):
                return table
    return None


def _widths(rope: Callable[..., mx.array], head_dim: int) -> list[int]:
    for name in ("dims", "dim"):
        width = getattr(rope, name, None)
        if isinstance(width, int) and 0 < width <= head_dim:
            return [width]
    return [head_dim]


def _is_same(
    rope: Callable[..., mx.array], table: RotationTable, head_dim: int
) -> bool:
    """Whether the table turns random heads as the module does."""
    positions = min(8, len(table.cosines))
    shape = (1, 1, positions, head_dim)
    heads = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    theirs = np.array(rope(mx.array(heads), offset=0).astype(mx.float32))[0, 0]
    ours, half = heads[0, 0].copy(), table.cosines.shape[1]
    if table.pairs:
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    else:
        first, second = slice(0, half), slice(half, 2 * half)
    cosines, sines = table.cosines[:positions], table.sines[:positions]
    left, right = heads[0, 0][:, first], heads[0, 0][:, second]
    ours[:, first] = left * cosines - right * sines
    ours[:, second] = left * sines + right * cosines
    return bool(np.allclose(ours, theirs, atol=1e-4))
