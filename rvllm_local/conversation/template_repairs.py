"""What is tried when a chat template refuses a conversation that the API allows.

Templates refuse system messages, turns that do not alternate, ids of another length,
and tools without a description. Each repair says the same in a form that more templates
take; they are applied one after the other, until one is taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rvllm_local.conversation.calls import Message
from rvllm_local.conversation.tool_prompt import plain_turns

Messages = Sequence[Message]
Options = Mapping[str, Any]
_EMPTY_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}
_ID_LENGTH = 9  # what Mistral's templates demand


def repaired(
    messages: Messages, options: Options
) -> Iterator[tuple[Messages, Options]]:
    """The conversation in one form after the other, the given one first."""
    yield messages, options
    if options.get("tools"):
        options = {**options, "tools": [_complete_tool(t) for t in options["tools"]]}
        yield messages, options
    repairs: tuple[Callable[[Messages], Messages], ...] = (
        _with_one_system,
        fold_system,
        _with_short_ids,
        _with_a_question,
        merge_turns,
        lambda rows: merge_turns(plain_turns(rows)),
    )
    for repair in repairs:
        changed = repair(messages)
        if changed != messages:
            messages = changed
            yield messages, options


def _with_one_system(messages: Messages) -> Messages:
    """System messages at the beginning become one, and later ones the user's."""
    texts: list[str] = []
    rows: list[Message] = []
    for message in messages:
        is_system = message["role"] in ("system", "developer")
        if is_system and not rows:
            texts.append(message["content"])
        elif is_system:
            rows.append({"role": "user", "content": message["content"]})
        else:
            rows.append(message)
    if not texts:
        return rows
    first = {**messages[0], "content": "\n\n".join(text for text in texts if text)}
    return [first, *rows]


def _with_a_question(messages: Messages) -> Messages:
    """A conversation that no user began, as one that begins with an empty message.

    Agents cut old turns off, and templates look for a user's.
    """
    if any(message["role"] == "user" for message in messages):
        return messages
    rows = list(messages)
    index = 0
    while index < len(rows) and rows[index]["role"] in ("system", "developer"):
        index += 1
    rows.insert(index, {"role": "user", "content": ""})
    return rows


def fold_system(messages: Messages) -> Messages:
    """System messages before the first user's message become its beginning.

    Later ones become messages of the user.
    """
    texts: list[str] = []
    rows: list[Message] = []
    has_user = False
    for message in messages:
        role, content = message["role"], message["content"]
        if role in ("system", "developer") and not has_user:
            texts.append(content)
        elif role in ("system", "developer"):
            rows.append({"role": "user", "content": content})
        elif role == "user" and not has_user:
            has_user = True
            joined = "\n\n".join(text for text in (*texts, content) if text)
            rows.append({**message, "content": joined})
        else:
            rows.append(message)
    if texts and not has_user:
        rows.insert(0, {"role": "user", "content": "\n\n".join(texts)})
    return rows


def merge_turns(messages: Messages) -> Messages:
    """Messages of one role that follow one another become one; calls stay apart."""
    rows: list[Message] = []
    for message in messages:
        last = rows[-1] if rows else None
        if last is None or not _can_join(last, message):
            rows.append(message)
            continue
        joined = [text for text in (last["content"], message["content"]) if text]
        rows[-1] = {**last, "content": "\n\n".join(joined)}
    return rows


def _can_join(last: Message, message: Message) -> bool:
    is_plain = not last.get("tool_calls") and not message.get("tool_calls")
    is_same = last["role"] == message["role"]
    return is_plain and is_same and message["role"] in ("user", "assistant", "system")


def _with_short_ids(messages: Messages) -> Messages:
    """Ids of calls in the one length that some templates take.

    The same id stays one.
    """
    rows: list[Message] = []
    for message in messages:
        row = dict(message)
        if row.get("tool_call_id"):
            row["tool_call_id"] = _short_id(row["tool_call_id"])
        if row.get("tool_calls"):
            calls = [
                {**call, "id": _short_id(call["id"])} for call in row["tool_calls"]
            ]
            row["tool_calls"] = calls
        rows.append(row)
    return rows


def _short_id(call_id: str) -> str:
    if len(call_id) == _ID_LENGTH and call_id.isalnum():
        return call_id
    digest = hashlib.sha256(call_id.encode(errors="surrogatepass"))
    return digest.hexdigest()[:_ID_LENGTH]


def _complete_tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tool with what the API lets callers leave out."""
    function = tool["function"]
    parameters = {**_EMPTY_PARAMETERS, **(function.get("parameters") or {})}
    complete = {"description": "", **function, "parameters": parameters}
    return {**tool, "function": complete}
