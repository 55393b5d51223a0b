"""What a dialect calls the fields that the project's own errors name."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rvllm_local.server.http.problems import Problem

_OPTIONS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "stop",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "mirostat",
    "tfs_z",
    "typical_p",
)
# By the beginning of a path: a field's own name, and the dialect's.
_NAMES: Mapping[str, Mapping[str, str]] = {
    "/v1/responses": {"response_format": "text.format"},
    "/v1/messages": {
        "response_format": "output_config.format",
        "stop": "stop_sequences",
    },
    "/api/": {
        "response_format": "format",
        "repetition_penalty": "options.repeat_penalty",
        **{name: f"options.{name}" for name in _OPTIONS},
    },
}


def in_dialect(path: str, problem: Problem) -> Problem:
    """The problem with its field in the words of the dialect that a path belongs to."""
    for start, names in _NAMES.items():
        name = names.get(problem.parameter or "")
        if name is not None and path.startswith(start):
            word = re.compile(rf"(?<![\w.]){problem.parameter}(?!\w)")
            problem.message = word.sub(name, problem.message)
            problem.parameter = name
    return problem
