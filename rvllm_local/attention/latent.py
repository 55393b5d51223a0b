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
_ABSORBED = ("embed_q", "unembed_out", "update_and_fetch")


def latent_sizes(model: nn.Module) -> frozenset[tuple[int, int, int]]:
    """Heads, of which there is one, and the sizes of latents and of rotated parts."""
    sizes = set()
    for module in model.modules():
        if not (_absorbs(type(module)) or getattr(module, LATENT_MARK, False)):
            continue
        rank = module.kv_lora_rank
        rotated = module.qk_rope_head_dim
        sizes.add((1, rank, rotated))
    return frozenset(sizes)


def _absorbs(cls: type) -> bool:
    """True for an attention class that attends to latents in the absorbed form."""
    call = inspect.unwrap(cls.__call__)
    code = getattr(call, "__code__", None)
    if code is None:
        return False
    return set(_ABSORBED).issubset(code.co_names)
