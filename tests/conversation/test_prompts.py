"""What reaches the engine: the token ids of a middle to fill in, of a turn to go on from, and what calls are held to."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from tokenizers import Tokenizer

from rvllm_local.conversation.calls import ChatCall
from rvllm_local.conversation.model import ConversationModel
from rvllm_local.conversation.prompts import prepare_chat
from rvllm_local.text.families import style_of
from rvllm_local.types import EventSink, Request, SamplingParams
from tests.support.api import PacedClient, Running, served
from tests.support.served import save_thinking

TAGS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
SAID = [
    {"role": "user", "content": "Name a sea."},
    {"role": "assistant", "content": "The sea is "},
]


class Recording(PacedClient):
    """Remembers the prompts that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts: list[tuple[int, ...]] = []

    def start(self, requests: Sequence[Request], sink: EventSink) -> None:
        self.prompts.append(requests[0].prompt_token_ids)
        super().start(requests, sink)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = save_thinking(tmp_path_factory.mktemp("models") / "coder")
    path = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.add_special_tokens(list(TAGS))
    tokenizer.save(path)
    with served(
        {"coder": folder}, opener=lambda files, options: Recording()
    ) as running:
        running.post({"prompt": "x"}, "/tokenize")  # the model is loaded from here on
        yield running


def asked(running: Running, path: str, **body: object) -> str:
    """The prompt that a request became, as text with its special tokens."""
    answer = running.post({"model": "coder", "max_tokens": 1, **body}, path)
    assert answer.status_code == 200, answer.text
    tokens = running.engine.prompts[-1]
    found: str = running.post({"tokens": tokens}, "/detokenize").json()["prompt"]
    return found


def model_of(running: Running) -> ConversationModel:
    """What makes the prompts of the model that is loaded."""
    model: ConversationModel = running.server.registry.loaded()[0].prompts.model
    return model


def test_a_suffix_stands_between_the_models_own_tags(running: Running) -> None:
    found = asked(
        running, "/v1/completions", prompt="def f():", suffix="return <|fim_middle|> x"
    )
    assert (
        found
        == "<|fim_prefix|>def f():<|fim_suffix|>return <|fim_middle|> x<|fim_middle|>"
    )
    tokens = running.engine.prompts[-1]
    middle = model_of(running).tokenizer.control_token_id(TAGS[2])
    assert [place for place, token in enumerate(tokens) if token == middle] == [
        len(tokens) - 1
    ]


@pytest.mark.parametrize(
    ("path", "more"),
    [("/v1/messages", {}), ("/v1/chat/completions", {"continue_final_message": True})],
)
def test_an_assistants_turn_is_gone_on_from(
    running: Running, path: str, more: dict[str, object]
) -> None:
    found = asked(running, path, messages=SAID, **more)
    assert (
        found
        == "<|im_start|>user\nName a sea.<|im_end|>\n<|im_start|>assistant\nThe sea is "
    )


def test_only_an_assistants_turn_can_be_gone_on_from(running: Running) -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": "{}"}}
    for last in (SAID[0], {"role": "assistant", "tool_calls": [call]}):
        body = {
            "model": "coder",
            "messages": [SAID[0], last],
            "continue_final_message": True,
        }
        answer = running.post(body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (
            400,
            "messages",
        )


@pytest.mark.parametrize("arguments", ["[" * 5000, '{"a":' * 2000 + "1" + "}" * 2000])
def test_arguments_that_nest_too_deep_are_shown_as_they_are(
    running: Running, arguments: str
) -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": arguments}}
    found = asked(
        running,
        "/v1/chat/completions",
        messages=[SAID[0], {"role": "assistant", "tool_calls": [call]}],
    )
    assert json.dumps(arguments) in found


@pytest.mark.parametrize(
    ("style", "template"),
    [
        ("gemma", "{{ messages[0].content }}"),
        (None, "{{ tools }}{{ messages[0].content }}"),
    ],
)
def test_a_call_is_read_as_it_was_explained(
    running: Running, style: str | None, template: str
) -> None:
    loaded = model_of(running)
    tokenizer = copy.copy(loaded.tokenizer)
    tokenizer.chat_template = template
    served = replace(loaded, tokenizer=tokenizer, style=style_of(style))
    tool = {"type": "function", "function": {"name": "look"}}
    prepared = prepare_chat(
        served,
        ChatCall(
            "coder", ({"role": "user", "content": "Hm?"},), SamplingParams(), (tool,)
        ),
    )
    assert "<tool_call>" in tokenizer.decode(prepared.prompts[0])
    assert "<tool_call>" in (prepared.grammar or "")
    pieces = prepared.new_parser((tool,)).feed(
        '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
    )
    assert [type(piece).__name__ for piece in pieces] == [
        "ToolCallStart",
        "ToolCallDelta",
        "ToolCallEnd",
    ]


def test_with_none_tools_are_not_shown_and_not_called(running: Running) -> None:
    tool = {"type": "function", "function": {"name": "look"}}
    call = ChatCall(
        "coder",
        ({"role": "user", "content": "Hm?"},),
        SamplingParams(),
        (tool,),
        "none",
    )
    prepared = prepare_chat(model_of(running), call)
    assert "free_text" in (prepared.grammar or "")
    assert prepare_chat(model_of(running), replace(call, tools=())).grammar is None
