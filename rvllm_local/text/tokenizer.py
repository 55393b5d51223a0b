"""Text to token ids and back, for a model's own tokenizer.

Special tokens inside user text stay text; only the chat template may produce them.
"""

from __future__ import annotations

import functools
import json
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as Backend

from rvllm_local.errors import ParameterError, UnsupportedModelError
from rvllm_local.text.messages import plain_messages
from rvllm_local.text.sentencepiece import SentencePieceBackend
from rvllm_local.text.tags import CONTROL_TAGS

_KEPT_PIECES = 8192  # tokens whose bytes are kept: a text repeats its own
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """A tokenizer with its special tokens and chat template. Safe to use from several threads."""

    def __init__(
        self,
        backend: Backend | SentencePieceBackend,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        chat_template: str | None = None,
        add_bos: bool = False,
    ) -> None:
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self._added = frozenset(added)
        self._special = {
            token_id: token.content
            for token_id, token in added.items()
            if token.special
        }
        self.bos_token, self.eos_token = bos_token, eos_token
        self.chat_template = chat_template
        self._add_bos = add_bos
        self._token_bytes = functools.lru_cache(_KEPT_PIECES)(_byte_decoder(backend))
        # Tags of calls and thoughts belong to templates and models too, where a vocabulary has them without calling
        # them special.
        self._control = {
            token.content for token in added.values() if token.content in CONTROL_TAGS
        }
        self._hidden_special = _Hidden.of(self._special.values())
        self._hidden_every = _Hidden.of({*self._special.values(), *self._control})
        # Tokens that are looked for in normalized text can be written in other ways than their own.
        hidden = [
            token
            for token in added.values()
            if token.special or token.content in self._control
        ]
        self._shows_tokens = isinstance(backend, Backend) and not any(
            token.normalized for token in hidden
        )

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    @functools.cached_property
    def longest_token(self) -> int:
        """Bytes of the longest token: a text of more bytes than n times this takes more than n tokens."""
        return max(
            (len(self._bytes(token)) for token in range(self.vocab_size)), default=1
        )

    @property
    def backend(self) -> Backend | SentencePieceBackend:
        """What encodes: for those who write it to a file."""
        return self._backend

    @property
    def adds_bos(self) -> bool:
        """True if a text begins with the start token."""
        return self._add_bos

    @property
    def bos_token_id(self) -> int | None:
        return (
            None
            if self.bos_token is None
            else self._backend.token_to_id(self.bos_token)
        )

    def encode(
        self, text: str, *, special: bool = False, bos: bool = True
    ) -> list[int]:
        """Token ids of `text`; with `special`, special tokens written in it count as such.

        A start token comes first if the model wants one and `bos` is left on.
        """
        _check_text(text)
        backend = self._backend if special else self._blind(text)
        ids = _token_ids(backend, text)
        start = self.bos_token_id if self._add_bos and bos else None
        return ids if start is None else [start, *ids]

    def decode(self, token_ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of `token_ids`, without the space that the tokenizer itself puts before a text's first word."""
        parts = [
            token
            for token in token_ids
            if not (skip_special and token in self._special)
        ]
        text = b"".join(self._bytes(token) for token in parts).decode(
            "utf-8", errors="replace"
        )
        begins = (
            parts
            and isinstance(self._backend, SentencePieceBackend)
            and self._backend.adds_space
        )
        return text.removeprefix(" ") if begins else text

    def id_to_bytes(self, token_id: int) -> bytes | None:
        """The bytes that a token stands for; None for special tokens."""
        return None if token_id in self._special else self._bytes(token_id)

    def control_token_id(self, text: str) -> int | None:
        """The token whose whole text is `text`, if it is one of the added tokens, special or not."""
        token_id: int | None = self._backend.token_to_id(text)
        return token_id if token_id in self._added else None

    def keeping(self, kept_special: Collection[str]) -> KeptSpecial:
        """This tokenizer's bytes, with the special tokens of these texts as text: for a parser that needs its tags."""
        return KeptSpecial(self, kept_special)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        continues: bool = False,
        **template: Any,
    ) -> list[int]:
        """Token ids of a conversation through the chat template. Raises `ParameterError` for what it cannot render.

        Special tokens that are written anywhere in the messages, tools or options stay text: each is rendered as a random
        marker, whose text is then tokenized apart. So do the tags of calls and thoughts, but for the assistant's own
        messages, in which templates look for them. With `continues`, the ids end where the last message's content ends, which
        is the assistant's: the model goes on from there.
        """
        if self.chat_template is None:
            raise UnsupportedModelError(
                "this model has no chat template; use generate() with a plain prompt"
            )
        from rvllm_local.text.template import render_chat  # loads jinja2

        messages = plain_messages(messages)
        self._check_roles(messages)
        markers = _Markers()
        if continues:
            messages = [*messages[:-1], markers.ending(messages[-1])]
            template["add_generation_prompt"] = False
        own, others = self._hidden_special, self._hidden_every
        messages = [
            markers.hide(row, own if row["role"] == "assistant" else others)
            for row in messages
        ]
        template = {
            name: markers.hide(value, others) for name, value in template.items()
        }
        text = render_chat(
            self.chat_template,
            messages,
            bos_token=self.bos_token or "",
            eos_token=self.eos_token or "",
            **template,
        )
        _check_text(text)
        if continues:
            text = markers.up_to_ending(text)
        ids: list[int] = []
        for piece, is_template in markers.split(text):
            backend = self._backend if is_template else self._blind(piece)
            if isinstance(
                backend, SentencePieceBackend
            ):  # a piece that follows text gets no space of its own
                follows_text = bool(ids) and ids[-1] not in self._special
                ids.extend(backend.encode(piece, continues=follows_text).ids)
            else:
                ids.extend(_token_ids(backend, piece))
        return ids

    def _blind(self, text: str) -> Backend | SentencePieceBackend:
        """What encodes text that a user wrote, in which special tokens do not count."""
        pattern = self._hidden_every.pattern
        if self._shows_tokens and (pattern is None or not pattern.search(text)):
            return self._backend  # there are none in it
        return self._plain

    @functools.cached_property
    def _plain(self) -> Backend | SentencePieceBackend:
        """A second backend that knows no special tokens; made when a text needs it, as it takes time and memory."""
        return _without_special(
            self._backend, {*self._special.values(), *self._control}
        )

    def _check_roles(self, messages: Sequence[Mapping[str, Any]]) -> None:
        for index, message in enumerate(messages):
            if any(token in message["role"] for token in self._special.values()):
                raise ParameterError(
                    "messages", f"message {index} holds a special token in its role"
                )

    def _bytes(self, token_id: int) -> bytes:
        if token_id in self._special:
            return self._special[token_id].encode()
        return self._token_bytes(token_id)


