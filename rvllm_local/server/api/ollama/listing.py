"""Models as Ollama's API lists and shows them."""

from __future__ import annotations

from typing import Any

from rvllm_local.server.api.ollama.durations import timestamp
from rvllm_local.server.models.inspection_frames import ModelFacts
from rvllm_local.server.models.names import LATEST
from rvllm_local.server.models.registry import Listed

# What a configuration calls the sizes that are shown.
_SIZES = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "vocab_size": "vocab_size",
}


def row(name: str, facts: ModelFacts | None) -> dict[str, Any]:
    """A model in a list. One that cannot be read has a name alone."""
    tagged = _tagged(name)
    head = {"name": tagged, "model": tagged}
    if facts is None:
        return {
            **head,
            "modified_at": timestamp(0),
            "size": 0,
            "digest": "",
            "details": _details(None),
        }
    return {
        **head,
        "modified_at": timestamp(facts.modified),
        "size": facts.size,
        "digest": facts.digest,
        "details": _details(facts),
        "capabilities": _capabilities(facts),
    }


def loaded_row(
    listed: Listed, facts: ModelFacts | None, expires_at: str
) -> dict[str, Any]:
    """A model that is loaded. Its memory is what was planned for it."""
    shown_row = row(listed.name, facts)
    del shown_row["modified_at"]
    shown_row.pop("capabilities", None)
    return {
        **shown_row,
        "size": listed.memory or 0,
        "size_vram": listed.memory or 0,
        "expires_at": expires_at,
        "context_length": listed.context_length or 0,
    }


def shown(name: str, facts: ModelFacts) -> dict[str, Any]:
    """All that is told of one model."""
    return {
        "license": facts.license,
        "modelfile": f"FROM {_tagged(name)}\n",
        "parameters": "",
        "template": facts.chat_template or "",
        "details": _details(facts),
        "model_info": _information(facts),
        "capabilities": _capabilities(facts),
        "modified_at": timestamp(facts.modified),
    }


def _tagged(name: str) -> str:
    return name if name.endswith(LATEST) else name + LATEST


def _details(facts: ModelFacts | None) -> dict[str, Any]:
    family = "" if facts is None else facts.architecture
    return {
        "parent_model": "",
        "format": "" if facts is None else facts.kind,
        "family": family,
        "families": [family] if family else [],
        "parameter_size": "" if facts is None else _amount(facts.parameters),
        "quantization_level": "" if facts is None else facts.quantization,
    }


def _amount(parameters: int) -> str:
    if parameters >= 1e9:
        return f"{parameters / 1e9:.1f}B"
    if parameters >= 1e6:
        return f"{parameters / 1e6:.2f}M"
    return str(parameters) if parameters else ""


def _information(facts: ModelFacts) -> dict[str, Any]:
    architecture = facts.architecture
    information: dict[str, Any] = {
        "general.architecture": architecture,
        "general.parameter_count": facts.parameters,
        f"{architecture}.context_length": facts.context_length,
    }
    for name, key in _SIZES.items():
        size = facts.settings.get(key)
        if isinstance(size, int):
            information[f"{architecture}.{name}"] = size
    return information


def _capabilities(facts: ModelFacts) -> list[str]:
    if facts.pools:
        return ["embedding" if facts.pools == "embed" else "rerank"]
    names = ["completion"]
    if facts.calls_tools:
        names.append("tools")
    if facts.thinks:
        names.append("thinking")
    return names
