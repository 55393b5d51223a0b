"""How a model writes calls and thoughts: by proof, by the catalogue, by its texts."""

from __future__ import annotations

from rvllm_local.models.catalogue import Catalogue, CatalogueEntry
from rvllm_local.models.locate import ModelFiles
from rvllm_local.text import tags
from rvllm_local.text.call_proof import proven_family, written_calls
from rvllm_local.text.families import OutputStyle, families_by_marks, style_with
from rvllm_local.text.tokenizer import Tokenizer

# What the catalogue calls the tags of thoughts; harmony has a parser of its own.
_THOUGHTS = {"think": tags.THINK}


def detect_style(
    tokenizer: Tokenizer, model_type: str, entry: CatalogueEntry | None = None
) -> OutputStyle:
    """The style of a model; `entry` is the catalogue's, if it has one.

    Where the template shows calls, the family is the one that reads them; if none does,
    tools are explained to the model. Where it shows none, the catalogue decides, and
    without an entry the template's texts.
    """
    source = "\n".join(_sources(tokenizer)) or None
    families = families_by_marks(source, model_type)
    calls = written_calls(tokenizer)
    family: str | None
    if calls:
        family = proven_family(calls, families)
    elif entry is not None and entry.tools is not None:
        family = entry.tools
    else:
        family = families[0] if families else None
    thoughts = None
    if entry is not None and entry.reasoning is not None:
        thoughts = _THOUGHTS.get(entry.reasoning)
    return style_with(family, source, thoughts)


def entry_of(files: ModelFiles) -> CatalogueEntry | None:
    """The catalogue's entry of located files."""
    file = files.path.name if files.kind == "gguf" else None
    return Catalogue.load().of_model(files.name, file)


def _sources(tokenizer: Tokenizer) -> list[str]:
    """The templates of conversations without tools and with them."""
    templates = (tokenizer.chat_template, tokenizer.templates.tool_use)
    return [template for template in templates if template is not None]
