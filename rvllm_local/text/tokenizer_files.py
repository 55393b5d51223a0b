"""Reads a model's tokenizer from its files: tokenizer.json, a SentencePiece model, or the keys of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from rvllm_local.errors import ModelFileError, UnsupportedModelError
from rvllm_local.models.gguf.reader import GGUFFile
from rvllm_local.models.locate import ModelFiles
from rvllm_local.text.chat_templates import templates_of_folder, templates_of_gguf
from rvllm_local.text.named_tokens import named_tokens, special_texts, token_text
from rvllm_local.text.sentencepiece import SentencePieceBackend, build_proto
from rvllm_local.text.settings_files import read_settings_file
from rvllm_local.text.tokenizer import Tokenizer

# Names of special tokens in a GGUF file, and in templates.
_GGUF_NAMES = {
    "bos": "bos",
    "eos": "eos",
    "padding": "pad",
    "unknown": "unk",
    "seperator": "sep",
    "mask": "mask",
    "cls": "cls",
}
_CONTROL = 3  # token types in a GGUF file
_USER_DEFINED = 4
_MOST_IDS = 1 << 24  # more than any vocabulary has
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ENDING = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_NOT_WORD = r"[^\r\n\p{L}\p{N}]?"
_WORDS = (
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    + _ENDING
)
_CASED = rf"{_NOT_WORD}{_UPPER}*{_LOWER}+%s|{_NOT_WORD}{_UPPER}+{_LOWER}*%s|\p{{N}}%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*"
# How GGUF names the ways of cutting a text before BPE; the expressions are the models' own.
_PATTERNS = {
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "smaug-bpe", "dbrx", "falcon3"),
        _WORDS % "{1,3}",
    ),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _WORDS % ""),
    "tekken": _CASED % ("", "", "") + _ENDING,
    "gpt-4o": _CASED % (_CONTRACTIONS + "?", _CONTRACTIONS + "?", "{1,3}") + _ENDING,
}
_GPT2 = ("gpt-2", "default", "olmo", "mpt", "phi-2", "jais", "trillion")
_SINGLE_DIGITS = (
    "smollm",
    "starcoder",
    "refact",
    "command-r",
    "codeshell",
    "exaone",
    "granite",
)
_STARTS_WITH_BOS = ("llama-bpe", "llama3", "llama-v3", "tekken")
_WHOLE_WORDS_FIRST = ("llama-bpe", "llama3", "llama-v3", "tekken", "smaug-bpe")


def read_tokenizer(files: ModelFiles) -> Tokenizer:
    """The tokenizer of a model. Raises `ModelFileError` or `UnsupportedModelError`."""
    return _from_gguf(files.path) if files.kind == "gguf" else _from_folder(files.path)


def _from_folder(folder: Path) -> Tokenizer:
    config = read_settings_file(folder / "tokenizer_config.json")
    has_json = (folder / "tokenizer.json").is_file()
    if not has_json and (folder / "tokenizer.model").is_file():
        return _from_sentencepiece(folder, config)
    backend, first = _read_backend(folder)
    names = named_tokens(folder, config)
    bos = names.get("bos_token")
    special = special_texts(folder, config)
    _add_special(backend, special)
    return Tokenizer(
        backend,
        bos_token=bos,
        eos_token=names.get("eos_token"),
        templates=templates_of_folder(folder, config),
        add_bos=bos is not None and first == [bos],
        named_tokens=names,
        special=special,
    )


def _add_special(backend: Backend, texts: set[str]) -> None:
    """Let tokens of the vocabulary that settings call special be found in templates."""
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    tokens = []
    for text in sorted(texts - added):
        if backend.token_to_id(text) is not None:
            tokens.append(AddedToken(text, special=True, normalized=False))
    backend.add_special_tokens(tokens)


def _read_backend(folder: Path) -> tuple[Backend, list[str]]:
    """The tokenizer, and the token that its post-processor begins a text with, or else the text's own first one."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UnsupportedModelError(
            f"{folder} has no tokenizer.json and no tokenizer.model"
        )
    try:
        backend = Backend.from_str(path.read_text(encoding="utf-8"))
        # Settings of whoever saved it last: they would cut or pad every text.
        backend.no_truncation()
        backend.no_padding()
        return backend, backend.encode("a").tokens[:1]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises plain Exception, and what Rust panics with is not even one
        raise ModelFileError(
            f"{path} is not a sound tokenizer: {_in_short(error)}"
        ) from error


def _from_sentencepiece(folder: Path, config: Mapping[str, Any]) -> Tokenizer:
    path = folder / "tokenizer.model"
    extra, special = _added_tokens(folder, config)
    prefix = config.get("add_prefix_space")
    backend = SentencePieceBackend.parse(
        path.read_bytes(),
        str(path),
        extra,
        special,
        prefix if isinstance(prefix, bool) else None,
    )
    names = named_tokens(folder, config)
    bos = names.get("bos_token") or backend.bos_token
    eos = names.get("eos_token") or backend.eos_token
    for text in (bos, eos):
        if text is not None and backend.token_to_id(text) is None:
            raise ModelFileError(
                f"{path}: the configuration names a token {text!r:.60} that it does not have"
            )
    return Tokenizer(
        backend,
        bos_token=bos,
        eos_token=eos,
        templates=templates_of_folder(folder, config),
        add_bos=bos is not None and config.get("add_bos_token", True) is True,
        named_tokens=names,
        special=special_texts(folder, config),
    )


