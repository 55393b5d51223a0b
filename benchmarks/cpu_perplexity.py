"""What packed weights cost in perplexity: the bundled text, in float32 and in int8 arithmetic of the same weights.

    python -m benchmarks.cpu_perplexity [--model NAME] [--conversions 4:64 8:64]

Each conversion is made in memory from the model's float32 weights: bits and MLX's group size.
"""

from __future__ import annotations

import argparse

import mlx.core as mx
from mlx import nn

from rvllm_local.attention.geometry import call_geometry
from rvllm_local.attention.probe import probe_layout
from rvllm_local.attention.seam import install, make_caches
from rvllm_local.memory.arena import Arena
from rvllm_local.memory.blocks import blocks_for
from rvllm_local.memory.tables import KVTables
from rvllm_local.models.cpu.backend import StepBackend, StepModel
from rvllm_local.models.cpu.step import build_step
from rvllm_local.models.cpu.stored import keep_stored
from rvllm_local.models.cpu.structure import find_decoder
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import locate
from rvllm_local.models.perplexity import bundled_text, perplexity
from rvllm_local.text.tokenizer_files import read_tokenizer

WINDOW = 512


class Packed:
    """A packed step that is called as a plain module: each call is a sequence of its own."""

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


def compare(name: str, module: nn.Module, token_ids: list[int]) -> None:
    exact = perplexity(module, token_ids)
    packed = perplexity(Packed(module), token_ids)
    change = 100 * (packed / exact - 1)
    print(f"{name}: float32 {exact:.4f}, packed {packed:.4f}, {change:+.2f} %")


def converted(module: nn.Module, bits: int, group: int) -> nn.Module:
    nn.quantize(module, group_size=group, bits=bits)
    keep_stored(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--conversions", nargs="*", default=["4:64", "8:64"])
    arguments = parser.parse_args()
    files = locate(arguments.model)
    token_ids = list(read_tokenizer(files).encode(bundled_text()))
    print(f"{len(token_ids)} tokens")
    compare("as stored", load_model(files, packs=True).module, token_ids)
    for conversion in arguments.conversions:
        bits, group = map(int, conversion.split(":"))
        module = converted(load_model(files).module, bits, group)
        compare(f"{bits} bits in groups of {group}", module, token_ids)


if __name__ == "__main__":
    main()
