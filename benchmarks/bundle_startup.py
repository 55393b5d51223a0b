"""Start-up to the first token from a bundle, beside mlx-lm with the same float32 weights: wall time and peak memory.

    python benchmarks/bundle_startup.py [MODEL] [--runs N] [--layers N]

With --layers the weights are random, of the model's shape but for its depth: what the fixed costs are to a larger model.
mlx-lm is used as its README does, `from mlx_lm import load, stream_generate`, with the same OpenBLAS. Each run is a process of its own, from its start to its first greedy token; the files are in the page cache. Peak memory
is the process's own (ru_maxrss), which counts the interpreter and the libraries too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RVLLM = """
from rvllm_local import LLM, SamplingParams
with LLM({path!r}, kv_memory="64MB") as llm:
    print(llm.generate("The sky is blue because", SamplingParams(max_tokens=1, temperature=0))[0].token_ids)
"""
MLX_LM = """
import ctypes, contextlib
with contextlib.suppress(OSError):
    ctypes.CDLL("libopenblas.so.0", ctypes.RTLD_GLOBAL)
from mlx_lm import load, stream_generate
model, tokenizer = load({path!r})
for part in stream_generate(model, tokenizer, "The sky is blue because", max_tokens=1):
    print([part.token])
"""


def measure(code: str) -> tuple[float, int, str]:
    """Seconds, bytes and output of one process."""
    began = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0, child.stderr.read() if child.stderr else ""
    scale = 1024 if sys.platform == "linux" else 1
    return (
        time.perf_counter() - began,
        usage.ru_maxrss * scale,
        output.strip().splitlines()[0],
    )


def deepened(model: str, layers: int, folder: Path) -> Path:
    """A folder with random weights and the model's tokenizer, of its shape but for the number of layers."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    from rvllm_local.models.families import build_model
    from rvllm_local.models.loader import open_native
    from rvllm_local.models.locate import locate
    from rvllm_local.text.tokenizer_export import tokenizer_folder_files
    from rvllm_local.text.tokenizer_files import read_tokenizer

    files = locate(model)
    config = {**open_native(files).config, "num_hidden_layers": layers}
    folder.mkdir()
    weights = dict(tree_flatten(build_model(config).parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    for name, data in tokenizer_folder_files(files, read_tokenizer(files)).items():
        (folder / name).write_bytes(data)
    return folder


def prepare(model: str, layers: int | None, folder: Path) -> tuple[Path, Path, int]:
    """A float32 bundle and a float32 folder of the same model, and the weights' bytes."""
    import rvllm_local  # noqa: F401
    from rvllm_local import host

    host.prepare()
    import mlx.core as mx
    from mlx.utils import tree_flatten

    from rvllm_local.commands.pack import pack_model
    from rvllm_local.models.loader import load_model
    from rvllm_local.models.locate import locate

    files = locate(
        model if layers is None else str(deepened(model, layers, folder / "deep"))
    )
    pack_model(files, folder / "wide.rvllm", as_float32=True)
    loaded = load_model(locate(str(folder / "wide.rvllm")))
    plain = folder / "plain"
    plain.mkdir()
    mx.save_safetensors(
        str(plain / "model.safetensors"),
        dict(tree_flatten(loaded.module.parameters())),
        {"format": "mlx"},
    )
    for path in (folder / "wide.rvllm").iterdir():
        if path.suffix == ".json" and path.name != "manifest.json":
            (plain / path.name).write_bytes(path.read_bytes())
    return folder / "wide.rvllm", plain, loaded.weights_bytes


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--layers", type=int)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        # In a process of its own: a child's peak memory begins with its parent's.
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            bundle, plain, weights = pool.apply(
                prepare, (arguments.model, arguments.layers, Path(place))
            )
        rows = {
            "rvllm, bundle": RVLLM.format(path=str(bundle)),
            "mlx-lm, folder": MLX_LM.format(path=str(plain)),
        }
        empty = measure("import mlx.core; print(1)")
        measure(
            rows["rvllm, bundle"]
        )  # the first run checks the weights' sha256, proves the model, and remembers both
        for name, code in rows.items():
            runs = [measure(code) for _ in range(arguments.runs)]
            line = {
                "what": name,
                "seconds": round(statistics.median(run[0] for run in runs), 2),
                "peak_mb": round(max(run[1] for run in runs) / 1e6),
                "weights_mb": round(weights / 1e6),
                "peak_of_weights": round(max(run[1] for run in runs) / weights, 2),
                "above_an_import_of_mlx": round(
                    (max(run[1] for run in runs) - empty[1]) / weights, 2
                ),
                "first_token": runs[0][2],
            }
            print(json.dumps(line))


if __name__ == "__main__":
    main()
