"""Fields of other servers, which clients send here too, and what they ask for.

A field that changes an answer has a meaning in a dialect's own schema, or is refused.
Here are those that change none, or none at some values. Null asks for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any


class Verdict(Enum):
    """What becomes of a field."""

    NEUTRAL = "neutral"  # it asks for nothing
    HINT = (
        "hint"  # it is about the server's ways and not the answer: left out, and told
    )
    REFUSED = "refused"  # it is known, and this value would change the answer
    UNKNOWN = "unknown"


# By the field that holds the object: the values that ask for nothing. Without values,
# every one does: a label, or the strength of what is off.
_ANY: tuple[Any, ...] = ()
_OFF = (False,)
_ON = (True,)
_ZERO = (0,)
_SAMPLING: Mapping[str, tuple[Any, ...]] = {
    # vLLM and SGLang
    "include_stop_str_in_output": _OFF,
    "skip_special_tokens": _ON,
    "spaces_between_special_tokens": _ANY,
    "use_beam_search": _OFF,
    "length_penalty": (1,),
    "bad_words": ([],),
    "allowed_token_ids": ([],),
    "return_tokens_as_token_ids": _OFF,
    "return_token_ids": _OFF,
    "truncate_prompt_tokens": (None,),
    "logits_processors": ([],),
    "mm_processor_kwargs": ({},),
    "vllm_xargs": ({},),
    "request_id": _ANY,
    "documents": ([],),
    "separate_reasoning": _ON,
    "stream_reasoning": _ON,
    "no_stop_trim": _OFF,
    "lora_path": (None,),
    # llama.cpp and what is built on it
    "cache_prompt": _ANY,
    "typical_p": (1,),
    "top_n_sigma": (-1, 0),
    "mirostat": _ZERO,
    "mirostat_tau": _ANY,
    "mirostat_eta": _ANY,
    "dry_multiplier": _ZERO,
    "dry_base": _ANY,
    "dry_allowed_length": _ANY,
    "dry_penalty_last_n": _ANY,
    "dry_sequence_breakers": _ANY,
    "xtc_probability": _ZERO,
    "xtc_threshold": _ANY,
    "dynatemp_range": _ZERO,
    "dynatemp_exponent": _ANY,
    "tfs_z": (1,),
    "repeat_last_n": (-1,),
    "penalize_nl": _ANY,
    "min_keep": _ZERO,
    "n_keep": _ANY,
    "n_discard": _ZERO,
    "n_probs": _ZERO,
    "n_indent": _ZERO,
    "id_slot": (-1,),
    "t_max_predict_ms": (0, -1),
    "timings_per_token": _OFF,
    "return_progress": _OFF,
    "return_tokens": _OFF,
    "post_sampling_probs": _OFF,
    "reasoning_format": ("auto", "deepseek", "parsed"),
    "parse_tool_calls": _ON,
    "thinking_forced_open": _OFF,
    "lora": ([],),
    "samplers": ([],),
    # gateways and other makers
    "top_a": _ZERO,
    "transforms": ([],),
    "plugins": ([],),
    "models": ([],),
    "trace": ({},),
    "nvext": ({},),
    "safe_prompt": _OFF,
    "data_sources": ([],),
    "search_parameters": ({"mode": "off"},),
    "options": ({},),
    "raw": _OFF,
    "anthropic_version": _ANY,
    "anthropic_beta": _ANY,
    # of OpenAI's chat, sent to the other routes as well
    "store": _OFF,
    "metadata": _ANY,
    "prompt_cache_key": _ANY,
    "safety_identifier": _ANY,
    "service_tier": ("auto", "default"),
}
_MESSAGE: Mapping[str, tuple[Any, ...]] = {
    "id": _ANY,
    "cache_control": _ANY,
    "provider_specific_fields": _ANY,
    "images": ([],),
    "files": ([],),
    "experimental_attachments": ([],),
}
_FIELDS: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "": _SAMPLING,
    "messages": _MESSAGE,
    "tool_calls": {"extra_content": _ANY, "provider_specific_fields": _ANY},
    "tools": {"cache_control": _ANY, "strict": _OFF},
    "stream_options": {"continuous_usage_stats": _OFF},
}
_HINTS = frozenset(
    (
        "draft_model",
        "guided_decoding_backend",
        "keep_alive",
        "num_ctx",
        "provider",
        "route",
        "ttl",
    )
)


def verdict(holder: str, name: str, values: Sequence[Any]) -> Verdict:
    """What becomes of a field with these values, in objects that `holder` holds.

    The body itself is held by "".
    """
    given = [value for value in values if value is not None]
    if not given:
        return Verdict.NEUTRAL
    if holder == "" and name in _HINTS:
        return Verdict.HINT
    neutral = _FIELDS.get(holder, {}).get(name)
    if neutral is None:
        return Verdict.UNKNOWN
    if neutral is _ANY or all(value in neutral for value in given):
        return Verdict.NEUTRAL
    return Verdict.REFUSED


def allowed_values(holder: str, name: str) -> tuple[Any, ...]:
    """The values at which a field that was refused asks for nothing, beside null."""
    values = _FIELDS[holder][name]
    return tuple(value for value in values if value is not None)
