"""`rvllm pack`: writes any model that can be loaded as a bundle, the project's own format."""

from __future__ import annotations

import argparse
import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from rvllm_local import host
from rvllm_local.config import load_config, show_progress
from rvllm_local.option import expanded


def pack(arguments: argparse.Namespace) -> int:
    """Write the bundle and print where it is."""
    config = load_config()
    host.prepare()
    from rvllm_local.models.locate import locate

    files = locate(arguments.model, show_progress, cache_dir=config.cache_dir)
    target = expanded(arguments.output or f"{files.name.replace('/', '--')}.rvllm")
    pack_model(files, target, as_float32=arguments.float32)
    sys.stdout.write(f"{target}\n")
    return 0


def pack_model(files: Any, target: Path, *, as_float32: bool = False) -> None:
    """Write the bundle of located `files` (a `ModelFiles`). Raises as loading does, and if `target` exists."""
    from mlx.utils import tree_flatten

    from rvllm_local.models.bundle import write_bundle
    from rvllm_local.models.loader import open_native
    from rvllm_local.models.quantized import quantization_of
    from rvllm_local.models.to_float32 import widen_to_float32
    from rvllm_local.text.detect_style import detect_style, entry_of
    from rvllm_local.text.tokenizer_export import tokenizer_folder_files
    from rvllm_local.text.tokenizer_files import read_tokenizer

    tokenizer = read_tokenizer(files)
    native = open_native(files, as_floats=as_float32)
    if as_float32:
        widen_to_float32(native.module)
    plan = quantization_of(native.module)
    style = detect_style(tokenizer, str(native.config["model_type"]), entry_of(files))
    config = _config(native.config, list(native.eos_token_ids), plan, as_float32)
    weights = tree_flatten(native.module.parameters())
    del native
    write_bundle(
        target,
        name=files.name,
        weights=weights,
        files={"config.json": config, **tokenizer_folder_files(files, tokenizer)},
        parsers={
            "tools": style.tool_family,
            "reasoning": [style.reasoning_start, style.reasoning_end],
        },
        recipe={
            "source": files.name,
            "source_kind": files.kind,
            "weights": "float32" if as_float32 else "as stored",
            "quantization": {key: plan[key] for key in ("bits", "group_size", "mode")}
            if plan
            else None,
            "made_by": f"rvllm-local {metadata.version('rvllm-local')}",
        },
        progress=show_progress,
    )


def _config(
    config: dict[str, Any],
    eos: list[int],
    plan: dict[str, Any] | None,
    as_float32: bool,
) -> bytes:
    kept = {
        key: value
        for key, value in config.items()
        if key not in ("quantization", "quantization_config")
    }
    kept["eos_token_id"] = eos
    if plan:
        kept["quantization"] = plan
    if as_float32:
        kept["torch_dtype"] = "float32"
    return (json.dumps(kept, indent=1) + "\n").encode()
