"""Token counts in the shape of the responses API."""

from __future__ import annotations

from typing import Any

from rvllm_local.conversation.calls import Usage


def usage_object(usage: Usage) -> dict[str, Any]:
    """The counts of one answer."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": 0,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
