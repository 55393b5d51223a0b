"""The parts of a reply of Ollama's API as they are put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class ReplyParts:
    """Text, thoughts and calls of one reply, in the order of their coming."""

    text: list[str] = field(default_factory=list)
    thinking: list[str] = field(default_factory=list)
    calls: list[Any] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    def add(self, fields: Mapping[str, Any]) -> None:
        """What one piece adds."""
        if "content" in fields:
            self.text.append(fields["content"])
        if "thinking" in fields:
            self.thinking.append(fields["thinking"])
        self.calls.extend(fields.get("tool_calls", ()))

    def whole(self) -> dict[str, Any]:
        """All of it."""
        return {
            "content": "".join(self.text),
            "thinking": "".join(self.thinking),
            "tool_calls": self.calls,
            "logprobs": self.logprobs,
        }
