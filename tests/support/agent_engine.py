"""Engines that play a coding agent's model: some calls of one tool, then an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rvllm_local.engine.limits import EngineLimits
from rvllm_local.types import Request
from tests.support.scripted import ScriptedClient

DONE = "All is done."
SUMMARY = "Summary: the tool was called."
COMMAND = "echo hi"  # of a shell; a play that overflows has it print more
_TITLE = "A title"
_PRINTED = "line 0 000000001"  # by the first call of an overflowing play
# What agents say when they ask for a summary.
_ASKS_FOR_SUMMARY = ("summar", "compact", "snapshot")


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

    def text(self, prompt: Sequence[int]) -> str:
        """The text of a prompt."""
        return str(self._tokenizer.decode(prompt, skip_special=False))

    def script(self, request: Request) -> str:
        """The next call of a turn, or the answer that ends it."""
        prompt = self.text(request.prompt_token_ids)
        turn = prompt.rpartition("<|im_start|>user\n")[2]
        num_results = turn.count("<|im_start|>tool\n")
        is_offered = f'"name": "{self._play.tool}"' in prompt
        if not is_offered or num_results >= self._play.num_calls:
            return DONE
        return self._call(dict(self._play.arguments))

    def _call(self, arguments: Mapping[str, Any]) -> str:
        call = {"name": self._play.tool, "arguments": arguments}
        return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"

    def cached(self, request: Request) -> int:
        """The longest prefix that an earlier prompt began with."""
        prompt = request.prompt_token_ids
        longest = max(
            (common_prefix(prompt, other) for other in self.prompts), default=0
        )
        self.prompts.append(prompt)
        return longest


class OverflowingEngine(AgentEngine):
    """Calls the tool, which prints much, until it is asked to summarise the session."""

    num_summaries = 0
    has_gone_on = False  # a prompt held the summary

    def script(self, request: Request) -> str:
        """A call, the summary, or the answer to one who was given the summary."""
        prompt = self.text(request.prompt_token_ids)
        if SUMMARY in prompt:
            self.has_gone_on = True
            return DONE
        turn = prompt.rpartition("<|im_start|>user\n")[2]
        beginning = turn[:3000].lower()
        if any(word in beginning for word in _ASKS_FOR_SUMMARY):
            return self._summary(prompt)
        if f'"name": "{self._play.tool}"' not in prompt:
            return self._summary(prompt)
        return self._call(self._printing(turn.count("<|im_start|>tool\n")))

    def _summary(self, prompt: str) -> str:
        if _PRINTED not in prompt:
            return _TITLE
        self.num_summaries += 1
        return SUMMARY

    def _printing(self, number: int) -> dict[str, Any]:
        """Arguments of a call that prints 24,000 letters, and is no call of before."""
        command = f"seq -f 'line {number} %09.0f' 1 1500"
        arguments = dict(self._play.arguments)
        for name, value in arguments.items():
            if value == COMMAND:
                arguments[name] = command
        return arguments


def common_prefix(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """How many tokens two prompts have in common at their beginnings."""
    for index, (token, other) in enumerate(zip(left, right, strict=False)):
        if token != other:
            return index
    return min(len(left), len(right))
