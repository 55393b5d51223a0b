"""Tokenizers in GGUF files: what a file leaves out, and tokens of the wrong type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import normalizers, pre_tokenizers
from tokenizers.models import BPE

from rvllm_local.errors import ModelFileError, UnsupportedModelError
from rvllm_local.models.locate import locate
from rvllm_local.text.pre_tokenizers import PRE_TOKENIZERS
from rvllm_local.text.tokenizer import Tokenizer
from rvllm_local.text.tokenizer_files import read_tokenizer
from tests.support.gguf import (
    ARRAY,
    FLOAT32,
    INT32,
    STRING,
    llama_metadata,
    llama_tensors,
    write_gguf,
)

PREFIX = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
PIECES = [
    ("<unk>", UNKNOWN),
    ("<s>", CONTROL),
    ("</s>", CONTROL),
    *((f"<0x{number:02X}>", BYTE) for number in range(256)),
    *((letter, NORMAL) for letter in "▁abcdefghijklmnop"),
    ("▁a", NORMAL),
    ("<|user|>", CONTROL),
    ("<|end|>", CONTROL),
]


def tokenizer_with(folder: Path, **keys: Any) -> Tokenizer:
    path = folder / "tiny.gguf"
    metadata = llama_metadata(**{PREFIX + key: value for key, value in keys.items()})
    path.write_bytes(write_gguf(metadata, llama_tensors()[0]))
    return read_tokenizer(locate(str(path)))


def sentencepiece(
    folder: Path, pieces: list[tuple[str, int]], name: str = "llama", **keys: Any
) -> Tokenizer:
    """A tokenizer of these pieces; a longer one merges before a shorter one."""
    scores = [float(len(text)) for text, _ in pieces]
    metadata = {
        "general.architecture": (STRING, name),
        f"{PREFIX}model": (STRING, "llama"),
        f"{PREFIX}tokens": (ARRAY, (STRING, [text for text, _ in pieces])),
        f"{PREFIX}scores": (ARRAY, (FLOAT32, scores)),
        f"{PREFIX}token_type": (ARRAY, (INT32, [kind for _, kind in pieces])),
    }
    for key, value in keys.items():
        if value is None:
            del metadata[PREFIX + key]
        else:
            metadata[PREFIX + key] = value
    path = folder / "tiny.gguf"
    path.write_bytes(write_gguf(metadata, []))
    return read_tokenizer(locate(str(path)))


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_way_of_cutting_keeps_the_text(tmp_path: Path, name: str) -> None:
    tokenizer = tokenizer_with(tmp_path, pre=(STRING, name))
    text = "the cat's 12345!!\n\n  x ÀÉ’s Дом 一二三カナ \t\r\n foo_bar()  "
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_superwords_are_cut_at_numbers_alone() -> None:
    backend = PRE_TOKENIZERS["superbpe"].backend()
    spans = [span for _, span in backend.pre_tokenize_str("by the way 1234567x")]
    assert spans == [(0, 11), (11, 12), (12, 15), (15, 18), (18, 19)]


def test_an_unknown_way_of_cutting_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="'from-mars'"):
        tokenizer_with(tmp_path, pre=(STRING, "from-mars"))


def test_a_file_without_a_way_of_cutting_gets_the_usual_one(tmp_path: Path) -> None:
    text = "a 12345"
    named = tokenizer_with(tmp_path, pre=(STRING, "default")).encode(text)
    assert tokenizer_with(tmp_path, pre=None).encode(text) == named


@pytest.mark.parametrize(
    ("name", "starts"),
    [("llama-bpe", True), ("lfm2", True), ("tekken", True), ("qwen2", False)],
)
def test_the_start_token_follows_the_family(
    tmp_path: Path, name: str, starts: bool
) -> None:
    tokenizer = tokenizer_with(tmp_path, pre=(STRING, name), add_bos_token=None)
    assert (tokenizer.encode("a")[0] == 1) is starts


def test_a_start_that_is_called_a_normal_token_begins_turns(tmp_path: Path) -> None:
    pieces = [*PIECES, ("<start_of_turn>", NORMAL)]
    tokenizer = sentencepiece(tmp_path, pieces)
    token_ids = tokenizer.encode("<start_of_turn>a", special=True)
    assert len(pieces) - 1 in token_ids


def test_an_end_that_is_called_a_normal_token_ends_turns(tmp_path: Path) -> None:
    """Converters have written every token of a vocabulary as a normal one."""
    tokenizer = tokenizer_with(tmp_path, token_type=None, eos_token_id=None)
    assert tokenizer.end_token_ids == {0, 2}
    assert tokenizer.encode("<|im_end|>") != [2]


def test_two_tokens_of_one_text_are_refused(tmp_path: Path) -> None:
    tokens = llama_metadata()[f"{PREFIX}tokens"][1][1]
    doubled = [*tokens[:-1], tokens[20]]
    with pytest.raises(ModelFileError, match=r"tokens 20 and 383 .* are both"):
        tokenizer_with(tmp_path, tokens=(ARRAY, (STRING, doubled)))


def test_a_list_that_is_too_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="token_type' does not have a value for"):
        tokenizer_with(tmp_path, token_type=(ARRAY, (INT32, [1, 1])))


def test_padding_of_type_unknown_is_padding(tmp_path: Path) -> None:
    """Phi-3's converters call the rows behind the vocabulary unknown as well."""
    pieces = [*PIECES, ("[PAD278]", UNKNOWN), ("[PAD279]", UNKNOWN)]
    tokenizer = sentencepiece(tmp_path, pieces)
    assert tokenizer.decode(tokenizer.encode("a cab")) == "a cab"
    assert tokenizer.vocab_size == len(pieces)


