"""Byte-level vocabularies by rank: Mistral's tekken.json, and files of tiktoken.

They hold tokens' bytes in the order in which pieces become them, and no merges. A piece
merges from any two tokens that make it up, so merges follow from the tokens: those of a
lower rank first.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, normalizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from rvllm_local.errors import ModelFileError, UnsupportedModelError
from rvllm_local.models.stand_in import refuse_stand_in
from rvllm_local.text.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from rvllm_local.text.token_bytes import byte_alphabet

TEKKEN = "tekken.json"
_LARGEST = 256 << 20
_LONGEST_LINE = 256
_FIRST_LINE = re.compile(rb"[A-Za-z0-9+/]+=* 0\r?\n")
_MOST_TOKENS = 1 << 22
# Special tokens of a tekken.json that names none, by their ids.
_TEKKENS_FIRST = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
)
TEKKENS_NAMES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}
_HAN = r"[\p{Han}]+"
_NOT_HAN = r"&&[^\p{Han}]]"
_UPPER = rf"[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}{_NOT_HAN}"
_LOWER = rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}{_NOT_HAN}"
_SHORT_FORMS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_KIMI = PreTokenizer(
    (
        rf"{_HAN}|{_BEFORE}{_UPPER}*{_LOWER}+{_SHORT_FORMS}"
        rf"|{_BEFORE}{_UPPER}+{_LOWER}*{_SHORT_FORMS}"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
)
_KIMIS_RESERVED = 258
_QWENS_EXTRA = 205


@dataclass(frozen=True, slots=True)
class _Ranks:
    """Tokens' bytes in their order, the ids of special tokens, and how a text is cut.

    `first` is the id of the first token.
    """

    tokens: list[bytes]
    special: dict[str, int]
    way: PreTokenizer
    first: int = 0


def rank_file(folder: Path) -> Path | None:
    """The folder's file of ranks; None if it has none."""
    for name in (TEKKEN, *_TIKTOKENS):
        path = folder / name
        if path.is_file():
            return path
    return None


def refuse_ranks(path: Path) -> None:
    """Raise `UnsupportedModelError` for a tokenizer.model that holds ranks of tiktoken.

    Others of that name are SentencePiece's.
    """
    with path.open("rb") as file:
        start = file.read(_LONGEST_LINE)
    if _FIRST_LINE.match(start):
        raise UnsupportedModelError(
            f"{path} holds ranks of tiktoken, and how a text is cut stands in code, "
            "which never runs. Take a conversion of the model that has tokenizer.json"
        )


