"""What the stand-ins for a definition's attention end with."""

from __future__ import annotations

from typing import Any

import mlx.core as mx


def project_heads(layer: Any, attended: mx.array) -> mx.array:
    """The layer's output of what its heads attended to.

    `[rows, heads, tokens, dim]` in, `[rows, tokens, hidden]` out.
    """
    by_token = attended.transpose(0, 2, 1, 3)
    joined = by_token.reshape(*by_token.shape[:2], -1)
    output: mx.array = layer.o_proj(joined)
    return output
