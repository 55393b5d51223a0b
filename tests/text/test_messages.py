"""Messages come in as text or as parts of text; every other part is refused by its type."""

from __future__ import annotations

from typing import Any

import pytest

from rvllm_local.errors import ParameterError
from rvllm_local.text.messages import plain_messages


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "How "}, {"type": "text", "text": "deep?"}]
    call = {"role": "assistant", "content": None, "tool_calls": []}
    assert plain_messages([{"role": "user", "content": parts}, call]) == [
        {"role": "user", "content": "How deep?"},
        call,
    ]


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ("How deep?", "must be a list"),
        ([{"content": "x"}], "with a role"),
        (["x"], "with a role"),
        ([{"role": "user", "content": 3}], "must be text, not int"),
        ([{"role": "user", "content": ["x"]}], "a part of type 'str'"),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "x"}}],
                }
            ],
            "type 'image_url'",
        ),
    ],
)
def test_what_is_no_text_is_refused(messages: Any, told: str) -> None:
    with pytest.raises(ParameterError, match=told):
        plain_messages(messages)
