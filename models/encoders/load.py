"""From a folder to a pooled model in memory: module, weights, pooling, further layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from rvllm_local.errors import (
    DEFINITION_ERRORS,
    ModelFileError,
    UnsupportedModelError,
)
from rvllm_local.models.config_check import check_config
from rvllm_local.models.config_file import (
    context_length,
    read_config,
    read_settings,
    vocab_size,
)
from rvllm_local.models.encoders import bert, modern_bert, nomic_bert
from rvllm_local.models.encoders.activations import activation
from rvllm_local.models.encoders.decoders import BidirectionalGemma, CausalEncoder
from rvllm_local.models.encoders.modern_bert import mean_of
from rvllm_local.models.encoders.setup import ENCODERS, PooledSetup
from rvllm_local.models.leases import take_lease
from rvllm_local.models.locate import ModelFiles
from rvllm_local.models.quantized import quantize_as_stored
from rvllm_local.models.to_float32 import widen_to_float32
from rvllm_local.models.weights import (
    check_finite,
    folder_weights,
    put_weights,
    sanitized,
)

_Weights = dict[str, mx.array]
_RENAMED: Mapping[str, tuple[tuple[str, str], ...]] = {
    "bert": bert.RENAMED,
    "modernbert": modern_bert.RENAMED,
    "nomic_bert": nomic_bert.RENAMED,
}
# What an encoder's own module is called inside of one with a head.
_PREFIXES = ("bert.", "roberta.", "camembert.", "model.", "nomic_bert.")
# Parts of a training head, and counters: they decide nothing here.
_LEFT_OUT = (
    "cls.",
    "lm_head.",
    "decoder.",
    "position_ids",
    "inv_freq",
    "token_type_ids",
)
_SCORING_HEAD = "score.weight"  # of a decoder that scores
_HEADS = ("pooler", "classifier", "classifier_dense", "head", "head_norm")
_ACTIVATIONS = {"Identity": None, "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu"}


@dataclass(frozen=True, slots=True)
class PooledModel:
    """A model ready to run, and what its settings say."""

    module: nn.Module
    setup: PooledSetup
    dense: tuple[Callable[[mx.array], mx.array], ...]
    vocab_size: int
    max_tokens: int
    dimensions: int
    weights_bytes: int
    name: str

    def __call__(
        self,
        tokens: mx.array,
        lengths: mx.array,
        kinds: mx.array,
    ) -> mx.array:
        """Vectors `[rows, dimensions]`, or logits `[rows, labels]`, in float32.

        `tokens` and `kinds` are `[rows, tokens]`, padded behind `lengths`.
        """
        states = self.module(tokens, lengths, kinds)
        if self.setup.kind == "score":
            logits: mx.array = self.module.scores(states, lengths)
            return logits.astype(mx.float32)
        vectors = self._pooled(states.astype(mx.float32), lengths)
        for layer in self.dense:
            vectors = layer(vectors)
        if self.setup.normalizes:
            norms = mx.linalg.norm(vectors, axis=-1, keepdims=True)
            vectors = vectors / mx.maximum(norms, 1e-12)
        return vectors

    def _pooled(self, states: mx.array, lengths: mx.array) -> mx.array:
        if self.setup.pooling == "cls":
            return states[:, 0]
        if self.setup.pooling == "mean":
            return mean_of(states, lengths)
        rows = mx.arange(states.shape[0])
        return states[rows, lengths - 1]


def load_pooled(
    files: ModelFiles, setup: PooledSetup, answer_ids: Sequence[int] = ()
) -> PooledModel:
    """Build the model and load its weights.

    `answer_ids` are the tokens of the setup's answers. Raises `ModelFileError` for damaged files and `UnsupportedModelError` for what cannot
    be served.
    """
    config = pooled_config(files, setup)
    weights = folder_weights(files.path)
    labels = weights.pop(_SCORING_HEAD, None)
    if setup.family in ENCODERS.values():
        module = build_encoder(config, setup)
        target = module
        weights = _renamed(weights, setup, module)
    else:
        module, target, weights = _decoder(files, config, setup, weights)
        quantize_as_stored(target, config, weights)
    put_weights(files.path, target, weights)
    if isinstance(module, CausalEncoder) and setup.kind == "score":
        _add_labels(files, module, labels, answer_ids)
    dense = tuple(_dense(files, folder) for folder in setup.dense)
    if mx.default_device() == mx.Device(mx.cpu):
        widen_to_float32(module)
    module.eval()
    mx.eval(module.parameters())
    check_finite(files.path, module)
    module._lease = take_lease(files.name, files.path, files.cache_dir)
    total = sum(value.nbytes for _, value in tree_flatten(module.parameters()))
    return PooledModel(
        module=module,
        setup=setup,
        dense=dense,
        vocab_size=vocab_size(config),
        max_tokens=longest_input(config, setup),
        dimensions=_dimensions(files, config, setup),
        weights_bytes=total,
        name=files.name,
    )


def pooled_config(files: ModelFiles, setup: PooledSetup) -> dict[str, Any]:
    """The configuration in the words of the definitions here.

    Raises `UnsupportedModelError` for a setting that none of them knows.
    """
    config = read_config(files.path)
    if setup.family == "nomic_bert":
        config = nomic_bert.normal_config(config)
        unknown = nomic_bert.unknown_setting(config)
        if unknown is not None:
            raise UnsupportedModelError(f"{files.name}: {unknown} is not supported")
    position = config.get("position_embedding_type", "absolute")
    if setup.family == "bert" and position != "absolute":
        raise UnsupportedModelError(
            f"{files.name}: position_embedding_type {position!r:.60} is not supported; "
            "absolute is"
        )
    return config


def build_encoder(config: Mapping[str, Any], setup: PooledSetup) -> nn.Module:
    """The module of an encoder, with lazy weights. Raises as `load_pooled` does."""
    check_config(config)
    try:
        module = _built(config, setup)
    except DEFINITION_ERRORS as error:
        raise ModelFileError(
            f"the config does not describe a {config['model_type']} encoder: {error!r:.200}"
        ) from error
    return module


def _built(config: Mapping[str, Any], setup: PooledSetup) -> nn.Module:
    if setup.family == "nomic_bert":
        if setup.kind == "score":
            raise UnsupportedModelError(
                "a nomic_bert model that scores is not supported"
            )
        return nomic_bert.NomicBert(config)
    module: bert.Bert | modern_bert.ModernBert
    if setup.family == "bert":
        module = bert.Bert(config)
    else:
        module = modern_bert.ModernBert(config)
    if setup.kind == "score":
        module.add_classifier(setup.num_labels)
    return module


def longest_input(config: Mapping[str, Any], setup: PooledSetup) -> int:
    """Tokens of the longest text that the model reads."""
    longest = context_length(config)
    if setup.family == "bert":
        longest = bert.Bert.longest(config)
    if setup.max_tokens is None:
        return longest
    return min(longest, setup.max_tokens)


def _renamed(
    weights: _Weights,
    setup: PooledSetup,
    module: nn.Module,
) -> _Weights:
    """An encoder's weights under the names here; those of a training head are left out."""
    renamed = {}
    for name, value in weights.items():
        inner = name
        for prefix in _PREFIXES:
            inner = inner.removeprefix(prefix)
        if inner.startswith(_LEFT_OUT) or inner.endswith(_LEFT_OUT):
            continue
        for old, new in _RENAMED[setup.family]:
            inner = inner.replace(old, new)
        renamed[inner] = value
    if setup.family == "nomic_bert":
        renamed = nomic_bert.NomicBert.split_joined(renamed)
    # A head that is not asked for anything is no part of the module.
    unused = tuple(f"{part}." for part in _HEADS if part not in module)
    return {
        name: value for name, value in renamed.items() if not name.startswith(unused)
    }


