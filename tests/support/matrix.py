"""Holds a tiny random model of one architecture against mlx-lm: cold, warm, preempted and restarted, token for token."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from msgspec.structs import replace

from rvllm_local.attention.probe import plain_caches, probe_layout
from rvllm_local.clients.contract import make_requests
from rvllm_local.engine.core import EngineCore
from rvllm_local.engine.startup.build import build_core
from rvllm_local.errors import RvllmError
from rvllm_local.memory.layout import KVLayout
from rvllm_local.models.loader import LoadedModel
from rvllm_local.options import EngineOptions
from rvllm_local.types import FinishReason, SamplingParams, StreamEvent
from tests.support.zoo import VOCAB_SIZE, zoo_model

# Tokens of the prompts, and of each answer, which goes on into a block of its own.
LENGTHS = (60, 70, 104)
NUM_TOKENS = 28
_PARAMS = SamplingParams(max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True)
_OPTIONS = EngineOptions(kv_memory=16_000_000, max_rows=4, prefill_chunk=48)
_BUILD_ERRORS = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    RuntimeError,
    RvllmError,
)


@functools.cache
def loaded(arch: str) -> LoadedModel:
    """A tiny model of an architecture, made once."""
    model, config = zoo_model(arch)
    return LoadedModel(
        model, config, arch, arch, 1024, VOCAB_SIZE, (), 0, f"tiny {arch}"
    )


def tokens(length: int, seed: int) -> list[int]:
    """Token ids drawn from a seed."""
    return np.random.default_rng(seed).integers(0, VOCAB_SIZE, length).tolist()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one architecture: "equal", "refused", "different" or "no model" (mlx-lm has no tiny one)."""

    arch: str
    verdict: str
    keeps: str = ""
    way: str = ""
    detail: str = ""
    backend: str = (
        ""  # what computes attention here, and what else its decode calls do at once
    )


class Bytes:
    """A vocabulary for an engine whose text nobody reads. No token ends a turn."""

    end_token_ids: frozenset[int] = frozenset()

    def id_to_bytes(self, token_id: int) -> bytes | None:
        return bytes([token_id % 128])

    def keeping(self, kept_special: Collection[str]) -> Bytes:
        return self


