"""Every parser of calls that vLLM and SGLang name is one of ours, or is left out for a reason."""

from __future__ import annotations

import pytest

from rvllm_local.models.architecture import known_families
from rvllm_local.text.tools import FAMILIES

# Their names, and ours.
FAMILY_OF = {
    "apertus": "apertus", "apertus2509": "apertus", "cohere_command3": "cohere",
    "cohere_command4": "cohere", "deepseek_v3": "deepseek", "deepseek_v31": "deepseek_v31",
    "deepseek_v32": "deepseek_v32", "deepseek_v4": "deepseek_v32", "dots": "dots",
    "ernie45": "hermes", "functiongemma": "gemma", "gemma4": "gemma4",
    "gigachat3": "gigachat", "gigachat35": "gigachat_tags", "glm45": "glm",
    "glm47": "glm", "granite": "phi", "granite-20b-fc": "granite_code",
    "granite4": "hermes", "hermes": "hermes", "hunyuan_a13b": "jamba",
    "internlm": "internlm", "interns1": "internlm", "jamba": "jamba", "k2_horizon": "k2_horizon", "kimi_k2": "kimi",
    "kimi_k3": "kimi_k3", "lfm2": "lfm2", "ling3": "glm", "llama3_json": "llama3",
    "llama4_json": "llama4", "llama4_pythonic": "pythonic", "longcat": "longcat",
    "mimo": "qwen3_coder", "minicpm5": "minicpm", "minimax": "jamba",
    "minimax_m2": "minimax", "minimax_m3": "minimax_m3", "mistral": "mistral",
    "muse": "muse", "nemotron_json": "nemotron", "olmo3": "olmo", "openai": "harmony",
    "phi4_mini_json": "phi", "plamo3": "plamo", "poolside_v1": "glm",
    "pythonic": "pythonic", "qwen25": "hermes", "qwen3_coder": "qwen3_coder",
    "qwen3_xml": "qwen3_coder", "seed_oss": "seed", "solar_open": "solar",
    "spark25": "glm", "step3p5": "qwen3_coder", "trinity": "hermes", "xlam": "json",
}  # fmt: skip
# Models that no definition serves: they are refused before they could call.
UNSERVED = {"cwm": "cwm", "hy_v3": "hy_v3", "inkling": "inkling", "step3": "step3"}


@pytest.mark.parametrize("name", FAMILY_OF)
def test_a_known_parser_has_a_family(name: str) -> None:
    assert FAMILY_OF[name] in FAMILIES


@pytest.mark.parametrize("name", UNSERVED)
def test_what_is_left_out_has_no_definition(name: str) -> None:
    assert UNSERVED[name] not in known_families()
