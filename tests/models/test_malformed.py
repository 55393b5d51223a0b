"""A corpus of damaged model folders: a typed error on one line, before memory is taken.

The headers of GGUF and safetensors files have theirs in test_gguf and test_loader; here are configurations, tensors,
shards, and what a hostile repository brings.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from rvllm_local import LLM
from rvllm_local.engine.startup.planning import plan_model
from rvllm_local.errors import (
    ModelFileError,
    ParameterError,
    RvllmError,
    UnsupportedModelError,
)
from rvllm_local.models.describe import describe
from rvllm_local.models.loader import LoadedModel, load_model
from rvllm_local.models.locate import locate
from rvllm_local.options import EngineOptions
from rvllm_local.text.template import render_chat
from rvllm_local.text.tokenizer_files import read_tokenizer
from tests.support.peak_memory import growth
from tests.support.tiny import save_tiny

GONE = object()
CONFIGS: list[tuple[str, Any]] = [
    *(
        ("model_type", value)
        for value in (
            GONE,
            None,
            7,
            [],
            {},
            "",
            "nope",
            "../llama",
            "llama/../x",
            "os",
            "cache",
        )
    ),
    *(
        ("num_hidden_layers", value)
        for value in (GONE, None, -1, 10**9, "3", 2.5, [], {}, math.nan)
    ),
    *(("hidden_size", value) for value in (GONE, None, 0, -64, 63, 10**15, "64", [64])),
    *(("intermediate_size", value) for value in (GONE, -1, 10**15, "x", None)),
    *(("num_attention_heads", value) for value in (GONE, 0, -4, 7, 10**9, "4", None)),
    *(("num_key_value_heads", value) for value in (0, -2, 3, 10**9, "2")),
    *(("vocab_size", value) for value in (GONE, 0, -1, 2**40, "384", None, 1.5)),
    *(("max_position_embeddings", value) for value in (-1, "many", 1.5, [])),
    *(("rms_norm_eps", value) for value in ("x", None, [])),
    *(("rope_theta", value) for value in ("x", [])),
    *(
        ("rope_scaling", value)
        for value in (3, "x", {"type": "nope", "factor": 2}, {"rope_type": 7})
    ),
    *(
        ("quantization", value)
        for value in (3, "4bit", {"bits": 4}, {"bits": 0, "group_size": 64})
    ),
    *(
        ("quantization", value)
        for value in ({"bits": 99, "group_size": 64}, {"bits": "4", "group_size": 64})
    ),
    *(
        ("quantization_config", value)
        for value in ({"quant_method": "gptq"}, {"quant_method": 7}, "awq")
    ),
    *(
        ("head_dim", value)
        for value in (0, -1, 10**9, True, "64", [], {}, [16, 0], math.nan)
    ),
    *(("rope_theta", value) for value in (0, -1.0, math.nan, math.inf, True)),
    *(
        ("rope_scaling", {"type": "linear", "factor": value})
        for value in (math.nan, 0, -1, "2", math.inf)
    ),
    *(("sliding_window", value) for value in (-1, "x", 1.5, True, [8, -8], math.nan)),
    *(("tie_word_embeddings", value) for value in ("maybe", 1, [])),
    *(("architectures", value) for value in (5, [5], [None], {"a": "b"})),
    *(
        ("eos_token_id", value)
        for value in ("x", -5, 10**12, 1.5, {}, [[1]], [None, "x"])
    ),
    ("layer_types", ["full_attention"] * 1000),
    ("vision_config", {"deep": [{"num_layers": 10**12}]}),
    ("anything", {"else": [1, {"deep": math.nan}]}),
    ("model_file", "canary.py"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "tiny")


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **values}
    path.write_text(
        json.dumps({key: value for key, value in config.items() if value is not GONE})
    )


def parameters_of(loaded: LoadedModel) -> list[tuple[str, Any]]:
    """The names of a model's weights, with these."""
    flat: list[tuple[str, Any]] = tree_flatten(loaded.module.parameters())
    return flat


def refused(folder: Path) -> str:
    """The error's text; checks that it came cheaply."""
    refusals = (ModelFileError, UnsupportedModelError)
    with growth() as memory, pytest.raises(refusals) as caught:
        load_model(locate(str(folder)))
    assert memory.peak < 100 << 20
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 700
    return text


def test_an_empty_map_quantizes_nothing(folder: Path) -> None:
    """Writers leave it where there is nothing to say (mlx-vlm 692)."""
    change(folder, quantization={})
    loaded = load_model(locate(str(folder)))
    assert not any(name.endswith("scales") for name, _ in parameters_of(loaded))


@pytest.mark.parametrize(
    ("key", "value"),
    CONFIGS,
    ids=[
        f"{key}-{'gone' if value is GONE else repr(value)[:30]}"
        for key, value in CONFIGS
    ],
)
def test_absurd_configurations(folder: Path, key: str, value: Any) -> None:
    change(folder, **{key: value})
    refused(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"head_dim": 33}, "dims must be even"),
        ({"rope_theta": None}, "rope"),
        (
            {
                "rope_traditional": None,
                "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": "x"},
            },
            "yarn|float|str",
        ),
    ],
)
def test_sizes_that_do_not_go_together_are_found_by_the_plan(
    folder: Path, values: dict[str, Any], message: str
) -> None:
    change(folder, **values)
    with pytest.raises(ModelFileError, match=message):
        plan_model(describe(locate(str(folder))), EngineOptions(kv_memory=4_000_000))


