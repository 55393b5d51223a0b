"""What a conversation must know of the model that answers it."""

from __future__ import annotations

from dataclasses import dataclass

from rvllm_local.engine.limits import EngineLimits
from rvllm_local.models.config_file import read_config
from rvllm_local.models.locate import ModelFiles
from rvllm_local.text import detect_style as styles
from rvllm_local.text.families import OutputStyle
from rvllm_local.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ConversationModel:
    """How a model reads and writes: its tokenizer and template, its tags, its limits."""

    name: str
    tokenizer: Tokenizer
    style: OutputStyle
    limits: EngineLimits

    @property
    def most_prompt_tokens(self) -> int:
        """A prompt with more tokens does not fit the context."""
        return self.limits.context_length


def detect_style(files: ModelFiles, tokenizer: Tokenizer) -> OutputStyle:
    """How the model in these files writes what is not plain text."""
    if files.kind == "gguf":
        from rvllm_local.models.gguf.reader import GGUFFile  # loads numpy

        metadata = GGUFFile(files.path).metadata
        model_type = str(metadata.get("general.architecture", ""))
    else:
        model_type = str(read_config(files.path).get("model_type", ""))
    entry = styles.entry_of(files)
    return styles.detect_style(tokenizer, model_type, entry)
