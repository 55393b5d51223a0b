"""mlx-lm's own server on the same float32 weights and the same BLAS, so that it is at its best on a CPU."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from benchmarks.peers.process import ServerProcess, free_port

_START = (
    "from rvllm_local import host; host.prepare(); import sys; from mlx_lm.server import main; "
    "sys.argv = ['mlx_lm.server', *sys.argv[1:]]; main()"
)


def plain_folder(model: str, folder: Path, *, endless: bool = False) -> Path:
    """Write `model` as a folder that mlx-lm loads: weights as they are run here (float32 on a CPU), tokenizer.

    `endless` names an end token that the model does not choose, since mlx-lm's server cannot be asked to ignore it.
    """
    import mlx.core as mx
    from mlx.utils import tree_flatten

    from rvllm_local.models.loader import load_model
    from rvllm_local.models.locate import locate
    from rvllm_local.text.tokenizer_files import read_tokenizer

    files = locate(model)
    loaded = load_model(files)
    tokenizer = read_tokenizer(files)
    folder.mkdir(parents=True, exist_ok=True)
    ends = [_unused_token(tokenizer)] if endless else list(loaded.eos_token_ids)
    weights = {
        name: mx.contiguous(value)
        for name, value in tree_flatten(loaded.module.parameters())
    }
    widest = max(weights.values(), key=lambda value: value.size).dtype
    config = {
        **loaded.config,
        "eos_token_id": ends,
        "torch_dtype": str(widest).removeprefix("mlx.core."),
    }
    if quantized := _quantization(loaded.module):
        config["quantization"] = quantized
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    tokenizer._backend.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": tokenizer._backend.id_to_token(ends[0]),
        "chat_template": tokenizer.chat_template,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings), encoding="utf-8"
    )
    return folder


def _quantization(module: Any) -> dict[str, Any]:
    """How each quantized layer is packed, as mlx-lm's configuration says it; empty if none is."""
    layers = {
        name: {"group_size": layer.group_size, "bits": layer.bits}
        for name, layer in module.named_modules()
        if hasattr(layer, "bits") and "scales" in layer
    }
    return {**next(iter(layers.values())), **layers} if layers else {}


def _unused_token(tokenizer: object) -> int:
    """A special token that no text and no chat template holds: the last of them that is not an end or a role mark."""
    added = tokenizer._backend.get_added_tokens_decoder()  # type: ignore[attr-defined]
    named = [
        number
        for number, token in added.items()
        if token.special and "im_" not in token.content
    ]
    return max(number for number in named if "endoftext" not in added[number].content)


class MlxLmServer(ServerProcess):
    """The running server; a context manager. `complete` streams one completion."""

    name = "mlx-lm"

    def __init__(self, folder: Path, *options: str) -> None:
        port, self.folder = free_port(), folder
        command = [
            sys.executable,
            "-c",
            _START,
            "--model",
            str(folder),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        super().__init__([*command, *options], port, str(folder))

    def complete(self, prompt: str, max_tokens: int) -> Iterator[float]:
        """Yields the time of each piece of text of one streamed completion."""
        body = {
            "model": str(self.folder),
            "prompt": prompt,
            "max_tokens": max_tokens,
            "stream": True,
            "temperature": 0.0,
        }
        with httpx.stream(
            "POST", f"{self.url}/completions", json=body, timeout=None, trust_env=False
        ) as response:
            response.raise_for_status()
            for line in response.iter_lines():
                if line.startswith("data: {") and json.loads(line[6:])["choices"][
                    0
                ].get("text"):
                    yield time.perf_counter()
