"""Heads for multi-token prediction, which the weights of some families have.

A head guesses the token after the next: it joins the embedding of a token with the state
that the model ended with at the token before, and a decoder layer and the model's own
output follow. mlx-lm's definitions leave it out. Here it is a model of one layer of the
same family, whose embedding is that joint: so it is loaded, planned, checked and run as
any model. Embedding and output are the larger model's arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.models.config_file import read_config
from rvllm_local.models.describe import ModelDescription, describe_config
from rvllm_local.models.families import build_model
from rvllm_local.models.head_forms import (
    head_config,
    norms_as_multiplied,
    stored_head,
)
from rvllm_local.models.loader import LoadedModel
from rvllm_local.models.locate import ModelFiles
from rvllm_local.models.quantized import as_mlx_stores, quantize_as_stored
from rvllm_local.models.sharding import parameter_bytes
from rvllm_local.models.to_float32 import widen_to_float32
from rvllm_local.models.weights import (
    check_finite,
    folder_weights,
    put_weights,
    sanitized,
)


class EndStates:
    """What a model's last norm returned, call by call, once that is wanted."""

    def __init__(self) -> None:
        self.is_wanted = False
        self.calls: list[mx.array] = []

    def take(self, states: mx.array) -> None:
        """A call ended with these."""
        if self.is_wanted:
            self.calls.append(states)

    def forget(self) -> None:
        """Other calls begin."""
        self.calls.clear()

    def of_rows(self, first: int, count: int) -> mx.array:
        """`[count, hidden]` of some rows of a step with one token a row."""
        rows = mx.concatenate([call[:, -1] for call in self.calls])
        return rows[first : first + count]

    def of_chunk(self, count: int) -> mx.array:
        """`[count, hidden]` of a prompt's chunk, whose calls followed each other."""
        return mx.concatenate([call[0] for call in self.calls])[:count]


class WatchedNorm(nn.Module):  # type: ignore[misc]
    """A model's last norm, of which each result is kept."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.inner = norm
        self.ends = EndStates()

    def __call__(self, states: mx.array) -> mx.array:
        ended: mx.array = self.inner(states)
        self.ends.take(ended)
        return ended


class Joint(nn.Module):  # type: ignore[misc]
    """Where a head begins: the embeddings of tokens, joined with given states."""

    def __init__(self, embedding: nn.Module, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.enorm = nn.RMSNorm(hidden_size, eps=eps)
        self.hnorm = nn.RMSNorm(hidden_size, eps=eps)
        self.eh_proj = nn.Linear(2 * hidden_size, hidden_size, bias=False)
        # No parameters of the head: they are counted with the model.
        self._embedding = embedding
        self._states: mx.array | None = None

    def give(self, states: mx.array) -> None:
        """The states for the next call, `[tokens, hidden]`; where none are, zeros."""
        self._states = states

    def __call__(self, tokens: mx.array) -> mx.array:
        embedded = self.enorm(self._embedding(tokens))
        states = self._taken(embedded)
        joined = mx.concatenate([embedded, self.hnorm(states)], axis=-1)
        projected: mx.array = self.eh_proj(joined)
        return projected

    def as_linear(self, states: mx.array) -> mx.array:
        """The logits of a model whose output is its embedding."""
        logits: mx.array = self._embedding.as_linear(states)
        return logits

    def share(self, embedding: nn.Module) -> None:
        """From now on tokens are looked up in this one."""
        self._embedding = embedding

    def _taken(self, like: mx.array) -> mx.array:
        """The given states in the shape of a call, whose last tokens may be padding."""
        given = self._states
        self._states = None
        if given is None:
            return mx.zeros_like(like)
        rows, length, width = like.shape
        padding = mx.zeros((rows * length - given.shape[0], width), dtype=like.dtype)
        padded = mx.concatenate([given.astype(like.dtype), padding])
        return padded.reshape(like.shape)


def watch_end(module: nn.Module) -> EndStates:
    """Have a model's states at its end kept. Safe to call again."""
    inner = module.model
    if not isinstance(inner.norm, WatchedNorm):
        inner.norm = WatchedNorm(inner.norm)
    ends: EndStates = inner.norm.ends
    return ends


def is_head(module: nn.Module) -> bool:
    """True for a module that `build_head` made."""
    inner = getattr(module, "model", None)
    return isinstance(getattr(inner, "embed_tokens", None), Joint)


def build_head(config: Mapping[str, Any]) -> nn.Module:
    """The module of a model's head, without weights."""
    head = build_model(head_config(config))
    norm = head.model.norm
    hidden_size = norm.weight.shape[0]
    embedding = nn.Embedding(1, hidden_size)
    head.model.embed_tokens = Joint(embedding, hidden_size, norm.eps)
    if hasattr(head.model, "ssm_idx"):
        head.model.ssm_idx = None  # no layer of it is recurrent, and none has its mask
    return head


def describe_head(config: Mapping[str, Any]) -> ModelDescription:
    """What a model's head will take, from the model's configuration."""
    description = describe_config(head_config(config), "mtp", 0, bits=None)
    head = build_head(config)
    head.set_dtype(description.module.model.norm.weight.dtype)
    shared = 0
    if "lm_head" in _text_part(head):
        shared = _text_part(head).lm_head.weight.nbytes
    return dataclasses.replace(
        description, module=head, weights_bytes=parameter_bytes(head) - shared
    )


def load_head(files: ModelFiles, loaded: LoadedModel) -> LoadedModel:
    """A loaded model's head. Its embedding and its output are the model's.

    Raises `UnsupportedModelError` if there is none, `ModelFileError` for bad weights.
    """
    if files.kind != "folder":
        raise UnsupportedModelError(
            f"a {files.kind} has no head that predicts several tokens; take a folder "
            "of safetensors as it was published"
        )
    config = read_config(files.path)
    head = build_head(config)
    if "lm_head" in _text_part(head):
        _text_part(head).lm_head = nn.Identity()
    _put_stored(files.path, head, config)
    if mx.default_device() == mx.Device(mx.cpu):
        widen_to_float32(head)
    head.eval()
    mx.eval(head.parameters())
    check_finite(files.path, head)
    weights_bytes = parameter_bytes(head)
    share_ends(head, loaded.module)
    return dataclasses.replace(
        loaded,
        module=head,
        config=head_config(config),
        weights_bytes=weights_bytes,
        fingerprint=f"{loaded.fingerprint}|head",
        packs=False,
        notes=(),
    )


def _put_stored(folder: Path, head: nn.Module, config: Mapping[str, Any]) -> None:
    """Give the head its weights, which stand beside the model's."""
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    of_folder = as_mlx_stores(config, folder_weights(folder), as_floats=on_cpu)
    stored = stored_head(config, of_folder)
    if not stored:
        raise UnsupportedModelError(
            f"{folder}: the weights of the head that predicts several tokens are "
            "not there; whoever converted the model has left them out"
        )
    weights = sanitized(folder, head, dict(stored))
    for name, value in norms_as_multiplied(config, stored, of_folder).items():
        for full_name in (name, f"language_model.{name}"):
            if full_name in weights:
                weights[full_name] = value
    quantize_as_stored(head, config, weights)
    put_weights(folder, head, weights)


def share_ends(head: nn.Module, module: nn.Module) -> None:
    """Give a head the embedding and the output of its model, as they are now."""
    head.model.embed_tokens.share(module.model.embed_tokens)
    if "lm_head" in _text_part(head):
        _text_part(head).lm_head = _text_part(module).lm_head


def _text_part(module: nn.Module) -> nn.Module:
    """The part of a module that has the output."""
    return getattr(module, "language_model", module)
