"""The tokenizer in the keys of a GGUF file.

Where a file leaves a key out, or calls a token by a type that it is not, the value is
the one that llama.cpp's loader takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from rvllm_local.errors import ModelFileError, UnsupportedModelError
from rvllm_local.models.gguf.reader import GGUFFile
from rvllm_local.text.chat_templates import templates_of_gguf
from rvllm_local.text.pre_tokenizers import DEFAULT, PRE_TOKENIZERS, PreTokenizer
from rvllm_local.text.sentencepiece import SentencePieceBackend, build_proto
from rvllm_local.text.tokenizer import Tokenizer
from rvllm_local.text.turn_ends import CERTAIN_ENDS

Metadata = Mapping[str, Any]
Rows = list[tuple[str, float, int]]  # text, score and type of each token

_PREFIX = "tokenizer.ggml."
# Names of special tokens in a GGUF file, and in templates.
_NAMES = {
    "bos": "bos",
    "eos": "eos",
    "padding": "pad",
    "unknown": "unk",
    "seperator": "sep",
    "mask": "mask",
    "cls": "cls",
}
# Ids of a SentencePiece vocabulary whose file does not name them.
_USUAL_IDS = {
    "llama": {"bos": 1, "eos": 2, "unknown": 0},
    "t5": {"eos": 1, "unknown": 2, "padding": 0},
}
_SPACE = "\u2581"  # how SentencePiece spells a space
# Types of tokens, as SentencePiece has them.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
# Converters call them normal at times: a prompt would have their letters.
_TURN_STARTS = frozenset(
    {
        "<start_of_turn>",
        "<|turn>",
        "<|im_start|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|START_OF_TURN_TOKEN|>",
    }
)
# An architecture whose special tokens take the blanks behind them, but for these.
_TAKES_BLANKS = "phi3"
_KEEPS_BLANKS = frozenset({"<unk>", "<s>", "<|endoftext|>"})


def gguf_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a GGUF file.

    Raises `ModelFileError` or `UnsupportedModelError`.
    """
    metadata = GGUFFile(path).metadata
    kind = str(metadata.get(f"{_PREFIX}model"))
    adds_bos = kind == "llama"
    try:
        rows = _rows(metadata, path)
        backend: Any
        if kind == "gpt2":
            way = _pre_tokenizer(metadata, path)
            adds_bos = way.starts_with_bos
            backend = _byte_level(metadata, rows, way)
        elif kind == "gemma4":
            adds_bos = True
            backend = _escaped(metadata, rows)
        elif kind in _USUAL_IDS:
            backend = _sentencepiece(metadata, rows, kind, path)
        else:
            raise UnsupportedModelError(
                f"{path}: tokenizer {kind!r:.80} in a GGUF file is not supported; known "
                "are gemma4, gpt2, llama and t5"
            )
    except (UnsupportedModelError, ModelFileError, KeyboardInterrupt, SystemExit):
        raise
    # Keys are missing, the library refuses the merges, or Rust panics.
    except BaseException as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelFileError(f"{path}: its tokenizer is damaged: {reason}") from error
    names = _token_names(metadata, rows, kind)
    bos = names.get("bos_token")
    adds_bos = bool(metadata.get(f"{_PREFIX}add_bos_token", adds_bos))
    return Tokenizer(
        backend,
        bos_token=bos,
        eos_token=names.get("eos_token"),
        templates=templates_of_gguf(metadata, path),
        named_tokens=names,
        uses_known_ends=True,
        add_bos=bos is not None and adds_bos,
    )


def _rows(metadata: Metadata, path: Path) -> Rows:
    """Every token's text, score and type.

    Raises `ModelFileError` for two tokens of one text, and for lists that are too short.
    """
    texts = metadata[f"{_PREFIX}tokens"]
    scores = _list(metadata, "scores", len(texts), 0.0, path)
    types = _list(metadata, "token_type", len(texts), _NORMAL, path)
    rows: Rows = []
    numbers: dict[str, int] = {}
    for number, written in enumerate(texts):
        text = written or f"[EMPTY_{number}]"
        first = numbers.setdefault(text, number)
        if first != number:
            raise ModelFileError(
                f"{path}: tokens {first} and {number} of its vocabulary are both "
                f"{text!r:.60}"
            )
        rows.append((text, float(scores[number]), _type(text, types[number])))
    return rows


def _list(
    metadata: Metadata, name: str, count: int, default: float, path: Path
) -> Sequence[Any]:
    """A list with a value for each token; of `default` where the file has none."""
    values = metadata.get(f"{_PREFIX}{name}")
    if values is None:
        return [default] * count
    if not isinstance(values, list) or len(values) < count:
        raise ModelFileError(
            f"{path}: key {_PREFIX + name!r} does not have a value for each of the "
            f"{count} tokens in {_PREFIX + 'tokens'!r}"
        )
    return values


def _type(text: str, kind: Any) -> int:
    """A token's type; what can only end or begin turns is a control token whatever it says."""
    if text in CERTAIN_ENDS or text in _TURN_STARTS:
        return _CONTROL
    if type(kind) is int and _NORMAL <= kind <= _BYTE:
        return kind
    return _UNUSED


