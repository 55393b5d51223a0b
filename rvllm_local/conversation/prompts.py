"""From a call to what the engine takes: token ids, a grammar, and a parser of the output.

Runs on any thread; everything it needs comes in, and nothing is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rvllm_local.conversation.calls import ChatCall, TextCall
from rvllm_local.conversation.fill_in import fill_in
from rvllm_local.conversation.model import ConversationModel
from rvllm_local.conversation.output import OutputParser
from rvllm_local.conversation.shared_prefix import encode_messages, num_shared_tokens
from rvllm_local.conversation.template_input import in_call_form, template_messages
from rvllm_local.conversation.tool_prompt import explain_tools
from rvllm_local.engine.limits import EngineLimits
from rvllm_local.errors import ContextOverflowError, ParameterError
from rvllm_local.text.families import CHANNEL_FAMILIES, OutputStyle, style_of
from rvllm_local.text.grammar.formats import (
    grammar_for_format,
    grammar_for_tools,
    split_left_out,
    unconstrained,
    with_style,
)
from rvllm_local.types import SamplingParams

# The syntax that is explained to models whose template knows no tools, or none that can
# be read.
_EXPLAINED = "hermes"
_TAIL = 16  # tokens at a prompt's end in which a tag of thoughts is looked for
Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What goes to the engine, and how each output is to be read. Plain data.

    `prompts` are token ids, `params` one for each of them. `kept_special` are special
    tokens that must reach the parser as text. `left_out` names the parts of schemas
    that the grammar does not enforce. `style` is how outputs are written, None for
    plain text; with `starts_inside`, they begin inside a thought. With `drops_space`,
    the tokenizer writes a turn's first word with a space that nobody meant. Of the
    only prompt, `num_shared` tokens are those of the system prompt and the tools.
    """

    prompts: tuple[tuple[int, ...], ...]
    params: tuple[SamplingParams, ...]
    grammar: str | None = None
    kept_special: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    style: OutputStyle | None = None
    starts_inside: bool = False
    drops_space: bool = False
    num_shared: int = 0

    def new_parser(self, tools: Tools) -> OutputParser:
        """A parser of one output; `tools` are those that the call lets be called."""
        if self.style is None:
            return OutputParser(None)
        return OutputParser.for_style(
            self.style,
            tools=tools,
            starts_inside=self.starts_inside,
            drops_space=self.drops_space,
        )


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A prompt, and what its end says about the output that follows."""

    token_ids: tuple[int, ...]
    style: OutputStyle
    starts_inside: bool  # a thought is open already
    has_thought: bool  # a thought was closed already; no second one is wanted
    num_shared: int = 0

    @property
    def style_ahead(self) -> OutputStyle:
        """The style of what may still come."""
        if not self.has_thought:
            return self.style
        return replace(self.style, reasoning_start=None, reasoning_end=None)


def prepare_chat(model: ConversationModel, call: ChatCall) -> Prepared:
    """Render, tokenize and constrain a conversation.

    Raises `ParameterError` for what cannot be done, `UnsupportedModelError` for a model
    without a chat template.
    """
    tools = call.callable_tools
    rendered = _render(model, call, tools)
    params = call.params
    if call.is_open_ended:
        params = _up_to_context(params, len(rendered.token_ids), model.limits)
    grammar, left_out = split_left_out(_chat_grammar(call, tools, rendered))
    return Prepared(
        (rendered.token_ids,),
        (params,),
        grammar,
        _kept_special(rendered.style, bool(tools)),
        left_out,
        rendered.style,
        rendered.starts_inside,
        model.tokenizer.adds_space and not call.continues,
        rendered.num_shared,
    )


def prepare_text(model: ConversationModel, call: TextCall) -> Prepared:
    """Tokenize plain prompts. Raises `ParameterError`."""
    prompts = []
    for prompt in call.prompts:
        prompts.append(_text_prompt(model, prompt, call))
    params = [call.params] * len(prompts)
    if call.is_open_ended:
        params = [
            _up_to_context(call.params, len(token_ids), model.limits)
            for token_ids in prompts
        ]
    whole = None
    if call.response_format is not None:
        whole = grammar_for_format(call.response_format)
    grammar, left_out = split_left_out(whole)
    return Prepared(tuple(prompts), tuple(params), grammar, left_out=left_out)


def _render(model: ConversationModel, call: ChatCall, tools: Tools) -> _Rendered:
    """The conversation as token ids, with the tools in the model's way or explained."""
    if call.continues and call.messages[-1].get("tool_calls"):
        raise ParameterError(
            "messages",
            "only a last message that is the assistant's text can be continued",
        )
    template = model.tokenizer.template_for(tools) or ""
    messages = template_messages(call.messages, template)
    style = model.style
    options = dict(call.template_options)
    if call.reasoning_budget == 0:
        options.setdefault("enable_thinking", False)
    has_calls = any(message.get("tool_calls") for message in messages)
    form = model.tokenizer.call_form if has_calls else None
    shows_calls = form is not None or not has_calls
    if style.tool_family is not None and "tools" in template and shows_calls:
        options["tools"] = list(tools) or None
        if form is not None:
            messages = in_call_form(messages, form)
    else:
        style = _style_of_explained(style)
        messages = explain_tools(messages, tools)
    ids = encode_messages(model, messages, call.continues, options)
    tail = model.tokenizer.decode(ids[-_TAIL:], skip_special=False).rstrip()
    end = style.reasoning_end
    has_thought = end is not None and tail.endswith(end)
    ids = _behind(call.context, ids, model)
    num_shared = num_shared_tokens(model, messages, options, ids)
    is_inside = style.starts_inside(tail) or _continues_thought(call, style)
    return _Rendered(tuple(ids), style, is_inside, has_thought, num_shared)


