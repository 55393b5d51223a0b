"""Templates that refuse what the API allows get the same conversation in another form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rvllm_local.conversation.calls import ChatCall
from rvllm_local.conversation.model import ConversationModel
from rvllm_local.conversation.prompts import prepare_chat
from rvllm_local.engine.limits import EngineLimits
from rvllm_local.errors import ParameterError
from rvllm_local.models.locate import ModelFiles
from rvllm_local.text.chat_templates import ChatTemplates
from rvllm_local.text.families import style_of
from rvllm_local.text.tokenizer import Tokenizer
from rvllm_local.text.tokenizer_files import read_tokenizer
from rvllm_local.types import SamplingParams
from tests.support.tiny import save_tokenizer

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Yes"}
CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "call_12345", "function": {"name": "look", "arguments": "{}"}}
    ],
}
RESULT = {"role": "tool", "tool_call_id": "call_12345", "content": "sunny"}
BARE_TOOL = {"type": "function", "function": {"name": "look"}}

_ROW = "{{ m.role }}:{{ m.content }};"
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}" + _ROW
) + "{% endfor %}"
DROPS_SYSTEM = "{% for m in messages if m.role != 'system' %}" + _ROW + "{% endfor %}"
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}" + _ROW + "{% endfor %}"
)
NINE = (
    "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{% if c.id | length != 9 %}{{ raise_exception('length 9!') }}{% endif %}"
    "{{ c.id }}{{ c.function.arguments }}{% endfor %}{{ m.tool_call_id }};{% endfor %}"
)
DESCRIBED = (
    "{% for t in tools %}{{ t.function.name + t.function.description }}"
    "{% for k, v in t.function.parameters.properties.items() %}{{ k }}{% endfor %}"
    "{% endfor %}"
)
# As a template of Mistral's: the system message stands before the user's last one.
LAST_USER = (
    "{{ tools }}{% for m in messages %}"
    "{% if m.role == 'user' and loop.last and messages[0].role == 'system' %}"
    "{{ messages[0].content }}|{% endif %}{% if m.role != 'system' %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments }}{% endfor %};"
    "{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return read_tokenizer(ModelFiles("folder", folder, "tiny"))


def prompt(
    base: Tokenizer, template: str, messages: list[dict[str, Any]], **call: Any
) -> str:
    """What the model gets to read."""
    tokenizer = Tokenizer(base.backend, templates=ChatTemplates(template))
    limits = EngineLimits(384, 100_000, 100_000, (0,))
    model = ConversationModel("tiny", tokenizer, style_of("mistral"), limits)
    chat = ChatCall("tiny", tuple(messages), SamplingParams(), **call)
    return tokenizer.decode(prepare_chat(model, chat).prompts[0])


@pytest.mark.parametrize("template", [NO_SYSTEM, DROPS_SYSTEM])
def test_a_system_message_begins_the_first_user_s(
    base: Tokenizer, template: str
) -> None:
    found = prompt(base, template, [SYSTEM, USER, ANSWER, USER])
    assert found == "user:Be brief.\n\nHi;assistant:Yes;user:Hi;"
    assert prompt(base, template, [SYSTEM]) == "user:Be brief.;"
    assert prompt(base, template, [USER, SYSTEM]) == "user:Hi;user:Be brief.;"


def test_a_system_message_stays_where_a_result_comes_last(base: Tokenizer) -> None:
    assert prompt(base, LAST_USER, [SYSTEM, USER]).endswith("Be brief.|Hi;")
    found = prompt(base, LAST_USER, [SYSTEM, USER, CALLED, RESULT])
    assert found.endswith("Be brief.\n\nHi;{};sunny;")


def test_turns_of_one_role_are_joined(base: Tokenizer) -> None:
    found = prompt(base, ALTERNATING, [USER, USER, ANSWER, ANSWER, USER])
    assert found == "user:Hi\n\nHi;assistant:Yes\n\nYes;user:Hi;"


def test_results_alternate_as_text(base: Tokenizer) -> None:
    found = prompt(base, ALTERNATING, [SYSTEM, USER, CALLED, RESULT, USER])
    assert found.count("user:") == 2
    assert "<tool_response>\nsunny\n</tool_response>\n\nHi;" in found


def test_ids_of_calls_have_the_length_that_the_template_wants(base: Tokenizer) -> None:
    found = prompt(base, NINE + "{{ tools }}", [USER, CALLED, RESULT], tools=())
    short = found.split(";")[1].removesuffix("{}")
    assert len(short) == 9
    assert found.split(";")[2] == f"sunny{short}"


def test_an_empty_list_of_calls_is_no_call(base: Tokenizer) -> None:
    template = (
        "{% for m in messages %}{% if 'tool_calls' in m %}"
        "{{ raise_exception('one call') }}{% endif %}" + _ROW
    ) + "{% endfor %}"
    answer = {**ANSWER, "tool_calls": []}
    found = prompt(base, template, [USER, answer, USER])
    assert found == "user:Hi;assistant:Yes;user:Hi;"


def test_a_tool_without_description_or_parameters(base: Tokenizer) -> None:
    assert prompt(base, DESCRIBED, [USER], tools=(BARE_TOOL,)) == "look"


def test_a_template_that_takes_the_messages_gets_them_as_they_are(
    base: Tokenizer,
) -> None:
    plain = "{% for m in messages %}" + _ROW + "{% endfor %}"
    assert prompt(base, plain, [SYSTEM, USER, USER]) == (
        "system:Be brief.;user:Hi;user:Hi;"
    )


def test_what_no_form_mends_is_said_in_the_template_s_words(base: Tokenizer) -> None:
    with pytest.raises(ParameterError, match="never"):
        prompt(base, "{{ raise_exception('never') }}", [SYSTEM, USER])
