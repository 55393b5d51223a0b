"""Reads a model's tokenizer from its files: tokenizer.json, a SentencePiece model, or the keys of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from rvllm_local.errors import ModelFileError, UnsupportedModelError
from rvllm_local.models.locate import ModelFiles
from rvllm_local.models.stand_in import refuse_stand_in
from rvllm_local.text.chat_templates import templates_of_folder
from rvllm_local.text.named_tokens import named_tokens, special_texts, token_text
from rvllm_local.text.piece_files import VOCABULARY, backend_of_pieces, has_piece_files
from rvllm_local.text.rank_files import (
    TEKKEN,
    TEKKENS_NAMES,
    backend_of_ranks,
    rank_file,
    refuse_ranks,
)
from rvllm_local.text.sentencepiece import SentencePieceBackend
from rvllm_local.text.settings_files import read_settings_file
from rvllm_local.text.tokenizer import Tokenizer

# Tokenizers of models that were published without tokenizer.json.
_OTHER_FORMS = (
    "vocab.json",
    "vocab.txt",
)
_MOST_IDS = 1 << 24  # more than any vocabulary has


def read_tokenizer(files: ModelFiles) -> Tokenizer:
    """The tokenizer of a model. Raises `ModelFileError` or `UnsupportedModelError`."""
    if files.kind == "gguf":
        from rvllm_local.text.gguf_tokenizer import gguf_tokenizer  # loads numpy

        return gguf_tokenizer(files.path)
    return _from_folder(files.path)


def _from_folder(folder: Path) -> Tokenizer:
    config = read_settings_file(folder / "tokenizer_config.json")
    has_json = (folder / "tokenizer.json").is_file()
    if not has_json and (folder / "tokenizer.model").is_file():
        return _from_sentencepiece(folder, config)
    names = named_tokens(folder, config)
    ranks = rank_file(folder)
    first: list[str] | None = None
    if not has_json and has_piece_files(folder):
        backend = backend_of_pieces(folder, config, *_added_tokens(folder, config))
    elif not has_json and ranks is not None:
        added, _ = _added_tokens(folder, config)
        backend = backend_of_ranks(ranks, config, added)
        if ranks.name == TEKKEN:
            names = {**TEKKENS_NAMES, **names}
            config = {"add_bos_token": True, **config}
    else:
        backend, first = _read_backend(folder)
    bos = names.get("bos_token")
    eos = names.get("eos_token")
    if eos is not None and backend.token_to_id(eos) is None:
        raise ModelFileError(
            f"{folder}: its settings name the end token {eos!r:.60}, which "
            f"{_source(has_json)} does not have"
        )
    adds_bos = first == [bos]
    if first is None:
        adds_bos = config.get("add_bos_token") is True
    special = special_texts(folder, config)
    _add_special(backend, special)
    return Tokenizer(
        backend,
        bos_token=bos,
        eos_token=eos,
        templates=templates_of_folder(folder, config),
        add_bos=bos is not None and adds_bos,
        named_tokens=names,
        special=special,
    )


def _source(has_json: bool) -> str:
    return "tokenizer.json" if has_json else VOCABULARY


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
            f"{folder} has no tokenizer.json and no tokenizer.model{_instead(folder)}"
        )
    refuse_stand_in(path)
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


def _instead(folder: Path) -> str:
    """What a folder has of tokenizers of other forms, and what to do about it."""
    names = [name for name in _OTHER_FORMS if (folder / name).is_file()]
    if not names:
        return ""
    return (
        f"; it has {', '.join(names)}, which is not read here: take a conversion of the "
        "model that has tokenizer.json"
    )


def _from_sentencepiece(folder: Path, config: Mapping[str, Any]) -> Tokenizer:
    path = folder / "tokenizer.model"
    refuse_stand_in(path)
    refuse_ranks(path)
    extra, special = _added_tokens(folder, config)
    prefix = config.get("add_prefix_space")
    backend = SentencePieceBackend.parse(
        path.read_bytes(),
        str(path),
        extra,
        special,
        prefix if isinstance(prefix, bool) else None,
        _taking_blanks(config),
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


def _taking_blanks(config: Mapping[str, Any]) -> list[str]:
    """Texts of the added tokens behind which blanks are dropped."""
    decoder = config.get("added_tokens_decoder")
    if not isinstance(decoder, Mapping):
        return []
    texts = []
    for row in decoder.values():
        text = token_text(row)
        if text and isinstance(row, Mapping) and row.get("rstrip") is True:
            texts.append(text)
    return texts


def _in_short(error: BaseException) -> str:
    """What the library says, on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
