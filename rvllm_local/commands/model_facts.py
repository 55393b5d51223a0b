"""What can be told of a model without loading it: the catalogue's entry, its files, configuration and tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvllm_local.errors import ChecksumError, ModelNotFoundError, RvllmError
from rvllm_local.models.bundle import open_bundle
from rvllm_local.models.bundle_format import check_small_files, read_manifest
from rvllm_local.models.catalogue import Catalogue, CatalogueEntry
from rvllm_local.models.file_stamps import file_sha256
from rvllm_local.models.locate import ModelFiles, locate
from rvllm_local.models.repository import read_record
from rvllm_local.models.safetensors_check import weight_files
from rvllm_local.models.store import (
    Installed,
    files_of,
    find_installed,
    folder_size,
)

if TYPE_CHECKING:
    from rvllm_local.text.tokenizer import Tokenizer

_CONFIG_KEYS = {
    "model_type": "architecture",
    "num_hidden_layers": "layers",
    "hidden_size": "width",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "vocab_size": "vocabulary",
    "max_position_embeddings": "context",
    "sliding_window": "window",
}


def facts(name: str, cache_dir: Path | None = None) -> dict[str, Any]:
    """Facts by name, for a catalogue name, an installed model, a folder or a file.

    Raises `ModelNotFoundError` for what is neither known nor here, and `ModelFileError` for damaged files.
    """
    entry = Catalogue.load().entries.get(name.lower())
    files = local_files(name, cache_dir)
    if entry is None and files is None:
        raise ModelNotFoundError(
            f"{name[:80]!r} is neither in the catalogue nor on this machine; try `rvllm search`"
        )
    rows = {"name": name, **(_of_entry(entry) if entry is not None else {})}
    if files is None:
        return {**rows, "installed": False}
    return {**rows, **_of_files(files)}


def local_files(name: str, cache_dir: Path | None = None) -> ModelFiles | None:
    """The model's files if they are on this machine; nothing is fetched."""
    model = find_installed(name, cache_dir)
    if model is not None:
        return files_of(model, cache_dir)
    try:
        there = Path(name).expanduser().exists()
    except (
        OSError,
        ValueError,
        RuntimeError,
    ):  # too long, a NUL byte, or the home of nobody
        return None
    return locate(name, cache_dir=cache_dir) if there else None


def _of_entry(entry: CatalogueEntry) -> dict[str, Any]:
    rows = {
        "title": entry.title,
        "licence": entry.license,
        "parameters": entry.parameters,
        "quantization": entry.quantization,
        "architecture": entry.architecture,
        "context": entry.context,
        "size": entry.size,
        "source": entry.repo or (entry.pypi.requirement if entry.pypi else None),
        "revision": entry.revision,
        "tools": entry.tools,
        "reasoning": entry.reasoning,
        "gated": entry.gated,
        "verified": entry.verified,
    }
    return {key: value for key, value in rows.items() if value is not None}


def _of_files(files: ModelFiles) -> dict[str, Any]:
    from rvllm_local import host

    host.prepare()
    from rvllm_local.models.config_file import read_config
    from rvllm_local.models.gguf.config import gguf_config
    from rvllm_local.models.gguf.reader import GGUFFile
    from rvllm_local.models.ignored import ignored_parts
    from rvllm_local.models.own_sampling import own_sampling

    if files.kind == "gguf":
        folder = files.path.parent
        config = gguf_config(GGUFFile(files.path))
    else:
        folder = files.path
        config = read_config(files.path)
    rows = _of_config(config)
    rows["installed"] = True
    rows["format"] = "safetensors" if files.kind == "folder" else files.kind
    rows["size"] = _size(files)
    rows["path"] = str(files.path)
    rows |= _quantization(files, config)
    if record := read_record(folder):
        rows["source"] = record.get("repository")
        rows["revision"] = record.get("revision")
        rows["commit"] = record.get("commit")
    if files.kind == "bundle":
        manifest = open_bundle(files.path, cache_dir=files.cache_dir)
        rows["recipe"] = dict(manifest.recipe)
        rows["sha256"] = manifest.weights.sha256
    rows |= _of_text(files, config)
    defaults = own_sampling(files)
    if defaults.values:
        rows["sampling"] = dict(defaults.values)
        rows["sampling_source"] = defaults.source
    if ignored := ignored_parts(files, config):
        rows["ignored"] = ignored
    return rows


def _of_text(files: ModelFiles, config: dict[str, Any]) -> dict[str, Any]:
    """How the model reads and writes: its template, ends, and parsers."""
    from rvllm_local.text.detect_style import detect_style, entry_of
    from rvllm_local.text.tokenizer_files import read_tokenizer

    tokenizer = read_tokenizer(files)
    style = detect_style(tokenizer, str(config.get("model_type")), entry_of(files))
    rows: dict[str, Any] = {"chat_template": tokenizer.chat_template is not None}
    if tokenizer.chat_template is not None:
        rows["template_source"] = tokenizer.templates.source
    rows["ends"] = _ends(files, config, tokenizer)
    rows["tools"] = style.tool_family or "none"
    rows["reasoning"] = "none"
    if style.reasoning_start:
        rows["reasoning"] = f"{style.reasoning_start} ... {style.reasoning_end}"
    return rows