class KeptSpecial:
    """A tokenizer's bytes for one kind of parser; cheap, holds no table of its own."""

    def __init__(self, tokenizer: Tokenizer, kept_special: Collection[str]) -> None:
        self._tokenizer = tokenizer
        tokens = {text: tokenizer.control_token_id(text) for text in kept_special}
        self._kept = {
            token: text.encode() for text, token in tokens.items() if token is not None
        }

    def id_to_bytes(self, token_id: int) -> bytes | None:
        """The bytes that a token stands for; None for special tokens that are not kept."""
        return self._kept.get(token_id) or self._tokenizer.id_to_bytes(token_id)


@dataclass(frozen=True, slots=True)
class _Hidden:
    """Texts to hide, and all that could be the beginning of one."""

    pattern: re.Pattern[str] | None
    beginnings: frozenset[str]
    longest: int

    @classmethod
    def of(cls, texts: Iterable[str]) -> _Hidden:
        ordered = sorted(filter(None, texts), key=len, reverse=True)
        beginnings = frozenset(
            text[:size] for text in ordered for size in range(1, len(text))
        )
        pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None
        return cls(pattern, beginnings, max(map(len, ordered), default=0))

    def beginning_at_end(self, text: str) -> int:
        """Length of the longest ending of `text` that begins one of the texts."""
        sizes = range(min(self.longest, len(text)), 0, -1)
        return next((size for size in sizes if text[-size:] in self.beginnings), 0)


