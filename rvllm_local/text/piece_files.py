"""A byte-level vocabulary in two files: vocab.json and merges.txt.

Older models were published without tokenizer.json. How a text is cut stands in none of
the two files: the name of the tokenizer's class tells.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from rvllm_local.errors import ModelFileError, UnsupportedModelError
from rvllm_local.text.pre_tokenizers import PRE_TOKENIZERS
from rvllm_local.text.settings_files import read_settings_file

VOCABULARY, MERGES = "vocab.json", "merges.txt"
# Names of classes, without the ending of the faster ones, and of ways to cut.
_WAYS = {"GPT2Tokenizer": "gpt-2", "Qwen2Tokenizer": "qwen2"}


def has_piece_files(folder: Path) -> bool:
    """True for a folder with both files."""
    return (folder / VOCABULARY).is_file() and (folder / MERGES).is_file()


def backend_of_pieces(
    folder: Path,
    config: Mapping[str, Any],
    added: Mapping[str, int],
    special: set[str],
) -> Backend:
    """The tokenizer of two files; `added` are further tokens, and `special` some of them.

    Raises `UnsupportedModelError` for a class that is not known, and `ModelFileError` for
    files that do not belong together.
    """
    way = _way(folder, config)
    vocabulary = _vocabulary(folder, added)
    try:
        backend = Backend(BPE(vocab=vocabulary, merges=_merges(folder)))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises plain Exception
        reason = " ".join(str(error).split())[:200]
        raise ModelFileError(
            f"{folder / MERGES} does not fit {VOCABULARY}: {reason}"
        ) from error
    cut = PRE_TOKENIZERS[way]
    backend.pre_tokenizer = cut.backend()
    if config.get("add_prefix_space") is True:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    if cut.composes:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    for text in added:
        token = AddedToken(text, special=text in special, normalized=False)
        if token.special:
            backend.add_special_tokens([token])
        else:
            backend.add_tokens([token])
    return backend


def _way(folder: Path, config: Mapping[str, Any]) -> str:
    name = config.get("tokenizer_class")
    if name is None and read_settings_file(folder / "config.json").get(
        "model_type"
    ) in ("gpt2", "gpt_neox", "gpt_bigcode"):
        name = "GPT2Tokenizer"
    way = _WAYS.get(str(name).removesuffix("Fast"))
    if way is None:
        raise UnsupportedModelError(
            f"{folder}: {VOCABULARY} and {MERGES} without tokenizer.json are read for "
            f"{' and '.join(_WAYS)}; tokenizer_config.json names {name!r:.60}. Take a "
            "conversion of the model that has tokenizer.json"
        )
    return way


def _vocabulary(folder: Path, added: Mapping[str, int]) -> dict[str, int]:
    """Every token's id. Raises `ModelFileError` for an id of two tokens."""
    vocabulary = read_settings_file(folder / VOCABULARY)
    for text, number in vocabulary.items():
        if type(number) is not int or number < 0:
            raise ModelFileError(
                f"{folder / VOCABULARY}: token {text!r:.60} has no usable id"
            )
    texts = {number: text for text, number in vocabulary.items()}
    for text, number in added.items():
        other = texts.setdefault(number, text)
        if other != text or vocabulary.get(text, number) != number:
            raise ModelFileError(
                f"{folder}: {VOCABULARY} and the added tokens give id {number} to "
                f"{json.dumps(other)[:60]} and {json.dumps(text)[:60]}"
            )
    return {**vocabulary, **added}


def _merges(folder: Path) -> list[tuple[str, str]]:
    """Pairs of pieces. Raises `ModelFileError` for a line that is no pair."""
    path = folder / MERGES
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} cannot be read: {error}") from error
    pairs = []
    for count, line in enumerate(lines, start=1):
        is_head = count == 1 and line.startswith("#version")
        if is_head or not line.strip():
            continue
        first, blank, second = line.rstrip("\r").partition(" ")
        if not first or not blank or not second or " " in second:
            raise ModelFileError(f"{path}: line {count} is no pair of pieces")
        pairs.append((first, second))
    return pairs
