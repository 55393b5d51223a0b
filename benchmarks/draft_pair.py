"""A real pair: a model drafted by its own first layers. Tokens a step and acceptance.

    python -m benchmarks.draft_pair [--model NAME] [--layers 8] [--tokens 96] [--drafts 4]

The smaller model is made here: a folder with the first layers, the embedding and the
head of the larger one. It was not trained for it. Each step drafts as many tokens,
whatever they cost: what is measured is how often drafts are right, which no load changes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

import rvllm_local  # noqa: F401  (first: it prepares the process for MLX)
from benchmarks.draft_company import KINDS
from rvllm_local.clients.contract import make_requests
from rvllm_local.engine.core import EngineCore
from rvllm_local.engine.speculation.depth import DraftLength, StepCosts
from rvllm_local.engine.startup.build import open_core
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import ModelFiles, locate
from rvllm_local.options import EngineOptions
from rvllm_local.text.tokenizer_export import tokenizer_folder_files
from rvllm_local.text.tokenizer_files import read_tokenizer
from rvllm_local.types import SamplingParams, StreamEvent


class FreeTokens(StepCosts):
    """Says that a step costs the same whatever it checks."""

    def knows_plain(self, num_rows: int) -> bool:
        return True

    def cost(self, num_tokens: int, *, checks: bool = False) -> float:
        return 1.0


class FixedLength(DraftLength):
    """Has so many tokens drafted of each row."""

    def __init__(self, length: int) -> None:
        super().__init__(FreeTokens())
        self._fixed = length

    def choose(self, num_rows: int, chance: float, most: int) -> int:
        return min(self._fixed, most)


def save_cut(files: ModelFiles, num_layers: int, folder: Path) -> Path:
    """A folder with the model's first layers, in float32, and its tokenizer."""
    loaded = load_model(files)
    config = {**loaded.config, "num_hidden_layers": num_layers}
    config.pop("quantization", None)
    loaded.module.model.layers = loaded.module.model.layers[:num_layers]
    weights = dict(tree_flatten(loaded.module.parameters()))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    path = str(folder / "model.safetensors")
    mx.save_safetensors(path, weights, {"format": "mlx"})
    contents = tokenizer_folder_files(files, read_tokenizer(files))
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def answer(core: EngineCore, prompt: str, params: SamplingParams, name: str) -> int:
    """Answer a prompt alone; returns the number of tokens."""
    count = 0

    def take(event: StreamEvent) -> None:
        nonlocal count
        count += len(event.token_ids)

    tokens = tuple(core._text.encode(prompt))  # type: ignore[attr-defined]
    (request,) = make_requests(tokens, params, request_id=name)
    core.add(request, take)
    while core.has_work:
        core.step()
    return count


def measure(core: EngineCore, num_tokens: int) -> dict[str, dict[str, float]]:
    """By kind of prompt and temperature: tokens a step, and the share of drafts kept."""
    figures = {}
    for kind, prompts in KINDS.items():
        for temperature in (0.0, 0.7):
            before = core.stats()
            count = 0
            for number, prompt in enumerate(prompts):
                params = SamplingParams(
                    max_tokens=num_tokens,
                    temperature=temperature,
                    seed=number,
                    ignore_eos=True,
                )
                name = f"{kind} {temperature} {number}"
                count += answer(core, prompt, params, name)
            after = core.stats()
            steps = int(after["steps"]) - int(before["steps"])
            kept = _grown("draft_tokens_accepted", before, after)
            lost = _grown("draft_tokens_rejected", before, after)
            figures[f"{kind}, temperature {temperature}"] = {
                "tokens a step": round(count / steps, 2),
                "of drafts kept": round(kept / max(1, kept + lost), 3),
            }
            print(f"{kind}, temperature {temperature}:", end=" ")
            print(figures[f"{kind}, temperature {temperature}"], flush=True)
    return figures


def _grown(
    name: str,
    before: dict[str, int | float | str],
    after: dict[str, int | float | str],
) -> int:
    return int(after[name]) - int(before[name])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--drafts", type=int, default=4, help="tokens of each step")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    files = locate(args.model)
    with tempfile.TemporaryDirectory() as root:
        cut = save_cut(files, args.layers, Path(root) / "cut")
        options = EngineOptions(kv_memory=256_000_000, cache="off", draft=str(cut))
        core = open_core(files, read_tokenizer(files), options)
        speculator = core._parts.speculator
        assert speculator is not None
        speculator.costs = FreeTokens()
        speculator._length = FixedLength(args.drafts)
        figures = measure(core, args.tokens)
        core.close("measured")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
