"""How well a model predicts a short bundled text, which tells what a conversion cost.

The module is called plainly, without an engine. The text was written for this purpose.
It is short, so only numbers of the same text can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import resources

import mlx.core as mx
import numpy as np
from mlx import nn

_WINDOW = 512  # tokens a call
_LARGEST = 1e300  # a perplexity above it is said to be infinite


def bundled_text() -> str:
    """About 650 words of plain English."""
    folder = resources.files("rvllm_local.models")
    return folder.joinpath("perplexity.txt").read_text(encoding="utf-8")


def perplexity(module: nn.Module, token_ids: Sequence[int]) -> float:
    """exp of the mean negative log-likelihood, in nats a token.

    The text is read in windows of 512 tokens. The first token of each is not scored.
    """
    total = 0.0
    count = 0
    for start in range(0, len(token_ids) - 1, _WINDOW):
        window = token_ids[start : start + _WINDOW]
        scored = len(window) - 1
        if scored < 1:
            break
        total += _negative_log_likelihood(module, window)
        count += scored
    if count == 0:
        return math.nan
    mean = total / count
    if mean < math.log(_LARGEST):
        return math.exp(mean)
    return math.inf


def _negative_log_likelihood(module: nn.Module, window: Sequence[int]) -> float:
    """Of all tokens but the first, summed, in nats."""
    tokens = mx.array([window])
    outputs = module(tokens)
    outputs = outputs[0, :-1].astype(mx.float32)
    logits = np.array(outputs)  # [tokens - 1, vocabulary]
    logits = logits.astype(np.float64)
    best = logits.max(axis=-1, keepdims=True)
    weights = np.exp(logits - best)
    sums = weights.sum(axis=-1)
    normalizer = best[:, 0] + np.log(sums)
    rows = np.arange(len(logits))
    targets = np.array(tokens[0, 1:])
    scored = logits[rows, targets]
    losses = normalizer - scored
    return float(losses.sum())