def backend_of_ranks(
    path: Path, config: Mapping[str, Any], added: Mapping[str, int]
) -> Backend:
    """The tokenizer of such a file; `config` is tokenizer_config.json.

    added: further tokens with their ids. Raises `UnsupportedModelError` for a tokenizer
    whose way of cutting is not known, and `ModelFileError` for a file that is not sound.
    """
    refuse_stand_in(path)
    if path.stat().st_size > _LARGEST:
        raise ModelFileError(f"{path} is too large to be a vocabulary")
    try:
        if path.name == TEKKEN:
            ranks = _tekken(path)
        else:
            ranks = _TIKTOKENS[path.name](path, config, added)
        return _backend(ranks)
    except (UnsupportedModelError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises plain Exception
        reason = " ".join(str(error).split())[:200]
        raise ModelFileError(f"{path} is not a sound vocabulary: {reason}") from error


def _tekken(path: Path) -> _Ranks:
    value = json.loads(path.read_text(encoding="utf-8"))
    config = value["config"]
    reserved = config["default_num_special_tokens"]
    count = config["default_vocab_size"] - reserved
    if not 0 < count <= len(value["vocab"]) or not 0 <= reserved < _MOST_TOKENS:
        raise ValueError(f"{count} of {len(value['vocab'])} tokens are to count")
    tokens = []
    for rank, row in enumerate(value["vocab"][:count]):
        if row["rank"] != rank:
            raise ValueError(f"rank {rank} is of another token")
        tokens.append(base64.b64decode(row["token_bytes"], validate=True))
    special = _tekkens_special(value.get("special_tokens"), reserved)
    way = PreTokenizer((config["pattern"],))
    return _Ranks(tokens, special, way, reserved)


def _tekkens_special(rows: Any, reserved: int) -> dict[str, int]:
    """Ids of the special tokens, with names for those that have none."""
    texts = dict(enumerate(_TEKKENS_FIRST))
    if rows is not None:
        texts = {row["rank"]: row["token_str"] for row in rows}
    special = {}
    for number in range(reserved):
        text = texts.get(number, f"<SPECIAL_{number}>")
        special[text] = number
    if len(special) != reserved:
        raise ValueError("two special tokens have one text")
    return special


def _kimis(path: Path, config: Mapping[str, Any], added: Mapping[str, int]) -> _Ranks:
    _check_class(path, config, "TikTokenTokenizer")
    tokens = _lines(path)
    texts = {number: text for text, number in added.items()}
    special = {}
    for number in range(len(tokens), len(tokens) + _KIMIS_RESERVED):
        text = texts.get(number, f"<|reserved_token_{number}|>")
        special[text] = number
    return _Ranks(tokens, special, _KIMI)


def _qwens(path: Path, config: Mapping[str, Any], added: Mapping[str, int]) -> _Ranks:
    _check_class(path, config, "QWenTokenizer")
    tokens = _lines(path)
    texts = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    for number in range(_QWENS_EXTRA):
        texts.append(f"<|extra_{number}|>")
    special = dict(added)
    for number, text in enumerate(texts, len(tokens)):
        special[text] = number
    return _Ranks(tokens, special, PRE_TOKENIZERS["qwen2"])


def _check_class(path: Path, config: Mapping[str, Any], expected: str) -> None:
    """How a text is cut stands in the code of a class, which never runs."""
    name = config.get("tokenizer_class")
    if name != expected:
        raise UnsupportedModelError(
            f"{path} is read for {expected}; tokenizer_config.json names {name!r:.60}. "
            "Take a conversion of the model that has tokenizer.json"
        )


def _lines(path: Path) -> list[bytes]:
    """Tokens of a file with a token and its rank in each line."""
    tokens = []
    for rank, line in enumerate(path.read_bytes().splitlines()):
        token, _, number = line.partition(b" ")
        if int(number) != rank:
            raise ValueError(f"line {rank + 1} has the rank {number[:20]!r}")
        try:
            tokens.append(base64.b64decode(token, validate=True))
        except binascii.Error as error:
            raise ValueError(f"line {rank + 1} is no token") from error
    return tokens


def _backend(ranks: _Ranks) -> Backend:
    vocabulary = dict(ranks.special)
    spelled = _spelled(ranks.tokens)
    for rank, text in enumerate(spelled):
        number = vocabulary.setdefault(text, ranks.first + rank)
        if number != ranks.first + rank:
            raise ValueError(f"token {text!r:.60} has two ids")
    merges = _merges(spelled)
    backend = Backend(BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    backend.pre_tokenizer = ranks.way.backend()
    if ranks.way.composes:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    special = []
    for text in ranks.special:
        token = AddedToken(text, special=True, normalized=False)
        special.append(token)
    backend.add_special_tokens(special)
    return backend


def _spelled(tokens: list[bytes]) -> list[str]:
    """Tokens in the library's alphabet of bytes."""
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    return [token.decode("latin-1").translate(letters) for token in tokens]


def _merges(tokens: list[str]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token, in the order of what it makes.

    Of the pairs of one token that of the lower ranks comes first.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = []
    for token in tokens:
        pairs = []
        for end in range(1, len(token)):
            left = ranks.get(token[:end])
            right = ranks.get(token[end:])
            if left is not None and right is not None:
                pairs.append((left, right))
        pairs.sort()
        for left, right in pairs:
            merges.append((tokens[left], tokens[right]))
    return merges


_TIKTOKENS = {
    "tiktoken.model": _kimis,
    "qwen.tiktoken": _qwens,
}
RANK_FILES = (TEKKEN, *_TIKTOKENS)
