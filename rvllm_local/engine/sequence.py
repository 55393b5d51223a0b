"""One sequence in the engine: its tokens and blocks, its output side and its timings."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rvllm_local.engine.detokenizer import StreamingDetokenizer
from rvllm_local.engine.prompt_scores import PromptScores
from rvllm_local.engine.sampling.end_mask import mask_without_ends
from rvllm_local.engine.sampling.token_history import TokenHistory
from rvllm_local.engine.speculation.speculator import RowDrafts
from rvllm_local.memory.prefix import KeyChain
from rvllm_local.memory.state_record import StateForm
from rvllm_local.memory.swap import Swapped
from rvllm_local.memory.tables import SequenceTables
from rvllm_local.types import EventSink, Request

if TYPE_CHECKING:
    from rvllm_local.text.grammar.matcher import Matcher


# Waiting so long counts as one point of priority, so that everybody is served: a
# request of priority -100 goes before fresh ones of 100 after less than seven minutes.
_SECONDS_A_POINT = 2.0


@dataclass(frozen=True, slots=True)
class SwappedState:
    """Where a preempted sequence's recurrent state is, and its form."""

    record: Swapped
    form: StateForm


@dataclass(slots=True)
class SequenceTimings:
    """Notes on a sequence for its report. Times are monotonic seconds."""

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
    """`token_ids` is prompt plus output, as far as the host knows it.

    The first `num_computed` tokens have KV. `in_flight` counts the decode steps that
    were launched and not yet read: their tokens are still to come, and their KV counts
    as computed. A sequence decodes when all but its last token are computed; before
    that it prefills.

    max_total: tokens, prompt and output, at which it ends for length.
    order: the number of its arrival.
    adapter: the number of its LoRA adapter, 0 for none.
    rank: who goes first, the smallest. It never changes, since all who wait gain alike.
    needs_host: only the host can work out its next token from its last.
    is_plain_greedy: it only wants the largest logit.
    num_published: full blocks that were offered to the prefix index.
    num_prefilled: leading tokens whose KV comes from prefill or a cached prefix.
    pauses: positions at which its prefill pauses for a snapshot, in order.
    answer_states: keys of the snapshots of its answer that are kept, in order.
    capacity: tokens that its blocks can hold.
    matcher: follows the output through its grammar.
    allowed: what the grammar allows next, one bit a token.
    without_ends: all tokens but its ends, if it may not end at once.
    allowed_ahead: as `allowed`, after each drafted token.
    drafts: its guessed tokens; None where none are guessed.
    token_history: what biases and earlier tokens do to its logits.
    scores: its prompt's log-probabilities, if they are wanted.
    overtaken: how many requests passed it while it waited for blocks.
    restoring: more of its prefix is being read from disk.
    restore: the restoration of a prefix with windows, while it goes on.
    swapped: its blocks by group, while it is preempted.
    swapped_state: its recurrent state, while it is preempted.
    """

    request: Request
    max_total: int
    tables: SequenceTables
    detokenizer: StreamingDetokenizer
    sink: EventSink
    keys: KeyChain
    timings: SequenceTimings
    order: int = 0
    adapter: int = 0
    rank: tuple[float, int] = field(init=False)
    token_ids: list[int] = field(init=False)
    num_prompt: int = field(init=False)
    needs_host: bool = field(init=False)
    is_plain_greedy: bool = field(init=False)
    num_computed: int = 0
    num_published: int = 0
    num_prefilled: int = 0
    in_flight: int = 0
    pauses: tuple[int, ...] = ()
    capacity: int = 0
    ended: bool = False
    matcher: Matcher | None = None
    allowed: npt.NDArray[np.int32] | None = None
    without_ends: npt.NDArray[np.int32] | None = None
    allowed_ahead: list[npt.NDArray[np.int32]] = field(default_factory=list)
    drafts: RowDrafts | None = None
    token_history: TokenHistory | None = None
    scores: PromptScores | None = None
    overtaken: int = 0
    restoring: bool = False
    restore: Iterator[None] | None = None
    swapped: tuple[tuple[Swapped, ...], ...] | None = None
    swapped_state: SwappedState | None = None
    answer_states: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        request = self.request
        params = request.params
        prompt = request.prompt_token_ids
        points = request.priority - self.timings.arrived / _SECONDS_A_POINT
        self.rank = (-points, self.order)
        self.token_ids = list(prompt)
        self.num_prompt = len(prompt)
        # The choices of a request share their prompt: the first one scores it.
        if params.prompt_logprobs is not None and request.index == 0:
            self.scores = PromptScores(prompt, params.prompt_logprobs)
        self.needs_host = params.has_penalties or request.grammar is not None
        needs_logits = bool(params.logit_bias) or params.logprobs is not None
        is_plain = not (self.needs_host or needs_logits or params.min_tokens)
        self.is_plain_greedy = params.is_greedy and is_plain

    def prepare_sampling(self, vocab_size: int, eos_token_ids: Collection[int]) -> None:
        """Work out what its parameters do to its logits."""
        params = self.request.params
        self.token_history = TokenHistory.of(
            params, self.request.prompt_token_ids, vocab_size
        )
        self.without_ends = mask_without_ends(params, vocab_size, eos_token_ids)

    def allowed_next(self, num_drafted: int = 0) -> npt.NDArray[np.int32] | None:
        """What the next token may be, one bit a token; None for any.

        With `num_drafted` it is the token after so many drafted ones. Where its grammar
        lets nothing but an end come, it ends early.
        """
        allowed = self.allowed
        if num_drafted and self.matcher is not None:
            allowed = self.allowed_ahead[num_drafted - 1]
        num_known = len(self.token_ids) + self.in_flight + num_drafted
        may_end = num_known - self.num_prompt >= self.request.params.min_tokens
        if self.without_ends is None or may_end:
            return allowed
        if allowed is None:
            return self.without_ends
        going_on = allowed & self.without_ends
        return going_on if going_on.any() else allowed

    @property
    def num_to_prefill(self) -> int:
        """Tokens to compute before the last one, which a decode step computes."""
        return len(self.token_ids) + self.in_flight - 1 - self.num_computed

    @property
    def is_decoding(self) -> bool:
        """Nothing is left to prefill.

        Written out here and below, as steps ask for each row several times.
        """
        return len(self.token_ids) + self.in_flight == self.num_computed + 1

    @property
    def drafted(self) -> tuple[int, ...]:
        """The tokens that the step on its way checks beside its next one."""
        return () if self.drafts is None else self.drafts.tokens

    @property
    def wants_decode(self) -> bool:
        """Decoding, and not at its last token once the launched steps are in."""
        num_known = len(self.token_ids) + self.in_flight
        return self.num_computed + 1 == num_known < self.max_total
