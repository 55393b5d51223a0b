"""Prompts made in this process: for tests of all that is not the prompt process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rvllm_local.conversation.calls import ChatCall, TextCall
from rvllm_local.conversation.model import ConversationModel, detect_style
from rvllm_local.conversation.prompt_frames import TextFacts, TokenIds
from rvllm_local.conversation.prompt_process import facts_of
from rvllm_local.conversation.prompts import Prepared, prepare_chat, prepare_text
from rvllm_local.engine.limits import EngineLimits
from rvllm_local.models.locate import ModelFiles
from rvllm_local.server.http.byte_budget import ByteBudget
from rvllm_local.text.read_inputs import EncodedInput, Input, encode_inputs
from rvllm_local.text.tokenizer_files import read_tokenizer


class PromptsHere:
    """`Prompts` without a process; `model` is what makes them."""

    def __init__(self, files: ModelFiles, budget: ByteBudget) -> None:
        tokenizer = read_tokenizer(files)
        style = detect_style(files, tokenizer)
        limits = EngineLimits(0, 0, 0)
        self.model = ConversationModel(files.name, tokenizer, style, limits)
        self.facts: TextFacts = facts_of(self.model)

    async def prepare(
        self, call: ChatCall | TextCall, limits: EngineLimits, within_s: float
    ) -> Prepared:
        self.model = replace(self.model, limits=limits)
        if isinstance(call, ChatCall):
            return prepare_chat(self.model, call)
        return prepare_text(self.model, call)

    async def tokenize(self, text: str, with_bos: bool, within_s: float) -> TokenIds:
        return TokenIds.of(
            self.model.tokenizer.encode(text, special=True, bos=with_bos)
        )

    async def encode(
        self, inputs: Sequence[Input], most_tokens: int | None, within_s: float
    ) -> Sequence[EncodedInput]:
        return encode_inputs(self.model.tokenizer, inputs, most_tokens)

    async def close(self) -> None:
        pass

    def stop(self) -> None:
        pass
