"""The prompt of a middle to fill in, in the way that the model was trained on."""

from __future__ import annotations

from rvllm_local.conversation.model import ConversationModel
from rvllm_local.errors import ParameterError

# Texts of the special tokens around prefix, suffix and middle, by who trained on them.
_TAGS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen 2.5 Coder
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<PRE>", "<SUF>", "<MID>"),  # Code Llama
    # DeepSeek Coder: the hole stands between prefix and suffix.
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
)


def fill_in(model: ConversationModel, prefix: str, suffix: str) -> list[int]:
    """Token ids of prefix and suffix, and the tag after which the middle comes.

    Raises `ParameterError` for a model that was not trained to fill in.
    """
    tokenizer = model.tokenizer
    for tags in _TAGS:
        before, between, after = (tokenizer.control_token_id(tag) for tag in tags)
        if before is None or between is None or after is None:
            continue
        start = tokenizer.encode(
            "", bos=True
        )  # the start token, if the model wants one
        body = tokenizer.encode(prefix, bos=False)
        ending = tokenizer.encode(suffix, bos=False)
        return [*start, before, *body, between, *ending, after]
    raise ParameterError(
        "suffix", f"{model.name} was not trained to fill in a middle; leave suffix out"
    )
