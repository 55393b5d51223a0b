"""What a sequence's new token becomes: its text, and the reason to end if it has one."""

from __future__ import annotations

from collections.abc import Collection

from rvllm_local.engine.sequence import Sequence
from rvllm_local.types import FinishReason, StreamEvent, TokenLogprob


def token_event(
    sequence: Sequence,
    token: int,
    logprob: TokenLogprob | None,
    eos_token_ids: Collection[int],
) -> StreamEvent:
    """The event of a token that was appended to its sequence."""
    detokenizer = sequence.detokenizer
    text = ""
    if token in eos_token_ids and not sequence.request.params.ignore_eos:
        reason: FinishReason | None = FinishReason.STOP
    else:
        text = detokenizer.push(token)
        reason = _reason_to_end(sequence)
    if reason is not None and not detokenizer.stopped:
        text += detokenizer.finish()
    return StreamEvent(
        text,
        (token,),
        reason,
        (logprob,) if logprob is not None else None,
        sequence.request.index,
        sequence.timings.cached_tokens,
        stop_string=detokenizer.stop_string,
    )


def _reason_to_end(sequence: Sequence) -> FinishReason | None:
    if sequence.detokenizer.stopped:
        return FinishReason.STOP
    if sequence.matcher is not None and sequence.matcher.is_stopped:
        return FinishReason.STOP
    if len(sequence.token_ids) >= sequence.max_total:
        return FinishReason.LENGTH
    return None


def closing_event(
    sequence: Sequence,
    reason: FinishReason,
    error: str | None = None,
    error_kind: str | None = None,
) -> StreamEvent:
    """The last event of a sequence that ends between steps."""
    return StreamEvent(
        sequence.detokenizer.finish(),
        (),
        reason,
        None,
        sequence.request.index,
        sequence.timings.cached_tokens,
        error,
        error_kind=error_kind,
    )
