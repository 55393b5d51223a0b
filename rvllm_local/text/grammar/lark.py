"""A Lark grammar in the making. Tags are numbered: only a tokenizer knows their tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_local.text import tags

# The longest first, since one may begin another.
_TAGS = sorted(tags.CONTROL_TAGS, key=len, reverse=True)
_ESCAPED_TAGS = "|".join(map(re.escape, _TAGS))
_ANY_TAG = re.compile(f"({_ESCAPED_TAGS})")

Grammar = Mapping[str, Any]  # one of llguidance's, by the kind of its rules


class Lark:
    """Rules, and the tags that they name.

    `left_out` are the parts of the tools' schemas that the rules do not enforce.
    """

    def __init__(self, left_out: Sequence[str] = ()) -> None:
        self._left_out = left_out
        self.lines: list[str] = []
        self.tags: list[str] = []

    def tag(self, text: str) -> str:
        """The reference to a tag."""
        if text not in self.tags:
            self.tags.append(text)
        number = self.tags.index(text)
        return f"<[[{number}]]>"

    def text(self, text: str) -> str:
        """Text, with each tag in it apart: a vocabulary may hold it as one token."""
        parts = []
        for part in _ANY_TAG.split(text):
            if not part:
                continue
            if part in tags.CONTROL_TAGS:
                parts.append(self.tag(part))
            else:
                parts.append(quoted(part))
        return " ".join(parts)

    def rule(self, body: str) -> str:
        """A new rule with this body; returns its name."""
        name = self._new_name()
        self.lines.append(f"{name}: {body}")
        return name

    def until(self, end: str) -> str:
        """A new rule: any text, and the tag `end` after it."""
        name = self._new_name()
        tag = self.tag(end)
        line = tag.replace("[[", f"[[until {name} ")
        self.lines.append(line)
        return name

    def _new_name(self) -> str:
        number = len(self.lines)
        return f"r{number}"

    def read_free_text(self, tag: str) -> None:
        """Add the rules free_text and free_text_to_tag.

        In free_text `tag` does not come; free_text_to_tag ends with it.
        """
        line = tag.replace("[[", "[[free ")
        self.lines.append(line)

    def json(self, schema: Mapping[str, Any]) -> str:
        """A rule for JSON that fits a schema, which has to be fit to be compiled."""
        text = json.dumps(schema)
        return self.rule(f"%json {text}")

    def grammar(
        self,
        start: str,
        answer: Grammar | None = None,
    ) -> str:
        """The whole grammar; `answer` is one that `start` refers to as @answer."""
        rules = "\n".join([f"start: {start}", *self.lines])
        grammars: list[Grammar] = [{"lark_grammar": rules}]
        left_out = list(self._left_out)
        if answer is not None:
            named = {"name": "answer", **answer}
            left_out += named.pop("left_out", ())
            grammars.append(named)
        whole: dict[str, Any] = {
            "grammars": grammars,
            "tags": self.tags,
            "parameter": "tools",
        }
        if left_out:
            whole["left_out"] = left_out
        return json.dumps(whole)


def quoted(literal: str) -> str:
    """A text as Lark writes it; nothing for an empty one."""
    if not literal:
        return ""
    return json.dumps(literal, ensure_ascii=False)
