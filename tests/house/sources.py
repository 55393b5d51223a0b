"""The product's modules, read once for all tests of the house."""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "rvllm_local"
# Top-level folders that are parts of the package, as pyproject.toml maps them.
MAPPED = ("models", "metal_kernels", "tui")


@dataclass(frozen=True, slots=True)
class Module:
    """One module: its dotted name within the package, its file, its text and tree."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """The folder below the package, or the module itself if it lies in none."""
        return self.name.partition(".")[0]

    @property
    def folder(self) -> str:
        """The folder below the package, or the package for a module in none."""
        is_alone = self.path.parent.name == PACKAGE
        return PACKAGE if is_alone else self.room

    @property
    def file(self) -> str:
        return str(self.path.relative_to(ROOT))


@functools.cache
def modules() -> dict[str, Module]:
    """All modules by name, but for the package's own `__init__`."""
    table = {}
    for folder in (PACKAGE, *MAPPED):
        for path in sorted((ROOT / folder).rglob("*.py")):
            module = _module(path)
            if module is not None:
                table[module.name] = module
    return table


def _module(path: Path) -> Module | None:
    if any(parent.is_symlink() for parent in path.parents):
        return None  # the link in the package to a top-level folder
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == PACKAGE:
        parts = parts[1:]
    if parts[-1] == "__init__":
        parts = parts[:-1]
    if not parts:
        return None
    text = path.read_text()
    return Module(".".join(parts), path, text, ast.parse(text))


def functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions and methods, nested ones among them."""
    nodes = ast.walk(tree)
    return [
        node
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
