"""Turns bfloat16 parameters into float16, for GPUs without instructions for bfloat16."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten


def has_bfloat16(module: nn.Module) -> bool:
    """Whether any parameter is bfloat16. Scales of quantized weights count."""
    for _, parameter in tree_flatten(module.parameters()):
        if parameter.dtype == mx.bfloat16:
            return True
    return False


def narrow_to_float16(module: nn.Module) -> None:
    """Change each bfloat16 parameter in place, one at a time.

    Both forms of all weights never exist at once. What float16 cannot hold becomes
    infinite.
    """
    parameters = tree_flatten(module.parameters())
    while parameters:
        name, parameter = parameters.pop()
        if parameter.dtype != mx.bfloat16:
            continue
        narrow = parameter.astype(mx.float16)
        mx.eval(narrow)
        module.update(tree_unflatten([(name, narrow)]))