def _continues_thought(call: ChatCall, style: OutputStyle) -> bool:
    """True if the answer that is continued ends within a thought."""
    start, end = style.reasoning_start, style.reasoning_end
    if not call.continues or start is None or end is None:
        return False
    begun = str(call.messages[-1].get("content") or "")
    return begun.rfind(start) > begun.rfind(end)


def _behind(
    context: Sequence[int], ids: list[int], model: ConversationModel
) -> list[int]:
    """A turn behind an earlier one; a text begins only once."""
    if not context:
        return ids
    vocabulary = model.limits.vocab_size
    for token in context:
        if not 0 <= token < vocabulary:
            raise ParameterError(
                "context",
                f"context holds {token}, which is outside the vocabulary of {vocabulary}",
            )
    if ids and ids[0] == model.tokenizer.bos_token_id:
        ids = ids[1:]
    return [*context, *ids]


def _text_prompt(
    model: ConversationModel, prompt: str | tuple[int, ...], call: TextCall
) -> tuple[int, ...]:
    suffix = call.suffix
    if isinstance(prompt, tuple):
        if suffix is not None:
            raise ParameterError(
                "suffix", "suffix needs a prompt of text, not of token ids"
            )
        return prompt
    spans = model.tokenizer.spans
    spans.check_length(prompt, model.most_prompt_tokens, "prompt")
    if suffix is None:
        return tuple(model.tokenizer.encode(prompt, special=call.parses_special))
    return tuple(fill_in(model, prompt, suffix))


def _chat_grammar(call: ChatCall, tools: Tools, rendered: _Rendered) -> str | None:
    """What holds the output.

    `tools` are those that may be called, `call.tools` those that were given.
    """
    style = rendered.style_ahead
    grammar = None
    if call.response_format is not None and not tools:
        grammar = grammar_for_format(call.response_format, style.tool_family)
    if grammar is None and call.tools:
        grammar = grammar_for_tools(
            call.tools,
            call.tool_choice,
            style.tool_family or _EXPLAINED,
            call.parallel_tool_calls,
            call.response_format,
        )
    thinks = style.reasoning_start is not None or style.tool_family == "harmony"
    if grammar is None and call.reasoning_budget is not None and thinks:
        grammar = unconstrained()
    if grammar is None:
        return None
    return with_style(grammar, style, call.reasoning_budget, rendered.starts_inside)


def _style_of_explained(style: OutputStyle) -> OutputStyle:
    """The style of a model to which tools are explained.

    Its calls are read in that form, whatever it was trained on.
    """
    if style.tool_family == "harmony":
        return style
    thinking = None
    if style.reasoning_start is not None and style.reasoning_end is not None:
        thinking = style.reasoning_start, style.reasoning_end
    explained = style_of(_EXPLAINED, thinking, style.reasoning_starts_inside)
    return replace(explained, answer_tags=style.answer_tags)


def _kept_special(style: OutputStyle, has_tools: bool) -> tuple[str, ...]:
    """Tags that must come as text: a family's if its parser reads them, or a thought's."""
    if has_tools or style.tool_family in CHANNEL_FAMILIES:
        return tuple(sorted(style.kept_special))
    thinking = f"{style.reasoning_start} {style.reasoning_end}"
    return tuple(sorted(tag for tag in style.kept_special if tag in thinking))


def _up_to_context(
    params: SamplingParams, prompt_tokens: int, limits: EngineLimits
) -> SamplingParams:
    """The parameters with room for as many tokens as the context has left."""
    context = min(limits.context_length, limits.arena_tokens)
    if prompt_tokens >= context:
        raise ContextOverflowError(
            "messages",
            f"the prompt has {prompt_tokens} tokens, and the context of {context} "
            "leaves no room for an answer; shorten it",
            (prompt_tokens, context - 1),
        )
    return replace(params, max_tokens=context - prompt_tokens)
