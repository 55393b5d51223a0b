"""What every dialect of the API turns a request into, and what it gets back to answer with.

Knows neither HTTP nor an engine: the dialects (openai, anthropic, responses) translate
to and from these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rvllm_local.text.tools import Piece
from rvllm_local.types import FinishReason, SamplingParams, TokenLogprob

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A conversation to continue.

    `messages` and `tools` are in OpenAI's chat-completions shape, checked and text
    only. `tool_choice` is "auto", "none", "required" or OpenAI's object that names a
    function. `reasoning_budget` is in
    tokens: None leaves thinking to the model, 0 asks for none. With `is_open_ended`, nothing but the context bounds the
    answer. `response_format` is OpenAI's. With `continues`, the answer goes on from the last message, the assistant's.
    `stated` are the sampling parameters that the caller chose; the model's own are taken
    for others. None: all were chosen. `context` are token ids of an earlier turn, which
    go before the conversation.
    """

    model: str
    messages: tuple[Message, ...]
    params: SamplingParams
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: str | Mapping[str, Any] = "auto"
    parallel_tool_calls: bool = True
    response_format: Mapping[str, Any] | None = None
    reasoning_budget: int | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    is_open_ended: bool = False
    continues: bool = False
    priority: int = 0
    stated: frozenset[str] | None = None
    context: tuple[int, ...] = ()

    @property
    def callable_tools(self) -> tuple[Mapping[str, Any], ...]:
        """The tools that the answer may call."""
        return () if self.tool_choice == "none" else self.tools


@dataclass(frozen=True, slots=True)
class TextCall:
    """Plain texts or token ids to continue, without a template.

    `params.n` choices of each. With `suffix`, the answer is what stands between a
    prompt and it; only some models can. With `parses_special`, special tokens that are
    written in a prompt count as such.
    """

    model: str
    prompts: tuple[str | tuple[int, ...], ...]
    params: SamplingParams
    suffix: str | None = None
    parses_special: bool = True
    response_format: Mapping[str, Any] | None = None
    is_open_ended: bool = False
    priority: int = 0
    stated: frozenset[str] | None = None

    @property
    def callable_tools(self) -> tuple[Mapping[str, Any], ...]:
        """A text calls nothing."""
        return ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one choice.

    `cached_tokens` are part of the prompt's, `reasoning_tokens` and `accepted_drafts`
    of the output's.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    accepted_drafts: int = 0
    rejected_drafts: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds until the first token, waiting included, and from it to the last."""

    prompt_s: float
    output_s: float


@dataclass(frozen=True, slots=True)
class Delta:
    """Something that came for choice `index`: parsed pieces of text, reasoning and tool calls, and log-probabilities."""

    index: int
    pieces: tuple[Piece, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """The last thing that comes for a choice.

    `made_calls`: at least one tool call was completed. `stop_sequence` is the stop
    string that matched. With `error`, the choice failed; `error_parameter` is the field
    it is about, `error_kind` the error's class.
    """

    index: int
    reason: FinishReason
    usage: Usage
    made_calls: bool = False
    stop_sequence: str | None = None
    error: str | None = None
    error_parameter: str | None = None
    error_kind: str | None = None


Outcome = Delta | Ended
