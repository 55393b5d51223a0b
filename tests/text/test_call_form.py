"""A call is told to a template in the form that it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rvllm_local.conversation.template_input import in_call_form
from rvllm_local.errors import TemplateLimitError
from rvllm_local.models.locate import ModelFiles
from rvllm_local.text.call_form import CallForm, find_call_form
from rvllm_local.text.call_proof import written_calls
from rvllm_local.text.chat_templates import ChatTemplates
from rvllm_local.text.tokenizer import Tokenizer
from rvllm_local.text.tokenizer_files import read_tokenizer
from tests.support.tiny import save_tokenizer

ROWS = "{% for m in messages %}{{ m.content or '' }}CALLS{% endfor %}"
EACH = "{% for c in m.tool_calls or [] %}{{ c.function.name }}ARGUMENTS{% endfor %}"
JSON, JOINED = "{{ c.function.arguments | tojson }}", "{{ '' + c.function.arguments }}"
WITHOUT_CONTENT = "{% if m.content is none %}" + EACH + "{% endif %}"
FORMS = [
    (EACH, JSON, CallForm()),
    (EACH, JOINED, CallForm(arguments_as_text=True)),
    (WITHOUT_CONTENT, JSON, CallForm(content_as_none=True)),
    (WITHOUT_CONTENT, JOINED, CallForm(True, True)),
    ("", "", None),
]


@pytest.mark.parametrize(("calls", "arguments", "form"), FORMS)
def test_the_form_is_found(
    tmp_path: Path, calls: str, arguments: str, form: CallForm | None
) -> None:
    save_tokenizer(tmp_path)
    plain = read_tokenizer(ModelFiles("folder", tmp_path, "tiny"))
    template = ROWS.replace("CALLS", calls.replace("ARGUMENTS", arguments))
    tokenizer = Tokenizer(plain.backend, templates=ChatTemplates(template))
    assert tokenizer.call_form == form


def test_content_stands_before_a_call_that_shows_none() -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": {"a": "ä"}}}
    rows = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "So.", "tool_calls": [call]},
    ]
    assert in_call_form(rows, CallForm()) == rows
    text = {**call, "function": {"name": "f", "arguments": '{"a": "ä"}'}}
    assert in_call_form(rows, CallForm(True, True)) == [
        rows[0],
        {"role": "assistant", "content": "So."},
        {"role": "assistant", "content": None, "tool_calls": [text]},
    ]


def test_a_template_that_runs_for_too_long_is_not_tried_again() -> None:
    renderings = []

    class Endless:
        eos_token = None

        def render_chat(self, messages: Any, **settings: Any) -> str:
            renderings.append(settings)
            raise TemplateLimitError("messages", "it ran for more than 2 seconds")

    assert find_call_form(Endless()) is None
    assert len(renderings) == 1
    assert written_calls(Endless()) == []
