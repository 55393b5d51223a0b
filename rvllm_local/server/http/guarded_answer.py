"""The answer to one request as it leaves the guard: its headers, and its refusal."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from rvllm_local.server.http.byte_budget import Hold
from rvllm_local.server.http.problems import Problem
from rvllm_local.server.http.refusal_log import RefusalLog

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
OnAnswer = Callable[[int], None]
_MOST_TOLD = 20  # places of a body that are named as left out


class GuardedAnswer:
    """Sends the answer to one request, with the headers that every answer has."""

    def __init__(
        self,
        scope: Scope,
        send: Send,
        on_answer: OnAnswer,
        hold: Hold,
        refusals: RefusalLog,
    ) -> None:
        """`hold` is what the body holds, until the answer begins at the latest."""
        self._refusals = refusals
        request_id = f"req_{uuid.uuid4().hex}"
        # What of the body is not used; those who read it add to the list.
        self._left_out: list[str] = []
        state = scope.setdefault("state", {})
        state["request_id"], state["left_out"] = request_id, self._left_out
        state["body_hold"] = self._hold = hold
        self._scope, self._send, self._on_answer = scope, send, on_answer
        self.has_begun = self.is_body_read = False
        self.headers = [
            (b"x-request-id", request_id.encode()),
            (b"request-id", request_id.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"cache-control", b"no-store"),
        ]

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            self._hold.release()
            self._on_answer(int(message["status"]))
            message["headers"] = [*message.get("headers", ()), *self.headers]
            if self._left_out:
                message["headers"].append((b"x-rvllm-left-out", self._told()))
        await self._send(message)

    def _told(self) -> bytes:
        """What was left out, for a header; it goes to the log as well."""
        text = "; ".join(self._left_out[:_MOST_TOLD])
        if len(self._left_out) > _MOST_TOLD:
            text += f"; and {len(self._left_out) - _MOST_TOLD} more"
        logger.info("%s: left out %s", self._scope["path"], text)
        return text.encode("ascii", "replace")

    async def refuse(self, problem: Problem) -> None:
        """Answer with a problem, unless another answer has begun."""
        if not self.has_begun:
            route = self._scope.get("route_path", "an unknown route")
            self._refusals.note(route, problem)
            is_read = self.is_body_read
            await refuse(self._scope, self, problem, closes=not is_read)


async def refuse(
    scope: Scope, send: Send, problem: Problem, *, closes: bool = False
) -> None:
    """Answer with a problem, in the shape of the API that the client speaks; `closes` the connection if a body that
    nobody read may follow.
    """
    body = json.dumps(_shaped(scope, problem)).encode()
    headers = [
        (name.encode(), value.encode()) for name, value in problem.headers().items()
    ]
    headers += [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if closes:
        headers.append((b"connection", b"close"))
    await send(
        {"type": "http.response.start", "status": problem.status, "headers": headers}
    )
    await send(
        {
            "type": "http.response.body",
            "body": b"" if scope["method"] == "HEAD" else body,
        }
    )


def _shaped(scope: Scope, problem: Problem) -> dict[str, Any]:
    """The body of a refusal as the API says it whose route was asked."""
    path = scope["path"]
    if path.startswith("/api/"):
        return problem.ollama()
    is_anthropic = path.startswith("/v1/messages")
    if path.startswith("/v1/models"):
        names = {name.lower() for name, _ in scope["headers"]}
        is_anthropic = b"anthropic-version" in names
    return problem.anthropic() if is_anthropic else problem.openai()