class Answer:
    """A sink for one request's tokens."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.cached = 0

    def __call__(self, event: StreamEvent) -> None:
        assert event.finish_reason is not FinishReason.ERROR
        self.tokens.extend(event.token_ids)
        self.cached = event.cached_tokens


def judge(arch: str, config: dict[str, Any] | None = None) -> Verdict:
    """Build the tiny model of `arch`, ask mlx-lm, then the engine in its ways.

    One with recurrent layers is also restarted over what it left on disk. `config` is
    one in place of the architecture's usual tiny one.
    """
    try:
        model, config = zoo_model(arch, config=config)
        prompts = [
            np.random.default_rng(n).integers(0, VOCAB_SIZE, n).tolist()
            for n in LENGTHS
        ]
        expected = [mlx_lm_tokens(model, prompt) for prompt in prompts]
        keeps = _kinds(model)
    except (*_BUILD_ERRORS, SystemExit) as error:
        return Verdict(arch, "no model", detail=_line(error))
    vocab_size = int(config["vocab_size"])
    loaded = LoadedModel(
        model, config, arch, arch, 512, vocab_size, (), 0, f"tiny {arch}"
    )
    with tempfile.TemporaryDirectory() as folder:
        return _judge(loaded, prompts, expected, keeps, folder)


def _judge(
    loaded: LoadedModel,
    prompts: list[list[int]],
    expected: list[list[int]],
    keeps: str,
    folder: str,
) -> Verdict:
    model, arch = loaded.module, loaded.name
    options = _OPTIONS
    if "recurrent" in keeps:
        options = replace(_OPTIONS, cache="disk", cache_dir=folder)
    try:
        core = build_core(loaded, Bytes(), options)
    except RvllmError as error:
        return Verdict(arch, "refused", keeps, detail=_line(error))
    way, backend = _way(core), _backend(core)
    layout = probe_layout(model)
    cold, _ = _ask(core, prompts)
    warm, hits = _ask(core, prompts)
    tight = build_core(
        loaded,
        Bytes(),
        replace(_OPTIONS, kv_memory=_tight_bytes(layout), self_check=False),
    )
    _like(tight, core)
    preempted, _ = _ask(tight, prompts, preempt_every=18)
    num_preemptions = tight.stats()["preemptions"]
    core.close("done")
    tight.close("done")
    ways = [("cold", cold), ("warm", warm), ("preempted", preempted)]
    if options.cache == "disk":
        again = _like(
            build_core(loaded, Bytes(), replace(options, self_check=False)), core
        )
        restarted, hits_on_disk = _ask(again, prompts)
        again.close("done")
        ways.append(("restarted", restarted))
        hits = [*hits, *hits_on_disk]
    wrong = [name for name, tokens in ways if tokens != expected]
    if len({tuple(tokens) for tokens in expected}) == 1:
        wrong.append("the model always says the same")
    if min(hits) == 0:
        wrong.append("no prefix was reused")
    if num_preemptions == 0:
        wrong.append("nothing was preempted")
    return Verdict(
        arch, "different" if wrong else "equal", keeps, way, ", ".join(wrong), backend
    )


def _like(core: EngineCore, proven: EngineCore) -> EngineCore:
    """A core that was not checked itself, in the mode of one that was."""
    core._runner.mode = proven._runner.mode
    if proven._runner._compiled is None:  # the mode has no compiled step
        core._runner._compiled = None
    return core


def mlx_lm_tokens(model: nn.Module, prompt: Sequence[int]) -> list[int]:
    """Plain mlx-lm: its own caches, the prompt but for its last token first, then one token at a time."""
    caches = plain_caches(model)
    if len(prompt) > 1:
        model(mx.array([prompt[:-1]]), cache=caches)
    token, tokens = prompt[-1], []
    for _ in range(NUM_TOKENS):
        token = int(mx.argmax(model(mx.array([[token]]), cache=caches)[0, -1]).item())
        tokens.append(token)
    return tokens


def _ask(
    core: EngineCore, prompts: Sequence[Sequence[int]], preempt_every: int | None = None
) -> tuple[list[list[int]], list[int]]:
    """Tokens, and how many were cached, of each prompt; all run at once, and one is thrown out every so many steps."""
    answers = [Answer() for _ in prompts]
    for prompt, answer in zip(prompts, answers, strict=True):
        core.add(make_requests(tuple(prompt), _PARAMS)[0], answer)
    for step in range(1, 2000):
        if not core.has_work:
            break
        core.step()
        running = core._scheduler.running
        if preempt_every is not None and step % preempt_every == 0 and running:
            core._scheduler._preempt(running[-1])
    core.check_integrity()
    return [answer.tokens for answer in answers], [answer.cached for answer in answers]


def _tight_bytes(layout: KVLayout) -> int:
    """Room for the longest sequence and one block more, with each group's scratch block."""
    needed = layout.blocks_needed(max(LENGTHS) + NUM_TOKENS + 1, _OPTIONS.prefill_chunk)
    blocks = max(needed) + 2
    useful = [
        4 * count + 1 for count in layout.blocks_needed(512, _OPTIONS.prefill_chunk)
    ]
    return sum(
        min(blocks, most) * shape.block_bytes
        for most, shape in zip(useful, layout.groups, strict=True)
    )


def _kinds(model: nn.Module) -> str:
    names = {
        "KVCache": "full",
        "RotatingKVCache": "window",
        "ChunkedKVCache": "chunks",
        "ArraysCache": "recurrent",
    }
    leaves: list[Any] = []
    for cache in plain_caches(model):
        leaves.extend(getattr(cache, "caches", [cache]))
    found = dict.fromkeys(
        names.get(type(leaf).__name__, type(leaf).__name__) for leaf in leaves
    )
    return " and ".join(sorted(found))


def _way(core: EngineCore) -> str:
    mode = core._runner.mode
    return ("batched" if mode.batched else "row by row") + (
        ", gathered" if mode.dense else ""
    )


def _backend(core: EngineCore) -> str:
    mode = core._runner.mode
    extras = [
        name
        for name, is_on in (("rotated", mode.rotates), ("joined", mode.joins))
        if is_on
    ]
    return ", ".join([str(core.stats()["attention_backend"]), *extras])


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
