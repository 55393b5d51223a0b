"""How well a model predicts a short bundled text: the number that tells what a conversion cost.

Plain forward calls of the module; knows no engine. The text was written for this purpose and is in no training set of
this project's; it is short, so compare numbers of one text only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import resources

import mlx.core as mx
import numpy as np
from mlx import nn

_WINDOW = 512  # tokens a call


def bundled_text() -> str:
    """About 650 words of plain English."""
    return (
        resources.files("rvllm_local.models")
        .joinpath("perplexity.txt")
        .read_text(encoding="utf-8")
    )


def perplexity(module: nn.Module, token_ids: Sequence[int]) -> float:
    """exp of the mean negative log-likelihood (nats a token) over windows of 512 tokens, the first of each unscored."""
    total, count = 0.0, 0
    for start in range(0, len(token_ids) - 1, _WINDOW):
        window = mx.array([token_ids[start : start + _WINDOW]])
        if window.shape[1] < 2:
            break
        logits = module(window)[0, :-1]
        logits = np.array(logits.astype(mx.float32)).astype(np.float64)
        best = logits.max(axis=-1)
        normalizer = best + np.log(np.exp(logits - best[:, None]).sum(axis=-1))
        chosen = logits[np.arange(len(logits)), np.array(window[0, 1:])]
        total += float((normalizer - chosen).sum())
        count += len(chosen)
    if count == 0:
        return math.nan
    mean = total / count
    return math.exp(mean) if mean < math.log(1e300) else math.inf
