"""What can never fit is known before it is encoded; what fits is never refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from rvllm_local.errors import ContextOverflowError
from rvllm_local.text.token_bytes import byte_alphabet
from rvllm_local.text.token_spans import TokenSpans

LETTERS = list(byte_alphabet())
WORDS = ["aa", "aaaa", "ĠĠ", "Ã¤"]


def byte_level(letters: list[str] = LETTERS, **settings: Any) -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate([*letters, *WORDS])}
    merges = [("a", "a"), ("aa", "aa"), ("Ġ", "Ġ"), ("Ã", "¤")]
    backend = Tokenizer(models.BPE(vocabulary, merges, **settings))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return backend


def with_fallback(**settings: Any) -> Tokenizer:
    tokens = [*(f"<0x{byte:02X}>" for byte in range(256)), "a", "aa", "\u2581", "<unk>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    options = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    backend = Tokenizer(models.BPE(vocabulary, [("a", "a")], **options, **settings))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    return backend


def normalized(normalizer: Any) -> Tokenizer:
    backend = byte_level()
    backend.normalizer = normalizer
    return backend


BOUNDED = [
    byte_level(),
    byte_level(LETTERS[5:]),
    with_fallback(),
    normalized(normalizers.NFC()),
    normalized(normalizers.Replace("aaaaaaa", "ä")),
]


@settings(deadline=None, max_examples=50)
@given(
    text=st.text(st.sampled_from("a ä\u0308o\u1112\u1161\u11ab\u212aa!"), max_size=90)
)
@pytest.mark.parametrize("backend", BOUNDED)
def test_no_text_has_fewer_tokens(backend: Tokenizer, text: str) -> None:
    fewest = TokenSpans.of(backend).fewest_tokens(text)
    assert fewest <= len(backend.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("backend", BOUNDED)
def test_a_long_text_has_many(backend: Tokenizer) -> None:
    assert TokenSpans.of(backend).fewest_tokens("a" * 9000) >= 9000 // 40


def strips_blanks() -> Tokenizer:
    backend = byte_level()
    backend.add_special_tokens([AddedToken("<s>", rstrip=True)])
    return backend


def truncated() -> Tokenizer:
    backend = byte_level()
    backend.enable_truncation(8)
    return backend


def removing() -> Tokenizer:
    backend = byte_level()
    cut = pre_tokenizers.Split(" ", "removed")
    backend.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel()])
    return backend


@pytest.mark.parametrize(
    "backend",
    [
        strips_blanks(),
        truncated(),
        removing(),
        normalized(normalizers.NFKC()),
        normalized(normalizers.Strip()),
        normalized(normalizers.Replace("a", "")),
        Tokenizer(models.BPE({"a": 0, "<unk>": 1}, [], unk_token="<unk>")),
        Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>")),
    ],
)
def test_nothing_is_known_where_text_may_go_without_tokens(backend: Tokenizer) -> None:
    assert TokenSpans.of(backend).fewest_tokens(" a" * 9000) == 0


def test_what_can_not_fit_is_refused_with_its_least_length() -> None:
    spans = TokenSpans.of(byte_level())
    spans.check_length("a" * 40, 10, "prompt")
    with pytest.raises(ContextOverflowError, match="11 tokens at least") as refused:
        spans.check_length("a" * 41, 10, "prompt")
    assert refused.value.tokens_and_limit == (11, 10)
