"""What packed weights cost in perplexity: float32 and int8 arithmetic of the same weights.

    python -m benchmarks.cpu_perplexity [--model NAME] [--conversions 4:64 8:64] [--llama PATH]

The bundled text is read by llama.cpp's rule: whole windows of 256 tokens, of which the second
halves are scored. The predictions' mean divergence tells more than so few tokens' losses.
Each conversion is made in memory by mlx-lm's way from the model's float32
weights: bits and MLX's group size. `--llama` runs llama.cpp's `llama-perplexity` over the model's GGUF file.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

from rvllm_local.attention.geometry import call_geometry
from rvllm_local.attention.probe import probe_layout
from rvllm_local.attention.seam import install, make_caches
from rvllm_local.memory.arena import Arena
from rvllm_local.memory.blocks import blocks_for
from rvllm_local.memory.tables import KVTables
from rvllm_local.models.cpu.backend import StepBackend, StepModel
from rvllm_local.models.cpu.packed import pack
from rvllm_local.models.cpu.step import build_step
from rvllm_local.models.cpu.stored import keep_stored
from rvllm_local.models.cpu.structure import find_decoder
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import locate
from rvllm_local.models.perplexity import bundled_text
from rvllm_local.text.tokenizer_files import read_tokenizer

WINDOW = 256
FIRST_SCORED = WINDOW // 2

Model = Callable[[mx.array], mx.array]


class InSessions:
    """A step that is called as a plain module: each call is a sequence of its own.

    Plain weights, which it takes out of the module, it multiplies in float32.
    """

    def __init__(self, module: nn.Module) -> None:
        install(module)
        self._layout = probe_layout(module)
        blocks = [blocks_for(WINDOW) + 2] * len(self._layout.groups)
        pairs = zip(self._layout.groups, blocks, strict=True)
        arenas = [Arena(shape, count) for shape, count in pairs]
        self._kv = KVTables(self._layout, blocks)
        decoder = find_decoder(module)
        step = None
        if decoder is not None:
            step = build_step(decoder, self._layout, arenas)
        if step is None:
            raise SystemExit("this model is not packed as a whole step")
        self._model, self._backend = StepModel(step, arenas), StepBackend(arenas)

    def __call__(self, tokens: mx.array) -> mx.array:
        tables, count = self._kv.new_sequence(), tokens.shape[1]
        self._kv.grow(tables, count)
        geometry = call_geometry(self._layout, [tables], [0], count)
        caches = make_caches(self._layout, self._backend, geometry, dense=False)
        logits = self._model(tokens, cache=caches).astype(mx.float32)
        self._kv.release(tables)
        return logits


@dataclass(frozen=True)
class Predictions:
    """Log-probabilities `[tokens, vocab]` of the scored tokens, which are `targets`."""

    logprobs: npt.NDArray[np.float32]
    targets: npt.NDArray[np.int64]

    @property
    def losses(self) -> npt.NDArray[np.float64]:
        """Each token's negative log-likelihood."""
        likelihoods = self.logprobs[np.arange(len(self.targets)), self.targets]
        return -likelihoods.astype(np.float64)

    @property
    def perplexity(self) -> float:
        return math.exp(self.losses.mean())

    def divergence(self, other: Predictions) -> float:
        """The mean Kullback-Leibler divergence of `other`, in nats."""
        total = 0.0
        for ours, theirs in zip(self.logprobs, other.logprobs, strict=True):
            exact = ours.astype(np.float64)
            total += float((np.exp(exact) * (exact - theirs)).sum())
        return total / len(self.targets)


def predictions(model: Model, token_ids: list[int]) -> Predictions:
    """What a model makes of the second halves of all windows."""
    logprobs = []
    targets = []
    for start in range(0, len(token_ids) - WINDOW + 1, WINDOW):
        window = np.array(token_ids[start : start + WINDOW])
        logits = np.array(model(mx.array(window[None])))[0].astype(np.float64)
        scored = logits[FIRST_SCORED:-1]
        shifted = scored - scored.max(axis=-1, keepdims=True)
        normalizers = np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        logprobs.append((shifted - normalizers).astype(np.float32))
        targets.append(window[FIRST_SCORED + 1 :])
    return Predictions(np.concatenate(logprobs), np.concatenate(targets))


def in_float32(module: nn.Module, token_ids: list[int]) -> Predictions:
    """What a quantized module predicts whose weights are widened, and put back."""
    leaves = tree_flatten(module.leaf_modules(), is_leaf=nn.Module.is_module)
    quantized = [(path, layer) for path, layer in leaves if hasattr(layer, "bits")]
    for path, layer in quantized:
        module.update_modules(tree_unflatten([(path, widened(layer))]))
    exact = predictions(InSessions(module), token_ids)
    for path, layer in quantized:
        module.update_modules(tree_unflatten([(path, layer)]))
    return exact


def widened(layer: nn.Module) -> nn.Module:
    matrix = pack(layer)
    weight = mx.array(matrix.values(np.arange(matrix.rows)))
    plain: nn.Module = nn.Linear(1, 1, bias=False)
    if isinstance(layer, nn.QuantizedEmbedding):
        plain = nn.Embedding(1, 1)
    plain.weight = weight
    if "bias" in layer:
        plain.bias = layer["bias"]
    return plain


def llama(gguf: Path, tool: Path) -> float:
    """llama.cpp's own figure."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as text:
        text.write(bundled_text())
        text.flush()
        command = [str(tool), "-m", str(gguf), "-f", text.name, "-c", str(WINDOW)]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    match = re.search(r"Final estimate: PPL = ([0-9.]+)", answer.stdout + answer.stderr)
    assert match is not None, answer.stderr[-2000:]
    return float(match.group(1))


def show(name: str, exact: Predictions, packed: Predictions, began: float) -> None:
    change = packed.losses - exact.losses
    percent = 100 * math.expm1(change.mean())
    error = 100 * change.std() / math.sqrt(len(change))
    seconds = time.perf_counter() - began
    print(
        f"{name}: float32 {exact.perplexity:.4f}, packed {packed.perplexity:.4f}, "
        f"{percent:+.2f} % (standard error {error:.2f}), "
        f"divergence {exact.divergence(packed):.5f} nats ({seconds:.0f} s)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--conversions", nargs="*", default=["4:64", "8:64"])
    parser.add_argument("--llama", type=Path, help="the tool llama-perplexity")
    arguments = parser.parse_args()
    files = locate(arguments.model)
    token_ids = list(read_tokenizer(files).encode(bundled_text()))
    print(f"{len(token_ids)} tokens")
    if arguments.llama is not None:
        print(f"llama.cpp: {llama(files.path, arguments.llama):.4f}", flush=True)
    began = time.perf_counter()
    exact = predictions(InSessions(load_model(files).module), token_ids)
    packed = predictions(InSessions(load_model(files, packs=True).module), token_ids)
    show("as stored", exact, packed, began)
    for conversion in arguments.conversions:
        began = time.perf_counter()
        bits, group = map(int, conversion.split(":"))
        module = load_model(files).module
        nn.quantize(module, group_size=group, bits=bits)
        exact = in_float32(module, token_ids)
        keep_stored(module)
        packed = predictions(InSessions(module), token_ids)
        show(f"{bits} bits in groups of {group}", exact, packed, began)


if __name__ == "__main__":
    main()
