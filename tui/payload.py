"""What of a conversation is sent to the server, and about how long it is.

Pure. A turn is a prompt and its reply; one that was never answered is left out, so that
it is not joined to a later prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rvllm_local.history.types import Chat, ChatMessage, MessageState

CHARACTERS_PER_TOKEN = 3.6
TITLE_LENGTH = 60
COMPACT_PROMPT = (
    "Summarise our conversation so far, so that it can go on from the summary alone."
    " Keep names, numbers, decisions, open questions and code that is still needed."
    " Write only the summary."
)
COMPACT = "compact"  # the figure "kind" of such a prompt, and of its whole answer
_COMPACT_ROOM = 0.7  # of the context, for what is to be summarised

Payload = tuple[Mapping[str, str], ...]


def payload(chat: Chat, messages: Sequence[ChatMessage]) -> Payload:
    """The conversation as the API takes it, from the last summary on."""
    turns: list[dict[str, str]] = []
    if chat.system.strip():
        turns.append({"role": "system", "content": chat.system})
    for message in _answered(messages[_start(messages) :]):
        content = _content(message)
        if turns and turns[-1]["role"] == message.role:
            turns[-1]["content"] += "\n\n" + content
        else:
            turns.append({"role": message.role, "content": content})
    return tuple(turns)


def fit_for_summary(
    messages: Sequence[ChatMessage], context_length: int | None
) -> Sequence[ChatMessage]:
    """The newest messages that can be summarised within the context."""
    if context_length is None:
        return messages
    room = context_length * _COMPACT_ROOM
    kept = len(messages)
    while kept > 0:
        room -= estimate_tokens(messages[kept - 1].text)
        if room < 0:
            break
        kept -= 1
    while kept < len(messages) and messages[kept].role != "user":
        kept += 1
    return messages[kept:]


def estimate_tokens(text: str) -> int:
    """About how many tokens a text has; no tokenizer is here to count them."""
    return round(len(text) / CHARACTERS_PER_TOKEN)


def conversation_tokens(messages: Sequence[ChatMessage]) -> int:
    """About how many tokens the conversation has, from the last summary on."""
    length = 0
    for message in messages[_start(messages) :]:
        length += len(message.text)
    return round(length / CHARACTERS_PER_TOKEN)


def is_summary_prompt(message: ChatMessage) -> bool:
    """Whether the message asks for the summary that later turns go on from."""
    return message.role == "user" and message.figures.get("kind") == COMPACT


def is_summary(message: ChatMessage) -> bool:
    """Whether the message is the summary that later turns go on from."""
    return message.role == "assistant" and message.figures.get("kind") == COMPACT


def make_title(text: str) -> str:
    """A chat's title: the first line of its first prompt."""
    for line in text.splitlines():
        words = line.strip()
        if words:
            is_short = len(words) <= TITLE_LENGTH
            return words if is_short else words[: TITLE_LENGTH - 1] + "…"
    return ""


def typed_text(message: ChatMessage) -> str:
    """What was typed for a prompt, to be edited again."""
    typed = message.figures.get("typed")
    return typed if isinstance(typed, str) else message.text


def shown_text(message: ChatMessage) -> str:
    """What the transcript shows of a message."""
    shown = message.figures.get("shown")
    return shown if isinstance(shown, str) else message.text


def _start(messages: Sequence[ChatMessage]) -> int:
    """Where the last finished summary begins; 0 without one."""
    for index in range(len(messages) - 2, -1, -1):
        reply = messages[index + 1]
        is_done = reply.role == "assistant" and reply.state is MessageState.DONE
        if is_summary_prompt(messages[index]) and is_done:
            return index
    return 0


def _answered(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The messages without prompts that got no answer; the last one always counts."""
    kept: list[ChatMessage] = []
    for index, message in enumerate(messages):
        if message.role == "user" and index + 1 < len(messages):
            reply = messages[index + 1]
            if reply.role == "user" or not _content(reply):
                continue
        if _content(message):
            kept.append(message)
    return kept


def _content(message: ChatMessage) -> str:
    if message.text.strip():
        return message.text
    calls = [f"[called {call.name}({call.arguments})]" for call in message.tool_calls]
    return "\n".join(calls)
