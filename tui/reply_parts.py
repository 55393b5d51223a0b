"""What comes of a reply while it is written: the parts that an endpoint yields."""

from __future__ import annotations

from dataclasses import dataclass

from rvllm_local.history.types import ToolCall


@dataclass(frozen=True, slots=True)
class ReplyStart:
    """The server took the request, and names it so."""

    request_id: str


@dataclass(frozen=True, slots=True)
class ReplyText:
    """More text, reasoning or tool calls.

    A call with an empty name continues the call before.
    """

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class ReplyUsage:
    """The server's counts of tokens. `cached` is None where it does not say.

    `accepted` and `rejected` count drafted tokens; both are 0 where none are drafted.
    `speed` is in tokens a second by the server's clock, None where it does not say.
    """

    prompt: int
    output: int
    cached: int | None
    accepted: int = 0
    rejected: int = 0
    speed: float | None = None


@dataclass(frozen=True, slots=True)
class ReplyEnd:
    """The reply is whole. `reason` is the server's finish reason."""

    reason: str


ReplyPart = ReplyStart | ReplyText | ReplyUsage | ReplyEnd
