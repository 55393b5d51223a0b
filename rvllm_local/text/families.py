"""Which tool call syntax and reasoning tags a model was trained on, read off its template and model type.

A table of facts; it parses nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from rvllm_local.text import tags


@dataclass(frozen=True, slots=True)
class OutputStyle:
    """How a model writes what is not plain text.

    `tool_family` is a name that `parser_for` knows, or None for a model that was not trained to call tools.
    `reasoning_start` and `reasoning_end` are None for a model that does not think aloud, and for harmony, whose
    parser splits it off itself. With `reasoning_starts_inside`, the template ends its prompt with the start tag;
    where that depends on the request, `starts_inside` tells. `kept_special` are texts of tokens that must reach the
    parsers as text where the vocabulary counts them as special: see `Tokenizer.keeping`.
    `answer_tags` are pairs that a model which thinks may set around its answer.
    """

    tool_family: str | None = None
    reasoning_start: str | None = None
    reasoning_end: str | None = None
    reasoning_starts_inside: bool = False
    kept_special: frozenset[str] = frozenset()
    answer_tags: tuple[tuple[str, str], ...] = ()

    def starts_inside(self, prompt: str) -> bool:
        """True if a rendered prompt ends inside a thinking block."""
        return self.reasoning_start is not None and prompt.rstrip().endswith(
            self.reasoning_start
        )


# A template that holds all of these texts may belong to the family; the first counts.
_BY_TEMPLATE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("harmony", (tags.CHANNEL, tags.MESSAGE)),
    ("gemma4", (tags.GEMMA4_CALL[0],)),
    ("kimi_k3", (tags.KIMI_K3_OPEN, tags.KIMI_K3_SEP)),
    ("kimi", (tags.KIMI_CALL[0],)),
    ("deepseek_v32", (tags.DSML,)),
    ("minimax_m3", (tags.MINIMAX_M3,)),
    ("cohere", (tags.COHERE_ACTION[0],)),
    ("internlm", (tags.INTERNLM_ACTION, tags.INTERNLM[0])),
    ("jamba", (tags.JAMBA[0],)),
    ("functionary_v2", (tags.RECIPIENT, tags.RECIPIENT_CONTENT)),
    ("functionary", (">>>all", ">>>")),
    ("apertus", tags.APERTUS),
    ("solar", tags.SOLAR_CALL),
    ("plamo", (tags.PLAMO_CALL[0],)),
    ("dots", (tags.DOTS[0],)),
    ("gigachat_tags", (tags.GCML,)),
    ("gigachat", (tags.GIGACHAT,)),
    ("olmo", (tags.OLMO_CALLS[0],)),
    ("granite_code", (tags.GRANITE_CODE[0],)),
    ("llama4", tags.PYTHON_BLOCK),
    ("lfm2", (tags.LFM_CALLS[0],)),
    ("minimax", (tags.MINIMAX[0],)),
    ("muse", (tags.ATEM[0],)),
    ("longcat", (tags.LONGCAT[0],)),
    ("k2_horizon", (tags.IFM_CALL[0],)),
    ("seed", (tags.SEED[0],)),
    ("nemotron", (tags.NEMOTRON[0],)),
    ("phi", (tags.PHI[0],)),
    ("deepseek", (tags.DEEPSEEK_CALL[0], "```json")),
    ("deepseek_v31", (tags.DEEPSEEK_CALL[0],)),
    ("glm", (tags.HERMES[0], tags.GLM_KEY[0])),
    ("qwen3_coder", (tags.HERMES[0], "<function=")),
    ("hermes", (tags.HERMES[0],)),
    ("mistral_args", (tags.MISTRAL_CALLS, tags.MISTRAL_ARGS)),
    ("mistral", (tags.MISTRAL_CALLS,)),
    ("gemma", (tags.GEMMA_FUNCTION[0],)),
    ("gemma", ("tool_code",)),
    ("pythonic", ("func_name1(params_name1=",)),
    ("function_tag", tags.FUNCTION),
    ("llama3", ("<|start_header_id|>", '"parameters"')),
    ("llama3", (tags.PYTHON_TAG,)),
)
# Where a template says nothing of tools: what the model was trained on all the same.
_BY_MODEL_TYPE = {"gpt_oss": "harmony", "gemma3": "gemma", "gemma3_text": "gemma"}
THINKING = (
    tags.THINK,
    tags.MISTRAL_THINK,
    tags.SEED_THINK,
    tags.GEMMA4_THOUGHT,
    tags.MINIMAX_M3_THINK,
    tags.KIMI_K3_THINK,
    tags.COHERE_THINK,
    tags.LONGCAT_THINK,
    tags.APERTUS_THINK,
    tags.PLAMO_THINK,
    tags.KIMI_VL_THINK,
    tags.EXAONE_THINK,
    tags.THOUGHT_TOKENS,
    tags.GRANITE_THINK,
    tags.SOLAR_THINK,
)
# Around an answer behind a thought: Hunyuan, ERNIE and Granite 3.3, Sky and OpenThinker.
_ANSWERS = (
    ("<answer>", "</answer>"),
    ("<response>", "</response>"),
    ("<|begin_of_solution|>", "<|end_of_solution|>"),
)
_TAG = re.compile(r"</?[\w|]{1,32}>")
# Pairs whose end alone says nothing: other families have it.
_NEED_THEIR_START = (tags.SOLAR_THINK,)
# PLaMo writes its tags in several tokens.
_PLAMO_PIECES = ("<|plamo:begin_", "<|plamo:end_", ":plamo|>")
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
    "gemma4": (*tags.GEMMA4_CALL, tags.GEMMA4_QUOTE),
    "kimi": (*tags.KIMI_CALLS, *tags.KIMI_CALL, tags.KIMI_ARGUMENTS),
    "lfm2": tags.LFM_CALLS,
    "minimax": tags.MINIMAX,
    "kimi_k3": (tags.KIMI_K3_OPEN, tags.KIMI_K3_CLOSE, tags.KIMI_K3_SEP),
    "deepseek_v32": (tags.DSML,),
    "minimax_m3": (tags.MINIMAX_M3, *tags.HERMES),
    "cohere": tags.COHERE_ACTION,
    "internlm": (tags.INTERNLM_ACTION, *tags.INTERNLM),
    "jamba": tags.JAMBA,
    "functionary_v2": (tags.SENDER, tags.RECIPIENT, tags.RECIPIENT_CONTENT),
    "llama4": tags.PYTHON_BLOCK,
    "muse": tags.ATEM,
    "longcat": (*tags.LONGCAT, *tags.LONGCAT_KEY, *tags.LONGCAT_VALUE),
    "k2_horizon": (
        *tags.IFM_CALLS,
        *tags.IFM_CALL,
        *tags.IFM_KEY,
        *tags.IFM_TYPE,
        *tags.IFM_VALUE,
    ),
    "seed": tags.SEED,
    "nemotron": tags.NEMOTRON,
    "phi": tags.PHI,
    "apertus": tags.APERTUS,
    "solar": (
        *tags.SOLAR_CALL,
        tags.SOLAR_NAME,
        tags.SOLAR_ARGUMENTS,
        *tags.SOLAR_STRAYS[:-1],
        "<|begin|>",
    ),
    "plamo": (*_PLAMO_PIECES, tags.PLAMO_MESSAGE, "<|plamo:constrain|>"),
    "gigachat": (tags.GIGACHAT_SEP, "<|role_sep|>"),
    "gigachat_tags": (tags.GCML, tags.GIGACHAT_SEP),
}
# Their outputs are messages in channels, which must be read without tools, too.
CHANNEL_FAMILIES = frozenset({"harmony", "solar", "kimi_k3"})


def families_by_marks(chat_template: str | None, model_type: str) -> list[str]:
    """Families whose texts a template holds, the likeliest first."""
    template = chat_template or ""
    families = []
    for family, marks in _BY_TEMPLATE:
        if all(mark in template for mark in marks):
            families.append(family)
    if not families and model_type in _BY_MODEL_TYPE:
        families.append(_BY_MODEL_TYPE[model_type])
    return list(dict.fromkeys(families))


def detect(chat_template: str | None, model_type: str) -> OutputStyle:
    """The style by a template's texts alone; `detect_style` proves it where it can."""
    families = families_by_marks(chat_template, model_type)
    return style_with(families[0] if families else None, chat_template)


