"""What users reported of templates to other servers is rendered right."""

from __future__ import annotations

from pathlib import Path

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
from tests.text.reported_templates import REPORTED, Reported

NAMES = [f"{number} {case.source}" for number, case in enumerate(REPORTED)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return read_tokenizer(ModelFiles("folder", folder, "tiny"))


def prompt(base: Tokenizer, case: Reported) -> str:
    """What the model gets to read."""
    templates = ChatTemplates(case.template)
    tokenizer = Tokenizer(base.backend, templates=templates)
    limits = EngineLimits(384, 100_000, 100_000, (0,))
    model = ConversationModel("tiny", tokenizer, style_of("hermes"), limits)
    chat = ChatCall("tiny", tuple(case.messages), SamplingParams(), **case.options)
    ids = prepare_chat(model, chat).prompts[0]
    return tokenizer.decode(ids, skip_special=False)


@pytest.mark.parametrize("case", REPORTED, ids=NAMES)
def test_a_reported_conversation_is_rendered(case: Reported, base: Tokenizer) -> None:
    if case.refused:
        with pytest.raises(ParameterError, match=case.prompt):
            prompt(base, case)
        return
    assert prompt(base, case) == case.prompt