def test_missing_keys_of_a_sentencepiece_vocabulary(tmp_path: Path) -> None:
    tokenizer = sentencepiece(tmp_path, PIECES)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert tokenizer.encode("a")[0] == 1
    without = sentencepiece(tmp_path, PIECES, scores=None)
    assert without.decode(without.encode("abc 日")) == "abc 日"
    unnamed = [(text, NORMAL if text == "<unk>" else kind) for text, kind in PIECES]
    assert sentencepiece(tmp_path, unnamed).encode("a")[0] == 1


def test_phi3s_special_tokens_take_the_blanks_behind_them(tmp_path: Path) -> None:
    text = "<|user|>\n a<|end|>\n"
    kept = sentencepiece(tmp_path, PIECES).encode(text, special=True)
    taken = sentencepiece(tmp_path, PIECES, "phi3").encode(text, special=True)
    newline = 3 + 0x0A
    assert kept.count(newline) == 2
    assert newline not in taken


@pytest.mark.parametrize(
    ("texts", "ends"),
    [
        ([], {"</s>", "<|end|>"}),
        (["<|im_end|>"], {"</s>", "<|end|>", "<|im_end|>"}),
        (["<|channel|>", "<|return|>", "<|call|>"], {"</s>", "<|return|>", "<|call|>"}),
        (["<|flush|>", "<|calls|>"], {"</s>", "<|flush|>", "<|calls|>"}),
        (
            ["<|fim_pad|>", "<|file_sep|>"],
            {"</s>", "<|end|>", "<|fim_pad|>", "<|file_sep|>"},
        ),
        (["[EOT]", "<end_of_turn>"], {"</s>", "<|end|>", "[EOT]", "<end_of_turn>"}),
    ],
)
def test_known_texts_end_turns(
    tmp_path: Path, texts: list[str], ends: set[str]
) -> None:
    pieces = [*PIECES, *((text, CONTROL) for text in texts)]
    tokenizer = sentencepiece(tmp_path, pieces)
    numbers = {text: number for number, (text, _) in enumerate(pieces)}
    assert tokenizer.end_token_ids == {numbers[text] for text in ends}


def test_gemma_4s_pieces_merge_as_in_its_own_tokenizer(tmp_path: Path) -> None:
    words = ["▁", *"abcéno", "\n", "▁a", "ab", "▁ab", "▁▁", "\n\n", "no", "▁no"]
    merges = ["▁ a", "a b", "▁ ab", "▁ ▁", "\n \n", "n o", "▁ no"]
    pieces = [("<pad>", CONTROL), ("<eos>", CONTROL), ("<bos>", CONTROL)]
    pieces += [("<unk>", UNKNOWN), ("<|channel>", USER_DEFINED)]
    pieces += [(f"<0x{number:02X}>", BYTE) for number in range(256)]
    pieces += [(word, NORMAL) for word in words]
    tokenizer = sentencepiece(
        tmp_path,
        pieces,
        "gemma4",
        model=(STRING, "gemma4"),
        merges=(ARRAY, (STRING, merges)),
        bos_token_id=(INT32, 2),
    )
    numbers = {text: number for number, (text, _) in enumerate(pieces)}
    own = Backend(
        BPE(
            vocab=numbers,
            merges=[tuple(merge.split(" ")) for merge in merges],
            byte_fallback=True,
            fuse_unk=True,
            unk_token="<unk>",
        )
    )
    own.normalizer = normalizers.Replace(" ", "▁")
    own.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    for text in ("ab no", " ab  no\n\n\nab", "é ñ 好 ab", "\n ab\n", "no<abc"):
        bos, *token_ids = tokenizer.encode(text)
        assert bos == numbers["<bos>"]
        assert token_ids == own.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(token_ids) == text
    marked = tokenizer.encode("<|channel>ab", special=True)
    assert marked == [numbers["<bos>"], numbers["<|channel>"], numbers["ab"]]
