"""mlx-lm's own server on the same float32 weights and the same BLAS, so that it is at its best on a CPU."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import httpx

_START = (
    "from rvllm_local import host; host.prepare(); import sys; from mlx_lm.server import main; "
    "sys.argv = ['mlx_lm.server', *sys.argv[1:]]; main()"
)


def float32_folder(model: str, folder: Path) -> Path:
    """Write `model` as a folder that mlx-lm loads: float32 weights, configuration, tokenizer."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    from rvllm_local.models.loader import load_model, locate
    from rvllm_local.text.tokenizer_files import read_tokenizer

    files = locate(model)
    loaded = load_model(files)
    tokenizer = read_tokenizer(files)
    folder.mkdir(parents=True, exist_ok=True)
    config = {**loaded.config, "eos_token_id": list(loaded.eos_token_ids), "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = {name: mx.contiguous(value) for name, value in tree_flatten(loaded.module.parameters())}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    tokenizer._backend.save(str(folder / "tokenizer.json"))
    eos = tokenizer._backend.id_to_token(loaded.eos_token_ids[0])
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "chat_template": tokenizer.chat_template
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MlxLmServer:
    """The running server; a context manager. `complete` streams one completion."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.folder = folder
        command = [
            sys.executable,
            "-c",
            _START,
            "--model",
            str(folder),
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]
        self.process = subprocess.Popen(
            [*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        self._wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def _wait(self) -> None:
        for _ in range(600):
            try:
                httpx.get(f"{self.url}/models", timeout=1.0)
                return
            except httpx.HTTPError:
                if self.process.poll() is not None:
                    raise SystemExit(f"mlx-lm's server ended with {self.process.returncode}") from None
                time.sleep(0.2)
        raise SystemExit("mlx-lm's server did not come up within two minutes")

    def complete(self, prompt: str, max_tokens: int) -> Iterator[float]:
        """Yields the time of each piece of text of one streamed completion."""
        body = {
            "model": str(self.folder),
            "prompt": prompt,
            "max_tokens": max_tokens,
            "stream": True,
            "temperature": 0.0,
        }
        with httpx.stream("POST", f"{self.url}/completions", json=body, timeout=None) as response:
            response.raise_for_status()
            for line in response.iter_lines():
                if line.startswith("data: {") and json.loads(line[6:])["choices"][0].get("text"):
                    yield time.perf_counter()

    def __enter__(self) -> MlxLmServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
