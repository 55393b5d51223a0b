"""A long conversation made short: the user's messages, and a summary by the model.

The summary goes to the client as an item of type `compaction`, whose content is opaque
to it. It comes back as a message of the assistant's.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rvllm_local.conversation.calls import ChatCall, Delta, Outcome, Usage
from rvllm_local.server.api.common import new_id
from rvllm_local.server.api.responses.kept import Kept
from rvllm_local.server.api.responses.store import ResponseStore
from rvllm_local.server.api.responses.usage import usage_object
from rvllm_local.server.generation.generation import Generation
from rvllm_local.server.http.problems import Problem, bad_request
from rvllm_local.text.tools import ContentDelta
from rvllm_local.types import SamplingParams

Messages = tuple[Mapping[str, Any], ...]
_MOST_TOKENS = 1024  # of a summary
_FORM = "rvllm-1:"  # a change of the form counts it up
_QUESTION = (
    "Summarize our conversation so far, so that you can go on from the summary alone: "
    "what was asked, what was found out and decided with all names and numbers, and "
    "what is left to do. Answer with the summary only."
)
_HEADING = "Summary of the conversation so far:\n"


def summary_call(call: ChatCall) -> ChatCall:
    """What asks the model for a summary of a call's conversation."""
    question = {"role": "user", "content": _QUESTION}
    return replace(
        call,
        messages=(*call.messages, question),
        params=SamplingParams(max_tokens=_MOST_TOKENS, temperature=0),
        tools=(),
        tool_choice="auto",
        response_format=None,
        reasoning_budget=0,
        is_open_ended=False,
    )


def encoded_summary(text: str) -> str:
    """A summary as the content of an item."""
    return _FORM + base64.b64encode(text.encode()).decode()


def summary_message(content: str | None, where: str) -> dict[str, Any]:
    """The message that stands for an item. Raises `Problem` for one not made here."""
    text = _decoded(content or "")
    if text is None:
        raise bad_request(
            f"{where}.encrypted_content was not made by this server; send the items "
            "that it stands for",
            f"{where}.encrypted_content",
        )
    return {"role": "assistant", "content": _HEADING + text}


def _decoded(content: str) -> str | None:
    if not content.startswith(_FORM):
        return None
    try:
        data = base64.b64decode(content.removeprefix(_FORM), validate=True)
        return data.decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


@dataclass(slots=True)
class CompactionAnswer:
    """The `Answer` with the short conversation. It is kept, and can be gone on from.

    `messages` are the conversation's without instructions, `created` is in seconds.
    """

    messages: Messages
    store: ResponseStore
    created: int
    request_id: str = field(default_factory=lambda: new_id("resp_"))
    _parts: list[str] = field(default_factory=list)
    _response: dict[str, Any] = field(default_factory=dict)

    def opening(self, generation: Generation) -> Sequence[Mapping[str, Any]]:
        return ()

    def take(self, outcome: Outcome) -> Sequence[Mapping[str, Any]]:
        if isinstance(outcome, Delta):
            for piece in outcome.pieces:
                if isinstance(piece, ContentDelta):
                    self._parts.append(piece.text)
            return ()
        self._response = self._object(outcome.usage)
        return ()

    async def keep(self) -> None:
        output = self._response["output"]
        summary = summary_message(output[-1]["encrypted_content"], "output")
        messages = (*self._users(), summary)
        size = sum(len(message["content"]) for message in messages)
        await self.store.keep(Kept(self._response, (), messages, size))

    def closing(self) -> bytes:
        return b""

    def whole(self) -> dict[str, Any]:
        return self._response

    def encode(self, event: Mapping[str, Any]) -> bytes:
        raise AssertionError("a compaction is not streamed")

    def problem(self, problem: Problem) -> bytes:
        raise AssertionError("a compaction is not streamed")

    def _users(self) -> Messages:
        return tuple(row for row in self.messages if row["role"] == "user")

    def _object(self, usage: Usage) -> dict[str, Any]:
        output = [_item(message) for message in self._users()]
        text = "".join(self._parts).strip()
        summary = {
            "id": new_id("cmp_"),
            "type": "compaction",
            "encrypted_content": encoded_summary(text),
        }
        return {
            "id": self.request_id,
            "object": "response.compaction",
            "created_at": self.created,
            "output": [*output, summary],
            "usage": usage_object(usage),
        }


def _item(message: Mapping[str, Any]) -> dict[str, Any]:
    """A user's message as an item."""
    content = [{"type": "input_text", "text": message["content"]}]
    return {
        "id": new_id("msg_"),
        "type": "message",
        "role": "user",
        "status": "completed",
        "content": content,
    }
