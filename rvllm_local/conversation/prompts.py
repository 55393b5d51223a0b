"""From a call to what the engine takes: token ids, a grammar, and the parser that will read the output.

Runs on worker threads; everything it needs comes in, and nothing is kept.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rvllm_local.conversation.calls import ChatCall, Message, TextCall
from rvllm_local.conversation.model import ConversationModel
from rvllm_local.conversation.output import OutputParser
from rvllm_local.conversation.tool_prompt import explain_tools
from rvllm_local.engine.limits import EngineLimits
from rvllm_local.errors import ContextOverflowError, ParameterError
from rvllm_local.text.families import OutputStyle, style_of
from rvllm_local.text.grammar.formats import (
    grammar_for_format,
    grammar_for_tools,
    unconstrained,
    with_style,
)
from rvllm_local.text.json_shape import shape_of
from rvllm_local.types import SamplingParams

_FALLBACK = "hermes"  # the syntax that is explained to models whose template knows no tools, or none that can be read
_TAIL = 16  # tokens of a prompt in which a start tag is looked for
_MAX_DEPTH = 100  # of arguments that templates see as objects
# Texts of the special tokens around prefix, suffix and middle, by who trained models on them.
_FILL_IN = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen 2.5 Coder
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<PRE>", "<SUF>", "<MID>"),  # Code Llama
    (
        "<｜fim▁begin｜>",
        "<｜fim▁hole｜>",
        "<｜fim▁end｜>",
    ),  # DeepSeek Coder: the hole stands between prefix and suffix
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What goes to the engine, one prompt after the other, and how each output is to be read."""

    prompts: tuple[tuple[int, ...], ...]
    params: tuple[SamplingParams, ...]
    new_parser: Callable[[], OutputParser]
    grammar: str | None = None
    kept_special: tuple[str, ...] = ()


def prepare_chat(model: ConversationModel, call: ChatCall) -> Prepared:
    """Render, tokenize and constrain a conversation. Raises `ParameterError` for what cannot be done."""
    messages: Sequence[Message] = [_message(message) for message in call.messages]
    _check_length(model, messages)
    _check_length(model, call.tools)
    if call.continues and messages[-1].get(
        "tool_calls"
    ):  # before they are explained to a template that knows none
        raise ParameterError(
            "messages",
            "only a last message that is the assistant's text can be continued",
        )
    tools = () if call.tool_choice == "none" else call.tools
    style, template = model.style, model.tokenizer.chat_template or ""
    extra: dict[str, Any] = dict(call.template_options)
    if call.reasoning_budget == 0:
        extra.setdefault("enable_thinking", False)
    if "developer" not in template:
        messages = [
            {**row, "role": "system"} if row["role"] == "developer" else row
            for row in messages
        ]
    if style.tool_family is not None and "tools" in template:
        extra["tools"] = list(tools) or None
    else:
        style = _as_explained(style)
        messages = explain_tools(messages, tools)
    ids = model.tokenizer.encode_chat(messages, continues=call.continues, **extra)
    tail = model.tokenizer.decode(ids[-_TAIL:], skip_special=False).rstrip()
    inside = style.starts_inside(tail)
    is_over = style.reasoning_end is not None and tail.endswith(
        style.reasoning_end
    )  # no second thought is wanted
    bound = (
        replace(style, reasoning_start=None, reasoning_end=None) if is_over else style
    )
    grammar = _grammar(call, tools, bound, inside)
    return Prepared(
        (tuple(ids),),
        (
            _bounded(call.params, len(ids), model.limits)
            if call.is_open_ended
            else call.params,
        ),
        lambda: OutputParser.for_style(style, tools=tools, starts_inside=inside),
        grammar,
        _kept(style, bool(tools)),
    )


def prepare_text(model: ConversationModel, call: TextCall) -> Prepared:
    """Tokenize plain prompts. Raises `ParameterError`."""
    prompts = []
    for prompt in call.prompts:
        if isinstance(prompt, str):
            _check_length(model, prompt)
            ids = (
                model.tokenizer.encode(prompt)
                if call.suffix is None
                else _fill_in(model, prompt, call.suffix)
            )
            prompts.append(tuple(ids))
        elif call.suffix is not None:
            raise ParameterError(
                "suffix", "suffix needs a prompt of text, not of token ids"
            )
        else:
            prompts.append(prompt)
    grammar = (
        None
        if call.response_format is None
        else grammar_for_format(call.response_format)
    )
    limits = model.limits
    params = tuple(
        _bounded(call.params, len(ids), limits) if call.is_open_ended else call.params
        for ids in prompts
    )
    return Prepared(tuple(prompts), params, lambda: OutputParser(None), grammar)


