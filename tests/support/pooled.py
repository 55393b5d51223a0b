"""Tiny pooled models as folders: an encoder's weights by name, a tokenizer of words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tests.models.encoders.test_reference_vectors import reference_of, save

WORDS = tuple(f"w{number}" for number in range(110))
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
TEXTS = ("w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11", "w2 w3 w1")


def save_embedder(folder: Path, pooling: str = "mean", name: str = "bert") -> Path:
    """A model of embeddings with 32 dimensions and 64 positions."""
    save(folder, reference_of(name), pooling)
    save_tokenizer(folder)
    prompts = {"prompts": {"query": "w100 ", "document": ""}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return folder


def save_encoder(folder: Path, shape: Mapping[str, int]) -> Path:
    """BERT with random weights and 512 positions, in the shape of a configuration."""
    reference = reference_of("bert")
    config = {**reference["config"], "max_position_embeddings": 512, **shape}
    config["intermediate_size"] = 4 * config["hidden_size"]
    sizes = {
        reference["config"][name]: config[name]
        for name in ("hidden_size", "intermediate_size", "max_position_embeddings")
    }
    tensors: dict[str, Any] = {}
    for name, (dimensions, start) in reference["tensors"].items():
        wider = [[sizes.get(size, size) for size in dimensions], start]
        if ".layer.0." not in name:
            tensors.setdefault(name, wider)
            continue
        for number in range(config["num_hidden_layers"]):
            tensors[name.replace(".layer.0.", f".layer.{number}.")] = wider
    layers = tuple(f".layer.{number}." for number in range(config["num_hidden_layers"]))
    for name in list(tensors):
        if ".layer." in name and not any(layer in name for layer in layers):
            del tensors[name]
    save(folder, {"config": config, "tensors": tensors}, "mean")
    save_tokenizer(folder)
    return folder


def save_reranker(folder: Path, name: str = "bert-scores") -> Path:
    """A model that scores pairs of texts."""
    save(folder, reference_of(name))
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path, more: tuple[str, ...] = ()) -> None:
    """A tokenizer of words; `more` are further ones."""
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *WORDS, *more))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    # What whoever saved it last had set: it must cut and pad nothing here.
    backend.enable_truncation(4)
    backend.enable_padding(length=12)
    backend.save(str(folder / "tokenizer.json"))
