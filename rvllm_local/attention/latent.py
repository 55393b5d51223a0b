"""Latent attention: which layers have it, and how a decode call reaches the kernel.

A layer keeps one latent a token, from which the keys and values of all heads are made,
and a rotated part. mlx-lm's definitions absorb the projections of a single token into
its query and its output: `embed_q` and `unembed_out`. Then the latent is key and value
at once, and the scores of the rotated part are added as a mask.
"""

from __future__ import annotations

import inspect

from mlx import nn

LATENT_MARK = "keeps_latents"  # what `absorbed.py` sets in layers and caches
_ABSORBED = {"embed_q", "unembed_out", "update_and_fetch"}


def latent_sizes(model: nn.Module) -> frozenset[tuple[int, int, int]]:
    """Heads, of which there is one, and the sizes of latents and of rotated parts."""
    sizes = set()
    for module in model.modules():
        is_marked = getattr(module, LATENT_MARK, False)
        is_latent = is_marked or _absorbs(type(module))
        if not is_latent:
            continue
        rank = module.kv_lora_rank
        rotated = module.qk_rope_head_dim
        layer_sizes = (1, rank, rotated)
        sizes.add(layer_sizes)
    return frozenset(sizes)


def _absorbs(cls: type) -> bool:
    """True for an attention class that attends to latents in the absorbed form."""
    call = inspect.unwrap(cls.__call__)
    code = getattr(call, "__code__", None)
    if code is None:
        return False
    return _ABSORBED.issubset(code.co_names)