def _grammar(
    call: ChatCall, tools: Sequence[Mapping[str, Any]], style: OutputStyle, inside: bool
) -> str | None:
    """What holds the output; `tools` are those that may be called, `call.tools` those that were given."""
    grammar, form = None, call.response_format
    if form is not None and not tools:
        grammar = grammar_for_format(form, style.tool_family)
    if grammar is None and call.tools:
        family = style.tool_family or _FALLBACK
        grammar = grammar_for_tools(
            call.tools, call.tool_choice, family, call.parallel_tool_calls, form
        )
    if grammar is None and call.reasoning_budget is not None and _thinks(style):
        grammar = unconstrained()
    return (
        None
        if grammar is None
        else with_style(grammar, style, call.reasoning_budget, inside)
    )


def _as_explained(style: OutputStyle) -> OutputStyle:
    """The style of a model to which tools are explained: its calls are read in that form, whatever it was trained on."""
    if style.tool_family == "harmony":
        return style
    tags = style.reasoning_start, style.reasoning_end
    thinking = None if tags[0] is None or tags[1] is None else (tags[0], tags[1])
    return style_of(_FALLBACK, thinking, style.reasoning_starts_inside)


def _thinks(style: OutputStyle) -> bool:
    return style.reasoning_start is not None or style.tool_family == "harmony"


def _kept(style: OutputStyle, has_tools: bool) -> tuple[str, ...]:
    """Tags that must come as text: all of a family's if its parser reads the output, else those around thoughts."""
    if has_tools or style.tool_family == "harmony":
        return tuple(sorted(style.kept_special))
    thinking = {style.reasoning_start, style.reasoning_end}
    return tuple(sorted(tag for tag in style.kept_special if tag in thinking))


def _bounded(
    params: SamplingParams, prompt_tokens: int, limits: EngineLimits
) -> SamplingParams:
    room = min(limits.context_length, limits.arena_tokens) - prompt_tokens
    if room < 1:
        raise ContextOverflowError(
            "messages",
            f"the prompt has {prompt_tokens} tokens, and the context of "
            f"{min(limits.context_length, limits.arena_tokens)} leaves no room for an answer; shorten it",
        )
    return replace(params, max_tokens=room)


def _check_length(model: ConversationModel, value: Any) -> None:
    """Refuse at once what cannot fit the context, before a tokenizer spends seconds on it."""
    size = _bytes(value)
    if size > model.max_prompt_bytes:
        raise ContextOverflowError(
            "prompt",
            f"the prompt has {size} bytes, more than fit the context of {model.limits.context_length} tokens; "
            "shorten it",
        )


def _bytes(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, Mapping):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0


def _message(message: Message) -> Message:
    """A message as templates expect it: no None for a content, arguments as objects."""
    found = {**message, "content": message.get("content") or ""}
    if calls := message.get("tool_calls"):
        found["tool_calls"] = [
            {**call, "function": _function(call["function"])} for call in calls
        ]
    return found


def _function(function: Mapping[str, Any]) -> dict[str, Any]:
    text, arguments = function["arguments"] or "{}", None
    if shape_of(text.encode()).depth <= _MAX_DEPTH:
        with contextlib.suppress(
            ValueError
        ):  # a model wrote it: templates get the text as it was
            arguments = json.loads(text)
    return {
        **function,
        "arguments": arguments
        if isinstance(arguments, dict)
        else function["arguments"],
    }


def _fill_in(model: ConversationModel, prefix: str, suffix: str) -> list[int]:
    """Prefix, suffix, and the tag after which the middle comes, as the model was trained on it."""
    tokenizer = model.tokenizer
    for tags in _FILL_IN:
        tokens = [tokenizer.control_token_id(tag) for tag in tags]
        if None in tokens:
            continue
        before, between, after = (token for token in tokens if token is not None)
        start = tokenizer.encode(prefix)
        bos = tokenizer.bos_token_id
        head = [bos] if start and start[0] == bos and bos is not None else []
        body = tokenizer.encode(prefix, bos=False)
        return [
            *head,
            before,
            *body,
            between,
            *tokenizer.encode(suffix, bos=False),
            after,
        ]
    raise ParameterError(
        "suffix", f"{model.name} was not trained to fill in a middle; leave suffix out"
    )
