"""What a sequence's new token becomes: its text, and the reason to end if it has one."""

from __future__ import annotations

from collections.abc import Collection

from rvllm_local.engine.sequence import Sequence
from rvllm_local.errors import ParameterError
from rvllm_local.types import FinishReason, SamplingParams, StreamEvent, TokenLogprob


def token_event(
    sequence: Sequence,
    token: int,
    logprob: TokenLogprob | None,
    eos_token_ids: Collection[int],
) -> StreamEvent:
    """The event of a token that was appended to its sequence."""
    detokenizer = sequence.detokenizer
    text = ""
    if is_end(token, sequence.request.params, eos_token_ids):
        reason: FinishReason | None = FinishReason.STOP
    else:
        text = detokenizer.push(token)
        reason = _reason_to_end(sequence)
    if reason is not None and not detokenizer.stopped:
        text += detokenizer.finish(reason)
    return StreamEvent(
        text,
        (token,),
        reason,
        (logprob,) if logprob is not None else None,
        sequence.request.index,
        sequence.timings.cached_tokens,
        stop_string=detokenizer.stop_string,
    )


def is_end(token: int, params: SamplingParams, eos_token_ids: Collection[int]) -> bool:
    """True for a token that ends a sequence and is no text of it."""
    if token in params.stop_token_ids:
        return True
    return token in eos_token_ids and not params.ignore_eos


def scores_event(sequence: Sequence) -> StreamEvent | None:
    """What was scored of its prompt since the last time; None if nothing was.

    It ends a request that wants no token once the whole prompt was scored.
    """
    assert sequence.scores is not None
    reason, text = None, ""
    if sequence.num_prompt >= sequence.max_total and sequence.num_to_prefill == 0:
        reason = FinishReason.LENGTH
        text = sequence.detokenizer.finish(reason)
    records = sequence.scores.take(sequence.num_computed)
    if not records and reason is None:
        return None
    return StreamEvent(
        text,
        (),
        reason,
        None,
        sequence.request.index,
        sequence.timings.cached_tokens,
        prompt_logprobs=records,
    )


def _reason_to_end(sequence: Sequence) -> FinishReason | None:
    if sequence.detokenizer.stopped:
        return FinishReason.STOP
    if sequence.matcher is not None and sequence.matcher.is_stopped:
        return FinishReason.STOP
    if len(sequence.token_ids) >= sequence.max_total:
        return FinishReason.LENGTH
    return None


def error_event(sequence: Sequence, error: ParameterError) -> StreamEvent:
    """The last event of a sequence whose request turned out to be at fault."""
    event = closing_event(
        sequence, FinishReason.ERROR, str(error), type(error).__name__
    )
    event.error_parameter = error.parameter
    return event


def closing_event(
    sequence: Sequence,
    reason: FinishReason,
    error: str | None = None,
    error_kind: str | None = None,
) -> StreamEvent:
    """The last event of a sequence that ends between steps."""
    return StreamEvent(
        sequence.detokenizer.finish(reason),
        (),
        reason,
        None,
        sequence.request.index,
        sequence.timings.cached_tokens,
        error,
        error_kind=error_kind,
    )
