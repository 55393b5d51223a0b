"""Text to token ids and back, for a model's own tokenizer.

Special tokens inside user text stay text; only the chat template may produce them.
"""

from __future__ import annotations

import functools
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from rvllm_local.errors import ModelFileError, ParameterError, UnsupportedModelError
from rvllm_local.models.gguf import GGUFFile
from rvllm_local.models.loader import ModelFiles
from rvllm_local.text.template import render_chat

_CONTROL = 3  # token types in a GGUF file
_USER_DEFINED = 4


class Tokenizer:
    """A tokenizer with its special tokens and chat template. Safe to use from several threads."""

    def __init__(
        self,
        backend: Backend,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        chat_template: str | None = None,
        add_bos: bool = False,
    ) -> None:
        self._backend = backend
        self._special = {
            token_id: token.content for token_id, token in backend.get_added_tokens_decoder().items() if token.special
        }
        self.bos_token, self.eos_token = bos_token, eos_token
        self.chat_template = chat_template
        self._add_bos = add_bos
        self._to_bytes = _byte_decoder(backend)
        # A second backend that knows no special tokens: what users write goes through it.
        self._plain = _without_special(backend, set(self._special.values()))

    @classmethod
    def from_files(cls, files: ModelFiles) -> Tokenizer:
        """Read the tokenizer of a model. Raises `ModelFileError` or `UnsupportedModelError`."""
        return _from_gguf(files.path) if files.kind == "gguf" else _from_folder(files.path)

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def bos_token_id(self) -> int | None:
        return None if self.bos_token is None else self._backend.token_to_id(self.bos_token)

    def encode(self, text: str, *, special: bool = False, bos: bool = True) -> list[int]:
        """Token ids of `text`; with `special`, special tokens written in it count as such.

        A start token comes first if the model wants one and `bos` is left on.
        """
        _check_text(text)
        backend = self._backend if special else self._plain
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids
        start = self.bos_token_id if self._add_bos and bos else None
        return ids if start is None else [start, *ids]

    def decode(self, token_ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of `token_ids`."""
        parts = [token for token in token_ids if not (skip_special and token in self._special)]
        return b"".join(self._bytes(token) for token in parts).decode("utf-8", errors="replace")

    def id_to_bytes(self, token_id: int) -> bytes | None:
        """The bytes that a token stands for; None for special tokens."""
        return None if token_id in self._special else self._bytes(token_id)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **template: Any) -> list[int]:
        """Token ids of a conversation through the chat template. Raises `ParameterError` for what it cannot render.

        Where a message holds a special token's text, its content is rendered as a random marker and tokenized
        apart, so that nothing a user writes can become a special token.
        """
        if self.chat_template is None:
            raise UnsupportedModelError("this model has no chat template; use generate() with a plain prompt")
        self._check_messages(messages, template.get("tools"))
        contents = [message.get("content") for message in messages]
        hostile = {index for index, content in enumerate(contents) if self._mentions_special(content)}
        marker = secrets.token_hex(16) if hostile else None
        messages = [
            {**row, "content": f"{marker}{index}{marker}"} if index in hostile else row
            for index, row in enumerate(messages)
        ]
        text = render_chat(
            self.chat_template, messages, bos_token=self.bos_token or "", eos_token=self.eos_token or "", **template
        )
        _check_text(text)
        if marker is None:
            return list(self._backend.encode(text, add_special_tokens=False).ids)
        return self._encode_marked(text.split(marker), contents)

    def _encode_marked(self, pieces: Sequence[str], contents: Sequence[Any]) -> list[int]:
        """Template text and message numbers alternate in `pieces`."""
        ids: list[int] = []
        for number, piece in enumerate(pieces):
            if number % 2 == 0:
                ids.extend(self._backend.encode(piece, add_special_tokens=False).ids)
            elif piece.isdecimal() and int(piece) < len(contents):
                ids.extend(self.encode(contents[int(piece)], special=False, bos=False))
            else:
                raise ParameterError("messages", "a message holds special tokens, and the chat template cuts it up")
        return ids

    def _check_messages(self, messages: Sequence[Mapping[str, Any]], tools: Any) -> None:
        """Only plain text content can be tokenized apart: special tokens anywhere else are refused."""
        for index, message in enumerate(messages):
            if not isinstance(message, Mapping):
                raise ParameterError("messages", f"message {index} must be an object with a role")
            rest = [value for key, value in message.items() if key != "content" or not isinstance(value, str)]
            if self._mentions_special(rest):
                raise ParameterError("messages", f"message {index} holds a special token outside its text content")
        if self._mentions_special(tools):
            raise ParameterError("tools", "the tools hold one of the model's special tokens")

    def _mentions_special(self, value: Any) -> bool:
        """True if any text inside `value` holds a special token's text."""
        if isinstance(value, str):
            return any(token in value for token in self._special.values())
        if isinstance(value, Mapping):
            return any(self._mentions_special(part) for pair in value.items() for part in pair)
        return isinstance(value, list | tuple) and any(self._mentions_special(part) for part in value)

    def _bytes(self, token_id: int) -> bytes:
        if token_id in self._special:
            return self._special[token_id].encode()
        token = self._backend.id_to_token(token_id)
        return b"" if token is None else self._to_bytes(token)


def _from_folder(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UnsupportedModelError(f"{folder} has no tokenizer.json, the only tokenizer format that is supported")
    try:
        backend = Backend.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises plain Exception
        raise ModelFileError(f"{path} is not a sound tokenizer: {error}") from error
    config = _read_config(folder / "tokenizer_config.json")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named templates
        template = next((row["template"] for row in template if row.get("name") == "default"), None)
    separate = folder / "chat_template.jinja"
    if separate.is_file():
        template = separate.read_text(encoding="utf-8")
    bos = _token_text(config.get("bos_token"))
    first = backend.encode("a").tokens[:1]  # does its post-processor begin with the start token?
    return Tokenizer(
        backend,
        bos_token=bos,
        eos_token=_token_text(config.get("eos_token")),
        chat_template=template,
        add_bos=bos is not None and first == [bos],
    )


def _from_gguf(path: Path) -> Tokenizer:
    metadata = GGUFFile(path).metadata
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise UnsupportedModelError(f"{path}: tokenizer {kind!r} in a GGUF file is not supported (only 'gpt2')")
    try:
        tokens, merges = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"]
        types = metadata["tokenizer.ggml.token_type"]
        pairs = [tuple(merge.split(" ", 1)) for merge in merges]
        backend = Backend(BPE(vocab={token: rank for rank, token in enumerate(tokens)}, merges=pairs))
        special = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
        added = [token for token, kind in zip(tokens, types, strict=True) if kind == _USER_DEFINED]
    except Exception as error:  # missing keys, or what the library thinks of the merges
        raise ModelFileError(f"{path}: its tokenizer is damaged: {error}") from error
    backend.pre_tokenizer = _pre_tokenizer(str(metadata.get("tokenizer.ggml.pre", "default")), path)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])

    def token(key: str) -> str | None:
        index = metadata.get(f"tokenizer.ggml.{key}_token_id")
        return tokens[index] if isinstance(index, int) and 0 <= index < len(tokens) else None

    return Tokenizer(
        backend,
        bos_token=token("bos"),
        eos_token=token("eos"),
        chat_template=metadata.get("tokenizer.chat_template"),
        add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", False)),
    )


