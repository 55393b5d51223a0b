"""What encodes: the `tokenizers` library or SentencePiece, and variants of one backend."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer as Backend

from rvllm_local.text.sentencepiece import SentencePieceBackend

AnyBackend = Backend | SentencePieceBackend
_MODEL_KEY = '"model":'
_SPACE = "\u2581"  # how SentencePiece spells a space


def token_ids_of(backend: AnyBackend, text: str) -> list[int]:
    """The ids of a text.

    The library's `encode` holds the interpreter's lock all the while, a third of a second
    for a megabyte; its batches do not.
    """
    if isinstance(backend, SentencePieceBackend):
        return backend.encode(text).ids
    encodings = backend.encode_batch_fast([text], add_special_tokens=False)
    token_ids: list[int] = encodings[0].ids
    return token_ids


def adds_prefix_space(backend: AnyBackend) -> bool:
    """True if a text's first word is encoded as if a space stood before it."""
    if isinstance(backend, SentencePieceBackend):
        return backend.adds_space
    steps = [
        *_steps(_described(backend.normalizer), "normalizers"),
        *_steps(_described(backend.pre_tokenizer), "pretokenizers"),
    ]
    return any(_adds_space(step) for step in steps)


def without_prefix_space(backend: AnyBackend) -> AnyBackend:
    """The same tokenizer, for a text that goes on where another ended."""
    if isinstance(backend, SentencePieceBackend):
        return backend
    state, model = _settings(backend)
    for name, key in (
        ("normalizer", "normalizers"),
        ("pre_tokenizer", "pretokenizers"),
    ):
        part = state.get(name)
        kept = [_without_space(step) for step in _steps(part, key)]
        steps = [step for step in kept if step is not None]
        if not steps:
            state[name] = None
        elif part is not None and key in part:
            state[name] = {**part, key: steps}
        else:
            state[name] = steps[0]
    return _backend_of(state, model)


def without_special(backend: AnyBackend, special: set[str]) -> AnyBackend:
    """The same tokenizer, blind to these tokens."""
    if isinstance(backend, SentencePieceBackend):
        return backend.blind_to(special)
    state, model = _settings(backend)
    rows = state["added_tokens"]
    state["added_tokens"] = [row for row in rows if row["content"] not in special]
    state["post_processor"] = None
    return _backend_of(state, model)


def _settings(backend: Backend) -> tuple[dict[str, Any], str]:
    """The settings, and the model as JSON text: a large vocabulary is slow to parse."""
    text = backend.to_str()
    start = text.find(_MODEL_KEY + '{"type":')
    try:
        state = json.loads(text[:start].rstrip().removesuffix(",") + "}")
        return state, text[start + len(_MODEL_KEY) : -1]
    except ValueError:  # the library wrote it in another order
        state = json.loads(text)
        return state, json.dumps(state.pop("model"))


def _backend_of(state: dict[str, Any], model: str) -> Backend:
    return Backend.from_str(f'{json.dumps(state)[:-1]}, "model": {model}}}')


def _described(part: Any) -> dict[str, Any] | None:
    """The settings of one part of a backend."""
    if part is None:
        return None
    settings: dict[str, Any] = json.loads(part.__getstate__())
    return settings


def _steps(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer; one that is no sequence is a step."""
    if part is None:
        return []
    return list(part.get(key, [part]))


def _adds_space(step: dict[str, Any]) -> bool:
    if step.get("type") == "Prepend":
        return bool(step.get("prepend") == _SPACE)
    if step.get("type") == "Metaspace":
        return bool(step.get("prepend_scheme", "always") != "never")
    return bool(step.get("add_prefix_space", False))


def _without_space(step: dict[str, Any]) -> dict[str, Any] | None:
    """The step for a text that goes on; None for one that does nothing else."""
    if not _adds_space(step):
        return step
    if step.get("type") == "Prepend":
        return None
    if step.get("type") == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    return {**step, "add_prefix_space": False}
