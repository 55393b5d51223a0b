"""Backends that encode: the `tokenizers` library or SentencePiece, and variants of them."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer as Backend

from rvllm_local.text.sentencepiece import SentencePieceBackend

AnyBackend = Backend | SentencePieceBackend
_MODEL_KEY = '"model":'
_SPACE = "\u2581"  # how SentencePiece spells a space
# Parts of a backend, and the key of the steps of each.
_SEQUENCES = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
}
# The settings of a normalizer, a pre-tokenizer, or a step of one.
_Part = dict[str, Any]


def token_ids_of(backend: AnyBackend, text: str) -> list[int]:
    """The ids of a text.

    The library's `encode` holds the interpreter's lock all the while, a third of a second
    for a megabyte; its batches do not.
    """
    if isinstance(backend, SentencePieceBackend):
        encoded = backend.encode(text)
        return encoded.ids
    (encoding,) = backend.encode_batch_fast([text], add_special_tokens=False)
    token_ids: list[int] = encoding.ids
    return token_ids


def adds_prefix_space(backend: AnyBackend) -> bool:
    """True if a text's first word is encoded as if a space stood before it."""
    if isinstance(backend, SentencePieceBackend):
        return backend.adds_space
    normalizer = _described(backend.normalizer)
    pre_tokenizer = _described(backend.pre_tokenizer)
    steps = [
        *_steps(normalizer, "normalizers"),
        *_steps(pre_tokenizer, "pretokenizers"),
    ]
    return any(_adds_space(step) for step in steps)


def without_prefix_space(backend: AnyBackend) -> AnyBackend:
    """The same tokenizer, for a text that goes on where another ended."""
    if isinstance(backend, SentencePieceBackend):
        return backend
    state, model = _settings(backend)
    for name, key in _SEQUENCES.items():
        part = state.get(name)
        state[name] = _part_without_space(part, key)
    return _backend_of(state, model)


def _part_without_space(part: _Part | None, key: str) -> _Part | None:
    """A normalizer or a pre-tokenizer that adds no space; None if nothing is left of it."""
    steps = []
    for step in _steps(part, key):
        changed = _without_space(step)
        if changed is not None:
            steps.append(changed)
    if not steps:
        return None
    if part is not None and key in part:
        return {**part, key: steps}
    return steps[0]


def without_special(
    backend: AnyBackend,
    special: set[str],
) -> AnyBackend:
    """The same tokenizer, blind to these tokens."""
    if isinstance(backend, SentencePieceBackend):
        return backend.blind_to(special)
    state, model = _settings(backend)
    plain = []
    for token in state["added_tokens"]:
        if token["content"] not in special:
            plain.append(token)
    state["added_tokens"] = plain
    state["post_processor"] = None
    return _backend_of(state, model)


def _settings(backend: Backend) -> tuple[dict[str, Any], str]:
    """The settings, and the model as JSON text: a large vocabulary is slow to parse."""
    text = backend.to_str()
    start = text.find(_MODEL_KEY + '{"type":')
    before = text[:start].rstrip()
    before = before.removesuffix(",")
    try:
        state = json.loads(before + "}")
    except ValueError:  # the library wrote it in another order
        state = json.loads(text)
        model = state.pop("model")
        return state, json.dumps(model)
    model_start = start + len(_MODEL_KEY)
    return state, text[model_start:-1]


def _backend_of(state: dict[str, Any], model: str) -> Backend:
    settings = json.dumps(state).removesuffix("}")
    return Backend.from_str(f'{settings}, "model": {model}}}')


def _described(part: Any) -> _Part | None:
    """The settings of one part of a backend."""
    if part is None:
        return None
    settings: _Part = json.loads(part.__getstate__())
    return settings


def _steps(part: _Part | None, key: str) -> list[_Part]:
    """The steps of a normalizer or a pre-tokenizer; one that is no sequence is a step."""
    if part is None:
        return []
    return list(part.get(key, [part]))


def _adds_space(step: _Part) -> bool:
    kind = step.get("type")
    if kind == "Prepend":
        prefix = step.get("prepend")
        return bool(prefix == _SPACE)
    if kind == "Metaspace":
        scheme = step.get("prepend_scheme", "always")
        return bool(scheme != "never")
    adds_space = step.get("add_prefix_space", False)
    return bool(adds_space)


def _without_space(step: _Part) -> _Part | None:
    """The step for a text that goes on; None for one that does nothing else."""
    if not _adds_space(step):
        return step
    kind = step.get("type")
    if kind == "Prepend":
        return None
    if kind == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    return {**step, "add_prefix_space": False}
