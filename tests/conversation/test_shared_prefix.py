"""How many tokens of a prompt are those of its system prompt and its tools."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rvllm_local.conversation.calls import ChatCall
from rvllm_local.conversation.model import ConversationModel, detect_style
from rvllm_local.conversation.prompts import prepare_chat
from rvllm_local.engine.limits import EngineLimits
from rvllm_local.models.locate import ModelFiles
from rvllm_local.text.tokenizer_files import read_tokenizer
from rvllm_local.types import SamplingParams
from tests.support.served import save_thinking

SYSTEM = {"role": "system", "content": "You know the seas, and answer in a line."}
QUESTION = {"role": "user", "content": "Name a sea."}
ANSWER = {"role": "assistant", "content": "The Black Sea."}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ConversationModel:
    folder: Path = save_thinking(tmp_path_factory.mktemp("models") / "thinker")
    files = ModelFiles("folder", folder, "thinker")
    tokenizer = read_tokenizer(files)
    limits = EngineLimits(384, 2048, 2048, keeps_states=True)
    return ConversationModel(
        "thinker", tokenizer, detect_style(files, tokenizer), limits
    )


def shared_text(model: ConversationModel, *messages: dict[str, Any]) -> str:
    call = ChatCall("thinker", tuple(messages), SamplingParams(max_tokens=8))
    prepared = prepare_chat(model, call)
    shared = prepared.prompts[0][: prepared.num_shared]
    return model.tokenizer.decode(shared, skip_special=False)


def test_the_system_prompt_is_shared(model: ConversationModel) -> None:
    text = shared_text(model, SYSTEM, QUESTION)
    assert SYSTEM["content"] in text
    assert QUESTION["content"] not in text


def test_later_turns_and_bare_questions_share_nothing(model: ConversationModel) -> None:
    assert shared_text(model, QUESTION) == ""
    assert shared_text(model, SYSTEM, QUESTION, ANSWER, QUESTION) == ""


def test_a_model_that_keeps_no_states_is_not_asked(model: ConversationModel) -> None:
    limits = replace(model.limits, keeps_states=False)
    assert shared_text(replace(model, limits=limits), SYSTEM, QUESTION) == ""
