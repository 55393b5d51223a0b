"""Which architectures mlx-lm defines, and how one definition is imported alone.

`mlx_lm.models.*` is imported without the rest of mlx-lm. Code that comes with a model
never runs. Knows no files and no weights, and imports no MLX by itself.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from rvllm_local.errors import ModelFileError, UnsupportedModelError

_NAME = re.compile(r"[a-z0-9_]+")

# Model types that mlx-lm serves with another type's definition (facts of mlx-lm 0.32.2).
_ALIASES = {
    "mistral": "llama",
    "iquestcoder": "llama",
    "xverse": "llama",
    "llava": "mistral3",
    "phi_msft": "phixtral",
    "falcon_mamba": "mamba",
    "joyai_llm_flash": "deepseek_v3",
    "kimi_k2": "deepseek_v3",
    "deepseek_v41_text": "deepseek_v41",
    "qwen2_5_vl": "qwen2_vl",
    "minimax_m2": "minimax",
    "gemma4_unified": "gemma4",
    "youtu": "youtu_llm",
}
# Definitions in files whose names Python cannot import by a statement.
_DASHED = {"nemotron_nas": "nemotron-nas", "lfm2_vl": "lfm2-vl"}
_BY_ARCHITECTURE = {("bailing_hybrid", "BailingMoeV3ForCausalLM"): "bailing_moe_v3"}

# Modules of the folder that hold parts, not a model.
_PARTS = frozenset(
    {
        "activations",
        "base",
        "bitlinear_layers",
        "cache",
        "gated_delta",
        "mla",
        "pipeline",
        "rope_utils",
        "ssm",
    }
    | {"switch_layers"}
)
_CODE_KEY = "model_file"


def import_family(model_type: str, architectures: tuple[str, ...] = ()) -> ModuleType:
    """The mlx-lm module that defines `model_type`; only that module (and what it imports itself) is loaded.

    Raises `UnsupportedModelError` for a type that mlx-lm does not define, with the nearest names.
    """
    name = _definition(model_type, architectures)
    try:
        return importlib.import_module(f"mlx_lm.models.{name}")
    except (
        ImportError,
        SystemExit,
    ) as error:  # a definition may want a package that is not installed
        raise UnsupportedModelError(
            f"architecture {model_type!r} cannot be loaded: {error}"
        ) from error


def _definition(model_type: str, architectures: tuple[str, ...]) -> str:
    """The name of the module that defines a type."""
    name = model_type.replace("-", "_") if isinstance(model_type, str) else ""
    if not _NAME.fullmatch(name):
        raise UnsupportedModelError(
            f"model_type {model_type!r:.80} is not the name of an architecture"
        )
    name = _ALIASES.get(name, name)
    for architecture in architectures:
        name = _BY_ARCHITECTURE.get((name, architecture), name)
    if name in _DASHED:
        return _DASHED[name]
    if name not in known_families():
        raise UnsupportedModelError(
            f"architecture {model_type!r:.80} is not supported{_nearest(name)}"
        )
    return name


@functools.cache
def known_families() -> frozenset[str]:
    """Names of the definitions in the installed mlx-lm, read from the folder without importing any."""
    _put_mlx_lm()
    folder = importlib.import_module("mlx_lm.models")
    return (
        frozenset(
            module.name
            for module in pkgutil.iter_modules(folder.__path__)
            if _NAME.fullmatch(module.name)
        )
        - _PARTS
    )


def architectures(config: Mapping[str, Any]) -> tuple[str, ...]:
    given = config.get("architectures") or ()
    names = (given,) if isinstance(given, str) else given
    if not isinstance(names, list | tuple) or not all(
        isinstance(name, str) for name in names
    ):
        raise ModelFileError(
            f"the config's architectures must be a list of names, not {given!r:.80}"
        )
    return tuple(names)


def check_architecture(config: Mapping[str, Any]) -> str:
    """The config's model type, if a model of it could be built at all; nothing is imported for it.

    Raises `UnsupportedModelError` for unknown types and configs that ask to run code, `ModelFileError` for none.
    """
    if config.get(_CODE_KEY):
        raise UnsupportedModelError(
            f"the model's config asks to run its own code ({_CODE_KEY}); rvllm never "
            "does that"
        )
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelFileError(
            f"the model's config has no model_type (found {model_type!r})"
        )
    _definition(model_type, ())
    return model_type


def _put_mlx_lm() -> None:
    """See that `mlx_lm` is in sys.modules: as it is if already imported, else bare, with `__init__` not executed."""
    if "mlx_lm" in sys.modules:
        return
    spec = importlib.util.find_spec("mlx_lm")
    if spec is None:
        raise UnsupportedModelError(
            "mlx-lm is not installed; install rvllm-local again with pip"
        )
    sys.modules["mlx_lm"] = importlib.util.module_from_spec(
        spec
    )  # its __init__ would import transformers


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name, sorted(known_families()), n=3, cutoff=0.5)
    return f"; the nearest are {', '.join(close)}" if close else ""
