"""The bytes of each token of a vocabulary, in the form that llguidance asks for."""

from __future__ import annotations

from collections.abc import Sequence

from rvllm_local.text.tags import CONTROL_TAGS
from rvllm_local.text.tokenizer import Tokenizer


class ByteVocabulary:
    """A tokenizer as llguidance wants to see it: bytes by token id.

    Ids that stand for nothing have no bytes.
    """

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]
    ) -> None:
        control = {tokenizer.control_token_id(tag) for tag in CONTROL_TAGS}
        self.eos_token_id = eos_token_ids[0]
        self.bos_token_id = None
        self.tokens: list[bytes] = []
        self.special_token_ids: list[int] = []
        self._tokenizer = tokenizer
        for token in range(vocab_size):
            text = None
            if token not in eos_token_ids and token not in control:
                text = tokenizer.id_to_bytes(token)
            if text is None:
                self.special_token_ids.append(token)
                text = f"<|special {token}|>".encode()  # never matched as text
            self.tokens.append(text)

    def __call__(self, text: bytes | str) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode(errors="replace")
        return self._tokenizer.encode(text, bos=False)
