"""The form in which a chat template shows an assistant's call.

Some templates join arguments as text, and some show a call only where a message has no
content. They refuse other forms, or drop the call without a word.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rvllm_local.errors import RvllmError, TemplateLimitError

# Texts that no template writes itself.
QUESTION, NAME, KEY, VALUE = "q7zask", "q7zlook", "q7zcity", "q7zOslo"
ARGUMENTS = {KEY: VALUE}
TOOL = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "",
        "parameters": {"type": "object", "properties": {KEY: {"type": "string"}}},
    },
}
# Of the length that some templates demand; and one that holds the tool's name.
CALL_IDS = ("q7zcall01", f"functions.{NAME}:0")


@dataclass(frozen=True, slots=True)
class CallForm:
    """Arguments are JSON text or an object; the content of a call is None or empty."""

    arguments_as_text: bool = False
    content_as_none: bool = False


_FORMS = (
    CallForm(),
    CallForm(content_as_none=True),
    CallForm(arguments_as_text=True),
    CallForm(arguments_as_text=True, content_as_none=True),
)


class RendersCalls(Protocol):
    """What is asked of a tokenizer."""

    eos_token: str | None

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], **template: Any
    ) -> str:
        """The text that the chat template makes."""


def find_call_form(tokenizer: RendersCalls) -> CallForm | None:
    """The first form in which the template shows a call; None if it shows none."""
    with contextlib.suppress(TemplateLimitError):
        for form in _FORMS:
            if text_of_call(tokenizer, form, CALL_IDS[0]) is not None:
                return form
    return None


def text_of_call(
    tokenizer: RendersCalls, form: CallForm, call_id: str, *, has_result: bool = False
) -> str | None:
    """A conversation that ends with a call, as text; None if it does not show."""
    messages = [question(), _calling(form, call_id)]
    if has_result:
        messages.append(_result(call_id))
    text = rendered(tokenizer, messages, add_generation_prompt=False)
    if text is None or VALUE not in text.rpartition(QUESTION)[2]:
        if has_result:
            return None
        return text_of_call(tokenizer, form, call_id, has_result=True)
    return text


def drops_system(tokenizer: RendersCalls, form: CallForm, system: str) -> bool:
    """True if a system message goes missing in a conversation that ends with a result.

    Some templates write it before the last message alone, and only if that is the user's.
    """
    call_id = CALL_IDS[0]
    messages = [{"role": "system", "content": system}, question()]
    messages += [_calling(form, call_id), _result(call_id)]
    with contextlib.suppress(TemplateLimitError):
        text = rendered(tokenizer, messages, add_generation_prompt=True)
        return text is not None and system not in text
    return False


def question() -> dict[str, Any]:
    """The message of the user that a call answers."""
    return {"role": "user", "content": QUESTION}


def rendered(
    tokenizer: RendersCalls, messages: Sequence[Mapping[str, Any]], **template: Any
) -> str | None:
    """A conversation with a tool as text; None where the template refuses it.

    Raises `TemplateLimitError`: a template that once ran for too long will again.
    """
    try:
        return tokenizer.render_chat(messages, tools=[TOOL], **template)
    except TemplateLimitError:
        raise
    except RvllmError:
        return None


def _calling(form: CallForm, call_id: str) -> dict[str, Any]:
    arguments: Any = ARGUMENTS
    if form.arguments_as_text:
        arguments = json.dumps(ARGUMENTS)
    function = {"name": NAME, "arguments": arguments}
    call = {"id": call_id, "type": "function", "function": function}
    content = None if form.content_as_none else ""
    return {"role": "assistant", "content": content, "tool_calls": [call]}


def _result(call_id: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "name": NAME, "content": "."}
