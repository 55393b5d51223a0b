"""LoRA adapters: mlx-lm's tokens with each, alone and in mixed batches, and never another one's cached prefix."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from rvllm_local import LLM, SamplingParams
from rvllm_local.errors import ModelFileError, ParameterError
from rvllm_local.models.loader import open_native
from rvllm_local.models.locate import locate
from tests.support.lora import mlx_lm_tokens, save_adapter, save_peft
from tests.support.served import rvllm_serve
from tests.support.tiny import save_tiny

GREEDY = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True)
PROMPTS = [
    np.random.default_rng(size).integers(3, 380, size).tolist() for size in (60, 5, 30)
]
KEYS = {
    "a": ("self_attn.q_proj", "mlp.down_proj"),
    "b": ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj"),
}
CHOICES = [
    (prompt, name) for prompt in range(len(PROMPTS)) for name in (None, "a", "b")
]
Expected = dict[tuple[int, str | None], tuple[int, ...]]


def make(root: Path, arch: str) -> tuple[Path, dict[str, Path]]:
    model = save_tiny(arch, root / arch, seed=3)
    ranks = {"a": 4, "b": 9}
    return model, {
        name: save_adapter(
            root / f"{arch}-{name}", model, keys, rank=ranks[name], seed=ranks[name]
        )
        for name, keys in KEYS.items()
    }


def expect(model: Path, adapters: dict[str, Path]) -> Expected:
    return {
        (prompt, name): mlx_lm_tokens(
            model, adapters[name] if name else None, PROMPTS[prompt], GREEDY.max_tokens
        )
        for prompt, name in CHOICES
    }


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Path, dict[str, Path], Expected]]:
    model, adapters = make(tmp_path_factory.mktemp("adapters"), "llama")
    expected = expect(model, adapters)
    assert len(set(expected.values())) == len(CHOICES), "an adapter makes no difference"
    yield model, adapters, expected


def mixed(llm: LLM) -> tuple[list[tuple[int, ...]], list[int]]:
    """Tokens and cached tokens of all choices, asked at once."""
    found = llm.generate(
        [PROMPTS[prompt] for prompt, _ in CHOICES],
        GREEDY,
        adapter=[name for _, name in CHOICES],
    )
    return [one.token_ids for one in found], [one.cached_tokens for one in found]


def test_each_request_gets_its_own_adapter(
    world: tuple[Path, dict[str, Path], Expected],
) -> None:
    model, adapters, expected = world
    with LLM(str(model), kv_memory="8MB", adapters=adapters) as llm:
        for prompt, name in CHOICES:
            alone = llm.generate([PROMPTS[prompt]], GREEDY, adapter=name)[0]
            assert alone.token_ids == expected[prompt, name]
            assert alone.cached_tokens == 0, "a prefix of another adapter was used"
        for _ in range(2):
            tokens, cached = mixed(llm)
            assert tokens == [expected[choice] for choice in CHOICES]
            assert cached == [len(PROMPTS[prompt]) // 32 * 32 for prompt, _ in CHOICES]


@pytest.mark.parametrize("arch", ["qwen3", "gemma3_text", "gpt_oss"])
def test_other_families(tmp_path: Path, arch: str) -> None:
    model, adapters = make(tmp_path, arch)
    with LLM(str(model), kv_memory="8MB", adapters=adapters) as llm:
        expected = expect(model, adapters)
        assert mixed(llm)[0] == [expected[choice] for choice in CHOICES]


def test_over_quantized_weights(tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "llama", seed=4)
    native = open_native(locate(str(model)))
    nn.quantize(native.module, group_size=32, bits=8)
    mx.save_safetensors(
        str(model / "model.safetensors"), dict(tree_flatten(native.module.parameters()))
    )
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(
        config.replace("{", '{"quantization": {"group_size": 32, "bits": 8},', 1)
    )
    adapters = {
        name: save_adapter(tmp_path / name, model, keys, seed=5)
        for name, keys in KEYS.items()
    }
    with LLM(str(model), kv_memory="8MB", adapters=adapters) as llm:
        expected = expect(model, adapters)
        assert mixed(llm)[0] == [expected[choice] for choice in CHOICES]


def test_preempted_and_deterministic_and_from_disk(
    world: tuple[Path, dict[str, Path], Expected], tmp_path: Path
) -> None:
    model, adapters, expected = world
    wanted = [expected[choice] for choice in CHOICES]
    with LLM(
        str(model),
        kv_memory="300KB",
        prefill_chunk=32,
        adapters=adapters,
        cache_dir=tmp_path,
    ) as llm:
        assert mixed(llm)[0] == wanted
        assert llm.stats()["preemptions"]
    options = {
        "kv_memory": "8MB",
        "deterministic": True,
        "cache": "disk",
        "cache_dir": tmp_path / "disk",
    }
    for round_ in range(2):
        with LLM(str(model), adapters=adapters, **options) as llm:
            tokens, cached = mixed(llm)
            assert tokens == wanted
            assert (sum(cached) > 0) == (round_ == 1)


def test_choices_share_their_prompt_and_their_adapter(
    world: tuple[Path, dict[str, Path], Expected],
) -> None:
    model, adapters, expected = world
    params = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True, n=3)
    with LLM(str(model), kv_memory="8MB", adapters=adapters) as llm:
        found = llm.generate([PROMPTS[0]], params, adapter="b")
        assert [one.token_ids for one in found] == [expected[0, "b"]] * 3
        streamed = [
            event.token_ids for event in llm.stream(PROMPTS[0], GREEDY, adapter="a")
        ]
        assert (
            tuple(token for tokens in streamed for token in tokens) == expected[0, "a"]
        )
        messages = [{"role": "user", "content": "why?"}]
        plain, adapted = (
            llm.chat(messages, GREEDY, adapter=name)[0].token_ids
            for name in (None, "a")
        )
        assert plain != adapted


def test_pefts_format_means_the_same(
    world: tuple[Path, dict[str, Path], Expected], tmp_path: Path
) -> None:
    model, _, expected = world
    peft = save_peft(tmp_path / "peft", model, KEYS["a"], rank=4, seed=4)
    with LLM(str(model), kv_memory="8MB", adapters={"peft": peft}) as llm:
        for prompt in range(len(PROMPTS)):
            assert (
                llm.generate([PROMPTS[prompt]], GREEDY, adapter="peft")[0].token_ids
                == expected[prompt, "a"]
            )


def test_what_cannot_be_served_is_refused(
    world: tuple[Path, dict[str, Path], Expected], tmp_path: Path
) -> None:
    model, adapters, _ = world
    with LLM(str(model), kv_memory="8MB", adapters=adapters) as llm:
        with pytest.raises(ParameterError, match=r"no adapter 'c'; loaded are a, b"):
            llm.generate("hi", GREEDY, adapter="c")
        with pytest.raises(ParameterError, match="2 prompts and 1 adapters"):
            llm.generate(["hi", "ho"], GREEDY, adapter=["a"])
    with (
        LLM(str(model), kv_memory="8MB") as llm,
        pytest.raises(ParameterError, match="loaded are none"),
    ):
        llm.generate("hi", GREEDY, adapter="a")
    other = save_tiny("qwen3", tmp_path / "qwen3", seed=3)
    with pytest.raises(ModelFileError, match="layer"):
        LLM(str(other), kv_memory="8MB", adapters=adapters)


def test_an_adapter_is_served_as_a_model(
    world: tuple[Path, dict[str, Path], Expected],
) -> None:
    import httpx

    model, adapters, expected = world
    flags = [
        flag
        for name, folder in adapters.items()
        for flag in ("--adapter", f"{name}={folder}")
    ]
    with rvllm_serve([model], "--kv-memory", "8MB", *flags) as (base, _):
        rows = {
            row["id"]: row.get("parent")
            for row in httpx.get(f"{base}/v1/models", timeout=240).json()["data"]
        }
        assert (rows["a"], rows["b"], rows[model.name]) == (
            model.name,
            model.name,
            None,
        )
        for name in ("a", "b", None):
            body = {
                "model": name or model.name,
                "prompt": PROMPTS[0],
                "max_tokens": 16,
                "temperature": 0,
            }
            answer = httpx.post(
                f"{base}/v1/completions", json={**body, "ignore_eos": True}, timeout=240
            ).json()
            assert answer["model"] == (name or model.name)
            with LLM(str(model), kv_memory="8MB") as llm:
                assert answer["choices"][0]["text"] == llm.tokenizer.decode(
                    expected[0, name]
                )
        with LLM.connect(str(model), base) as llm:
            for name in ("a", None):
                assert (
                    llm.generate([PROMPTS[0]], GREEDY, adapter=name)[0].token_ids
                    == expected[0, name]
                )
        missing = httpx.post(
            f"{base}/v1/completions", json={"model": "c", "prompt": "x"}, timeout=240
        )
        assert missing.status_code == 404