def _decoder(
    files: ModelFiles,
    config: dict[str, Any],
    setup: PooledSetup,
    weights: _Weights,
) -> tuple[nn.Module, nn.Module, _Weights]:
    """A decoder, its definition that takes the weights, and these under its names."""
    if not any(name.startswith("model.") for name in weights):
        weights = {f"model.{name}": value for name, value in weights.items()}
    if "lm_head.weight" not in weights:
        config["tie_word_embeddings"] = True  # no head is asked for anything
    module: CausalEncoder | BidirectionalGemma
    if setup.family == "gemma":
        module = BidirectionalGemma(config)
    else:
        module = CausalEncoder(config)
    if not hasattr(module.decoder, "model"):
        raise UnsupportedModelError(
            f"{files.name}: a {config['model_type']} model cannot be pooled: its "
            "definition gives no hidden states"
        )
    return module, module.decoder, sanitized(files.path, module.decoder, weights)


def _add_labels(
    files: ModelFiles,
    module: CausalEncoder,
    labels: mx.array | None,
    answer_ids: Sequence[int],
) -> None:
    """Have a decoder score, by a head of its own or by the words that it answers with."""
    if labels is None and not answer_ids:
        raise ModelFileError(f"{files.path}: the weight {_SCORING_HEAD!r} is missing")
    if labels is None:
        labels = module.head_rows(answer_ids)
    labels = labels.astype(mx.float32)
    mx.eval(labels)
    module.score_by(labels)


def _dense(files: ModelFiles, name: str) -> Callable[[mx.array], mx.array]:
    """A layer behind the pooling."""
    folder = files.path / name
    settings = read_settings(folder / "config.json")
    stated = str(settings.get("activation_function", "Identity"))
    kind = stated.rpartition(".")[2]
    if kind not in _ACTIVATIONS:
        supported = ", ".join(_ACTIVATIONS)
        raise UnsupportedModelError(
            f"{folder}: the activation {kind!r:.60} is not supported; known are {supported}"
        )
    weights = folder_weights(folder)
    if "linear.weight" not in weights:
        raise ModelFileError(f"{folder}: the weight 'linear.weight' is missing")
    matrix = weights["linear.weight"].astype(mx.float32)
    bias = weights.get("linear.bias")
    mx.eval(matrix)
    function = _ACTIVATIONS[kind]

    def layer(vectors: mx.array) -> mx.array:
        vectors = vectors @ matrix.T
        if bias is not None:
            vectors = vectors + bias.astype(mx.float32)
        return vectors if function is None else activation(function)(vectors)

    return layer


def _dimensions(
    files: ModelFiles,
    config: Mapping[str, Any],
    setup: PooledSetup,
) -> int:
    """How many numbers a vector has, or how many labels are scored."""
    if setup.kind == "score":
        return setup.num_labels
    if not setup.dense:
        return int(config["hidden_size"])
    settings = read_settings(files.path / setup.dense[-1] / "config.json")
    width = settings.get("out_features")
    if type(width) is not int or width < 1:
        raise ModelFileError(
            f"{files.path / setup.dense[-1]}: no usable out_features: {width!r:.60}"
        )
    return width
