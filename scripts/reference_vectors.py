"""Asks transformers for the vectors of tiny pooled models, and stores them for the tests.

    python -m scripts.reference_vectors [NAME ...]

Run it where transformers and torch are installed; rvllm_local need not be. A reference
holds the configuration as transformers saves it, the names and shapes of the published
tensors, and vectors of a few rows by way of pooling, or their scores. The weights follow
from the names (`named_weights`).
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.support.named_weights import named_weights

FOLDER = Path(__file__).parents[1] / "tests" / "models" / "encoders" / "references"
LENGTHS = (1, 7, 40)
BASE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "cls_token_id": 0,
    "sep_token_id": 2,
}
DECODER = {
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    "tie_word_embeddings": True,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {"hidden_act": "gelu"}),
    "roberta": ("roberta", {"type_vocab_size": 1}),
    "xlm-roberta": ("xlm-roberta", {"type_vocab_size": 1}),
    "modernbert": (
        "modernbert",
        {"global_attn_every_n_layers": 3, "local_attention": 12},
    ),
    "nomic_bert": ("nomic_bert", {}),
    "qwen3": ("qwen3", DECODER),
    "gemma3_text": (
        "gemma3_text",
        {
            **DECODER,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 50000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
            },
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "sliding_window": 12,
            "query_pre_attn_scalar": 24,
            "use_bidirectional_attention": True,
        },
    ),
    "bert-scores": ("bert", {"num_labels": 1}),
    "xlm-roberta-scores": ("xlm-roberta", {"type_vocab_size": 1, "num_labels": 1}),
    "modernbert-scores": (
        "modernbert",
        {
            "global_attn_every_n_layers": 3,
            "local_attention": 12,
            "num_labels": 1,
            "classifier_pooling": "mean",
        },
    ),
}


def rows() -> list[list[int]]:
    """Token ids of rows of several lengths."""
    made = []
    for number, length in enumerate(LENGTHS):
        made.append([(11 * place + 5 * number) % 120 + 4 for place in range(length)])
    return made


def batch() -> dict[str, torch.Tensor]:
    """The rows, padded, with the second half of each as a pair's second text."""
    width = max(LENGTHS)
    tokens = torch.ones((len(LENGTHS), width), dtype=torch.long)
    mask = torch.zeros_like(tokens)
    kinds = torch.zeros_like(tokens)
    for number, ids in enumerate(rows()):
        tokens[number, : len(ids)] = torch.tensor(ids)
        mask[number, : len(ids)] = 1
        kinds[number, len(ids) // 2 : len(ids)] = 1
    return {"input_ids": tokens, "attention_mask": mask, "token_type_ids": kinds}


def start_of(shape: list[int], name: str) -> float | None:
    """What a vector's values are near: norms near their neutral value, biases near 0."""
    if len(shape) > 1:
        return None
    is_norm = "norm" in name.lower() or "emb_ln" in name
    if not name.endswith("weight") or not is_norm:
        return 0.0
    return 0.0 if "gemma" in name else 1.0


def reference(model_type: str, settings: dict[str, Any]) -> dict[str, Any]:
    """One tiny model: its files, weights by name, and what it says."""
    config = CONFIG_MAPPING[model_type](**{**BASE, **settings})
    scores = "num_labels" in settings
    kind = AutoModelForSequenceClassification if scores else AutoModel
    config._attn_implementation = "eager"
    model = kind.from_config(config).eval()
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(place)
        stored = load_file(Path(place) / "model.safetensors")
        saved = json.loads((Path(place) / "config.json").read_text())
        tensors = {}
        for name, value in sorted(stored.items()):
            shape = list(value.shape)
            tensors[name] = [shape, start_of(shape, name)]
        weights = named_weights(tensors)
        from safetensors.numpy import save_file

        save_file(weights, Path(place) / "model.safetensors", {"format": "pt"})
        model = kind.from_pretrained(place, attn_implementation="eager").eval()
    inputs = batch()
    if "bert" not in model_type or model_type in ("modernbert",):
        del inputs["token_type_ids"]
    elif settings.get("type_vocab_size") == 1:
        inputs["token_type_ids"] = torch.zeros_like(inputs["token_type_ids"])
    with torch.no_grad():
        answer = model(**inputs)
    made: dict[str, Any] = {"config": saved, "tensors": tensors, "rows": rows()}
    if scores:
        made["scores"] = rounded(answer.logits)
        return made
    states = answer.last_hidden_state
    mask = inputs["attention_mask"][..., None]
    last = inputs["attention_mask"].sum(1) - 1
    made["cls"] = rounded(states[:, 0])
    made["mean"] = rounded((states * mask).sum(1) / mask.sum(1))
    made["last"] = rounded(states[torch.arange(len(LENGTHS)), last])
    return made


def rounded(values: torch.Tensor) -> list[list[float]]:
    return [[round(float(number), 5) for number in row] for row in values]


def main() -> None:
    """Make the references that are named, or all."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    print("transformers", transformers.__version__, "torch", torch.__version__)
    for name in sys.argv[1:] or MODELS:
        torch.manual_seed(0)
        np.random.seed(0)
        made = reference(*MODELS[name])
        text = json.dumps(made, sort_keys=True)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        print(name, len(text))


if __name__ == "__main__":
    main()
