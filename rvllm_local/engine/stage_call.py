"""Calls one rank's layers of a pipeline, and does within the call what others wait for."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx import nn


class StageCall:
    """Stands for the module of a model of which other ranks have the other layers.

    Where graphs of several calls were run together, MLX could receive for the second
    one what was sent for the first. So each call is over when it returns. A prompt's
    logits are left out on all ranks: the hidden states were sent on, and no more.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def modules(self) -> list[nn.Module]:
        """Those of the model: what looks for kinds of layers finds its own."""
        modules: list[nn.Module] = self._module.modules()
        return modules

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        logits: mx.array = self._module(tokens, cache=cache)
        if tokens.shape[1] == 1:
            mx.eval(logits)
        else:
            mx.eval(_kept_last(cache[-1]))
        return logits


def _kept_last(cache: Any) -> mx.array:
    """What a definition has made depend on the sending of its hidden states."""
    while hasattr(cache, "caches"):
        cache = cache[0]
    kept: mx.array = cache.keys if hasattr(cache, "keys") else cache[0]
    return kept
