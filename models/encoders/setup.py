"""What a folder's settings say of a model that is pooled, and not asked to write.

Sentence-transformers' files name the pooling, further layers, a shorter context and
prompts. An encoder without them is averaged, as that library does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rvllm_local.errors import ModelFileError, UnsupportedModelError
from rvllm_local.models.config_file import read_config, read_settings
from rvllm_local.models.locate import ModelFiles

Family = Literal["bert", "modernbert", "nomic_bert", "gemma", "causal"]
Kind = Literal["embed", "score"]
Pooling = Literal["cls", "mean", "last"]
PairForm = tuple[str, str, str, str]
ENCODERS: Mapping[str, Family] = {
    "bert": "bert",
    "roberta": "bert",
    "xlm-roberta": "bert",
    "camembert": "bert",
    "modernbert": "modernbert",
    "nomic_bert": "nomic_bert",
}
_MODULES = "modules.json"
_LARGEST_LIST = 1 << 20
_POOLINGS: Mapping[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
_BY_NAME: Mapping[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
_SCORES = "ForSequenceClassification"
# Qwen3's rerankers are asked this way, and answer with one of two words.
_ASKED_TYPE = "qwen3"
_ANSWERS = ("no", "yes")
_PAIR_FORM: PairForm = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the "
    'Query and the Instruct provided. Note that the answer can only be "yes" or "no".'
    "<|im_end|>\n<|im_start|>user\n",
    "<Instruct>: Given a web search query, retrieve relevant passages that answer the "
    "query\n<Query>: ",
    "\n<Document>: ",
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
)


@dataclass(frozen=True, slots=True)
class PooledSetup:
    """How a pooled model is built and read.

    `dense` are folders of layers behind the pooling. `prompts` are texts that go before
    an input, by name. `num_labels` is 0 for a model of embeddings. `answers` are the
    words whose logits are the scores, of a model that is asked about a pair; `pair_form`
    is how it is asked (see `Pools`).
    """

    family: Family
    kind: Kind
    pooling: Pooling
    normalizes: bool
    max_tokens: int | None = None
    dense: tuple[str, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)
    num_labels: int = 0
    answers: tuple[str, ...] = ()
    pair_form: PairForm | None = None


def pooled_setup(files: ModelFiles) -> PooledSetup | None:
    """The setup of a model that is pooled; None for one that writes.

    Raises `ModelFileError` and `UnsupportedModelError`.
    """
    if files.kind != "folder":
        return None
    config = read_config(files.path)
    if _is_asked(files, config):
        return _asked(config)
    family = _family(files, config)
    if family is None:
        return None
    if _scores(config):
        return PooledSetup(
            family, "score", "cls", normalizes=False, num_labels=_num_labels(config)
        )
    if not (files.path / _MODULES).is_file():
        pooling: Pooling = "mean" if family in ENCODERS.values() else "last"
        return PooledSetup(family, "embed", pooling, normalizes=True)
    return _with_modules(files.path, family)


def _family(files: ModelFiles, config: Mapping[str, Any]) -> Family | None:
    model_type = config.get("model_type")
    encoder = ENCODERS.get(str(model_type))
    if encoder is not None:
        return encoder
    has_modules = (files.path / _MODULES).is_file()
    if not has_modules and "embed" not in files.name.lower():
        return None
    if config.get("use_bidirectional_attention"):
        if model_type != "gemma3_text":
            raise UnsupportedModelError(
                f"{files.name}: a {str(model_type)[:60]} model that looks both ways is "
                "not supported; gemma3_text is"
            )
        return "gemma"
    return "causal"


def _is_asked(files: ModelFiles, config: Mapping[str, Any]) -> bool:
    """True for a decoder that is asked whether a document is relevant."""
    is_decoder = config.get("model_type") == _ASKED_TYPE
    return is_decoder and ("rerank" in files.name.lower() or _scores(config))


def _asked(config: Mapping[str, Any]) -> PooledSetup:
    """A head of its own scores, or else the logits of two words do."""
    answers: tuple[str, ...] = _ANSWERS
    num_labels = len(_ANSWERS)
    if _scores(config):
        answers = ()
        num_labels = _num_labels(config)
    return PooledSetup(
        "causal",
        "score",
        "last",
        normalizes=False,
        num_labels=num_labels,
        answers=answers,
        pair_form=_PAIR_FORM,
    )


def _scores(config: Mapping[str, Any]) -> bool:
    names = config.get("architectures")
    if not isinstance(names, list):
        return False
    return any(str(name).endswith(_SCORES) for name in names)


def _num_labels(config: Mapping[str, Any]) -> int:
    labels = config.get("id2label")
    if isinstance(labels, Mapping):
        return max(1, len(labels))
    stated = config.get("num_labels", 2)
    if type(stated) is not int or not 1 <= stated <= 4096:
        raise ModelFileError(f"config.json has no usable num_labels: {stated!r:.60}")
    return stated


def _with_modules(folder: Path, family: Family) -> PooledSetup:
    """The setup that the list of modules describes."""
    pooling: Pooling = "mean"
    normalizes = False
    dense = []
    for module in _modules(folder):
        kind = str(module.get("type", "")).rpartition(".")[2]
        path = str(module.get("path", ""))
        if kind == "Pooling":
            pooling = _pooling(folder / _inside(folder, path))
        elif kind == "Normalize":
            normalizes = True
        elif kind == "Dense":
            dense.append(_inside(folder, path))
        elif kind != "Transformer":
            raise UnsupportedModelError(
                f"{folder / _MODULES}: a module of kind {kind!r:.60} is not supported; "
                "known are Transformer, Pooling, Dense and Normalize"
            )
    return PooledSetup(
        family,
        "embed",
        pooling,
        normalizes,
        _max_tokens(folder),
        tuple(dense),
        _prompts(folder),
    )


def _modules(folder: Path) -> list[dict[str, Any]]:
    """The rows of modules.json, which is a list and no object."""
    path = folder / _MODULES
    try:
        if path.stat().st_size > _LARGEST_LIST:
            raise ModelFileError(f"{path}: a list of modules is not that long")
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} cannot be read: {error}") from error
    is_list = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    if not is_list:
        raise ModelFileError(f"{path} does not hold a list of modules")
    return list(rows)


def _inside(folder: Path, path: str) -> str:
    """A module's folder by name. Raises `ModelFileError` for one that is elsewhere."""
    if "/" in path or "\\" in path or path.startswith(".") or "\0" in path:
        raise ModelFileError(
            f"{folder / _MODULES}: {path!r:.80} is no folder of this model"
        )
    return path


