"""A real model folder that plays a coding agent's model: one layer, long contexts.

Its template counts the results of tools in the conversation and ends the prompt with
one token that says which step is next. The weights map this token to another one,
whose text is the whole call or answer, and that one to the end of the turn. Attention
and products add nothing, so that each token follows from the one before it; keys and
values are computed, kept and found again as in any model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from rvllm_local.models.families import build_model
from tests.support.agent_engine import DONE, SUMMARY

TITLE = "A title"
OVER = "There are no more calls."
FLOOD = "line 0 000000001"  # the beginning of what a flooding call prints
_VOCAB_SIZE = 6000
_HIDDEN_SIZE = 128
_END = "<|im_end|>"
_MARKS = ("<|endoftext|>", "<|im_start|>", _END)
_DOCS = Path(__file__).parents[2] / "docs"

# The number of the next step, or the name of an answer. A title is asked for without
# tools; a summary too by some, with what was printed; others say so in words.
_TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\\nTools:\\n' }}{% for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{% endfor -%}
{{ 'Call with <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>\\n' }}{% endif -%}
{%- set told = namespace(results=0, last='', flooded=false, summed=false, offered=false) -%}
{%- for tool in tools or [] %}{% if tool.function.name == 'TOOL' %}{% set told.offered = true %}{% endif %}{% endfor -%}
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content }}
{%- if message.role == 'user' %}{% set told.results = 0 %}{% set told.last = message.content[:3000].lower() %}{% endif -%}
{%- if message.role == 'tool' %}{% set told.results = told.results + 1 %}{% endif -%}
{%- if 'FLOOD' in message.content %}{% set told.flooded = true %}{% endif -%}
{%- if 'SUMMARY' in message.content %}{% set told.summed = true %}{% endif -%}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) }}
{{- '}\\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if told.summed %}{{ '<|step-done|>' }}
{%- elif told.flooded and (not told.offered or 'summar' in told.last or 'compact' in told.last or 'snapshot' in told.last) %}{{ '<|step-summary|>' }}
{%- elif not told.offered %}{{ '<|step-title|>' }}
{%- elif told.results < NUM_CALLS %}{{ '<|step-' + (told.results | string) + '|>' }}
{%- else %}{{ '<|step-over|>' }}{% endif %}{% endif -%}
"""


@dataclass(frozen=True)
class Script:
    """The tool that is called, and the arguments of each call in turn."""

    tool: str
    calls: Sequence[dict[str, object]]

    def texts(self) -> dict[str, str]:
        """What is said at each step."""
        said = {"done": DONE, "summary": SUMMARY, "title": TITLE, "over": OVER}
        for number, arguments in enumerate(self.calls):
            call = json.dumps({"name": self.tool, "arguments": arguments})
            said[str(number)] = f"<tool_call>\n{call}\n</tool_call>"
        return said


def save_rigged(folder: Path, script: Script, context_length: int) -> Path:
    """Write the model's folder, and return it."""
    folder.mkdir(parents=True)
    texts = script.texts()
    tokenizer = _tokenizer(texts)
    config = {
        "model_type": "llama",
        "hidden_size": _HIDDEN_SIZE,
        "num_hidden_layers": 1,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "rms_norm_eps": 1e-6,
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": context_length,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id(_END),
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = _weights(config, tokenizer, texts)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    tokenizer.save(str(folder / "tokenizer.json"))
    template = _TEMPLATE.replace("TOOL", script.tool).replace("FLOOD", FLOOD)
    template = template.replace("SUMMARY", SUMMARY)
    template = template.replace("NUM_CALLS", str(len(script.calls)))
    settings = {
        "eos_token": _END,
        "add_bos_token": False,
        "chat_template": template,
    }
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(settings), encoding="utf-8")
    return folder


def _tokenizer(texts: dict[str, str]) -> Tokenizer:
    """A byte-level BPE of English and JSON, and a token for each step and each text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCAB_SIZE,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pages = [page.read_text(encoding="utf-8") for page in sorted(_DOCS.glob("*.md"))]
    tokenizer.train_from_iterator(pages, trainer)
    marks = [*_MARKS, *(_step(name) for name in texts)]
    tokenizer.add_special_tokens(
        [AddedToken(mark, special=True, normalized=False) for mark in marks]
    )
    tokenizer.add_tokens(
        [AddedToken(text, normalized=False) for text in texts.values()]
    )
    return tokenizer


def _step(name: str) -> str:
    return f"<|step-{name}|>"


def _weights(
    config: dict[str, object], tokenizer: Tokenizer, texts: dict[str, str]
) -> dict[str, mx.array]:
    """Zeros, but for the ways from steps to texts and from texts to the end."""
    weights = {}
    for name, value in tree_flatten(build_model(config).parameters()):
        start = np.ones if name.endswith("norm.weight") else np.zeros
        weights[name] = start(value.shape, np.float32)
    embedding = weights["model.embed_tokens.weight"]
    head = weights["lm_head.weight"]
    embedding[:, -1] = 1.0
    for code, (name, text) in enumerate(texts.items()):
        step, said = tokenizer.token_to_id(_step(name)), tokenizer.token_to_id(text)
        embedding[step] = 0.0
        embedding[step, code] = 1.0
        head[said, code] = 4.0
        embedding[said] = 0.0
        embedding[said, -2] = 1.0
    head[tokenizer.token_to_id(_END), -2] = 4.0
    return {name: mx.array(value) for name, value in weights.items()}
