"""Which tool call syntax and reasoning tags a model was trained on, read off its template and model type.

A table of facts; it parses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from rvllm_local.text import tags


@dataclass(frozen=True, slots=True)
class OutputStyle:
    """How a model writes what is not plain text.

    `tool_family` is a name that `parser_for` knows, or None for a model that was not trained to call tools.
    `reasoning_start` and `reasoning_end` are None for a model that does not think aloud, and for harmony, whose
    parser splits it off itself. With `reasoning_starts_inside`, the template ends its prompt with the start tag;
    where that depends on the request, `starts_inside` tells. `kept_special` are texts of tokens that must reach the
    parsers as text where the vocabulary counts them as special: see `Tokenizer.keeping`.
    """

    tool_family: str | None = None
    reasoning_start: str | None = None
    reasoning_end: str | None = None
    reasoning_starts_inside: bool = False
    kept_special: frozenset[str] = frozenset()

    def starts_inside(self, prompt: str) -> bool:
        """True if a rendered prompt ends inside a thinking block."""
        return self.reasoning_start is not None and prompt.rstrip().endswith(
            self.reasoning_start
        )


# A template that holds all of these texts belongs to the family; the first match counts.
_BY_TEMPLATE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("harmony", (tags.CHANNEL, tags.MESSAGE)),
    ("deepseek", (tags.DEEPSEEK_CALL[0], "```json")),
    ("deepseek_v31", (tags.DEEPSEEK_CALL[0],)),
    ("glm", (tags.HERMES[0], tags.GLM_KEY[0])),
    ("qwen3_coder", (tags.HERMES[0], "<function=")),
    ("hermes", (tags.HERMES[0],)),
    ("mistral_args", (tags.MISTRAL_CALLS, tags.MISTRAL_ARGS)),
    ("mistral", (tags.MISTRAL_CALLS,)),
    ("gemma", (tags.GEMMA_FUNCTION[0],)),
    ("gemma", ("tool_code",)),
    ("llama3", ("<|start_header_id|>", '"parameters"')),
    ("llama3", (tags.PYTHON_TAG,)),
    ("json", ("tools", '"arguments"')),
)
# Where a template says nothing of tools: what the model was trained on all the same.
_BY_MODEL_TYPE = {"gpt_oss": "harmony", "gemma3": "gemma", "gemma3_text": "gemma"}
_THINKING = (tags.THINK, tags.MISTRAL_THINK)
_KEPT = {
    "harmony": (
        tags.CHANNEL,
        tags.MESSAGE,
        tags.CONSTRAIN,
        tags.START,
        tags.END_MESSAGE,
        tags.CALL,
        tags.RETURN,
    ),
    "deepseek": (*tags.DEEPSEEK_CALLS, *tags.DEEPSEEK_CALL, tags.DEEPSEEK_SEP),
    "deepseek_v31": (*tags.DEEPSEEK_CALLS, *tags.DEEPSEEK_CALL, tags.DEEPSEEK_SEP),
    "glm": (*tags.HERMES, *tags.GLM_KEY, *tags.GLM_VALUE),
    "qwen3_coder": tags.HERMES,
    "hermes": tags.HERMES,
    "mistral": (tags.MISTRAL_CALLS, tags.MISTRAL_ARGS, tags.MISTRAL_ID),
    "mistral_args": (tags.MISTRAL_CALLS, tags.MISTRAL_ARGS, tags.MISTRAL_ID),
    "gemma": (*tags.GEMMA_FUNCTION, tags.GEMMA_ESCAPE),
    "llama3": (tags.PYTHON_TAG,),
}


def detect(chat_template: str | None, model_type: str) -> OutputStyle:
    """The style of a model whose catalogue entry says nothing; plain text if nothing is recognised."""
    template = chat_template or ""
    family = next(
        (
            name
            for name, marks in _BY_TEMPLATE
            if all(mark in template for mark in marks)
        ),
        None,
    )
    return style_of(
        family or _BY_MODEL_TYPE.get(model_type),
        thinking=next((pair for pair in _THINKING if pair[1] in template), None),
        starts_inside=_opens_a_thought(template),
    )


def style_of(
    tool_family: str | None,
    thinking: tuple[str, str] | None = None,
    starts_inside: bool = False,
) -> OutputStyle:
    """The style of a family, with its tags kept; harmony's own parser splits off its thinking."""
    thinking = None if tool_family == "harmony" else thinking
    kept = frozenset((*_KEPT.get(tool_family or "", ()), *(thinking or ())))
    start, end = thinking or (None, None)
    return OutputStyle(
        tool_family, start, end, starts_inside and thinking is not None, kept
    )


def _opens_a_thought(template: str) -> bool:
    """True if the template always ends a prompt with the start tag: it does so, and closes no thought there."""
    tail = (
        template[template.rfind("add_generation_prompt") :]
        if "add_generation_prompt" in template
        else ""
    )
    return "<think>" in tail and "</think>" not in tail
