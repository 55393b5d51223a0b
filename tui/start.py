"""What the words of the command line and the standard input ask for."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rvllm_local.errors import ParameterError
from rvllm_local.tui.settings import parse_parameter

# Of a model, a repository at a revision, or a path.
_NAME = re.compile(r"[\w.+~@:/\\-]*[\w/]")


@dataclass(frozen=True, slots=True)
class Request:
    """A model, or None for the server's own, and a prompt, or None to talk."""

    model: str | None
    prompt: str | None


def read_words(words: Sequence[str], models: Collection[str]) -> Request:
    """A model's name, a question, or a name and then a question.

    A single word is a name if it can be one; of several, the first is one where it is in
    `models` or names a repository or file.
    """
    if not words:
        return Request(None, None)
    first = words[0]
    is_name = _NAME.fullmatch(first) is not None
    if len(words) == 1:
        return Request(first, None) if is_name else Request(None, first)
    is_model = first.lower() in models or "/" in first or first.endswith(".gguf")
    if is_name and is_model:
        return Request(first, " ".join(words[1:]))
    return Request(None, " ".join(words))


def with_context(prompt: str, context: str) -> str:
    """The question with what came on standard input behind it."""
    if not context.strip():
        return prompt
    return f"{prompt}\n\n{context.rstrip()}"


def read_settings(pairs: Sequence[str]) -> Mapping[str, Any]:
    """Sampling parameters from NAME=VALUE. Raises `ParameterError`."""
    params = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign:
            raise ParameterError("set", f"--set {pair} must be NAME=VALUE")
        value = parse_parameter(name.strip(), text)
        if value is not None:
            params[name.strip()] = value
    return params