def _of_config(config: dict[str, Any]) -> dict[str, Any]:
    """What the configuration says, that of a model's text part too."""
    from rvllm_local.models.longrope import served_factors

    text = config.get("text_config")
    settings = {**text, **config} if isinstance(text, dict) else config
    rows = {}
    for key, label in _CONFIG_KEYS.items():
        if settings.get(key) is not None:
            rows[label] = settings[key]
    rotation = served_factors(config)
    if rotation is not None:
        rows["rotation"] = rotation
    return rows


def _size(files: ModelFiles) -> int:
    """Bytes on the disk."""
    if files.kind == "gguf":
        return files.path.stat().st_size
    return folder_size(files.path)


def _ends(files: ModelFiles, config: dict[str, Any], tokenizer: Tokenizer) -> list[str]:
    """The tokens that end an answer: each one's id and text."""
    from rvllm_local.models.config_file import end_tokens, token_ids

    if files.kind == "gguf":
        ids = token_ids(config.get("eos_token_id"))
    else:
        ids = end_tokens(files.path, config)
    ends = []
    for token in dict.fromkeys((*ids, *sorted(tokenizer.end_token_ids))):
        ends.append(f"{token} {tokenizer.decode([token], skip_special=False)}")
    return ends


def _quantization(files: ModelFiles, config: dict[str, Any]) -> dict[str, Any]:
    if files.kind == "gguf":
        from rvllm_local.models.gguf.reader import GGUFFile

        tensors = GGUFFile(files.path).tensors.values()
        sizes: dict[str, int] = {}
        for info in tensors:
            sizes[info.format.name] = sizes.get(info.format.name, 0) + info.nbytes
        return (
            {"quantization": max(sizes, key=lambda name: sizes[name])} if sizes else {}
        )
    plan = config.get("quantization")
    if not isinstance(plan, dict):
        return {
            "quantization": str(
                config.get("torch_dtype") or config.get("dtype") or "none"
            )
        }
    mixed = (
        len(
            {
                (row.get("bits"), row.get("mode"))
                for row in plan.values()
                if isinstance(row, dict)
            }
        )
        > 1
    )
    text = f"{plan.get('mode', 'affine')} {plan.get('bits')}-bit, groups of {plan.get('group_size')}"
    return {"quantization": f"{text}, mixed" if mixed else text}


def verify_files(
    name: str, progress: Callable[[str], None], cache_dir: Path | None = None
) -> None:
    """Hold every file of an installed model or bundle against its checksum. Raises `ChecksumError`."""
    files = local_files(name, cache_dir)
    if files is None:
        raise ModelNotFoundError(
            f"{name[:80]!r} is not on this machine; fetch it with `rvllm pull`"
        )
    if files.kind == "bundle":
        open_bundle(files.path, verify=True, progress=progress, cache_dir=cache_dir)
    folder = files.path.parent if files.kind == "gguf" else files.path
    expected = {
        row: part["sha256"]
        for row, part in ((read_record(folder) or {}).get("files") or {}).items()
    }
    entry = Catalogue.load().entries.get(name.lower())
    if entry is not None and entry.file:
        expected = {entry.file: entry.sha256}
    for file, sha256 in expected.items():
        progress(f"checking {file}")
        actual = file_sha256(folder / file) if (folder / file).is_file() else "missing"
        if actual != sha256:
            raise ChecksumError(
                f"{folder / file}: its sha256 is {actual}, not {sha256}; remove the model and pull it again"
            )
    progress(
        f"{len(expected)} files have their checksums"
        if expected
        else "there are no checksums to hold it against"
    )


def unsound(
    model: Installed, *, verify: bool = False, cache_dir: Path | None = None
) -> str | None:
    """What is wrong with an installed model, in a line; None if its sizes and headers, with `verify` its checksums, agree."""
    from rvllm_local.models.gguf.reader import GGUFFile

    try:
        expected = (read_record(model.path) or {}).get("files") or {}
        for name, part in expected.items():
            path = model.path / name
            size = path.stat().st_size if path.is_file() else None
            if size != part["size"]:
                return (
                    f"{name} has {size} bytes, and {part['size']} were fetched"
                    if size is not None
                    else f"{name} is gone"
                )
        files = local_files(model.names[0], cache_dir)
        if files is not None and files.kind == "folder":
            weight_files(files.path)
        elif files is not None and files.kind == "bundle":
            check_small_files(files.path, read_manifest(files.path))
        elif files is not None:
            GGUFFile(files.path)
        if verify:
            verify_files(model.names[0], lambda _: None, cache_dir)
    except (RvllmError, OSError, TypeError, KeyError, AttributeError) as error:
        return " ".join(str(error).split())
    return None
