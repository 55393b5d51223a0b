"""How a conversation is read: whether leniently, and what is left out of it.

Nothing is dropped without a trace: a server tells what was left out in a header of the
answer and in its log.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rvllm_local.conversation.kinds import CONTENTS, kind_word, shown_kind
from rvllm_local.errors import UnsupportedFieldError


@dataclass(slots=True)
class Reading:
    """One request's. `left_out` holds places in the request, each with its kind."""

    is_lenient: bool = False
    left_out: list[str] = field(default_factory=list)

    def leave_out(self, where: str, kind: str) -> None:
        """Note that what stands at `where` is not used."""
        self.left_out.append(f"{where} ({kind_word(kind)})")

    def replaced(self, kind: str, where: str, in_result: bool = False) -> str:
        """The text in the place of a part of a kind that is no text.

        Raises `UnsupportedFieldError` where the reading is strict and the part is not a
        tool's result. A result is always replaced: it stays in the history, and would
        end the session at every later turn.
        """
        noun = CONTENTS.get(kind)
        if noun is not None and (in_result or self.is_lenient):
            self.leave_out(where, kind)
            return f"[a {noun}, not shown: this model reads text only]"
        remedy = f"leave the {noun or 'part'} out"
        if noun is not None:
            remedy += "; a server with --lenient puts a text in its place"
        raise UnsupportedFieldError(
            where,
            f"{where} is of type {shown_kind(kind)}; the model reads text only: {remedy}",
        )
