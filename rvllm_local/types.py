"""What crosses the layers: requests in, events and completions out.

Plain frozen dataclasses. Their values are checked, so that they can cross to processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from rvllm_local.errors import ParameterError
from rvllm_local.param_values import (
    MAX_INTEGER,
    biases,
    integer,
    number,
    shown,
    stop_strings,
    stop_tokens,
)

MAX_LOGPROBS = 20
MAX_CHOICES = 16
_COLDEST = 1e-6  # below this temperature differences of logits overflow, and only the largest logit has any weight


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


# The bounds of `SamplingParams`.
_INTEGERS = {
    "max_tokens": (0, MAX_INTEGER),
    "top_k": (0, MAX_INTEGER),
    "n": (1, MAX_CHOICES),
    "min_tokens": (0, MAX_INTEGER),
}
_OPTIONAL_INTEGERS = {
    "seed": (-(2**63), 2**64 - 1),
    "logprobs": (0, MAX_LOGPROBS),
    "prompt_logprobs": (0, MAX_LOGPROBS),
}
_NUMBERS = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "repetition_penalty": (0.0, 100.0),
}
_ABOVE_LOW = ("top_p", "repetition_penalty")  # the lower bound is not among them


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when a sequence ends.

    `temperature=0` is greedy. `top_k=0`, `top_p=1`, `min_p=0` and penalties at their neutral
    value switch a step off. `seed=None` draws a fresh seed per request; a given seed makes the
    request repeatable whatever else is in the batch. `logprobs=k` returns the chosen token's
    log-probability and the k most likely alternatives, the chosen token always among them.
    `prompt_logprobs=k` returns the same of each prompt token; then `max_tokens` may be 0, and
    the prompt is scored only. `logit_bias` maps token ids to additive biases. A token of
    `stop_token_ids` ends the sequence, and is no part of its text. The first `min_tokens`
    tokens are no end tokens, and no stop string is looked for in them. Raises
    `ParameterError` for any value out of its range.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    n: int = 1
    logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    ignore_eos: bool = False
    prompt_logprobs: int | None = None
    stop_token_ids: Sequence[int] = ()
    min_tokens: int = 0

    def __post_init__(self) -> None:
        """Make all values plain numbers, texts and dicts: they cross to processes."""
        for name, (low, high) in _INTEGERS.items():
            self._set(name, integer(name, getattr(self, name), low, high))
        for name, (low, high) in _OPTIONAL_INTEGERS.items():
            if getattr(self, name) is not None:
                self._set(name, integer(name, getattr(self, name), low, high))
        for name, (least, most) in _NUMBERS.items():
            is_open = name in _ABOVE_LOW
            value = number(name, getattr(self, name), least, most, open_low=is_open)
            self._set(name, value)
        self._set("stop", stop_strings(self.stop))
        self._set("stop_token_ids", stop_tokens(self.stop_token_ids))
        self._set("logit_bias", biases(self.logit_bias))
        # Only a prompt whose own tokens are asked about may be answered by nothing.
        fewest = 1 if self.prompt_logprobs is None else 0
        integer("max_tokens", self.max_tokens, fewest, MAX_INTEGER)
        if self.min_tokens > self.max_tokens:
            raise ParameterError(
                "min_tokens",
                f"min_tokens is {self.min_tokens}, more than the {self.max_tokens} of "
                "max_tokens",
            )
        if not isinstance(self.ignore_eos, bool):
            raise ParameterError(
                "ignore_eos",
                f"ignore_eos must be a bool, not {shown(self.ignore_eos)}",
            )

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings as a tuple, whatever form they were given in."""
        return tuple(self.stop)

    @property
    def is_greedy(self) -> bool:
        """True when no random number is needed."""
        return self.temperature < _COLDEST

    @property
    def has_filters(self) -> bool:
        """True when only some tokens may be drawn."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def has_penalties(self) -> bool:
        """True when earlier tokens change the logits, so the host must know them before the next step."""
        return bool(
            self.presence_penalty
            or self.frequency_penalty
            or self.repetition_penalty != 1.0
        )


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to generate: token ids in, tokens out. `n > 1` becomes several requests."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    seed: int  # 64 bits, always resolved: SamplingParams.seed or a fresh draw
    index: int = 0  # which of the n choices this is
    priority: int = 0  # higher runs sooner
    grammar: str | None = None  # an llguidance grammar that the output must follow
    kept_special: tuple[
        str, ...
    ] = ()  # special tokens that come as text, for a parser that needs its tags
    adapter: str | None = (
        None  # the LoRA adapter to answer with; None is the model as it is
    )
    # Leading tokens with which other conversations begin as well; 0 for unknown.
    num_shared: int = 0
    # The text is to be read alone, by a model that is pooled; where the second text of a
    # pair begins.
    is_read: bool = False
    second_at: int = 0
    # Seconds between the tokens of streams that run beside such a text; 0 for none.
    beside_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log-probability (natural log) and the most likely alternatives.

    They come best first. A token that is not among the best stands behind them.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


# Not frozen, though nobody changes one: each token has its own, and freezing is four fifths of making it.
@dataclass(slots=True)
class StreamEvent:
    """What a stream yields: new text (possibly empty), the tokens behind it, and the end if it came.

    `prompt_logprobs` are of the prompt's next tokens: a prompt that is scored comes piece by piece before the
    first token of the first choice, and the prompt's first token has None. `stop_string` is the one that ended it. `error_parameter` names the field of the request that an error is about,
    `error_kind` the error's class in `errors`; None means `EngineError`. `vector` are the little-endian float32
    numbers of a text that was read.
    `error_kind` the error's class in `errors`; None means `EngineError`. The last event of a choice has
    `accepted_drafts` and `rejected_drafts`: guessed tokens that were right, which are among its tokens, and wrong.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    index: int = 0
    cached_tokens: int = 0
    error: str | None = None
    stop_string: str | None = None
    error_parameter: str | None = None
    error_kind: str | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    vector: bytes | None = None
    accepted_drafts: int = 0
    rejected_drafts: int = 0


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model made; `arguments` is the JSON text of an object."""

    call_id: str
    name: str
    arguments: str


@dataclass(slots=True)
class ChatEvent(StreamEvent):
    """What a chat's stream yields: `text` is the answer's, `reasoning` the thinking's.

    `tool_calls` are those that this event completed. Tags of thoughts and calls are in
    none of them. The last event of a choice has in `left_out` the parts of schemas that
    were not enforced.
    """

    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    left_out: tuple[str, ...] = ()


EventSink = Callable[[StreamEvent], None]


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished answer. `cached_tokens` counts prompt tokens whose KV was reused.

    Of a chat, `text` is what the user reads; `reasoning` and `tool_calls` are split off.
    A call that was cut off or cannot be read is in none of them.
    `prompt_logprobs`, of the first choice, has an entry for each prompt token; the
    first token's is None. `left_out` names the parts of a chat's schemas that were not
    enforced.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None = None
    cached_tokens: int = 0
    index: int = 0
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RequestStatus:
    """One open choice as the engine sees it. `state` is waiting, prefill, decode or swapped; times in seconds."""

    request_id: str
    index: int
    state: str
    priority: int
    prompt_tokens: int
    computed_tokens: int  # tokens whose KV is in the arena
    output_tokens: int
    cached_tokens: int
    blocks: int
    age_s: float


@dataclass(frozen=True, slots=True)
class RequestReport:
    """What happened to one finished choice: where its time went and where its tokens came from. Times in seconds."""

    request_id: str
    index: int
    finish_reason: FinishReason
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int  # prompt tokens whose KV was reused; of these `cached_from_disk` were read from disk
    cached_from_disk: int
    miss: str | None  # why the reuse ended where it did
    prefill_chunks: int
    preemptions: int
    blocks_peak: int
    queue_s: float
    ttft_s: float | None
    total_s: float
    itl_p50_s: float | None
    itl_p95_s: float | None
    itl_p99_s: float | None
    itl_max_s: float | None
    drafting: str = "off"  # what guessed tokens, or why nothing did
    accepted_drafts: int = 0
    rejected_drafts: int = 0


@dataclass(frozen=True, slots=True)
class BlockCounts:
    """Blocks of all arenas: `used` are held by open requests, `shared` of these by several; `cached` are idle but
    keep a prefix; `spilled` are on disk.
    """

    total: int
    free: int
    used: int
    shared: int
    cached: int
    spilled: int


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """The engine at work, for people: `block_map` has one letter a block (f free, u used, s shared, c cached)."""

    blocks: BlockCounts
    block_map: str
    requests: tuple[RequestStatus, ...]
    stats: Mapping[str, int | float | str]
    memory: Mapping[str, int]  # bytes: the memory plan's lines
