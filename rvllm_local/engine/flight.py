"""A decode step on its way: the inputs of its launch, and its tokens."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

from rvllm_local.attention.geometry import DecodeRow, TokenChunk
from rvllm_local.engine.sampling.logprobs import token_logprobs
from rvllm_local.engine.sampling.sampler import RowSampling, SampledTokens
from rvllm_local.engine.sampling.token_history import EditsAhead, TokenHistory
from rvllm_local.engine.scheduler import PrefillChunk
from rvllm_local.engine.sequence import Sequence
from rvllm_local.types import TokenLogprob


@dataclass(frozen=True, slots=True)
class Flight:
    """A decode step that was launched, and its tokens once the device has drawn them.

    Each row has a token, and one more for each token that it drafts: `drafted`.
    `num_mixed` prompt tokens went along. `launched` is a time in monotonic seconds.
    """

    rows: tuple[Sequence, ...]
    sampled: SampledTokens
    num_mixed: int
    launched: float
    drafted: tuple[tuple[int, ...], ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of the rows that were computed, drafted ones included."""
        return len(self.rows) + self.num_drafted

    @property
    def num_drafted(self) -> int:
        return sum(map(len, self.drafted))

    def logprobs(self, tokens: list[int]) -> list[TokenLogprob | None]:
        """A record for each row that asked for one, given the tokens as a list."""
        counts = []
        for row, drafted in zip(self.rows, self.drafted, strict=True):
            counts += [row.request.params.logprobs] * (1 + len(drafted))
        return token_logprobs(self.sampled, tokens, counts)


def decode_rows(rows: Rows[Sequence], in_flight: Flight | None) -> list[DecodeRow]:
    """Each row's last token, or its index in the step that is still in flight.

    Behind it come the tokens that the row drafts.
    """
    index_in_flight = {}
    if in_flight is not None:
        for index, row in enumerate(in_flight.rows):
            index_in_flight[id(row)] = index
    inputs = []
    for row in rows:
        source = index_in_flight.get(id(row)) if row.in_flight else None
        decode_row = DecodeRow(
            row.tables,
            row.num_computed,
            row.token_ids[-1],
            source,
            row.adapter,
        )
        inputs.append(decode_row)
        for num_ahead, token in enumerate(row.drafted, start=1):
            draft = DecodeRow(
                row.tables,
                row.num_computed + num_ahead,
                token,
                None,
                row.adapter,
            )
            inputs.append(draft)
    return inputs


def row_samplings(rows: Rows[Sequence]) -> list[RowSampling] | None:
    """How each row is drawn; None if all rows only want the largest logit."""
    is_plain = [row.is_plain_greedy for row in rows]
    if all(is_plain):
        return None
    samplings = []
    for row in rows:
        sampling = RowSampling(
            row.request.params,
            row.request.seed,
            len(row.token_ids) + row.in_flight,
            row.token_history,
            row.allowed_next(),
        )
        samplings.append(sampling)
        if row.drafted:
            samplings += _samplings_ahead(row, sampling)
    return samplings


def _samplings_ahead(row: Sequence, first: RowSampling) -> list[RowSampling]:
    """How the tokens after each drafted one are drawn, were it kept."""
    ahead = []
    histories: Rows[EditsAhead | None] = [None] * len(row.drafted)
    if row.token_history is not None:
        histories = row.token_history.ahead(row.drafted)
    for num_ahead, history in enumerate(histories, start=1):
        sampling = RowSampling(
            first.params,
            first.seed,
            first.position + num_ahead,
            history,
            row.allowed_next(num_ahead),
        )
        ahead.append(sampling)
    return ahead


def sampling_after(row: Sequence, drafted: Rows[int]) -> RowSampling:
    """How a row's token after these drafted ones is drawn; without its grammar."""
    history: TokenHistory | EditsAhead | None = row.token_history
    if row.token_history is not None and drafted:
        history = row.token_history.ahead(drafted)[-1]
    return RowSampling(
        row.request.params,
        row.request.seed,
        len(row.token_ids) + len(drafted),
        history,
    )


def token_chunk(chunk: PrefillChunk) -> TokenChunk:
    """What the runner is told of a prompt's chunk."""
    sequence = chunk.sequence
    start = sequence.num_computed
    end = start + chunk.num_tokens
    return TokenChunk(
        sequence.tables,
        start,
        sequence.token_ids[start:end],
        sequence.adapter,
    )