def _pooling(folder: Path) -> Pooling:
    """The one way of pooling that the settings name."""
    path = folder / "config.json"
    settings = read_settings(path)
    named = settings.get("pooling_mode")
    names = [named] if isinstance(named, str) else []
    for key, value in settings.items():
        if key.startswith("pooling_mode_") and value is True:
            names.append(key)
    poolings = {**_POOLINGS, **_BY_NAME}
    if len(names) == 1 and names[0] in poolings:
        return poolings[names[0]]
    shown = ", ".join(names) or "none"
    raise UnsupportedModelError(
        f"{path}: the pooling {shown} is not supported; known are the first token, "
        "the mean of all, and the last"
    )


def _max_tokens(folder: Path) -> int | None:
    path = folder / "sentence_bert_config.json"
    if not path.is_file():
        return None
    length = read_settings(path).get("max_seq_length")
    return length if type(length) is int and length > 0 else None


def _prompts(folder: Path) -> dict[str, str]:
    path = folder / "config_sentence_transformers.json"
    if not path.is_file():
        return {}
    prompts = read_settings(path).get("prompts")
    if not isinstance(prompts, Mapping):
        return {}
    texts = {}
    for name, text in prompts.items():
        if isinstance(text, str):
            texts[str(name)] = text
    return texts
