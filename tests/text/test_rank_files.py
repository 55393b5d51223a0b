"""Vocabularies by rank give the tokens that merging by rank gives, and refuse what is unsound."""

from __future__ import annotations

import base64
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from rvllm_local.errors import ModelFileError, UnsupportedModelError
from rvllm_local.models.hub_plan import RemoteFile, choose_files
from rvllm_local.models.locate import ModelFiles
from rvllm_local.text.rank_files import TEKKEN
from rvllm_local.text.tokenizer_export import tokenizer_folder_files
from rvllm_local.text.tokenizer_files import read_tokenizer

WORDS = re.compile(r"\s*\S+|\s+")
TEXTS = [
    "ab abc",
    "  aabb\n\ncaa ",
    "<s>[INST] ab",
    "caf\u00e9 \u4f60\u597d ababab",
    "aaaaaaa",
]


def vocabulary(seed: int) -> list[bytes]:
    """All bytes, and tokens that are made of two earlier ones."""
    generator = random.Random(seed)
    tokens = [bytes([byte]) for byte in range(256)]
    letters = [b"a", b"b", b"c", b" ", b"\n", b"\xc3", b"\xa9"]
    while len(tokens) < 400:
        pool = letters + tokens[256:]
        token = generator.choice(pool) + generator.choice(pool)
        if token not in tokens and len(token) < 9:
            tokens.append(token)
    return tokens


