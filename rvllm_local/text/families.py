"""Which tool call syntax and reasoning tags a model was trained on, read off its template and model type.

A table of facts; it parses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OutputStyle:
    """How a model writes what is not plain text.

    `tool_family` is a name that `parser_for` knows, or None for a model that was not trained to call tools.
    `reasoning_start` and `reasoning_end` are None for a model that does not think aloud. With
    `reasoning_starts_inside`, the template ends its prompt with the start tag. `kept_special` are texts of tokens
    that must reach the parsers as text where the vocabulary counts them as special.
    """

    tool_family: str | None = None
    reasoning_start: str | None = None
    reasoning_end: str | None = None
    reasoning_starts_inside: bool = False
    kept_special: frozenset[str] = frozenset()


def detect(chat_template: str | None, model_type: str) -> OutputStyle:
    """The style of a model whose catalogue entry says nothing; plain text if nothing is recognised."""
    template = chat_template or ""
    family = "hermes" if "<tool_call>" in template else None
    thinks = "</think>" in template
    return OutputStyle(
        tool_family=family,
        reasoning_start="<think>" if thinks else None,
        reasoning_end="</think>" if thinks else None,
        kept_special=frozenset({"<tool_call>", "</tool_call>", "<think>", "</think>"}),
    )
