"""The models that have a name here, read from `catalog.toml`."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from rvllm_local.errors import ModelNotFoundError


@dataclass(frozen=True, slots=True)
class PyPISource:
    """A wheel that carries the model: its pinned requirement, and the file inside it."""

    requirement: str
    member: str


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One model. `size` is in bytes; `sha256` is of the model file itself."""

    name: str
    title: str
    license: str
    context: int
    file: str
    size: int
    sha256: str
    pypi: PyPISource


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All entries, by name."""

    entries: Mapping[str, CatalogueEntry]

    @classmethod
    def load(cls) -> Catalogue:
        text = resources.files("rvllm_local.models").joinpath("catalog.toml").read_text(encoding="utf-8")
        return cls({name: _entry(name, row) for name, row in tomllib.loads(text).items()})

    def resolve(self, name: str) -> CatalogueEntry:
        """The entry called `name`. Raises `ModelNotFoundError` with the nearest names."""
        entry = self.entries.get(name.lower())
        if entry is None:
            near = difflib.get_close_matches(name.lower(), self.entries, n=3, cutoff=0.4)
            hint = f"did you mean {', '.join(near)}?" if near else f"known are {', '.join(self.entries)}"
            raise ModelNotFoundError(f"there is no model called {name!r}; {hint} A folder or a .gguf file works too")
        return entry


def _entry(name: str, row: Mapping[str, Any]) -> CatalogueEntry:
    fields = {key: value for key, value in row.items() if key in CatalogueEntry.__dataclass_fields__}
    return CatalogueEntry(**{**fields, "name": name, "pypi": PyPISource(**row["pypi"])})
