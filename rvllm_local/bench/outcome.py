"""What became of one request, and whether what the endpoint says of itself can be true."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

CountTokens = Callable[[str], int]
_TEMPLATE_TOKENS = 4096  # what a chat template and tools may add to a prompt
_LONGEST_DETAIL = 4000
# What some endpoints give as finish_reason of an answer that they broke off.
_BROKEN = {
    "error",
    "abort",
    "aborted",
    "cancel",
    "cancelled",
    "canceled",
    "content_filter",
    "timeout",
}


class Failure(StrEnum):
    """Why a request is counted as an error."""

    REFUSED = "refused"  # no connection
    STATUS = "status"  # an HTTP status other than 200
    HUNG = "hung"  # not whole before its deadline
    CUT = "cut"  # the connection ended within the answer
    ERROR_EVENT = "error event"
    UNFINISHED = "unfinished"  # no finish_reason, or no [DONE]
    GARBAGE = "garbage"  # not server-sent events, or not the API's
    EMPTY = "empty"  # a whole answer without a token
    USAGE = "usage lies"
    CLIENT = "client"  # this machine could not send it: no more files or ports, or a fault of our own


@dataclass(slots=True)
class Usage:
    """Token counts as the endpoint gives them; None where it gave none."""

    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None


@dataclass(slots=True)
class Outcome:
    """One request. All times are seconds since the start of the run.

    `scheduled` is when the trace wanted it, `sent` when the client came to it, `times`
    when each event with content came, `ended` when the answer was over or had failed.
    """

    kind: str
    turn: int
    scheduled: float
    max_tokens: int
    request_bytes: int = 0
    sent: float = 0.0
    ended: float = 0.0
    times: list[float] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    tool_calls: list[dict[str, object]] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    finish_reason: str | None = None
    failure: Failure | None = None
    detail: str = ""

    @property
    def ttft(self) -> float | None:
        """Seconds from the scheduled arrival to the first content."""
        return self.times[0] - self.scheduled if self.times else None

    @property
    def e2e(self) -> float:
        return self.ended - self.scheduled

    @property
    def gaps(self) -> list[float]:
        """Seconds between moments at which content came: what is held back and sent at once was not sent fast."""
        return [
            b - a for a, b in zip(self.times, self.times[1:], strict=False) if b > a
        ]

    @property
    def tokens(self) -> int:
        """Tokens of the answer: as the endpoint says, once that was checked, else one an event."""
        return (
            self.usage.completion
            if self.usage.completion is not None
            else len(self.times)
        )

    def to_row(self) -> dict[str, Any]:
        """All but the text, for JSON."""
        row = asdict(self)
        del row["text"], row["tool_calls"]
        return row | {"times": [round(when, 4) for when in self.times]}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Outcome:
        """What `to_row` has written."""
        failure = None if row["failure"] is None else Failure(row["failure"])
        return cls(**{**row, "usage": Usage(**row["usage"]), "failure": failure})

    def fail(self, failure: Failure, detail: str = "") -> None:
        """Count the request as an error; the first reason stays."""
        if self.failure is None:
            self.failure, self.detail = failure, detail[:_LONGEST_DETAIL]

    def check(self, count_tokens: CountTokens | None = None) -> None:
        """Fail the request if its answer is not whole, or its usage cannot be true."""
        if self.failure is not None:
            return
        if self.finish_reason is None:
            self.fail(Failure.UNFINISHED, "no finish_reason came")
        elif self.finish_reason.lower() in _BROKEN:
            self.fail(Failure.UNFINISHED, f"finish_reason is {self.finish_reason}")
        elif not self.times:
            self.fail(
                Failure.EMPTY, f"finish_reason {self.finish_reason} without any content"
            )
        elif (lie := _lie(self, count_tokens)) is not None:
            self.fail(Failure.USAGE, lie)


def _too_many(outcome: Outcome) -> bool:
    """More events than the tokens that were asked for can make: without usage each would count as a token."""
    return len(outcome.times) > 1.25 * outcome.max_tokens + 4


def _lie(outcome: Outcome, count_tokens: CountTokens | None) -> str | None:
    """What cannot be true of the usage, or None.

    An answer without usage is not a lie.
    """
    usage, events = outcome.usage, len(outcome.times)
    for name, value in (
        ("prompt", usage.prompt),
        ("completion", usage.completion),
        ("cached", usage.cached),
    ):
        if value is not None and value < 0:
            return f"{name} tokens are {value}"
    if (
        usage.prompt is not None
        and usage.prompt > outcome.request_bytes + _TEMPLATE_TOKENS
    ):
        return f"{usage.prompt} prompt tokens in a request of {outcome.request_bytes} bytes"
    if (
        usage.cached is not None
        and usage.prompt is not None
        and usage.cached > usage.prompt
    ):
        return f"{usage.cached} of {usage.prompt} prompt tokens are said to be cached"
    claimed = usage.completion
    if claimed is None:
        return (
            f"{events} events where at most {outcome.max_tokens} tokens were asked for"
            if _too_many(outcome)
            else None
        )
    if claimed > outcome.max_tokens:
        return f"{claimed} tokens where at most {outcome.max_tokens} were asked for"
    if claimed < max(1.0, events / 1.25 - 4):
        return f"{claimed} tokens in {events} events with content"
    if outcome.finish_reason == "length" and claimed < outcome.max_tokens:
        return f"the length is said to be reached with {claimed} of {outcome.max_tokens} tokens"
    text = "".join(outcome.text)
    if count_tokens is not None:
        counted = count_tokens(text)
        # Special tokens leave no text, and the text of an answer may be split in other
        # tokens than the model chose.
        if claimed > 1.5 * counted + 8 and claimed > events + 8:
            return f"{claimed} tokens whose text has {counted}"
        return None
    if claimed > 1.25 * events + 4 and claimed > _most_tokens(text) + 4:
        size = len(text.encode("utf-8", "replace"))
        return f"{claimed} tokens in {events} events and {size} bytes of text"
    return None


def _most_tokens(text: str) -> float:
    """How many tokens a text may have, without its tokenizer.

    Words have three letters a token, at least, with their spaces. All else may be a token
    a byte: digits, signs, and what a vocabulary has no word for.
    """
    letters = sum(character.isascii() and character.isalpha() for character in text)
    size = len(text.encode("utf-8", "replace"))
    return letters / 3 + size - letters - text.count(" ")
