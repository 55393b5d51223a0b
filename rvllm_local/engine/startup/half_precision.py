"""Decides whether a model computes in float16, and watches for overflow.

GPUs before the M3 have no instructions for bfloat16. float16 ends at 65504, so that a
model's largest activations are looked at before its weights are changed, and its logits
are held against those of before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from rvllm_local.attention.probe import plain_caches
from rvllm_local.engine.startup.selfcheck import check_prompts, distance
from rvllm_local.errors import UnsupportedModelError
from rvllm_local.machine import is_on_cpu, prefers_float16
from rvllm_local.models.loader import LoadedModel
from rvllm_local.models.replaced_calls import replace_call
from rvllm_local.models.to_float16 import has_bfloat16, narrow_to_float16
from rvllm_local.options import EngineOptions

logger = logging.getLogger(__name__)

_LARGEST = 65504.0  # of float16
_HEADROOM = 8  # real texts reach further than those of the check
_TOLERANCE = 1e-1  # share of the largest logit, as between two runs in bfloat16


def wants_float16(module: nn.Module, options: EngineOptions) -> bool:
    """Whether bfloat16 weights should become float16 here.

    By itself only where a check can watch for overflow.
    """
    if is_on_cpu() or not has_bfloat16(module):
        return False
    if options.dtype == "auto":
        return options.self_check and prefers_float16()
    return options.dtype == "float16"


def in_float16(
    loaded: LoadedModel,
    options: EngineOptions,
    load_again: Callable[[], LoadedModel],
) -> LoadedModel:
    """The model in float16 if that is wanted and holds its numbers.

    Otherwise as it is stored. `load_again` is called if the change turned out to be
    wrong. Raises `UnsupportedModelError` if float16 was asked for by name and does not
    serve.
    """
    if not wants_float16(loaded.module, options):
        return loaded
    reason = change_to_float16(
        loaded.module, loaded.vocab_size, is_checked=options.self_check
    )
    if reason is None:
        logger.info("weights of bfloat16 are computed in float16")
        return dataclasses.replace(loaded, fingerprint=loaded.fingerprint + "|float16")
    if options.dtype == "float16":
        raise UnsupportedModelError(
            f'dtype cannot be "float16" for this model: {reason}; "stored" keeps bfloat16'
        )
    logger.info("weights stay bfloat16: %s", reason)
    return load_again()


def change_to_float16(
    module: nn.Module, vocab_size: int, *, is_checked: bool = True
) -> str | None:
    """Change the parameters. Returns why the result is of no use, or None."""
    if not is_checked:
        narrow_to_float16(module)
        return _infinite_parameter(module)
    prompts = check_prompts(vocab_size)
    with _watched(module) as peaks:
        expected = _logits(module, prompts)
    largest = float(mx.max(mx.stack(peaks)))
    if not largest * _HEADROOM <= _LARGEST:
        return (
            f"its activations reach {largest:.0f}, and float16 ends at {_LARGEST:.0f}"
        )
    narrow_to_float16(module)
    reason = _infinite_parameter(module)
    if reason is not None:
        return reason
    return distance(_logits(module, prompts), expected, _TOLERANCE)


def _infinite_parameter(module: nn.Module) -> str | None:
    for name, parameter in tree_flatten(module.parameters()):
        if parameter.dtype != mx.float16:
            continue
        if not bool(mx.all(mx.isfinite(parameter)).item()):
            return f"{name} has numbers beyond {_LARGEST:.0f}"
    return None


def _logits(module: nn.Module, prompts: Sequence[list[int]]) -> list[mx.array]:
    """All logits of each prompt, in float32."""
    computed = []
    for prompt in prompts:
        logits = module(mx.array([prompt]), cache=plain_caches(module))
        logits = logits[0].astype(mx.float32)
        mx.eval(logits)
        computed.append(logits)
    return computed


@contextlib.contextmanager
def _watched(module: nn.Module) -> Iterator[list[mx.array]]:
    """While it is entered, the largest number that each part's call returns is noted."""
    peaks: list[mx.array] = []
    parts = {}
    for _, part in module.named_modules():
        if part is not module and callable(part):
            parts[id(part)] = part
    kinds = {key: type(part) for key, part in parts.items()}
    for key, part in parts.items():
        replace_call(part, _noting(kinds[key], peaks))
    try:
        yield peaks
    finally:
        for key, part in parts.items():
            part.__class__ = kinds[key]


def _noting(kind: type, peaks: list[mx.array]) -> Callable[..., Any]:
    compute: Callable[..., Any] = kind.__call__

    def call(*arguments: Any, **named: Any) -> Any:
        output = compute(*arguments, **named)
        if isinstance(output, mx.array) and mx.issubdtype(output.dtype, mx.floating):
            peaks.append(mx.max(mx.abs(output)).astype(mx.float32))
        return output

    return call
