"""Which of a folder's or a repository's files hold a model's weights, by their names.

They are `model*.safetensors`. Older writers of packed models have other names, such as
`gptq_model-4bit-128g.safetensors`, which count where there is nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_USUAL = re.compile(r"model[^/]*\.safetensors")
_ANY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")
_SHARD = re.compile(r"(.*)-\d{5}-of-\d{5}")
_INDEX = ".safetensors.index.json"
_USUAL_INDEX = f"model{_INDEX}"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# Beginnings of files that are no model's weights, or repeat them under other names.
_OTHERS = ("adapter", "consolidated", "optimizer", "rng", "scheduler", "training")


@dataclass(frozen=True, slots=True)
class WeightNames:
    """`files` in their order, and the `index` that says what each of them holds."""

    files: tuple[str, ...] = ()
    index: str | None = None


def weight_names(names: Iterable[str], stated: Sequence[str] = ()) -> WeightNames:
    """The weights among these names; none where several models have other names.

    stated: what settings call the files, less their suffix; the first that is there
    counts.
    """
    there = set(names)
    models = older_models(there)
    for stem in stated:
        if stem in models:
            return _with_index(models[stem], f"{stem}{_INDEX}", there)
    files = _usual_files(there)
    index = _USUAL_INDEX
    if not files and index not in there:
        if len(models) != 1:
            return WeightNames()
        ((stem, files),) = models.items()
        index = f"{stem}{_INDEX}"
    return _with_index(files, index, there)


def _usual_files(names: Iterable[str]) -> list[str]:
    files = []
    for name in names:
        if _USUAL.fullmatch(name):
            files.append(name)
    return files


def _with_index(files: list[str], index: str, there: set[str]) -> WeightNames:
    files.sort()
    if index in there:
        return WeightNames(tuple(files), index)
    return WeightNames(tuple(files))


def older_models(names: Iterable[str]) -> dict[str, list[str]]:
    """Files of weights under other names, by what the files of one model have in common."""
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        if not _ANY.fullmatch(name) or name.startswith(_OTHERS):
            continue
        stem = name.removesuffix(".safetensors")
        shard = _SHARD.fullmatch(stem)
        if shard is not None:
            stem = shard[1]
        models.setdefault(stem, []).append(name)
    return models


def absence(names: Iterable[str]) -> str:
    """Why there are no weights, as the end of a sentence."""
    there = list(names)
    models = sorted(older_models(there))
    if len(models) > 1:
        shown = ", ".join(models[:4])
        return f"; it has several models, {shown}: keep one"
    for name in there:
        if name.startswith("consolidated"):
            return f"; {name} has Mistral's own names of weights, which are not read"
    pickles = pickled_names(there)
    if pickles:
        return (
            f"; it has pickled weights ({pickles[0]}), which are never read, since that "
            "runs code: take a repository with safetensors, or save the model anew with "
            "transformers' save_pretrained"
        )
    return ""


def pickled_names(names: Iterable[str]) -> list[str]:
    """Files of pickled weights, in order."""
    return sorted(name for name in names if name.endswith(PICKLES))
