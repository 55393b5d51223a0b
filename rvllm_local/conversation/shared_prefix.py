"""A conversation as token ids, and how many of them other conversations begin with.

A model with recurrent layers can reuse a prefix only where a state was kept, so that
it is worth knowing where the system prompt and the tools end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_local.conversation.calls import Message
from rvllm_local.conversation.model import ConversationModel
from rvllm_local.conversation.template_repairs import fold_system, repaired
from rvllm_local.errors import RvllmError, TemplateRefusedError

_SYSTEM = ("system", "developer")
_OTHER = {"role": "user", "content": "0"}


def encode_messages(
    model: ConversationModel,
    messages: Sequence[Message],
    continues: bool,
    options: Mapping[str, Any],
) -> list[int]:
    """Token ids of the conversation, in the first form that the template takes."""
    tokenizer = model.tokenizer
    has_result = messages[-1]["role"] == "tool"
    is_dropped = has_result and tokenizer.drops_system_after_calls
    if is_dropped or not tokenizer.shows_system:
        messages = fold_system(messages)
    refusal: TemplateRefusedError | None = None
    for rows, settings in repaired(messages, options):
        try:
            return model.tokenizer.encode_chat(
                rows,
                continues=continues,
                most_tokens=model.most_prompt_tokens,
                **settings,
            )
        except TemplateRefusedError as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def num_shared_tokens(
    model: ConversationModel,
    messages: Sequence[Message],
    options: Mapping[str, Any],
    token_ids: Sequence[int],
) -> int:
    """Leading tokens that another conversation of this system prompt has, too.

    0 where that is of no use, and in later turns: then the state is kept already.
    """
    head = [message for message in messages if message.get("role") in _SYSTEM]
    has_answers = any(message.get("role") == "assistant" for message in messages)
    has_head = bool(head) or bool(options.get("tools"))
    if not model.limits.keeps_states or has_answers or not has_head:
        return 0
    try:
        other = encode_messages(model, [*head, _OTHER], False, options)
    except RvllmError:  # the template wants more than a system prompt and a question
        return 0
    count = 0
    for token, other_token in zip(token_ids, other, strict=False):
        if token != other_token:
            break
        count += 1
    return count
