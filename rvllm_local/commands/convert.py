"""`rvllm convert`: quantizes a model through mlx-lm, writes a folder or a bundle, and says what it cost.

The cost is measured: perplexity of a bundled text before, and after from the files that were written.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rvllm_local import host
from rvllm_local.config import load_config, show_progress
from rvllm_local.errors import (
    DownloadError,
    ModelFileError,
    ParameterError,
    UnsupportedModelError,
)
from rvllm_local.option import expanded

MODES = {
    "affine": (64, 4),
    "mxfp4": (32, 4),
    "mxfp8": (32, 8),
    "nvfp4": (16, 4),
}  # group size and bits
RECIPES = ("mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6")
_BITS, _GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)


@dataclass(frozen=True, slots=True)
class Quantization:
    """What is asked for: a mode of MLX, or one of mlx-lm's mixed recipes."""

    mode: str
    bits: int
    group_size: int
    recipe: str | None = None

    @property
    def name(self) -> str:
        return self.recipe or (
            f"{self.bits}-bit" if self.mode == "affine" else self.mode
        )


@dataclass(frozen=True, slots=True)
class Conversion:
    """Where the model was written, its bytes on disk, and the perplexities (None if they were not measured)."""

    path: Path
    size: int
    bits_per_weight: float
    before: float | None
    after: float | None


def convert(arguments: argparse.Namespace) -> int:
    """Convert and print what came of it."""
    scheme = quantization(
        arguments.bits, arguments.group_size, arguments.mode, arguments.recipe
    )
    config = load_config()
    host.prepare()
    from rvllm_local.models.locate import locate

    files = locate(arguments.model, show_progress, cache_dir=config.cache_dir)
    suffix = ".rvllm" if arguments.bundle else ""
    target = expanded(
        arguments.output or f"{files.name.replace('/', '--')}-{scheme.name}{suffix}"
    )
    done = convert_model(
        files,
        target,
        scheme,
        bundle=arguments.bundle,
        measure=not arguments.no_perplexity,
    )
    if arguments.json:
        rows = {
            "path": str(done.path),
            "size": done.size,
            "bits_per_weight": done.bits_per_weight,
        }
        sys.stdout.write(
            json.dumps(
                {**rows, "perplexity": {"before": done.before, "after": done.after}}
            )
            + "\n"
        )
        return 0
    sys.stdout.write(
        f"{done.path}\n{done.size / 1e6:.0f} MB, {done.bits_per_weight:.2f} bits a weight\n"
    )
    if done.before is not None and done.after is not None:
        change = (done.after / done.before - 1) * 100
        sys.stdout.write(
            f"perplexity {done.before:.2f} before, {done.after:.2f} after ({change:+.1f} %)\n"
        )
    return 0


def quantization(
    bits: int | None, group_size: int | None, mode: str, recipe: str | None
) -> Quantization:
    """A checked wish. Raises `ParameterError` that names what does not go together."""
    if mode not in MODES:
        raise ParameterError(
            "mode", f"mode is {mode!r}; choose from {', '.join(MODES)}"
        )
    default_group, default_bits = MODES[mode]
    if recipe is not None:
        if recipe not in RECIPES:
            raise ParameterError(
                "recipe", f"recipe is {recipe!r}; choose from {', '.join(RECIPES)}"
            )
        if mode != "affine" or bits is not None:
            raise ParameterError(
                "recipe",
                f"recipe {recipe} chooses bits by itself; leave bits and mode out",
            )
    chosen_bits = default_bits if bits is None else bits
    chosen_group = default_group if group_size is None else group_size
    if mode != "affine" and (chosen_group, chosen_bits) != MODES[mode]:
        raise ParameterError(
            "bits",
            f"{mode} has {default_bits} bits in groups of {default_group}; leave both out",
        )
    if chosen_bits not in _BITS:
        raise ParameterError(
            "bits", f"bits is {bits}; choose from {', '.join(map(str, _BITS))}"
        )
    if mode == "affine" and chosen_group not in _GROUPS:
        raise ParameterError(
            "group_size",
            f"group_size is {group_size}; choose from {', '.join(map(str, _GROUPS))}",
        )
    return Quantization(mode, chosen_bits, chosen_group, recipe)


def convert_model(
    files: Any,
    target: Path,
    scheme: Quantization,
    *,
    bundle: bool = False,
    measure: bool = True,
) -> Conversion:
    """Quantize located `files` (a `ModelFiles`) into `target`, which is absent or complete whatever happens.

    Raises as loading does, `ModelFileError` if `target` exists, `UnsupportedModelError` for what is quantized already.
    """
    from rvllm_local.models.locate import locate
    from rvllm_local.text.tokenizer_files import read_tokenizer

    if target.exists():
        raise ModelFileError(
            f"{target} exists already; choose another place or remove it"
        )
    tokenizer = read_tokenizer(files)
    before = _perplexity(files, tokenizer) if measure else None
    show_progress(f"quantizing to {scheme.name}")
    weights, config, bits = _quantized(files, scheme)
    _write(files, tokenizer, target, (weights, config), scheme, bundle=bundle)
    after = (
        _perplexity(locate(str(target), cache_dir=files.cache_dir), tokenizer)
        if measure
        else None
    )
    size = sum(path.stat().st_size for path in target.iterdir())
    return Conversion(target, size, bits, before, after)