@pytest.mark.parametrize(
    ("model_type", "values"),
    [
        (
            "gpt2",
            {
                "n_layer": 10**12,
                "n_embd": 64,
                "n_head": 4,
                "n_positions": 64,
                "n_ctx": 64,
                "layer_norm_epsilon": 1e-5,
            },
        ),
        (
            "dbrx",
            {
                "n_layers": 10**12,
                "d_model": 64,
                "n_heads": 4,
                "ffn_config": {},
                "attn_config": {},
            },
        ),
        ("nemotron_h", {"hybrid_override_pattern": "M*" * 10**6}),
        ("mixtral", {"text_config": {"num_local_experts": 10**12}}),
    ],
)
def test_absurd_sizes_under_a_familys_own_names(
    folder: Path, model_type: str, values: dict[str, Any]
) -> None:
    change(folder, model_type=model_type, **values)
    assert "no model has more than" in refused(folder)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{", "7", '{"model_type": "llama"', "\ud800", "[" * 100_000],
)
def test_configurations_that_are_none(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    refused(folder)


NAME = "model.layers.1.self_attn.q_proj.weight"
TENSORS: dict[str, Callable[[dict[str, mx.array]], object]] = {
    "missing": lambda weights: weights.pop(NAME),
    "renamed": lambda weights: weights.update({"model.layers.9.x": weights.pop(NAME)}),
    "extra": lambda weights: weights.update(
        {"model.layers.3.self_attn.q_proj.weight": weights[NAME]}
    ),
    "transposed": lambda weights: weights.update({NAME: mx.zeros((64, 32))}),
    "flat": lambda weights: weights.update({NAME: mx.zeros((64 * 64,))}),
    "integers": lambda weights: weights.update(
        {NAME: mx.zeros((64, 64), dtype=mx.int32)}
    ),
    "bytes": lambda weights: weights.update({NAME: mx.zeros((64, 64), dtype=mx.uint8)}),
    "complex": lambda weights: weights.update(
        {NAME: mx.zeros((64, 64), dtype=mx.complex64)}
    ),
    "scalar": lambda weights: weights.update({NAME: mx.array(1.0)}),
    "empty": lambda weights: weights.update({NAME: mx.zeros((0, 64))}),
    "NaN": lambda weights: weights.update({NAME: mx.full((64, 64), math.nan)}),
    "one NaN in half precision": lambda weights: weights.update(
        {
            NAME: mx.concatenate(
                [mx.zeros((63, 64)), mx.full((1, 64), math.nan)]
            ).astype(mx.bfloat16)
        }
    ),
    "scales without a plan": lambda weights: weights.update(
        {NAME.replace("weight", "scales"): mx.zeros((64, 1))}
    ),
    "everything gone": lambda weights: (
        weights.clear() or weights.update({"x": mx.zeros((1,))})
    ),
}


@pytest.mark.parametrize("what", TENSORS)
def test_tensors_that_do_not_fit(folder: Path, what: str) -> None:
    path = folder / "model.safetensors"
    weights = mx.load(str(path))
    assert isinstance(weights, dict)
    mx.eval(weights)
    TENSORS[what](weights)
    mx.save_safetensors(str(path), weights)
    assert "tiny" in refused(folder)


@pytest.mark.parametrize("left", [(1,), (2,), (1, 3)])
def test_missing_shards_are_named(folder: Path, left: tuple[int, ...]) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    for number in left:
        (folder / f"model-0000{number}-of-00003.safetensors").write_bytes(whole)
    assert "is missing" in refused(folder) or len(left) > 1


class Canary:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize(
    "hook",
    [
        {"auto_map": {"AutoModel": "canary.M"}, "model_type": "canary"},
        {"model_file": "canary.py"},
        {"model_type": "canary"},
        {},
        {"auto_map": {"AutoModel": "canary.M"}, "use_cache": True},
    ],
)
def test_a_canary_never_runs(
    folder: Path, tmp_path: Path, hook: dict[str, Any]
) -> None:
    mark = tmp_path / "mark"
    for name in (
        "canary",
        "modeling_llama",
        "tokenization_llama",
        "__init__",
        "setup",
        "conftest",
    ):
        (folder / f"{name}.py").write_text(
            f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
        )
    for name in (
        "pytorch_model.bin",
        "training_args.bin",
        "model.pt",
        "model.pkl",
        "weights.npz",
    ):
        (folder / name).write_bytes(pickle.dumps(Canary(mark)))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["tokenization_llama.T", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    change(folder, **hook)
    if "model_file" in hook or "model_type" in hook:
        refused(folder)
    else:  # harmless but for files that nobody reads
        load_model(locate(str(folder)))
        with pytest.raises(RvllmError):
            (folder / "model.safetensors").unlink()
            load_model(locate(str(folder)))
    assert not mark.exists()


TEMPLATES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{% for a in range(100000) %}{% for b in range(100000) %}{{ a }}{% endfor %}{% endfor %}",
    "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "{{ 'x' * 10**10 }}",
    "{{ 10**9 * [1] }}",
    "{{ 9**9**9**9 }}",
    "{{ '%999999999d' % 1 }}",
    "{{ 'x'.ljust(10**10) }}{{ 'x' | center(10**10) }}",
    "{{ '%999999999d' | format(1) }}",
    "{{ '{:>9999999999}'.format(1) }}",
    "{{ '{:>{}}'.format(1, 9999999) }}",
    "{{ [1] | tojson(indent=10**10) }}",
    "{{ [1] | batch(10**10, 'x') | list }}",
    "{{ range(100000) | join('x' * 10**6) }}",
    "{{ ('x' * 10**6).join('x' * 10**6) }}",
    "{{ ('x' * 10**6) | replace('x', 'x' * 10**6) }}",
    "{{ ('x' * 10**6).replace('', 'x' * 10**6) }}",
    "{{ ('%s' * 10**6) % (('x' * 10**6,) * 10**6) }}",
    "{{ '\t'.expandtabs(10**10) }}",
    *(
        "{% set ns = namespace(x='x') %}{% for i in range(60) %}"
        + step
        + "{% endfor %}"
        for step in (
            "{% set ns.x = ns.x + ns.x %}",
            "{% set ns.x = ns.x ~ ns.x %}",
            "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}",
            "{% set ns.x = [ns.x, ns.x] | join %}",
            "{% set ns.x = '%s%s' % (ns.x, ns.x) %}",
            "{% set ns.x = '{0}{0}'.format(ns.x) %}",
            "{% set ns.x = ns.x | replace(ns.x, ns.x * 2) %}",
        )
    ),
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{{ messages | attr('__class__') }}{{ cycler.__init__.__globals__.os.system('touch canary') }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ unclosed",
    "{{ raise_exception('no') }}",
]


@pytest.mark.parametrize("template", TEMPLATES, ids=range(len(TEMPLATES)))
def test_hostile_templates_end_in_an_error(
    folder: Path, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = read_tokenizer(locate(str(folder)))
    refusals = (ParameterError, ModelFileError, UnsupportedModelError)
    with growth() as memory, pytest.raises(refusals) as caught:
        tokenizer.encode_chat([{"role": "user", "content": "hi"}])
    assert memory.peak < 100 << 20
    assert "root:" not in str(caught.value)
    assert not (folder / "canary").exists()


def test_a_long_conversation_may_be_gathered_in_one_text() -> None:
    template = (
        "{% set all = namespace(text='') %}{% for row in messages %}{% set all.text = all.text + row.content %}"
        "{% endfor %}{{ all.text }}"
    )
    messages = [{"role": "user", "content": "word " * 50}] * 2000  # 500,000 characters
    assert len(render_chat(template, messages)) == 500_000


def test_a_refusal_reaches_the_user_of_the_api(folder: Path) -> None:
    change(folder, hidden_size=10**15)
    with pytest.raises(ModelFileError, match="hidden_size"):
        LLM(str(folder))


TOKENIZER_FILES: list[tuple[str, bytes]] = [
    *(
        ("tokenizer.json", text)
        for text in (b"", b"null", b"[]", b"\xff\xfe{}", b"[" * 100_000)
    ),
    *(
        ("tokenizer_config.json", text)
        for text in (
            b"",
            b"[]",
            b"null",
            b"\xff",
            b"[" * 100_000,
            b'{"chat_template": 5}',
        )
    ),
    ("chat_template.jinja", b"\xff\xfe"),
]


@pytest.mark.parametrize(
    ("name", "text"),
    TOKENIZER_FILES,
    ids=[f"{name}-{text[:12]!r}" for name, text in TOKENIZER_FILES],
)
def test_damaged_tokenizers(folder: Path, name: str, text: bytes) -> None:
    (folder / name).write_bytes(text)
    with pytest.raises(ModelFileError):
        read_tokenizer(locate(str(folder)))


@pytest.mark.parametrize(
    "part",
    [
        {"model": {"type": "Evil"}},
        {"added_tokens": [{"id": -1, "content": "x"}]},
        {
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": "("},
                "behavior": "Isolated",
                "invert": False,
            }
        },
        {
            "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
        },  # panics in Rust
    ],
)
def test_tokenizers_that_the_library_refuses(
    folder: Path, part: dict[str, Any]
) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **part}))
    with pytest.raises(ModelFileError, match="not a sound tokenizer"):
        read_tokenizer(locate(str(folder)))


@pytest.mark.parametrize("ids", ["x", -7, {}, [None, 1.5]])
def test_end_tokens_of_the_generation_settings_are_ids(folder: Path, ids: Any) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    assert "eos_token_id" in refused(folder)
