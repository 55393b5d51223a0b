"""Text to token ids and back, for a model's own tokenizer.

Special tokens inside user text stay text; only the chat template may produce them.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer as Backend

from rvllm_local.errors import (
    ParameterError,
    RvllmError,
    UnsupportedModelError,
)
from rvllm_local.text.backends import (
    AnyBackend,
    adds_prefix_space,
    token_ids_of,
    without_prefix_space,
    without_special,
)
from rvllm_local.text.call_form import CallForm, drops_system, find_call_form
from rvllm_local.text.chat_templates import ChatTemplates
from rvllm_local.text.kept_special import KeptSpecial
from rvllm_local.text.markers import HiddenTexts, Markers
from rvllm_local.text.messages import plain_messages
from rvllm_local.text.sentencepiece import SentencePieceBackend
from rvllm_local.text.tags import CONTROL_TAGS
from rvllm_local.text.template_habits import TemplateHabits
from rvllm_local.text.token_bytes import byte_decoder
from rvllm_local.text.token_spans import TokenSpans
from rvllm_local.text.turn_ends import known_ends, turn_ends

_PROBE = "Q7zSystemq7"  # a text that no template writes itself
_KEPT_PIECES = 8192  # tokens whose bytes are kept: a text repeats its own
_MOST_IDS = 2**22  # no vocabulary has more; a damaged one may name any number


class Tokenizer:
    """A tokenizer with its special tokens and chat template.

    Several threads may use it at once.
    """

    def __init__(
        self,
        backend: AnyBackend,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        templates: ChatTemplates | None = None,
        add_bos: bool = False,
        named_tokens: Mapping[str, str] | None = None,
        special: Collection[str] = (),
        uses_known_ends: bool = False,
    ) -> None:
        """`special` are texts that settings call special, whatever the backend says.

        `named_tokens` are told to templates by their names. With `uses_known_ends`,
        tokens that are known to end turns do so, for files that may name none.
        """
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self._added = frozenset(added)
        self._special = {}
        for token_id, token in added.items():
            if token.special or token.content in special:
                self._special[token_id] = token.content
        self.bos_token = bos_token
        self.eos_token = eos_token
        self.templates = templates or ChatTemplates()
        self.chat_template = self.templates.default
        self._named_tokens = dict(named_tokens or {})
        self._uses_known_ends = uses_known_ends
        self._add_bos = add_bos
        self.adds_space = adds_prefix_space(backend)
        self._token_bytes = functools.lru_cache(_KEPT_PIECES)(byte_decoder(backend))
        # Tags of calls and thoughts belong to templates and models too, where a
        # vocabulary has them without calling them special.
        texts = {token.content for token in added.values()}
        self._control = texts & CONTROL_TAGS
        every = {*self._special.values(), *self._control}
        self._hidden_special = HiddenTexts.of(self._special.values())
        self._hidden_every = HiddenTexts.of(every)
        # Tokens that are looked for in normalized text have other spellings as well.
        has_one_spelling = True
        for token in added.values():
            if token.normalized and token.content in every:
                has_one_spelling = False
        self._shows_tokens = isinstance(backend, Backend) and has_one_spelling

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    @functools.cached_property
    def num_ids(self) -> int:
        """All token ids are below this, however many of them stand for nothing."""
        backend = self._backend
        if isinstance(backend, SentencePieceBackend):
            return min(backend.get_vocab_size(), _MOST_IDS)
        highest = max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        return min(highest + 1, _MOST_IDS)

    @property
    def special_ids(self) -> Collection[int]:
        """Ids of the special tokens."""
        return self._special.keys()

    @functools.cached_property
    def spans(self) -> TokenSpans:
        """How much of a text one token can stand for."""
        return TokenSpans.of(self._backend)

    @property
    def backend(self) -> AnyBackend:
        """The backend that encodes, for callers that write it to a file."""
        return self._backend

    @property
    def adds_bos(self) -> bool:
        """True if a text begins with the start token."""
        return self._add_bos

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text."""
        if self.bos_token is None:
            return None
        token_id: int | None = self._backend.token_to_id(self.bos_token)
        return token_id

    def encode(
        self,
        text: str,
        *,
        special: bool = False,
        bos: bool = True,
    ) -> list[int]:
        """Token ids of `text`; with `special`, special tokens written in it count.

        A start token comes first if the model wants one and `bos` is left on, but no
        second one where the text has it already.
        """
        _check_text(text)
        if special:
            ids = token_ids_of(self._backend, text)
        else:
            ids = token_ids_of(self._blind(text), text)
        if not self._add_bos or not bos:
            return ids
        start = self.bos_token_id
        if start is None or (special and ids[:1] == [start]):
            return ids
        return [start, *ids]

    def decode(self, token_ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of `token_ids`.

        The space that the tokenizer itself puts before a text's first word is left out.
        """
        tokens = list(token_ids)
        if skip_special:
            tokens = [token for token in tokens if token not in self._special]
        data = b"".join([self.spelling(token) for token in tokens])
        text = data.decode("utf-8", errors="replace")
        if tokens and self.adds_space:
            return text.removeprefix(" ")
        return text

    def id_to_bytes(self, token_id: int) -> bytes | None:
        """The bytes that a token stands for; None for special tokens."""
        if token_id in self._special:
            return None
        return self.spelling(token_id)

    def spelling(self, token_id: int) -> bytes:
        """The bytes of a token, special or not; none for an id without a token."""
        if token_id in self._special:
            return self._special[token_id].encode()
        return self._token_bytes(token_id)

    @property
    def special_texts(self) -> Collection[str]:
        """Texts of the special tokens."""
        return self._special.values()

    def special_token_id(self, text: str) -> int | None:
        """The special token whose whole text is `text`."""
        token_id: int | None = self._backend.token_to_id(text)
        if token_id in self._special:
            return token_id
        return None

    @functools.cached_property
    def end_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer, as the tokenizer and its template tell."""
        ends = turn_ends(self)
        if self._uses_known_ends:
            ends |= known_ends(self)
        return ends

    def control_token_id(self, text: str) -> int | None:
        """The added token whose whole text is `text`, be it special or not."""
        token_id: int | None = self._backend.token_to_id(text)
        if token_id in self._added:
            return token_id
        return None

    def keeping(self, kept_special: Collection[str]) -> KeptSpecial:
        """This tokenizer's bytes, with the special tokens of these texts as text.

        It is for a parser that needs its tags.
        """
        return KeptSpecial(self, kept_special)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        continues: bool = False,
        most_tokens: int | None = None,
        **template: Any,
    ) -> list[int]:
        """Token ids of a conversation through the chat template.

        Special tokens that are written anywhere in the messages, tools or options stay
        text: each is rendered as a random marker, whose text is then tokenized apart.
        So do the tags of calls and thoughts, but for the assistant's own messages, in
        which templates look for them.

        With `continues` the last message is the assistant's. The ids end where its
        content ends, and the model goes on from there.

        Raises `ParameterError` for what the template cannot render, and
        `ContextOverflowError` for what has more than `most_tokens` by its length alone.
        """
        messages = plain_messages(messages)
        self._check_roles(messages)
        markers = Markers()
        if continues:
            messages = [*messages[:-1], markers.ending(messages[-1])]
            template["add_generation_prompt"] = False
        hidden_messages = []
        for message in messages:
            hidden = self._hidden_every
            if message["role"] == "assistant":
                hidden = self._hidden_special
            hidden_messages.append(markers.hide(message, hidden))
        options = {}
        for name, value in template.items():
            options[name] = markers.hide(value, self._hidden_every)
        text = self.render_chat(hidden_messages, **options)
        _check_text(text)
        if continues:
            text = markers.up_to_ending(text)
        pieces = list(markers.split(text))
        if most_tokens is not None:
            whole = "".join(piece for piece, _ in pieces)
            self.spans.check_length(whole, most_tokens, "messages")
        return self._rendered_ids(pieces)

    def _rendered_ids(self, pieces: Iterable[tuple[str, bool]]) -> list[int]:
        """Token ids of a rendered text: of the template's pieces, and of users'."""
        ids: list[int] = []
        for piece, is_template in pieces:
            backend = self._backend
            if not is_template:
                backend = self._blind(piece)
            # A piece that follows text gets no space of its own.
            follows_text = bool(ids) and ids[-1] not in self._special
            ids.extend(self._piece_ids(backend, piece, follows_text))
        return ids

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        **template: Any,
    ) -> str:
        """The text that the chat template makes. Raises as `encode_chat` does."""
        habits = self._habits
        text = self._render(habits.rows(messages), **template)
        if template.get("add_generation_prompt", True):
            text += habits.opening
        return text

    def _render(self, messages: Sequence[Mapping[str, Any]], **template: Any) -> str:
        """The text that the template makes of the messages as they are."""
        source = self.template_for(template.get("tools"))
        if source is None:
            raise UnsupportedModelError(
                "this model has no chat template; use generate() with a plain prompt"
            )
        from rvllm_local.text.template import render_chat  # loads jinja2

        variables: dict[str, Any] = dict(self._named_tokens)
        variables["bos_token"] = self.bos_token or ""
        variables["eos_token"] = self.eos_token or ""
        variables.update(template)
        return render_chat(source, messages, **variables)

    @functools.cached_property
    def _habits(self) -> TemplateHabits:
        return TemplateHabits(self._render, self._special.values())

    @functools.cached_property
    def shows_system(self) -> bool:
        """False for a template that drops system messages without a word."""
        messages = [
            {"role": "system", "content": _PROBE},
            {"role": "user", "content": "."},
        ]
        try:
            return _PROBE in self.render_chat(messages)
        except RvllmError:
            return True  # it says so itself, if that was the reason

    @functools.cached_property
    def drops_system_after_calls(self) -> bool:
        """True for a template that drops them where a tool's result comes last."""
        form = self.call_form
        return form is not None and drops_system(self, form, _PROBE)

    @functools.cached_property
    def call_form(self) -> CallForm | None:
        """The form in which the template shows calls; None if it shows none."""
        return find_call_form(self)

    def template_for(self, tools: Any) -> str | None:
        """The template of a conversation: some models have one of its own for tools."""
        if tools and self.templates.tool_use is not None:
            return self.templates.tool_use
        return self.chat_template

    def _piece_ids(
        self,
        backend: AnyBackend,
        piece: str,
        follows_text: bool,
    ) -> list[int]:
        """Token ids of a part of a text."""
        if isinstance(backend, SentencePieceBackend):
            return backend.encode(piece, continues=follows_text).ids
        if follows_text and self.adds_space:
            if backend is self._backend:
                backend = self._continuing
            else:
                backend = self._plain_continuing
        return token_ids_of(backend, piece)

    def _blind(self, text: str) -> AnyBackend:
        """The backend for text that a user wrote, in which special tokens do not count."""
        pattern = self._hidden_every.pattern
        if self._shows_tokens and (pattern is None or not pattern.search(text)):
            return self._backend  # there are none in it
        return self._plain

    # The other backends are made when a text needs them: they take time and memory.

    @functools.cached_property
    def _plain(self) -> AnyBackend:
        """A backend that knows no special tokens."""
        special = {*self._special.values(), *self._control}
        return without_special(self._backend, special)

    @functools.cached_property
    def _continuing(self) -> AnyBackend:
        """A backend that puts no space before a text."""
        return without_prefix_space(self._backend)

    @functools.cached_property
    def _plain_continuing(self) -> AnyBackend:
        return without_prefix_space(self._plain)

    def _check_roles(self, messages: Sequence[Mapping[str, Any]]) -> None:
        for index, message in enumerate(messages):
            if any(token in message["role"] for token in self._special.values()):
                raise ParameterError(
                    "messages", f"message {index} holds a special token in its role"
                )


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ParameterError(
            "prompt", f"the text holds half a surrogate pair at position {error.start}"
        ) from error
