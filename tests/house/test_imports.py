"""Imports go one way through the layers, and starting up loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Lowest first; a module may import from its own layer and those before it.
LAYERS = (
    (
        "types",
        "errors",
        "option",
        "options",
        "config",
        "host",
        "machine",
        "interrupts",
        "history",
        "sse",
    ),
    ("memory", "metal_kernels"),
    ("attention",),
    ("models",),
    ("text",),
    ("engine",),
    ("clients", "conversation"),
    ("llm", "server", "tui"),
    ("commands", "bench", "cli"),
)


def modules() -> dict[str, Path]:
    """Product modules by dotted name, without the package's own."""
    found = {}
    for folder in ("rvllm_local", "models", "metal_kernels", "tui"):
        for path in (ROOT / folder).rglob("*.py"):
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            parts = parts[1:] if folder == "rvllm_local" else parts
            name = ".".join(part for part in parts if part != "__init__")
            if name:
                found[name] = path
    return found


def layer_of(name: str) -> int:
    matches = [
        (len(prefix), index)
        for index, layer in enumerate(LAYERS)
        for prefix in layer
        if name == prefix or name.startswith(prefix + ".")
    ]
    assert matches, (
        f"{name} has no layer; give it one in this test and in docs/design.md"
    )
    return max(matches)[1]


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "rvllm_local"
        ):
            base = (node.module or "").removeprefix("rvllm_local").removeprefix(".")
            names |= {base} if base else {alias.name for alias in node.names}
    return names & set(modules())


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_go_one_way(name: str) -> None:
    for target in imported(modules()[name]):
        assert layer_of(target) <= layer_of(name), (
            f"{name} imports {target}, which is above it"
        )


@pytest.mark.parametrize("name", sorted(modules()))
def test_no_dialect_imports_another(name: str) -> None:
    """So that one API can change without the others."""
    folder = name.split(".")[:3]
    if folder[:2] != ["server", "api"] or len(name.split(".")) < 4:
        return
    for target in imported(modules()[name]):
        parts = target.split(".")
        is_dialect = parts[:2] == ["server", "api"] and len(parts) > 3
        assert not is_dialect or parts[:3] == folder, f"{name} imports {target}"


@pytest.mark.parametrize("name", sorted(modules()))
def test_every_module_says_what_it_owns(name: str) -> None:
    assert ast.get_docstring(ast.parse(modules()[name].read_text())), (
        f"{name} has no docstring"
    )


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, rvllm_local.cli as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('mlx.core', 'transformers', 'textual', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_is_quick() -> None:
    """A fifth of a second, and no more than some starts of Python itself: the quickest of many, as others work here too."""
    bare, help_ = (
        _quickest(code)
        for code in (["-c", "pass"], ["-m", "rvllm_local.cli", "--help"])
    )
    assert help_ < 8 * bare, (
        f"rvllm --help took {help_:.2f} s, and starting Python {bare:.2f} s"
    )
    assert help_ < 0.2, f"rvllm --help took {help_:.2f} s"


def _quickest(arguments: list[str]) -> float:
    times = []
    for _ in range(20):
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        times.append(time.perf_counter() - began)
    return min(times)
