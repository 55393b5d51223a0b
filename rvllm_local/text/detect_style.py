"""How a model writes calls and thoughts, from its template: by proof, else by its texts."""

from __future__ import annotations

from rvllm_local.text.call_proof import proven_family, written_call
from rvllm_local.text.families import OutputStyle, families_by_marks, style_with
from rvllm_local.text.tokenizer import Tokenizer


def detect_style(tokenizer: Tokenizer, model_type: str) -> OutputStyle:
    """The style of a model. Without a family, tools are explained to it.

    Where the template shows calls, the family is the one that reads them. Where it shows
    none, its texts decide.
    """
    source = "\n".join(_sources(tokenizer)) or None
    families = families_by_marks(source, model_type)
    call = written_call(tokenizer)
    if call is not None:
        family = proven_family(call, families)
        return style_with(family, source)
    return style_with(families[0] if families else None, source)


def _sources(tokenizer: Tokenizer) -> list[str]:
    """The templates of conversations without tools and with them."""
    templates = (tokenizer.chat_template, tokenizer.templates.tool_use)
    return [template for template in templates if template is not None]