def _pre_tokenizer(name: str, path: Path) -> pre_tokenizers.PreTokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name in ("gpt-2", "default"):
        return byte_level
    if name == "smollm":  # every digit stands alone
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    raise UnsupportedModelError(f"{path}: pre-tokenizer {name!r} in a GGUF file is not supported; use safetensors")


def _without_special(backend: Backend, special: set[str]) -> Backend:
    """The same tokenizer, blind to special tokens."""
    state = json.loads(backend.to_str())
    state["added_tokens"] = [row for row in state["added_tokens"] if row["content"] not in special]
    state["post_processor"] = None
    return Backend.from_str(json.dumps(state))


def _byte_decoder(backend: Backend) -> Callable[[str], bytes]:
    """How this tokenizer spells bytes: GPT-2's alphabet, or words with a lower one eighth block for a space."""
    if '"ByteLevel"' in json.dumps([json.loads(backend.to_str())[part] for part in ("pre_tokenizer", "decoder")]):
        return functools.partial(_byte_level, _byte_alphabet())
    return _piece


def _byte_level(alphabet: Mapping[str, int], token: str) -> bytes:
    if all(char in alphabet for char in token):
        return bytes(alphabet[char] for char in token)
    return token.encode()  # an added token, spelled as it is


def _piece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(others)}


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ParameterError("prompt", f"the text holds half a surrogate pair at position {error.start}") from error


def _token_text(value: Any) -> str | None:
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} cannot be read: {error}") from error
    return value if isinstance(value, dict) else {}