class _Markers:
    """Hides special tokens in what users write, and finds them again in what a template made of it."""

    def __init__(self) -> None:
        self._nonce = secrets.token_hex(16)
        self._hidden: list[str] = []
        self._ending = secrets.token_hex(16)

    def ending(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """A message whose content's end can be found again. Raises `ParameterError` if it is not the assistant's text."""
        if message["role"] != "assistant" or message.get("tool_calls"):
            raise ParameterError(
                "messages",
                "only a last message that is the assistant's text can be continued",
            )
        return {**message, "content": f"{message.get('content') or ''}{self._ending}"}

    def up_to_ending(self, text: str) -> str:
        """What a template wrote up to that end."""
        found, mark, _ = text.rpartition(self._ending)
        if not mark:
            raise ParameterError(
                "messages",
                "the model's chat template does not show the last message: it cannot be continued",
            )
        return found

    def hide(self, value: Any, hidden: _Hidden) -> Any:
        """`value` with every special token in it, and every beginning of one at a text's end, behind a marker."""
        if isinstance(value, str):
            return self._hide_text(value, hidden)
        if isinstance(value, Mapping):
            return {
                self.hide(key, hidden): self.hide(one, hidden)
                for key, one in value.items()
            }
        return (
            [self.hide(one, hidden) for one in value]
            if isinstance(value, list | tuple)
            else value
        )

    def _hide_text(self, text: str, hidden: _Hidden) -> str:
        if hidden.pattern is None:
            return text
        text = hidden.pattern.sub(lambda found: self._marker(found[0]), text)
        # Two texts that a template sets side by side could make a special token between them.
        size = hidden.beginning_at_end(text)
        return (
            text[: len(text) - size] + self._marker(text[len(text) - size :])
            if size
            else text
        )

    def _marker(self, text: str) -> str:
        if text not in self._hidden:
            self._hidden.append(text)
        return f"{self._nonce}{self._hidden.index(text)}{self._nonce}"

    def split(self, text: str) -> Iterator[tuple[str, bool]]:
        """Pieces of a rendered text, and whether special tokens count in them."""
        for number, piece in enumerate(text.split(self._nonce)):
            if number % 2 == 0:
                yield piece, True
            elif piece.isdecimal() and int(piece) < len(self._hidden):
                yield self._hidden[int(piece)], False
            else:
                raise ParameterError(
                    "messages",
                    "a message holds special tokens, and the chat template cuts it up",
                )


def _token_ids(backend: Backend | SentencePieceBackend, text: str) -> list[int]:
    """The ids of a text. The library's `encode` holds the interpreter's lock all the while, a third of a second for a
    megabyte; its batches do not.
    """
    if isinstance(backend, SentencePieceBackend):
        return backend.encode(text).ids
    ids: list[int] = backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
    return ids


def _settings(backend: Backend) -> tuple[dict[str, Any], str]:
    """The backend's settings, and its model as JSON text, which for a large vocabulary is slow to parse."""
    text = backend.to_str()
    place = text.find('"model":{"type":')
    try:
        return json.loads(text[:place].rstrip().removesuffix(",") + "}"), text[
            place + len('"model":') : -1
        ]
    except ValueError:  # the library wrote it in another order
        state = json.loads(text)
        return {
            key: value for key, value in state.items() if key != "model"
        }, json.dumps(state["model"])


def _without_special(
    backend: Backend | SentencePieceBackend, special: set[str]
) -> Backend | SentencePieceBackend:
    """The same tokenizer, blind to special tokens."""
    if isinstance(backend, SentencePieceBackend):
        return backend.blind_to(special)
    state, model = _settings(backend)
    state["added_tokens"] = [
        row for row in state["added_tokens"] if row["content"] not in special
    ]
    state["post_processor"] = None
    return Backend.from_str(f'{json.dumps(state)[:-1]}, "model": {model}}}')


def _byte_decoder(backend: Backend | SentencePieceBackend) -> Callable[[int], bytes]:
    """How this tokenizer spells bytes: GPT-2's alphabet, or words with a lower one eighth block for a space."""
    if isinstance(backend, SentencePieceBackend):
        return backend.id_to_bytes
    if '"ByteLevel"' in json.dumps(
        [_describe(part) for part in (backend.pre_tokenizer, backend.decoder)]
    ):
        spell: Callable[[str], bytes] = functools.partial(_byte_level, _byte_alphabet())
    else:
        spell = _piece

    def to_bytes(token_id: int) -> bytes:
        token = backend.id_to_token(token_id)
        return b"" if token is None else spell(token)

    return to_bytes


def _describe(part: Any) -> Any:
    return None if part is None else json.loads(part.__getstate__())


def _byte_level(alphabet: Mapping[str, int], token: str) -> bytes:
    if all(char in alphabet for char in token):
        return bytes(alphabet[char] for char in token)
    return token.encode()  # an added token, spelled as it is


def _piece(token: str) -> bytes:
    if found := _BYTE.fullmatch(token):
        return bytes([int(found[1], 16)])
    return token.replace("\u2581", " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + rank): byte for rank, byte in enumerate(others)
    }


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ParameterError(
            "prompt", f"the text holds half a surrogate pair at position {error.start}"
        ) from error