def _added_tokens(
    folder: Path, config: Mapping[str, Any]
) -> tuple[dict[str, int], set[str]]:
    """Tokens that a folder adds to its SentencePiece model, and its special texts."""
    extra: dict[str, int] = {}
    special: set[str] = set()
    for text, token in read_settings_file(folder / "added_tokens.json").items():
        extra[text] = token
        special.add(text)
    decoder = config.get("added_tokens_decoder")
    if not isinstance(decoder, Mapping):
        decoder = {}
    for token, row in decoder.items():
        content = token_text(row)
        if not content or not isinstance(row, Mapping) or not str(token).isdecimal():
            continue
        extra[content] = int(token)
        if row.get("special"):
            special.add(content)
        else:
            special.discard(content)
    for text, token in extra.items():
        if type(token) is not int or not 0 <= token < _MOST_IDS:
            raise ModelFileError(f"{folder}: added token {text!r:.60} has no usable id")
    return extra, special


def _from_gguf(path: Path) -> Tokenizer:
    metadata = GGUFFile(path).metadata
    kind = metadata.get("tokenizer.ggml.model")
    pre = str(metadata.get("tokenizer.ggml.pre", "default"))
    try:
        if kind == "gpt2":
            backend: Any = _byte_level(metadata, pre, path)
        elif kind in ("llama", "t5"):
            backend = _sentencepiece_of(metadata, str(path), unigram=kind == "t5")
        else:
            raise UnsupportedModelError(
                f"{path}: tokenizer {kind!r:.80} in a GGUF file is not supported; known "
                "are gpt2, llama and t5"
            )
    except (UnsupportedModelError, ModelFileError, KeyboardInterrupt, SystemExit):
        raise
    # Keys are missing, the library refuses the merges, or Rust panics.
    except BaseException as error:
        raise ModelFileError(
            f"{path}: its tokenizer is damaged: {_in_short(error)}"
        ) from error
    names = _gguf_token_names(metadata)
    bos = names.get("bos_token")
    starts_by_default = kind == "llama" or pre in _STARTS_WITH_BOS
    adds_bos = metadata.get("tokenizer.ggml.add_bos_token", starts_by_default)
    return Tokenizer(
        backend,
        bos_token=bos,
        eos_token=names.get("eos_token"),
        templates=templates_of_gguf(metadata, path),
        named_tokens=names,
        uses_known_ends=True,
        add_bos=bos is not None and bool(adds_bos),
    )


def _gguf_token_names(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Texts of the special tokens by name, such as `bos_token`."""
    tokens = metadata["tokenizer.ggml.tokens"]
    names = {}
    for key, name in _GGUF_NAMES.items():
        token = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if type(token) is int and 0 <= token < len(tokens):
            names[f"{name}_token"] = tokens[token]
    return names


def _byte_level(metadata: Mapping[str, Any], pre: str, path: Path) -> Backend:
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = metadata["tokenizer.ggml.merges"]
    types = metadata["tokenizer.ggml.token_type"]
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    vocab = {token: rank for rank, token in enumerate(tokens)}
    model = BPE(vocab=vocab, merges=pairs, ignore_merges=pre in _WHOLE_WORDS_FIRST)
    backend = Backend(model)
    special = []
    added = []
    for token, kind in zip(tokens, types, strict=True):
        if kind == _CONTROL:
            special.append(AddedToken(token, special=True, normalized=False))
        elif kind == _USER_DEFINED:
            added.append(AddedToken(token, special=False, normalized=False))
    backend.pre_tokenizer = _pre_tokenizer(pre, path)
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    backend.add_tokens(added)
    return backend


def _pre_tokenizer(name: str, path: Path) -> pre_tokenizers.PreTokenizer:
    if name in _PATTERNS:
        split = pre_tokenizers.Split(Regex(_PATTERNS[name]), behavior="isolated")
        spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([split, spelled])
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name in _GPT2:
        return byte_level
    if name in _SINGLE_DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, byte_level])
    supported = ", ".join(sorted({*_PATTERNS, *_GPT2, *_SINGLE_DIGITS}))
    raise UnsupportedModelError(
        f"{path}: pre-tokenizer {name!r:.80} in a GGUF file is not supported; known are "
        f"{supported}. Use safetensors instead"
    )


def _sentencepiece_of(
    metadata: Mapping[str, Any], name: str, unigram: bool
) -> SentencePieceBackend:
    tokens = metadata["tokenizer.ggml.tokens"]
    scores = metadata["tokenizer.ggml.scores"]
    types = metadata["tokenizer.ggml.token_type"]
    has_prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    strips = metadata.get("tokenizer.ggml.remove_extra_whitespaces", False)
    charsmap = metadata.get("tokenizer.ggml.precompiled_charsmap", [])
    proto = build_proto(
        list(zip(tokens, scores, types, strict=True)),
        unigram=unigram,
        prefix_space=bool(has_prefix),
        strip=bool(strips),
        charsmap=bytes([value & 0xFF for value in charsmap]),
    )
    return SentencePieceBackend(proto, name)


def _in_short(error: BaseException) -> str:
    """What the library says, on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