def style_with(
    tool_family: str | None,
    chat_template: str | None,
    stated_thoughts: tuple[str, str] | None = None,
) -> OutputStyle:
    """The style of a model that writes calls as `tool_family` does.

    `stated_thoughts` are the tags for a template that names none.
    """
    template = chat_template or ""
    pairs = [pair for pair in THINKING if _names(template, pair)]
    if not pairs:
        return style_of(tool_family, stated_thoughts)
    style = style_of(tool_family, pairs[0], _opens_a_thought(template, pairs[0]))
    answers = [pair for pair in _ANSWERS if set(pair) <= set(_TAG.findall(template))]
    return replace(style, answer_tags=tuple(answers))


def style_of(
    tool_family: str | None,
    thinking: tuple[str, str] | None = None,
    starts_inside: bool = False,
) -> OutputStyle:
    """The style of a family, with its tags kept; harmony's own parser splits off its thinking."""
    thinking = None if tool_family == "harmony" else thinking
    kept = {*_KEPT.get(tool_family or "", ()), *(thinking or ())}
    if thinking == tags.GEMMA4_THOUGHT:
        kept.add(tags.GEMMA4_CHANNEL[0])  # the token in its start tag
    if thinking == tags.KIMI_K3_THINK:
        kept |= {tags.KIMI_K3_OPEN, tags.KIMI_K3_CLOSE, tags.KIMI_K3_SEP}
    if thinking == tags.PLAMO_THINK:
        kept.update(_PLAMO_PIECES)
    start, end = thinking or (None, None)
    return OutputStyle(
        tool_family, start, end, starts_inside and thinking is not None, frozenset(kept)
    )


def _names(template: str, pair: tuple[str, str]) -> bool:
    if pair in _NEED_THEIR_START and pair[0] not in template:
        return False
    return pair[1] in template


def _opens_a_thought(template: str, pair: tuple[str, str]) -> bool:
    """True if the template always ends a prompt with the start tag: it does so, and closes
    no thought there.
    """
    _, mark, tail = template.rpartition("add_generation_prompt")
    return bool(mark) and pair[0] in tail and pair[1] not in tail
