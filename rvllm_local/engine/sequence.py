"""One sequence in the engine: its tokens, how many of them have KV, its blocks, its output side and its timings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rvllm_local.engine.detokenizer import StreamingDetokenizer
from rvllm_local.engine.prompt_scores import PromptScores
from rvllm_local.engine.sampling.token_history import TokenHistory
from rvllm_local.memory.prefix import KeyChain
from rvllm_local.memory.swap import Swapped
from rvllm_local.memory.tables import SequenceTables
from rvllm_local.types import EventSink, Request

if TYPE_CHECKING:
    from rvllm_local.text.grammar.matcher import Matcher


@dataclass(slots=True)
class SequenceTimings:
    """What is remembered of a sequence for its report. Times are of the monotonic clock, in seconds."""

    arrived: float
    admitted: float | None = None
    token_times: list[float] = field(default_factory=list)
    prefill_chunks: int = 0
    preemptions: int = 0
    blocks_peak: int = 0
    cached_tokens: int = 0
    cached_from_disk: int = 0
    miss: str | None = None


@dataclass(slots=True, eq=False)
class Sequence:
    """`token_ids` is prompt plus output, as far as the host knows it; the first `num_computed` have KV.

    `in_flight` counts the decode steps that were launched and not yet read: their tokens are still to come, and their
    KV counts as computed. A sequence decodes when all but its last token are computed; before that it prefills.
    """

    request: Request
    max_total: int  # tokens, prompt and output, at which it ends for length
    tables: SequenceTables
    detokenizer: StreamingDetokenizer
    sink: EventSink
    keys: KeyChain
    timings: SequenceTimings
    order: int = 0  # of arrival
    adapter: int = 0  # the number of its LoRA adapter, 0 for none
    token_ids: list[int] = field(init=False)
    num_prompt: int = field(init=False)
    needs_host: bool = field(
        init=False
    )  # its next token depends on its last in a way that only the host can work out
    is_plain_greedy: bool = field(init=False)  # it only wants the largest logit
    num_computed: int = 0
    num_published: int = 0  # full blocks that were offered to the prefix index
    num_prefilled: int = (
        0  # leading tokens whose KV comes from prefill or a cached prefix
    )
    in_flight: int = 0
    pause_at: int = 0  # a position at which its prefill pauses, so that a snapshot can be taken there
    capacity: int = 0  # tokens that its blocks can hold
    ended: bool = False
    matcher: Matcher | None = None  # follows the output through its grammar
    allowed: npt.NDArray[np.int32] | None = (
        None  # what the grammar allows next, one bit a token
    )
    token_history: TokenHistory | None = (
        None  # what biases and earlier tokens do to its logits
    )
    overtaken: int = 0
    restoring: bool = False  # more of its prefix is being read from disk
    scores: PromptScores | None = None  # its prompt's log-probabilities, if wanted
    swapped: tuple[tuple[Swapped, ...], ...] | None = (
        None  # its blocks by group, while it is preempted
    )

    def __post_init__(self) -> None:
        params = self.request.params
        self.token_ids = list(self.request.prompt_token_ids)
        self.num_prompt = len(self.token_ids)
        # The choices of a request share their prompt: the first one scores it.
        if params.prompt_logprobs is not None and self.request.index == 0:
            prompt = self.request.prompt_token_ids
            self.scores = PromptScores(prompt, params.prompt_logprobs)
        self.needs_host = params.has_penalties or self.request.grammar is not None
        edits = bool(params.logit_bias) or params.logprobs is not None
        self.is_plain_greedy = params.is_greedy and not self.needs_host and not edits

    @property
    def rank(self) -> tuple[int, int]:
        """Who goes first: the higher priority, then the earlier arrival."""
        return (-self.request.priority, self.order)

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt :]

    @property
    def num_to_prefill(self) -> int:
        """Tokens to compute before the last one, which is computed by a decode step."""
        return len(self.token_ids) + self.in_flight - 1 - self.num_computed

    @property
    def is_decoding(self) -> bool:
        """Nothing is left to prefill; written out here and below, as steps ask for each row several times."""
        return len(self.token_ids) + self.in_flight == self.num_computed + 1

    @property
    def wants_decode(self) -> bool:
        """Decoding, and not already at its last token once the launched steps are in."""
        return (
            self.num_computed + 1
            == len(self.token_ids) + self.in_flight
            < self.max_total
        )
