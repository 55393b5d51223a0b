"""An engine that plays a coding agent's model: some calls of one tool, then an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rvllm_local.engine.limits import EngineLimits
from rvllm_local.types import Request
from tests.support.scripted import ScriptedClient

DONE = "All is done."


@dataclass(frozen=True)
class Play:
    """Calls `tool` with `arguments` until its results were seen `num_calls` times.

    Only where the prompt offers the tool; a request without it gets the answer.
    """

    tool: str
    arguments: Mapping[str, Any]
    num_calls: int = 3


class AgentEngine(ScriptedClient):
    """Counts the results in a prompt; remembers prompts, to say how much was cached."""

    def __init__(self, tokenizer: Any, play: Play, context_length: int) -> None:
        super().__init__(tokenizer)
        self.limits = EngineLimits(384, context_length, context_length, (0,), 12)
        self.prompts: list[tuple[int, ...]] = []
        self._play = play

    def script(self, request: Request) -> str:
        """The next call of a turn, or the answer that ends it."""
        prompt = self._tokenizer.decode(request.prompt_token_ids, skip_special=False)
        turn = prompt.rpartition("<|im_start|>user\n")[2]
        num_results = turn.count("<|im_start|>tool\n")
        is_offered = f'"name": "{self._play.tool}"' in prompt
        if not is_offered or num_results >= self._play.num_calls:
            return DONE
        call = {"name": self._play.tool, "arguments": dict(self._play.arguments)}
        return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"

    def cached(self, request: Request) -> int:
        """The longest prefix that an earlier prompt began with."""
        prompt = request.prompt_token_ids
        longest = max(
            (common_prefix(prompt, other) for other in self.prompts), default=0
        )
        self.prompts.append(prompt)
        return longest


def common_prefix(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """How many tokens two prompts have in common at their beginnings."""
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return min(len(left), len(right))
