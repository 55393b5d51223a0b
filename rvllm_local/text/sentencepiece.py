"""SentencePiece models, with the methods of a `tokenizers` backend.

Says what is a special token, and where the package's leading space belongs. Knows no chat
and no file format but the package's own protobuf.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken

from rvllm_local.errors import ModelFileError

# The kinds of pieces.
_NORMAL = 1
_UNKNOWN = 2
_CONTROL = 3
_USER_DEFINED = 4
_UNUSED = 5
_BYTE = 6
_MAX_PIECES = 1 << 20
_MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of a text."""

    ids: list[int]


class SentencePieceBackend:
    """A SentencePiece model.

    `extra` are added tokens with ids of their own; `special` are the special tokens'
    texts. Control and unknown pieces are special whatever `special` says. Blanks behind
    a token of `takes_blanks` are dropped. Raises `ModelFileError` for a damaged model.
    """

    def __init__(
        self,
        proto: Any,
        name: str,
        extra: Mapping[str, int] | None = None,
        special: Collection[str] = (),
        takes_blanks: Collection[str] = (),
    ) -> None:
        self._proto = proto
        self._name = name
        _check(proto, name)
        self._extra = dict(extra or {})
        self._texts = {token: text for text, token in self._extra.items()}
        self._special = set(special)
        self._takes_blanks = frozenset(takes_blanks)
        self._pieces: dict[str, int] = {}
        for index, piece in enumerate(proto.pieces):
            self._pieces[piece.piece] = index
            if piece.type in (_UNKNOWN, _CONTROL):
                self._special.add(piece.piece)
        self._with_space = _processor(proto, name)
        self._plain_space: Any = None  # made when it is needed
        matched = []
        for text in (*self._special, *self._extra):
            if self.token_to_id(text) is not None:
                matched.append(text)
        self._matched = _either(matched)

    @classmethod
    def parse(
        cls,
        data: bytes,
        name: str,
        extra: Mapping[str, int] | None = None,
        special: Collection[str] = (),
        prefix_space: bool | None = None,
        takes_blanks: Collection[str] = (),
    ) -> SentencePieceBackend:
        """A backend from the bytes of a `tokenizer.model`.

        `prefix_space` overrides whether a text gets a space.
        """
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2

        if len(data) > _MAX_BYTES:
            raise ModelFileError(
                f"{name}: {len(data)} bytes are no plausible SentencePiece model"
            )
        proto = sentencepiece_model_pb2.ModelProto()
        try:
            proto.ParseFromString(data)
        except DecodeError as error:
            raise ModelFileError(
                f"{name} is not a SentencePiece model: {error}"
            ) from error
        if prefix_space is not None:
            proto.normalizer_spec.add_dummy_prefix = prefix_space
        return cls(proto, name, extra, special, takes_blanks)

    def encode(
        self,
        text: str,
        add_special_tokens: bool = False,
        continues: bool = False,
    ) -> Encoded:
        """Token ids; special tokens that are written in the text count as such.

        A text that continues another gets no leading space. After a special token a text
        begins anew, as in the models' own training.
        """
        del add_special_tokens  # the caller adds them
        parts = [text]
        if self._matched is not None:
            parts = self._matched.split(text)
        ids: list[int] = []
        for index, part in enumerate(parts):
            if index % 2:  # a special token, between two texts
                token = self.token_to_id(part)
                assert token is not None
                ids.append(token)
                continues = False
                if part in self._takes_blanks:
                    parts[index + 1] = parts[index + 1].lstrip()
            elif part:
                processor = self._with_space
                if continues:
                    processor = self._without_space()
                ids.extend(processor.encode(part))
        return Encoded(ids)

    def blind_to(self, hidden: Collection[str]) -> SentencePieceBackend:
        """The same model, which takes these tokens for text wherever they are written."""
        proto = type(self._proto)()
        proto.CopyFrom(self._proto)
        for piece in proto.pieces:
            if piece.piece in hidden and piece.type == _USER_DEFINED:
                # The package finds user-defined pieces in text, but no control pieces.
                piece.type = _CONTROL
        other = SentencePieceBackend(
            proto,
            self._name,
            self._extra,
            takes_blanks=self._takes_blanks.difference(hidden),
        )
        matched = [text for text in self._extra if text not in hidden]
        other._matched = _either(matched)
        return other

    def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Tokens that templates and models may name.

        These are the control, unknown and user-defined pieces, and the extra tokens.
        """
        added: dict[int, AddedToken] = {}
        for index, piece in enumerate(self._proto.pieces):
            text = piece.piece
            if piece.type in (_UNKNOWN, _CONTROL, _USER_DEFINED):
                added[index] = AddedToken(text, special=text in self._special)
        for text, token in self._extra.items():
            added[token] = AddedToken(text, special=text in self._special)
        return added

    def token_to_id(self, text: str) -> int | None:
        """The token of exactly this text."""
        return self._extra.get(text, self._pieces.get(text))

    def id_to_token(self, token: int) -> str | None:
        """The token's text as the vocabulary spells it; None outside the vocabulary."""
        if token in self._texts:
            return self._texts[token]
        if not 0 <= token < len(self._proto.pieces):
            return None
        text: str = self._proto.pieces[token].piece
        return text

    def get_vocab_size(self, with_added_tokens: bool = True) -> int:
        """Number of ids, counted to the highest."""
        del with_added_tokens
        size = len(self._proto.pieces)
        for token in self._extra.values():
            size = max(size, token + 1)
        return size

    def id_to_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; empty outside the vocabulary."""
        if token in self._texts:
            return self._texts[token].encode()
        if not 0 <= token < len(self._proto.pieces):
            return b""
        piece = self._proto.pieces[token]
        if piece.type == _BYTE:
            return bytes([int(piece.piece[3:5], 16)])
        text: str = piece.piece
        return text.replace("\u2581", " ").encode()

    def to_bytes(self) -> bytes:
        """The model as a `tokenizer.model` file holds it."""
        data: bytes = self._proto.SerializeToString()
        return data

    @property
    def adds_space(self) -> bool:
        """True if a text's first word is encoded as if a space stood before it."""
        return bool(self._proto.normalizer_spec.add_dummy_prefix)

    @property
    def bos_token(self) -> str | None:
        """The model's own start token, if it has one."""
        return self._named_by(self._with_space.bos_id())

    @property
    def eos_token(self) -> str | None:
        """The model's own end token, if it has one."""
        return self._named_by(self._with_space.eos_id())

    def _named_by(self, token: int) -> str | None:
        """The text of a token that the package names, which says -1 for none."""
        if token < 0:
            return None
        return self.id_to_token(token)

    def _without_space(self) -> Any:
        if not self.adds_space:
            return self._with_space
        if self._plain_space is None:
            proto = type(self._proto)()
            proto.CopyFrom(self._proto)
            proto.normalizer_spec.add_dummy_prefix = False
            self._plain_space = _processor(proto, self._name)
        return self._plain_space