def merged(piece: bytes, tokens: list[bytes]) -> list[int]:
    """As tiktoken does it: the first of the pairs that make the lowest rank, each time."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    if piece in ranks:
        return [ranks[piece]]
    parts = [piece[index : index + 1] for index in range(len(piece))]
    while len(parts) > 1:
        made = [
            (ranks.get(parts[index] + parts[index + 1], len(ranks)), index)
            for index in range(len(parts) - 1)
        ]
        rank, index = min(made)
        if rank == len(ranks):
            break
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return [ranks[part] for part in parts]


def write_tekken(folder: Path, tokens: list[bytes], **changes: Any) -> ModelFiles:
    rows = []
    for rank, token in enumerate(tokens):
        rows.append({"rank": rank, "token_bytes": base64.b64encode(token).decode()})
    config = {
        "pattern": WORDS.pattern,
        "default_vocab_size": len(tokens) + 30,
        "default_num_special_tokens": 30,
        "version": "v3",
    }
    value = {"config": config, "vocab": rows + rows[:3], **changes}
    (folder / TEKKEN).write_text(json.dumps(value))
    return ModelFiles("folder", folder, "ranks")


def write_lines(
    folder: Path, name: str, tokens: list[bytes], tokenizer: str
) -> ModelFiles:
    lines = []
    for rank, token in enumerate(tokens):
        lines.append(f"{base64.b64encode(token).decode()} {rank}\n")
    (folder / name).write_text("".join(lines))
    row = {"content": "<|im_end|>", "special": True}
    settings = {
        "tokenizer_class": tokenizer,
        "added_tokens_decoder": {str(len(tokens) + 2): row},
        "eos_token": "<|im_end|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return ModelFiles("folder", folder, "ranks")


@pytest.mark.parametrize("seed", range(4))
def test_tekkens_tokens_are_those_of_their_ranks(seed: int, tmp_path: Path) -> None:
    tokens = vocabulary(seed)
    tokenizer = read_tokenizer(write_tekken(tmp_path, tokens))
    generator = random.Random(seed)
    texts = list(TEXTS)
    for _ in range(100):
        texts.append("".join(generator.choices("aabbc \n\u00e9", k=20)))
    for text in texts:
        expected = [1] * tokenizer.adds_bos
        for word in WORDS.findall(text):
            expected += [30 + rank for rank in merged(word.encode(), tokens)]
        assert list(tokenizer.encode(text)) == expected
        assert tokenizer.decode(expected, skip_special=True) == text


def test_tekkens_special_tokens_come_first(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(write_tekken(tmp_path, vocabulary(0)))
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert tokenizer.adds_bos
    assert tokenizer.special_token_id("[INST]") == 3
    assert tokenizer.special_token_id("<SPECIAL_29>") == 29
    named = [{"rank": 0, "token_str": "<unk>"}, {"rank": 7, "token_str": "[THINK]"}]
    ends = [{"rank": 1, "token_str": "<s>"}, {"rank": 2, "token_str": "</s>"}]
    files = write_tekken(tmp_path, vocabulary(0), special_tokens=named + ends)
    assert read_tokenizer(files).special_token_id("[THINK]") == 7


@pytest.mark.parametrize(
    ("name", "tokenizer_class", "end"),
    [
        ("tiktoken.model", "TikTokenTokenizer", 402),
        ("qwen.tiktoken", "QWenTokenizer", 402),
    ],
)
def test_tiktokens_files(
    name: str, tokenizer_class: str, end: int, tmp_path: Path
) -> None:
    tokens = vocabulary(1)
    tokenizer = read_tokenizer(write_lines(tmp_path, name, tokens, tokenizer_class))
    assert tokenizer.special_token_id("<|im_end|>") == end
    for word in ("aabbcab", "abcb", "cabacb"):
        assert list(tokenizer.encode(word)) == merged(word.encode(), tokens)


def test_kimi_parts_han_from_other_letters(tmp_path: Path) -> None:
    tokens = [*vocabulary(1), "\u4f60a".encode(), b"1234", b"aB"]
    files = write_lines(tmp_path, "tiktoken.model", tokens, "TikTokenTokenizer")
    tokenizer = read_tokenizer(files)
    pieces = ["\u4f60", "a", "123", "4", "a", "B"]
    expected: list[int] = []
    for piece in pieces:
        expected += merged(piece.encode(), tokens)
    assert list(tokenizer.encode("\u4f60a1234aB")) == expected


def test_a_class_that_is_not_known_is_named(tmp_path: Path) -> None:
    files = write_lines(tmp_path, "tiktoken.model", vocabulary(0), "OddTokenizer")
    with pytest.raises(UnsupportedModelError, match=r"OddTokenizer.*tokenizer\.json"):
        read_tokenizer(files)


def test_ranks_under_sentencepieces_name_are_refused(tmp_path: Path) -> None:
    """As Meta's own files of Llama 3 have it."""
    files = write_lines(tmp_path, "tokenizer.model", vocabulary(0), "Tokenizer")
    with pytest.raises(
        UnsupportedModelError, match=r"ranks of tiktoken.*tokenizer\.json"
    ):
        read_tokenizer(files)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not a sound vocabulary"),
        ('{"config": {}, "vocab": []}', "default_num_special_tokens"),
        (
            '{"config": {"default_vocab_size": 9, "default_num_special_tokens": 3,'
            ' "pattern": "x"}, "vocab": []}',
            "6 of 0 tokens",
        ),
    ],
)
def test_an_unsound_tekken_is_named(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / TEKKEN).write_text(text)
    with pytest.raises(ModelFileError, match=rf"tekken\.json.*{words}"):
        read_tokenizer(ModelFiles("folder", tmp_path, "ranks"))


@pytest.mark.parametrize("line", ["YQ== 5", "Y 256", "YQ==", "YQ== x"])
def test_an_unsound_line_is_named(line: str, tmp_path: Path) -> None:
    tokens = [bytes([byte]) for byte in range(256)]
    files = write_lines(tmp_path, "tiktoken.model", tokens, "TikTokenTokenizer")
    path = tmp_path / "tiktoken.model"
    path.write_text(path.read_text() + line)
    with pytest.raises(ModelFileError, match=r"tiktoken\.model is not a sound"):
        read_tokenizer(files)


def test_a_file_of_ranks_is_fetched_and_kept(tmp_path: Path) -> None:
    names = ["config.json", "model.safetensors", TEKKEN]
    offered = [RemoteFile(name, 8, sha256="0" * 64) for name in names]
    fetched = {file.name for file in choose_files("owner/name", offered)}
    assert fetched == set(names)
    offered.append(RemoteFile("tokenizer.json", 8, sha256="0" * 64))
    fetched = {file.name for file in choose_files("owner/name", offered)}
    assert TEKKEN not in fetched
    files = write_tekken(tmp_path, vocabulary(0))
    assert TEKKEN in tokenizer_folder_files(files, read_tokenizer(files))
