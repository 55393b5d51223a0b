"""What the process for prompts costs: the same chats prepared here and in a process.

    python -m benchmarks.prompt_hop [--model NAME] [--rounds 200] [--tokens 40 4000]

A round prepares each chat both ways, in turn; what is told are medians. The way through
the process is the server's, from a call to a prepared prompt.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

from rvllm_local.conversation.calls import ChatCall
from rvllm_local.conversation.model import ConversationModel, detect_style
from rvllm_local.conversation.prompts import prepare_chat
from rvllm_local.engine.limits import EngineLimits
from rvllm_local.models.locate import locate
from rvllm_local.server.http.byte_budget import ByteBudget
from rvllm_local.server.prompts.process import PromptProcess
from rvllm_local.text.tokenizer_files import read_tokenizer
from rvllm_local.types import SamplingParams

_LIMITS = EngineLimits(2**20, 100_000, 100_000, (0,))
_WITHIN_S = 60.0
_WARMING = 5  # rounds that are not counted


def chat_of(num_words: int) -> ChatCall:
    """A chat whose message has so many words, each a token, near enough."""
    words = " ".join(f"sea{number % 7}" for number in range(num_words // 2))
    message = {"role": "user", "content": words}
    return ChatCall("m", (message,), SamplingParams(max_tokens=1))


async def compare(name: str, rounds: int, tokens: list[int]) -> None:
    """Prepare in turn, and print medians in milliseconds."""
    files = locate(name)
    tokenizer = read_tokenizer(files)
    style = detect_style(files, tokenizer)
    model = ConversationModel("m", tokenizer, style, _LIMITS)
    prompts = PromptProcess(files, ByteBudget([(2**24, 2**24)]))
    for count in tokens:
        call = chat_of(count)
        here_s: list[float] = []
        process_s: list[float] = []
        for _ in range(rounds + _WARMING):
            began = time.perf_counter()
            prepared = prepare_chat(model, call)
            middle = time.perf_counter()
            await prompts.prepare(call, _LIMITS, _WITHIN_S)
            here_s.append(middle - began)
            process_s.append(time.perf_counter() - middle)
        here = statistics.median(here_s[_WARMING:]) * 1000
        process = statistics.median(process_s[_WARMING:]) * 1000
        length = len(prepared.prompts[0])
        print(
            f"{length} tokens: here {here:.2f} ms, in a process {process:.2f} ms, "
            f"{process - here:+.2f} ms"
        )
    await prompts.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--tokens", type=int, nargs="+", default=[40, 4000])
    arguments = parser.parse_args()
    asyncio.run(compare(arguments.model, arguments.rounds, arguments.tokens))


if __name__ == "__main__":
    main()