def build_proto(
    pieces: Collection[tuple[str, float, int]],
    *,
    unigram: bool,
    prefix_space: bool,
    strip: bool = False,
    charsmap: bytes = b"",
) -> Any:
    """A model from `(text, score, type)` rows, as other file formats keep them.

    With `strip` extra spaces are removed.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    for text, score, kind in pieces:
        proto.pieces.add(piece=text, score=score, type=kind)
    proto.trainer_spec.model_type = 2
    if unigram:
        proto.trainer_spec.model_type = 1
    proto.trainer_spec.byte_fallback = any(kind == _BYTE for _, _, kind in pieces)
    proto.normalizer_spec.name = "identity"
    if charsmap:
        proto.normalizer_spec.name = "nmt_nfkc"
    proto.normalizer_spec.add_dummy_prefix = prefix_space
    proto.normalizer_spec.remove_extra_whitespaces = strip
    proto.normalizer_spec.escape_whitespaces = True
    proto.normalizer_spec.precompiled_charsmap = charsmap
    return proto


def _either(texts: Collection[str]) -> re.Pattern[str] | None:
    """A pattern of any of these texts, the longest first; None if there are none."""
    ordered = sorted(filter(None, texts), key=len, reverse=True)
    if not ordered:
        return None
    escaped = [re.escape(text) for text in ordered]
    return re.compile("(" + "|".join(escaped) + ")")


def _check(proto: Any, name: str) -> None:
    if not 0 < len(proto.pieces) <= _MAX_PIECES:
        raise ModelFileError(
            f"{name} is not a SentencePiece model: it has {len(proto.pieces)} pieces"
        )
    if proto.trainer_spec.model_type not in (1, 2):
        raise ModelFileError(
            f"{name}: SentencePiece model type {proto.trainer_spec.model_type} is "
            "neither unigram nor BPE"
        )
    num_unknown = 0
    for index, piece in enumerate(proto.pieces):
        num_unknown += piece.type == _UNKNOWN
        if piece.type == _BYTE and not re.fullmatch("<0x[0-9A-F]{2}>", piece.piece):
            raise ModelFileError(
                f"{name}: piece {index} is called a byte and spelled "
                f"{piece.piece!r:.40}"
            )
        if not piece.piece or piece.score != piece.score:
            raise ModelFileError(f"{name}: piece {index} is empty or has no score")
    if num_unknown != 1:
        raise ModelFileError(f"{name}: it has {num_unknown} unknown pieces, not one")


def _processor(proto: Any, name: str) -> Any:
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_proto=proto.SerializeToString())
    except (RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelFileError(
            f"{name} is not a sound SentencePiece model: {reason}"
        ) from error