def _token_names(metadata: Metadata, rows: Rows, kind: str) -> dict[str, str]:
    """Texts of the special tokens by name, such as `bos_token`."""
    names = {}
    usual_ids = _USUAL_IDS.get(kind, {})
    for key, name in _NAMES.items():
        number = metadata.get(f"{_PREFIX}{key}_token_id", usual_ids.get(key))
        if type(number) is int and 0 <= number < len(rows):
            names[f"{name}_token"] = rows[number][0]
    return names


def _pre_tokenizer(metadata: Metadata, path: Path) -> PreTokenizer:
    name = metadata.get(f"{_PREFIX}pre") or DEFAULT
    if name in PRE_TOKENIZERS:
        return PRE_TOKENIZERS[name]
    supported = ", ".join(sorted(PRE_TOKENIZERS))
    raise UnsupportedModelError(
        f"{path}: pre-tokenizer {name!r:.80} in a GGUF file is not supported; known are "
        f"{supported}. Use safetensors instead"
    )


def _byte_level(metadata: Metadata, rows: Rows, way: PreTokenizer) -> Backend:
    merges = list(_merges(metadata))
    model = BPE(vocab=_numbers(rows), merges=merges, ignore_merges=way.whole_words)
    backend = Backend(model)
    backend.pre_tokenizer = way.backend()
    if way.composes:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    _add_tokens(backend, rows)
    return backend


def _escaped(metadata: Metadata, rows: Rows) -> Backend:
    """Gemma 4's: merges of characters, with another character for spaces.

    No merge goes over the end of a line. What has no token is spelled in bytes.
    """
    texts = {text for text, _, _ in rows}
    model = BPE(
        vocab=_numbers(rows),
        merges=list(_merges(metadata)),
        byte_fallback=True,
        fuse_unk=True,
        unk_token="<unk>" if "<unk>" in texts else None,
    )
    backend = Backend(model)
    backend.normalizer = normalizers.Replace(" ", _SPACE)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("\n+"), "isolated")
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps)
    _add_tokens(backend, rows)
    return backend


def _numbers(rows: Rows) -> dict[str, int]:
    return {text: number for number, (text, _, _) in enumerate(rows)}


def _add_tokens(backend: Backend, rows: Rows) -> None:
    """Tell the backend which tokens are never split."""
    special = []
    added = []
    for text, _, kind in rows:
        if kind in (_CONTROL, _UNKNOWN):
            special.append(AddedToken(text, special=True, normalized=False))
        elif kind == _USER_DEFINED:
            added.append(AddedToken(text, special=False, normalized=False))
    backend.add_special_tokens(special)
    backend.add_tokens(added)


def _merges(metadata: Metadata) -> Iterator[tuple[str, str]]:
    """Pairs of pieces; the first blank between two of them parts them."""
    for merge in metadata[f"{_PREFIX}merges"]:
        end = merge.index(" ", 1)
        yield merge[:end], merge[end + 1 :]


def _sentencepiece(
    metadata: Metadata, rows: Rows, kind: str, path: Path
) -> SentencePieceBackend:
    has_prefix = metadata.get(f"{_PREFIX}add_space_prefix", True)
    strips = metadata.get(f"{_PREFIX}remove_extra_whitespaces", False)
    charsmap = metadata.get(f"{_PREFIX}precompiled_charsmap", [])
    usual = _USUAL_IDS[kind]["unknown"]
    unknown = metadata.get(f"{_PREFIX}unknown_token_id", usual)
    proto = build_proto(
        _with_one_unknown(rows, unknown),
        unigram=kind == "t5",
        prefix_space=bool(has_prefix),
        strip=bool(strips),
        charsmap=bytes([value & 0xFF for value in charsmap]),
    )
    return SentencePieceBackend(
        proto, str(path), takes_blanks=_takes_blanks(metadata, rows)
    )


def _with_one_unknown(rows: Rows, unknown: Any) -> Rows:
    """Tokens of which one stands for what is not in the vocabulary.

    Converters call padding unknown as well, and the library takes one alone.
    """
    numbers = [number for number, row in enumerate(rows) if row[2] == _UNKNOWN]
    if numbers and unknown not in numbers:
        unknown = numbers[0]
    single: Rows = []
    for number, (text, score, kind) in enumerate(rows):
        single_kind = kind
        if number == unknown:
            single_kind = _UNKNOWN
        elif kind == _UNKNOWN:
            single_kind = _UNUSED
        single.append((text, score, single_kind))
    return single


def _takes_blanks(metadata: Metadata, rows: Rows) -> frozenset[str]:
    """Special tokens behind which blanks are dropped: no key says it of Phi-3."""
    if metadata.get("general.architecture") != _TAKES_BLANKS:
        return frozenset()
    special = {text for text, _, kind in rows if kind in (_CONTROL, _USER_DEFINED)}
    return frozenset(special - _KEEPS_BLANKS)
