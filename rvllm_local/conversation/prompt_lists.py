"""Plain prompts as Python's callers give them: one or many, text or token ids.

Every function raises `ParameterError` for what is none of these.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence, Set
from typing import Any

from rvllm_local.errors import ParameterError
from rvllm_local.types import SamplingParams

_NOT_A_PROMPT = "a prompt must be text or a list of integer token ids"
Prompt = str | Sequence[int]


def as_prompts(prompts: Any) -> list[Prompt]:
    """One prompt or many: a string and a list of ids are one prompt."""
    if isinstance(prompts, str):
        return [prompts]
    is_listed = hasattr(prompts, "__len__")
    if not is_listed or isinstance(prompts, Mapping | Set | bytes | bytearray):
        raise ParameterError("prompt", f"{_NOT_A_PROMPT}, not {type(prompts).__name__}")
    if len(prompts) == 0 or _is_integer(prompts[0]):
        return [prompts]
    return list(prompts)


def params_for_each(params: Any, num_prompts: int) -> list[SamplingParams]:
    """The sampling parameters of each prompt: one for all, or one each."""
    if params is None:
        params = SamplingParams()
    if isinstance(params, SamplingParams):
        return [params] * num_prompts
    if not isinstance(params, Sequence):
        raise ParameterError(
            "params",
            "params must be SamplingParams or a list of them, "
            f"not {type(params).__name__}",
        )
    if len(params) != num_prompts:
        raise ParameterError(
            "params",
            f"there are {num_prompts} prompts and {len(params)} params; "
            "give one, or one each",
        )
    return [checked_params(each) for each in params]


def adapters_for_each(
    adapter: str | Sequence[str | None] | None, num_prompts: int
) -> list[str | None]:
    """The adapter of each prompt: one for all, or one each."""
    if isinstance(adapter, str) or not isinstance(adapter, Sequence):
        return [checked_adapter(adapter)] * num_prompts
    if len(adapter) != num_prompts:
        raise ParameterError(
            "adapter",
            f"there are {num_prompts} prompts and {len(adapter)} adapters; "
            "give one each",
        )
    return [checked_adapter(each) for each in adapter]


def checked_params(params: Any) -> SamplingParams:
    """`params`, or the defaults for None."""
    if params is None:
        return SamplingParams()
    if not isinstance(params, SamplingParams):
        raise ParameterError(
            "params", f"params must be SamplingParams, not {type(params).__name__}"
        )
    return params


def checked_adapter(adapter: Any) -> str | None:
    """`adapter`, if it is a name or None."""
    if not isinstance(adapter, str | None):
        raise ParameterError(
            "adapter", f"adapter must be a name or None, not {type(adapter).__name__}"
        )
    return adapter


def token_ids_of(prompt: Any) -> list[int]:
    """A prompt of token ids, numpy's integers among them."""
    if not hasattr(prompt, "__iter__") or isinstance(prompt, bytes | bytearray):
        raise ParameterError("prompt", f"{_NOT_A_PROMPT}, not {type(prompt).__name__}")
    token_ids = []
    for token in prompt:
        if not _is_integer(token):
            raise ParameterError("prompt", f"{_NOT_A_PROMPT}; {token!r:.40} is no id")
        token_ids.append(operator.index(token))
    return token_ids


def _is_integer(value: Any) -> bool:
    is_scalar = getattr(value, "ndim", 0) == 0
    return hasattr(value, "__index__") and not isinstance(value, bool) and is_scalar