def _perplexity(files: Any, tokenizer: Any) -> float:
    from rvllm_local.models.loader import load_model
    from rvllm_local.models.perplexity import bundled_text, perplexity

    show_progress(f"measuring {files.name}")
    return perplexity(load_model(files).module, tokenizer.encode(bundled_text()))


def _quantized(
    files: Any, scheme: Quantization
) -> tuple[list[tuple[str, Any]], dict[str, Any], float]:
    """Lazy weights by name, the configuration with the plan, and bits a weight."""
    from mlx.utils import tree_flatten

    from rvllm_local.models.loader import open_native
    from rvllm_local.models.quantized import quantization_of

    native = open_native(files, as_floats=True)
    if (plan := quantization_of(native.module)) is not None:
        raise UnsupportedModelError(
            f"{files.name} has {plan['bits']}-bit weights already; convert the unquantized model"
        )
    config = {
        key: value
        for key, value in native.config.items()
        if key not in ("quantization", "quantization_config")
    }
    elements = sum(value.size for _, value in tree_flatten(native.module.parameters()))
    _quantize(native.module, config, scheme)
    plan = quantization_of(native.module)
    if plan is None:
        raise UnsupportedModelError(
            f"no weight of {files.name} has rows of a multiple of {scheme.group_size} elements"
        )
    weights = tree_flatten(native.module.parameters())
    bits = 8 * sum(value.nbytes for _, value in weights) / elements
    return (
        weights,
        {**config, "eos_token_id": list(native.eos_token_ids), "quantization": plan},
        bits,
    )


def _quantize(module: Any, config: dict[str, Any], scheme: Quantization) -> None:
    from mlx_lm.convert import mixed_quant_predicate_builder
    from mlx_lm.utils import quantize_model

    try:
        choose = (
            mixed_quant_predicate_builder(scheme.recipe, module, scheme.group_size)
            if scheme.recipe
            else None
        )
        with contextlib.redirect_stdout(sys.stderr):  # mlx-lm prints what it did
            quantize_model(
                module,
                config,
                scheme.group_size,
                scheme.bits,
                mode=scheme.mode,
                quant_predicate=choose,
            )
    except ValueError as error:
        raise UnsupportedModelError(
            f"this model cannot be quantized so: {error}"
        ) from error


def _write(
    files: Any,
    tokenizer: Any,
    target: Path,
    model: tuple[list[tuple[str, Any]], dict[str, Any]],
    scheme: Quantization,
    *,
    bundle: bool,
) -> None:
    from rvllm_local.models.bundle import write_bundle
    from rvllm_local.text.detect_style import detect_style, entry_of
    from rvllm_local.text.tokenizer_export import tokenizer_folder_files

    weights, config = model
    small = {
        "config.json": (json.dumps(config, indent=1) + "\n").encode(),
        **tokenizer_folder_files(files, tokenizer),
    }
    if not bundle:
        _write_folder(target, weights, small)
        return
    style = detect_style(tokenizer, str(config["model_type"]), entry_of(files))
    recipe = {
        "source": files.name,
        "source_kind": files.kind,
        "quantization": {
            "bits": scheme.bits,
            "group_size": scheme.group_size,
            "mode": scheme.mode,
        },
        "recipe": scheme.recipe,
        "made_by": f"rvllm-local {metadata.version('rvllm-local')}",
    }
    parsers = {
        "tools": style.tool_family,
        "reasoning": [style.reasoning_start, style.reasoning_end],
    }
    write_bundle(
        target,
        name=files.name,
        weights=weights,
        files=small,
        parsers=parsers,
        recipe=recipe,
        progress=show_progress,
    )


def _write_folder(
    target: Path, weights: list[tuple[str, Any]], small: dict[str, bytes]
) -> None:
    """A folder that mlx-lm reads, too; made beside its place and renamed."""
    import mlx.core as mx

    from rvllm_local.models.cache_folder import staging, sync_folder

    target = target.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        needed, free = (
            sum(value.nbytes for _, value in weights),
            shutil.disk_usage(target.parent).free,
        )
        if free < needed + (64 << 20):
            raise DownloadError(
                f"the model needs {needed} bytes in {target.parent}; {free} are free"
            )
        with staging(target.parent) as draft:
            folder = draft / "model"
            folder.mkdir()
            for name, data in small.items():
                (folder / name).write_bytes(data)
            mx.save_safetensors(
                str(folder / "model.safetensors"), dict(weights), {"format": "mlx"}
            )
            sync_folder(folder)
            folder.rename(target)
            sync_folder(target.parent)
    except (OSError, RuntimeError) as error:
        raise DownloadError(
            f"the model could not be written to {target}: {error}"
        ) from error
