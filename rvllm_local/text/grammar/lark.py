"""A Lark grammar in the making. Tags are numbered: only a tokenizer knows their tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_local.text import tags

_TAGS = sorted(tags.CONTROL_TAGS, key=len, reverse=True)
_ESCAPED_TAGS = "|".join(map(re.escape, _TAGS))
_ANY_TAG = re.compile(f"({_ESCAPED_TAGS})")


class Lark:
    """Rules, and the tags that they name.

    `left_out` are the parts of the tools' schemas that the rules do not enforce.
    """

    def __init__(self, left_out: Sequence[str] = ()) -> None:
        self._left_out = list(left_out)
        self.lines: list[str] = []
        self.tags: list[str] = []

    def tag(self, text: str) -> str:
        """The reference to a tag."""
        if text not in self.tags:
            self.tags.append(text)
        return f"<[[{self.tags.index(text)}]]>"

    def text(self, text: str) -> str:
        """Text, with each tag in it apart: a vocabulary may hold it as one token."""
        parts = []
        for part in _ANY_TAG.split(text):
            if part in tags.CONTROL_TAGS:
                parts.append(self.tag(part))
            elif part:
                parts.append(quoted(part))
        return " ".join(parts)

    def rule(self, body: str) -> str:
        """A new rule with this body; returns its name."""
        name = f"r{len(self.lines)}"
        self.lines.append(f"{name}: {body}")
        return name

    def until(self, end: str) -> str:
        """A new rule: any text, and the tag `end` after it."""
        name = f"r{len(self.lines)}"
        tag = self.tag(end)
        line = tag.replace("[[", f"[[until {name} ")
        self.lines.append(line)
        return name

    def read_free_text(self, tag: str) -> None:
        """Add the rules free_text and free_text_to_tag.

        In free_text `tag` does not come; free_text_to_tag ends with it.
        """
        self.lines.append(tag.replace("[[", "[[free "))

    def json(self, schema: Mapping[str, Any]) -> str:
        """A rule for JSON that fits a schema, which has to be fit to be compiled."""
        return self.rule(f"%json {json.dumps(schema)}")

    def grammar(self, start: str, answer: Mapping[str, Any] | None = None) -> str:
        """The whole grammar; `answer` is one that `start` refers to as @answer."""
        lines = "\n".join([f"start: {start}", *self.lines])
        grammars: list[Mapping[str, Any]] = [{"lark_grammar": lines}]
        left_out = self._left_out
        if answer is not None:
            named: dict[str, Any] = {"name": "answer", **answer}
            left_out = [*left_out, *named.pop("left_out", ())]
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
