"""vocab.json and merges.txt without tokenizer.json are the same tokenizer as transformers'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import ByteLevelBPETokenizer, Tokenizer, pre_tokenizers

from rvllm_local.errors import ModelFileError, UnsupportedModelError
from rvllm_local.models.locate import ModelFiles
from rvllm_local.text.tokenizer_files import read_tokenizer

TEXTS = ["Hello world, it's 12345!", " a  b\n\nc\t", "<|im_start|>user\ncafe\u0301 x"]
CORPUS = ["Hello world, it's me. You're in the world of 123 words and 45 signs!"] * 4


def write(folder: Path, name: str | None, **settings: Any) -> ModelFiles:
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(CORPUS, 300, special_tokens=["<|endoftext|>"])
    trained.save_model(str(folder))
    size = len(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
    row = {"content": "<|im_start|>", "special": True}
    config = {
        "added_tokens_decoder": {str(size): row},
        "eos_token": "<|endoftext|>",
        **settings,
    }
    if name is not None:
        config["tokenizer_class"] = name
    text = json.dumps(config)
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    return ModelFiles("folder", folder, "pieces")


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "Qwen2Tokenizer", None])
def test_texts_have_the_tokens_that_transformers_gives_them(
    tmp_path: Path, name: str | None
) -> None:
    from transformers import AutoTokenizer  # seconds, in each worker that collects

    tokenizer = read_tokenizer(write(tmp_path, name))
    reference = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        expected = reference(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.encode(text, special=True) == expected
        assert tokenizer.decode(expected, skip_special=False) == reference.decode(
            expected, clean_up_tokenization_spaces=False
        )
    assert tokenizer.special_token_id("<|im_start|>") is not None
    assert tokenizer.eos_token == "<|endoftext|>"


def test_a_class_that_is_not_known_is_named(tmp_path: Path) -> None:
    files = write(tmp_path, "OddTokenizer")
    with pytest.raises(UnsupportedModelError, match=r"OddTokenizer.*tokenizer\.json"):
        read_tokenizer(files)


def test_files_that_contradict_each_other_are_named(tmp_path: Path) -> None:
    row = {"content": "<|im_start|>", "special": True}
    files = write(tmp_path, "GPT2Tokenizer", added_tokens_decoder={"5": row})
    with pytest.raises(ModelFileError, match=r"vocab.json and the added tokens.*id 5"):
        read_tokenizer(files)
    files = write(tmp_path, "GPT2Tokenizer")
    merges = tmp_path / "merges.txt"
    merges.write_text(merges.read_text(encoding="utf-8") + "a b c\n", encoding="utf-8")
    with pytest.raises(ModelFileError, match=r"merges.txt: line \d+ is no pair"):
        read_tokenizer(files)


def test_tokenizer_json_comes_first(tmp_path: Path) -> None:
    files = write(tmp_path, "OddTokenizer")
    whole = ByteLevelBPETokenizer.from_file(
        str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")
    )
    backend = Tokenizer.from_str(whole.to_str())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert read_tokenizer(files).eos_token == "<|endoftext|>"
