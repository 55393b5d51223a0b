"""A pointer or a page in the place of a file is called what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from rvllm_local.errors import ModelFileError
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import locate
from rvllm_local.text.tokenizer_files import read_tokenizer
from tests.support.tiny import save_tiny

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
PAGE = "\n<!DOCTYPE html><html><body>Sign in</body></html>"


@pytest.mark.parametrize(
    ("text", "match"), [(POINTER, "git lfs pull"), (PAGE, "is a web page")]
)
@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"],
)
def test_what_is_no_model_is_named(
    tmp_path: Path, name: str, text: str, match: str
) -> None:
    folder = save_tiny("llama", tmp_path / "model")
    (folder / name).write_text(text)
    with pytest.raises(ModelFileError, match=match):
        load_model(locate(str(folder)))
        read_tokenizer(locate(str(folder)))


def test_a_pointer_to_a_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_text(POINTER)
    with pytest.raises(ModelFileError, match="git lfs pull"):
        load_model(locate(str(path)))
